"""The four assets and their checks through Dagster: the demo city, a box beyond a grid, and a city of photos."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from geo_assets.demo.world import World, demo_world
from geo_assets.grid import touching
from geo_assets.harvest.assets import ASSETS
from geo_assets.harvest.checks import CHECKS
from geo_assets.lake import BoxPartition, Lake
from geo_assets.partitions import city_boxes, partition_key
from geo_assets.resources import ImageryResource, LakeResource
from geo_assets.settings import load

BOXES = ["r00c00", "r00c01", "r01c00", "r01c01"]
OF_BOXES = [asset for asset in ASSETS if asset.partitions_def == city_boxes]
ASK = ("bbox_partitions", "sequence_ids", "image_metadata", "image_files")


def materialize(
    root: Path, city: str, box: str, selection: str | dg.AssetSelection = "*", *, raise_on_error: bool = True
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [*OF_BOXES, *CHECKS],
        partition_key=partition_key(city, box),
        resources={"lake": LakeResource(root=str(root)), "imagery": ImageryResource()},
        selection=selection,
        raise_on_error=raise_on_error,
    )


def figures(result: dg.ExecuteInProcessResult, asset: str) -> dict:
    events = result.asset_materializations_for_node(asset)
    return {key: value.value for key, value in events[0].metadata.items()}


def verdicts(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()}


@pytest.fixture(scope="module")
def demo(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Lake, World, dict[str, dg.ExecuteInProcessResult]]]:
    root = tmp_path_factory.mktemp("lake")
    yield Lake(root), demo_world(), {box: materialize(root, "demo", box) for box in BOXES}


def test_every_image_of_the_world_is_in_one_box(demo) -> None:
    lake, world, _ = demo
    found = [i for box in BOXES for i in lake.read("image_metadata", city="demo", box=box)["image_id"]]
    assert sorted(found) == sorted(i.id for i in world.images)
    files = [i for box in BOXES for i in lake.read("image_files", city="demo", box=box)["image_id"]]
    assert sorted(files) == sorted(found)
    grid = load().city("demo").grid
    for image in world.images:
        lon = image.computed_lon if image.computed_lon is not None else image.lon
        lat = image.computed_lat if image.computed_lat is not None else image.lat
        home = grid.box_at(lon, lat)
        assert image.id in set(lake.read("image_metadata", city="demo", box=home or "")["image_id"])


def test_the_checks_pass_and_the_certificates_are_complete(demo) -> None:
    lake, _, results = demo
    for box, result in results.items():
        said = verdicts(result)
        assert all(said.values())
        assert set(said) > {"harvest_is_complete", "ids_are_unique", "images_lie_in_box", "files_decode"}
        assert lake.read("certificates", city="demo", box=box)["complete"].all()
        for table in ("bbox_partitions", "sequence_ids", "sequence_images", "image_metadata", "image_files"):
            assert lake.note(table, city="demo", box=box)["bounds"] == load().city("demo").grid.bounds(box).as_list()


def test_the_certificate_of_the_city_sums_up_its_boxes(demo) -> None:
    lake, world, _ = demo
    resources = {"lake": LakeResource(root=lake.root)}
    [city] = [asset for asset in ASSETS if asset.key.to_user_string() == "city_certificates"]
    result = dg.materialize([city], partition_key="demo", resources=resources)
    row = lake.read("city_certificates", city="demo").iloc[0]
    assert row["complete"] and (row["n_boxes"], row["n_complete"], row["n_images"]) == (4, 4, len(world.images))
    assert row["n_sequences"] == len(world.sequences)
    assert figures(result, "city_certificates")["n_images"] == len(world.images)


def test_what_the_ui_shows(demo) -> None:
    _, _, results = demo
    for result in results.values():
        plan, described, files = (figures(result, a) for a in ("bbox_partitions", "image_metadata", "image_files"))
        assert described["n_images"] == files["n_images"] == described["dagster/row_count"] > 0
        assert described["certificate"].startswith("Complete: ")
        assert files["n_dead"] == 0 and files["image_bytes"] > 0 and files["seconds"] > 0
        assert plan["n_rejected"] == 0
        for picture in (plan["map"], described["map"], files["photos"]):
            assert "base64," in picture and len(picture) < 65_000


def test_credit_and_neighbours(demo) -> None:
    lake, world, _ = demo
    row = lake.read("image_metadata", city="demo", box="r00c00").iloc[0]
    image = world.by_id[row["image_id"]]
    assert f"@{image.creator_username}" in row["attribution"] and row["attribution"].endswith(f"pKey={image.id}")
    neighbours = lake.read("bbox_partitions", city="demo", box="r00c00")["neighbours"].iloc[0]
    assert sorted([*neighbours, "r00c00"]) == sorted(touching("r00c00"))


def test_a_second_run_asks_for_no_file(demo) -> None:
    lake, _, results = demo
    again = materialize(Path(lake.root), "demo", "r00c00", "image_files")
    said = figures(again, "image_files")
    assert (said["requests"], said["n_fetched"]) == (0, 0)
    assert said["n_kept"] == figures(results["r00c00"], "image_files")["n_images"]


def test_an_incomplete_harvest_fails_and_leaves_the_images_of_the_last_one(demo) -> None:
    lake, _, _ = demo
    where = BoxPartition(city="demo", box="r01c00")
    before, good = lake.read("image_metadata", **where), lake.read("sequence_ids", **where)
    note = lake.note("sequence_ids", **where)
    figures = note["figures"] | {"n_unverifiable": 2}
    lake.write("sequence_ids", good, note=note | {"figures": figures}, **where)
    try:
        with pytest.raises(dg.Failure, match=r"Box r01c00 of demo: Incomplete: 2 search cells without an answer"):
            materialize(Path(lake.root), "demo", "r01c00", "image_metadata")
        assert not lake.read("certificates", **where)["complete"].any()
        assert lake.read("image_metadata", **where).equals(before)
    finally:
        lake.write("sequence_ids", good, note=note, **where)
        materialize(Path(lake.root), "demo", "r01c00", "image_metadata")


def test_a_check_fails_when_something_is_unresolved(demo) -> None:
    lake, _, _ = demo
    good = lake.read("certificates", city="demo", box="r01c01")
    bad = good.assign(n_unresolved=3, complete=False)
    lake.write("certificates", bad, city="demo", box="r01c01")
    try:
        selection = dg.AssetSelection.assets("image_files") | dg.AssetSelection.checks(*CHECKS)
        result = materialize(Path(lake.root), "demo", "r01c01", selection, raise_on_error=False)
        assert verdicts(result)["harvest_is_complete"] is False
        assert not result.asset_materializations_for_node("image_files"), "nothing is spent on an incomplete box"
    finally:
        lake.write("certificates", good, city="demo", box="r01c01")


PHOTOS = """
import sys
from pathlib import Path
from geo_assets_tests.harvest.test_demo_harvest import figures, materialize, verdicts
from geo_assets.lake import BoxPartition, Lake
root, city = Path(sys.argv[1]), sys.argv[2]
from geo_assets.settings import load
grid = load().city(city).grid
results = {box: materialize(root, city, box) for box in [*grid, "r00c09"] if box in load().boxes}
assert all(all(verdicts(result).values()) for result in results.values())
ids = [i for box in results for i in Lake(root).read("image_files", city=city, box=box)["image_id"]]
print(len(ids), len(set(ids)), len(results), sum(figures(r, "image_metadata")["requests"] for r in results.values()))
"""


def harvested(folder: Path, tmp_path: Path, box_m: float) -> list[int]:
    """Photos, distinct photos, boxes and requests of a city of photos, run by a process with settings of its own."""
    environment = os.environ | {"GEO_ASSETS_SETTINGS": str(tmp_path / "geo_assets.toml")}
    add = [
        sys.executable,
        "-m",
        "geo_assets.cli",
        "city",
        "add",
        "mine",
        "--photos",
        str(folder),
        "--box-m",
        str(box_m),
    ]
    subprocess.run(add, env=environment, check=True, capture_output=True, text=True)
    run = [sys.executable, "-c", PHOTOS, str(tmp_path / "lake"), "mine"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [int(word) for word in done.stdout.split()[-4:]]


def test_a_city_of_photos(tmp_path: Path) -> None:
    from geo_assets_tests.harvest.test_photos import photo

    for i in range(5):
        photo(tmp_path / "photos" / f"walk{i % 2}" / f"{i}.jpg", 11.5 + i * 0.0006, 48.1)
    photo(tmp_path / "photos" / "no_gps.jpg", None)
    assert harvested(tmp_path / "photos", tmp_path, 100.0) == [5, 5, 2, 0]


def test_a_city_of_real_photos(real_data: Path, tmp_path: Path) -> None:
    found = harvested(real_data / "images/lund", tmp_path, 500.0)
    assert found[:2] == [29, 29]


def test_a_pair_outside_the_grid_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geo_assets.grid import Grid

    monkeypatch.setattr(Grid, "__contains__", lambda self, name: False)
    result = materialize(tmp_path, "demo", "r00c00")
    assert all(verdicts(result).values())
    assert figures(result, "image_metadata")["n_images"] == figures(result, "image_files")["n_images"] == 0
    assert all(figures(result, asset)["requests"] == 0 for asset in ASK)
