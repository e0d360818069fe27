"""Rules of tables: each holds of a good table, and each is broken by a broken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from geo_assets import rules
from geo_assets.geotag import rules as geotag
from geo_assets.harvest import rules as harvest
from geo_assets.lake import BoxPartition, Lake
from geo_assets.marts import RECORDS_ADD_UP
from geo_assets.partitions import settings
from geo_assets.reconstruct.rules import CITY_MODEL_STANDS
from geo_assets.rules import Finding, Rule, key_faults, schema_faults
from geo_assets.splats.rules import SCENE_IS_WHOLE
from geo_assets.tables import TABLES

BOX = BoxPartition(city="demo", box="r00c00")
PART = {"city": "demo", "box": "r00c00"}
CITY = {"city": "demo"}
BOUNDS = settings.city("demo").grid.bounds("r00c00")


def rows(table: str, *records: dict[str, Any]) -> pd.DataFrame:
    """Rows in which what is not said is something plausible."""
    plain = {"string": "x", "bool": True, "int": 1, "float": 1.0, "time": pd.Timestamp(0, tz="UTC"), "binary": b""}
    fill = {c.name: plain.get(c.type, []) for c in TABLES[table].columns}
    return pd.DataFrame([fill | record for record in records], columns=TABLES[table].column_names)


def test_what_was_written_has_its_columns(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    for table in TABLES.values():
        part = dict.fromkeys(table.partition, "demo")
        lake.write(table.name, rows(table.name, {}), note=None, **part)
        assert schema_faults(lake, table.name, part).passed, table.name
        lake.write(table.name, table.empty(), note=None, **part)
        assert all(rule.find(lake, part).passed for rule in rules.table_rules([table.name])), table.name


def test_other_columns_and_types_are_named(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    good = TABLES["sequence_ids"].conform(rows("sequence_ids", {}))
    lake.write_arrow("sequence_ids", good, **BOX)
    at = good.schema.get_field_index("n_images")
    bad = good.set_column(at, "n_images", pa.array([1.5])).drop_columns(["closed"]).append_column("more", pa.array([1]))
    lake.write_arrow("sequence_ids", bad, **BOX)
    assert schema_faults(lake, "sequence_ids", PART).faults == {
        "missing": ["sequence_ids.closed"],
        "unknown": ["sequence_ids.more"],
        "of_another_type": ["sequence_ids.n_images: double"],
    }


def test_duckdb_times_and_lists_are_as_good(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.write("google_landmark", rows("google_landmark", {"flags": ["unclean"]}))
    with lake.connect("google_landmark") as con:
        lake.write_query(con, "flickr_geotag", "select * from google_landmark")
    assert schema_faults(lake, "flickr_geotag", {}).passed


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_rows_of_the_same_key_are_counted_across_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.setattr(rules, "ROWS_AT_A_TIME", n)
    lake = Lake(tmp_path)
    ids = ["a", "b", "b", "c", "c", "c", "d"]
    lake.write("image_metadata", rows("image_metadata", *({"image_id": i} for i in ids)), **BOX)
    assert key_faults(lake, "image_metadata", PART).faults == {"image_metadata_again": 3}
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("b", "c")]
    frame = rows("match_pairs", *({"image_id_a": a, "image_id_b": b} for a, b in pairs))
    lake.write("match_pairs", frame, **BOX)
    assert key_faults(lake, "match_pairs", PART).faults == {"match_pairs_again": 1}


def test_a_missing_part_of_a_key_is_a_value(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.write("image_files", rows("image_files", {"image_id": None}, {"image_id": None}, {"image_id": "a"}), **BOX)
    assert key_faults(lake, "image_files", PART).faults == {"image_files_again": 1}


def test_one_row_and_keys_that_rows_are_not_sorted_by(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.write("splat_ply", rows("splat_ply", {}, {}, {}), **BOX)
    assert key_faults(lake, "splat_ply", PART).faults == {"splat_ply_again": 2}
    cells = [{"level": 1, "cell_id": 0}, {"level": 0, "cell_id": 0}, {"level": 1, "cell_id": 0}]
    lake.write("hierarchical_structure", rows("hierarchical_structure", *cells))
    assert key_faults(lake, "hierarchical_structure", {}).faults == {"hierarchical_structure_again": 1}
    assert TABLES["placing_2016"].key is None and len(rules.table_rules(["placing_2016"])) == 1


def test_findings_add_up() -> None:
    both = Finding({"n": 1, "names": ["a"]}) + Finding({"n": 2, "names": ["b"], "other": 0}, {"rows": 3})
    assert both == Finding({"n": 3, "names": ["a", "b"], "other": 0}, {"rows": 3})
    assert not both.passed and Finding({"n": 0, "names": []}).passed


EDGES = {"west": BOUNDS.west, "south": BOUNDS.south, "east": BOUNDS.east, "north": BOUNDS.north}


def line(*points: tuple[float, float]) -> bytes:
    import shapely

    return shapely.to_wkb(shapely.LineString(points))


INSIDE = line((BOUNDS.west, BOUNDS.south), BOUNDS.centre)
OUTSIDE = line(BOUNDS.centre, (BOUNDS.east + 0.01, BOUNDS.north))
PHOTO = {"photo_id": "1", "source": "google_landmark", "lon": 11.5, "lat": 48.1}
PLACE = {"point_id": 0, "lon": 11.5, "lat": 48.1, "n_photos": 5}
Change = tuple[str, dict[str, Any], str]

CASES: dict[str, tuple[Rule, dict[str, str], dict[str, list[dict[str, Any]]], list[Change]]] = {
    "bbox_partitions": (
        harvest.BOX_IN_PLACE,
        PART,
        {"bbox_partitions": [EDGES]},
        [
            ("bbox_partitions", {"west": BOUNDS.west - 0.001}, "edges_elsewhere"),
            ("bbox_partitions", {"n_sequences": 2}, "sequences_too_many"),
            ("bbox_partitions", {"coverage_hash": ""}, "without_hash"),
        ],
    ),
    "sequence_ids": (
        harvest.SEQUENCES_LISTED,
        PART,
        {"sequence_ids": [{"sequence_id": "s"}], "sequence_images": [{"sequence_id": "s"}]},
        [("sequence_ids", {"sequence_id": "t"}, "images_of_unlisted_sequences")],
    ),
    "sequence_paths": (
        harvest.LINES_IN_BOX,
        PART,
        {"sequence_paths": [{"geometry": INSIDE}]},
        [
            ("sequence_paths", {"geometry": OUTSIDE}, "lines_outside"),
            ("sequence_paths", {"length_m": float("nan")}, "lengths_below_0"),
        ],
    ),
    "city_certificates": (
        harvest.CITY_COMPLETE,
        CITY,
        {"city_certificates": [{"n_boxes": 4, "n_complete": 4}]},
        [("city_certificates", {"n_complete": 3}, "boxes_incomplete")],
    ),
    "city_model": (
        CITY_MODEL_STANDS,
        CITY,
        {"city_model": [{"path": "files/there"}]},
        [
            ("city_model", {"path": "files/gone"}, "models_missing"),
            ("city_model", {"reprojection_px": 2.0}, "above_1.5_px"),
            ("city_model", {"origin_lon": float("nan")}, "without_place"),
        ],
    ),
    "splat_city": (
        SCENE_IS_WHOLE,
        CITY,
        {"splat_city": [{"path": "files/there"}]},
        [
            ("splat_city", {"path": "files/gone"}, "splats_missing"),
            ("splat_city", {"n_pieces": 0}, "boxes_without_pieces"),
        ],
    ),
    "google_landmark": (
        geotag.photos_on_globe("google_landmark"),
        {},
        {"google_landmark": [PHOTO]},
        [
            ("google_landmark", {"lat": 91.0}, "off_globe"),
            ("google_landmark", {"lon": float("nan")}, "off_globe"),
            ("google_landmark", {"source": "flickr_geotag"}, "of_another_source"),
            ("google_landmark", {"photo_id": ""}, "without_id"),
        ],
    ),
    "landmark_coordinates": (
        geotag.LANDMARKS_PLACED,
        {"part": "a"},
        {"landmark_coordinates": [{"status": "found"}]},
        [
            ("landmark_coordinates", {"lon": None}, "found_nowhere"),
            ("landmark_coordinates", {"status": "missing"}, "placed_but_not_found"),
            ("landmark_coordinates", {"status": "lost"}, "of_unknown_status"),
        ],
    ),
    "hdbscan_model": (
        geotag.PLACES_CLUSTERED,
        {},
        {"geotag_points": [PLACE], "hdbscan_model": [PLACE]},
        [
            ("hdbscan_model", {"point_id": 1}, "places_missing_or_moved"),
            ("hdbscan_model", {"lon": 11.0}, "places_missing_or_moved"),
            ("hdbscan_model", {"probability": 1.5}, "memberships_off"),
            ("hdbscan_model", {"cluster": -2}, "memberships_off"),
        ],
    ),
    "s2_cells": (
        geotag.cut_cell_faults("s2_cells"),
        {},
        {"geotag_points": [PLACE], "s2_cells": [{"cell_id": "479c", "cuts": 6}, {"cell_id": "47a4", "cuts": 6}]},
        [
            ("s2_cells", {"cell_id": "479d", "cuts": 7}, "inside_another"),
            ("s2_cells", {"n_photos": 5}, "photos_too_many"),
            ("s2_cells", {"lat": 100.0}, "centres_off_globe"),
        ],
    ),
    "quadtree_cells": (
        geotag.cut_cell_faults("quadtree_cells"),
        {},
        {"geotag_points": [PLACE], "quadtree_cells": [{"cell_id": "0"}, {"cell_id": "12"}]},
        [("quadtree_cells", {"cell_id": "01"}, "inside_another")],
    ),
    "place_tiles": (
        geotag.PLACES_IN_TILES,
        {},
        {"geotag_points": [PLACE], "place_tiles": [{"tile": "a"}]},
        [("place_tiles", {"n_points": 2}, "places_astray")],
    ),
    "tile_trees": (
        geotag.of_its_tile("tile_trees", "n_open > n_points"),
        {"tile": "a"},
        {"place_tiles": [{"tile": "a"}], "tile_trees": [{}]},
        [("tile_trees", {"n_points": 2}, "places_astray"), ("tile_trees", {"n_open": 3}, "impossible")],
    ),
    "run_records": (
        RECORDS_ADD_UP,
        {},
        {"run_records": [{"status": "done"}]},
        [
            ("run_records", {"status": "lost"}, "of_unknown_status"),
            ("run_records", {"seconds": -1.0}, "ended_before"),
        ],
    ),
}


def put(lake: Lake, tables: dict[str, list[dict[str, Any]]], partition: dict[str, str]) -> None:
    for table, records in tables.items():
        lake.write(table, rows(table, *records), note=None, **(partition if TABLES[table].partition else {}))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path)
    lake.put_bytes("files/there/model", b"")
    for page in ("tileset.json", "index.html", "globe.html"):
        lake.put_bytes(lake.key("splats_city", page, city="demo"), b"")
    return lake


@pytest.mark.parametrize("name", CASES)
def test_a_good_table_keeps_its_rule_and_a_broken_one_does_not(lake: Lake, name: str) -> None:
    rule, partition, good, changes = CASES[name]
    put(lake, good, partition)
    assert rule.find(lake, partition).passed, rule.find(lake, partition)
    for table, change, fault in changes:
        last = good[table][-1] | change
        put(lake, good | {table: [*good[table][:-1], last]}, partition)
        found = rule.find(lake, partition)
        assert found.faults[fault], (table, change, found)
    for table in good:
        lake.write(table, TABLES[table].empty(), note=None, **(partition if TABLES[table].partition else {}))
    if name not in ("bbox_partitions", "city_certificates"):  # they always have a row
        assert rule.find(lake, partition).passed, "what is empty breaks no rule"


def test_a_page_of_the_scene_is_missing(lake: Lake) -> None:
    _, partition, good, _ = CASES["splat_city"]
    put(lake, good, partition)
    lake.remove(lake.key("splats_city", "globe.html", city="demo"))
    assert SCENE_IS_WHOLE.find(lake, partition).faults["pages_missing"] == ["globe.html"]
