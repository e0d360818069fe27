"""A block of the verified graph to COLMAP models; runs in the child process, beside COLMAP.

The global mapper goes first: with one camera a sequence it registers street sequences that the incremental
mapper gives up on. What it leaves, the incremental mapper adds without moving what stands. Registration alone
proves nothing, so a model also has to hold together and to follow its cameras' positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

import geo_assets.reconstruct.colmap  # noqa: F401  settles where COLMAP logs to
from geo_assets.files import fresh_folder
from geo_assets.reconstruct import databases, given_poses
from geo_assets.reconstruct.frames import Array, align
from geo_assets.reconstruct.given_poses import MAX_REPROJECTION_PX, MIN_REGISTERED_SHARE

MIN_SHARED_POINTS = 15
"""Two images hold together if they see so many of the same points; COLMAP asks as much of two views."""

MIN_LEFTOVER_INLIERS = 20
"""An image is worth another try if a verified pair of so many inliers ties it to a registered one."""

SEED_BASELINE_M, SEED_TURN_DEG, SEED_INLIERS = (3.0, 12.0), 40.0, (60, 400)
SEED_GEOMETRIES = ("CALIBRATED", "UNCALIBRATED")
N_SEEDS = 3

TRACKS_PER_IMAGE = 30
"""Tracks that the global mapper begins with; retriangulation finds the others again."""

MAX_FAR_SHARE = 0.3
_ADDED = "leftovers"


@dataclass(frozen=True)
class Task:
    """Images of one block to map, and where things lie on disk.

    Attributes:
        database: COLMAP database of the block, with two-view geometries of its verified pairs alone.
        scratch: folder for what mappers write; it also serves as their folder of images, which they do not read.
        names: names of the images.
        images: what is known of each image by its name: ``east_m``, ``north_m``, ``up_m``, ``sigma_xy_m``,
            ``sigma_z_m`` [m], ``heading_deg``; a value may be None.
        pairs: verified pairs: both names, inliers, geometry.
        seed: mapping with one thread and a seed repeats itself.
        min_images: a model of fewer images is dropped.
    """

    database: str
    scratch: Path
    names: list[str]
    images: dict[str, dict[str, Any]]
    pairs: list[tuple[str, str, int, str]]
    seed: int
    min_images: int

    def folder(self, name: str) -> str:
        """A fresh folder for one mapper's output."""
        return str(fresh_folder(self.scratch / name))

    def among(self, names: Iterable[str]) -> Task:
        """The task of some of the images."""
        kept = set(names)
        pairs = [pair for pair in self.pairs if pair[0] in kept and pair[1] in kept]
        return replace(self, names=[name for name in self.names if name in kept], pairs=pairs)


Attempt = Callable[[Task], list[pycolmap.Reconstruction]]


def map_block(
    database: str,
    out: str,
    images: list[dict[str, Any]],
    pairs: list[tuple[str, str, int, str]],
    min_images: int,
    seed: int,
    given: str = "off",
) -> dict[str, Any]:
    """Map one block and write its models to ``out/0``, ``out/1``, ... by size, each in a frame of its own.

    Args:
        database: the box's COLMAP database with verified matches; it is only read.
        out: folder for the models.
        images: the block's images: ``name``, ``colmap_image_id``, and what :class:`Task` says of them.
        pairs: their verified pairs: both names, inliers, geometry.
        min_images: a model of fewer images is dropped.
        seed: mapping with one thread and a seed repeats itself.
        given: whether to triangulate on the provider's poses: ``auto``, ``off`` or ``only``.

    Returns:
        ``models``: for each its ``folder``, ``mapper`` and ``names`` of registered images. ``given``: figures of
        :class:`.given_poses.GivenFigures` for each time that the provider's poses were asked.
    """
    scratch = Path(out).parent / "mapping"
    scratch.mkdir(parents=True, exist_ok=True)
    own = scratch / "block.db"
    numbers = {image["name"]: int(image["colmap_image_id"]) for image in images}
    databases.empty_like(Path(database), own)
    wanted = [databases.pair_id(numbers[a], numbers[b]) for a, b, *_ in pairs]
    databases.copy_part(Path(database), own, numbers.values(), wanted)
    task = Task(str(own), scratch, sorted(numbers), {i["name"]: i for i in images}, list(pairs), seed, min_images)
    found, asked = models_of(task, given)
    said: dict[str, Any] = {"models": [], "given": asked}
    for number, (mapper, model) in enumerate(sorted(found, key=lambda one: -one[1].num_reg_images())):
        folder = Path(out) / str(number)
        folder.mkdir(parents=True)
        model.write_binary(str(folder))
        said["models"].append({"folder": str(number), "mapper": mapper, "names": sorted(names_of(model))})
    return said


