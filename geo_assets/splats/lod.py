"""Levels of detail: fewer Gaussians that look the same from afar, made by merging what lies together.

Two Gaussians become one with their joint mean and covariance (the moments of what is seen of both), the colours
averaged by how much is seen of each, and the opacity that keeps how much is seen. Which two is decided as in Ward's
clustering: the pairs first whose merging moves the least of what is seen the least far, colours counted as distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geo_assets.splats.cpu.compiled import kernel
from geo_assets.splats.gaussians import SH, SH_0, Gaussians, joined, quaternions_of, rotations_of

Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

MOST_OPACITY, LEAST_OPACITY = 0.999, 1.05 / 255
"""Of a merged Gaussian; viewers and files drop what is fainter than 1/255."""
_FEW = 64
NEIGHBOURS = 8
COLOUR_STEP = 0.2
"""A colour difference (of 1) that counts as much as the typical distance between neighbours."""
ROUND = 0.7
"""Share of the mergers still wanted that one round does: the dear ones wait for what the cheap ones leave. On a street
this is worth 6 dB at half the Gaussians against doing all at once."""


@dataclass(frozen=True)
class Level:
    """Gaussians that stand for as many or more.

    Args:
        gaussians: N of them, in metres.
        spread_m2: mean squared distance from each to the centres of those that it stands for [m2], [N].
    """

    gaussians: Gaussians
    spread_m2: Doubles

    @classmethod
    def of(cls, gaussians: Gaussians) -> Level:
        """The finest level: each stands for itself."""
        return cls(gaussians, np.zeros(len(gaussians)))

    def __len__(self) -> int:
        return len(self.gaussians)

    @property
    def error_m(self) -> float:
        """How far things lie from where this level draws them: root mean square over what is seen [m]."""
        if not len(self):
            return 0.0
        return float(np.sqrt(np.average(self.spread_m2, weights=np.maximum(seen(self.gaussians), 1e-30))))

    def merged(self, n: int) -> Level:
        """At most ``n`` Gaussians (at least one, where there is any) that stand for these; deterministic."""
        n, level = max(n, 1), self
        while len(level) > n:
            surplus = len(level) - n
            level = _merge_pairs(level, max(int(ROUND * surplus), min(surplus, _FEW)))
        return level

    def halved(self, times: int = 1) -> Level:
        """Half as many, rounded up, as often as wanted."""
        return self.merged(-(-len(self) // 2**times))


def joined_levels(levels: list[Level]) -> Level:
    """Several levels in one, in their order, with the harmonics of the highest degree."""
    gaussians = joined([level.gaussians for level in levels], max(level.gaussians.degree for level in levels))
    return Level(gaussians, np.concatenate([level.spread_m2 for level in levels]))


def seen(gaussians: Gaussians) -> Doubles:
    """How much is seen of each: opacity times the ellipsoid's area at one standard deviation (up to a factor) [N]."""
    return gaussians.opacities.astype(float) * _area(np.exp(gaussians.log_scales.astype(float)))


def extent(gaussians: Gaussians) -> tuple[Doubles, Doubles]:
    """Lowest and highest corner [3] of what the Gaussians cover at one standard deviation."""
    if not len(gaussians):
        return np.zeros(3), np.zeros(3)
    reach = np.sqrt(np.einsum("nii->ni", _covariances(gaussians)))
    means = gaussians.means.astype(float)
    return (means - reach).min(axis=0), (means + reach).max(axis=0)


def in_two(gaussians: Gaussians) -> tuple[Indices, Indices]:
    """Indices of two halves, cut across the plane's longer side at the median."""
    plane = gaussians.means[:, :2]
    low, high = np.quantile(plane, [0.01, 0.99], axis=0) if len(plane) else np.zeros((2, 2))
    order = np.argsort(plane[:, int(np.argmax(high - low))], kind="stable")
    middle = len(order) // 2
    # Each half in the order it came, so that cutting does not shuffle what lies together in the file.
    return np.sort(order[:middle]), np.sort(order[middle:])


def _area(scales: Doubles) -> Doubles:
    a, b, c = scales.T
    return a * b + b * c + c * a


