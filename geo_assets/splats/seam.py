"""How well two boxes meet: the same facade, drawn from the splat of each by one camera, should lie at one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_assets.splats.cameras import Camera
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.render import render, render_depth

Doubles = npt.NDArray[np.float64]

PATCH_PX = 48
FARTHEST_M = 1.5
"""Offsets that are looked for; what lies farther apart is not the same edge."""
_MOST_SEARCH_PX = 40
_SMOOTH_PX = 1.5
_SOLID = 0.8
_SAME_DEPTH = 0.1
_SHARP = 0.002
_ALIKE = 0.6


class Offset(NamedTuple):
    """Where the second splat has a facade as against the first, seen by a camera.

    Args:
        dx_m: to the right [m]; NaN where no facade is seen in both.
        dy_m: down [m], likewise.
        score: median correlation of the edges that were compared, up to 1; 0 where there are none.
    """

    dx_m: float
    dy_m: float
    score: float


@dataclass(frozen=True)
class Patches:
    """Pieces of a picture that both splats show: their offsets [M, 2] in metres, and how alike their edges are [M]."""

    offsets_m: Doubles
    scores: Doubles

    @property
    def offset(self) -> Offset:
        """The median."""
        if not len(self.scores):
            return Offset(float("nan"), float("nan"), 0.0)
        dx_m, dy_m = np.median(self.offsets_m, axis=0)
        return Offset(float(dx_m), float(dy_m), float(np.median(self.scores)))

    @property
    def distances_m(self) -> Doubles:
        """Lengths of the offsets [M]."""
        return np.linalg.norm(self.offsets_m, axis=1)


def facade_offset(a: Gaussians, b: Gaussians, camera: Camera) -> Offset:
    """How far facades differ between two splats in one frame, in the camera's axes.

    Args:
        a: one box, not cut to its cell.
        b: its neighbour, likewise.
        camera: near their border, looking at facades that both hold.
    """
    return facade_patches(a, b, camera).offset


def facade_patches(a: Gaussians, b: Gaussians, camera: Camera) -> Patches:
    """The same, for each piece of the picture with edges that are alike and at one depth."""
    gradient_a, gradient_b = (_gradient(render(each, camera).mean(axis=2).astype(float)) for each in (a, b))
    depth_a, depth_b = (render_depth(each, camera).astype(float) for each in (a, b))
    offsets, scores = [], []
    for top in range(0, camera.height - PATCH_PX + 1, PATCH_PX):
        for left in range(0, camera.width - PATCH_PX + 1, PATCH_PX):
            here = slice(top, top + PATCH_PX), slice(left, left + PATCH_PX)
            if min(np.isfinite(depth[here]).mean() for depth in (depth_a, depth_b)) < _SOLID:
                continue
            depth, other = (float(np.nanmedian(each[here])) for each in (depth_a, depth_b))
            if abs(depth - other) > _SAME_DEPTH * depth:
                continue
            if min(np.abs(g[here]).mean() for g in (gradient_a, gradient_b)) < _SHARP:
                continue
            search = int(np.clip(np.ceil(FARTHEST_M * camera.fx / depth), 2, _MOST_SEARCH_PX))
            found = _shift(gradient_a, gradient_b, top, left, search)
            if found is not None and found[2] > _ALIKE:
                offsets.append((found[0] * depth / camera.fx, found[1] * depth / camera.fy))
                scores.append(found[2])
    return Patches(np.array(offsets, float).reshape(-1, 2), np.array(scores, float))


def _gradient(grey: Doubles) -> Doubles:
    """Differences across and down [H, W, 2] of the smoothed picture: brightness does not count, nor the grain; edges do."""
    from scipy.ndimage import gaussian_filter

    down, across = np.gradient(gaussian_filter(grey, _SMOOTH_PX))
    return np.stack([across, down], axis=2)


def _shift(a: Doubles, b: Doubles, top: int, left: int, search: int) -> tuple[float, float, float] | None:
    """Columns and rows by which a patch of ``a`` is found in ``b``, and the normalised correlation there.

    None where the best place is at the end of the search or of the picture.
    """
    height, width = a.shape[:2]
    y0, x0 = max(top - search, 0), max(left - search, 0)
    region = b[y0 : min(top + PATCH_PX + search, height), x0 : min(left + PATCH_PX + search, width)]
    patch = a[top : top + PATCH_PX, left : left + PATCH_PX]
    scores = _correlation(region, patch)
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    if not (0 < row < scores.shape[0] - 1 and 0 < column < scores.shape[1] - 1):
        return None
    dx = column + _vertex(scores[row, column - 1 : column + 2]) + x0 - left
    dy = row + _vertex(scores[row - 1 : row + 2, column]) + y0 - top
    return float(dx), float(dy), float(scores[row, column])


def _correlation(region: Doubles, patch: Doubles) -> Doubles:
    """Normalised correlation of a patch with all places of a region where it fits wholly."""
    from scipy.signal import fftconvolve

    along = sum(fftconvolve(region[..., c], patch[::-1, ::-1, c], mode="valid") for c in range(region.shape[2]))
    energy = (region**2).sum(axis=2)
    sums = np.pad(energy.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    p, q = patch.shape[:2]
    window = sums[p:, q:] - sums[:-p, q:] - sums[p:, :-q] + sums[:-p, :-q]
    return np.asarray(along) / np.sqrt(np.maximum(window * (patch**2).sum(), 1e-12))


def _vertex(three: Doubles) -> float:
    """Where the parabola through three values has its top, from the middle one."""
    before, middle, after = three
    bend = before - 2 * middle + after
    return float(0.5 * (before - after) / bend) if bend < 0 else 0.0
