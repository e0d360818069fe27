"""One judge for all engines: the held-out photos against renders of the PLY by our own renderer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from geo_assets.splats.cameras import View
from geo_assets.splats.gaussians import Floats, Gaussians
from geo_assets.splats.render import render


@dataclass(frozen=True)
class Score:
    """How well a render matches its photo.

    Args:
        image_id: the photo.
        split: ``train`` or ``holdout``.
        psnr_db: peak signal to noise ratio of colours from 0 to 1 [dB].
        ssim: structural similarity, window of 11 pixels.
        cc_psnr_db: PSNR after the render's colours were fitted to the photo's, a gain and a bias for each: what
            remains when exposure and white balance do not count.
    """

    image_id: str
    split: str
    psnr_db: float
    ssim: float
    cc_psnr_db: float


def judge(gaussians: Gaussians, views: Iterable[View], split: str) -> list[Score]:
    """Score the renders of some views."""
    from geo_assets.splats.cpu.loss import Loss

    loss, scores = Loss(), []
    for view in views:
        image = render(gaussians, view.camera)
        photo = (view.photo / np.float32(255)).astype(np.float32)
        _, ssim, _ = loss(image, view.photo)
        fitted = psnr_db(colour_fitted(image, photo), photo)
        scores.append(Score(view.image_id, split, psnr_db(image, photo), ssim, fitted))
    return scores


def psnr_db(image: Floats, photo: Floats) -> float:
    """PSNR of two images from 0 to 1 [dB]; equal images give 100."""
    return float(-10 * np.log10(max(np.mean((image.astype(float) - photo) ** 2), 1e-10)))


def colour_fitted(image: Floats, photo: Floats) -> Floats:
    """The image with a gain and a bias for each colour that bring it nearest to the photo (least squares)."""
    fitted = np.empty_like(image)
    for c in range(3):
        x, y = image[..., c].astype(float), photo[..., c].astype(float)
        variance = x.var()
        gain = ((x - x.mean()) * (y - y.mean())).mean() / variance if variance > 1e-9 else 0.0
        fitted[..., c] = (x - x.mean()) * gain + y.mean()
    return np.clip(fitted, 0, 1)


def mean(scores: list[Score], figure: str) -> float | None:
    """Mean of a figure over scores; None where there are none."""
    return float(np.mean([getattr(score, figure) for score in scores])) if scores else None
