"""The images of a box and its margin, and what is known of each before matching: camera, place, heading, up.

The result is a COLMAP database with stable ids, one camera for each sequence and size, and pose priors in
east-north-up metres of the box.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.geodesy import LocalFrame, haversine_m
from geo_assets.grid import Grid
from geo_assets.lake import Lake
from geo_assets.reconstruct.stage import run_step
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

DATABASE = "database.db"
MAX_ID = 2**31 - 2
"""COLMAP's image ids stay below 2**31 - 1, from which it makes pair ids."""

FOCAL_GUESS = 0.85
"""Focal length by the longer side where the source says nothing (OpenSfM's default; COLMAP's 1.2 was 66 % off)."""

SMALL_IMAGE_PX = 1100
"""Up to this long side the first octave is doubled; larger images have features enough without."""

UNKNOWN_ALTITUDE_SIGMA_M = 30.0
_CONTRADICTION = 5.0  # standard deviations between two positions of one image
_TRAVEL_STEPS = 3
_MIN_TRAVEL_M = 5.0
_FOR_COLMAP = [
    *("image_id", "colmap_image_id", "camera_id", "width", "height", "known_upright"),
    *("east_m", "north_m", "up_m", "sigma_xy_m", "sigma_z_m"),
]


@dataclass(frozen=True)
class Database:
    """What one run left behind: the table's rows, the facts to keep with them, figures for people."""

    frame: pd.DataFrame
    note: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)


def gps_database(
    lake: Lake, city: str, box: str, grid: Grid, options: Reconstruct, log: Callable[[str], None] | None = None
) -> Database:
    """Make and publish the COLMAP database of a box: features and a pose prior for each perspective image.

    Args:
        lake: holds ``image_metadata`` and ``image_files`` of the box and, where harvested, of its neighbours.
        city: name of the city.
        box: name of the box.
        grid: the city's grid.
        options: settings of the room.
        log: gets lines of progress.

    Returns:
        Rows of table ``gps_db``; the database lies under ``files/features``.

    Raises:
        GeoAssetsError: the box was not harvested.
        ReconstructionError: COLMAP failed.
    """
    images, left_out = images_around(lake, city, box, grid, options)
    counts = {"n_images": int((images.home_box == box).sum()), "n_margin_images": int((images.home_box != box).sum())}
    figures: dict[str, Any] = counts | {f"n_left_out_{why}": n for why, n in left_out.items()}
    lon, lat = grid.bounds(box).centre
    if not counts["n_images"]:
        return Database(TABLES["gps_db"].empty(), {"origin": [lon, lat, 0.0]}, figures)
    altitude = images.best_altitude_m.median()
    frame = LocalFrame(lon, lat, 0.0 if pd.isna(altitude) else round(float(altitude), 3))
    images = with_priors(images, frame, options)
    images["colmap_image_id"] = stable_ids(images.image_id)
    cameras = cameras_of(images)
    images["camera_id"] = images.set_index(["sequence_id", "width", "height"]).index.map(
        cameras.set_index(["sequence_id", "width", "height"]).camera_id
    )
    note = {"origin": [frame.lon, frame.lat, frame.alt_m], "bounds": grid.bounds(box).as_list()}
    manifest = note | {"city": city, "box": box, "images": dict(zip(images.image_id, images.sha256, strict=True))}
    found = _published_features(lake, images, cameras, manifest, options, log)
    images["n_keypoints"] = images.image_id.map(found).fillna(0).astype("int64")
    figures |= {
        "n_cameras": len(cameras),
        "n_keypoints_median": int(images.n_keypoints.median()),
        "n_without_keypoints": int((images.n_keypoints == 0).sum()),
        "upright_features": upright_features(images),
        "origin": note["origin"],
    }
    rows = images.reindex(columns=TABLES["gps_db"].column_names)
    return Database(rows, note, figures)


