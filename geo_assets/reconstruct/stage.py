"""Runs one step of COLMAP in a process of its own, within limits of time and memory.

Some of COLMAP's errors abort the process from a worker thread instead of raising; here that becomes an error
with the end of COLMAP's log. The step gets its arguments as JSON and answers with JSON; what it prints to
stdout is progress for people, what it writes to stderr is COLMAP's log, of which the milestones are told too.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import math
import os
import re
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from geo_assets.errors import GeoAssetsError, ReconstructionError
from geo_assets.files import replacing

STEPS = {
    "export": "geo_assets.reconstruct.formats:export",
    "about_colmap": "geo_assets.reconstruct.extraction:about_colmap",
    "extract_features": "geo_assets.reconstruct.extraction:extract",
    "build_database": "geo_assets.reconstruct.extraction:build_database",
    "match": "geo_assets.reconstruct.verification:match",
    "propose_by_vocabulary": "geo_assets.reconstruct.vocabulary:propose_by_vocabulary",
    "map_block": "geo_assets.reconstruct.mapping:map_block",
    "update_models": "geo_assets.reconstruct.growing:update_models",
    "join_blocks": "geo_assets.reconstruct.joining:join_blocks",
    "join_models": "geo_assets.reconstruct.merge:join_models",
}
"""Functions that may run as a step, by name."""

TIMEOUT_S = 12 * 3600.0
_TAIL_LINES = 12
_TICK_S = 0.5
_TELL_EVERY_S = 5.0
_PAGE_BYTES = resource.getpagesize()

Log = Callable[[str], None]


class StepAnswer(dict[str, Any]):
    """What a step answered, with what it took."""

    cpu_seconds: float = 0.0
    peak_mb: float = 0.0


class StepEnded(ReconstructionError):
    """A step's process ended without an answer.

    Attributes:
        by: ``timeout`` and ``memory`` are our limits, ``signal`` comes from outside, ``abort`` is COLMAP's own end.
        cpu_seconds: processor time that it took until then [s].
        peak_mb: most memory that was seen of it [MB].
    """

    by: Literal["timeout", "memory", "signal", "abort"] = "abort"
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0


def run_step(
    step: str,
    arguments: Mapping[str, Any],
    scratch: Path,
    *,
    log: Log | None = None,
    timeout_s: float = TIMEOUT_S,
    memory_mb: float = math.inf,
    stop: threading.Event | None = None,
) -> StepAnswer:
    """Run one step in a child process and return its answer.

    Args:
        step: a name of :data:`STEPS`.
        arguments: keyword arguments of the step, as JSON can hold them.
        scratch: local folder for the arguments, the answer and the log; two steps at once need a folder each.
        log: gets each line of progress.
        timeout_s: the child is killed after so many seconds.
        memory_mb: the child is killed when it and its children hold more [MB].
        stop: set by another thread, it ends the child.

    Raises:
        StepEnded: the process aborted, was killed, or went beyond a limit; the message ends with COLMAP's last lines.
        ReconstructionError: the step said why it failed.
    """
    if step not in STEPS:
        raise ReconstructionError(f"'{step}' is not a step of the reconstruction; known: {', '.join(STEPS)}.")
    asked, answer, journal = (scratch / f"{step}.{kind}" for kind in ("arguments.json", "answer.json", "log"))
    asked.write_text(json.dumps(dict(arguments)))
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "geo_assets.reconstruct.stage", step, str(asked), str(answer)]
    with journal.open("wb") as errors:
        child = _Child(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, process_group=0))
    try:
        went_beyond = child.follow(log or _silent, _Journal(journal), time.monotonic() + timeout_s, memory_mb, stop)
    finally:
        # An interrupted run must not leave COLMAP behind.
        child.kill()
    if answer.exists():
        said = json.loads(answer.read_text())
        if "error" in said:
            raise ReconstructionError(said["error"], step=step, **said["figures"])
        result = StepAnswer(said["result"])
        result.cpu_seconds, result.peak_mb = child.cpu_seconds, max(child.peak_mb, said.get("peak_mb", 0.0))
        return result
    tail = "\n".join(journal.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    raise _ended(step, child, went_beyond, timeout_s, memory_mb, tail)


def _silent(_: str) -> None:
    """Progress that nobody asked for."""


def _ended(
    step: str, child: _Child, went_beyond: str | None, timeout_s: float, memory_mb: float, tail: str
) -> StepEnded:
    """The error of a process that left no answer."""
    code = child.code
    if went_beyond == "timeout":
        what = f"did not end within {timeout_s:,.0f} s and was stopped. Use smaller boxes or fewer features"
    elif went_beyond == "memory":
        what = (
            f"held {child.peak_mb:,.0f} MB, more than the {memory_mb:,.0f} MB it may hold, and was stopped. "
            "Use smaller boxes or fewer features"
        )
    elif code < 0:
        what = f"was ended by signal {signal.Signals(-code).name}"
    else:
        what = f"ended with code {code}"
    error = StepEnded(f"COLMAP's step '{step}' {what}. Its log ends:\n{tail}", step=step, returncode=code)
    if went_beyond == "timeout" or went_beyond == "memory":
        error.by = went_beyond
    elif code in (-signal.SIGKILL, -signal.SIGTERM):
        error.by = "signal"
    error.cpu_seconds, error.peak_mb = child.cpu_seconds, child.peak_mb
    return error


class _Child:
    """A process with a group of its own: listened to, measured, and ended as a whole."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.cpu_seconds = self.peak_mb = 0.0

    @property
    def code(self) -> int:
        """How it ended: an exit code, or the number of the signal below zero."""
        return self.process.returncode or 0

    def follow(
        self, log: Log, journal: _Journal, deadline: float, memory_mb: float, stop: threading.Event | None
    ) -> str | None:
        """Pass on progress until the process ends or goes beyond a limit; the limit's name, or None."""
        assert self.process.stdout is not None
        output = self.process.stdout.fileno()
        os.set_blocking(output, False)
        pending, looked = b"", -math.inf
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                ended = self._ended()
                # One of its children may keep the pipe open, so the end of the process counts, not that of the pipe.
                selector.select(0 if ended else _TICK_S)
                chunk = _read(output)
                if chunk == b"" and not ended:  # closed, but still at work
                    time.sleep(0.02)
                *lines, pending = (pending + (chunk or b"")).split(b"\n")
                for line in lines:
                    log(line.decode(errors="replace").rstrip())
                if ended:
                    if pending:
                        log(pending.decode(errors="replace").rstrip())
                    return None
                if stop is not None and stop.is_set():
                    return "stop"
                if time.monotonic() < looked + _TICK_S:
                    continue
                looked = time.monotonic()
                self.peak_mb = max(self.peak_mb, held := memory_of(self.process.pid))
                if held > memory_mb:
                    return "memory"
                if looked > deadline:
                    return "timeout"
                journal.tell(log)

    def kill(self) -> None:
        """End the whole group, at once, and take its measure."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        while not self._ended():
            time.sleep(0.01)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _ended(self) -> bool:
        if self.process.returncode is None:
            pid, status, used = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_seconds = used.ru_utime + used.ru_stime
        return self.process.returncode is not None


class _Journal:
    """The child's log as it grows: its milestones are told, at most one every few seconds."""

    def __init__(self, path: Path) -> None:
        self.path, self.at, self.told = path, 0, time.monotonic()
        self.latest: str | None = None

    def tell(self, log: Log) -> None:
        """Tell the latest milestone, unless one was told just now."""
        with self.path.open("rb") as source:
            source.seek(self.at)
            text = source.read()
        whole = text.rfind(b"\n") + 1
        self.at += whole
        for line in text[:whole].decode(errors="replace").splitlines():
            self.latest = milestone(line) or self.latest
        if self.latest and time.monotonic() >= self.told + _TELL_EVERY_S:
            log(self.latest)
            self.latest, self.told = None, time.monotonic()