def _covariances(gaussians: Gaussians) -> Doubles:
    axes = rotations_of(gaussians.quats) * np.exp(gaussians.log_scales.astype(float))[:, None, :]
    return axes @ axes.transpose(0, 2, 1)


def _merge_pairs(level: Level, at_most: int) -> Level:
    """One round: up to so many disjoint pairs of neighbours become one each; at least one pair does."""
    gaussians = level.gaussians
    weight = np.maximum(seen(gaussians), 1e-12)
    a, b = _cheapest_pairs(gaussians, weight, at_most)
    share = (weight[a] / (weight[a] + weight[b]))[:, None]
    rows = gaussians.rows.astype(float)
    means = share * rows[a, :3] + (1 - share) * rows[b, :3]
    da, db = rows[a, :3] - means, rows[b, :3] - means
    first, second = (_covariances(gaussians[i]) + np.einsum("ni,nj->nij", d, d) for i, d in ((a, da), (b, db)))
    variances, axes = np.linalg.eigh(share[..., None] * first + (1 - share[..., None]) * second)
    axes[np.linalg.det(axes) < 0, :, 0] *= -1
    scales = np.sqrt(np.maximum(variances, 1e-14))
    opacities = np.clip((weight[a] + weight[b]) / _area(scales), LEAST_OPACITY, MOST_OPACITY)
    merged = np.concatenate(
        [
            means,
            np.log(scales),
            quaternions_of(axes),
            np.log(opacities / (1 - opacities))[:, None],
            share * rows[a, SH:] + (1 - share) * rows[b, SH:],
        ],
        axis=1,
    )
    spread_a, spread_b = (level.spread_m2[i] + (d**2).sum(axis=1) for i, d in ((a, da), (b, db)))
    spread = share[:, 0] * spread_a + (1 - share[:, 0]) * spread_b
    # A merged one takes the place of its first, so that the order in the file stays that of the place.
    result, spreads = gaussians.rows.copy(), level.spread_m2.copy()
    result[a], spreads[a] = merged, spread
    kept = np.ones(len(gaussians), bool)
    kept[b] = False
    return Level(Gaussians(result[kept]), spreads[kept])


def _cheapest_pairs(gaussians: Gaussians, weight: Doubles, at_most: int) -> tuple[Indices, Indices]:
    """Disjoint pairs of neighbours in the order of what merging them costs."""
    from scipy.spatial import KDTree

    n = len(gaussians)
    means = gaussians.means.astype(float)
    k = min(NEIGHBOURS, n - 1)
    distances, near = KDTree(means).query(means, k=k + 1)
    distances, near = np.asarray(distances), np.asarray(near)
    a, b = np.repeat(np.arange(n), k + 1), near.ravel()
    once = (a < b) | ((a > b) & ~(near[b] == a[:, None]).any(axis=1))
    a, b, apart = a[once], b[once], distances.ravel()[once]
    typical = max(float(np.median(distances[:, 1])), 1e-9)
    colours = SH_0 * gaussians.sh[:, 0].astype(float)
    differ = ((colours[a] - colours[b]) ** 2).sum(axis=1) * (typical / COLOUR_STEP) ** 2
    cost = weight[a] * weight[b] / (weight[a] + weight[b]) * (apart**2 + differ + 1e-3 * typical**2)
    pairs = np.empty((min(at_most, n // 2), 2), np.int64)
    found = _match(a, b, np.argsort(cost, kind="stable"), np.ones(n, np.bool_), pairs)
    return pairs[:found, 0], pairs[:found, 1]


@kernel
def _match(a: Indices, b: Indices, order: Indices, free: npt.NDArray[np.bool_], pairs: Indices) -> int:
    """Greedy matching: each edge in the order given whose ends are both still free, until ``pairs`` is full."""
    count = 0
    for edge in order:
        if count == len(pairs):
            break
        if free[a[edge]] and free[b[edge]]:
            free[a[edge]] = False
            free[b[edge]] = False
            pairs[count, 0], pairs[count, 1] = a[edge], b[edge]
            count += 1
    return count
