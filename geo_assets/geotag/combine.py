"""One table of photos from all sources: each photo once, split by place so that no place is learnt and tested.

Thirty million photos fit a few GB of memory: what is compared is narrow (hashes of ids, coordinates), and the photos
themselves stream from the sources' tables to the new one. What does not fit goes to a folder beside the tables.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_assets.geotag.photos import querying
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.sql import literal
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    import duckdb

SOURCES = ("placing_2016", "google_landmark", "flickr_geotag", "mapillary")
"""Of a photo that several sources have, the record of the first is kept."""

SORTED_AT_ONCE = 2_000_000
"""Photos whose rows are sorted at once. More memory does not raise it, since the bytes of the table follow it."""

SAMPLED = 500
"""One id in so many is looked at to part a source into pieces of equal size."""

COMPARED_PER_GB = 10_000_000
"""Photos whose names or places are compared in one pass over the sources, for each GB of memory."""

_COLUMNS = ", ".join(TABLES["google_landmark"].column_names)

# One name for each place: the antimeridian has two longitudes, a pole has all of them, zero has two signs.
_PLACES = """
create or replace macro place_lon(lon, lat) as
    case when abs(lat) = 90 then 0.0 when lon = 180 then -180.0 else lon + 0.0 end;
create or replace macro place_lat(lat) as lat + 0.0;
"""

# One name for each photo: both Flickr sets hold the same photos, under Flickr's own ids.
_PHOTO_NAMES = rf"""
create or replace macro same_photo(source, photo_id) as case
    when source not in ('placing_2016', 'flickr_geotag') then source || '/' || photo_id
    when regexp_full_match(photo_id, '\d{{5,}}') then photo_id
    else coalesce(flickr_id(photo_id), source || '/' || photo_id) end;
create or replace macro source_rank(source) as list_position({list(SOURCES)}, source);
"""

_HARVESTED = """
select image_id as photo_id, 'mapillary' as source, coalesce(source_path, image_id || '.jpg') as path, at_lon as lon,
    at_lat as lat, captured_at, author_hash(creator_username) as author_hash, licence, null::varchar as landmark_id,
    if(at_null_island(at_lon, at_lat), ['null_island'], []::varchar[]) as flags
from (
    select *, if(computed_lon is null or computed_lat is null, lon, computed_lon) as at_lon,
        if(computed_lon is null or computed_lat is null, lat, computed_lat) as at_lat
    from image_metadata where tombstoned_at is null)
"""

# NaN compares greater than every number, so it is out of range too.
_PHOTOS = f"""
create temp view records as
select {_COLUMNS} from placing_2016
union all select {_COLUMNS} from google_landmark
union all select {_COLUMNS} from flickr_geotag
union all select {_COLUMNS} from {{harvested}};
create temp view photos as
select *, hash(same_photo(source, photo_id)) as h from records
where lon between -180 and 180 and lat between -90 and 90
"""

# Hashes of names are compared, not names: 8 bytes each. Where two agree, the names themselves decide.
_SUSPECTS = "select h from photos where h % {passes} = {turn} group by h having count(*) > 1"
_REPEATED = f"""
create temp table repeated as
select {_COLUMNS}, count(*) over same - 1 as n_dropped, max(source_rank(source)) over same > source_rank(source) as in_both
from photos semi join suspects using (h)
window same as (partition by same_photo(source, photo_id))
qualify row_number() over (partition by same_photo(source, photo_id) order by source_rank(source), {_COLUMNS}) = 1;
create temp view kept as
select {_COLUMNS} from photos anti join suspects using (h) union all select {_COLUMNS} from repeated
"""

_CROWDED = """
select place_lon(lon, lat) as at_lon, place_lat(lat) as at_lat from kept
where hash(place_lon(lon, lat), place_lat(lat)) % {passes} = {turn} group by all having count(*) > 1
"""

_COMBINED = f"""
select {_COLUMNS.replace("flags", "if(at_lon is null, flags, list_append(flags, 'shared_position')) as flags")},
    place_split(lon, lat) as split
from kept left join crowded on at_lon = place_lon(lon, lat) and at_lat = place_lat(lat)
"""

_REJECTS = """
select source as file, photo_id as row, 'the position is out of range' as reason,
    'lon=' || coalesce(lon::varchar, 'null') || ', lat=' || coalesce(lat::varchar, 'null') as value
