"""The COLMAP database of a box: the images that take part, what is known of each, and their features.

It has stable ids, one camera for each sequence, size and kind, and pose priors in east-north-up metres of the box.
Features come from a cache by content, so that an image has the same ones in every box that it takes part in.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import Grid
from geo_assets.lake import Lake
from geo_assets.progress import Progress
from geo_assets.reconstruct.cameras import image_name, stable_ids, with_cameras
from geo_assets.reconstruct.feature_cache import FeatureCache, feature_key
from geo_assets.reconstruct.images import images_around, inputs_digest
from geo_assets.reconstruct.masks import with_masks
from geo_assets.reconstruct.panoramas import with_views
from geo_assets.reconstruct.priors import box_frame, upright_features, with_given_poses, with_priors
from geo_assets.reconstruct.stage import StepEnded, run_step
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

__all__ = ["DATABASE", "Database", "gps_database", "image_name", "local_images"]

DATABASE = "database.db"

SMALL_IMAGE_PX = 1100
"""Up to this long side the first octave is doubled; larger images have features enough without."""

CHUNK = 100
"""Images whose features one child process finds: what a killed run loses at most."""

_ABORTS = 3  # images on which COLMAP may abort before any has worked
_TO_EXTRACT = ["image_id", "feature_key", "width", "height", "first_octave", "masked"]
_TO_WRITE = [
    *("image_id", "colmap_image_id", "camera_id", "rig_id", "frame_id", "kind", "view", "width", "height"),
    *("camera_model", "parameters", "known_focal", "known_upright", "feature_key"),
    *("east_m", "north_m", "up_m", "sigma_xy_m", "sigma_z_m"),
]
Log = Callable[[str], None]


@dataclass(frozen=True)
class Database:
    """What one run left behind: the table's rows, the facts to keep with them, figures for people."""

    frame: pd.DataFrame
    note: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)


def gps_database(
    lake: Lake,
    city: str,
    box: str,
    grid: Grid,
    options: Reconstruct,
    log: Log | None = None,
    *,
    masks: Path | None = None,
) -> Database:
    """Make and publish the COLMAP database of a box: features and a pose prior for each image.

    Args:
        lake: holds ``image_metadata`` and ``image_files`` of the box and, where harvested, of its neighbours.
        city: name of the city.
        box: name of the box.
        grid: the city's grid.
        options: settings of the room.
        log: gets lines of progress.
        masks: the city's folder of masks; None where it has none.

    Returns:
        Rows of table ``gps_db``; the database lies under ``files/features``. A box without images that can be used
        has no rows and no database; the note's ``left_out`` says why.

    Raises:
        GeoAssetsError: the box was not harvested.
        ConfigError: the folder of masks is not there.
        ReconstructionError: COLMAP failed, or has not the device.
    """
    log = log or (lambda _: None)
    images, left_out = images_around(lake, city, box, grid, options)
    inputs = inputs_digest(images)
    frame = box_frame(lake, city, box, grid, images.best_altitude_m)
    figures: dict[str, Any] = {}
    if (images.home_box == box).any():
        images = with_given_poses(with_priors(images, frame, options), frame)
        images = images.assign(photo_id=images.image_id, view=pd.Series(pd.NA, index=images.index, dtype="Int64"))
        images, broken = with_views(lake, city, box, images, options, log)
        upright = upright_features(images) if len(images) else False
        images, figures = with_masks(lake, city, box, images, masks)
        with tempfile.TemporaryDirectory(prefix="geo_assets_features_") as folder:
            work = _Work(lake, Path(folder), _settings(options, upright, Path(folder)), options.threads, log)
            images, undecoded = work.with_features(images)
            left_out["broken"] += len(broken) + len(undecoded)
            if (images.home_box == box).any():
                images = with_cameras(_numbered(images))
                _publish(work, city, box, images, _note(frame, grid, box, left_out, inputs))
        figures |= work.figures | {"upright_features": upright}
    if not (images.home_box == box).any():
        images = pd.DataFrame(images[:0])  # the margin alone makes no work
    figures = _counts(images, box, left_out) | figures | {"origin": [frame.lon, frame.lat, frame.alt_m]}
    rows = images.reindex(columns=TABLES["gps_db"].column_names) if len(images) else TABLES["gps_db"].empty()
    return Database(rows, _note(frame, grid, box, left_out, inputs), figures)


