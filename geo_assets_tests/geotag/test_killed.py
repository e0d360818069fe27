"""Every step of the photo sets, killed just before it puts a file in its place, and run again: the same table."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from geo_assets.demo import wikimedia
from geo_assets.demo.geotag_inputs import wikimedia_world, write_geotag_inputs
from geo_assets.lake import Lake
from geo_assets_tests.geotag.steps import STEPS

pytestmark = pytest.mark.xdist_group("geotag_killed")


class Runs:
    """The inputs, a server to ask, and a lake in which every step was run without disturbance."""

    def __init__(self, root: Path, address: str) -> None:
        self.root, self.address, self.inputs = root, address, root / "inputs"
        self.whole = root / "whole"

    def run(self, step: str, lake: Path, kill_at: int = 0) -> int | None:
        """Number of files that were put in their place, or None where the step was killed."""
        arguments = [step, str(lake), str(self.inputs), str(kill_at), self.address]
        command = [sys.executable, "-m", "geo_assets_tests.geotag.steps", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode == -signal.SIGKILL:
            return None
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["put"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("killed")
    write_geotag_inputs(root / "inputs")
    with wikimedia.serving(wikimedia_world()) as api:
        yield Runs(root, str(api))


def rows(root: Path, table: str) -> dict[str, object]:
    """The bytes of each partition; the times of answers are those of the clock, so there it is the rest."""
    lake = Lake(root)
    found: dict[str, object] = {}
    for partition in lake.partitions(table):
        if table == "landmark_coordinates":
            found[str(partition)] = lake.read(table, None, **partition).drop(columns="fetched_at").to_json()
        else:
            found[str(partition)] = Path(lake.facts(table, **partition).uri).read_bytes()
    return found


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_step_ends_in_the_same_table(runs: Runs, step: str, tmp_path: Path) -> None:
    runs.whole.mkdir(exist_ok=True)
    lake = tmp_path / "lake"
    shutil.copytree(runs.whole, lake)  # what the steps before have made
    put = runs.run(step, runs.whole)
    assert put is not None and put >= 1
    for kill_at in sorted({1, 2, put} & set(range(1, put + 1))):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        shutil.copytree(lake, tmp_path / "killed")
        assert runs.run(step, tmp_path / "killed", kill_at) is None, "it was not killed"
        assert runs.run(step, tmp_path / "killed") is not None
        whole = rows(runs.whole, step)
        assert whole and rows(tmp_path / "killed", step) == whole
        assert rows(tmp_path / "killed", "geotag_rejects") == rows(runs.whole, "geotag_rejects")
    litter = [path for path in (tmp_path / "killed").rglob("*.tmp")]
    assert len(litter) <= 1, litter
