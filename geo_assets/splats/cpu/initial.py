"""The Gaussians that training starts from: one for each triangulated point, and a shell of sky."""

from __future__ import annotations

import math

import numpy as np

from geo_assets.splats.cameras import Scene, View
from geo_assets.splats.gaussians import SH_0, Gaussians, coefficients, joined

OPACITY = 0.1
SKY_SPLATS = 1000
BELOW_HORIZON = 0.15
"""Sine of the angle that the shell reaches below the horizon."""


def initial_gaussians(scene: Scene, views: list[View], *, max_splats: int, degree: int, seed: int) -> Gaussians:
    """Points and sky as round Gaussians of opacity 0.1.

    Args:
        scene: cameras and points in metres, z up.
        views: the photos that may be looked at (not the held-out ones).
        max_splats: no more than these; a tenth at most is sky, and a quarter is left for densification.
        degree: of the harmonics, all zero but the constant one.
        seed: which points are dropped where there are too many, and where the sky's Gaussians lie.
    """
    rng = np.random.default_rng(seed)
    n_sky = min(SKY_SPLATS, max_splats // 10)
    points, colours = scene.points, scene.colours / 255
    most = max(1, (max_splats - n_sky) * 3 // 4)
    if len(points) > most:
        chosen = np.sort(rng.choice(len(points), most, replace=False))
        points, colours = points[chosen], colours[chosen]
    return joined(
        [
            _round(points, colours, _spacing(points, scene.extent), degree),
            sky_shell(scene, views, n_sky, degree, rng),
        ],
        degree,
    )


def sky_shell(scene: Scene, views: list[View], n: int, degree: int, rng: np.random.Generator) -> Gaussians:
    """Gaussians far out on a dome, where some camera looks, in the mean colour of the pixels they fall on.

    Structure from motion has no points in the sky; without the shell, training paints it as fog before the cameras.
    """
    if n == 0:
        return Gaussians.none(degree)
    middle = np.mean([view.camera.centre for view in scene.views], axis=0)
    reach = np.quantile(np.linalg.norm(scene.points - middle, axis=1), 0.99)
    radius = max(2.5 * reach, 4 * scene.extent)
    span = 1 + BELOW_HORIZON
    up = 1 - span * rng.random(n)
    azimuth = 2 * np.pi * rng.random(n)
    level = np.sqrt(1 - up**2)
    places = middle + radius * np.stack([level * np.cos(azimuth), level * np.sin(azimuth), up], axis=1)

    total, count = np.zeros((n, 3)), np.zeros(n)
    for view in views:
        u, v, depth = view.camera.project(places)
        seen = (depth > 0) & (u >= 0) & (u < view.camera.width) & (v >= 0) & (v < view.camera.height)
        total[seen] += view.photo[v[seen].astype(int), u[seen].astype(int)] / 255
        count[seen] += 1
    seen = count > 0
    # 0.7 of the mean distance of neighbours, so that the shell closes without blurring.
    size = np.full(seen.sum(), 0.7 * radius * math.sqrt(2 * math.pi * span / n))
    return _round(places[seen], total[seen] / count[seen][:, None], size, degree)


def _spacing(points: np.ndarray, extent: float) -> np.ndarray:
    """Root mean square distance to the three nearest points, within reason."""
    from scipy.spatial import KDTree

    if len(points) < 4:
        return np.full(len(points), 0.05 * extent)
    distances = KDTree(points).query(points, 4)[0][:, 1:]
    spacing = np.sqrt((distances**2).mean(axis=1))
    return np.clip(spacing, 1e-4 * extent, max(np.quantile(spacing, 0.95), 1e-4 * extent))


def _round(points: np.ndarray, colours: np.ndarray, sizes: np.ndarray, degree: int) -> Gaussians:
    n = len(points)
    harmonics = np.zeros((n, coefficients(degree), 3))
    harmonics[:, 0] = (colours - 0.5) / SH_0
    logit = math.log(OPACITY / (1 - OPACITY))
    return Gaussians.of(
        points,
        np.repeat(np.log(sizes)[:, None], 3, axis=1),
        np.tile([1.0, 0, 0, 0], (n, 1)),
        np.full(n, logit),
        harmonics,
    )
