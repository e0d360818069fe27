import dagster as dg
import pytest

from geo_assets import run_records
from geo_assets.lake import Lake
from geo_assets.run_records import record_runs

PARTS = dg.StaticPartitionsDefinition(["demo", "lund", "shard_0"])
BOXES = dg.MultiPartitionsDefinition(
    {"city": dg.StaticPartitionsDefinition(["demo"]), "box": dg.StaticPartitionsDefinition(["r00c00"])}
)
TRIES: list[int] = []


@dg.asset(partitions_def=BOXES)
def image_files() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"bytes": 10, "image_bytes": 90, "requests": 3, "n_images": 2})


@dg.asset(partitions_def=PARTS, retry_policy=dg.RetryPolicy(max_retries=1))
def flaky() -> None:
    TRIES.append(1)
    if len(TRIES) == 1:
        raise ValueError("once")


@dg.asset(partitions_def=PARTS)
def broken() -> None:
    raise ValueError("always")


def read(lake: Lake, instance: dg.DagsterInstance) -> int:
    return record_runs(lake, instance, {"demo", "lund"}, print)[1]


def test_each_attempt_is_a_row(tmp_path):
    lake = Lake(tmp_path / "lake")
    TRIES.clear()
    with dg.DagsterInstance.ephemeral() as instance:
        assert read(lake, instance) == 0 and lake.rows("run_records") == 0
        key = dg.MultiPartitionKey({"city": "demo", "box": "r00c00"})
        dg.materialize([image_files], partition_key=key, instance=instance)
        dg.materialize([flaky], partition_key="lund", instance=instance)
        dg.materialize([broken], partition_key="shard_0", instance=instance, raise_on_error=False)
        assert read(lake, instance) == 3
        assert read(lake, instance) == 0  # the same runs are not read again
        rows = lake.read("run_records").sort_values(["asset", "attempt"])
    columns = ["asset", "partition", "city", "box", "attempt", "status"]
    assert rows[columns].astype(object).where(rows[columns].notna(), None).values.tolist() == [
        ["broken", "shard_0", None, None, 1, "failed"],
        ["flaky", "lund", "lund", None, 1, "failed"],
        ["flaky", "lund", "lund", None, 2, "done"],
        ["image_files", "r00c00|demo", "demo", "r00c00", 1, "done"],
    ]
    assert rows[["bytes", "requests", "n_images"]].iloc[3].tolist() == [100, 3, 2]
    took = (rows["ended_at"] - rows["started_at"]).dt.total_seconds()
    assert took.tolist() == pytest.approx(rows["seconds"].tolist(), abs=0.01) and min(took) >= 0


def test_many_runs_are_read_page_by_page(tmp_path, monkeypatch):
    """A reader that dies between two writes goes on behind the last one."""
    monkeypatch.setattr(run_records, "_PAGE", 2)
    monkeypatch.setattr(run_records, "_PAGES_A_WRITE", 1)
    TRIES.append(1)  # so that no run has a second attempt
    lake = Lake(tmp_path / "lake")
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(5):
            dg.materialize([flaky], partition_key="demo", instance=instance)
        asked, ask = [], instance.get_run_step_stats

        def dying(run_id: str):
            asked.append(run_id)
            if len(asked) == 4:
                raise KeyboardInterrupt
            return ask(run_id)

        monkeypatch.setattr(instance, "get_run_step_stats", dying)
        with pytest.raises(KeyboardInterrupt):
            read(lake, instance)
        assert lake.rows("run_records") == 2
        assert read(lake, instance) == 3
    rows = lake.read("run_records")
    assert len(rows) == 5 and rows["run_id"].is_unique
