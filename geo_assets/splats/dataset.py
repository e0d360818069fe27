"""The dataset that every splat engine reads: undistorted photos and a COLMAP model of pinhole cameras."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geo_assets.errors import SourceError, TrainingError
from geo_assets.splats.cameras import Camera, Scene, View
from geo_assets.splats.undistort import ANSWER, JOB

SEQUENCES = "sequences.json"
HELD_OUT = "held_out.json"
"""Names of the photos that are held out, where it is not each n-th by name."""
BYTES_PER_PIXEL = 1.0
"""Of an undistorted photo at full size, a JPEG of quality 95; street photos take 0.4, leaves and grain more."""
FILES_PER_SPLAT = 5
"""Files that hold a Gaussian at the end, each about as large as the PLY at most: the engine's, ours, exports, page."""
BYTES_PER_TRAINED_PIXEL, COPIES_OF_A_SPLAT = 5, 15
"""Memory of the embedded trainer: a photo as bytes and at half its size; a Gaussian with its gradients and moments."""
RESERVE_BYTES = 200 << 20


@dataclass(frozen=True)
class Made:
    """What became of the photos of a model.

    Args:
        n_photos: photos of the dataset.
        left_out: names of the photos that a mask hides nearly altogether; they are not in the dataset.
        warnings: a sentence each mask that cannot be used.
    """

    n_photos: int
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def make_dataset(
    model: Path,
    photos: Path,
    dataset: Path,
    *,
    max_image_px: int,
    threads: int = 0,
    sequences: Mapping[str, str] | None = None,
    masks: Mapping[str, Path] | None = None,
) -> Made:
    """Undistort the photos of a model into ``dataset/images`` and ``dataset/sparse/0``, in a child process.

    Masks go to ``dataset/masks/<name of the photo>.png``, undistorted like their photos.

    Args:
        model: folder of the COLMAP model.
        photos: folder of the photos, named as in the model.
        dataset: result, an existing folder.
        max_image_px: long side of the result [px].
        threads: 0 for one each core.
        sequences: sequence of each photo by file name, where it is known.
        masks: 8-bit PNG by file name of the photo, black where the photo does not count.

    Raises:
        TrainingError: COLMAP could not undistort; the message ends with what it said.
    """
    job = {
        "model": str(model),
        "photos": str(photos),
        "dataset": str(dataset),
        "max_image_px": max_image_px,
        "threads": threads,
        "masks": {name: str(path) for name, path in (masks or {}).items()},
    }
    (dataset / JOB).write_text(json.dumps(job))
    command = [sys.executable, "-m", "geo_assets.splats.undistort", str(dataset / JOB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise TrainingError(f"The photos could not be undistorted (exit {done.returncode}): {said}")
    answer = json.loads((dataset / ANSWER).read_text())
    (dataset / ANSWER).unlink()
    (dataset / SEQUENCES).write_text(json.dumps(dict(sequences or {})))
    return Made(answer["n_photos"], tuple(answer["left_out"]), tuple(answer["warnings"]))


def check_room(folder: Path, photo_px: int, n_photos: int, n_splats: int, bytes_per_splat: int) -> None:
    """Refuse a training whose files do not fit on the disk, before it starts.

    Args:
        folder: on the disk that takes the dataset and the result.
        photo_px: pixels of all photos at full size.
        n_photos: number of photos.
        n_splats: most Gaussians.
        bytes_per_splat: of the PLY.

    Raises:
        TrainingError: more is needed than is free; the message has the arithmetic.
    """
    photos = int(photo_px * BYTES_PER_PIXEL)
    splats = FILES_PER_SPLAT * n_splats * bytes_per_splat
    needed, free = photos + splats + RESERVE_BYTES, shutil.disk_usage(folder).free
    if needed <= free:
        return
    raise TrainingError(
        f"The training needs about {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free: {photos / 1e9:.1f} GB for {n_photos:,} photos of {photo_px / max(n_photos, 1) / 1e6:.1f} Mpx, {splats / 1e9:.1f} GB for {FILES_PER_SPLAT} files of {n_splats:,} Gaussians of {bytes_per_splat} bytes, {RESERVE_BYTES / 1e9:.1f} GB of reserve. Point TMPDIR to a larger disk, or lower splats.max_splats.",
        needed_bytes=needed,
        free_bytes=free,
    )


def check_memory(photo_px: int, n_photos: int, n_splats: int, bytes_per_splat: int) -> None:
    """Refuse a training in this process that takes more than four fifths of the memory that is available.

    Args:
        photo_px: pixels of all photos at the size of the training.
        n_photos: number of photos.
        n_splats: most Gaussians.
        bytes_per_splat: of the numbers of one Gaussian; training holds them with moments, gradients and copies.

    Raises:
        TrainingError: the memory is too small; the message has the arithmetic.
    """
    available = _available_bytes()
    photos, splats = photo_px * BYTES_PER_TRAINED_PIXEL, n_splats * bytes_per_splat * COPIES_OF_A_SPLAT
    needed = photos + splats + RESERVE_BYTES
    if available is None or needed <= 0.8 * available:
        return
    raise TrainingError(
        f"The training needs about {needed / 1e9:.1f} GB of memory, where {available / 1e9:.1f} GB are available: {photos / 1e9:.1f} GB for {n_photos:,} photos of {photo_px / max(n_photos, 1) / 1e6:.1f} Mpx, {splats / 1e9:.1f} GB for {n_splats:,} Gaussians. Lower splats.max_image_px or splats.max_splats.",
        needed_bytes=needed,
        available_bytes=available,
    )


def _available_bytes() -> int | None:
    """Memory that programs can have without swapping; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = [line.split() for line in text.splitlines() if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def read_scene(dataset: Path, *, photos: bool = True) -> Scene:
    """Photos, masks, cameras and points of a dataset.

    Args:
        dataset: made by :func:`make_dataset`.
        photos: whether photos and masks are read; without, :func:`with_photo` reads those of one view, and a thousand
            photos need no memory.

    Raises:
        SourceError: a camera has distortion, or photos are missing or of another size than their camera.
    """
    import pycolmap

    model = pycolmap.Reconstruction(dataset / "sparse" / "0")
    sequences = json.loads((dataset / SEQUENCES).read_text()) if (dataset / SEQUENCES).exists() else {}
    point_ids = sorted(model.points3D)
    row_of = {point_id: row for row, point_id in enumerate(point_ids)}
    views, unusable = [], []
    for image_id in sorted(model.reg_image_ids(), key=lambda i: model.images[i].name):
        image = model.images[image_id]
        camera = _camera(image, model.cameras[image.camera_id])
        seen = [point for point in image.points2D if point.has_point3D()]
        rows = np.array([row_of[point.point3D_id] for point in seen], np.int64)
        places = np.array([point.xy for point in seen], float).reshape(-1, 2)
        view = View(image.name, camera, np.zeros((0, 0, 3), np.uint8), sequences.get(image.name, ""), rows, places)
        try:
            _check_size(dataset / "images" / view.name, camera)
            views.append(with_photo(view, dataset) if photos else view)
        except SourceError as error:
            unusable.append(str(error))
    if unusable:
        raise SourceError(
            f"{len(unusable)} of {len(unusable) + len(views)} photos of the dataset cannot be used: {'; '.join(unusable[:3])}.",
            unusable=len(unusable),
        )
    points = np.array([model.points3D[i].xyz for i in point_ids], float).reshape(-1, 3)
    colours = np.array([model.points3D[i].color for i in point_ids], np.uint8).reshape(-1, 3)
    named = dataset / HELD_OUT
    return Scene(views, points, colours, frozenset(json.loads(named.read_text())) if named.exists() else None)


def with_photo(view: View, dataset: Path) -> View:
    """The view with the pixels of its photo, and its mask where it has one.

    Raises:
        SourceError: the mask is of another size than the photo.
    """
    with Image.open(dataset / "images" / view.name) as file:
        photo = np.asarray(file.convert("RGB"))
    path, mask = mask_path(dataset, view.name), None
    if path.exists():
        _check_size(path, view.camera)
        with Image.open(path) as file:
            mask = np.asarray(file.convert("L")) > 127
    return dataclasses.replace(view, photo=photo, mask=mask)


def mask_path(dataset: Path, name: str) -> Path:
    """Where the mask of a photo lies, if it has one."""
    return dataset / "masks" / f"{name}.png"


def _check_size(path: Path, camera: Camera) -> None:
    name = path.name if path.parent.name == "images" else f"{path.parent.name}/{path.name}"
    if not path.exists():
        raise SourceError(f"{name} is missing")
    with Image.open(path) as file:
        width, height = file.size
    if (width, height) != (camera.width, camera.height):
        raise SourceError(f"{name} is {width} x {height} px, not {camera.width} x {camera.height}")


def _camera(image: Any, camera: Any) -> Camera:
    name = camera.model_name
    if name not in ("PINHOLE", "SIMPLE_PINHOLE"):
        raise SourceError(
            f"Camera {camera.camera_id} is {name}; splat engines need undistorted PINHOLE photos. Make the dataset with make_dataset."
        )
    pose = image.cam_from_world().matrix()
    k = camera.calibration_matrix()
    return Camera(
        np.ascontiguousarray(pose[:, :3]),
        np.ascontiguousarray(pose[:, 3]),
        float(k[0, 0]),
        float(k[1, 1]),
        float(k[0, 2]),
        float(k[1, 2]),
        int(camera.width),
        int(camera.height),
    )
