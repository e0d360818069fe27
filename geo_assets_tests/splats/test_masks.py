"""Masks on their way from the user's photo to the pinhole photo that is trained on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geo_assets.errors import SourceError
from geo_assets.splats.cameras import Camera, Scene
from geo_assets.splats.dataset import Made, make_dataset, mask_path, read_scene, with_photo
from geo_assets.splats.undistort import _source_pixels
from geo_assets_tests.splats.scenes import blobs, ring, scene_of, write_colmap

WIDTH, HEIGHT = 320, 240
LENS = Camera(np.eye(3), np.zeros(3), 250, 250, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)


def squares() -> np.ndarray:
    """Four squares near the corners, where a lens bends most, and one in the middle; true in the squares."""
    picture = np.zeros((HEIGHT, WIDTH), bool)
    for row, column in ((20, 25), (20, 255), (180, 25), (180, 255), (100, 140)):
        picture[row : row + 40, column : column + 40] = True
    return picture


def put_mask(path: Path, kept: np.ndarray) -> Path:
    Image.fromarray(kept.astype(np.uint8) * 255).save(path)
    return path


def put_scene(folder: Path, n: int = 3, distortion: float = 0.0, photo: np.ndarray | None = None) -> Scene:
    cameras = [Camera.looking(c.centre, (0, 0, 0), like=LENS) for c in ring(n, turn=0.5)]
    scene = scene_of(blobs(), cameras)
    if photo is not None:
        pixels = np.repeat(photo[..., None].astype(np.uint8) * 255, 3, axis=2)
        scene = dataclasses.replace(scene, views=[dataclasses.replace(v, photo=pixels) for v in scene.views])
    model = "SIMPLE_RADIAL" if distortion else "PINHOLE"
    write_colmap(scene, folder / "model", folder / "photos", model, distortion=distortion)
    (folder / "set").mkdir()
    return scene


def made(folder: Path, masks: dict[str, Path], max_image_px: int = 4000) -> Made:
    return make_dataset(
        folder / "model", folder / "photos", folder / "set", max_image_px=max_image_px, threads=1, masks=masks
    )


@pytest.mark.parametrize("max_image_px", [4000, 200])
@pytest.mark.parametrize("distortion", [-0.2, 0.15])
def test_a_masked_square_lands_where_the_photo_of_it_lands(
    tmp_path: Path, distortion: float, max_image_px: int
) -> None:
    put_scene(tmp_path, distortion=distortion, photo=squares())
    done = made(tmp_path, {"001.jpg": put_mask(tmp_path / "m.png", ~squares())}, max_image_px)
    assert done == Made(3)
    views = read_scene(tmp_path / "set").views
    assert [v.mask is not None for v in views] == [False, True, False]
    mask, photo = views[1].mask, views[1].photo[..., 1].astype(float) / 255
    assert mask is not None and mask.shape == photo.shape
    seen = photo > 0.5
    assert np.abs(photo - squares().mean()).mean() > 0.1, "the picture must show something"
    edge = np.zeros_like(seen)
    edge[1:-1, 1:-1] = (np.abs(np.diff(seen[:, 1:-1].astype(int), axis=0))[:-1] > 0) | (
        np.abs(np.diff(seen[1:-1].astype(int), axis=1))[:, :-1] > 0
    )
    assert (mask == seen).mean() < 0.1 * edge.mean(), "only pixels of an edge may differ, and few of them"
    for part in (np.s_[:, : photo.shape[1] // 3], np.s_[:, -(photo.shape[1] // 3) :]):
        hidden = np.argwhere(~mask[part]).mean(axis=0)
        weights = photo[part]
        shown = np.array([(np.indices(weights.shape)[i] * weights).sum() / weights.sum() for i in (0, 1)])
        assert hidden == pytest.approx(shown, abs=0.15)


def test_what_lies_outside_of_the_photo_is_ignored() -> None:
    import pycolmap

    source = pycolmap.Camera(model="SIMPLE_RADIAL", width=100, height=80, params=[80, 50, 40, -0.1], camera_id=1)
    wide = pycolmap.Camera(model="PINHOLE", width=200, height=80, params=[80, 80, 100, 40], camera_id=2)
    places = _source_pixels(source, wide, (80, 100))
    assert places.shape == (80, 200)
    assert (places[:, :40] == -1).all() and (places[:, -40:] == -1).all()
    assert places[40, 100] == 40 * 100 + 50
    assert places.max() < 8000
    twice = _source_pixels(source, wide, (160, 200))
    assert twice[40, 100] // 200 in (80, 81) and twice[40, 100] % 200 in (100, 101)


@pytest.mark.parametrize("what", ["garbage", "shape", "missing"])
def test_a_bad_mask_is_told_and_the_photo_used_without(tmp_path: Path, what: str) -> None:
    put_scene(tmp_path)
    path = tmp_path / "m.png"
    if what == "garbage":
        path.write_bytes(b"\x89PNG but no more")
    elif what == "shape":
        put_mask(path, np.zeros((100, 100), bool))
    done = made(tmp_path, {"000.jpg": path})
    assert done.n_photos == 3 and len(done.warnings) == 1
    assert done.warnings[0].startswith("The mask of 000.jpg ")
    assert "used without" in done.warnings[0]
    assert all(v.mask is None for v in read_scene(tmp_path / "set").views)


def test_a_photo_that_is_hidden_is_left_out(tmp_path: Path) -> None:
    scene = put_scene(tmp_path, n=4)
    nearly = np.zeros((HEIGHT, WIDTH), bool)
    nearly[:10] = True  # 4 % are left
    enough = np.zeros((HEIGHT, WIDTH), bool)
    enough[:14] = True
    masks = {
        "001.jpg": put_mask(tmp_path / "a.png", nearly),
        "002.jpg": put_mask(tmp_path / "b.png", enough),
        "003.jpg": put_mask(tmp_path / "c.png", np.ones((HEIGHT, WIDTH), bool)),
    }
    assert made(tmp_path, masks) == Made(3, ("001.jpg",))
    read = read_scene(tmp_path / "set")
    assert [v.name for v in read.views] == ["000.jpg", "002.jpg", "003.jpg"]
    assert [v.mask is None for v in read.views] == [True, False, True]
    assert not (tmp_path / "set" / "images" / "001.jpg").exists()
    kept = read.views[1]
    assert kept.camera.centre == pytest.approx(scene.views[2].camera.centre, abs=1e-6)
    assert sorted(p.name for p in (tmp_path / "set" / "masks").iterdir()) == ["002.jpg.png"]
    u, v, _ = kept.camera.project(read.points[kept.point_rows])
    assert len(kept.point_rows) and np.stack([u, v], axis=1) == pytest.approx(kept.point_px, abs=1e-3)


def test_a_hidden_view_of_a_frame_leaves_the_others(tmp_path: Path) -> None:
    """The views of a panorama share a frame; the one that shows the car goes alone."""
    import pycolmap

    scene = scene_of(blobs(), [Camera.looking(c.centre, (0, 0, 0), like=LENS) for c in ring(4, turn=0.5)])
    model, photos = pycolmap.Reconstruction(), tmp_path / "photos"
    photos.mkdir()
    for camera_id in (1, 2):
        model.add_camera(
            pycolmap.Camera(
                model="PINHOLE", width=WIDTH, height=HEIGHT, params=[250, 250, 160, 120], camera_id=camera_id
            )
        )
    rig = pycolmap.Rig(rig_id=1)
    rig.add_ref_sensor(pycolmap.sensor_t(pycolmap.SensorType.CAMERA, 1))
    turn = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    second = pycolmap.Rigid3d(np.column_stack([turn, np.zeros(3)]))
    rig.add_sensor(pycolmap.sensor_t(pycolmap.SensorType.CAMERA, 2), second)
    model.add_rig(rig)
    names = {}
    for i, view in enumerate(scene.views, 1):
        pose = np.column_stack([view.camera.rotation, view.camera.translation])
        frame = pycolmap.Frame(frame_id=i, rig_id=1, rig_from_world=pycolmap.Rigid3d(pose))
        for camera_id in (1, 2):
            image_id = 10 * i + camera_id
            frame.add_data_id(pycolmap.data_t(pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera_id), image_id))
            names[image_id] = (f"{i}_{camera_id}.jpg", camera_id, i)
            Image.fromarray(view.photo).save(photos / f"{i}_{camera_id}.jpg")
        model.add_frame(frame)
    for image_id, (name, camera_id, frame_id) in names.items():
        model.add_image(pycolmap.Image(name=name, camera_id=camera_id, image_id=image_id, frame_id=frame_id))
    for i in range(1, 5):
        model.register_frame(i)
    (tmp_path / "model").mkdir()
    model.write(tmp_path / "model")
    (tmp_path / "set").mkdir()
    hidden = put_mask(tmp_path / "m.png", np.zeros((HEIGHT, WIDTH), bool))
    done = made(tmp_path, {f"{i}_2.jpg": hidden for i in range(1, 5)})
    assert done.left_out == ("1_2.jpg", "2_2.jpg", "3_2.jpg", "4_2.jpg")
    views = read_scene(tmp_path / "set").views
    assert [v.name for v in views] == ["1_1.jpg", "2_1.jpg", "3_1.jpg", "4_1.jpg"]
    assert views[3].camera.centre == pytest.approx(scene.views[3].camera.centre, abs=1e-6)


def test_masks_are_read_with_their_photo(tmp_path: Path) -> None:
    put_scene(tmp_path)
    made(tmp_path, {"001.jpg": put_mask(tmp_path / "m.png", ~squares())})
    light = read_scene(tmp_path / "set", photos=False).views[1]
    assert light.photo.size == 0 and light.mask is None
    full = with_photo(light, tmp_path / "set")
    assert full.mask is not None and (full.mask == ~squares()).all(), "without distortion the mask stays as it is"
    put_mask(mask_path(tmp_path / "set", "001.jpg"), np.ones((10, 20), bool))
    with pytest.raises(SourceError, match=r"masks/001\.jpg\.png is 20 x 10 px, not 320 x 240"):
        read_scene(tmp_path / "set")


def test_an_undistorted_photo_is_a_link_and_its_source_is_never_changed(tmp_path: Path) -> None:
    put_scene(tmp_path)
    before = (tmp_path / "photos" / "000.jpg").read_bytes()
    (tmp_path / "links").mkdir()
    for path in (tmp_path / "photos").iterdir():
        (tmp_path / "links" / path.name).symlink_to(path)
    make_dataset(tmp_path / "model", tmp_path / "links", tmp_path / "set", max_image_px=4000, threads=1)
    shutil.rmtree(tmp_path / "links")
    assert (tmp_path / "set" / "images" / "000.jpg").is_symlink()
    assert (tmp_path / "set" / "images" / "000.jpg").read_bytes() == before
    small = tmp_path / "small"
    small.mkdir()
    make_dataset(tmp_path / "model", tmp_path / "photos", small, max_image_px=100, threads=1)
    assert not (small / "images" / "000.jpg").is_symlink()
    assert (tmp_path / "photos" / "000.jpg").read_bytes() == before
