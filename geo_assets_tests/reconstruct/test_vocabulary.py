from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from geo_assets.reconstruct.stage import run_step


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of four scenes: images of one scene share most descriptors."""
    import pycolmap

    path = tmp_path_factory.mktemp("vocabulary") / "database.db"
    random = np.random.default_rng(0)
    scenes = random.integers(0, 256, (4, 300, 128))
    with pycolmap.Database.open(path) as db:
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 500.0, 640, 480)
        db.write_camera(camera, use_camera_id=True)
        for number in range(12):
            name = f"scene{number % 4}_{number // 4}.jpg"
            db.write_image(pycolmap.Image(name=name, camera_id=1, image_id=number + 1), use_image_id=True)
            seen = scenes[number % 4] + random.integers(-6, 7, (300, 128))
            values = np.clip(seen, 0, 255).astype(np.uint8)
            db.write_keypoints(number + 1, random.uniform(0, 480, (300, 6)).astype(np.float32))
            kind = pycolmap.FeatureExtractorType.SIFT
            db.write_descriptors(number + 1, pycolmap.FeatureDescriptors(kind, values))
    return path


def test_images_of_one_scene_find_each_other(database: Path, tmp_path: Path):
    wanted = {"database": str(database), "n_per_image": 2, "seed": 0}
    found = run_step("propose_by_vocabulary", wanted, tmp_path)["pairs"]
    assert {(a[:6], b[:6]) for a, b in found} == {(f"scene{k}", f"scene{k}") for k in range(4)}
    assert len(found) == 12
    assert run_step("propose_by_vocabulary", wanted, tmp_path)["pairs"] == found


def test_a_database_without_descriptors_has_no_proposals(database: Path, tmp_path: Path):
    empty = tmp_path / "empty.db"
    empty.write_bytes(database.read_bytes())
    with contextlib.closing(sqlite3.connect(empty)) as con, con:
        con.execute("delete from descriptors")
    assert run_step("propose_by_vocabulary", {"database": str(empty), "n_per_image": 3}, tmp_path)["pairs"] == []
