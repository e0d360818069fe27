"""How good a splat becomes for how much processor time: python benchmarks/splats.py [DATASET ...] [--quick].

A dataset is a folder with ``images/`` and ``sparse/0/`` (COLMAP, PINHOLE). The demo street is made here from the
package's own world, its true cameras and points of its true surfaces; with ``--lake`` a box of a finished lake is taken
instead, with the cameras that the reconstruction found. Photos that are held out are never trained on; our judge scores
them: as they are, with the gains of their sequence (learnt from its other photos), and with their colours fitted. Everything is measured in processor time of one thread, except the line about threads, which is wall time and
needs idle cores.
"""

from __future__ import annotations

import io
import json
import math
import resource
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from PIL import Image

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from geo_assets.demo.scene import build_scene
from geo_assets.demo.world import demo_world
from geo_assets.lake import Lake
from geo_assets.settings import Splats
from geo_assets.splats.cameras import Camera, Scene
from geo_assets.splats.cpu.adam import adam
from geo_assets.splats.cpu.compiled import use_threads
from geo_assets.splats.cpu.density import column_rates
from geo_assets.splats.cpu.loss import Loss
from geo_assets.splats.cpu.rasteriser import Rasteriser
from geo_assets.splats.dataset import SEQUENCES, make_dataset, read_scene
from geo_assets.splats.engine import ON_CPU, SplatRequest
from geo_assets.splats.engines.cpu import CpuEngine
from geo_assets.splats.engines.opensplat import OpenSplatEngine
from geo_assets.splats.gaussians import Gaussians, joined
from geo_assets.splats.judge import SequenceGains, judge, mean
from geo_assets.splats.ply import read_ply
from geo_assets.splats.render import render

SMALL_PX = 399
"""Long side of the photos for the cost of a step; 4:3 photos become 399 x 299."""
SMALL, LARGE = 6_200, 15_000
RECORDED = {
    "OpenSplat 1.1.5 on its CPU backend, 6,200 Gaussians": (SMALL, 300.0, 300.0),
    "metal-gauss 0.2.1 torch_ref, 15,000 Gaussians": (LARGE, 6500.0, 8700.0),
}
"""Processor time of a step [ms], least and most, of public trainers that run on a CPU: recorded on a drawn street
at 399 x 299, one thread of a shared machine with AVX-512; a full step for OpenSplat (100 steps with
their start), forward and backward without loss and optimiser for torch_ref."""


# -- scenes -------------------------------------------------------------------------------------------------------


def demo_dataset(folder: Path, n_points: int = 60) -> Path:
    """The south-western box of the demo street with a margin: photos, true cameras, and points of true surfaces.

    Args:
        folder: where the dataset is made.
        n_points: taken from each photo; those that fewer than three photos see are dropped.
    """
    import pycolmap

    world, scene, rng = demo_world(log=click.echo), build_scene(), np.random.default_rng(0)
    chosen = [i for i in world.images if not i.is_pano and (world.truth[i.id].centre[:2] < 15).all()]
    cameras = {image.id: world.truth[image.id] for image in chosen}
    photos = {i: np.asarray(Image.open(io.BytesIO(world.jpeg(i)))) for i in cameras}
    depths = {i: scene.render(camera, samples=1)[1] for i, camera in cameras.items()}
    points, colours = [], []
    for i, camera in cameras.items():
        rows, columns = (rng.integers(0, side, n_points) for side in depths[i].shape)
        solid = (depths[i][rows, columns] > 0) & (depths[i][rows, columns] < 50)
        rows, columns = rows[solid], columns[solid]
        pixels = np.column_stack([columns, rows]) + 0.5
        points.append(camera.unproject(pixels, depths[i][rows, columns]) + rng.normal(0, 0.02, (len(rows), 3)))
        colours.append(photos[i][rows, columns])
    places, paint = np.concatenate(points), np.concatenate(colours)

    seen_by: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for i, camera in cameras.items():
        pixels, depth = camera.project(places)
        within = (depth > 0.1) & (pixels >= 0).all(axis=1) & (pixels < [camera.width, camera.height]).all(axis=1)
        at = np.flatnonzero(within)
        column, row = pixels[at].astype(int).T
        seen = at[np.abs(depths[i][row, column] - depth[at]) < 0.03 * depth[at]]
        seen_by[i] = seen, pixels[seen]
    often = np.bincount(np.concatenate([seen for seen, _ in seen_by.values()]), minlength=len(places)) >= 3

    model, tracks = pycolmap.Reconstruction(), {int(row): [] for row in np.flatnonzero(often)}
    (folder / "images").mkdir(parents=True)
    for number, (i, camera) in enumerate(cameras.items(), 1):
        lens = [camera.focal_px, camera.focal_px, camera.width / 2, camera.height / 2]
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(model="PINHOLE", width=camera.width, height=camera.height, params=lens, camera_id=number)
        )
        rows, pixels = (part[often[seen_by[i][0]]] for part in seen_by[i])
        image = pycolmap.Image(name=f"{i}.jpg", camera_id=number, image_id=number, keypoints=pixels)
        shift = -camera.cam_from_world @ camera.centre
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.column_stack([camera.cam_from_world, shift])))
        for keypoint, row in enumerate(rows):
            tracks[int(row)].append(pycolmap.TrackElement(number, keypoint))
        (folder / "images" / f"{i}.jpg").write_bytes(world.jpeg(i))
    for row, elements in tracks.items():
        model.add_point3D(places[row], pycolmap.Track(elements), paint[row])
    (folder / "sparse" / "0").mkdir(parents=True)
    model.write(folder / "sparse" / "0")
    (folder / SEQUENCES).write_text(json.dumps({f"{i.id}.jpg": i.sequence_id for i in chosen}))
    return folder