from records where not coalesce(lon between -180 and 180 and lat between -90 and 90, false)
"""

_POINTS = """
select row_number() over () - 1 as point_id, * from (
    select place_lon(lon, lat) as lon, place_lat(lat) as lat, count(*) as n_photos,
        bit_count(bit_or(1 << source_rank(source)))::bigint as n_sources
    from geotag_combined where not list_contains(flags, 'null_island')
    group by all order by lon, lat)
"""


def combine(lake: Lake, settings: Geotag, log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Write ``geotag_combined``: the three photo sets and the images harvested in all cities, each photo once.

    A photo that several records name, in one source or across the two Flickr sets by Flickr's id, is kept as the
    first of :data:`SOURCES` has it. Positions stay as they were read. Photos that share their exact coordinate with
    another are flagged ``shared_position``. A cell of ``settings.split_cell_deg`` is learnt, validated or tested as a
    whole. Images without a position on the globe become the rejects of ``geotag_combined``.

    Args:
        lake: holds the source tables; those never written count as empty.
        settings: the cell and the shares of the split, and the memory.
        log: told each step.

    Returns:
        Counts, ``by_source`` for each source.
    """
    with querying(lake, settings, "placing_2016", "google_landmark", "flickr_geotag", "image_metadata") as (
        con,
        scratch,
    ):
        con.execute(macros(settings))
        # Images lie in thousands of files, which would be opened once a statement.
        harvested = literal(str(scratch / "harvested.parquet"))
        con.execute(f"copy ({_HARVESTED}) to {harvested} (format parquet)")
        con.execute(_PHOTOS.format(harvested=harvested))
        read = dict(_rows(con, "select source, count(*) from records group by source order by source"))
        log(f"{sum(read.values()):,} records of {len(read)} sources")
        fill_in_passes(con, "suspects", _SUSPECTS, sum(read.values()), settings)
        con.execute(_REPEATED)
        ((within, across),) = _rows(
            con, "select coalesce(sum(n_dropped - in_both::int), 0), coalesce(sum(in_both::int), 0) from repeated"
        )
        log(f"{within + across:,} records name a photo again")
        fill_in_passes(con, "crowded", _CROWDED, sum(read.values()), settings)
        log(f"{_rows(con, 'select count(*) from crowded')[0][0]:,} coordinates have several photos")
        rejects = lake.write_query(con, "geotag_rejects", _REJECTS, source="geotag_combined", part="all")
        note = {name: getattr(settings, name) for name in ("split_cell_deg", "validation_share", "test_share")}
        facts = lake.write_query(
            con, "geotag_combined", _sorted_photos(con, scratch, read, log), note=note, is_sorted=True
        )
    log(f"{facts.rows:,} photos written")
    return {
        "n_read": sum(read.values()),
        "n_photos": facts.rows,
        "n_out_of_range": rejects.rows,
        "n_duplicates_within": int(within),
        "n_duplicates_across": int(across),
    } | _counts(lake, settings, read)


