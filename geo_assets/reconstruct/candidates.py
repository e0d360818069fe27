"""Which images to match: near enough, looking the same way, spread over distances, and all of them connected.

The nearest neighbours alone would be photos of almost the same spot, without parallax; rings of distance with a
quota each spend the matches where depth comes from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.errors import ConfigError, ReconstructionError, SourceError
from geo_assets.reconstruct import rings
from geo_assets.settings import Reconstruct

Array = npt.NDArray[Any]

SPHERICAL = "EQUIRECTANGULAR"
"""COLMAP's camera model that sees all around."""

REASONS = ("ring", "sequence", "degree", "bridge", "expansion", "vocabulary", "listed")
_CHUNK = 1_000_000  # pairs described at a time
_UNKNOWN_TIME = np.iinfo(np.int64).min  # numpy's "not a time" as a number


@dataclass(frozen=True)
class PairRules:
    """How pairs are chosen; distances in metres, angles in degrees.

    Each ring around an image gives it up to its quota of partners, nearest first. What a ring leaves of its quota
    the next may use: where photos are sparse, the far ones are needed.

    Two images can show the same things if a heading is unknown, if the headings differ by at most
    ``same_way_deg``, if they stand nearer than ``near_m`` and differ by at most ``near_deg``, or if they stand
    nearer than ``across_m``, differ by at most ``across_deg`` and both look along the line between them within
    ``sight_deg``.
    """

    rings_m: tuple[float, ...] = (6.0, 15.0, 30.0, 60.0)
    quotas: tuple[int, ...] = (4, 8, 6, 4)
    per_foreign_sequence: int = 2
    wide_m: float = 100.0
    """How far the last ring reaches for images whose position is worse than ``wide_sigma_m`` or that would have
    fewer than ``few`` candidates."""
    wide_sigma_m: float = 8.0
    few: int = 8
    same_way_deg: float = 50.0
    near_m: float = 8.0
    near_deg: float = 100.0
    across_m: float = 40.0
    across_deg: float = 110.0
    sight_deg: float = 60.0
    sequence_steps: tuple[int, ...] = (1, 2, 3)
    turn_steps: tuple[int, ...] = (5, 8)
    turn_deg: float = 30.0
    sequence_m: float = 300.0
    """Neighbours of a sequence that are further apart are two drives under one name, or a wrong position."""
    min_degree: int = 6
    repair_m: float = 150.0
    bridge_pairs: int = 20
    bridge_m: float = 300.0
    max_pairs_per_image: float = 20.0
    fringe_share: float = 0.05
    expansion_share: float = 0.05
    expansion_inliers: int = 30
    expansion_m: float = 150.0
    expansion_per_image: int = 10
    expansion_degree: int = 4

    @classmethod
    def of(cls, options: Reconstruct) -> PairRules:
        """The rules with the rings and the budget of the settings.

        Raises:
            ConfigError: radii and quotas are of different number, or not increasing or negative.
        """
        radii, quotas = options.rings_m, options.ring_quotas
        if len(radii) != len(quotas):
            raise ConfigError(
                f"reconstruct.rings_m has {len(radii)} radii and reconstruct.ring_quotas {len(quotas)} quotas; give as many of the one as of the other."
            )
        if not radii or any(a >= b for a, b in zip((0.0, *radii), radii, strict=False)):
            raise ConfigError(
                f"reconstruct.rings_m is {list(radii)}; give radii above 0 m, each larger than the one before."
            )
        if any(q < 0 for q in quotas):
            raise ConfigError(f"reconstruct.ring_quotas is {list(quotas)}; give 0 or more partners for each ring.")
        return cls(rings_m=tuple(radii), quotas=tuple(quotas), max_pairs_per_image=options.max_pairs_per_image)

    @property
    def sight(self) -> rings.Sight:
        """The limits of the headings, as the compiled search takes them."""
        return rings.Sight(
            self.same_way_deg, self.near_m, self.near_deg, self.across_m, self.across_deg, self.sight_deg
        )


