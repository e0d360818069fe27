"""Cells grouped into fewer: by the tree of the clustering and bisection, or by spherical K-means. Whole cells move."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numba
import numpy as np

from geo_assets.geotag.clustering import Dendrogram, Floats, Ints, numbered

MEANINGLESS = 1e-9
"""Below this length, of at most 1, a mean vector has no direction."""

CUT_SHARE = 0.8
"""Of the groups of a level so many at most are cut from the tree; the others are made where they are needed most."""

SEED = 42
SWEEPS = 100
SETTLED = 1e-4
"""K-means ends when no more than this share of the photos changes its cell."""


def by_tree(
    tree: Dendrogram, clusters: Ints, mean: Floats, weight: Floats, *, min_cluster_size: int, exponents: Sequence[float]
) -> list[Ints]:
    """Group clusters by the tree that they come from.

    A level of ``int(K ** exponent)`` groups begins as the tree cut at a larger cluster size. The widest groups are split
    until the number is reached, and each cluster moves to the group whose mean is nearest, once. So each level is as
    good as it can be alone; then the groups of the level below follow whole, each to the group that holds most of its
    photos, for levels made from the top down are cut to pieces by the borders of those above.

    Args:
        tree: dendrogram of N points.
        clusters: cluster [N] of each point, 0..K-1, or -1.
        mean: unit vectors [K, 3] of the clusters.
        weight: photos [K] of the clusters.
        min_cluster_size: that of the clusters.
        exponents: one a level, within 0 to 1.

    Returns:
        Group [K] of each cluster, for each exponent from the largest to the smallest.
    """
    wanted = [max(int(len(weight) ** exponent), 1) for exponent in sorted(exponents, reverse=True)]
    cuts = _cuts(tree, clusters, len(weight), min_cluster_size, [CUT_SHARE * number for number in wanted])
    levels, below = [], np.arange(len(weight))
    for number, cut in zip(wanted, cuts, strict=True):
        groups = split_widest(mean, weight, numbered(join_noise(mean, cut)), number)
        groups = split_widest(mean, weight, _settled(mean, weight, groups), number)
        held = numbered(majority(below, groups, weight, int(below.max()) + 1))
        below = numbered(split_widest(*centres(mean, weight, below), held, number)[below])
        levels.append(below)
    return levels


def by_kmeans(mean: Floats, weight: Floats, *, exponents: Sequence[float]) -> list[Ints]:
    """Group K cells into ``int(K ** exponent)`` by :func:`kmeans`, and these groups again for each smaller exponent.

    Args and returns are those of :func:`by_tree`.
    """
    levels, group = [], np.arange(len(weight))
    for exponent in sorted(exponents, reverse=True):
        group = numbered(kmeans(*centres(mean, weight, group), max(int(len(weight) ** exponent), 1))[group])
        levels.append(group)
    return levels


def centres(xyz: Floats, photos: Floats, cell: Ints) -> tuple[Floats, Floats]:
    """Mean directions [K, 3] and photos [K] of cells 0..K-1, none of them empty; the first place where none is."""
    sums, weight = totals(xyz, photos, cell, int(cell.max()) + 1)
    return directions(sums, weight, xyz[np.unique(cell, return_index=True)[1]]), weight


@numba.njit(cache=True)
def totals(xyz, photos, cell, n_cells):
    """Sums of the vectors [K, 3] of each cell, weighted by photos, and of the photos [K]."""
    sums, weight = np.zeros((n_cells, 3)), np.zeros(n_cells)
    for i in range(len(cell)):
        weight[cell[i]] += photos[i]
        for axis in range(3):
            sums[cell[i], axis] += photos[i] * xyz[i, axis]
    return sums, weight


def directions(sums: Floats, weight: Floats, otherwise: Floats) -> Floats:
    """Unit vectors [K, 3] of sums of weighted unit vectors; those ``otherwise`` where a sum has no direction."""
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(length > MEANINGLESS * weight[:, None], sums / np.maximum(length, 1e-300), otherwise)


def effective(counts: Floats) -> float:
    """As many equal cells would be as hard to guess: the exponential of the entropy of photos over cells."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum()))


