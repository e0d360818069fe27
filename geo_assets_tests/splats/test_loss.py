"""The loss: its gradient against finite differences, its SSIM against a plain one, and masks."""

from __future__ import annotations

import numpy as np
import pytest

from geo_assets.splats.cpu.compiled import use_threads
from geo_assets.splats.cpu.loss import Loss
from geo_assets.splats.gaussians import Floats


def pictures(height: int = 24, width: int = 31) -> tuple[Floats, np.ndarray]:
    """A render and a photo of noise."""
    rng = np.random.default_rng(1)
    image = rng.uniform(0.1, 0.9, (height, width, 3)).astype(np.float32)
    return image, rng.integers(0, 256, image.shape).astype(np.uint8)


def half_masked(height: int = 24, width: int = 31) -> np.ndarray:
    """A mask with an edge through the image and single pixels that do not count."""
    mask = np.ones((height, width), bool)
    mask[:, 18:] = False
    mask[4, 7] = mask[12, 15] = False
    return mask


@pytest.mark.parametrize("mask", [None, half_masked()], ids=["whole", "masked"])
def test_gradient(mask: np.ndarray | None) -> None:
    image, photo = pictures()
    loss = Loss()
    gradient = loss(image, photo, mask)[2].copy()
    for row, column, c in [(0, 0, 0), (12, 14, 1), (23, 17, 2), (5, 28, 0), (11, 3, 2), (12, 15, 0)]:
        values = []
        for sign in (1, -1):
            moved = image.copy()
            moved[row, column, c] += sign * 0.004
            values.append(loss(moved, photo, mask)[0])
        wanted = (values[0] - values[1]) / 0.008
        assert gradient[row, column, c] == pytest.approx(wanted, rel=0.05, abs=2e-6)
        assert (wanted == 0) == (mask is not None and not mask[row, column])


def test_ssim_is_that_of_the_paper() -> None:
    """Against the definition, written with scipy's blur and no shortcut."""
    from scipy.ndimage import gaussian_filter1d

    image, photo = pictures(40, 33)
    x, y = image.astype(float), photo / 255

    def blurred(a: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            a = gaussian_filter1d(a, 1.5, axis=axis, radius=5, mode="constant")
        return a

    mx, my = blurred(x), blurred(y)
    vx, vy, vxy = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    value, found, _ = Loss()(image, photo)
    assert found == pytest.approx(ssim.mean(), abs=1e-5)
    assert value == pytest.approx(0.8 * np.abs(x - y).mean() + 0.2 * (1 - ssim.mean()), abs=1e-5)


def test_equal_images() -> None:
    _, photo = pictures(20, 33)
    value, ssim, _ = Loss()((photo / np.float32(255)).astype(np.float32), photo)
    assert value == pytest.approx(0, abs=1e-4)
    assert ssim == pytest.approx(1, abs=1e-4)


def test_what_is_masked_does_not_matter() -> None:
    image, photo = pictures()
    mask, loss = half_masked(), Loss()
    value, ssim, gradient = loss(image, photo, mask)
    gradient = gradient.copy()
    image[~mask] = 7.0
    other, other_ssim, other_gradient = loss(image, photo, mask)
    assert (other, other_ssim) == (value, ssim)
    assert np.array_equal(other_gradient, gradient)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


def test_means_are_over_the_pixels_that_count() -> None:
    image, photo = pictures()
    mask = half_masked()
    flat = np.full(image.shape, 0.5, np.float32)
    value, _, _ = Loss()(flat, photo, mask)
    l1 = np.abs(0.5 - photo[mask] / 255).mean()
    assert value == pytest.approx(0.8 * l1 + 0.2 * (1 - Loss()(flat, photo, mask)[1]), abs=1e-5)
    assert Loss()(image, photo, np.ones_like(mask))[0] == pytest.approx(Loss()(image, photo)[0], abs=1e-6)
    assert Loss()(image, photo, np.zeros_like(mask))[0] == pytest.approx(0.2)


def test_threads_do_not_change_the_result() -> None:
    image, photo = pictures(200, 50)
    results = []
    for threads in (1, 2):
        use_threads(threads)
        value, ssim, gradient = Loss()(image, photo)
        results.append((value, ssim, gradient))
    use_threads(1)
    assert results[0][:2] == results[1][:2]
    assert np.array_equal(results[0][2], results[1][2])
