from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geo_assets.errors import SourceError, TrainingError
from geo_assets.splats.dataset import make_dataset, read_scene
from geo_assets_tests.splats.scenes import blobs, ring, scene_of, write_colmap


@pytest.mark.parametrize("camera_model", ["PINHOLE", "SIMPLE_RADIAL"])
def test_photos_are_undistorted_and_reduced(tmp_path: Path, camera_model: str) -> None:
    scene = scene_of(blobs(), ring(4))
    write_colmap(scene, tmp_path / "model", tmp_path / "photos", camera_model)
    (tmp_path / "set").mkdir()
    names = {"000.jpg": "drive"}
    make_dataset(tmp_path / "model", tmp_path / "photos", tmp_path / "set", max_image_px=32, threads=1, sequences=names)
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == ["images", "sequences.json", "sparse"]
    read = read_scene(tmp_path / "set")
    assert [v.name for v in read.views] == [v.name for v in scene.views]
    assert [v.sequence for v in read.views] == ["drive", "", "", ""]
    camera = read.views[2].camera
    assert (camera.width, camera.height) == (32, 24)
    assert camera.fx == pytest.approx(30)
    assert camera.centre == pytest.approx(scene.views[2].camera.centre, abs=1e-6)
    u, v, _ = camera.project(read.points[read.views[2].point_rows])
    assert np.stack([u, v], axis=1) == pytest.approx(read.views[2].point_px, abs=1e-3)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="could not be undistorted"):
        make_dataset(tmp_path / "no", tmp_path, tmp_path, max_image_px=32)


def test_distorted_cameras_are_refused(tmp_path: Path) -> None:
    write_colmap(scene_of(blobs(), ring(3)), tmp_path / "sparse" / "0", tmp_path / "images", "SIMPLE_RADIAL")
    with pytest.raises(SourceError, match="SIMPLE_RADIAL"):
        read_scene(tmp_path)


def test_missing_photos_are_named(tmp_path: Path) -> None:
    write_colmap(scene_of(blobs(), ring(3)), tmp_path / "sparse" / "0", tmp_path / "images")
    (tmp_path / "images" / "001.jpg").unlink()
    with pytest.raises(SourceError, match=r"1 of 3 photos .* 001\.jpg is missing"):
        read_scene(tmp_path)
