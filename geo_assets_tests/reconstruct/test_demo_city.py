"""The four boxes of the demo city, whose true cameras are known: in what shape they stand, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_assets.demo.place import demo_city, demo_frame
from geo_assets.demo.world import demo_world
from geo_assets.lake import Lake
from geo_assets.reconstruct.frames import best_similarity

GPS_SIGMA_M = 3.0

pytestmark = [pytest.mark.demo, pytest.mark.xdist_group("demo")]


@pytest.mark.parametrize("box", list(demo_city().grid))
def test_a_demo_box_stands_where_it_is(finished_demo: Lake, box: str) -> None:
    cameras = finished_demo.read("model_cameras", city="demo", box=box)
    assert len(cameras) >= 20
    truth = demo_world().truth
    for _, component in cameras.groupby("component"):
        shape_m, place_m = errors_m(component, truth)
        assert shape_m <= 0.05
        assert place_m <= 1.5 * GPS_SIGMA_M / np.sqrt(len(component))


def errors_m(cameras: pd.DataFrame, truth: Mapping[str, Any]) -> tuple[float, float]:
    """Median error of the camera centres after the best similarity, and how far off their middle is [m]."""
    found = demo_frame().enu(cameras["lon"], cameras["lat"], cameras["alt_m"])
    true = np.array(
        [truth[i.split("_v")[0]].centre for i in cameras["image_id"]]
    )  # views stand where their panorama does
    shape = np.linalg.norm(best_similarity(found, true)(found) - true, axis=1)
    return float(np.median(shape)), float(np.hypot(*(found.mean(0) - true.mean(0))[:2]))


def test_neighbours_agree_about_the_cameras_they_share(finished_demo: Lake) -> None:
    borders = finished_demo.read("border_disagreement", city="demo")
    assert len(borders) == 6 and borders.n_shared.min() >= 3
    assert borders.median_m.max() < 0.1


def test_the_panorama_is_placed_as_four_views(finished_demo: Lake) -> None:
    (panorama,) = [i for i, camera in demo_world().truth.items() if camera.kind == "spherical"]
    cameras = finished_demo.read("model_cameras", city="demo", box="r01c01").set_index("image_id")
    views = cameras.loc[[f"{panorama}_v{k}" for k in range(4)]]
    places = views[["east_m", "north_m", "up_m"]].to_numpy()
    assert np.abs(places - places[0]).max() < 1e-6
    turns = np.diff(views.heading_deg.to_numpy()) % 360
    assert turns == pytest.approx([90, 90, 90], abs=2.0)  # the rig leans with its camera


def test_the_four_boxes_are_one_model(finished_demo: Lake) -> None:
    whole = finished_demo.read("city_model", city="demo").iloc[0]
    shown = {i for box in demo_city().grid for i in finished_demo.read("model_cameras", city="demo", box=box).image_id}
    assert (whole.n_boxes, whole.n_images) == (4, len(shown))
    assert whole.reprojection_px < 1.0 and whole.n_tracks_joined > 1000
    assert finished_demo.exists(f"{whole.path}/points3D.bin") and finished_demo.exists(f"{whole.path}/geo.json")
