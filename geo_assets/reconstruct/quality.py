"""What a reconstruction is worth: figures of a component that its mapper does not know, and the gates of a box.

Everything here is arithmetic on tables; nothing reads files or asks COLMAP.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[Any]

STRETCH_M = 100.0
"""Two photos of a sequence that are further apart belong to two stretches: no pair reaches so far."""

PLAUSIBLE_FOCAL = (0.4, 2.5)
"""Focal lengths of ordinary cameras, by the longer side; a guess may be off by as much, a known one may not."""

_WITHOUT_FOCAL = ("EQUIRECTANGULAR",)


class PairCounts(NamedTuple):
    """Pairs among the images of a component."""

    n_pairs: int
    n_verified: int
    n_quarantined: int


def largest_gap_m(cameras: pd.DataFrame, registered: Collection[str]) -> float:
    """The longest way along a sequence between two registered images with others between them that are not.

    Args:
        cameras: ``image_id``, ``sequence_id``, ``captured_at``, ``east_m``, ``north_m`` of all images that could take
            part, as in ``gps_db``.
        registered: ids of the images that stand in the model.

    Returns:
        Metres along the prior positions; 0 where no image is missing between others.
    """
    largest = 0.0
    standing = cameras.image_id.isin(list(registered)).to_numpy(bool)
    ordered = cameras.assign(standing=standing).sort_values(["captured_at", "image_id"], kind="stable")
    for _, run in ordered.groupby("sequence_id", sort=True):
        xy = run[["east_m", "north_m"]].to_numpy(float)
        way = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(xy, axis=0).T))])
        stretch = stretches(xy)
        at = np.flatnonzero(run.standing.to_numpy(bool))
        missing_between = np.diff(at) > 1
        same_stretch = np.diff(stretch[at]) == 0
        gaps = np.diff(way[at])[missing_between & same_stretch]
        largest = max(largest, float(gaps.max(initial=0.0)))
    return largest


def stretches(places: Array) -> Array:
    """Number of the stretch that each photo of a sequence belongs to, from 0.

    Args:
        places: east and north [m] in the order of capture, [n, 2].
    """
    steps = np.hypot(*np.diff(places, axis=0).T)
    return np.concatenate([[0], np.cumsum(steps > STRETCH_M)])[: len(places)]


def focal_change(focals: Mapping[int, float], images: pd.DataFrame) -> float:
    """The largest relative change of a camera's focal length against what was known before mapping.

    A focal length that was only guessed counts where the result is none of an ordinary camera: then its change is
    that against the nearest ordinary one.

    Args:
        focals: focal length [px] of each camera of the model by ``camera_id``.
        images: ``camera_id``, ``camera_model``, ``parameters``, ``known_focal``, ``width``, ``height`` as in ``gps_db``.

    Returns:
        0.1 means ten percent; 0 where no camera of the model is among the images.
    """
    largest = 0.0
    columns = ["camera_id", "camera_model", "parameters", "known_focal", "width", "height"]
    for row in images.loc[:, columns].drop_duplicates("camera_id").to_dict("records"):
        found = focals.get(int(row["camera_id"]))
        if found is None or row["camera_model"] in _WITHOUT_FOCAL or row["parameters"] is None:
            continue
        if bool(row["known_focal"]):
            expected = float(row["parameters"][0])
        else:
            longer = float(max(row["width"], row["height"]))
            expected = float(np.clip(found, PLAUSIBLE_FOCAL[0] * longer, PLAUSIBLE_FOCAL[1] * longer))
        largest = max(largest, abs(found / expected - 1.0))
    return largest


def component_pairs(pairs: pd.DataFrame, ids: Collection[str]) -> PairCounts:
    """How many pairs among these images were tried, verified, and kept out as impossible.

    Args:
        pairs: rows of ``match_pairs``.
        ids: image ids of the component.
    """
    inside = pairs.loc[pairs.image_id_a.isin(list(ids)) & pairs.image_id_b.isin(list(ids))]
    return PairCounts(len(inside), int(inside.verified.astype(bool).sum()), n_quarantined(inside))


def n_quarantined(pairs: pd.DataFrame) -> int:
    """How many pairs are kept out of mapping as impossible."""
    return int(pairs.quarantine.notna().sum()) if "quarantine" in pairs else 0


# -- gates --------------------------------------------------------------------------------------------------

MIN_REGISTERED_SHARE, WARN_REGISTERED_SHARE = 0.6, 0.8
MAX_REPROJECTION_PX = 1.5
MAX_GPS_SIGMAS = 2.0
MAX_BORDER_M = 0.3  # from here on a seam is seen
MAX_ROLL_DEG = 3.0
MAX_FOCAL_CHANGE = 0.25
MAX_GAP_M = 50.0
MAX_QUARANTINED_SHARE = 0.01
BUDGET_EXTRA = 0.1
"""Pairs across the border and of expansion may take so much more than the budget of a box, together."""

FACTS = {
    "too_few": "too few images to map",
    "no_gps": "no positions to place a model by",
    "static_scene": "all images taken in one place",
}
"""States that say something about a box, not about its mapping."""


@dataclass(frozen=True)
class Verdict:
    """What a gate says.

    Attributes:
        passed: whether the gate is open.
        is_error: whether a closed gate is an error; else it is a warning.
        note: one sentence on what is beyond the limit, or on why nothing can be judged; empty where all is well.
        figures: the numbers behind it.
    """

    passed: bool
    is_error: bool = True
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def gates(models: pd.DataFrame, gps_sigma_m: float) -> dict[str, Verdict]:
    """The verdicts on a box by the names of its checks.

    Args:
        models: rows of ``sparse_models`` of the box.
        gps_sigma_m: standard deviation of a horizontal position [m].
    """
    gps_limit_m = MAX_GPS_SIGMAS * gps_sigma_m
    return {
        "registered_share": share_verdict(models),
        "reprojection_error": _limit(models, "reprojection_px", MAX_REPROJECTION_PX, "a mean reprojection error", "px"),
        "gps_residual": _limit(
            models, "gps_median_m", gps_limit_m, "half of its cameras further from their positions than", "m"
        ),
        "border_fits": _limit(models, "border_m", MAX_BORDER_M, "shared cameras apart from a neighbour's by", "m"),
        "cameras_are_level": _limit(models, "roll_deg", MAX_ROLL_DEG, "a mean roll of the cameras", "deg", error=False),
        "focal_lengths_hold": _limit(
            models, "focal_change", MAX_FOCAL_CHANGE, "a focal length changed, as a share of what was known,", "", False
        ),
        "no_gap": _limit(models, "largest_gap_m", MAX_GAP_M, "a stretch without registered images", "m", error=False),
    }


def share_verdict(models: pd.DataFrame) -> Verdict:
    """Whether most images of a box stand in placed models; what is a fact about the box passes with a note."""
    n_home = int(models.n_home_images.max()) if len(models) else 0
    placed = int(models.n_home_registered[models.status == "placed"].sum())
    share = placed / n_home if n_home else 1.0
    statuses = list(dict.fromkeys(models.status.astype(str)))
    figures = {
        "share": round(share, 4),
        "n_home_images": n_home,
        "n_home_registered": placed,
        "statuses": ", ".join(models.status.astype(str)),
    }
    if statuses and all(status in FACTS for status in statuses):
        why = "; ".join(f"{status}: {FACTS[status]}" for status in statuses)
        return Verdict(True, note=f"The box has no model ({why}; {n_home:,} images).", figures=figures)
    if share >= WARN_REGISTERED_SHARE:
        return Verdict(True, figures=figures)
    note = (
        f"{placed:,} of {n_home:,} images of the box ({share:.0%}) stand in placed models "
        f"({', '.join(statuses)}); at least {WARN_REGISTERED_SHARE:.0%} should, and below "
        f"{MIN_REGISTERED_SHARE:.0%} the box counts as not mapped."
    )
    # Images that show nothing in common may be the truth about a box; that is for a person to judge.
    is_error = share < MIN_REGISTERED_SHARE and statuses != ["no_overlap"]
    return Verdict(False, is_error, note, figures)


def _limit(models: pd.DataFrame, figure: str, most: float, what: str, unit: str, error: bool = True) -> Verdict:
    """Whether the worst placed component keeps a limit; a figure that nobody could measure is no failure."""
    placed = models.loc[models["status"] == "placed"]
    values = placed[figure].astype(float)
    figures: dict[str, Any] = {"limit": most, "n_placed": len(placed), "n_judged": int(values.notna().sum())}
    if not values.notna().any():
        return Verdict(True, error, figures=figures)
    worst = float(values.max())
    figures |= {"worst": round(worst, 3)}
    if worst <= most:
        return Verdict(True, error, figures=figures)
    component = int(placed.component.loc[values.idxmax()])
    measured, limit = f"{worst:.3g} {unit}".strip(), f"{most:g} {unit}".strip()
    return Verdict(False, error, f"Component {component} has {what} {measured}; at most {limit} are good.", figures)


def pairs_verdict(n_images: int, pairs: pd.DataFrame, max_pairs_per_image: float) -> Verdict:
    """Whether few pairs are impossible; with the budget of pairs and what was spent of it.

    Args:
        n_images: images of the box and its margin.
        pairs: rows of ``match_pairs``.
        max_pairs_per_image: the budget, as in the settings.
    """
    kept_out, n = n_quarantined(pairs), len(pairs)
    figures = {
        "n_pairs": n,
        "budget": round(max_pairs_per_image * (1 + BUDGET_EXTRA) * n_images),
        "n_quarantined": kept_out,
        "quarantined_share": round(kept_out / n, 4) if n else 0.0,
    }
    if kept_out <= MAX_QUARANTINED_SHARE * n:
        return Verdict(True, False, figures=figures)
    note = (
        f"{kept_out:,} of {n:,} pairs are kept out of mapping as impossible (column quarantine says why); more than "
        f"{MAX_QUARANTINED_SHARE:.0%} point to a logo or dashboard in the frame or to wrong positions."
    )
    return Verdict(False, False, note, figures)
