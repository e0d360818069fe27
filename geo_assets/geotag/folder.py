"""The EXIF of a folder tree of photos: each photo is read once, by all cores, and what it says is kept in the lake.

What is kept goes by path, size and time of change of a photo, so that a killed run, or a later one over a set that has
grown, reads only what is not there yet. Memory does not grow with the number of photos.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from geo_assets.errors import GeoAssetsError, SourceError
from geo_assets.geotag.headers import READER, end_with_parent, read_chunk
from geo_assets.lake import Lake
from geo_assets.machine import usable_cores
from geo_assets.progress import Progress
from geo_assets.sql import literal

if TYPE_CHECKING:
    import duckdb

PHOTO_SUFFIXES = (".jpg", ".jpeg")
CSV_SUFFIXES = (".csv", ".tsv")
CHUNK = 4096
"""Photos that a process reads in a row: a tenth of a second, and what a kill costs. DuckDB makes row groups of
multiples of 2048."""

_KEPT = f"headers-{READER}"
_LISTED = pa.schema(
    {"path": pa.string(), "size": pa.int64(), "changed_ns": pa.int64(), "fault": pa.string(), "value": pa.string()}
)
_HEADER = """path varchar, size bigint, changed_ns bigint, fault varchar, value varchar, lon double, lat double,
    captured_at timestamptz, author varchar, licence varchar"""
_BATCH = 50_000
_SAY_EVERY_S = 5.0
_FORGOTTEN_S = 3600.0
"""What a killed run was just writing goes after this time; before, another run may be writing it."""


# -- names ------------------------------------------------------------------------------------------------------


def list_folder(folder: Path, listing: Path, log: Callable[[str], None]) -> list[str]:
    """Write path, size [B] and time of change of all photos below a folder to a parquet file.

    Links to folders are not followed. What cannot be opened for its name or its kind bears a ``fault``, as a folder
    does that cannot be read.

    Returns:
        Relative paths of the CSV files, sorted.

    Raises:
        SourceError: the folder itself cannot be read.
    """
    tables: list[str] = []
    photos: list[tuple[Any, ...]] = []
    n_written, said = 0, time.monotonic()
    with pq.ParquetWriter(listing, _LISTED) as sink:

        def write() -> None:
            columns = zip(*photos, strict=True) if photos else ([] for _ in _LISTED)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _LISTED, strict=True)]
            sink.write_batch(pa.record_batch(arrays, schema=_LISTED))
            photos.clear()

        for path, entry in _walk(folder):
            suffix = path[-5:].lower()
            if isinstance(entry, OSError) or suffix.endswith(PHOTO_SUFFIXES):
                photos.append(_listed(path, entry))
            elif suffix.endswith(CSV_SUFFIXES):
                tables.append(path)
            if len(photos) >= _BATCH:
                n_written += len(photos)
                write()
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                log(f"{n_written + len(photos):,} photos found so far")
        write()
    return sorted(tables)


def _walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str] | OSError]]:
    """Relative path of all that is no folder, in the order of the disk, and of folders that cannot be read."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(f"{folder}/{prefix}") as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{prefix}{entry.name}/")
                    else:
                        yield prefix + entry.name, entry
        except OSError as error:
            if not prefix:
                raise SourceError(f"The folder {folder} cannot be read: {error.strerror}.") from None
            yield prefix, error


def _listed(path: str, entry: os.DirEntry[str] | OSError) -> tuple[str, int, int, str | None, str | None]:
    printable = path if path.isascii() else path.encode(errors="backslashreplace").decode()
    if isinstance(entry, OSError):
        return printable, 0, 0, "the folder cannot be read", entry.strerror
    if printable != path:
        return printable, 0, 0, "the name is not UTF-8", printable
    try:
        found = entry.stat()
    except OSError as error:
        return path, 0, 0, "the photo cannot be opened", error.strerror
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would be to wait for ever
        return path, 0, 0, "this is no file", None
    return path, found.st_size, found.st_mtime_ns, None, None


# -- what they say ----------------------------------------------------------------------------------------------


