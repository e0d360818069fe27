"""The splat of one box: its dataset, training, judgement, files and table rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from geo_assets.errors import SourceError, TrainingError
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.settings import Splats
from geo_assets.splats.cameras import Scene
from geo_assets.splats.dataset import make_dataset, read_scene
from geo_assets.splats.engine import SplatEngine, SplatRequest, SplatResult, choose_engine
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.georeference import read_frame, splat_reference
from geo_assets.splats.judge import Score, judge, mean
from geo_assets.splats.ply import cleaned, read_ply, write_ply
from geo_assets.splats.preview import compare, contact_sheet, inline_jpeg, jpeg, median_view
from geo_assets.splats.viewer import MOST_SPLATS, viewer_page
from geo_assets.tables import TABLES

FEWEST_PHOTOS = 3
Log = Callable[[str], None]


@dataclass(frozen=True)
class BoxSplat:
    """Rows of ``splat_ply`` and ``splat_views``, figures for people, and two small JPEGs."""

    splat: pd.DataFrame
    views: pd.DataFrame
    figures: dict[str, Any]
    pictures: dict[str, bytes] = field(default_factory=dict)


def splat_of_box(lake: Lake, city: str, box: str, options: Splats, log: Log) -> BoxSplat:
    """Train the largest placed model of a box and publish everything under ``files/splats``.

    A box without a model, or with fewer than three registered photos, gives one row that says so.

    Raises:
        GeoAssetsError: sparse_models of the box is not there.
        TrainingError: the engine failed, or what it made does not fit the photos' frame.
    """
    where = {"city": city, "box": box}
    models = lake.read("sparse_models", city=city, box=box)
    placed = models.query("status == 'placed'").sort_values("component")
    if placed.empty:
        log(
            f"splat_ply[{box}|{city}]: no placed sparse model ({', '.join(models.status) or 'no photos'}); nothing to train."
        )
        return not_trained("empty" if models.empty else "too_few")
    model = placed.iloc[0]
    if model.n_registered < FEWEST_PHOTOS or model.n_points == 0:
        log(
            f"splat_ply[{box}|{city}]: the sparse model has {model.n_registered} registered photos and {model.n_points} points; at least {FEWEST_PHOTOS} photos are needed (20 or more recommended). See sparse_models."
        )
        return not_trained("too_few")
    engine = choose_engine(options, log)
    cameras = lake.read("model_cameras", city=city, box=box).query(f"component == {int(model.component)}")
    with tempfile.TemporaryDirectory(prefix="geo_assets_splat_") as folder:
        scratch = Path(folder)
        dataset, out = scratch / "dataset", scratch / "out"
        dataset.mkdir()
        out.mkdir()
        with lake.local(str(model.path)) as model_folder:
            photos = _photos(lake, city, box, cameras, scratch / "photos")
            make_dataset(
                model_folder,
                photos,
                dataset,
                max_image_px=options.max_image_px or engine.effort.max_image_px,
                threads=options.threads,
                sequences=_sequences(lake, city, box),
            )
        with lake.local(lake.key("models", "geo.json", **where)) as geo:
            frame = read_frame(geo)
        made = train_dataset(
            dataset, out, options, log, engine=engine, scratch_name=f"{city}.{box}", title=f"{city} {box}", frame=frame
        )
        lake.publish(out, lake.key("splats", **where))
    return dataclasses.replace(made, splat=made.splat.assign(path=lake.key("splats", **where)))


def train_dataset(
    dataset: Path,
    out: Path,
    options: Splats,
    log: Log,
    *,
    engine: SplatEngine,
    scratch_name: str,
    title: str,
    frame: LocalFrame,
) -> BoxSplat:
    """Train a dataset, judge the result and write all its files.

    Args:
        dataset: made by :func:`geo_assets.splats.dataset.make_dataset`.
        out: an empty folder: splat.ply, splat.geo.json, viewer.html, compare.jpg, preview.jpg, train.json, train.log.
        options: settings of the training.
        log: progress.
        engine: what trains.
        scratch_name: names the folder in which a killed training finds its checkpoint again.
        title: of the viewer page.
        frame: where the dataset's origin lies.
    """
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(f"{time.strftime('%H:%M:%S')} {line}")
        log(line)

    began = time.monotonic()
    scene = read_scene(dataset)
    every = options.holdout_every if len(scene.views) >= options.holdout_every else len(scene.views)
    scratch = _scratch(scratch_name)
    request = SplatRequest(
        dataset_dir=dataset,
        out_dir=out,
        scratch_dir=scratch,
        steps=options.steps or engine.effort.steps,
        max_splats=options.max_splats or engine.effort.max_splats,
        sh_degree=engine.effort.sh_degree if options.sh_degree is None else options.sh_degree,
        max_image_px=options.max_image_px or engine.effort.max_image_px,
        seed=options.seed,
        holdout_every=every,
        learning_rate_scale=options.learning_rate_scale,
        exposure=options.exposure,
        threads=options.threads,
        timeout_s=options.timeout_s,
        extra_args=options.extra_args,
    )
    if len(scene.views) < 20:
        tell(f"Only {len(scene.views)} photos: 20 or more are recommended, fewer are learnt by heart.")
    result = engine.train(request, tell)
    shutil.rmtree(scratch, ignore_errors=True)
    gaussians = _checked(result)
    write_ply(out / "splat.ply", gaussians)
    if result.ply_path != out / "splat.ply" and result.ply_path.parent == out:
        result.ply_path.unlink()
    start, scores = _judged(scene, gaussians, request)
    figures = _figures(scene, result, start, scores, out / "splat.ply")
    figures |= {"n_splats": len(gaussians), "dropped": result.n_splats - len(gaussians)}
    _check_frame(result, figures)
    best = median_view(scene.views, [s for s in scores if s.split == "holdout"] or scores)
    side_by_side, sheet = compare(gaussians, best), contact_sheet(gaussians, scene)
    (out / "compare.jpg").write_bytes(jpeg(side_by_side))
    (out / "preview.jpg").write_bytes(jpeg(sheet))
    (out / "splat.geo.json").write_text(json.dumps(splat_reference(frame), indent=1))
    shown = gaussians.most_opaque(MOST_SPLATS)
    (out / "viewer.html").write_text(viewer_page(shown, best.camera, title=title), encoding="utf8")
    tell(f"Held-out PSNR {figures['psnr_db'] or 0:.2f} dB (before training {figures['init_psnr_db'] or 0:.2f} dB)")
    _write_protocol(out, options, result, figures, lines, time.monotonic() - began)
    pictures = {"compare": inline_jpeg(side_by_side), "preview": inline_jpeg(sheet)}
    columns = TABLES["splat_ply"].column_names
    row = pd.DataFrame([{"status": "trained"} | figures]).reindex(columns=columns)
    return BoxSplat(row, pd.DataFrame([dataclasses.asdict(s) for s in scores]), figures, pictures)


def not_trained(status: str) -> BoxSplat:
    """The result of a box that has nothing to train on; no rows at all where there are no photos."""
    figures = {"status": status, "n_splats": 0}
    columns = TABLES["splat_ply"].column_names
    zeros = dict.fromkeys(("n_splats", "n_train", "n_holdout", "n_sky", "n_masked", "steps", "ply_bytes"), 0)
    row = pd.DataFrame([{"status": status} | zeros]).reindex(columns=columns)
    return BoxSplat(row, TABLES["splat_views"].empty(), figures)


def _photos(lake: Lake, city: str, box: str, cameras: pd.DataFrame, folder: Path) -> Path:
    """The photos of a model in one folder, named as in the model; views of panoramas have files of their own."""
    folder.mkdir()
    images = lake.read_if_any("gps_db", ["image_id", "path"], city=city, box=box)
    paths = dict(zip(images.image_id, images.path, strict=True))
    missing = []
    for image_id, home in zip(cameras.image_id, cameras.home_box, strict=True):
        path = paths.get(image_id)
        key = path if isinstance(path, str) else lake.key("images", f"{image_id}.jpg", city=city, box=str(home))
        if not lake.exists(key):
            missing.append(key)
            continue
        lake.link(key, folder / f"{image_id}.jpg")
    if missing:
        raise SourceError(
            f"{len(missing)} of {len(cameras)} photos of the sparse model are not in the lake, the first: {', '.join(missing[:3])}. Materialize image_files of those boxes, and gps_db of this one."
        )
    return folder


def _sequences(lake: Lake, city: str, box: str) -> dict[str, str]:
    images = lake.read_if_any("gps_db", ["image_id", "sequence_id"], city=city, box=box)
    return {f"{i}.jpg": s for i, s in zip(images.image_id, images.sequence_id.fillna(""), strict=True)}


def _scratch(name: str) -> Path:
    """A folder that survives a kill, for this user and this work alone."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    base = Path(tempfile.gettempdir()) / f"geo_assets-{user}"
    base.mkdir(mode=0o700, exist_ok=True)
    folder = base / f"splat-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _checked(result: SplatResult) -> Gaussians:
    """The Gaussians of an engine's PLY that are fit for viewers."""
    if not result.ply_path.exists():
        raise TrainingError(f"{result.engine} finished but wrote no PLY at {result.ply_path.name}. See train.log.")
    found = cleaned(read_ply(result.ply_path))
    if not len(found.gaussians):
        raise TrainingError(f"{result.engine} wrote a PLY in which no Gaussian is visible and finite. See train.log.")
    return found.gaussians


