"""The splat of one box: its dataset, training, judgement, files and table rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import GeoAssetsError, SourceError, TrainingError
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.machine import peak_bytes
from geo_assets.settings import Splats
from geo_assets.splats.cameras import Scene, View
from geo_assets.splats.dataset import (
    Made,
    check_memory,
    check_room,
    make_dataset,
    mask_path,
    read_scene,
    with_photo,
)
from geo_assets.splats.earlier import PHOTOS, WORSE_DB, earlier_splat, record, starts_from_earlier, version_in
from geo_assets.splats.engine import Earlier, SplatEngine, SplatRequest, SplatResult, choose_engine
from geo_assets.splats.exports import write_exports
from geo_assets.splats.gaussians import SH, Gaussians, coefficients, joined
from geo_assets.splats.georeference import read_frame, splat_reference
from geo_assets.splats.judge import MOST_TRAINED, Score, SequenceGains, evenly, judge, mean
from geo_assets.splats.ply import cleaned, read_ply, write_ply
from geo_assets.splats.preview import compare, contact_sheet, curve_png, inline_jpeg, jpeg, median_view
from geo_assets.splats.quality import geometry, misplaced
from geo_assets.splats.viewer import MOST_SPLATS, viewer_page
from geo_assets.tables import TABLES

FEWEST_PHOTOS, FEW_PHOTOS = 3, 20
EXPORT_REACH_M = 2000.0
"""SPZ keeps a quarter of a millimetre up to here."""
_LINES_OF_ERROR = 20
Log = Callable[[str], None]


@dataclass(frozen=True)
class BoxSplat:
    """What came out of a box.

    Args:
        splat: the row of ``splat_ply``.
        views: rows of ``splat_views``.
        figures: for people.
        pictures: small ones by name: compare, preview, curve.
        curve: the course of the training: step, n_splats, loss, psnr_db, as far as the engine tells.
    """

    splat: pd.DataFrame
    views: pd.DataFrame
    figures: dict[str, Any]
    pictures: dict[str, bytes] = field(default_factory=dict)
    curve: tuple[dict[str, float], ...] = ()


def splat_of_box(lake: Lake, city: str, box: str, options: Splats, log: Log) -> BoxSplat:
    """Train the largest placed model of a box and publish everything under ``files/splats``.

    A box without a model, or with fewer than three photos that can be used, gives one row that says so.

    Raises:
        GeoAssetsError: sparse_models of the box is not there, or photos are missing.
        TrainingError: the disk or the memory is too small, the engine failed, or what it made does not lie in the
            photos' frame.
    """
    where = {"city": city, "box": box}
    models = lake.read("sparse_models", city=city, box=box)
    placed = models.query("status == 'placed'").sort_values("component")
    if placed.empty:
        why = ", ".join(sorted(set(models.status))) or "no photos"
        log(f"splat_ply[{box}|{city}]: no placed sparse model ({why}); nothing to train. See sparse_models.")
        return not_trained("empty" if models.empty else "too_few")
    model = placed.iloc[0]
    too_little = _too_little(int(model.n_registered), int(model.n_points))
    if too_little:
        log(f"splat_ply[{box}|{city}]: {too_little} See sparse_models ({_registered(model)}).")
        return not_trained("too_few")
    if len(placed) > 1:
        log(
            f"splat_ply[{box}|{city}]: the box has {len(placed)} placed components; the largest alone is trained ({model.n_registered} of {placed.n_registered.sum()} placed photos)."
        )
    engine = choose_engine(options, log)
    cameras = lake.read("model_cameras", city=city, box=box).query(f"component == {int(model.component)}")
    with tempfile.TemporaryDirectory(prefix="geo_assets_splat_") as folder:
        scratch = Path(folder)
        _check_needs(lake, where, cameras, options, engine, scratch)
        dataset, out = scratch / "dataset", scratch / "out"
        dataset.mkdir()
        out.mkdir()
        photos = _photos(lake, city, box, cameras, scratch / "photos")
        masks, warnings = _masks(lake, city, box, cameras, scratch / "masks") if options.masks else ({}, [])
        with lake.local(str(model.path)) as model_folder:
            made = make_dataset(
                model_folder,
                photos,
                dataset,
                max_image_px=options.max_image_px or engine.effort.max_image_px,
                threads=options.threads,
                sequences=_sequences(lake, city, box),
                masks=masks,
            )
        warnings = [*warnings, *made.warnings]
        _tell_of_masks(made, warnings, log)
        if made.n_photos < FEWEST_PHOTOS:
            log(f"splat_ply[{box}|{city}]: {_too_little(made.n_photos, int(model.n_points))}")
            return not_trained("too_few")
        with lake.local(lake.key("models", "geo.json", **where)) as geo:
            frame = read_frame(geo)
        known = {
            "n_registered": int(model.n_registered),
            "n_images": _whole(model.n_images),
            "n_components": len(placed),
            "n_left_out": len(made.left_out),
            "n_bad_masks": len(warnings),
        }
        earlier = _earlier(lake, where, dataset, frame, model, options, engine, log)
        trained = train_dataset(
            dataset,
            out,
            options,
            log,
            engine=engine,
            scratch_name=f"{city}.{box}",
            title=f"{city} {box}",
            frame=frame,
            known=known,
            earlier=earlier,
        )
        lake.publish(out, lake.key("splats", **where))
    return dataclasses.replace(trained, splat=trained.splat.assign(path=lake.key("splats", **where)))


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
    known: dict[str, Any] | None = None,
    earlier: Earlier | None = None,
) -> BoxSplat:
    """Train a dataset, judge the result and write all its files.

    Args:
        dataset: made by :func:`geo_assets.splats.dataset.make_dataset`.
        out: an empty folder: splat.ply, sky.ply where the engine keeps the sky apart, splat.geo.json, the exports,
            viewer.html, compare.jpg, preview.jpg, photos.json, train.json, train.log.
        options: settings of the training.
        log: progress.
        engine: what trains.
        scratch_name: names the folder in which a killed training finds its checkpoint again.
        title: of the pages.
        frame: where the dataset's origin lies.
        known: figures of the sparse model that the dataset was made of.
        earlier: what the engine starts from; where what it makes of that is worse on photos that both hold out, it
            starts from the points after all.

    Raises:
        TrainingError: the engine failed, or what it made does not lie in the photos' frame; its figure ``log`` holds
            the last lines.
    """
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(f"{time.strftime('%H:%M:%S')} {line}")
        log(line)

    began = time.monotonic()
    scene = read_scene(dataset, photos=False)
    scratch = _scratch(scratch_name)
    if len(scene.views) < FEW_PHOTOS:
        tell(f"Only {len(scene.views)} photos: {FEW_PHOTOS} or more are recommended, fewer are learnt by heart.")
    with tempfile.TemporaryDirectory(prefix="geo_assets_made_", dir=out.parent) as made_in:
        request = _request(dataset, Path(made_in), scratch, options, engine, len(scene.views))
        try:
            if made := _went_on(scene, request, options, engine, earlier, tell):
                request, result, place, sky = made
            else:
                earlier, result = None, engine.train(request, tell)
                place, sky = _checked(result)
        except GeoAssetsError as error:
            _keep_logs(Path(made_in), scratch, lines)
            error.figures.setdefault("log", "\n".join(lines[-_LINES_OF_ERROR:]))
            error.figures.setdefault("log_folder", str(scratch))
            raise
        _keep_logs(Path(made_in), out, lines)
    shutil.rmtree(scratch, ignore_errors=True)
    if result.steps_done < request.steps:
        tell(f"{result.engine} stopped after {result.steps_done:,} of {request.steps:,} steps ({_limit(request)}).")
    write_ply(out / "splat.ply", place)
    if sky is not None:
        write_ply(out / "sky.ply", sky)
    shown = _together(place, sky)
    start, scores = _judged(scene, dataset, shown, request)
    placed = geometry(read_ply(out / "splat.ply"), scene)
    figures = (known or {}) | _figures(scene, dataset, result, start, scores)
    figures |= dataclasses.asdict(placed) | {
        "n_splats": len(place),
        "n_sky": 0 if sky is None else len(sky),
        "dropped": result.n_splats - len(place),
        "ply_bytes": (out / "splat.ply").stat().st_size,
        "peak_rss_mb": max(peak) / (1 << 20) if (peak := peak_bytes()) else None,
        "version": version_in(out),
        "start": "earlier" if earlier else "points",
        "started_from": earlier.version if earlier else None,
    }
    (out / PHOTOS).write_text(record(scene, dataset, request.holdout_every))
    fault = misplaced(figures)
    if fault:
        raise TrainingError(fault, **{k: v for k, v in figures.items() if v is not None})
    best = with_photo(median_view(scene.views, [s for s in scores if s.split == "holdout"] or scores), dataset)
    side_by_side, sheet = compare(shown, best), contact_sheet(shown, scene)
    (out / "compare.jpg").write_bytes(jpeg(side_by_side))
    (out / "preview.jpg").write_bytes(jpeg(sheet))
    (out / "splat.geo.json").write_text(json.dumps(splat_reference(frame), indent=1))
    figures["shown_in_page"] = _write_page(out / "viewer.html", place, sky, best, title)
    figures["export_bytes"] = _export(out, place, frame, title, tell)
    tell(f"Held-out PSNR {figures['psnr_db'] or 0:.2f} dB (before training {figures['init_psnr_db'] or 0:.2f} dB)")
    _write_protocol(out, options, result, figures, lines, time.monotonic() - began)
    pictures = {"compare": inline_jpeg(side_by_side), "preview": inline_jpeg(sheet)}
    if len(result.curve) > 1:
        pictures["curve"] = curve_png(result.curve)
    columns = TABLES["splat_ply"].column_names
    row = pd.DataFrame([{"status": "trained"} | figures]).reindex(columns=columns)
    views = pd.DataFrame([dataclasses.asdict(s) for s in scores])
    return BoxSplat(row, views, figures, pictures, tuple(result.curve))


def not_trained(status: str) -> BoxSplat:
    """The result of a box that has nothing to train on."""
    figures = {"status": status, "n_splats": 0}
    columns = TABLES["splat_ply"].columns
    zeros = {column.name: 0 for column in columns if column.type == "int" and column.name not in ("width", "height")}
    row = pd.DataFrame([{"status": status} | zeros]).reindex(columns=[column.name for column in columns])
    return BoxSplat(row, TABLES["splat_views"].empty(), figures)


# -- what goes in -------------------------------------------------------------------------------------------


def _too_little(n_photos: int, n_points: int) -> str | None:
    """Why a model cannot be trained; None where it can."""
    if n_points == 0:
        return "the sparse model has no 3D points; nothing to start from."
    if n_photos < FEWEST_PHOTOS:
        return f"{n_photos} photos can be used; at least {FEWEST_PHOTOS} are needed ({FEW_PHOTOS} or more recommended)."
    return None


def _registered(model: Any) -> str:
    images = _whole(model.n_images)
    return f"{model.n_registered} {'' if images is None else f'of {images} '}images registered"


def _whole(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _request(
    dataset: Path, out: Path, scratch: Path, options: Splats, engine: SplatEngine, n_photos: int
) -> SplatRequest:
    return SplatRequest(
        dataset_dir=dataset,
        out_dir=out,
        scratch_dir=scratch,
        steps=options.steps or engine.effort.steps,
        max_splats=options.max_splats or engine.effort.max_splats,
        sh_degree=_degree(options, engine),
        max_image_px=options.max_image_px or engine.effort.max_image_px,
        seed=options.seed,
        holdout_every=min(options.holdout_every, n_photos),
        learning_rate_scale=options.learning_rate_scale,
        exposure=options.exposure,
        threads=options.threads,
        timeout_s=options.timeout_s,
        extra_args=options.extra_args,
    )


def _degree(options: Splats, engine: SplatEngine) -> int:
    return engine.effort.sh_degree if options.sh_degree is None else options.sh_degree


def _check_needs(
    lake: Lake, where: dict[str, str], cameras: pd.DataFrame, options: Splats, engine: SplatEngine, scratch: Path
) -> None:
    """Refuse what does not fit on the disk or into the memory before any work is done."""
    images = lake.read_if_any("gps_db", ["image_id", "width", "height"], city=where["city"], box=where["box"])
    sizes = images.loc[images.image_id.isin(set(cameras.image_id)), ["width", "height"]].dropna().to_numpy(float)
    long_side = options.max_image_px or engine.effort.max_image_px
    n_splats, pixels = options.max_splats or engine.effort.max_splats, sizes.prod(axis=1)
    per_splat = 4 * (SH + 3 + 3 * coefficients(_degree(options, engine)))
    check_room(scratch, int(pixels.sum()), len(sizes), n_splats, per_splat)
    if engine.name == "cpu":  # others have processes of their own, with a memory that we do not know
        reduced = pixels * np.minimum(1, long_side / sizes.max(axis=1, initial=1)) ** 2
        check_memory(int(reduced.sum()), len(sizes), n_splats, per_splat)


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


def _masks(lake: Lake, city: str, box: str, cameras: pd.DataFrame, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The masks of a model's photos by file name, and a sentence for each that is not there."""
    folder.mkdir()
    images = lake.read_if_any("gps_db", ["image_id", "mask_path"], city=city, box=box)
    masks, warnings = {}, []
    for image_id, key in images[images.image_id.isin(set(cameras.image_id))].itertuples(index=False):
        if not isinstance(key, str):
            continue
        if not lake.exists(key):
            warnings.append(f"The mask of {image_id}.jpg is not in the lake ({key}); the photo is used without.")
            continue
        target = folder / f"{image_id}.jpg.png"
        lake.link(key, target)
        masks[f"{image_id}.jpg"] = target
    return masks, warnings