def lake_dataset(lake: Lake, city: str, box: str, folder: Path, long_side_px: int) -> Path:
    """The photos and the largest placed model of a box, undistorted."""
    placed = lake.read("sparse_models", city=city, box=box).query("status == 'placed'").sort_values("component")
    if placed.empty:
        raise click.ClickException(
            f"Box {box} of {city} has no placed model in {lake.root}. Materialize sparse_models."
        )
    cameras = lake.read("model_cameras", city=city, box=box).query(f"component == {int(placed.iloc[0].component)}")
    images = lake.read("gps_db", city=city, box=box).set_index("image_id")
    folder.mkdir(parents=True)
    photos = folder.with_name(f"{folder.name}_photos")
    photos.mkdir()
    for image_id in cameras.image_id:
        lake.link(str(images.path[image_id]), photos / f"{image_id}.jpg")
    sequences = {f"{i}.jpg": str(images.sequence_id[i]) for i in cameras.image_id}
    with lake.local(str(placed.iloc[0].path)) as model:
        make_dataset(model, photos, folder, max_image_px=long_side_px, sequences=sequences)
    return folder


def smaller(dataset: Path, folder: Path, long_side_px: int) -> Path:
    """The dataset with smaller photos."""
    folder.mkdir(parents=True)
    sequences = json.loads((dataset / SEQUENCES).read_text()) if (dataset / SEQUENCES).exists() else {}
    make_dataset(dataset / "sparse" / "0", dataset / "images", folder, max_image_px=long_side_px, sequences=sequences)
    return folder


# -- what is measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One training: what it took and how well the photos that it did not see are rendered."""

    cpu_s: float
    gaussians: Gaussians
    psnr_db: float
    ssim: float
    sequence_psnr_db: float
    cc_psnr_db: float


def trained(dataset: Path, scene: Scene, request: SplatRequest) -> Result:
    """Train with the embedded engine and judge."""
    with tempfile.TemporaryDirectory() as out:
        began = time.process_time()
        made = CpuEngine(Splats()).train(replace(request, dataset_dir=dataset, out_dir=Path(out)), lambda line: None)
        cpu_s = time.process_time() - began
        parts = [read_ply(path) for path in (made.ply_path, made.sky_path) if path]
        splat = joined(parts, max(part.degree for part in parts))
    gains = SequenceGains()
    judge(splat, scene.trained(request.holdout_every), "train", gains)
    scores = judge(splat, scene.held_out(request.holdout_every), "holdout", gains)
    figures = (mean(scores, figure) or math.nan for figure in ("psnr_db", "ssim", "sequence_psnr_db", "cc_psnr_db"))
    return Result(cpu_s, splat, *figures)


STAGES = ("forward", "loss", "backward", "optimiser")


