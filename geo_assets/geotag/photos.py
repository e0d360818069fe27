"""What every photo source must pass: safe paths, positions on the globe, hashed authors. One shape for all of them."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from geo_assets.errors import GeoAssetsError, SourceError
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.sql import literal
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

NULL_ISLAND_DEG = 1e-3
"""Positions this close to (0, 0) are flagged: cameras and converters write zeros for "unknown"."""

_RAW = {
    "file": "varchar",
    "row": "varchar",
    "fault": "varchar",
    "value": "varchar",
    "photo_id": "varchar",
    "path": "varchar",
    "lon": "varchar",
    "lat": "varchar",
    "captured_at": "timestamptz",
    "author": "varchar",
    "licence": "varchar",
    "landmark_id": "varchar",
    "flags": "varchar[]",
}
_PHOTO_COLUMNS = TABLES["google_landmark"].column_names

_SEGMENT = r"[^/\\\x00-\x1f\x7f]+"
_SAFE, _DOTS, _DRIVE = rf"{_SEGMENT}(?:/{_SEGMENT})*", r"(?:^|/)\.\.?(?:/|$)", r"^[A-Za-z]:"
_SPILLED, _FORGOTTEN_S = "geotag_query_", 86_400.0
_SURROGATE = re.compile("[\ud800-\udfff]")
FLICKR_NAME = r"(?:^|/)(\d{5,})(?:_[0-9a-f]{10}[^/]*)?(?:\.[A-Za-z]+)?$"
"""Where Flickr's photo id stands in a path: ``13/20/8010869266.jpg``, ``1000269685_e60e9cdfb4_o.jpg``."""

_MACROS = f"""
create or replace macro safe_path(p) as coalesce(
    regexp_full_match(p, '{_SAFE}') and not regexp_matches(p, '{_DOTS}') and not regexp_matches(p, '{_DRIVE}'), false);
create or replace macro flickr_id(p) as nullif(regexp_extract(p, '{FLICKR_NAME}', 1), '');
create or replace macro author_hash(a) as case when trim(a) <> '' then substr(sha256(trim(a)), 1, 16) end;
create or replace macro at_null_island(lon, lat) as abs(lon) < {NULL_ISLAND_DEG} and abs(lat) < {NULL_ISLAND_DEG};
"""


def prepared(con: duckdb.DuckDBPyConnection, settings: Geotag, scratch: Path) -> duckdb.DuckDBPyConnection:
    """Give a connection its memory limit, a folder to spill to, UTC, and the macros that :func:`sift` uses.

    The macros are ``safe_path(path)``, ``flickr_id(path)``, ``author_hash(name)`` and ``at_null_island(lon, lat)``.
    """
    con.execute("set timezone = 'UTC'")
    con.execute(f"set memory_limit = '{settings.memory_gb}GB'")
    con.execute(f"set temp_directory = {literal(scratch)}")
    con.execute("set enable_progress_bar = false")
    con.execute(_MACROS)
    return con


@contextlib.contextmanager
def querying(lake: Lake, settings: Geotag, *tables: str) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A :func:`prepared` connection with views of some tables, and the folder on the disk of the lake that it spills to.

    Raises:
        GeoAssetsError: memory and disk did not suffice; the message says what to raise.
    """
    import duckdb

    with _scratch(lake) as folder, lake.connect(*tables) as con:
        try:
            yield prepared(con, settings, folder), folder
        except duckdb.OutOfMemoryException as error:
            what = f"A query over {', '.join(tables)}" if tables else "Reading the photos' files"
            raise GeoAssetsError(
                f"{what} needs more than geotag.memory_gb = {settings.memory_gb:g} and the room "
                f"on the disk of {folder.parent}. Raise the one or make room, and run this again."
            ) from error


@contextlib.contextmanager
def _scratch(lake: Lake) -> Iterator[Path]:
    """A folder that is removed at the end; those of killed runs go after a day."""
    base = Path(lake.root) / "scratch" if lake.is_local else Path(tempfile.gettempdir())
    base.mkdir(parents=True, exist_ok=True)
    for left in base.glob(f"{_SPILLED}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _FORGOTTEN_S:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SPILLED, dir=base) as folder:
        yield Path(folder)


def is_safe_path(path: object) -> bool:
    """Whether a relative path stays below the folder it is joined to."""
    return (
        isinstance(path, str)
        and re.fullmatch(_SAFE, path) is not None
        and not re.search(_DOTS, path)
        and not re.search(_DRIVE, path)
        and not _SURROGATE.search(path)
    )


def flickr_id(path: str) -> str | None:
    """Flickr's photo id in a file name (``13/20/8010869266.jpg``, ``1000269685_e60e9cdfb4_o.jpg``), or None."""
    match = re.search(FLICKR_NAME, path)
    return match[1] if match else None


