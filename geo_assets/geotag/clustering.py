"""HDBSCAN* of places on the sphere, with labels that depend on the places alone.

The spanning tree is exact, on the unit sphere in float64: chords grow with arcs, so it is the tree of great circles
too. The labels are not those of the hdbscan library: a third of the edges of real photo places weigh the same as
another, and where ties are broken one by one the labels follow the order of the rows. Here edges of equal length are
removed together, as Campello, Moulavi and Sander (2013) define the hierarchy, and any spanning tree gives one answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.errors import ConfigError
from geo_assets.geodesy import MEAN_RADIUS_M
from geo_assets.geotag.spanning import Indices, minimum_spanning_tree, radix_order

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

QUANTUM_M = 1e-3
"""Arcs are rounded to this; what differs by less is equal. It keeps the density of coincident places finite."""


ENGINES = ("own", "hdbscan")


def unit_sphere(lon: npt.ArrayLike, lat: npt.ArrayLike) -> Floats:
    """Unit vectors [N, 3] of degrees. Float64 resolves 1e-9 m; float32 would resolve 0.4 m."""
    lam, phi = np.radians(np.asarray(lon, np.float64)), np.radians(np.asarray(lat, np.float64))
    across = np.cos(phi)
    return np.stack([across * np.cos(lam), across * np.sin(lam), np.sin(phi)], axis=-1)


def arc_m(chord: npt.ArrayLike) -> Floats:
    """Great-circle metres of chords of the unit sphere."""
    return 2 * MEAN_RADIUS_M * np.arcsin(np.clip(np.asarray(chord, np.float64) / 2, 0, 1))


def spanning_tree(
    xyz: Floats, min_samples: int, engine: str = "own", threads: int | None = None
) -> tuple[Indices, Indices, Floats]:
    """Exact minimum spanning tree by mutual reachability.

    Args:
        xyz: unit vectors [N, 3].
        min_samples: the core distance of a point is that to its ``min_samples``-th neighbour, itself not counted;
            at most N - 1 are counted.
        engine: ``own``, or ``hdbscan`` for the library's Boruvka, many times slower beyond 100,000 points. Its tree is
            as short on real places; on made ones with far outliers it was seen 5e-5 too long, against its own Prim.
        threads: of ``own``; all that the process may use by default.

    Returns:
        The N - 1 edges: first point, second point, arc [m].

    Raises:
        ConfigError: the engine has another name.
    """
    if engine not in ENGINES:
        raise ConfigError(f"Engine {engine!r} finds no spanning tree; choose one of {', '.join(ENGINES)}.")
    if engine == "hdbscan" and len(xyz) > 1:
        a, b, chords = _library_tree(xyz, min_samples)
    else:
        a, b, chords = minimum_spanning_tree(xyz, min_samples, threads)
    return a.astype(np.int32, copy=False), b.astype(np.int32, copy=False), arc_m(chords)


def _library_tree(xyz: Floats, min_samples: int) -> tuple[Floats, Floats, Floats]:
    from hdbscan import HDBSCAN

    # One thread: the library would start a process pool for a query that takes milliseconds.
    model = HDBSCAN(
        min_cluster_size=2,
        min_samples=min(min_samples, len(xyz) - 1),
        algorithm="boruvka_kdtree",
        approx_min_span_tree=False,
        gen_min_span_tree=True,
        core_dist_n_jobs=1,
    ).fit(xyz)
    tree = model.minimum_spanning_tree_
    assert tree is not None
    a, b, chords = tree.to_numpy().T
    return a, b, chords


@dataclass(frozen=True)
class Dendrogram:
    """Which groups merge at which arc. Nodes 0..N-1 are points, later ones merges of two or more, the last is the root.

    ``parent`` [M] is -1 for the root, ``height_m`` [M] the arc at which a node's members meet (0 for points), ``size`` [M]
    the points below.
    """

    parent: Indices
    height_m: Floats
    size: Indices
    n_points: int

    @classmethod
    def of(cls, a: npt.NDArray, b: npt.NDArray, arcs_m: Floats) -> Dendrogram:
        """The dendrogram of a spanning tree's N - 1 edges ``a - b`` of length ``arcs_m``."""
        steps = np.maximum(np.rint(arcs_m / QUANTUM_M), 1).astype(np.uint64)
        order = radix_order(steps)
        steps = steps[order]
        parent, size = _link(*(np.asarray(end, np.int32)[order] for end in (a, b)))
        return cls(*_gather(parent, size, steps, QUANTUM_M), len(a) + 1)

    def condensed(self, min_cluster_size: int) -> Condensed:
        """The tree in which groups below ``min_cluster_size`` points only ever fall away from a cluster."""
        cluster, left_at, parent, birth, size, stability = _condense(
            self.parent, self.height_m, self.size, self.n_points, min_cluster_size
        )
        # Clusters numbered from the root by the density of their birth, then by their smallest point.
        smallest = _smallest_point(cluster, parent)
        order = np.lexsort((smallest, birth))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        above = np.where(parent[order] < 0, -1, rank[parent[order]])
        return Condensed(rank[cluster], left_at, above, birth[order], size[order], stability[order])


