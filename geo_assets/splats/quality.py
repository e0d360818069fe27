"""What makes a splat good enough, as verdicts on its row of ``splat_ply``; and whether it lies where the photos do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from geo_assets.splats.cameras import Scene
    from geo_assets.splats.gaussians import Gaussians

LEAST_GAIN_DB = 3.0
LEAST_CC_PSNR_DB = 15.0
LARGEST_GAP_DB = 8.0
FEWEST_HELD_OUT = 2
FEW_PHOTOS = 20

NO_GAIN_DB = 1.0
"""A splat in another frame than the cameras' renders no better than the points that training began with."""
ENGINE_GAP_DB = 3.0
FARTHEST = 100.0
"""Median distance of the Gaussians from the cameras, in spreads of the cameras and points; 0.4 to 0.7 on real boxes."""
SMALLEST, LARGEST = 0.2, 5.0
"""Spread of the Gaussians in that of the points; 0.9 to 1.3 on real boxes, one over the box's size if normalised."""
LEAST_IN_VIEW = 0.5
"""Share of the Gaussians that lie within the picture of some camera; 0.99 on real boxes."""
_MOST_GAUSSIANS, _MOST_CAMERAS = 20_000, 200

FRAME_HINTS = {
    "gsplat": "gsplat's simple_trainer needs --no-normalize-world-space.",
    "nerfstudio": "ns-train needs --orientation-method none --center-method none --auto-scale-poses False --assume-colmap-world-coordinate-convention False.",
    "opensplat": "OpenSplat needs --keep-crs.",
    "command": "Give splats.command the flags that keep the frame: --no-normalize-world-space for gsplat, --keep-crs for OpenSplat.",
}
OTHER_HINT = "Give the engine the flag that keeps the coordinates as they are (splats.extra_args)."

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Whether a splat passes, how grave it is if not, and why."""

    passed: bool
    is_error: bool
    reason: str


@dataclass(frozen=True)
class Geometry:
    """Where Gaussians lie against the cameras.

    Args:
        distance_ratio: median distance of the Gaussians from the middle of the cameras, over the larger of the
            cameras' extent and the median distance of the points.
        size_ratio: median distance of the Gaussians from their own middle, over that of the points.
        in_view_share: share of the Gaussians that lie within the picture of some camera.
    """

    distance_ratio: float
    size_ratio: float
    in_view_share: float


def geometry(gaussians: Gaussians, scene: Scene) -> Geometry:
    """Measure where Gaussians lie; of many Gaussians and cameras an even choice.

    Args:
        gaussians: of the place, without the sky.
        scene: cameras and points in the same frame; its photos are not looked at.
    """
    import numpy as np

    means = gaussians.means[:: max(1, len(gaussians) // _MOST_GAUSSIANS)].astype(float)
    cameras = [view.camera for view in scene.views]
    middle = np.median([camera.centre for camera in cameras], axis=0)
    seen = np.zeros(len(means), bool)
    for camera in cameras[:: max(1, len(cameras) // _MOST_CAMERAS)]:
        u, v, depth = camera.project(means)
        seen |= (depth > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    return Geometry(
        distance_ratio=_spread(means, middle) / max(scene.extent, _spread(scene.points, middle)),
        size_ratio=_spread(means, np.median(means, axis=0))
        / max(_spread(scene.points, np.median(scene.points, axis=0)), 1e-9),
        in_view_share=float(seen.mean()),
    )


def _spread(points: npt.NDArray[np.floating], middle: npt.NDArray[np.floating]) -> float:
    """Median distance from a middle."""
    import numpy as np

    return float(np.median(np.linalg.norm(points - middle, axis=1)))


def misplaced(row: Row) -> str | None:
    """Why a splat cannot be in the frame of its cameras, as one sentence with the way out; None where it can.

    Either its Gaussians lie elsewhere, or it renders hardly better than the points that training began with, while the
    engine is content or says nothing. The embedded engine judges with the same renderer, so its frame is ours.
    """
    ours, start, own = (_number(row, name) for name in ("psnr_db", "init_psnr_db", "engine_psnr_db"))
    hint = f"the engine normalised the scene. {FRAME_HINTS.get(str(row.get('engine')), OTHER_HINT)}"
    name = f"The PLY of {row.get('engine')} does not line up with the cameras"
    distance, size = _number(row, "distance_ratio"), _number(row, "size_ratio")
    in_view = _number(row, "in_view_share")
    if distance is not None and not distance <= FARTHEST:
        return f"{name} (its Gaussians lie {distance:.3g} times as far from them as the points of the sparse model, at most {FARTHEST:g} is possible): {hint}"
    if size is not None and not SMALLEST <= size <= LARGEST:
        return f"{name} (its Gaussians are spread {size:.3g} times as far as the points of the sparse model, {SMALLEST:g} to {LARGEST:g} is possible): {hint}"
    if in_view is not None and in_view < LEAST_IN_VIEW:
        return (
            f"{name} ({in_view:.0%} of its Gaussians are in the view of a camera, {LEAST_IN_VIEW:.0%} wanted): {hint}"
        )
    if row.get("engine") == "cpu" or ours is None or start is None:
        return None
    if ours < start + NO_GAIN_DB and (own is None or own > ours + ENGINE_GAP_DB):
        said = "" if own is None else f", the engine reported {own:.1f}"
        return f"{name} (held-out PSNR {ours:.1f} dB, {start:.1f} before training{said}): {hint}"
    return None


# -- verdicts -----------------------------------------------------------------------------------------------


def quality(row: Row) -> Verdict:
    """The held-out photos look at least 3 dB better than before training."""
    ours, start = _number(row, "psnr_db"), _number(row, "init_psnr_db")
    if ours is None or start is None:
        return Verdict(False, True, "no photo was held out, so nothing says what the splat is worth")
    text = f"held-out PSNR {ours:.1f} dB, {ours - start:+.1f} dB from before training"
    if ours - start >= LEAST_GAIN_DB:
        return Verdict(True, True, text)
    return Verdict(
        False, True, f"{text} ({LEAST_GAIN_DB:+g} wanted): the poses or the engine's frame are wrong, or the steps few"
    )


def overfit(row: Row) -> Verdict:
    """The photos trained on look at most 8 dB better than those held out."""
    ours, trained = _number(row, "psnr_db"), _number(row, "train_psnr_db")
    if ours is None or trained is None:
        return Verdict(True, False, "nothing to compare")
    text = f"the photos trained on are {trained - ours:+.1f} dB from those held out"
    if trained - ours <= LARGEST_GAP_DB:
        return Verdict(True, False, text)
    return Verdict(
        False,
        False,
        f"{text} ({LARGEST_GAP_DB:g} at most): overfit; fewer steps (splats.steps) or more photos help",
    )


def held_out(row: Row) -> Verdict:
    """Enough photos to train on and to judge by, and those held out look alike but for their exposure."""
    n, photos = int(row["n_holdout"]), int(row["n_train"]) + int(row["n_holdout"])
    corrected = _number(row, "cc_psnr_db")
    doubts = []
    if n < FEWEST_HELD_OUT:
        doubts.append(f"{n} photo{'s were' if n != 1 else ' was'} held out, so the figures are weak")
    if photos < FEW_PHOTOS:
        doubts.append(f"{photos} photos are few, {FEW_PHOTOS} or more are recommended: fewer are learnt by heart")
    if corrected is not None and corrected < LEAST_CC_PSNR_DB:
        doubts.append(
            f"held-out PSNR after a colour fit is {corrected:.1f} dB, below {LEAST_CC_PSNR_DB:g}: more steps, or a mask of what moves"
        )
    if doubts:
        return Verdict(False, False, "; ".join(doubts))
    said = "" if corrected is None else f", {corrected:.1f} dB after a colour fit"
    return Verdict(True, False, f"{n} of {photos} photos were held out{said}")


def frame(row: Row) -> Verdict:
    """The published Gaussians lie before the cameras, and look to us as they do to the engine."""
    fault = misplaced(row)
    if fault:
        return Verdict(False, True, fault)
    ours, own = _number(row, "psnr_db"), _number(row, "engine_psnr_db")
    if row.get("engine") != "cpu" and ours is not None and own is not None and own > ours + ENGINE_GAP_DB:
        return Verdict(
            False,
            True,
            f"held-out PSNR is {ours:.1f} dB here, the engine reported {own:.1f}: the engine moved the scene, or renders otherwise than viewers do (antialiased, exposure of each photo). {FRAME_HINTS.get(str(row.get('engine')), OTHER_HINT)}",
        )
    in_view = _number(row, "in_view_share")
    return Verdict(True, True, "not measured" if in_view is None else f"{in_view:.0%} of the Gaussians are in view")


CHECKS: dict[str, Callable[[Row], Verdict]] = {
    "splat_quality": quality,
    "splat_overfit": overfit,
    "splat_held_out": held_out,
    "splat_frame": frame,
}
"""Verdicts on a trained splat by the name of their asset check."""
FIGURES: dict[str, tuple[str, ...]] = {
    "splat_quality": ("init_psnr_db", "psnr_db", "ssim"),
    "splat_overfit": ("psnr_db", "train_psnr_db"),
    "splat_held_out": ("n_train", "n_holdout", "cc_psnr_db"),
    "splat_frame": ("psnr_db", "engine_psnr_db", "distance_ratio", "size_ratio", "in_view_share"),
}
"""Columns of ``splat_ply`` that each verdict looks at."""


def verdict(check: str, row: Row | None) -> Verdict:
    """The verdict of a check on a row of ``splat_ply``; None where the box has none, and what was not trained passes."""
    if row is None or row["status"] != "trained":
        return Verdict(True, False, f"nothing was trained ({'no row' if row is None else row['status']})")
    return CHECKS[check](row)


def _number(row: Row, name: str) -> float | None:
    """A figure that may be missing; a table has NaN for it."""
    value = row.get(name)
    return None if value is None or value != value else float(value)
