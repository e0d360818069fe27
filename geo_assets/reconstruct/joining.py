"""Models of blocks joined to components, placed, and fitted to the neighbours; runs in the child process.

Blocks of a component share images. Their models are laid over each other by one fit of positions and shared
cameras, united, and adjusted at the seams alone, so that the cost is that of the seams and not of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

import geo_assets.reconstruct.colmap  # noqa: F401  settles where COLMAP logs to
from geo_assets.geodesy import LocalFrame
from geo_assets.reconstruct import joint
from geo_assets.reconstruct.frames import (
    IDENTITY,
    MIN_EXTENT_M,
    Alignment,
    Array,
    Similarity,
    align,
    extent_m,
    heading_deg,
    roll_deg,
    rotation_from_quaternion,
)
from geo_assets.reconstruct.graph import labels_of
from geo_assets.reconstruct.mapping import MAX_FAR_SHARE, names_of, poses_and_priors, registered_images
from geo_assets.reconstruct.quality import MAX_GPS_SIGMAS

MIN_PLACED_IMAGES = 5
MAX_SCALE_SPREAD = 0.2
MAX_SEAM_M = 1.0
"""Blocks whose shared cameras stay further apart than this (median) are not of one shape and stay two models."""

_PICTURE_POINTS = 4000

Priors = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Piece:
    """A block's model on its way into a component."""

    mapper: str
    block: str
    model: pycolmap.Reconstruction
    own: set[str]  # names of the images that its block owns


def join_blocks(
    components: list[dict[str, Any]],
    images: list[dict[str, Any]],
    origin: list[float],
    neighbours: list[dict[str, Any]],
    images_folder: str,
    out: str,
    seed: int,
    merge: bool = True,
) -> dict[str, Any]:
    """Join the models of each component's blocks, place them, and write them to ``out/0``, ``out/1``, ... by size.

    Args:
        components: for each its ``number`` and its ``blocks``: ``key``, ``own`` (names of the images it owns) and
            ``models`` (``folder``, ``mapper``).
        images: for each image its ``name``, prior position and standard deviations [m].
        origin: longitude, latitude [deg] and height [m] of the box's frame.
        neighbours: placed models of the boxes around: ``name``, ``origin``, and of the cameras that this box
            could share ``image_ids``, ``centres`` [n, 3] [m] and ``quaternions`` [n, 4] (wxyz, camera from frame).
        images_folder: the photos, for the colours of points.
        out: folder for the models.
        seed: of the sample of points for the picture.
        merge: whether models of blocks are united; without it each stays a model of its own.

    Returns:
        ``models`` (one entry a model, in the order written), ``cameras`` (one entry a registered image), ``points``
        (a sample of the largest model's points for the picture, [m]).
    """
    priors = {image["name"]: image for image in images}
    frame = LocalFrame(*origin)
    fixed = [fixed_part(neighbour) for neighbour in neighbours]
    scratch = Path(out).parent / "joined"
    placed: list[tuple[int, dict[str, Any], list[dict[str, Any]]]] = []
    for component in components:
        for group in _joined(_pieces(component), priors, frame, merge=merge):
            # One model at a time: a city's worth of keypoints does not fit into memory.
            facts, rows = place(group.model, priors, frame, fixed)
            group.model.extract_colors_for_all_images(images_folder)
            folder = scratch / str(len(placed))
            folder.mkdir(parents=True)
            group.model.write_binary(str(folder))
            known = {"part_of": component["number"], "n_blocks": group.n_blocks, "mapper": group.mapper}
            placed.append((len(placed), facts | known, rows))
    said: dict[str, Any] = {"models": [], "cameras": [], "points": []}
    for number, (written, facts, rows) in enumerate(sorted(placed, key=lambda one: -len(one[1]["image_ids"]))):
        folder = Path(out) / str(number)
        (scratch / str(written)).rename(folder)
        said["models"].append({"component": number} | facts)
        said["cameras"] += [{"component": number} | row for row in rows]
        if number == 0:
            said["points"] = some_points(pycolmap.Reconstruction(str(folder)), seed)
    return said


@dataclass(frozen=True)
class _Group:
    """Models that hold together, as one."""

    model: pycolmap.Reconstruction
    mapper: str
    n_blocks: int


def _pieces(component: dict[str, Any]) -> list[_Piece]:
    return [
        _Piece(model["mapper"], block["key"], pycolmap.Reconstruction(model["folder"]), set(block["own"]))
        for block in component["blocks"]
        for model in block["models"]
    ]


