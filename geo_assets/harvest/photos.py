"""The other source of a city: a folder of the user's own geotagged photos."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from geo_assets import exif
from geo_assets.errors import ConfigError, SourceError
from geo_assets.grid import Bounds
from geo_assets.harvest.images import Harvest, dead_row, file_row, tidy, wanted
from geo_assets.harvest.jpeg import problem_of
from geo_assets.harvest.metadata import now, plausible
from geo_assets.lake import Lake
from geo_assets.settings import City
from geo_assets.tables import TABLES

SUFFIXES = (".jpg", ".jpeg")
PAD_M = 5.0
"""A city of photos reaches this far beyond its outermost photos."""


@dataclass(frozen=True)
class Scan:
    """A folder of photos.

    Attributes:
        photos: rows of table ``image_metadata``, by relative path; ``source_path`` is that path.
        rejects: photos that were not taken: ``path`` and ``reason``.
    """

    photos: pd.DataFrame
    rejects: pd.DataFrame


def scan(folder: Path) -> Scan:
    """Read position, time and camera of every JPEG below a folder from its EXIF.

    A photo's id is the first 16 hex digits of the SHA-256 of its path in the folder; its sequence is the
    subfolder that it lies in, named in the same way. EXIF times without a zone are taken as UTC.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"The photo folder {folder} does not exist. Correct `photos` of the city in the settings.")
    paths = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    names = sorted(PurePosixPath(p.relative_to(folder)).as_posix() for p in paths)
    scanned_at = now()
    records, rejects = [], []
    for name in names:
        try:
            records.append(read_photo(folder, name, scanned_at))
        except SourceError as error:
            rejects.append({"path": name, "reason": str(error)})
    return Scan(TABLES["image_metadata"].frame(records), pd.DataFrame(rejects, columns=["path", "reason"]))


def read_photo(folder: Path, name: str, scanned_at: dt.datetime) -> dict[str, Any]:
    """The row of table ``image_metadata`` of one photo.

    Args:
        folder: the city's folder.
        name: path of the photo in it.
        scanned_at: now; a capture time after tomorrow is not believed.

    Raises:
        SourceError: the photo cannot be read, or has no position.
    """
    from PIL import Image

    if not name.isprintable():
        raise SourceError(f"{name!r} is not a name that a table can keep; rename the photo.")
    try:
        with Image.open(folder / name) as image:
            tags, (width, height) = image.getexif(), image.size
            gps, camera = dict(tags.get_ifd(exif.GPS)), dict(tags.get_ifd(exif.CAMERA))
    except Exception as error:  # a broken file fails anywhere in the decoder: OSError, SyntaxError, struct.error, ...
        raise SourceError(f"{name} cannot be read as a photo ({type(error).__name__}: {error}).") from None
    lon, lat = exif.position(gps) or (math.nan, math.nan)
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise SourceError(f"{name} has no GPS position in its EXIF.")
    author, licence = exif.text(tags.get(exif.ARTIST)), exif.text(tags.get(exif.COPYRIGHT))
    return {
        "image_id": photo_id(name),
        "sequence_id": sequence_id(name),
        "lon": lon,
        "lat": lat,
        "altitude_m": _altitude(gps),
        "computed_lon": None,
        "computed_lat": None,
        "computed_altitude_m": None,
        "compass_deg": heading % 360.0 if (heading := exif.number(gps.get(17))) is not None else None,
        "computed_compass_deg": None,
        "computed_rotation": None,
        "captured_at": _time(camera, scanned_at),
        "camera_type": "perspective",
        "camera_parameters": _focal(camera),
        "width": width,
        "height": height,
        "exif_orientation": turned if (turned := tags.get(exif.ORIENTATION)) in range(1, 9) else 1,
        "make": exif.text(tags.get(exif.MAKE)),
        "model": exif.text(tags.get(exif.MODEL)),
        "is_pano": False,
        "quality_score": None,
        "creator_id": None,
        "creator_username": author,
        "organization_id": None,
        "sfm_cluster_id": None,
        "source_path": name,
        "licence": licence or "own photo",
        "attribution": f"Own photo {name}" + (f", by {author}" if author else ""),
        "fetched_at": scanned_at,
    }


