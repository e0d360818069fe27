import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geo_assets.demo import world as worlds
from geo_assets.demo.place import demo_city, demo_frame
from geo_assets.demo.scene import Scene
from geo_assets.demo.world import World
from geo_assets.errors import GeoAssetsError


def photo(world: World, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(world.jpeg(image_id))), float) / 255


def test_images_look_like_the_platforms(world: World) -> None:
    assert len(world.by_id) == len(world.images) <= 96
    for image in world.images:
        assert re.fullmatch(r"[1-9]\d{14,15}", image.id)
        assert re.fullmatch(r"[\w-]{22}", image.sequence_id, re.ASCII)
        assert "-" in image.sequence_id and "_" in image.sequence_id
        assert 1714521600000 <= image.captured_at_ms < 1717200000000  # May 2024
        assert 0 <= image.compass_deg < 360
        present = [v is not None for k, v in dataclasses.asdict(image).items() if k.startswith("computed")]
        assert all(present) or not any(present)
    computed = sum(image.computed_lon is not None for image in world.images) / len(world.images)
    assert 0.75 < computed < 0.95


def test_sequences(world: World) -> None:
    assert sorted(len(s) for s in world.sequences.values()) == [1, 2, 20, 20, 26, 26]
    assert sum(image.is_pano for image in world.images) == 1
    for sequence in world.sequences.values():
        times = [image.captured_at_ms for image in sequence]
        assert times == sorted(set(times))


def test_each_box_has_its_arm(world: World) -> None:
    grid = demo_city().grid
    boxes = Counter(grid.box_at(image.lon, image.lat) for image in world.images if not image.is_pano)
    assert set(boxes) == set(grid)
    assert all(20 <= n <= 27 for n in boxes.values())


def test_every_image_is_inside_the_city_by_every_position(world: World) -> None:
    for image in world.images:
        assert demo_city().bounds.contains(image.lon, image.lat)
        assert demo_city().bounds.contains(image.computed_lon or image.lon, image.computed_lat or image.lat)


def test_noise_has_the_size_that_is_promised(world: World) -> None:
    frame = demo_frame()
    truth = np.array([world.truth[image.id].centre for image in world.images])
    recorded = frame.enu(*(np.array([getattr(i, k) for i in world.images]) for k in ("lon", "lat", "altitude_m")))
    error = recorded - truth
    np.testing.assert_allclose(error.std(0), [3 / np.sqrt(2), 3 / np.sqrt(2), 5], rtol=0.25)
    with_pose = [i for i in world.images if i.computed_lon is not None]
    names = ("computed_lon", "computed_lat", "computed_altitude_m")
    computed = frame.enu(*(np.array([getattr(i, k) for i in with_pose], float) for k in names))
    error_computed = computed - np.array([world.truth[i.id].centre for i in with_pose])
    np.testing.assert_allclose(error_computed.std(0), [3 / np.sqrt(2), 3 / np.sqrt(2), 5], rtol=0.25)
    both = np.array([i.computed_lon is not None for i in world.images])
    assert abs(np.corrcoef(error[both, 0], error_computed[:, 0])[0, 1]) < 0.35


