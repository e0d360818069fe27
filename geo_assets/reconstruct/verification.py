"""Matching and geometric verification of listed pairs in a COLMAP database; runs in a child process."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pycolmap

from geo_assets.reconstruct.colmap import PAIR_BASE, checkpoint

MATCH_CHUNK = 500
"""Pairs matched between two lines of progress."""


def match(database: str, pairs: str, threads: int, seed: int) -> dict[str, Any]:
    """Match and verify the listed pairs in the database, then drop the descriptors, which mapping does not need."""
    path = Path(pairs)
    lines = path.read_text().splitlines()
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = threads
    verification = pycolmap.TwoViewGeometryOptions()
    # A logo or a dashboard that stands still in the frame would else be the best match of every pair.
    verification.filter_stationary_matches = True
    verification.ransac.random_seed = seed
    for first in range(0, len(lines), MATCH_CHUNK):
        chunk = lines[first : first + MATCH_CHUNK]
        listed = path.with_suffix(".chunk")
        listed.write_text("\n".join(chunk) + "\n")
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = str(listed)
        pycolmap.match_image_pairs(
            database,
            matching_options=matching,
            pairing_options=pairing,
            verification_options=verification,
            device=pycolmap.Device.cpu,
        )
        listed.unlink()
        print(f"matched {first + len(chunk):,} of {len(lines):,} pairs", flush=True)
    checkpoint(database)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as con:
        con.execute("delete from descriptors")
        con.execute("vacuum")
    checkpoint(database)
    return {"found": _two_view(database)}


def _two_view(database: str) -> list[tuple[str, str, int, int, str]]:
    """For each tried pair: both ids, putative matches, inliers, configuration."""
    configurations = {int(c): name for name, c in pycolmap.TwoViewGeometryConfiguration.__members__.items()}
    base = PAIR_BASE
    with contextlib.closing(sqlite3.connect(database)) as con:
        names = {i: name.removesuffix(".jpg") for i, name in con.execute("select image_id, name from images")}
        rows = con.execute(
            "select m.pair_id, m.rows, coalesce(t.rows, 0), coalesce(t.config, 0) "
            "from matches m left join two_view_geometries t using (pair_id)"
        ).fetchall()
    return [
        (names[pair // base], names[pair % base], n_matches or 0, inliers, configurations.get(config, "UNDEFINED"))
        for pair, n_matches, inliers, config in rows
    ]
