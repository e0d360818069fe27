"""Answers of the API as rows of table ``image_metadata``, and which of them lie in a box."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.harvest.area import Area
from geo_assets.harvest.tiles import tile_numbers
from geo_assets.tables import TABLES

LICENCE = "CC BY-SA 4.0"

FIELDS = [
    *("id", "sequence", "geometry", "computed_geometry", "altitude", "computed_altitude"),
    *("compass_angle", "computed_compass_angle", "computed_rotation", "captured_at"),
    *("camera_type", "camera_parameters", "width", "height", "exif_orientation", "make", "model", "is_pano"),
    *("quality_score", "creator", "organization", "sfm_cluster", "atomic_scale"),
]
"""Fields asked of each image."""

_PLAIN = [
    f for f in FIELDS if f not in ("id", "geometry", "computed_geometry", "creator", "organization", "sfm_cluster")
]

_EARLIEST, _EPOCH = dt.datetime(1990, 1, 1, tzinfo=dt.UTC), dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def now() -> dt.datetime:
    """The present, UTC, to the millisecond that tables keep."""
    present = dt.datetime.now(dt.UTC)
    return present.replace(microsecond=present.microsecond // 1000 * 1000)


def from_epoch(seconds: float) -> dt.datetime:
    """A time of the clock, UTC, to the millisecond that tables keep."""
    return _EPOCH + dt.timedelta(milliseconds=int(seconds * 1000))


Columns = dict[str, list[Any]]
"""Values of the API's answers by the names of :data:`_NAMES`, one a column and image; what is absent is None."""


def columns(answers: Sequence[Mapping[str, Any]]) -> Columns:
    """The API's JSON objects column by column: what is kept of them, and what :func:`table` makes a table of."""
    found: Columns = {name: [answer.get(name) for answer in answers] for name in _PLAIN}
    found["id"] = [str(answer["id"]) for answer in answers]
    for name in ("geometry", "computed_geometry"):
        places = [point(answer.get(name)) for answer in answers]
        found[f"{name}.lon"], found[f"{name}.lat"] = [lon for lon, _ in places], [lat for _, lat in places]
    for name, key in (("creator", "id"), ("creator", "username"), ("organization", "id"), ("sfm_cluster", "id")):
        found[f"{name}.{key}"] = [_object(answer.get(name)).get(key) for answer in answers]
    return found


def table(kept: Columns, fetched_at: Sequence[dt.datetime]) -> pd.DataFrame:
    """Rows of table ``image_metadata``; what is absent or senseless becomes null.

    Args:
        kept: columns as :func:`columns` makes them [n].
        fetched_at: when each object was given [n].
    """
    ids, users = kept["id"], _texts(kept["creator.username"])
    captured_ms = _counts(kept["captured_at"])
    turned = _numbers(kept["compass_angle"]), _numbers(kept["computed_compass_angle"])
    known: dict[str, Any] = {
        "image_id": ids,
        "sequence_id": _texts(kept["sequence"]),
        "lon": _numbers(kept["geometry.lon"]),
        "lat": _numbers(kept["geometry.lat"]),
        "altitude_m": _altitudes(kept["altitude"]),
        "computed_lon": _numbers(kept["computed_geometry.lon"]),
        "computed_lat": _numbers(kept["computed_geometry.lat"]),
        "computed_altitude_m": _altitudes(kept["computed_altitude"]),
        "compass_deg": turned[0] % 360.0,
        "computed_compass_deg": turned[1] % 360.0,
        "computed_rotation": [_vector(v, 3) for v in kept["computed_rotation"]],
        "captured_at": _times(captured_ms, fetched_at),
        "captured_at_ms": captured_ms,
        "camera_type": _texts(kept["camera_type"]),
        "camera_parameters": [_vector(v) for v in kept["camera_parameters"]],
        "make": _texts(kept["make"]),
        "model": _texts(kept["model"]),
        "is_pano": pd.array([v if isinstance(v, bool) else None for v in kept["is_pano"]], "boolean"),
        "quality_score": _numbers(kept["quality_score"]),
        "creator_id": _texts(kept["creator.id"]),
        "creator_username": users,
        "organization_id": _texts(kept["organization.id"]),
        "sfm_cluster_id": _texts(kept["sfm_cluster.id"]),
        "atomic_scale": _numbers(kept["atomic_scale"]),
        "licence": [LICENCE] * len(ids),
        "attribution": [attribution(i, user) for i, user in zip(ids, users, strict=True)],
        "fetched_at": pd.DatetimeIndex(fetched_at, dtype="datetime64[ms, UTC]"),
    }
    known |= {name: _counts(kept[name]) for name in ("width", "height", "exif_orientation")}
    lon, lat = _best(known["lon"], known["lat"], known["computed_lon"], known["computed_lat"])
    known["tile_x"], known["tile_y"] = tile_numbers(lon, lat)
    nothing = pd.Series([None] * len(ids), dtype=object)
    listed = {k: pd.Series(v, dtype=object) if isinstance(v, list) else v for k, v in known.items()}
    return pd.DataFrame({name: listed.get(name, nothing) for name in TABLES["image_metadata"].column_names})


