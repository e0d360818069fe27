"""Which boxes are behind their inputs: those whose own images or fringe differ, and no others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from geo_assets.behind import BEHIND, features
from geo_assets.demo.grown import grown_city
from geo_assets.lake import BoxPartition, Lake
from geo_assets.reconstruct.images import images_around, inputs_digest
from geo_assets.settings import Settings
from geo_assets.tables import TABLES
from geo_assets_tests.reconstruct.lakes import metadata_row, write_box

CITY = grown_city(2)
SETTINGS = Settings(cities={"row": CITY})
WEST, EAST = BoxPartition(city="row", box="r00c00"), BoxPartition(city="row", box="r00c01")
STEP = CITY.grid.step_lon


def rows(where: BoxPartition, along: list[float], **known: Any) -> list[dict[str, Any]]:
    """Images of a box at shares of its width."""
    west = CITY.grid.bounds(where["box"]).west
    lat = CITY.grid.bounds(where["box"]).centre[1]
    return [
        metadata_row(f"{where['box']}{at:.3f}", lon=west + at * STEP, lat=lat, width=64, height=48, **known)
        for at in along
    ]


def put(lake: Lake, where: BoxPartition, along: list[float], **known: Any) -> None:
    images = rows(where, along, **known)
    write_box(lake, where["city"], where["box"], images, {r["image_id"]: r["image_id"].encode() for r in images})


def make(lake: Lake, where: BoxPartition) -> None:
    """What gps_db keeps of its inputs, without finding features."""
    images, _ = images_around(lake, where["city"], where["box"], CITY.grid, SETTINGS.reconstruct)
    row = dict.fromkeys(TABLES["gps_db"].column_names) | {"image_id": "a"}
    lake.write("gps_db", TABLES["gps_db"].frame([row]), note={"inputs": inputs_digest(images)}, **where)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path)
    for where in (WEST, EAST):
        put(lake, where, [0.1, 0.3, 0.5, 0.7, 0.9])
    for where in (WEST, EAST):
        assert features(lake, SETTINGS, where), "it was never made"
        make(lake, where)
    return lake


def behind(lake: Lake) -> list[bool]:
    return [features(lake, SETTINGS, where) for where in (WEST, EAST)]


def test_a_box_that_was_made_is_not_behind_and_a_harvest_of_the_same_changes_nothing(lake: Lake) -> None:
    assert behind(lake) == [False, False]
    put(lake, EAST, [0.1, 0.3, 0.5, 0.7, 0.9], quality_score=0.5, attribution="by others")
    assert behind(lake) == [False, False]


def test_a_new_image_far_from_the_border_leaves_the_neighbour_alone(lake: Lake) -> None:
    put(lake, EAST, [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
    assert behind(lake) == [False, True]


@pytest.mark.parametrize("along", [[0.1, 0.2, 0.3, 0.5, 0.7, 0.9], [0.3, 0.5, 0.7, 0.9]])
def test_a_fringe_that_changed_reaches_the_neighbour(lake: Lake, along: list[float]) -> None:
    put(lake, EAST, along)
    assert behind(lake) == [True, True]


def test_an_image_that_moved_or_was_deleted_counts(lake: Lake) -> None:
    put(lake, EAST, [0.1, 0.3, 0.5, 0.7, 0.9], computed_lon=None, altitude_m=4.0)
    assert behind(lake) == [True, True]
    make(lake, WEST)
    put(lake, EAST, [0.1, 0.3, 0.5, 0.7, 0.9], altitude_m=4.0, tombstoned_at=rows(EAST, [0])[0]["captured_at"])
    assert behind(lake) == [True, True], "a box that has lost all its images still has its old database"


def test_a_box_without_images_is_never_behind(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert not any(check(lake, SETTINGS, WEST) for check in BEHIND.values())
    put(lake, WEST, [])
    assert not any(check(lake, SETTINGS, WEST) for check in BEHIND.values())


def test_what_is_older_than_its_source_is_behind(lake: Lake) -> None:
    pairs, models, splat = (BEHIND[name] for name in ("match_pairs", "sparse_models", "splat_ply"))
    assert pairs(lake, SETTINGS, EAST) and not models(lake, SETTINGS, EAST)
    for table in ("match_pairs", "sparse_models", "splat_ply"):
        lake.write(table, TABLES[table].frame([dict.fromkeys(TABLES[table].column_names)]), note=None, **EAST)
    assert not any(check(lake, SETTINGS, EAST) for check in (pairs, models, splat))
    manifest = lake.key("models", "manifest.json", **EAST)
    lake.put_bytes(manifest, b"{}")
    assert splat(lake, SETTINGS, EAST), "models were published since"
    os.utime(lake.uri(manifest), (1e9, 1e9))
    assert not splat(lake, SETTINGS, EAST), "nothing changed the models"