# -- the tree -----------------------------------------------------------------------------------------------


def _cuts(tree: Dendrogram, clusters: Ints, n_cells: int, size: int, most: Sequence[float]) -> Iterator[Ints]:
    """For each number in ``most``, from the largest, the groups [K] of clusters (-1 is none) of the first cut with no more.

    Sizes grow in steps of two while there are many too many groups, and of 1.25 from there.
    """
    member = np.flatnonzero(clusters >= 0)
    leaf, cell, count = member, clusters[member], np.ones(len(member))
    groups, n = np.arange(n_cells), n_cells
    for enough in most:
        while n > enough:
            size = 2 * size if n > 3 * enough else max(size + 1, int(1.25 * size))
            tree, moved = pruned(tree, size)
            cell, leaf, count = _counted(cell, moved[leaf], count)
            groups = majority(cell, tree.condensed(size).labels()[0][leaf], count, n_cells)
            n = len(np.unique(groups[groups >= 0]))
        yield groups


def _settled(mean: Floats, weight: Floats, groups: Ints) -> Ints:
    """Groups [K] after each member has moved to that whose mean is nearest, numbered anew."""
    from scipy.spatial import KDTree

    return numbered(np.asarray(KDTree(centres(mean, weight, groups)[0]).query(mean)[1], np.int64))


def _counted(cell: Ints, other: Ints, count: Floats) -> tuple[Ints, Ints, Floats]:
    """The distinct pairs of a cell and another number, in order, and the sums of their counts."""
    span = int(other.max(initial=0)) + 1
    key, pair = np.unique(cell * span + other, return_inverse=True)
    return key // span, key % span, np.bincount(pair, count).astype(np.float64)


def majority(cell: Ints, labels: Ints, count: Floats, n_cells: int) -> Ints:
    """The label [K] that most of the counts of a cell have, -1 where none has one.

    Args:
        cell: cell [N] of each row, 0..K-1.
        labels: label [N] of each row, or -1.
        count: how much each row [N] counts.
        n_cells: K.
    """
    kept = labels >= 0
    # A larger cluster size keeps nearly all small clusters whole; where it does not, the majority decides.
    cell, label, count = _counted(cell[kept], labels[kept], count[kept])
    order = np.lexsort((label, -count, cell))
    cell, first = np.unique(cell[order], return_index=True)
    groups = np.full(n_cells, -1, np.int64)
    groups[cell] = label[order][first]
    return groups


def join_noise(xyz: Floats, labels: Ints) -> Ints:
    """Labels [N] with each -1 replaced by the label of the nearest labelled point; all 0 where nothing is labelled."""
    from scipy.spatial import KDTree

    clustered = labels >= 0
    if not clustered.any():
        return np.zeros(len(labels), np.int64)
    joined = labels.copy()
    if not clustered.all():
        _, nearest = KDTree(xyz[clustered], balanced_tree=False).query(xyz[~clustered])
        joined[~clustered] = labels[clustered][nearest]
    return joined


def pruned(tree: Dendrogram, size: int) -> tuple[Dendrogram, Ints]:
    """The tree with what is smaller than ``size`` points taken together where it leaves a larger group.

    Condensed at ``size`` or more it has the clusters of the whole tree, in a fraction of the time.

    Returns:
        The tree, whose points are such remainders, in the order of their first points; and the remainder [N] of each
        point of the given tree.
    """
    if len(tree.parent) == tree.n_points:
        return tree, np.arange(tree.n_points)
    parent, height, sizes, n, remainder = _prune(tree.parent, tree.height_m, tree.size, tree.n_points, size)
    return Dendrogram(parent, height, sizes, n), remainder


