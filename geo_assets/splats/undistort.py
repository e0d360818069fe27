"""Undistorts the photos of a COLMAP model to pinhole photos of a wanted size, in a process of its own.

``python -m geo_assets.splats.undistort MODEL PHOTOS DATASET LONG_SIDE_PX THREADS``: COLMAP's failures end the process
that they happen in.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image

JPEG_QUALITY = 95


def undistort(model: Path, photos: Path, dataset: Path, max_image_px: int, threads: int) -> None:
    """Make ``dataset/images`` and ``dataset/sparse/0`` from a model and its photos.

    Args:
        model: folder of a COLMAP model.
        photos: folder of the photos, named as in the model.
        dataset: result.
        max_image_px: long side of the result [px]; smaller photos stay as they are.
        threads: 0 for one each core.
    """
    import pycolmap

    model = _without_spheres(model, dataset / "flat")
    pycolmap.undistort_images(
        dataset, model, photos, jpeg_quality=JPEG_QUALITY, num_threads=threads if threads > 0 else -1
    )
    # COLMAP writes sparse/*.bin; every trainer of splats looks in sparse/0.
    staged = dataset / "sparse.0"
    (dataset / "sparse").rename(staged)
    (dataset / "sparse").mkdir()
    staged.rename(dataset / "sparse" / "0")
    for path in dataset.iterdir():
        if path.name not in ("images", "sparse"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder = dataset / "sparse" / "0"
    reconstruction = pycolmap.Reconstruction(folder)
    for camera in reconstruction.cameras.values():
        _as_pinhole(camera)
    reconstruction.write(folder)
    _reduce(dataset, max_image_px)


def _without_spheres(model: Path, folder: Path) -> Path:
    """The model without whole panoramas, which no pinhole camera can show; COLMAP ends without a word on them."""
    import pycolmap

    reconstruction = pycolmap.Reconstruction(model)
    spheres = {i for i, camera in reconstruction.cameras.items() if camera.model_name == "EQUIRECTANGULAR"}
    if not spheres:
        return model
    for image_id in list(reconstruction.reg_image_ids()):
        image = reconstruction.images[image_id]
        if image.camera_id in spheres:
            reconstruction.deregister_frame(image.frame_id)
    if not reconstruction.num_reg_images():
        raise SystemExit('The model holds whole panoramas only. Set reconstruct.panoramas = "rig" to train on views.')
    reconstruction.tear_down()
    folder.mkdir()
    reconstruction.write(folder)
    return folder


def _as_pinhole(camera: Any) -> None:
    """COLMAP leaves a camera whose distortion is zero in its own model; engines look at the model's name."""
    if camera.model_name == "PINHOLE" or not camera.is_undistorted():
        return
    lens = [camera.focal_length_x, camera.focal_length_y, camera.principal_point_x, camera.principal_point_y]
    camera.model, camera.params = "PINHOLE", lens


def _reduce(dataset: Path, max_image_px: int) -> None:
    """Shrink photos and cameras. COLMAP's own max_image_size takes one pixel of many; here each counts."""
    import pycolmap

    folder = dataset / "sparse" / "0"
    model = pycolmap.Reconstruction(folder)
    sizes = {}
    for camera_id, camera in model.cameras.items():
        factor = min(1.0, max_image_px / max(camera.width, camera.height))
        sizes[camera_id] = (round(camera.width * factor), round(camera.height * factor))
    for image in model.images.values():
        camera, (width, height) = model.cameras[image.camera_id], sizes[image.camera_id]
        if (camera.width, camera.height) == (width, height):
            continue
        path = dataset / "images" / image.name
        with Image.open(path) as photo:
            photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(path, quality=JPEG_QUALITY)
        for point in image.points2D:
            point.xy = point.xy * (width / camera.width, height / camera.height)
    for camera_id, (width, height) in sizes.items():
        camera = model.cameras[camera_id]
        if (camera.width, camera.height) != (width, height):
            camera.rescale(width, height)
    model.write(folder)


if __name__ == "__main__":
    model_, photos_, dataset_, max_image_px_, threads_ = sys.argv[1:]
    undistort(Path(model_), Path(photos_), Path(dataset_), int(max_image_px_), int(threads_))
