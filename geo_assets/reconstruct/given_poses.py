"""A block's model from the provider's own camera poses: triangulated and adjusted; runs in a child process.

The provider has reconstructed its photos once. Where its poses agree with what matching has verified, mapping is
done in a fraction of the time: points are triangulated on the poses and both are adjusted, in rounds whose
tolerance begins at the error found and ends at the usual one. Whether the poses agree is asked of the verified
pairs first, which costs next to nothing, and of the finished model again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycolmap

from geo_assets.files import fresh_folder
from geo_assets.reconstruct.frames import rotation_from_vector

Array = npt.NDArray[np.float64]

MIN_GIVEN_SHARE = 0.5
"""With fewer of a block's images posed by the provider, the others would decide the shape."""

CHEAPER_BELOW_DEG = 0.75
"""Up to this median distance of verified matches from the lines the poses predict, the global mapper costs more."""

MAX_EPIPOLAR_DEG = 2.0
"""Beyond this distance the rounds may not find back to the scene."""

MIN_REGISTERED_SHARE = 0.8
MAX_REPROJECTION_PX = 2.0
MAX_EPIPOLAR_P95_PX = 2.0
"""Of the finished model, for 95 of 100 verified pairs: where a chain of cameras stands wrong, its points still fit
(those that did not were filtered), but its verified pairs do not."""

MIN_POINTS = 15
"""An image that sees fewer points of the model is not held by it."""

_USUAL_PX = 4.0  # COLMAP's own tolerance of a point's reprojection
_WIDEST_DEG = 8.0  # a ray further off tells nothing of where its point lies
_NARROWER = 2.0  # a round's tolerance by the next one's
_START = 3.0  # a round begins with so many times the median error
_SAMPLED_PAIRS = 300  # of the verified pairs, to judge poses by
_MIN_INLIERS = 15


@dataclass(frozen=True)
class GivenPose:
    """The provider's pose of one image.

    Attributes:
        name: of the image in the database.
        centre: camera centre, east-north-up [m], [3].
        rotation: axis-angle camera_from_enu [rad], [3].
        cluster: the provider's reconstruction that it belongs to; poses of different ones are aligned by position alone.
    """

    name: str
    centre: Sequence[float]
    rotation: Sequence[float]
    cluster: str | None = None


@dataclass(frozen=True)
class Agreement:
    """How poses agree with the verified pairs among their images, as medians over the pairs.

    Attributes:
        n_pairs: pairs asked.
        epipolar_px: distance of a match from the line that the poses predict (Sampson) [px].
        epipolar_p95_px: the same, 95th percentile over the pairs instead of the median [px].
        epipolar_deg: the same as an angle at the camera [deg].
        rotation_deg: between the pair's own relative rotation and that of the poses; None without a calibrated pair.
        direction_deg: between the pair's own baseline and that of the poses, 0 to 90; None without a calibrated pair.
    """

    n_pairs: int
    epipolar_px: float
    epipolar_p95_px: float
    epipolar_deg: float
    rotation_deg: float | None
    direction_deg: float | None


@dataclass(frozen=True)
class GivenFigures:
    """What came of the provider's poses of a block, and by what it was decided.

    Attributes:
        used: whether the model stands.
        reason: the figure that decided, in words.
        n_images: images of the block.
        n_given: images with a pose by the provider.
        n_registered: images of the model.
        before: agreement of the poses as given; None where too few are given to ask.
        epipolar_p95_px: of the finished model [px]; None without a model.
        reprojection_px: of the finished model [px]; None without a model.
        moved_m: median distance of the adjusted centres from the given ones, after the best fit of the two [m].
        cpu_seconds: processor time of it all [s].
    """

    used: bool
    reason: str
    n_images: int
    n_given: int
    n_registered: int = 0
    before: Agreement | None = None
    epipolar_p95_px: float | None = None
    reprojection_px: float | None = None
    moved_m: float | None = None
    cpu_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The figures flat, as JSON can hold them."""
        before = self.before
        flat = {name: value for name, value in vars(self).items() if name != "before"}
        return flat | {
            "given_epipolar_px": before and before.epipolar_px,
            "given_rotation_deg": before and before.rotation_deg,
            "given_direction_deg": before and before.direction_deg,
        }


def triangulate_on_given(
    database: str,
    images_folder: str,
    scratch: Path,
    names: Sequence[str],
    given: Iterable[GivenPose],
    *,
    only: bool = False,
    seed: int = 0,
) -> tuple[pycolmap.Reconstruction | None, GivenFigures]:
    """Map a block on the provider's poses, if they agree with its verified pairs and the model passes its gates.

    Images without a pose are registered into the model afterwards, with the cameras that stand held fixed.

    Args:
        database: COLMAP database of the block, with its verified pairs; it is read only.
        images_folder: any folder; COLMAP asks for one.
        scratch: folder for COLMAP's output.
        names: images of the block.
        given: poses of some of them; others are ignored.
        only: also where another mapper would cost less, up to what the rounds bear.
        seed: one thread and a seed repeat themselves.

    Returns:
        The model in the frame of the poses (roughly: adjustment leaves position, turn and scale free), or None;
        and the figures that say why.
    """
    began = time.process_time()
    wanted = set(names)
    poses = {pose.name: pose for pose in given if pose.name in wanted}
    model, figures = _tried(database, images_folder, scratch, list(names), poses, only, seed)
    return model, GivenFigures(**{**vars(figures), "cpu_seconds": round(time.process_time() - began, 3)})


def poses_of(images: Iterable[Mapping[str, Any]]) -> list[GivenPose]:
    """Poses of those of a block's images (``name``, ``given_centre``, ``given_rotation``, ``given_cluster``) that have one."""
    return [
        GivenPose(image["name"], image["given_centre"], image["given_rotation"], image.get("given_cluster"))
        for image in images
        if image.get("given_centre") is not None and image.get("given_rotation") is not None
    ]


