"""Models that lie in one frame made into one, by the names of their images; runs in a child process, beside COLMAP.

Margins overlap: the same photo, with the same keypoints, stands in several models. Each image takes the pose of the
model that owns it, and the tracks that meet in a shared image become one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycolmap

import geo_assets.reconstruct.colmap  # noqa: F401  settles where COLMAP logs to

MAX_ERROR_PX, MIN_ANGLE_DEG = 4.0, 1.0
"""After the adjustment observations further off, and points seen under a smaller angle, are removed."""

SAME_CAMERA_PX = 0.5
"""Two calibrations that put each place of the photo within so many pixels are one camera."""

SAME_RIG_DEG, SAME_RIG_M = 0.05, 0.01
_MOST_ITERATIONS = 50


@dataclass(frozen=True)
class MergeFigures:
    """What a merge did.

    Attributes:
        n_images, n_points: size of the result.
        n_tracks_joined: tracks that were made part of another model's track.
        n_ambiguous: tracks that met several others, or another keypoint of an image they have, and stayed apart.
        n_other_keypoints: images whose keypoints differ in number between two models, so that tracks cannot meet there.
        n_cameras_kept_apart: cameras that two models calibrated differently, so that the result has them twice.
        seam: names of the images that see a joined track.
    """

    n_images: int
    n_points: int
    n_tracks_joined: int
    n_ambiguous: int
    n_other_keypoints: int
    n_cameras_kept_apart: int
    seam: frozenset[str] = field(default=frozenset(), repr=False)

    def as_dict(self) -> dict[str, int]:
        """The figures without the names."""
        return {name: value for name, value in vars(self).items() if name != "seam"}


def join_models(
    models: list[dict[str, Any]],
    owner: dict[str, int],
    out: str,
    adjustment: bool = True,
    variable: list[str] | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Move models into one frame, merge them, adjust the seam, and write the result to the folder ``out``.

    Args:
        models: for each its ``folder`` (COLMAP binary) and the similarity that brings it into the common frame:
            ``scale``, ``rotation`` [3][3], ``translation`` [3].
        owner: index of the model whose pose wins, by image name; an image that is missing here, or not in that
            model, takes the pose of the model in which it sees most points.
        out: folder for the merged model; it is made.
        adjustment: whether to adjust the seam.
        variable: names of the images to adjust; those that see a joined track by default.
        threads: threads of the adjustment; with one it repeats itself.

    Returns:
        ``figures`` (of the merge), ``adjusted`` (of the adjustment), ``n_images``, ``n_points``,
        ``reprojection_px``, ``track_length`` and ``cameras``: name, centre [3] and camera_from_world quaternion
        wxyz [4] of each image.
    """
    loaded = []
    for given in models:
        model = pycolmap.Reconstruction(given["folder"])
        turn = pycolmap.Rotation3d(np.array(given["rotation"], float))
        model.transform(pycolmap.Sim3d(given["scale"], turn, np.array(given["translation"], float)))
        loaded.append(model)
    print(f"merging {len(loaded):,} models", flush=True)
    merged, figures = merge(loaded, lambda name: owner.get(name, -1))
    loaded.clear()
    adjusted: dict[str, float] = {}
    if adjustment:
        chosen = set(figures.seam if variable is None else variable)
        print(f"adjusting {len(chosen):,} of {merged.num_reg_images():,} images", flush=True)
        adjusted = adjust(merged, chosen, threads=threads)
    Path(out).mkdir(parents=True, exist_ok=True)
    merged.write_binary(out)
    images = sorted((merged.image(i) for i in merged.reg_image_ids()), key=lambda image: image.name)
    return {
        "figures": figures.as_dict(),
        "adjusted": adjusted,
        "n_images": len(images),
        "n_points": merged.num_points3D(),
        "reprojection_px": float(merged.compute_mean_reprojection_error()),
        "track_length": float(merged.compute_mean_track_length()),
        "cameras": [_camera(image) for image in images],
    }


def merge(
    models: Sequence[pycolmap.Reconstruction], owner: Callable[[str], int]
) -> tuple[pycolmap.Reconstruction, MergeFigures]:
    """One model of several that lie in one frame.

    A frame (of a photo, or of the views of a panorama) is taken whole from the model that owns it. A point is taken
    where at least half of what sees it belongs to its own model; the others only lengthen the tracks they meet.
    Ids of images, frames, cameras and rigs stay where they are free. A camera that two models calibrated alike is
    one; where the calibrations differ each part keeps its own, since a point of its photos fits no other.

    Args:
        models: the models, which are not changed.
        owner: index of the model whose pose wins, by image name; -1 where nobody owns it.
    """
    winners = _winners(models, owner)
    out = pycolmap.Reconstruction()
    rigs, n_apart = _add_rigs(out, models, winners)
    ids = _add_frames(out, models, winners, rigs)
    places, n_other = _places(out, models, ids)
    n_joined, n_ambiguous, seam = _add_points(out, models, places)
    out.update_point_3d_errors()
    return out, MergeFigures(
        n_images=out.num_reg_images(),
        n_points=out.num_points3D(),
        n_tracks_joined=n_joined,
        n_ambiguous=n_ambiguous,
        n_other_keypoints=n_other,
        n_cameras_kept_apart=n_apart,
        seam=frozenset(out.image(image_id).name for image_id in seam),
    )


