from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from geo_assets.cli import main
from geo_assets.lake import Lake
from geo_assets.marts import run_records, sql_assets
from geo_assets.partitions import boxes_of_city, cities
from geo_assets.resources import LakeResource
from geo_assets.sql_models import SQL_FOLDER
from geo_assets_tests.sql_lake import make_all, mart, small_lake, write_models

HEAD = "-- A.\n-- box: The box.\n"


@pytest.fixture
def lake(tmp_path) -> Lake:
    return small_lake(tmp_path / "lake")


@pytest.fixture(scope="module")
def assets() -> dict[str, dg.AssetsDefinition]:
    return {asset.key.to_user_string(): asset for asset in sql_assets(SQL_FOLDER)}


def materialize(lake: Lake, *made: dg.AssetsDefinition, city: str | None = None) -> dg.ExecuteInProcessResult:
    resources = {"lake": LakeResource(root=lake.root)}
    return dg.materialize(made, resources=resources, raise_on_error=False, partition_key=city)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(asset)
    return {key: value.value for key, value in event.metadata.items()}


def test_the_ui_is_told_columns_lineage_and_rows(lake, assets):
    make_all(lake, "stg_images")
    result = materialize(lake, assets["stg_boxes"], assets["box_quality"], city="demo")
    assert result.success and all(check.passed for check in result.get_asset_check_evaluations())
    facts = metadata(result, "box_quality")
    assert facts["dagster/row_count"] == 2 and facts["dagster/uri"].endswith("/box_quality/city=demo/data.parquet")
    schema = facts["dagster/column_schema"]
    assert [c.name for c in schema.columns][:2] == ["city", "box"]
    assert {c.name: c.description for c in schema.columns}["gps_median_m"].endswith("[m].")
    lineage = facts["dagster/column_lineage"].deps_by_column
    assert {(d.asset_key.to_user_string(), d.column_name) for d in lineage["gain_db"]} == {
        ("splat_ply", "psnr_db"),
        ("splat_ply", "init_psnr_db"),
    }
    # The same to read, for the UI draws no lineage of columns.
    assert "| `gain_db` | splat_ply.init_psnr_db, splat_ply.psnr_db |" in facts["made_of"].splitlines()
    assert "| `n_pairs` | no column |" in facts["made_of"].splitlines()
    complete = metadata(result, "stg_boxes")["dagster/column_lineage"].deps_by_column["complete"]
    # The table is written by another asset than its name says.
    assert [(d.asset_key.to_user_string(), d.column_name) for d in complete] == [("image_metadata", "complete")]


def test_a_table_of_several_assets_comes_from_each(lake, assets):
    lineage = metadata(materialize(lake, assets["geotag_sources"]), "geotag_sources")["dagster/column_lineage"]
    found = {(d.asset_key.to_user_string(), d.column_name) for d in lineage.deps_by_column["source"]}
    assert found >= {("placing_2016", "source"), ("flickr_geotag", "source"), ("geotag_combined", "source")}


def test_dependencies_are_assets_and_parts_map(assets):
    (boxes,), (images,) = assets["stg_boxes"].specs, assets["stg_images"].specs
    assert {d.asset_key.to_user_string() for d in boxes.deps} == {"bbox_partitions", "image_metadata", "stg_images"}
    assert images.group_name == "staging" and images.code_version and images.partitions_def == cities
    assert [d.partition_mapping for d in images.deps] == [boxes_of_city] * 2
    (balance,) = assets["cell_balance"].specs
    assert balance.partitions_def is None and [d.partition_mapping for d in balance.deps] == [None]


def test_a_failed_check_shows_its_rows_and_stops_what_is_below(lake, tmp_path):
    folder = write_models(
        tmp_path / "sql",
        upper=HEAD
        + "-- check: box <> 'r00c00'\n-- test (warn): accepted_values(box, 'x')\nselect box from splat_ply\n",
        lower="-- B.\n-- box: The box.\nselect box from upper\n",
    )
    result = materialize(lake, *sql_assets(folder))
    assert not result.success
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    blocking, warning = checks["box_is_not_r00c00"], checks["accepted_values_box"]
    assert not blocking.passed and not warning.passed
    assert (blocking.severity, warning.severity) == (dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN)
    assert blocking.metadata["n_bad"].value == 1
    assert blocking.metadata["first_bad_rows"].value == "| box |\n| --- |\n| r00c00 |"
    assert result.asset_materializations_for_node("lower") == []


def test_a_warning_stops_nothing(lake, tmp_path):
    folder = write_models(
        tmp_path / "sql",
        upper=HEAD + "-- test (warn): accepted_values(box, 'x')\nselect box from splat_ply\n",
        lower="-- B.\n-- box: The box.\nselect box from upper\n",
    )
    result = materialize(lake, *sql_assets(folder))
    assert result.success and mart(lake, "lower")["box"].tolist() == ["r00c00"]


def test_a_model_by_box_is_an_asset_of_boxes(lake, tmp_path):
    query = "-- A.\n-- partition: city, box\n-- city: C.\n-- box: B.\n-- n: N.\nselect city, box, 1 as n from image_metadata\n"
    (asset,) = sql_assets(write_models(tmp_path / "sql", per_box=query))
    result = materialize(lake, asset, city=dg.MultiPartitionKey({"city": "demo", "box": "r00c00"}))
    assert result.success and len(mart(lake, "per_box")) == 5
    assert metadata(result, "per_box")["unchanged"] is False


def test_run_records_grow_into_the_cost(lake, assets):
    with dg.DagsterInstance.ephemeral() as instance:
        resources = {"lake": LakeResource(root=lake.root)}
        dg.materialize([assets["stg_images"]], resources=resources, partition_key="demo", instance=instance)
        for _ in range(2):  # the second one finds the first
            assert dg.materialize([run_records, assets["cost"]], resources=resources, instance=instance).success
    cost = mart(lake, "cost").set_index("asset")
    assert cost.loc["stg_images", "city"] == "demo" and cost.loc["stg_images", "n_runs"] == 1
    assert cost.loc["run_records", "n_runs"] == 1 and cost.loc["stg_images", "bytes"] > 0


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (
            {"mine": HEAD + "select box\nfrom coverage where\n"},
            "dbt_like_sql/marts/mine.sql, line 4: syntax error at or near",
        ),
        (
            {"mine": HEAD + "select box from yours\n", "yours": HEAD + "select box from mine\n"},
            "line 3: the models read one another in a circle: ",
        ),
        (
            {"mine": HEAD + "select\n  bx as box\nfrom coverage\n"},
            'dbt_like_sql/marts/mine.sql, line 4: Binder Error: Referenced column "bx" not found in FROM clause! '
            'Candidate bindings: "box"',
        ),
    ],
    ids=["error", "cycle", "unknown column"],
)
def test_the_command_line_says_what_is_wrong_with_a_model(tmp_path: Path, monkeypatch, queries, message):
    monkeypatch.setenv("GEO_ASSETS_SETTINGS", str(tmp_path / "geo_assets.toml"))
    write_models(tmp_path / "dbt_like_sql", **queries)
    said = CliRunner().invoke(main, ["definitions"])
    assert said.exit_code == 1 and "Traceback" not in said.output
    assert said.output.startswith("Error: dbt_like_sql/marts/") and message in said.output
    assert len(said.output.strip().splitlines()) == 1
