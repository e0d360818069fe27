"""A box brought up to date at the cost of what changed: its published models are the start, not the photos.

What was published says of which images it was made. Where few of them are gone, new or changed, these are taken
out or registered and all other cameras stay where they are; where many are, or where the result is not as good as
a box should be, the box is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import ReconstructionError
from geo_assets.lake import BoxPartition, Lake
from geo_assets.reconstruct.cameras import image_name
from geo_assets.reconstruct.features import DATABASE, local_images
from geo_assets.reconstruct.models import (
    GEO_REFERENCE,
    Box,
    Models,
    camera_rows,
    figures_of,
    geo_reference,
    mappable,
    model_rows,
    prior_records,
)
from geo_assets.reconstruct.neighbours import HELD_TO, settled_neighbours
from geo_assets.reconstruct.quality import MAX_BORDER_M, MAX_REPROJECTION_PX
from geo_assets.reconstruct.stage import StepAnswer, run_step
from geo_assets.settings import Reconstruct

MANIFEST = "manifest.json"
"""Beside published models: of which images they were made, and by which rules."""

POINTS = "points.npy"
"""Beside published models: the points of the picture [n, 6], so that an unchanged box need not open its model."""

MIN_REGISTERED_SHARE = 0.8
"""Of the new images that a rebuild could register, so many must be in the updated models."""

MAX_MOVED_M = 1e-9

Log = Callable[[str], None]

_RULES = 1  # counted up when mapping changes, so that models of earlier code are built anew
_OF_NO_MATTER = {"threads", "block_timeout_s", "block_memory_mb", "rebuild_share", "device"}


@dataclass(frozen=True)
class Change:
    """How the images of a box differ from those that its models were made of.

    Attributes:
        new: ids that the models do not know.
        gone: ids that are no longer there.
        changed: ids whose features, number or camera are others now; they count as gone and new.
        n_before: images before.
    """

    new: tuple[str, ...]
    gone: tuple[str, ...]
    changed: tuple[str, ...]
    n_before: int

    @property
    def share(self) -> float:
        """Images that differ, by the images before."""
        return (len(self.new) + len(self.gone) + len(self.changed)) / max(self.n_before, 1)

    @property
    def to_register(self) -> set[str]:
        """Ids to register: the new and the changed."""
        return {*self.new, *self.changed}

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.new or self.gone or self.changed)


@dataclass(frozen=True)
class Published:
    """What a box published before: its manifest, the rows of its tables, and the neighbours it was held to."""

    manifest: dict[str, Any]
    models: pd.DataFrame
    cameras: pd.DataFrame
    blocks: pd.DataFrame
    held_to: list[str] = field(default_factory=list)

    @property
    def with_model(self) -> pd.DataFrame:
        """Rows of the components that have a model, the largest first."""
        return pd.DataFrame(self.models[self.models.path.notna()]).sort_values("component")


def manifest_of(
    images: pd.DataFrame, verified: pd.DataFrame, origin: Sequence[float], options: Reconstruct
) -> dict[str, Any]:
    """What to keep beside a box's models so that the next run can tell what changed.

    Args:
        images: rows of ``gps_db``.
        verified: the verified pairs that mapping was given.
        origin: longitude, latitude [deg] and height [m] of the box's frame.
        options: settings of the room.
    """
    return {
        "rules": rules_of(options),
        "origin": [float(v) for v in origin],
        "images": _identities(images),
        "pairs": _pairs_digest(verified),
    }


def rules_of(options: Reconstruct) -> str:
    """Digest of all but the images that decides a model: settings, version of COLMAP, version of the rules."""
    import pycolmap

    kept = {name: value for name, value in options.model_dump(mode="json").items() if name not in _OF_NO_MATTER}
    said = json.dumps([_RULES, pycolmap.__version__, kept], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _identities(images: pd.DataFrame) -> dict[str, str]:
    """What must be the same of an image for its pose and its points to hold."""
    columns = ["image_id", "feature_key", "colmap_image_id", "frame_id", "camera_id", "camera_model"]
    rows = pd.DataFrame(images[columns]).sort_values("image_id").itertuples(index=False)
    return {str(image_id): " ".join(str(value) for value in rest) for image_id, *rest in rows}


def _pairs_digest(verified: pd.DataFrame) -> str:
    columns = ["image_id_a", "image_id_b", "n_inliers", "geometry"]
    rows = pd.DataFrame(verified[columns]).sort_values(["image_id_a", "image_id_b"])
    return hashlib.sha256(json.dumps(rows.astype(str).to_numpy().tolist()).encode()).hexdigest()[:16]


def plan(before: dict[str, str], now: dict[str, str]) -> Change:
    """What differs between two sets of images, given as identities by image id."""
    both = before.keys() & now.keys()
    return Change(
        tuple(sorted(now.keys() - both)),
        tuple(sorted(before.keys() - both)),
        tuple(sorted(i for i in both if before[i] != now[i])),
        len(before),
    )


def published(lake: Lake, where: BoxPartition) -> Published | None:
    """What the box published before; None where there is nothing whole."""
    key = lake.key("models", MANIFEST, **where)
    tables = ("sparse_models", "model_cameras", "model_blocks")
    if not lake.exists(key) or not all(lake.has(table, **where) for table in tables[:2]):
        return None
    try:
        manifest = json.loads(lake.get_bytes(key))
    except ValueError:
        return None
    models, cameras, blocks = (lake.read_if_any(table, None, **where) for table in tables)
    held_to = lake.note("sparse_models", **where).get(HELD_TO, [])
    return Published(manifest, models, cameras, blocks, held_to)


def why_rebuild(before: Published, now: dict[str, Any], change: Change, options: Reconstruct) -> str | None:
    """Why a box cannot start from what it published, before anything is tried; None where it can."""
    if "placed" not in set(before.models.status):
        return "no model was placed before"
    if before.manifest.get("rules") != now["rules"]:
        return "settings or version of COLMAP are others now"
    if before.manifest.get("origin") != now["origin"]:
        return "the box's frame is another now"
    if change.share > options.rebuild_share:
        return f"{change.share:.0%} of the images changed; more than {options.rebuild_share:.0%} is built anew"
    if not change and before.manifest.get("pairs") != now["pairs"]:
        return "the verified pairs are others now"
    return None


def brought_up_to_date(lake: Lake, here: Box, options: Reconstruct, log: Log) -> tuple[Models | None, str]:
    """The models of a box made of those that it published before; None where it has to be built anew.

    A box of which nothing changed keeps its models as they are.

    Returns:
        The models, and why: what kept them from being updated, or what was done.

    Raises:
        ReconstructionError: COLMAP failed.
    """
    before = published(lake, here.where)
    if before is None:
        return None, "nothing was published before"
    now = manifest_of(here.images, here.verified, here.note["origin"], options)
    change = plan(before.manifest.get("images", {}), now["images"])
    why = why_rebuild(before, now, change, options)
    if why is not None:
        return None, why
    if not change:
        return _unchanged(lake, here, before), "no image changed"
    to_register, why = reach(here, options.min_images, change, before)
    if why is not None:
        return None, why
    log(f"updating: {len(change.to_register):,} images to register, {len(change.gone):,} gone")
    return _updated(lake, here, options, log, before, change, to_register, now)


def describe(published_folder: Path, manifest: dict[str, Any], points: Any) -> None:
    """Write what the next run must know beside the models: the manifest and the picture's points [n, 6]."""
    (published_folder / MANIFEST).write_text(json.dumps(manifest, indent=0, sort_keys=True))
    np.save(published_folder / POINTS, np.array(points, np.float32).reshape(-1, 6))