def adjust(
    model: pycolmap.Reconstruction,
    variable: set[str],
    *,
    max_error_px: float = MAX_ERROR_PX,
    min_angle_deg: float = MIN_ANGLE_DEG,
    threads: int = 1,
) -> dict[str, float]:
    """Adjust some images and the points they see, in place; all else, calibrations too, stays as it is.

    Args:
        model: the model.
        variable: names of the images; with one view of a panorama the others move too.
        max_error_px: observations that are further off afterwards are removed [px].
        min_angle_deg: points that are seen under a smaller angle afterwards are removed [deg].
        threads: threads; with one the result repeats itself.

    Returns:
        ``n_variable`` images, ``n_points`` adjusted, ``n_filtered`` observations, ``error_before_px`` and
        ``error_after_px`` (median over these points).
    """
    frames = {model.image(i).frame_id for i in model.reg_image_ids() if model.image(i).name in variable}
    images = [i for i in model.reg_image_ids() if model.image(i).frame_id in frames]
    points = {p.point3D_id for i in images for p in model.image(i).get_observation_points2D()}
    before = _error_px(model, points)
    figures = {"n_variable": float(len(images)), "n_points": float(len(points)), "n_filtered": 0.0}
    if not points:
        return figures | {"error_before_px": before, "error_after_px": before}
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in sorted(images):
        config.add_image(image_id)
    for point in sorted(points):
        config.add_variable_point(point)
    seen_from = {model.image(e.image_id).frame_id for p in points for e in model.point3D(p).track.elements}
    if len(seen_from - frames) < 2:
        # Nothing outside holds place and size.
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(_options(threads), config, model).solve()
    filtered = pycolmap.ObservationManager(model).filter_points3D(max_error_px, min_angle_deg, points)
    model.update_point_3d_errors()
    after = _error_px(model, {point for point in points if model.exists_point3D(point)})
    return figures | {"n_filtered": float(filtered), "error_before_px": before, "error_after_px": after}


def _error_px(model: pycolmap.Reconstruction, points: set[int]) -> float:
    """Median error of points: the mean of some would be that of one behind a camera, which has no bounds."""
    return float(np.median([model.point3D(point).error for point in points])) if points else 0.0


def _options(threads: int) -> pycolmap.BundleAdjustmentOptions:
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_extra_params = options.refine_principal_point = False
    options.refine_sensor_from_rig, options.print_summary = False, False
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.ceres.solver_options.num_threads = threads
    options.ceres.solver_options.max_num_iterations = _MOST_ITERATIONS
    return options


@dataclass(frozen=True)
class _Winner:
    """A frame of the result: the model it is taken from and its id there."""

    model: int
    frame_id: int


def _winners(models: Sequence[pycolmap.Reconstruction], owner: Callable[[str], int]) -> list[_Winner]:
    """Each frame once, from the model that owns it, else from the one in which it sees most points."""
    group_of: dict[str, int] = {}
    groups: list[list[tuple[int, int, str, int]]] = []  # model, frame id, first name, points seen
    for number, model in enumerate(models):
        for frame_id in sorted(model.reg_frame_ids()):
            images = [model.image(data.id) for data in model.frame(frame_id).image_ids]
            names = sorted(image.name for image in images)
            known = [group_of[name] for name in names if name in group_of]
            group = min(known, default=len(groups))
            if group == len(groups):
                groups.append([])
            groups[group].append((number, frame_id, names[0], sum(image.num_points3D for image in images)))
            for name in names:
                group_of.setdefault(name, group)
    winners = []
    for held in groups:
        wanted = owner(min(name for _, _, name, _ in held))
        number, frame_id, _, _ = min(held, key=lambda entry: (entry[0] != wanted, -entry[3], entry[0]))
        winners.append(_Winner(number, frame_id))
    return winners


_Rigs = dict[tuple[int, int], tuple[int, dict[int, int]]]
"""For each rig of a model its id in the result and the new ids of its cameras."""


