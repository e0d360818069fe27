import datetime as dt
import json
from pathlib import Path

import pandas as pd
import pytest

from geo_assets.grid import Grid
from geo_assets.harvest import certificate as certificates
from geo_assets.harvest.certificate import certificate, summary
from geo_assets.harvest.metadata import FIELDS, altitude, attribution, belongs, capture_time, heading, point, row, rows
from geo_assets.tables import TABLES

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("value", "metres"),
    [(4294967281, -15.0), (-3.5, -3.5), (8848, 8848.0), (None, None), ("12", None), (float("nan"), None), (True, None)],
)
def test_altitudes(value: object, metres: float | None) -> None:
    assert altitude(value) == metres


@pytest.mark.parametrize(
    ("ms", "year"),
    [(1563721072184, 2019), (0, None), (-5, None), (1e18, None), (4102444800000, None), ("x", None), (None, None)],
)
def test_implausible_clocks_are_not_believed(ms: object, year: int | None) -> None:
    time = capture_time(ms, NOW)
    assert (time.year if time else None) == year


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
    assert [heading(v) for v in (-10, 370, 0, None)] == [350.0, 10.0, 0.0, None]


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


def test_no_answers_are_an_empty_table() -> None:
    assert TABLES["image_metadata"].conform(rows([], NOW)).num_rows == 0


def test_recorded_images(real_data: Path) -> None:
    entity = json.loads((real_data / "mapillary/graph/135511895288847.json").read_text())
    record = row(entity, NOW)
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
    homes = {box: belongs(images, grid, box).tolist() for box in grid}
    on_the_edge = grid.box_at(11.0 + step, 48.0)
    assert homes["r00c00"] == [True, False, on_the_edge == "r00c00", True, False]
    assert homes["r00c01"] == [False, True, on_the_edge == "r00c01", False, False]
    assert [sum(box[i] for box in homes.values()) for i in range(5)] == [1, 1, 1, 1, 0]


def test_the_polygon_of_the_city_drops_what_lies_outside(tmp_path: Path) -> None:
    path = tmp_path / "aoi.geojson"
    ring = [[11.0, 48.0], [11.001, 48.0], [11.0, 48.001], [11.0, 48.0]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    images = frame(image_id=["a", "b"], lon=[11.0002, 11.0009], lat=[48.0002, 48.0008])
    assert belongs(images, Grid(11.0, 48.0, 200.0, 1, 1), "r00c00", path).tolist() == [True, False]


CANDIDATES = pd.DataFrame(
    {
        "image_id": ["a", "b", "c", "d"],
        "sequence_id": ["s", "s", "t", "t"],
        "in_tiles": [True, False, False, True],
        "in_computed": [False, False, False, True],
        "in_closure": [True, True, False, True],
        "in_audit": [True, False, True, True],
    }
)
SEQUENCES = pd.DataFrame({"sequence_id": ["s", "t"], "closed": [True, True]})


@pytest.mark.parametrize(
    ("unresolved", "unverifiable", "closed", "complete"),
    [([], 0, True, True), (["x"], 0, True, False), ([], 1, True, False), ([], 0, False, False)],
)
def test_a_certificate_is_complete_only_if_nothing_is_left(
    unresolved: list, unverifiable: int, closed: bool, complete: bool
) -> None:
    images = frame(image_id=["a", "b", "c"], sequence_id=["s", "s", "t"])
    proof = certificate(
        CANDIDATES,
        SEQUENCES.assign(closed=[True, closed]),
        images,
        tombstones=["d"],
        unresolved=unresolved,
        figures={"n_tiles": 2, "n_audit_cells": 5, "n_unverifiable": unverifiable},
        fetched_at=NOW,
    )
    TABLES["certificates"].conform(proof)
    said = summary(proof)
    assert (said["n_tile_images"], said["n_closure_added"], said["n_audit_added"]) == (1, 1, 1)
    assert (said["n_images"], said["n_tombstones"], said["complete"]) == (3, 1, complete)
    assert said["certificate"].startswith("Complete: 3 images" if complete else "Incomplete: 1 ")


def test_no_certificate_is_no_accusation() -> None:
    assert certificates.summary(TABLES["certificates"].empty())["complete"]
