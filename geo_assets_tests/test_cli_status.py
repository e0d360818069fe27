"""`status`, `city show` and `city remove`: what the lake holds, what to type next, and what goes when a city goes."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from geo_assets.cli import main
from geo_assets.lake import Lake
from geo_assets.tables import TABLES

NOW = pd.Timestamp("2026-05-01", tz="UTC")


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.chdir(tmp_path)
    for name in ("GEO_ASSETS_SETTINGS", "GEO_ASSETS_LAKE", "DAGSTER_HOME", "MAPILLARY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    Path("geo_assets.toml").write_text(
        "# mine\n[splats]\nsteps = 300 # few\n\n# the town\n[cities.town]\nbbox = [11.0, 48.0, 11.002, 48.001]\nbox_m = 100.0\n"
    )
    return Lake(tmp_path / "lake")


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(main, list(arguments), input=answer)


def put(lake: Lake, table: str, rows: list[dict[str, Any]], **partition: Any) -> None:
    names = TABLES[table].column_names
    lake.write(table, TABLES[table].frame([dict.fromkeys(names) | row for row in rows]), **partition)


def harvested(lake: Lake, city: str = "town", files: int = 2) -> None:
    """Two boxes seen, three images harvested in one of them, of which so many have files."""
    for box, n in (("r00c00", 3), ("r00c01", 4)):
        row = {"n_images": n, "neighbours": [], "tiles": [], "west": 11.0, "south": 48.0, "east": 11.1, "north": 48.1}
        put(lake, "bbox_partitions", [row], city=city, box=box)
    ids = [{"image_id": str(i), "sequence_id": "s", "lon": 11.0, "lat": 48.0} for i in range(3)]
    put(lake, "image_metadata", ids, city=city, box="r00c00")
    done = [{"image_id": str(i), "status": "done", "bytes": 10} for i in range(files)]
    put(lake, "image_files", done, city=city, box="r00c00")
    lake.put_bytes(lake.key("images", "0.jpg", city=city, box="r00c00"), b"x" * 1000)


def certified(lake: Lake, complete: bool) -> None:
    counts = {c.name: 0 for c in TABLES["city_certificates"].columns if c.type == "int"}
    row = counts | {"n_images": 3, "n_sequences": 1, "n_boxes": 2, "n_complete": 1, "n_unresolved": 2}
    put(lake, "city_certificates", [row | {"complete": complete, "fetched_at": NOW}], city="town")


def test_the_funnel_is_counted_in_images_and_in_boxes(lake: Lake) -> None:
    harvested(lake)
    certified(lake, complete=False)
    found = json.loads(run("status", "town", "--json").output)
    (town,) = found["cities"]
    assert town["n_boxes"] == 4 and town["images"]["tiles"] == 7 and town["boxes"]["tiles"] == 2
    assert (town["images"]["harvested"], town["boxes"]["harvested"]) == (3, 1)
    assert (town["images"]["downloaded"], town["images"]["featured"]) == (2, 0)
    assert town["states"] == {"seen": 1, "downloaded": 1}
    assert town["certificate"]["n_unresolved"] == 2
    assert found["last_run"] is None and found["failed_partitions"] == []


def test_the_text_says_what_is_open_and_what_to_type(lake: Lake) -> None:
    harvested(lake)
    certified(lake, complete=False)
    said = run("status").output
    assert "town: 4 boxes, 2 of them asked about so far" in said
    assert (
        "certificate: not complete; 3 images in 1 sequences, 1 of 2 boxes complete; 2 images without an answer" in said
    )
    assert "next: geo-assets harvest town --files" in said
    assert "next: geo-assets demo" in said, "the demo city has not been made"
    assert "geolocation data: none yet; next: geo-assets materialize --select '*geotag_combined'" in said


def test_what_to_type_next_follows_the_lake(lake: Lake) -> None:
    def following() -> list[str]:
        return json.loads(run("status", "town", "--json").output)["cities"][0]["next"]

    splats = "geo-assets materialize --select splat_ply --city town --missing"
    assert following() == ["geo-assets harvest town --dry-run", splats]
    harvested(lake)
    assert following() == [splats]
    certified(lake, complete=True)
    assert following() == [splats]
    put(lake, "splat_ply", [], city="town", box="r00c00")
    assert following() == ["geo-assets materialize --select splat_city --city town"]
    put(lake, "splat_city", [], city="town")
    assert following()[0] == "geo-assets show town"


def test_the_geolocation_branch_is_counted(lake: Lake) -> None:
    photo = {"source": "placing_2016", "lon": 1.0, "lat": 2.0, "flags": [], "split": "train"}
    put(lake, "geotag_combined", [photo | {"photo_id": str(i)} for i in range(3)])
    points = [
        {"point_id": i, "lon": 1.0, "lat": 2.0, "n_photos": 1, "cluster": c, "probability": 1.0}
        for i, c in enumerate((0, 0, 1, -1))
    ]
    put(lake, "hdbscan_model", points)
    cells = [{"level": level, "cell_id": i} for level, n in ((0, 2), (1, 1)) for i in range(n)]
    put(lake, "hierarchy_centroids", cells)
    said = run("status").output
    assert "photos: placing_2016 3" in said
    assert "clusters: 2; cells: level 0 2, level 1 1" in said


def test_runs_that_failed_and_were_not_made_since_are_named(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    broken = {"r00c00", "r00c01"}

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["r00c00", "r00c01"]))
    def splat_ply(context: dg.AssetExecutionContext) -> None:
        if context.partition_key in broken:
            raise dg.Failure("No splat came out; look at the photos.")

    (tmp_path / ".dagster").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / ".dagster"))
    instance = dg.DagsterInstance.ephemeral()  # seconds quicker than one on a disk, and asked the same questions
    monkeypatch.setattr(dg.DagsterInstance, "get", lambda: contextlib.nullcontext(instance))
    for box in ("r00c00", "r00c01"):
        dg.materialize([splat_ply], partition_key=box, instance=instance, raise_on_error=False)
    broken.clear()
    dg.materialize([splat_ply], partition_key="r00c01", instance=instance)
    found = json.loads(run("status", "--json").output)
    assert found["last_run"]["status"] == "SUCCESS" and found["last_run"]["partition"] == "r00c01"
    (failed,) = found["failed_partitions"]
    assert (failed["asset"], failed["partition"]) == ("splat_ply", "r00c00")
    assert failed["reason"] == "No splat came out; look at the photos."
    assert "failed: splat_ply r00c00" in run("status").output


def test_a_city_is_shown_with_its_place_its_files_and_its_boxes(lake: Lake) -> None:
    harvested(lake)
    said = run("city", "show", "town").output
    assert "2 x 2 = 4 boxes of 100 m; corner 11, 48" in said
    assert "Mapillary" in said and "the whole rectangle" in said
    assert "0.0 MB  tables" in said and lake.root in said
    assert "r00c00  downloaded" in said and "r00c01  seen" in said


def test_a_city_leaves_the_settings_and_its_data_stay(lake: Lake) -> None:
    harvested(lake)
    result = run("city", "remove", "town")
    assert result.exit_code == 0, result.output
    assert "Removed town from geo_assets.toml" in result.output and "The lake keeps" in result.output
    text = Path("geo_assets.toml").read_text()
    assert "# mine" in text and "steps = 300 # few" in text and "town]" not in text
    assert lake.has("image_metadata", city="town", box="r00c00")


def test_data_go_only_when_it_was_confirmed_and_only_the_citys_own(lake: Lake) -> None:
    harvested(lake)
    harvested(lake, "townhall")
    before = Path("geo_assets.toml").read_text()
    asked = run("city", "remove", "town", "--data", answer="n\n")
    assert asked.exit_code == 1 and "bytes), from" in asked.output
    assert Path("geo_assets.toml").read_text() == before and lake.has("image_metadata", city="town", box="r00c00")
    size = sum(lake.bytes_below(key) for key in lake.folders_of("town"))
    done = run("city", "remove", "town", "--data", "--yes")
    assert done.exit_code == 0 and f"{size:,} bytes in 4 folders" in done.output, done.output
    assert size > 1000 and not lake.folders_of("town")
    assert lake.has("image_metadata", city="townhall", box="r00c00") and len(lake.folders_of("townhall")) == 4


def test_the_demo_city_and_one_that_is_not_there_stay(lake: Lake) -> None:
    harvested(lake, "demo")
    refused = run("city", "remove", "demo", "--data", "--yes")
    assert refused.exit_code == 1 and "enabled = false" in refused.output
    assert lake.has("image_metadata", city="demo", box="r00c00"), "nothing is gone"
    assert "Did you mean 'town'?" in run("city", "remove", "twon").output
