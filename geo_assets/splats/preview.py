"""Pictures of a splat for people: a photo beside its render, a look from above, and the course of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from geo_assets import pictures
from geo_assets.splats.cameras import Camera, Scene, View
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.judge import Score
from geo_assets.splats.render import SKY, as_bytes, render

GAP_PX = 4
FARTHEST_BACK_M = 14.0
INLINE_PX = 900
FULL_DIFFERENCE = 0.6
"""Difference of colours from 0 to 1 that is shown as white."""
Pixels = npt.NDArray[np.uint8]


def median_view(views: list[View], scores: list[Score]) -> View:
    """The view whose PSNR is the median of the scored ones: neither the best nor the worst."""
    by_id = {view.image_id: view for view in views}
    ranked = sorted((s for s in scores if s.image_id in by_id), key=lambda s: (s.psnr_db, s.image_id))
    return by_id[ranked[(len(ranked) - 1) // 2].image_id]


def compare(gaussians: Gaussians, view: View) -> Pixels:
    """The photo, its render, and where they differ; what a mask hides is dimmed in all three."""
    seen = as_bytes(render(gaussians, view.camera))
    return _row([_dimmed(part, view) for part in (view.photo, seen, difference(seen, view.photo))])


def difference(image: Pixels, photo: Pixels) -> Pixels:
    """Mean absolute difference of the colours, from black over red to white at :data:`FULL_DIFFERENCE`.

    Args:
        image: uint8 [H, W, 3].
        photo: uint8 [H, W, 3].
    """
    share = np.abs(image.astype(np.int16) - photo).mean(axis=2) / (255 * FULL_DIFFERENCE)
    ramp = 3 * np.clip(share, 0, 1)[..., None] - np.arange(3)  # red fills first, then green, then blue
    return as_bytes(np.clip(ramp, 0, 1))


def contact_sheet(gaussians: Gaussians, scene: Scene) -> Pixels:
    """Renders of the first, the middle and the last camera, and one from above the street."""
    views = scene.views
    cameras = [views[0].camera, views[len(views) // 2].camera, views[-1].camera, raised_camera(scene)]
    seen = [as_bytes(render(gaussians, camera, background=SKY)) for camera in cameras]
    rows = [_row(seen[:2]), _row(seen[2:])]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(r, ((0, GAP_PX), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(rows)[:-GAP_PX]


def overview_camera(gaussians: Gaussians, *, rest: float = 0.05, least_m: float = 5.0) -> Camera:
    """A camera south of the middle of a splat that looks down on it at 45 degrees.

    Args:
        gaussians: z up.
        rest: share of them on each side that may lie outside the view, so that no floater widens it.
        least_m: side of what is looked at, where the splat is smaller.
    """
    lens = Camera(np.eye(3), np.zeros(3), 560.0, 560.0, 400.0, 300.0, 800, 600)
    if not len(gaussians):
        return Camera.looking((0, -30, 30), (0, 0, 0), like=lens)
    low, high = np.quantile(gaussians.means.astype(float), [rest, 1 - rest], axis=0)
    middle, reach = (low + high) / 2, max(float((high - low)[:2].max()), least_m)
    return Camera.looking(middle + np.array([0, -0.8, 0.8]) * reach, middle, like=lens)


def raised_camera(scene: Scene) -> Camera:
    """A camera behind and above the middle of the path that looks along it, some 20 degrees down."""
    centres = np.array([view.camera.centre for view in scene.views])
    middle = scene.views[int(np.argmin(np.linalg.norm(centres - centres.mean(0), axis=1)))].camera
    forward = middle.forward * [1, 1, 0]
    length = np.linalg.norm(forward)
    forward = forward / length if length > 1e-6 else np.array([0.0, 1, 0])
    back = min(0.35 * scene.extent, FARTHEST_BACK_M)
    eye = middle.centre + np.array([0, 0, 0.6]) * back - back * forward
    return Camera.looking(eye, middle.centre + 0.7 * back * forward, like=middle)


def curve_png(curve: Sequence[Mapping[str, float]]) -> bytes:
    """The course of a training: held-out PSNR where it is known, else the loss, and the number of Gaussians.

    Args:
        curve: points with ``step``, ``n_splats``, ``loss`` and ``psnr_db``, as far as the engine tells them.
    """
    from matplotlib.figure import Figure

    from geo_assets.pictures import figure_png

    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    axes = figure.subplots()
    shown = next((name for name in ("psnr_db", "loss") if any(name in point for point in curve)), None)
    if shown:
        points = [(point["step"], point[shown]) for point in curve if shown in point]
        axes.plot(*zip(*points, strict=True), "o-", color="#1f6f8b", markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel({"psnr_db": "held-out PSNR [dB]", "loss": "loss"}.get(shown or "", ""), color="#1f6f8b")
    counts = [(point["step"], point["n_splats"]) for point in curve if "n_splats" in point]
    if counts:
        right = axes.twinx()
        right.plot(*zip(*counts, strict=True), "--", color="#b5651d", linewidth=1)
        right.set_ylabel("Gaussians", color="#b5651d")
        right.set_ylim(bottom=0)
    return figure_png(figure)


def jpeg(pixels: Pixels, quality: int = 88) -> bytes:
    """JPEG bytes of a picture."""
    return pictures.jpeg(Image.fromarray(pixels), quality)


def inline_jpeg(pixels: Pixels) -> bytes:
    """A JPEG small enough for the event log."""
    return pictures.small_jpeg(Image.fromarray(pixels), longest_px=INLINE_PX)


def _dimmed(pixels: Pixels, view: View) -> Pixels:
    """The picture with what the mask hides pale and without colour."""
    if view.mask is None:
        return pixels
    grey = (170 + pixels.mean(axis=2, keepdims=True) / 4).astype(np.uint8)
    return np.where(view.mask[..., None], pixels, grey)


def _row(parts: list[Pixels]) -> Pixels:
    height = max(p.shape[0] for p in parts)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, GAP_PX), (0, 0)), constant_values=255) for p in parts]
    return np.concatenate(padded, axis=1)
