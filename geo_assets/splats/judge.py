"""One judge for all engines: photos against renders of the PLY by our own renderer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from geo_assets.splats.cameras import View
from geo_assets.splats.gaussians import Floats, Gaussians
from geo_assets.splats.render import render

MOST_TRAINED = 50
"""Photos trained on that are judged; those held out are all judged."""
Item = TypeVar("Item")
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """How well a render matches its photo, where the photo's mask lets it count.

    Args:
        image_id: the photo.
        split: ``train`` or ``holdout``.
        psnr_db: peak signal to noise ratio of colours from 0 to 1 [dB].
        ssim: structural similarity, window of 11 pixels.
        cc_psnr_db: PSNR after the render's colours were fitted to the photo's, a gain and a bias for each: what
            remains when exposure and white balance do not count.
        sequence_psnr_db: PSNR after the render's colours were multiplied by the gains of the photo's sequence, as the
            photos trained on show them: nothing of a held-out photo is fitted. None where the gains are not known.
    """

    image_id: str
    split: str
    psnr_db: float
    ssim: float
    cc_psnr_db: float
    sequence_psnr_db: float | None = None


class SequenceGains:
    """How much brighter a sequence's camera shows red, green and blue than the splat, which is of all sequences."""

    def __init__(self) -> None:
        self._sums: dict[str, npt.NDArray[np.float64]] = {}

    def learn(self, view: View, image: Floats, photo: Floats) -> None:
        """Take in the render of a photo trained on, both [H, W, 3] from 0 to 1."""
        counted = slice(None) if view.mask is None else view.mask
        sums = np.stack([image[counted].reshape(-1, 3).sum(0, float), photo[counted].reshape(-1, 3).sum(0, float)])
        self._sums[view.sequence] = self._sums.get(view.sequence, np.zeros((2, 3))) + sums

    def of(self, sequence: str) -> Floats | None:
        """Gains [3] of a sequence; None where no photo of it was trained on, or it has no name."""
        sums = self._sums.get(sequence) if sequence else None
        return None if sums is None else (sums[1] / np.maximum(sums[0], 1e-9)).astype(np.float32)


def judge(gaussians: Gaussians, views: Iterable[View], split: str, gains: SequenceGains | None = None) -> list[Score]:
    """Score the renders of some views, one at a time: the views may be read while they are judged.

    Args:
        gaussians: all that a camera sees, the sky too, in the frame of the cameras; of any degree.
        views: with photos.
        split: ``train`` or ``holdout``.
        gains: learn from photos of ``train``, and are applied to those of ``holdout``; judge the former first.
    """
    from geo_assets.splats.cpu.loss import Loss

    loss, scores = Loss(), []
    for view in views:
        image = render(gaussians, view.camera)
        photo = view.photo.astype(np.float32) / np.float32(255)
        _, ssim, _ = loss(image, view.photo) if view.mask is None else loss(image, view.photo, view.mask)
        fitted = colour_fitted(image, photo, view.mask)
        plain, corrected = psnr_db(image, photo, view.mask), psnr_db(fitted, photo, view.mask)
        exposed = None
        if gains and split == "train":
            gains.learn(view, image, photo)
        elif gains and (gain := gains.of(view.sequence)) is not None:
            exposed = psnr_db(np.clip(image * gain, 0, 1), photo, view.mask)
        scores.append(Score(view.image_id, split, plain, ssim, corrected, exposed))
    return scores


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many items, evenly spread from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def psnr_db(image: Floats, photo: Floats, mask: Mask | None = None) -> float:
    """PSNR of two images from 0 to 1 [dB]; equal images give 100.

    Args:
        image: [H, W, 3].
        photo: [H, W, 3].
        mask: bool [H, W], false where a pixel does not count.
    """
    squares = np.square(image - photo, dtype=np.float32)
    error = squares.mean(dtype=float) if mask is None else squares[mask].mean(dtype=float)
    return float(-10 * np.log10(max(error, 1e-10)))


def colour_fitted(image: Floats, photo: Floats, mask: Mask | None = None) -> Floats:
    """The image with a gain and a bias for each colour that bring it nearest to the photo (least squares).

    Args:
        image: [H, W, 3].
        photo: [H, W, 3].
        mask: bool [H, W], false where a pixel does not count for the fit.
    """
    fitted = np.empty_like(image)
    for c in range(3):
        x, y = image[..., c], photo[..., c]
        counted_x, counted_y = (x.ravel(), y.ravel()) if mask is None else (x[mask], y[mask])
        mean_x, mean_y = counted_x.mean(dtype=float), counted_y.mean(dtype=float)
        variance = np.mean((counted_x - mean_x) ** 2, dtype=float)
        covariance = np.mean((counted_x - mean_x) * (counted_y - mean_y), dtype=float)
        gain = covariance / variance if variance > 1e-9 else 0.0
        fitted[..., c] = (x - mean_x) * gain + mean_y
    return np.clip(fitted, 0, 1)


def mean(scores: list[Score], figure: str) -> float | None:
    """Mean of a figure over scores; None where there are none, or one lacks it."""
    values = [getattr(score, figure) for score in scores]
    return float(np.mean(values)) if values and None not in values else None
