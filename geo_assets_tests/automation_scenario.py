"""A row of three boxes that changes while the platform watches; ``test_automation`` runs this as a process of its own.

The street runs through ``r00c00``, ``r00c01`` and ``r00c02``. At first a drive passes through all of them, and a short
second one through the eastern end of the middle box. Then that one is deleted, and another is added in the middle of
the box. So the middle box has to be harvested and everything of it brought up to date; the eastern box shares the
fringe in which images vanished, and has to be reconstructed alone; the western one shares nothing that changed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from geo_assets.demo import grown
from geo_assets.demo.server import TOKEN, Behaviour, serving
from geo_assets.demo.world import World
from geo_assets.lake import Lake

CITY, BOXES = "row", ("r00c00", "r00c01", "r00c02")
BOX_ASSETS = ("gps_db", "match_pairs", "sparse_models", "splat_ply")
POSE = ["east_m", "north_m", "up_m", "qw", "qx", "qy", "qz"]


def worlds(cache: Path) -> tuple[World, World, set[str], set[str]]:
    """The world before and after, and the images of the sequences that go and come."""
    described = grown.describe(len(BOXES))
    n = grown.PER_DRIVE
    first = described[n : 2 * n]  # the second drive through the western box: the numbers go on in the next
    assert {image.sequence_id for image, _, _ in first} == {"grown-drive_1"}
    second = described[4 * n : 5 * n]
    gone, new = ([(replace(i, sequence_id=name), c, d) for i, c, d in part] for name, part in (
        ("seq-gone", second[22:27]), ("seq-new", second[11:16])))  # fmt: skip
    through = [job for job in described if job[0].sequence_id == "grown-drive_0"]
    folder = cache / f"grown-{grown._key(described[: 3 * n])}"
    folder.mkdir(parents=True, exist_ok=True)
    grown._render_missing([*through, *gone, *new], folder, lambda line: print(line, file=sys.stderr))

    def world(jobs: list[Any]) -> World:
        return World(tuple(i for i, _, _ in jobs), {i.id: c for i, c, _ in jobs}, folder)

    return world([*through, *gone]), world([*through, *new]), {i.id for i, _, _ in gone}, {i.id for i, _, _ in new}


def write_settings(folder: Path, address: str) -> None:
    city = grown.grown_city(len(BOXES))
    (folder / "geo_assets.toml").write_text(
        f"""
[cities.{CITY}]
bbox = {list(city.bbox)}
origin = {list(city.origin or ())}
box_m = {city.box_m}
graph_url = "{address}"
tiles_url = "{address}"
[demo]
enabled = false
[mapillary]
tiles_per_minute = 100000
[automation]
enabled = true
look_every_s = 0
[reconstruct]
max_features = 1500
max_pairs_per_image = 12
expansion_rounds = 0
[splats]
engine = "cpu"
steps = 20
max_splats = 1500
max_image_px = 160
sh_degree = 0
"""
    )


class Platform:
    """The code location and what a daemon would do for it."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        from geo_assets.definitions import defs

        self.defs, self.instance = defs, instance
        self.repository = defs.get_repository_def()
        self.order = [k.to_user_string() for k in self.repository.asset_graph.toposorted_asset_keys]
        self.cursors: dict[str, str | None] = defaultdict(lambda: None)
        self.ran: dict[str, list[str]] = defaultdict(list)

    def run(self, assets: list[str], partition: str | None, tags: dict[str, str] | None = None) -> None:
        job = self.repository.get_implicit_global_asset_job_def().get_subset(
            asset_selection={dg.AssetKey(a) for a in assets}
        )
        config = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
        result = job.execute_in_process(
            instance=self.instance, partition_key=partition, tags=tags, run_config=config, raise_on_error=True
        )
        assert result.success
        print(f"{time.process_time():6.1f} s cpu, {partition} {' '.join(assets)}", file=sys.stderr, flush=True)
        for event in result.get_asset_materialization_events():
            key = event.asset_key
            assert key is not None
            self.ran[key.to_user_string()].append(event.partition or "")

    def tick(self, name: str) -> tuple[list[dg.RunRequest], str]:
        """What a sensor asks for, and what it says where it asks for nothing."""
        context = dg.build_sensor_context(self.instance, self.cursors[name], definitions=self.defs)
        data = self.repository.get_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = data.cursor
        return list(data.run_requests or ()), data.skip_message or ""

    def follow(self) -> int:
        """Run what follows until nothing does; how many ticks asked for something."""
        for n in range(12):
            requests, _ = self.tick("follow_changes")
            if not requests:
                return n
            print(f"tick {n}:", [(str(r.partition_key), [k.to_user_string() for k in r.asset_selection or ()]) for r in requests], file=sys.stderr, flush=True)  # fmt: skip
            for request in requests:
                names = {key.to_user_string() for key in request.asset_selection or ()}
                self.run([a for a in self.order if a in names], request.partition_key, dict(request.tags))
        raise AssertionError("it does not come to rest")