def reach(here: Box, min_images: int, change: Change, before: Published) -> tuple[set[str], str | None]:
    """The new images that a rebuild could register, and why only a rebuild can (None where an update may)."""
    new = change.to_register
    groups = mappable(here.images, here.verified, min_images)
    found = {i for group in groups for i in group if i in new}
    alone = [group for group in groups if set(group) <= new]
    if alone:
        return found, f"{len(alone[0]):,} new images are tied to each other but to no model"
    verified = here.verified
    without = pd.DataFrame(verified[~verified.image_id_a.isin(new) & ~verified.image_id_b.isin(new)])
    old_images = pd.DataFrame(here.images[~here.images.image_id.isin(new)])
    old_group = {i: n for n, group in enumerate(mappable(old_images, without, min_images)) for i in group}
    in_model = set(before.cameras.image_id)
    for group in groups:
        joined = {old_group[i] for i in group if i in old_group and i in in_model}
        if len(joined) > 1:
            return found, f"new images tie {len(joined)} models together"
    return found, None


def _unchanged(lake: Lake, here: Box, before: Published) -> Models:
    models = before.models.assign(route="unchanged", cpu_seconds=0.0)
    figures = figures_of(here, models) | {"route": "unchanged"}
    return Models(
        models, before.cameras, here.note | {HELD_TO: before.held_to}, figures, _points(lake, here.where), before.blocks
    )


def _points(lake: Lake, where: BoxPartition) -> np.ndarray:
    key = lake.key("models", POINTS, **where)
    if not lake.exists(key):
        return np.zeros((0, 6))
    return np.load(io.BytesIO(lake.get_bytes(key))).astype(float)


