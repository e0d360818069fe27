"""Features found by COLMAP, and the database that is made of them; both run in a child process.

Arguments and answers are what JSON can hold. Lines printed here are progress, read by the parent.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from geo_assets.reconstruct.cameras import N_VIEWS, VIEW, image_name, view_rotations
from geo_assets.reconstruct.colmap import checkpoint, device_for
from geo_assets.reconstruct.feature_cache import Features, features_path, read_features, write_features

_TOLD_EVERY_S = 2.0
_SMALLER = 8  # an eighth of the size decodes fast and still reads every byte


def about_colmap(device: str) -> dict[str, str]:
    """The device that is meant (``cpu`` or ``cuda``) and the version of COLMAP: both decide features."""
    return {"device": device_for(device).name, "pycolmap": pycolmap.__version__}


def extract(
    images: list[dict[str, Any]],
    images_folder: str,
    masks_folder: str,
    features_folder: str,
    scratch: str,
    max_image_px: int,
    max_features: int,
    upright: bool,
    device: str,
    threads: int,
) -> dict[str, Any]:
    """Find the features of pictures and write each picture's to a file of its own.

    Prints the number of pictures done every few seconds, and nothing else.

    Args:
        images: ``image_id``, ``feature_key``, ``width``, ``height``, ``first_octave``, ``masked`` of each.
        images_folder: the pictures under their COLMAP names.
        masks_folder: masks, ``<COLMAP name>.png`` each.
        features_folder: gets a file for each key.
        scratch: for the database that COLMAP writes.
        max_image_px: larger pictures are reduced to this long side.
        max_features: most features of a picture, if none has two orientations.
        upright: features ignore their orientation.
        device: ``cpu`` or ``cuda``.
        threads: -1 for one each core.

    Returns:
        ``broken``: ids of pictures that do not decode, or have another size than they should.
    """
    good, broken = _readable(images, Path(images_folder))
    database, ids = Path(scratch) / "extraction.db", {image_name(i["image_id"]): i["image_id"] for i in good}
    database.unlink(missing_ok=True)
    pycolmap.Database.open(str(database)).close()
    with _counted(database):
        for small, masked in sorted({(i["first_octave"], i["masked"]) for i in good}):
            options = pycolmap.FeatureExtractionOptions()
            options.max_image_size, options.num_threads, options.use_gpu = max_image_px, threads, device == "cuda"
            options.sift.max_num_features, options.sift.first_octave = max_features, small
            if upright:
                options.sift.upright, options.sift.max_num_orientations = True, 1
            reader = pycolmap.ImageReaderOptions()
            if masked:
                reader.mask_path = masks_folder
            pycolmap.extract_features(
                str(database),
                images_folder,
                image_names=[
                    n for n, i in zip(ids, good, strict=True) if (i["first_octave"], i["masked"]) == (small, masked)
                ],
                camera_mode=pycolmap.CameraMode.PER_IMAGE,
                reader_options=reader,
                extraction_options=options,
                device=device_for(device),
            )
    keys = {i["image_id"]: i["feature_key"] for i in good}
    with pycolmap.Database.open(str(database)) as db:
        for image in db.read_all_images():
            if not db.exists_keypoints(image.image_id):
                continue
            keypoints = np.ascontiguousarray(db.read_keypoints(image.image_id), np.float32)
            descriptors = db.read_descriptors(image.image_id).data if len(keypoints) else np.zeros((0, 128))
            features = Features(keypoints, np.ascontiguousarray(descriptors, np.uint8).reshape(-1, 128))
            write_features(features_path(Path(features_folder), keys.pop(ids[image.name])), features)
    return {"broken": sorted([*broken, *keys])}  # a picture that COLMAP passed over has no features to go by


@contextlib.contextmanager
def _counted(database: Path) -> Iterator[None]:
    """Print how many pictures have their features, every few seconds: COLMAP says it to its log only."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(_TOLD_EVERY_S):
            with (
                contextlib.suppress(sqlite3.Error),
                contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as con,
            ):
                print(con.execute("select count(*) from keypoints").fetchone()[0], flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _readable(images: list[dict[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The images whose files decode to the end, and the ids of the others: COLMAP takes half a JPEG for a whole."""
    from PIL import Image

    good, broken = [], []
    for image in images:
        try:
            with Image.open(folder / image_name(image["image_id"])) as file:
                size = file.size
                file.draft("L", (file.width // _SMALLER, file.height // _SMALLER))
                file.load()
        except Exception:  # a foreign file fails anywhere in the decoder: OSError, SyntaxError, struct.error, ...
            size = None
        (good if size == (image["width"], image["height"]) else broken).append(image)
    return good, [image["image_id"] for image in broken]


def build_database(database: str, images: list[dict[str, Any]], features_folder: str) -> dict[str, Any]:
    """Write cameras, rigs, frames, images, pose priors and features by hand.

    COLMAP's own import makes one camera of each photo without make and model, and turns positions into metres
    around whichever photo comes first; rows written here keep our ids, cameras and frame.

    Args:
        database: the file to make.
        images: rows of ``gps_db`` with ``kind`` and ``rig_id``.
        features_folder: the features of each key.
    """
    with pycolmap.Database.open(database) as db, pycolmap.DatabaseTransaction(db):
        _write_cameras(db, images)
        for row in images:
            image = _image(row)
            db.write_image(image, use_image_id=True)
            db.write_pose_prior(_pose_prior(image, row))
            features = read_features(features_path(Path(features_folder), row["feature_key"]))
            db.write_keypoints(row["colmap_image_id"], features.keypoints)
            sift = pycolmap.FeatureDescriptors(pycolmap.FeatureExtractorType.SIFT, features.descriptors)
            db.write_descriptors(row["colmap_image_id"], sift)
        frames: dict[int, pycolmap.Frame] = {}
        for row in images:
            frame = frames.setdefault(row["frame_id"], pycolmap.Frame())
            frame.frame_id, frame.rig_id = row["frame_id"], row["rig_id"]
            frame.add_data_id(_image(row).data_id)
        for frame in frames.values():
            db.write_frame(frame, use_frame_id=True)
    checkpoint(database)
    return {}


def _image(row: dict[str, Any]) -> pycolmap.Image:
    return pycolmap.Image(name=image_name(row["image_id"]), camera_id=row["camera_id"], image_id=row["colmap_image_id"])


def _write_cameras(db: pycolmap.Database, images: list[dict[str, Any]]) -> None:
    """One rig a camera; the views of panoramas share rigs of four, turned by right angles about one centre."""
    rows = {row["camera_id"]: row for row in images}
    for camera_id, row in sorted(rows.items()):
        camera = pycolmap.Camera(
            camera_id=camera_id, model=row["camera_model"], width=row["width"], height=row["height"]
        )
        camera.params = row["parameters"]
        camera.has_prior_focal_length = row["known_focal"]
        db.write_camera(camera, use_camera_id=True)
    rotations = view_rotations()
    for rig_id in sorted({row["rig_id"] for row in rows.values()}):
        rig = pycolmap.Rig(rig_id=rig_id)
        rig.add_ref_sensor(_sensor(rig_id))
        members = sorted((r for r in rows.values() if r["rig_id"] == rig_id), key=lambda r: r["view"] or 0)
        if members[0]["kind"] == VIEW:
            assert len(members) == N_VIEWS
            for row in members[1:]:
                turn = pycolmap.Rotation3d(rotations[row["view"]])
                rig.add_sensor(_sensor(row["camera_id"]), pycolmap.Rigid3d(turn, np.zeros(3)))
        db.write_rig(rig, use_rig_id=True)


def _sensor(camera_id: int) -> pycolmap.sensor_t:
    return pycolmap.sensor_t(pycolmap.SensorType.CAMERA, camera_id)


def _pose_prior(image: pycolmap.Image, row: dict[str, Any]) -> pycolmap.PosePrior:
    prior = pycolmap.PosePrior()
    prior.corr_data_id = image.data_id
    prior.position = np.array([row["east_m"], row["north_m"], row["up_m"]])
    prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.CARTESIAN
    prior.position_covariance = np.diag([row["sigma_xy_m"], row["sigma_xy_m"], row["sigma_z_m"]]) ** 2
    if row["known_upright"]:
        prior.gravity = np.array([0.0, 1.0, 0.0])
    return prior
