"""Checks of the geotag room: what must hold before anything is trained on its tables."""

from collections.abc import Iterator

import dagster as dg

from geo_assets.geotag.assets import geotag_combined, hierarchy_centroids
from geo_assets.lake import Lake
from geo_assets.resources import LakeResource

MOST_REJECTS = 0.05
"""Share of a source's records above which its rejects are worth a look."""

_COMBINED_QUERIES = {
    "coordinates_in_range": "select count(*) from geotag_combined where not coalesce(isfinite(lon) and isfinite(lat) "
    "and lon between -180 and 180 and lat between -90 and 90, false)",
    "photo_ids_unique": "select count(*) - count(distinct (source, photo_id)) from geotag_combined",
    "split_has_no_leak": "select count(*) from (select place_lon(lon, lat) as lon, lat + 0.0 as lat from geotag_combined "
    "group by all having count(distinct split) > 1)",
}

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


def combined_faults(lake: Lake) -> dict[str, int]:
    """Rows of ``geotag_combined`` that break each rule; 0 is good."""
    from geo_assets.geotag.combine import prepare

    with lake.connect("geotag_combined") as con:
        prepare(con)
        return {name: con.execute(query).fetchall()[0][0] for name, query in _COMBINED_QUERIES.items()}


def nesting_faults(lake: Lake) -> dict[str, int]:
    """Cells that break each rule of the hierarchy; 0 is good."""
    with lake.connect("hierarchy_centroids", "photo_cells") as con:
        return {name: con.execute(query).fetchall()[0][0] for name, query in _NESTING_QUERIES.items()}


def reject_shares(lake: Lake) -> dict[str, float]:
    """Share of the records of each source that were rejected."""
    with lake.connect("geotag_combined", "geotag_rejects") as con:
        rows = con.execute("""
            with taken as (select source, count(*) as n from geotag_combined group by source),
                refused as (select source, count(*) as n from geotag_rejects group by source)
            select source, refused.n / (refused.n + coalesce(taken.n, 0)) from refused left join taken using (source)
            where source <> 'geotag_combined' order by source""").fetchall()
    return {source: round(share, 4) for source, share in rows}


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec("coordinates_in_range", asset=geotag_combined, blocking=True, description="Finite degrees."),
        dg.AssetCheckSpec("photo_ids_unique", asset=geotag_combined, blocking=True, description="A photo once."),
        dg.AssetCheckSpec(
            "split_has_no_leak", asset=geotag_combined, blocking=True, description="A place is in one split only."
        ),
        dg.AssetCheckSpec(
            "few_rejects", asset=geotag_combined, description="No source lost more than 5 % of its records."
        ),
    ]
)
def combined_is_sound(lake: LakeResource) -> Iterator[dg.AssetCheckResult]:
    """Positions are on the globe, photos are there once, no place is both learnt and tested, few records were lost."""
    store, key = lake.open(), geotag_combined.key
    for name, count in combined_faults(store).items():
        yield dg.AssetCheckResult(asset_key=key, check_name=name, passed=count == 0, metadata={"n_bad": count})
    shares = reject_shares(store)
    yield dg.AssetCheckResult(
        asset_key=key,
        check_name="few_rejects",
        passed=all(share <= MOST_REJECTS for share in shares.values()),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"share_by_source": shares},
    )


@dg.asset_check(asset=hierarchy_centroids, blocking=True)
def cells_nest(lake: LakeResource) -> dg.AssetCheckResult:
    """Each cell has one parent, children add up to their parent, every level holds every photo, one root."""
    faults = nesting_faults(lake.open())
    return dg.AssetCheckResult(passed=not any(faults.values()), metadata=dict(faults))


CHECKS = (combined_is_sound, cells_nest)
