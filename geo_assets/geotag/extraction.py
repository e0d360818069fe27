"""Photos of a shard as files of the lake, byte by byte as they are in the shard."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from geo_assets.errors import SourceError
from geo_assets.files import fresh_folder, sync_all
from geo_assets.lake import Lake

_NO_SUCH_NAME = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
_AT_ONCE = 16
"""Files on their way to object storage, where each takes its time."""

_BATCH = 1024


def extract(lake: Lake, shard: Path, folder: str, staged: str, photos: pa.Table) -> pa.Table:
    """Write photos as files, those that are not there yet.

    A sync for each of millions of files would take days, so there is one at the end; the caller writes the table that
    names the files after it. What a crash left unsynced or half is found by its bytes when the shard is read again,
    since nothing is taken for granted before there is a table.

    Args:
        lake: receives them.
        shard: holds them.
        folder: key below which they go.
        staged: key of a folder for half files; no other shard's.
        photos: safe ``path`` (each once), ``offset`` and ``bytes`` of each JPEG in the shard.

    Returns:
        Column ``offset`` of what is there as a file now; a photo whose path is another one's folder, or too long for
        the disk, is not.

    Raises:
        SourceError: the shard has become shorter.
    """
    written: list[int] = []
    with shard.open("rb") as source:
        put = _put_on_disk(lake, folder, staged) if lake.is_local else _put_in_bucket(lake, folder)

        def take(path: str, offset: int, size: int) -> bool:
            content = os.pread(source.fileno(), size, offset)
            if len(content) != size:
                raise SourceError(f"{shard} has become shorter while it was read. Run again when it is complete.")
            return put(path, content)

        with ThreadPoolExecutor(1 if lake.is_local else _AT_ONCE) as pool:
            for batch in photos.to_batches(_BATCH):
                columns = [column.to_pylist() for column in batch.select(["path", "offset", "bytes"]).columns]
                written += [at for at, done in zip(columns[1], pool.map(take, *columns), strict=True) if done]
    if lake.is_local:
        sync_all(Path(lake.uri(folder)))
        lake.remove_folder(staged)
    return pa.table({"offset": pa.array(written, pa.int64())})


def _put_on_disk(lake: Lake, folder: str, staged: str) -> Callable[[str, bytes], bool]:
    """What puts one file in its place on a disk, and says whether it could."""
    root = fresh_folder(Path(lake.uri(folder))) if not lake.exists(folder) else Path(lake.uri(folder))
    # Of its own: should two runs take one shard at once, the later removes the folder of the earlier, which then fails.
    half = fresh_folder(Path(lake.uri(staged))) / uuid.uuid4().hex
    half.mkdir()
    made: set[Path] = set()

    def put(path: str, content: bytes) -> bool:
        target = root / path
        if _holds(target, content):
            return True
        (half / "photo").write_bytes(content)
        try:
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            (half / "photo").replace(target)
        except OSError as error:
            if error.errno in _NO_SUCH_NAME:
                return False
            raise
        return True

    return put


def _holds(file: Path, content: bytes) -> bool:
    try:
        return file.stat().st_size == len(content) and file.read_bytes() == content
    except OSError:
        return False


def _put_in_bucket(lake: Lake, folder: str) -> Callable[[str, bytes], bool]:
    """The same for object storage, where a file is there as a whole or not at all."""

    def put(path: str, content: bytes) -> bool:
        key = f"{folder}/{path}"
        if not (lake.exists(key) and lake.size(key) == len(content)):
            lake.put_bytes(key, content)
        return True

    return put
