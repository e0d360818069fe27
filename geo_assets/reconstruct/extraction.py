"""Cameras, images, priors and features written into a COLMAP database; runs in a child process.

Arguments and answers are what JSON can hold. Lines printed here are progress, read by the parent.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from geo_assets.reconstruct.colmap import checkpoint


def build_database(
    database: str,
    images_folder: str,
    cameras: list[dict[str, Any]],
    images: list[dict[str, Any]],
    upright: bool,
    max_image_px: int,
    max_features: int,
    small_image_px: int,
    threads: int,
) -> dict[str, Any]:
    """Write cameras, images and pose priors by hand, then extract features.

    COLMAP's own import makes one camera of each photo without make and model, and turns positions into metres
    around whichever photo comes first; rows written here keep our ids, cameras and frame.
    """
    images, broken = _readable(images, Path(images_folder))
    _write_rows(database, cameras, images)
    for small in (True, False):
        names = [
            _name(image)
            for image in images
            if (min(max(image["width"], image["height"]), max_image_px) <= small_image_px) == small
        ]
        if not names:
            continue
        options = pycolmap.FeatureExtractionOptions()
        options.max_image_size, options.num_threads = max_image_px, threads
        options.sift.max_num_features = max_features
        options.sift.first_octave = -1 if small else 0
        if upright:
            options.sift.upright, options.sift.max_num_orientations = True, 1
        print(f"extracting features of {len(names):,} images", flush=True)
        pycolmap.extract_features(
            database, images_folder, image_names=names, extraction_options=options, device=pycolmap.Device.cpu
        )
    checkpoint(database)
    with contextlib.closing(sqlite3.connect(database)) as con:
        counts = dict(con.execute("select name, rows from images join keypoints using (image_id)"))
    return {
        "n_keypoints": {name.removesuffix(".jpg"): rows for name, rows in counts.items()},
        "broken": broken,
        "pycolmap": pycolmap.__version__,
    }


def _readable(images: list[dict[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The images whose files decode to the end, and the ids of the others: COLMAP takes half a JPEG for a whole."""
    from PIL import Image

    good, broken = [], []
    for image in images:
        try:
            with Image.open(folder / _name(image)) as file:
                file.draft("L", (file.width // 8, file.height // 8))  # an eighth decodes fast and reads every byte
                file.load()
            good.append(image)
        except OSError:
            broken.append(image["image_id"])
    return good, broken


def _name(image: dict[str, Any]) -> str:
    return f"{image['image_id']}.jpg"


def _write_rows(database: str, cameras: list[dict[str, Any]], images: list[dict[str, Any]]) -> None:
    with pycolmap.Database.open(database) as db, pycolmap.DatabaseTransaction(db):
        for row in cameras:
            camera = pycolmap.Camera.create_from_model_name(
                row["camera_id"], row["model"], row["parameters"][0], row["width"], row["height"]
            )
            camera.params = row["parameters"]
            camera.has_prior_focal_length = row["known_focal"]
            db.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=row["camera_id"])
            rig.add_ref_sensor(camera.sensor_id)
            db.write_rig(rig, use_rig_id=True)
        for row in images:
            image = pycolmap.Image(name=_name(row), camera_id=row["camera_id"], image_id=row["colmap_image_id"])
            db.write_image(image, use_image_id=True)
            frame = pycolmap.Frame()
            frame.frame_id, frame.rig_id = row["colmap_image_id"], row["camera_id"]
            frame.add_data_id(image.data_id)
            db.write_frame(frame, use_frame_id=True)
            db.write_pose_prior(_pose_prior(image, row))


def _pose_prior(image: pycolmap.Image, row: dict[str, Any]) -> pycolmap.PosePrior:
    prior = pycolmap.PosePrior()
    prior.corr_data_id = image.data_id
    prior.position = np.array([row["east_m"], row["north_m"], row["up_m"]])
    prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.CARTESIAN
    prior.position_covariance = np.diag([row["sigma_xy_m"], row["sigma_xy_m"], row["sigma_z_m"]]) ** 2
    if row["known_upright"]:
        prior.gravity = np.array([0.0, 1.0, 0.0])
    return prior
