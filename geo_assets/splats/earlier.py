"""The splat that a box published before: what it was made of, and whether the next training may start from it.

A model that was brought up to date keeps its frame and its old cameras, so the Gaussians of before are still right
where nothing changed. Photos keep their part: one that was trained on must never judge, and one that judges must never
be trained on, or the figures would flatter whatever learnt from it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geo_assets.errors import SourceError
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.settings import Splats
from geo_assets.splats.cameras import Camera, Scene
from geo_assets.splats.dataset import HELD_OUT, mask_path, read_scene
from geo_assets.splats.engine import Earlier, SplatEngine
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.georeference import read_frame
from geo_assets.splats.ply import read_ply

PHOTOS = "photos.json"
"""Beside a splat: the photos that it was made of, the part that each had, and their cameras."""
UPDATED = ("updated", "unchanged")
"""Routes of ``sparse_models`` on which cameras stay."""
MOST_MOVED_M, MOST_TURNED = 0.01, 1e-3
"""How far a camera that was there before may have moved [m] and turned [rad]: a fraction of a pixel."""
WORSE_DB = 0.5
"""A training from an earlier splat may lose so much on photos that both hold out, or it starts from the points."""
LEAST_SHARED = 0.5
"""Share of the photos that the earlier splat must have been made of."""


@dataclass(frozen=True, eq=False)
class Known:
    """A photo as the earlier splat knew it: whether it was held out, its camera, and a digest of its pixels."""

    held_out: bool
    camera: Camera
    digest: str


def record(scene: Scene, dataset: Path, holdout_every: int) -> str:
    """The content of ``photos.json``."""
    held_out = {view.name for view in scene.held_out(holdout_every)}
    photos = {
        view.name: {
            "split": "holdout" if view.name in held_out else "train",
            "camera": _numbers(view.camera),
            "digest": digest_of(dataset, view.name),
        }
        for view in scene.views
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(known)}" for name, known in photos.items())
    return f'{{"holdout_every": {holdout_every},\n"photos": {{\n{lines}\n}}}}\n'


def digest_of(dataset: Path, name: str) -> str:
    """Digest of a dataset's photo and of its mask."""
    digest = hashlib.sha256((dataset / "images" / name).read_bytes())
    if (mask := mask_path(dataset, name)).exists():
        digest.update(mask.read_bytes())
    return digest.hexdigest()[:16]


def version_of(place: bytes, sky: bytes | None) -> str:
    """What a splat is called: a digest of its PLY files."""
    return hashlib.sha256(place + (sky or b"")).hexdigest()[:16]


def version_in(folder: Path) -> str:
    """The version of the splat in a folder."""
    sky = folder / "sky.ply"
    return version_of((folder / "splat.ply").read_bytes(), sky.read_bytes() if sky.exists() else None)


def earlier_splat(
    lake: Lake, key: str, dataset: Path, frame: LocalFrame, route: str | None, options: Splats, max_splats: int
) -> tuple[Earlier | None, str]:
    """The splat to start from, or None and why not; where there is one, the split of its photos is put into the dataset.

    Args:
        lake: holds the earlier splat.
        key: its folder.
        dataset: of the training to come; gets ``held_out.json``.
        frame: where its origin lies.
        route: how the sparse model was made, as ``sparse_models`` says.
        options: settings of the training.
        max_splats: most Gaussians of the training.
    """
    if not options.warm_start:
        return None, "splats.warm_start is false"
    if not lake.exists(f"{key}/{PHOTOS}"):
        return None, "no splat that says what it was made of was published before"
    if route not in UPDATED:
        return None, "the sparse model was built anew"
    try:
        with lake.local(key) as folder:
            said = json.loads((folder / PHOTOS).read_text())
            known = {str(name): _known(one) for name, one in said["photos"].items()}
            every, was = int(said["holdout_every"]), read_frame(folder / "splat.geo.json")
            place, sky = (read_ply(path) if path.exists() else None for path in _plys(folder))
            version = version_in(folder)
    except (OSError, ValueError, KeyError, TypeError, SourceError) as error:
        return None, f"the earlier one cannot be read ({type(error).__name__}: {error})"
    if place is None or not len(place):
        return None, "the earlier one is empty"
    scene = read_scene(dataset, photos=False)
    digests = {view.name: digest_of(dataset, view.name) for view in scene.views}
    if was != frame:
        return None, "its frame is another"
    if len(place) > max_splats:
        return None, f"it has {len(place):,} Gaussians, and {max_splats:,} are wanted at most"
    if why := _why_not(known, digests, scene, options.holdout_every, every):
        return None, why
    held_out = split(known, sorted(digests), every)
    (dataset / HELD_OUT).write_text(json.dumps(sorted(held_out)))
    same = {name for name, digest in digests.items() if name in known and known[name].digest == digest}
    gone = tuple(one.camera for name, one in sorted(known.items()) if name not in same and not one.held_out)
    new = frozenset(digests) - same
    return Earlier(place, Gaussians.none(place.degree) if sky is None else sky, version, new, gone), ""


def split(known: dict[str, Known], names: list[str], every: int) -> set[str]:
    """Photos to hold out: those that were, and of the others that are new one in so many, by a hash of their image id.

    Each n-th by name, as a first training takes them, would be others as soon as a photo comes or goes.
    """
    return {name for name in names if (known[name].held_out if name in known else _drawn(name, every))}


def _drawn(name: str, every: int) -> bool:
    image_id = name.rsplit(".", 1)[0]
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") % every == 0


def _why_not(known: dict[str, Known], digests: dict[str, str], scene: Scene, wanted: int, every: int) -> str | None:
    """Why the photos forbid to start from the earlier splat; None where they do not."""
    shared = [view for view in scene.views if view.name in known]
    if len(shared) < LEAST_SHARED * len(scene.views):
        return f"it was made of {len(shared):,} of the {len(scene.views):,} photos"
    if {name: one.digest for name, one in known.items()} == digests:
        return "no photo came, went or changed since"
    if every != wanted:
        return f"splats.holdout_every was {every}"
    if not any(known[view.name].held_out for view in shared):
        return "none of the photos that it was judged by is left"
    moved = max(np.linalg.norm(view.camera.centre - known[view.name].camera.centre) for view in shared)
    turned = max(np.abs(view.camera.rotation - known[view.name].camera.rotation).max() for view in shared)
    if moved > MOST_MOVED_M or turned > MOST_TURNED:
        return f"a camera that was there before moved by {moved:.3g} m and turned by {turned:.3g} rad"
    return None


def starts_from_earlier(engine: SplatEngine) -> bool:
    """Whether an engine can take an earlier splat."""
    return bool(getattr(engine, "starts_from_earlier", False))


def _plys(folder: Path) -> tuple[Path, Path]:
    return folder / "splat.ply", folder / "sky.ply"


def _numbers(camera: Camera) -> list[float]:
    lens = [camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height]
    return [*camera.rotation.ravel().tolist(), *camera.translation.tolist(), *lens]


def _known(said: dict[str, Any]) -> Known:
    numbers = [float(value) for value in said["camera"]]
    if len(numbers) != 18 or said["split"] not in ("train", "holdout"):
        raise ValueError(f"{PHOTOS} has a camera of {len(numbers)} numbers, or a split '{said['split']}'")
    rotation, translation = np.array(numbers[:9]).reshape(3, 3), np.array(numbers[9:12])
    fx, fy, cx, cy, width, height = numbers[12:]
    camera = Camera(rotation, translation, fx, fy, cx, cy, int(width), int(height))
    return Known(said["split"] == "holdout", camera, str(said["digest"]))
