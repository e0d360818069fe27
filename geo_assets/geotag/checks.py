"""Checks of the geotag room: what must hold before anything is trained on its tables."""

import itertools
from collections.abc import Iterator, Mapping

import dagster as dg

from geo_assets.geotag.assets import (
    geotag_combined,
    geotag_points,
    google_landmark,
    hierarchy_centroids,
    partition_errors,
)
from geo_assets.lake import Lake
from geo_assets.resources import LakeResource
from geo_assets.settings import Geotag, load
from geo_assets.tables import TABLES

MOST_REJECTS = 0.05
"""Share of a source's records above which its rejects are worth a look."""

ENOUGH_CELLS, MOST_OFF = 2000, 0.03
"""Of so many cells the splits have their shares to within so much."""

NEAR_M = 100.0
"""Photos so near to each other may show the same thing."""

ENOUGH_TO_JUDGE, MOST_WIDER = 30, 20
"""Cells of a level of so many are less than so many times as wide as those of the level below, in the median."""

_OFF_GLOBE = """
select count(*) from geotag_combined
where not coalesce(isfinite(lon) and isfinite(lat) and lon between -180 and 180 and lat between -90 and 90, false)"""

# What follows looks at all photos by hashes of their names and at cells, and at few of them by themselves.
_SUSPECTS = """
select hash(same_photo(source, photo_id)) as h from geotag_combined where h % {passes} = {turn}
group by h having count(*) > 1"""
_REPEATED = """
create temp table repeated as
select source, photo_id, split, same_photo(source, photo_id) as photo from geotag_combined
where hash(same_photo(source, photo_id)) in (from suspects)"""
_MIXED_CELLS = """
create temp table mixed_cells as
select place_cell(lon, lat) as cell from geotag_combined where cell is not null
group by cell having min(split) <> max(split)"""
_FAULTS = {
    "photos_again": "select count(*) - count(distinct photo) from repeated",
    "photos_of_two_splits": "select count(*) from (select 1 from repeated group by photo having min(split) <> max(split))",
    "cells_of_two_splits": "select count(*) from mixed_cells",
    "places_of_two_splits": """
        select count(*) from (
            select 1 from geotag_combined where place_cell(lon, lat) in (from mixed_cells)
            group by place_lon(lon, lat), place_lat(lat) having min(split) <> max(split))""",
}

_POINT_FAULTS = {
    "photos_too_many": """
        select abs((select coalesce(sum(n_photos), 0) from geotag_points)
            - (select count(*) from geotag_combined where not list_contains(flags, 'null_island')))::bigint""",
    # Sums of hashes agree where each place has as many photos here as there.
    "photos_elsewhere": """
        select ((select sum(n_photos * hash(lon, lat)::hugeint) from geotag_points) is distinct from
            (select sum(hash(place_lon(lon, lat), place_lat(lat))::hugeint) from geotag_combined
                where not list_contains(flags, 'null_island')))::int""",
    "places_out_of_order": """
        select count(*) from (
            select *, row_number() over () - 1 as place, lag(lon) over () as last_lon, lag(lat) over () as last_lat
            from geotag_points)
        where point_id <> place or lon < last_lon or lon = last_lon and lat <= last_lat""",
}

_SHARES = """
select split, count(*) as n_cells, sum(n)::bigint as n_photos from (
    select split, place_cell(lon, lat) as cell, count(*) as n from geotag_combined group by all)
group by split order by split"""

_NESTING_QUERIES = {
    "cells_without_one_parent": """
        select count(*) from (
            select c.level, c.cell_id, count(p.cell_id) as n_parents, any_value(c.parent_id) as parent_id
            from hierarchy_centroids c left join hierarchy_centroids p
                on p.level = c.level + 1 and p.cell_id = c.parent_id
            group by all)
        where n_parents <> case when level = (select max(level) from hierarchy_centroids) then 0 else 1 end
            or (parent_id is null) <> (level = (select max(level) from hierarchy_centroids))""",
    "parents_whose_children_do_not_add_up": """
        select count(*) from (
            select p.level, p.cell_id, p.n_photos, p.n_children, sum(c.n_photos) as n_below, count(*) as n_found
            from hierarchy_centroids p join hierarchy_centroids c on c.level = p.level - 1 and c.parent_id = p.cell_id
            group by all)
        where n_photos <> n_below or n_children <> n_found""",
    "levels_without_all_photos": """
        select count(*) from (select level, sum(n_photos) as n from hierarchy_centroids group by level)
        where n <> (select count(*) from photo_cells)""",
    "roots_too_many": """
        select greatest(count(*) - 1, 0) from hierarchy_centroids
        where level = (select max(level) from hierarchy_centroids)""",
}


