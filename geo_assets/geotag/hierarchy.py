"""Nested levels of cells over the clusters: every photo in one cell of each level, every cell in one cell above."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from geo_assets.geodesy import haversine_m
from geo_assets.geotag.clustering import Dendrogram, Floats, Ints, numbered, unit_sphere
from geo_assets.geotag.combine import prepare
from geo_assets.lake import Lake
from geo_assets.tables import TABLES, to_pandas

_MEANINGLESS = 1e-9
"""Below this length a mean vector has no direction; the cell's medoid stands in."""


@dataclass(frozen=True)
class Hierarchy:
    """``centroids``: rows of table ``hierarchy_centroids``. ``cells`` [levels, N]: the cell of each point, root last."""

    centroids: pd.DataFrame
    cells: Ints

    @property
    def figures(self) -> dict[str, float]:
        """Cells, median radius and evenness of each level."""
        figures: dict[str, float] = {}
        for level, cells in self.centroids.groupby("level"):
            share = cells["n_photos"] / cells["n_photos"].sum()
            figures[f"level_{level}_cells"] = len(cells)
            figures[f"level_{level}_median_mean_km"] = round(float(np.median(cells["mean_km"])), 3)
            # As many equal cells would be as hard to guess.
            figures[f"level_{level}_effective_cells"] = round(float(np.exp(-(share * np.log(share)).sum())), 1)
        return figures


def build(points: pd.DataFrame, tree: Dendrogram, *, min_cluster_size: int, exponents: Sequence[float]) -> Hierarchy:
    """Build the levels.

    Level 0 is the clusters, noise joined to the nearest. A higher level has ``int(n ** exponent)`` cells for n clusters:
    the same tree cut at a larger cluster size, within the cells of the level above, and then the widest cells (photos
    times radius) split in two by spherical 2-means until the number is reached. Whole cells of level 0 move, so each
    cell has exactly one parent.

    Args:
        points: ``lon, lat`` [deg], ``n_photos`` and ``cluster`` (-1 for noise), in the order of the tree's points.
        tree: dendrogram of the points.
        min_cluster_size: that of the clusters.
        exponents: one for each level between the clusters and the root, within 0 to 1.

    Returns:
        The levels; without a point, no rows.
    """
    if not len(points):
        return Hierarchy(TABLES["hierarchy_centroids"].empty(), np.empty((len(exponents) + 2, 0), np.int64))
    xyz = unit_sphere(points["lon"], points["lat"])
    photos = points["n_photos"].to_numpy(np.float64)
    finest = join_noise(xyz, points["cluster"].to_numpy(np.int64))
    n_cells = int(finest.max()) + 1
    mean, weight = _means(xyz, photos, finest)
    levels = [np.zeros(n_cells, np.int64)]  # coarsest first; each maps cells of level 0 to cells of that level
    for exponent in sorted(exponents):
        wanted = max(int(n_cells**exponent), int(levels[-1].max()) + 1)
        start = _cut(tree, xyz, finest, levels[-1], min_cluster_size, wanted)
        levels.append(numbered(split_widest(mean, weight, start, wanted)))
    cells = np.stack([finest, *(level[finest] for level in reversed(levels))])
    noise = points["cluster"].to_numpy() < 0
    frames = [_describe(level, cells, points, xyz, photos, noise) for level in range(len(cells))]
    return Hierarchy(pd.concat(frames, ignore_index=True), cells)


def join_noise(xyz: Floats, labels: Ints) -> Ints:
    """Labels [N] with each -1 replaced by the label of the nearest labelled point; all 0 where nothing is labelled."""
    from scipy.spatial import KDTree

    clustered = labels >= 0
    if not clustered.any():
        return np.zeros(len(labels), np.int64)
    joined = labels.copy()
    if not clustered.all():
        _, nearest = KDTree(xyz[clustered]).query(xyz[~clustered])
        joined[~clustered] = labels[clustered][nearest]
    return joined


