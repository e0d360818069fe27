from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from geo_assets.cli import main
from geo_assets.lake import Lake
from geo_assets.tables import TABLES


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("GEO_ASSETS_SETTINGS", "DAGSTER_HOME", "MAPILLARY_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    return invoke


def test_a_city_is_added_with_its_grid_and_the_next_step(run, tmp_path: Path) -> None:
    result = run("city", "add", "san_francisco", "--bbox", "-122.52,37.70,-122.35,37.83")
    assert result.exit_code == 0, result.output
    assert "29 x 30 = 870 boxes of 500 m" in result.output
    assert "MAPILLARY_TOKEN" in result.output
    assert "geo-assets materialize --select splat_ply --city san_francisco" in result.output
    assert "san_francisco" in (tmp_path / "geo_assets.toml").read_text()
    assert "san_francisco" in run("city", "list").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["city", "add", "x"], "exactly one of --bbox, --aoi and --photos"),
        (["city", "add", "x", "--bbox", "1,2,3"], "not west,south,east,north"),
        (["city", "add", "x", "--bbox", "10,0,5,1"], "west < east"),
        (["city", "add", "X y", "--bbox", "1,2,3,4"], "cannot name a city"),
        (["city", "add", "x", "--bbox", "-20,-20,20,20"], "partition keys, more than 25,000"),
        (["materialize", "--select", "splat_ply", "--box", "r00c00"], "exactly one --city"),
        (["show", "atlantis"], "No city 'atlantis'"),
        (["geotag", "--out", "photos.csv"], "geo-assets materialize --select geotag_combined"),
        (["geotag", "--out", "photos.csv", "--split", "holdout"], "There is no split 'holdout'"),
        (["cells", "--out", "cells"], "geo-assets materialize --select hierarchy_centroids"),
        (["show", "demo", "r00c00"], "geo-assets materialize --select splat_ply --city demo --box r00c00"),
    ],
)
def test_a_wrong_call_ends_in_one_sentence(run, arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_photo_folder_without_gps_is_refused(run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    result = run("city", "add", "x", "--photos", "photos")
    assert result.exit_code != 0
    assert "GPS" in result.output


def test_help_teaches(run) -> None:
    assert "geo-assets demo" in run("--help").output
    for command in ("city", "materialize", "demo", "show", "dev", "definitions"):
        assert command in run("--help").output
        assert run(command, "--help").exit_code == 0


def test_a_harvest_is_told_to_the_instance_for_its_own_city_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    from geo_assets.lake import Lake
    from geo_assets.recording import record_harvest
    from geo_assets.settings import load
    from geo_assets.tables import TABLES

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    lake = Lake(load().lake)
    for city, box in (("demo", "r00c00"), ("elsewhere", "r07c07")):
        lake.write("image_metadata", TABLES["image_metadata"].empty(), city=city, box=box)
    assert record_harvest("demo") == 1, "boxes of other cities are none of its business"
    assert record_harvest("demo") == 0, "and what is known is not told again"
    with dg.DagsterInstance.get() as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("image_metadata")) == {"r00c00|demo"}


def test_photo_coordinates_become_a_csv_file(run, tmp_path: Path) -> None:
    photo = dict.fromkeys(TABLES["geotag_combined"].column_names) | {"source": "placing_2016", "photo_id": "70000"}
    photo |= {"path": "aa/70000.jpg", "lon": 11.5, "lat": 48.1, "flags": [], "split": "train"}
    lake = Lake(tmp_path / "lake")
    lake.write("geotag_combined", TABLES["geotag_combined"].frame([photo]))
    result = run("geotag", "--out", "photos.csv", "--split", "train")
    assert result.exit_code == 0 and "photos.csv: 1 photos" in result.output, result.output
    assert (tmp_path / "photos.csv").read_text() == "path,lat,lon\n./2016_placing/aa/70000.jpg,48.1,11.5\n"
