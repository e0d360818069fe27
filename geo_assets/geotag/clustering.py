"""HDBSCAN* of places on the sphere, with labels that depend on the places alone.

The spanning tree is the hdbscan library's, exact, on the unit sphere in float64: chords grow with arcs, so it is the
tree of great circles too. The labels are not the library's: a third of the edges of real photo places weigh the same as
another, and where ties are broken one by one the labels follow the order of the rows. Here edges of equal length are
removed together, as Campello, Moulavi and Sander (2013) define the hierarchy, and any spanning tree gives one answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.geodesy import MEAN_RADIUS_M

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

QUANTUM_M = 1e-3
"""Arcs are rounded to this; what differs by less is equal. It keeps the density of coincident places finite."""


def unit_sphere(lon: npt.ArrayLike, lat: npt.ArrayLike) -> Floats:
    """Unit vectors [N, 3] of degrees. Float64 resolves 1e-9 m; float32 would resolve 0.4 m."""
    lam, phi = np.radians(np.asarray(lon, np.float64)), np.radians(np.asarray(lat, np.float64))
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def arc_m(chord: npt.ArrayLike) -> Floats:
    """Great-circle metres of chords of the unit sphere."""
    return 2 * MEAN_RADIUS_M * np.arcsin(np.clip(np.asarray(chord, np.float64) / 2, 0, 1))


def spanning_tree(xyz: Floats, min_samples: int) -> tuple[Ints, Ints, Floats]:
    """Exact minimum spanning tree by mutual reachability.

    Args:
        xyz: unit vectors [N, 3], N >= 2.
        min_samples: the core distance of a point is that to its ``min_samples``-th neighbour, itself not counted;
            at most N - 1 are counted.

    Returns:
        The N - 1 edges: first point, second point, arc [m].
    """
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
    edges = tree.to_numpy()
    return edges[:, 0].astype(np.int64), edges[:, 1].astype(np.int64), arc_m(edges[:, 2])


@dataclass(frozen=True)
class Dendrogram:
    """Which groups merge at which arc. Nodes 0..N-1 are points, later ones merges of two or more, the last is the root.

    ``parent`` [M] is -1 for the root, ``height_m`` [M] the arc at which a node's members meet (0 for points), ``size`` [M]
    the points below.
    """

    parent: Ints
    height_m: Floats
    size: Ints
    n_points: int

    @classmethod
    def of(cls, a: Ints, b: Ints, arcs_m: Floats) -> Dendrogram:
        """The dendrogram of a spanning tree's N - 1 edges ``a - b`` of length ``arcs_m``."""
        n = len(a) + 1
        steps = np.maximum(np.rint(arcs_m / QUANTUM_M), 1)
        order = np.argsort(steps, kind="stable")
        parent, size = _link(a[order], b[order])
        height = np.concatenate([np.zeros(n), steps[order] * QUANTUM_M])
        # A merge at the very height of the merge above it is one merge with it.
        top = _topmost(parent, height)
        kept = top == np.arange(len(parent))
        number = np.cumsum(kept) - 1
        above = np.where(parent[kept] < 0, -1, number[top[parent[kept]]])
        return cls(above, height[kept], size[kept], n)

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

    def labels(self) -> tuple[Ints, Floats]:
        """Clusters by excess of mass, numbered by their smallest point, -1 for noise; and the strength of membership."""
        chosen = _excess_of_mass(self.parent, self.stability)[self.cluster]
        member = np.flatnonzero(chosen >= 0)
        labels = np.full(len(chosen), -1, np.int64)
        labels[member] = numbered(chosen[member])
        # Strength as the library defines it: density of leaving against the densest leaving of the chosen cluster itself.
        peak = self.birth.copy()
        np.maximum.at(peak, self.cluster, self.left_at)
        np.maximum.at(peak, self.parent[1:], self.birth[1:])
        strength = np.zeros(len(chosen))
        strength[member] = np.minimum(self.left_at[member] / peak[chosen[member]], 1)
        return labels, strength

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
        """Length of the spanning tree [km]; it does not depend on which of several trees was found."""
        return float(self.edges["arc_m"].to_numpy().sum() / 1000)


