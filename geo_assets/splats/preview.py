"""Pictures of a splat for people: photos beside renders, and a look from above."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from geo_assets import pictures
from geo_assets.splats.cameras import Camera, Scene, View
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.judge import Score
from geo_assets.splats.render import SKY, as_bytes, render

GAP_PX = 4
INLINE_PX = 900
Pixels = npt.NDArray[np.uint8]


def median_view(views: list[View], scores: list[Score]) -> View:
    """The view whose PSNR is the median of the scored ones: neither the best nor the worst."""
    by_id = {view.image_id: view for view in views}
    ranked = sorted((s for s in scores if s.image_id in by_id), key=lambda s: (s.psnr_db, s.image_id))
    return by_id[ranked[(len(ranked) - 1) // 2].image_id]


def compare(gaussians: Gaussians, view: View) -> Pixels:
    """The photo on the left, the render on the right."""
    return _row([view.photo, as_bytes(render(gaussians, view.camera))])


def contact_sheet(gaussians: Gaussians, scene: Scene) -> Pixels:
    """Renders of the first, the middle and the last camera, and one from above the street."""
    views = scene.views
    cameras = [views[0].camera, views[len(views) // 2].camera, views[-1].camera, raised_camera(scene)]
    seen = [as_bytes(render(gaussians, camera, background=SKY)) for camera in cameras]
    return np.concatenate([_row(seen[:2]), _row(seen[2:])]) if _same(seen) else _row(seen)


def raised_camera(scene: Scene) -> Camera:
    """A camera behind and above the middle of the path that looks at it, 30 degrees down."""
    centres = np.array([view.camera.centre for view in scene.views])
    middle = scene.views[int(np.argmin(np.linalg.norm(centres - centres.mean(0), axis=1)))].camera
    forward = middle.forward * [1, 1, 0]
    length = np.linalg.norm(forward)
    forward = forward / length if length > 1e-6 else np.array([0.0, 1, 0])
    back = 0.35 * scene.extent
    return Camera.looking(middle.centre + np.array([0, 0, 0.6]) * back - back * forward, middle.centre, like=middle)


def jpeg(pixels: Pixels, quality: int = 88) -> bytes:
    """JPEG bytes of a picture."""
    return pictures.jpeg(Image.fromarray(pixels), quality)


def inline_jpeg(pixels: Pixels) -> bytes:
    """A JPEG small enough for the event log."""
    return pictures.small_jpeg(Image.fromarray(pixels), longest_px=INLINE_PX)


def _same(parts: list[Pixels]) -> bool:
    return len({p.shape for p in parts}) == 1


def _row(parts: list[Pixels]) -> Pixels:
    height = max(p.shape[0] for p in parts)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, GAP_PX), (0, 0)), constant_values=255) for p in parts]
    return np.concatenate(padded, axis=1)
