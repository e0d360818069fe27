"""Small worlds without rendering, for the demo server: a street of images and one JPEG a piece."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from geo_assets.demo.server import TOKEN
from geo_assets.demo.world import DemoImage, World
from geo_assets.grid import METRES_PER_DEGREE, Bounds
from geo_assets.harvest.mapillary import Mapillary, Patience
from geo_assets.lake import Lake
from geo_assets.settings import City
from geo_assets.settings import Mapillary as Settings

HURRY = Patience(first_wait_s=0.001, longest_wait_s=0.002, first_pause_s=0.01, pause_s=0.01)
LON, LAT = 0.0005, 0.0005  # near the equator metres are the same both ways


def jpeg(colour: int = 0, size: tuple[int, int] = (64, 48)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, (colour * 37 % 256, 90, 160)).save(sink, "JPEG")
    return sink.getvalue()


def image(i: int, sequence: str, east_m: float, north_m: float, **changes: Any) -> DemoImage:
    lon, lat = LON + east_m / METRES_PER_DEGREE, LAT + north_m / METRES_PER_DEGREE
    known: dict = {
        "id": str(10_000_000_000_000_000 + i),
        "sequence_id": sequence,
        "captured_at_ms": 1_600_000_000_000 + 1000 * i,
        "lon": lon,
        "lat": lat,
        "altitude_m": 12.5,
        "compass_deg": 90.0,
        "computed_lon": lon,
        "computed_lat": lat,
        "computed_altitude_m": 13.0,
        "computed_compass_deg": 91.0,
        "computed_rotation": (1.2, 0.0, 0.0),
        "camera_type": "perspective",
        "camera_parameters": (0.85, 0.0, 0.0),
        "width": 64,
        "height": 48,
        "make": "Maker",
        "model": "Model",
        "creator_id": "7",
        "creator_username": "jürgen",
        "organization_id": None,
        "quality_score": 0.5,
    }
    return DemoImage(**(known | changes))


def world(folder: Path, images: list[DemoImage]) -> World:
    for i, one in enumerate(images):
        (folder / f"{one.id}.jpg").write_bytes(jpeg(i))
    return World(tuple(images), {}, folder)


def street(folder: Path, n: int = 60, step_m: float = 5.0, per_sequence: int = 20) -> World:
    """Images on a line eastwards from the origin of :func:`town`."""
    return world(folder, [image(i, f"seq-{i // per_sequence}_x", 2.0 + i * step_m, 20.0) for i in range(n)])


def town(columns: int = 3, box_m: float = 100.0) -> City:
    """A row of boxes along the street."""
    east = LON + columns * box_m / METRES_PER_DEGREE
    return City(
        bbox=(LON, LAT, east, LAT + box_m / METRES_PER_DEGREE),
        origin=(LON, LAT),
        box_m=box_m,
        photos=None,
        aoi=None,
        graph_url=None,
        tiles_url=None,
    )


def client(address: str, token: str | None = TOKEN, lake: Lake | None = None, **changes: Any) -> Mapillary:
    known: dict[str, Any] = {"graph_url": str(address), "tiles_url": str(address), "tiles_per_minute": 1_000_000}
    return Mapillary(Settings.model_validate(known | {"connections": 4} | changes), token, HURRY, lake)


def around(east_m: float, north_m: float, half_m: float) -> Bounds:
    here = Bounds(LON, LAT, LON, LAT)
    shift = (east_m / METRES_PER_DEGREE, north_m / METRES_PER_DEGREE)
    moved = Bounds(here.west + shift[0], here.south + shift[1], here.east + shift[0], here.north + shift[1])
    return moved.padded(half_m)
