"""Which images to match: near enough, looking the same way, spread over distances, and all of them connected.

The nearest neighbours alone would be photos of almost the same spot, without parallax; rings of distance with a
quota each spend the matches where depth comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import KDTree

from geo_assets.reconstruct.graph import labels_of

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PairRules:
    """How pairs are chosen; distances in metres, angles in degrees."""

    rings_m: tuple[float, ...] = (6.0, 15.0, 30.0, 60.0)
    quotas: tuple[int, ...] = (4, 8, 6, 4)
    per_foreign_sequence: int = 2
    same_way_deg: float = 50.0
    near_m: float = 8.0
    near_deg: float = 100.0
    across_m: float = 40.0
    across_deg: float = 110.0
    sight_deg: float = 60.0
    sequence_steps: tuple[int, ...] = (1, 2, 3)
    min_degree: int = 6
    bridge_pairs: int = 20


REASONS = ("ring", "sequence", "degree", "bridge")


def choose_pairs(cameras: pd.DataFrame, rules: PairRules | None = None) -> pd.DataFrame:
    """Pairs worth matching.

    Args:
        cameras: ``image_id``, ``sequence_id``, ``east_m``, ``north_m``, ``heading_deg`` (null where unknown),
            ``captured_at``; one row an image.
        rules: distances, quotas and angles.

    Returns:
        ``image_id_a`` < ``image_id_b``, ``reason``, ``distance_m``, ``heading_difference_deg``; sorted, each pair once.
    """
    rules = rules or PairRules()
    cameras = cameras.sort_values("image_id", kind="stable").reset_index(drop=True)
    n = len(cameras)
    xy = cameras[["east_m", "north_m"]].to_numpy(float)
    heading = cameras.heading_deg.to_numpy(float, na_value=np.nan)
    sequence = pd.factorize(cameras.sequence_id, sort=True)[0]
    chosen = _unique(_ring_pairs(xy, heading, sequence, rules), n)
    reasons = np.zeros(len(chosen), int)
    for reason, make in enumerate(
        (
            lambda _: _sequence_pairs(cameras, rules),
            lambda pairs: _degree_pairs(xy, pairs, rules),
            lambda pairs: _bridge_pairs(xy, pairs, rules),
        ),
        start=1,
    ):
        more = _new(_unique(make(chosen), n), chosen, n)
        chosen = np.vstack([chosen, more])
        reasons = np.concatenate([reasons, np.full(len(more), reason)])
    a, b = chosen.T
    ids = cameras.image_id.to_numpy(object)
    return (
        pd.DataFrame(
            {
                "image_id_a": ids[a],
                "image_id_b": ids[b],
                "reason": np.array(REASONS, object)[reasons],
                "distance_m": np.hypot(*(xy[a] - xy[b]).T),
                "heading_difference_deg": angle_between_deg(heading[a], heading[b]),
            }
        )
        .sort_values(["image_id_a", "image_id_b"], kind="stable")
        .reset_index(drop=True)
    )


def angle_between_deg(a: Array, b: Array) -> Array:
    """Difference of two directions, 0 to 180 [deg]; not a number where one is unknown."""
    return np.abs((a - b + 180) % 360 - 180)


def sees_the_same(xy: Array, heading: Array, a: Array, b: Array, rules: PairRules) -> Array:
    """Whether two images can show the same things, by place and heading; unknown headings pass."""
    across = xy[b] - xy[a]
    distance = np.hypot(*across.T)
    line = np.degrees(np.arctan2(across[:, 0], across[:, 1]))
    turned = angle_between_deg(heading[a], heading[b])
    # The line of sight has no direction: one of the two looks along it, the other may look back along it.
    off_a, off_b = (np.minimum(off := angle_between_deg(heading[i], line), 180 - off) for i in (a, b))
    facing = (turned <= rules.across_deg) & (off_a <= rules.sight_deg) & (off_b <= rules.sight_deg)
    return (
        np.isnan(turned)
        | (turned <= rules.same_way_deg)
        | ((distance < rules.near_m) & (turned <= rules.near_deg))
        | (facing & (distance < rules.across_m))
    )


def _ring_pairs(xy: Array, heading: Array, sequence: Array, rules: PairRules) -> Array:
    """Up to a quota of neighbours in each ring, nearest first, few of any one foreign sequence."""
    undirected = KDTree(xy).query_pairs(rules.rings_m[-1], output_type="ndarray").astype(int).reshape(-1, 2)
    undirected = undirected[sees_the_same(xy, heading, undirected[:, 0], undirected[:, 1], rules)]
    a, b = np.vstack([undirected, undirected[:, ::-1]]).T
    distance = np.hypot(*(xy[a] - xy[b]).T)
    ring = np.searchsorted(np.array(rules.rings_m), distance, side="left")
    order = np.lexsort((b, distance, ring, a))
    a, b, ring = a[order], b[order], ring[order]
    foreign = sequence[a] != sequence[b]
    kept = ~foreign | (_rank_in_group(a, ring, sequence[b]) < rules.per_foreign_sequence)
    a, b, ring = a[kept], b[kept], ring[kept]
    kept = _rank_in_group(a, ring) < np.array(rules.quotas)[ring]
    return np.column_stack([a[kept], b[kept]])


def _rank_in_group(*keys: Array) -> Array:
    """For each row its place, from 0, among the rows of equal keys, in the order they come."""
    if not len(keys[0]):
        return np.zeros(0, int)
    order = np.lexsort((np.arange(len(keys[0])), *keys))
    grouped = [key[order] for key in keys]
    starts = np.flatnonzero(np.concatenate([[True], np.any([k[1:] != k[:-1] for k in grouped], axis=0)]))
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    return rank


def _sequence_pairs(cameras: pd.DataFrame, rules: PairRules) -> Array:
    """Neighbours in the order of capture, whatever their positions say."""
    order = cameras.sort_values(["sequence_id", "captured_at", "image_id"], kind="stable").index.to_numpy()
    sequence = cameras.sequence_id.to_numpy(object)[order]
    found = []
    for step in rules.sequence_steps:
        same = sequence[step:] == sequence[:-step]
        found.append(np.column_stack([order[:-step][same], order[step:][same]]))
    return np.vstack(found)


def _degree_pairs(xy: Array, pairs: Array, rules: PairRules) -> Array:
    """The nearest of any heading for images that have too few candidates."""
    n = len(xy)
    wanted = min(rules.min_degree, n - 1)
    poor = np.flatnonzero(np.bincount(pairs.ravel(), minlength=n) < wanted)
    if not len(poor) or wanted < 1:
        return np.zeros((0, 2), int)
    _, nearest = KDTree(xy).query(xy[poor], k=wanted + 1)
    a, b = np.repeat(poor, wanted + 1), np.asarray(nearest).reshape(-1)
    return np.column_stack([a, b])[a != b]


def _bridge_pairs(xy: Array, pairs: Array, rules: PairRules) -> Array:
    """The nearest cross pairs between each component and the rest, until one component is left."""
    n = len(xy)
    found = [np.zeros((0, 2), int)]
    labels = labels_of(n, pairs)
    while labels.max(initial=0) > 0:
        smallest = int(np.argmin(np.bincount(labels)))
        inside, outside = np.flatnonzero(labels == smallest), np.flatnonzero(labels != smallest)
        k = min(rules.bridge_pairs, len(outside))
        distance, nearest = (np.ravel(v) for v in KDTree(xy[outside]).query(xy[inside], k=k))
        closest = np.argsort(distance, kind="stable")[: rules.bridge_pairs]
        found.append(np.column_stack([np.repeat(inside, k), outside[nearest]])[closest])
        labels = labels_of(n, np.vstack([pairs, *found]))
    return np.vstack(found)


def _unique(pairs: Array, n: int) -> Array:
    """Each pair once, smaller index first, in order."""
    code = np.unique(pairs.min(1) * n + pairs.max(1)) if len(pairs) else np.zeros(0, int)
    return np.column_stack([code // n, code % n])


def _new(pairs: Array, known: Array, n: int) -> Array:
    return pairs[~np.isin(pairs[:, 0] * n + pairs[:, 1], known[:, 0] * n + known[:, 1])]
