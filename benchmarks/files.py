"""How fast image files come into the lake: python benchmarks/files.py [--images 3000].

The demo server runs in a process of its own on loopback, with a city on paper whose photos are about 30 kB. The
client's part is what users run: addresses, download, full decoding, EXIF, fsync and rename of each file.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import peak
from geo_assets.demo.paper import paper_world
from geo_assets.demo.server import TOKEN
from geo_assets.harvest.images import fetch
from geo_assets.harvest.mapillary import Mapillary
from geo_assets.harvest.metadata import FIELDS, rows
from geo_assets.lake import Lake
from geo_assets.settings import Mapillary as Settings

EARLIER_PER_S = 42.0
"""Files a second that an earlier harvester reached on the same task."""

TARGET_PER_S = 300.0


@contextlib.contextmanager
def server(n: int, jpeg_kb: float) -> Iterator[str]:
    """The address of a demo server in a process of its own."""
    command = [sys.executable, "-m", "geo_assets.demo.server", "--images", str(n), "--jpeg-kb", str(jpeg_kb)]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def main(n: int = 3000, jpeg_kb: float = 30.0, size: str = "2048") -> dict[str, float]:
    """Fetch ``n`` files, then look at them again as a rerun does.

    Returns:
        Figures: files and MB a second, client CPU seconds, ratios to the earlier harvester and to the target.
    """
    ids = sorted(paper_world(n, jpeg_kb=jpeg_kb).ids)
    with tempfile.TemporaryDirectory() as folder, server(n, jpeg_kb) as address:
        lake, partition = Lake(Path(folder)), {"city": "bench", "box": "r00c00"}
        settings = Settings.model_validate({"graph_url": address, "tiles_url": address, "image_size": size})
        with Mapillary(settings, TOKEN) as client:
            metadata = rows(client.images(ids, FIELDS).rows, dt.datetime.now(dt.UTC))
            wall, cpu = time.perf_counter(), time.process_time()
            files = fetch(client, lake, metadata, partition).files
            wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
            lake.write("image_files", files, note={"size": size}, **partition)
            wall = time.perf_counter()
            n_kept = fetch(client, lake, metadata, partition).n_kept
            again_s = time.perf_counter() - wall
    done = files.loc[files["status"] == "done"]
    return {
        "n_files": len(done),
        "n_dead": len(files) - len(done),
        "n_kept_by_a_rerun": n_kept,
        "seconds": wall_s,
        "files_per_s": len(done) / wall_s,
        "mb_per_s": float(done["bytes"].sum()) / 1e6 / wall_s,
        "client_cpu_s": cpu_s,
        "files_per_client_cpu_s": len(done) / cpu_s,
        "rerun_files_per_s": n_kept / again_s,
        "memory_mb": peak() / (1 << 20),
        "times_the_earlier_harvester": len(done) / wall_s / EARLIER_PER_S,
        "times_the_target": len(done) / wall_s / TARGET_PER_S,
    }


@click.command(help=__doc__)
@click.option("--images", default=3000, show_default=True)
@click.option("--jpeg-kb", default=30.0, show_default=True)
def _command(images: int, jpeg_kb: float) -> None:
    for name, value in main(images, jpeg_kb).items():
        click.echo(f"{name:30} {value:10,.2f}")


if __name__ == "__main__":
    _command()
