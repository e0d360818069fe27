"""The materializer, over a small graph of the real partitions whose assets only write what they were asked."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from geo_assets.errors import ConfigError, GeoAssetsError
from geo_assets.lake import Lake
from geo_assets.materialize import HOST_TAG, PROCESS_TAG, Materializer, end_dead_runs
from geo_assets.partitions import box_key, boxes_of_city, cities, city_boxes, settings, touching_boxes
from geo_assets.reporting import failures
from geo_assets.tables import TABLES

EMPTY_BOX = "r01c01"


class World:
    """A tiny graph; ``runs`` records what ran, ``broken`` names partitions that fail."""

    def __init__(self, root: Path) -> None:
        self.lake = Lake(root)
        self.runs: list[tuple[str, str]] = []
        self.broken: set[tuple[str, str]] = set()
        self.no_token = False
        self.lines: list[str] = []

    def box_asset(self, name: str, deps: list) -> dg.AssetsDefinition:
        @dg.asset(name=name, partitions_def=city_boxes, deps=deps)
        def _asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            key = box_key(context)
            with failures():
                if (name, key.box) in self.broken:
                    raise GeoAssetsError(f"{name} of {key.box} is broken; mend it.")
                if self.no_token:
                    raise GeoAssetsError("No token.")
                frame = TABLES[name].empty()
                if name == "bbox_partitions":
                    n = 0 if key.box == EMPTY_BOX else 5
                    row = dict.fromkeys(frame.columns) | {"n_images": n, "neighbours": [], "tiles": []}
                    frame = pd.DataFrame([row])
                self.lake.write(name, frame, **key.partition)
            self.runs.append((name, key.box))
            return dg.MaterializeResult(metadata={"n_images": 5})

        return _asset

    def materializer(self) -> Materializer:
        box, dep = self.box_asset, dg.AssetDep

        @dg.asset(
            name="splat_city", partitions_def=cities, deps=[dep("sparse_models", partition_mapping=boxes_of_city)]
        )
        def splat_city(context: dg.AssetExecutionContext) -> None:
            self.lake.write("splat_city", TABLES["splat_city"].empty(), city=context.partition_key)
            self.runs.append(("splat_city", context.partition_key))

        assets = [
            box("bbox_partitions", []),
            box("image_files", ["bbox_partitions"]),
            box("gps_db", [dep("image_files", partition_mapping=touching_boxes)]),
            box("sparse_models", ["gps_db"]),
            splat_city,
        ]
        instance = dg.DagsterInstance.ephemeral()
        return Materializer(dg.Definitions(assets=assets), settings, self.lake, instance, self.lines.append, "CRITICAL")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_upstream_is_made_first_and_boxes_without_images_are_never_asked(world: World) -> None:
    outcome = world.materializer().run("sparse_models", ["demo"])
    assert not outcome.failed
    full = ["r00c00", "r00c01", "r01c00"]
    assert [run for run in world.runs if run[0] == "sparse_models"] == [("sparse_models", box) for box in full]
    assert ("image_files", EMPTY_BOX) not in world.runs
    first_gps = world.runs.index(("gps_db", "r00c00"))
    assert all(world.runs.index(("image_files", box)) < first_gps for box in full), (
        "neighbours are read, so made before"
    )
    assert sum("5 images" in line for line in world.lines) >= 3


def test_what_is_there_is_not_made_again_unless_selected(world: World) -> None:
    world.materializer().run("sparse_models", ["demo"])
    world.runs.clear()
    world.materializer().run("sparse_models", ["demo"], ["r00c01"])
    assert world.runs == [("sparse_models", "r00c01")]
    world.runs.clear()
    world.materializer().run("*", ["demo"], only_missing=True)
    assert world.runs == [("splat_city", "demo")]


def test_one_box_brings_the_boxes_that_it_reads(world: World) -> None:
    world.materializer().run("sparse_models", ["demo"], ["r00c00"])
    assert ("image_files", "r01c00") in world.runs
    assert [run for run in world.runs if run[0] in ("gps_db", "sparse_models")] == [
        ("gps_db", "r00c00"),
        ("sparse_models", "r00c00"),
    ]


def test_a_broken_box_is_named_and_the_others_go_on(world: World) -> None:
    world.broken.add(("gps_db", "r00c00"))
    outcome = world.materializer().run("sparse_models", ["demo"])
    assert outcome.failed == {"demo r00c00": "gps_db of r00c00 is broken; mend it."}
    assert ("sparse_models", "r01c00") in world.runs
    world.broken.clear()
    outcome = world.materializer().run("sparse_models", ["demo"], only_missing=True)
    assert not outcome.failed
    assert ("sparse_models", "r00c00") in world.runs


def test_boxes_that_fail_for_one_reason_end_the_run(world: World) -> None:
    world.no_token = True
    with pytest.raises(GeoAssetsError, match=r"3 boxes in a row failed for the same reason: No token\."):
        world.materializer().run("sparse_models", ["demo"])
    assert len(world.lines) == 3


def test_what_reads_a_whole_city_waits_for_its_boxes_and_follows_them(world: World) -> None:
    world.broken.add(("gps_db", "r00c00"))
    outcome = world.materializer().run("*", ["demo"], only_missing=True)
    assert outcome.failed["splat_city"] == "waits for gps_db, sparse_models"
    assert ("splat_city", "demo") not in world.runs
    world.broken.clear()
    world.materializer().run("*", ["demo"], only_missing=True)
    assert world.runs[-1] == ("splat_city", "demo")
    world.runs.clear()
    world.materializer().run("splat_city", ["demo"])
    assert world.runs == [("splat_city", "demo")]


def test_an_interrupt_ends_everything_and_not_only_a_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write = world.lake.write

    def interrupted(table: str, *args, **partition):
        if table == "gps_db":
            os.kill(os.getpid(), signal.SIGINT)
        return write(table, *args, **partition)

    monkeypatch.setattr(world.lake, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.materializer().run("sparse_models", ["demo"])
    assert [run for run in world.runs if run[0] == "sparse_models"] == []


def test_an_interrupt_while_a_run_is_set_up_ends_everything_too(tmp_path: Path) -> None:
    ran: list[str] = []

    @dg.resource
    def interrupted(_: dg.InitResourceContext) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    @dg.asset(partitions_def=city_boxes, required_resource_keys={"interrupted"})
    def bbox_partitions(context: dg.AssetExecutionContext) -> None:
        ran.append(context.partition_key)

    world = dg.Definitions(assets=[bbox_partitions], resources={"interrupted": interrupted})
    with pytest.raises(KeyboardInterrupt):
        Materializer(
            world, settings, Lake(tmp_path), dg.DagsterInstance.ephemeral(), lambda line: None, "CRITICAL"
        ).run("bbox_partitions", ["demo"])
    assert len(ran) <= 1, "the boxes behind it are left alone"


@pytest.mark.parametrize(
    ("selection", "cities_", "boxes", "said"),
    [
        ("no_such_asset", ["demo"], [], "selects no asset"),
        ("gps_db", ["atlantis"], [], "No city 'atlantis'"),
        ("gps_db", ["demo"], ["r09c09"], "no box r09c09; its grid is 2 rows by 2 columns"),
    ],
)
def test_what_does_not_exist_is_said(world: World, selection: str, cities_: list, boxes: list, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        world.materializer().run(selection, cities_, boxes)


def test_runs_of_killed_processes_are_ended_and_those_of_others_are_not() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with dg.DagsterInstance.ephemeral() as instance:

        @dg.job
        def nothing() -> None: ...

        def started(host: str, process: int) -> str:
            tags = {HOST_TAG: host, PROCESS_TAG: str(process)}
            return instance.create_run_for_job(nothing, tags=tags, status=dg.DagsterRunStatus.STARTED).run_id

        here = socket.gethostname()
        dead, alive, elsewhere = started(here, gone.pid), started(here, os.getpid()), started("another", gone.pid)
        assert end_dead_runs(instance) == [dead]
        found = {i: instance.get_run_by_id(i) for i in (dead, alive, elsewhere)}
        assert [found[i].status.value for i in (dead, alive, elsewhere)] == ["FAILURE", "STARTED", "STARTED"]  # type: ignore[union-attr]


def test_partitions_of_another_kind_are_made_in_unbroken_ranges(tmp_path: Path) -> None:
    lake, runs, lines = Lake(tmp_path), [], []
    parts = dg.StaticPartitionsDefinition([f"shard_{k}" for k in range(5)])

    @dg.asset(partitions_def=parts, backfill_policy=dg.BackfillPolicy.single_run())
    def placing_2016(context: dg.AssetExecutionContext) -> None:
        runs.append(list(context.partition_keys))
        for key in context.partition_keys:
            lake.write("placing_2016", TABLES["placing_2016"].empty(), shard=key)

    definitions = dg.Definitions(assets=[placing_2016])
    with dg.DagsterInstance.ephemeral() as instance:
        made = Materializer(definitions, settings, lake, instance, lines.append)
        made.run("placing_2016")
        made.run("placing_2016", only_missing=True)
        lake.fs.rm(f"{tmp_path}/tables/placing_2016/shard=shard_1", recursive=True)
        lake.fs.rm(f"{tmp_path}/tables/placing_2016/shard=shard_3", recursive=True)
        lake.fs.rm(f"{tmp_path}/tables/placing_2016/shard=shard_4", recursive=True)
        assert not made.run("placing_2016", only_missing=True).failed
    assert runs == [[f"shard_{k}" for k in range(5)], ["shard_1"], ["shard_3", "shard_4"]]
    assert lines[-1].startswith("shard_3 to shard_4 ")