def local_images(lake: Lake, files: Iterable[tuple[str, str]], folder: Path) -> None:
    """The images under their COLMAP names in a local folder: links on a disk, copies from object storage."""
    folder.mkdir(parents=True)
    for image_id, key in files:
        lake.link(key, folder / image_name(image_id))


@dataclass
class _Work:
    """The features of a box's images on their way from cache or COLMAP into a local folder."""

    lake: Lake
    scratch: Path
    settings: dict[str, Any]
    threads: int
    log: Log
    figures: dict[str, Any] = field(default_factory=dict)
    cpu_s: float = 0.0
    has_worked: bool = False
    n_aborted: int = 0

    def __post_init__(self) -> None:
        self.features = self.scratch / "features"
        self.features.mkdir()

    def with_features(self, images: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """The images with ``feature_key`` and ``n_keypoints``, and the ids of those that do not decode, left out."""
        cache = FeatureCache(self.lake)
        images = images.assign(first_octave=_first_octaves(images, self.settings["max_image_px"]))
        images["feature_key"] = [
            feature_key(pixels, mask if isinstance(mask, str) else None, self.settings | {"first_octave": octave})
            for pixels, mask, octave in images[["sha256", "mask_sha256", "first_octave"]].itertuples(index=False)
        ]
        missing = pd.DataFrame(images[[not cache.fetch(key, self.features) for key in images.feature_key]])
        missing = missing.drop_duplicates("feature_key")
        broken = self._extract(missing, cache)
        images = pd.DataFrame(images[~images.feature_key.isin(missing.feature_key[missing.image_id.isin(broken)])])
        self.figures |= {
            "n_extracted": len(missing) - len(broken),
            "n_from_cache": len(images) - (len(missing) - len(broken)),
            "n_cache_damaged": cache.n_damaged,
            "n_cache_refused": cache.n_not_kept,
            "device": self.settings["device"],
            "extraction_cpu_s": round(self.cpu_s, 2),
        }
        counts = [cache.n_keypoints[key] for key in images.feature_key]
        return images.assign(n_keypoints=np.array(counts, "int64")).reset_index(drop=True), broken

    def _extract(self, images: pd.DataFrame, cache: FeatureCache) -> list[str]:
        """Find features chunk by chunk and keep each chunk's; ids of the images that do not decode."""
        if images.empty:
            return []
        self.log(f"finding features of {len(images):,} images on the {self.settings['device']}")
        progress = Progress(self.log, "images have features", len(images))
        broken: list[str] = []
        for first in range(0, len(images), CHUNK):
            chunk = pd.DataFrame(images.iloc[first : first + CHUNK])
            undecoded = self._extract_what_can_be(chunk, lambda n, first=first: progress(first + n))
            for image_id, key in zip(chunk.image_id, chunk.feature_key, strict=True):
                if image_id not in undecoded:
                    cache.keep(key, self.features)
            broken += undecoded
            progress(first + len(chunk))
        if broken:
            self.log(f"{len(broken):,} images do not decode and are left out, the first: {', '.join(broken[:3])}")
        return broken

    def _extract_what_can_be(self, images: pd.DataFrame, done: Callable[[int], None]) -> list[str]:
        """Find the features of some images; ids of those that do not decode, or on which COLMAP aborts.

        Halves are tried until the image that does it is alone; if COLMAP aborts on each, it is not the image.
        """
        try:
            broken = self._extract_chunk(images, done)
            self.has_worked = True
            return broken
        except StepEnded as ended:
            alone = len(images) == 1
            self.n_aborted += alone
            if ended.by != "abort" or (alone and not self.has_worked and self.n_aborted >= _ABORTS):
                raise
        if alone:
            return list(images.image_id)
        halves = (images.iloc[: len(images) // 2], images.iloc[len(images) // 2 :])
        return [i for half in halves for i in self._extract_what_can_be(pd.DataFrame(half), done)]

    def _extract_chunk(self, chunk: pd.DataFrame, done: Callable[[int], None]) -> list[str]:
        """Find the features of some images in a process of its own; ids of those that do not decode."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        names = ("pictures", "masks")
        pictures, masks = (folder / name for name in names)
        for made in (pictures, masks):
            made.mkdir()
        for image_id, path, mask in chunk[["image_id", "path", "mask_path"]].itertuples(index=False):
            with contextlib.suppress(FileNotFoundError):  # counted as broken
                self.lake.link(path, pictures / image_name(image_id))
            if isinstance(mask, str):
                self.lake.link(mask, masks / f"{image_name(image_id)}.png")
        answer = run_step(
            "extract_features",
            {
                "images": _records(pd.DataFrame(chunk.assign(masked=chunk.mask_path.notna())[_TO_EXTRACT])),
                "images_folder": str(pictures),
                "masks_folder": str(masks),
                "features_folder": str(self.features),
                "scratch": str(folder),
                "threads": self.threads or -1,
                **{k: self.settings[k] for k in ("max_image_px", "max_features", "upright", "device")},
            },
            folder,
            log=lambda line: done(int(line)) if line.isdigit() else None,  # COLMAP's own log says no more
        )
        self.cpu_s += answer.cpu_seconds
        shutil.rmtree(folder)
        return answer["broken"]


def _settings(options: Reconstruct, upright: bool, scratch: Path) -> dict[str, Any]:
    """What decides the features of a picture, beside the picture; a child says which COLMAP there is.

    Pillow hangs on a PNG in a process that loaded pycolmap before it: each brings a zlib of its own.
    """
    return {
        "type": "SIFT",
        "max_image_px": options.max_image_px,
        "max_features": options.max_features,
        "upright": upright,
        **run_step("about_colmap", {"device": options.device}, scratch),
    }


def _first_octaves(images: pd.DataFrame, max_image_px: int) -> list[int]:
    longer = images[["width", "height"]].max(axis=1).clip(upper=max_image_px)
    return [-1 if small else 0 for small in longer <= SMALL_IMAGE_PX]


def _numbered(images: pd.DataFrame) -> pd.DataFrame:
    """The images with their numbers in COLMAP; a frame has the number of its first image."""
    images = images.assign(colmap_image_id=stable_ids(images.image_id))
    front = images[images["view"].fillna(0) == 0].set_index("photo_id").colmap_image_id
    return images.assign(frame_id=images.photo_id.map(front).astype("int64"))


def _publish(work: _Work, city: str, box: str, images: pd.DataFrame, note: dict[str, Any]) -> None:
    """Publish the database with ``manifest.json`` beside it."""
    published = work.scratch / "published"
    published.mkdir()
    records = _records(pd.DataFrame(images[_TO_WRITE]))
    arguments = {
        "database": str(published / DATABASE),
        "images": records,
        "features_folder": str(work.features),
    }
    run_step("build_database", arguments, work.scratch, log=work.log)
    manifest = note | {"city": city, "box": box, "features": work.settings}
    manifest["images"] = dict(zip(images.image_id, images.sha256, strict=True))
    (published / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))
    work.lake.publish(published, work.lake.key("features", city=city, box=box))


def _note(frame: LocalFrame, grid: Grid, box: str, left_out: dict[str, int], inputs: str) -> dict[str, Any]:
    """What other steps must know of a box beside its rows."""
    return {
        "origin": [frame.lon, frame.lat, frame.alt_m],
        "bounds": grid.bounds(box).as_list(),
        "left_out": {why: n for why, n in left_out.items() if n},
        "inputs": inputs,
    }


def _counts(images: pd.DataFrame, box: str, left_out: dict[str, int]) -> dict[str, Any]:
    """Counts of a box's images and of what was left out."""
    counts: dict[str, Any] = {
        "n_images": int((images.home_box == box).sum()),
        "n_margin_images": int((images.home_box != box).sum()),
    } | {f"n_left_out_{why}": n for why, n in left_out.items()}
    if images.empty:
        return counts
    return counts | {
        "n_photos": int(images.photo_id.nunique()),
        "n_panoramas": int(images.photo_id[images.kind.isin(["spherical", "view"])].nunique()),
        "n_cameras": int(images.camera_id.nunique()),
        "n_known_focal": int(images.known_focal.sum()),
        "n_given_poses": int(images.given_centre.notna().sum()),
        "n_keypoints_median": int(images.n_keypoints.median()),
        "n_without_keypoints": int((images.n_keypoints == 0).sum()),
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON can hold them."""
    return json.loads(str(frame.to_json(orient="records", double_precision=15)))