def main(folder: Path, cache: Path) -> dict[str, Any]:
    os.environ |= {
        "GEO_ASSETS_SETTINGS": str(folder / "geo_assets.toml"),
        "MAPILLARY_TOKEN": TOKEN,
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    os.environ.pop("DAGSTER_HOME", None)
    before, after, gone, new = worlds(cache)
    said: dict[str, Any] = {"gone": sorted(gone), "new": sorted(new)}
    with dg.DagsterInstance.ephemeral() as instance:
        return said | _play(instance, folder, before, after, gone, new)


def _play(
    instance: dg.DagsterInstance, folder: Path, before: World, after: World, gone: set[str], new: set[str]
) -> dict[str, Any]:
    said: dict[str, Any] = {}
    with serving(before, Behaviour()) as address:
        port = int(address.rsplit(":", 1)[1])
        write_settings(folder, str(address))
        from geo_assets.partitions import partition_key

        keys = {box: str(partition_key(CITY, box)) for box in BOXES}
        platform, lake = Platform(instance), Lake(folder / "lake")
        harvest = [k.to_user_string() for k in platform.repository.get_job("harvest").asset_layer.executable_asset_keys]
        for box in BOXES:
            platform.run(harvest, partition_key(CITY, box))
        for asset in BOX_ASSETS:
            for box in BOXES:
                platform.run([asset], partition_key(CITY, box))
        said["at_rest"] = len(platform.tick("follow_changes")[0])
        said["unchanged"] = platform.tick("updated_boxes")[1]
        cameras = {box: lake.read("model_cameras", city=CITY, box=box) for box in BOXES}
        platform.ran.clear()
    with serving(after, Behaviour(), port=port):
        requests, _ = platform.tick("updated_boxes")
        said["asked"] = [(str(r.partition_key), r.job_name, r.run_key, dict(r.tags)) for r in requests]
        (request,) = requests
        platform.run(harvest, request.partition_key, dict(request.tags))
        said["ticks"] = platform.follow()
        said["ran"] = dict(platform.ran)
        said["keys"] = keys
        for name in ("updated_boxes", "new_boxes"):
            requests, said[name] = platform.tick(name)
            assert not requests, name
    return said | _results(lake, cameras, gone, new)


def _results(lake: Lake, cameras: dict[str, Any], gone: set[str], new: set[str]) -> dict[str, Any]:
    """What lies in the lake, box by box."""
    found: dict[str, Any] = {}
    for box in BOXES:
        metadata = lake.read("image_metadata", city=CITY, box=box)
        dead = metadata[metadata.tombstoned_at.notna()]
        files = lake.read("image_files", city=CITY, box=box)
        models = lake.read("sparse_models", city=CITY, box=box)
        old = cameras[box].set_index("image_id")[POSE]
        now = lake.read("model_cameras", city=CITY, box=box).set_index("image_id")[POSE]
        both = old.index.intersection(now.index)
        moved_m = (old.loc[both] - now.loc[both]).abs().to_numpy().max()
        found[box] = {
            "complete": bool(lake.read("certificates", city=CITY, box=box).complete.iloc[0]),
            "n_living": int(metadata.tombstoned_at.isna().sum()),
            "dead": sorted(dead.image_id),
            "files": sorted(set(files[files.status == "done"].image_id) & (gone | new)),
            "routes": models.route.tolist(),
            "status": models.status.tolist(),
            "came": sorted(set(now.index) - set(old.index)),
            "went": sorted(set(old.index) - set(now.index)),
            "moved": float(moved_m),
            "splat": lake.read("splat_ply", city=CITY, box=box)[["status", "start"]].iloc[0].tolist(),
        }
    city = lake.read("city_certificates", city=CITY).iloc[0]
    with lake.connect("box_quality") as con:
        counted = con.execute("select box, n_images from box_quality where city = ? order by box", [CITY]).fetchall()
    return {"boxes": found, "city": [bool(city.complete), int(city.n_images)], "box_quality": counted}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()), default=str))