def _cut(tree: Dendrogram, xyz: Floats, finest: Ints, above: Ints, min_cluster_size: int, wanted: int) -> Ints:
    """Cells of level 0 grouped by the tree cut so coarse, and by the level above, that a fifth of ``wanted`` is left."""
    size = min_cluster_size
    while True:
        size *= 2
        labels, _ = tree.condensed(size).labels()
        joined = join_noise(xyz, labels)
        pairs = pd.DataFrame({"cell": finest, "cut": joined})
        # The larger cluster size keeps nearly all small clusters whole; where it does not, the majority decides.
        votes = (
            pairs.value_counts()
            .rename("n")
            .reset_index()
            .sort_values(["cell", "n", "cut"], ascending=[True, False, True])
        )
        cut = votes.drop_duplicates("cell")["cut"].to_numpy(np.int64)
        _, groups = np.unique(np.stack([above, cut]), axis=1, return_inverse=True)
        n_groups = int(groups.max()) + 1
        if n_groups <= 0.8 * wanted or not (labels >= 0).any():
            return groups.astype(np.int64) if n_groups <= wanted else above


def split_widest(mean: Floats, weight: Floats, groups: Ints, wanted: int) -> Ints:
    """Split groups in two, that with the most photos times radius first, until there are ``wanted``.

    Args:
        mean: unit vectors [K, 3] of the members.
        weight: photos [K] of the members.
        groups: group [K] of each member, 0..G-1.
        wanted: number of groups to reach; fewer where no group can be split.

    Returns:
        Group [K] of each member.
    """
    groups = groups.copy()
    count = int(groups.max()) + 1
    order = np.argsort(groups, kind="stable")
    heap: list[tuple[float, int, Ints]] = []
    for number, members in enumerate(np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)):
        _push(heap, mean, weight, number, members)
    while heap and count < wanted:
        _, number, members = heapq.heappop(heap)
        far = _two_means(mean[members], weight[members])
        if far.all() or not far.any():
            continue  # all at one place
        groups[members[far]] = count
        _push(heap, mean, weight, number, members[~far])
        _push(heap, mean, weight, count, members[far])
        count += 1
    return groups


def _push(heap: list[tuple[float, int, Ints]], mean: Floats, weight: Floats, number: int, members: Ints) -> None:
    if len(members) < 2:
        return
    total = weight[members].sum()
    resultant = np.linalg.norm(weight[members] @ mean[members]) / total
    # 1 - resultant is half the mean squared chord: the root is a radius.
    heapq.heappush(heap, (-total * np.sqrt(max(1 - resultant, 0.0)), number, members))


def _two_means(mean: Floats, weight: Floats, sweeps: int = 20) -> npt.NDArray[np.bool_]:
    """Which members [K] belong to the second of two groups by spherical 2-means, begun at the two ends of the set."""
    first = mean[np.argmin(mean @ (weight @ mean))]
    second = mean[np.argmin(mean @ first)]
    far = mean @ second > mean @ first
    for _ in range(sweeps):
        sums = weight[~far] @ mean[~far], weight[far] @ mean[far]
        lengths = [np.linalg.norm(s) for s in sums]
        if min(lengths) < _MEANINGLESS:
            break
        moved = mean @ (sums[1] / lengths[1]) > mean @ (sums[0] / lengths[0])
        if (moved == far).all() or moved.all() or not moved.any():
            break
        far = moved
    return far


def _means(xyz: Floats, photos: Floats, cell: Ints) -> tuple[Floats, Floats]:
    """Unit mean vectors [K, 3], weighted by photos, and photos [K]; a mean without direction is its first point."""
    sums = np.stack([np.bincount(cell, photos * axis) for axis in xyz.T], axis=-1)
    weight = np.bincount(cell, photos)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    first = xyz[np.unique(cell, return_index=True)[1]]
    means: Floats = np.where(length > _MEANINGLESS * weight[:, None], sums / np.maximum(length, 1e-300), first)
    return means, weight.astype(np.float64)