def models_of(task: Task, given: str = "off") -> tuple[list[tuple[str, pycolmap.Reconstruction]], list[dict[str, Any]]]:
    """Models of a block with the mapper that made each: the best of all images, then of those left, and so on.

    Returns:
        The models, and figures of each attempt on the provider's own poses.
    """
    upright = _with_gravity(task.database)
    found: list[tuple[str, pycolmap.Reconstruction]] = []
    asked: list[dict[str, Any]] = []
    while len(task.names) >= task.min_images and task.pairs:
        level = len(upright & set(task.names)) >= MIN_REGISTERED_SHARE * len(task.names)
        tried = attempts(level)
        if given != "off":
            first: dict[str, Attempt] = {"given": lambda task: _on_given(task, asked, only=given == "only")}
            tried = first if given == "only" else first | tried
        best = best_model(task, tried)
        if best is None:
            break
        mapper, model = best
        model = with_leftovers(task, model)
        found.append((mapper, model))
        task = task.among(set(task.names) - names_of(model))
    return found, asked


def attempts(level: bool) -> dict[str, Attempt]:
    """The mappers in the order in which they are tried.

    Args:
        level: whether the direction of gravity is known for most images.
    """
    found: dict[str, Attempt] = {"global": lambda task: _global(task, use_gravity=False), "incremental": _incremental}
    return ({"global_gravity": lambda task: _global(task, use_gravity=True)} if level else {}) | found


def best_model(task: Task, tried: dict[str, Attempt]) -> tuple[str, pycolmap.Reconstruction] | None:
    """The first mapper's model that holds most images together and follows their positions, else the best of all."""
    best: tuple[tuple[bool, int], str, pycolmap.Reconstruction] | None = None
    for mapper, attempt in tried.items():
        models = attempt(task)
        if not models or models[0].compute_mean_reprojection_error() >= MAX_REPROJECTION_PX:
            continue
        model = held_together(models[0])
        n = model.num_reg_images()
        if n < task.min_images:
            continue
        worth = (follows_positions(model, task.images), n)
        if best is None or worth > best[0]:
            best = worth, mapper, model
        if worth[0] and n >= MIN_REGISTERED_SHARE * len(task.names):
            break
    return best and best[1:]


