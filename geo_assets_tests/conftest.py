"""Fixtures that several folders share, and the closing line with the time and memory of the whole run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geo_assets.demo.run import peak_memory_gb
from geo_assets.lake import Lake

_BEGAN = time.monotonic()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples that ``GEO_ASSETS_TEST_DATA`` names; the test skips without it."""
    folder = os.environ.get("GEO_ASSETS_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GEO_ASSETS_TEST_DATA names no folder of real samples")
    return Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the run took."""
    if not hasattr(terminalreporter.config, "workerinput"):
        terminalreporter.write_line(
            f"{time.monotonic() - _BEGAN:.0f} s, at most {peak_memory_gb():.2f} GB of memory in one process and its largest child"
        )


@pytest.fixture(scope="session")
def _demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which ``geo-assets demo`` was killed three times and then ran to its end; its last output."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {k: v for k, v in os.environ.items() if k not in ("DAGSTER_HOME", "GEO_ASSETS_SETTINGS")}
    command = [sys.executable, "-m", "geo_assets.cli", "demo"]
    # Moments in the middle of the harvest, of a reconstruction and of a training on two cores; elsewhere others.
    for seconds in (20, 45, 70):
        run = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(timeout=seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder, done.stdout


@pytest.fixture(scope="session")
def finished_demo(_demo: tuple[Path, str]) -> Lake:
    """The lake of the finished demo; tests read it and leave it as it is."""
    return Lake(_demo[0] / "lake")


@pytest.fixture(scope="session")
def demo_output(_demo: tuple[Path, str]) -> str:
    """What the last ``geo-assets demo`` printed."""
    return _demo[1]
