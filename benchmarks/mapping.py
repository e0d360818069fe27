"""What it costs to map a street of 1, 2, 4, 8 boxes: python benchmarks/mapping.py [--boxes 1 --boxes 2 ...].

The demo world is grown to so many boxes of 87 photos. Features, pairs and sparse models are made box by box, as the
assets make them; beside it one incremental mapper takes everything at once, on the same verified matches. The measure
is processor time, of this process and its children. The cameras are compared with the truth that the world knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import cpu_seconds
from geo_assets.demo.grown import GrownWorld, fill_lake, grown_world
from geo_assets.demo.place import demo_frame
from geo_assets.demo.street import BLOCK_M
from geo_assets.lake import Lake
from geo_assets.reconstruct import alignment, features, matching, models
from geo_assets.reconstruct.frames import best_similarity
from geo_assets.settings import Reconstruct

CITY = "grown"
FLAT = 0.10
"""Processor time an image may differ by so much between the smallest and the largest size of the world."""

MARGIN_M = 60.0 * BLOCK_M / 500.0
"""The margin is to the box of the benchmark as the default of 60 m is to the default box of 500 m."""

STAGES = ("gps_db", "match_pairs", "sparse_models", "city_alignment")
RIVALS = ("users", "street")
"""One incremental mapper with COLMAP's defaults and a camera a photo, or with cameras a drive and street options."""


@dataclass
class Measured:
    """What one size of the world cost, and what came out.

    Attributes:
        cpu_s: processor time of each stage [s].
        shape_m: the worst model's median error of the camera centres after the best similarity.
        place_m: how far the middle of the worst model is off, horizontally.
        border_m: the worst of the median distances at which two boxes place the cameras that both hold, as published.
        joint_m: the same after the joint fit of all boxes.
        rivals: what one incremental mapper took and brought, by :data:`RIVALS`.
    """

    n_boxes: int
    n_images: int
    cpu_s: dict[str, float]
    n_registered: int
    shape_m: float
    place_m: float
    border_m: float
    joint_m: float
    rivals: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def per_image(self) -> dict[str, float]:
        """Processor time an image of each stage [s]."""
        return {stage: used / self.n_images for stage, used in self.cpu_s.items()}

    @property
    def total(self) -> float:
        """Processor time an image of all stages [s]."""
        return sum(self.per_image.values())


def measure(world: GrownWorld, lake: Lake, options: Reconstruct, say: Callable[[str], None]) -> Measured:
    """Make every box of the world in an empty lake, stage by stage as a run of the assets does."""
    fill_lake(world, lake, CITY, world.homes)
    boxes, grid = list(world.city.grid), world.city.grid
    used: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    def spent(stage: str, since: float) -> None:
        used[stage] += cpu_seconds() - since

    for box in boxes:
        began = cpu_seconds()
        made = features.gps_database(lake, CITY, box, grid, options)
        lake.write("gps_db", made.frame, note=made.note, city=CITY, box=box)
        spent("gps_db", began)
    say(f"{len(boxes)} boxes: features took {used['gps_db']:.0f} s")
    for box in boxes:
        began = cpu_seconds()
        matched = matching.match_box(lake, CITY, box, options)
        lake.write("match_pairs", matched.frame, city=CITY, box=box)
        spent("match_pairs", began)
    say(f"{len(boxes)} boxes: pairs took {used['match_pairs']:.0f} s")
    for box in boxes:
        began = cpu_seconds()
        mapped = models.map_box(lake, CITY, box, options)
        lake.write("model_cameras", mapped.cameras, note=mapped.note, city=CITY, box=box)
        lake.write("model_blocks", mapped.blocks, city=CITY, box=box)
        lake.write("sparse_models", mapped.models, note=mapped.note, city=CITY, box=box)
        spent("sparse_models", began)
    began = cpu_seconds()
    borders = alignment.align_city(lake, CITY, boxes).borders
    spent("city_alignment", began)
    say(f"{len(boxes)} boxes: models took {used['sparse_models']:.0f} s")
    cameras = {box: lake.read("model_cameras", city=CITY, box=box) for box in boxes}
    shape, place = errors_m(world, cameras)
    home = {i for box, rows in cameras.items() for i in rows["image_id"][rows["home_box"] == box]}
    apart = {column: float(borders[column].to_numpy(float).max(initial=0.0)) for column in ("before_m", "median_m")}
    return Measured(len(boxes), len(world.images), used, len(home), shape, place, apart["before_m"], apart["median_m"])


def errors_m(world: GrownWorld, cameras: Mapping[str, pd.DataFrame]) -> tuple[float, float]:
    """Errors of shape and place of the worst model (see :class:`Measured`), by rows of ``model_cameras`` of each box."""
    shapes, places = [0.0], [0.0]
    for rows in cameras.values():
        for _, part in rows.groupby("component"):
            found = demo_frame().enu(part["lon"], part["lat"], part["alt_m"])
            true = np.array([world.truth[str(i)].centre for i in part["image_id"]])
            shapes.append(float(np.median(np.linalg.norm(best_similarity(found, true)(found) - true, axis=1))))
            places.append(float(np.hypot(*(found.mean(0) - true.mean(0))[:2])))
    return max(shapes), max(places)


