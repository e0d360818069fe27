"""Processor seconds from the photos of one street to its placed model: python benchmarks/photos.py --photos FOLDER.

Features, matching and mapping of geotagged photos of one camera, with one thread, each beside its share; the limit is
60 s for 29 photos of 1024 px. Seconds of a processor that is shared with other work count half as much again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from PIL import Image

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import cpu_seconds
from geo_assets.lake import BoxPartition
from geo_assets.reconstruct import features, matching, models
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.lakes import lund_lake

LIMIT_S = 60.0
WHERE = BoxPartition(city="lund", box="r00c00")


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
def _command(photos: Path) -> None:
    Image.preinit()  # before pycolmap is loaded, which brings its own libraries for images
    options = Reconstruct(threads=1)
    with tempfile.TemporaryDirectory(prefix="geo_assets_benchmark_") as scratch:
        lake, grid = lund_lake(Path(scratch), photos)
        start = cpu_seconds()
        made = features.gps_database(lake, "lund", "r00c00", grid, options)
        lake.write("gps_db", made.frame, note=made.note, **WHERE)
        extracted = cpu_seconds()
        matched = matching.match_box(lake, "lund", "r00c00", options)
        lake.write("match_pairs", matched.frame, note=None, **WHERE)
        compared = cpu_seconds()
        best = models.map_box(lake, "lund", "r00c00", options).models.iloc[0]
        end = cpu_seconds()
    click.echo(f"{best.n_home_registered} of {len(made.frame)} photos registered, {len(matched.frame)} pairs")
    for name, seconds in (
        ("features", extracted - start),
        ("matches", compared - extracted),
        ("model", end - compared),
    ):
        click.echo(f"{name:10} {seconds:6.1f} CPU s")
    click.echo(
        f"{'together':10} {end - start:6.1f} CPU s, {(end - start) / LIMIT_S:.2f} of the limit of {LIMIT_S:.0f} s"
    )


if __name__ == "__main__":
    _command()
