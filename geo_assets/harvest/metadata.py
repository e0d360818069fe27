"""Answers of the API as rows of table ``image_metadata``, and which of them lie in a box."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.grid import Grid
from geo_assets.harvest.aoi import inside as in_area
from geo_assets.harvest.coverage import in_box
from geo_assets.tables import TABLES

LICENCE = "CC BY-SA 4.0"

FIELDS = [
    *("id", "sequence", "geometry", "computed_geometry", "altitude", "computed_altitude"),
    *("compass_angle", "computed_compass_angle", "computed_rotation", "captured_at"),
    *("camera_type", "camera_parameters", "width", "height", "exif_orientation", "make", "model", "is_pano"),
    *("quality_score", "creator", "organization", "sfm_cluster"),
]
"""Fields asked of each image."""

_EARLIEST, _EPOCH = dt.datetime(1990, 1, 1, tzinfo=dt.UTC), dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def now() -> dt.datetime:
    """The present, UTC, to the millisecond that tables keep."""
    present = dt.datetime.now(dt.UTC)
    return present.replace(microsecond=present.microsecond // 1000 * 1000)


def rows(answers: Iterable[Mapping[str, Any]], fetched_at: dt.datetime) -> pd.DataFrame:
    """Rows of table ``image_metadata`` of the API's JSON objects; what is absent or senseless becomes null."""
    return TABLES["image_metadata"].frame([row(answer, fetched_at) for answer in answers])


def row(answer: Mapping[str, Any], fetched_at: dt.datetime) -> dict[str, Any]:
    """One row of table ``image_metadata`` of one JSON object of the API."""
    image_id = str(answer["id"])
    creator = _object(answer.get("creator"))
    username = _text(creator.get("username"))
    lon, lat = point(answer.get("geometry"))
    computed_lon, computed_lat = point(answer.get("computed_geometry"))
    return {
        "image_id": image_id,
        "sequence_id": _text(answer.get("sequence")),
        "lon": lon,
        "lat": lat,
        "altitude_m": altitude(answer.get("altitude")),
        "computed_lon": computed_lon,
        "computed_lat": computed_lat,
        "computed_altitude_m": altitude(answer.get("computed_altitude")),
        "compass_deg": heading(answer.get("compass_angle")),
        "computed_compass_deg": heading(answer.get("computed_compass_angle")),
        "computed_rotation": _vector(answer.get("computed_rotation"), 3),
        "captured_at": capture_time(answer.get("captured_at"), fetched_at),
        "camera_type": _text(answer.get("camera_type")),
        "camera_parameters": _vector(answer.get("camera_parameters")),
        "width": _count(answer.get("width")),
        "height": _count(answer.get("height")),
        "exif_orientation": _count(answer.get("exif_orientation")),
        "make": _text(answer.get("make")),
        "model": _text(answer.get("model")),
        "is_pano": answer["is_pano"] if isinstance(answer.get("is_pano"), bool) else None,
        "quality_score": number(answer.get("quality_score")),
        "creator_id": _text(creator.get("id")),
        "creator_username": username,
        "organization_id": _text(_object(answer.get("organization")).get("id")),
        "sfm_cluster_id": _text(_object(answer.get("sfm_cluster")).get("id")),
        "source_path": None,
        "licence": LICENCE,
        "attribution": attribution(image_id, username),
        "fetched_at": fetched_at,
    }


def attribution(image_id: str, username: str | None) -> str:
    """The credit that the licence asks for: source, licence, author and a link to the photo."""
    author = f"by @{username}, " if username else ""
    return f"Photos from Mapillary, {LICENCE}, {author}https://www.mapillary.com/app/?pKey={image_id}"


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def altitude(value: Any) -> float | None:
    """An altitude in metres; the API wraps some negative ones around 2^32."""
    metres = number(value)
    return metres - 2**32 if metres is not None and metres >= 2**31 else metres


def heading(value: Any) -> float | None:
    """A heading in degrees, 0 to 360 clockwise from north."""
    degrees = number(value)
    return degrees % 360.0 if degrees is not None else None


def point(geometry: Any) -> tuple[float | None, float | None]:
    """Longitude and latitude of a GeoJSON point in degrees; None for both where there is no such place."""
    pair = _object(geometry).get("coordinates")
    lon, lat = (number(v) for v in pair[:2]) if isinstance(pair, list) and len(pair) >= 2 else (None, None)
    if lon is None or lat is None or not (-180 <= lon <= 180 and -90 <= lat <= 90):
        return None, None
    return lon, lat


def capture_time(milliseconds: Any, fetched_at: dt.datetime) -> dt.datetime | None:
    """Capture time, UTC; None where the device's clock said something before 1990 or after tomorrow."""
    since_epoch = number(milliseconds)
    if since_epoch is None or abs(since_epoch) > 1e14:
        return None
    time = _EPOCH + dt.timedelta(milliseconds=int(since_epoch))
    return time if plausible(time, fetched_at) else None


def plausible(time: dt.datetime, present: dt.datetime) -> bool:
    """Whether a device's clock can be believed: not before 1990, not after tomorrow."""
    return _EARLIEST <= time <= present + dt.timedelta(days=1)


def position(frame: pd.DataFrame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Longitude and latitude at which each image counts as lying, in degrees [n].

    It is the computed position if there is one, else the recorded one; NaN where there is neither.
    """
    names = ["lon", "lat", "computed_lon", "computed_lat"]
    lon, lat, computed_lon, computed_lat = frame[names].astype(float).to_numpy().T
    has = np.isfinite(computed_lon) & np.isfinite(computed_lat)
    return np.where(has, computed_lon, lon), np.where(has, computed_lat, lat)


def belongs(frame: pd.DataFrame, grid: Grid, box: str, aoi: Path | None = None) -> npt.NDArray[np.bool_]:
    """Whether each image lies in a box, and in the city's polygon if there is one [n].

    Raises:
        SourceError: the polygon cannot be read.
    """
    lon, lat = position(frame)
    placed = np.isfinite(lon) & np.isfinite(lat)
    inside = np.zeros(len(frame), bool)
    inside[placed] = in_box(lon[placed], lat[placed], grid, box)
    return inside & in_area(aoi, lon, lat) if aoi is not None else inside


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None


def _count(value: Any) -> int | None:
    size = number(value)
    return int(size) if size is not None and abs(size) < 2**53 else None


def _vector(value: Any, length: int | None = None) -> list[float] | None:
    numbers = [number(v) for v in value] if isinstance(value, list) else []
    if not numbers or None in numbers or (length is not None and len(numbers) != length):
        return None
    return [v for v in numbers if v is not None]
