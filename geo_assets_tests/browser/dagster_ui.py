"""The Dagster UI on a free port of loopback, without the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def dagster_ui(environment: Mapping[str, str], log: Path, folder: Path | None = None) -> Iterator[str]:
    """Serve the project's graph until the block ends.

    Args:
        environment: of the server; names instance, lake and settings.
        log: takes what it says.
        folder: where it works; its ``.env`` goes before the environment.

    Yields:
        The base address.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dagster_webserver", "-m", "geo_assets.definitions", "-h", "127.0.0.1"]
    with log.open("wb") as sink:
        server = subprocess.Popen(
            [*command, "-p", str(port)], cwd=folder, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/server_info") as answer:
                if answer.status == 200:
                    break
            time.sleep(0.25)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)  # the code server as well
        server.wait(30)
