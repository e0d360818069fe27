"""COLMAP's cameras, rigs and ids: the same in every box, so that boxes can exchange what they found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.geodesy import Array

MAX_ID = 2**31 - 2
"""COLMAP's image ids stay below 2**31 - 1, from which it makes pair ids."""

FOCAL_GUESS = 0.85
"""Focal length by the longer side where the source says nothing (OpenSfM's default; COLMAP's 1.2 was 66 % off)."""

PERSPECTIVE, FISHEYE, SPHERICAL, VIEW = "perspective", "fisheye", "spherical", "view"
"""Kinds of pictures: as the source has them, and the level views that are cut from a panorama."""

N_VIEWS = 4
_SHARED_BY = ["sequence_id", "width", "height", "kind", "view"]
_LEAST_FOCAL, _LARGEST_FOCAL = 0.1, 10.0  # by the longer side; beyond is a slip of the source


def image_name(image_id: str) -> str:
    """Name of an image in COLMAP databases and models."""
    return f"{image_id}.jpg"


def kinds_of(images: pd.DataFrame) -> pd.Series:
    """Whether each row of ``image_metadata`` is perspective, fisheye or spherical."""
    panorama = images.is_pano.fillna(False).astype(bool) | images.camera_type.isin(["spherical", "equirectangular"])
    kind = pd.Series(PERSPECTIVE, index=images.index, dtype=object)
    return kind.mask(images.camera_type == "fisheye", FISHEYE).mask(panorama, SPHERICAL)


def stable_ids(names: Iterable[str]) -> list[int]:
    """A positive id below 2**31 - 1 for each name, from its SHA-256: the same in every box.

    Two names that meet on one id (one chance in 35 for a box of 11,000 images) are told apart in the order of
    their names; boxes exchange images by ``image_id``, and trust this number only where both agree on it.
    """
    names = list(names)
    taken: set[int] = set()
    ids: dict[str, int] = {}
    for name in sorted(set(names)):
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % MAX_ID + 1
        while number in taken:
            number = number % MAX_ID + 1
        taken.add(number)
        ids[name] = number
    return [ids[name] for name in names]


def with_cameras(images: pd.DataFrame) -> pd.DataFrame:
    """The images with ``camera_id``, ``camera_model``, ``parameters``, ``known_focal`` and ``rig_id``.

    Pictures of one sequence, size and kind share a camera: shared intrinsics are what makes street scenes solvable.
    The four views of a panorama have a camera each in one rig, whose id is that of the front view's camera.

    Args:
        images: ``sequence_id``, ``width``, ``height`` [px], ``kind``, ``view`` (null but for views) and
            ``camera_parameters`` (focal length by the longer side, k1, k2; null where unknown).
    """
    rows = []
    keys: Any
    # A missing view would drop its row from the groups.
    keyed = images.assign(view=images["view"].fillna(-1).astype(int))
    for keys, group in keyed.groupby(_SHARED_BY, sort=True):
        _, width, height, kind, _ = keys
        model, parameters, known = _intrinsics(int(width), int(height), kind, group.camera_parameters)
        rows.append((*keys, _camera_name(*keys), model, parameters, known))
    cameras = pd.DataFrame(rows, columns=[*_SHARED_BY, "name", "camera_model", "parameters", "known_focal"])
    cameras["camera_id"] = stable_ids(cameras.name)
    ids = dict(zip(cameras.name, cameras.camera_id, strict=True))
    fronts = [_camera_name(s, w, h, k, min(v, 0)) for s, w, h, k, v in cameras[_SHARED_BY].itertuples(index=False)]
    cameras["rig_id"] = [ids[name] for name in fronts]
    found = keyed[_SHARED_BY].merge(cameras.drop(columns="name"), on=_SHARED_BY, how="left").set_index(images.index)
    return images.assign(**{name: found[name] for name in found.columns if name not in _SHARED_BY})


def usable_parameters(parameters: Any) -> list[float] | None:
    """Focal length by the longer side, k1 and k2 as the source gives them; None where they cannot be right."""
    if parameters is None or not hasattr(parameters, "__len__") or len(parameters) < 3:
        return None
    found = [float(p) for p in parameters[:3]]
    return found if np.isfinite(found).all() and _LEAST_FOCAL <= found[0] <= _LARGEST_FOCAL else None


def view_rotations() -> Array:
    """Rotations [4, 3, 3] of the cameras of a panorama's views from the front one: front, right, back, left."""
    right = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    return np.array([np.linalg.matrix_power(right, k) for k in range(N_VIEWS)])


def _camera_name(sequence_id: str, width: int, height: int, kind: str, view: int) -> str:
    """What a camera's id is made of."""
    name = f"{sequence_id}/{width}x{height}"
    return name if kind == PERSPECTIVE else f"{name}/{kind}" if view < 0 else f"{name}/{kind}{view}"


def _intrinsics(width: int, height: int, kind: str, parameters: pd.Series) -> tuple[str, list[float], bool]:
    """COLMAP's model, its parameters [px], and whether the focal length is known."""
    longer, middle = float(max(width, height)), [width / 2, height / 2]
    if kind == SPHERICAL:
        return "EQUIRECTANGULAR", [float(width), float(height)], True
    if kind == VIEW:  # 90 degrees wide by construction
        return "SIMPLE_PINHOLE", [width / 2, *middle], True
    given = [p for p in map(usable_parameters, parameters) if p is not None]
    if not given:
        return "SIMPLE_RADIAL", [FOCAL_GUESS * longer, *middle, 0.0], False
    focal, k1, k2 = (float(v) for v in np.median(np.array(given), axis=0))
    if kind != FISHEYE and k1 == k2 == 0:
        # A focal length alone, from EXIF: two free coefficients would bend each other and the focal length away.
        return "SIMPLE_RADIAL", [focal * longer, *middle, 0.0], True
    return "RADIAL_FISHEYE" if kind == FISHEYE else "RADIAL", [focal * longer, *middle, k1, k2], True
