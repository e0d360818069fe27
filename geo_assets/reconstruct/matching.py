"""The pairs of a box, chosen, matched and verified: each pair once, whichever box it was matched in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import touching
from geo_assets.lake import Lake
from geo_assets.reconstruct.candidates import (
    REASONS,
    PairRules,
    check_budget,
    choose_pairs,
    describe_pairs,
    pair_lines,
    read_pair_list,
    tie_together,
)
from geo_assets.reconstruct.expansion import expand
from geo_assets.reconstruct.frames import between_frames
from geo_assets.reconstruct.graph import components
from geo_assets.reconstruct.quarantine import quarantine
from geo_assets.reconstruct.results import PairResults
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

PAIRS_FILE = "pairs.txt"
QUARANTINE_FILE = "pairs_quarantine.txt"
MIN_INLIERS = 15
GEOMETRIES = ("CALIBRATED", "UNCALIBRATED", "PLANAR", "PANORAMIC", "PLANAR_OR_PANORAMIC", "CALIBRATED_RIG")
"""Two-view geometries that mean "the same scene"; a watermark or a degenerate pair does not."""

VOCABULARY_PARTNERS = 5
"""Most similar images that an image is paired with where the vocabulary tree is asked for."""

_SIDES = ["image_id_a", "image_id_b"]
_SHOWN = 20
_PLACE = ["east_m", "north_m", "up_m"]
_PLANNED = [
    *("image_id", "sequence_id", "heading_deg", "captured_at", "sigma_xy_m", "frame_id", "camera_model", "home_box"),
    *_PLACE,
]


@dataclass(frozen=True)
class Matched:
    """Rows of ``match_pairs`` and figures for people."""

    frame: pd.DataFrame
    figures: dict[str, Any]


def match_box(
    lake: Lake,
    city: str,
    box: str,
    options: Reconstruct,
    log: Callable[[str], None] | None = None,
    *,
    listed: Path | None = None,
) -> Matched:
    """Choose the pairs of a box, match and verify them, and publish database and pair lists under ``files/matches``.

    Results that this box or one beside it has from before are taken over. What is matched is kept under
    ``files/matches_partial`` until the whole is published: a run that was killed goes on from there.

    Args:
        lake: holds ``gps_db`` of the box and its database under ``files/features``.
        city: name of the city.
        box: name of the box.
        options: settings of the room.
        log: gets lines of progress.
        listed: a user's own pair list; what it names of other boxes is passed over.

    Raises:
        SourceError: the pair list cannot be read.
        GeoAssetsError: ``gps_db`` of the box is not there, or there are more pairs than the budget allows.
        ReconstructionError: COLMAP failed, or the database of ``gps_db`` is damaged or held by another program.
    """
    cameras = lake.read("gps_db", city=city, box=box)
    usable = pd.DataFrame(cameras[cameras.n_keypoints > 0]).reset_index(drop=True)
    if usable.empty:
        empty = TABLES["match_pairs"].empty()
        return Matched(empty, pair_figures(cameras, empty))
    say, rules = log or (lambda _: None), PairRules.of(options)
    with PairResults(lake, city, box, usable, options, say) as results:
        planned = _planned(usable, surroundings(lake, city, box, usable, rules.wide_m), rules)
        chosen = _with_boxes(_with_asked_for(planned, usable, options, results, listed), usable).assign(round=0)
        check_budget(chosen, len(usable), rules, box=box)
        pairs = _settled(chosen, results)
        usable["at_border"] = at_border(usable, box, options.margin_m)
        for number in range(1, options.expansion_rounds + 1):
            more = expand(usable, pairs.assign(quarantine=quarantine(pairs)), rules)
            if more.empty:
                break
            say(f"round {number} of expansion proposes {len(more):,} pairs")
            more = _with_boxes(more, usable).assign(round=number)
            check_budget(pd.concat([pairs, more], ignore_index=True), len(usable), rules, box=box)
            pairs = pd.concat([pairs, _settled(more, results)], ignore_index=True)
        frame = pairs.assign(quarantine=quarantine(pairs)).sort_values(_SIDES, ignore_index=True)
        frame = frame.loc[:, TABLES["match_pairs"].column_names]
        _write_lists(frame, results.published)
        results.publish()
    return Matched(frame, pair_figures(cameras, frame) | _work_figures(frame, results))


def surroundings(lake: Lake, city: str, box: str, cameras: pd.DataFrame, reach_m: float) -> pd.DataFrame:
    """Images of the boxes around that lie beyond the margin, no further than ``reach_m`` from the box's own.

    Returns:
        The columns of ``gps_db`` that pairs are chosen by, places in the frame of the box [m].
    """
    frame = LocalFrame(*lake.note("gps_db", city=city, box=box)["origin"])
    low, high = cameras[_PLACE].min() - reach_m, cameras[_PLACE].max() + reach_m
    found: list[Any] = [cameras[_PLANNED].iloc[:0]]
    for name in touching(box):
        if name == box or not lake.has("gps_db", city=city, box=name):
            continue
        rows = lake.read("gps_db", [*_PLANNED, "n_keypoints"], city=city, box=name)
        rows = pd.DataFrame(rows[(rows.n_keypoints > 0) & (rows.home_box == name)])
        if rows.empty:
            continue
        source = LocalFrame(*lake.note("gps_db", city=city, box=name)["origin"])
        rows[_PLACE] = between_frames(frame, source)(rows[_PLACE].to_numpy(float))
        near = ((rows[_PLACE] >= low) & (rows[_PLACE] <= high))[["east_m", "north_m"]].all(axis=1)
        found.append(rows.loc[near & ~rows.image_id.isin(cameras.image_id), _PLANNED])
    return pd.concat([one for one in found if len(one)] or found, ignore_index=True).drop_duplicates("image_id")


def _planned(cameras: pd.DataFrame, around: pd.DataFrame, rules: PairRules) -> pd.DataFrame:
    """Pairs by place among a box's images.

    They are chosen with the images around in view: an image spends its quotas in the same way in whichever box it
    is looked at, so two boxes agree on the pairs across their border and the city pays for each once.
    """
    if around.empty:
        return choose_pairs(cameras, rules)
    both = pd.concat([pd.DataFrame(cameras[_PLANNED]), around], ignore_index=True)
    pairs = choose_pairs(both, rules)
    ours = set(cameras.image_id)
    pairs = pd.DataFrame(pairs[pairs.image_id_a.isin(ours) & pairs.image_id_b.isin(ours)])
    ties = tie_together(cameras, pairs, rules)  # a chain of pairs may have led through the boxes around
    return pd.concat([pairs, ties], ignore_index=True).sort_values(_SIDES, ignore_index=True)


def _with_asked_for(
    pairs: pd.DataFrame, cameras: pd.DataFrame, options: Reconstruct, results: PairResults, listed: Path | None
) -> pd.DataFrame:
    """The pairs with those that look alike and those of the user's list, if asked for."""
    found = [pairs]
    if options.vocabulary_tree:
        found.append(describe_pairs(cameras, results.alike(VOCABULARY_PARTNERS), "vocabulary"))
    if listed is not None:
        ours = set(cameras.image_id)
        named = ((a, b) for a, b in read_pair_list(listed) if a != b and {a, b} <= ours)
        found.append(describe_pairs(cameras, named, "listed"))
    return pd.concat(found, ignore_index=True).drop_duplicates(_SIDES, ignore_index=True)


