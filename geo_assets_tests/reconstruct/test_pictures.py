from __future__ import annotations

import numpy as np
import pandas as pd

from geo_assets.pictures import MAX_BYTES
from geo_assets.reconstruct import pictures


def crowd(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(0, 200, (n, 2)), columns=["east_m", "north_m"])
    return frame.assign(image_id=[str(k) for k in range(n)], heading_deg=rng.uniform(0, 360, n), home_box="r00c00")


def test_pictures_stay_small_enough_for_the_event_log():
    images = crowd(3000)
    rng = np.random.default_rng(1)
    ends = rng.integers(0, 3000, (20_000, 2)).astype(str)
    pairs = pd.DataFrame(
        {"image_id_a": ends[:, 0], "image_id_b": ends[:, 1], "n_inliers": rng.integers(0, 900, 20_000)}
    )
    pairs["verified"] = pairs.n_inliers >= 15
    points = np.column_stack([rng.normal(0, 200, (4000, 3)), rng.uniform(0, 255, (4000, 3))])
    made = [
        pictures.prior_map(images, "r00c00"),
        pictures.pair_pictures(images, pairs),
        pictures.model_map(images, pd.DataFrame(images[["image_id", "east_m", "north_m"]]), points),
    ]
    assert all(png.startswith(b"\x89PNG") and len(png) <= MAX_BYTES for png in made)


def test_pictures_of_nothing_are_still_pictures():
    images = crowd(1).assign(heading_deg=np.nan)
    none = pd.DataFrame({"image_id_a": [], "image_id_b": [], "n_inliers": [], "verified": []})
    assert pictures.prior_map(images, "other").startswith(b"\x89PNG")
    assert pictures.pair_pictures(images, none).startswith(b"\x89PNG")
    assert pictures.model_map(images, pd.DataFrame(images[:0]), np.zeros((0, 6))).startswith(b"\x89PNG")
