"""Matching and geometric verification of listed pairs in a COLMAP database; runs in a child process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pycolmap

from geo_assets.reconstruct.colmap import checkpoint, device_for

MIN_INLIERS = 15


def match(
    database: str,
    pairs: str,
    threads: int,
    seed: int,
    device: str = "auto",
    chunk: int = 200,
    seconds: float | None = None,
    done: int = 0,
    total: int | None = None,
) -> dict[str, Any]:
    """Match and verify listed pairs, chunk by chunk, until the list or the time ends.

    Args:
        database: COLMAP database with features; results are written to it.
        pairs: COLMAP pair list, one ``name name`` a line.
        threads: -1 for one a core.
        seed: of the sampling; what a pair yields depends on nothing else than its two images and this.
        device: ``auto``, ``cpu`` or ``cuda``.
        chunk: pairs matched between two lines of progress.
        seconds: no chunk is begun after so many; at least one chunk is matched.
        done: pairs matched before this call, for the progress shown.
        total: pairs to match in all, for the progress shown.

    Returns:
        ``n_done``, how many lines of the list, from its beginning, are finished.
    """
    listed = Path(pairs)
    lines = listed.read_text().splitlines()
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = threads
    # Views of one panorama stand on one point. Verification over whole rigs stays off: it passes the same pairs, and
    # would make what a pair yields depend on which other pairs of its frames are there.
    matching.skip_image_pairs_in_same_frame = True
    # Guided matching would find more, but takes minutes a pair without a GPU, and the same pairs pass.
    matching.guided_matching = False
    verification = pycolmap.TwoViewGeometryOptions()
    verification.min_num_inliers = MIN_INLIERS
    # A logo or a dashboard that stands still in the frame would else be the best match of every pair.
    verification.filter_stationary_matches = True
    verification.ransac.random_seed = seed
    part = listed.with_suffix(".chunk")
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = str(part)
    where = device_for(device)
    began, n_done, total = time.monotonic(), 0, total or len(lines)
    while n_done < len(lines):
        spent = time.monotonic() - began
        if n_done and seconds is not None and spent >= seconds:
            break
        some = lines[n_done : n_done + chunk]
        part.write_text("\n".join(some) + "\n")
        pycolmap.match_image_pairs(
            database,
            matching_options=matching,
            pairing_options=pairing,
            verification_options=verification,
            device=where,
        )
        n_done += len(some)
        rate = n_done / max(time.monotonic() - began, 1e-9)
        left = (total - done - n_done) / rate
        print(f"matched {done + n_done:,} of {total:,} pairs, {rate:.1f} a second, {left:,.0f} s left", flush=True)
    part.unlink(missing_ok=True)
    checkpoint(database)
    return {"n_done": n_done}
