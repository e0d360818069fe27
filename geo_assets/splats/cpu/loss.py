"""The loss of 3D Gaussian splatting, 0.8 L1 + 0.2 (1 - SSIM), with its gradient.

SSIM (Wang et al. 2004) of colours from 0 to 1, Gaussian window of 11 pixels with sigma 1.5, zeros outside the image.

An image's row is taken as its 3 W samples as they lie in memory: neighbours of one colour are three samples apart, so
that nothing has to be rearranged. The blur of a few rows is kept in a ring of eleven, small enough for the cache of
the core, while the window moves down the image. The threads share the image in bands; a row's result does not depend
on the band that it lies in.
"""

from __future__ import annotations

import numpy as np

from geo_assets.splats.cpu.compiled import f32, kernel, parallel_kernel, prange, threads_in_use
from geo_assets.splats.gaussians import Floats

RADIUS = 5
WINDOW = 2 * RADIUS + 1
MARGIN = 3 * RADIUS
"""Samples that the window reaches beside a row."""
_window = np.exp(-((np.arange(RADIUS + 1) - RADIUS) ** 2) / (2 * 1.5**2))
_window /= 2 * _window.sum() - _window[RADIUS]
W0, W1, W2, W3, W4, W5 = (f32(weight) for weight in _window)
FROM_CENTRE = (W5, W4, W3, W2, W1, W0)
SSIM_SHARE = 0.2
LEAST_BAND_ROWS = 64
"""A thread gets no fewer rows: each band blurs ten rows of its neighbours again."""


@kernel
def blur_along(padded, blurred):
    """Blur a row [3 W] that has a margin of zeros on both sides."""
    for i in range(blurred.shape[0]):
        blurred[i] = (
            W0 * (padded[i] + padded[i + 30])
            + W1 * (padded[i + 3] + padded[i + 27])
            + W2 * (padded[i + 6] + padded[i + 24])
            + W3 * (padded[i + 9] + padded[i + 21])
            + W4 * (padded[i + 12] + padded[i + 18])
            + W5 * padded[i + 15]
        )


@kernel
def add_both(weight, above, below, total):
    """Add two rows of equal weight."""
    for i in range(total.shape[0]):
        total[i] += weight * (above[i] + below[i])


@kernel
def blur_across(ring, row, total):
    """Blur around a row of the image, whose neighbours up to five rows away lie in a ring of eleven."""
    centre = ring[row % WINDOW]
    for i in range(total.shape[0]):
        total[i] = W5 * centre[i]
    add_both(W4, ring[(row + 10) % WINDOW], ring[(row + 1) % WINDOW], total)
    add_both(W3, ring[(row + 9) % WINDOW], ring[(row + 2) % WINDOW], total)
    add_both(W2, ring[(row + 8) % WINDOW], ring[(row + 3) % WINDOW], total)
    add_both(W1, ring[(row + 7) % WINDOW], ring[(row + 4) % WINDOW], total)
    add_both(W0, ring[(row + 6) % WINDOW], ring[(row + 5) % WINDOW], total)


@kernel
def products(x, photo, padded):
    """The rows x, y, x^2 + y^2 and xy of an image and a photo in uint8, each with its margins."""
    within = slice(MARGIN, MARGIN + x.shape[0])
    xs, ys, squares, both = padded[0, within], padded[1, within], padded[2, within], padded[3, within]
    for i in range(x.shape[0]):
        xs[i] = x[i]
    for i in range(x.shape[0]):
        ys[i] = f32(photo[i]) * f32(1 / 255)
    for i in range(x.shape[0]):
        squares[i] = xs[i] * xs[i] + ys[i] * ys[i]
    for i in range(x.shape[0]):
        both[i] = xs[i] * ys[i]


@kernel
def similarity(first, second, third, fourth):
    """Sum of SSIM over a row of blurred x, y, x^2 + y^2 and xy.

    The first three become its slopes in the blurred x, x^2 and xy: in place, because LLVM makes vectors of a loop
    only while there are few arrays whose overlap it has to rule out.
    """
    c1, c2, two = f32(0.0001), f32(0.0009), f32(2)
    total = f32(0)
    for i in range(first.shape[0]):
        mx, my = first[i], second[i]
        means = mx * mx + my * my
        a, b = two * mx * my + c1, two * (fourth[i] - mx * my) + c2
        c, d = means + c1, third[i] - means + c2
        inverse = f32(1) / (c * d)
        ssim = a * b * inverse
        total += ssim
        in_covariance, in_variance = two * a * inverse, -ssim * inverse * c
        in_mean = two * my * b * inverse - ssim * two * mx * inverse * d
        first[i] = in_mean - two * mx * in_variance - my * in_covariance
        second[i] = in_variance
        third[i] = in_covariance
    return total


