"""Finds, questions and runs the external programs that train splats.

A program runs in a session of its own: a time limit, a cancelled run or an exception ends it with everything it
started. Its output goes line by line to ``engine.log``; what matters of it is told every few seconds.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from geo_assets.errors import TrainingError
from geo_assets.splats.engine import Log

TAIL_LINES = 20
SAY_EVERY_S = 5.0
GRACE_S = 5.0
"""What a program has between the friendly signal and the one that it cannot ignore."""
ANSWER_S = 30.0
MOST_WARNINGS = 5
LONGEST_LINE = 4096
LARGEST_LOG = 32 << 20
_TICK_S = 0.2
_LEFTOVERS_S = 5.0
"""For how long the output of a program that has ended is still read."""
_MOST_POINTS = 400

NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
"""Pattern of a number as programs print it; what is not finite is no figure."""
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL|^(GEO_ASSETS|MAPILLARY|DAGSTER)_", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/\s@]+:[^/\s@]+@")
_WARNING = re.compile(r"\bWARN(?:ING)?\b|\bERROR\b|⚠|❌|^\s*(?i:warning|error)\b|^[\w.]*(?:Error|Exception): ")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Said:
    """What a line of a program's output tells; None where it does not."""

    step: int | None = None
    n_splats: int | None = None
    loss: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    peak_gpu_mb: float | None = None


Reader = Callable[[str], Said | None]


@dataclass
class Ran:
    """A program that ended with exit code 0.

    Args:
        seconds: how long it took.
        steps: the last step it spoke of, 0 where of none.
        last: the latest value of everything that it said.
        curve: each line that told a PSNR, as a point of :attr:`~geo_assets.splats.engine.SplatResult.curve`.
        warnings: lines that look like warnings or errors.
        tail: its last lines.
    """

    seconds: float = 0.0
    steps: int = 0
    last: Said = field(default_factory=Said)
    curve: list[dict[str, float]] = field(default_factory=list)
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    @property
    def last_warning(self) -> str:
        """What it warned of last, for messages."""
        return self.warnings[-1] if self.warnings else "none"

    @property
    def metrics(self) -> dict[str, float]:
        """The engine's own figures of the held-out photos, as it said them last."""
        said = {"psnr_db": self.last.psnr_db, "ssim": self.last.ssim, "loss": self.last.loss}
        return {name: value for name, value in said.items() if value is not None}


def find_program(names: Sequence[str], *configured: Path | str | None, elsewhere: Iterable[Path] = ()) -> Path | None:
    """The first of what is configured, of the names on PATH, and of some places, that can be executed.

    A configured program that is not there is not replaced by another: None.
    """
    for given in configured:
        if given:
            found = shutil.which(Path(given).expanduser())
            return Path(found).absolute() if found else None
    for name in names:
        if found := shutil.which(name):
            return Path(found).absolute()
    return next((path for path in elsewhere if os.access(path, os.X_OK) and path.is_file()), None)


def ask(program: Path, *arguments: str, seconds: float = ANSWER_S) -> str | None:
    """What a program prints for ``--help`` and the like; None where it fails or does not answer in time.

    An answer is remembered as long as the program's file does not change.
    """
    try:
        status = program.stat()
    except OSError:
        return None
    return _ask(str(program), arguments, (status.st_mtime_ns, status.st_size), seconds)


@functools.lru_cache(maxsize=64)
def _ask(program: str, arguments: tuple[str, ...], version: tuple[int, int], seconds: float) -> str | None:
    try:
        child = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        said, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _signal_group(child.pid, signal.SIGKILL)
        child.wait()
    return said.decode(errors="replace") if child.returncode == 0 else None


def flags_in(answer: str) -> set[str]:
    """The long flags that a ``--help`` names."""
    return set(re.findall(r"--[a-z][a-z0-9-]*", answer))


