import textwrap
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from geo_assets.errors import ConfigError
from geo_assets.lake import Lake
from geo_assets.marts import SQL_FOLDER, read_models, run_model, sql_assets
from geo_assets.resources import LakeResource
from geo_assets.tables import TABLES, to_pandas


def rows(table: str, *records: dict) -> pd.DataFrame:
    """Rows of a table with the columns that matter; the others are missing."""
    columns = TABLES[table].column_names
    assert all(set(record) <= set(columns) for record in records)
    return pd.DataFrame(records).reindex(columns=columns).astype(object)


@pytest.fixture
def lake(tmp_path) -> Lake:
    """Two boxes of one city, one of them reconstructed, and a little of the geotag room."""
    lake = Lake(tmp_path / "lake")
    here: Any = {"city": "here", "box": "r00c00"}
    there: Any = {"city": "here", "box": "r00c01"}
    edges = {"west": 1.0, "east": 3.0, "south": 10.0, "north": 11.0}
    lake.write("bbox_partitions", rows("bbox_partitions", {**edges, "n_images": 4}), **here)
    lake.write("bbox_partitions", rows("bbox_partitions", {**edges, "n_images": 0}), **there)
    lake.write("certificates", rows("certificates", {"complete": True}), **here)
    images = [
        {"image_id": str(i), "sequence_id": "s", "lon": 1.0, "lat": 10.0, "creator_username": name, "licence": "CC BY-SA 4.0",
         "attribution": f"© {name}"}
        for i, name in enumerate(["ada", "ada", "bea", "bea", "bea"])
    ]  # fmt: skip
    lake.write("image_metadata", rows("image_metadata", *images), **here)
    states = ["done", "done", "done", "dead"]
    files = [
        {"image_id": str(i), "status": state, "bytes": 100, "reason": "it is empty" if state == "dead" else None}
        for i, state in enumerate(states)
    ]
    lake.write("image_files", rows("image_files", *files), **here)
    pairs = [{"image_id_a": "0", "image_id_b": str(i), "verified": i < 3} for i in (1, 2, 3)]
    pairs[2]["quarantine"] = "100 inliers at 200 m"
    lake.write("match_pairs", rows("match_pairs", *pairs), **here)
    models = [
        {"component": 0, "status": "placed", "n_home_images": 4, "n_registered": 5, "n_home_registered": 2, "gps_median_m": 0.5,
         "reprojection_px": 0.7, "route": "updated", "n_blocks": 2, "observations_per_image": 150.0, "border_m": 0.1,
         "focal_change": 0.02, "cpu_seconds": 10.0, "peak_mb": 300.0},
        {"component": 1, "status": "unplaced", "n_home_images": 4, "n_registered": 3, "n_home_registered": 1, "gps_median_m": 9.0,
         "reprojection_px": 0.9, "route": "rebuilt", "roll_deg": 40.0, "border_m": 9.0, "cpu_seconds": 2.5, "peak_mb": 200.0},
    ]  # fmt: skip
    lake.write("sparse_models", rows("sparse_models", *models), **here)
    splat = {"status": "trained", "init_psnr_db": 14.0, "psnr_db": 21.5, "ssim": 0.8}
    lake.write("splat_ply", rows("splat_ply", splat), **here)
    photos = [
        {"photo_id": str(i), "source": "placing_2016", "lon": float(i // 2), "lat": 0.5, "split": "train", "flags": []}
        for i in range(4)
    ]
    lake.write("geotag_combined", rows("geotag_combined", *photos))
    lake.write(
        "geotag_rejects",
        rows("geotag_rejects", {"file": "f", "row": "1", "reason": "r"}),
        source="placing_2016",
        part="shard_0",
    )
    cells = [{"level": 0, "cell_id": i, "n_photos": n, "n_points": 1, "mean_km": 2.0} for i, n in enumerate((1, 3))]
    cells += [{"level": 1, "cell_id": 0, "n_photos": 4, "n_points": 2, "mean_km": 9.0}]
    lake.write("hierarchy_centroids", rows("hierarchy_centroids", *cells))
    return lake


def materialize(lake: Lake, folder: Path = SQL_FOLDER) -> dg.ExecuteInProcessResult:
    return dg.materialize(sql_assets(folder), resources={"lake": LakeResource(root=lake.root)}, raise_on_error=False)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(asset)
    return {key: value.value for key, value in event.metadata.items()}


def mart(lake: Lake, name: str) -> pd.DataFrame:
    with lake.connect(name) as con:
        return to_pandas(con.sql(f"from {name}").to_arrow_table())


def test_the_marts_of_a_small_lake(lake):
    result = materialize(lake)
    assert result.success
    assert all(check.passed for check in result.get_asset_check_evaluations())
    coverage = mart(lake, "coverage").set_index("box")
    assert coverage.loc["r00c00", ["n_tile_images", "n_images", "n_files", "n_dead"]].tolist() == [4, 5, 3, 1]
    assert coverage.loc["r00c00", "share"] == 3 / 4 and pd.isna(coverage.loc["r00c01", "share"])
    credit = mart(lake, "attribution").set_index("creator")
    assert credit["n_images"].to_dict() == {"ada": 2, "bea": 1} and credit.loc["bea", "credit"] == "© bea"
    quality = mart(lake, "box_quality").set_index("box")
    assert quality.loc["r00c00", ["registered_share", "gps_median_m", "gain_db"]].tolist() == [0.75, 0.5, 7.5]
    assert quality["state"].tolist() == ["splat", "empty"]
    assert quality.loc["r00c00", ["status", "route", "n_blocks", "n_quarantined"]].tolist() == [
        "placed",
        "updated",
        2,
        1,
    ]
    assert quality.loc["r00c00", ["observations_per_image", "border_m", "focal_change"]].tolist() == [150.0, 0.1, 0.02]
    assert quality.loc["r00c00", ["cpu_seconds", "peak_mb"]].tolist() == [12.5, 300.0]
    # The largest component has no roll; that of another one does not stand in for it.
    assert pd.isna(quality.loc["r00c00", "roll_deg"]) and pd.isna(quality.loc["r00c01", "status"])
    sources = mart(lake, "geotag_sources")
    assert sources[["n_photos", "n_coordinates", "n_rejects"]].values.tolist() == [[4, 2, 1]]
    balance = mart(lake, "cell_balance")
    assert balance["gini"].tolist() == [0.25, 0.0] and balance["n_cells"].tolist() == [2, 1]


def test_marts_of_filtered_and_deleted_images(tmp_path):
    """Filters drop one of four images, one is deleted, and of the three wanted or there one file is dead."""
    lake = Lake(tmp_path / "lake")
    here: Any = {"city": "here", "box": "r00c00"}
    there: Any = {"city": "here", "box": "r00c01"}
    gone = pd.Timestamp("2025-01-01", tz="UTC")
    base = {"sequence_id": "s", "lon": 1.0, "lat": 10.0, "creator_username": "ada", "licence": "CC BY-SA 4.0"}
    images = [
        base | {"image_id": "1", "stratum": "urban"},
        base | {"image_id": "2"},
        base | {"image_id": "3", "dropped_by": "spacing"},
        base | {"image_id": "4", "dropped_by": "limit", "is_pano": True},
        base | {"image_id": "5", "tombstoned_at": gone, "sequence_id": "t", "creator_username": "eve"},
    ]
    lake.write("image_metadata", rows("image_metadata", *images), **here)
    lake.write("image_metadata", rows("image_metadata", base | {"image_id": "6"}), **there)
    files = [
        {"image_id": "1", "status": "done", "bytes": 100, "size": "2048"},
        {"image_id": "2", "status": "dead", "reason": "it is empty", "attempts": 4, "size": "2048"},
        {"image_id": "3", "status": "done", "bytes": 10, "size": "2048"},  # from a time before the filter
        {"image_id": "5", "status": "dead", "reason": "deleted", "attempts": 1, "size": "2048"},
    ]
    lake.write("image_files", rows("image_files", *files), **here)
    edges = {"west": 1.0, "east": 3.0, "south": 10.0, "north": 11.0}
    lake.write("bbox_partitions", rows("bbox_partitions", {**edges, "n_images": 9}), **here)
    lake.write("bbox_partitions", rows("bbox_partitions", {**edges, "n_images": 2}), **there)
    proof = {
        "complete": True, "n_tile_images": 3, "n_closure_added": 1, "n_audit_added": 0, "n_audit_again": 2, "n_images": 4,
        "n_tombstones": 1, "n_unresolved": 0, "n_audit_cells": 3, "n_audit_asks": 6, "n_estimated_missing": 0.5,
    }  # fmt: skip
    lake.write("certificates", rows("certificates", proof), **here)
    open_ = {"complete": False, "n_images": 1, "n_tombstones": 0, "n_unresolved": 3, "n_unclosed": 1}
    lake.write("certificates", rows("certificates", open_), **there)
    lake.write("sequence_ids", rows("sequence_ids", {"sequence_id": "s", "n_images": 7, "closed": True}), **here)
    for box, metres in ((here, 12.0), (there, 3.5)):
        line = rows("sequence_lines", {"sequence_id": "s", "n_images": 1, "length_m": metres})
        lake.write("sequence_lines", line, **box)
    result = materialize(lake)
    assert result.success
    assert all(check.passed for check in result.get_asset_check_evaluations())

    staged = mart(lake, "stg_images").set_index("image_id")
    assert staged["file_status"].to_dict() == {"1": "done", "2": "dead", "3": "done", "4": "dropped", "6": "missing"}
    assert staged.loc["1", "stratum"] == "urban" and staged.loc["3", "dropped_by"] == "spacing"
    coverage = mart(lake, "coverage").set_index("box")
    # The certificate is complete, so what the tiles count beyond it is not missing.
    assert coverage.loc["r00c00", ["n_images", "n_selected", "n_files", "n_dead", "share"]].tolist() == [4, 2, 1, 1, 1]
    assert coverage.loc["r00c01", ["n_images", "n_selected", "n_files", "share"]].tolist() == [1, 1, 0, 0]
    proofs = mart(lake, "harvest_completeness").set_index("box")
    assert proofs["state"].tolist() == ["complete", "incomplete"]
    assert proofs.loc["r00c00", ["share_audited", "asks_per_cell", "share_resolved"]].tolist() == [0.5, 2, 1]
    assert proofs.loc["r00c00", ["n_closure_added", "n_tombstones", "n_rows"]].tolist() == [1, 1, 4]
    assert proofs.loc["r00c01", ["n_unresolved", "n_unclosed", "n_open", "share_resolved"]].tolist() == [3, 1, 4, 0.25]
    letters = mart(lake, "dead_letters").set_index("image_id")
    assert letters["reason"].to_dict() == {"2": "it is empty", "5": "deleted"}
    assert letters["attempts"].tolist() == [4, 1] and letters["tombstoned_at"].notna().tolist() == [False, True]
    (sequence,) = mart(lake, "sequences").to_dict("records")
    assert sequence | {
        "sequence_id": "s", "n_boxes": 2, "n_images": 5, "n_listed": 7, "n_selected": 3, "n_files": 2, "n_panoramas": 1,
        "length_m": 15.5, "creator": "ada",
    } == sequence  # fmt: skip
    # Whatever lies in the lake is credited, also what a later filter dropped.
    assert mart(lake, "attribution")[["creator", "n_images"]].values.tolist() == [["ada", 2]]


def test_a_certificate_that_contradicts_itself_fails_its_check(lake):
    proof = rows("certificates", {"complete": True, "n_unresolved": 2, "n_images": 5, "n_tombstones": 0})
    lake.write("certificates", proof, city="here", box="r00c00")
    result = materialize(lake)
    failed = [check.check_name for check in result.get_asset_check_evaluations() if not check.passed]
    assert failed == ["n_open_is_0_or_not_complete"] and not result.success


def test_the_ui_is_told_columns_lineage_and_rows(lake):
    result = materialize(lake)
    facts = metadata(result, "box_quality")
    assert facts["dagster/row_count"] == 2
    schema = facts["dagster/column_schema"]
    assert {c.name: c.description for c in schema.columns}["gps_median_m"].endswith("[m].")
    lineage = facts["dagster/column_lineage"].deps_by_column
    assert {(d.asset_key.to_user_string(), d.column_name) for d in lineage["gain_db"]} == {
        ("splat_ply", "psnr_db"),
        ("splat_ply", "init_psnr_db"),
    }
    complete = metadata(result, "stg_boxes")["dagster/column_lineage"].deps_by_column["complete"]
    # The table is written by another asset than its name says.
    assert [(d.asset_key.to_user_string(), d.column_name) for d in complete] == [("image_metadata", "complete")]


def test_a_young_lake_gives_empty_marts(tmp_path):
    lake = Lake(tmp_path / "lake")
    result = materialize(lake)
    assert result.success
    for model in read_models():
        assert len(mart(lake, model.name)) == 0
        assert len(metadata(result, model.name)["dagster/column_schema"].columns) == len(model.columns)


def test_dependencies_are_assets(lake):
    assets = {asset.key.to_user_string(): asset for asset in sql_assets()}
    deps = {d.to_user_string() for d in assets["stg_boxes"].asset_deps[dg.AssetKey("stg_boxes")]}
    assert deps == {"bbox_partitions", "image_metadata", "stg_images"}
    (spec,) = assets["stg_images"].specs
    assert spec.group_name == "staging" and spec.code_version
    assert {type(d.partition_mapping) for d in spec.deps} == {dg.AllPartitionMapping}


def write_models(folder: Path, **queries: str) -> Path:
    """Models of a folder; a header documents the columns that the query does not."""
    for name, text in queries.items():
        path = folder / "marts" / f"{name}.sql"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return folder


GOOD = """
    -- Boxes.
    -- box: The box.
    select box from splat_ply
"""


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "-- A.\n-- box: The box.\nselect box\nfrom splat_ply where\n",
            r"marts/bad\.sql, line 4: syntax error at or near",
        ),
        (
            "-- A.\n-- box: The box.\nselect box from\nwhere true",
            r"marts/bad\.sql, line 4: syntax error at or near \"where\"",
        ),
        (
            "-- A.\n-- box: The box.\nselect\n  boxx as box\nfrom splat_ply",
            r"marts/bad\.sql, line 4: .*\"boxx\" not found",
        ),
        (
            "-- A.\n-- box: The box.\nselect box\nfrom splat_plyy",
            r"marts/bad\.sql, line 4: no table .* Did you mean splat_ply\?",
        ),
        (
            "-- A.\n-- box: The box.\n-- gone: Gone.\nselect box from splat_ply",
            "documents gone, which the result lacks",
        ),
        ("-- A.\n-- box: The box.\nselect box, city from splat_ply", "does not document city"),
        ("-- A.\n-- box: The box.\n-- check: boxx > 1\nselect box from splat_ply", "check 'boxx > 1': .*boxx"),
        ("-- A.\n-- box: The box.\nselect box from splat_ply; select 1", "2 statements. A model is one select"),
        ("-- A.\ndrop table x", r"marts/bad\.sql.*one select statement"),
        ("-- A.\n-- box: The box.\nselect box from bad", "in a circle: bad reads bad"),
    ],
)
def test_a_bad_model_is_one_clear_message(tmp_path, query, message):
    with pytest.raises(ConfigError, match=message):
        sql_assets(write_models(tmp_path, good=GOOD, bad=query))


