"""Small inputs of the geotag room: shards, CSVs, photos with EXIF, and places on the sphere."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pandas as pd
import piexif
from PIL import Image

from geo_assets.exif import gps_tags


def jpeg() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 90)).save(sink, "jpeg")
    return sink.getvalue()


def write_shard(path: Path, records: Iterable[Any], cut: int = 0) -> None:
    packed = b"".join(bytes(msgpack.packb(record) or b"") for record in records)
    path.write_bytes(packed[: len(packed) - cut])


def record(photo: str, lon: float, lat: float) -> dict[str, Any]:
    return {"id": photo, "longitude": lon, "latitude": lat, "image": jpeg()}


def write_photo(path: Path, lon: float | None = None, lat: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    gps: dict[int, Any] = {}
    if lon is not None and lat is not None:
        gps = {
            **gps_tags(lon, lat),
            piexif.GPSIFD.GPSDateStamp: b"2014:05:06",
            piexif.GPSIFD.GPSTimeStamp: ((7, 1), (8, 1), (9, 1)),
        }
    exif = piexif.dump({"0th": {piexif.ImageIFD.Artist: b"Ada"}, "GPS": gps})
    sink = io.BytesIO()
    piexif.insert(exif, jpeg(), sink)
    path.write_bytes(sink.getvalue())


def blobs(centres: Iterable[tuple[float, float]], n: int = 30, km: float = 5.0, seed: int = 0) -> pd.DataFrame:
    """Distinct places around centres, longitudes wrapped; columns lon, lat, blob, n_photos."""
    draw = np.random.default_rng(seed)
    frames = []
    for number, (lon, lat) in enumerate(centres):
        east, north = draw.normal(0, km / 111.2, (2, n))
        lons = (lon + east / np.cos(np.radians(lat)) + 180) % 360 - 180
        frames.append(pd.DataFrame({"lon": lons, "lat": np.clip(lat + north, -90, 90), "blob": number}))
    places = pd.concat(frames, ignore_index=True)
    return places.assign(n_photos=draw.integers(1, 6, len(places)))


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two labellings group alike, whatever the numbers; noise must be noise in both."""
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist())) and all(
        (a < 0) == (b < 0) for a, b in pairs
    )
