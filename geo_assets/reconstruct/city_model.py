"""All boxes of a city as one COLMAP model: moved by the city's alignment, merged by name, adjusted at the borders."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import ReconstructionError
from geo_assets.geodesy import LocalFrame
from geo_assets.grid import METRES_PER_DEGREE, Bounds, Grid
from geo_assets.lake import Lake
from geo_assets.reconstruct.alignment import box_of, is_current, placed_parts, similarities_of
from geo_assets.reconstruct.cameras import image_name
from geo_assets.reconstruct.frames import Similarity, between_frames
from geo_assets.reconstruct.joint import Part
from geo_assets.reconstruct.models import GEO_REFERENCE, geo_reference
from geo_assets.reconstruct.stage import run_step
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

SEAM_MARGINS = 2.0
"""Cameras within so many margins of another box's cell are adjusted; the others stay as they are."""


@dataclass(frozen=True)
class CityModel:
    """The row of ``city_model`` (none where no box has a model) and figures."""

    rows: pd.DataFrame
    figures: dict[str, Any]


def model_of_city(
    lake: Lake,
    city: str,
    bounds: Bounds,
    grid: Grid,
    options: Reconstruct,
    log: Callable[[str], None] | None = None,
) -> CityModel:
    """Merge the placed models of all boxes and publish them under ``files/city_model`` with ``geo.json``.

    An image has the pose of the box that it lies in. The frame is that of the city's centre, at the mean height of
    the boxes.

    Args:
        lake: holds ``sparse_models`` of the boxes and ``city_alignment``.
        city: name of the city.
        bounds: bounds of the city [deg].
        grid: its boxes.
        options: settings of the room.
        log: gets lines of progress.

    Raises:
        ReconstructionError: the alignment is missing or older than a box's models, or COLMAP failed.
    """
    parts = placed_parts(lake, city, grid)
    if not parts:
        return CityModel(TABLES["city_model"].empty(), {"n_boxes": 0, "n_images": 0})
    similarities = _alignment(lake, city, parts)
    frame = LocalFrame(*bounds.centre, float(np.mean([part.frame.alt_m for part in parts])))
    moves = [between_frames(frame, part.frame).after(similarities[part.name]) for part in parts]
    key = lake.key("city_model", city=city)
    with tempfile.TemporaryDirectory(prefix="geo_assets_city_model_") as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        published = scratch / "published"
        folders = [stack.enter_context(lake.local(path)) for path in _paths(lake, city, parts)]
        said = run_step(
            "join_models",
            {
                "models": [_given(at, move) for at, move in zip(folders, moves, strict=True)],
                "owner": _owners(lake, city, parts),
                "variable": _near_borders(parts, similarities, grid, SEAM_MARGINS * options.margin_m),
                "out": str(published),
            },
            scratch,
            log=log,
        )
        (published / GEO_REFERENCE).write_text(json.dumps(geo_reference(frame), indent=1))
        lake.publish(published, key)
    row = {
        "n_boxes": len({box_of(part) for part in parts}),
        **{name: said[name] for name in ("n_images", "n_points", "reprojection_px", "track_length")},
        "n_tracks_joined": said["figures"]["n_tracks_joined"],
        "gps_median_m": _gps_median_m(said["cameras"], parts, frame),
        "origin_lon": frame.lon,
        "origin_lat": frame.lat,
        "origin_alt_m": frame.alt_m,
        "path": key,
    }
    figures = {name: value for name, value in row.items() if not name.startswith("origin")}
    figures |= said["figures"] | {f"seam_{name}": value for name, value in said["adjusted"].items()}
    figures |= _distances(said["cameras"], parts, moves)
    return CityModel(TABLES["city_model"].frame([row]), figures)


def _alignment(lake: Lake, city: str, parts: Sequence[Part]) -> dict[str, Similarity]:
    """The similarity of each part, all of the models that are there now."""
    rows = lake.read_if_any("city_alignment", None, city=city)
    similarities = similarities_of(rows)
    for part in parts:
        box = box_of(part)
        if part.name not in similarities or not is_current(lake, city, box):
            raise ReconstructionError(
                f"The alignment of {city} is older than the models of box {box}. Materialize city_alignment of {city} first."
            )
    return similarities


