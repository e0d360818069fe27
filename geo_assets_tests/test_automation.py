"""What the platform asks for by itself: the ticks of its sensors and of its schedule, and what follows a change."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from geo_assets import automation
from geo_assets.geotag.assets import MODEL_FILES
from geo_assets.harvest import watch
from geo_assets.lake import Lake
from geo_assets.partitions import boxes_of_city, cities, city_boxes, partition_key, touching_boxes
from geo_assets.settings import load
from geo_assets.tables import TABLES

ROOT = Path(__file__).parent.parent
KEY = str(partition_key("demo", "r00c00"))


# -- the switch ---------------------------------------------------------------------------------------------


def test_everything_is_off_until_it_is_switched_on() -> None:
    from geo_assets.definitions import defs

    repository = defs.get_repository_def()
    assert {s.name for s in repository.sensor_defs} == {"updated_boxes", "new_boxes", "follow_changes"}
    assert {s.default_status for s in repository.sensor_defs} == {dg.DefaultSensorStatus.STOPPED}
    assert {s.default_status for s in repository.schedule_defs} == {dg.DefaultScheduleStatus.STOPPED}


def test_one_switch_turns_all_on() -> None:
    sensors, (schedule,) = automation._sensors(True), automation._schedules(True, "0 3 * * *")
    assert {s.default_status for s in sensors} == {dg.DefaultSensorStatus.RUNNING}
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


def test_the_switch_is_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEO_ASSETS_AUTOMATION__ENABLED", "true")
    monkeypatch.setenv("GEO_ASSETS_AUTOMATION__TILES_PER_DAY", "50")
    assert (load().automation.enabled, load().automation.tiles_per_day) == (True, 50)


def test_boxes_cities_and_tables_follow_and_the_harvest_does_not() -> None:
    from geo_assets.definitions import defs

    graph = defs.resolve_asset_graph()
    followers = {
        k.to_user_string() for k in graph.materializable_asset_keys if graph.get(k).automation_condition is not None
    }
    names = {k.to_user_string() for k in graph.materializable_asset_keys}
    assert followers >= {*automation.BEHIND, *automation.OF_A_CITY, "box_quality", "stg_images"}
    assert not followers & {"bbox_partitions", "sequence_ids", "image_metadata", "image_files", *automation.CLUSTERING}
    assert names >= {*automation.BEHIND, *automation.OF_A_CITY, *automation.CLUSTERING}, "a name is out of date"


# -- the sensors --------------------------------------------------------------------------------------------


def change(**known: Any) -> watch.Change:
    return watch.Change(**({"city": "demo", "box": "r00c00", "n_new": 29, "n_gone": 31, "coverage": "ab" * 32, "base": 5} | known))  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> watch.Look:
    """What the next looks find; a test fills it."""
    found = watch.Look({"turn": 1, "cities": {}}, n_requests=14, n_boxes=4, left=1986)
    monkeypatch.setattr("geo_assets.harvest.watch.look", lambda *_: found)
    monkeypatch.setenv("GEO_ASSETS_LAKE", str(tmp_path))
    return found


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> tuple[list[dg.RunRequest], str, str | None]:
    from geo_assets.definitions import defs

    context = dg.build_sensor_context(instance, cursor, definitions=defs)
    data = defs.get_repository_def().get_sensor_def("updated_boxes").evaluate_tick(context)
    return list(data.run_requests or ()), data.skip_message or "", data.cursor


def test_a_tick_without_a_change_says_what_it_did(seen: watch.Look) -> None:
    seen.words.append("demo: the tile host has blocked this address; it is asked again from 2026-01-02 03:04 UTC")
    with dg.DagsterInstance.ephemeral() as instance:
        requests, said, cursor = tick(instance)
    assert not requests and json.loads(cursor or "") == seen.state, said
    assert said == (
        "Asked 14 tiles, looked at 4 boxes, none changed; 1,986 tile requests left until 00:00 UTC. "
        "demo: the tile host has blocked this address; it is asked again from 2026-01-02 03:04 UTC."
    )


def test_a_change_is_asked_for_with_its_reason_and_once(seen: watch.Look) -> None:
    seen.changes.append(change())
    with dg.DagsterInstance.ephemeral() as instance:
        (request,), _, _ = tick(instance)
        assert (request.job_name, str(request.partition_key)) == ("harvest", KEY)
        assert request.run_key == "demo/r00c00@abababababababab-5"
        assert request.tags[automation.WHY] == "+29 images, -31 images"
        add_run(instance, request.tags, dg.DagsterRunStatus.STARTED)
        requests, said, _ = tick(instance)
    assert not requests and "r00c00 of demo was asked for before (+29 images, -31 images)" in said
    assert "1 changed (+29 -31 images)" in said


def test_a_change_whose_runs_fail_is_tried_three_times(seen: watch.Look) -> None:
    seen.changes.append(change())
    keys = []
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(automation.ATTEMPTS):
            (request,), _, _ = tick(instance)
            keys.append(request.run_key)
            add_run(instance, request.tags, dg.DagsterRunStatus.FAILURE)
        requests, said, _ = tick(instance)
    assert len(set(keys)) == 3 and not requests
    assert "failed 3 times and waits for a person" in said


def add_run(instance: dg.DagsterInstance, tags: Any, status: dg.DagsterRunStatus) -> None:
    run_id = f"00000000-0000-0000-0000-{instance.get_runs_count():012}"
    instance.add_run(dg.DagsterRun("harvest", run_id=run_id, tags=dict(tags), status=status))


# -- the clustering -----------------------------------------------------------------------------------------


@pytest.fixture
def clustered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lake:
    """A lake with a version of the clustering of 100 photos."""
    monkeypatch.setenv("GEO_ASSETS_LAKE", str(tmp_path))
    lake = Lake(tmp_path)
    rows = [dict.fromkeys(TABLES["geotag_combined"].column_names) | {"photo_id": str(k), "source": "mapillary"} for k in range(100)]  # fmt: skip
    lake.write("geotag_combined", TABLES["geotag_combined"].frame(rows))
    key = lake.key(*MODEL_FILES)
    lake.put_bytes(f"{key}/v1/model.json", json.dumps({"version": "v1"}).encode())
    lake.put_bytes(f"{key}/current.json", json.dumps({"version": "v1", "versions": ["v1"]}).encode())
    return lake


def evaluate(lake: Lake) -> tuple[list[dg.RunRequest], str]:
    from geo_assets.definitions import defs

    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance, dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC))
        data = defs.get_repository_def().get_schedule_def("refit_clustering").evaluate_tick(context)
    return list(data.run_requests or ()), data.skip_message or ""


def put_images(lake: Lake, n: int, box: str = "r00c00") -> None:
    table, later = TABLES["image_metadata"], pd.Timestamp.now(tz="UTC") + pd.Timedelta(minutes=1)
    rows = [dict.fromkeys(table.column_names) | {"image_id": f"{box}{k}", "first_seen": later} for k in range(n)]
    rows.append(dict.fromkeys(table.column_names) | {"image_id": "old", "first_seen": pd.Timestamp("2020", tz="UTC")})
    rows.append(rows[0] | {"image_id": "dead", "tombstoned_at": later})
    lake.write("image_metadata", table.frame(rows), city="demo", box=box)


def test_too_few_new_photos_make_no_version(clustered: Lake) -> None:
    put_images(clustered, 4)
    requests, said = evaluate(clustered)
    assert not requests
    assert (
        said.startswith("4 new photos since version v1 of 20") and "4.0% of 100" in said and "at 5% or 10,000" in said
    )


def test_enough_new_photos_make_one(clustered: Lake) -> None:
    put_images(clustered, 5)
    (request,), _ = evaluate(clustered)
    assert request.tags[automation.WHY] == "+5 photos" and str(request.run_key).startswith("v1-")


def test_a_set_that_was_read_again_counts_as_far_as_it_has_grown(clustered: Lake) -> None:
    rows = [dict.fromkeys(TABLES["flickr_geotag"].column_names) | {"photo_id": str(k)} for k in range(7)]
    clustered.write("flickr_geotag", TABLES["flickr_geotag"].frame(rows))
    key = clustered.key(*MODEL_FILES)
    os.utime(clustered.uri(f"{key}/current.json"), (1e9, 1e9))
    assert evaluate(clustered)[0][0].tags[automation.WHY] == "+7 photos"


def test_without_a_clustering_there_is_nothing_to_renew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEO_ASSETS_LAKE", str(tmp_path))
    requests, said = evaluate(Lake(tmp_path))
    assert not requests and "geo-assets materialize --select hdbscan_model" in said


# -- what follows -------------------------------------------------------------------------------------------


class Graph:
    """Two assets of the boxes and one of the city, under the real conditions; ``behind`` names boxes that are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.behind: set[str] = set()
        self.looked: list[str] = []

        def is_behind(_lake: Lake, _settings: Any, where: Any) -> bool:
            self.looked.append(where["box"])
            return where["box"] in self.behind

        monkeypatch.setattr(automation, "BEHIND", {"gps_db": is_behind, "match_pairs": is_behind})

        @dg.asset(partitions_def=city_boxes, group_name="harvest")
        def image_files() -> None: ...

        @dg.asset(
            partitions_def=city_boxes,
            group_name="reconstruct",
            deps=[dg.AssetDep(image_files, partition_mapping=touching_boxes)],
        )
        def gps_db() -> None: ...

        @dg.asset(
            partitions_def=cities,
            group_name="reconstruct",
            deps=[dg.AssetDep(gps_db, partition_mapping=boxes_of_city)],
        )
        def city_alignment() -> None: ...

        assets = list(automation.following([image_files, gps_db, city_alignment]))
        self.assets = {a.key.to_user_string(): a for a in assets}
        self.defs = dg.Definitions(assets=assets)
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor: Any = None

    def make(self, asset: str, partition: Any) -> None:
        dg.materialize([self.assets[asset]], partition_key=partition, instance=self.instance)

    def tick(self) -> dict[str, set[str]]:
        result = dg.evaluate_automation_conditions(self.defs, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        asked = {name: set(result.get_requested_partitions(a.key)) for name, a in self.assets.items()}
        return {name: {str(p).split("|")[0] for p in parts} for name, parts in asked.items() if parts}


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Graph:
    graph = Graph(monkeypatch)
    assert graph.tick() == {}
    return graph


def test_only_boxes_that_are_behind_follow_and_each_is_looked_at_once(graph: Graph) -> None:
    graph.behind = {"r00c00", "r01c01"}
    graph.make("image_files", partition_key("demo", "r00c00"))
    assert graph.tick() == {"gps_db": {"r00c00", "r01c01"}}
    assert sorted(graph.looked) == ["r00c00", "r00c01", "r01c00", "r01c01"]
    assert graph.tick() == {}, "what was asked for, or is not behind, is not asked again"
    assert len(graph.looked) == 4


def test_a_run_that_fails_is_not_repeated_until_an_input_changes(graph: Graph) -> None:
    graph.behind = {"r00c00"}
    graph.make("image_files", partition_key("demo", "r00c00"))
    assert graph.tick() == {"gps_db": {"r00c00"}}
    assert graph.tick() == graph.tick() == {}
    graph.make("image_files", partition_key("demo", "r00c01"))
    assert graph.tick() == {"gps_db": {"r00c00"}}


def test_a_box_waits_for_its_inputs_and_the_city_for_its_boxes(graph: Graph) -> None:
    graph.make("gps_db", partition_key("demo", "r00c00"))
    graph.make("image_files", partition_key("demo", "r00c01"))
    job = graph.defs.resolve_implicit_global_asset_job_def()
    key = partition_key("demo", "r01c01")
    run = graph.instance.create_run_for_job(
        job.get_subset(asset_selection={dg.AssetKey("image_files")}),
        tags=dict(city_boxes.get_tags_for_partition_key(key)),
        status=dg.DagsterRunStatus.STARTED,
    )
    graph.behind = {"r00c00"}
    assert graph.tick() == {} and not graph.looked, "its neighbour is being harvested"
    graph.instance.report_run_failed(run, "stopped")
    assert graph.tick() == {"gps_db": {"r00c00"}}, "the city waits for what was asked for"
    graph.make("gps_db", partition_key("demo", "r00c00"))
    assert graph.tick() == {"city_alignment": {"demo"}}


# -- the whole ----------------------------------------------------------------------------------------------


@pytest.mark.xdist_group("automation")
def test_a_city_that_changes_is_brought_up_to_date(tmp_path: Path) -> None:
    """A sequence comes and another goes; nothing is run but what the change reaches."""
    command = [sys.executable, "-m", "geo_assets_tests.automation_scenario", str(tmp_path), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    gone, new = said["gone"], said["new"]
    west, middle, east = (said["keys"][box] for box in ("r00c00", "r00c01", "r00c02"))

    assert said["at_rest"] == 0 and "none changed" in said["unchanged"]
    ((partition, job, run_key, tags),) = said["asked"]
    assert (partition, job) == (middle, "harvest") and run_key.startswith("row/r00c01@")
    assert tags[automation.WHY] == "+5 images, -5 images"

    ran = said["ran"]
    for asset in ("bbox_partitions", "sequence_ids", "image_metadata", "image_files"):
        assert ran[asset] == [middle]
    for asset in ("gps_db", "match_pairs", "sparse_models", "splat_ply"):
        assert sorted(ran[asset]) == [middle, east], "the fringe of the western box is the same"
    assert not any(west in partitions for partitions in ran.values())
    for asset in automation.OF_A_CITY:
        assert ran[asset] == ["row"], "once, when all boxes had come to rest"
    assert len(ran["box_quality"]) == 1

    boxes = said["boxes"]
    assert all(box["complete"] for box in boxes.values())
    assert said["city"] == [True, sum(box["n_living"] for box in boxes.values())]
    assert boxes["r00c01"]["dead"] == gone and boxes["r00c01"]["files"] == new
    assert boxes["r00c01"]["came"] == new and boxes["r00c01"]["went"] == gone
    assert boxes["r00c02"]["came"] == [] and set(boxes["r00c02"]["went"]) <= set(gone) and boxes["r00c02"]["went"]
    for box in ("r00c01", "r00c02"):
        assert set(boxes[box]["routes"]) == {"updated"} and boxes[box]["moved"] <= 1e-9
        assert boxes[box]["splat"] == ["trained", "earlier"], "it goes on from where it stood"
    assert dict(said["box_quality"])["r00c01"] == boxes["r00c01"]["n_living"]

    assert "none changed" in said["updated_boxes"] and "none changed" in said["new_boxes"]
