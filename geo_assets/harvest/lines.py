"""Sequences as lines: where each went, how far, and which images stand along it, in the order of capture."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.harvest.metadata import position
from geo_assets.lake import Facts, Lake
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    import geopandas as gpd
    import pyarrow as pa
    from shapely.geometry.base import BaseGeometry

TABLE = "sequence_paths"
GAP_M = 200.0
"""Consecutive images further apart than this are not joined: between them the sequence was elsewhere."""


def capture_order(metadata: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``image_metadata`` by sequence and capture time, the index kept.

    The device's own milliseconds decide, for a wrong clock still runs forward; images without a time stand last,
    equal ones by their ids.
    """
    device = column(metadata, "captured_at_ms").astype(float).to_numpy(float)
    believed = _milliseconds(column(metadata, "captured_at"))
    keys = pd.DataFrame({"sequence": metadata["sequence_id"], "id": metadata["image_id"]}, index=metadata.index)
    keys["time"] = np.where(np.isfinite(device), device, believed)
    return metadata.loc[keys.sort_values(["sequence", "time", "id"], kind="stable").index]


def legs_m(lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Geodesic lengths on WGS84 between consecutive points [n] in degrees, in metres [n - 1]."""
    from pyproj import Geod

    x, y = np.asarray(lon, float), np.asarray(lat, float)
    return np.asarray(Geod(ellps="WGS84").inv(x[:-1], y[:-1], x[1:], y[1:])[2], float)


def sequence_lines(metadata: pd.DataFrame, gap_m: float = GAP_M) -> gpd.GeoDataFrame:
    """One line a sequence, through the positions of its images in the order of capture.

    A sequence that was cut by the borders of boxes is whole again when the metadata of all these boxes are given
    at once; an image that stands in several counts once. Where two consecutive images are more than ``gap_m`` apart,
    or on both sides of the antimeridian, the line is interrupted (MultiLineString). Images that stand alone between
    two gaps are no line; a sequence of such images only has no row. Images that do not exist any more are left out.

    Args:
        metadata: rows of table ``image_metadata`` of any number of boxes.
        gap_m: longest distance of two images that are joined [m].

    Returns:
        ``sequence_id``, ``n_images`` with a position, ``length_m`` (geodesic, gaps left out), ``started_at``,
        ``ended_at``, ``creator``, ``image_ids`` in the order of capture, ``geometry`` in EPSG:4326.
    """
    import geopandas as gpd

    images = existing(metadata)
    images = images.loc[images["sequence_id"].notna().to_numpy(bool)].drop_duplicates("image_id")
    lon, lat = position(images)
    placed = np.isfinite(lon) & np.isfinite(lat)
    images = capture_order(images.assign(_lon=lon, _lat=lat).loc[placed])
    rows = [row for _, track in images.groupby("sequence_id", sort=True) if (row := _row(track, gap_m))]
    names = [*(c for c in TABLES[TABLE].column_names if c != "geometry"), "geometry"]
    frame = pd.DataFrame(rows, columns=names) if rows else TABLES[TABLE].empty()[names]
    return gpd.GeoDataFrame(frame, geometry="geometry", crs="EPSG:4326")


def write_lines(lake: Lake, city: str, box: str, metadata: pd.DataFrame | None = None, gap_m: float = GAP_M) -> Facts:
    """Write the lines of a box as GeoParquet: table ``sequence_paths``, geometry as WKB.

    Args:
        lake: holds ``image_metadata`` of the box, where it is not given.
        city: name of the city.
        box: name of the box.
        metadata: rows of ``image_metadata`` of the box.
        gap_m: longest distance of two images that are joined [m].
    """
    images = lake.read("image_metadata", city=city, box=box) if metadata is None else metadata
    return lake.write_arrow(TABLE, geo_table(sequence_lines(images, gap_m)), city=city, box=box)


def city_lines(lake: Lake, city: str, gap_m: float = GAP_M) -> gpd.GeoDataFrame:
    """The lines of all sequences of a city, whole across the borders of its boxes."""
    columns = ["image_id", "sequence_id", "lon", "lat", "computed_lon", "computed_lat", "captured_at"]
    columns += ["captured_at_ms", "creator_id", "creator_username", "tombstoned_at"]
    boxes = [where for where in lake.partitions("image_metadata") if where.get("city") == city]
    frames = [lake.read("image_metadata", columns, **where) for where in boxes]
    return sequence_lines(together(frames), gap_m)


def geo_table(lines: gpd.GeoDataFrame) -> pa.Table:
    """Lines as rows of table ``sequence_paths`` with the footer that makes a parquet file GeoParquet 1.1."""
    plain = pd.DataFrame(lines.drop(columns="geometry")).assign(geometry=lines.geometry.to_wkb())
    table = TABLES[TABLE].conform(plain)
    about: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(set(lines.geometry.geom_type)),
        "crs": lines.crs.to_json_dict() if lines.crs else None,
    }
    if len(lines):
        about["bbox"] = [float(v) for v in lines.total_bounds]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": about}}
    return table.replace_schema_metadata({"geo": json.dumps(geo)})


def existing(metadata: pd.DataFrame) -> pd.DataFrame:
    """The rows of images that exist as far as known: without a tombstone."""
    return metadata.loc[metadata["tombstoned_at"].isna()]


def together(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Rows of ``image_metadata`` of several boxes or harvests, each image once: as it was asked about last."""
    found = [frame for frame in frames if len(frame)]
    if not found:
        return TABLES["image_metadata"].empty()
    if len(found) == 1 and not found[0]["image_id"].duplicated().any():
        return found[0].reset_index(drop=True)
    rows = pd.concat(found, ignore_index=True)
    if "fetched_at" in rows:
        asked = pd.to_datetime(rows["fetched_at"], utc=True)
        rows = rows.loc[asked.sort_values(ascending=False, kind="stable", na_position="last").index]
    return rows.drop_duplicates("image_id").sort_index().reset_index(drop=True)


def creators(metadata: pd.DataFrame) -> pd.Series:
    """Name of each image's author; the id where there is no name."""
    name, number = (column(metadata, c).astype(object) for c in ("creator_username", "creator_id"))
    return name.where(name.notna().to_numpy(bool), number)


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """One column of a frame; its name is known to be there once."""
    return cast(pd.Series, frame[name])


def _milliseconds(times: pd.Series) -> npt.NDArray[np.float64]:
    stamps = pd.to_datetime(times, utc=True)
    return ((stamps - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(milliseconds=1)).to_numpy(float)


def _row(track: pd.DataFrame, gap_m: float) -> dict[str, Any] | None:
    """One sequence: its line and what belongs to it; None where it has no line."""
    line, length_m = _line(track["_lon"].to_numpy(float), track["_lat"].to_numpy(float), gap_m)
    if line is None:
        return None
    times = pd.to_datetime(track["captured_at"], utc=True)
    names = creators(track).dropna()
    return {
        "sequence_id": str(track["sequence_id"].iloc[0]),
        "n_images": len(track),
        "length_m": length_m,
        "started_at": times.min(),
        "ended_at": times.max(),
        "creator": names.iloc[0] if len(names) else None,
        "image_ids": [str(i) for i in track["image_id"]],
        "geometry": line,
    }


def _line(
    lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64], gap_m: float
) -> tuple[BaseGeometry | None, float]:
    """The line through points [n] in degrees and its length without gaps [m]; None where no two are joined."""
    from shapely import LineString, MultiLineString

    legs = legs_m(lon, lat)
    # A line drawn over the antimeridian would go round the globe.
    cut = (legs > gap_m) | (np.abs(np.diff(lon)) > 180)
    points = np.column_stack([lon, lat])
    parts = []
    for part in np.split(points, np.flatnonzero(cut) + 1):
        moved = np.concatenate([[True], (np.diff(part, axis=0) != 0).any(axis=1)])
        if moved.sum() > 1:
            parts.append(LineString(part[moved]))
    if not parts:
        return None, 0.0
    return (parts[0] if len(parts) == 1 else MultiLineString(parts)), float(legs[~cut].sum())
