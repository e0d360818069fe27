"""Areas of interest: polygons in a GeoJSON file, in degrees (EPSG:4326)."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geo_assets.errors import SourceError

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry


@lru_cache(maxsize=8)
def read_area(path: Path) -> BaseGeometry:
    """The union of the polygons of a GeoJSON file.

    Raises:
        SourceError: the file is not GeoJSON, holds no polygon, or its coordinates are not degrees.
    """
    import shapely
    from shapely.geometry import shape

    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise SourceError(f"{path} is not GeoJSON: {error}.") from None
    features = document.get("features") or [document]
    geometries = [feature.get("geometry", feature) for feature in features]
    polygons = [shape(g) for g in geometries if g and g.get("type") in ("Polygon", "MultiPolygon")]
    if not polygons:
        raise SourceError(f"{path} holds no Polygon or MultiPolygon; an area of interest is a polygon in degrees.")
    area = shapely.union_all([shapely.make_valid(p) for p in polygons])
    west, south, east, north = area.bounds
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise SourceError(
            f"{path} has the bounds {area.bounds}, which are not degrees. Save it in EPSG:4326, longitude first."
        )
    return area


def bounds_of(path: Path) -> tuple[float, float, float, float]:
    """West, south, east, north of the area [deg]."""
    west, south, east, north = read_area(path).bounds
    return west, south, east, north


def inside(path: Path, lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points [n] lie in the area; its edge belongs to it."""
    import shapely

    return shapely.intersects_xy(read_area(path), np.asarray(lon, float), np.asarray(lat, float))
