from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from geo_assets.geodesy import haversine_m
from geo_assets.geotag.checks import (
    combined_faults,
    landmark_statuses,
    landmarks_were_answered,
    near_training,
    point_faults,
    reject_shares,
    shares_fit,
    split_shares,
)
from geo_assets.geotag.combine import combine, write_points
from geo_assets.lake import Lake
from geo_assets.resources import LakeResource
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES

SETTINGS = Geotag()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pd.DataFrame:
    """Rows of ``geotag_combined`` of two sources with 2,000 photos at the same places, around the antimeridian."""
    lake = Lake(tmp_path_factory.mktemp("whole"))
    for source, first in (("google_landmark", 0), ("flickr_geotag", 100_000)):
        records = [
            {"photo_id": str(first + i), "source": source, "path": f"{i}.jpg", "flags": [],
             "lon": 179.5 + i % 50 / 50 - 360 * (i % 50 >= 25), "lat": 60 + i // 50 * 0.01}
            for i in range(2000)
        ]  # fmt: skip
        lake.write(source, TABLES[source].frame(records))
    combine(lake, SETTINGS)
    return lake.read("geotag_combined")


@pytest.fixture
def lake(tmp_path, whole) -> Lake:
    lake = Lake(tmp_path)
    put(lake, whole)
    write_points(lake, SETTINGS)
    return lake


def put(lake: Lake, rows: pd.DataFrame, settings: Geotag = SETTINGS) -> None:
    note = {name: getattr(settings, name) for name in ("split_cell_deg", "validation_share", "test_share")}
    lake.write("geotag_combined", rows, note=note)


def beside(rows: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    """The rows and one more: the first with some changes."""
    return pd.concat([rows, rows.head(1).assign(photo_id="another", **changes)], ignore_index=True)


def other(split: str) -> str:
    return "test" if split == "train" else "train"


def broken(lake: Lake, settings: Geotag = SETTINGS) -> dict[str, int]:
    return {name: n for name, n in combined_faults(lake, settings).items() if n}


def test_a_sound_table_has_no_fault(lake):
    assert broken(lake) == {}
    assert not any(point_faults(lake, SETTINGS).values())


@pytest.mark.parametrize(("lon", "lat"), [(180.1, 0.0), (np.nan, 0.0), (1.0, np.inf), (0.0, -91.0)])
def test_a_position_off_the_globe_is_found(lake, whole, lon, lat):
    put(lake, beside(whole, lon=lon, lat=lat))
    assert combined_faults(lake, SETTINGS)["off_globe"] == 1
    assert split_shares(lake, SETTINGS) and near_training(lake, SETTINGS) >= 0 and point_faults(lake, SETTINGS)


def test_a_place_in_two_splits_is_found(lake, whole):
    first = whole.iloc[0]
    put(lake, beside(whole, split=other(first["split"])))
    assert broken(lake) == {"cells_of_two_splits": 1, "places_of_two_splits": 1}


def test_a_cell_in_two_splits_is_found(lake, whole):
    first = whole.iloc[0]
    put(lake, beside(whole, split=other(first["split"]), lat=first["lat"] + 0.004))
    assert broken(lake) == {"cells_of_two_splits": 1}


def test_the_antimeridian_has_one_name_for_the_check_too(lake, whole):
    put(lake, pd.concat([whole.head(2).assign(lon=[180.0, -180.0], lat=1.0, split=["train", "test"])]))
    assert broken(lake) == {"cells_of_two_splits": 1, "places_of_two_splits": 1}


def test_a_flickr_photo_in_two_sets_and_splits_is_found(lake, whole):
    photo = whole[whole["source"] == "flickr_geotag"].iloc[0]
    far = whole[whole["split"] == other(photo["split"])].iloc[0]
    copy = {"source": "placing_2016", "photo_id": photo["photo_id"], "path": f"x/{photo['photo_id']}.jpg"}
    put(lake, pd.concat([whole, far.to_frame().T.assign(**copy)], ignore_index=True))
    assert broken(lake) == {"photos_again": 1, "photos_of_two_splits": 1}


def test_an_id_of_another_source_is_another_photo(lake, whole):
    put(lake, pd.concat([whole, whole.head(1).assign(source="mapillary")], ignore_index=True))
    assert broken(lake) == {}
    put(lake, pd.concat([whole, whole.head(1).assign(path="elsewhere.jpg")], ignore_index=True))
    assert broken(lake) == {"photos_again": 1}


def test_cells_are_those_that_the_table_was_split_by(lake, whole):
    assert broken(lake, Geotag(split_cell_deg=5)) == {}
    put(lake, whole, Geotag(split_cell_deg=5))
    assert "cells_of_two_splits" in broken(lake)


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("photos_too_many", lambda p: p.assign(n_photos=p["n_photos"] + (p["point_id"] == 3))),
        ("photos_elsewhere", lambda p: p.assign(lat=p["lat"] + 1e-9 * (p["point_id"] == 3))),
        ("photos_elsewhere", lambda p: p.assign(n_photos=p["n_photos"].to_numpy() + (p["point_id"] == 3) - (p["point_id"] == 9))),
        ("places_out_of_order", lambda p: p.assign(point_id=p["point_id"] + 1)),
        ("places_out_of_order", lambda p: pd.concat([p.assign(n_photos=p["n_photos"] - 1), p.assign(n_photos=1)])
            .sort_values("lon", kind="stable").assign(point_id=range(2 * len(p)))),
        ("places_out_of_order", lambda p: p.assign(point_id=p["point_id"].to_numpy()[::-1])),
    ],
)  # fmt: skip
def test_points_that_do_not_add_up_are_found(lake, fault, change):
    lake.write("geotag_points", change(lake.read("geotag_points")))
    assert point_faults(lake, SETTINGS)[fault] > 0


