"""A sparse model written in the formats of other programs; runs in the child process, beside COLMAP."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

import geo_assets.reconstruct.colmap  # noqa: F401  (settles where COLMAP's log goes)
from geo_assets.errors import ReconstructionError
from geo_assets.reconstruct.frames import heading_deg
from geo_assets.reconstruct.nvm import write_nvm

JPEG_QUALITY = 95
CLASSIC_FILES = ("cameras", "images", "points3D")
"""What COLMAP wrote before version 3.12, and what most readers of its models know."""

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


def export(model: str, out: str, formats: list[str], photos: str, tables: str, threads: int) -> dict[str, Any]:
    """Write a model into ``out`` in each of the formats.

    Args:
        model: folder of the COLMAP model.
        out: folder of the export.
        formats: names of :data:`WRITERS`.
        photos: folder of the photos under their COLMAP names; used by ``undistorted``.
        tables: an ``.npz`` file for the parent: the cameras (``name``, ``centre`` [n, 3], ``heading_deg``,
            ``n_observations``) and the points (``xyz`` [m, 3], ``rgb``, ``error_px``, ``track_length``).
        threads: of undistortion; -1 for one each core.

    Returns:
        For each format what there is to say of it.

    Raises:
        ReconstructionError: the model cannot be read, or an image's name is not one for a file.
    """
    try:
        reconstruction = pycolmap.Reconstruction(model)
    except Exception as error:
        raise ReconstructionError(f"The model cannot be read: {error}. Make sparse_models of the box again.") from None
    for image_id in reconstruction.reg_image_ids():
        if not _SAFE.fullmatch(reconstruction.image(image_id).name):
            name = reconstruction.image(image_id).name
            raise ReconstructionError(f"The image name '{name}' is no plain file name; it is not exported.")
    said: dict[str, Any] = {}
    for name in formats:
        print(f"writing {name}", flush=True)
        said[name] = WRITERS[name](reconstruction, Path(out), Path(photos), threads)
    _write_tables(reconstruction, Path(tables))
    return said


def _binary(model: pycolmap.Reconstruction, out: Path, _photos: Path, _threads: int) -> dict[str, Any]:
    (out / "colmap").mkdir()
    model.write_binary(str(out / "colmap"))
    return {}


def _text(model: pycolmap.Reconstruction, out: Path, _photos: Path, _threads: int) -> dict[str, Any]:
    (out / "text").mkdir()
    model.write_text(str(out / "text"))
    return {}


def _classic(model: pycolmap.Reconstruction, out: Path, _photos: Path, _threads: int) -> dict[str, Any]:
    """Cameras, images and points alone: each image carries its whole pose, so nothing is lost but the rigs."""
    folder = out / "colmap3"
    folder.mkdir()
    model.write_binary(str(folder))
    model.write_text(str(folder))
    for path in folder.iterdir():
        if path.stem not in CLASSIC_FILES:
            path.unlink()
    return {"n_spherical": model.num_reg_images() - len(_flat_ids(model))}


def _ply(model: pycolmap.Reconstruction, out: Path, _photos: Path, _threads: int) -> dict[str, Any]:
    model.export_PLY(str(out / "points.ply"))
    return {}


def _nvm(model: pycolmap.Reconstruction, out: Path, _photos: Path, _threads: int) -> dict[str, Any]:
    return write_nvm(model, out / "model.nvm")


def _undistorted(model: pycolmap.Reconstruction, out: Path, photos: Path, threads: int) -> dict[str, Any]:
    """Pinhole photos in ``images/``, their model in ``sparse/0`` and ``model.nvm``; a sphere cannot be a pinhole."""
    folder, flat = out / "undistorted", _flat_ids(model)
    if not flat:
        raise ReconstructionError("All images of the model are spheres, which cannot be undistorted to pinhole photos.")
    missing = sorted(name for i in flat if not (photos / (name := model.image(i).name)).exists())
    if missing:
        raise ReconstructionError(
            f"{len(missing):,} photos of the model are not in the lake, {missing[0]} among them. "
            "Fetch them again (image_files; gps_db for the views of panoramas), then export."
        )
    scratch = out / "undistorting"
    scratch.mkdir()
    part(model, flat).write_binary(str(scratch))
    pycolmap.undistort_images(str(folder), str(scratch), str(photos), jpeg_quality=JPEG_QUALITY, num_threads=threads)
    shutil.rmtree(scratch)
    # COLMAP writes sparse/*.bin; every trainer of splats looks in sparse/0.
    for path in folder.iterdir():
        if path.name not in ("images", "sparse"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "sparse").rename(folder / "sparse.0")
    (folder / "sparse").mkdir()
    (folder / "sparse.0").rename(folder / "sparse" / "0")
    pinholes = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    for camera in pinholes.cameras.values():
        _as_pinhole(camera)
    pinholes.write_binary(str(folder / "sparse" / "0"))
    nvm = write_nvm(pinholes, folder / "model.nvm")
    return {"n_images": len(flat), "n_left_out": model.num_reg_images() - len(flat), "nvm": nvm}


WRITERS: dict[str, Callable[[pycolmap.Reconstruction, Path, Path, int], dict[str, Any]]] = {
    "colmap": _binary,
    "text": _text,
    "colmap3": _classic,
    "ply": _ply,
    "nvm": _nvm,
    "undistorted": _undistorted,
}
"""The formats that COLMAP's reconstruction is written in, each by a function."""


