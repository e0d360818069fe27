"""What training starts from: a sky without holes, points that are no fog, surfaces where photos agree."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from geo_assets.splats.cameras import Scene
from geo_assets.splats.cpu.initial import initial_gaussians, sky_shell, start_of
from geo_assets_tests.splats.scenes import blobs, ring, scene_of

BLUE = np.array([40, 90, 200], np.uint8)


@pytest.fixture(scope="module")
def scene() -> Scene:
    found = scene_of(blobs(), ring(6, turn=1.0), n_points=150)
    return dataclasses.replace(
        found, views=[dataclasses.replace(v, photo=np.full_like(v.photo, BLUE)) for v in found.views]
    )


def test_the_sky_has_no_holes_and_the_colour_of_the_photos(scene: Scene) -> None:
    sky = sky_shell(scene, scene.views, 300, 0, np.random.default_rng(0))
    assert len(sky) == 300  # all around, though the cameras see a part
    assert np.allclose(0.5 + 0.28209479 * sky.sh[:, 0], BLUE / 255, atol=1e-3)
    distances = np.linalg.norm(sky.means, axis=1)
    assert distances.min() > 2 * np.linalg.norm(scene.points, axis=1).max()


def test_what_masks_hide_gives_no_colour_to_the_sky(scene: Scene) -> None:
    half = np.zeros((48, 64), bool)
    half[:, :32] = True
    red = [dataclasses.replace(v, mask=half, photo=np.where(half[..., None], v.photo, 255)) for v in scene.views]
    sky = sky_shell(scene, red, 300, 0, np.random.default_rng(0))
    assert np.allclose(0.5 + 0.28209479 * sky.sh[:, 0], BLUE / 255, atol=1e-3)
    blind = [dataclasses.replace(v, mask=np.zeros((48, 64), bool)) for v in scene.views]
    assert len(sky_shell(scene, blind, 300, 0, np.random.default_rng(0))) == 0


def test_points_before_a_camera_start_small(scene: Scene) -> None:
    camera = scene.views[0].camera
    near = camera.centre + 0.2 * camera.forward
    lone = dataclasses.replace(scene, points=np.vstack([scene.points, near]), colours=np.vstack([scene.colours, BLUE]))
    start = start_of(lone, lone.views, max_splats=1000, degree=0, seed=0)
    assert np.exp(start.place.log_scales[-1]).max() <= 0.1 * 0.2 + 1e-6


def test_place_and_sky_stay_within_the_cap_and_repeat(scene: Scene) -> None:
    one, other = (start_of(scene, scene.views, max_splats=100, degree=1, seed=4, stereo_pixels=10**6) for _ in range(2))
    assert len(one.place) + len(one.sky) <= 100
    assert np.array_equal(one.place.rows, other.place.rows)
    assert np.array_equal(one.sky.rows, other.sky.rows)


def test_what_is_judged_before_training_is_place_and_sky(scene: Scene) -> None:
    start = start_of(scene, scene.views, max_splats=300, degree=1, seed=0)
    both = initial_gaussians(scene, scene.views, max_splats=300, degree=1, seed=0)
    assert np.array_equal(both.rows, np.concatenate([start.place.rows, start.sky.rows]))
    assert start.n_dense == 0