_MESSAGE = re.compile(r"^[IWE]\d{8} [\d:.]+ +\d+ [\w.]+:\d+\] (?P<message>.*)$")
_MILESTONES = (
    re.compile(r"Registering image #\d+ .*"),
    re.compile(r"Registering initial image pair .*"),
    re.compile(r"Processed file \[\d+/\d+\].*"),
    re.compile(r"(?:Local|Global|Retriangulation and Global) bundle adjustment.*"),
    re.compile(r"Pose-?prior bundle adjustment.*", re.IGNORECASE),
    re.compile(r"=== .* ==="),
)


def milestone(line: str) -> str | None:
    """What a line of COLMAP's log tells of its progress: an image registered, a stage begun; None for the rest."""
    found = _MESSAGE.match(line)
    if found is None:
        return None
    message = found["message"].strip()
    return message.strip("= ") if any(pattern.fullmatch(message) for pattern in _MILESTONES) else None


def memory_of(pid: int) -> float:
    """Resident memory of a process and all below it [MB]; 0 where the system does not tell."""
    held, waiting = 0, [pid]
    while waiting:
        at = Path("/proc") / str(waiting.pop())
        # A process that ended between two looks holds nothing.
        with contextlib.suppress(OSError, ValueError, IndexError):
            held += int((at / "statm").read_text().split()[1]) * _PAGE_BYTES
            for children in (at / "task").glob("*/children"):
                waiting += [int(child) for child in children.read_text().split()]
    return held / 1e6


def _read(output: int) -> bytes | None:
    """What a pipe holds now; None where it holds nothing yet, no bytes where it is closed."""
    try:
        return os.read(output, 65536)
    except BlockingIOError:
        return None


def main(argv: list[str]) -> int:
    """Entry point of the child: ``<step> <arguments.json> <answer.json>``."""
    step, asked, answer = argv
    _die_with_parent()
    if step not in STEPS:
        return 2
    importlib.import_module("PIL.Image")  # loaded after pycolmap, which brings another zlib, it hangs on PNG
    module, function = STEPS[step].split(":")
    arguments = json.loads(Path(asked).read_text())
    try:
        said: dict[str, Any] = {"result": getattr(importlib.import_module(module), function)(**arguments)}
    except GeoAssetsError as error:
        said = {"error": str(error), "figures": {k: str(v) for k, v in error.figures.items()}}
    with replacing(Path(answer)) as sink:
        sink.write(json.dumps(said | {"peak_mb": _own_peak_mb()}).encode())
    return 0


def _own_peak_mb() -> float:
    """The most memory that this process held [MB]."""
    # Linux also counts into ru_maxrss what the parent held before this program took its place.
    with contextlib.suppress(OSError, ValueError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _die_with_parent() -> None:
    """Ask the kernel to end this process with its parent, however that ends (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