def combined_faults(lake: Lake, settings: Geotag) -> dict[str, int]:
    """What breaks each rule of ``geotag_combined``; 0 is good.

    A photo is the same under one id of its source, and under one id of Flickr in both Flickr sets. Cells are those
    that the table was split by.
    """
    from geo_assets.geotag.combine import fill_in_passes, macros
    from geo_assets.geotag.photos import querying

    with querying(lake, settings, "geotag_combined") as (con, _):
        con.execute(macros(_as_split(lake, settings)))
        ((off_globe,),) = con.execute(_OFF_GLOBE).fetchall()
        ((n,),) = con.execute("select count(*) from geotag_combined").fetchall()
        fill_in_passes(con, "suspects", _SUSPECTS, n, settings)
        con.execute(_REPEATED)
        con.execute(_MIXED_CELLS)
        found = {name: con.execute(query).fetchall()[0][0] for name, query in _FAULTS.items()}
    return {"off_globe": off_globe} | found


def point_faults(lake: Lake, settings: Geotag) -> dict[str, int]:
    """What breaks each rule of ``geotag_points``; 0 is good."""
    from geo_assets.geotag.combine import macros
    from geo_assets.geotag.photos import querying

    with querying(lake, settings, "geotag_combined", "geotag_points") as (con, _):
        con.execute(macros(settings))
        return {name: con.execute(query).fetchall()[0][0] for name, query in _POINT_FAULTS.items()}


def split_shares(lake: Lake, settings: Geotag) -> dict[str, dict[str, float]]:
    """For each split its cells, its photos, its share of the cells and the share that it was to have."""
    from geo_assets.geotag.combine import macros
    from geo_assets.geotag.photos import querying

    asked = _as_split(lake, settings)
    validation, test = asked.validation_share, asked.test_share
    wanted = {"train": 1 - validation - test, "validation": validation, "test": test}
    with querying(lake, settings, "geotag_combined") as (con, _):
        con.execute(macros(asked))
        rows = {split: (cells, photos) for split, cells, photos in con.execute(_SHARES).fetchall()}
    total = sum(cells for cells, _ in rows.values()) or 1
    return {
        split: {"n_cells": cells, "n_photos": photos, "share": round(cells / total, 4), "wanted": round(share, 4)}
        for split, share in wanted.items()
        for cells, photos in [rows.get(split, (0, 0))]
    }


