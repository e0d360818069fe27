"""The loss of 3D Gaussian splatting, 0.8 L1 + 0.2 (1 - SSIM), with its gradient.

SSIM (Wang et al. 2004) of colours from 0 to 1, Gaussian window of 11 pixels with sigma 1.5, zeros outside the image.
"""

from __future__ import annotations

import numpy as np

from geo_assets.splats.cpu.compiled import f32, parallel_kernel, prange
from geo_assets.splats.gaussians import Floats

RADIUS = 5
_window = np.exp(-((np.arange(2 * RADIUS + 1) - RADIUS) ** 2) / (2 * 1.5**2))
WINDOW = (_window / _window.sum()).astype(np.float32)
SSIM_SHARE = 0.2


@parallel_kernel
def moments(image, photo, planes):
    """Planes [15, H, W] of x, y, x^2, y^2 and xy, three colours each; the photo is uint8."""
    for row in prange(image.shape[0]):
        for c in range(3):
            for column in range(image.shape[1]):
                x = image[row, column, c]
                y = f32(photo[row, column, c]) * f32(1 / 255)
                planes[c, row, column] = x
                planes[3 + c, row, column] = y
                planes[6 + c, row, column] = x * x
                planes[9 + c, row, column] = y * y
                planes[12 + c, row, column] = x * y


@parallel_kernel
def blur_rows(planes, window, blurred):
    """Blur along the rows."""
    n, height, width = planes.shape
    for line in prange(n * height):
        plane, row = line // height, line % height
        padded = np.zeros(width + 2 * RADIUS, np.float32)
        for column in range(width):
            padded[column + RADIUS] = planes[plane, row, column]
        for column in range(width):
            total = f32(0)
            for k in range(2 * RADIUS + 1):
                total += window[k] * padded[column + k]
            blurred[plane, row, column] = total


@parallel_kernel
def blur_columns(planes, window, blurred):
    """Blur along the columns, a row at a time so that memory is read in order."""
    n, height, width = planes.shape
    for line in prange(n * height):
        plane, row = line // height, line % height
        total = np.zeros(width, np.float32)
        for k in range(max(0, RADIUS - row), min(2 * RADIUS + 1, height + RADIUS - row)):
            weight, source = window[k], row + k - RADIUS
            for column in range(width):
                total[column] += weight * planes[plane, source, column]
        for column in range(width):
            blurred[plane, row, column] = total[column]


@parallel_kernel
def similarity(means, slopes, row_sums):
    """SSIM of blurred moments, summed by row, and its slopes in the blurred x, x^2 and xy."""
    _, height, width = means.shape
    c1, c2, two = f32(0.0001), f32(0.0009), f32(2)
    for row in prange(height):
        total = f32(0)
        for c in range(3):
            for column in range(width):
                mx, my = means[c, row, column], means[3 + c, row, column]
                variance_x = means[6 + c, row, column] - mx * mx
                variance_y = means[9 + c, row, column] - my * my
                covariance = means[12 + c, row, column] - mx * my
                a, b = two * mx * my + c1, two * covariance + c2
                inverse_c = f32(1) / (mx * mx + my * my + c1)
                inverse_d = f32(1) / (variance_x + variance_y + c2)
                ssim = a * b * inverse_c * inverse_d
                total += ssim
                in_covariance, in_variance = two * a * inverse_c * inverse_d, -ssim * inverse_d
                in_mean = two * my * b * inverse_c * inverse_d - ssim * two * mx * inverse_c
                slopes[c, row, column] = in_mean - two * mx * in_variance - my * in_covariance
                slopes[3 + c, row, column] = in_variance
                slopes[6 + c, row, column] = in_covariance
        row_sums[row] = total


@parallel_kernel
def differences(image, photo, slopes, ssim_share, gradient, row_sums):
    """L1, summed by row, and the gradient of the whole loss."""
    height, width, _ = image.shape
    scale = f32(1) / f32(height * width * 3)
    for row in prange(height):
        total = f32(0)
        for c in range(3):
            for column in range(width):
                x = image[row, column, c]
                y = f32(photo[row, column, c]) * f32(1 / 255)
                total += abs(x - y)
                sign = f32(1) if x > y else (f32(-1) if x < y else f32(0))
                in_ssim = (
                    slopes[c, row, column] + f32(2) * x * slopes[3 + c, row, column] + y * slopes[6 + c, row, column]
                )
                gradient[row, column, c] = scale * ((f32(1) - ssim_share) * sign - ssim_share * in_ssim)
        row_sums[row] = total


class Loss:
    """The loss with buffers for each size of image."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}

    def __call__(self, image: Floats, photo: np.ndarray) -> tuple[float, float, Floats]:
        """Loss, mean SSIM and the loss's gradient in the image (a buffer).

        Args:
            image: rendered, float32 [H, W, 3].
            photo: uint8 [H, W, 3].
        """
        height, width, _ = image.shape
        planes, blurred, slopes, spread, gradient, rows = self._of_size(height, width)
        moments(image, photo, planes)
        blur_rows(planes, WINDOW, blurred)
        blur_columns(blurred, WINDOW, planes)
        similarity(planes, slopes, rows)
        ssim = float(rows.sum()) / (height * width * 3)
        # The blur is symmetric, so its gradient is the same blur.
        blur_rows(slopes, WINDOW, spread)
        blur_columns(spread, WINDOW, slopes)
        differences(image, photo, slopes, f32(SSIM_SHARE), gradient, rows)
        l1 = float(rows.sum()) / (height * width * 3)
        return (1 - SSIM_SHARE) * l1 + SSIM_SHARE * (1 - ssim), ssim, gradient

    def _of_size(self, height: int, width: int) -> tuple[np.ndarray, ...]:
        if (height, width) not in self._buffers:
            planes = [np.empty((n, height, width), np.float32) for n in (15, 15, 9, 9)]
            self._buffers[height, width] = (*planes, np.empty((height, width, 3), np.float32), np.empty(height))
        return self._buffers[height, width]
