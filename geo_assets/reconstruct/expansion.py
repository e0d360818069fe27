"""Pairs of pairs: where A matches B and B matches C, A may match C although place and heading spoke against it.

With positions known that is worth its cost in two cases only: at the border of a box, whose neighbour must be tied to
it by as many images as possible, and for images with few matches, whose position or heading may be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.reconstruct.candidates import PairRules, describe_pairs, numbered

Array = npt.NDArray[Any]

STRONG_GEOMETRIES = ("CALIBRATED", "UNCALIBRATED", "CALIBRATED_RIG")
"""Two-view geometries with parallax; over a plane or from one spot, A-B and B-C say little of A-C."""


def expand(
    cameras: pd.DataFrame,
    pairs: pd.DataFrame,
    rules: PairRules | None = None,
    tried: pd.DataFrame | Iterable[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Propose one round of new pairs.

    At the border that is a pair across it, for an image of few matches any pair. A proposal is as strong as the weaker
    of its two pairs, by inliers, over the best B. The strongest come first until an image has ``expansion_per_image``
    or the allowance of the expansion is spent; pairs across the border may take the share of the images there.

    Args:
        cameras: as :func:`~geo_assets.reconstruct.candidates.choose_pairs` takes them, and, if there,
            ``at_border``: whether the image lies in the strip along the border of the box. Without it those images
            count that have a pair across the border.
        pairs: all pairs tried so far: ``image_id_a``, ``image_id_b``, ``n_inliers``, ``geometry``, ``verified``;
            where there, ``round`` (pairs of earlier rounds count against the allowance), ``quarantine``, ``fringe``.
        rules: limits.
        tried: more pairs that were tried, beside those of ``pairs``: their two ids in any order.

    Returns:
        New pairs in the form of ``choose_pairs``, reason ``expansion``; empty when nothing is left to try.
    """
    rules = rules or PairRules()
    cameras = cameras.sort_values("image_id", kind="stable").reset_index(drop=True)
    n = len(cameras)
    numbers = pd.Series(np.arange(n), index=cameras.image_id.astype(object))
    spent = int(np.count_nonzero(pairs["round"].to_numpy(int) > 0)) if "round" in pairs else 0
    sound = pairs.verified.astype(bool) & (pairs.quarantine.isna() if "quarantine" in pairs else True)
    both = pairs.image_id_a.isin(numbers.index) & pairs.image_id_b.isin(numbers.index)
    known = numbered(pairs[both], numbers)
    verified = numbered(pairs[both & sound], numbers)
    degree = np.bincount(verified.ravel(), minlength=n)
    weak = degree < rules.expansion_degree
    border = _at_border(cameras, pairs) & ~weak
    eligible = border | weak
    share = rules.max_pairs_per_image * rules.expansion_share
    room = int(share * n) - spent
    strong = pairs[both & sound & (pairs.n_inliers >= rules.expansion_inliers) & pairs.geometry.isin(STRONG_GEOMETRIES)]
    a, c, strength = _two_steps(numbered(strong, numbers), strong.n_inliers.to_numpy(np.int64), eligible)
    listed = zip(tried.image_id_a, tried.image_id_b, strict=True) if isinstance(tried, pd.DataFrame) else tried
    more = [(numbers[x], numbers[y]) for x, y in listed if x in numbers.index and y in numbers.index]
    known = np.concatenate([known, np.array(more, np.int64).reshape(-1, 2)])
    distance = np.hypot(*(cameras[axis].to_numpy(float)[a] - cameras[axis].to_numpy(float)[c] for axis in _AXES))
    new = ~np.isin(a * n + c, known.min(axis=1) * n + known.max(axis=1)) & (distance <= rules.expansion_m)
    if "frame_id" in cameras:
        frame = cameras.frame_id.to_numpy(float, na_value=np.nan)
        new &= ~(frame[a] == frame[c])
    if "home_box" in cameras:
        home = cameras.home_box.to_numpy(object)
        new &= (home[a] != home[c]) | weak[a] | weak[c]
    a, c, strength, distance = a[new], c[new], strength[new], distance[new]
    order = np.lexsort((c, a, distance, -strength))
    a, c = a[order], c[order]
    # Borders may not use up what weak images need: each image there adds its own share alone.
    for_border = ~(weak[a] | weak[c])
    within = ~for_border | (np.cumsum(for_border) <= max(int(share * np.count_nonzero(border)) - spent, 0))
    a, c = a[within], c[within]
    kept = _first_of_each(a, c, n, rules.expansion_per_image, max(room, 0))
    ids = cameras.image_id.to_numpy(object)
    return describe_pairs(cameras, zip(ids[a[kept]], ids[c[kept]], strict=True), "expansion")


_AXES = ("east_m", "north_m")


def _at_border(cameras: pd.DataFrame, pairs: pd.DataFrame) -> Array:
    if "at_border" in cameras:
        return cameras.at_border.to_numpy(bool)
    if "fringe" not in pairs:
        return np.zeros(len(cameras), bool)
    across = pairs[pairs.fringe.astype(bool)]
    return cameras.image_id.isin(pd.concat([across.image_id_a, across.image_id_b])).to_numpy(bool)


def _two_steps(edges: Array, inliers: Array, eligible: Array) -> tuple[Array, Array, Array]:
    """All A < C with a common neighbour, A or C eligible; the strength by the best neighbour."""
    n = len(eligible)
    start, end = np.concatenate([edges, edges[:, ::-1]]).T
    weight = np.concatenate([inliers, inliers])
    order = np.lexsort((end, start))
    start, end, weight = start[order], end[order], weight[order]
    first = np.searchsorted(start, np.arange(n + 1))
    begin = np.flatnonzero(eligible[start])  # edges A-B of an eligible A, each followed by all edges B-C
    sizes = np.diff(first)[end[begin]]
    a, through = np.repeat(start[begin], sizes), np.repeat(weight[begin], sizes)
    step = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes) + np.repeat(first[end[begin]], sizes)
    c, strength = end[step], np.minimum(through, weight[step])
    a, c = np.minimum(a, c), np.maximum(a, c)
    order = np.lexsort((-strength, c, a))
    a, c, strength = a[order], c[order], strength[order]
    best = (a != c) & ~np.concatenate([[False], (a[1:] == a[:-1]) & (c[1:] == c[:-1])])[: len(a)]
    return a[best], c[best], strength[best]


def _first_of_each(a: Array, c: Array, n: int, most_per_image: int, most: int) -> Array:
    """Places of the first pairs in which neither image has had its share yet."""
    count = np.zeros(n, np.int64)
    kept = []
    for place, (i, j) in enumerate(zip(a, c, strict=True)):
        if len(kept) >= most:
            break
        if count[i] < most_per_image and count[j] < most_per_image:
            count[[i, j]] += 1
            kept.append(place)
    return np.array(kept, np.int64)