def _tell_of_masks(made: Made, warnings: list[str], log: Log) -> None:
    if made.left_out:
        log(
            f"{len(made.left_out)} photos are left out since their mask hides nearly all of them, the first: {', '.join(made.left_out[:3])}."
        )
    if warnings:
        more = f" And {len(warnings) - 3} more." if len(warnings) > 3 else ""
        log(" ".join(warnings[:3]) + more + " Materialize gps_db of the box again.")


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


def _earlier(
    lake: Lake,
    where: dict[str, str],
    dataset: Path,
    frame: LocalFrame,
    model: Any,
    options: Splats,
    engine: SplatEngine,
    log: Log,
) -> Earlier | None:
    """The published splat of a box, where the training can start from it; the log says why not."""
    key, route = lake.key("splats", **where), model.get("route")
    if not lake.exists(key):
        return None
    if not starts_from_earlier(engine):
        log(f"Training starts from the points: engine {engine.name} cannot start from an earlier splat here.")
        return None
    most = options.max_splats or engine.effort.max_splats
    earlier, why = earlier_splat(lake, key, dataset, frame, route, options, most)
    if earlier is None:
        log(f"Training starts from the points, not from the earlier splat: {why}.")
    else:
        log(
            f"Training starts from the earlier splat {earlier.version}: {len(earlier.new):,} photos are new, {len(earlier.gone):,} gone."
        )
    return earlier