@parallel_kernel
def ssim_slopes(image, photo, counts, bands, slopes, row_sums):
    """SSIM summed by row, and its slopes in the blurred x, x^2 and xy, blurred along the rows.

    Args:
        image: [H, 3 W].
        photo: uint8 [H, 3 W].
        counts: 1 where the sample counts and 0 elsewhere [H, 3 W], or None where all do.
        bands: parts that the image is divided into.
        slopes: result [3, H, 3 W].
        row_sums: result [H].
    """
    height, width = image.shape
    for band in prange(bands):
        first, end = band * height // bands, (band + 1) * height // bands
        rings = np.zeros((4, WINDOW, width), np.float32)
        padded = np.zeros((4, width + 2 * MARGIN), np.float32)
        blurred = np.empty((4, width), np.float32)
        for newest in range(first - RADIUS, end + RADIUS):
            slot = (newest + WINDOW) % WINDOW
            if 0 <= newest < height:
                products(image[newest], photo[newest], padded)
                for plane in range(4):
                    blur_along(padded[plane], rings[plane, slot])
            else:
                rings[:, slot] = f32(0)
            row = newest - RADIUS
            if row < first:
                continue
            for plane in range(4):
                blur_across(rings[plane], row, blurred[plane])
            if counts is None:
                row_sums[row] = similarity(blurred[0], blurred[1], blurred[2], blurred[3])
            else:
                row_sums[row] = counted_similarity(blurred, counts[row])
            for plane in range(3):
                padded[plane, MARGIN:-MARGIN] = blurred[plane]
                blur_along(padded[plane], slopes[plane, row])


@kernel
def counted_similarity(blurred, counts):
    """:func:`similarity` of the samples that count; the slopes of the others become zero."""
    # SSIM of a sample is a b / (c d), so that a row of its own values would cost more memory than it is worth.
    total = f32(0)
    for i in range(counts.shape[0]):
        one = slice(i, i + 1)
        ssim = similarity(blurred[0, one], blurred[1, one], blurred[2, one], blurred[3, one])
        total += counts[i] * ssim
        for plane in range(3):
            blurred[plane, i] *= counts[i]
    return total


@kernel
def row_gradient(x, photo, in_mean, in_square, in_product, l1_scale, ssim_scale, gradient):
    """Sum of |x - y| over a row and, in ``gradient``, the gradient of the whole loss."""
    total = f32(0)
    for i in range(x.shape[0]):
        y = f32(photo[i]) * f32(1 / 255)
        difference = x[i] - y
        total += abs(difference)
        sign = f32(1) if difference > 0 else (f32(-1) if difference < 0 else f32(0))
        in_ssim = in_mean[i] + f32(2) * x[i] * in_square[i] + y * in_product[i]
        gradient[i] = l1_scale * sign - ssim_scale * in_ssim
    return total


@parallel_kernel
def differences(image, photo, slopes, bands, l1_scale, ssim_scale, gradient, row_sums):
    """L1, summed by row, and the gradient of the whole loss, from slopes that are blurred along the rows.

    The blur is symmetric, so that the gradient of a blur is the same blur.
    """
    height, width = image.shape
    for band in prange(bands):
        nothing = np.zeros(width, np.float32)
        total = np.empty((3, width), np.float32)
        for row in range(band * height // bands, (band + 1) * height // bands):
            for plane in range(3):
                source, sums = slopes[plane], total[plane]
                for i in range(width):
                    sums[i] = W5 * source[row, i]
                for away in range(1, RADIUS + 1):
                    above = source[row - away] if row >= away else nothing
                    below = source[row + away] if row + away < height else nothing
                    add_both(FROM_CENTRE[away], above, below, sums)
            row_sums[row] = row_gradient(
                image[row], photo[row], total[0], total[1], total[2], l1_scale, ssim_scale, gradient[row]
            )


class Loss:
    """The loss with buffers for each size of image."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int], tuple[Floats, Floats, np.ndarray]] = {}

    def __call__(self, image: Floats, photo: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float, Floats]:
        """Loss, mean SSIM and the loss's gradient in the image (a buffer).

        Where the mask is false the photo stands in for the image, so that the windows of the neighbours do not see it
        either: value and gradient do not depend on what was rendered there, and the means are over the other pixels.

        Args:
            image: rendered, float32 [H, W, 3].
            photo: uint8 [H, W, 3].
            mask: bool [H, W], false where a pixel does not count; None where all do.
        """
        height, width, _ = image.shape
        slopes, gradient, row_sums = self._of_size(height, width)
        flat_photo = np.ascontiguousarray(photo).reshape(height, 3 * width)
        n_samples, counts = height * width * 3, None
        if mask is not None:
            image = np.where(mask[..., None], image, photo * f32(1 / 255))
            counts = np.repeat(mask.astype(np.float32), 3, axis=1)
            n_samples = max(3 * int(np.count_nonzero(mask)), 1)
        flat = np.ascontiguousarray(image, np.float32).reshape(height, 3 * width)
        bands = min(threads_in_use(), -(-height // LEAST_BAND_ROWS))
        ssim_slopes(flat, flat_photo, counts, bands, slopes, row_sums)
        ssim = float(row_sums.sum()) / n_samples
        scales = f32((1 - SSIM_SHARE) / n_samples), f32(SSIM_SHARE / n_samples)
        differences(flat, flat_photo, slopes, bands, *scales, gradient.reshape(height, 3 * width), row_sums)
        l1 = float(row_sums.sum()) / n_samples
        if mask is not None:
            gradient[~mask] = 0
        return (1 - SSIM_SHARE) * l1 + SSIM_SHARE * (1 - ssim), ssim, gradient

    def _of_size(self, height: int, width: int) -> tuple[Floats, Floats, np.ndarray]:
        if (height, width) not in self._buffers:
            self._buffers[height, width] = (
                np.empty((3, height, 3 * width), np.float32),
                np.empty((height, width, 3), np.float32),
                np.empty(height),
            )
        return self._buffers[height, width]
