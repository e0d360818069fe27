"""Pictures of splats by the embedded renderer, of any engine's PLY."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geo_assets.splats.cameras import Camera
from geo_assets.splats.gaussians import Floats, Gaussians

SKY = (0.74, 0.80, 0.87)
"""Background of pictures for people, red, green and blue."""
LEAST_SHOWN = 0.5
"""A pixel that shows less of the splat has no depth."""


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    degree: int | None = None,
) -> Floats:
    """The view of a camera as float32 [height, width, 3] from 0 to 1.

    Args:
        gaussians: the splat, in the camera's frame and unit.
        camera: a pinhole camera.
        background: colour where the splat lets something through.
        degree: highest degree of harmonics to use; all of them by default.
    """
    from geo_assets.splats.cpu.rasteriser import Rasteriser

    used = gaussians.degree if degree is None else min(degree, gaussians.degree)
    image = Rasteriser(differentiable=False).forward(gaussians.rows, used, camera, np.array(background, np.float32))
    return np.clip(image, 0, 1)


def render_depth(gaussians: Gaussians, camera: Camera) -> Floats:
    """How far away the splat is as float32 [height, width], along the viewing axis in the frame's unit.

    The mean depth of what each pixel shows, weighted as its colour is; not-a-number where it shows less than half of
    anything.
    """
    from geo_assets.splats.cpu.rasteriser import Rasteriser

    weighted, weight = Rasteriser(differentiable=False).depths(gaussians.rows, camera)
    return np.divide(weighted, weight, out=np.full_like(weight, np.nan), where=weight >= LEAST_SHOWN)


def as_bytes(image: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """An image from 0 to 1 as uint8."""
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