def _updated(
    lake: Lake,
    here: Box,
    options: Reconstruct,
    log: Log,
    before: Published,
    change: Change,
    to_register: set[str],
    manifest: dict[str, Any],
) -> tuple[Models | None, str]:
    key = lake.key("models", **here.where)
    kept = before.with_model
    with contextlib.ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="geo_assets_update_")))
        matches = opened.enter_context(lake.local(lake.key("matches", **here.where)))
        folder = opened.enter_context(lake.local(key))
        new = pd.DataFrame(here.images[here.images.image_id.isin(change.to_register)])
        local_images(lake, zip(new.image_id, new.path, strict=True), scratch / "images")
        out = scratch / "published"
        out.mkdir()
        verified = here.verified
        arguments = {
            "database": str(matches / DATABASE),
            "models": [_known(row, folder) for row in kept.to_dict("records")],
            "images": prior_records(here.images),
            "pairs": [
                (image_name(a), image_name(b), int(n), geometry)
                for a, b, n, geometry in verified[["image_id_a", "image_id_b", "n_inliers", "geometry"]].itertuples(
                    index=False
                )
            ],
            "new": sorted(map(image_name, change.to_register)),
            "origin": here.note["origin"],
            "neighbours": settled_neighbours(
                lake, **here.where, image_ids=set(here.images.image_id), frame=here.frame, as_published=True
            ),
            "images_folder": str(scratch / "images"),
            "out": str(out),
            "seed": options.seed,
        }
        try:
            said = run_step("update_models", arguments, scratch, log=log)
        except ReconstructionError as error:
            # A model that cannot be carried on can be made again; what else is wrong, the rebuild will say.
            return None, str(error).splitlines()[0]
        why = refused(said, kept, {image_name(i) for i in to_register}, options.min_images)
        if why is not None:
            return None, why
        (out / GEO_REFERENCE).write_text(json.dumps(geo_reference(here.frame), indent=1))
        describe(out, manifest, said["points"])
        lake.publish(out, key)
    return _as_models(here, before, change, said, key), "updated"


def _known(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder / str(row["path"]).rsplit("/", 1)[-1]),
        "placed": row["status"] == "placed",
        "part_of": int(row["component"]),
        "n_blocks": int(row["n_blocks"]),
        "mapper": row["mapper"],
    }


def refused(said: dict[str, Any], before: pd.DataFrame, to_register: set[str], min_images: int) -> str | None:
    """Why updated models are not good enough to stand; None where they are.

    Args:
        said: answer of the step ``update_models``.
        before: rows of ``sparse_models`` that it began with.
        to_register: names of the new images that a rebuild could register.
        min_images: a model of fewer images is not kept.
    """
    n_registered = len(to_register.intersection(said["registered"]))
    if n_registered < MIN_REGISTERED_SHARE * len(to_register):
        return f"{n_registered:,} of {len(to_register):,} new images could be registered"
    if not said["moved_m"] <= MAX_MOVED_M:
        return f"a camera that should stay moved by {said['moved_m']:g} m"
    was = before.set_index("component")
    for row in said["models"]:
        old = was.loc[row["part_of"]]
        if len(row["image_ids"]) < min_images:
            return f"{len(row['image_ids'])} images are left of a model"
        if row["reprojection_px"] > max(MAX_REPROJECTION_PX, float(old["reprojection_px"])):
            return f"points lie {row['reprojection_px']:.2f} px from where they were seen"
        if old["status"] == "placed" and row["status"] != "placed":
            return f"the model lost its place: {row['reason']}"
        border = row.get("border_m")
        held = pd.isna(old["border_m"]) or old["border_m"] <= MAX_BORDER_M
        if held and border is not None and border > MAX_BORDER_M:
            return f"cameras shared with a neighbour stand {border:.2f} m apart"
    return None


def _as_models(here: Box, before: Published, change: Change, said: StepAnswer, key: str) -> Models:
    n_all = sum(len(row["image_ids"]) for row in said["models"])
    for row in said["models"]:
        cpu_s = said.cpu_seconds * len(row["image_ids"]) / max(n_all, 1)
        row |= {"cpu_seconds": round(cpu_s, 3), "peak_mb": round(said.peak_mb, 1)}
    models = model_rows(here, said["models"], key).assign(route="updated")
    without = before.models[before.models.path.isna()]
    if len(without):
        numbers = range(len(models), len(models) + len(without))
        models = pd.concat([models, without.assign(component=list(numbers), cpu_seconds=0.0)], ignore_index=True)
    figures = figures_of(here, models) | {
        "route": "updated",
        "n_new": len(change.new),
        "n_gone": len(change.gone),
        "n_changed": len(change.changed),
        "n_new_registered": len(said["registered"]),
        "changed_share": round(change.share, 4),
        "moved_m": said["moved_m"],
        "cpu_seconds": round(said.cpu_seconds, 1),
    }
    cameras = camera_rows(said["cameras"], here.images, here.frame)
    points = np.array(said["points"], float).reshape(-1, 6)
    return Models(models, cameras, here.note | {HELD_TO: before.held_to}, figures, points, before.blocks)
