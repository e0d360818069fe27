"""Undistorts the photos of a COLMAP model and their masks to pinhole photos of a wanted size, in its own process.

``python -m geo_assets.splats.undistort JOB.json``: COLMAP's failures end the process that they happen in. The job holds
the arguments of :func:`undistort`; the answer lies in ``dataset/made.json`` afterwards.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

JPEG_QUALITY = 95
JOB, ANSWER = "job.json", "made.json"
LEAST_LEFT = 0.05
"""A photo of which a mask leaves less than this share has nothing to teach."""
MAX_STRETCH = 0.02
"""A mask whose shape differs by more from the photo's belongs to another photo."""
_BLOCK_PX = 1 << 20


def undistort(
    model: Path, photos: Path, dataset: Path, max_image_px: int, threads: int, masks: Mapping[str, Path]
) -> dict[str, Any]:
    """Make ``dataset/images``, ``dataset/masks`` and ``dataset/sparse/0`` from a model, its photos and their masks.

    A photo that needs no change is a link to the given one.

    Args:
        model: folder of a COLMAP model.
        photos: folder of the photos, named as in the model.
        dataset: result.
        max_image_px: long side of the result [px]; smaller photos stay as they are.
        threads: 0 for one each core.
        masks: PNG by name of the photo, black where the photo does not count.

    Returns:
        ``n_photos`` of the dataset, the names of those ``left_out`` since a mask hides them, and ``warnings`` about
        masks that cannot be used.
    """
    import pycolmap

    model = _without_spheres(model, dataset / "flat")
    given = pycolmap.Reconstruction(model)
    pycolmap.undistort_images(
        dataset,
        model,
        photos.absolute(),
        copy_policy=pycolmap.FileCopyType.softlink,
        jpeg_quality=JPEG_QUALITY,
        num_threads=threads if threads > 0 else -1,
    )
    # COLMAP writes sparse/*.bin; every trainer of splats looks in sparse/0.
    staged = dataset / "sparse.0"
    (dataset / "sparse").rename(staged)
    (dataset / "sparse").mkdir()
    staged.rename(dataset / "sparse" / "0")
    for path in dataset.iterdir():
        if path.name not in ("images", "sparse"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (dataset / "images").iterdir():
        _link_to_the_end(path)
    folder = dataset / "sparse" / "0"
    reconstruction = pycolmap.Reconstruction(folder)
    for camera in reconstruction.cameras.values():
        _as_pinhole(camera)
    reconstruction.write(folder)
    _reduce(dataset, max_image_px)
    left_out, warnings = _warp_masks(given, dataset, masks)
    if left_out:
        leave_out(dataset, set(left_out))
    n_photos = pycolmap.Reconstruction(folder).num_reg_images()
    return {"n_photos": n_photos, "left_out": left_out, "warnings": warnings}


def _link_to_the_end(path: Path) -> None:
    """Let a link to a link point to the file itself: the links that we are given may go before the dataset does."""
    if path.is_symlink():
        file = path.resolve()
        path.unlink()
        path.symlink_to(file)


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
            reduced = photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        path.unlink()  # it may be a link, and what it points to is not ours to change
        reduced.save(path, quality=JPEG_QUALITY)
        for point in image.points2D:
            point.xy = point.xy * (width / camera.width, height / camera.height)
    for camera_id, (width, height) in sizes.items():
        camera = model.cameras[camera_id]
        if (camera.width, camera.height) != (width, height):
            camera.rescale(width, height)
    model.write(folder)


# -- masks --------------------------------------------------------------------------------------------------


def _warp_masks(given: Any, dataset: Path, masks: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """Write the masks of the dataset; names of photos that are hidden nearly altogether, and warnings.

    A photo whose mask cannot be used counts as a whole, as in the reconstruction. A mask that hides nothing of what
    the dataset shows is not written.
    """
    import pycolmap

    made = pycolmap.Reconstruction(dataset / "sparse" / "0")
    source_camera = {image.name: given.cameras[image.camera_id] for image in given.images.values()}
    left_out, warnings = [], []
    latest, places = None, np.empty(0, np.int32)
    # By camera, since all photos of a camera are warped alike.
    for image in sorted(made.images.values(), key=lambda image: (image.camera_id, image.name)):
        if image.name not in masks:
            continue
        source, target = source_camera[image.name], made.cameras[image.camera_id]
        try:
            mask = _read_mask(masks[image.name], source.width, source.height)
        except ValueError as error:
            warnings.append(f"The mask of {image.name} {error}; the photo is used without.")
            continue
        wanted = (source.camera_id, target.camera_id, mask.shape)
        if wanted != latest:
            latest, places = wanted, _source_pixels(source, target, mask.shape)
        kept = np.where(places >= 0, mask.ravel()[places], False)
        if kept.mean() < LEAST_LEFT:
            left_out.append(image.name)
        elif not kept.all():
            path = dataset / "masks" / f"{image.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(kept.astype(np.uint8) * 255).save(path)
    return sorted(left_out), warnings


def _read_mask(path: Path, width: int, height: int) -> npt.NDArray[np.bool_]:
    """Where a photo counts, bool [H, W] of the mask's own size.

    Raises:
        ValueError: the file cannot be read or has another shape than the photo; the text follows "The mask of ...".
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            kept = np.asarray(image.convert("L")) > 0
    except Exception as error:  # a foreign file fails anywhere in the decoder
        raise ValueError(f"is not a PNG that can be read ({type(error).__name__})") from None
    if abs(kept.shape[1] * height / (kept.shape[0] * width) - 1) > MAX_STRETCH:
        raise ValueError(
            f"has {kept.shape[1]} x {kept.shape[0]} pixels, another shape than the photo's {width} x {height}"
        )
    return kept


def _source_pixels(source: Any, target: Any, shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """For each pixel of a pinhole camera the pixel of the source photo that it shows [H, W], -1 outside of it.

    Args:
        source: the camera that took the photo.
        target: the pinhole camera of the undistorted photo.
        shape: rows and columns of the source picture, which may have another size than its camera.
    """
    rows = max(1, _BLOCK_PX // target.width)
    scale = np.array([shape[1] / source.width, shape[0] / source.height])
    blocks = []
    for top in range(0, target.height, rows):
        v, u = np.mgrid[top : min(top + rows, target.height), 0 : target.width] + 0.5
        pixels = np.stack([u.ravel(), v.ravel()], axis=1)
        rays = np.column_stack([target.cam_from_img(pixels), np.ones(len(pixels))])
        places = source.img_from_cam(rays) * scale
        inside = ((places >= 0) & (places < (shape[1], shape[0]))).all(axis=1)  # false where NaN: no such direction
        column, row = np.where(inside[:, None], places, 0).astype(np.int32).T
        blocks.append(np.where(inside, row * shape[1] + column, -1).astype(np.int32).reshape(u.shape))
    return np.concatenate(blocks)


def leave_out(dataset: Path, names: set[str]) -> None:
    """Take photos out of a dataset, with their masks, their part of the model and points that only they saw.

    A frame may hold photos that stay, so each photo becomes a frame of its own.

    Args:
        dataset: has ``images/`` and ``sparse/0/``.
        names: of the photos.
    """
    import pycolmap

    folder = dataset / "sparse" / "0"
    old, new = pycolmap.Reconstruction(folder), pycolmap.Reconstruction()
    kept = [i for i in sorted(old.reg_image_ids()) if old.images[i].name not in names]
    for camera_id in sorted({old.images[i].camera_id for i in kept}):
        new.add_camera_with_trivial_rig(old.cameras[camera_id])
    for i in kept:
        image = old.images[i]
        keypoints = np.array([point.xy for point in image.points2D], float).reshape(-1, 2)
        fresh = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=i, keypoints=keypoints)
        new.add_image_with_trivial_frame(fresh, image.cam_from_world())
    for _, point in sorted(old.points3D.items()):
        seen = [e for e in point.track.elements if old.images[e.image_id].name not in names]
        if len(seen) > 1:
            new.add_point3D(point.xyz, pycolmap.Track(seen), point.color)
    shutil.rmtree(folder)
    folder.mkdir()
    new.write(folder)
    for name in names:
        (dataset / "images" / name).unlink()
        (dataset / "masks" / f"{name}.png").unlink(missing_ok=True)


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    dataset_ = Path(job["dataset"])
    masks_ = {name: Path(path) for name, path in job["masks"].items()}
    answer = undistort(Path(job["model"]), Path(job["photos"]), dataset_, job["max_image_px"], job["threads"], masks_)
    (dataset_ / ANSWER).write_text(json.dumps(answer))