def part(model: pycolmap.Reconstruction, image_ids: Collection[int]) -> pycolmap.Reconstruction:
    """A model of some of the images, each with a rig of its own, and of the points that two of them see."""
    chosen = pycolmap.Reconstruction()
    kept = set(image_ids)
    for camera_id in sorted({model.image(i).camera_id for i in kept}):
        chosen.add_camera_with_trivial_rig(model.camera(camera_id))
    for image_id in sorted(kept):
        image = model.image(image_id)
        keypoints = np.array([point.xy for point in image.points2D], float).reshape(-1, 2)
        copy = pycolmap.Image(image.name, keypoints, camera_id=image.camera_id, image_id=image_id)
        chosen.add_image_with_trivial_frame(copy, image.cam_from_world())
    for _, point in sorted(model.points3D.items()):
        track = pycolmap.Track()
        for element in point.track.elements:
            if element.image_id in kept:
                track.add_element(element.image_id, element.point2D_idx)
        if track.length() >= 2:
            chosen.add_point3D(point.xyz, track, point.color)
    chosen.update_point_3d_errors()
    return chosen


def _flat_ids(model: pycolmap.Reconstruction) -> list[int]:
    """Registered images that are no spheres."""
    return [i for i in sorted(model.reg_image_ids()) if not model.camera(model.image(i).camera_id).is_spherical()]


def _as_pinhole(camera: pycolmap.Camera) -> None:
    """COLMAP leaves a camera whose distortion is zero in its own model; readers look at the model's name."""
    if camera.model_name == "PINHOLE" or not (camera.is_perspective_pinhole() and camera.is_undistorted()):
        return
    lens = [camera.focal_length_x, camera.focal_length_y, camera.principal_point_x, camera.principal_point_y]
    camera.model, camera.params = pycolmap.CameraModelId.PINHOLE, lens


def _write_tables(model: pycolmap.Reconstruction, path: Path) -> None:
    images = sorted((model.image(i) for i in model.reg_image_ids()), key=lambda image: image.name)
    points = [point for _, point in sorted(model.points3D.items())]
    rotations = np.array([image.cam_from_world().rotation.matrix() for image in images]).reshape(-1, 3, 3)
    np.savez(
        path,
        name=np.array([image.name for image in images], str),
        centre=np.array([image.projection_center() for image in images], float).reshape(-1, 3),
        heading_deg=heading_deg(rotations),
        n_observations=np.array([image.num_points3D for image in images], np.int64),
        xyz=np.array([point.xyz for point in points], float).reshape(-1, 3),
        rgb=np.array([point.color for point in points], np.uint8).reshape(-1, 3),
        error_px=np.array([point.error for point in points], float),
        track_length=np.array([point.track.length() for point in points], np.int64),
    )
