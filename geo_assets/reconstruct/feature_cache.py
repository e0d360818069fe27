"""Features by content: whoever needs the same pixels, mask and options finds them computed.

A file holds the keypoints and descriptors of one picture. Files are written whole or not at all, never changed, and
read by any number of processes; a damaged one is computed again.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_assets.lake import Lake

KIND = "feature_cache"
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Features:
    """Features of one picture.

    Attributes:
        keypoints: x, y [px, the corner of the picture is 0, 0] and the shape as COLMAP has it [n, 2, 4 or 6].
        descriptors: [n, 128].
    """

    keypoints: npt.NDArray[np.float32]
    descriptors: npt.NDArray[np.uint8]


def feature_key(pixels_sha256: str, mask_sha256: str | None, settings: Mapping[str, Any]) -> str:
    """Name of the features of a picture: the hash of everything that decides them.

    Args:
        pixels_sha256: hash of the file.
        mask_sha256: hash of the mask; None where there is none.
        settings: options of the extraction, the device and the version of COLMAP.
    """
    decides = {"pixels": pixels_sha256, "mask": mask_sha256 or "", **settings}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def write_features(path: Path, features: Features) -> None:
    """Write features to a local file."""
    # Descriptors hardly shrink, and reading must cost a millisecond.
    np.savez(path, keypoints=features.keypoints, descriptors=features.descriptors)


def read_features(path: Path) -> Features:
    """Read and check a file of features.

    Raises:
        ValueError: the file is damaged or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Features(file["keypoints"], file["descriptors"])
    except _DAMAGED as error:
        raise ValueError(f"The features in {path.name} cannot be read ({type(error).__name__}).") from None
    keypoints, descriptors = found.keypoints, found.descriptors
    if (
        keypoints.dtype != np.float32
        or descriptors.dtype != np.uint8
        or keypoints.ndim != 2
        or keypoints.shape[1] not in (2, 4, 6)
        or descriptors.shape != (len(keypoints), 128)
    ):
        raise ValueError(f"{path.name} does not hold SIFT features.")
    return found


def features_path(folder: Path, key: str) -> Path:
    """Where the features of a key lie in a local folder."""
    return folder / f"{key}.npz"


@dataclass
class FeatureCache:
    """The features in a lake, and what became of those that were asked for."""

    lake: Lake
    n_damaged: int = 0
    n_not_kept: int = 0
    """How many could not be written to the lake."""
    n_keypoints: dict[str, int] = field(default_factory=dict)

    def path(self, key: str) -> str:
        """Path of the features of a key in the lake."""
        return self.lake.key(KIND, f"{key[:2]}/{key}.npz")

    def fetch(self, key: str, folder: Path) -> bool:
        """Put features at their local path; false where the lake has none that can be read."""
        target = features_path(folder, key)
        if target.exists():
            return True
        if not self.lake.exists(self.path(key)):
            return False
        try:
            self.lake.link(self.path(key), target)
            self.n_keypoints[key] = len(read_features(target).keypoints)
        except (ValueError, OSError):
            target.unlink(missing_ok=True)
            self.n_damaged += 1
            return False
        return True

    def keep(self, key: str, folder: Path) -> None:
        """Take features from their local path into the lake; a lake that cannot be written to costs time only."""
        local = features_path(folder, key)
        self.n_keypoints[key] = len(read_features(local).keypoints)
        try:
            self.lake.put_bytes(self.path(key), local.read_bytes(), sync_folder=False)
        except OSError:
            self.n_not_kept += 1
            return
        if self.lake.is_local:  # hold them once
            local.unlink()
            self.lake.link(self.path(key), local)
