"""The calls into COLMAP, each a step that runs in a process of its own (see :mod:`geo_assets.reconstruct.stage`).

Arguments and answers are what JSON can hold. Lines printed here are progress, read by the parent.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from geo_assets.errors import ReconstructionError

# The log belongs to the step; by default COLMAP also writes files into the temporary folder of the machine.
pycolmap.logging.logtostderr = True

MATCH_CHUNK = 500
"""Pairs matched between two lines of progress."""

PAIR_BASE = 2**31 - 1
"""COLMAP's ``pair_id`` is ``PAIR_BASE * smaller id + larger id``."""


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
    _checkpoint(database)
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


def match(database: str, pairs: str, threads: int, seed: int) -> dict[str, Any]:
    """Match and verify the listed pairs in the database, then drop the descriptors, which mapping does not need."""
    path = Path(pairs)
    lines = path.read_text().splitlines()
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = threads
    verification = pycolmap.TwoViewGeometryOptions()
    # A logo or a dashboard that stands still in the frame would else be the best match of every pair.
    verification.filter_stationary_matches = True
    verification.ransac.random_seed = seed
    for first in range(0, len(lines), MATCH_CHUNK):
        chunk = lines[first : first + MATCH_CHUNK]
        listed = path.with_suffix(".chunk")
        listed.write_text("\n".join(chunk) + "\n")
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = str(listed)
        pycolmap.match_image_pairs(
            database,
            matching_options=matching,
            pairing_options=pairing,
            verification_options=verification,
            device=pycolmap.Device.cpu,
        )
        listed.unlink()
        print(f"matched {first + len(chunk):,} of {len(lines):,} pairs", flush=True)
    _checkpoint(database)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as con:
        con.execute("delete from descriptors")
        con.execute("vacuum")
    _checkpoint(database)
    return {"found": _two_view(database)}


def _two_view(database: str) -> list[tuple[str, str, int, int, str]]:
    """For each tried pair: both ids, putative matches, inliers, configuration."""
    configurations = {int(c): name for name, c in pycolmap.TwoViewGeometryConfiguration.__members__.items()}
    base = PAIR_BASE
    with contextlib.closing(sqlite3.connect(database)) as con:
        names = {i: name.removesuffix(".jpg") for i, name in con.execute("select image_id, name from images")}
        rows = con.execute(
            "select m.pair_id, m.rows, coalesce(t.rows, 0), coalesce(t.config, 0) "
            "from matches m left join two_view_geometries t using (pair_id)"
        ).fetchall()
    return [
        (names[pair // base], names[pair % base], n_matches or 0, inliers, configurations.get(config, "UNDEFINED"))
        for pair, n_matches, inliers, config in rows
    ]


def reconstruct(**arguments: Any) -> dict[str, Any]:
    """Map the components of the verified graph and bring each to its place; see :mod:`.mapping`."""
    from geo_assets.reconstruct.mapping import map_components  # scipy: only this step pays for it

    return map_components(**arguments)


def _checkpoint(database: str) -> None:
    """Bring the write-ahead log into the file, so that the file alone is the database."""
    with contextlib.closing(sqlite3.connect(database)) as con:
        con.execute("pragma wal_checkpoint(truncate)")
        con.execute("pragma journal_mode = delete")
    for suffix in ("-wal", "-shm"):
        if (leftover := Path(database + suffix)).exists():
            leftover.unlink()
    if not Path(database).exists():
        raise ReconstructionError(f"COLMAP left no database at {database}. Run the step again.")
