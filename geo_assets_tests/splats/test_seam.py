from __future__ import annotations

import numpy as np
import pytest

from geo_assets.splats.cameras import Camera
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.seam import facade_offset, facade_patches

LENS = Camera(np.eye(3), np.zeros(3), 230, 230, 160, 120, 320, 240)
CAMERA = Camera.looking((0, -8, 3), (0, 0, 3), like=LENS)  # x right is east, y down is down


def facade(seed: int = 0, *, jitter: int = 0) -> Gaussians:
    """A wall of 16 by 8 m at y = 0 with windows, made of flat Gaussians; ``jitter`` is another training of it."""
    rng = np.random.default_rng(jitter)
    x, z = (part.ravel() for part in np.meshgrid(np.arange(-8, 8, 0.08), np.arange(0, 8, 0.08)))
    means = np.column_stack([x, np.zeros(len(x)), z]) + rng.normal(0, 0.01, (len(x), 3))
    pattern = np.random.default_rng(seed).uniform(0.1, 0.9, (20, 40))
    grey = pattern[(means[:, 2] // 0.4).astype(int) % 20, (means[:, 0] // 0.4).astype(int) % 40]
    colours = np.repeat(grey[:, None], 3, axis=1) + rng.normal(0, 0.02, (len(x), 3))
    return Gaussians.of(
        means,
        np.tile(np.log([0.06, 0.01, 0.06]), (len(x), 1)),
        np.tile([1, 0, 0, 0], (len(x), 1)),
        np.full(len(x), 4.0),
        ((colours - 0.5) / 0.28209479)[:, None],
    )


@pytest.mark.parametrize("dx, dy", [(0.0, 0.0), (0.05, 0.0), (-0.12, 0.08), (0.3, -0.2), (0.5, 0.1)])
def test_a_displaced_facade_is_measured(dx: float, dy: float) -> None:
    there = facade(jitter=1).moved(np.eye(3), [dx, 0, -dy])
    found = facade_offset(facade(), there, CAMERA)
    assert (found.dx_m, found.dy_m) == pytest.approx((dx, dy), abs=0.03)
    assert found.score > 0.75


def test_brightness_does_not_count() -> None:
    darker = facade(jitter=1)
    darker.sh[:, 0] = darker.sh[:, 0] * 0.7 - 0.4
    found = facade_offset(facade(), darker.moved(np.eye(3), [0.2, 0, 0]), CAMERA)
    assert found.dx_m == pytest.approx(0.2, abs=0.03)


def test_what_is_not_the_same_facade_is_not_measured() -> None:
    elsewhere = facade(1).moved(np.eye(3), [0, 4, 0])
    assert len(facade_patches(facade(), elsewhere, CAMERA).scores) == 0
    found = facade_offset(facade(), elsewhere, CAMERA)
    assert np.isnan(found.dx_m)
    assert found.score == 0
