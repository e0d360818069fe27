"""What a splat that goes on from the earlier one costs and is worth: python benchmarks/warm_start.py [--share 0.1].

The photos of the demo world lie in one box. A share of them is held back, the box is made and trained without them, and
brought up to date with them, as benchmarks/update.py does. Then the same photos are trained twice: from the earlier
splat, and from the points at full length. Both hold out the same photos, none of which the earlier splat was trained
on; our judge scores the new and the old of them apart. The measure is processor time of one thread.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.splats import lake_dataset
from benchmarks.update import BOX, CITY, cpu_seconds, fill, make, some_of
from geo_assets.demo.place import demo_city
from geo_assets.demo.world import demo_world
from geo_assets.grid import Grid
from geo_assets.lake import Lake
from geo_assets.settings import Reconstruct, Splats
from geo_assets.splats.box import splat_of_box
from geo_assets.splats.dataset import read_scene
from geo_assets.splats.earlier import earlier_splat
from geo_assets.splats.engine import ON_CPU, SplatRequest
from geo_assets.splats.engines.cpu import CpuEngine
from geo_assets.splats.gaussians import Gaussians, joined
from geo_assets.splats.georeference import read_frame
from geo_assets.splats.judge import judge, mean
from geo_assets.splats.ply import read_ply

LIMIT = 0.5
"""A training from the earlier splat may cost at most so much of one from the points."""
WORSE_DB = 0.5
"""And may be worse by so much."""
Say = Callable[[str], None]


@dataclasses.dataclass
class Figures:
    """What a splat cost [CPU s] and is worth on held-out photos [dB]: those that are new, and those that are old."""

    name: str
    cpu_s: float
    n_splats: int
    new_db: float
    old_db: float


def worlds(folder: Path, share: float, say: Say) -> Lake:
    """A lake whose box was reconstructed without a share of the photos and trained, and then brought up to date."""
    lake, world, city = Lake(folder / "lake"), demo_world(log=say), demo_city()
    grid = Grid(city.bbox[0], city.bbox[1], 2 * city.box_m, 1, 1)
    options = Reconstruct(threads=1, panoramas="off")
    fill(lake, some_of(world, round(1 / share)))
    make(lake, grid, options)
    began = cpu_seconds()
    first = splat_of_box(lake, CITY, BOX, settings(), lambda line: None)
    say(f"first splat: {first.figures['psnr_db']:.2f} dB on photos held out, {cpu_seconds() - began:.0f} CPU s in all")
    fill(lake, world)
    say(f"sparse model: {make(lake, grid, options).figures['route']}")
    return lake


def settings() -> Splats:
    """Those of the demo city, on one thread."""
    return Splats(engine="cpu", threads=1, learning_rate_scale=demo_city().splats.get("learning_rate_scale", 2.0))


def main(share: float, say: Say = click.echo) -> tuple[Figures, Figures, Figures]:
    """Measure the earlier splat as it is, the training from it, and the one from the points."""
    options = settings()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        lake = worlds(folder, share, say)
        dataset = lake_dataset(lake, CITY, BOX, folder / "dataset", ON_CPU.max_image_px)
        model = lake.read("sparse_models", city=CITY, box=BOX).iloc[0]
        with lake.local(lake.key("models", "geo.json", city=CITY, box=BOX)) as geo:
            frame = read_frame(geo)
        key = lake.key("splats", city=CITY, box=BOX)
        earlier, why = earlier_splat(lake, key, dataset, frame, model.route, options, ON_CPU.max_splats)
        if earlier is None:
            raise click.ClickException(f"The earlier splat cannot be used: {why}.")
        scene = read_scene(dataset)
        held_out = scene.held_out(options.holdout_every)
        new, old = ([v for v in held_out if (v.name in earlier.new) is is_new] for is_new in (True, False))
        say(f"{len(scene.views)} photos, {len(earlier.new)} new; held out: {len(new)} new, {len(old)} old")

        def figures(name: str, cpu_s: float, splat: Gaussians) -> Figures:
            new_db, old_db = (mean(judge(splat, views, "holdout"), "psnr_db") for views in (new, old))
            return Figures(name, cpu_s, len(splat), new_db or float("nan"), old_db or float("nan"))

        rows = [figures("earlier as it is", 0, joined([earlier.place, earlier.sky], 1))]
        for name, steps in (
            ("from the earlier", round(options.refresh_share * ON_CPU.steps)),
            ("from the points", ON_CPU.steps),
        ):
            made = folder / name.replace(" ", "_")
            made.mkdir()
            request = SplatRequest(
                dataset,
                made,
                steps=steps,
                max_splats=ON_CPU.max_splats,
                sh_degree=ON_CPU.sh_degree,
                holdout_every=options.holdout_every,
                learning_rate_scale=options.learning_rate_scale,
                threads=1,
                earlier=earlier if "earlier" in name else None,
            )
            began = cpu_seconds()
            result = CpuEngine().train(request, lambda line: None)
            cpu_s = cpu_seconds() - began
            parts = [read_ply(path) for path in (result.ply_path, result.sky_path) if path]
            rows.append(figures(name, cpu_s, joined(parts, 1)))
            shutil.rmtree(made)
    return rows[0], rows[1], rows[2]


@click.command()
@click.option("--share", default=0.1, show_default=True, help="of the photos that is new")
def command(share: float) -> None:
    """Print the table; ends with 1 where going on costs too much or is worse."""
    before, warm, cold = main(share)
    click.echo(f"{'':<18}{'CPU s':>8}{'Gaussians':>11}{'new dB':>9}{'old dB':>9}")
    for row in (before, warm, cold):
        click.echo(f"{row.name:<18}{row.cpu_s:>8.1f}{row.n_splats:>11,}{row.new_db:>9.2f}{row.old_db:>9.2f}")
    ratio = warm.cpu_s / cold.cpu_s
    click.echo(f"going on by starting anew: {ratio:.2f} (at most {LIMIT})")
    worse = max(cold.new_db - warm.new_db, cold.old_db - warm.old_db)
    click.echo(f"worse by at most {max(worse, 0):.2f} dB (at most {WORSE_DB})")
    sys.exit(0 if ratio <= LIMIT and worse <= WORSE_DB else 1)


if __name__ == "__main__":
    command()
