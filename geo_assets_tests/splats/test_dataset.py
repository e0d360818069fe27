from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from geo_assets.errors import SourceError, TrainingError
from geo_assets.splats import dataset as dataset_module
from geo_assets.splats.dataset import check_memory, check_room, make_dataset, read_scene
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


def test_a_disk_that_is_too_small_is_refused_with_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 2_000_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    check_room(tmp_path, photo_px=10**9, n_photos=100, n_splats=100_000, bytes_per_splat=1000)
    said = r"needs about 2\.7 GB in .* 2\.0 GB are free: 2\.0 GB for 200 photos of 10\.0 Mpx, 0\.5 GB for 5 files of 100,000 Gaussians of 1000 bytes, 0\.2 GB"
    with pytest.raises(TrainingError, match=said):
        check_room(tmp_path, photo_px=2 * 10**9, n_photos=200, n_splats=100_000, bytes_per_splat=1000)


def test_too_little_memory_is_refused_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "_available_bytes", lambda: 8 * 10**9)
    check_memory(photo_px=9 * 10**8, n_photos=400, n_splats=1_000_000, bytes_per_splat=92)
    with pytest.raises(TrainingError, match=r"15\.7 GB of memory, .* 10\.0 GB for 1,000 photos of 2\.0 Mpx, 5\.5 GB"):
        check_memory(photo_px=2 * 10**9, n_photos=1000, n_splats=4_000_000, bytes_per_splat=92)
    monkeypatch.setattr(dataset_module, "_available_bytes", lambda: None)
    check_memory(photo_px=10**12, n_photos=1000, n_splats=10, bytes_per_splat=92)
