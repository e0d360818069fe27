import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from geo_assets.cli import main
from geo_assets.cli.group import Command, Group
from geo_assets.lake import Lake
from geo_assets.tables import TABLES
from tools.commands_page import commands_page


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
        (["statu"], "'status'"),
        (["city", "rename"], "'remove'"),
        (["materialize", "--select", "splat_ply", "--city", "dmo"], "Did you mean 'demo'?"),
        (["materialize", "--select", "splat_ply", "--city", "demo", "--box", "R1C0"], "Did you mean 'r01c00'?"),
        (["materialize", "--select", "splat_ply", "--city", "demo", "--box", "north"], "A name is r00c00"),
        (["export", "demo", "--out", "x", "--format", "shp"], "geojson"),
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


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


ALL = dict(commands(main))


def test_help_lists_every_command_under_a_heading(run) -> None:
    said = run("--help").output
    assert "geo-assets demo" in said
    assert "\nMore:" not in said, "a command is in no section of geo_assets.cli.group"
    assert "..." not in said.split("Begin:")[1], "a first sentence is too long for the list"
    for name in main.commands:
        assert re.search(rf"^  {name} ", said, re.M), name


@pytest.mark.parametrize("path", ALL)
def test_help_teaches(run, path: str) -> None:
    command = ALL[path]
    assert isinstance(command, Command)
    result = run(*path.split(), "--help")
    assert result.exit_code == 0
    assert f"Examples:\n  geo-assets {path}" in result.output and "\nWrites:\n" in result.output
    for line in (*command.examples, *command.then):
        words = shlex.split(line)
        named = " ".join(words[:2]) if words[0] == "city" else words[0]
        assert named in ALL, f"{path} --help says: geo-assets {line}"
        options = {o for p in ALL[named].params for o in (*p.opts, *p.secondary_opts)}
        said = {word for word in words if word.startswith("--")}
        assert said <= options or named == "dev", f"{path} --help says: geo-assets {line}"


def test_the_page_of_the_commands_is_what_they_say() -> None:
    page = Path(__file__).parent.parent / "docs" / "commands.md"
    assert page.read_text() == commands_page(), "run: make docs"


def test_help_loads_nothing_heavy() -> None:
    heavy = ("dagster", "pandas", "numpy", "pyarrow", "pydantic", "duckdb", "fsspec", "aiohttp")
    code = f"import sys, geo_assets.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ctrl_c_says_that_it_can_be_run_again() -> None:
    @click.group(cls=Group)
    def program() -> None:
        """A program."""

    @program.command(examples="work", writes="nothing.")
    def work() -> None:
        """Work."""
        raise KeyboardInterrupt

    result = CliRunner().invoke(program, ["work"])
    assert result.exit_code == 130
    assert "run the same command again" in result.output and "Traceback" not in result.output


def test_a_folder_of_photos_is_not_harvested_by_a_dry_run(run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "geo_assets.toml").write_text('[cities.own]\nbbox = [1.0, 2.0, 1.01, 2.01]\nphotos = "photos"\n')
    result = run("harvest", "own", "--dry-run")
    assert result.exit_code == 0 and "Next: geo-assets harvest own --files" in result.output
    assert not (tmp_path / "lake").exists()


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
