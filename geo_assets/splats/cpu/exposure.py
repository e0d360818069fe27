"""Gain and bias of the photos, by sequence or by photo, so that the splat need not explain the camera's exposure."""

from __future__ import annotations

import numpy as np

from geo_assets.splats.cameras import View
from geo_assets.splats.gaussians import Floats

NOTICEABLE = 0.08
"""Standard deviation of log luminance above which exposure is modelled."""
RATE, PULL_TO_ZERO = 0.004, 0.002


def log_luminances(views: list[View], n_points: int) -> np.ndarray:
    """How much brighter each photo shows the points it shares with others, natural logarithm [V]; 0 where unknown."""
    luminances = []
    for view in views:
        column = np.clip(view.point_px[:, 0].astype(int), 0, view.camera.width - 1)
        row = np.clip(view.point_px[:, 1].astype(int), 0, view.camera.height - 1)
        luminances.append(np.log(view.photo[row, column].mean(axis=1) + 4.0))
    total, count = np.zeros(n_points), np.zeros(n_points)
    for view, values in zip(views, luminances, strict=True):
        np.add.at(total, view.point_rows, values)
        np.add.at(count, view.point_rows, 1)
    result = np.zeros(len(views))
    for i, (view, values) in enumerate(zip(views, luminances, strict=True)):
        shared = count[view.point_rows] > 1
        if shared.sum() >= 10:
            n = count[view.point_rows][shared]
            others = (total[view.point_rows][shared] - values[shared]) / (n - 1)
            # Against the mean of the others the difference is n / (n - 1) of the one against all.
            result[i] = np.median((values[shared] - others) * (n - 1) / n)
    return result


def groups(views: list[View], n_points: int) -> list[str] | None:
    """What shares an exposure: photos of a sequence, or each photo alone; None where exposure hardly varies.

    A sequence is taken as one where its photos agree among themselves and sequences differ.
    """
    differences = log_luminances(views, n_points)
    sequences = np.array([view.sequence or view.name for view in views])
    means = {s: differences[sequences == s].mean() for s in set(sequences)}
    between = np.array([means[s] for s in sequences])
    if (differences - between).std() > NOTICEABLE:
        return [view.name for view in views]
    if between.std() > NOTICEABLE:
        return list(map(str, sequences))
    return None


class Exposure:
    """Log gains and biases [G, 3, 2] of the groups, learnt along with the splat."""

    def __init__(self, names: list[str]) -> None:
        self.names = sorted(set(names))
        self.values = np.zeros((len(self.names), 3, 2), np.float32)
        self.first, self.second = np.zeros_like(self.values), np.zeros_like(self.values)

    def apply(self, image: Floats, name: str) -> Floats:
        """The image as the group's camera would have exposed it."""
        gain, bias = self._of(name)
        return image * gain + bias

    def learn(self, gradient: Floats, image: Floats, name: str) -> Floats:
        """Take a step against the gradient in the exposed image; returns the gradient in the image before exposure."""
        i = self.names.index(name)
        gain, _ = self._of(name)
        through = gradient * gain
        slope = np.stack([(through * image).sum((0, 1)), gradient.sum((0, 1))], axis=-1) + PULL_TO_ZERO * self.values[i]
        self.first[i] += 0.1 * (slope - self.first[i])
        self.second[i] += 0.01 * (slope**2 - self.second[i])
        self.values[i] -= RATE * self.first[i] / (np.sqrt(self.second[i]) + 1e-10)
        # The splat's own brightness is free, so the mean gain is held at one.
        self.values[..., 0] -= self.values[..., 0].mean(axis=0)
        return through

    def _of(self, name: str) -> tuple[Floats, Floats]:
        values = self.values[self.names.index(name)]
        return np.exp(values[:, 0]), values[:, 1]
