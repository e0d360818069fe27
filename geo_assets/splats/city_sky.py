"""One sky for a city: the domes of its boxes, each seen from its own middle, brought to one far dome."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_assets.splats.city_page import SKY_POINTS
from geo_assets.splats.gaussians import SH_0, Gaussians, quaternions_of

_SKY_NEIGHBOURS, _LEAST_SKY = 16, 0.1


class Sky(NamedTuple):
    """What is seen of a sky: unit directions [N, 3], colours [N, 3], opacities [N], and sizes as angles [N]."""

    directions: npt.NDArray[np.float64]
    colours: npt.NDArray[np.float64]
    opacities: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.float64]

    @classmethod
    def none(cls) -> Sky:
        """No sky at all."""
        return cls(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros(0))


def sky_seen(sky: Gaussians) -> Sky:
    """What a box sees of the sky, from the middle of its dome's foot."""
    if not len(sky):
        return Sky.none()
    middle = np.median(sky.means[:, :2].astype(float), axis=0)
    offset = sky.means.astype(float) - [*middle, float(sky.means[:, 2].min())]
    far = np.maximum(np.linalg.norm(offset, axis=1), 1e-9)
    sizes = np.exp(sky.log_scales.max(axis=1).astype(float)) / far
    return Sky(offset / far[:, None], 0.5 + SH_0 * sky.sh[:, 0].astype(float), sky.opacities.astype(float), sizes)


def city_sky(skies: list[Sky], radius_m: float, n: int = SKY_POINTS) -> Gaussians:
    """One dome for the skies of all boxes: in each of some even directions their mean colour; nothing where none saw.

    Args:
        skies: of the boxes.
        radius_m: of the dome around the city's origin.
        n: directions on the whole sphere.
    """
    from scipy.spatial import KDTree

    sky = Sky(*(np.concatenate(part) for part in zip(*skies, strict=True)))
    if not len(sky.directions):
        return Gaussians.none()
    index = np.arange(n) + 0.5
    up, turn = 1 - 2 * index / n, math.pi * (1 + math.sqrt(5)) * index
    points = np.column_stack([np.sqrt(1 - up**2) * np.cos(turn), np.sqrt(1 - up**2) * np.sin(turn), up])
    near = min(_SKY_NEIGHBOURS, len(sky.directions))
    apart, which = (np.asarray(part).reshape(n, near) for part in KDTree(sky.directions).query(points, k=near))
    spacing = math.sqrt(4 * math.pi / n)
    weights = sky.opacities[which] * np.exp(-0.5 * (apart / np.maximum(sky.sizes[which], spacing / 2)) ** 2)
    seen = np.flatnonzero(weights.sum(axis=1) > _LEAST_SKY)
    weights = weights[seen] / weights[seen].sum(axis=1, keepdims=True)
    colours = np.einsum("nk,nkc->nc", weights, sky.colours[which[seen]])
    return Gaussians.of(
        points[seen] * radius_m,
        np.tile(np.log(np.array([0.75, 0.75, 0.05]) * spacing * radius_m), (len(seen), 1)),
        _facing(points[seen]),
        np.full(len(seen), 4.0),
        ((colours - 0.5) / SH_0)[:, None, :],
    )


def _facing(directions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Quaternions [N, 4] that turn the z axis to directions [N, 3]."""
    helper = np.where(np.abs(directions[:, 2:]) < 0.9, [[0.0, 0, 1]], [[1.0, 0, 0]])
    x = np.asarray(np.cross(helper, directions), float)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.asarray(np.cross(directions, x), float)
    return quaternions_of(np.stack([x, y, directions], axis=2))
