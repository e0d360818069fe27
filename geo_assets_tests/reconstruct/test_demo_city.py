"""The four boxes of the demo city, whose true cameras are known: how many stand, in what shape, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_assets.demo.place import demo_city, demo_frame
from geo_assets.reconstruct import features, models, pairs
from geo_assets.reconstruct.frames import best_similarity
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.lakes import CITY, demo_lake

GPS_SIGMA_M = 3.0

pytestmark = pytest.mark.demo


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, Any]]:
    return demo_lake(tmp_path_factory.mktemp("demo"))


@pytest.mark.parametrize("box", list(demo_city().grid))
def test_a_demo_box_stands_where_it_is(harvested: tuple[Any, Any, dict[str, Any]], box: str):
    lake, grid, truth = harvested
    where, options = {"city": CITY, "box": box}, Reconstruct()
    made = features.gps_database(lake, CITY, box, grid, options)
    lake.write("gps_db", made.frame, note=made.note, **where)
    lake.write("match_pairs", pairs.match_box(lake, CITY, box, options).frame, note=None, **where)
    found = models.map_box(lake, CITY, box, options)
    assert found.figures["registered_share"] >= 0.95
    for _, cameras in found.cameras.groupby("component"):
        shape_m, place_m = errors_m(cameras, truth)
        assert shape_m <= 0.05
        assert place_m <= 1.5 * GPS_SIGMA_M / np.sqrt(len(cameras))


def errors_m(cameras: pd.DataFrame, truth: dict[str, Any]) -> tuple[float, float]:
    """Median error of the camera centres after the best similarity, and how far off their middle is [m]."""
    found = demo_frame().enu(cameras.lon, cameras.lat, cameras.alt_m)
    true = np.array([truth[i].centre for i in cameras.image_id])
    shape = np.linalg.norm(best_similarity(found, true)(found) - true, axis=1)
    return float(np.median(shape)), float(np.hypot(*(found.mean(0) - true.mean(0))[:2]))