@dataclass(frozen=True)
class Condensed:
    """The condensed tree of C clusters over N points; cluster 0 is the root, parents come before children.

    ``cluster`` [N] is the last cluster a point belongs to and ``left_at`` [N] the density [1/m] at which it leaves it;
    ``parent``, ``birth`` [1/m], ``size`` and ``stability`` [C] describe the clusters.
    """

    cluster: Ints
    left_at: Floats
    parent: Ints
    birth: Floats
    size: Ints
    stability: Floats

    def selected(self) -> tuple[Ints, Floats]:
        """For each cluster the one that excess of mass chose and it lies in, numbered by smallest point, -1 where none is.

        With it the density [1/m] at which the last point leaves the chosen cluster itself, 0 where none is chosen.
        """
        chosen = _excess_of_mass(self.parent, self.stability)
        number, peak = _numbers_and_peaks(self.cluster, self.left_at, self.parent, self.birth, chosen)
        return np.where(chosen >= 0, number[chosen], -1), np.where(chosen >= 0, peak[chosen], 0.0)

    def labels(self) -> tuple[Ints, Floats]:
        """Clusters by excess of mass, numbered by their smallest point, -1 for noise; and the strength of membership."""
        return _labels(self.cluster, self.left_at, *self.selected())

    def rows(self) -> pd.DataFrame:
        """Rows of table ``hdbscan_tree``: points are 0..N-1, cluster c is N + c."""
        n, c = len(self.cluster), len(self.parent)
        return pd.DataFrame(
            {
                "parent": n + np.concatenate([self.parent[1:], self.cluster]),
                "child": np.concatenate([n + np.arange(1, c), np.arange(n)]),
                "density": np.concatenate([self.birth[1:], self.left_at]),
                "size": np.concatenate([self.size[1:], np.ones(n, np.int64)]),
            }
        )


@dataclass(frozen=True)
class Clustering:
    """Labels [N] (-1 is noise), strengths [N], the trees behind them and the edges of the spanning tree."""

    labels: Ints
    strength: Floats
    condensed: Condensed
    edges: pd.DataFrame

    @property
    def n_clusters(self) -> int:
        """Clusters found."""
        return int(self.labels.max(initial=-1)) + 1

    @property
    def spanning_km(self) -> float:
        """Length of the spanning tree [km]; it does not depend on which of several trees was found, or the order of edges."""
        return math.fsum(self.edges["arc_m"].to_numpy()) / 1000


def cluster(
    lon: npt.ArrayLike, lat: npt.ArrayLike, *, min_cluster_size: int, min_samples: int, engine: str = "own"
) -> Clustering:
    """Cluster distinct places.

    Args:
        lon: longitudes [N], degrees.
        lat: latitudes [N], degrees.
        min_cluster_size: fewest places of a cluster, 2 or more.
        min_samples: neighbours that make a place dense, itself not counted.
        engine: who finds the spanning tree; the labels are the same.

    Returns:
        The clustering. The whole is never a cluster, so one dense spot alone is noise, as are fewer places than a
        cluster needs.
    """
    return cluster_tree(spanning_edges(lon, lat, min_samples, engine), np.size(lon), min_cluster_size)