def at_border(cameras: pd.DataFrame, box: str, margin_m: float) -> pd.Series:
    """Whether each image ties the box to a neighbour: it lies in another box, or that near to an image of one."""
    xy = cameras[["east_m", "north_m"]].to_numpy(float)
    foreign = (cameras.home_box != box).to_numpy(bool)
    if not foreign.any():
        return pd.Series(False, index=cameras.index)
    near, _ = KDTree(xy[foreign]).query(xy, distance_upper_bound=margin_m)
    return pd.Series(np.isfinite(near), index=cameras.index)


def _with_boxes(pairs: pd.DataFrame, cameras: pd.DataFrame) -> pd.DataFrame:
    """The pairs with the box that each belongs to: the smaller name of the homes of its images."""
    home = cameras.set_index("image_id").home_box
    a, b = (pairs[side].map(home).to_numpy(object) for side in _SIDES)
    return pairs.assign(fringe=a != b, owner=np.where(a <= b, a, b))


def _settled(pairs: pd.DataFrame, results: PairResults) -> pd.DataFrame:
    """The pairs with what matching found."""
    results.settle(pairs)
    return with_inliers(pairs, results.found()).assign(reused=results.reused(pairs))


def with_inliers(chosen: pd.DataFrame, found: Iterable[Iterable[Any]]) -> pd.DataFrame:
    """The chosen pairs with what matching found: ``found`` holds ``id, id, matches, inliers, geometry``."""
    columns = [*_SIDES, "n_matches", "n_inliers", "geometry"]
    rows = [(*sorted((str(a), str(b))), int(m), int(i), str(g)) for a, b, m, i, g in found]
    frame = chosen.merge(pd.DataFrame(rows, columns=columns), on=_SIDES, how="left")
    counts = frame[["n_matches", "n_inliers"]].fillna(0).astype("int64")
    frame = frame.assign(**{c: counts[c] for c in counts}, geometry=frame.geometry.fillna("UNDEFINED"))
    return frame.assign(verified=(frame.n_inliers >= MIN_INLIERS) & frame.geometry.isin(GEOMETRIES))


