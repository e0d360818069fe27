"""How long the code location takes to load with 25,000 partition keys: python benchmarks/definitions.py.

Three loads, each in a fresh process: the import that every step process pays, ``dagster definitions validate``, and the
snapshot that the web server asks of the code server. Best of three each, beside the 3 s that are the limit. Keys are
five cities of 5,000 boxes; one city of 24,964 boxes is shown beside it.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from geo_assets.grid import METRES_PER_DEGREE

LIMIT_S = 3.0
BOX_M, SOUTH = 500.0, 48.0
ROOT = Path(__file__).resolve().parent.parent

IMPORT = "import geo_assets.definitions"
SNAPSHOT = """
from dagster._core.remote_representation.external_data import RepositorySnap
from dagster._serdes import serialize_value
from geo_assets.definitions import defs
print(len(serialize_value(RepositorySnap.from_def(defs.get_repository_def()))))
"""


def city(name: str, rows: int, columns: int, west: float) -> str:
    """A city of so many boxes, as the settings file has it."""
    lat = BOX_M / METRES_PER_DEGREE
    lon = lat / math.cos(math.radians(SOUTH))
    east, north = west + (columns - 0.01) * lon, SOUTH + (rows - 0.01) * lat
    return f"[cities.{name}]\nbbox = [{west}, {SOUTH}, {east}, {north}]\norigin = [{west}, {SOUTH}]\nbox_m = {BOX_M}\n"


def settings(path: Path, *grids: tuple[int, int]) -> Path:
    """A settings file of cities with so many rows and columns, and no demo."""
    cities = (city(f"city_{n}", rows, columns, 3.0 * n) for n, (rows, columns) in enumerate(grids))
    path.write_text("[demo]\nenabled = false\n" + "".join(cities))
    return path


def seconds(command: list[str], environment: dict[str, str], times: int = 3) -> tuple[float, float, str]:
    """Least wall time and processor time of some runs of a command, and what the last one printed."""
    walls, cpus, said = [], [], ""
    for _ in range(times):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        said = done.stdout.strip()
    return min(walls), min(cpus), said


def main(times: int = 3) -> dict[str, float]:
    """Load the code location with few keys, with 25,000 of five cities, and with as many of one."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="geo_assets_") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        shutil.copy(ROOT / "geo_assets" / "deploy" / "dagster.yaml", home)
        known = {
            "DAGSTER_HOME": str(home),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        cases = {"demo": None, "5 x 5,000": [(50, 100)] * 5, "1 x 24,964": [(158, 158)]}
        click.echo(f"{'keys':<12}{'step':<12}{'wall s':>8}{'cpu s':>8}{'of 3 s':>8}")
        for name, grids in cases.items():
            path = Path(folder) / "settings.toml"
            path.unlink(missing_ok=True)
            if grids:
                settings(path, *grids)
            environment = os.environ | known | {"GEO_ASSETS_SETTINGS": str(path)}
            validate = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "geo_assets.definitions"]
            steps = {"load": [sys.executable, "-c", IMPORT], "validate": validate}
            steps["snapshot"] = [sys.executable, "-c", SNAPSHOT]
            for step, command in steps.items():
                wall, cpu, said = seconds(command, environment, times)
                size = f"  {int(said.splitlines()[-1]) / 1e6:.1f} MB" if step == "snapshot" else ""
                click.echo(f"{name:<12}{step:<12}{wall:8.2f}{cpu:8.2f}{wall / LIMIT_S:8.2f}{size}")
                found[f"{name} {step}"] = wall
    return found


if __name__ == "__main__":
    click.command()(click.option("--times", default=3, help="runs of each")(main))()
