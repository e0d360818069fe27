"""Gaussians for the surfaces that depth maps show: flat, as large as a few pixels, each place from its nearest photo."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from geo_assets.splats.cameras import Camera, View
from geo_assets.splats.cpu.compiled import f32, parallel_kernel, prange
from geo_assets.splats.cpu.stereo import Depths, pixel_of, place_of, reduced, reduced_mask
from geo_assets.splats.gaussians import SH_0, Gaussians, coefficients, joined

OPACITY = 0.7
WIDTH, THICKNESS = 0.5, 0.1
"""Standard deviation along the surface, and across it, in widths of the block of pixels that it stands for."""
LONGEST = 4.0
"""A surface seen at a grazing angle becomes at most this much longer than wide."""
BELIEVED = 0.25
"""Share of the pixels of a block that must be believed."""
SAME_SURFACE = 0.06
"""Share by which depths differ at most that two photos show of one surface."""


def surfels(depths: Depths, most: int, degree: int) -> Gaussians:
    """At most so many Gaussians that cover what the depth maps show, as finely as that allows."""
    block, best = 2, best_in_blocks(depths.rig, depths.planes, depths.costs, 2)
    while np.count_nonzero(best >= 0) > most:
        # The number falls with the square of the size of the blocks.
        block = max(block + 1, math.floor(block * math.sqrt(np.count_nonzero(best >= 0) / max(most, 1))))
        best = best_in_blocks(depths.rig, depths.planes, depths.costs, block)
    views = zip(depths.views, depths.cameras, depths.planes, best, strict=True)
    return joined([_of_view(*view, block, degree) for view in views], degree)


def _of_view(
    view: View, camera: Camera, planes: np.ndarray, best: npt.NDArray[np.int64], block: int, degree: int
) -> Gaussians:
    rows, columns = np.nonzero(best >= 0)
    n = len(rows)
    y, x = np.divmod(best[rows, columns], planes.shape[1])
    normal, depth = planes[y, x, :3].astype(float), planes[y, x, 3].astype(float)
    ray = np.stack([(x + 0.5 - camera.cx) / camera.fx, (y + 0.5 - camera.cy) / camera.fy, np.ones(n)], axis=1)
    sight = ray / np.linalg.norm(ray, axis=1, keepdims=True)
    slant = np.clip(-(normal * sight).sum(axis=1), 1 / LONGEST, 1)
    across = np.cross(normal, sight)
    frontal = np.linalg.norm(across, axis=1) < 1e-3
    across[frontal] = np.cross(normal[frontal], [1.0, 0, 0])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    axes = camera.rotation.T @ np.stack([across, np.cross(normal, across), normal], axis=2)
    width = WIDTH * block * depth / camera.fx
    sizes = np.stack([width, width / slant, THICKNESS * block * depth / camera.fx], axis=1)
    harmonics = np.zeros((n, coefficients(degree), 3))
    harmonics[:, 0] = (_colours(view, camera, block)[rows, columns] - 0.5) / SH_0
    return Gaussians.of(
        (ray * depth[:, None] - camera.translation) @ camera.rotation,
        np.log(sizes),
        Rotation.from_matrix(axes).as_quat(scalar_first=True),
        np.full(n, math.log(OPACITY / (1 - OPACITY))),
        harmonics,
    )


def _colours(view: View, camera: Camera, block: int) -> npt.NDArray[np.float64]:
    """Mean colour of what counts of each block of pixels, from 0 to 1 [h, w, 3]."""
    rows, columns = -(-camera.height // block), -(-camera.width // block)
    margin = (0, rows * block - camera.height), (0, columns * block - camera.width), (0, 0)
    counts = reduced_mask(view, camera)[..., None]
    padded = np.pad(np.concatenate([reduced(view.photo, camera) * counts, counts], axis=2), margin)
    sums = padded.reshape(rows, block, columns, block, 4).sum(axis=(1, 3), dtype=float)
    return sums[..., :3] / np.maximum(sums[..., 3:], 1) / 255


@parallel_kernel
def best_in_blocks(rig, planes, costs, block):
    """Of each block of pixels the one of the lowest cost, row * W + column [V, h, w].

    It is -1 where too few are believed, or where another view shows the same surface from nearer.
    """
    n, height, width = costs.shape
    result = np.full((n, (height + block - 1) // block, (width + block - 1) // block), -1, np.int64)
    for i in prange(n):
        for row in range(result.shape[1]):
            for column in range(result.shape[2]):
                believed, least, at = 0, f32(9), -1
                for y in range(row * block, min((row + 1) * block, rig.sizes[i, 0])):
                    for x in range(column * block, min((column + 1) * block, rig.sizes[i, 1])):
                        if planes[i, y, x, 3] > f32(0):
                            believed += 1
                            if costs[i, y, x] < least:
                                least, at = costs[i, y, x], y * width + x
                if believed < f32(BELIEVED) * f32(block * block):
                    continue
                y, x = at // width, at % width
                depth = planes[i, y, x, 3]
                pixel = depth / rig.lenses[i, 0]
                place = place_of(rig, i, x, y, depth)
                nearest = True
                for j in range(n):
                    v, u, there = pixel_of(rig, j, place)
                    if j == i or v < 1 or u < 1 or v >= rig.sizes[j, 0] - 1 or u >= rig.sizes[j, 1] - 1:
                        continue
                    other = there / rig.lenses[j, 0]
                    if other > pixel or (other == pixel and j > i):
                        continue
                    same = 0
                    for b in range(v - 1, v + 2):
                        for a in range(u - 1, u + 2):
                            if abs(planes[j, b, a, 3] - there) < f32(SAME_SURFACE) * there:
                                same += 1
                    if same >= 3:
                        nearest = False
                        break
                if nearest:
                    result[i, row, column] = at
    return result