def test_test_photos_near_training_are_those_of_all_pairs(lake, whole):
    here = whole.head(1)
    lon, lat = np.meshgrid(180 + np.arange(-300, 300, 9) / 1e5, 60.1 + np.arange(-110, 110, 9) / 1e5)
    n = lon.size
    photos = here.loc[[0] * n].assign(
        photo_id=[str(i) for i in range(n)],
        lon=np.where(lon.ravel() < 180, lon.ravel(), lon.ravel() - 360),
        lat=lat.ravel(),
        split=np.where(lon.ravel() < 180, "train", np.where(lat.ravel() < 60.1, "test", "validation")),
    )
    put(lake, photos)
    train, test = (photos[photos["split"] == split] for split in ("train", "test"))
    one = [test[name].to_numpy()[:, None] for name in ("lon", "lat")]
    apart = haversine_m(*one, *(train[name].to_numpy()[None, :] for name in ("lon", "lat")))
    wanted = int((apart.min(axis=1) <= 100).sum())
    assert 0 < wanted < len(test) and near_training(lake, SETTINGS) == wanted


def test_splits_are_counted_by_cells_and_photos(lake, whole):
    shares = split_shares(lake, Geotag(test_share=0.4))
    assert {split: s["wanted"] for split, s in shares.items()} == {"train": 0.8, "validation": 0.1, "test": 0.1}
    assert sum(s["n_photos"] for s in shares.values()) == len(whole)
    names = np.floor(whole["lon"] / 0.1).astype(str) + ":" + np.floor(whole["lat"] / 0.1).astype(str)
    cells = whole.groupby("split")["lon"].agg(lambda lon: names[lon.index].nunique()).to_dict()
    assert {split: s["n_cells"] for split, s in shares.items()} == cells


@pytest.mark.parametrize(
    ("n_train", "n_test", "fit"), [(1600, 440, True), (1600, 1600, False), (90, 900, True), (0, 0, True)]
)
def test_shares_of_many_cells_are_to_fit(n_train, n_test, fit):
    total = n_train + n_test or 1
    shares = {
        split: {"n_cells": n, "n_photos": n, "share": n / total, "wanted": wanted}
        for split, n, wanted in (("train", n_train, 0.8), ("test", n_test, 0.2))
    }
    assert shares_fit(shares) is fit


def test_rejects_are_compared_with_what_a_source_gave(lake, whole):
    lake.write("google_landmark", whole.head(30).drop(columns="split"))
    frame = TABLES["geotag_rejects"].frame([{"file": "f", "row": str(i), "reason": "r"} for i in range(10)])
    lake.write("geotag_rejects", frame, source="google_landmark", part="all")
    lake.write("geotag_rejects", frame, source="geotag_combined", part="all")
    assert reject_shares(lake) == {"google_landmark": 0.25}


def test_landmarks_without_an_answer_are_counted(tmp_path):
    lake, row = Lake(tmp_path), dict.fromkeys(TABLES["landmark_coordinates"].column_names)
    rows = [row | {"landmark_id": str(k), "status": status} for k, status in enumerate(["found", "error", "found"])]
    lake.write("landmark_coordinates", TABLES["landmark_coordinates"].frame(rows), part="train-000000")
    assert landmark_statuses(lake) == {"error": 1, "found": 2}
    check = landmarks_were_answered(LakeResource(root=str(tmp_path)))
    assert isinstance(check, dg.AssetCheckResult) and not check.passed
    assert check.metadata["share_found"] == dg.FloatMetadataValue(0.6667)