def spanning_edges(lon: npt.ArrayLike, lat: npt.ArrayLike, min_samples: int, engine: str = "own") -> pd.DataFrame:
    """Edges ``a, b, arc_m`` of the spanning tree of places [deg]."""
    a, b, arcs_m = spanning_tree(unit_sphere(lon, lat), min_samples, engine)
    return pd.DataFrame({"a": a, "b": b, "arc_m": arcs_m})


def cluster_tree(edges: pd.DataFrame, n_points: int, min_cluster_size: int) -> Clustering:
    """The clustering that follows from a spanning tree (``a, b, arc_m``) of ``n_points`` points."""
    condensed = dendrogram(edges, n_points).condensed(min_cluster_size)
    labels, strength = condensed.labels()
    return Clustering(labels, strength, condensed, edges)


def dendrogram(edges: pd.DataFrame, n_points: int) -> Dendrogram:
    """The dendrogram of a stored spanning tree (``a, b, arc_m``) of ``n_points`` points."""
    if n_points == 0:
        return Dendrogram(np.empty(0, np.int32), np.empty(0), np.empty(0, np.int32), 0)
    return Dendrogram.of(*(edges[column].to_numpy() for column in ("a", "b", "arc_m")))


def numbered(groups: Ints) -> Ints:
    """Groups [N] numbered from 0 by their first member, so that numbers follow from the places alone."""
    groups = np.asarray(groups, np.int64)
    lowest = int(groups.min(initial=0))
    return _numbered(groups - lowest, int(groups.max(initial=0)) - lowest + 1)


@numba.njit(cache=True)
def _numbered(groups, n_groups):
    number = np.full(n_groups, -1, np.int64)
    out = np.empty(len(groups), np.int64)
    count = 0
    for i in range(len(groups)):
        g = groups[i]
        if number[g] < 0:
            number[g] = count
            count += 1
        out[i] = number[g]
    return out


@numba.njit(nogil=True)
def _find(leader, i):
    while leader[i] >= 0:
        above = leader[i]
        if leader[above] >= 0:
            leader[i] = leader[above]
        i = above
    return i


@numba.njit(cache=True)
def _link(a, b):
    """Parent and size of the nodes of the two-way dendrogram of edges given from short to long; sizes of merges only."""
    n = len(a) + 1
    parent = np.full(2 * n - 1, -1, np.int32)
    size = np.empty(n - 1, np.int32)
    # The leader of a point, or -1 minus its node in the tree if it leads: one look at memory a step instead of three.
    leader = (-1 - np.arange(n)).astype(np.int32)
    for e in range(n - 1):
        one, other = _find(leader, a[e]), _find(leader, b[e])
        left, right = -1 - leader[one], -1 - leader[other]
        n_left = size[left - n] if left >= n else 1
        n_right = size[right - n] if right >= n else 1
        if n_left < n_right:
            one, other = other, one
        parent[left] = parent[right] = n + e
        size[e] = n_left + n_right
        leader[other] = one
        leader[one] = -1 - (n + e)
    return parent, size


@numba.njit(cache=True)
def _gather(parent, size, steps, quantum):
    """Parent, height and size of the nodes once a merge at the very height of the merge above it is one with it."""
    n_nodes = len(parent)
    n = len(size) + 1
    number = np.arange(n_nodes).astype(np.int32)  # at first the highest node that a node is one with
    for v in range(n_nodes - 2, n - 1, -1):
        if steps[v - n] == steps[parent[v] - n]:
            number[v] = number[parent[v]]
    kept = n
    for v in range(n, n_nodes):
        kept += number[v] == v
    above = np.full(kept, -1, np.int32)
    height = np.zeros(kept)
    sizes = np.ones(kept, np.int32)
    count = kept
    for v in range(n_nodes - 1, -1, -1):
        if number[v] != v:
            number[v] = number[number[v]]
            continue
        count -= 1
        number[v] = count
        if parent[v] >= 0:
            above[count] = number[parent[v]]
        if v >= n:
            height[count], sizes[count] = steps[v - n] * quantum, size[v - n]
    return above, height, sizes


