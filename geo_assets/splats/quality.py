"""What makes a splat good enough, as a verdict on its row of ``splat_ply``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST_GAIN_DB = 3.0
LEAST_CC_PSNR_DB = 15.0
LARGEST_GAP_DB = 8.0
FEWEST_HELD_OUT = 2


@dataclass(frozen=True)
class Verdict:
    """Whether a splat passes, how grave it is if not, and why."""

    passed: bool
    is_error: bool
    reason: str


def verdict(row: Mapping[str, Any] | None) -> Verdict:
    """Judge a row of ``splat_ply``; None where the box has none.

    An untrained splat, or one hardly better than its start, is an error. Weak figures and a large gap between the
    photos that were trained on and those held out are warnings.
    """
    if row is None or row["status"] != "trained":
        return Verdict(True, False, f"nothing was trained ({'no row' if row is None else row['status']})")
    gain, gap = row["psnr_db"] - row["init_psnr_db"], row["train_psnr_db"] - row["psnr_db"]
    if not gain >= LEAST_GAIN_DB:
        return Verdict(
            False,
            True,
            f"held-out PSNR {row['psnr_db']:.1f} dB is only {gain:+.1f} dB from before training ({LEAST_GAIN_DB:g} wanted): the poses or the engine's frame are wrong",
        )
    if row["n_holdout"] < FEWEST_HELD_OUT:
        return Verdict(False, False, f"only {row['n_holdout']} photo was held out: the figures are weak")
    if row["cc_psnr_db"] < LEAST_CC_PSNR_DB:
        return Verdict(
            False, False, f"held-out PSNR after a colour fit is {row['cc_psnr_db']:.1f} dB, below {LEAST_CC_PSNR_DB:g}"
        )
    if gap > LARGEST_GAP_DB:
        return Verdict(
            False,
            False,
            f"the photos trained on are {gap:.1f} dB better than those held out: overfit; fewer steps or more photos help",
        )
    return Verdict(True, False, f"held-out PSNR {row['psnr_db']:.1f} dB, {gain:+.1f} dB from before training")