def _tried(
    database: str,
    images_folder: str,
    scratch: Path,
    names: list[str],
    poses: dict[str, GivenPose],
    only: bool,
    seed: int,
) -> tuple[pycolmap.Reconstruction | None, GivenFigures]:
    n_images, n_given = len(names), len(poses)
    if n_given < MIN_GIVEN_SHARE * n_images or n_given < 3:
        return None, GivenFigures(False, f"{n_given} of {n_images} images have a pose", n_images, n_given)
    model = posed(database, names, poses)
    before = agreement(database, model)
    if before is None:
        return None, GivenFigures(False, "no verified pair between two given poses", n_images, n_given)
    if before.epipolar_deg > (MAX_EPIPOLAR_DEG if only else CHEAPER_BELOW_DEG):
        reason = f"matches lie {before.epipolar_deg:.2f} deg from where the poses predict them"
        return None, GivenFigures(False, reason, n_images, n_given, before=before)
    model = adjusted(database, images_folder, scratch, model, before, seed)
    _drop_unseen(model)
    if 0 < model.num_reg_images() < n_images:
        model = _with_others(database, images_folder, scratch, model, names, seed)
    return _judged(database, model, poses, before, n_images)


def _judged(
    database: str,
    model: pycolmap.Reconstruction,
    poses: dict[str, GivenPose],
    before: Agreement,
    n_images: int,
) -> tuple[pycolmap.Reconstruction | None, GivenFigures]:
    """The model, or None where a gate says no, with the figures."""
    n_registered = model.num_reg_images()
    reprojection_px = float(model.compute_mean_reprojection_error()) if model.num_points3D() else math.inf
    after = agreement(database, model)
    epipolar_px = after.epipolar_p95_px if after else math.inf
    if n_registered < MIN_REGISTERED_SHARE * n_images:
        reason, used = f"{n_registered} of {n_images} images are held by enough points", False
    elif not reprojection_px < MAX_REPROJECTION_PX:
        reason, used = f"points lie {reprojection_px:.2f} px from where they were seen", False
    elif not epipolar_px < MAX_EPIPOLAR_P95_PX:
        reason, used = f"matches of the worst pairs lie {epipolar_px:.2f} px from where the model predicts them", False
    else:
        reason, used = f"{n_registered} of {n_images} images within {reprojection_px:.2f} px", True
    figures = GivenFigures(
        used,
        reason,
        n_images,
        len(poses),
        n_registered,
        before,
        epipolar_px if math.isfinite(epipolar_px) else None,
        reprojection_px if math.isfinite(reprojection_px) else None,
        _moved_m(model, poses) if used else None,
    )
    return (model if used else None), figures


def posed(database: str, names: Sequence[str], poses: dict[str, GivenPose]) -> pycolmap.Reconstruction:
    """A model without points: the database's cameras, rigs, frames and images, registered where a pose is given.

    A frame of several images takes the pose of its first image by name that has one.
    """
    options = pycolmap.DatabaseCacheOptions()
    options.image_names, options.min_num_matches = set(names), _MIN_INLIERS
    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(database) as db:
        model.load(pycolmap.DatabaseCache.create(db, options))
    images = {image.name: image for image in model.images.values()}
    for name in sorted(poses.keys() & images.keys()):
        image = images[name]
        frame = model.frame(image.frame_id)
        if frame.has_pose():
            continue
        rotation = rotation_from_vector(np.asarray(poses[name].rotation, float))
        cam_from_world = pycolmap.Rigid3d(
            pycolmap.Rotation3d(rotation), -rotation @ np.asarray(poses[name].centre, float)
        )
        frame.rig_from_world = _rig_from_camera(model.rig(frame.rig_id), image) * cam_from_world
        model.register_frame(frame.frame_id)
    return model


