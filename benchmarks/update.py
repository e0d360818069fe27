"""What it costs to bring a box up to date: python benchmarks/update.py [--share 0.1].

The photos of the demo world lie in one box. A share of them is held out, the box is made without them, and then with
them: once as an update of what is there, once in a lake without any earlier result. The measure is processor time of
features, pairs and models, of this process and its children; cameras that were there must not move.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import cpu_seconds
from geo_assets.demo.grown import fill_lake
from geo_assets.demo.place import demo_city, demo_frame
from geo_assets.demo.world import World, demo_world
from geo_assets.grid import Grid
from geo_assets.lake import Lake
from geo_assets.reconstruct import features, matching, models
from geo_assets.reconstruct.frames import best_similarity
from geo_assets.settings import Reconstruct

CITY, BOX = "demo", "r00c00"
LIMIT = 0.25
"""An update with a tenth of new images may cost at most so much of a rebuild."""

STAGES: tuple[str, ...] = ("gps_db", "match_pairs", "sparse_models")


@dataclass
class Made:
    """What one run cost, by stage [CPU s], and what it left."""

    cpu_s: dict[str, float]
    figures: dict[str, Any]
    cameras: pd.DataFrame

    @property
    def total_s(self) -> float:
        """All stages together [CPU s]."""
        return sum(self.cpu_s.values())


def make(lake: Lake, grid: Grid, options: Reconstruct) -> Made:
    """Features, pairs and models of the box, as the assets make them."""
    where = {"city": CITY, "box": BOX}
    marks = [cpu_seconds()]
    database = features.gps_database(lake, CITY, BOX, grid, options)
    lake.write("gps_db", database.frame, note=database.note, city=CITY, box=BOX)
    marks.append(cpu_seconds())
    matched = matching.match_box(lake, CITY, BOX, options)
    lake.write("match_pairs", matched.frame, note=None, **where)
    marks.append(cpu_seconds())
    mapped = models.map_box(lake, CITY, BOX, options)
    lake.write("model_cameras", mapped.cameras, note=mapped.note, city=CITY, box=BOX)
    lake.write("model_blocks", mapped.blocks, note=None, **where)
    lake.write("sparse_models", mapped.models, note=mapped.note, city=CITY, box=BOX)
    marks.append(cpu_seconds())
    cpu_s = dict(zip(STAGES, np.diff(marks).tolist(), strict=True))
    pairs = {"n_pairs": len(matched.frame), "n_reused": int(matched.frame.reused.fillna(False).astype(bool).sum())}
    return Made(cpu_s, database.figures | pairs | mapped.figures, mapped.cameras)


def some_of(world: World, every: int) -> World:
    """The world without each ``every``-th photo."""
    return replace(world, images=tuple(image for k, image in enumerate(world.images) if k % every != every // 2))


def fill(lake: Lake, world: World) -> None:
    """The photos of the world in the one box."""
    fill_lake(world, lake, CITY, {image.id: BOX for image in world.images})


def shape_m(world: World, cameras: pd.DataFrame) -> tuple[float, float]:
    """Median and largest error of the largest model's camera centres after the best similarity [m]."""
    part = pd.DataFrame(cameras[(cameras.component == 0) & cameras.image_id.isin(list(world.truth))])
    found = demo_frame().enu(part["lon"], part["lat"], part["alt_m"])
    true = np.array([world.truth[str(i)].centre for i in part["image_id"]])
    off = np.linalg.norm(best_similarity(found, true)(found) - true, axis=1)
    return float(np.median(off)), float(off.max())


def moved_m(before: pd.DataFrame, after: pd.DataFrame) -> float:
    """Largest move of a camera that both have [m]."""
    both = before.merge(after, on="image_id", suffixes=("", "_after"))
    columns = ["east_m", "north_m", "up_m"]
    return float(np.abs(both[columns].to_numpy(float) - both[[f"{c}_after" for c in columns]].to_numpy(float)).max())


def main(share: float = 0.1, threads: int = 1, say: Callable[[str], None] = click.echo) -> tuple[Made, Made, Made]:
    """Measure the first run, the update and the rebuild.

    Args:
        share: of the photos that is held out.
        threads: threads of COLMAP.
        say: gets lines of progress.
    """
    options = Reconstruct(threads=threads, panoramas="off")
    world, city = demo_world(log=say), demo_city()
    grid = Grid(city.bbox[0], city.bbox[1], 2 * city.box_m, 1, 1)
    with tempfile.TemporaryDirectory() as folder:
        kept, fresh = Lake(Path(folder) / "kept"), Lake(Path(folder) / "fresh")
        fill(kept, some_of(world, round(1 / share)))
        first = make(kept, grid, options)
        say(f"first run: {first.total_s:.0f} s")
        fill(kept, world)
        update = make(kept, grid, options)
        say(f"update: {update.total_s:.0f} s")
        fill(fresh, world)
        rebuild = make(fresh, grid, options)
        say(f"rebuild: {rebuild.total_s:.0f} s")
    return first, update, rebuild


@click.command()
@click.option("--share", default=0.1, show_default=True, help="of the photos that is new")
@click.option("--threads", default=1, show_default=True)
def command(share: float, threads: int) -> None:
    """Print the table; ends with 1 where the update costs too much or something moved."""
    first, update, rebuild = main(share, threads)
    world = demo_world()
    click.echo(f"{'CPU seconds':<12}" + "".join(f"{stage:>15}" for stage in (*STAGES, "all")))
    for name, made in (("first run", first), ("update", update), ("rebuild", rebuild)):
        cells = [*(made.cpu_s[stage] for stage in STAGES), made.total_s]
        click.echo(f"{name:<12}" + "".join(f"{value:>15.1f}" for value in cells))
    for name, made in (("first run", first), ("update", update), ("rebuild", rebuild)):
        median, worst = shape_m(world, made.cameras)
        click.echo(
            f"{name}: {made.figures['n_extracted']} photos extracted, {made.figures['n_pairs']:,} pairs of which "
            f"{made.figures['n_reused']:,} reused, {len(made.cameras)} cameras, centres {median:.3f} m "
            f"(largest {worst:.3f} m) off, {made.figures['route']}"
        )
    ratio, moved = update.total_s / rebuild.total_s, moved_m(first.cameras, update.cameras)
    click.echo(f"update by rebuild: {ratio:.2f} (at most {LIMIT}); cameras that were there moved by {moved:g} m")
    sys.exit(0 if ratio <= LIMIT and moved == 0.0 else 1)


if __name__ == "__main__":
    command()