def _went_on(
    scene: Scene,
    request: SplatRequest,
    options: Splats,
    engine: SplatEngine,
    earlier: Earlier | None,
    log: Log,
) -> tuple[SplatRequest, SplatResult, Gaussians, Gaussians | None] | None:
    """What a shorter training makes of the earlier splat; None where there is none, or what came out is worse.

    A killed training that had found it worse does not try again: a mark beside its checkpoint tells.
    """
    scratch = request.scratch_dir
    if earlier is None or scratch is None:
        return None
    mark, wanted = scratch / "worse", " ".join([earlier.version, *sorted(view.name for view in scene.views)])
    if mark.exists() and mark.read_text() == wanted:
        return None
    steps = max(1, round(options.refresh_share * request.steps))
    (folder := scratch / "goes_on").mkdir(exist_ok=True)
    request = dataclasses.replace(request, steps=steps, scratch_dir=folder, earlier=earlier)
    result = engine.train(request, log)
    place, sky = _checked(result)
    judges = [v for v in scene.held_out(request.holdout_every) if v.name not in earlier.new]
    photos = request.dataset_dir
    now = mean(judge(_together(place, sky), (with_photo(v, photos) for v in judges), "holdout"), "psnr_db")
    was = mean(
        judge(_together(earlier.place, earlier.sky), (with_photo(v, photos) for v in judges), "holdout"), "psnr_db"
    )
    if now is None or was is None or now >= was - WORSE_DB:
        if now is not None and was is not None:
            log(
                f"{len(judges)} photos that were held out before: {was:.2f} dB with the earlier splat, {now:.2f} dB now."
            )
        return request, result, place, sky
    log(
        f"{len(judges)} photos that were held out before: {was:.2f} dB with the earlier splat, {now:.2f} dB now, which is worse by more than {WORSE_DB:g} dB: training starts from the points."
    )
    mark.write_text(wanted)
    return None