def _write_lists(frame: pd.DataFrame, folder: Path) -> None:
    """COLMAP's pair lists: of all pairs, of those of each reason, and of those kept out of mapping."""
    (folder / PAIRS_FILE).write_text(pair_lines(frame))
    if frame.quarantine.notna().any():
        (folder / QUARANTINE_FILE).write_text(pair_lines(pd.DataFrame(frame[frame.quarantine.notna()])))
    for reason, some in frame.groupby("reason"):
        (folder / f"pairs_{reason}.txt").write_text(pair_lines(some))


def pair_figures(cameras: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """Counts of a box's pairs and the connectedness of the graph that mapping uses."""
    edges = pairs[pairs.verified.fillna(False).astype(bool) & pairs.quarantine.isna()]
    labels = components(cameras.image_id.to_list(), edges.image_id_a.to_list(), edges.image_id_b.to_list())
    sizes = np.bincount(labels) if len(labels) else np.zeros(1, int)
    return {
        "n_images": len(cameras),
        "n_pairs": len(pairs),
        "n_verified": int(pairs.verified.sum()),
        "n_quarantined": int(pairs.quarantine.notna().sum()),
        "n_fringe": int(pairs.fringe.sum()),
        "pairs_per_image": round(len(pairs) / max(len(cameras), 1), 2),
        "inliers_median": float(edges.n_inliers.median()) if len(edges) else 0.0,
        "n_components": int((sizes > 1).sum()),
        "n_in_largest_component": int(sizes.max()),
        "n_without_verified_pair": int((sizes == 1).sum()),
    } | {f"n_{reason}": int((pairs.reason == reason).sum()) for reason in REASONS}


def _work_figures(frame: pd.DataFrame, results: PairResults) -> dict[str, Any]:
    """What was taken over, what was matched, what that took, and which pairs are impossible (the first of them)."""
    impossible = frame[frame.quarantine.notna()].head(_SHOWN)
    said = impossible.image_id_a + " " + impossible.image_id_b + ": " + impossible.quarantine
    shown = {"quarantined": said.to_list()} if len(impossible) else {}
    return shown | {
        "n_reused": int(frame.reused.sum()),
        "n_resumed": results.n_resumed,
        "n_matched": results.n_matched,
        "cpu_seconds": round(results.cpu_seconds, 2),
        "peak_mb": round(results.peak_mb, 1),
    }
