"""A wheel holds all that runs need: pages, SQL files, the instance's template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USE = """
import json, urllib.request
from pathlib import Path
import geo_assets
from geo_assets.definitions import defs
from geo_assets.home import prepare_home
from geo_assets.lake import Lake
from geo_assets.serve.app import application
from geo_assets.settings import load
from geo_assets.splats import city_page, globe, serve, viewer

paths = ("/", "/page/app.mjs", "/page/style.css", "/api/cities")
with serve.in_background(application(Lake("lake"), load)) as address:
    answers = [urllib.request.urlopen(address.rstrip("/") + path).status for path in paths]
print(json.dumps({
    "from": str(Path(geo_assets.__file__).parent.parent),
    "assets": [key.to_user_string() for key in defs.resolve_asset_graph().materializable_asset_keys],
    "answers": answers,
    "viewer": "sse-bootstrap" in viewer._template() and "sse-bootstrap" in city_page._template(),
    "globe": globe._TEMPLATE.is_file(),
    "instance": (prepare_home() / "dagster.yaml").is_file(),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    files = {p for top in ("geo_assets", "dbt_like_sql") for p in (ROOT / top).rglob("*") if p.is_file()}
    wanted = {p.relative_to(ROOT).as_posix() for p in files if not {"__pycache__", ".numba_cache"} & set(p.parts)}
    assert not wanted - set(zipfile.ZipFile(wheel).namelist())


def test_what_is_installed_from_it_runs(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "work").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GEO_ASSETS_", "DAGSTER_"))}
    run = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path / "work",
        env=environment | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["from"] == str(tmp_path / "site")
    assert {"splat_ply", "reconstruction_funnel"} <= set(found["assets"])
    assert found["answers"] == [200] * 4
    assert found["viewer"] and found["globe"] and found["instance"]