def joined(lake: Lake, boxes: Sequence[str], target: Path) -> None:
    """One database of all boxes: their ids agree, and an image has the same keypoints in each."""
    tables = ("cameras", "rigs", "rig_sensors", "frames", "frame_data", "images", "keypoints", "two_view_geometries")
    for number, box in enumerate(boxes):
        with lake.local(lake.key("matches", features.DATABASE, city=CITY, box=box)) as database:
            if number == 0:
                shutil.copyfile(database, target)
                continue
            with contextlib.closing(sqlite3.connect(target)) as con, con:
                con.execute("attach ? as other", (str(database),))
                for table in tables:
                    names = ", ".join(row[1] for row in con.execute(f"pragma table_info({table})"))
                    con.execute(f"insert or ignore into {table} ({names}) select {names} from other.{table}")


def rival(kind: str, database: Path, cap_s: float) -> dict[str, Any]:
    """One incremental mapper over everything in a process of its own, ended when it has used ``cap_s`` of CPU."""
    answer = database.with_suffix(f".{kind}.json")
    command = [sys.executable, __file__, "--rival", kind, "--database", str(database), "--out", str(answer)]
    limit = (resource.RLIMIT_CPU, (int(cap_s), int(cap_s) + 5))
    with database.with_suffix(f".{kind}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=lambda: resource.setrlimit(*limit))
        _, status, used = os.wait4(process.pid, 0)  # what this one process used, not all children together
        process.returncode = os.waitstatus_to_exitcode(status)
    found = {"cpu_s": used.ru_utime + used.ru_stime, "capped": process.returncode < 0, "n_models": 0, "n_largest": 0}
    if not found["capped"] and process.returncode:
        raise click.ClickException(f"The mapper '{kind}' failed; see {log.name}.")
    return found | (json.loads(answer.read_text()) if answer.exists() else {})


def map_as_rival(kind: str, database: Path, answer: Path) -> None:
    """What the process of :func:`rival` does."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed, options.extract_colors = 1, 0, False
    if kind == "street":
        options.mapper.init_max_forward_motion, options.mapper.init_min_tri_angle = 1.0, 8.0
        options.mapper.init_min_num_inliers, options.mapper.abs_pose_min_num_inliers = 50, 20
        options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.4
        options.ba_global_max_refinements, options.ba_local_max_refinements = 2, 1
    with tempfile.TemporaryDirectory() as folder:
        if kind == "users":
            database = _a_camera_each(database, Path(folder) / "database.db")
        found = pycolmap.incremental_mapping(str(database), folder, folder, options)
    sizes = [model.num_reg_images() for model in found.values()]
    answer.write_text(json.dumps({"n_models": len(sizes), "n_largest": max(sizes, default=0)}))


def _a_camera_each(database: Path, target: Path) -> Path:
    """The same images and matches as COLMAP imports photos without make and model: a camera each, its focal guessed."""
    import pycolmap

    with pycolmap.Database.open(str(database)) as given, pycolmap.Database.open(str(target)) as db:
        sizes = {camera.camera_id: (camera.width, camera.height) for camera in given.read_all_cameras()}
        images = given.read_all_images()
        with pycolmap.DatabaseTransaction(db):
            for number, image in enumerate(images, start=1):
                width, height = sizes[image.camera_id]
                camera = pycolmap.Camera.create_from_model_name(
                    number, "SIMPLE_RADIAL", 1.2 * max(width, height), width, height
                )
                db.write_camera(camera, use_camera_id=True)
                rig = pycolmap.Rig(rig_id=number)
                rig.add_ref_sensor(camera.sensor_id)
                db.write_rig(rig, use_rig_id=True)
                own = pycolmap.Image(name=image.name, camera_id=number, image_id=image.image_id)
                db.write_image(own, use_image_id=True)
                frame = pycolmap.Frame()
                frame.frame_id, frame.rig_id = image.image_id, number
                frame.add_data_id(own.data_id)
                db.write_frame(frame, use_frame_id=True)
    with contextlib.closing(sqlite3.connect(target)) as con, con:
        con.execute("attach ? as given", (str(database),))
        for table in ("keypoints", "two_view_geometries"):
            con.execute(f"insert into {table} select * from given.{table}")
    return target


def main(
    boxes: Sequence[int] = (1, 2, 4, 8),
    cap_s: float = 3600.0,
    threads: int = 1,
    margin_m: float = MARGIN_M,
    folder: Path | None = None,
    say: Callable[[str], None] = click.echo,
) -> list[Measured]:
    """Measure each size of the world, the rival beside it.

    Args:
        boxes: sizes of the world.
        cap_s: processor time that the rival may use at each size [s].
        threads: threads of COLMAP.
        margin_m: how far outside a box images take part [m].
        folder: lakes and databases are kept in it; a temporary folder by default.
        say: gets lines of progress.
    """
    options = Reconstruct(threads=threads, margin_m=margin_m)
    found: list[Measured] = []
    kinds = list(RIVALS)
    with contextlib.ExitStack() as stack:
        base = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for n in boxes:
            world, home = grown_world(n, log=say), base / f"boxes_{n}"
            shutil.rmtree(home, ignore_errors=True)
            lake = Lake(home / "lake")
            measured = measure(world, lake, options, say)
            found.append(measured)
            joined(lake, list(world.city.grid), home / "all.db")
            for kind in kinds if cap_s > 0 else []:
                measured.rivals[kind] = told = rival(kind, home / "all.db", cap_s)
                ended = f"was ended at {cap_s:.0f} s" if told["capped"] else f"took {told['cpu_s']:.0f} s"
                say(f"{n} boxes: one incremental mapper ({kind}) {ended}, largest model {told['n_largest']} images")
            # The smallest size decides which of the two goes on: the one that registers more, else the faster.
            kinds = sorted(measured.rivals, key=lambda k: _worth(measured.rivals[k]), reverse=True)[:1]
    return found


def _worth(told: Mapping[str, Any]) -> tuple[bool, int, float]:
    return not told["capped"], told["n_largest"], -told["cpu_s"]


def report(found: Sequence[Measured], cap_s: float) -> list[str]:
    """The table, and what it comes to, as lines."""
    lines = [
        "boxes images registered | CPU s an image: gps_db match_pairs sparse_models alignment total"
        " | shape_m place_m border_m joint_m"
        " | one incremental mapper: CPU s an image, largest model, times ours"
    ]
    for m in found:
        per = m.per_image
        line = f"{m.n_boxes:5} {m.n_images:6} {m.n_registered:10} | {per['gps_db']:23.3f} {per['match_pairs']:11.3f} "
        line += f"{per['sparse_models']:13.3f} {per['city_alignment']:9.3f} {m.total:5.3f} | "
        line += f"{m.shape_m:7.3f} {m.place_m:7.3f} {m.border_m:8.3f} {m.joint_m:7.3f} | "
        lines.append(line + "; ".join(_told(kind, told, m, cap_s) for kind, told in m.rivals.items()))
    totals = [m.total for m in found]
    apart = max(totals) / min(totals) - 1
    verdict = "flat" if apart <= FLAT else "not flat"
    lines.append(f"Ours: {verdict} within {apart:.1%} over {found[0].n_images} to {found[-1].n_images} images.")
    for kind in found[-1].rivals:
        done = [(m.n_images, m.rivals[kind]["cpu_s"] / m.n_images) for m in found if kind in m.rivals]
        lines.append(f"One incremental mapper ({kind}): {done[-1][1] / done[0][1]:.2f} times as much an image at "
                     f"{done[-1][0]} images as at {done[0][0]}"
                     + (", where it was ended." if found[-1].rivals[kind]["capped"] else "."))  # fmt: skip
    return lines


def _told(kind: str, told: Mapping[str, Any], ours: Measured, cap_s: float) -> str:
    each = told["cpu_s"] / ours.n_images
    if told["capped"]:
        return f"{kind} over {each:.3f}, ended at {cap_s:.0f} s, over {each / ours.per_image['sparse_models']:.2f}"
    return f"{kind} {each:.3f}, {told['n_largest']}, {each / ours.per_image['sparse_models']:.2f}"


@click.command(help=__doc__)
@click.option("--boxes", type=int, multiple=True, default=(1, 2, 4, 8), show_default=True)
@click.option("--cap-s", default=3600.0, show_default=True, help="CPU seconds of the incremental mapper; 0: none")
@click.option("--threads", default=1, show_default=True)
@click.option("--margin-m", default=MARGIN_M, show_default=True, help="images this far outside a box take part [m]")
@click.option("--folder", type=click.Path(path_type=Path), help="keeps lakes and databases")
@click.option("--out", type=click.Path(path_type=Path), help="gets the table and the figures as JSON")
@click.option("--rival", "kind", hidden=True)
@click.option("--database", type=click.Path(path_type=Path), hidden=True)
def _command(
    boxes: tuple[int, ...],
    cap_s: float,
    threads: int,
    margin_m: float,
    folder: Path | None,
    out: Path | None,
    kind: str | None,
    database: Path | None,
) -> None:
    if kind is not None and database is not None and out is not None:
        map_as_rival(kind, database, out)
        return
    machine = f"{os.cpu_count()} cores ({platform.machine()}), load {os.getloadavg()[0]:.1f} before"
    began = time.perf_counter()
    found = main(boxes, cap_s, threads, margin_m, folder)
    lines = [f"{machine}; {threads} thread(s), margin {margin_m:.1f} m; {time.perf_counter() - began:.0f} s in all"]
    lines += report(found, cap_s)
    click.echo("\n".join(lines))
    if out is not None:
        figures = [vars(m) | {"per_image": m.per_image, "total": m.total} for m in found]
        out.write_text(json.dumps({"report": lines, "sizes": figures}, indent=1))


if __name__ == "__main__":
    _command()
