"""Photos that add nothing but cost: the same picture twice, and vehicles that stand or crawl.

Positions are noisy by metres, so two fixes at one spot prove nothing; what a whole stretch of a sequence does, does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.geodesy import Array

Mask = npt.NDArray[np.bool_]

DUPLICATE_M, DUPLICATE_DEG, DUPLICATE_S = 0.5, 5.0, 2.0
"""Two photos of a sequence nearer than all three are one, unless the vehicle moved on meanwhile."""

TURN_DEG = 15.0
"""Who stands and turns by so much takes another picture."""

_WINDOW = 9  # photos over which speed along a sequence is measured: 3 m of noise then leave 0.3 m a photo
_SHORTEST_RUN = 4
_PAUSE_S = 30.0  # photos further apart in time are not one drive
_VEHICLE_M = 20.0  # a sequence that stays within is a person on the spot
_MOVED_ON_M = 0.5
_BESIDE = 6  # photos to each side that tell how fast the vehicle goes


def superfluous(images: pd.DataFrame, keep_every_m: float) -> pd.DataFrame:
    """Which photos their neighbours in the sequence make superfluous.

    Args:
        images: ``image_id``, ``sequence_id``, ``captured_at``, ``east_m``, ``north_m``, ``heading_deg`` (null where
            unknown). Photos without time or position are left alone.
        keep_every_m: of a stretch that moves less than half of it from photo to photo, one photo each so many metres
            stays, and each that is turned by :data:`TURN_DEG`; 0 keeps all.

    Returns:
        Boolean columns ``standing`` and ``duplicate`` with the index of ``images``.
    """
    out = pd.DataFrame({"standing": False, "duplicate": False}, index=images.index)
    known = pd.DataFrame(images[images.captured_at.notna() & images.east_m.notna() & images.north_m.notna()])
    ordered = known.sort_values(["captured_at", "image_id"], kind="stable")
    for _, drive in ordered.groupby("sequence_id", sort=False):
        if len(drive) < 2:
            continue
        xy, heading = drive[["east_m", "north_m"]].to_numpy(float), drive.heading_deg.to_numpy(float, na_value=np.nan)
        seconds = (drive.captured_at - drive.captured_at.iloc[0]).dt.total_seconds().to_numpy(float)
        standing = standing_photos(xy, seconds, heading, keep_every_m)
        left = np.flatnonzero(~standing)
        duplicate = np.zeros(len(drive), bool)
        duplicate[left] = duplicate_photos(xy[left], seconds[left], heading[left])
        out.loc[drive.index, "standing"], out.loc[drive.index, "duplicate"] = standing, duplicate
    return out


def standing_photos(xy: Array, seconds: Array, heading_deg: Array, keep_every_m: float) -> Mask:
    """Photos [n] to leave out of one sequence in order of time, because the vehicle stands or crawls.

    Args:
        xy: positions [n, 2] in metres.
        seconds: times [n].
        heading_deg: headings [n], not a number where unknown.
        keep_every_m: spacing of what stays.
    """
    drop = np.zeros(len(xy), bool)
    if keep_every_m <= 0:
        return drop
    extent_m = float(np.hypot(*np.ptp(xy, axis=0)))
    pauses = np.flatnonzero(np.diff(seconds) > _PAUSE_S) + 1
    for part in np.split(np.arange(len(xy)), pauses):
        if len(part) < _SHORTEST_RUN:
            continue
        step_m = _steps_m(xy[part])
        for run in _runs(step_m < keep_every_m / 2):
            photos = part[run]
            # Without a compass, somebody who turns on the spot looks like a vehicle that stands.
            if extent_m < _VEHICLE_M and np.isnan(heading_deg[photos]).any():
                continue
            drop[photos] = _between(np.cumsum(step_m[run]), heading_deg[photos], keep_every_m)
    return drop


def duplicate_photos(xy: Array, seconds: Array, heading_deg: Array) -> Mask:
    """Photos [n] of one sequence in order of time that repeat an earlier one; arguments as above.

    At 5 m/s one pair in a hundred comes within half a metre by the noise of its positions alone, so the way that
    the neighbours made meanwhile must be short too.
    """
    drop, kept = np.zeros(len(xy), bool), 0
    for i in range(1, len(xy)):
        apart_s = seconds[i] - seconds[kept]
        near = np.hypot(*(xy[i] - xy[kept])) < DUPLICATE_M and apart_s < DUPLICATE_S
        if near and _turned(heading_deg[i], heading_deg[kept]) < DUPLICATE_DEG:
            a, b = max(kept - _BESIDE, 0), min(i + _BESIDE, len(xy) - 1)
            passed_s = max(seconds[b] - seconds[a], 1e-3)
            drop[i] = np.hypot(*(xy[b] - xy[a])) * apart_s / passed_s < _MOVED_ON_M
        if not drop[i]:
            kept = i
    return drop


def _steps_m(xy: Array) -> Array:
    """Way from photo to photo [n]: the slope of the line through the positions around each."""
    width = min(_WINDOW, len(xy))
    offsets = np.arange(width) - (width - 1) / 2
    windows = np.lib.stride_tricks.sliding_window_view(xy, width, axis=0)  # [n - width + 1, 2, width]
    slopes = windows @ offsets / (offsets @ offsets)
    at = np.clip(np.arange(len(xy)) - width // 2, 0, len(slopes) - 1)
    return np.hypot(*slopes[at].T)


def _runs(crawls: Mask) -> list[npt.NDArray[np.int64]]:
    """Positions of each stretch of at least :data:`_SHORTEST_RUN` that crawls."""
    found = np.split(np.arange(len(crawls)), np.flatnonzero(np.diff(crawls)) + 1)
    return [run for run in found if crawls[run[0]] and len(run) >= _SHORTEST_RUN]


def _between(travelled_m: Array, heading_deg: Array, keep_every_m: float) -> Mask:
    """What lies between the photos that stay: the first, one each so many metres, one each turn."""
    drop, kept = np.ones(len(travelled_m), bool), 0
    drop[0] = False
    for i in range(1, len(travelled_m)):
        turned = _turned(heading_deg[i], heading_deg[kept]) >= TURN_DEG  # false where unknown
        if turned or travelled_m[i] - travelled_m[kept] >= keep_every_m:
            drop[i], kept = False, i
    return drop


def _turned(a_deg: float, b_deg: float) -> float:
    """Angle between two headings, 0 to 180 [deg]; not a number where one is unknown."""
    return abs((a_deg - b_deg + 180) % 360 - 180)
