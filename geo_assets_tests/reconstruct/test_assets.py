from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from geo_assets.lake import Lake
from geo_assets.partitions import city_boxes, partition_key
from geo_assets.reconstruct.assets import gps_db, match_pairs, sparse_models
from geo_assets.reconstruct.checks import CHECKS, borders_agree, model_gates, share_verdict
from geo_assets.resources import LakeResource
from geo_assets.tables import TABLES
from geo_assets_tests.reconstruct.test_models import image_rows, pair_rows

HEAVY = ("pycolmap", "scipy", "matplotlib", "numba", "sklearn", "hdbscan", "geopandas", "PIL")


BOX_ASSETS = (gps_db, match_pairs, sparse_models)
BOX_CHECKS = tuple(check for check in CHECKS if check is not borders_agree)


def materialize(lake: Path, box: str = "r00c00") -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [*BOX_ASSETS, *BOX_CHECKS],
        partition_key=partition_key("demo", box),
        resources={"lake": LakeResource(root=str(lake))},
        raise_on_error=False,
    )


def empty_harvest(lake: Path) -> None:
    for table in ("image_metadata", "image_files"):
        Lake(lake).write(table, TABLES[table].empty(), city="demo", box="r00c00")


def test_importing_the_room_costs_nothing():
    modules = "geo_assets.reconstruct.assets, geo_assets.reconstruct.checks"
    code = f"import sys, {modules}; print([m for m in {HEAVY} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_a_box_without_images_is_an_empty_partition_that_passes_its_checks(tmp_path: Path):
    empty_harvest(tmp_path)
    result = materialize(tmp_path)
    assert result.success
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    wanted = {key for definition in (*BOX_ASSETS, *BOX_CHECKS) for key in definition.check_keys}
    assert {e.asset_check_key for e in result.get_asset_check_evaluations()} == wanted
    for name in ("gps_db", "match_pairs", "sparse_models"):
        metadata = result.asset_materializations_for_node(name)[0].metadata
        assert metadata["n_images"].value == 0 and metadata["dagster/row_count"].value == 0


def test_a_box_outside_the_grid_is_an_empty_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from geo_assets.partitions import BoxKey

    monkeypatch.setattr(BoxKey, "in_grid", property(lambda _: False))
    result = materialize(tmp_path)
    assert result.success and Lake(tmp_path).read("model_cameras", None, city="demo", box="r00c00").empty


def test_a_box_that_was_not_harvested_fails_with_what_to_do(tmp_path: Path):
    result = materialize(tmp_path)
    assert not result.success
    failure = result.failure_data_for_node("gps_db")
    assert failure is not None and failure.user_failure_data is not None
    assert "--select image_" in str(failure.user_failure_data.description)


def test_neighbours_are_upstream():
    for asset, upstream in ((gps_db, "image_files"), (match_pairs, "gps_db")):
        (dep,) = [d for d in next(iter(asset.specs)).deps if d.asset_key == dg.AssetKey(upstream)]
        assert dep.partition_mapping is not None


@pytest.mark.parametrize(
    "registered, passed, severity",
    [(9, True, None), (7, False, dg.AssetCheckSeverity.WARN), (3, False, dg.AssetCheckSeverity.ERROR)],
)
def test_the_registered_share_warns_before_it_fails(
    registered: int, passed: bool, severity: dg.AssetCheckSeverity | None
):
    row = {"status": "placed", "n_home_images": 10, "n_home_registered": registered}
    lost = {"status": "unplaced", "n_home_images": 10, "n_home_registered": 10 - registered}
    verdict = share_verdict(pd.DataFrame([row, lost]))
    assert verdict.passed == passed
    assert severity is None or verdict.severity == severity


def test_too_few_images_are_no_failure(tmp_path: Path):
    lake, where = Lake(tmp_path), {"city": "demo", "box": "r00c00"}
    lake.write("gps_db", image_rows(3), note={"origin": [11.5, 48.1, 500.0]}, **where)
    lake.write("match_pairs", pair_rows([(0, 1), (1, 2)]), note=None, **where)
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            [*BOX_ASSETS, *BOX_CHECKS],
            selection=dg.AssetSelection.assets(sparse_models),
            partition_key=partition_key("demo", "r00c00"),
            resources={"lake": LakeResource(root=str(tmp_path))},
            instance=instance,
        )
    assert result.success
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    assert lake.read("sparse_models", None, **where).status.tolist() == ["too_few"]


@pytest.mark.parametrize(("registered", "roll_deg", "follows"), [(10, 0.0, True), (3, 0.0, False), (10, 9.0, True)])
def test_nothing_is_trained_on_a_model_in_pieces(tmp_path: Path, registered: int, roll_deg: float, follows: bool):
    @dg.asset(deps=[sparse_models], partitions_def=city_boxes)
    def trained() -> None:
        pass

    row = {"component": 0, "status": "placed", "n_home_images": 10, "n_home_registered": registered}
    frame = TABLES["sparse_models"].frame([row | {"roll_deg": roll_deg}])
    Lake(tmp_path).write("sparse_models", frame, city="demo", box="r00c00")
    result = dg.materialize(
        [*BOX_ASSETS, trained, *BOX_CHECKS],
        selection=dg.AssetSelection.assets(trained) | dg.AssetSelection.checks(model_gates),
        partition_key=partition_key("demo", "r00c00"),
        resources={"lake": LakeResource(root=str(tmp_path))},
        raise_on_error=False,
    )
    said = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    assert said["registered_share"] == (registered == 10) and said["cameras_are_level"] == (roll_deg < 3)
    assert bool(result.asset_materializations_for_node("trained")) == follows == result.success
