"""Searches between tiles of places: neighbours, shortest ways to other groups, and which tiles are worth a look.

They work on the leaves and boxes of ``spanning``, whose squared chords they compute in the same order of additions, so
that lengths found across tiles are those of the tree in one piece to the last bit. A box is never farther than what it
holds, in floating point too: subtraction, square and sum all round monotonically.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from geo_assets.geotag.spanning import (
    KEPT,
    LEAF,
    STACK,
    Floats,
    Indices,
    boruvka,
    bound_nodes,
    bounding_tree,
    crew,
    gap_to,
    leader_of,
    neighbours,
    node_components,
    open_to,
    renumbered,
    share,
    squares_to,
)

RUN = 128
"""Neighbours along the curve that share a box, which every step knows of every tile: 0.4 bytes a place."""


class Tree(NamedTuple):
    """Leaves [L, 3, LEAF] of places and the boxes ``low, high`` [2 B, 3] of a binary heap over them."""

    points: Floats
    low: Floats
    high: Floats
    n: int

    @classmethod
    def of(cls, xyz: Floats) -> Tree:
        """The tree of places [N, 3] that lie along a curve already."""
        with crew(1) as shared:
            return cls(*bounding_tree(shared, xyz, np.arange(len(xyz), dtype=np.int32)), len(xyz))

    def run_boxes(self) -> tuple[Floats, Floats]:
        """Boxes [R, 3] of each ``RUN`` places."""
        base, n_leaves = len(self.low) // 2, len(self.points)
        starts = np.arange(0, n_leaves, RUN // LEAF)
        low = np.minimum.reduceat(self.low[base : base + n_leaves], starts)
        high = np.maximum.reduceat(self.high[base : base + n_leaves], starts)
        return low, high


class Runs(NamedTuple):
    """Boxes of the runs of all tiles, a binary heap over them, and the tile [R] of each."""

    low: Floats
    high: Floats
    tile: Indices
    node_tile: Indices

    @classmethod
    def of(cls, low: Floats, high: Floats, tile: Indices) -> Runs:
        """The heap of boxes [R, 3] in the order of the curve."""
        base = 1 << max(len(tile) - 1, 0).bit_length()
        lows, highs = np.full((2 * base, 3), np.inf), np.full((2 * base, 3), -np.inf)
        lows[base : base + len(tile)], highs[base : base + len(tile)] = low, high
        bound_nodes(lows, highs)
        return cls(lows, highs, tile, uniform(tile, base))


def local_tree(tree: Tree, core: Floats) -> tuple[Indices, Indices, Floats]:
    """Minimum spanning tree of the places of a tile by known squared core distances [N]: first, second, squared length."""
    n, n_leaves = tree.n, len(tree.points)
    if n < 2:
        return np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0)
    near = np.full((n, min(KEPT, n - 1)), -1, np.int32)
    cores = np.full(n_leaves * LEAF, np.inf)
    with crew(1) as shared:
        shared(neighbours, n_leaves, tree.points, tree.low, tree.high, n, 1, cores, near)
        cores[:n] = core
        return boruvka(shared, tree.points, tree.low, tree.high, cores, near)


def node_groups(tree: Tree, group: Indices) -> Indices:
    """The group that all places of a node belong to, -1 where they differ, -2 where there are none."""
    found = np.empty(len(tree.low), np.int32)
    node_components(group, tree.n, found)
    return found


def uniform(values: Indices, base: int) -> Indices:
    """The value that all leaves of a node of a heap of ``base`` leaves share, -1 where they differ, -2 without leaves."""
    found = np.full(2 * base, -2, np.int32)
    found[base : base + len(values)] = values
    share(found)
    return found


@numba.njit(cache=True, nogil=True)
def take_neighbours(points, low, high, xyz, asking, themselves, nearest):
    """Squared distances [N, K], ascending, of the nearest places, with those of a tree taken in for some who ask.

    ``themselves`` says that the tree holds the very places that ask, each of which is not its own neighbour.
    """
    base = len(low) // 2
    k = nearest.shape[1]
    out = np.empty(LEAF)
    nodes, gaps = np.empty(STACK, np.int64), np.empty(STACK)
    for i in asking:
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        row = nearest[i]
        nodes[0], gaps[0] = 1, gap_to(low, high, 1, x, y, z)
        depth = 1
        while depth > 0:
            depth -= 1
            w = nodes[depth]
            if gaps[depth] >= row[k - 1]:
                continue
            if w < base:
                depth = open_to(low, high, w, x, y, z, row[k - 1], nodes, gaps, depth)
                continue
            leaf = w - base
            squares_to(points, leaf, x, y, z, out)
            for t in range(LEAF):
                if out[t] < row[k - 1] and not (themselves and leaf * LEAF + t == i):
                    q = k - 1
                    while q > 0 and row[q - 1] > out[t]:
                        row[q] = row[q - 1]
                        q -= 1
                    row[q] = out[t]


@numba.njit(cache=True, nogil=True)
def take_shortest(
    points, low, high, core_there, group_there, node_group, xyz, core, group, own, asking, limit, here, there
):
    """Shorter edges of groups to other groups in a tree.

    Args:
        points: leaves of the other tile's tree.
        low: its boxes.
        high: its boxes.
        core_there: squared core distances of its places.
        group_there: groups of its places.
        node_group: groups of its nodes.
        xyz: places of this tile [N, 3].
        core: their squared core distances.
        group: their groups [N].
        own: their groups [N], counted 0..G-1.
        asking: places that search.
        limit: [G] squared length of the shortest edge known; smaller ones are put there.
        here: [G] its place in this tile.
        there: [G] its place in the other tile.
    """
    base = len(low) // 2
    out = np.empty(LEAF)
    nodes, gaps = np.empty(STACK, np.int64), np.empty(STACK)
    for i in asking:
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        g, c = group[i], own[i]
        if core[i] >= limit[c]:
            continue
        nodes[0], gaps[0] = 1, gap_to(low, high, 1, x, y, z)
        depth = 1
        while depth > 0:
            depth -= 1
            w = nodes[depth]
            if gaps[depth] >= limit[c] or node_group[w] == g:
                continue
            if w < base:
                depth = open_to(low, high, w, x, y, z, limit[c], nodes, gaps, depth)
                continue
            leaf = w - base
            squares_to(points, leaf, x, y, z, out)
            for t in range(LEAF):
                if out[t] < limit[c]:
                    j = leaf * LEAF + t
                    span = max(out[t], core[i], core_there[j])
                    if span < limit[c] and group_there[j] != g:
                        limit[c], here[c], there[c] = span, i, j


@numba.njit(cache=True, nogil=True)
def reached(low, high, node_tile, node_group, xyz, group, asking, limit, done, flags):
    """Mark in ``flags`` the tiles, not ``done``, with a run nearer than the limit of a place and not wholly of its group.

    Returns:
        Those who reach a tile; limits only shrink, so the others need not ask again.
    """
    base = len(low) // 2
    nodes, gaps = np.empty(STACK, np.int64), np.empty(STACK)
    still = np.zeros(len(asking), np.bool_)
    for a in range(len(asking)):
        i = asking[a]
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        nodes[0], gaps[0] = 1, gap_to(low, high, 1, x, y, z)
        depth = 1
        while depth > 0:
            depth -= 1
            w = nodes[depth]
            if gaps[depth] >= limit[a] or node_group[w] == group[i]:
                continue
            tile = node_tile[w]
            if tile >= 0 and done[tile]:
                continue
            if tile >= 0 and flags[tile] and still[a]:
                continue
            if w < base:
                depth = open_to(low, high, w, x, y, z, limit[a], nodes, gaps, depth)
            else:
                still[a] = flags[tile] = True
    return asking[still]


@numba.njit(cache=True, nogil=True)
def gap_outside(low, high, node_tile, xyz, tile, squares):
    """Squared distance [N] of each place of a tile to the nearest box of a run of another; infinite where there is none."""
    base = len(low) // 2
    nodes, gaps = np.empty(STACK, np.int64), np.empty(STACK)
    for i in range(len(xyz)):
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        best = np.inf
        nodes[0], gaps[0] = 1, gap_to(low, high, 1, x, y, z)
        depth = 1
        while depth > 0:
            depth -= 1
            w = nodes[depth]
            if gaps[depth] >= best or node_tile[w] == tile:
                continue
            if w < base:
                depth = open_to(low, high, w, x, y, z, best, nodes, gaps, depth)
            else:
                best = gaps[depth]
        squares[i] = best


@numba.njit(cache=True)
def certain_edges(a, b, squares, least):
    """Which edges of a tile's tree, given from short to long, belong to a minimum spanning tree of all tiles.

    Args:
        a: first places.
        b: second places.
        squares: squared lengths.
        least: [N] squared length below which a place has no edge to another tile; overwritten.

    Returns:
        Whether each edge is certain, and the component [N] that these edges make, counted by their first place.
    """
    n = len(least)
    leader = np.arange(n).astype(np.int32)
    certain = np.zeros(len(a), np.bool_)
    for e in range(len(a)):
        one, other = leader_of(leader, a[e]), leader_of(leader, b[e])
        # An edge refused before left a component with a smaller least; so no shorter edge leaves this one.
        if squares[e] <= max(least[one], least[other]):
            certain[e] = True
            first, second = min(one, other), max(one, other)
            leader[second] = first
            least[first] = min(least[one], least[other])
    return certain, renumbered(leader)[0]


@numba.njit(cache=True)
def choose(one, other, squares, group, best, chosen, first):
    """Shortest edge of each group among some edges between components; the earlier one where they tie."""
    for e in range(len(squares)):
        g, h = group[one[e]], group[other[e]]
        if g == h:
            continue
        if squares[e] < best[g]:
            best[g], chosen[g] = squares[e], first + e
        if squares[e] < best[h]:
            best[h], chosen[h] = squares[e], first + e
