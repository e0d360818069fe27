"""``geo-assets splat`` and ``geo-assets globe``."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from geo_assets.cli import main
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.splats.cesium import pinned
from geo_assets.splats.compressed import read_compressed_ply
from geo_assets.splats.exports import write_exports
from geo_assets.splats.georeference import splat_reference
from geo_assets.splats.ply import read_ply, write_ply
from geo_assets.splats.spz import read_spz, spz_bytes
from geo_assets.splats.tiles3d import spz_of_glb
from geo_assets_tests.splats.scenes import blobs

FRAME = LocalFrame(11.57, 48.13, 520.0)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake whose demo city has one box and a whole, 20 and 30 Gaussians."""
    monkeypatch.chdir(tmp_path)
    for name in ("GEO_ASSETS_SETTINGS", "DAGSTER_HOME", "GEO_ASSETS_CESIUM"):
        monkeypatch.delenv(name, raising=False)
    lake = Lake(tmp_path / "lake")
    for key, name, n in (
        (lake.key("splats", city="demo", box="r00c00"), "splat", 20),
        (lake.key("splats_city", city="demo"), "city", 30),
    ):
        made = tmp_path / "made"
        write_ply(made / f"{name}.ply", blobs(n, 1))
        (made / f"{name}.geo.json").write_text(json.dumps(splat_reference(FRAME)))
        lake.publish(made, key)
        shutil.rmtree(made, ignore_errors=True)
    return lake


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["splat", *arguments])


def test_each_format_of_a_box(lake: Lake, tmp_path: Path) -> None:
    for form, read in (("ply", read_ply), ("spz", read_spz), ("compressed.ply", read_compressed_ply)):
        result = run("demo", "r00c00", "--format", form, "--out", f"out/street.{form}")
        assert result.exit_code == 0, result.output
        assert len(read(tmp_path / "out" / f"street.{form}")) == 20
        assert f"street.{form}: " in result.output
    result = run("demo", "r00c00", "--format", "spz", "--version", "2", "--out", "out")
    assert (tmp_path / "out" / "demo_r00c00.spz").read_bytes() == spz_bytes(blobs(20, 1), 2), result.output


def test_a_city_and_a_sky(lake: Lake, tmp_path: Path) -> None:
    assert run("demo", "--format", "spz", "--out", "city.spz").exit_code == 0
    assert len(read_spz(tmp_path / "city.spz")) == 30
    box = Path(lake.uri(lake.key("splats", city="demo", box="r00c00")))
    assert "has no sky of its own" in run("demo", "r00c00", "--format", "ply", "--sky", "--out", "x.ply").output
    write_ply(box / "sky.ply", blobs(7))
    assert run("demo", "r00c00", "--format", "ply", "--sky", "--out", "x.ply").exit_code == 0
    assert len(read_ply(tmp_path / "x.ply")) == 27


def test_tiles_are_those_published_or_new_ones(lake: Lake, tmp_path: Path) -> None:
    result = run("demo", "r00c00", "--format", "tiles", "--out", "tiles")
    assert result.exit_code == 0, result.output
    assert len(read_spz(spz_of_glb((tmp_path / "tiles" / "splat.glb").read_bytes()))) == 20
    assert {p.name for p in (tmp_path / "tiles").iterdir()} == {"splat.glb", "tileset.json", "globe.html"}
    box = Path(lake.uri(lake.key("splats", city="demo", box="r00c00")))
    write_exports(box, blobs(9), FRAME, title="x")
    (box / "tiles").mkdir()
    (box / "tiles" / "0.glb").write_bytes(b"one of a tree")
    assert run("demo", "r00c00", "--format", "tiles", "--out", "again").exit_code == 0
    names = {str(p.relative_to(tmp_path / "again")) for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert names == {"splat.glb", "tileset.json", "globe.html", "tiles/0.glb"}
    assert (tmp_path / "again" / "splat.glb").read_bytes() == (box / "splat.glb").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["atlantis", "--format", "spz", "--out", "x"], "No city 'atlantis'"),
        (["demo", "r77c77", "--format", "spz", "--out", "x"], "demo has no box r77c77"),
        (
            ["demo", "r01c01", "--format", "spz", "--out", "x"],
            "materialize --select splat_ply --city demo --box r01c01",
        ),
        (["demo", "--format", "tiles", "--sky", "--out", "x"], "a globe has a sky of its own"),
        (["demo", "--format", "obj", "--out", "x"], "'obj' is not one of"),
        (["demo", "--format", "spz", "--version", "4", "--out", "x"], "not in the range 2<=x<=3"),
        (["demo", "r00c00", "--format", "tiles", "--out", "geo_assets.toml"], "is a file; tiles need a folder"),
    ],
)
def test_a_wrong_call_ends_in_one_sentence(lake: Lake, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "geo_assets.toml").write_text("")
    result = run(*arguments)
    assert result.exit_code != 0
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_city_too_large_for_one_file(lake: Lake) -> None:
    Path(lake.uri(lake.key("splats_city", "city.ply", city="demo"))).unlink()
    assert "Export its boxes one by one, or --format tiles" in run("demo", "--format", "spz", "--out", "x").output


def test_help_teaches() -> None:
    text = CliRunner().invoke(main, ["splat", "--help"]).output
    for word in ("compressed.ply", "CesiumJS", "geo-assets splat demo r00c00 --format spz --out street.spz"):
        assert word in text


def test_the_globe_is_served_until_it_is_ended(lake: Lake, tmp_path: Path) -> None:
    asked = CliRunner().invoke(main, ["globe", "."])
    assert "has no globe.html" in asked.output
    assert "geo-assets splat CITY --format tiles" in asked.output
    run("demo", "r00c00", "--format", "tiles", "--out", "tiles")
    (tmp_path / "cesium").mkdir()
    (tmp_path / "cesium" / "Cesium.js").write_text("// ours")
    command = [sys.executable, "-m", "geo_assets.cli", "globe", "tiles", "--print"]
    environment = {"GEO_ASSETS_CESIUM": str(tmp_path / "cesium"), "PYTHONUNBUFFERED": "1", "PATH": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            with urllib.request.urlopen(address) as answer:
                assert b"splatGlobe" in answer.read()
            folder = address.rsplit("/", 1)[0]
            with urllib.request.urlopen(f"{folder}/{pinned().folder}/Cesium.js") as answer:
                assert answer.read() == b"// ours"
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
