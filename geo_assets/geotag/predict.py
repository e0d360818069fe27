"""New places in the clusters of a model that stays as it is.

The rule is that of hdbscan's ``approximate_predict``: a new place joins the tree at its nearest neighbour by mutual
reachability, and is of the cluster that still holds together at that distance. It differs in three ways: core distances
are those of the fit (the library's are one neighbour off), all neighbours that can be the nearest are looked at, not the
first few, and ties go to the nearer place and then to the first, so that the answer depends on the places alone.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from geo_assets.errors import SourceError
from geo_assets.geotag.clustering import QUANTUM_M, Floats, Ints, arc_m, unit_sphere
from geo_assets.geotag.model import Model

_AT_ONCE = 1_000_000
"""Distances that are held at once."""


class Prediction(NamedTuple):
    """``cluster`` [N], -1 for noise; ``strength`` [N], 0 to 1; ``distance_m`` [N] to the place of the model that decided."""

    cluster: Ints
    strength: Floats
    distance_m: Floats


def predict(
    model: Model, lon: npt.ArrayLike, lat: npt.ArrayLike, mode: Literal["exact", "nearest"] = "exact"
) -> Prediction:
    """Cluster, strength and distance of new places; a place that is in the model gets what it has there.

    Args:
        model: the fit.
        lon: longitudes [N], degrees.
        lat: latitudes [N], degrees.
        mode: ``nearest`` gives what would be noise to the nearest clustered place, with strength 0, as level 0 of the
            hierarchy does.

    Returns:
        The prediction; in a model without places all is noise at an infinite distance.

    Raises:
        SourceError: a position is not on the globe.
    """
    return Predictor(model).predict(lon, lat, mode)


class Predictor:
    """Holds the search tree of a model, for who predicts more than once.

    Args:
        model: the fit.
    """

    def __init__(self, model: Model) -> None:
        points, condensed = model.points, model.condensed
        self._xyz = unit_sphere(points["lon"], points["lat"])
        self._labels = points["cluster"].to_numpy(np.int64)
        self._strength = points["probability"].to_numpy(np.float64)
        self._tree = KDTree(self._xyz) if len(points) else None
        self._condensed = condensed
        self._chosen, self._peak = condensed.selected()
        self._min_samples = int(model.card["min_samples"])

    def predict(
        self, lon: npt.ArrayLike, lat: npt.ArrayLike, mode: Literal["exact", "nearest"] = "exact"
    ) -> Prediction:
        """As :func:`predict`."""
        xyz = unit_sphere(*_on_the_globe(lon, lat))
        if self._tree is None:
            return Prediction(np.full(len(xyz), -1), np.zeros(len(xyz)), np.full(len(xyz), np.inf))
        neighbour, steps, distance = self._neighbours(xyz, self._tree)
        tree = self._condensed
        node = _climb(tree.cluster[neighbour], tree.left_at[neighbour], _density(steps), tree.parent, tree.birth)
        cluster = self._chosen[node]
        strength = np.where(cluster >= 0, np.minimum(_density(steps) / np.maximum(self._peak[node], 1e-300), 1.0), 0.0)
        is_known = np.rint(distance / QUANTUM_M) == 0
        cluster = np.where(is_known, self._labels[neighbour], cluster)
        strength = np.where(is_known, self._strength[neighbour], strength)
        if mode == "nearest":
            self._join_nearest(xyz, cluster, distance)
        return Prediction(cluster, strength, distance)

    def _neighbours(self, xyz: Floats, tree: Any) -> tuple[Ints, Ints, Floats]:
        """Nearest neighbour by mutual reachability, that distance [quanta], and the distance to the neighbour [m]."""
        n = len(self._xyz)
        neighbour, steps = np.empty(len(xyz), np.int64), np.empty(len(xyz), np.int64)
        distance = np.empty(len(xyz))
        core = np.full(n, -1, np.int64)
        # Queries that follow each other along a meridian strip find the search tree's leaves in the cache.
        todo, k = (
            np.lexsort((xyz[:, 2], np.rint(np.arctan2(xyz[:, 1], xyz[:, 0]) * 500))),
            min(2 * self._min_samples, n),
        )
        while len(todo):
            undecided = []
            for rows in np.array_split(todo, -(-len(todo) * k // _AT_ONCE)):
                chord, index = tree.query(xyz[rows], np.arange(1, k + 1), workers=-1)
                self._fill_core(core, np.unique(index), tree)
                metres = arc_m(chord)
                neighbour[rows], steps[rows], column, is_settled = _nearest(
                    np.rint(metres / QUANTUM_M).astype(np.int64), index, core, min(self._min_samples, n)
                )
                distance[rows] = metres[np.arange(len(rows)), column]
                undecided.append(rows[~is_settled] if k < n else rows[:0])
            todo, k = np.concatenate(undecided), min(4 * k, n)
        return neighbour, steps, distance

    def _fill_core(self, core: Ints, wanted: Ints, tree: Any) -> None:
        """Core distances [quanta] of places of the model, where they are not known yet."""
        wanted = wanted[core[wanted] < 0]
        # The first neighbour of a place of the model is itself.
        order = min(self._min_samples + 1, len(core))
        if len(wanted):
            chord, _ = tree.query(self._xyz[wanted], [order], workers=-1)
            core[wanted] = np.rint(arc_m(chord[:, 0]) / QUANTUM_M)

    def _join_nearest(self, xyz: Floats, cluster: Ints, distance: Floats) -> None:
        clustered, noise = np.flatnonzero(self._labels >= 0), np.flatnonzero(cluster < 0)
        if len(clustered) and len(noise):
            chord, index = KDTree(self._xyz[clustered]).query(xyz[noise], workers=-1)
            cluster[noise] = self._labels[clustered[index]]
            distance[noise] = arc_m(chord)


def _density(steps: Ints) -> Floats:
    """Density [1/m] of a distance in quanta, in the very arithmetic of the tree, whose densities it is compared with."""
    return 1 / (np.maximum(steps, 1) * QUANTUM_M)


def _on_the_globe(lon: npt.ArrayLike, lat: npt.ArrayLike) -> tuple[Floats, Floats]:
    lon, lat = np.atleast_1d(np.asarray(lon, np.float64)), np.atleast_1d(np.asarray(lat, np.float64))
    is_wrong = ~((np.abs(lon) <= 180) & (np.abs(lat) <= 90))
    if is_wrong.any():
        row = int(np.flatnonzero(is_wrong)[0])
        raise SourceError(
            f"Row {row} is at lon {lon[row]}, lat {lat[row]}, which is not on the globe. Leave such rows out "
            f"({int(is_wrong.sum()):,} of {len(lon):,}), or exchange longitude and latitude."
        )
    return lon, lat


@numba.njit(cache=True)
def _nearest(metres, index, core, k_core):
    """The neighbour by mutual reachability, its distance, its column, and whether one further away cannot be nearer."""
    n, k = index.shape
    neighbour = np.empty(n, np.int64)
    steps = np.empty(n, np.int64)
    column = np.empty(n, np.int64)
    is_settled = np.empty(n, np.bool_)
    for i in range(n):
        own = metres[i, k_core - 1]
        best = -1
        least = np.int64(0)
        # A place of the model itself: the very nearest, though others may lie within a quantum.
        if metres[i, 0] == 0:
            neighbour[i], steps[i], column[i], is_settled[i] = index[i, 0], 0, 0, True
            continue
        for j in range(k):
            reach = max(metres[i, j], own, core[index[i, j]])
            if (
                best < 0
                or reach < least
                or (
                    reach == least
                    and (
                        metres[i, j] < metres[i, best]
                        or (metres[i, j] == metres[i, best] and index[i, j] < index[i, best])
                    )
                )
            ):
                best, least = j, reach
        neighbour[i], steps[i], column[i] = index[i, best], least, best
        is_settled[i] = metres[i, k - 1] > least
    return neighbour, steps, column, is_settled


@numba.njit(cache=True)
def _climb(node, left_at, density, parent, birth):
    """From the cluster of the neighbour up to the one that was born before the new place falls away."""
    for i in range(len(node)):
        if left_at[i] > density[i]:
            while node[i] > 0 and birth[node[i]] >= density[i]:
                node[i] = parent[node[i]]
    return node
