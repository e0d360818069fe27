"""The levels as the three CSV files that earlier training scripts read; ids of a level run from 0 without a gap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from geo_assets.errors import GeoAssetsError
from geo_assets.files import written_beside
from geo_assets.geodesy import MEAN_RADIUS_M
from geo_assets.geotag.export import EXPORTED_PATH
from geo_assets.geotag.hierarchy import photo_pieces
from geo_assets.geotag.photos import querying
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.sql import literal

if TYPE_CHECKING:
    import duckdb

LEAST_KM = 1e-6
"""Mean distance of a cell whose photos are at one place: training scripts divide by it."""

COORDS, STRUCTURE, CENTROIDS = (
    "hierarchical_clustered_coords.csv",
    "hierarchical_structure.csv",
    "hierarchical_cluster_centroids.csv",
)
_TABLES = ("geotag_combined", "photo_cells", "hierarchy_centroids", "hierarchical_structure")

# Great-circle kilometres between the ends of two unit vectors.
_DISTANCE = f"{2e-3 * MEAN_RADIUS_M} * asin(least(sqrt((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / 2, 1))"


def export_hierarchy(lake: Lake, folder: Path, settings: Geotag, *, include_noise: bool = False) -> list[Path]:
    """Write the levels below the root as CSV files; rows stream to them, and each appears when it is whole.

    ``hierarchical_clustered_coords.csv`` has ``path,lat,lon,cluster_0,cluster_1,...``, a row a photo, 0 the finest level.
    ``hierarchical_structure.csv`` has ``cluster_0,...,num_items,children``: first the root, whose clusters are all empty,
    then level by level each cell, with those above it and empty below; ``num_items`` counts photos, ``children`` is the
    text of a Python list of ids of the level below. ``hierarchical_cluster_centroids.csv`` has
    ``cluster_0,...,lat,lon,mean_dist,std_dist``: the spherical mean [deg] of each cell but the root, and the
    great-circle distances of its photos to it [km].

    Args:
        lake: holds the tables of ``hierarchy_centroids``.
        folder: where the files go; those that are there are replaced.
        settings: the memory of the queries.
        include_noise: whether photos that the clustering left out are -1 at each level, as in the earlier files, and
            the cells are described without them. Otherwise they count in the cells that they joined.

    Returns:
        The files, in the order above.

    Raises:
        GeoAssetsError: a table was never made.
    """
    for table in _TABLES:
        if not lake.has(table):
            raise GeoAssetsError(
                f"Table {table} has no data. Make it first: geo-assets materialize --select hierarchy_centroids"
            )
    with querying(lake, settings, *_TABLES) as (con, scratch):
        return write_csvs(con, scratch, folder, len(settings.level_exponents) + 1, include_noise=include_noise)


def write_csvs(
    con: duckdb.DuckDBPyConnection,
    scratch: Path,
    folder: Path,
    n_levels: int,
    *,
    include_noise: bool = False,
    path: str = EXPORTED_PATH,
) -> list[Path]:
    """Write the three files of :func:`export_hierarchy` from the tables as a connection has them.

    Args:
        con: has views ``geotag_combined`` (sorted by ``source`` and ``photo_id``), ``photo_cells``, ``hierarchy_centroids``
            and ``hierarchical_structure``.
        scratch: for what does not fit into memory.
        folder: where the files go; those that are there are replaced.
        n_levels: levels below the root, where there is no cell to tell.
        include_noise: as in :func:`export_hierarchy`.
        path: SQL of a photo's path, of columns of ``geotag_combined``.
    """
    ((top,),) = con.execute("select max(level) from hierarchy_centroids").fetchall()
    clusters = [f"cluster_{level}" for level in range(n_levels if top is None else top)]
    photos = photo_pieces(con, scratch, _photos(clusters, include_noise, path))
    _make_cells(con, clusters, photos if include_noise else None)
    names = ", ".join(clusters)
    queries = {
        COORDS: f"select path, lat, lon, {names} from ({photos})",
        STRUCTURE: f"select {names}, num_items, children from ({_structure(clusters)}) order by level desc, {_downward(clusters)}",
        CENTROIDS: f"""
            select {names}, lat, lon, greatest(mean_dist, {LEAST_KM}) as mean_dist, std_dist from cells
            order by level, {_downward(clusters)}""",
    }
    return [_written(con, query, folder / name) for name, query in queries.items()]


def _written(con: duckdb.DuckDBPyConnection, query: str, target: Path) -> Path:
    with written_beside(target) as file:
        con.execute(f"copy ({query}) to {literal(file)} (format csv, header)").fetchall()
    return target


def _photos(clusters: list[str], include_noise: bool, path: str) -> Callable[[str], str]:
    unless = "q.is_noise" if include_noise else "false"
    ids = ", ".join(f"if({unless}, -1, {_id(f'q.cells[{level}]')}) as {name}" for level, name in enumerate(clusters, 1))
    return lambda piece: (
        f"""
        select {path} as path, p.lat, p.lon, {ids}
        from (select * from geotag_combined where {piece}) p join (select * from photo_cells where {piece}) q
            using (source, photo_id)
        order by p.photo_id"""
    )


def _make_cells(con: duckdb.DuckDBPyConnection, clusters: list[str], photos: str | None) -> None:
    """Make table ``cells``: ``level``, the clusters, ``lat, lon, num_items, mean_dist, std_dist`` of each but the root.

    Of ``photos``, where these are given; otherwise of the lake's tables.
    """
    if photos is None:
        n = len(clusters)
        ids = ", ".join(
            f"case when level = {level} then cell_id when level < {level} then {_id(f'path[{n - level}]')} end as {name}"
            for level, name in enumerate(clusters)
        )
        con.execute(f"""
            create temp table cells as
            select level, {ids}, lat, lon, c.n_photos as num_items, mean_km as mean_dist, std_km as std_dist
            from hierarchy_centroids c join hierarchical_structure s using (level, cell_id) where level < {n}""")
        return
    columns = "".join(f"{name} bigint, " for name in clusters)
    con.execute(f"""
        create temp table cells (level bigint, {columns} lat double, lon double, num_items bigint, mean_dist double, std_dist double)""")
    con.execute(f"""
        create temp view vectors as
        select *, cos(radians(lat)) * cos(radians(lon)) as x, cos(radians(lat)) * sin(radians(lon)) as y,
            sin(radians(lat)) as z from ({photos})""")
    for level, finest in enumerate(clusters):
        # A cell is known by its own number; those above it follow.
        above = "".join(f", any_value({name}) as {name}" for name in clusters[level + 1 :])
        names = "".join(f"{'null' if i < level else f'm.{name}'}, " for i, name in enumerate(clusters))
        con.execute(f"""
            insert into cells
            with sums as (
                select {finest}{above}, sum(x) as x, sum(y) as y, sum(z) as z, count(*) as n from vectors group by {finest}),
            means as (
                select * replace (x / r as x, y / r as y, z / r as z)
                from (select *, greatest(sqrt(x * x + y * y + z * z), 1e-300) as r from sums)),
            spread as (
                select {finest}, avg(km) as mean_km, stddev_pop(km) as std_km from (
                    select v.{finest}, {_DISTANCE} as km
                    from vectors v join (select {finest}, x as a, y as b, z as c from means) using ({finest}))
                group by {finest})
            select {level}, {names} degrees(asin(greatest(-1, least(1, z)))), degrees(atan2(y, x)), n, mean_km, std_km
            from means m join spread s using ({finest})""")


def _structure(clusters: list[str]) -> str:
    """The rows of the structure: the cells and the root, each with the cells below it."""
    n = len(clusters)
    no_ids = ", ".join(f"null::bigint as {name}" for name in clusters)
    listed = "'[' || array_to_string(list_sort(list({})), ', ') || ']'"
    # What a cell is known by, and by what its children know it.
    own = f"case level {' '.join(f'when {level} then {name}' for level, name in enumerate(clusters))} end"
    above = " ".join(f"when {level} then {name}" for level, name in enumerate(clusters[1:]))
    parent = f"case level {above} end" if above else "null"
    return f"""
        select level, {", ".join(clusters)}, num_items, coalesce(below.children, '[]') as children
        from (select *, {own} as own from cells) left join (
            select level + 1 as level, {parent} as own, {listed.format(own)} as children from cells
            where level < {n - 1} group by all) below using (level, own)
        union all
        select {n} as level, {no_ids}, coalesce(sum(num_items), 0)::bigint as num_items,
            coalesce({listed.format(own)}, '[]') as children
        from cells where level = {n - 1}"""


def _downward(clusters: list[str]) -> str:
    return ", ".join(f"{name} nulls first" for name in reversed(clusters))


def _id(cell: str) -> str:
    return f"split_part({cell}, ':', 2)::bigint"
