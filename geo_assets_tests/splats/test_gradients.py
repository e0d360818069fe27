"""The analytic gradients of the rasteriser against finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from geo_assets.splats.cameras import Camera
from geo_assets.splats.cpu.rasteriser import Rasteriser
from geo_assets.splats.gaussians import MEAN, OPACITY, QUAT, SCALE, SH, Gaussians, coefficients

BACKGROUND = np.array([0.1, 0.2, 0.3], np.float32)


def camera(width: int = 40, height: int = 30) -> Camera:
    """A camera that is neither at the origin nor along an axis of the world."""
    return Camera.looking(
        (0.6, -4.0, 0.9), (0.1, 0.2, -0.1), like=Camera(np.eye(3), np.zeros(3), 60, 63, 19, 16, width, height)
    )


def five(degree: int) -> Gaussians:
    """Large enough that the cut at alpha < 1/255, whose movement no trainer differentiates, lies outside the image."""
    rng = np.random.default_rng(3)
    return Gaussians.of(
        means=rng.uniform(-0.5, 0.5, (5, 3)),
        log_scales=np.log(rng.uniform(0.6, 1.0, (5, 3))),
        quats=rng.normal(size=(5, 4)),
        opacity_logits=rng.uniform(-1, 1, 5),
        sh=rng.normal(0, 0.3, (5, coefficients(degree), 3)),
    )


def numeric_gradient(rows: np.ndarray, degree: int, weights: np.ndarray, columns: range) -> np.ndarray:
    """Central differences; the median of five steps, since two Gaussians of one depth may change places."""
    raster = Rasteriser()

    def value(n: int, d: int, step: float) -> float:
        moved = rows.copy()
        moved[n, d] += step
        return float((raster.forward(moved, degree, camera(), BACKGROUND).astype(float) * weights).sum())

    def slope(n: int, d: int) -> float:
        steps = (5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3)
        return float(np.median([(value(n, d, s) - value(n, d, -s)) / (2 * s) for s in steps]))

    return np.array([[slope(n, d) for d in columns] for n in range(len(rows))])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("what", "columns"),
    [
        ("means", range(MEAN, SCALE)),
        ("scales", range(SCALE, QUAT)),
        ("quats", range(QUAT, OPACITY)),
        ("opacity", range(OPACITY, SH)),
        ("harmonics", range(SH, SH + 3)),
    ],
)
def test_rasteriser_gradient(what: str, columns: range, degree: int) -> None:
    rows = five(degree).rows
    if what == "harmonics":
        columns = range(SH, rows.shape[1])
    v, u = np.mgrid[:30, :40]
    weights = np.stack([np.sin(u / 11 + c) + np.cos(v / 9 - c) for c in range(3)], axis=-1).astype(np.float32)
    raster = Rasteriser()
    raster.forward(rows, degree, camera(), BACKGROUND)
    gradients, pull = raster.backward(weights)
    wanted = numeric_gradient(rows, degree, weights, columns)
    assert np.abs(wanted).max() > 0.1
    assert gradients[:, columns] == pytest.approx(wanted, abs=0.02 * np.abs(wanted).max())
    assert (pull > 0).all()


def test_gradient_of_gaussians_beside_the_image() -> None:
    """The clamped Jacobian: a mean far to the side still has the gradient of what it shows."""
    rows = five(0).rows.copy()
    rows[:, 0] += 2.6
    rows[:, SCALE:QUAT] += 1.0
    weights = np.ones((30, 40, 3), np.float32) + np.mgrid[:30, :40][1][..., None].astype(np.float32) / 40
    raster = Rasteriser()
    raster.forward(rows, 0, camera(), BACKGROUND)
    gradients, _ = raster.backward(weights)
    wanted = numeric_gradient(rows, 0, weights, range(MEAN, SCALE))
    seen = raster.order
    assert len(seen) > 0
    assert gradients[seen, :3] == pytest.approx(wanted[seen], abs=0.04 * np.abs(wanted).max())


def test_gradient_does_not_depend_on_the_order_of_rows() -> None:
    rows = five(1).rows
    weights = np.random.default_rng(0).normal(size=(30, 40, 3)).astype(np.float32)
    one, other = Rasteriser(), Rasteriser()
    image = one.forward(rows, 1, camera(), BACKGROUND).copy()
    backwards = np.ascontiguousarray(rows[::-1])
    assert other.forward(backwards, 1, camera(), BACKGROUND) == pytest.approx(image, abs=1e-5)
    assert other.backward(weights)[0][::-1] == pytest.approx(one.backward(weights)[0], rel=1e-4, abs=1e-4)