@numba.njit(cache=True)
def _prune(parent, height, size, n_points, least):
    n_nodes = len(parent)
    root = n_nodes - 1
    holder = np.empty(n_nodes, np.int64)  # the lowest node that stays and holds a node
    n_kept = 0
    for v in range(root, -1, -1):
        stays = v == root or (v >= n_points and size[v] >= least)
        holder[v] = v if stays else holder[parent[v]]
        n_kept += stays
    remainder_of = np.full(n_nodes, -1, np.int64)
    remainder = np.empty(n_points, np.int64)
    n = 0
    for i in range(n_points):
        h = holder[i]
        if remainder_of[h] < 0:
            remainder_of[h] = n
            n += 1
        remainder[i] = remainder_of[h]
    new_parent = np.full(n + n_kept, -1, np.int32)
    new_height = np.zeros(n + n_kept)
    new_size = np.zeros(n + n_kept, np.int32)
    for i in range(n_points):
        new_size[remainder[i]] += size[i]
    number = np.empty(n_nodes, np.int64)
    at = n
    for v in range(n_points, n_nodes):
        if holder[v] == v:
            number[v] = at
            new_height[at] = height[v]
            new_size[at] = size[v]
            at += 1
    for v in range(n_points, n_nodes):
        if holder[v] == v:
            if remainder_of[v] >= 0:
                new_parent[remainder_of[v]] = number[v]
            if v != root:
                new_parent[number[v]] = number[holder[parent[v]]]
    return new_parent, new_height, new_size, n, remainder


# -- bisection ----------------------------------------------------------------------------------------------


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
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(int(groups.max()) + 2))
    return _split(np.ascontiguousarray(mean), weight.astype(np.float64), groups.copy(), order, starts, wanted)


@numba.njit(cache=True)
def _split(mean, weight, groups, order, starts, wanted):
    count = len(starts) - 1
    begin = np.empty(max(wanted, count), np.int64)
    end = np.empty(max(wanted, count), np.int64)
    begin[:count] = starts[:-1]
    end[:count] = starts[1:]
    heap = [(-_breadth(mean, weight, order[begin[g] : end[g]]), g) for g in range(count)]
    heapq.heapify(heap)
    while len(heap) > 0 and count < wanted:
        breadth, g = heapq.heappop(heap)
        members = order[begin[g] : end[g]].copy()
        far = _two_means(mean, weight, members)
        n_far = far.sum()
        if breadth == 0 or n_far == 0 or n_far == len(members):
            continue  # all at one place
        middle = end[g] - n_far
        order[begin[g] : middle] = members[~far]
        order[middle : end[g]] = members[far]
        groups[members[far]] = count
        begin[count], end[count], end[g] = middle, end[g], middle
        heapq.heappush(heap, (-_breadth(mean, weight, order[begin[g] : end[g]]), g))
        heapq.heappush(heap, (-_breadth(mean, weight, order[middle : end[count]]), count))
        count += 1
    return groups


@numba.njit(cache=True)
def _breadth(mean, weight, members):
    """Photos times radius; 0 for a single member."""
    if len(members) < 2:
        return 0.0
    x, y, z, total = 0.0, 0.0, 0.0, 0.0
    for m in members:
        x += weight[m] * mean[m, 0]
        y += weight[m] * mean[m, 1]
        z += weight[m] * mean[m, 2]
        total += weight[m]
    # 1 - resultant is half the mean squared chord: the root is a radius.
    return total * np.sqrt(max(1 - np.sqrt(x * x + y * y + z * z) / total, 0.0))


