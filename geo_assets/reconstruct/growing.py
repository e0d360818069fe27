"""Published models brought up to date: images taken out and registered, all that stays left where it stands.

Runs in a child process, beside COLMAP. The cost is that of the change: new images are registered into the model
one by one, with its cameras and their calibrations held fixed; points may move by what new images say of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

import geo_assets.reconstruct.colmap  # noqa: F401  settles where COLMAP logs to
from geo_assets.errors import ReconstructionError
from geo_assets.files import fresh_folder
from geo_assets.geodesy import LocalFrame
from geo_assets.reconstruct import databases, joining
from geo_assets.reconstruct.mapping import names_of

MIN_INLIERS = 20
"""A new image is tried if a verified pair of so many inliers ties it to the model; also what its pose must have."""

MIN_POINTS = 15
"""A new image that sees fewer points is not held by the model and is left out."""

_SAME_PX = 1e-9

Pair = tuple[str, str, int, str]


@dataclass(frozen=True)
class Growth:
    """What an update did to one model.

    Attributes:
        n_gone: images taken out.
        n_new: names of new images registered.
        n_points_gone: points lost with the images taken out.
        moved_m: largest move of a camera that stayed [m]; it is 0.
    """

    n_gone: int
    new: tuple[str, ...]
    n_points_gone: int
    moved_m: float


def update_models(
    database: str,
    models: list[dict[str, Any]],
    images: list[dict[str, Any]],
    pairs: list[Pair],
    new: list[str],
    origin: list[float],
    neighbours: list[dict[str, Any]],
    images_folder: str,
    out: str,
    seed: int,
) -> dict[str, Any]:
    """Bring a box's models up to date and write them to ``out/0``, ``out/1``, ... by size.

    Args:
        database: the box's COLMAP database with verified matches; it is only read.
        models: for each its ``folder``, whether it is ``placed`` (else it may find its place now), and what is kept
            of it: ``part_of``, ``n_blocks``, ``mapper``; larger first.
        images: all images of the box now: ``name``, ``colmap_image_id``, prior position and standard deviations [m].
        pairs: their verified pairs: both names, inliers, geometry.
        new: names of those that the models do not know, or know with other features.
        origin: longitude, latitude [deg] and height [m] of the box's frame.
        neighbours: placed models of the boxes around, see :func:`.joining.join_blocks`.
        images_folder: the photos, for the colours of new points.
        out: folder for the models.
        seed: registering with one thread and a seed repeats itself.

    Returns:
        As :func:`.joining.join_blocks`, and ``registered`` (names of new images), ``moved_m``, ``n_gone``.

    Raises:
        ReconstructionError: a model cannot be told in the database's numbers.
    """
    priors = {image["name"]: image for image in images}
    staying = set(priors) - set(new)
    frame = LocalFrame(*origin)
    fixed = [joining.fixed_part(neighbour) for neighbour in neighbours]
    scratch = Path(out).parent / "growing"
    waiting, held = set(new), set()
    said: dict[str, Any] = {"models": [], "cameras": [], "points": [], "registered": [], "moved_m": 0.0, "n_gone": 0}
    grown: list[tuple[dict[str, Any], list[dict[str, Any]], Path]] = []
    for number, known in enumerate(models):
        work = fresh_folder(scratch / str(number))
        model, growth = grow(known["folder"], database, work, priors, pairs, staying, waiting, seed)
        waiting -= set(growth.new)
        held |= set(growth.new)
        said["moved_m"] = max(said["moved_m"], growth.moved_m)
        said["n_gone"] += growth.n_gone
        print(f"model {number + 1} of {len(models)}: {growth.n_gone} images out, {len(growth.new)} in", flush=True)
        facts, rows = joining.place(model, priors, frame, fixed, stays=known["placed"])
        for name in growth.new:
            image = model.find_image_with_name(name)
            assert image is not None
            model.extract_colors_for_image(image.image_id, images_folder)
        folder = fresh_folder(work / "grown")
        model.write_binary(str(folder))
        grown.append((facts | {key: known[key] for key in ("part_of", "n_blocks", "mapper")}, rows, folder))
    for number, (facts, rows, written) in enumerate(sorted(grown, key=lambda one: -len(one[0]["image_ids"]))):
        folder = Path(out) / str(number)
        written.rename(folder)
        said["models"].append({"component": number} | facts)
        said["cameras"] += [{"component": number} | row for row in rows]
        if number == 0:
            said["points"] = joining.some_points(pycolmap.Reconstruction(str(folder)), seed)
    return said | {"registered": sorted(held)}


def grow(
    folder: str,
    database: str,
    scratch: Path,
    images: Mapping[str, Mapping[str, Any]],
    pairs: Sequence[Pair],
    staying: Collection[str],
    new: Collection[str],
    seed: int,
) -> tuple[pycolmap.Reconstruction, Growth]:
    """One model without the images that are gone and with the new ones that it can hold.

    Args:
        folder: COLMAP binary of the model.
        database: see :func:`update_models`.
        scratch: an empty folder.
        images: all images by name, with ``colmap_image_id``.
        pairs: verified pairs.
        staying: names of the images that may stay; others of the model are taken out.
        new: names of the images to register.
        seed: see :func:`update_models`.
    """
    old = pycolmap.Reconstruction(folder)
    kept = names_of(old) & set(staying)
    tried = _within_reach(kept, set(new), pairs)
    part = scratch / "part.db"
    among = kept | tried
    numbers = {name: int(images[name]["colmap_image_id"]) for name in among}
    databases.empty_like(Path(database), part)
    wanted = (databases.pair_id(numbers[a], numbers[b]) for a, b, *_ in pairs if a in among and b in among)
    databases.copy_part(Path(database), part, numbers.values(), wanted)
    model = renumbered(old, str(part), kept)
    n_gone, n_points_gone = len(names_of(old) - kept), old.num_points3D() - model.num_points3D()
    poses = {frame_id: model.frame(frame_id).rig_from_world for frame_id in model.reg_frame_ids()}
    if tried:
        model = _registered(model, str(part), scratch, seed)
    moved_m = _put_back(model, poses)
    _drop_loose(model, poses)
    added = sorted(names_of(model) & tried)
    return model, Growth(n_gone, tuple(added), n_points_gone, moved_m)


def renumbered(old: pycolmap.Reconstruction, database: str, names: Collection[str]) -> pycolmap.Reconstruction:
    """A model of some images of another, in a database's numbers; poses, calibrations and points stay the same.

    A model that was merged of blocks has numbers of its own; images are known by name, keypoints by their order.

    Raises:
        ReconstructionError: an image has other keypoints in the database, or one camera there has two calibrations
            in the model.
    """
    options = pycolmap.DatabaseCacheOptions()
    options.load_all_images = True
    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(database) as db:
        model.load(pycolmap.DatabaseCache.create(db, options))
    by_name = {image.name: image for image in model.images.values()}
    there: dict[int, int] = {}
    calibrated: dict[int, np.ndarray] = {}
    for image in (old.image(i) for i in old.reg_image_ids()):
        if image.name not in names:
            continue
        own = by_name.get(image.name)
        if own is None or len(own.points2D) != len(image.points2D):
            raise ReconstructionError(f"Image {image.name} has other keypoints in the model than in the database.")
        there[image.image_id] = own.image_id
        params = np.asarray(old.camera(image.camera_id).params, float)
        camera = model.camera(own.camera_id)
        if len(params) != len(camera.params) or (
            own.camera_id in calibrated and np.abs(calibrated[own.camera_id] - params).max() > _SAME_PX
        ):
            raise ReconstructionError(f"The model has two calibrations of camera {own.camera_id}.")
        calibrated[own.camera_id] = params
        camera.params = params.tolist()
        if not model.frame(own.frame_id).has_pose():
            _set_pose(model, own, old, image)
    for _, point in sorted(old.points3D.items()):
        track = pycolmap.Track()
        for element in point.track.elements:
            if element.image_id in there:
                track.add_element(there[element.image_id], element.point2D_idx)
        if track.length() >= 2:
            model.add_point3D(point.xyz, track, point.color)
    model.update_point_3d_errors()
    return model


def _set_pose(
    model: pycolmap.Reconstruction, own: pycolmap.Image, old: pycolmap.Reconstruction, image: pycolmap.Image
) -> None:
    """Give the frame of an image the pose that the other model has for it."""
    frame = model.frame(own.frame_id)
    rig, sensor = model.rig(frame.rig_id), own.data_id.sensor_id
    before = old.frame(image.frame_id)
    trivial = old.rig(before.rig_id).is_ref_sensor(image.data_id.sensor_id) and rig.is_ref_sensor(sensor)
    if trivial:
        frame.rig_from_world = before.rig_from_world
    else:
        from_rig = pycolmap.Rigid3d() if rig.is_ref_sensor(sensor) else rig.sensor_from_rig(sensor)
        assert from_rig is not None, "a rig of our databases has every sensor's place"
        frame.rig_from_world = from_rig.inverse() * image.cam_from_world()
    model.register_frame(frame.frame_id)


def _within_reach(kept: Collection[str], new: set[str], pairs: Iterable[Pair]) -> set[str]:
    """The new images that a chain of verified pairs ties to the model."""
    ties: dict[str, set[str]] = {}
    for a, b, inliers, _ in pairs:
        if inliers >= MIN_INLIERS:
            ties.setdefault(a, set()).add(b)
            ties.setdefault(b, set()).add(a)
    reached: set[str] = set()
    ahead = {name for name in new if ties.get(name, set()).intersection(kept)}
    while ahead:
        reached |= ahead
        ahead = {b for a in ahead for b in ties.get(a, set()) if b in new} - reached
    return reached


def _registered(model: pycolmap.Reconstruction, database: str, scratch: Path, seed: int) -> pycolmap.Reconstruction:
    """The model with the database's other images registered; COLMAP's last adjustment moves these and points alone."""
    start, out = fresh_folder(scratch / "start"), fresh_folder(scratch / "registered")
    model.write_binary(str(start))
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed, options.extract_colors = 1, seed, False
    options.multiple_models, options.fix_existing_frames, options.load_all_images = False, True, True
    options.constant_cameras = {model.image(i).camera_id for i in model.reg_image_ids()}
    options.constant_rigs = set(model.rigs)
    options.ba_refine_sensor_from_rig = False
    options.mapper.abs_pose_min_num_inliers = MIN_INLIERS
    # What is there is settled: adjusting all of it after each few new images would cost as much as a rebuild.
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 10.0
    options.ba_global_max_refinements = 1
    found = pycolmap.incremental_mapping(database, str(scratch), str(out), options, input_path=str(start))
    return max(found.values(), key=lambda one: one.num_reg_images(), default=model)


def _put_back(model: pycolmap.Reconstruction, poses: Mapping[int, pycolmap.Rigid3d | None]) -> float:
    """Give cameras that were there their poses to the last bit, and say how far the largest move was [m].

    COLMAP keeps them, but for the rounding of writing and reading a model.
    """
    moved = 0.0
    for frame_id, pose in poses.items():
        if pose is None:
            continue
        if frame_id not in set(model.reg_frame_ids()):
            return float("inf")
        frame = model.frame(frame_id)
        now = frame.rig_from_world
        assert now is not None
        moved = max(moved, float(np.abs(now.inverse().translation - pose.inverse().translation).max()))
        frame.rig_from_world = pose
    return moved


def _drop_loose(model: pycolmap.Reconstruction, old: Collection[int]) -> None:
    """Take out the new frames whose images see too few points."""
    for frame_id in sorted(set(model.reg_frame_ids()) - set(old)):
        seen = [model.image(data_id.id).num_points3D for data_id in model.frame(frame_id).image_ids]
        if max(seen, default=0) < MIN_POINTS:
            model.deregister_frame(frame_id)
