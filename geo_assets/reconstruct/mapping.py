"""Components of the verified graph to COLMAP models in metres; runs in the child process, beside COLMAP.

The global mapper goes first: with one camera a sequence it registers street sequences that the incremental
mapper gives up on. What it leaves, the incremental mapper adds without moving what stands.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from geo_assets.reconstruct.frames import Alignment, Similarity, align, heading_deg

MIN_REGISTERED_SHARE = 0.8
MAX_REPROJECTION_PX = 2.0
MIN_SHARED_POINTS = 15
"""Two images hold together if they see so many of the same points; COLMAP asks as much of two views."""

MIN_EXTENT_M = 10.0
MAX_SCALE_SPREAD = 0.2
MAX_FAR_SHARE = 0.3
_TRACKS_PER_IMAGE = 60  # to start with; retriangulation finds the others again
_PICTURE_POINTS = 4000


@dataclass
class Task:
    """One component to map: its images and where things lie on disk."""

    database: str
    images_folder: str
    scratch: Path
    names: list[str]
    seed: int
    min_images: int

    def folder(self, name: str) -> str:
        """A fresh folder for one mapper's output."""
        path = self.scratch / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return str(path)


def map_components(
    database: str,
    images_folder: str,
    out: str,
    components: list[list[str]],
    cameras: list[dict[str, Any]],
    min_images: int,
    seed: int,
) -> dict[str, Any]:
    """Map each component, align it, and write the models to ``out/0``, ``out/1``, ... by size.

    Args:
        database: COLMAP database with verified matches; mapping writes to it.
        images_folder: the photos, for the colours of points.
        out: folder for the models.
        components: image names of each component of the verified graph.
        cameras: for each image its name, prior position and standard deviations [m].
        min_images: a model of fewer images is dropped.
        seed: mapping with one thread and a seed repeats itself.

    Returns:
        ``models`` (one entry a model, in the order written), ``cameras`` (one entry a registered image), ``points``
        (a sample of the largest model's points for the picture, [m]).
    """
    priors = {camera["name"]: camera for camera in cameras}
    level = _with_gravity(database)
    found: list[tuple[str, pycolmap.Reconstruction]] = []
    for number, names in enumerate(components):
        print(f"mapping component {number + 1} of {len(components)}: {len(names):,} images", flush=True)
        task = Task(database, images_folder, Path(out).parent / f"mapping_{number}", names, seed, min_images)
        found += map_component(task, upright=len(level & set(names)) >= MIN_REGISTERED_SHARE * len(names))
    found.sort(key=lambda pair: -pair[1].num_reg_images())
    said: dict[str, Any] = {"models": [], "cameras": [], "points": []}
    for number, (mapper, model) in enumerate(found):
        facts, rows = place(model, priors)
        model.extract_colors_for_all_images(images_folder)
        folder = Path(out) / str(number)
        folder.mkdir(parents=True)
        model.write_binary(str(folder))
        said["models"].append({"component": number, "mapper": mapper} | facts)
        said["cameras"] += [{"component": number} | row for row in rows]
        if number == 0:
            said["points"] = _some_points(model, seed)
    return said


def map_component(task: Task, *, upright: bool) -> list[tuple[str, pycolmap.Reconstruction]]:
    """Models of one component with the mapper that made each: the best of all images, then of those left, and so on."""
    found = []
    while len(task.names) >= task.min_images:
        best = _best_model(task, upright=upright)
        if best is None:
            break
        mapper, model = best
        model = _with_leftovers(task, model)
        found.append((mapper, model))
        registered = {model.image(i).name for i in model.reg_image_ids()}
        task = replace(task, names=[name for name in task.names if name not in registered])
    return found


