"""A city's grid of boxes: named cells of equal degrees, counted from the city's recorded south-west origin."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from geo_assets.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

METRES_PER_DEGREE = 111_319.49
_HAIR = 2e-6
"""Share of a box by which a city may reach beyond its grid, which is rounded to whole boxes."""
_NAME = re.compile(r"r(\d{2,})c(\d{2,})")


@dataclass(frozen=True)
class Bounds:
    """A rectangle in degrees, EPSG:4326."""

    west: float
    south: float
    east: float
    north: float

    @overload
    def contains(self, lon: float, lat: float) -> bool: ...
    @overload
    def contains(self, lon: npt.NDArray[Any], lat: npt.NDArray[Any]) -> npt.NDArray[np.bool_]: ...
    @overload
    def contains(self, lon: pd.Series, lat: pd.Series) -> pd.Series: ...
    def contains(self, lon: Any, lat: Any) -> Any:
        """Whether a point, or each of many, lies inside; the west and south edges belong to it, the others do not."""
        return (lon >= self.west) & (lon < self.east) & (lat >= self.south) & (lat < self.north)

    def padded(self, metres: float) -> Bounds:
        """The rectangle grown by ``metres`` on each side."""
        dlat = metres / METRES_PER_DEGREE
        dlon = dlat / max(math.cos(math.radians((self.south + self.north) / 2)), 1e-6)
        return Bounds(self.west - dlon, self.south - dlat, self.east + dlon, self.north + dlat)

    @property
    def centre(self) -> tuple[float, float]:
        """Longitude and latitude of the middle, in degrees."""
        return (self.west + self.east) / 2, (self.south + self.north) / 2

    @property
    def size_m(self) -> tuple[float, float]:
        """Width at the middle latitude and height, in metres."""
        metres_per_lon = METRES_PER_DEGREE * math.cos(math.radians((self.south + self.north) / 2))
        return (self.east - self.west) * metres_per_lon, (self.north - self.south) * METRES_PER_DEGREE

    def as_list(self) -> list[float]:
        """West, south, east, north."""
        return [self.west, self.south, self.east, self.north]


def box_name(row: int, column: int) -> str:
    """Name of the cell in row ``row`` (from the south) and column ``column`` (from the west)."""
    return f"r{row:02d}c{column:02d}"


def box_cell(name: str) -> tuple[int, int]:
    """Row and column of a box name.

    Raises:
        ConfigError: the name is not of the form ``r03c07``.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise ConfigError(
            f"'{name}' is not a box name; boxes read like r03c07 (row from the south, column from the west)."
        )
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Grid:
    """Cells of ``box_m`` metres from a south-west origin; the count follows from the city's bounds."""

    origin_lon: float
    origin_lat: float
    box_m: float
    rows: int
    columns: int

    @classmethod
    def over(cls, bounds: Bounds, box_m: float) -> Grid:
        """The smallest grid that covers ``bounds`` from its south-west corner."""
        probe = cls(bounds.west, bounds.south, box_m, 1, 1)
        # A hair of tolerance keeps a city of exactly n boxes from getting an empty row n + 1.
        rows = max(1, math.ceil((bounds.north - bounds.south) / probe.step_lat - 1e-6))
        columns = max(1, math.ceil((bounds.east - bounds.west) / probe.step_lon - 1e-6))
        return cls(bounds.west, bounds.south, box_m, rows, columns)

    @property
    def step_lat(self) -> float:
        """Height of a box in degrees."""
        return self.box_m / METRES_PER_DEGREE

    @property
    def step_lon(self) -> float:
        """Width of a box in degrees, at the origin's latitude."""
        return self.box_m / (METRES_PER_DEGREE * math.cos(math.radians(self.origin_lat)))

    def __iter__(self) -> Iterator[str]:
        return (box_name(r, c) for r in range(self.rows) for c in range(self.columns))

    def __len__(self) -> int:
        return self.rows * self.columns

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return False
        row, column = box_cell(name)
        return row < self.rows and column < self.columns

    def bounds(self, name: str) -> Bounds:
        """Bounds of one box, in degrees."""
        row, column = box_cell(name)
        west, south = self.origin_lon + column * self.step_lon, self.origin_lat + row * self.step_lat
        return Bounds(west, south, west + self.step_lon, south + self.step_lat)

    def box_at(self, lon: float, lat: float) -> str | None:
        """Name of the box that holds a point, or None outside the grid."""
        return self.boxes_at([lon], [lat])[0]

    def boxes_at(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.object_]:
        """Names of the boxes that hold the points [n]; None outside the grid, and for NaN.

        A box holds its west and south edges; the grid's own north and east edges belong to its last row and column.
        """
        import numpy as np

        row = _cells(np.asarray(lat, float), self.origin_lat, self.step_lat, self.rows)
        column = _cells(np.asarray(lon, float), self.origin_lon, self.step_lon, self.columns)
        known = (row >= 0) & (column >= 0)
        names = np.full(len(row), None, object)
        cells, which = np.unique(row[known] * self.columns + column[known], return_inverse=True)
        here = np.array([box_name(*divmod(int(cell), self.columns)) for cell in cells], object)
        names[known] = here[which] if len(cells) else []
        return names

    def touching(self) -> dict[str, list[str]]:
        """Each box with itself and the up to eight that touch it, in order; quick for many boxes."""
        names = [[box_name(r, c) for c in range(self.columns)] for r in range(self.rows)]
        found: dict[str, list[str]] = {}
        for r, row in enumerate(names):
            near = names[max(0, r - 1) : r + 2]
            for c, name in enumerate(row):
                columns = slice(max(0, c - 1), c + 2)
                found[name] = [other for each in near for other in each[columns]]
        return found

    def neighbours(self, name: str) -> list[str]:
        """The up to eight boxes that touch a box, without it."""
        return [other for other in touching(name) if other != name and other in self]


def _cells(at: npt.NDArray[np.float64], origin: float, step: float, n: int) -> npt.NDArray[np.int64]:
    """Number of the cell along one axis; -1 outside."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        place = np.floor((at - origin) / step)
        place = np.where((place == n) & (at <= origin + (n + _HAIR) * step), n - 1, place)
        return np.where((place >= 0) & (place < n), place, -1).astype(np.int64)


def touching(name: str) -> list[str]:
    """A box and the up to eight that touch it in an endless grid (rows and columns from 0)."""
    row, column = box_cell(name)
    return [box_name(r, c) for r in range(max(0, row - 1), row + 2) for c in range(max(0, column - 1), column + 2)]
