import datetime as dt
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import ConfigError
from geo_assets.geodesy import haversine_m
from geo_assets.harvest.selection import FILTERS, figures, select, statistics
from geo_assets.settings import Select
from geo_assets_tests.harvest.rows import LAT, LON, NOON, frame, image, polygons, square, track


def dropped(metadata: pd.DataFrame, **rules: Any) -> dict[str, Any]:
    """Image ids and the filter that dropped each."""
    found = select(metadata, Select(**rules))
    assert found.index.equals(metadata.index)
    return {i: None if pd.isna(by) else by for i, by in zip(metadata["image_id"], found["dropped_by"], strict=True)}


def test_without_rules_every_existing_image_is_selected() -> None:
    metadata = frame(image("1"), image("2", None), image("3", tombstoned_at=NOON), image("4", is_pano=True))
    assert dropped(metadata) == {"1": None, "2": None, "3": "tombstone", "4": None}
    assert figures(select(metadata, Select())) == {"n_selected": 3, "n_dropped_by_tombstone": 1}


def test_no_images_are_no_error() -> None:
    found = select(frame(), Select(spacing_m=5, limit=3, makes=("x",), panoramas=False, since=dt.datetime(2024, 5, 1)))
    assert list(found.columns) == ["stratum", "dropped_by"] and found.empty


@pytest.mark.parametrize(
    ("name", "rules", "kept", "out"),
    [
        ("since", {"since": NOON}, {"captured_at": NOON}, {"captured_at": NOON - pd.Timedelta(milliseconds=1)}),
        ("until", {"until": NOON}, {"captured_at": NOON}, {"captured_at": NOON + pd.Timedelta(milliseconds=1)}),
        ("since", {"since": dt.datetime(2024, 5, 1, 12)}, {"captured_at": NOON},
         {"captured_at": NOON - pd.Timedelta(hours=1)}),
        ("panorama", {"panoramas": False}, {"is_pano": False}, {"is_pano": True}),
        ("make", {"makes": ["gopro "]}, {"make": " GoPro"}, {"make": "GoPro2"}),
        ("model", {"models": ["HERO9"]}, {"model": "hero9"}, {"model": "HERO"}),
        ("organization", {"organizations": ["77"]}, {"organization_id": "77"}, {"organization_id": "7"}),
        ("creator", {"creators": ["ada"]}, {"creator_username": "ada"}, {"creator_username": "bea"}),
        ("creator", {"creators": ["42"]}, {"creator_id": "42"}, {"creator_id": "4"}),
    ],
)  # fmt: skip
def test_each_filter_and_an_image_without_its_datum(name: str, rules: dict, kept: dict, out: dict) -> None:
    lacking: dict[str, Any] = dict.fromkeys(out)
    metadata = frame(image("kept", **kept), image("out", **out), image("unknown", **lacking))
    assert dropped(metadata, **rules) == {"kept": None, "out": name, "unknown": name}


def test_the_first_filter_that_drops_is_named() -> None:
    metadata = frame(image("1", is_pano=True, make="x", tombstoned_at=NOON), image("2", is_pano=True, make="x"))
    assert dropped(metadata, panoramas=False, makes=("y",)) == {"1": "tombstone", "2": "panorama"}
    assert FILTERS.index("panorama") < FILTERS.index("make")


def test_spacing_keeps_the_first_and_then_each_far_enough() -> None:
    metadata = frame(*track("a", [0, 4, 9, 10, 14, 25, 26]))
    kept = [i for i, by in dropped(metadata, spacing_m=10).items() if by is None]
    assert kept == ["a000", "a003", "a005"]  # the last image of the sequence is not forced


def test_spacing_is_measured_along_the_track_and_not_as_the_crow_flies() -> None:
    # There and back: 12 m travelled, 2 m away from the start.
    metadata = frame(*track("a", [0, 7, 2]))
    assert [by is None for by in dropped(metadata, spacing_m=10).values()] == [True, False, True]


def test_spacing_goes_by_time_whatever_the_order_of_rows_and_ids() -> None:
    rows = track("a", [0, 5, 10, 15, 20])
    for row, name in zip(rows, "edcba", strict=True):
        row["image_id"] = name
    kept = {i for i, by in dropped(frame(*rows), spacing_m=10).items() if by is None}
    assert kept == {"e", "c", "a"}
    shuffled = frame(*rows).iloc[[3, 0, 4, 2, 1]]
    assert {i for i, by in dropped(shuffled, spacing_m=10).items() if by is None} == kept


def test_a_clock_that_is_wrong_still_orders_its_sequence() -> None:
    rows = track("a", [0, 5, 10], captured_at=None)
    for row, ms in zip(rows, (30, 20, 10), strict=True):
        row["captured_at_ms"] = ms
    assert [by is None for by in dropped(frame(*rows), spacing_m=8).values()] == [True, False, True]
    rows[2]["captured_at_ms"] = 25  # from 5 m to 10 m, then back to 0 m: a way of 5 m and of 15 m
    assert [by is None for by in dropped(frame(*rows), spacing_m=8).values()] == [True, True, False]