def _paths(lake: Lake, city: str, parts: Sequence[Part]) -> list[str]:
    """Folder of each part's COLMAP model in the lake."""
    paths: dict[str, str] = {}
    for box in dict.fromkeys(box_of(part) for part in parts):
        models = lake.read("sparse_models", ["component", "path"], city=city, box=box)
        paths |= {f"{box}/{component}": path for component, path in zip(models.component, models.path, strict=True)}
    return [paths[part.name] for part in parts]


def _given(folder: Path, move: Similarity) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "scale": move.scale,
        "rotation": move.rotation.tolist(),
        "translation": move.translation.tolist(),
    }


def _owners(lake: Lake, city: str, parts: Sequence[Part]) -> dict[str, int]:
    """By image name the part of the box that the image lies in, where one has it."""
    owners: dict[str, int] = {}
    homes: dict[str, pd.Series] = {}
    for number, part in enumerate(parts):
        box = box_of(part)
        if box not in homes:
            cameras = lake.read("model_cameras", ["image_id", "home_box"], city=city, box=box)
            homes[box] = cameras.set_index("image_id").home_box
        home = homes[box].reindex(part.image_ids).to_numpy() == box
        for image_id, own in zip(part.image_ids, home, strict=True):
            if own:
                owners.setdefault(image_name(image_id), number)
    return owners


def _near_borders(parts: Sequence[Part], similarities: dict[str, Similarity], grid: Grid, reach_m: float) -> list[str]:
    """Names of the images within ``reach_m`` of the cell of a box that takes part and that they do not stand in."""
    boxes = {box_of(part) for part in parts}
    near: set[str] = set()
    for part in parts:
        lon, lat, _ = part.frame.geodetic(similarities[part.name](part.centres))
        own = box_of(part)
        for box in {*grid.neighbours(own), own} & boxes:
            cell = grid.bounds(box)
            east = np.maximum(np.maximum(cell.west - lon, lon - cell.east), 0) * np.cos(np.radians(lat))
            north = np.maximum(np.maximum(cell.south - lat, lat - cell.north), 0)
            far = np.hypot(east, north) * METRES_PER_DEGREE
            inside = cell.contains(lon, lat)
            chosen = (far <= reach_m) & ~inside
            near.update(image_name(i) for i, c in zip(part.image_ids, chosen, strict=True) if c)
    return sorted(near)


def _gps_median_m(cameras: Sequence[dict[str, Any]], parts: Sequence[Part], frame: LocalFrame) -> float | None:
    """Median horizontal distance of cameras to their positions [m]."""
    priors: dict[str, np.ndarray] = {}
    for part in parts:
        known = part.has_prior
        places = between_frames(frame, part.frame)(np.where(known[:, None], part.priors, 0.0))
        priors |= {image_name(part.image_ids[k]): places[k] for k in np.flatnonzero(known)}
    offsets = np.array([np.subtract(c["centre"], priors[c["name"]]) for c in cameras if c["name"] in priors])
    return float(np.median(np.hypot(offsets[:, 0], offsets[:, 1]))) if len(offsets) else None


def _distances(
    cameras: Sequence[dict[str, Any]], parts: Sequence[Part], moves: Sequence[Similarity]
) -> dict[str, float]:
    """How far the cameras of the whole stand from where the aligned boxes have them [m]."""
    found = {camera["name"]: camera["centre"] for camera in cameras}
    away = [
        np.linalg.norm(np.array([found[image_name(i)] for i in part.image_ids]) - move(part.centres), axis=1)
        for part, move in zip(parts, moves, strict=True)
    ]
    all_away = np.concatenate(away)
    return {
        "median_from_boxes_m": round(float(np.median(all_away)), 4),
        "p95_from_boxes_m": round(float(np.percentile(all_away, 95)), 4),
    }