def choose_pairs(cameras: pd.DataFrame, rules: PairRules | None = None) -> pd.DataFrame:
    """Pairs worth matching by place, heading and sequence; the order of the rows does not matter.

    Args:
        cameras: ``image_id``, ``sequence_id``, ``east_m``, ``north_m``, ``heading_deg`` (null where unknown),
            ``captured_at``; one row an image. Where there, these count too: ``sigma_xy_m``; ``frame_id`` (images of
            one frame, the views of a panorama, are never paired); ``camera_model`` (a sphere passes every test of
            heading); ``home_box``.
        rules: distances, quotas and angles.

    Returns:
        ``image_id_a`` < ``image_id_b``, ``reason``, ``distance_m``, ``heading_difference_deg`` and, with
        ``home_box``, ``fringe``: whether the two lie in different boxes; sorted, each pair once.

    Raises:
        ReconstructionError: an image has no position.
    """
    rules = rules or PairRules()
    images = _Images.of(cameras)
    if images.n < 2:
        return _described(images, np.zeros(0, np.int64), np.zeros(0, np.int8))
    cells = rings.Cells.of(images.xy, max(rules.rings_m[-1], rules.wide_m, rules.repair_m, rules.bridge_m))
    chosen = _unique(*_ring_pairs(cells, images, rules), images.n)
    found = [chosen]
    for make in (_sequence_pairs, _degree_pairs, _bridge_pairs):
        more = _without(_unique(*make(cells, images, chosen, rules), images.n), chosen)
        chosen = np.sort(np.concatenate([chosen, more]))
        found.append(more)
    # Pairs by their code are pairs by their ids, because images are numbered in the order of their ids.
    reasons = np.zeros(len(chosen), np.int8)
    for reason, more in enumerate(found[1:], start=1):
        reasons[np.searchsorted(chosen, more)] = reason
    del found, cells
    return _described(images, chosen, reasons)


def tie_together(cameras: pd.DataFrame, pairs: pd.DataFrame, rules: PairRules | None = None) -> pd.DataFrame:
    """The nearest pairs between groups of images that no chain of the given pairs connects, in the same form.

    Args:
        cameras: as for :func:`choose_pairs`.
        pairs: chosen pairs among them.
        rules: how many, and how far.
    """
    rules = rules or PairRules()
    images = _Images.of(cameras)
    if images.n < 2:
        return _described(images, np.zeros(0, np.int64), np.zeros(0, np.int8))
    a, b = numbered(pairs, pd.Series(np.arange(images.n), index=pd.Index(images.ids, dtype=object))).T
    known = _unique(a, b, images.n)
    cells = rings.Cells.of(images.xy, rules.bridge_m)
    more = _without(_unique(*_bridge_pairs(cells, images, known, rules), images.n), known)
    return _described(images, more, np.full(len(more), REASONS.index("bridge"), np.int8))


def numbered(pairs: Any, numbers: pd.Series) -> Array:
    """Numbers of both images of each pair, [m, 2], given by image id."""
    ends = [numbers.reindex(pairs[f"image_id_{end}"].astype(object)).to_numpy(np.int64) for end in "ab"]
    return np.column_stack(ends)


def describe_pairs(cameras: pd.DataFrame, pairs: Iterable[tuple[str, str]], reason: str) -> pd.DataFrame:
    """Listed pairs in the form of :func:`choose_pairs`, each once and sorted; pairs within a frame are left out.

    Raises:
        ReconstructionError: an image has no position.
    """
    images = _Images.of(cameras)
    number = {image_id: i for i, image_id in enumerate(images.ids)}
    listed = np.array([(number[a], number[b]) for a, b in pairs], np.int64).reshape(-1, 2)
    listed = listed[images.frame[listed[:, 0]] != images.frame[listed[:, 1]]]
    codes = _unique(listed[:, 0], listed[:, 1], images.n)
    return _described(images, codes, np.full(len(codes), REASONS.index(reason), np.int8))


def pair_lines(pairs: pd.DataFrame, suffix: str = ".jpg") -> str:
    """Pairs as COLMAP reads them: two image names a line."""
    return "".join(f"{a}{suffix} {b}{suffix}\n" for a, b in zip(pairs.image_id_a, pairs.image_id_b, strict=True))


