"""What of the globe belongs to a city: its rectangle, edges included, and within it its polygon if it has one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geo_assets.grid import Bounds, Grid
from geo_assets.harvest import aoi
from geo_assets.settings import City


@dataclass(frozen=True)
class Area:
    """A city's area and its grid of boxes.

    Attributes:
        bounds: the city's rectangle in degrees.
        grid: its boxes; the outermost may reach beyond the rectangle.
        polygon: GeoJSON file of its polygon.
    """

    bounds: Bounds
    grid: Grid
    polygon: Path | None = None

    @classmethod
    def of(cls, city: City) -> Area:
        """The area of a city of the settings."""
        return cls(city.bounds, city.grid, city.aoi)

    def contains(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which points [n] belong to the city; its edges do, NaN does not.

        Raises:
            SourceError: the polygon cannot be read.
        """
        x, y, bounds = np.asarray(lon, float), np.asarray(lat, float), self.bounds
        inside = (x >= bounds.west) & (x <= bounds.east) & (y >= bounds.south) & (y <= bounds.north)
        if self.polygon is not None and inside.any():
            inside[inside] = aoi.inside(self.polygon, x[inside], y[inside])
        return inside

    def touches(self, bounds: Bounds) -> bool:
        """Whether a rectangle holds any of the city.

        Raises:
            SourceError: the polygon cannot be read.
        """
        mine = self.bounds
        if bounds.west > mine.east or bounds.east < mine.west or bounds.south > mine.north or bounds.north < mine.south:
            return False
        return self.polygon is None or aoi.touches(self.polygon, bounds)

    def home_of(self, lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.object_]:
        """The box of each point [n] of the city; None for a point outside the city.

        Raises:
            SourceError: the polygon cannot be read.
        """
        boxes = self.grid.boxes_at(lon, lat)
        boxes[~self.contains(lon, lat)] = None
        return boxes
