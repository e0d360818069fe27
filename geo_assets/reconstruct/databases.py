"""COLMAP databases read and filled with plain SQL, so that the parent process needs no COLMAP.

Columns go by the names that both databases have: their number changes between versions of COLMAP.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

PAIR_BASE = 2**31 - 1
"""COLMAP's ``pair_id`` is ``PAIR_BASE * smaller id + larger id``."""

CONFIGURATIONS = (
    *("UNDEFINED", "DEGENERATE", "CALIBRATED", "UNCALIBRATED", "PLANAR", "PANORAMIC", "PLANAR_OR_PANORAMIC"),
    *("WATERMARK", "MULTIPLE", "CALIBRATED_RIG"),
)
"""Names of COLMAP's configurations of two views, by number."""

_OF_IMAGES = ("cameras", "rigs", "rig_sensors", "frames", "frame_data", "images", "pose_priors")
_OF_PAIRS = ("matches", "two_view_geometries")
BUSY_S = 10.0
"""How long a program that holds a database is waited for [s]."""


def pair_id(a: int, b: int) -> int:
    """COLMAP's number of a pair of images, in whichever order."""
    return PAIR_BASE * min(a, b) + max(a, b)


def image_ids(path: Path) -> dict[str, int]:
    """Number of each image by its name.

    Raises:
        sqlite3.DatabaseError: the file is no database of COLMAP, damaged, or held by another program.
    """
    with _reading(path) as con:
        return dict(con.execute("select name, image_id from images"))


def empty_like(source: Path, target: Path) -> None:
    """Make a database with the tables of another and no rows.

    Raises:
        sqlite3.DatabaseError: the source is no database of COLMAP, damaged, or held by another program.
    """
    with _filling(target, source) as con:
        for (statement,) in con.execute(
            "select sql from source.sqlite_master where sql is not null and name not like 'sqlite_%' "
            "order by type = 'index'"
        ).fetchall():
            con.execute(statement)
        con.execute(f"pragma user_version = {con.execute('pragma source.user_version').fetchone()[0]}")


def copy_images(source: Path, target: Path, descriptors_of: Iterable[int] | None = None) -> None:
    """Copy cameras, rigs, frames, images, priors and features.

    Args:
        source: a database of COLMAP; it is only read.
        target: a database made by :func:`empty_like`.
        descriptors_of: without it, the keypoints of all images and no descriptors, which are five sixths of a
            database and of use for matching alone; with it, keypoints and descriptors of these image ids.

    Raises:
        sqlite3.DatabaseError: the source is no database of COLMAP, damaged, or held by another program.
    """
    with _filling(target, source) as con:
        for table in _OF_IMAGES:
            _copy(con, table)
        if descriptors_of is None:
            _copy(con, "keypoints")
            return
        _want(con, descriptors_of)
        for table in ("keypoints", "descriptors"):
            _copy(con, table, "where image_id in (select id from wanted)")


def copy_pairs(source: Path, target: Path, pairs: Iterable[int]) -> set[int]:
    """Copy the matches and two-view geometries of these pairs, where the source has them whole.

    Args:
        source: a database of COLMAP; it is only read.
        target: a database made by :func:`empty_like`; if the source turns out to be damaged it stays as it was.
        pairs: numbers of pairs, see :func:`pair_id`.

    Returns:
        The pairs that the source had, with or without matches.

    Raises:
        sqlite3.DatabaseError: the source is no database of COLMAP, damaged, or held by another program.
    """
    with _filling(target, source) as con:
        _want(con, pairs)
        # A pair counts as tried once both rows are there; a blob that is too short is no match.
        con.execute(
            "delete from wanted where id not in (select w.id from wanted w "
            "join source.matches m on m.pair_id = w.id join source.two_view_geometries t on t.pair_id = w.id "
            "where coalesce(length(m.data), 0) = 4 * m.rows * m.cols "
            "and coalesce(length(t.data), 0) = 4 * t.rows * t.cols)"
        )
        for table in _OF_PAIRS:
            _copy(con, table, "where pair_id in (select id from wanted)")
        return {number for (number,) in con.execute("select id from wanted")}