def write_points(lake: Lake, settings: Geotag, log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Write ``geotag_points``: the distinct places of ``geotag_combined``, numbered by longitude, then latitude.

    Photos flagged ``null_island`` are left out: thousands of unknown positions would be the densest place on Earth.

    Returns:
        Counts.
    """
    with querying(lake, settings, "geotag_combined") as (con, _):
        con.execute(macros(settings))
        facts = lake.write_query(con, "geotag_points", _POINTS, is_sorted=True)
    with querying(lake, settings, "geotag_points") as (con, _):
        ((photos, shared, across, most),) = _rows(
            con,
            "select coalesce(sum(n_photos), 0), count(*) filter (n_photos > 1), count(*) filter (n_sources > 1), "
            "coalesce(max(n_photos), 0) from geotag_points",
        )
    log(f"{facts.rows:,} places of {photos:,} photos")
    return {
        "n_points": facts.rows,
        "n_photos": int(photos),
        "n_shared": shared,
        "n_of_several_sources": across,
        "most_photos": most,
    }


def prepare(con: duckdb.DuckDBPyConnection) -> None:
    """Give a connection the macros ``place_lon(lon, lat)`` and ``place_lat(lat)``."""
    con.execute(_PLACES)


def macros(settings: Geotag) -> str:
    """SQL of the macros of places and photos, for a connection of :func:`geo_assets.geotag.photos.querying`.

    ``place_lon(lon, lat)`` and ``place_lat(lat)`` name a place, ``place_cell(lon, lat)`` its cell of the split (null where there is none),
    ``place_split(lon, lat)`` what this is for, ``same_photo(source, photo_id)`` a photo, ``source_rank(source)`` the
    place of a source among :data:`SOURCES`.
    """
    cell, validation, test = settings.split_cell_deg, settings.validation_share, settings.test_share
    # MD5 is the same in every version of every engine, hash() is not.
    return f"""
        {_PLACES}
        {_PHOTO_NAMES}
        create or replace macro place_cell(lon, lat) as
            try_cast(floor(place_lon(lon, lat) / {cell}) as int) || ':' || try_cast(floor(lat / {cell}) as int);
        create or replace macro place_draw(lon, lat) as
            ('0x' || substr(md5(place_cell(lon, lat)), 1, 8))::ubigint / 4294967296.0;
        create or replace macro place_split(lon, lat) as case
            when place_draw(lon, lat) < {1 - validation - test!r} then 'train'
            when place_draw(lon, lat) < {1 - test!r} then 'validation' else 'test' end"""


def fill_in_passes(con: duckdb.DuckDBPyConnection, table: str, query: str, n: int, settings: Geotag) -> None:
    """Make a temporary table by a query that groups ``n`` rows, as many at once as the memory holds.

    Args:
        con: the connection.
        table: name of the temporary table.
        query: takes one of ``{passes}`` equal shares of the groups, number ``{turn}``.
        n: rows that are grouped.
        settings: the memory.
    """
    passes = 1 + int(n / (COMPARED_PER_GB * settings.memory_gb + 1))
    for turn in range(passes):
        begin = f"insert into {table}" if turn else f"create temp table {table} as"
        con.execute(f"{begin} {query.format(passes=passes, turn=turn)}")


def _sorted_photos(
    con: duckdb.DuckDBPyConnection, folder: Path, read: dict[str, int], log: Callable[[str], None]
) -> str:
    """A query of the photos in the order of their table, which lie sorted piece by piece in a folder."""
    files = []
    for source in sorted(read):
        bounds = [None, *_edges(con, source, read[source]), None]
        for number, (low, high) in enumerate(itertools.pairwise(bounds), 1):
            within = [f"source = '{source}'", *_bound(">=", low), *_bound("<", high)]
            files.append(literal(str(folder / f"{len(files):06d}.parquet")))
            piece = f"{_COMBINED} where {' and '.join(within)} order by photo_id"
            con.execute(f"copy ({piece}) to {files[-1]} (format parquet)")
            log(f"{source}: piece {number} of {len(bounds) - 1} is sorted")
    return f"select * from read_parquet([{', '.join(files)}])" if files else _COMBINED


def _edges(con: duckdb.DuckDBPyConnection, source: str, n: int) -> list[str]:
    """Ids that part a source into pieces of about :data:`SORTED_AT_ONCE`, by a sample that is the same every time."""
    pieces = -(-n // SORTED_AT_ONCE)
    if pieces == 1:
        return []
    sample = _rows(
        con,
        f"select photo_id from records where source = '{source}' and hash(photo_id) % {SAMPLED} = 0 order by photo_id",
    )
    return sorted({sample[len(sample) * i // pieces][0] for i in range(1, pieces)}) if sample else []


def _bound(sign: str, photo_id: str | None) -> list[str]:
    return [] if photo_id is None else [f"photo_id {sign} {literal(photo_id)}"]


def _counts(lake: Lake, settings: Geotag, read: dict[str, int]) -> dict[str, Any]:
    with querying(lake, settings, "geotag_combined") as (con, _):
        rows = _rows(
            con,
            "select source, split, count(*), count(*) filter (list_contains(flags, 'null_island')), "
            "count(*) filter (list_contains(flags, 'shared_position')) from geotag_combined group by all order by all",
        )
    by_source = {source: {"read": n, "photos": 0} for source, n in read.items()}
    for source, split, n, *_ in rows:
        by_source[source]["photos"] += n
        by_source[source][split] = n
    return {
        "n_null_island": sum(row[3] for row in rows),
        "n_shared_position": sum(row[4] for row in rows),
        **{f"n_{split}": sum(row[2] for row in rows if row[1] == split) for split in ("train", "validation", "test")},
        "by_source": by_source,
    }


def _rows(con: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    return con.execute(query).fetchall()
