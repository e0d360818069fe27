import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.geotag.cell_pictures import error_curves, radius_histograms, size_histograms
from geo_assets.geotag.judge import WITHIN_KM
from geo_assets.pictures import MAX_BYTES
from geo_assets.tables import TABLES


def errors(*names: str) -> pd.DataFrame:
    rows = [
        {"partition": name, "level": level, "n_cells": 1000 // 10**level, "median_km": 3.0 * 8**level}
        | {f"within_{km}_km": min(1.0, km / 500 / (level + 1)) for km in WITHIN_KM}
        for name in names
        for level in range(3)
    ]
    return TABLES["partition_errors"].frame(rows)


def cells(n: int) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    rows = [{"level": 1, "cell_id": 0, "mean_km": 5000.0, "n_photos": 99}] + [
        {"level": 0, "cell_id": i, "mean_km": float(draw.lognormal(1, 1)), "n_photos": int(draw.integers(1, 50))}
        for i in range(n)
    ]
    return TABLES["hierarchy_centroids"].frame(rows)


def pixels(png: bytes) -> np.ndarray:
    assert len(png) <= MAX_BYTES
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_each_partition_is_drawn():
    one, two = (pixels(error_curves(errors(*names))) for names in (["hierarchy"], ["hierarchy", "s2"]))
    assert one.shape == two.shape and (one != two).any()


@pytest.mark.parametrize("histograms", [radius_histograms, size_histograms])
def test_cells_are_counted_by_level(histograms):
    some, more = pixels(histograms(cells(5))), pixels(histograms(cells(500)))
    assert (some[:100] != more[:100]).any()


def test_nothing_is_drawn_of_nothing():
    assert pixels(error_curves(TABLES["partition_errors"].empty())).size
    for histograms in (radius_histograms, size_histograms):
        assert pixels(histograms(TABLES["hierarchy_centroids"].empty())).size