def version_in(answer: str | None) -> str:
    """The first thing in an answer that looks like a version, or ``unknown``."""
    found = re.search(r"\d+\.\d+(?:\.\d+)?(?:[-+.]?[0-9A-Za-z]+)*", answer or "")
    return found[0] if found else "unknown"


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment for a foreign program: without secrets, without our settings, and with ``more``."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not _SECRET_NAME.search(name) and not _SECRET_VALUE.search(value)
    }
    return ours | {"PYTHONUNBUFFERED": "1"} | dict(more or {})


def run(
    engine: str,
    command: Sequence[str],
    *,
    folder: Path,
    journal: Path,
    read: Reader,
    log: Log,
    steps: int,
    timeout_s: float | None = None,
    more: Mapping[str, str] | None = None,
    hint: Callable[[str], str | None] | None = None,
) -> Ran:
    """Run a program to its end.

    Args:
        engine: its name, for messages.
        command: the program and its arguments; no shell is involved.
        folder: working directory.
        journal: gets every line of its output, after what is there already.
        read: what a line tells.
        log: gets progress every few seconds, and the first warnings.
        steps: how many it was asked for.
        timeout_s: it is ended after so many seconds.
        more: environment variables beside ours.
        hint: a way out for the output of a failure, if one is known.

    Raises:
        TrainingError: it could not be started, failed or took too long; the message ends with its last lines.
    """
    ran, began = Ran(), time.monotonic()
    teller = _Teller(engine, log, steps, ran)
    with journal.open("ab") as sink:
        sink.write(f"$ {' '.join(command)}\n".encode())
        try:
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(more),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise TrainingError(
                f"{engine} could not be started: {error}. Look at splats.engine and its path."
            ) from None
        try:
            in_time = _follow(child, _Journal(sink), lambda line: teller.hear(line, read(line)), timeout_s)
        finally:
            end_group(child)
    ran.seconds = time.monotonic() - began
    if in_time and child.returncode == 0:
        return ran
    output = "\n".join(ran.tail)
    where = f" after step {ran.steps:,} of {steps:,}" if ran.steps else ""
    if not in_time:
        what = f"did not end within {timeout_s:,.0f} s and was stopped{where}. Raise splats.timeout_s or lower splats.steps"
    elif child.returncode < 0:
        what = f"was ended by {_signal_name(-child.returncode)}{where}. Memory may have run out"
    else:
        what = f"failed with exit code {child.returncode}{where}"
    way_out = hint(output) if hint else None
    raise TrainingError(
        f"{engine} {what}. {f'{way_out} ' if way_out else ''}Its output ends:\n{output or '(nothing)'}",
        seconds=round(ran.seconds, 1),
        steps=ran.steps,
        returncode=child.returncode,
    )


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End a process and everything in its group: first asked, after a few seconds forced."""
    if _group_is_there(child):
        _signal_group(child.pid, signal.SIGTERM)
        _wait_for_group(child, GRACE_S if child.poll() is None else 0.5)
        _signal_group(child.pid, signal.SIGKILL)
        # A process that hangs in a driver cannot be waited for for ever.
        _wait_for_group(child, 10.0)
    if child.stdout is not None:
        child.stdout.close()


def _wait_for_group(child: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and _group_is_there(child):
        time.sleep(0.02)


def _group_is_there(child: subprocess.Popen[bytes]) -> bool:
    """Whether a process of the group still runs; one that ended and waits for its parent to notice does not count."""
    if child.poll() is None:
        return True
    try:
        os.killpg(child.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    states = [_state_in_group(path, child.pid) for path in Path("/proc").glob("[0-9]*/stat")]
    return not states or any(state not in (None, "Z", "X") for state in states)


def _state_in_group(status: Path, group: int) -> str | None:
    """State of a Linux process by its ``/proc/*/stat``; None where it is of another group or gone."""
    try:
        state, _, its_group = status.read_text().rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return None
    return state if its_group == str(group) else None


def _signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _signal_name(number: int) -> str:
    try:
        return f"signal {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"


def _follow(
    child: subprocess.Popen[bytes], journal: _Journal, hear: Callable[[str], None], timeout_s: float | None
) -> bool:
    """Pass on lines until the process ends; False where the time is up before."""
    assert child.stdout is not None
    output, pending = child.stdout.fileno(), b""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    os.set_blocking(output, False)
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        open_, over = True, math.inf
        while True:
            # A child of the program may keep the pipe open, so the end of the program counts, not that of the pipe.
            ended = child.poll() is not None
            over = min(over, time.monotonic() + _LEFTOVERS_S) if ended else over
            if open_:
                selector.select(0 if ended else _TICK_S)
            elif not ended:
                time.sleep(_TICK_S)
            chunk = _read(output)
            if chunk == b"" and open_:
                selector.unregister(output)
                open_ = False
            # Progress bars go back to the start of their line instead of to a new one.
            *lines, pending = re.split(rb"[\r\n]+", pending + (chunk or b""))
            while len(pending) > LONGEST_LINE:
                lines.append(pending[:LONGEST_LINE])
                pending = pending[LONGEST_LINE:]
            if ended and not chunk and pending:
                lines.append(pending)
            for raw in lines:
                if line := _COLOURS.sub("", raw[:LONGEST_LINE].decode(errors="replace")).rstrip():
                    journal.write(line)
                    hear(line)
            if ended and (not chunk or time.monotonic() > over):
                return True
            if deadline is not None and time.monotonic() > deadline and not ended:
                return False


def _read(output: int) -> bytes | None:
    """What is there to read; empty at the end of the pipe, None where there is nothing yet."""
    try:
        return os.read(output, 1 << 16)
    except BlockingIOError:
        return None


class _Journal:
    """The whole output as a file, up to a size that no disk minds."""

    def __init__(self, sink: IO[bytes]) -> None:
        self.sink, self.room = sink, LARGEST_LOG

    def write(self, line: str) -> None:
        data = f"{line}\n".encode()
        if self.room > 0:
            self.sink.write(data)
            self.sink.flush()
            if self.room <= len(data):
                self.sink.write(b"(the log is full; the rest is left out)\n")
        self.room -= len(data)


class _Teller:
    """Keeps what a program says and tells of it now and then."""

    def __init__(self, engine: str, log: Log, steps: int, ran: Ran) -> None:
        self.engine, self.log, self.steps, self.ran = engine, log, steps, ran
        self.told, self.n_warnings = time.monotonic(), 0
        self.fresh = False

    def hear(self, line: str, said: Said | None) -> None:
        self.ran.tail.append(line)
        if said is not None:
            self._keep(said)
        elif _WARNING.search(line):
            self.ran.warnings.append(line)
            self.n_warnings += 1
            if self.n_warnings <= MOST_WARNINGS:
                self.log(f"{self.engine}: {line}")
            if self.n_warnings == MOST_WARNINGS:
                self.log(f"{self.engine}: more warnings are in engine.log only.")
        now = time.monotonic()
        if self.fresh and now >= self.told + SAY_EVERY_S:
            self.log(self.progress())
            self.told, self.fresh = now, False

    def _keep(self, said: Said) -> None:
        ran = self.ran
        news = {name: value for name, value in vars(said).items() if value is not None and math.isfinite(value)}
        ran.last = replace(ran.last, **news)
        ran.steps = max(ran.steps, said.step or 0)
        self.fresh = self.fresh or bool(news)
        if "psnr_db" in news:
            point: dict[str, float] = {"step": ran.steps, "psnr_db": news["psnr_db"]}
            point |= {k: getattr(ran.last, k) for k in ("n_splats", "loss") if getattr(ran.last, k) is not None}
            ran.curve.append(point)
            if len(ran.curve) > _MOST_POINTS:
                del ran.curve[::2]

    def progress(self) -> str:
        """One line about where the program is."""
        last, parts = self.ran.last, []
        if self.ran.steps:
            parts.append(f"step {self.ran.steps:,} of {self.steps:,}")
        if last.n_splats is not None:
            parts.append(f"{last.n_splats:,} Gaussians")
        if last.loss is not None:
            parts.append(f"loss {last.loss:.4g}")
        if last.psnr_db is not None:
            parts.append(f"PSNR {last.psnr_db:.2f} dB")
        return f"{self.engine}: {', '.join(parts)}"