def _add_rigs(
    out: pycolmap.Reconstruction, models: Sequence[pycolmap.Reconstruction], winners: Sequence[_Winner]
) -> tuple[_Rigs, int]:
    """Add cameras and rigs, each calibration once; also how many cameras the result has more than once."""
    used = Counter((models[w.model].frame(w.frame_id).rig_id, w.model) for w in winners)
    # The model with most images of a camera comes first and keeps its ids.
    order = sorted(used, key=lambda key: (key[0], -used[key], key[1]))
    next_camera = 1 + max((c for model in models for c in model.cameras), default=0)
    next_rig = 1 + max((r for model in models for r in model.rigs), default=0)
    rigs: _Rigs = {}
    added: list[tuple[int, int]] = []
    n_apart = 0
    for rig_id, number in order:
        twin = next((k for k in added if k[0] == rig_id and _same_rig(models[k[1]], models[number], rig_id)), None)
        if twin is not None:
            rigs[number, rig_id] = rigs[twin[1], rig_id]
            continue
        source = models[number].rig(rig_id)
        new_ids: dict[int, int] = {}
        rig = pycolmap.Rig(rig_id=next_rig if out.exists_rig(rig_id) else rig_id)
        next_rig += out.exists_rig(rig_id)
        n_apart += out.exists_rig(rig_id) * len(source.sensor_ids())
        for sensor in [source.ref_sensor_id, *sorted(source.non_ref_sensors, key=lambda s: s.id)]:
            camera = pycolmap.Camera(models[number].camera(sensor.id).todict())
            if out.exists_camera(sensor.id):
                camera.camera_id, next_camera = next_camera, next_camera + 1
            new_ids[sensor.id] = camera.camera_id
            out.add_camera(camera)
            if source.is_ref_sensor(sensor):
                rig.add_ref_sensor(camera.sensor_id)
            else:
                rig.add_sensor(camera.sensor_id, source.sensor_from_rig(sensor))
        out.add_rig(rig)
        rigs[number, rig_id] = rig.rig_id, new_ids
        added.append((rig_id, number))
    return rigs, n_apart


def _same_rig(a: pycolmap.Reconstruction, b: pycolmap.Reconstruction, rig_id: int) -> bool:
    """Whether two models agree about a rig: its cameras, and how they are mounted."""
    one, other = a.rig(rig_id), b.rig(rig_id)
    sensors = {sensor.id: sensor for sensor in one.sensor_ids()}
    if one.ref_sensor_id.id != other.ref_sensor_id.id or sensors.keys() != {s.id for s in other.sensor_ids()}:
        return False
    if not all(_same_camera(a.camera(i), b.camera(i)) for i in sensors):
        return False
    for sensor in (s for s in sensors.values() if not one.is_ref_sensor(s)):
        ours, theirs = one.sensor_from_rig(sensor), other.sensor_from_rig(sensor)
        if ours is None or theirs is None:
            return False
        change = ours * theirs.inverse()
        if np.degrees(change.rotation.angle()) > SAME_RIG_DEG or np.linalg.norm(change.translation) > SAME_RIG_M:
            return False
    return True


def _same_camera(a: pycolmap.Camera, b: pycolmap.Camera) -> bool:
    """Whether two calibrations put the same places at the same pixels, nearly."""
    if (a.model, a.width, a.height) != (b.model, b.width, b.height):
        return False
    if np.array_equal(a.params, b.params):
        return True
    across, down = np.meshgrid(np.linspace(0, a.width, 5), np.linspace(0, a.height, 5))
    pixels = np.column_stack([across.ravel(), down.ravel()])
    rays = np.asarray(a.cam_ray_from_img(pixels), float)
    apart = np.linalg.norm(np.asarray(b.img_from_cam(rays), float) - pixels, axis=1)
    return bool((apart <= SAME_CAMERA_PX).all())


def _add_frames(
    out: pycolmap.Reconstruction, models: Sequence[pycolmap.Reconstruction], winners: Sequence[_Winner], rigs: _Rigs
) -> dict[str, tuple[int, int]]:
    """Add images and frames with their poses; for each image name its id in the result and the model it is from."""
    next_image = 1 + max((i for model in models for i in model.images), default=0)
    next_frame = 1 + max((f for model in models for f in model.frames), default=0)
    ids: dict[str, tuple[int, int]] = {}
    for winner in winners:
        model = models[winner.model]
        source = model.frame(winner.frame_id)
        rig_id, cameras = rigs[winner.model, source.rig_id]
        frame = pycolmap.Frame()
        frame.frame_id = next_frame if out.exists_frame(winner.frame_id) else winner.frame_id
        next_frame += frame.frame_id != winner.frame_id
        frame.rig_id = rig_id
        images = []
        for data in sorted(source.image_ids, key=lambda data: data.id):
            old = model.image(data.id)
            image_id = next_image if out.exists_image(old.image_id) else old.image_id
            next_image += image_id != old.image_id
            image = pycolmap.Image(
                name=old.name, points2D=old.points2D, camera_id=cameras[old.camera_id], image_id=image_id
            )
            for index in old.get_observation_point2D_idxs():
                image.reset_point3D_for_point2D(index)
            image.frame_id = frame.frame_id
            frame.add_data_id(image.data_id)
            images.append(image)
            ids[old.name] = image_id, winner.model
        frame.rig_from_world = source.rig_from_world
        out.add_frame(frame)
        for image in images:
            out.add_image(image)
        out.register_frame(frame.frame_id)
    return ids