def author_hash(author: str | None) -> str | None:
    """First 16 hex digits of the SHA-256 of a name; None where there is none."""
    name = (author or "").strip(" ")
    return hashlib.sha256(name.encode()).hexdigest()[:16] if name else None


@dataclass(frozen=True)
class Sifted:
    """Two queries: rows of the source's table, and rows of ``geotag_rejects``."""

    photos: str
    rejects: str


def sift(con: duckdb.DuckDBPyConnection, raw: str, source: str, extra: Sequence[str] = ()) -> Sifted:
    """Split raw records into photos and rejects.

    Args:
        con: a connection that is :func:`prepared`.
        raw: a relation with any of the columns ``file, row, photo_id, path, lon, lat`` (positions are numbers or text),
            ``fault`` with ``value`` (why the reader refuses the record), ``captured_at`` (UTC), ``author``,
            ``licence``, ``landmark_id`` and ``flags``; what it lacks is null.
        source: name of the source, kept with each photo.
        extra: further columns of the source's table, passed through.
    """
    has = {str(name) for name, *_ in con.execute(f"describe {raw}").fetchall()}
    given = ", ".join(f"{name if name in has else 'null'}::{kind} as {name}" for name, kind in _RAW.items())
    passed = "".join(f', "{name}"' for name in extra)
    judged = f"""
        select * replace (case when fault is not null then value else unusable end as value),
            case when fault is not null then fault
                when not safe_path(path) then 'the path leaves its folder or is none'
                when missing then 'the position is missing or not a number'
                when lon_deg not between -180 and 180 or lat_deg not between -90 and 90
                    then 'the position is out of range' end as reason
        from (
            select *, lon_deg is null or lat_deg is null or isnan(lon_deg) or isnan(lat_deg) as missing,
                case when safe_path(path) then 'lon=' || coalesce(lon, 'null') || ', lat=' || coalesce(lat, 'null')
                    else 'path=' || coalesce(path, 'null') end as unusable
            from (
                select {given}, try_cast(lon as double) as lon_deg, try_cast(lat as double) as lat_deg{passed}
                from {raw}))"""
    values = {
        "source": f"'{source}'",
        "lon": "lon_deg",
        "lat": "lat_deg",
        "author_hash": "author_hash(author)",
        "flags": "list_concat(case when at_null_island(lon_deg, lat_deg) then ['null_island'] else []::varchar[] end, "
        "coalesce(flags, []::varchar[]))",
    }
    columns = ", ".join(f"{values.get(name, name)} as {name}" for name in _PHOTO_COLUMNS)
    return Sifted(
        f"select {columns}{passed} from ({judged}) where reason is null",
        f"select file, row, reason, left(value, 200) as value from ({judged}) where reason is not null",
    )


def no_rejects() -> str:
    """A query without rows that has the columns of ``geotag_rejects``."""
    columns = ", ".join(f"null::varchar as {name}" for name in TABLES["geotag_rejects"].column_names)
    return f"select {columns} where false"


def refuse_swapped(con: duckdb.DuckDBPyConnection, relation: str, file: Path, names: tuple[str, str]) -> None:
    """Refuse a file whose longitude and latitude columns hold each other's values.

    A world-wide file betrays it: its "latitudes" reach beyond 90 degrees while no "longitude" does.

    Args:
        con: where the relation is.
        relation: has columns ``lon`` and ``lat`` as read, numbers or text.
        file: named in the message.
        names: the headers that the file gives to longitude and latitude.

    Raises:
        SourceError: the header is swapped; the message says what to write instead.
    """
    (rows, beyond, fitting), *_ = con.execute(f"""
        select count(*), count(*) filter (lat > 90 and lat <= 180), count(*) filter (lon > 90)
        from (select abs(try_cast(lon as double)) as lon, abs(try_cast(lat as double)) as lat from {relation})
    """).fetchall()
    # A few wrong latitudes are rows to reject; a twentieth of the file is a header to correct.
    if beyond and beyond > 0.05 * rows and not fitting:
        raise SourceError(
            f"{file.name}: the header seems swapped: {beyond:,} of {rows:,} values of column {names[1]} lie beyond "
            f"±90°, none of column {names[0]} does. Exchange the two names in the first line of {file}, and run again.",
            file=str(file),
            beyond_90=beyond,
        )