def photo_id(name: str) -> str:
    """Id of a photo: stable while it keeps its path in the folder, and safe as a file name."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def sequence_id(name: str) -> str:
    """Id of the subfolder that a photo lies in."""
    return photo_id(PurePosixPath(name).parent.as_posix())


def photo_city(folder: Path, box_m: float) -> City:
    """A city around the photos of a folder.

    Raises:
        ConfigError: there is no such folder, or no photo in it has a position.
    """
    found = scan(folder)
    if found.photos.empty:
        why = f" First reason: {found.rejects['reason'].iloc[0]}" if len(found.rejects) else ""
        raise ConfigError(
            f"No photo in {folder} has a GPS position ({len(found.rejects)} JPEG files looked at).{why} "
            "Give a folder of geotagged JPEGs."
        )
    lon, lat = found.photos["lon"].to_numpy(float), found.photos["lat"].to_numpy(float)
    bounds = Bounds(float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())).padded(PAD_M)
    west, south, east, north = (round(v, 7) for v in bounds.as_list())
    return City(
        bbox=(west, south, east, north),
        origin=(west, south),
        box_m=box_m,
        photos=folder,
        aoi=None,
        graph_url=None,
        tiles_url=None,
    )


def sequence_rows(photos: pd.DataFrame) -> pd.DataFrame:
    """Rows of table ``sequence_ids`` of the photos of a box: one a folder.

    Args:
        photos: rows of ``image_metadata`` of the whole city, with a column ``here``: whether it lies in the box.
    """
    groups = photos.groupby("sequence_id")["here"].agg(["size", "sum"])
    groups = groups.loc[groups["sum"] > 0]
    return pd.DataFrame(
        {
            "sequence_id": pd.Series(groups.index.to_list(), dtype=object),
            "n_images": groups["size"].to_numpy(int),
            "n_in_tiles": np.zeros(len(groups), int),
            "n_in_box": groups["sum"].to_numpy(int),
            "first_seen_in": pd.Series(["photos"] * len(groups), dtype=object),
            "closed": np.ones(len(groups), bool),
        }
    )


def candidate_rows(photos: pd.DataFrame) -> pd.DataFrame:
    """Rows of table ``sequence_images`` of the photos of a box."""
    flags = {name: np.zeros(len(photos), bool) for name in ("in_tiles", "in_computed", "in_audit", "in_late_closure")}
    listed = np.ones(len(photos), bool)
    known = {"image_id": photos["image_id"], "sequence_id": photos["sequence_id"], "in_closure": listed, **flags}
    return pd.DataFrame(known).reindex(columns=TABLES["sequence_images"].column_names)


def copy(lake: Lake, metadata: pd.DataFrame, folder: Path, partition: Mapping[str, str]) -> Harvest:
    """Put the selected photos of a box into the lake, byte for byte; one that does not decode becomes a dead row.

    Files of photos that are no longer wanted are removed.

    Args:
        lake: where files are put.
        metadata: rows of ``image_metadata`` of the box.
        folder: the city's folder of photos.
        partition: the box, as the lake wants it.
    """
    metadata = wanted(metadata)
    rows, kept, n_removed = [], 0, tidy(lake, partition, set(metadata["image_id"]))
    for image_id, name in zip(metadata["image_id"], metadata["source_path"], strict=True):
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            rows.append(dead_row(image_id, "original", f"{name} cannot be read ({error.strerror}).", 1))
            continue
        if problem := problem_of(data):
            rows.append(dead_row(image_id, "original", f"{name} is broken: {problem}.", 1))
            continue
        key = lake.key("images", f"{image_id}.jpg", **partition)
        if lake.exists(key) and lake.get_bytes(key) == data:
            kept += 1
        else:
            lake.put_bytes(key, data)
        rows.append(file_row(image_id, "original", key, data, 1))
    return Harvest(TABLES["image_files"].frame(rows), len(rows) - kept, kept, n_removed)


def _altitude(gps: Mapping[int, Any]) -> float | None:
    metres = exif.number(gps.get(6))
    below = gps.get(5) in (1, b"\x01")
    return None if metres is None else -metres if below else metres


def _time(camera: Mapping[int, Any], scanned_at: dt.datetime) -> dt.datetime | None:
    text, zone = exif.text(camera.get(0x9003)), exif.text(camera.get(0x9011)) or "+00:00"
    try:
        time = dt.datetime.strptime(f"{text} {zone}", "%Y:%m:%d %H:%M:%S %z").astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return None
    return time if plausible(time, scanned_at) else None


def _focal(camera: Mapping[int, Any]) -> list[float] | None:
    """Focal length over the longer side, no distortion, of the focal length that a 36 mm film would have."""
    focal_mm = exif.number(camera.get(0xA405))
    return [focal_mm / 36.0, 0.0, 0.0] if focal_mm and focal_mm > 0 else None
