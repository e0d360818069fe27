"""Runs one step of COLMAP in a process of its own.

Some of COLMAP's errors abort the process from a worker thread instead of raising; here that becomes an error
with the end of COLMAP's log. The step gets its arguments as JSON and answers with JSON; what it prints to
stdout is progress for people, what it writes to stderr is COLMAP's log.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from geo_assets.errors import GeoAssetsError, ReconstructionError
from geo_assets.files import replacing

STEPS = {
    "build_database": "geo_assets.reconstruct.extraction:build_database",
    "match": "geo_assets.reconstruct.verification:match",
    "reconstruct": "geo_assets.reconstruct.mapping:map_components",
}
"""Functions that may run as a step, by name."""

TIMEOUT_S = 12 * 3600.0
_TAIL_LINES = 12


def run_step(
    step: str,
    arguments: Mapping[str, Any],
    scratch: Path,
    *,
    log: Callable[[str], None] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Run one step in a child process and return its answer.

    Args:
        step: a name of :data:`STEPS`.
        arguments: keyword arguments of the step, as JSON can hold them.
        scratch: local folder for the arguments, the answer and the log.
        log: gets each line of progress.
        timeout_s: the child is killed after so many seconds.

    Raises:
        ReconstructionError: the step failed, aborted or took too long; the message ends with COLMAP's last lines.
    """
    if step not in STEPS:
        raise ReconstructionError(f"'{step}' is not a step of the reconstruction; known: {', '.join(STEPS)}.")
    asked, answer, journal = (scratch / f"{step}.{kind}" for kind in ("arguments.json", "answer.json", "log"))
    asked.write_text(json.dumps(dict(arguments)))
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "geo_assets.reconstruct.stage", step, str(asked), str(answer)]
    with journal.open("w") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        watchdog = threading.Timer(timeout_s, child.kill)
        watchdog.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if log is not None:
                    log(line.rstrip())
            code = child.wait()
        finally:
            late = not watchdog.is_alive()
            watchdog.cancel()
            # An interrupted run must not leave COLMAP behind.
            child.kill()
            child.wait()
    if answer.exists():
        said = json.loads(answer.read_text())
        if "error" in said:
            raise ReconstructionError(said["error"], step=step, **said["figures"])
        return said["result"]
    tail = "\n".join(journal.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    if late:
        raise ReconstructionError(
            f"COLMAP's step '{step}' did not end within {timeout_s:,.0f} s and was stopped. "
            f"Use smaller boxes or fewer features. Its log ends:\n{tail}",
            step=step,
        )
    how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    raise ReconstructionError(f"COLMAP's step '{step}' {how}. Its log ends:\n{tail}", step=step, returncode=code)


def main(argv: list[str]) -> int:
    """Entry point of the child: ``<step> <arguments.json> <answer.json>``."""
    step, asked, answer = argv
    _die_with_parent()
    if step not in STEPS:
        return 2
    module, function = STEPS[step].split(":")
    arguments = json.loads(Path(asked).read_text())
    try:
        said: dict[str, Any] = {"result": getattr(importlib.import_module(module), function)(**arguments)}
    except GeoAssetsError as error:
        said = {"error": str(error), "figures": {k: str(v) for k, v in error.figures.items()}}
    with replacing(Path(answer)) as sink:
        sink.write(json.dumps(said).encode())
    return 0


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