def test_sequences_are_spaced_apart_from_one_another_and_other_filters_do_not_shorten_the_way() -> None:
    metadata = frame(*track("a", [0, 2]), *track("b", [0, 2]), image("alone", 1.0, sequence_id=None), image("no", None))
    kept = {i for i, by in dropped(metadata, spacing_m=10).items() if by is None}
    assert kept == {"a000", "b000", "alone"}
    rows = track("a", [0, 6, 0, 6])
    rows[1]["is_pano"] = True
    assert list(dropped(frame(*rows), spacing_m=12, panoramas=False).values()) == [None, "panorama", None, "spacing"]


def test_spacing_follows_the_stratum(tmp_path: Path) -> None:
    path = polygons(tmp_path / "strata.geojson", ("urban", square(-1, 25)))
    metadata = frame(*track("a", [0, 10, 20, 30, 40, 50, 60]))
    rules = Select(strata=path, stratum_spacing_m={"urban": 10}, spacing_m=30)
    found = select(metadata, rules)
    assert found["stratum"].fillna("").tolist() == ["urban"] * 3 + [""] * 4  # both sides are kept
    assert [pd.isna(by) for by in found["dropped_by"]] == [True, True, True, False, False, True, False]
    every = select(metadata, Select(strata=path, stratum_spacing_m={"urban": 0}, spacing_m=30))
    assert [pd.isna(by) for by in every["dropped_by"]][:3] == [True, True, True]


def test_a_spacing_for_no_stratum_is_an_error(tmp_path: Path) -> None:
    path = polygons(tmp_path / "strata.geojson", ("urban", square(0, 1)))
    with pytest.raises(ConfigError, match=r"names rural, which .* lacks; it has urban"):
        select(frame(image("1")), Select(strata=path, stratum_spacing_m={"rural": 3}))
    with pytest.raises(ConfigError, match="names no GeoJSON file"):
        select(frame(image("1")), Select(stratum_spacing_m={"urban": 3}))


def crowded() -> pd.DataFrame:
    """900 images of one sequence on one spot, and a hundred of ten others over 400 m x 400 m."""
    crowd = track("crowd", [5.0] * 900, 5.0)
    grid = [track(f"g{k}", [j * 40.0 + 10 for j in range(10)], k * 40.0 + 10) for k in range(10)]
    return frame(*crowd, *itertools.chain(*grid))


@pytest.mark.parametrize("limit", [1, 25, 60, 101, 150, 999])
def test_a_limit_is_met_exactly_and_does_not_depend_on_the_order(limit: int) -> None:
    metadata = crowded()
    kept = {i for i, by in dropped(metadata, limit=limit).items() if by is None}
    assert len(kept) == limit
    mixed = metadata.sample(frac=1, random_state=limit)
    assert {i for i, by in dropped(mixed, limit=limit).items() if by is None} == kept


def test_a_limit_spreads_over_the_ground_and_over_sequences() -> None:
    metadata = crowded()
    found = metadata.loc[select(metadata, Select(limit=25))["dropped_by"].isna().to_numpy()]
    assert (found["sequence_id"] == "crowd").sum() <= 1 and found["sequence_id"].nunique() >= 5
    # No image of the 400 m square is further from a selected one than twice what a perfect lattice would have.
    lon, lat = metadata[["lon", "lat"]].to_numpy().T
    far = haversine_m(lon[:, None], lat[:, None], found["lon"].to_numpy(), found["lat"].to_numpy()).min(axis=1)
    assert far.max() < 2 * (400 / 5) / np.sqrt(2)
    two = frame(*track("a", [0.0] * 50), *track("b", [1.0] * 3))
    assert two.loc[select(two, Select(limit=4))["dropped_by"].isna().to_numpy(), "sequence_id"].tolist() == [
        *("a", "a", "b", "b")
    ]


def test_a_limit_above_the_count_drops_nothing_and_an_image_without_a_place_is_dropped_by_it() -> None:
    metadata = frame(image("1"), image("2", None), image("3"))
    assert set(dropped(metadata, limit=3).values()) == {None}
    assert dropped(metadata, limit=2) == {"1": None, "2": "limit", "3": None}


def test_the_computed_position_counts() -> None:
    rows = track("a", [0, 5, 10])
    rows[1] |= {"computed_lon": LON + 1, "computed_lat": LAT}
    assert list(dropped(frame(*rows), spacing_m=50).values()) == [None, None, None]


def test_statistics_count_what_exists() -> None:
    metadata = frame(
        image("1", make="GoPro", is_pano=True, stratum="urban"),
        image("2", make="GoPro", captured_at=NOON + pd.Timedelta(days=1), dropped_by="spacing"),
        image("3", make="Apple", is_pano=None, captured_at=None, sequence_id="t", computed_lon=LON, computed_lat=LAT),
        image("4", make="Gone", tombstoned_at=NOON, captured_at=NOON - pd.Timedelta(days=9)),
    )
    found = statistics(metadata)
    assert found | {
        "n_images": 3, "n_tombstones": 1, "n_panoramas": 1, "n_flat": 1, "n_sequences": 2, "n_creators": 1,
        "n_computed_positions": 1, "n_without_time": 1, "makes": {"GoPro": 2, "Apple": 1}, "strata": {"urban": 1},
        "n_selected": 2, "n_dropped_by_spacing": 1, "first_at": "2024-05-01T12:00:00+00:00",
        "last_at": "2024-05-02T12:00:00+00:00",
    } == found  # fmt: skip
    empty = statistics(frame())
    assert empty["n_images"] == 0 and "first_at" not in empty