def _joined(pieces: list[_Piece], priors: Priors, frame: LocalFrame, *, merge: bool) -> list[_Group]:
    """The pieces of a component as few models as hold together."""
    if len(pieces) < 2 or not merge:
        return [_Group(piece.model, piece.mapper, 1) for piece in pieces]
    parts = [_part(str(number), piece.model, priors, frame) for number, piece in enumerate(pieces)]
    similarities = joint.solve(parts)
    found = joint.disagreements(parts, similarities)
    holding = found[(found.n_shared >= joint.FEW_SHARED) & (found.median_m <= MAX_SEAM_M)]
    edges = np.array([holding.name_a.astype(int), holding.name_b.astype(int)], int).reshape(2, -1).T
    labels = labels_of(len(pieces), edges)
    groups = []
    for label in dict.fromkeys(labels.tolist()):
        members = [number for number in range(len(pieces)) if labels[number] == label]
        together = [pieces[number] for number in members]
        if len(together) == 1:
            groups.append(_Group(together[0].model, together[0].mapper, 1))
            continue
        for number in members:
            pieces[number].model.transform(_sim3(similarities[str(number)]))
        mapper = ", ".join(sorted({piece.mapper for piece in together}))
        groups.append(_Group(_united(together), mapper, len({piece.block for piece in together})))
    return groups


def _united(pieces: Sequence[_Piece]) -> pycolmap.Reconstruction:
    """One model of pieces that lie over each other, adjusted where they meet."""
    from geo_assets.reconstruct.merge import adjust, merge

    registered = [names_of(piece.model) for piece in pieces]
    owner: dict[str, int] = {}
    for number, (piece, names) in enumerate(zip(pieces, registered, strict=True)):
        for name in names:
            # Who owns an image sees all around it; where its owner lost it, another takes it.
            if name not in owner or name in piece.own:
                owner[name] = number
    model, figures = merge([piece.model for piece in pieces], owner.__getitem__)
    adjust(model, set(figures.seam))
    return model