def _best_model(task: Task, *, upright: bool) -> tuple[str, pycolmap.Reconstruction] | None:
    """The first mapper's model that holds most images together, else the model that holds the most."""
    attempts: dict[str, Callable[[], list[pycolmap.Reconstruction]]] = {
        "global_gravity": lambda: _global(task, use_gravity=True),
        "global": lambda: _global(task, use_gravity=False),
        "incremental": lambda: _incremental(task, min_tri_angle_deg=8.0) or _incremental(task, min_tri_angle_deg=4.0),
    }
    if not upright:
        del attempts["global_gravity"]
    best: tuple[str, pycolmap.Reconstruction] | None = None
    for mapper, attempt in attempts.items():
        models = attempt()
        if not models or models[0].compute_mean_reprojection_error() >= MAX_REPROJECTION_PX:
            continue
        model = held_together(models[0])
        n = model.num_reg_images()
        if n >= task.min_images and (best is None or n > best[1].num_reg_images()):
            best = mapper, model
        if n >= MIN_REGISTERED_SHARE * len(task.names):
            break
    return best


def held_together(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The part of a model whose images see enough of the same points, the largest such part.

    The global mapper places every image that has a match. Groups that share a handful of points come out well
    in themselves and tens of metres from where they belong; registration counts do not show it.
    """
    ids = sorted(model.reg_image_ids())
    index = {image_id: k for k, image_id in enumerate(ids)}
    seen = [sorted({index[e.image_id] for e in p.track.elements}) for _, p in sorted(model.points3D.items())]
    rows = np.concatenate([np.asarray(s) for s in seen]) if seen else np.zeros(0, int)
    columns = np.repeat(np.arange(len(seen)), [len(s) for s in seen])
    sees = csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(ids), max(len(seen), 1)))
    shared = (sees @ sees.T) >= MIN_SHARED_POINTS
    _, labels = connected_components(shared, directed=False)
    largest = int(np.bincount(labels).argmax())
    for image_id, label in zip(ids, labels, strict=True):
        if label != largest:
            model.deregister_frame(model.image(image_id).frame_id)
    return model


def _with_gravity(database: str) -> set[str]:
    """Names of the images whose direction of gravity is known."""
    with pycolmap.Database.open(database) as db:
        known = {prior.corr_data_id.id for prior in db.read_all_pose_priors() if prior.has_gravity()}
        return {image.name for image in db.read_all_images() if image.image_id in known}


def _global(task: Task, *, use_gravity: bool) -> list[pycolmap.Reconstruction]:
    options = pycolmap.GlobalPipelineOptions()
    options.image_names, options.num_threads, options.random_seed = task.names, 1, task.seed
    options.min_model_size = task.min_images
    options.mapper.keep_max_num_tracks = _TRACKS_PER_IMAGE * len(task.names)
    options.mapper.rotation_averaging.use_gravity = use_gravity
    models = pycolmap.global_mapping(task.database, task.images_folder, task.folder("global"), options)
    return _by_size(models)


def _incremental(task: Task, *, min_tri_angle_deg: float) -> list[pycolmap.Reconstruction]:
    """The incremental mapper with options for streets: cameras that move forward see small angles."""
    options = _incremental_options(task)
    options.mapper.init_max_forward_motion, options.mapper.init_min_tri_angle = 1.0, min_tri_angle_deg
    options.mapper.init_min_num_inliers, options.mapper.abs_pose_min_num_inliers = 50, 20
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.4
    options.ba_global_max_refinements, options.ba_local_max_refinements = 2, 1
    models = pycolmap.incremental_mapping(task.database, task.images_folder, task.folder("incremental"), options)
    return _by_size(models)


def _with_leftovers(task: Task, model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The model with the component's other images registered into it; cameras that stand stay where they are."""
    if model.num_reg_images() == len(task.names):
        return model
    start = task.folder("start")
    model.write_binary(start)
    options = _incremental_options(task)
    options.multiple_models, options.fix_existing_frames = False, True
    options.mapper.abs_pose_min_num_inliers = 20
    larger = _by_size(
        pycolmap.incremental_mapping(
            task.database, task.images_folder, task.folder("leftovers"), options, input_path=start
        )
    )
    if not larger:
        return model
    grown = held_together(larger[0])
    return grown if grown.num_reg_images() > model.num_reg_images() else model


def _incremental_options(task: Task) -> pycolmap.IncrementalPipelineOptions:
    options = pycolmap.IncrementalPipelineOptions()
    options.image_names, options.num_threads, options.random_seed = task.names, 1, task.seed
    options.min_model_size, options.extract_colors = task.min_images, False
    return options


def _by_size(models: dict[int, pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    return sorted(models.values(), key=lambda model: -model.num_reg_images())


def place(
    model: pycolmap.Reconstruction, priors: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Bring a model to its place, if its cameras' positions allow it, and say what it is worth.

    Returns:
        Figures of the model (columns of ``sparse_models``) and one row a camera (columns of ``model_cameras``).
    """
    images = sorted((model.image(i) for i in model.reg_image_ids()), key=lambda image: image.name)
    known = [priors[image.name] for image in images]
    centres = np.array([image.projection_center() for image in images])
    rotations = np.array([image.cam_from_world().rotation.matrix() for image in images])
    positions = np.array([[p["east_m"], p["north_m"], p["up_m"]] for p in known])
    sigma = np.array([[p["sigma_xy_m"], p["sigma_xy_m"], p["sigma_z_m"]] for p in known])
    alignment = align(centres, rotations, positions, sigma) if len(images) >= 3 else None
    status = "placed" if alignment is not None and _placeable(alignment, positions, sigma) else "unplaced"
    facts: dict[str, Any] = {
        "status": status,
        "n_registered": len(images),
        "image_ids": [image.name.removesuffix(".jpg") for image in images],
        "n_points": model.num_points3D(),
        "reprojection_px": float(model.compute_mean_reprojection_error()),
        "track_length": float(model.compute_mean_track_length()),
    }
    if status == "unplaced" or alignment is None:
        return facts, []
    model.transform(_sim3(alignment.similarity))
    facts |= {
        "gps_median_m": float(np.median(alignment.horizontal_m)),
        "gps_p95_m": float(np.percentile(alignment.horizontal_m, 95)),
        "gps_vertical_m": float(np.median(np.abs(alignment.offsets_m[:, 2]))),
        "roll_deg": alignment.roll_deg,
    }
    return facts, [_camera_row(image) for image in images]


def _placeable(alignment: Alignment, positions: np.ndarray, sigma: np.ndarray) -> bool:
    """Whether positions fix the place: spread over some metres, mostly in agreement, one scale for all."""
    centred = positions[:, :2] - np.median(positions[:, :2], axis=0)
    extent = 2 * float(np.percentile(np.hypot(*centred.T), 90))
    far = float((alignment.horizontal_m > 3 * sigma[:, 0]).mean())
    return extent >= MIN_EXTENT_M and far <= MAX_FAR_SHARE and alignment.scale_spread <= MAX_SCALE_SPREAD


def _sim3(similarity: Similarity) -> pycolmap.Sim3d:
    return pycolmap.Sim3d(similarity.scale, pycolmap.Rotation3d(similarity.rotation), similarity.translation)


def _camera_row(image: pycolmap.Image) -> dict[str, Any]:
    pose = image.cam_from_world()
    qx, qy, qz, qw = (float(v) for v in pose.rotation.quat)
    sign = -1.0 if qw < 0 else 1.0
    east, north, up = (float(v) for v in image.projection_center())
    return {
        "image_id": image.name.removesuffix(".jpg"),
        "east_m": east,
        "north_m": north,
        "up_m": up,
        "qw": sign * qw,
        "qx": sign * qx,
        "qy": sign * qy,
        "qz": sign * qz,
        "heading_deg": float(heading_deg(pose.rotation.matrix()[None])[0]),
        "n_observations": int(image.num_points3D),
    }


def _some_points(model: pycolmap.Reconstruction, seed: int) -> list[list[float]]:
    """East, north, up [m] and red, green, blue of a sample of the points."""
    ids = sorted(model.points3D)
    if len(ids) > _PICTURE_POINTS:
        ids = sorted(np.random.default_rng(seed).choice(ids, _PICTURE_POINTS, replace=False).tolist())
    points = (model.points3D[i] for i in ids)
    return [[*map(float, p.xyz), *map(float, p.color)] for p in points]
