"""Compiled search for partners over places sorted into cells: in rings of distance, and in other components.

Every function here is compiled at its first use and kept on disk. Indices are of the caller's order, and ties of
distance go to the smaller index, so the answer depends on that order alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CELL_M = 30.0
"""Side of a cell: half the usual radius, so that a search reads little more than its circle."""

_CHUNK = 20_000
"""Images searched by one thread at a time."""

_SLACK = 1.0 + 1e-9
"""Squares are compared first, distances decide."""


@dataclass(frozen=True)
class Cells:
    """Places in the order of their cells, row by row: what lies in a piece of a row is one run of the arrays.

    ``key`` [n] is ``row * columns + column`` of each place, ``order`` [n] its index in the caller's order.
    """

    xy: Array
    key: Array
    order: Array
    columns: int

    @classmethod
    def of(cls, xy: Array, reach_m: float) -> Cells:
        """Sort places [n, 2] in metres into cells for searches up to ``reach_m``; every place must be finite."""
        cell = np.floor((xy - xy.min(axis=0)) / CELL_M).astype(np.int64)
        # Room on both sides, so that a run that begins left of a row does not reach into the row before.
        margin = int(np.ceil(reach_m / CELL_M)) + 1
        columns = int(cell[:, 0].max()) + 2 * margin
        key = cell[:, 1] * columns + cell[:, 0] + margin
        order = np.argsort(key, kind="stable")
        return cls(np.ascontiguousarray(xy[order]), key[order], order.astype(np.int32), columns)


@dataclass(frozen=True)
class Sight:
    """When two images can show the same things, by place and heading; see ``candidates.PairRules``."""

    same_way_deg: float
    near_m: float
    near_deg: float
    across_m: float
    across_deg: float
    sight_deg: float

    @property
    def numbers(self) -> tuple[float, ...]:
        """The limits in the order of the fields, as the kernels take them."""
        return (
            float(self.same_way_deg),
            float(self.near_m),
            float(self.near_deg),
            float(self.across_m),
            float(self.across_deg),
            float(self.sight_deg),
        )


ANY_HEADING = Sight(180.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def partners(
    cells: Cells,
    heading: Array,
    sequence: Array,
    frame: Array,
    wide: Array,
    *,
    rings_m: tuple[float, ...],
    quotas: tuple[int, ...],
    per_foreign_sequence: int,
    wide_m: float,
    few: int,
    sight: Sight | None,
    asked: Array | None = None,
    threads: int = 0,
) -> tuple[Array, Array]:
    """For each image its partners in each ring, nearest first; what a ring leaves of its quota the next may use.

    Args:
        cells: the places.
        heading: [n] clockwise from north [deg]; not a number where unknown or of no account.
        sequence: [n] numbers of the sequences.
        frame: [n] numbers of the frames; images of one frame are never partners.
        wide: [n] whether the position is so uncertain that the last ring reaches to ``wide_m``.
        rings_m: outer radii [m], increasing.
        quotas: partners in each ring.
        per_foreign_sequence: most partners of one other sequence in a ring.
        wide_m: how far the last ring reaches for images that are ``wide`` or would have fewer than ``few`` candidates.
        few: see there.
        sight: limits of the headings; None: every heading passes.
        asked: [n] whether the image looks for partners; None: all do.
        threads: 0: up to four.

    Returns:
        Images and their partners, int32 [m] each, every image's own choices; a pair chosen from both ends stands
        twice.
    """
    n = len(cells.order)
    places = np.arange(n) if asked is None else np.flatnonzero(asked[cells.order])
    limits = (sight or ANY_HEADING).numbers
    found = np.full((len(places), sum(quotas)), -1, np.int32)
    given: list[Any] = [cells.xy, cells.key, cells.order, cells.columns]
    given += [np.ascontiguousarray(values[cells.order]) for values in (heading % 360.0, sequence, frame, wide)]
    given += [np.array(rings_m, float), np.array(quotas, np.int64), per_foreign_sequence, float(wide_m), few, limits]

    def search(first: int) -> None:
        chunk = slice(first, first + _CHUNK)
        arguments = [places[chunk], *given, found[chunk]]
        _partners(*arguments)

    _each(search, range(0, len(places), _CHUNK), threads)
    chosen = found >= 0
    return np.repeat(cells.order[places], np.count_nonzero(chosen, axis=1)), found[chosen]


def nearest_foreign(cells: Cells, labels: Array, frame: Array, wanted: Array, most_m: float) -> Array:
    """For each component its nearest pairs with images of other components.

    Args:
        cells: the places.
        labels: [n] numbers of the components, from 0.
        frame: [n] numbers of the frames; images of one frame are never a pair.
        wanted: [number of components] how many pairs to look for; 0 leaves a component out.
        most_m: no pair is longer [m].

    Returns:
        int64 [m, 2]: an image of the component and one of another.
    """
    label, frames = labels[cells.order].astype(np.int64), np.ascontiguousarray(frame[cells.order])
    members = np.argsort(label, kind="stable")
    ends = np.cumsum(np.bincount(label, minlength=len(wanted)))
    found = np.full((int(wanted.sum()), 2), -1, np.int64)
    offset = np.concatenate([[0], np.cumsum(wanted)]).astype(np.int64)
    _nearest_foreign(
        *(cells.xy, cells.key, cells.order, cells.columns, label, frames, members, ends),
        *(wanted.astype(np.int64), offset, float(most_m), found),
    )
    return found[found[:, 0] >= 0]


def components(n: int, a: Array, b: Array) -> Array:
    """For each of n nodes the number of its component, from 0 by smallest member, in the graph of the edges a-b."""
    return _components(n, np.asarray(a, np.int32), np.asarray(b, np.int32))


def _each(work: Callable[[int], None], items: range, threads: int) -> None:
    threads = min(threads or 4, os.cpu_count() or 1, len(items))
    if threads <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))


@numba.njit(cache=True, nogil=True)
def _components(n, a, b):
    leader = np.arange(n).astype(np.int32)
    for e in range(len(a)):
        i, j = a[e], b[e]
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        while leader[j] != j:
            leader[j] = leader[leader[j]]
            j = leader[j]
        if i < j:
            leader[j] = i
        else:
            leader[i] = j
    label = np.empty(n, np.int32)
    count = 0
    for i in range(n):  # a leader is the smallest member of its component, so it has its number already
        if leader[i] == i:
            label[i] = count
            count += 1
        else:
            label[i] = label[leader[i]]
    return label


@numba.njit(cache=True, nogil=True)
def _turn(a, b):
    """Difference of two directions of 0 to 360, 0 to 180 [deg]."""
    turned = abs(a - b)
    return 360.0 - turned if turned > 180.0 else turned


@numba.njit(cache=True, nogil=True)
def _sees(dx, dy, distance, heading_a, heading_b, sight):
    """Whether two images can show the same things; ``dx``, ``dy`` lead from the first to the second."""
    same_way, near_m, near_deg, across_m, across_deg, sight_deg = sight
    turned = _turn(heading_a, heading_b)
    if np.isnan(turned) or turned <= same_way:
        return True
    if distance < near_m and turned <= near_deg:
        return True
    if distance >= across_m or turned > across_deg:
        return False
    line = np.degrees(np.arctan2(dx, dy)) % 360.0
    # The line of sight has no direction: one of the two looks along it, the other may look back along it.
    off_a, off_b = _turn(heading_a, line), _turn(heading_b, line)
    return min(off_a, 180.0 - off_a) <= sight_deg and min(off_b, 180.0 - off_b) <= sight_deg


@numba.njit(cache=True, nogil=True)
def _first_at_least(key, value):
    low, high = 0, len(key)
    while low < high:
        middle = (low + high) // 2
        if key[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True, nogil=True)
def _before(d, i, e, j):
    return d < e or (d == e and i < j)


@numba.njit(cache=True, nogil=True)
def _sift(distance, index, place, k, size):
    """Restore the order of a heap of places below its entry k: nearest first, then smallest index."""
    while True:
        child = 2 * k + 1
        if child >= size:
            return
        if child + 1 < size and _before(distance[child + 1], index[child + 1], distance[child], index[child]):
            child += 1
        if not _before(distance[child], index[child], distance[k], index[k]):
            return
        distance[k], distance[child] = distance[child], distance[k]
        index[k], index[child] = index[child], index[k]
        place[k], place[child] = place[child], place[k]
        k = child


@numba.njit(cache=True, nogil=True)
def _partners(
    asked,
    xy,
    key,
    order,
    columns,
    heading,
    sequence,
    frame,
    wide,
    rings,
    quotas,
    per_foreign_sequence,
    wide_m,
    few,
    sight,
    found,
):
    last = rings[-1]
    widest = max(wide_m, last)
    # Buffers for all that may lie around one image; found before, so that the loops below never allocate.
    room = 0
    for p in asked:
        room = max(room, _around(key, columns, p, widest))
    distances, places = np.empty(room), np.empty(room, np.int64)
    near, index, place = np.empty(room), np.empty(room, np.int64), np.empty(room, np.int64)
    taken = np.empty(found.shape[1], np.int64)
    for a, p in enumerate(asked):
        reach = widest if wide[p] else last
        count = _candidates(p, xy, key, columns, heading, frame, -1.0, reach, sight, distances, places, 0)
        if count < few and reach < widest:
            count = _candidates(p, xy, key, columns, heading, frame, reach, widest, sight, distances, places, count)
        written, left = 0, 0
        for ring in range(len(rings)):
            low = rings[ring - 1] if ring else -1.0
            high = rings[ring] if ring + 1 < len(rings) else np.inf
            size = _heap(low, high, count, distances, places, order, near, index, place)
            quota, foreign = quotas[ring] + left, per_foreign_sequence
            chosen = _nearest_of_heap(p, size, quota, foreign, sequence, near, index, place, taken)
            for t in range(chosen):
                found[a, written + t] = order[taken[t]]
            written += chosen
            left = quota - chosen


@numba.njit(cache=True, nogil=True)
def _around(key, columns, p, reach):
    """How many places lie in the cells that a search around place p reads."""
    steps = int(np.ceil(reach / CELL_M))
    count = 0
    for row in range(-steps, steps + 1):
        base = key[p] + row * columns
        count += _first_at_least(key, base + steps + 1) - _first_at_least(key, base - steps)
    return count


@numba.njit(cache=True, nogil=True)
def _candidates(p, xy, key, columns, heading, frame, inner, reach, sight, distances, places, count):
    """Add the places further than ``inner`` and up to ``reach`` that can show what p shows; how many there are now."""
    steps = int(np.ceil(reach / CELL_M))
    x, y, here, own = xy[p, 0], xy[p, 1], heading[p], frame[p]
    for row in range(-steps, steps + 1):
        base = key[p] + row * columns
        for k in range(_first_at_least(key, base - steps), _first_at_least(key, base + steps + 1)):
            dx, dy = xy[k, 0] - x, xy[k, 1] - y
            squared = dx * dx + dy * dy
            if squared <= reach * reach * _SLACK and frame[k] != own:
                distance = np.sqrt(squared)
                if inner < distance <= reach and _sees(dx, dy, distance, here, heading[k], sight):
                    distances[count], places[count] = distance, k
                    count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _heap(low, high, count, distances, places, order, near, index, place):
    """Make a heap of the candidates of one ring; its size."""
    size = 0
    for c in range(count):
        if low < distances[c] <= high:
            near[size], place[size], index[size] = distances[c], places[c], order[places[c]]
            size += 1
    for k in range(size // 2 - 1, -1, -1):
        _sift(near, index, place, k, size)
    return size


@numba.njit(cache=True, nogil=True)
def _nearest_of_heap(p, size, quota, per_foreign_sequence, sequence, near, index, place, taken):
    """Take places from the heap, nearest first, few of any one foreign sequence; how many were taken."""
    chosen = 0
    while size > 0 and chosen < quota:
        q = place[0]
        size -= 1
        near[0], index[0], place[0] = near[size], index[size], place[size]
        _sift(near, index, place, 0, size)
        if sequence[q] != sequence[p]:
            same = 0
            for t in range(chosen):
                same += sequence[taken[t]] == sequence[q]
            if same >= per_foreign_sequence:
                continue
        taken[chosen] = q
        chosen += 1
    return chosen


@numba.njit(cache=True, nogil=True)
def _nearest_foreign(xy, key, order, columns, label, frame, members, ends, wanted, offset, most_m, found):
    worst_of_all = np.inf
    for component in range(len(wanted)):
        room = wanted[component]
        if room == 0:
            continue
        best = np.full(room, worst_of_all)
        held = 0
        base = offset[component]
        begin = ends[component - 1] if component else 0
        for m in range(begin, ends[component]):
            p = members[m]
            limit = min(best[room - 1], most_m)  # a full list needs no search beyond its last entry
            steps = int(np.ceil(limit / CELL_M))
            for row in range(-steps, steps + 1):
                middle = key[p] + row * columns
                k = _first_at_least(key, middle - steps)
                while k < len(key) and key[k] <= middle + steps:
                    if label[k] != component and frame[k] != frame[p]:
                        dx, dy = xy[k, 0] - xy[p, 0], xy[k, 1] - xy[p, 1]
                        distance = np.sqrt(dx * dx + dy * dy)
                        i, j = order[p], order[k]
                        at = held if held < room else room
                        while at > 0 and (
                            distance < best[at - 1]
                            or (
                                distance == best[at - 1]
                                and _before(i, j, found[base + at - 1, 0], found[base + at - 1, 1])
                            )
                        ):
                            at -= 1
                        if at < room and distance <= most_m:
                            held = min(held + 1, room)
                            for s in range(held - 1, at, -1):
                                best[s] = best[s - 1]
                                found[base + s, 0], found[base + s, 1] = found[base + s - 1, 0], found[base + s - 1, 1]
                            best[at] = distance
                            found[base + at, 0], found[base + at, 1] = i, j
                    k += 1