def read_pair_list(path: Path) -> list[tuple[str, str]]:
    """The image ids of a COLMAP pair list: two names a line, with or without ``.jpg``; ``#`` begins a comment.

    Raises:
        SourceError: the file cannot be read, or a line does not hold two names.
    """
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"The pair list {path} cannot be read: {error}. Give a text file, two image names a line."
        ) from None
    pairs = []
    for number, line in enumerate(lines, start=1):
        names = line.partition("#")[0].split()
        if not names:
            continue
        if len(names) != 2:
            raise SourceError(
                f"{path}, line {number}: '{line.strip()}' does not hold two image names, as in '12.jpg 34.jpg'."
            )
        pairs.append((names[0].removesuffix(".jpg"), names[1].removesuffix(".jpg")))
    return pairs


def angle_between_deg(a: Array, b: Array) -> Array:
    """Difference of two directions, 0 to 180 [deg]; not a number where one is unknown."""
    return np.abs((a - b + 180) % 360 - 180)


def check_budget(pairs: pd.DataFrame, n_images: int, rules: PairRules, *, box: str | None = None) -> dict[str, float]:
    """Hold the pairs of a box against the budget: the cost of matching must grow with the images.

    Per image of the box and its margin: ``max_pairs_per_image`` for pairs of round 0 whose images lie in one box;
    with those across a border ``fringe_share`` more; for pairs of later rounds ``expansion_share`` of it. A pair
    across a border is matched by its owner and copied by the other, so a city pays for it once: with ``box`` the
    pairs that another box owns do not count here. Nor do pairs of a user's own list: who lists them wants them.

    Args:
        pairs: ``reason``, ``distance_m`` and, where there, ``round``, ``fringe`` and ``owner``.
        n_images: images that pairs were chosen for, those of the margin too.
        rules: holds the budget.
        box: the box that pays.

    Returns:
        Pairs an image of each of the three kinds, for people.

    Raises:
        ReconstructionError: over budget; the message names the ring or reason that is furthest over its share.
    """
    n, most = max(n_images, 1), rules.max_pairs_per_image
    pairs = pd.DataFrame(pairs[pairs.reason != "listed"])
    none = np.zeros(len(pairs), bool)
    later = pairs["round"].to_numpy(int) > 0 if "round" in pairs else none
    fringe = pairs["fringe"].to_numpy(bool) if "fringe" in pairs else none
    ours = pairs["owner"].to_numpy(object) == box if box is not None and "owner" in pairs else ~none
    for kept, allowed, kind in (
        (~later & ~fringe, most, "within the box"),
        (~later & (~fringe | ours), most * (1 + rules.fringe_share), "with the fringe"),
        (later, most * rules.expansion_share, "of expansion"),
    ):
        if np.count_nonzero(kept) > allowed * n:
            raise _over_budget(pd.DataFrame(pairs[kept]), n, allowed, kind, rules)
    return {
        "pairs_per_image": round(np.count_nonzero(~later & ~fringe) / n, 3),
        "fringe_pairs_per_image": round(np.count_nonzero(~later & fringe & ours) / n, 3),
        "expansion_pairs_per_image": round(np.count_nonzero(later) / n, 3),
    }


def _over_budget(pairs: pd.DataFrame, n: int, allowed: float, kind: str, rules: PairRules) -> ReconstructionError:
    ring = np.searchsorted(np.array(rules.rings_m[:-1]), pairs.distance_m.to_numpy(float), side="left")
    edges = (0.0, *rules.rings_m)
    names = [f"ring {low:g}-{high:g} m" for low, high in itertools.pairwise(edges)]
    kinds = pd.Series(np.where(pairs.reason == "ring", np.array(names, object)[ring], pairs.reason.astype(object)))
    counts = kinds.value_counts().sort_index()
    weights = dict(zip(names, rules.quotas, strict=True)) | {"sequence": len(rules.sequence_steps)}
    share = allowed / max(sum(weights.values()), 1)
    over = {str(name): count / n - share * weights.get(str(name), 0) for name, count in counts.items()}
    worst = max(over, key=lambda name: over[name])
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return ReconstructionError(
        f"{len(pairs):,} pairs {kind} for {n:,} images are {len(pairs) / n:.1f} an image, more than {allowed:g}; furthest over its share is {worst} "
        f"({counts[worst]:,} pairs; all: {listed}). Lower its quota in reconstruct.ring_quotas, or raise reconstruct.max_pairs_per_image.",
        overflowed=worst,
        n_pairs=len(pairs),
        n_images=n,
    )


