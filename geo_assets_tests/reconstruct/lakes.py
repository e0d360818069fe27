"""Lakes with harvested tables made straight from photos, so that the room is tested without the harvest."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import piexif
from PIL import Image

from geo_assets.grid import Bounds, Grid
from geo_assets.lake import Lake
from geo_assets.tables import TABLES

CITY = "demo"


def metadata_row(image_id: str, **known: Any) -> dict[str, Any]:
    """A row of ``image_metadata``: what is known, and null for the rest."""
    row: dict[str, Any] = {c.name: None for c in TABLES["image_metadata"].columns}
    row |= {"image_id": image_id, "sequence_id": "s", "camera_type": "perspective", "is_pano": False}
    row |= {"captured_at": pd.Timestamp("2024-05-01", tz="UTC"), "fetched_at": pd.Timestamp("2024-06-01", tz="UTC")}
    return row | known


def write_box(lake: Lake, city: str, box: str, rows: list[dict[str, Any]], photos: dict[str, bytes]) -> None:
    """Write both tables and the files of one box; ``photos`` holds the JPEG bytes by image id."""
    files = []
    for row in rows:
        image_id = row["image_id"]
        data = photos[image_id]
        key = lake.key("images", f"{image_id}.jpg", city=city, box=box)
        lake.put_bytes(key, data)
        file = {"image_id": image_id, "size": "2048", "path": key, "bytes": len(data), "status": "done", "attempts": 1}
        width, height = row["width"], row["height"]
        file |= {"sha256": hashlib.sha256(data).hexdigest(), "width": width, "height": height, "reason": None}
        files.append(file)
    for table, found in (("image_metadata", rows), ("image_files", files)):
        lake.write(table, TABLES[table].frame(found), city=city, box=box)


def lund_lake(root: Path, photos: Path) -> tuple[Lake, Grid]:
    """A lake with one box of 500 m around the 29 photos of Lund: one phone, one sequence, positions in EXIF."""
    rows, data = [], {}
    for number, path in enumerate(sorted(photos.glob("*.jpg"))):
        exif = piexif.load(str(path))
        gps = exif["GPS"]
        image_id = f"lund{path.stem}"
        with Image.open(path) as image:
            width, height = image.size
        rows.append(
            metadata_row(
                image_id,
                lon=_degrees(gps[piexif.GPSIFD.GPSLongitude]),
                lat=_degrees(gps[piexif.GPSIFD.GPSLatitude]),
                altitude_m=gps[piexif.GPSIFD.GPSAltitude][0] / gps[piexif.GPSIFD.GPSAltitude][1],
                exif_orientation=exif["0th"][piexif.ImageIFD.Orientation],
                captured_at=pd.Timestamp("2014-06-07", tz="UTC") + dt.timedelta(seconds=8 * number),
                width=width,
                height=height,
            )
        )
        data[image_id] = path.read_bytes()
    lon, lat = (sum(row[k] for row in rows) / len(rows) for k in ("lon", "lat"))
    half = Bounds(lon, lat, lon, lat).padded(250)
    grid = Grid(half.west, half.south, 500.0, 1, 1)
    lake = Lake(root)
    write_box(lake, "lund", "r00c00", rows, data)
    return lake, grid


def _degrees(parts: Any) -> float:
    d, m, s = (a / b for a, b in parts)
    return d + m / 60 + s / 3600