def place(
    model: pycolmap.Reconstruction,
    priors: Priors,
    frame: LocalFrame,
    fixed: Sequence[joint.Part],
    *,
    stays: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Bring a model to its place, if its cameras' positions allow it, fit it to its neighbours, and say what it is worth.

    With ``stays`` the model has its place already: nothing moves, and only the figures are told.

    Returns:
        Figures of the model (columns of ``sparse_models``) and one row a camera (columns of ``model_cameras``).
    """
    images = registered_images(model)
    centres, rotations, positions, sigma = poses_and_priors(model, priors)
    known = np.isfinite(positions).all(axis=1)
    alignment = align(centres[known], rotations[known], positions[known], sigma[known]) if known.sum() >= 3 else None
    reason = unplaced_because(alignment, positions[known], sigma[known], len(images))
    facts: dict[str, Any] = {
        "status": "placed" if reason is None else "unplaced",
        "reason": reason,
        "image_ids": [image.name.removesuffix(".jpg") for image in images],
        "n_points": model.num_points3D(),
        "reprojection_px": float(model.compute_mean_reprojection_error()),
        "track_length": float(model.compute_mean_track_length()),
        "observations_per_image": float(model.compute_mean_observations_per_reg_image()),
        "focals": _focals(images, priors),
        "scale_spread": alignment.scale_spread if alignment is not None else None,
        "neighbours": [],
    }
    if reason is not None or alignment is None:
        return facts, []
    if not stays:
        model.transform(_sim3(alignment.similarity))
    facts |= _fitted(model, priors, frame, fixed, stays=stays)
    centres, rotations, positions, sigma = poses_and_priors(model, priors)
    offsets = (centres - positions)[known]
    horizontal = np.hypot(offsets[:, 0], offsets[:, 1])
    facts |= {
        "gps_median_m": float(np.median(horizontal)),
        "gps_p95_m": float(np.percentile(horizontal, 95)),
        "gps_vertical_m": float(np.median(np.abs(offsets[:, 2]))),
        "roll_deg": roll_deg(rotations),
    }
    return facts, [_camera_row(image) for image in registered_images(model)]


def unplaced_because(alignment: Alignment | None, positions: Array, sigma: Array, n_images: int) -> str | None:
    """Why positions do not fix the place of a model; None where they do.

    They do if they spread over some metres, mostly agree with the model, and ask for one scale.
    """
    if n_images < MIN_PLACED_IMAGES:
        return f"{n_images} registered images; {MIN_PLACED_IMAGES} are needed to place a model"
    if alignment is None:
        return f"{len(positions)} positions; 3 are needed to place a model"
    extent = extent_m(positions)
    if extent < MIN_EXTENT_M:
        return f"positions spread over {extent:.1f} m; {MIN_EXTENT_M:.0f} m are needed to place a model"
    far = float((alignment.horizontal_m > 3 * sigma[:, 0]).mean())
    if far > MAX_FAR_SHARE:
        return f"{far:.0%} of the cameras stand beyond three standard deviations of their positions"
    if alignment.scale_spread > MAX_SCALE_SPREAD:
        return f"the two halves of the track ask for scales {alignment.scale_spread:.0%} apart"
    return None


def _fitted(
    model: pycolmap.Reconstruction, priors: Priors, frame: LocalFrame, fixed: Sequence[joint.Part], *, stays: bool
) -> dict[str, Any]:
    """Fit a placed model to the cameras that it shares with placed neighbours, unless its own positions forbid it."""
    part = _part("this", model, priors, frame)
    ours = set(part.image_ids)
    around = [one for one in fixed if len(ours.intersection(one.image_ids)) >= joint.FEW_SHARED]
    if not around:
        return {"border_m": None}
    if stays:
        found = joint.disagreements([part, *around], {})
        found = found[(found.name_a == "this") | (found.name_b == "this")]
        return {"border_m": float(found.before_m.max()), "neighbours": [one.name for one in around]}
    similarity = joint.solve([part, *around])["this"]
    before, after = part.gps_median_m(IDENTITY), part.gps_median_m(similarity)
    # A fit that put the box further from its own positions than the check allows is not made.
    limit = MAX_GPS_SIGMAS * float(np.nanmedian(part.sigma_m[:, 0]))
    fits = after <= max(limit, before)
    found = joint.disagreements([part, *around], {"this": similarity} if fits else {})
    found = found[(found.name_a == "this") | (found.name_b == "this")]
    if fits:
        model.transform(_sim3(similarity))
    said: dict[str, Any] = {
        "border_m": float(found.median_m.max()),
        "border_before_m": float(found.before_m.max()),
        "neighbours": [one.name for one in around],
    }
    if not fits:
        said["refused_fit_m"] = after
    return said


def _part(name: str, model: pycolmap.Reconstruction, priors: Priors, frame: LocalFrame) -> joint.Part:
    centres, rotations, positions, sigma = poses_and_priors(model, priors)
    ids = [image.name.removesuffix(".jpg") for image in registered_images(model)]
    return joint.Part(name, ids, centres, rotations, positions, sigma, frame)


def fixed_part(neighbour: dict[str, Any]) -> joint.Part:
    """A neighbour's placed model, which stays as it is: see ``neighbours`` of :func:`join_blocks`."""
    centres = np.asarray(neighbour["centres"], float).reshape(-1, 3)
    rotations = rotation_from_quaternion(np.asarray(neighbour["quaternions"], float).reshape(-1, 4))
    frame = LocalFrame(*neighbour["origin"])
    unknown = np.full(centres.shape, np.nan)
    return joint.Part(
        neighbour["name"], neighbour["image_ids"], centres, rotations, unknown, unknown, frame, fixed=True
    )


def _focals(images: Sequence[pycolmap.Image], priors: Priors) -> dict[str, float]:
    """Focal length [px] of each camera by its number in the box's database; merging counts cameras anew."""
    found: dict[str, float] = {}
    for image in images:
        camera = image.camera
        if camera is not None and len(camera.focal_length_idxs()):
            found[str(priors[image.name]["camera_id"])] = float(camera.mean_focal_length())
    return found


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


def some_points(model: pycolmap.Reconstruction, seed: int) -> list[list[float]]:
    """East, north, up [m] and red, green, blue of a sample of the points."""
    ids = sorted(model.points3D)
    if len(ids) > _PICTURE_POINTS:
        ids = sorted(np.random.default_rng(seed).choice(ids, _PICTURE_POINTS, replace=False).tolist())
    points = (model.points3D[i] for i in ids)
    return [[*map(float, p.xyz), *map(float, p.color)] for p in points]