def _judged(scene: Scene, gaussians: Gaussians, request: SplatRequest) -> tuple[list[Score], list[Score]]:
    """Scores of the held-out photos before training, and of all photos after it."""
    from geo_assets.splats.cpu.compiled import use_threads
    from geo_assets.splats.cpu.initial import initial_gaussians

    use_threads(request.threads)
    held_out, trained = scene.held_out(request.holdout_every), scene.trained(request.holdout_every)
    start = initial_gaussians(
        scene, trained, max_splats=request.max_splats, degree=request.sh_degree, seed=request.seed
    )
    before = judge(start, held_out, "holdout")
    return before, [*judge(gaussians, held_out, "holdout"), *judge(gaussians, trained, "train")]


def _figures(scene: Scene, result: SplatResult, start: list[Score], scores: list[Score], ply: Path) -> dict[str, Any]:
    held_out = [s for s in scores if s.split == "holdout"]
    trained = [s for s in scores if s.split == "train"]
    camera = scene.views[0].camera
    return {
        "engine": result.engine,
        "engine_version": result.engine_version,
        "steps": result.steps_done,
        "n_splats": result.n_splats,
        "n_train": len(trained),
        "n_holdout": len(held_out),
        "init_psnr_db": mean(start, "psnr_db"),
        "psnr_db": mean(held_out, "psnr_db"),
        "ssim": mean(held_out, "ssim"),
        "cc_psnr_db": mean(held_out, "cc_psnr_db"),
        "train_psnr_db": mean(trained, "psnr_db"),
        "engine_psnr_db": result.metrics.get("psnr_db"),
        "n_sky": 0,
        "n_masked": sum(view.mask is not None for view in scene.views),
        "width": camera.width,
        "height": camera.height,
        "ply_bytes": ply.stat().st_size,
        "seconds": result.seconds,
    }


def _check_frame(result: SplatResult, figures: dict[str, Any]) -> None:
    """An engine that moved or scaled the scene renders nothing right in our cameras, whatever it says itself."""
    own, ours = result.metrics.get("psnr_db"), figures["psnr_db"]
    if own is not None and ours is not None and own > ours + 3 and ours < (figures["init_psnr_db"] or 0) + 1:
        raise TrainingError(
            f"The PLY of {result.engine} does not line up with the cameras (held-out PSNR {ours:.1f} dB, the engine reported {own:.1f}): the engine normalised the scene. gsplat: add --no-normalize-world-space.",
            psnr_db=ours,
            engine_psnr_db=own,
        )


def _write_protocol(
    out: Path, options: Splats, result: SplatResult, figures: dict[str, Any], lines: list[str], seconds: float
) -> None:
    protocol = {
        "settings": options.model_dump(mode="json"),
        "command": list(result.command),
        "figures": figures,
        "engine_metrics": result.metrics,
        "curve": list(result.curve),
        "seconds_in_all": round(seconds, 2),
    }
    (out / "train.json").write_text(json.dumps(protocol, indent=1))
    (out / "train.log").write_text("\n".join(lines) + "\n")