def _published_features(
    lake: Lake,
    images: pd.DataFrame,
    cameras: pd.DataFrame,
    manifest: dict[str, Any],
    options: Reconstruct,
    log: Callable[[str], None] | None,
) -> pd.Series:
    """Publish the database with ``manifest.json`` beside it; number of keypoints by image id."""
    with tempfile.TemporaryDirectory(prefix="geo_assets_features_") as folder:
        scratch = Path(folder)
        local_images(lake, zip(images.image_id, images.path, strict=True), scratch / "images")
        published = scratch / "published"
        published.mkdir()
        answer = run_step(
            "build_database",
            {
                "database": str(published / DATABASE),
                "images_folder": str(scratch / "images"),
                "cameras": _records(cameras),
                "images": _records(pd.DataFrame(images[_FOR_COLMAP])),
                "upright": upright_features(images),
                "max_image_px": options.max_image_px,
                "max_features": options.max_features,
                "small_image_px": SMALL_IMAGE_PX,
                "threads": options.threads or -1,
            },
            scratch,
            log=log,
        )
        manifest = manifest | {"options": options.model_dump(), "pycolmap": answer["pycolmap"]}
        (published / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
        lake.publish(published, lake.key("features", city=manifest["city"], box=manifest["box"]))
    return pd.Series(answer["n_keypoints"], dtype="int64")


def effective_margin_m(options: Reconstruct, box_m: float) -> float:
    """How far outside a box images take part: never more than a quarter of the box."""
    return min(options.margin_m, box_m / 4)


def images_around(
    lake: Lake, city: str, box: str, grid: Grid, options: Reconstruct
) -> tuple[pd.DataFrame, dict[str, int]]:
    """The perspective images of a box and of its margin, and how many were left out for which reason.

    Returns:
        Columns of ``image_metadata`` and ``path``, ``sha256``, ``width``, ``height`` of the file, the best
        position ``best_lon``, ``best_lat`` [deg], ``best_altitude_m`` [m], and ``home_box``.
    """
    bounds = grid.bounds(box).padded(effective_margin_m(options, grid.box_m))
    found = []
    for name in [box, *grid.neighbours(box)]:
        where = {"city": city, "box": name}
        if name != box and not lake.has("image_files", **where):
            continue
        metadata, files = (lake.read(table, None, **where) for table in ("image_metadata", "image_files"))
        metadata = metadata[metadata.tombstoned_at.isna()]  # the provider deleted the others
        files = pd.DataFrame(files[files.status == "done"][["image_id", "path", "sha256", "width", "height"]])
        images = metadata.drop(columns=["width", "height"]).merge(files, on="image_id", how="inner")
        images = with_best_position(images, options.gps_sigma_m)
        if name != box:
            images = images[bounds.contains(images.best_lon, images.best_lat)]
        if len(images):
            found.append(images.assign(home_box=name))
    if not found:
        return with_best_position(_no_images(), options.gps_sigma_m).assign(home_box=pd.Series(dtype=str)), {}
    images = pd.concat(found, ignore_index=True).drop_duplicates("image_id")
    panorama = images.is_pano.fillna(False).astype(bool) | (images.camera_type == "spherical")
    fisheye = ~panorama & (images.camera_type == "fisheye")
    nowhere = ~panorama & ~fisheye & (images.best_lon.isna() | images.best_lat.isna())
    left_out = {"panorama": int(panorama.sum()), "fisheye": int(fisheye.sum()), "no_position": int(nowhere.sum())}
    kept = (
        pd.DataFrame(images[~panorama & ~fisheye & ~nowhere])
        .sort_values("image_id", kind="stable")
        .reset_index(drop=True)
    )
    return kept, left_out


def _no_images() -> pd.DataFrame:
    files = TABLES["image_files"].empty()[["image_id", "path", "sha256", "width", "height"]]
    metadata = TABLES["image_metadata"].empty().drop(columns=["width", "height"])
    return metadata.merge(files, on="image_id", how="inner")


def with_best_position(images: pd.DataFrame, gps_sigma_m: float) -> pd.DataFrame:
    """One position of the recorded and the corrected one, as ``best_lon``, ``best_lat``, ``best_altitude_m``.

    Where both are there and do not contradict each other, their mean: the provider corrects with the recorded
    positions of the whole sequence, so both err together to an unknown degree, and the mean with the standard
    deviation of one (covariance intersection, Julier and Uhlmann 1997) is right whatever that degree. Where they
    are further apart than five standard deviations, the corrected one: it has seen the neighbours.
    """
    corrected = images.computed_lon.notna() & images.computed_lat.notna()
    apart = haversine_m(images.lon, images.lat, images.computed_lon, images.computed_lat)
    both = corrected & (apart <= _CONTRADICTION * gps_sigma_m)
    merged = {
        best: images[computed]
        .where(corrected, images[recorded])
        .where(~both, (images[recorded] + images[computed]) / 2)
        for best, recorded, computed in (("best_lon", "lon", "computed_lon"), ("best_lat", "lat", "computed_lat"))
    }
    altitudes = images[["altitude_m", "computed_altitude_m"]]
    height = altitudes.mean(axis=1).where(both, images.computed_altitude_m.fillna(images.altitude_m))
    return images.assign(**merged, best_altitude_m=height.astype(float))


def with_priors(images: pd.DataFrame, frame: LocalFrame, options: Reconstruct) -> pd.DataFrame:
    """Positions in metres with standard deviations, headings, and whether the camera is known to be upright.

    An unknown altitude becomes the median of the others with a wide standard deviation: COLMAP ignores a prior
    that is not a number without a word.
    """
    known_altitude = images.best_altitude_m.notna()
    altitude = images.best_altitude_m.fillna(frame.alt_m)
    enu = frame.enu(images.best_lon.to_numpy(float), images.best_lat.to_numpy(float), altitude.to_numpy(float))
    out = images.assign(
        east_m=enu[:, 0],
        north_m=enu[:, 1],
        up_m=enu[:, 2],
        sigma_xy_m=options.gps_sigma_m,
        sigma_z_m=np.where(known_altitude, options.altitude_sigma_m, UNKNOWN_ALTITUDE_SIGMA_M),
        # The provider turns its photos upright; a photo of the user's folder is upright if its EXIF says 1.
        known_upright=images.exif_orientation.notna() & (images.source_path.isna() | (images.exif_orientation == 1)),
    )
    return out.assign(heading_deg=headings_deg(out))


def headings_deg(images: pd.DataFrame) -> pd.Series:
    """Heading of each image, clockwise from north [deg]: corrected, else the way it travels, else the compass.

    A phone's compass in a car is the worst of the three. Travel is measured over three steps of the sequence to
    each side, and only where they span five metres.
    """
    travel = pd.Series(np.nan, index=images.index)
    for _, run in images.sort_values(["captured_at", "image_id"], kind="stable").groupby("sequence_id", sort=True):
        xy = run[["east_m", "north_m"]].to_numpy(float)
        at = np.arange(len(run))
        step = xy[np.minimum(at + _TRAVEL_STEPS, len(run) - 1)] - xy[np.maximum(at - _TRAVEL_STEPS, 0)]
        moved = np.hypot(*step.T) >= _MIN_TRAVEL_M
        travel.loc[run.index] = np.where(moved, np.degrees(np.arctan2(step[:, 0], step[:, 1])) % 360, np.nan)
    return (images.computed_compass_deg.astype(float).fillna(travel).fillna(images.compass_deg.astype(float))) % 360


def upright_features(images: pd.DataFrame) -> bool:
    """Whether features may ignore their orientation: most images are known to be upright and none to be turned.

    It is one answer for a box, because features with and without orientation do not match each other.
    """
    turned = images.exif_orientation.notna() & ~images.known_upright
    return bool(images.known_upright.mean() >= 0.5 and not turned.any())


def cameras_of(images: pd.DataFrame) -> pd.DataFrame:
    """One camera for each sequence and size of its files: shared intrinsics are what makes street scenes solvable.

    Returns:
        ``sequence_id, width, height, camera_id, model, parameters`` (COLMAP's: focal [px], cx, cy, k1[, k2]) and
        ``known_focal``.
    """
    rows = []
    keys: Any
    for keys, group in images.groupby(["sequence_id", "width", "height"], sort=True):
        sequence_id, width, height = keys
        given = [list(p) for p in group.camera_parameters if p is not None and len(p) >= 3 and p[0] > 0]
        longer = max(width, height)
        if given:
            focal, k1, k2 = np.median(np.array([p[:3] for p in given], float), axis=0)
            model, parameters = "RADIAL", [focal * longer, width / 2, height / 2, k1, k2]
        else:
            model, parameters = "SIMPLE_RADIAL", [FOCAL_GUESS * longer, width / 2, height / 2, 0.0]
        rows.append((sequence_id, int(width), int(height), model, [float(p) for p in parameters], bool(given)))
    cameras = pd.DataFrame(rows, columns=["sequence_id", "width", "height", "model", "parameters", "known_focal"])
    names = cameras.sequence_id + "/" + cameras.width.astype(str) + "x" + cameras.height.astype(str)
    return cameras.assign(camera_id=stable_ids(names))


def stable_ids(names: Iterable[str]) -> list[int]:
    """A positive id below 2**31 - 1 for each name, from its SHA-256: the same in every box.

    Two names that meet on one id (one chance in 35 for a box of 11,000 images) are told apart in the order of
    their names; boxes exchange images by ``image_id``, never by this number.
    """
    names = list(names)
    taken: dict[int, str] = {}
    ids: dict[str, int] = {}
    for name in sorted(set(names)):
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % MAX_ID + 1
        while number in taken:
            number = number % MAX_ID + 1
        taken[number] = name
        ids[name] = number
    return [ids[name] for name in names]


def image_name(image_id: str) -> str:
    """Name of an image in COLMAP databases and models."""
    return f"{image_id}.jpg"


def local_images(lake: Lake, files: Iterable[tuple[str, str]], folder: Path) -> None:
    """The images under their COLMAP names in a local folder: links on a disk, copies from object storage."""
    folder.mkdir(parents=True)
    for image_id, key in files:
        lake.link(key, folder / image_name(image_id))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON can hold them."""
    return json.loads(str(frame.to_json(orient="records", double_precision=15)))
