"""Stereo finds a textured wall and floor where they are, the same on any number of threads."""

from __future__ import annotations

import dataclasses

import numba
import numpy as np
import pytest

from geo_assets.splats.cameras import Camera, Scene, View
from geo_assets.splats.cpu.stereo import Depths, depths_of
from geo_assets.splats.cpu.surfels import surfels
from geo_assets.splats.gaussians import rotations_of

WALL_Y, FLOOR_Z, LONGEST_SIDE = 10.0, -1.5, 120


def texture(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Brightness of a surface at two coordinates in metres, smooth and without repetition nearby."""
    waves = [(1.1, 0.3, 0.2), (0.4, 1.3, 1.0), (2.3, 1.7, 2.0), (1.9, -2.6, 0.5), (-3.1, 2.2, 4.0)]
    return 0.5 + np.sum([np.sin(k * a + m * b + phase) for k, m, phase in waves], axis=0) / 12


def photo_of(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a wall at y = 10 on a floor at z = -1.5, uint8, and the depth of each pixel."""
    u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1) @ camera.rotation
    to_wall = (WALL_Y - camera.centre[1]) / rays[..., 1]
    to_floor = np.where(rays[..., 2] < 0, (FLOOR_Z - camera.centre[2]) / np.minimum(rays[..., 2], -1e-9), np.inf)
    depth = np.minimum(to_wall, to_floor)
    place = camera.centre + rays * depth[..., None]
    wall = texture(place[..., 0], place[..., 2])
    gray = np.where(to_floor < to_wall, 0.8 * texture(place[..., 0] + 40, place[..., 1]), wall)
    return np.repeat((gray[..., None] * 255).astype(np.uint8), 3, axis=2), depth


@pytest.fixture(scope="module")
def street() -> Scene:
    lens = Camera(np.eye(3), np.zeros(3), 100, 100, 60, 45, LONGEST_SIDE, 90)
    cameras = [Camera.looking((x, 0, 0), (x, 10, -0.5), like=lens) for x in (-1.5, -0.5, 0.5, 1.5)]
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-3, 3, 60), np.full(60, WALL_Y), rng.uniform(-1, 3, 60)], axis=1)
    views = []
    for i, camera in enumerate(cameras):
        u, v, _ = camera.project(points)
        seen = np.flatnonzero((u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height))
        views.append(View(f"{i}.jpg", camera, photo_of(camera)[0], "", seen, np.stack([u, v], 1)[seen]))
    return Scene(views, points, np.full((60, 3), 128, np.uint8))


@pytest.fixture(scope="module")
def depths(street: Scene) -> Depths:
    found = depths_of(street, street.views, seed=0)
    assert found is not None
    return found


def test_depths_are_those_of_the_scene(depths: Depths) -> None:
    known = depths.planes[1, ..., 3] > 0
    true = photo_of(depths.views[1].camera)[1]
    assert known.mean() > 0.5
    wrong = np.abs(depths.planes[1, ..., 3][known] / true[known] - 1)
    assert np.median(wrong) < 0.01
    assert np.quantile(wrong, 0.95) < 0.05


def test_gaussians_lie_on_the_surfaces_and_along_them(depths: Depths) -> None:
    found = surfels(depths, 500, degree=1)
    assert 200 < len(found) <= 500
    assert found.degree == 1
    off = np.minimum(np.abs(found.means[:, 1] - WALL_Y), np.abs(found.means[:, 2] - FLOOR_Z))
    assert np.quantile(off, 0.9) < 0.2
    normals = rotations_of(found.quats)[:, :, 2]
    on_wall = np.abs(found.means[:, 1] - WALL_Y) < 0.2
    assert np.median(np.abs(normals[on_wall, 1])) > 0.95
    assert (found.log_scales[:, 2] <= found.log_scales[:, :2].min(axis=1)).all()


def test_a_surface_is_covered_once(depths: Depths) -> None:
    all_views, one = surfels(depths, 5000, 0), (depths.planes[..., 3] > 0).sum() / len(depths.views) / 4
    assert len(all_views) < 2 * one


def test_what_a_mask_hides_stays_unknown(street: Scene) -> None:
    mask = np.ones((90, 120), bool)
    mask[:, :60] = False
    hidden = [dataclasses.replace(v, mask=mask) for v in street.views]
    found = depths_of(street, hidden, seed=0)
    assert found is not None
    assert not found.planes[:, :, :60, 3].any()
    assert found.planes[:, :, 60:, 3].any()


def test_the_number_of_threads_changes_nothing(street: Scene, depths: Depths) -> None:
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        alone = depths_of(street, street.views, seed=0)
    finally:
        numba.set_num_threads(before)
    assert alone is not None
    assert np.array_equal(alone.planes, depths.planes)
    other = depths_of(street, street.views, seed=1)
    assert other is not None
    assert not np.array_equal(other.planes, depths.planes)


def test_many_photos_get_smaller_maps(street: Scene) -> None:
    found = depths_of(street, street.views, seed=0, most_pixels=3 * 96 * 72)
    assert found is not None
    assert len(found.views) == 2  # evenly chosen of four
    assert 96 <= found.cameras[0].width < 120


def test_one_photo_is_no_stereo(street: Scene) -> None:
    assert depths_of(street, street.views[:1], seed=0) is None
