"""Adaptive density in short: more Gaussians where the image still pulls at the centres, fewer where they are faint.

As in Kerbl et al. 2023, with what short trainings need: little growth at a time, a hard cap, no reset of the
opacities. Measured on street scenes, this beats MCMC relocation by 1 dB at 2000 steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geo_assets.splats.gaussians import MEAN, OPACITY, QUAT, SCALE, SH, Floats, Gaussians, rotations_of

PULL = 2e-4
"""Mean gradient in the centre above which a Gaussian is cloned or split [half images]."""
SMALL = 0.01
"""Below this share of the reach a Gaussian is cloned, above it is split."""
LARGEST = 0.2
"""A Gaussian of the place is at most this share of the way to the nearest camera, or it would be fog before a new one."""
FAINTEST = 0.005
SPLIT_SHRINK = math.log(1.6)
ARRAYS = ("rows", "first", "second", "pull_sum", "pull_count")


@dataclass
class Population:
    """The Gaussians in training: rows [N, D], Adam's two moments, and the pull they felt since the last refinement.

    The first ``n_sky`` rows are sky: they stay where they are and are neither cloned, split nor dropped.
    """

    n_sky: int
    rows: Floats
    first: Floats
    second: Floats
    pull_sum: Floats
    pull_count: Floats

    @classmethod
    def of(cls, sky: Gaussians, place: Gaussians) -> Population:
        """A population that has not been trained yet; both are of one degree."""
        rows = np.concatenate([sky.rows, place.rows])
        n = len(rows)
        pull = np.zeros(n, np.float32), np.zeros(n, np.float32)
        return cls(len(sky), rows, np.zeros_like(rows), np.zeros_like(rows), *pull)

    @property
    def sky(self) -> Gaussians:
        """The Gaussians of the sky."""
        return Gaussians(self.rows[: self.n_sky])

    @property
    def place(self) -> Gaussians:
        """The others."""
        return Gaussians(self.rows[self.n_sky :])

    def copy(self) -> Population:
        """An independent copy."""
        return Population(self.n_sky, *(getattr(self, name).copy() for name in ARRAYS))

    def felt(self, seen: npt.NDArray[np.integer], pull: Floats) -> None:
        """Add a step's pull on the Gaussians it saw."""
        self.pull_sum[seen] += pull[seen]
        self.pull_count[seen] += 1

    def limit_sizes(self, distances: npt.NDArray[np.floating]) -> None:
        """Shrink what is too large for its distance to the nearest camera, one distance each row [N], in metres."""
        most = np.log(np.maximum(LARGEST * distances, 1e-4)).astype(np.float32)[self.n_sky :, None]
        scales = self.rows[self.n_sky :, SCALE:QUAT]
        np.minimum(scales, most, out=scales)

    def refined(self, *, cap: int, growth: float, reach: float, rng: np.random.Generator) -> Population:
        """Clone or split where the pull is strong, drop what is faint.

        Args:
            cap: never more Gaussians than these, the sky's counted.
            growth: at most this share more at once; the strongest pull goes first.
            reach: how far the photos look [m].
            rng: places of the halves of a split.
        """
        pull = self.pull_sum / np.maximum(self.pull_count, 1)
        pull[: self.n_sky] = 0
        candidates = np.flatnonzero(pull > PULL)
        room = max(0, min(cap - len(pull), int(growth * len(pull))))
        chosen = candidates[np.argsort(-pull[candidates], kind="stable")][:room]
        small = np.exp(self.rows[chosen, SCALE:QUAT]).max(axis=1) <= SMALL * reach
        cloned, split = chosen[small], chosen[~small]
        rows, first, second = self.rows.copy(), self.first.copy(), self.second.copy()

        halves = rows[split]
        halves[:, SCALE:QUAT] -= SPLIT_SHRINK
        others = halves.copy()
        halves[:, MEAN:SCALE] += _offsets(self.rows[split], rng)
        others[:, MEAN:SCALE] += _offsets(self.rows[split], rng)
        rows[split], first[split], second[split] = halves, 0, 0

        fresh = np.zeros((len(chosen), rows.shape[1]), np.float32)
        rows = np.concatenate([rows, rows[cloned], others])
        first, second = np.concatenate([first, fresh]), np.concatenate([second, fresh])
        kept = (rows[:, OPACITY] > math.log(FAINTEST / (1 - FAINTEST))) & np.isfinite(rows).all(axis=1)
        kept[: self.n_sky] = True
        n = int(kept.sum())
        pulls = np.zeros(n, np.float32), np.zeros(n, np.float32)
        return Population(self.n_sky, np.ascontiguousarray(rows[kept]), first[kept], second[kept], *pulls)


def _offsets(rows: Floats, rng: np.random.Generator) -> Floats:
    """A random place inside each Gaussian, relative to its mean [N, 3]."""
    if not len(rows):
        return np.zeros((0, 3), np.float32)
    inside = np.exp(rows[:, SCALE:QUAT]) * rng.standard_normal((len(rows), 3))
    return np.einsum("nij,nj->ni", rotations_of(rows[:, QUAT:OPACITY]), inside).astype(np.float32)


def column_rates(width: int, degree: int, *, mean_rate: float, scale: float) -> Floats:
    """Learning rate of each column [D]: the defaults of the method for 30,000 steps, times ``scale``.

    Args:
        width: number of columns.
        degree: highest degree of harmonics in use; higher ones rest.
        mean_rate: rate of the means, already scaled.
        scale: short trainings want about twice the defaults.
    """
    rates = np.zeros(width, np.float32)
    rates[MEAN:SCALE] = mean_rate
    rates[SCALE:QUAT] = 5e-3 * scale
    rates[QUAT:OPACITY] = 1e-3 * scale
    rates[OPACITY] = 5e-2 * scale
    rates[SH : SH + 3] = 2.5e-3 * scale
    rates[SH + 3 : SH + 3 * (degree + 1) ** 2] = 2.5e-3 / 20 * scale
    return rates


def sky_rates(rates: Floats) -> Floats:
    """The same for the sky, which keeps its place and its only harmonic: the dome has no parallax to learn from."""
    rates = rates.copy()
    rates[MEAN:SCALE] = rates[QUAT:OPACITY] = rates[SH + 3 :] = 0
    return rates