@dataclass(frozen=True)
class _Images:
    """What the rules look at, in the order of the image ids."""

    ids: Any  # an array of pandas' strings
    xy: Array
    heading: Array  # as known, for people
    sight_heading: Array  # not a number also where it does not matter
    sequence: Array
    frame: Array
    time: Array
    sigma: Array
    home: Array | None

    @property
    def n(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, cameras: pd.DataFrame) -> _Images:
        order = np.argsort(cameras.image_id.to_numpy(object), kind="stable")
        n = len(cameras)

        def column(name: str) -> pd.Series:
            return cameras[name].iloc[order]

        ids = column("image_id").astype("str").array
        xy = np.column_stack([column(c).to_numpy(float, na_value=np.nan) for c in ("east_m", "north_m")])
        if not np.isfinite(xy).all():
            missing = np.flatnonzero(~np.isfinite(xy).all(axis=1))
            raise ReconstructionError(
                f"{len(missing):,} of {n:,} images have no position, the first is {ids[missing[0]]}. Build gps_db of the box again: it leaves such images out.",
                n_without_position=len(missing),
            )
        heading = column("heading_deg").to_numpy(float, na_value=np.nan)
        sphere = column("camera_model").to_numpy(object) == SPHERICAL if "camera_model" in cameras else False
        sigma = column("sigma_xy_m").to_numpy(float, na_value=np.nan) if "sigma_xy_m" in cameras else np.zeros(n)
        times = pd.to_datetime(column("captured_at"), utc=True)
        return cls(
            ids=ids,
            xy=xy,
            heading=heading,
            sight_heading=np.where(sphere, np.nan, heading),
            sequence=_codes(column("sequence_id")),
            frame=_codes(column("frame_id")) if "frame_id" in cameras else np.arange(n, dtype=np.int32),
            time=times.dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64),
            sigma=sigma,
            home=_codes(column("home_box")) if "home_box" in cameras else None,
        )


def _codes(values: pd.Series) -> Array:
    """A number for each value; a missing one is unlike every other."""
    codes, known = pd.factorize(values, sort=True)
    missing = codes < 0
    return np.where(missing, len(known) + np.cumsum(missing), codes).astype(np.int32)


def _partners(cells: rings.Cells, images: _Images, rules: PairRules, **how: Any) -> tuple[Array, Array]:
    """Partners by place, of images as the rules see them; the rest is for :func:`rings.partners`."""
    wide = images.sigma > rules.wide_sigma_m
    return rings.partners(cells, images.sight_heading, images.sequence, images.frame, wide, **how)


def _ring_pairs(cells: rings.Cells, images: _Images, rules: PairRules) -> tuple[Array, Array]:
    """Neighbours in each ring, nearest first, few of any one foreign sequence."""
    return _partners(
        cells,
        images,
        rules,
        rings_m=rules.rings_m,
        quotas=rules.quotas,
        per_foreign_sequence=rules.per_foreign_sequence,
        wide_m=rules.wide_m,
        few=rules.few,
        sight=rules.sight,
    )


def _sequence_pairs(cells: rings.Cells, images: _Images, chosen: Array, rules: PairRules) -> tuple[Array, Array]:
    """Neighbours in the order of capture, further ones at turns; of panoramas the views that look the same way.

    Images without a capture time have no place in the order.
    """
    n = images.n
    first = np.full(int(images.frame.max()) + 1, n)
    np.minimum.at(first, images.frame, np.arange(n))
    first = first[images.frame]  # so that the views of a frame stand together
    order = np.lexsort((np.arange(n), first, images.time[first], images.sequence[first]))
    starts = np.flatnonzero(np.concatenate([[True], first[order][1:] != first[order][:-1]]))
    views = np.diff(np.append(starts, n))
    sequence, timed = images.sequence[order[starts]], images.time[order[starts]] != _UNKNOWN_TIME
    found: list[tuple[Array, Array]] = []
    for step in (*rules.sequence_steps, *rules.turn_steps):
        here = np.flatnonzero((sequence[step:] == sequence[:-step]) & timed[step:] & timed[:-step])
        for i in range(int(views.max())):
            for j in range(int(views.max())):
                both = here[(views[here] > i) & (views[here + step] > j)]
                a, b = order[starts[both] + i], order[starts[both + step] + j]
                turned = angle_between_deg(images.sight_heading[a], images.sight_heading[b])
                single = (views[both] == 1) & (views[both + step] == 1)
                if step in rules.sequence_steps:
                    kept = single | ~(turned > rules.same_way_deg)
                else:
                    kept = single & (turned > rules.turn_deg) & (turned <= rules.across_deg)
                kept &= np.hypot(*(images.xy[a] - images.xy[b]).T) <= rules.sequence_m
                found.append((a[kept].astype(np.int32), b[kept].astype(np.int32)))
    return _joined(found)


