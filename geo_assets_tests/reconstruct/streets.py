"""A made street whose features are written by hand: matching is tested in seconds, without photos."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.lake import Lake
from geo_assets.reconstruct.features import image_name
from geo_assets.tables import TABLES

WIDTH, HEIGHT, FOCAL = 640, 480, 500.0
N_POINTS = 900


@dataclass(frozen=True)
class Street:
    """Cameras ``step_m`` apart that look east along a street with two facades.

    Attributes:
        n: number of cameras.
        step_m: distance between two of them [m].
        homes: the box of each camera.
        keys: what stands for the pixels of each: a camera with another key has other features.
        blind: numbers of the cameras without keypoints.
    """

    n: int = 8
    step_m: float = 4.0
    homes: Sequence[str] = ()
    keys: dict[int, str] = field(default_factory=dict)
    blind: frozenset[int] = frozenset()

    def home(self, k: int) -> str:
        return self.homes[k] if self.homes else "r00c00"


def write_street(
    lake: Lake, street: Street, only: Sequence[int] | None = None, city: str = "demo", box: str = "r00c00"
) -> pd.DataFrame:
    """Write table ``gps_db`` and the database under ``files/features`` for one box; returns the table's rows.

    The numbers in ``only`` take part; an image has the same id and features in every box.
    """
    import tempfile

    numbers = list(range(street.n)) if only is None else list(only)
    features = {k: _features(street, k) for k in numbers}
    rows = [_row(street, k, len(features[k][0])) for k in numbers]
    frame = TABLES["gps_db"].frame(rows)
    with tempfile.TemporaryDirectory() as folder:
        published = Path(folder) / "features"
        published.mkdir()
        _write_database(published / "database.db", rows, features)
        lake.publish(published, lake.key("features", city=city, box=box))
    lake.write("gps_db", frame, note={"origin": [11.5, 48.1, 500.0]}, city=city, box=box)
    return frame


def _row(street: Street, k: int, n_keypoints: int) -> dict[str, Any]:
    row: dict[str, Any] = {c.name: None for c in TABLES["gps_db"].columns}
    row |= {
        "image_id": f"i{k:03d}",
        "colmap_image_id": 100 + k,
        "camera_id": 1,
        "sequence_id": "s",
        "frame_id": 100 + k,
    }
    row |= {"east_m": k * street.step_m, "north_m": 0.0, "up_m": 0.0, "sigma_xy_m": 3.0, "sigma_z_m": 10.0}
    row |= {"heading_deg": 90.0, "captured_at": pd.Timestamp("2024-05-01", tz="UTC") + pd.Timedelta(seconds=k)}
    row |= {"home_box": street.home(k), "width": WIDTH, "height": HEIGHT, "n_keypoints": n_keypoints}
    row |= {"photo_id": f"i{k:03d}", "path": f"files/none/{k}.jpg", "feature_key": f"key-{street.keys.get(k, '')}{k}"}
    return row | {"known_upright": True, "camera_model": "SIMPLE_RADIAL", "known_focal": False}


def _features(street: Street, k: int) -> tuple[Any, Any]:
    """Keypoints [m, 4] and descriptors uint8 [m, 128] of the points of the facades that camera ``k`` sees."""
    if k in street.blind:
        return np.zeros((0, 4), np.float32), np.zeros((0, 128), np.uint8)
    world = np.random.default_rng(1)
    points = np.column_stack(
        [
            world.uniform(5, 5 + street.n * street.step_m + 40, N_POINTS),  # along the street
            world.choice([-7.0, 7.0], N_POINTS) + world.uniform(-1, 1, N_POINTS),  # to the right
            world.uniform(-6, 2, N_POINTS),  # downwards
        ]
    )
    faces = np.abs(world.normal(size=(N_POINTS, 128))) ** 2
    ahead = points - [k * street.step_m, 0.0, 0.0]
    xy = ahead[:, 1:] / np.maximum(ahead[:, :1], 1e-9) * FOCAL + [WIDTH / 2, HEIGHT / 2]
    seen = (ahead[:, 0] > 3) & (ahead[:, 0] < 45) & np.all((xy > 0) & (xy < [WIDTH, HEIGHT]), axis=1)
    noise = np.random.default_rng([2, k, *street.keys.get(k, "").encode()])
    xy = xy[seen] + noise.normal(0, 0.4, (int(seen.sum()), 2))
    faces = faces[seen] + noise.normal(0, 0.05, (int(seen.sum()), 128))
    faces = np.clip(512 * faces / np.linalg.norm(faces, axis=1, keepdims=True), 0, 255)
    return np.column_stack([xy, np.ones(len(xy)), np.zeros(len(xy))]).astype(np.float32), faces.astype(np.uint8)


def _write_database(path: Path, rows: list[dict[str, Any]], features: dict[int, tuple[Any, Any]]) -> None:
    import pycolmap

    with pycolmap.Database.open(str(path)) as db:
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", FOCAL, WIDTH, HEIGHT)
        db.write_camera(camera, use_camera_id=True)
        rig = pycolmap.Rig(rig_id=1)
        rig.add_ref_sensor(camera.sensor_id)
        db.write_rig(rig, use_rig_id=True)
        for row, (keypoints, descriptors) in zip(rows, features.values(), strict=True):
            number = row["colmap_image_id"]
            image = pycolmap.Image(name=image_name(row["image_id"]), camera_id=1, image_id=number)
            db.write_image(image, use_image_id=True)
            frame = pycolmap.Frame()
            frame.frame_id, frame.rig_id = number, 1
            frame.add_data_id(image.data_id)
            db.write_frame(frame, use_frame_id=True)
            db.write_keypoints(number, keypoints)
            db.write_descriptors(number, _descriptors(descriptors))
    with contextlib.closing(sqlite3.connect(path)) as con:
        con.execute("pragma journal_mode = delete")


def _descriptors(data: Any) -> Any:
    import pycolmap

    return pycolmap.FeatureDescriptors(pycolmap.FeatureExtractorType.SIFT, data)
