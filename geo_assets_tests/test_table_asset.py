"""Rules become checks of the same step: what follows waits for them, in one partition as in many."""

from pathlib import Path

import dagster as dg

from geo_assets.lake import Lake
from geo_assets.partitions import city_boxes, partition_key
from geo_assets.resources import LakeResource
from geo_assets.rules import Finding, Rule
from geo_assets.table_asset import table_asset
from geo_assets.tables import TABLES

SHARDS = dg.StaticPartitionsDefinition(["a", "b"])
WARNS = Rule(
    "warns", "Nothing holds.", lambda lake, partition: Finding({"n": 1}, {"of": dict(partition)}), blocking=False
)


def verdicts(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


def run(lake: Path, ids: list[str], with_rules: tuple[Rule, ...] = ()) -> dg.ExecuteInProcessResult:
    @table_asset(*with_rules, partitions_def=city_boxes)
    def sequence_ids(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        frame = TABLES["sequence_ids"].frame([{"sequence_id": i, "closed": True} for i in ids])
        lake.open().write("sequence_ids", frame, city="demo", box="r00c00")
        return dg.MaterializeResult(metadata={"n": len(ids)})

    @dg.asset(deps=[sequence_ids], partitions_def=city_boxes)
    def after(context: dg.AssetExecutionContext) -> None:
        pass

    return dg.materialize(
        [sequence_ids, after],
        partition_key=partition_key("demo", "r00c00"),
        resources={"lake": LakeResource(root=str(lake))},
        raise_on_error=False,
    )


def test_what_follows_runs_where_the_rules_hold(tmp_path: Path) -> None:
    result = run(tmp_path, ["a", "b"])
    said = verdicts(result)
    assert result.success and set(said) == {"columns_are_as_documented", "rows_are_unique"}
    assert result.asset_materializations_for_node("after") and all(e.passed for e in said.values())
    assert result.asset_materializations_for_node("sequence_ids")[0].metadata["n"].value == 2
    assert said["columns_are_as_documented"].metadata["sequence_ids_rows"].value == 2


def test_what_follows_does_not_start_where_a_blocking_rule_is_broken(tmp_path: Path) -> None:
    result = run(tmp_path, ["a", "a"])
    assert not result.success and not result.asset_materializations_for_node("after")
    assert verdicts(result)["rows_are_unique"].metadata["sequence_ids_again"].value == 1


def test_a_warning_stops_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, ["a"], (WARNS,))
    said = verdicts(result)["warns"]
    assert result.success and result.asset_materializations_for_node("after")
    assert not said.passed and said.severity == dg.AssetCheckSeverity.WARN
    assert said.metadata["of"].value == {"city": "demo", "box": "r00c00"}


def test_a_run_over_a_range_looks_at_each_partition(tmp_path: Path) -> None:
    @table_asset(WARNS, partitions_def=SHARDS, backfill_policy=dg.BackfillPolicy.single_run())
    def placing_2016(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        for key in context.partition_keys:
            lake.open().write("placing_2016", TABLES["placing_2016"].empty(), shard=key)
        return dg.MaterializeResult()

    tags = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"}
    result = dg.materialize([placing_2016], tags=tags, resources={"lake": LakeResource(root=str(tmp_path))})
    said = verdicts(result)
    assert set(said) == {"columns_are_as_documented", "warns"}, "photo sets may name a photo twice"
    assert said["warns"].metadata["n"].value == 2
    assert Lake(tmp_path).partitions("placing_2016") == [{"shard": "a"}, {"shard": "b"}]
