"""How good the provider's own poses must be to map on them: python benchmarks/given_poses.py.

The photos of the demo world, whose true poses are known, are given poses of more and more noise, each image its own
(a provider's real ones err together, which is easier). For each: whether they are used, what comes out, and the
processor time, beside that of the global mapper on the same verified pairs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from geo_assets.demo.place import demo_city
from geo_assets.demo.world import World, demo_world
from geo_assets.grid import Grid
from geo_assets.lake import Lake
from geo_assets.reconstruct import features, matching
from geo_assets.reconstruct.frames import best_similarity
from geo_assets.settings import Reconstruct

CITY, BOX = "demo", "r00c00"
NOISE = ((0.05, 0.1), (0.1, 0.1), (0.1, 0.5), (0.3, 0.3), (1.0, 0.2), (1.0, 0.5), (3.0, 0.5))
"""Horizontal and vertical root mean square of the centres [m]; standard deviation of the rotation about each axis [deg]."""


@dataclass(frozen=True)
class Row:
    """One line of the table; ``error_m`` is the median error of the centres after the best similarity."""

    name: str
    used: bool
    n_registered: int
    error_m: float | None
    cpu_s: float
    epipolar_deg: float | None
    reason: str


def main(only: bool = True, given_share: float = 0.85, say: Callable[[str], None] = click.echo) -> list[Row]:
    """Measure each level of noise, and the global mapper.

    Args:
        only: use the poses also where they cost more than mapping.
        given_share: of the images that has a pose; the demo world's server gives as many.
        say: gets lines of progress.
    """
    from geo_assets.reconstruct import given_poses, mapping

    world, city = demo_world(log=say), demo_city()
    grid = Grid(city.bbox[0], city.bbox[1], 2 * city.box_m, 1, 1)
    options = Reconstruct(threads=1, panoramas="off")
    from geo_assets.demo.grown import fill_lake

    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder) / "lake")
        fill_lake(world, lake, CITY, {image.id: BOX for image in world.images})
        made = features.gps_database(lake, CITY, BOX, grid, options)
        lake.write("gps_db", made.frame, note=made.note, city=CITY, box=BOX)
        matching.match_box(lake, CITY, BOX, options)
        names = sorted(features.image_name(i) for i in made.frame.image_id)
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        with lake.local(lake.key("matches", features.DATABASE, city=CITY, box=BOX)) as database:
            for metres, degrees in NOISE:
                poses = [given_poses.GivenPose(*pose) for pose in noisy(world, metres, degrees, given_share)]
                with _quiet():
                    model, said = given_poses.triangulate_on_given(
                        str(database), str(scratch), scratch, names, poses, only=only
                    )
                error = _error_m(world, model) if model is not None else None
                off = said.before.epipolar_deg if said.before else None
                name = f"{metres:g} m, {degrees:g} deg"
                found.append(Row(name, said.used, said.n_registered, error, said.cpu_seconds, off, said.reason))
                say(f"{name}: {said.reason}")
            task = mapping.Task(str(database), scratch, names, {}, [], 0, 5)
            began = time.process_time()
            with _quiet():
                models = mapping.attempts(False)["global"](task)
            spent = time.process_time() - began
            n = models[0].num_reg_images()
            found.append(Row("global mapper", True, n, _error_m(world, models[0]), spent, None, ""))
    return found


def noisy(
    world: World, metres: float, degrees: float, share: float
) -> Iterator[tuple[str, list[float], list[float], None]]:
    """Name, centre and rotation of a share of the images: the truth with noise of each its own."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(0)
    for image_id, camera in sorted(world.truth.items()):
        centre = camera.centre + rng.normal(0, metres / np.sqrt(2), 3)
        turn = Rotation.from_rotvec(rng.normal(0, np.radians(degrees), 3))
        if rng.random() < share:
            rotation = (turn * Rotation.from_matrix(camera.cam_from_world)).as_rotvec()
            yield features.image_name(image_id), centre.tolist(), rotation.tolist(), None


def _error_m(world: World, model: Any) -> float:
    images = [model.image(i) for i in model.reg_image_ids()]
    found = np.array([image.projection_center() for image in images])
    true = np.array([world.truth[image.name.removesuffix(".jpg")].centre for image in images])
    return float(np.median(np.linalg.norm(best_similarity(found, true)(found) - true, axis=1)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """COLMAP's log, which it writes to the process's stderr, left out."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@click.command()
@click.option("--only/--auto", default=True, show_default=True, help="use poses also where they cost more than mapping")
@click.option("--given-share", default=0.85, show_default=True, help="of the images that has a pose")
def command(only: bool, given_share: float) -> None:
    """Print the table."""
    rows = main(only, given_share)
    click.echo(f"{'noise':<16}{'off [deg]':>10}{'used':>6}{'images':>8}{'error [m]':>11}{'CPU s':>8}")
    for row in rows:
        off = f"{row.epipolar_deg:.2f}" if row.epipolar_deg is not None else ""
        error = f"{row.error_m:.3f}" if row.error_m is not None else ""
        used = "yes" if row.used else "no"
        click.echo(f"{row.name:<16}{off:>10}{used:>6}{row.n_registered:>8}{error:>11}{row.cpu_s:>8.1f}")


if __name__ == "__main__":
    command()