@numba.njit(cache=True)
def _condense(parent, height, size, n_points, min_size):
    n_nodes = len(parent)
    root = n_nodes - 1
    heirs = np.zeros(n_nodes - n_points, np.int32)  # children of a merge that are large enough to be clusters
    stays = np.zeros(n_nodes - n_points, np.int32)  # points of the last one of them
    for v in range(n_points, root):
        if size[v] >= min_size:
            heirs[parent[v] - n_points] += 1
            stays[parent[v] - n_points] = size[v]
    most = 1 + np.sum(heirs[heirs >= 2])
    above = np.full(most, -1, np.int64)
    birth = np.zeros(most)
    members = np.zeros(most, np.int64)
    stability = np.zeros(most)
    cluster = np.zeros(n_nodes, np.int32)
    left_at = np.zeros(n_nodes)  # 0 while a node is still inside its cluster
    count = 1
    members[0] = n_points
    for v in range(root, -1, -1):
        if v < root:
            p = parent[v]
            cluster[v], left_at[v] = cluster[p], left_at[p]
            large = v >= n_points and size[v] >= min_size
            if left_at[p] == 0 and not (large and heirs[p - n_points] == 1):
                density = 1 / height[p]
                if large:
                    above[count], birth[count], members[count] = cluster[p], density, size[v]
                    cluster[v] = count
                    count += 1
                else:
                    left_at[v] = density
        if v >= n_points and left_at[v] == 0:
            # All that leaves at one height at once: the sum does not depend on the order of equal edges.
            leaving = size[v] - (stays[v - n_points] if heirs[v - n_points] == 1 else 0)
            stability[cluster[v]] += (1 / height[v] - birth[cluster[v]]) * leaving
    return (
        cluster[:n_points].copy(),
        left_at[:n_points].copy(),
        above[:count].copy(),
        birth[:count].copy(),
        members[:count].copy(),
        stability[:count].copy(),
    )


@numba.njit(cache=True)
def _numbers_and_peaks(cluster, left_at, parent, birth, chosen):
    """Number of each chosen cluster by its first point, -1 of others; and the densest leaving of each cluster itself."""
    number, peak = np.full(len(parent), -1, np.int64), birth.copy()
    count = 0
    for i in range(len(cluster)):
        c = cluster[i]
        peak[c] = max(peak[c], left_at[i])
        if chosen[c] >= 0 and number[chosen[c]] < 0:
            number[chosen[c]] = count
            count += 1
    for c in range(1, len(parent)):
        peak[parent[c]] = max(peak[parent[c]], birth[c])
    return number, peak


@numba.njit(cache=True)
def _labels(cluster, left_at, chosen, peak):
    """Label of each point, and its strength.

    That is, as the library defines it, the density of leaving against the densest leaving of the chosen cluster itself.
    """
    labels, strength = np.empty(len(cluster), np.int64), np.zeros(len(cluster))
    for i in range(len(cluster)):
        c = cluster[i]
        labels[i] = chosen[c]
        if chosen[c] >= 0:
            strength[i] = min(left_at[i] / peak[c], 1.0)
    return labels, strength


@numba.njit(cache=True)
def _smallest_point(cluster, parent):
    smallest = np.full(len(parent), len(cluster), np.int64)
    for i in range(len(cluster) - 1, -1, -1):
        smallest[cluster[i]] = i
    for c in range(len(parent) - 1, 0, -1):
        smallest[parent[c]] = min(smallest[parent[c]], smallest[c])
    return smallest


@numba.njit(cache=True)
def _excess_of_mass(parent, stability):
    """For each cluster the chosen cluster that it lies in, or -1; the root is never chosen."""
    n = len(parent)
    best = stability.copy()
    below = np.zeros(n)
    chosen = np.zeros(n, np.bool_)
    for c in range(n - 1, 0, -1):
        # Sums in another order differ in the last digit; on a tie the larger cluster stays whole.
        if below[c] > best[c] * (1 + 1e-9):
            best[c] = below[c]
        else:
            chosen[c] = True
        below[parent[c]] += best[c]
    holder = np.full(n, -1, np.int64)
    for c in range(1, n):
        if holder[parent[c]] >= 0:
            holder[c] = holder[parent[c]]
        elif chosen[c]:
            holder[c] = c
    return holder