def _together(place: Gaussians, sky: Gaussians | None) -> Gaussians:
    return place if sky is None else joined([place, sky], max(place.degree, sky.degree))


# -- what comes out -----------------------------------------------------------------------------------------


def _checked(result: SplatResult) -> tuple[Gaussians, Gaussians | None]:
    """The Gaussians of an engine's PLY that are fit for viewers, and those of its sky."""
    if not result.ply_path.exists():
        raise TrainingError(
            f"{result.engine} finished but wrote no PLY ({result.ply_path.name}). The last lines of its log are in the metadata of this run, all of it in log_folder."
        )
    place = cleaned(read_ply(result.ply_path)).gaussians
    if not len(place):
        raise TrainingError(
            f"{result.engine} wrote a PLY in which no Gaussian is visible and finite. Lower splats.learning_rate_scale, or look at the photos."
        )
    if result.sky_path is None or not result.sky_path.exists():
        return place, None
    sky = cleaned(read_ply(result.sky_path)).gaussians
    return place, sky if len(sky) else None


def _keep_logs(made_in: Path, folder: Path, lines: list[str]) -> None:
    """Logs of the engine, and ours as ``train.log``: what failed leaves them where its checkpoint lies."""
    for path in sorted(made_in.glob("*.log")):
        shutil.copy(path, folder / path.name)
    (folder / "train.log").write_text("\n".join(lines) + "\n")