@numba.njit(cache=True)
def _two_means(mean, weight, members):
    """Which members are in the second of two groups by spherical 2-means, begun at the two ends of the set."""
    middle = np.zeros(3)
    for m in members:
        middle += weight[m] * mean[m]
    first = mean[_farthest(mean, members, middle)]
    second = mean[_farthest(mean, members, first)]
    far = _nearer(mean, members, second - first)
    for _ in range(20):
        near_sum, far_sum = np.zeros(3), np.zeros(3)
        for i in range(len(members)):
            m = members[i]
            for axis in range(3):
                if far[i]:
                    far_sum[axis] += weight[m] * mean[m, axis]
                else:
                    near_sum[axis] += weight[m] * mean[m, axis]
        near_length, far_length = np.sqrt((near_sum**2).sum()), np.sqrt((far_sum**2).sum())
        if min(near_length, far_length) < MEANINGLESS:
            break
        moved = _nearer(mean, members, far_sum / far_length - near_sum / near_length)
        if (moved == far).all() or moved.all() or not moved.any():
            break
        far = moved
    return far


@numba.njit(cache=True)
def _farthest(mean, members, direction):
    least, found = np.inf, members[0]
    for m in members:
        along = mean[m, 0] * direction[0] + mean[m, 1] * direction[1] + mean[m, 2] * direction[2]
        if along < least:
            least, found = along, m
    return found


@numba.njit(cache=True)
def _nearer(mean, members, towards):
    """Which members lie on the side of a plane through the centre that a vector points to."""
    far = np.empty(len(members), np.bool_)
    for i in range(len(members)):
        m = members[i]
        far[i] = mean[m, 0] * towards[0] + mean[m, 1] * towards[1] + mean[m, 2] * towards[2] > 0
    return far


# -- K-means ------------------------------------------------------------------------------------------------


def kmeans(places: Floats, weight: Floats, wanted: int, seed: int = SEED) -> Ints:
    """Spherical K-means, begun by k-means++; the same for the same seed.

    Args:
        places: unit vectors [N, 3].
        weight: photos [N].
        wanted: number of cells; fewer where there are fewer distinct places.
        seed: of the first centres.

    Returns:
        Cell [N] of each place, numbered without gaps by the first place of each.
    """
    from scipy.spatial import KDTree

    wanted = min(wanted, len(np.unique(places, axis=0)))
    draws = np.random.default_rng(seed).random(wanted)
    centres = places[_spread_out(np.ascontiguousarray(places), weight.astype(np.float64), draws)]
    cells = np.full(len(places), -1, np.int64)
    for _ in range(SWEEPS):
        chord, found = KDTree(centres).query(places)
        nearest = np.asarray(found, np.int64)
        _refill(nearest, np.asarray(chord) ** 2 * weight, wanted)
        moved = weight[nearest != cells].sum()
        cells = nearest
        centres = directions(*totals(places, weight, cells, wanted), centres)
        if moved <= SETTLED * weight.sum():
            break
    return numbered(cells)


def _refill(cells: Ints, cost: Floats, wanted: int) -> None:
    """Give each cell without a place the place that its own cell serves worst."""
    size = np.bincount(cells, minlength=wanted)
    empty = np.flatnonzero(size == 0)
    if len(empty):
        worst = iter(np.argsort(-cost, kind="stable"))
        for cell in empty:
            place = next(p for p in worst if size[cells[p]] > 1)
            size[cells[place]] -= 1
            cells[place], size[cell] = cell, 1


@numba.njit(cache=True)
def _spread_out(places, weight, draws):
    """Distinct places, each drawn by its photos times its squared distance to those drawn before (k-means++)."""
    n = len(places)
    chosen = np.empty(len(draws), np.int64)
    cost = weight.copy()
    nearest = np.full(n, np.inf)
    for k in range(len(draws)):
        target = draws[k] * cost.sum()
        passed, c = 0.0, -1
        for i in range(n):
            passed += cost[i]
            if cost[i] > 0:
                c = i
                if passed > target:
                    break
        chosen[k] = c
        for i in range(n):
            dx = places[i, 0] - places[c, 0]
            dy = places[i, 1] - places[c, 1]
            dz = places[i, 2] - places[c, 2]
            d = dx * dx + dy * dy + dz * dz
            if d < nearest[i]:
                nearest[i] = d
                cost[i] = d * weight[i]
    return chosen
