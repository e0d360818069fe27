"""The exact minimum spanning tree of mutual reachability of places on the unit sphere, in float64.

Points are sorted along a Morton curve, so that sixteen neighbours in the order are a leaf and an implicit binary tree
over the leaves bounds them by boxes. Each leaf looks for the neighbours of its points at once. Boruvka's rounds then
join each component by its shortest edge. A point remembers below which length it has no edge to another component, which
stays true as components grow, so that few points are asked in each round (after March, Ram and Gray 2010, and the
mutual reachability of Campello, Moulavi and Sander 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numba
import numpy as np
import numpy.typing as npt

from geo_assets.errors import ConfigError, SourceError
from geo_assets.machine import usable_cores

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]

LEAF = 16
"""Points of a leaf."""

KEPT = 4
"""Neighbours that a point remembers: its first edges are among them, without a search."""

_ALONE_BELOW = 20_000
"""Points below which more threads cost more than they save."""

STACK = 64
"""Open nodes of a search: a tree of 2^31 leaves has one a level."""


def minimum_spanning_tree(xyz: Floats, min_samples: int, threads: int | None = None) -> tuple[Indices, Indices, Floats]:
    """Exact minimum spanning tree of N points by mutual reachability.

    The lengths are the same for any order of the points and any number of threads; where edges tie, which of them are
    found is not.

    Args:
        xyz: unit vectors [N, 3]; points may coincide.
        min_samples: the core distance of a point is that to its ``min_samples``-th neighbour, itself not counted; at
            most N - 1 are counted.
        threads: threads to use; all the process may use by default, one for few points.

    Returns:
        The N - 1 edges: first point, second point, chord of the unit sphere.

    Raises:
        ConfigError: no neighbour is asked for.
        SourceError: a point is not finite.
    """
    if min_samples < 1:
        raise ConfigError(f"min_samples is {min_samples}; a place is dense by 1 neighbour or more.")
    xyz = np.ascontiguousarray(xyz, np.float64)
    n = len(xyz)
    if not np.isfinite(xyz).all():
        row = int(np.flatnonzero(~np.isfinite(xyz).all(axis=1))[0])
        raise SourceError(f"Place {row} of {n} has no finite coordinates; correct it or leave it out.")
    if n < 2:
        return np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0)
    if threads is None:
        threads = 1 if n < _ALONE_BELOW else usable_cores()
    with crew(threads) as shared:
        codes = np.empty(n, np.uint64)
        shared(_morton, n, xyz, codes)
        order = radix_order(codes)
        del codes
        points, low, high = bounding_tree(shared, xyz, order)
        n_leaves = len(points)
        samples = min(min_samples, n - 1)
        near = np.full((n, min(KEPT, n - 1)), -1, np.int32)
        core = np.full(n_leaves * LEAF, np.inf)
        shared(neighbours, n_leaves, points, low, high, n, samples, core, near)
        a, b, squares = boruvka(shared, points, low, high, core, near)
        shared(_as_given, n - 1, order, a, b, squares)
    return a, b, squares


def bounding_tree(shared: Callable[..., None], xyz: Floats, order: Indices) -> tuple[Floats, Floats, Floats]:
    """Leaves [L, 3, LEAF] of sorted points, filled up with infinity, and the boxes of the nodes of a binary heap.

    Node 1 is the root, 2 v and 2 v + 1 are the children of v, and leaf l is node ``len(low) // 2 + l``.
    """
    n_leaves = -(-len(order) // LEAF)
    base = 1 << (n_leaves - 1).bit_length()
    points = np.full((n_leaves, 3, LEAF), np.inf)
    low, high = np.full((2 * base, 3), np.inf), np.full((2 * base, 3), -np.inf)
    shared(_fill, n_leaves, xyz, order, points, low, high)
    bound_nodes(low, high)
    return points, low, high


def boruvka(
    shared: Callable[..., None], points: Floats, low: Floats, high: Floats, core: Floats, near: Indices
) -> tuple[Indices, Indices, Floats]:
    """Edges between points in the order of the leaves, with squared chords."""
    n, n_leaves = len(near), len(points)
    component = np.full(n_leaves * LEAF, -1, np.int32)
    component[:n] = np.arange(n)
    node_component = np.empty(len(low), np.int32)
    least = core[:n].copy()  # no edge to another component is shorter
    target = np.full(n, -1, np.int32)  # the best edge known to another component, if any
    length = np.full(n, np.inf)
    a, b, squares = np.empty(n - 1, np.int32), np.empty(n - 1, np.int32), np.empty(n - 1)
    done, n_components = 0, n
    while done < n - 1:
        best = np.full(n_components, np.inf)
        shared(_recall, n, points, core, near, component, least, target, length, best)
        node_components(component, n, node_component)
        shared(_search, n_leaves, points, low, high, core, component, node_component, least, target, length, best)
        chosen = _choose(component, target, length, n_components)
        g, h = np.empty(n_components, np.int32), np.empty(n_components, np.int32)
        shared(_joined, n_components, component, target, chosen, g, h)
        used, renamed, n_components = merge_groups(g, h, n_components)
        done = _keep(chosen, used, target, length, a, b, squares, done)
        shared(_rename, n, component, renamed)
    return a, b, squares


@numba.njit(cache=True, nogil=True)
def _as_given(order, a, b, squares, first, last):
    """Edges between points as they were given, with chords, in place of edges between sorted ones with squares."""
    for e in range(first, last):
        a[e], b[e], squares[e] = order[a[e]], order[b[e]], np.sqrt(squares[e])


@contextmanager
def crew(threads: int) -> Iterator[Callable[..., None]]:
    """A function that shares the range of a compiled function among threads."""
    if threads == 1:
        yield lambda work, n, *args: work(*args, 0, n)
        return
    with ThreadPoolExecutor(threads) as pool:

        def shared(work: Callable[..., None], n: int, *args: object) -> None:
            # Sixteen shares a thread: places are dense here and sparse there.
            edges = np.linspace(0, n, min(16 * threads, n) + 1).astype(int).tolist()
            for _ in pool.map(lambda first, last: work(*args, first, last), edges[:-1], edges[1:]):
                pass

        yield shared


@numba.njit(cache=True, nogil=True)
def radix_order(keys):
    """Indices [N] (int32) that sort unsigned integers, equal ones in their order."""
    n = len(keys)
    used = np.uint64(0)
    for i in range(n):
        used |= keys[i] ^ keys[0]
    # Keys travel with their indices: to look each up at its old place would miss the cache.
    order, sorted_keys = np.arange(n).astype(np.int32), keys.copy()
    next_order, next_keys = np.empty(n, np.int32), np.empty_like(keys)
    start = np.empty(2049, np.int64)
    for shift in range(0, 64, 11):
        digit = np.uint64(shift)
        if (used >> digit) & np.uint64(2047) == 0:
            continue
        start[:] = 0
        for i in range(n):
            start[((keys[i] >> digit) & np.uint64(2047)) + np.uint64(1)] += 1
        for d in range(2048):
            start[d + 1] += start[d]
        for i in range(n):
            d = (sorted_keys[i] >> digit) & np.uint64(2047)
            next_order[start[d]], next_keys[start[d]] = order[i], sorted_keys[i]
            start[d] += 1
        order, next_order = next_order, order
        sorted_keys, next_keys = next_keys, sorted_keys
    return order


@numba.njit(nogil=True)
def _spread(v):
    """The 21 bits of a number, two zeros between each."""
    v = (v | (v << np.uint64(32))) & np.uint64(0x1F00000000FFFF)
    v = (v | (v << np.uint64(16))) & np.uint64(0x1F0000FF0000FF)
    v = (v | (v << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
    v = (v | (v << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
    return (v | (v << np.uint64(2))) & np.uint64(0x1249249249249249)


@numba.njit(cache=True, nogil=True)
def _morton(xyz, codes, first, last):
    top = 2097151
    for i in range(first, last):
        code = np.uint64(0)
        for d in range(3):
            step = min(max(int((xyz[i, d] + 1) * (top / 2)), 0), top)
            code |= _spread(np.uint64(step)) << np.uint64(d)
        codes[i] = code


@numba.njit(cache=True, nogil=True)
def _fill(xyz, order, points, low, high, first, last):
    """Put the points of some leaves in their places, and bound them."""
    base = len(low) // 2
    for leaf in range(first, last):
        for t in range(min(LEAF, len(order) - leaf * LEAF)):
            for d in range(3):
                x = xyz[order[leaf * LEAF + t], d]
                points[leaf, d, t] = x
                low[base + leaf, d] = min(low[base + leaf, d], x)
                high[base + leaf, d] = max(high[base + leaf, d], x)


@numba.njit(cache=True, nogil=True)
def bound_nodes(low, high):
    """Bound the nodes above the leaves."""
    for v in range(len(low) // 2 - 1, 0, -1):
        for d in range(3):
            low[v, d] = min(low[2 * v, d], low[2 * v + 1, d])
            high[v, d] = max(high[2 * v, d], high[2 * v + 1, d])


@numba.njit(nogil=True)
def _gap(low, high, v, w):
    """Squared distance of two boxes."""
    total = 0.0
    for d in range(3):
        g = max(low[v, d] - high[w, d], low[w, d] - high[v, d], 0.0)
        total += g * g
    return total


@numba.njit(nogil=True)
def gap_to(low, high, v, x, y, z):
    """Squared distance of a box and a point."""
    p = max(low[v, 0] - x, x - high[v, 0], 0.0)
    q = max(low[v, 1] - y, y - high[v, 1], 0.0)
    r = max(low[v, 2] - z, z - high[v, 2], 0.0)
    return p * p + q * q + r * r


@numba.njit(nogil=True)
def _open(low, high, here, v, bound, nodes, gaps, depth):
    """Put the children of a node on the stack that are nearer to another node than a bound."""
    return _push(v, _gap(low, high, 2 * v, here), _gap(low, high, 2 * v + 1, here), bound, nodes, gaps, depth)


@numba.njit(nogil=True)
def open_to(low, high, v, x, y, z, bound, nodes, gaps, depth):
    """Put the children of a node on the stack that are nearer to a point than a bound."""
    left, right = gap_to(low, high, 2 * v, x, y, z), gap_to(low, high, 2 * v + 1, x, y, z)
    return _push(v, left, right, bound, nodes, gaps, depth)


@numba.njit(nogil=True)
def _push(v, left, right, bound, nodes, gaps, depth):
    """The nearer child comes on top."""
    near, far = 2 * v, 2 * v + 1
    if right < left:
        near, far, left, right = far, near, right, left
    if right < bound:
        nodes[depth], gaps[depth] = far, right
        depth += 1
    if left < bound:
        nodes[depth], gaps[depth] = near, left
        depth += 1
    return depth


@numba.njit(inline="always")
def squares_to(points, leaf, x, y, z, out):
    """Squared distances [LEAF] of the points of a leaf and a point; additions in one order everywhere."""
    xs, ys, zs = points[leaf, 0], points[leaf, 1], points[leaf, 2]
    for t in range(LEAF):
        p, q, r = xs[t] - x, ys[t] - y, zs[t] - z
        out[t] = p * p + q * q + r * r


@numba.njit(nogil=True)
def _insert(row, who, k, square, j):
    q = k - 1
    while q > 0 and row[q - 1] > square:
        row[q], who[q] = row[q - 1], who[q - 1]
        q -= 1
    row[q], who[q] = square, j


@numba.njit(cache=True, nogil=True)
def neighbours(points, low, high, n, samples, core, near, first, last):
    """Squared core distances and nearest neighbours of the points of some leaves."""
    base = len(low) // 2
    kept = near.shape[1]
    k = max(samples, kept)
    square = np.empty((LEAF, k))
    who = np.empty((LEAF, k), np.int32)
    out = np.empty(LEAF)
    nodes, gaps = np.empty(STACK, np.int64), np.empty(STACK)
    for leaf in range(first, last):
        size = min(LEAF, n - leaf * LEAF)
        square[:] = np.inf
        here = base + leaf
        bound = np.inf
        # The leaf itself, then the other side of each node above it.
        v = here
        nodes[0], gaps[0] = here, 0.0
        depth = 1
        while True:
            while depth > 0:
                depth -= 1
                w = nodes[depth]
                if gaps[depth] >= bound:
                    continue
                if w < base:
                    depth = _open(low, high, here, w, bound, nodes, gaps, depth)
                    continue
                other = w - base
                start = other * LEAF
                bound = 0.0
                for i in range(size):
                    x, y, z = points[leaf, 0, i], points[leaf, 1, i], points[leaf, 2, i]
                    row, names = square[i], who[i]
                    worst = row[k - 1]
                    if gap_to(low, high, w, x, y, z) < worst:
                        squares_to(points, other, x, y, z, out)
                        if other == leaf:
                            out[i] = np.inf
                        for t in range(LEAF):
                            if out[t] < worst:
                                _insert(row, names, k, out[t], start + t)
                                worst = row[k - 1]
                    bound = max(bound, worst)
            if v == 1:
                break
            w = v ^ 1
            v >>= 1
            g = _gap(low, high, w, here)
            if g < bound:
                nodes[0], gaps[0] = w, g
                depth = 1
        for i in range(size):
            core[leaf * LEAF + i] = square[i, samples - 1]
            near[leaf * LEAF + i] = who[i, :kept]


@numba.njit(nogil=True)
def _between(points, i, j):
    total = 0.0
    for d in range(3):
        g = points[i // LEAF, d, i % LEAF] - points[j // LEAF, d, j % LEAF]
        total += g * g
    return total


@numba.njit(cache=True, nogil=True)
def _recall(points, core, near, component, least, target, length, best, first, last):
    """The shortest edges to other components among those already known.

    Threads may overwrite each other's ``best``; it stays the length of some edge of the component, and that is enough.
    """
    kept = near.shape[1]
    for i in range(first, last):
        c = component[i]
        if target[i] >= 0 and component[target[i]] == c:
            target[i], length[i] = -1, np.inf
        if target[i] < 0 and near[i, 0] >= 0:
            shortest, j_best, far = np.inf, -1, 0.0
            for q in range(kept):
                j = near[i, q]
                far = _between(points, i, j)
                if component[j] != c:
                    w = max(far, core[i], core[j])
                    if w < shortest:
                        shortest, j_best = w, j
            # All points that are not remembered lie at ``far`` or beyond.
            least[i] = max(least[i], min(shortest, far))
            if j_best >= 0:
                target[i], length[i] = j_best, shortest
            else:
                near[i, 0] = -1
        if target[i] >= 0:
            best[c] = min(best[c], length[i])
            # The other component may count on this edge only if no search replaces it.
            if length[i] <= least[i]:
                d = component[target[i]]
                best[d] = min(best[d], length[i])


@numba.njit(cache=True, nogil=True)
def node_components(component, n, node_component):
    """The component that all points of a node belong to, -1 where they differ, -2 where there are none."""
    base = len(node_component) // 2
    node_component[:] = -2
    for leaf in range((n + LEAF - 1) // LEAF):
        c = component[leaf * LEAF]
        for i in range(leaf * LEAF + 1, min(n, (leaf + 1) * LEAF)):
            if component[i] != c:
                c = -1
                break
        node_component[base + leaf] = c
    share(node_component)


@numba.njit(cache=True, nogil=True)
def share(found):
    """Give each node of a heap above the leaves the value that all its leaves share, -1 where they differ; -2 is no leaf."""
    for v in range(len(found) // 2 - 1, 0, -1):
        one, other = found[2 * v], found[2 * v + 1]
        found[v] = one if other == -2 or one == other else -1


@numba.njit(cache=True, nogil=True)
def _search(points, low, high, core, component, node_component, least, target, length, best, first, last):
    """Shorter edges to other components, for the points of some leaves that may have one."""
    n = len(least)
    base = len(low) // 2
    out = np.empty(LEAF)
    asking = np.empty(LEAF, np.int64)
    limit = np.empty(LEAF)
    nodes, gaps = np.empty(STACK, np.int64), np.empty(STACK)
    for leaf in range(first, last):
        start = leaf * LEAF
        count = 0
        bound = 0.0
        own = -3  # the component of all points that ask, or -3
        for i in range(min(LEAF, n - start)):
            c = component[start + i]
            known = min(best[c], length[start + i])
            if least[start + i] < known:
                own = c if count == 0 or own == c else -3
                asking[count], limit[count] = start + i, known
                bound = max(bound, known)
                count += 1
        if count == 0:
            continue
        here = base + leaf
        v = here
        nodes[0], gaps[0] = here, 0.0
        depth = 1
        while True:
            while depth > 0:
                depth -= 1
                w = nodes[depth]
                if gaps[depth] >= bound or node_component[w] == own:
                    continue
                if w < base:
                    depth = _open(low, high, here, w, bound, nodes, gaps, depth)
                    continue
                other = w - base
                found = False
                for a in range(count):
                    i = asking[a]
                    c = component[i]
                    if node_component[w] == c:
                        continue
                    x, y, z = points[leaf, 0, i - start], points[leaf, 1, i - start], points[leaf, 2, i - start]
                    if gap_to(low, high, w, x, y, z) >= limit[a]:
                        continue
                    squares_to(points, other, x, y, z, out)
                    for t in range(LEAF):
                        if out[t] < limit[a]:
                            j = other * LEAF + t
                            span = max(out[t], core[i], core[j])
                            if span < limit[a] and component[j] != c:
                                limit[a] = length[i] = span
                                target[i] = j
                                found = True
                                for e in range(count):
                                    if component[asking[e]] == c:
                                        limit[e] = min(limit[e], span)
                if found:
                    bound = 0.0
                    for a in range(count):
                        bound = max(bound, limit[a])
            if v == 1:
                break
            w = v ^ 1
            v >>= 1
            if node_component[w] != own:
                g = _gap(low, high, w, here)
                if g < bound:
                    nodes[0], gaps[0] = w, g
                    depth = 1
        for a in range(count):
            i = asking[a]
            least[i] = max(least[i], limit[a])
            c = component[i]
            best[c] = min(best[c], limit[a])
            if target[i] >= 0:
                d = component[target[i]]
                best[d] = min(best[d], length[i])


@numba.njit(cache=True, nogil=True)
def _choose(component, target, length, n_components):
    """The point with the shortest edge of each component."""
    chosen = np.full(n_components, -1, np.int32)
    for i in range(len(target)):
        if target[i] >= 0:
            for c in (component[i], component[target[i]]):
                if chosen[c] < 0 or length[i] < length[chosen[c]]:
                    chosen[c] = i
    return chosen


@numba.njit(cache=True, nogil=True)
def _joined(component, target, chosen, g, h, first, last):
    """The components ``g - h`` that the edges of chosen points join."""
    for e in range(first, last):
        g[e], h[e] = component[chosen[e]], component[target[chosen[e]]]


@numba.njit(cache=True, nogil=True)
def _keep(chosen, used, target, length, a, b, squares, done):
    """Put the used edges behind those that are done; how many are done now."""
    for e in range(len(chosen)):
        if used[e]:
            i = chosen[e]
            a[done], b[done], squares[done] = i, target[i], length[i]
            done += 1
    return done


@numba.njit(cache=True, nogil=True)
def merge_groups(g, h, n_groups):
    """Join groups by edges ``g - h``: whether each edge was used, the new number of each group, and how many are left.

    Where edges tie, those chosen may close a circle; all its edges are equal then, and any may be left out.
    """
    leader = np.arange(n_groups).astype(np.int32)
    used = np.zeros(len(g), np.bool_)
    for e in range(len(g)):
        one, other = leader_of(leader, g[e]), leader_of(leader, h[e])
        if one != other:
            leader[max(one, other)] = min(one, other)
            used[e] = True
    return used, *renumbered(leader)


@numba.njit(nogil=True)
def leader_of(leader, i):
    """Who leads the group of a member; the path there is halved."""
    while leader[i] != i:
        leader[i] = leader[leader[i]]
        i = leader[i]
    return i


@numba.njit(cache=True, nogil=True)
def renumbered(leader):
    """Groups counted by their leaders, none of which has members before itself; and how many there are."""
    number = np.empty(len(leader), np.int32)
    count = 0
    for i in range(len(leader)):
        if leader[i] == i:
            number[i] = count
            count += 1
        else:
            number[i] = number[leader[i]]
    return number, count


@numba.njit(cache=True, nogil=True)
def _rename(component, renamed, first, last):
    for i in range(first, last):
        component[i] = renamed[component[i]]
