"""Cells of an audit: rectangles small enough that a bounding-box search can answer them in full."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from geo_assets.grid import Bounds

MAX_AREA_DEG2 = 0.009
"""The API refuses rectangles of 0.01 square degrees."""

MAX_IMAGES = 400
"""Far below the 2000 rows of one answer, and below what trips the API's density gate."""

_FILL = 0.9
"""How full a planned cell is: the tiles lag, and a cell above twice the plan is cut again."""

MIN_SIDE_M = 1.0
"""A cell this small is not split further: its images lie on one point."""


def area_deg2(cell: Bounds) -> float:
    """Area of a cell in square degrees, the unit of the API's limit."""
    return (cell.east - cell.west) * (cell.north - cell.south)


def audit_cells(
    lon: npt.ArrayLike, lat: npt.ArrayLike, bounds: Bounds, most: int = MAX_IMAGES
) -> list[tuple[Bounds, npt.NDArray[np.int64]]]:
    """Cells that cover ``bounds`` without gap or overlap, each with the images known in it, at most ``most``.

    Cells are cut so that all hold about as many images, which takes the fewest searches. Where more than ``most``
    images share one spot, a cell of about a metre holds them all.

    Args:
        lon: longitudes of the known images [n], degrees.
        lat: latitudes of the known images [n], degrees.
        bounds: the rectangle to cover.
        most: images in a cell.

    Returns:
        Each cell with the indices of its images.
    """
    points = np.stack([np.asarray(lon, float), np.asarray(lat, float)], axis=1).reshape(-1, 2)
    inside = (
        (points[:, 0] >= bounds.west)
        & (points[:, 0] <= bounds.east)
        & (points[:, 1] >= bounds.south)
        & (points[:, 1] <= bounds.north)
    )
    return list(_split(points, np.flatnonzero(inside), bounds, most))


def _split(
    points: npt.NDArray[np.float64], members: npt.NDArray[np.int64], cell: Bounds, most: int
) -> Iterator[tuple[Bounds, npt.NDArray[np.int64]]]:
    width_m, height_m = cell.size_m
    small = max(width_m, height_m) < 2 * MIN_SIDE_M
    if area_deg2(cell) < MAX_AREA_DEG2 and (len(members) <= most or small):
        yield cell, members
        return
    if len(members) > most and (cut := _beside(points[members], cell)):
        axis, at = cut
        before = points[members, axis] < at
        first, second = _halves(cell, axis, at)
        yield from _split(points, members[before], first, most)
        yield from _split(points, members[~before], second, most)
        return
    axis = 0 if width_m >= height_m else 1
    low, high = (cell.west, cell.east) if axis == 0 else (cell.south, cell.north)
    parts = math.ceil(len(members) / (_FILL * most))
    at = float(np.quantile(points[members, axis], (parts // 2) / parts)) if parts > 1 else (low + high) / 2
    # A cut at the rim would leave an empty sliver and no progress.
    at = min(max(at, low + (high - low) / 8), high - (high - low) / 8)
    before = points[members, axis] < at
    first, second = _halves(cell, axis, at)
    yield from _split(points, members[before], first, most)
    yield from _split(points, members[~before], second, most)


def _beside(spot: npt.NDArray[np.float64], cell: Bounds) -> tuple[int, float] | None:
    """Where to cut a cell so that images which all lie on one spot are freed of the land around it, if they do."""
    metres_per_lon = cell.size_m[0] / (cell.east - cell.west)
    per_degree = np.array([metres_per_lon, cell.size_m[1] / (cell.north - cell.south)])
    low, high = spot.min(axis=0), spot.max(axis=0)
    if ((high - low) * per_degree >= MIN_SIDE_M).any():
        return None
    margin = 0.4 * MIN_SIDE_M / per_degree
    cuts = [
        *((float(low[a] - margin[a]), a, float(low[a] - (cell.west, cell.south)[a])) for a in (0, 1)),
        *((float(high[a] + margin[a]), a, float((cell.east, cell.north)[a] - high[a])) for a in (0, 1)),
    ]
    at, axis, empty = max(cuts, key=lambda cut: cut[2] * per_degree[cut[1]])
    return (axis, at) if empty > margin[axis] else None


def _halves(cell: Bounds, axis: int, at: float) -> tuple[Bounds, Bounds]:
    if axis == 0:
        return Bounds(cell.west, cell.south, at, cell.north), Bounds(at, cell.south, cell.east, cell.north)
    return Bounds(cell.west, cell.south, cell.east, at), Bounds(cell.west, at, cell.east, cell.north)


def quarters(cell: Bounds) -> list[Bounds]:
    """The four equal parts of a cell."""
    lon, lat = cell.centre
    west, east = _halves(cell, 0, lon)
    return [part for half in (west, east) for part in _halves(half, 1, lat)]


def can_split(cell: Bounds) -> bool:
    """Whether a cell is large enough for its quarters to mean anything."""
    return max(cell.size_m) >= 2 * MIN_SIDE_M
