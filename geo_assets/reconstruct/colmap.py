"""What the calls into COLMAP share; imported only by modules that run in a child process (see :mod:`.stage`)."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pycolmap

from geo_assets.errors import ReconstructionError

# The log belongs to the step; by default COLMAP also writes files into the temporary folder of the machine.
pycolmap.logging.logtostderr = True

PAIR_BASE = 2**31 - 1
"""COLMAP's ``pair_id`` is ``PAIR_BASE * smaller id + larger id``."""


def checkpoint(database: str) -> None:
    """Bring the write-ahead log into the file, so that the file alone is the database."""
    with contextlib.closing(sqlite3.connect(database)) as con:
        con.execute("pragma walcheckpoint(truncate)")
        con.execute("pragma journal_mode = delete")
    for suffix in ("-wal", "-shm"):
        if (leftover := Path(database + suffix)).exists():
            leftover.unlink()
    if not Path(database).exists():
        raise ReconstructionError(f"COLMAP left no database at {database}. Run the step again.")