def shares_fit(shares: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether each split has its share of the cells, as far as these are enough to tell."""
    few = sum(split["n_cells"] for split in shares.values()) <= ENOUGH_CELLS
    return few or all(abs(split["share"] - split["wanted"]) <= MOST_OFF for split in shares.values())


def near_training(lake: Lake, settings: Geotag) -> int:
    """Number of test photos within :data:`NEAR_M` of a photo that is trained on: those at the border of a cell.

    Distances are chords of the sphere. Null islands are left out.
    """
    from geo_assets.geodesy import MEAN_RADIUS_M
    from geo_assets.geotag.combine import macros
    from geo_assets.geotag.photos import querying

    asked = _as_split(lake, settings)
    cell, reach = asked.split_cell_deg, f"({NEAR_M} / radians({MEAN_RADIUS_M}))"
    with querying(lake, settings, "geotag_combined") as (con, _):
        con.execute(macros(asked))
        # Both photos of such a pair are that near to the edge of their own cell.
        con.execute(f"""
            create temp table edge as
            select split, n, x, y, z, floor(x / {NEAR_M}) as i, floor(y / {NEAR_M}) as j, floor(z / {NEAR_M}) as k
            from (
                select split, count(*) as n, {MEAN_RADIUS_M} * sin(radians(lat)) as z,
                    {MEAN_RADIUS_M} * cos(radians(lat)) * cos(radians(lon)) as x,
                    {MEAN_RADIUS_M} * cos(radians(lat)) * sin(radians(lon)) as y
                from (select split, place_lon(lon, lat) as lon, place_lat(lat) as lat from geotag_combined
                    where split <> 'validation' and not list_contains(flags, 'null_island') and isfinite(lon + lat))
                where least(lat - {cell} * floor(lat / {cell}), {cell} * ceil(lat / {cell}) - lat, 90 - abs(lat)) <= {reach}
                    or least(lon - {cell} * floor(lon / {cell}), {cell} * ceil(lon / {cell}) - lon, 180 - abs(lon))
                        * cos(radians(lat)) <= {reach}
                group by split, lon, lat)""")
        ((near,),) = con.execute(f"""
            with test as (select row_number() over () as photo, * from edge where split = 'test'),
                step as (select unnest([-1, 0, 1]) as d),
                probe as (select test.* replace (i + a.d as i, j + b.d as j, k + c.d as k)
                    from test, step a, step b, step c)
            select coalesce(sum(n), 0)::bigint from test where photo in (
                select photo from probe join edge as train using (i, j, k)
                where train.split = 'train' and (probe.x - train.x) ** 2 + (probe.y - train.y) ** 2
                    + (probe.z - train.z) ** 2 <= {NEAR_M**2})""").fetchall()
    return near


def _as_split(lake: Lake, settings: Geotag) -> Geotag:
    """The settings with the cells and shares that ``geotag_combined`` was made with."""
    return settings.model_copy(update=lake.note("geotag_combined") if lake.has("geotag_combined") else {})


def nesting_faults(lake: Lake) -> dict[str, int]:
    """Cells that break each rule of the hierarchy; 0 is good."""
    with lake.connect("hierarchy_centroids", "photo_cells") as con:
        return {name: con.execute(query).fetchall()[0][0] for name, query in _NESTING_QUERIES.items()}


def doubtful_radii(lake: Lake) -> dict[str, dict[str, float]]:
    """Levels whose cells are no wider than those below them, or far too wide to be made of them [km].

    Either is what cells grouped at random look like. A level of few cells is not judged.
    """
    with lake.connect("hierarchy_centroids") as con:
        rows = con.execute(
            "select level, count(*), median(mean_km) from hierarchy_centroids group by level order by level"
        ).fetchall()
    return {
        f"level_{level}": {"median_km": km, "median_below_km": below}
        for (_, _, below), (level, n, km) in itertools.pairwise(rows)
        if n >= ENOUGH_TO_JUDGE and not below < km < MOST_WIDER * below
    }


def reject_shares(lake: Lake) -> dict[str, float]:
    """Share of the records of each source that were rejected."""
    with lake.connect("geotag_rejects") as con:
        refused = con.execute(
            "select source, count(*) from geotag_rejects where source <> 'geotag_combined' group by all order by all"
        ).fetchall()
    return {source: round(n / (n + _rows(lake, source)), 4) for source, n in refused}


def _rows(lake: Lake, table: str) -> int:
    return sum(lake.rows(table, **partition) for partition in lake.partitions(table)) if table in TABLES else 0


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec("coordinates_in_range", asset=geotag_combined, blocking=True, description="Finite degrees."),
        dg.AssetCheckSpec(
            "photo_ids_unique",
            asset=geotag_combined,
            blocking=True,
            description="A photo once, by Flickr's id as well.",
        ),
        dg.AssetCheckSpec(
            "split_has_no_leak",
            asset=geotag_combined,
            blocking=True,
            description="A place, a cell, a photo is in one split only.",
        ),
        dg.AssetCheckSpec(
            "few_rejects", asset=geotag_combined, description="No source lost more than 5 % of its records."
        ),
        dg.AssetCheckSpec(
            "split_shares",
            asset=geotag_combined,
            description="The splits have their shares of the cells to within 3 %.",
        ),
    ]
)
def combined_is_sound(lake: LakeResource) -> Iterator[dg.AssetCheckResult]:
    """Positions are on the globe, photos are there once, no place is both learnt and tested, few records were lost."""
    store, key, settings = lake.open(), geotag_combined.key, load().geotag
    faults = combined_faults(store, settings)
    parts = {
        "coordinates_in_range": ["off_globe"],
        "photo_ids_unique": ["photos_again"],
        "split_has_no_leak": ["places_of_two_splits", "cells_of_two_splits", "photos_of_two_splits"],
    }
    for name, rules in parts.items():
        found = {rule: faults[rule] for rule in rules}
        yield dg.AssetCheckResult(asset_key=key, check_name=name, passed=not any(found.values()), metadata=dict(found))
    rejected = reject_shares(store)
    yield dg.AssetCheckResult(
        asset_key=key,
        check_name="few_rejects",
        passed=all(share <= MOST_REJECTS for share in rejected.values()),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"share_by_source": rejected},
    )
    shares = split_shares(store, settings)
    yield dg.AssetCheckResult(
        asset_key=key,
        check_name="split_shares",
        passed=shares_fit(shares),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"splits": shares, "test_photos_within_100_m_of_training": near_training(store, settings)},
    )


@dg.asset_check(asset=geotag_points, blocking=True)
def points_add_up(lake: LakeResource) -> dg.AssetCheckResult:
    """Each photo of geotag_combined is counted at its place, each place is there once and in order."""
    faults = point_faults(lake.open(), load().geotag)
    return dg.AssetCheckResult(passed=not any(faults.values()), metadata=dict(faults))


@dg.asset_check(asset=hierarchy_centroids, blocking=True)
def cells_nest(lake: LakeResource) -> dg.AssetCheckResult:
    """Each cell has one parent, children add up to their parent, every level holds every photo, one root."""
    faults = nesting_faults(lake.open())
    return dg.AssetCheckResult(passed=not any(faults.values()), metadata=dict(faults))


def landmark_statuses(lake: Lake) -> dict[str, int]:
    """Landmarks by what is known of their place: found, missing, no_coordinate, error."""
    with lake.connect("landmark_coordinates") as con:
        return dict(
            con.execute("select status, count(*) from landmark_coordinates group by all order by all").fetchall()
        )


@dg.asset_check(asset=google_landmark)
def landmarks_were_answered(lake: LakeResource) -> dg.AssetCheckResult:
    """No landmark is without an answer; those that are get asked again when landmark_coordinates is made again."""
    statuses = landmark_statuses(lake.open())
    found, total = statuses.get("found", 0), sum(statuses.values())
    return dg.AssetCheckResult(
        passed=not statuses.get("error"),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"landmarks_by_status": statuses, "share_found": round(found / total, 4) if total else 0.0},
    )


@dg.asset_check(asset=partition_errors)
def error_falls_with_level(lake: LakeResource) -> dg.AssetCheckResult:
    """The finer a level of the hierarchy, the smaller its median error: its cells are where their photos are."""
    from geo_assets.geotag.judge import not_falling

    errors = lake.open().read("partition_errors")
    wrong = not_falling(errors)
    return dg.AssetCheckResult(passed=not wrong, metadata={"levels_worse_than_the_one_above": wrong})


@dg.asset_check(asset=partition_errors)
def error_is_no_worse(lake: LakeResource) -> dg.AssetCheckResult:
    """No level's error is more than 2 % worse than when the table was made before; new photos may be the reason."""
    from geo_assets.geotag.judge import main_figures, regressions

    store = lake.open()
    note = store.note("partition_errors")
    now, before = note.get("now", {}), note.get("before", {})
    worse = regressions(main_figures(store.read("partition_errors")), before.get("figures", {}))
    same = bool(before) and now.get("input_sha256") == before.get("input_sha256")
    return dg.AssetCheckResult(
        passed=not worse,
        severity=dg.AssetCheckSeverity.ERROR if same else dg.AssetCheckSeverity.WARN,
        metadata={"before_and_now": worse, "of_the_same_places": same},
    )


@dg.asset_check(asset=hierarchy_centroids)
def radii_grow(lake: LakeResource) -> dg.AssetCheckResult:
    """Cells are wider than those below them, but less than 20 times as wide, as they are not where they group at random."""
    doubtful = doubtful_radii(lake.open())
    return dg.AssetCheckResult(
        passed=not doubtful, severity=dg.AssetCheckSeverity.WARN, metadata={"levels": dg.MetadataValue.json(doubtful)}
    )


CHECKS = (
    landmarks_were_answered,
    combined_is_sound,
    points_add_up,
    cells_nest,
    radii_grow,
    error_falls_with_level,
    error_is_no_worse,
)