def step_ms(splat: Gaussians, scene: Scene, clock: Callable[[], float], rounds: int = 5) -> dict[str, float]:
    """Time of each stage of a training step: mean over photos, of each photo the best round [ms]."""
    rows, degree, raster, loss = splat.rows.copy(), splat.degree, Rasteriser(), Loss()
    first, second = np.zeros_like(rows), np.zeros_like(rows)
    rates = column_rates(rows.shape[1], degree, mean_rate=0.0, scale=1e-9)  # moves nothing, costs the same
    grey, taken = np.full(3, 0.5, np.float32), []
    views = scene.views[:: max(1, len(scene.views) // 8)]
    for _ in range(rounds):
        for view in views:
            marks = [clock()]
            image = raster.forward(rows, degree, view.camera, grey)
            marks.append(clock())
            _, _, gradient = loss(image, view.photo)
            marks.append(clock())
            gradients, _ = raster.backward(gradient)
            marks.append(clock())
            adam(raster.order, rows, gradients, first, second, rates, 1000)
            marks.append(clock())
            taken.append(np.diff(marks))
    best = np.reshape(taken, (rounds, len(views), len(STAGES))).min(axis=0).mean(axis=0)
    return dict(zip(STAGES, (1000 * best).tolist(), strict=True))


def opensplat_ms(program: Path, dataset: Path, scratch: Path) -> float:
    """Processor time of a step of OpenSplat [ms]: the difference of two trainings without refinement."""
    engine, taken = OpenSplatEngine(Splats(opensplat=program)), []
    for steps in (10, 60):
        out = scratch / f"opensplat{steps}"
        out.mkdir()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        engine.train(SplatRequest(dataset, out, steps=steps), lambda line: None)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return 1000 * (taken[1] - taken[0]) / 50


def million(n: int = 1_000_000) -> tuple[float, float]:
    """Processor time of a picture of a million Gaussians at 960 x 720 [s], and its memory beside the Gaussians [MB]."""
    rng = np.random.default_rng(0)
    splat = Gaussians.of(
        rng.uniform((-40, 2, -6), (40, 80, 20), (n, 3)),
        np.log(rng.uniform(0.01, 0.1, (n, 3))),
        rng.normal(size=(n, 4)),
        rng.uniform(-1, 3, n),
        rng.normal(0, 0.3, (n, 4, 3)),
    )
    lens = Camera(np.eye(3), np.zeros(3), 700, 700, 480, 360, 960, 720)
    camera = Camera.looking((0, 0, 0), (0, 40, 4), like=lens)
    began = time.process_time()
    render(splat, camera)
    cpu_s = time.process_time() - began
    tracemalloc.start()
    render(splat, camera)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return cpu_s, peak / 1e6


def step_bytes(splat: Gaussians, scene: Scene, factor: float) -> float:
    """Memory that a training step takes at its peak, photos resized by a factor [bytes]."""
    view = scene.views[0]
    camera = view.camera.resized(factor)
    photo = np.zeros((camera.height, camera.width, 3), np.uint8)
    tracemalloc.start()
    rows = splat.rows.copy()
    moments = np.zeros_like(rows), np.zeros_like(rows)
    raster, loss = Rasteriser(), Loss()
    _, _, gradient = loss(raster.forward(rows, splat.degree, camera, np.zeros(3, np.float32)), photo)
    gradients, _ = raster.backward(gradient)
    adam(raster.order, rows, gradients, *moments, np.zeros(rows.shape[1], np.float32), 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(peak)


# -- what is printed ----------------------------------------------------------------------------------------------


def tell_quality(name: str, dataset: Path, steps: tuple[int, ...], request: SplatRequest) -> None:
    """A line a training: steps, processor time, Gaussians and how well held-out photos are rendered."""
    scene = read_scene(dataset)
    camera, n_judged = scene.views[0].camera, len(scene.held_out(request.holdout_every))
    click.echo(
        f"\n{name}: {len(scene.views)} photos of {camera.width} x {camera.height}, {n_judged} of them held out, "
        f"{len(scene.points):,} points"
    )
    click.echo(f"{'steps':>8}{'CPU s':>8}{'Gaussians':>11}{'PSNR':>8}{'SSIM':>8}{'with gains':>12}{'fitted':>8}")
    for n in steps:
        done = trained(dataset, scene, replace(request, steps=n))
        click.echo(
            f"{n:>8,}{done.cpu_s:>8.1f}{len(done.gaussians):>11,}{done.psnr_db:>8.2f}{done.ssim:>8.3f}{done.sequence_psnr_db:>12.2f}{done.cc_psnr_db:>8.2f}"
        )


def tell_cost(dataset: Path, scratch: Path, request: SplatRequest, steps: int, opensplat: Path | None) -> None:
    """What a step costs, against others and by several threads, and the memory of it."""
    small = smaller(dataset, scratch / "small", SMALL_PX)
    scene, ours, splats = read_scene(small), {}, {}
    camera = scene.views[0].camera
    click.echo(f"\nA step at {camera.width} x {camera.height} on one thread [CPU ms]")
    click.echo(f"{'Gaussians':>10}" + "".join(f"{stage:>11}" for stage in (*STAGES, "all")))
    for n in (SMALL, LARGE):
        splats[n] = trained(small, scene, replace(request, steps=steps, max_splats=n)).gaussians
        taken = step_ms(splats[n], scene, time.process_time)
        ours[n] = sum(taken.values())
        click.echo(f"{len(splats[n]):>10,}" + "".join(f"{ms:>11.2f}" for ms in (*taken.values(), ours[n])))
    for name, (n, least, most) in RECORDED.items():
        span = f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"
        click.echo(f"{name}: {span} ms recorded, {least / ours[n]:,.0f} times ours at least")
    if opensplat:
        n_points = len(scene.points)
        theirs = opensplat_ms(opensplat, small, scratch)
        start = trained(small, scene, replace(request, steps=1, max_splats=n_points)).gaussians
        here = sum(step_ms(start, scene, time.process_time).values())
        click.echo(
            f"OpenSplat in this run, {n_points:,} Gaussians: {theirs:,.0f} ms; ours with {len(start):,}: {here:.1f} ms, {theirs / here:.0f} times less"
        )

    full = read_scene(dataset)
    threads = use_threads(0)
    for splat, views in ((splats[SMALL], scene), (splats[LARGE], scene), (splats[LARGE], full)):
        wall = {1: [], threads: []}
        for count in [1, threads] * 3:  # in turns, so that both meet the same neighbours
            use_threads(count)
            wall[count].append(sum(step_ms(splat, views, time.perf_counter, 3).values()))
        one, many, size = min(wall[1]), min(wall[threads]), views.views[0].camera
        click.echo(
            f"{len(splat):,} Gaussians at {size.width} x {size.height}: {one:.1f} ms on one thread, {many:.1f} ms on {threads}: {one / many:.2f} times as fast (wall)"
        )
    use_threads(1)

    half = splats[LARGE][::2]
    whole, halved, larger = (
        step_bytes(s, scene, f) for s, f in ((splats[LARGE], 1), (half, 1), (splats[LARGE], 2**0.5))
    )
    a_splat = (whole - halved) / (len(splats[LARGE]) - len(half))
    a_pixel = (larger - whole) / (camera.width * camera.height)
    click.echo(f"memory of a step: {a_splat:,.0f} bytes a Gaussian, {a_pixel:,.0f} bytes a pixel")


@click.command(help=__doc__)
@click.argument("datasets", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--quick", is_flag=True, help="short trainings only")
@click.option("--lake", type=click.Path(exists=True, file_okay=False, path_type=Path), help="a lake with --city")
@click.option("--city", default="demo", show_default=True)
@click.option("--box", default="r00c00", show_default=True)
@click.option("--rate", default=2.0, show_default=True, help="learning rate scale of the datasets that are given")
@click.option("--opensplat", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="program to compare")
def command(
    datasets: tuple[Path, ...], quick: bool, lake: Path | None, city: str, box: str, rate: float, opensplat: Path | None
) -> None:
    use_threads(1)
    steps = (250, 500) if quick else (500, 1000, ON_CPU.steps)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        street = (
            lake_dataset(Lake(lake), city, box, scratch / "street", ON_CPU.max_image_px)
            if lake
            else demo_dataset(scratch / "street")
        )
        request = SplatRequest(street, scratch, max_splats=ON_CPU.max_splats, threads=1)
        began = time.process_time()
        trained(street, read_scene(street), replace(request, steps=2))
        click.echo(f"Compiling, or reading what was compiled: {time.process_time() - began:.1f} CPU s")
        # A drawn world bears longer steps than photos do, as the demo city's settings say.
        tell_quality(
            f"{city} {box}" if lake else "demo street", street, steps, replace(request, learning_rate_scale=4.0)
        )
        for dataset in datasets:
            tell_quality(dataset.name, dataset, steps, replace(request, learning_rate_scale=rate))
        tell_cost(street, scratch, replace(request, learning_rate_scale=4.0), 300 if quick else 1000, opensplat)
        cpu_s, extra_mb = million()
        click.echo(f"a million Gaussians at 960 x 720: {cpu_s:.2f} CPU s, {extra_mb:.0f} MB beside the Gaussians")


if __name__ == "__main__":
    command()