def held_together(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The part of a model whose frames see enough of the same points, the largest such part.

    The global mapper places every image that has a match. Groups that share a handful of points come out well
    in themselves and tens of metres from where they belong; registration counts do not show it.
    """
    ids = sorted(model.reg_image_ids())
    frames = sorted({model.image(i).frame_id for i in ids})
    number = {frame: k for k, frame in enumerate(frames)}
    index = {i: number[model.image(i).frame_id] for i in ids}
    seen = [sorted({index[e.image_id] for e in p.track.elements}) for _, p in sorted(model.points3D.items())]
    rows = np.concatenate([np.asarray(s) for s in seen]) if seen else np.zeros(0, int)
    columns = np.repeat(np.arange(len(seen)), [len(s) for s in seen])
    sees = csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(frames), max(len(seen), 1)))
    shared = (sees @ sees.T) >= MIN_SHARED_POINTS
    _, labels = connected_components(shared, directed=False)
    if len(labels):
        largest = int(np.bincount(labels).argmax())
        for frame, label in zip(frames, labels, strict=True):
            if label != largest:
                model.deregister_frame(frame)
    return model


def follows_positions(model: pycolmap.Reconstruction, images: dict[str, dict[str, Any]]) -> bool:
    """Whether most cameras come to stand near their positions; a drifting model has all images and a wrong shape."""
    centres, rotations, priors, sigma = poses_and_priors(model, images)
    known = np.isfinite(priors).all(axis=1)
    if known.sum() < 3:
        return True
    found = align(centres[known], rotations[known], priors[known], sigma[known])
    return float((found.horizontal_m > 3 * sigma[known, 0]).mean()) <= MAX_FAR_SHARE


def poses_and_priors(
    model: pycolmap.Reconstruction, images: dict[str, dict[str, Any]]
) -> tuple[Array, Array, Array, Array]:
    """Centres [n, 3], rotations camera_from_world [n, 3, 3], prior positions and deviations [n, 3] [m], by name.

    A camera without a position has NaN there.
    """
    registered = registered_images(model)
    centres = np.array([image.projection_center() for image in registered]).reshape(-1, 3)
    rotations = np.array([image.cam_from_world().rotation.matrix() for image in registered]).reshape(-1, 3, 3)
    rows = [images[image.name] for image in registered]
    priors = np.array([[row[k] for k in ("east_m", "north_m", "up_m")] for row in rows], float).reshape(-1, 3)
    sigma = np.array([[row[k] for k in ("sigma_xy_m", "sigma_xy_m", "sigma_z_m")] for row in rows], float)
    return centres, rotations, priors, sigma.reshape(-1, 3)


def registered_images(model: pycolmap.Reconstruction) -> list[pycolmap.Image]:
    """The registered images by name."""
    return sorted((model.image(i) for i in model.reg_image_ids()), key=lambda image: image.name)


def names_of(model: pycolmap.Reconstruction) -> set[str]:
    """Names of the registered images."""
    return {model.image(i).name for i in model.reg_image_ids()}


def seeds(task: Task) -> list[tuple[str, str]]:
    """Pairs to begin with: some metres apart, looking the same way, with a fair number of inliers; few at most.

    Not those of the most inliers: these stand in one place, or show the same dashboard.
    """
    fitting = []
    for a, b, inliers, geometry in task.pairs:
        first, second = task.images[a], task.images[b]
        east, north = (_number(first[k]) - _number(second[k]) for k in ("east_m", "north_m"))
        apart = float(np.hypot(east, north))
        turn = abs((_number(first["heading_deg"]) - _number(second["heading_deg"]) + 180) % 360 - 180)
        good = SEED_BASELINE_M[0] <= apart <= SEED_BASELINE_M[1] and not turn > SEED_TURN_DEG
        if good and SEED_INLIERS[0] <= inliers <= SEED_INLIERS[1] and geometry in SEED_GEOMETRIES:
            fitting.append((-inliers, a, b))
    found: list[tuple[str, str]] = []
    for _, a, b in sorted(fitting):
        if len(found) < N_SEEDS and not any(a in pair or b in pair for pair in found):
            found.append((a, b))
    return found


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _with_gravity(database: str) -> set[str]:
    """Names of the images whose direction of gravity is known."""
    with pycolmap.Database.open(database) as db:
        known = {prior.corr_data_id.id for prior in db.read_all_pose_priors() if prior.has_gravity()}
        return {image.name for image in db.read_all_images() if image.image_id in known}


def _global(task: Task, *, use_gravity: bool) -> list[pycolmap.Reconstruction]:
    options = pycolmap.GlobalPipelineOptions()
    options.image_names, options.num_threads, options.random_seed = task.names, 1, task.seed
    options.min_model_size = task.min_images
    options.mapper.keep_max_num_tracks = TRACKS_PER_IMAGE * len(task.names)
    options.mapper.rotation_averaging.use_gravity = use_gravity
    # The views of a panorama are cut from it: how they stand to each other is exact.
    options.mapper.refine_sensor_from_rig = options.mapper.rotation_averaging.refine_sensor_from_rig = False
    options.mapper.global_positioning.refine_sensor_from_rig = False
    options.mapper.bundle_adjustment.refine_sensor_from_rig = False
    models = pycolmap.global_mapping(task.database, str(task.scratch), task.folder("global"), options)
    return _by_size(models)


def _on_given(task: Task, asked: list[dict[str, Any]], *, only: bool) -> list[pycolmap.Reconstruction]:
    """The provider's own poses, adjusted, where they agree with the verified pairs; what was found is told."""
    poses = given_poses.poses_of(task.images[name] for name in task.names)
    if not poses and not only:
        return []
    model, figures = given_poses.triangulate_on_given(
        task.database, str(task.scratch), task.scratch, task.names, poses, only=only, seed=task.seed
    )
    print(f"provider's poses {'used' if figures.used else 'not used'}: {figures.reason}", flush=True)
    asked.append(figures.as_dict())
    return [model] if model is not None else []


def _incremental(task: Task) -> list[pycolmap.Reconstruction]:
    """The incremental mapper, from pairs that positions recommend, then from those that it finds itself."""
    best: list[pycolmap.Reconstruction] = []
    starts: list[tuple[tuple[str, str] | None, float]] = [(pair, 4.0) for pair in seeds(task)]
    for pair, angle in [*starts, (None, 8.0), (None, 4.0)]:
        models = _incremental_from(task, pair, min_tri_angle_deg=angle)
        if models and (not best or models[0].num_reg_images() > best[0].num_reg_images()):
            best = models
        if best and best[0].num_reg_images() >= MIN_REGISTERED_SHARE * len(task.names):
            break
    return best


def _incremental_from(
    task: Task, pair: tuple[str, str] | None, *, min_tri_angle_deg: float
) -> list[pycolmap.Reconstruction]:
    """The incremental mapper with options for streets: cameras that move forward see small angles."""
    options = _incremental_options(task)
    options.mapper.init_max_forward_motion, options.mapper.init_min_tri_angle = 1.0, min_tri_angle_deg
    options.mapper.init_min_num_inliers, options.mapper.abs_pose_min_num_inliers = 50, 20
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.4
    options.ba_global_max_refinements, options.ba_local_max_refinements = 2, 1
    if pair is not None:
        with pycolmap.Database.open(task.database) as db:
            numbers = {image.name: image.image_id for image in db.read_all_images()}
        options.init_image_id1, options.init_image_id2 = (numbers[name] for name in pair)
        options.multiple_models = False
    models = pycolmap.incremental_mapping(task.database, str(task.scratch), task.folder("incremental"), options)
    return _by_size(models)


def with_leftovers(task: Task, model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The model with the block's other images registered into it; cameras that stand stay where they are."""
    registered = names_of(model)
    tied = any(
        inliers >= MIN_LEFTOVER_INLIERS and (a in registered) != (b in registered) for a, b, inliers, _ in task.pairs
    )
    if not tied:
        return model
    start = task.folder("start")
    model.write_binary(start)
    options = _incremental_options(task)
    options.multiple_models, options.fix_existing_frames = False, True
    options.mapper.abs_pose_min_num_inliers = MIN_LEFTOVER_INLIERS
    larger = _by_size(
        pycolmap.incremental_mapping(task.database, str(task.scratch), task.folder(_ADDED), options, input_path=start)
    )
    if not larger:
        return model
    grown = held_together(larger[0])
    return grown if grown.num_reg_images() > model.num_reg_images() else model


def _incremental_options(task: Task) -> pycolmap.IncrementalPipelineOptions:
    options = pycolmap.IncrementalPipelineOptions()
    options.image_names, options.num_threads, options.random_seed = task.names, 1, task.seed
    options.min_model_size, options.extract_colors = task.min_images, False
    options.ba_refine_sensor_from_rig = False
    return options


def _by_size(models: dict[int, pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    return sorted(models.values(), key=lambda model: -model.num_reg_images())
