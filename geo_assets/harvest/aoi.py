"""Areas of interest and strata: polygons in a GeoJSON file, in degrees (EPSG:4326)."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geo_assets.errors import SourceError
from geo_assets.grid import Bounds

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

NAME_PROPERTIES = ("name", "stratum")
"""Properties of a feature that may name its stratum; the first that is there counts."""


def read_area(path: Path) -> BaseGeometry:
    """The union of the polygons of a GeoJSON file; a file that changed is read anew.

    Raises:
        SourceError: the file is not GeoJSON, holds no polygon, or its coordinates are not degrees.
    """
    return _area(path, _version(path))


def read_strata(path: Path) -> tuple[tuple[str, BaseGeometry], ...]:
    """Name and polygon of each stratum of a GeoJSON file, in its order; several polygons may have one name.

    Raises:
        SourceError: the file is not GeoJSON, holds no polygon, a polygon has no name, or coordinates are not degrees.
    """
    return _strata(path, _version(path))


def bounds_of(path: Path) -> tuple[float, float, float, float]:
    """West, south, east, north of the area [deg]."""
    west, south, east, north = read_area(path).bounds
    return west, south, east, north


def inside(path: Path, lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points [n] lie in the area; its edge belongs to it."""
    import shapely

    return shapely.intersects_xy(read_area(path), np.asarray(lon, float), np.asarray(lat, float))


def touches(path: Path, bounds: Bounds) -> bool:
    """Whether a rectangle meets the area, be it at the edge: what does not can hold no image of it.

    Positions of tiles are rounded to half a metre, so pad the rectangle before a tile is left out.
    """
    import shapely

    return bool(shapely.intersects(read_area(path), shapely.box(bounds.west, bounds.south, bounds.east, bounds.north)))


def stratum_of(path: Path, lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.object_]:
    """Name of the first polygon that each point [n] lies in; None outside all and for a point without a position."""
    import shapely

    x, y = np.asarray(lon, float), np.asarray(lat, float)
    names = np.full(len(x), None, dtype=object)
    free = np.isfinite(x) & np.isfinite(y)
    for name, polygon in read_strata(path):
        west, south, east, north = polygon.bounds
        near = np.flatnonzero(free & (x >= west) & (x <= east) & (y >= south) & (y <= north))
        hit = near[shapely.intersects_xy(polygon, x[near], y[near])]
        names[hit] = name
        free[hit] = False
    return names


def _version(path: Path) -> tuple[int, int]:
    """What differs once a file was changed; a file that is not there fails when it is read."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=8)
def _area(path: Path, version: tuple[int, int]) -> BaseGeometry:
    import shapely

    area = shapely.union_all([polygon for _, polygon in _polygons(path)])
    shapely.prepare(area)
    return area


@lru_cache(maxsize=8)
def _strata(path: Path, version: tuple[int, int]) -> tuple[tuple[str, BaseGeometry], ...]:
    import shapely

    strata = []
    for number, (properties, polygon) in enumerate(_polygons(path), 1):
        name = next((properties[key] for key in NAME_PROPERTIES if properties.get(key) not in (None, "")), None)
        if name is None:
            raise SourceError(
                f"{path}: polygon {number} has no name. Give each feature a property 'name', such as \"urban\"."
            )
        shapely.prepare(polygon)
        strata.append((str(name), polygon))
    return tuple(strata)


def _polygons(path: Path) -> list[tuple[dict[str, Any], BaseGeometry]]:
    """Properties and geometry of each polygon of a file, made valid."""
    import shapely
    from shapely.geometry import shape

    try:
        document = json.loads(path.read_text())
        features = document.get("features") or [document]
        pairs = [(feature.get("properties") or {}, feature.get("geometry", feature)) for feature in features]
        polygons = [
            (properties, shapely.make_valid(shape(geometry)))
            for properties, geometry in pairs
            if geometry and geometry.get("type") in ("Polygon", "MultiPolygon")
        ]
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, shapely.errors.ShapelyError) as error:
        raise SourceError(f"{path} is not GeoJSON: {error}.") from None
    if not polygons:
        raise SourceError(f"{path} holds no Polygon or MultiPolygon; an area of interest is a polygon in degrees.")
    west, south, east, north = shapely.total_bounds([polygon for _, polygon in polygons])
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise SourceError(
            f"{path} has the bounds {(float(west), float(south), float(east), float(north))}, which are not degrees. "
            "Save it in EPSG:4326, longitude first."
        )
    return polygons
