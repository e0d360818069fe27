"""The photo sets at the sizes they have: python benchmarks/geotag_sources.py [--quick] [PART ...].

Runs the benchmark of each part in a process of its own, so that peaks of memory are apart: placing_2016, flickr_geotag,
landmark_coordinates, google_landmark, geotag_combined. Each prints its figures beside the limit or the earlier way, and
can be run alone: python benchmarks/placing_2016.py. The whole takes about half an hour and 15 GB of disk on two cores;
--quick shrinks what is synthetic and says less about memory.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

PARTS = {
    "placing_2016": ("--records", "2000", "--lines", "50000", "--rounds", "2"),
    "flickr_geotag": ("--photos", "5000", "--lines", "200000"),
    "landmark_coordinates": ("--pages", "50", "--batches", "200"),
    "google_landmark": ("--photos", "400000", "--dump-rows", "300000"),
    "geotag_combined": ("--rows", "2000000"),
}
"""Options of each part with ``--quick``."""


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="smaller inputs")
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
def _command(quick: bool, parts: tuple[str, ...]) -> None:
    failed = []
    for part in parts or PARTS:
        click.echo(f"\n== {part}")
        options = PARTS[part] if quick else ()
        done = subprocess.run([sys.executable, str(Path(__file__).with_name(f"{part}.py")), *options], check=False)
        failed += [part] if done.returncode else []
    if failed:
        raise click.ClickException(f"{', '.join(failed)} did not end well.")


if __name__ == "__main__":
    _command()