def _rig_from_camera(rig: pycolmap.Rig, image: pycolmap.Image) -> pycolmap.Rigid3d:
    sensor = image.data_id.sensor_id
    if rig.is_ref_sensor(sensor):
        return pycolmap.Rigid3d()
    sensor_from_rig = rig.sensor_from_rig(sensor)
    assert sensor_from_rig is not None, "a rig of our databases has every sensor's place"
    return sensor_from_rig.inverse()


def agreement(database: str, model: pycolmap.Reconstruction) -> Agreement | None:
    """How a model's poses agree with the verified pairs among its images; None without such a pair.

    At most a few hundred pairs are asked, evenly over all.
    """
    registered = set(model.reg_image_ids())
    asked: list[_Asked] = []
    with pycolmap.Database.open(database) as db:
        ids, geometries = db.read_two_view_geometries()
        verified = []
        for pair_id, geometry in sorted(zip(ids, geometries, strict=True), key=lambda pair: pair[0]):
            a, b = pycolmap.pair_id_to_image_pair(pair_id)
            if a in registered and b in registered and len(geometry.inlier_matches) >= _MIN_INLIERS:
                verified.append((a, b, geometry))
        step = max(len(verified) // _SAMPLED_PAIRS, 1)
        keypoints: dict[int, Array] = {}
        for a, b, geometry in verified[::step]:
            for image_id in (a, b):
                if image_id not in keypoints:
                    keypoints[image_id] = np.asarray(db.read_keypoints(image_id), float)[:, :2]
            matches = np.asarray(geometry.inlier_matches)
            one = _ask(model, a, b, keypoints[a][matches[:, 0]], keypoints[b][matches[:, 1]], geometry)
            if one is not None:
                asked.append(one)
    if not asked:
        return None
    turned = [one.rotation_deg for one in asked if one.rotation_deg is not None]
    aside = [one.direction_deg for one in asked if one.direction_deg is not None]
    return Agreement(
        len(asked),
        float(np.median([one.epipolar_px for one in asked])),
        float(np.percentile([one.epipolar_px for one in asked], 95)),
        float(np.median([one.epipolar_deg for one in asked])),
        float(np.median(turned)) if turned else None,
        float(np.median(aside)) if aside else None,
    )


@dataclass(frozen=True)
class _Asked:
    """One pair's word on two poses."""

    epipolar_px: float
    epipolar_deg: float
    rotation_deg: float | None
    direction_deg: float | None


def _ask(
    model: pycolmap.Reconstruction,
    a: int,
    b: int,
    seen_a: Array,
    seen_b: Array,
    geometry: pycolmap.TwoViewGeometry,
) -> _Asked | None:
    image_a, image_b = model.image(a), model.image(b)
    if image_a.frame_id == image_b.frame_id:
        return None  # views of one panorama have one centre: no line to lie on
    camera_a, camera_b = model.camera(image_a.camera_id), model.camera(image_b.camera_id)
    if _sphere(camera_a) or _sphere(camera_b):
        return None
    b_from_a = image_b.cam_from_world() * image_a.cam_from_world().inverse()
    baseline_m = float(np.linalg.norm(b_from_a.translation))
    if baseline_m == 0.0:
        return None
    rays_a, rays_b = camera_a.cam_from_img(seen_a), camera_b.cam_from_img(seen_b)
    if rays_a is None or rays_b is None:
        return None
    squared = pycolmap.compute_squared_sampson_error(rays_a, rays_b, pycolmap.essential_matrix_from_pose(b_from_a))
    off = float(np.median(np.sqrt(np.asarray(squared, float))))
    if not math.isfinite(off):
        return None
    rotation_deg = direction_deg = None
    # Planar pairs have two answers, uncalibrated ones a poor one: only essential matrices are asked for angles.
    calibrated = geometry.config == pycolmap.TwoViewGeometryConfiguration.CALIBRATED
    if calibrated and pycolmap.estimate_two_view_geometry_pose(camera_a, seen_a, camera_b, seen_b, geometry):
        own = geometry.cam2_from_cam1
        assert own is not None
        rotation_deg = math.degrees(float((own.rotation * b_from_a.rotation.inverse()).angle()))
        length = float(np.linalg.norm(own.translation))
        if length > 0:
            cosine = abs(float(own.translation @ b_from_a.translation)) / (length * baseline_m)
            direction_deg = math.degrees(math.acos(min(cosine, 1.0)))
    focal_px = math.sqrt(camera_a.mean_focal_length() * camera_b.mean_focal_length())
    return _Asked(off * focal_px, math.degrees(math.atan(off)), rotation_deg, direction_deg)


def _sphere(camera: pycolmap.Camera) -> bool:
    return camera.model_name == "EQUIRECTANGULAR"


def adjusted(
    database: str,
    images_folder: str,
    scratch: Path,
    model: pycolmap.Reconstruction,
    before: Agreement,
    seed: int,
) -> pycolmap.Reconstruction:
    """Points triangulated on the poses and both adjusted, in rounds of less and less tolerance, two at least."""
    widest_px = before.epipolar_px * _WIDEST_DEG / max(before.epipolar_deg, 1e-9)
    px = max(2 * _USUAL_PX, min(_START * before.epipolar_px, widest_px))
    focal_px = before.epipolar_px / max(math.tan(math.radians(before.epipolar_deg)), 1e-12)
    while True:
        out = fresh_folder(scratch / "given")
        model = pycolmap.triangulate_points(
            model, database, images_folder, str(out), True, _triangulation(px, focal_px, seed)
        )
        if not model.num_points3D():
            return model
        _adjust(model, last=px <= _USUAL_PX)
        if px <= _USUAL_PX:
            break
        px = max(_USUAL_PX, px / _NARROWER)
    observed = pycolmap.ObservationManager(model)
    observed.filter_all_points3D(_USUAL_PX, 1.5)
    model.update_point_3d_errors()
    return model


def _triangulation(px: float, focal_px: float, seed: int) -> pycolmap.IncrementalPipelineOptions:
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed, options.extract_colors = 1, seed, False
    options.mapper.filter_max_reproj_error = px
    angle_deg = max(math.degrees(math.atan(px / focal_px)), 2.0)
    options.triangulation.create_max_angle_error = options.triangulation.continue_max_angle_error = angle_deg
    options.triangulation.merge_max_reproj_error = options.triangulation.complete_max_reproj_error = px
    return options


def _adjust(model: pycolmap.Reconstruction, *, last: bool) -> None:
    """Adjust poses, points and intrinsics; soft-L1, because the first rounds hold wrong points."""
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary, options.refine_sensor_from_rig = False, False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    solver = options.ceres.solver_options
    # The next round begins anew with other points: no need to settle before the last.
    solver.num_threads, solver.max_num_iterations = 1, 50
    solver.function_tolerance = 1e-6 if last else 1e-3
    pycolmap.bundle_adjustment(model, options)


def _drop_unseen(model: pycolmap.Reconstruction) -> None:
    """Deregister the frames whose images see too few points, and what hangs on them."""
    from geo_assets.reconstruct.mapping import held_together

    for frame_id in sorted(model.reg_frame_ids()):
        images = [model.image(data_id.id) for data_id in model.frame(frame_id).image_ids]
        if max((image.num_points3D for image in images), default=0) < MIN_POINTS:
            model.deregister_frame(frame_id)
    if model.num_reg_images():
        held_together(model)


def _with_others(
    database: str, images_folder: str, scratch: Path, model: pycolmap.Reconstruction, names: list[str], seed: int
) -> pycolmap.Reconstruction:
    """The model with the other images registered into it; those that stand stay where they are."""
    start = fresh_folder(scratch / "given_start")
    model.write_binary(str(start))
    options = pycolmap.IncrementalPipelineOptions()
    options.image_names, options.num_threads, options.random_seed = names, 1, seed
    options.extract_colors, options.multiple_models, options.fix_existing_frames = False, False, True
    options.mapper.abs_pose_min_num_inliers = 20
    out = fresh_folder(scratch / "given_others")
    grown = pycolmap.incremental_mapping(database, images_folder, str(out), options, input_path=str(start))
    larger = max(grown.values(), key=lambda one: one.num_reg_images(), default=model)
    if larger.num_reg_images() <= model.num_reg_images():
        return model
    _drop_unseen(larger)
    return larger


def _moved_m(model: pycolmap.Reconstruction, poses: dict[str, GivenPose]) -> float | None:
    from geo_assets.reconstruct.frames import best_similarity

    found = {image.name: image.projection_center() for image in map(model.image, model.reg_image_ids())}
    both = sorted(found.keys() & poses.keys())
    if len(both) < 3:
        return None
    now = np.array([found[name] for name in both])
    then = np.array([poses[name].centre for name in both], float)
    return float(np.median(np.linalg.norm(best_similarity(now, then)(now) - then, axis=1)))
