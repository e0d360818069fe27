import datetime as dt
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from geo_assets.grid import Bounds, Grid
from geo_assets.harvest.area import Area
from geo_assets.harvest.metadata import FIELDS, attribution, belongs, columns, from_epoch, plausible, point, rows, table
from geo_assets.tables import TABLES

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def told(name: str, *values: object) -> pd.Series:
    """A column of the table for answers that hold these values under a name of the API."""
    answers = [{"id": str(i), name: value} for i, value in enumerate(values)]
    arrow = TABLES["image_metadata"].conform(rows(answers, NOW))
    return arrow.to_pandas(types_mapper=pd.ArrowDtype)[
        {"compass_angle": "compass_deg", "altitude": "altitude_m"}.get(name, name)
    ]


def listed(column: Any) -> list:
    return [None if pd.isna(value) else value for value in column]


def test_altitudes() -> None:
    values = [4294967281, -3.5, 8848, None, "12", float("nan"), True]
    assert listed(told("altitude", *values)) == [-15.0, -3.5, 8848.0, None, None, None, None]


def test_implausible_clocks_are_not_believed() -> None:
    values = [1563721072184, 0, -5, 1e18, 4102444800000, "x", None]
    times = told("captured_at", *values)
    assert [time.year if time else None for time in listed(times)] == [2019, None, None, None, None, None, None]
    said = rows([{"id": str(i), "captured_at": v} for i, v in enumerate(values)], NOW)["captured_at_ms"]
    assert listed(said) == [1563721072184, 0, -5, None, 4102444800000, None, None], "what the device said is kept"


@pytest.mark.parametrize(
    ("time", "believed"),
    [
        (dt.datetime(1990, 1, 1, tzinfo=dt.UTC), True),
        (dt.datetime(1989, 12, 31, 23, 59, tzinfo=dt.UTC), False),
        (NOW + dt.timedelta(days=1), True),
        (NOW + dt.timedelta(days=1, seconds=1), False),
    ],
)
def test_what_is_plausible(time: dt.datetime, believed: bool) -> None:
    assert plausible(time, NOW) is believed
    captured = rows([{"id": "1", "captured_at": int(time.timestamp() * 1000)}], NOW)["captured_at"]
    assert captured.notna().tolist() == [believed], "tables and photos go by one rule"


@pytest.mark.parametrize(
    ("geometry", "pair"),
    [
        ({"type": "Point", "coordinates": [11.5, 48.1]}, (11.5, 48.1)),
        ({"coordinates": [11.5, 48.1, 520.0]}, (11.5, 48.1)),
        ({"coordinates": [200, 48.1]}, (None, None)),
        ({"coordinates": [11.5]}, (None, None)),
        ({"coordinates": ["11.5", "48.1"]}, (None, None)),
        (None, (None, None)),
        ("POINT", (None, None)),
    ],
)
def test_points(geometry: object, pair: tuple) -> None:
    assert point(geometry) == pair


def test_headings_wrap() -> None:
    assert listed(told("compass_angle", -10, 370, 0, None)) == [350.0, 10.0, 0.0, None]


def test_the_credit_names_source_licence_author_and_photo() -> None:
    assert attribution("42", "jürgen") == (
        "Photos from Mapillary, CC BY-SA 4.0, by @jürgen, https://www.mapillary.com/app/?pKey=42"
    )
    assert attribution("42", None) == "Photos from Mapillary, CC BY-SA 4.0, https://www.mapillary.com/app/?pKey=42"


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "1"},
        {"id": 17, "creator": None, "geometry": None, "captured_at": "soon", "camera_parameters": "none"},
        {"id": "2", "creator": [], "sfm_cluster": "x", "computed_rotation": [1, 2], "width": float("inf"), "make": ""},
    ],
)
def test_rows_of_strange_answers_still_fit_the_table(answer: dict) -> None:
    arrow = TABLES["image_metadata"].conform(rows([answer], NOW))
    assert arrow.num_rows == 1 and arrow["licence"].to_pylist() == ["CC BY-SA 4.0"]
    assert arrow["make"].to_pylist() == [None] and arrow["computed_rotation"].to_pylist() == [None]