_Places = dict[int, tuple[int, bool]]
"""For each image of a model its id in the result and whether the result has this model's pose."""


def _places(
    out: pycolmap.Reconstruction, models: Sequence[pycolmap.Reconstruction], ids: dict[str, tuple[int, int]]
) -> tuple[list[_Places], int]:
    """Where each model's images went; also how many had other keypoints there and were left out."""
    places: list[_Places] = []
    n_other = 0
    for number, model in enumerate(models):
        found: _Places = {}
        for image_id in model.reg_image_ids():
            image = model.image(image_id)
            # A view that only a losing copy of its frame had has no place.
            new_id, winner = ids.get(image.name, (0, -1))
            if winner < 0:
                continue
            if out.image(new_id).num_points2D() == image.num_points2D():
                found[image_id] = new_id, winner == number
            else:
                n_other += 1
        places.append(found)
    return places, n_other


@dataclass(frozen=True)
class _Point:
    """A point of a model, by the observations that the result can have."""

    model: int
    seen: tuple[tuple[int, int], ...]  # image id in the result, keypoint
    n_own: int  # observations in images that have this model's pose
    xyz: npt.NDArray[np.float64]
    colour: npt.NDArray[np.uint8]


def _add_points(
    out: pycolmap.Reconstruction, models: Sequence[pycolmap.Reconstruction], places: Sequence[_Places]
) -> tuple[int, int, set[int]]:
    """Add the points and join tracks that meet; returns joined and ambiguous tracks, and images of joined ones."""
    holders = Counter(new_id for found in places for new_id, _ in found.values())
    shared = {new_id for new_id, n in holders.items() if n > 1}
    points = []
    for number, (model, found) in enumerate(zip(models, places, strict=True)):
        for _, point in sorted(model.points3D.items()):
            at = [(*found[e.image_id], e.point2D_idx) for e in point.track.elements if e.image_id in found]
            seen, n_own = tuple((i, k) for i, _, k in at), sum(own for _, own, _ in at)
            if shared.isdisjoint(i for i, _ in seen):
                if len(seen) >= 2:
                    out.add_point3D(point.xyz, _track(seen), point.color)
            elif seen:
                points.append(_Point(number, seen, n_own, point.xyz.copy(), point.color.copy()))
    # The point that belongs most to its model comes first: its place is kept, the others lengthen its track.
    points.sort(key=lambda p: -p.n_own)
    taken: dict[tuple[int, int], int] = {}
    tracks: dict[int, tuple[set[int], set[int]]] = {}  # images and models of a point of the result
    n_joined, n_ambiguous = 0, 0
    seam: set[int] = set()
    for point in points:
        met = {taken[at] for at in point.seen if at in taken}
        free = [at for at in point.seen if at not in taken]
        new_images = {i for i, _ in free}
        target = met.pop() if len(met) == 1 else None
        if target is not None and point.model not in tracks[target][1] and new_images.isdisjoint(tracks[target][0]):
            for at in free:
                out.add_observation(target, pycolmap.TrackElement(*at))
            tracks[target][0].update(new_images)
            tracks[target][1].add(point.model)
            n_joined += 1
            seam |= tracks[target][0]
        else:
            n_ambiguous += bool(met) or target is not None
            if len(new_images) < 2 or 2 * point.n_own < len(point.seen):
                continue
            target = out.add_point3D(point.xyz, _track(free), point.colour)
            tracks[target] = new_images, {point.model}
        taken.update(dict.fromkeys(free, target))
    return n_joined, n_ambiguous, seam


def _track(seen: Sequence[tuple[int, int]]) -> pycolmap.Track:
    track = pycolmap.Track()
    for image_id, index in seen:
        track.add_element(image_id, index)
    return track


def _camera(image: pycolmap.Image) -> dict[str, Any]:
    x, y, z, w = (float(value) for value in image.cam_from_world().rotation.quat)
    centre = [float(value) for value in image.projection_center()]
    return {"name": image.name, "centre": centre, "quaternion": [w, x, y, z] if w >= 0 else [-w, -x, -y, -z]}