def copy_part(source: Path, target: Path, images: Iterable[int], pairs: Iterable[int]) -> None:
    """Copy what mapping needs of some images, and the two-view geometries of some pairs, into a database of their own.

    Args:
        source: a database of COLMAP; it is only read.
        target: a database made by :func:`empty_like`.
        images: numbers of the images; their frames, rigs, cameras, priors and keypoints come with them.
        pairs: numbers of the pairs, see :func:`pair_id`.

    Raises:
        sqlite3.DatabaseError: the source is no database of COLMAP, damaged, or held by another program.
    """
    camera = "sensor_type = 0"
    with _filling(target, source) as con:
        _want(con, images)
        _copy(con, "images", "where image_id in (select id from wanted)")
        _copy(con, "keypoints", "where image_id in (select id from wanted)")
        _copy(con, "pose_priors", "where corr_sensor_type = 0 and corr_data_id in (select id from wanted)")
        _copy(con, "frame_data", f"where {camera} and data_id in (select id from wanted)")
        _copy(con, "frames", "where frame_id in (select frame_id from main.frame_data)")
        _copy(con, "rigs", "where rig_id in (select rig_id from main.frames)")
        _copy(con, "rig_sensors", "where rig_id in (select rig_id from main.rigs)")
        used = ("camera_id from main.images", "ref_sensor_id from main.rigs", "sensor_id from main.rig_sensors")
        _copy(con, "cameras", "where " + " or ".join(f"camera_id in (select {column})" for column in used))
        con.execute("drop table wanted")
        _want(con, pairs)
        _copy(con, "two_view_geometries", "where pair_id in (select id from wanted)")


def pair_rows(path: Path) -> list[tuple[int, int, int, str]]:
    """For each tried pair its number, putative matches, inliers and the name of the configuration."""
    with _reading(path) as con:
        rows = con.execute(
            "select m.pair_id, m.rows, coalesce(t.rows, 0), coalesce(t.config, 0) "
            "from matches m left join two_view_geometries t using (pair_id) order by m.pair_id"
        ).fetchall()
    names = dict(enumerate(CONFIGURATIONS))  # a number of a later COLMAP means nothing to us
    return [(number, matches, inliers, names.get(config, "UNDEFINED")) for number, matches, inliers, config in rows]


def _copy(con: sqlite3.Connection, table: str, which: str = "") -> None:
    """Rows of one table of the source, by the columns that both sides have."""
    here, there = (
        [row[1] for row in con.execute(f"pragma {schema}.table_info({table})")] for schema in ("main", "source")
    )
    columns = ", ".join(f'"{column}"' for column in here if column in there)
    if columns:
        con.execute(f"insert or ignore into main.{table} ({columns}) select {columns} from source.{table} {which}")


def _want(con: sqlite3.Connection, numbers: Iterable[int]) -> None:
    con.execute("create temp table wanted (id integer primary key)")
    con.executemany("insert or ignore into wanted values (?)", ((int(number),) for number in numbers))


@contextlib.contextmanager
def _filling(target: Path, source: Path) -> Iterator[sqlite3.Connection]:
    """A connection to ``target`` with ``source`` attached to be read; all of the changes are kept or none."""
    with contextlib.closing(sqlite3.connect(target, timeout=BUSY_S, isolation_level=None, uri=True)) as con:
        con.execute("pragma synchronous = off")  # scratch files; who publishes them brings them to the disk
        con.execute("attach ? as source", [_address(source)])
        con.execute("begin")
        try:
            yield con
        except BaseException:
            con.execute("rollback")
            raise
        con.execute("commit")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(_address(path), timeout=BUSY_S, uri=True)) as con:
        yield con


def _address(path: Path) -> str:
    """A read-only address of a finished database.

    Finished databases are whole without a write-ahead log. One that lies beside the file is left from another
    file of that name, or belongs to a program that looks at it: SQLite would mix it in, so it is told not to.
    """
    log = Path(f"{path}-wal")
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if log.exists() else ''}"
