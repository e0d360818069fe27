"""The pairs of a box, matched and verified: each pair once, whichever box it was matched in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.lake import Lake
from geo_assets.reconstruct.candidates import REASONS, choose_pairs
from geo_assets.reconstruct.features import DATABASE, image_name
from geo_assets.reconstruct.graph import components
from geo_assets.reconstruct.stage import run_step
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

PAIRS_FILE = "pairs.txt"
MIN_INLIERS = 15
GEOMETRIES = ("CALIBRATED", "UNCALIBRATED", "PLANAR", "PANORAMIC", "PLANAR_OR_PANORAMIC", "CALIBRATED_RIG")
"""Two-view geometries that mean "the same scene"; a watermark or a degenerate pair does not."""


@dataclass(frozen=True)
class Matched:
    """Rows of ``match_pairs`` and figures for people."""

    frame: pd.DataFrame
    figures: dict[str, Any]


def match_box(
    lake: Lake, city: str, box: str, options: Reconstruct, log: Callable[[str], None] | None = None
) -> Matched:
    """Choose the pairs of a box, match and verify them, and publish database and pair list under ``files/matches``.

    Raises:
        GeoAssetsError: ``gps_db`` of the box is not there.
        ReconstructionError: COLMAP failed.
    """
    cameras = lake.read("gps_db", city=city, box=box)
    usable = pd.DataFrame(cameras[cameras.n_keypoints > 0])
    if usable.empty:
        return Matched(TABLES["match_pairs"].empty(), {"n_images": len(cameras), "n_pairs": 0, "n_verified": 0})
    chosen = choose_pairs(usable)
    with tempfile.TemporaryDirectory(prefix="geo_assets_matches_") as folder:
        published = Path(folder) / "published"
        published.mkdir()
        with lake.local(lake.key("features", city=city, box=box)) as features:
            shutil.copyfile(features / DATABASE, published / DATABASE)
        lines = [f"{image_name(a)} {image_name(b)}" for a, b in zip(chosen.image_id_a, chosen.image_id_b, strict=True)]
        (published / PAIRS_FILE).write_text("".join(line + "\n" for line in lines))
        answer = run_step(
            "match",
            {
                "database": str(published / DATABASE),
                "pairs": str(published / PAIRS_FILE),
                "threads": options.threads or -1,
                "seed": options.seed,
            },
            Path(folder),
            log=log,
        )
        lake.publish(published, lake.key("matches", city=city, box=box))
    frame = with_inliers(chosen, answer["found"])
    return Matched(frame, pair_figures(cameras, frame))


def with_inliers(chosen: pd.DataFrame, found: list[list[Any]]) -> pd.DataFrame:
    """The chosen pairs with what matching found: ``found`` holds ``id, id, matches, inliers, geometry``."""
    columns = ["image_id_a", "image_id_b", "n_matches", "n_inliers", "geometry"]
    rows = [(*sorted((str(a), str(b))), int(m), int(i), str(g)) for a, b, m, i, g in found]
    frame = chosen.merge(pd.DataFrame(rows, columns=columns), on=["image_id_a", "image_id_b"], how="left")
    counts = frame[["n_matches", "n_inliers"]].fillna(0).astype("int64")
    frame = frame.assign(**{c: counts[c] for c in counts}, geometry=frame.geometry.fillna("UNDEFINED"))
    frame["verified"] = (frame.n_inliers >= MIN_INLIERS) & frame.geometry.isin(GEOMETRIES)
    return frame.reindex(columns=TABLES["match_pairs"].column_names)


def pair_figures(cameras: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """Counts of a box's pairs and the connectedness of its verified graph."""
    verified = pairs[pairs.verified]
    labels = components(cameras.image_id.to_list(), verified.image_id_a.to_list(), verified.image_id_b.to_list())
    sizes = np.bincount(labels) if len(labels) else np.zeros(1, int)
    return {
        "n_images": len(cameras),
        "n_pairs": len(pairs),
        "n_verified": len(verified),
        "pairs_per_image": round(len(pairs) / max(len(cameras), 1), 2),
        "inliers_median": float(verified.n_inliers.median()) if len(verified) else 0.0,
        "n_components": int((sizes > 1).sum()),
        "n_in_largest_component": int(sizes.max()),
        "n_without_verified_pair": int((sizes == 1).sum()),
    } | {f"n_{reason}": int((pairs.reason == reason).sum()) for reason in REASONS}
