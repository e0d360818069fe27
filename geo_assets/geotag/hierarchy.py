"""Nested levels of cells over the clusters: every photo in one cell of each level, every cell in one cell above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.geodesy import MEAN_RADIUS_M
from geo_assets.geotag import s2
from geo_assets.geotag.clustering import Dendrogram, Floats, Ints, unit_sphere
from geo_assets.geotag.combine import macros
from geo_assets.geotag.grouping import by_kmeans, by_tree, centres, directions, effective, join_noise
from geo_assets.geotag.photos import querying
from geo_assets.lake import Facts, Lake
from geo_assets.settings import Geotag
from geo_assets.sql import literal
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    import duckdb

SORTED_AT_ONCE = 2_000_000
"""Photos whose rows are joined and sorted at once."""

_QUANTILES = (50, 90, 95)


@dataclass(frozen=True)
class Hierarchy:
    """The levels of N points.

    ``centroids`` are rows of table ``hierarchy_centroids``. ``finest`` [N] is the cell of level 0 of each point, and
    ``above`` [levels - 1, K] the cell that each of its K cells lies in at the higher levels, the root last.
    """

    centroids: pd.DataFrame
    finest: npt.NDArray[np.int32]
    above: Ints

    @property
    def cells(self) -> Ints:
        """The cell [levels, N] of each point, root last."""
        return np.concatenate([self.finest[None].astype(np.int64), self.above[:, self.finest]])

    @property
    def figures(self) -> dict[str, float]:
        """Cells, median radius and evenness of each level."""
        figures: dict[str, float] = {}
        for level, cells in self.centroids.groupby("level"):
            figures[f"level_{level}_cells"] = len(cells)
            figures[f"level_{level}_median_mean_km"] = round(float(np.median(cells["mean_km"])), 3)
            figures[f"level_{level}_effective_cells"] = round(effective(cells["n_photos"].to_numpy(np.float64)), 1)
        return figures

    def structure(self) -> pd.DataFrame:
        """Rows of table ``hierarchical_structure``: the root, then level by level the cells, each with those below it."""
        names = [[f"{level}:{cell}" for cell in range(n)] for level, n in enumerate(self._sizes())]
        frames: list[pd.DataFrame] = []
        paths: list[list[str]] = [[]] if names and names[0] else []
        for level in range(len(names) - 1, -1, -1):
            cells = self.centroids[self.centroids["level"] == level]
            if level < len(names) - 1:
                is_top = level == len(names) - 2
                parents = cells["parent_id"].tolist()
                paths = [[] if is_top else [*paths[p], names[level + 1][p]] for p in parents]
            below = names[level - 1] if level else []
            inside = self.centroids.loc[self.centroids["level"] == level - 1, "parent_id"]
            order = np.argsort(inside.to_numpy(np.int64), kind="stable").tolist()
            ends = np.cumsum(cells["n_children"]).tolist()
            children = [[below[c] for c in order[a:b]] for a, b in zip([0, *ends[:-1]], ends, strict=False)]
            numbers = {"level": level, "cell_id": cells["cell_id"], "n_photos": cells["n_photos"]}
            frames.append(pd.DataFrame({**numbers, "path": paths, "children": children}))
        return pd.concat(frames, ignore_index=True) if paths else TABLES["hierarchical_structure"].empty()

    def _sizes(self) -> list[int]:
        return self.centroids.groupby("level").size().tolist()


def build(
    points: pd.DataFrame,
    tree: Dendrogram,
    *,
    min_cluster_size: int,
    exponents: Sequence[float],
    method: Literal["tree", "kmeans"] = "tree",
) -> Hierarchy:
    """Build the levels.

    Level 0 is the clusters, noise joined to the nearest. A higher level has ``int(n ** exponent)`` cells for n clusters.
    By the tree: the same tree cut at a larger cluster size, and then the widest cells (photos times radius) split in two
    by spherical 2-means until the number is reached; each cluster moves to the nearest of their means, once, and the
    cells of the level below follow whole. By K-means: the clusters' means, weighted by photos, grouped on the sphere, and
    these groups again for each level above. Whole cells move, so each has exactly one parent.

    Args:
        points: ``lon, lat`` [deg], ``n_photos`` and ``cluster`` (-1 for noise), in the order of the tree's points.
        tree: dendrogram of the points.
        min_cluster_size: that of the clusters.
        exponents: one for each level between the clusters and the root, within 0 to 1.
        method: how levels above the clusters are made.

    Returns:
        The levels; without a point, no rows.
    """
    if not len(points):
        nothing = np.empty((len(exponents) + 1, 0), np.int64)
        return Hierarchy(TABLES["hierarchy_centroids"].empty(), np.empty(0, np.int32), nothing)
    xyz = unit_sphere(points["lon"], points["lat"])
    photos = points["n_photos"].to_numpy(np.float64)
    clusters = points["cluster"].to_numpy(np.int64)
    finest = join_noise(xyz, clusters)
    mean, weight = centres(xyz, photos, finest)
    if method == "kmeans":
        levels = by_kmeans(mean, weight, exponents=exponents)
    else:
        levels = by_tree(tree, clusters, mean, weight, min_cluster_size=min_cluster_size, exponents=exponents)
    above = np.stack([*levels, np.zeros(len(weight), np.int64)])
    del xyz  # 24 bytes a place, which are needed once more in another order
    return Hierarchy(_describe(points, photos, clusters < 0, finest, above), finest.astype(np.int32), above)


# -- what a cell is -----------------------------------------------------------------------------------------


def _describe(
    points: pd.DataFrame, photos: Floats, noise: npt.NDArray[np.bool_], finest: Ints, above: Ints
) -> pd.DataFrame:
    """Rows of ``hierarchy_centroids``."""
    # Cells in the order of the levels, from the root down, and points in that of their cells: so every cell of every
    # level is one run of points.
    ranked = np.lexsort([np.arange(above.shape[1]), *above])
    rank = np.empty_like(ranked)
    rank[ranked] = np.arange(len(ranked))
    order, starts = by_cell(rank[finest], len(rank))
    runs = Runs.of(points, photos, order)
    noise = noise[order]
    frames = []
    groups = [np.arange(len(rank)), *above]
    for level, group in enumerate(groups):
        # Runs of cells of level 0 become one; the table has them by their number.
        first = np.flatnonzero(np.diff(group[ranked], prepend=-1))
        number = group[ranked][first]
        bounds = np.append(starts[first], len(order))
        is_root = level == len(groups) - 1
        parent: list[None] | Ints = [None] * len(number) if is_root else groups[level + 1][ranked][first]
        children = np.zeros(len(number), np.int64)
        if level:
            pairs = np.unique(groups[level - 1] * (int(group.max()) + 1) + group)
            children = np.bincount(pairs % (int(group.max()) + 1), minlength=len(number))[number]
        statistics = runs.statistics(bounds)
        rows = pd.DataFrame(
            {
                "level": level,
                "cell_id": number,
                "parent_id": pd.array(parent, dtype="Int64"),
                "n_noise_filled": np.add.reduceat(noise, bounds[:-1], dtype=np.int64),
                "n_children": children,
                "s2_token": s2.tokens(s2.cell_ids(statistics["medoid_lon"], statistics["medoid_lat"])),
                **statistics,
            },
            columns=TABLES["hierarchy_centroids"].column_names,
        )
        frames.append(rows.sort_values("cell_id"))
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class Runs:
    """Points [N] in an order in which those of a cell follow one another: unit vectors, photos, and their rows."""

    points: pd.DataFrame
    order: Ints
    xyz: Floats
    photos: Floats

    @classmethod
    def of(cls, points: pd.DataFrame, photos: Floats, order: Ints) -> Runs:
        """Of points ``lon, lat`` [deg] with photos [N], both in the order of the rows."""
        lon, lat = (points[name].to_numpy(np.float64)[order] for name in ("lon", "lat"))
        return cls(points, order, unit_sphere(lon, lat), photos[order])

    def statistics(self, bounds: Ints) -> dict[str, npt.NDArray[Any]]:
        """What describes each cell: its mean, its medoid [deg], its photos and places, and the radii [km].

        Args:
            bounds: [K + 1] where the run of each of K cells begins, and the number of points.
        """
        sums, weight = _sums(self.xyz, self.photos, bounds)
        mean = directions(sums, weight, self.xyz[bounds[:-1]])
        radii, medoid = _radii(self.xyz, self.photos, mean, bounds, np.array(_QUANTILES) / 100)
        middle = self.order[medoid]
        return {
            "lon": np.degrees(np.arctan2(mean[:, 1], mean[:, 0])),
            "lat": np.degrees(np.arctan2(mean[:, 2], np.hypot(mean[:, 0], mean[:, 1]))),
            **{f"medoid_{name}": self.points[name].to_numpy(np.float64)[middle] for name in ("lon", "lat")},
            "n_photos": weight.astype(np.int64),
            "n_points": np.diff(bounds),
            **{name: radii[:, i] for i, name in enumerate(("mean_km", "std_km"))},
            **{f"p{q}_km": radii[:, 2 + i] for i, q in enumerate(_QUANTILES)},
            "max_km": radii[:, -1],
            "resultant": np.linalg.norm(sums, axis=1) / weight,
        }


@numba.njit(cache=True)
def _sums(xyz, photos, bounds):
    """Sums of the vectors [K, 3] of runs of points, weighted by photos, and of the photos [K]."""
    n_cells = len(bounds) - 1
    sums, weight = np.zeros((n_cells, 3)), np.zeros(n_cells)
    for c in range(n_cells):
        for i in range(bounds[c], bounds[c + 1]):
            weight[c] += photos[i]
            for axis in range(3):
                sums[c, axis] += photos[i] * xyz[i, axis]
    return sums, weight


@numba.njit(cache=True)
def by_cell(cell, n_cells):
    """The points [N] cell by cell, each in their order, and where each cell [K] begins."""
    starts = np.zeros(n_cells + 1, np.int64)
    for c in cell:
        starts[c + 1] += 1
    starts = np.cumsum(starts)[:-1]
    order, at = np.empty(len(cell), np.int64), starts.copy()
    for i in range(len(cell)):
        order[at[cell[i]]] = i
        at[cell[i]] += 1
    return order, starts


@numba.njit(cache=True)
def _radii(xyz, photos, mean, bounds, shares):
    """Mean, standard deviation, quantiles and greatest of the distances [km] to each mean; and the nearest point.

    A quantile is the distance within which that share of a cell's photos lie.
    """
    n_cells, n_shares = len(mean), len(shares)
    radii = np.zeros((n_cells, n_shares + 3))
    medoid = np.empty(n_cells, np.int64)
    for c in range(n_cells):
        begin, end = bounds[c], bounds[c + 1]
        km = np.empty(end - begin)
        total, first = 0.0, 0.0
        medoid[c] = begin
        for i in range(begin, end):
            dx, dy, dz = xyz[i, 0] - mean[c, 0], xyz[i, 1] - mean[c, 1], xyz[i, 2] - mean[c, 2]
            chord = np.sqrt(dx * dx + dy * dy + dz * dz)
            km[i - begin] = 2e-3 * MEAN_RADIUS_M * np.arcsin(min(chord / 2, 1.0))
            total += photos[i]
            first += photos[i] * km[i - begin]
            if km[i - begin] < km[medoid[c] - begin]:
                medoid[c] = i
        first /= total
        second = 0.0
        for i in range(begin, end):
            second += photos[i] * (km[i - begin] - first) ** 2
        radii[c, 0], radii[c, 1] = first, np.sqrt(second / total)
        order = np.argsort(km)
        reached, s = 0.0, 0
        for i in order:
            reached += photos[begin + i]
            # Half a photo of tolerance: sums of counts are exact, shares of them are not.
            while s < n_shares and reached >= shares[s] * total - 1e-6:
                radii[c, 2 + s] = km[i]
                s += 1
        radii[c, n_shares + 2] = km[order[-1]]
    return radii, medoid


# -- photos -------------------------------------------------------------------------------------------------


def write_photo_cells(lake: Lake, points: pd.DataFrame, levels: Hierarchy, settings: Geotag) -> Facts:
    """Write table ``photo_cells``: each photo of ``geotag_combined`` that has a point, with its cells, finest first.

    Photos stream through DuckDB, a piece after the other; the points lie beside them on the disk.

    Args:
        lake: holds ``geotag_combined``.
        points: ``point_id, lon, lat, cluster``, in the order of the levels' points.
        levels: the cells of the points.
        settings: the memory of the query.
    """
    with querying(lake, settings, "geotag_combined") as (con, folder):
        con.execute(macros(settings))
        placed = folder / "placed.parquet"
        _write_placed(points, levels, placed)
        named = folder / "named.parquet"
        _write_named(levels, named)
        pieces = photo_pieces(
            con,
            folder,
            lambda piece: (
                f"""
            select p.photo_id, p.source, placed.point_id, named.cells, placed.is_noise
            from (select * from geotag_combined where {piece} and not list_contains(flags, 'null_island')) p
            join read_parquet({literal(placed)}) placed
                on placed.lon = place_lon(p.lon, p.lat) and placed.lat = place_lat(p.lat)
            join read_parquet({literal(named)}) named on named.cell = placed.cell
            order by p.photo_id"""
            ),
        )
        return lake.write_query(con, "photo_cells", pieces, is_sorted=True)


def photo_pieces(con: duckdb.DuckDBPyConnection, folder: Path, query: Callable[[str], str]) -> str:
    """A query of the rows that another gives for pieces of ``geotag_combined``, piece by piece by source and id.

    Args:
        con: has a view of the table, whose rows are sorted by ``source`` and ``photo_id``.
        folder: for the pieces.
        query: given the condition of a piece, its rows, sorted by ``photo_id``.
    """
    files: list[str] = []
    sources = con.execute("select distinct source from geotag_combined order by source").fetchall()
    for (source,) in sources:
        edges = con.execute(
            f"""select photo_id from (
                select photo_id, row_number() over () as n from geotag_combined where source = {literal(source)})
            where n % {SORTED_AT_ONCE} = 0 order by photo_id"""
        ).fetchall()
        lows = ["", *(f" and photo_id > {literal(edge)}" for (edge,) in edges)]
        highs = [*(f" and photo_id <= {literal(edge)}" for (edge,) in edges), ""]
        for low, high in zip(lows, highs, strict=True):
            files.append(literal(folder / f"piece_{len(files):06d}.parquet"))
            piece = query(f"source = {literal(source)}{low}{high}")
            con.execute(f"copy ({piece}) to {files[-1]} (format parquet)")
    return f"select * from read_parquet([{', '.join(files)}])" if files else query("true")


def _write_placed(points: pd.DataFrame, levels: Hierarchy, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: points[name].to_numpy() for name in ("point_id", "lon", "lat")}
    columns |= {"is_noise": points["cluster"].to_numpy() < 0, "cell": levels.finest}
    pq.write_table(pa.table(columns), target)


def _write_named(levels: Hierarchy, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    finest = np.arange(levels.above.shape[1])
    names = [[f"{level}:{cell}" for level, cell in enumerate(column)] for column in np.stack([finest, *levels.above]).T]
    pq.write_table(pa.table({"cell": finest.astype(np.int32), "cells": pa.array(names, pa.list_(pa.string()))}), target)