def _describe(
    level: int, cells: Ints, points: pd.DataFrame, xyz: Floats, photos: Floats, noise: npt.NDArray[np.bool_]
) -> pd.DataFrame:
    """Rows of ``hierarchy_centroids`` for one level."""
    cell = cells[level]
    lon, lat = points["lon"].to_numpy(np.float64), points["lat"].to_numpy(np.float64)
    mean, weight = _means(xyz, photos, cell)
    mean_lon = np.degrees(np.arctan2(mean[:, 1], mean[:, 0]))
    mean_lat = np.degrees(np.arctan2(mean[:, 2], np.hypot(mean[:, 0], mean[:, 1])))
    km = haversine_m(lon, lat, mean_lon[cell], mean_lat[cell]) / 1000
    order = np.lexsort((km, cell))
    ends = np.cumsum(np.bincount(cell))
    medoid = order[ends - np.bincount(cell)]
    sums = np.stack([np.bincount(cell, photos * axis) for axis in xyz.T], axis=-1)
    mean_km = np.bincount(cell, photos * km) / weight
    spread = np.bincount(cell, photos * (km - mean_km[cell]) ** 2) / weight
    one_per_cell = np.unique(cell, return_index=True)[1]
    children = np.zeros(len(weight), np.int64)
    if level:
        child = np.unique(cells[level - 1], return_index=True)[1]
        children = np.bincount(cell[child], minlength=len(weight))
    is_root = level == len(cells) - 1
    parent = [None] * len(weight) if is_root else cells[level + 1][one_per_cell]
    return pd.DataFrame(
        {
            "level": level,
            "cell_id": np.arange(len(weight)),
            "parent_id": pd.array(parent, dtype="Int64"),
            "lon": mean_lon,
            "lat": mean_lat,
            "medoid_lon": lon[medoid],
            "medoid_lat": lat[medoid],
            "n_photos": weight.astype(np.int64),
            "n_points": np.bincount(cell),
            "n_noise_filled": np.bincount(cell, noise).astype(np.int64),
            "n_children": children,
            "mean_km": mean_km,
            "std_km": np.sqrt(spread),
            **{f"p{q}_km": _quantile(km[order], photos[order], ends, q / 100) for q in (50, 90)},
            "max_km": km[order][ends - 1],
            "resultant": np.linalg.norm(sums, axis=1) / weight,
        }
    )


def _quantile(km: Floats, photos: Floats, ends: Ints, share: float) -> Floats:
    """The distance within which ``share`` of each cell's photos lie; distances sorted within cells that end at ``ends``."""
    reached = np.cumsum(photos)
    total = reached[ends - 1]
    before = np.concatenate([[0.0], total[:-1]])
    # Half a photo of tolerance: sums of counts are exact, shares of them are not.
    return km[np.searchsorted(reached, before + share * (total - before) - 1e-6)]


def photo_cells(lake: Lake, points: pd.DataFrame, cells: Ints) -> pd.DataFrame:
    """Rows of table ``photo_cells``: each photo of ``geotag_combined`` that has a point, with its cells, finest first.

    Args:
        lake: holds ``geotag_combined``.
        points: ``point_id, lon, lat, cluster``.
        cells: cell [levels, N] of each point.
    """
    names = [[f"{level}:{cell}" for level, cell in enumerate(column)] for column in cells.T.tolist()]
    placed = pa.table(
        {
            "point_id": points["point_id"].to_numpy(),
            "lon": points["lon"].to_numpy(),
            "lat": points["lat"].to_numpy(),
            "is_noise": points["cluster"].to_numpy() < 0,
            "cells": pa.array(names, pa.list_(pa.string())),
        }
    )
    with lake.connect("geotag_combined") as con:
        prepare(con)
        con.register("placed", placed)
        query = """
            select p.photo_id, p.source, placed.point_id, placed.cells, placed.is_noise
            from geotag_combined p join placed
                on placed.lon = place_lon(p.lon, p.lat) and placed.lat = p.lat + 0.0
            where not list_contains(p.flags, 'null_island')"""
        return to_pandas(con.sql(query).to_arrow_table())
