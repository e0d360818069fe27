"""What must hold of the tables of photo positions and cells, beside what holds of every table."""

from __future__ import annotations

from geo_assets.lake import Lake
from geo_assets.rules import Finding, Partition, Rule, count_faults
from geo_assets.sql import literal

_GLOBE = "isfinite(lon) and isfinite(lat) and lon between -180 and 180 and lat between -90 and 90"


def photos_on_globe(table: str) -> Rule:
    """Every photo of a set is of that set and lies on the globe."""

    def find(lake: Lake, partition: Partition) -> Finding:
        queries = {
            "off_globe": f"select count(*) from {table} where not coalesce({_GLOBE}, false)",
            "of_another_source": f"select count(*) from {table} where source is distinct from {literal(table)}",
            "without_id": f"select count(*) from {table} where coalesce(photo_id, '') = ''",
        }
        return count_faults(lake, queries, table, within=partition)

    return Rule(
        "photos_are_on_the_globe", "Every photo has an id, its source's name and a position on the globe.", find
    )


def landmark_faults(lake: Lake, partition: Partition) -> Finding:
    """Landmarks that were found without a place, or have one without."""
    of = "from landmark_coordinates where"
    queries = {
        "found_nowhere": f"select count(*) {of} status = 'found' and not coalesce({_GLOBE}, false)",
        "placed_but_not_found": f"select count(*) {of} status <> 'found' and (lon is not null or lat is not null)",
        "of_unknown_status": f"""
            select count(*) {of} coalesce(status, '') not in ('found', 'missing', 'no_coordinate', 'error')""",
    }
    return count_faults(lake, queries, "landmark_coordinates", within=partition)


def cluster_faults(lake: Lake, _: Partition) -> Finding:
    """Places that are not clustered as they are, and memberships that cannot be."""
    queries = {
        "places_missing_or_moved": """
            select count(*) from geotag_points p full join hdbscan_model m using (point_id)
            where p.lon is distinct from m.lon or p.lat is distinct from m.lat or p.n_photos is distinct from m.n_photos""",
        "memberships_off": """
            select count(*) from hdbscan_model
            where not coalesce(cluster >= -1 and probability between 0 and 1, false)""",
    }
    return count_faults(lake, queries, "geotag_points", "hdbscan_model")


def cut_cell_faults(table: str) -> Rule:
    """Cells of a level hold places apart, and no more photos than there are."""

    def find(lake: Lake, _: Partition) -> Finding:
        # Names of a cut are longer than what was cut: of S2 a token's number, of the quadtree its digits.
        queries = {
            "inside_another": f"""
                select count(*) from (
                    select cell_id, lag(cell_id) over (partition by level order by cell_id) as before from {table})
                where starts_with(cell_id, before)"""
            if table == "quadtree_cells"
            else f"""
                select count(*) from (
                    select low, lag(high) over (partition by level order by low) as before from (
                        select level, ('0x' || rpad(cell_id, 16, '0'))::ubigint as id,
                            (1::ubigint << (2 * (30 - cuts))) - 1 as half, id - half as low, id + half as high
                        from {table}))
                where low <= before""",
            "photos_too_many": f"""
                select count(*) from (select sum(n_photos) as n from {table} group by level)
                where n > (select coalesce(sum(n_photos), 0) from geotag_points)""",
            "centres_off_globe": f"select count(*) from {table} where not coalesce({_GLOBE}, false)",
        }
        return count_faults(lake, queries, table, "geotag_points")

    return Rule(
        "cells_lie_apart", "No cell of a level lies in another, and none holds photos twice.", find, blocking=False
    )


def tile_faults(lake: Lake, _: Partition) -> Finding:
    """Places that are in no tile, or in several."""
    queries = {
        "places_astray": """
            select abs((select coalesce(sum(n_points), 0) from place_tiles)
                - (select count(*) from geotag_points))::bigint"""
    }
    return count_faults(lake, queries, "place_tiles", "geotag_points")


def of_its_tile(table: str, wrong: str) -> Rule:
    """What was found of a tile is of all its places.

    Args:
        table: ``tile_cores`` or ``tile_trees``.
        wrong: SQL that is true of a row that cannot be.
    """

    def find(lake: Lake, partition: Partition) -> Finding:
        queries = {
            "places_astray": f"""
                select count(*) from {table} t left join place_tiles p on p.tile = t.tile
                where p.n_points is distinct from t.n_points""",
            "impossible": f"select count(*) from {table} where coalesce({wrong}, false)",
        }
        return count_faults(lake, queries, table, "place_tiles", within=partition)

    return Rule("tile_is_whole", "What was found of the tile is of all its places.", find)


LANDMARKS_PLACED = Rule("landmarks_are_placed", "A landmark has a place on the globe if it was found.", landmark_faults)
PLACES_CLUSTERED = Rule(
    "places_are_clustered", "Every place has a cluster or is noise, and stands where it stood.", cluster_faults
)
PLACES_IN_TILES = Rule("places_are_in_tiles", "Every place is in one tile.", tile_faults)
CORES_OF_TILE = of_its_tile("tile_cores", "core_m < 0")
TREE_OF_TILE = of_its_tile("tile_trees", "n_open not between 0 and greatest(n_points - 1, 0)")
