"""Gain and bias of the photos, by sequence or by photo, so that the splat need not explain the camera's exposure."""

from __future__ import annotations

import numpy as np

from geo_assets.splats.cameras import View
from geo_assets.splats.gaussians import Floats

NOTICEABLE, NOTICEABLE_OF_SEQUENCES = 0.08, 0.03
"""Standard deviation of log luminance above which each photo, or each sequence, has an exposure of its own.

A sequence has many photos to learn a few numbers from, so less is worth it: drives 5 % apart gained 0.3 dB as they are,
and 2 dB once the gains of their sequences are known.
"""
RATE, PULL_TO_ZERO = 0.004, 0.002


def log_luminances(views: list[View], n_points: int) -> np.ndarray:
    """How much brighter each photo shows the points it shares with others, natural logarithm [V]; 0 where unknown."""
    luminances = []
    for view in views:
        column = np.clip(view.point_px[:, 0].astype(int), 0, view.camera.width - 1)
        row = np.clip(view.point_px[:, 1].astype(int), 0, view.camera.height - 1)
        counts = np.ones(len(row), bool) if view.mask is None else view.mask[row, column]
        values = np.log(view.photo[row, column].mean(axis=1) + 4.0)
        luminances.append((view.point_rows[counts], values[counts]))
    total, count = np.zeros(n_points), np.zeros(n_points)
    for rows, values in luminances:
        np.add.at(total, rows, values)
        np.add.at(count, rows, 1)
    result = np.zeros(len(views))
    for i, (rows, values) in enumerate(luminances):
        shared = count[rows] > 1
        if shared.sum() >= 10:
            n = count[rows][shared]
            others = (total[rows][shared] - values[shared]) / (n - 1)
            # Against the mean of the others the difference is n / (n - 1) of the one against all.
            result[i] = np.median((values[shared] - others) * (n - 1) / n)
    return result


def groups(views: list[View], n_points: int, setting: str = "auto") -> list[str] | None:
    """The group of each view that shares an exposure; None for no exposures at all.

    Args:
        views: the photos that are trained on.
        n_points: number of the scene's points.
        setting: ``image`` for each photo alone, ``sequence`` for the photos of a sequence, ``off``, or ``auto``: off
            where exposure hardly varies, by sequence where the photos of each agree, else by image.
    """
    if setting == "off" or len(views) < 2:
        return None
    if setting == "image":
        return [view.name for view in views]
    if setting == "sequence":
        return [view.sequence or view.name for view in views]
    differences = log_luminances(views, n_points)
    sequences = np.array([view.sequence or view.name for view in views])
    means = {s: differences[sequences == s].mean() for s in set(sequences)}
    between = np.array([means[s] for s in sequences])
    if (differences - between).std() > NOTICEABLE:
        return [view.name for view in views]
    if between.std() > NOTICEABLE_OF_SEQUENCES:
        return list(map(str, sequences))
    return None


class Exposure:
    """Log gains and biases [G, 3, 2] of the groups, learnt along with the splat.

    Args:
        of: the group of each view that is trained on.
    """

    def __init__(self, of: list[str]) -> None:
        self.names, shares = np.unique(of, return_counts=True)
        self.of = np.searchsorted(self.names, of)
        self._shares = (shares / shares.sum()).astype(np.float32)[:, None, None]
        self.values = np.zeros((len(self.names), 3, 2), np.float32)
        self.first, self.second = np.zeros_like(self.values), np.zeros_like(self.values)

    def apply(self, image: Floats, view: int) -> Floats:
        """The image as the camera of a view would have exposed it."""
        gain, bias = self._of(view)
        return image * gain + bias

    def learn(self, gradient: Floats, image: Floats, view: int) -> Floats:
        """Take a step against the gradient in the exposed image; returns the gradient in the image before exposure."""
        i = self.of[view]
        gain, _ = self._of(view)
        through = gradient * gain
        slope = np.stack([(through * image).sum((0, 1)), gradient.sum((0, 1))], axis=-1) + PULL_TO_ZERO * self.values[i]
        self.first[i] += 0.1 * (slope - self.first[i])
        self.second[i] += 0.01 * (slope**2 - self.second[i])
        self.values[i] -= RATE * self.first[i] / (np.sqrt(self.second[i]) + 1e-10)
        # The splat's own brightness is free, so it is held at that of the mean photo.
        self.values -= (self._shares * self.values).sum(axis=0)
        return np.ascontiguousarray(through, np.float32)

    def _of(self, view: int) -> tuple[Floats, Floats]:
        values = self.values[self.of[view]]
        return np.exp(values[:, 0]), values[:, 1]
