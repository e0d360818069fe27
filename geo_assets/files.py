"""Files that a reader sees whole or not at all: written under a temporary name beside the target, synced, renamed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: Path, *, sync_folder: bool = True) -> Iterator[IO[bytes]]:
    """A file open for writing that takes the place of ``path`` at the end; a failure leaves the old one as it was.

    Args:
        path: the file.
        sync_folder: whether its name is brought to the disk at once; who writes many files syncs the folder once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path)
        if sync_folder:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A name beside ``path`` for a library that writes files itself; the file takes the place of ``path`` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fresh_folder(path: Path) -> Path:
    """An empty folder at ``path``, whatever was there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def put_in_place(staged: Path, folder: Path) -> None:
    """Put a finished folder beside ``folder`` in its place; what stood there goes when the new one is there."""
    for path in staged.rglob("*"):
        if path.is_file():
            sync(path)
    retired = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.old")
    if folder.exists():
        folder.rename(retired)
    staged.rename(folder)
    sync(folder.parent)
    shutil.rmtree(retired, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Bring all that was written to the disk of ``folder`` to it; for thousands of files, far cheaper than each by itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):  # only Linux has it; the other one tells of no failure, and syncs all disks
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())}: {folder}")
    finally:
        os.close(descriptor)
