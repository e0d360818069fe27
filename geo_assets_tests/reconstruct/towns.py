"""A town of two boxes of 100 m side by side on the equator, with drawn photos."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from geo_assets.grid import METRES_PER_DEGREE, Grid
from geo_assets.lake import Lake
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.lakes import metadata_row, write_box

GRID = Grid(10.0, 0.0, 100.0, 1, 2)  # on the equator a metre is as many degrees either way
METRE = 1 / METRES_PER_DEGREE
OPTIONS = Reconstruct(threads=1)
WEST = {"city": "town", "box": "r00c00"}
EAST = {"city": "town", "box": "r00c01"}


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A JPEG with corners to find."""
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(sink, "JPEG")
    return sink.getvalue()


def rows(*east_m: float, prefix: str = "i", every_s: float = 1.0, **known: Any) -> list[dict[str, Any]]:
    """Metadata rows at distances east of the grid's origin, 50 m north of it, in order of time."""
    common = {"altitude_m": 5.0, "lat": 50 * METRE, "width": 320, "height": 240, "exif_orientation": 1} | known
    began = pd.Timestamp("2024-05-01", tz="UTC")
    return [
        metadata_row(
            f"{prefix}{k}",
            **{"lon": 10.0 + e * METRE, "captured_at": began + pd.Timedelta(seconds=every_s * k)} | common,
        )
        for k, e in enumerate(east_m)
    ]


def lake_with(
    root: Path,
    west: list[dict[str, Any]],
    east: list[dict[str, Any]] | None = None,
    photos: dict[str, bytes] | None = None,
) -> Lake:
    """A lake with one or both boxes harvested; each photo is drawn from its id unless it is given."""
    lake = Lake(root)
    for where, found in ((WEST, west), (EAST, east)):
        if found is not None:
            drawn = {row["image_id"]: photo(int.from_bytes(row["image_id"].encode(), "big")) for row in found}
            write_box(lake, where["city"], where["box"], found, drawn | (photos or {}))
    return lake