def _degree_pairs(cells: rings.Cells, images: _Images, chosen: Array, rules: PairRules) -> tuple[Array, Array]:
    """The nearest of any heading for images that have too few candidates."""
    a, b = _ends(chosen, images.n)
    poor = np.bincount(a, minlength=images.n) + np.bincount(b, minlength=images.n) < rules.min_degree
    return _partners(
        cells,
        images,
        rules,
        rings_m=(rules.repair_m,),
        quotas=(rules.min_degree,),
        per_foreign_sequence=rules.min_degree,
        wide_m=rules.repair_m,
        few=0,
        sight=None,
        asked=poor,
    )


def _bridge_pairs(cells: rings.Cells, images: _Images, chosen: Array, rules: PairRules) -> tuple[Array, Array]:
    """The nearest pairs of each component with the others, until one is left or the rest is too far.

    In each round every component but the largest looks for its own, so the rounds are few: at worst each halves
    the number of components (Boruvka). A component of few images gets few pairs.
    """
    found: list[tuple[Array, Array]] = []
    by_frame = np.argsort(images.frame, kind="stable")
    rig = np.flatnonzero(images.frame[by_frame][1:] == images.frame[by_frame][:-1])
    a, b = _joined([_ends(chosen, images.n), (by_frame[rig], by_frame[rig + 1])])
    labels = rings.components(images.n, a, b)
    del a, b, by_frame, rig
    alone = np.zeros(images.n, bool)
    while labels.max() > 0:
        sizes = np.bincount(labels)
        wanted = np.minimum(rules.bridge_pairs, max(rules.min_degree, 1) * sizes)
        wanted[np.argmax(sizes)] = 0
        wanted[labels[alone]] = 0
        pairs = rings.nearest_foreign(cells, labels, images.frame, wanted, rules.bridge_m)
        if not len(pairs):
            break
        one, other = labels[pairs[:, 0]], labels[pairs[:, 1]]
        lonely = wanted > 0
        lonely[one] = False
        alone |= lonely[labels]
        found.append((pairs[:, 0], pairs[:, 1]))
        labels = rings.components(len(sizes), one, other)[labels]
    return _joined(found)


def _joined(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    if not pairs:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])


def _unique(a: Array, b: Array, n: int) -> Array:
    """Each pair once as ``smaller index * n + larger index``, sorted."""
    code = np.minimum(a, b).astype(np.int64)
    code *= n
    code += np.maximum(a, b)
    code.sort()
    return code[np.concatenate([[True], code[1:] != code[:-1]])] if len(code) else code


def _without(codes: Array, known: Array) -> Array:
    """Those of the sorted codes that are not among the sorted known ones."""
    if not len(known):
        return codes
    at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    return codes[known[at] != codes]


def _ends(codes: Array, n: int) -> tuple[Array, Array]:
    a = (codes // n).astype(np.int32)
    return a, (codes - a.astype(np.int64) * n).astype(np.int32)


def _described(images: _Images, codes: Array, reasons: Array) -> pd.DataFrame:
    m = len(codes)
    a, b = _ends(codes, max(images.n, 1))
    distance, turned = np.empty(m), np.empty(m)
    for first in range(0, m, _CHUNK):
        chunk = slice(first, first + _CHUNK)
        i, j = a[chunk], b[chunk]
        distance[chunk] = np.hypot(*(images.xy[i] - images.xy[j]).T)
        turned[chunk] = angle_between_deg(images.heading[i], images.heading[j])
    columns: dict[str, Any] = {
        "image_id_a": images.ids.take(a),
        "image_id_b": images.ids.take(b),
        "reason": pd.array(list(REASONS), dtype="str").take(reasons),
        "distance_m": distance,
        "heading_difference_deg": turned,
    }
    if images.home is not None:
        columns["fringe"] = images.home[a] != images.home[b]
    del a, b
    return pd.DataFrame(columns, copy=False)