def rows(answers: Sequence[Mapping[str, Any]], fetched_at: dt.datetime) -> pd.DataFrame:
    """Rows of table ``image_metadata`` of the API's JSON objects, all given at one time."""
    return table(columns(answers), [fetched_at] * len(answers))


def attribution(image_id: str, username: str | None) -> str:
    """The credit that the licence asks for: source, licence, author and a link to the photo."""
    author = f"by @{username}, " if username else ""
    return f"Photos from Mapillary, {LICENCE}, {author}https://www.mapillary.com/app/?pKey={image_id}"


def point(geometry: Any) -> tuple[float, float] | tuple[None, None]:
    """Longitude and latitude of a GeoJSON point in degrees; None for both where there is no such place."""
    try:
        lon, lat = geometry["coordinates"][:2]
        if -180 <= lon <= 180 and -90 <= lat <= 90 and not isinstance(lon, bool) and not isinstance(lat, bool):
            return float(lon), float(lat)
    except (TypeError, KeyError, ValueError):
        pass
    return None, None


def plausible(time: dt.datetime, present: dt.datetime) -> bool:
    """Whether a device's clock can be believed: not before 1990, not after tomorrow."""
    return _EARLIEST <= time <= present + dt.timedelta(days=1)


def position(frame: pd.DataFrame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Longitude and latitude at which each image counts as lying, in degrees [n].

    It is the computed position if there is one, else the recorded one; NaN where there is neither.
    """
    return _best(*frame[["lon", "lat", "computed_lon", "computed_lat"]].astype(float).to_numpy().T)


def _best(
    lon: npt.NDArray[np.float64],
    lat: npt.NDArray[np.float64],
    computed_lon: npt.NDArray[np.float64],
    computed_lat: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    has = np.isfinite(computed_lon) & np.isfinite(computed_lat)
    return np.where(has, computed_lon, lon), np.where(has, computed_lat, lat)


def belongs(frame: pd.DataFrame, area: Area, box: str) -> npt.NDArray[np.bool_]:
    """Whether each image lies in a box of a city, and in the city itself [n].

    Raises:
        SourceError: the city's polygon cannot be read.
    """
    return area.home_of(*position(frame)) == box


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _numbers(values: Sequence[Any]) -> npt.NDArray[np.float64]:
    """Finite numbers; NaN for anything else."""
    found = np.array([v if type(v) is float or type(v) is int else math.nan for v in values], float)
    found[~np.isfinite(found)] = math.nan
    return found


def _altitudes(values: Sequence[Any]) -> npt.NDArray[np.float64]:
    """Metres; the API wraps some negative ones around 2^32."""
    metres = _numbers(values)
    return np.where(metres >= 2**31, metres - 2.0**32, metres)


def _counts(values: Sequence[Any]) -> pd.Series:
    sizes = _numbers(values)
    sizes[np.abs(sizes) >= 2**53] = math.nan
    return pd.Series(np.trunc(sizes)).astype("Int64")


def _times(milliseconds: pd.Series, fetched_at: Sequence[dt.datetime]) -> pd.Series:
    """Capture times, UTC; missing where the device's clock said something before 1990 or after tomorrow."""
    latest = [(at - _EPOCH).total_seconds() * 1000 + 86_400_000 for at in fetched_at]
    since_epoch = milliseconds.astype("Float64").to_numpy(float, na_value=math.nan)
    with np.errstate(invalid="ignore"):
        believed = (since_epoch >= (_EARLIEST - _EPOCH).total_seconds() * 1000) & (
            since_epoch <= np.array(latest, float)
        )
    times = np.full(len(since_epoch), np.datetime64("NaT"), "datetime64[ms]")
    times[believed] = since_epoch[believed].astype("int64").astype("datetime64[ms]")
    return pd.Series(pd.DatetimeIndex(times).tz_localize("UTC"))


def _texts(values: Sequence[Any]) -> list[str | None]:
    return [v or None if type(v) is str else str(v) if type(v) is int else None for v in values]


def _vector(value: Any, length: int | None = None) -> list[float] | None:
    if not isinstance(value, list) or not value or (length is not None and len(value) != length):
        return None
    kinds = set(map(type, value))
    if kinds == {float}:
        return value
    return [float(v) for v in value] if kinds <= {float, int} else None