def cluster(lon: npt.ArrayLike, lat: npt.ArrayLike, *, min_cluster_size: int, min_samples: int) -> Clustering:
    """Cluster distinct places.

    Args:
        lon: longitudes [N], degrees.
        lat: latitudes [N], degrees.
        min_cluster_size: fewest places of a cluster, 2 or more.
        min_samples: neighbours that make a place dense, itself not counted.

    Returns:
        The clustering. The whole is never a cluster, so one dense spot alone is noise, as are fewer places than a
        cluster needs.
    """
    xyz = unit_sphere(lon, lat)
    a, b, arcs_m = spanning_tree(xyz, min_samples) if len(xyz) > 1 else (np.empty(0, np.int64),) * 2 + (np.empty(0),)
    edges = pd.DataFrame({"a": a, "b": b, "arc_m": arcs_m})
    condensed = dendrogram(edges, len(xyz)).condensed(min_cluster_size)
    labels, strength = condensed.labels()
    return Clustering(labels, strength, condensed, edges)


def dendrogram(edges: pd.DataFrame, n_points: int) -> Dendrogram:
    """The dendrogram of a stored spanning tree (``a, b, arc_m``) of ``n_points`` points."""
    if n_points == 0:
        return Dendrogram(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), 0)
    a, b = (edges[end].to_numpy(np.int64) for end in "ab")
    return Dendrogram.of(a, b, edges["arc_m"].to_numpy(np.float64))


def numbered(groups: Ints) -> Ints:
    """Groups [N] numbered from 0 by their first member, so that numbers follow from the places alone."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


@numba.njit(cache=True)
def _find(leader, i):
    root = i
    while leader[root] != root:
        root = leader[root]
    while leader[i] != root:
        leader[i], i = root, leader[i]
    return root


@numba.njit(cache=True)
def _link(a, b):
    """Parent and size of the nodes of the two-way dendrogram of edges given from short to long."""
    n = len(a) + 1
    parent = np.full(2 * n - 1, -1, np.int64)
    size = np.ones(2 * n - 1, np.int64)
    leader = np.arange(n)
    node = np.arange(n)
    for e in range(n - 1):
        one, other = _find(leader, a[e]), _find(leader, b[e])
        if size[node[one]] < size[node[other]]:
            one, other = other, one
        parent[node[one]] = parent[node[other]] = n + e
        size[n + e] = size[node[one]] + size[node[other]]
        leader[other] = one
        node[one] = n + e
    return parent, size


@numba.njit(cache=True)
def _topmost(parent, height):
    """For each node the highest node above it that it reaches without leaving its own height."""
    top = np.arange(len(parent))
    for v in range(len(parent) - 2, -1, -1):
        if height[v] == height[parent[v]]:
            top[v] = top[parent[v]]
    return top


@numba.njit(cache=True)
def _condense(parent, height, size, n_points, min_size):
    n_nodes = len(parent)
    root = n_nodes - 1
    heirs = np.zeros(n_nodes, np.int64)  # children of a node that are large enough to be clusters
    for v in range(n_points, root):
        if size[v] >= min_size:
            heirs[parent[v]] += 1
    most = 1
    for v in range(n_points, n_nodes):
        if heirs[v] >= 2:
            most += heirs[v]
    above = np.full(most, -1, np.int64)
    birth = np.zeros(most)
    members = np.zeros(most, np.int64)
    stability = np.zeros(most)
    cluster = np.zeros(n_nodes, np.int64)
    left_at = np.zeros(n_nodes)  # 0 while a node is still inside its cluster
    count = 1
    members[0] = n_points
    for v in range(root - 1, -1, -1):
        p = parent[v]
        inside = cluster[p]
        cluster[v] = inside
        if left_at[p] > 0:
            left_at[v] = left_at[p]
            continue
        density = 1 / height[p]
        large = v >= n_points and size[v] >= min_size
        if large and heirs[p] == 1:
            continue
        stability[inside] += (density - birth[inside]) * size[v]
        if large:
            above[count], birth[count], members[count] = inside, density, size[v]
            cluster[v] = count
            count += 1
        else:
            left_at[v] = density
    return (
        cluster[:n_points].copy(),
        left_at[:n_points].copy(),
        above[:count].copy(),
        birth[:count].copy(),
        members[:count].copy(),
        stability[:count].copy(),
    )


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