def test_compass_and_rotation_follow_the_true_camera(world: World) -> None:
    from scipy.spatial.transform import Rotation

    off = []
    for image in world.images:
        camera = world.truth[image.id]
        np.testing.assert_allclose(camera.cam_from_world @ camera.cam_from_world.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(camera.cam_from_world) == pytest.approx(1)
        roll = np.degrees(np.arcsin(camera.cam_from_world[0, 2]))  # height of the camera's right
        assert abs(roll) < 2
        east, north, _ = camera.cam_from_world[2]
        off.append((image.compass_deg - np.degrees(np.arctan2(east, north)) + 180) % 360 - 180)
        if image.computed_rotation:
            between = Rotation.from_rotvec(image.computed_rotation) * Rotation.from_matrix(camera.cam_from_world).inv()
            assert np.degrees(between.magnitude()) < 3
    assert 3.5 < np.std(off) < 6.5


def test_photos_are_there_and_differ(world: World) -> None:
    sizes = Counter()
    for image in world.images:
        picture = Image.open(io.BytesIO(world.jpeg(image.id)))
        assert picture.size == (image.width, image.height)
        sizes[picture.size] += 1
        pixels = np.asarray(picture, float)
        assert pixels.std() > 15, "a street has contrast"
        assert 60 < pixels.mean() < 180
    assert sizes == {(480, 360): len(world.images) - 1, (960, 480): 1}
    assert len({world.jpeg(image.id) for image in world.images}) == len(world.images)


def test_depth_takes_each_pixel_to_its_place_in_the_next_photo(world: World, scene: Scene) -> None:
    """The true cameras are those of the photos: colours agree where depth says that both see the same spot."""
    ids = [image.id for image in max(world.sequences.values(), key=len)]
    a, b = ids[5], ids[6]
    camera_a, camera_b = world.truth[a], world.truth[b]
    _, depth_a = scene.render(camera_a, samples=1)
    _, depth_b = scene.render(camera_b, samples=1)
    rows, columns = np.mgrid[4:356:3, 4:476:3]
    pixels = np.column_stack([columns.ravel() + 0.5, rows.ravel() + 0.5])
    z = depth_a[rows.ravel(), columns.ravel()]
    seen = (z > 0) & (z < 40)
    points = camera_a.unproject(pixels[seen], z[seen])
    there, z_there = camera_b.project(points)
    inside = (z_there > 0.5) & (there > 2).all(1) & (there < [477, 357]).all(1)
    j, i = there[inside].astype(int).T
    same = np.abs(depth_b[i, j] - z_there[inside]) < 0.02 * z_there[inside]  # not hidden behind something nearer
    assert same.sum() > 3000
    colour_a = photo(world, a)[rows.ravel(), columns.ravel()][seen][inside][same]
    colour_b = photo(world, b)[i, j][same]
    grey_a, grey_b = colour_a.mean(1), colour_b.mean(1)
    assert np.corrcoef(grey_a, grey_b)[0, 1] > 0.9
    # The same spots a few pixels off agree far less: the test is able to fail.
    off = photo(world, b)[i, np.minimum(j + 8, 479)][same].mean(1)
    assert np.corrcoef(grey_a, off)[0, 1] < np.corrcoef(grey_a, grey_b)[0, 1] - 0.1


def test_projection_and_its_inverse(world: World) -> None:
    camera = world.truth[world.images[0].id]
    pixels, depth = np.array([[240.0, 180.0], [3.0, 350.0]]), np.array([5.0, 31.0])
    back, z = camera.project(camera.unproject(pixels, depth))
    np.testing.assert_allclose(back, pixels, atol=1e-9)
    np.testing.assert_allclose(z, depth)
    ahead = camera.unproject(pixels[:1], depth[:1])[0] - camera.centre
    np.testing.assert_allclose(ahead, 5 * camera.cam_from_world[2], atol=1e-9)


def test_rendering_again_gives_the_same_bytes(world: World, scene: Scene) -> None:
    described = worlds._describe()
    for image, camera, drive in (described[0], described[40]):
        again = worlds._photograph(scene.render(camera)[0], drive, int(image.id))
        assert again == world.jpeg(image.id)


def test_describing_again_in_another_process_gives_the_same_world(world: World) -> None:
    code = (
        "import json, dataclasses; from geo_assets.demo.world import _describe, _key; d = _describe();"
        "print(json.dumps([_key(d), [dataclasses.asdict(i) for i, _, _ in d]]))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    key, images = json.loads(printed)
    assert world.folder.name == f"world-{key}"
    assert images == json.loads(json.dumps([dataclasses.asdict(i) for i in world.images]))


def test_describing_needs_no_compiler() -> None:
    code = "import sys; from geo_assets.demo.world import _describe; _describe(); print('numba' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three photos, and a picture that costs nothing: these tests are about the cache."""
    described = worlds._describe()[:3]
    monkeypatch.setattr(worlds, "_describe", lambda: described)
    monkeypatch.setattr("geo_assets.demo.scene.build_scene", lambda seed: _Blank())


class _Blank:
    fails_at = ""

    def render(self, camera: object) -> tuple[np.ndarray, None]:
        return np.full((8, 8, 3), 0.5, np.float32), None


@pytest.mark.usefixtures("quick")
def test_a_cache_is_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("GEO_ASSETS_DEMO_CACHE", str(tmp_path / "cache"))
    first = worlds.demo_world(log=said.append)
    second = worlds.demo_world(log=said.append)
    assert first.folder == second.folder and first.folder.parent == tmp_path / "cache"
    assert len(said) == 1
    assert len(list(first.folder.iterdir())) == 3


@pytest.mark.usefixtures("quick")
def test_a_render_that_dies_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worlds, "_photograph", dying)
        worlds.demo_world(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]
    # A kill leaves its temporary folder; the next render takes it away.
    described = worlds._describe()
    stale = tmp_path / f"world-{worlds._key(described)}.abc.tmp"
    stale.mkdir()
    (stale / "1.jpg").write_bytes(b"half")
    world = worlds.demo_world(tmp_path)
    assert not stale.exists()
    assert world.jpeg(world.images[0].id).startswith(b"\xff\xd8")


@pytest.mark.usefixtures("quick")
def test_errors_name_the_image(tmp_path: Path) -> None:
    world = worlds.demo_world(tmp_path)
    with pytest.raises(GeoAssetsError, match="no image '12'"):
        world.jpeg("12")
    os.remove(world.folder / f"{world.images[0].id}.jpg")  # noqa: PTH107
    with pytest.raises(GeoAssetsError, match=r"has lost .*Delete the folder"):
        world.jpeg(world.images[0].id)
