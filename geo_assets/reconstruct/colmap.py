"""What the calls into COLMAP share; imported only by modules that run in a child process (see :mod:`.stage`)."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pycolmap

from geo_assets.errors import ConfigError, ReconstructionError
from geo_assets.reconstruct.databases import PAIR_BASE

__all__ = ["PAIR_BASE", "checkpoint", "device_for"]

# The log belongs to the step; by default COLMAP also writes files into the temporary folder of the machine.
pycolmap.logging.logtostderr = True

BUSY_S = 30.0
"""How long a program that holds a database is waited for [s]."""


def checkpoint(database: str) -> None:
    """Bring the write-ahead log into the file, so that the file alone is the database.

    Raises:
        ReconstructionError: there is no database, or another program holds it.
    """
    if not Path(database).exists():
        raise ReconstructionError("COLMAP left no database. Run the step again.")
    with contextlib.closing(sqlite3.connect(database, timeout=BUSY_S)) as con:
        try:
            con.execute("pragma wal_checkpoint(truncate)")
            mode = con.execute("pragma journal_mode = delete").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise ReconstructionError(_HELD) from error
    if mode != "delete":
        raise ReconstructionError(_HELD)
    for suffix in ("-wal", "-shm"):
        Path(database + suffix).unlink(missing_ok=True)


_HELD = "Another program holds the database that COLMAP works on. Close it there and run the step again."


def device_for(asked: str) -> pycolmap.Device:
    """Where to compute: ``auto`` is the GPU if this build of COLMAP has one.

    Raises:
        ConfigError: ``cuda`` is asked for and this build has none.
    """
    if asked == "cuda" and not pycolmap.has_cuda:
        raise ConfigError(
            'reconstruct.device is "cuda", but this pycolmap was built without it. '
            'Install a CUDA build (pycolmap-cuda12), or set device = "auto".'
        )
    return pycolmap.Device.cuda if pycolmap.has_cuda and asked != "cpu" else pycolmap.Device.cpu
