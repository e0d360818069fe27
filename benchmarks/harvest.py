"""How fast a city is harvested, and at what cost: python benchmarks/harvest.py [--images 200000].

The demo server runs in a process of its own on loopback, with a city on paper that has five hot spots. The client is
``geo-assets harvest`` as users run it, in a process of its own and a fresh folder; its processor time and memory are
measured apart from the server's. Files are measured by benchmarks/files.py at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import files

TARGET_PER_CPU_S = 10_000.0
MOST_MEMORY_MB = 600.0
BUDGET = 1.1
"""Requests may be so many times what they are by :func:`needed`."""


@contextlib.contextmanager
def server(n: int, hot_spots: int, side_m: float) -> Iterator[dict[str, Any]]:
    """What a demo server in a process of its own says of itself."""
    options = {"--images": n, "--hot-spots": hot_spots, "--side-m": side_m, "--port": 0}
    command = [sys.executable, "-m", "geo_assets.demo.server", *(str(v) for pair in options.items() for v in pair)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.terminate()


def needed(n_images: int, n_sequences: int, n_tiles: int) -> float:
    """Requests of a harvest without faults: two a tile, a list a sequence, two searches of 220 images, pages of 50.

    Args:
        n_images: images of the city.
        n_sequences: their sequences.
        n_tiles: requests for tiles, both data sets counted.
    """
    return n_tiles + n_sequences + 2 * n_images / 220 + n_images / 50


def main(n: int = 200_000, hot_spots: int = 5, side_m: float = 4_000.0, box_m: float = 500.0) -> dict[str, float]:
    """Harvest a city of ``n`` images without files, then once more with nothing changed.

    Returns:
        Figures: images a client CPU second, requests against the budget, memory and seconds, and their ratios to
        the targets.
    """
    with tempfile.TemporaryDirectory() as folder, server(n, hot_spots, side_m) as about:
        settings = f"[cities.bench]\nbbox = {about['bbox']}\nbox_m = {box_m}\n[mapillary]\ntiles_per_minute = 1000000\n"
        (Path(folder) / "geo_assets.toml").write_text(settings)
        wall = time.perf_counter()
        said, used = _harvest(folder, about)
        wall_s = time.perf_counter() - wall
        asked = _stats(about["url"])
        _, again = _harvest(folder, about)
        requests_again = sum(_stats(about["url"])["requests"].values()) - sum(asked["requests"].values())
    cpu_s, memory_mb = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    budget = BUDGET * needed(said["n_images"], said["n_sequences"], asked["requests"]["tile"])
    requests = sum(asked["requests"].values())
    return {
        "n_images": said["n_images"],
        "recall": said["n_images"] / about["n_inside"],
        "complete": float(said["complete"]),
        "seconds": wall_s,
        "client_cpu_s": cpu_s,
        "server_cpu_s": asked["cpu_seconds"],
        "images_per_client_cpu_s": said["n_images"] / cpu_s,
        "times_the_target": said["n_images"] / cpu_s / TARGET_PER_CPU_S,
        "requests": requests,
        "share_of_the_budget": requests / budget,
        "memory_mb": memory_mb,
        "share_of_the_memory": memory_mb / MOST_MEMORY_MB,
        "rerun_cpu_s": again.ru_utime + again.ru_stime,
        "rerun_requests": requests_again,
    }


def _harvest(folder: str, about: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The last line of a harvest, and what its process used."""
    environment = os.environ | {
        "GEO_ASSETS_MAPILLARY__GRAPH_URL": about["url"],
        "GEO_ASSETS_MAPILLARY__TILES_URL": about["url"],
        "GEO_ASSETS_SETTINGS": str(Path(folder) / "geo_assets.toml"),
        "MAPILLARY_TOKEN": about["token"],
    }
    command = [sys.executable, "-m", "geo_assets.cli", "harvest", "bench", "--json"]
    with (Path(folder) / "harvest.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)  # what this one process used, not all children together
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        lines = log.read().splitlines()
    if process.returncode:
        raise click.ClickException("The harvest failed:\n" + "\n".join(lines[-20:]))
    return json.loads(lines[-1]), used


def _stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/_stats") as answer:
        return json.load(answer)


@click.command(help=__doc__)
@click.option("--images", default=200_000, show_default=True)
@click.option("--hot-spots", default=5, show_default=True)
@click.option("--side-m", default=4_000.0, show_default=True, help="side of the city [m]")
@click.option("--files", "n_files", default=3000, show_default=True, help="files to fetch; 0: none")
def _command(images: int, hot_spots: int, side_m: float, n_files: int) -> None:
    for name, value in main(images, hot_spots, side_m).items():
        click.echo(f"{name:30} {value:12,.2f}")
    if n_files:
        for name, value in files.main(n_files).items():
            click.echo(f"files: {name:23} {value:12,.2f}")


if __name__ == "__main__":
    _command()
