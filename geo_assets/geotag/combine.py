"""One table of photos from all sources: checked, each photo once, split by place so that no place is learnt and tested."""

from __future__ import annotations

import collections
from dataclasses import dataclass

import duckdb
import pandas as pd

from geo_assets.geotag.photos import NULL_ISLAND_DEG
from geo_assets.lake import Lake
from geo_assets.tables import to_pandas

SPLIT_CELL_DEG = 0.1
"""Photos of one cell of this size (11 km north to south) share a split."""

TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1

_MACROS = f"""
-- One name for each place: the antimeridian has two longitudes, a pole has all of them.
create macro place_lon(lon, lat) as case when abs(lat) = 90 then 0.0 when lon = 180 then -180.0 else lon + 0.0 end;
-- MD5 is the same in every version of every engine, hash() is not.
create macro place_draw(lon, lat) as
    ('0x' || substr(md5(floor(place_lon(lon, lat) / {SPLIT_CELL_DEG})::int || ':' || floor(lat / {SPLIT_CELL_DEG})::int), 1, 8))::ubigint
    / 4294967296.0;
create macro place_split(lon, lat) as case
    when place_draw(lon, lat) < {TRAIN_SHARE} then 'train'
    when place_draw(lon, lat) < {TRAIN_SHARE + VALIDATION_SHARE} then 'validation' else 'test' end;
"""

# Flickr's id in a file name, as photos.flickr_id finds it: both Flickr sets hold the same photos.
_FLICKR_ID = r"regexp_extract(path, '(?:^|/)(\d{5,})(?:_[0-9a-f]{10}[^/]*)?(?:\.[A-Za-z]+)?$', 1)"

_PHOTOS = f"""
create temp table photos as
with sources as (
    select 1 as rank, * from placing_2016
    union all by name select 2 as rank, * from google_landmark
    union all by name select 3 as rank, * from flickr_geotag
    union all by name
    select 4 as rank, image_id as photo_id, 'mapillary' as source, coalesce(source_path, image_id || '.jpg') as path,
        case when computed_lon is null or computed_lat is null then lon else computed_lon end as lon,
        case when computed_lon is null or computed_lat is null then lat else computed_lat end as lat,
        captured_at, substr(sha256(trim(creator_username)), 1, 16) as author_hash, licence, null as landmark_id,
        []::varchar[] as flags
    from image_metadata where tombstoned_at is null
)
select * replace (
        case when abs(lon) < {NULL_ISLAND_DEG} and abs(lat) < {NULL_ISLAND_DEG} then ['null_island'] else flags end as flags
    ),
    -- NaN compares greater than every number, so it is out of range too.
    coalesce(lon between -180 and 180 and lat between -90 and 90, false) as in_range,
    case when source in ('placing_2016', 'flickr_geotag') and {_FLICKR_ID} <> '' then 'flickr/' || {_FLICKR_ID}
        else source || '/' || photo_id end as same_photo
from sources
"""

_COMBINED = """
select photo_id, source, path, lon, lat, captured_at, author_hash, licence, landmark_id, flags,
    place_split(lon, lat) as split
from photos where in_range
qualify row_number() over (partition by same_photo order by rank, photo_id, path, lon, lat) = 1
"""

_REJECTS = """
select source as file, photo_id as row, 'the position is out of range' as reason, 'lon=' || coalesce(lon::varchar, 'null') ||
    ', lat=' || coalesce(lat::varchar, 'null') as value
from photos where not in_range
"""


@dataclass(frozen=True)
class Combined:
    """The photos of all sources, what was not taken, and the counts between."""

    photos: pd.DataFrame
    rejects: pd.DataFrame
    figures: dict[str, int]


def combine(lake: Lake) -> Combined:
    """Gather the three photo sets and the images harvested in all cities.

    A photo that several records name, in one source or across the two Flickr sets, is kept once: the record of the
    first source in the order placing_2016, google_landmark, flickr_geotag, mapillary. Positions stay as they were read.

    Args:
        lake: holds the source tables; those never written count as empty.

    Returns:
        Rows of ``geotag_combined`` and of ``geotag_rejects``, and counts.
    """
    con = lake.connect("placing_2016", "google_landmark", "flickr_geotag", "image_metadata")
    with con:
        prepare(con)
        con.execute(_PHOTOS)
        photos = to_pandas(con.sql(_COMBINED).to_arrow_table())
        rejects = to_pandas(con.sql(_REJECTS).to_arrow_table())
        n_read = con.execute("select count(*) from photos").fetchall()[0][0]
    splits = collections.Counter(photos["split"])
    return Combined(
        photos,
        rejects,
        {
            "n_read": n_read,
            "n_photos": len(photos),
            "n_out_of_range": len(rejects),
            "n_duplicates": n_read - len(rejects) - len(photos),
            "n_null_island": sum(map(len, photos["flags"])),
            **{f"n_{split}": splits[split] for split in ("train", "validation", "test")},
            **{f"n_from_{source}": n for source, n in sorted(collections.Counter(photos["source"]).items())},
        },
    )


def prepare(con: duckdb.DuckDBPyConnection) -> None:
    """Set a connection to UTC and give it the macros ``place_lon``, ``place_draw`` and ``place_split``."""
    con.execute("set timezone = 'UTC'")
    con.execute(_MACROS)


def unique_points(lake: Lake) -> pd.DataFrame:
    """The distinct places of ``geotag_combined``.

    Photos flagged ``null_island`` are left out: thousands of unknown positions would be the densest place on Earth.

    Returns:
        ``point_id`` (by longitude, then latitude, so that no order of rows matters), ``lon``, ``lat`` [deg],
        ``n_photos``.
    """
    with lake.connect("geotag_combined") as con:
        prepare(con)
        return con.execute("""
            select row_number() over (order by lon, lat) - 1 as point_id, lon, lat, n_photos
            from (select place_lon(lon, lat) as lon, lat + 0.0 as lat, count(*) as n_photos
                from geotag_combined where not list_contains(flags, 'null_island') group by all)
            order by point_id""").df()