def test_each_row_has_the_time_of_its_answer() -> None:
    """What was kept column by column makes the same rows, each with its own time."""
    answers = [{"id": "1", "sequence": "s", "captured_at": 4102444800000}, {"id": "2", "make": "Maker"}]
    late = dt.datetime(2100, 1, 1, 12, tzinfo=dt.UTC)
    found = table(columns(answers), [late, NOW])
    assert list(found["fetched_at"]) == [late, NOW] and list(found["image_id"]) == ["1", "2"]
    assert listed(found["sequence_id"]) == ["s", None] and listed(found["make"]) == [None, "Maker"]
    assert found["captured_at"].notna().tolist() == [True, False], "an answer of 2100 may tell of 2100"


def test_times_of_the_clock_are_whole_milliseconds() -> None:
    assert from_epoch(1_700_000_000.1239) == dt.datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=dt.UTC)


def test_no_answers_are_an_empty_table() -> None:
    assert TABLES["image_metadata"].conform(rows([], NOW)).num_rows == 0


def test_recorded_images(real_data: Path) -> None:
    entity = json.loads((real_data / "mapillary/graph/135511895288847.json").read_text())
    record = rows([entity], NOW).iloc[0]
    assert record["sequence_id"] == "7nfcwfvjdtphz7yj6zat6a" and record["sfm_cluster_id"] == "306951457725231"
    assert (record["lon"], record["computed_lon"]) == (-108.57081597222, -108.57081597085)
    assert record["captured_at"] == dt.datetime(2019, 7, 21, 14, 57, 52, 184000, tzinfo=dt.UTC)
    listed = json.loads((real_data / "mapillary/trekview/images_creator_username_1.json").read_text())["data"]
    panorama = rows(listed, NOW).iloc[0]
    assert panorama["creator_username"] == "trekviewhq" and bool(panorama["is_pano"])
    assert "by @trekviewhq" in panorama["attribution"] and len(panorama["computed_rotation"]) == 3
    assert set(FIELDS) >= {"id", "sequence", "geometry", "computed_geometry", "creator", "sfm_cluster"}


def frame(**columns: list) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    return pd.DataFrame({name: columns.get(name, [None] * n) for name in TABLES["image_metadata"].empty().columns})


def test_the_computed_position_decides_and_edges_belong_to_one_box() -> None:
    grid = Grid(11.0, 48.0, 100.0, 2, 2)
    step = grid.step_lon
    images = frame(
        image_id=["a", "b", "c", "d", "e"],
        lon=[11.0, 11.0, 11.0 + step, None, None],
        lat=[48.0, 48.0, 48.0, 48.0, None],
        computed_lon=[None, 11.0 + 1.5 * step, None, 11.0 + 0.5 * step, None],
        computed_lat=[None, 48.0, None, 48.0, None],
    )
    area = Area(Bounds(11.0, 48.0, 11.0 + 2 * step, 48.0 + 2 * grid.step_lat), grid)
    homes = {box: belongs(images, area, box).tolist() for box in grid}
    on_the_edge = grid.box_at(11.0 + step, 48.0)
    assert homes["r00c00"] == [True, False, on_the_edge == "r00c00", True, False]
    assert homes["r00c01"] == [False, True, on_the_edge == "r00c01", False, False]
    assert [sum(box[i] for box in homes.values()) for i in range(5)] == [1, 1, 1, 1, 0]


def test_the_polygon_of_the_city_drops_what_lies_outside(tmp_path: Path) -> None:
    path = tmp_path / "aoi.geojson"
    ring = [[11.0, 48.0], [11.001, 48.0], [11.0, 48.001], [11.0, 48.0]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    images = frame(image_id=["a", "b"], lon=[11.0002, 11.0009], lat=[48.0002, 48.0008])
    area = Area(Bounds(11.0, 48.0, 11.01, 48.01), Grid(11.0, 48.0, 200.0, 1, 1), path)
    assert belongs(images, area, "r00c00").tolist() == [True, False]
