from __future__ import annotations

import numpy as np
import pytest

from geo_assets.splats.cameras import Camera
from geo_assets.splats.cpu.projection import harmonics
from geo_assets.splats.gaussians import Gaussians, joined, quaternion_of, quaternion_product, rotations_of
from geo_assets.splats.harmonics import band, basis, turning
from geo_assets.splats.render import render
from geo_assets_tests.splats.scenes import blobs, ring


def some_rotation(seed: int) -> np.ndarray:
    return rotations_of(np.random.default_rng(seed).normal(size=(1, 4)))[0]


@pytest.mark.parametrize("seed", range(6))
def test_quaternion_of_a_rotation(seed: int) -> None:
    rotation = some_rotation(seed)
    assert rotations_of(quaternion_of(rotation)[None])[0] == pytest.approx(rotation, abs=1e-9)


def test_quaternion_product_is_the_product_of_rotations() -> None:
    a, b = some_rotation(1), some_rotation(2)
    product = quaternion_product(quaternion_of(a), quaternion_of(b))
    assert rotations_of(product[None])[0] == pytest.approx(a @ b, abs=1e-9)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_moved_splat_looks_the_same_to_a_moved_camera(degree: int) -> None:
    """Means, rotations and the harmonics of all degrees turn together."""
    splat, camera = blobs(60, degree), ring(5)[1]
    rotation, translation = some_rotation(4), np.array([12.0, -7, 3])
    turned = camera.rotation @ rotation.T
    moved_camera = Camera(
        turned, camera.translation - turned @ translation, camera.fx, camera.fy, camera.cx, camera.cy, 64, 48
    )
    wanted = render(splat, camera)
    assert wanted.std() > 0.05
    assert render(splat.moved(rotation, translation), moved_camera) == pytest.approx(wanted, abs=3e-3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_colours_turn_with_the_splat(degree: int, seed: int) -> None:
    """What was seen along d is seen along R d, whatever the direction."""
    splat, rotation = blobs(40, degree, seed), some_rotation(seed)
    directions = np.random.default_rng(seed + 9).normal(size=(60, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before = np.einsum("dk,nkc->dnc", basis(degree, directions), splat.sh)
    moved = splat.moved(rotation, (5, 6, 7), 2.0)
    after = np.einsum("dk,nkc->dnc", basis(degree, directions @ rotation.T), moved.sh)
    assert np.ptp(before) > 1
    assert after == pytest.approx(before, abs=1e-5)
    assert splat.rows == pytest.approx(blobs(40, degree, seed).rows, abs=0), "the original is left alone"


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_turning_is_orthogonal_and_one_after_another(degree: int) -> None:
    a, b = some_rotation(1), some_rotation(2)
    turned = turning(degree, a)
    assert turned @ turned.T == pytest.approx(np.eye(2 * degree + 1), abs=1e-12)
    assert turning(degree, a @ b) == pytest.approx(turned @ turning(degree, b), abs=1e-12)


def test_the_harmonics_are_those_of_the_renderer() -> None:
    for x, y, z in np.random.default_rng(0).normal(size=(5, 3)):
        length = (x * x + y * y + z * z) ** 0.5
        d = np.array([x, y, z]) / length
        kernel = harmonics(3, *(np.float32(v) for v in d))
        assert basis(3, d[None])[0] == pytest.approx(np.array(kernel), abs=2e-6)
    with pytest.raises(ValueError, match="degree 4"):
        band(4, np.eye(3))


def test_degrees() -> None:
    splat = blobs(5, 2)
    assert splat.degree == 2
    assert splat.to_degree(1).degree == 1
    assert splat.to_degree(3).sh[:, 9:].any() == False  # noqa: E712
    assert splat.moved(np.eye(3), np.zeros(3)).degree == 2
    whole = joined([blobs(3, 0), blobs(4, 2)], 1)
    assert (len(whole), whole.degree) == (7, 1)
    assert len(joined([], 1)) == 0
    assert len(Gaussians.none(1)) == 0