def test_a_circle_names_its_models(tmp_path):
    folder = write_models(
        tmp_path,
        one="-- A.\n-- box: The box.\nselect box from two\n",
        two="-- A.\n-- box: The box.\nselect box from one\n",
    )
    with pytest.raises(ConfigError, match=r"in a circle: (one reads two reads one|two reads one reads two)"):
        sql_assets(folder)


def test_a_name_that_is_a_table_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"marts/splat_ply\.sql: the name is taken by the table splat_ply"):
        sql_assets(write_models(tmp_path, splat_ply=GOOD))


def test_a_folder_without_models_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="No SQL model"):
        sql_assets(tmp_path)


def test_a_failed_check_stops_what_is_below(lake, tmp_path):
    folder = write_models(
        tmp_path / "sql",
        upper="-- A.\n-- box: The box.\n-- check: box <> 'r00c00'\nselect box from splat_ply\n",
        lower="-- B.\n-- box: The box.\nselect box from upper\n",
    )
    result = materialize(lake, folder)
    assert not result.success
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed) == ("box_is_not_r00c00", False)
    assert check.metadata["n_bad"].value == 1
    assert result.asset_materializations_for_node("lower") == []


def test_its_own_parts_are_no_inputs(tmp_path):
    query = "-- A.\n-- n: Rows.\nwith splat_views as (select * from splat_ply) select count(*) as n from splat_views\n"
    (model,) = read_models(write_models(tmp_path, only=query))
    assert model.parents == ("splat_ply",)


def test_data_that_the_query_cannot_take_names_the_file(lake, tmp_path):
    query = "-- A.\n-- n: Number.\nselect\n  status::int as n from splat_ply\n"
    (model,) = read_models(write_models(tmp_path, only=query))
    with pytest.raises(ConfigError, match=r"marts/only\.sql.*trained"):
        run_model(model, lake)


def test_an_input_that_was_never_made_says_what_to_make(tmp_path):
    folder = write_models(tmp_path / "sql", upper=GOOD, lower="-- B.\n-- box: The box.\nselect box from upper\n")
    lower = next(model for model in read_models(folder) if model.name == "lower")
    with pytest.raises(Exception, match="upper has no data yet"):
        run_model(lower, Lake(tmp_path / "lake"))