def read_folder(
    con: duckdb.DuckDBPyConnection,
    lake: Lake,
    folder: Path,
    wanted: str,
    scratch: Path,
    processes: int | None,
    log: Callable[[str], None],
) -> tuple[str, int]:
    """Read the photos that were not read before, each chunk into a small parquet file of the lake.

    Args:
        con: where ``wanted`` is.
        lake: keeps what was read.
        folder: holds the photos.
        wanted: relation of photos with ``path, size, changed_ns``.
        scratch: local folder for the list of what is to be read.
        processes: how many read at once; None for all cores.
        log: told count, rate and time left.

    Returns:
        A query of ``path`` and the fields of :class:`geo_assets.geotag.headers.Header` of all wanted photos, and how
        many had to be read.

    Raises:
        GeoAssetsError: one of the processes was killed; what was read until then is kept.
    """
    _view_kept(con, lake)
    todo = scratch / "todo.parquet"
    con.execute(f"""
        copy (select path, size, changed_ns from {wanted} anti join kept_header using (path, size, changed_ns)
              order by path) to {literal(todo)} (format parquet, row_group_size {CHUNK})""").fetchall()
    found = pq.read_metadata(todo)
    progress, done = Progress(log, "photos", found.num_rows), 0
    unopened = scratch / "unopened"
    unopened.mkdir()
    for number, (read, failed) in enumerate(_chunks(folder, todo, found.num_row_groups, processes)):
        lake.put_bytes(lake.key("flickr_geotag", f"{_KEPT}/{hashlib.sha256(read).hexdigest()[:24]}.parquet"), read)
        if failed:
            (unopened / f"{number}.parquet").write_bytes(failed)
        done += found.row_group(number).num_rows
        progress(done)
    _view_kept(con, lake)
    columns = "path, fault, value, lon, lat, captured_at, author, licence"
    query = f"select {columns} from {wanted} join kept_header using (path, size, changed_ns)"
    if any(unopened.iterdir()):
        query += f" union all select {columns} from read_parquet({literal(unopened / '*.parquet')})"
    return query, found.num_rows


def forget(con: duckdb.DuckDBPyConnection, lake: Lake, listing: str) -> None:
    """Remove what is kept of photos that changed or went, as far as no other photo's header lies in the same file.

    Args:
        con: where :func:`read_folder` has worked.
        lake: keeps what was read.
        listing: relation of all photos of the folder.
    """
    for name in lake.names(lake.key("flickr_geotag")):
        if name != _KEPT:
            lake.remove_folder(lake.key("flickr_geotag", name))
    for name in lake.names(lake.key("flickr_geotag", _KEPT)):
        key = lake.key("flickr_geotag", f"{_KEPT}/{name}")
        if name.endswith(".tmp") and lake.modified(key) < time.time() - _FORGOTTEN_S:
            lake.remove(key)
    counts = f"select (select count(*) from kept_header), (select count(*) from {listing})"
    ((n_kept, n_listed),) = con.execute(counts).fetchall()
    if n_kept <= n_listed:
        return
    stale = f"""
        select parse_filename(filename) from kept_header left join {listing} l using (path, size, changed_ns)
        group by filename having count(l.path) = 0"""
    for (name,) in con.execute(stale).fetchall():
        lake.remove(lake.key("flickr_geotag", f"{_KEPT}/{name}"))


def _view_kept(con: duckdb.DuckDBPyConnection, lake: Lake) -> None:
    con.execute(f"create table if not exists no_header ({_HEADER}, filename varchar)")
    folder = lake.key("flickr_geotag", _KEPT)
    files = [literal(f"{lake.uri(folder)}/{name}") for name in lake.names(folder) if name.endswith(".parquet")]
    kept = f" union all by name select * from read_parquet([{', '.join(files)}], filename = true)" if files else ""
    con.execute(f"create or replace view kept_header as from no_header{kept}")


def _chunks(folder: Path, todo: Path, n_chunks: int, processes: int | None) -> Iterator[tuple[bytes, bytes | None]]:
    """What :func:`geo_assets.geotag.headers.read_chunk` answers, chunk by chunk."""
    processes = min(processes or usable_cores(), n_chunks)
    if processes <= 1:
        yield from (read_chunk(str(folder), str(todo), number) for number in range(n_chunks))
        return
    running: deque[Future[tuple[bytes, bytes | None]]] = deque()
    try:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), end_with_parent) as pool:
            for number in range(n_chunks):
                running.append(pool.submit(read_chunk, str(folder), str(todo), number))
                if len(running) > 2 * processes:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    except BrokenProcessPool:
        raise GeoAssetsError(
            "A process that reads EXIF was killed; memory may have run out. What was read is kept: run flickr_geotag "
            "again, with a smaller geotag.processes."
        ) from None
