"""The Gaussians that a training goes on from where an earlier splat of the place is there.

What the photos still show stays, what only deleted photos showed goes, and what new photos show beyond it is begun as
in :mod:`geo_assets.splats.cpu.initial`. Held-out photos are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from geo_assets.splats.cameras import Camera, Scene, View
from geo_assets.splats.cpu.initial import DENSE_SHARE, SKY_SPLATS, Start, dense, points_of, sky_shell, spacing, start_of
from geo_assets.splats.cpu.rasteriser import Rasteriser
from geo_assets.splats.engine import Earlier
from geo_assets.splats.gaussians import SH, SH_0, Gaussians, joined, rotations_of
from geo_assets.splats.judge import evenly

ROOM = 0.1
"""Share of the cap that is left for densification; the Gaussians that the photos show least make way."""
LEAST_SHOWN_PX = 1.0
"""Pixels of all photos together, at half their size, below which a Gaussian counts as not shown."""
MOST_ASKED = 200
"""Photos that are asked what they show; 20 ms each."""
NEAREST, WITHIN = 16, 3.0
"""A place is covered within so many standard deviations of one of so many nearest Gaussians."""
LEAST_OPACITY = 0.1
"""Fainter Gaussians cover nothing."""
LEAST_NEW = 0.1
"""Share of a photo's points in areas that nothing covers from which stereo looks at it."""


def start_from(
    earlier: Earlier,
    scene: Scene,
    views: list[View],
    *,
    max_splats: int,
    degree: int,
    seed: int,
    stereo_pixels: int = 0,
) -> Start:
    """The earlier Gaussians without what only deleted photos showed, and Gaussians for what new photos show beyond them.

    Args:
        earlier: the splat to start from.
        scene: cameras and points in metres, z up.
        views: the photos that may be looked at (not the held-out ones).
        max_splats: no more than these; a tenth is left for densification.
        degree: of the harmonics; those of the earlier splat are cut, or filled up with zeros.
        seed: of what is drawn at random.
        stereo_pixels: most pixels of all depth maps, had stereo to look at all photos.
    """
    place = earlier.place.to_degree(degree)
    place = place[~shown_by_none(place, views, earlier.gone)]
    if not len(place):
        return start_of(scene, views, max_splats=max_splats, degree=degree, seed=seed, stereo_pixels=stereo_pixels)
    rng = np.random.default_rng(seed)
    sky = earlier.sky.to_degree(degree)
    if not len(sky):
        sky = sky_shell(scene, views, min(SKY_SPLATS, max_splats // 10), degree, rng)
    fresh, n_dense = _fresh(
        place, earlier.new, scene, views, max_splats=max_splats, degree=degree, rng=rng, seed=seed, pixels=stereo_pixels
    )
    most = max(1, max_splats - len(sky) - len(fresh) - int(ROOM * max_splats))
    if len(place) > most:
        weights = shown_px(place, [view.camera for view in evenly(views, MOST_ASKED)])
        place = place[np.sort(np.argsort(-weights, kind="stable")[:most])]
    return Start(joined([fresh, place], degree), sky, n_dense)


def shown_px(gaussians: Gaussians, cameras: Sequence[Camera]) -> npt.NDArray[np.float64]:
    """How many pixels of the pictures each Gaussian makes up [N], pictures taken at half their size.

    A pixel's weights are the slope of its colour in the Gaussians' colours.
    """
    rows = gaussians.to_degree(0).rows
    rows[:, SH:] = 0
    total, raster = np.zeros(len(rows)), Rasteriser()
    for camera in (camera.resized(0.5) for camera in cameras):
        raster.forward(rows, 0, camera, np.zeros(3, np.float32))
        red = np.zeros((camera.height, camera.width, 3), np.float32)
        red[..., 0] = 1
        slopes, _ = raster.backward(red)
        total[raster.order] += slopes[raster.order, SH] / SH_0
    return total


def shown_by_none(gaussians: Gaussians, views: list[View], gone: Sequence[Camera]) -> npt.NDArray[np.bool_]:
    """Gaussians that deleted photos showed and that no photo shows any more [N].

    Nothing would ever correct them. What no photo ever showed, such as the inside of a wall, does no harm.
    """
    if not gone:
        return np.zeros(len(gaussians), bool)
    away = KDTree([camera.centre for camera in gone]).query([view.camera.centre for view in views])[0]
    near = [views[i].camera for i in np.argsort(away, kind="stable")[:MOST_ASKED]]
    then, now = shown_px(gaussians, evenly(gone, MOST_ASKED)), shown_px(gaussians, near)
    return (then >= LEAST_SHOWN_PX) & (now < LEAST_SHOWN_PX)


def covered(
    places: npt.NDArray[np.floating], sizes: npt.NDArray[np.floating], gaussians: Gaussians
) -> npt.NDArray[np.bool_]:
    """Whether each place [N, 3], the middle of a blob of a size [N] in metres, lies within a Gaussian."""
    solid = gaussians[gaussians.opacities >= LEAST_OPACITY]
    if not len(solid) or not len(places):
        return np.zeros(len(places), bool)
    nearest = np.asarray(KDTree(solid.means).query(places, k=min(NEAREST, len(solid)))[1]).reshape(len(places), -1)
    axes, scales = rotations_of(solid.quats), np.exp(solid.log_scales.astype(float))
    result = np.zeros(len(places), bool)
    for at in nearest.T:
        along = np.einsum("nji,nj->ni", axes[at], places - solid.means[at])
        result |= (along**2 / (scales[at] ** 2 + sizes[:, None] ** 2)).sum(axis=1) < WITHIN**2
    return result


def _fresh(
    place: Gaussians,
    new: frozenset[str],
    scene: Scene,
    views: list[View],
    *,
    max_splats: int,
    degree: int,
    rng: np.random.Generator,
    seed: int,
    pixels: int,
) -> tuple[Gaussians, int]:
    """Gaussians for what new photos show and nothing covers; so many of them, the first ones, come from stereo."""
    observed = [view.point_rows for view in views if view.name in new]
    rows = np.unique(np.concatenate(observed)) if observed else np.zeros(0, np.int64)
    sizes = spacing(scene.points, scene.extent)
    rows = rows[~covered(scene.points[rows], sizes[rows], place)]
    if not len(rows):
        return Gaussians.none(degree), 0
    is_new = np.zeros(len(scene.points), bool)
    is_new[rows] = True
    looking = [view for view in views if len(view.point_rows) and is_new[view.point_rows].mean() >= LEAST_NEW]
    share = len(looking) / len(views)
    surfaces = dense(scene, looking, int(DENSE_SHARE * max_splats * share), degree, seed, int(pixels * share))
    widths = np.exp(surfaces.log_scales.astype(float)).max(axis=1, initial=0)
    surfaces = surfaces[~covered(surfaces.means.astype(float), widths, place)]
    most = max(1, max_splats // 4)
    if len(rows) > most:
        rows = np.sort(rng.choice(rows, most, replace=False))
    blobs = points_of(scene, rows, np.concatenate([place.means, surfaces.means]), degree)
    return joined([surfaces, blobs], degree), len(surfaces)
