"""The Gaussians that training starts from: surfaces seen by stereo, triangulated points, and a shell of sky."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from geo_assets.splats.cameras import Scene, View
from geo_assets.splats.gaussians import SH_0, Gaussians, coefficients, joined

OPACITY = 0.1
LARGEST = 0.1
"""A point's Gaussian is at most this share of the way to the nearest camera, or it would be fog before it."""
DENSE_SHARE = 0.6
"""Share of the cap for the surfaces that stereo finds."""
SKY_SPLATS = 1000
BELOW_HORIZON = 0.15
"""Sine of the angle that the shell reaches below the horizon."""


@dataclass(frozen=True)
class Start:
    """Gaussians of the place and of the sky; ``n_dense`` of the former, the first ones, come from stereo."""

    place: Gaussians
    sky: Gaussians
    n_dense: int = 0


def start_of(
    scene: Scene, views: list[View], *, max_splats: int, degree: int, seed: int, stereo_pixels: int = 0
) -> Start:
    """Gaussians to start from: flat ones where stereo finds a surface, round ones of opacity 0.1 else.

    Args:
        scene: cameras and points in metres, z up.
        views: the photos that may be looked at (not the held-out ones).
        max_splats: no more than these; a tenth at most is sky, and a quarter is left for densification.
        degree: of the harmonics, all zero but the constant one.
        seed: which points are dropped where there are too many, where the sky's Gaussians lie, and stereo's trials.
        stereo_pixels: most pixels of all depth maps together; 0 for points and sky alone.
    """
    rng = np.random.default_rng(seed)
    n_sky = min(SKY_SPLATS, max_splats // 10)
    sky = sky_shell(scene, views, n_sky, degree, rng)
    surfaces = dense(scene, views, int(DENSE_SHARE * max_splats), degree, seed, stereo_pixels)
    rows, most = np.arange(len(scene.points)), max(1, (max_splats - n_sky) * 3 // 4 - len(surfaces))
    if len(rows) > most:
        rows = np.sort(rng.choice(len(rows), most, replace=False))
    return Start(joined([surfaces, points_of(scene, rows, surfaces.means, degree)], degree), sky, len(surfaces))


def points_of(scene: Scene, rows: npt.NDArray[np.integer], others: npt.NDArray[np.floating], degree: int) -> Gaussians:
    """Round Gaussians of some of the scene's points, as large as the way to their neighbours.

    Args:
        scene: its points and cameras.
        rows: which points [N].
        others: what else is there [M, 3].
        degree: of the harmonics.
    """
    points, colours = scene.points[rows], scene.colours[rows] / 255
    sizes = spacing(np.concatenate([points, others]), scene.extent)[: len(points)]
    cameras = KDTree([view.camera.centre for view in scene.views])
    sizes = np.minimum(sizes, LARGEST * np.maximum(cameras.query(points)[0], 1e-3))
    return _round(points, colours, sizes, degree)


def initial_gaussians(scene: Scene, views: list[View], *, max_splats: int, degree: int, seed: int) -> Gaussians:
    """Points and sky in one, without stereo: what any engine could start from, to judge what training adds.

    Args as those of :func:`start_of`.
    """
    start = start_of(scene, views, max_splats=max_splats, degree=degree, seed=seed)
    return joined([start.place, start.sky], degree)


def sky_shell(scene: Scene, views: list[View], n: int, degree: int, rng: np.random.Generator) -> Gaussians:
    """Gaussians far out on a dome, in the mean colour of the pixels they fall on, or that of the nearest that are seen.

    Structure from motion has no points in the sky; without the shell, training paints it as fog before the cameras.
    """
    if n == 0:
        return Gaussians.none(degree)
    middle = np.mean([view.camera.centre for view in scene.views], axis=0)
    distances = np.linalg.norm(scene.points - middle, axis=1)
    radius = max(2.5 * np.quantile(distances, 0.99) if len(distances) else 0, 4 * scene.extent)
    span = 1 + BELOW_HORIZON
    up = 1 - span * rng.random(n)
    azimuth = 2 * np.pi * rng.random(n)
    level = np.sqrt(1 - up**2)
    directions = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), up], axis=1)
    places = middle + radius * directions

    total, count = np.zeros((n, 3)), np.zeros(n)
    for view in views:
        u, v, depth = view.camera.project(places)
        seen = (depth > 0) & (u >= 0) & (u < view.camera.width) & (v >= 0) & (v < view.camera.height)
        if view.mask is not None:
            seen[seen] = view.mask[v[seen].astype(int), u[seen].astype(int)]
        total[seen] += view.photo[v[seen].astype(int), u[seen].astype(int)] / 255
        count[seen] += 1
    seen = count > 0
    if not seen.any():
        return Gaussians.none(degree)
    colours = total / np.maximum(count, 1)[:, None]
    # A sky with holes would be black where a new view looks between the photos.
    nearest = KDTree(directions[seen]).query(directions[~seen])[1]
    colours[~seen] = colours[seen][nearest]
    # 0.7 of the mean distance of neighbours, so that the shell closes without blurring.
    size = np.full(n, 0.7 * radius * math.sqrt(2 * math.pi * span / n))
    return _round(places, colours, size, degree)


def dense(scene: Scene, views: list[View], most: int, degree: int, seed: int, pixels: int) -> Gaussians:
    """Flat Gaussians, at most so many, where stereo of so many pixels finds a surface."""
    from geo_assets.splats.cpu.stereo import depths_of
    from geo_assets.splats.cpu.surfels import surfels

    depths = depths_of(scene, views, seed=seed, most_pixels=pixels) if pixels else None
    return surfels(depths, most, degree) if depths else Gaussians.none(degree)


def spacing(points: npt.NDArray[np.floating], extent: float) -> npt.NDArray[np.float64]:
    """Root mean square distance to the three nearest points, within reason."""
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
