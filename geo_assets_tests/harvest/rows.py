"""Rows of ``image_metadata`` without a server: tracks of images on a plane of metres near the equator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from geo_assets.grid import METRES_PER_DEGREE
from geo_assets.tables import TABLES

LON, LAT = 10.0, 0.001
NOON = pd.Timestamp("2024-05-01 12:00", tz="UTC")


def image(image_id: str, east_m: float | None = 0.0, north_m: float = 0.0, **known: Any) -> dict[str, Any]:
    """A row: what is known, and null for the rest."""
    row: dict[str, Any] = dict.fromkeys(TABLES["image_metadata"].column_names)
    if east_m is not None:
        row |= {"lon": LON + east_m / METRES_PER_DEGREE, "lat": LAT + north_m / METRES_PER_DEGREE}
    row |= {"image_id": image_id, "sequence_id": "s", "captured_at": NOON, "creator_username": "ada", "creator_id": "1"}
    row |= {"licence": "CC BY-SA 4.0", "fetched_at": NOON, "is_pano": False, "attribution": f"by ada, {image_id}"}
    return row | known


def track(sequence: str, places_m: list[float], north_m: float = 0.0, **known: Any) -> list[dict[str, Any]]:
    """Images of one sequence eastwards, ten seconds apart."""
    return [
        image(
            f"{sequence}{k:03d}", east, north_m,
            **{"sequence_id": sequence, "captured_at": NOON + pd.Timedelta(seconds=10 * k)} | known,
        )
        for k, east in enumerate(places_m)
    ]  # fmt: skip


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    """Rows as the lake gives them back."""
    from geo_assets.tables import to_pandas

    table = TABLES["image_metadata"]
    return to_pandas(table.conform(table.frame(list(rows))))


def square(west_m: float, east_m: float, half_m: float = 50.0) -> dict[str, Any]:
    """A GeoJSON polygon around the track, between two distances east."""
    west, east = (LON + m / METRES_PER_DEGREE for m in (west_m, east_m))
    south, north = (LAT + m / METRES_PER_DEGREE for m in (-half_m, half_m))
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def polygons(path: Path, *named: tuple[str | None, dict[str, Any]], key: str = "name") -> Path:
    """A GeoJSON file of polygons with their names."""
    import json

    features = [
        {"type": "Feature", "geometry": shape, "properties": {} if name is None else {key: name}}
        for name, shape in named
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path
