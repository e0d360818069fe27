"""Partitions that know of photos only how many there are: cells of the globe, cut in four while they hold too many.

Two of them are in use elsewhere. PlaNet and GeoEstimation cut cells of S2 and drop those with few photos, OSV-5M cuts
boxes of degrees. Either is a tree of base-4 digits, so a cell is a range of codes and a place lies in at most one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geo_assets.geotag.clustering import Ints
from geo_assets.settings import Geotag

Codes = npt.NDArray[np.uint64]

S2_DEPTH = 30
S2_KEPT = 1 / 20
"""A cell of S2 is dropped below this share of the photos above which it is cut: 50 of 1,000 as in GeoEstimation."""

QUADTREE_DEPTH = 10
"""Cuts of the box of all degrees, as OSV-5M makes them: the least cell is 0.35 by 0.18 degrees."""


@dataclass(frozen=True)
class Quarters:
    """Disjoint cells [K] in the order of their codes, each of all codes from ``first`` to ``last``.

    ``overfull`` of them hold more photos than they should, for the depth allowed no further cut.
    """

    first: Codes
    last: Codes
    overfull: int = 0

    def __len__(self) -> int:
        return len(self.first)

    def of(self, codes: Codes) -> Ints:
        """The cell [N] that holds each code, -1 where none does."""
        if not len(self):
            return np.full(len(codes), -1, np.int64)
        cell = np.searchsorted(self.first, codes, side="right").astype(np.int64) - 1
        return np.where((cell >= 0) & (codes <= self.last[cell]), cell, -1)


class Counted:
    """Photos in every cell that may be cut, from the roots down.

    Args:
        codes: code of each place: below a root number ``depth`` base-4 digits.
        photos: photos at each place.
        depth: how often a root can be cut.
    """

    def __init__(self, codes: Codes, photos: npt.ArrayLike, depth: int) -> None:
        order = np.argsort(codes, kind="stable")
        left, count = codes[order], np.asarray(photos, np.int64)[order]
        above = np.full(len(left), np.iinfo(np.int64).max)
        cells: list[tuple[Codes, Ints, Ints, Ints]] = []
        for level in range(depth + 1):
            prefix = left >> np.uint64(2 * (depth - level))
            starts = np.flatnonzero(np.r_[True, prefix[1:] != prefix[:-1]][: len(prefix)])
            total = np.add.reduceat(count, starts) if len(starts) else count
            cells.append((prefix[starts], np.full(len(starts), level), total, above[starts]))
            above = np.repeat(total, np.diff(np.r_[starts, len(left)]))
            worth = above > 1  # a single photo is not cut further
            left, count, above = left[worth], count[worth], above[worth]
        self.depth = depth
        self._prefix, self._level, self._count, self._above = (
            np.concatenate(part) for part in zip(*cells, strict=True)
        )

    def cut(self, most: int, fewest: int) -> Quarters:
        """The cells that are left when those above ``most`` photos are cut and those below ``fewest`` dropped."""
        kept = np.flatnonzero(self._kept(most, fewest))
        shift = (2 * (self.depth - self._level[kept])).astype(np.uint64)
        first = self._prefix[kept] << shift
        last = first + ((np.uint64(1) << shift) - np.uint64(1))
        order = np.argsort(first)
        return Quarters(first[order], last[order], int((self._count[kept] > most).sum()))

    def cut_into(self, wanted: int, kept: float) -> Quarters:
        """Cut so that about ``wanted`` cells are left; those below ``kept`` of the most photos of a cell are dropped."""
        low, high = 1, max(int(self._count.max(initial=1)), 1)

        def cells(most: int) -> int:
            return int(self._kept(most, _fewest(most, kept)).sum())

        while low < high:  # the fewer photos a cell may hold, the more cells
            middle = (low + high) // 2
            low, high = (low, middle) if cells(middle) <= wanted else (middle + 1, high)
        best = min((low, max(low - 1, 1)), key=lambda most: abs(cells(most) - wanted))
        return self.cut(best, _fewest(best, kept))

    def _kept(self, most: int, fewest: int) -> npt.NDArray[np.bool_]:
        whole = (self._count <= most) | (self._level == self.depth)
        return (self._above > most) & whole & (self._count >= fewest)


def _fewest(most: int, kept: float) -> int:
    return max(1, int(most * kept))


def s2_codes(lon: npt.ArrayLike, lat: npt.ArrayLike) -> Codes:
    """Places [deg] as face and 30 digits of S2: their leaf cells without the last bit."""
    from geo_assets.geotag import s2

    return s2.cell_ids(np.asarray(lon, np.float64), np.asarray(lat, np.float64), S2_DEPTH) >> np.uint64(1)


def box_codes(lon: npt.ArrayLike, lat: npt.ArrayLike, depth: int = QUADTREE_DEPTH) -> Codes:
    """Places [deg] as ``depth`` digits, each a half of the longitudes (1 is east) and of the latitudes (2 is north)."""
    sides = 1 << depth
    column = np.clip((np.asarray(lon, np.float64) + 180) / 360 * sides, 0, sides - 1).astype(np.uint64)
    row = np.clip((np.asarray(lat, np.float64) + 90) / 180 * sides, 0, sides - 1).astype(np.uint64)
    codes = np.zeros(len(column), np.uint64)
    for bit in range(depth):
        at, one = np.uint64(bit), np.uint64(1)
        codes |= (((column >> at) & one) | ((row >> at) & one) << one) << np.uint64(2 * bit)
    return codes


@dataclass(frozen=True)
class Rule:
    """How a partition names places and cuts its cells: ``s2`` or ``quadtree``, so many cuts, and what is dropped."""

    name: str
    depth: int
    kept: float

    def codes(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> Codes:
        """Codes [N] of places [deg]."""
        return s2_codes(lon, lat) if self.name == "s2" else box_codes(lon, lat, self.depth)


def rules(quadtree_depth: int = QUADTREE_DEPTH) -> tuple[Rule, Rule]:
    """The partitions by cutting in four."""
    return Rule("s2", S2_DEPTH, S2_KEPT), Rule("quadtree", quadtree_depth, 0.0)


Split = tuple[Rule, Sequence[tuple[int, int]]]
"""A rule and, for each level of its cells, the fewest photos of a cell and the most."""


def splits(settings: Geotag) -> dict[str, Split]:
    """What the settings say of each table of such cells."""
    by_s2, by_boxes = rules(settings.quadtree_depth)
    return {"s2_cells": (by_s2, settings.s2_photos), "quadtree_cells": (by_boxes, settings.quadtree_photos)}