def _limit(request: SplatRequest) -> str:
    return "it says no reason" if request.timeout_s is None else f"splats.timeout_s is {request.timeout_s:g} s"


def _judged(scene: Scene, dataset: Path, shown: Gaussians, request: SplatRequest) -> tuple[list[Score], list[Score]]:
    """Scores of the held-out photos before training; and of those, and of some trained on, after it.

    One photo at a time is read, so that a thousand large ones need no memory.
    """
    from geo_assets.splats.cpu.compiled import use_threads
    from geo_assets.splats.cpu.initial import initial_gaussians

    use_threads(request.threads)
    held_out = scene.held_out(request.holdout_every)
    trained = evenly(scene.trained(request.holdout_every), MOST_TRAINED)
    seen = [with_photo(view, dataset) for view in trained]
    start = initial_gaussians(scene, seen, max_splats=request.max_splats, degree=request.sh_degree, seed=request.seed)
    before = judge(start, (with_photo(view, dataset) for view in held_out), "holdout")
    gains = SequenceGains()
    learnt = judge(shown, seen, "train", gains)
    return before, [*judge(shown, (with_photo(view, dataset) for view in held_out), "holdout", gains), *learnt]


def _figures(
    scene: Scene, dataset: Path, result: SplatResult, start: list[Score], scores: list[Score]
) -> dict[str, Any]:
    held_out = [s for s in scores if s.split == "holdout"]
    trained = [s for s in scores if s.split == "train"]
    camera = scene.views[0].camera
    return {
        "engine": result.engine,
        "engine_version": result.engine_version,
        "steps": result.steps_done,
        "n_points": len(scene.points),
        "n_train": len(scene.views) - len(held_out),
        "n_train_judged": len(trained),
        "n_holdout": len(held_out),
        "init_psnr_db": mean(start, "psnr_db"),
        "psnr_db": mean(held_out, "psnr_db"),
        "ssim": mean(held_out, "ssim"),
        "cc_psnr_db": mean(held_out, "cc_psnr_db"),
        "sequence_psnr_db": mean(held_out, "sequence_psnr_db"),
        "train_psnr_db": mean(trained, "psnr_db"),
        "engine_psnr_db": result.metrics.get("psnr_db"),
        "n_masked": sum(mask_path(dataset, view.name).exists() for view in scene.views),
        "width": camera.width,
        "height": camera.height,
        "seconds": result.seconds,
        "seconds_per_step": result.seconds / max(result.steps_done, 1),
        "peak_gpu_mb": result.peak_gpu_mb,
    }


def _write_page(path: Path, place: Gaussians, sky: Gaussians | None, first: View, title: str) -> int:
    """The viewer page of place and sky; the number of Gaussians in it."""
    room = MOST_SPLATS - (0 if sky is None else len(sky))
    parts = [place.most_opaque(room)] if sky is None else [place.most_opaque(room), sky]
    shown = joined(parts, max(part.degree for part in parts))
    path.write_text(viewer_page(shown, first.camera, title=title), encoding="utf8")
    return len(shown)


def _export(out: Path, place: Gaussians, frame: LocalFrame, title: str, log: Log) -> dict[str, int]:
    """Write the other forms of the place; sizes by file [B]. A far floater would cost all others their precision."""
    near = place[np.linalg.norm(place.means, axis=1) < EXPORT_REACH_M]
    if len(near) < len(place):
        log(f"{len(place) - len(near):,} Gaussians lie farther than {EXPORT_REACH_M:g} m; they are in splat.ply alone.")
    return write_exports(out, near, frame, title=title) if len(near) else {}


def _write_protocol(
    out: Path, options: Splats, result: SplatResult, figures: dict[str, Any], lines: list[str], seconds: float
) -> None:
    protocol = {
        "engine": result.engine,
        "engine_version": result.engine_version,
        "command": list(result.command),
        "settings": options.model_dump(mode="json"),
        "figures": figures,
        "engine_metrics": result.metrics,
        "curve": list(result.curve),
        "seconds_in_all": round(seconds, 2),
        "log": "train.log",
    }
    (out / "train.json").write_text(json.dumps(_finite(protocol), indent=1, allow_nan=False))
    (out / "train.log").write_text("\n".join(lines) + "\n")


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
