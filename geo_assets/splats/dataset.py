"""The dataset that every splat engine reads: undistorted photos and a COLMAP model of pinhole cameras."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from geo_assets.errors import SourceError, TrainingError
from geo_assets.splats.cameras import Camera, Scene, View

SEQUENCES = "sequences.json"


def make_dataset(
    model: Path,
    photos: Path,
    dataset: Path,
    *,
    max_image_px: int,
    threads: int = 0,
    sequences: Mapping[str, str] | None = None,
) -> None:
    """Undistort the photos of a model into ``dataset/images`` and ``dataset/sparse/0``, in a child process.

    Args:
        model: folder of the COLMAP model.
        photos: folder of the photos, named as in the model.
        dataset: result, an existing folder.
        max_image_px: long side of the result [px].
        threads: 0 for one each core.
        sequences: sequence of each photo by file name, where it is known.

    Raises:
        TrainingError: COLMAP could not undistort; the message ends with what it said.
    """
    module = "geo_assets.splats.undistort"
    arguments = [str(model), str(photos), str(dataset), str(max_image_px), str(threads)]
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise TrainingError(f"The photos could not be undistorted (exit {done.returncode}): {said}")
    (dataset / SEQUENCES).write_text(json.dumps(dict(sequences or {})))


def read_scene(dataset: Path) -> Scene:
    """Photos, cameras and points of a dataset.

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
        path = dataset / "images" / image.name
        if not path.exists():
            unusable.append(f"{image.name} is missing")
            continue
        with Image.open(path) as file:
            photo = np.asarray(file.convert("RGB"))
        if photo.shape[:2] != (camera.height, camera.width):
            unusable.append(
                f"{image.name} is {photo.shape[1]} x {photo.shape[0]} px, not {camera.width} x {camera.height}"
            )
            continue
        seen = [point for point in image.points2D if point.has_point3D()]
        rows = np.array([row_of[point.point3D_id] for point in seen], np.int64)
        places = np.array([point.xy for point in seen], float).reshape(-1, 2)
        views.append(View(image.name, camera, photo, sequences.get(image.name, ""), rows, places))
    if unusable:
        raise SourceError(
            f"{len(unusable)} of {len(unusable) + len(views)} photos of the dataset cannot be used: {'; '.join(unusable[:3])}.",
            unusable=len(unusable),
        )
    points = np.array([model.points3D[i].xyz for i in point_ids], float).reshape(-1, 3)
    colours = np.array([model.points3D[i].color for i in point_ids], np.uint8).reshape(-1, 3)
    return Scene(views, points, colours)


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
