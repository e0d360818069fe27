"""Matches that cannot be what they seem: kept out of mapping, and shown to people with the reason.

A repeated facade, a logo on the windscreen or a film poster on two buses gives many inliers between images that see
nothing of one scene; a mapper that believes one such pair folds two streets into one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from geo_assets.reconstruct.graph import components

WATERMARK = "watermark"
TOO_FAR = "too many inliers for the distance: a repeated facade or a watermark"
TOO_ALIKE = "nearly all matches agree in spite of the distance: a watermark or a copy"
SAME_VIEW = "same view: no parallax"

FAR_M, FAR_INLIERS = 150.0, 100
"""Street images this far apart share tens of inliers at most."""

ALIKE_M, ALIKE_INLIERS, ALIKE_SHARE = 60.0, 200, 0.95
"""Real matches thin out with distance: beyond this one, so many of which so few are wrong are one picture twice."""

SAME_M, SAME_INLIERS = 1.0, 500
"""Two photos of a vehicle that stands, or one photo uploaded twice."""

ENOUGH_PAIRS = 3
"""A pair of the same view is spared only where both images keep so many other pairs."""


def quarantine(pairs: pd.DataFrame) -> pd.Series:
    """For each pair why it is impossible or useless, else None; it has effect for verified pairs only.

    Pairs of the same view are true matches. They go only where mapping does not need them: both images keep three
    other pairs, and what they tied together stays tied.

    Args:
        pairs: ``image_id_a``, ``image_id_b``, ``distance_m``, ``n_matches``, ``n_inliers``, ``geometry``,
            ``verified``.
    """
    distance, inliers = pairs.distance_m.to_numpy(float), pairs.n_inliers.to_numpy(float)
    share = inliers / np.maximum(pairs.n_matches.to_numpy(float), 1)
    reasons = np.full(len(pairs), None, object)
    # A later reason overrules an earlier one.
    reasons[(distance > ALIKE_M) & (inliers > ALIKE_INLIERS) & (share >= ALIKE_SHARE)] = TOO_ALIKE
    reasons[(distance > FAR_M) & (inliers > FAR_INLIERS)] = TOO_FAR
    reasons[(pairs.geometry == "WATERMARK").to_numpy(bool)] = WATERMARK
    free = pd.isna(reasons)
    sound = pairs.verified.to_numpy(bool) & free
    same = sound & (distance < SAME_M) & (inliers > SAME_INLIERS)
    reasons[_dispensable(pairs, sound, same)] = SAME_VIEW
    return pd.Series(reasons, index=pairs.index, dtype=object, name="quarantine")


def _dispensable(pairs: pd.DataFrame, sound: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Places of pairs of the same view that the graph of sound pairs can do without, most alike first."""
    if not same.any():
        return np.zeros(0, int)
    a, b = (pairs[f"image_id_{end}"].to_numpy(object) for end in "ab")
    degree = pd.Series(np.concatenate([a[sound], b[sound]])).value_counts().to_dict()
    inliers = pairs.n_inliers.to_numpy(float)
    spared = []
    for i in sorted(np.flatnonzero(same), key=lambda i: (-inliers[i], a[i], b[i])):
        if min(degree[a[i]], degree[b[i]]) > ENOUGH_PAIRS:
            degree[a[i]] -= 1
            degree[b[i]] -= 1
            spared.append(i)
    kept = sound.copy()
    kept[spared] = False
    nodes = sorted(degree)
    group = dict(zip(nodes, components(nodes, list(a[kept]), list(b[kept])), strict=True))
    # Where only pairs of the same view hold two parts together, all of them that do are kept.
    return np.array([i for i in spared if group[a[i]] == group[b[i]]], int)
