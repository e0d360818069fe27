"""All boxes of a city in one scene: one frame, each box cut to its own cell."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import Bounds, Grid
from geo_assets.lake import Lake
from geo_assets.splats.cameras import Camera
from geo_assets.splats.gaussians import Gaussians, joined, rotations_of
from geo_assets.splats.georeference import between, read_frame, splat_reference
from geo_assets.splats.ply import read_ply, write_ply
from geo_assets.splats.preview import inline_jpeg
from geo_assets.splats.render import SKY, as_bytes, render
from geo_assets.splats.viewer import MOST_SPLATS, viewer_page
from geo_assets.tables import TABLES

DEGREE = 1
TALLEST_M, DEEPEST_M = 150.0, 50.0
"""Height of a cell above and below the box's origin; what is outside is sky or fog."""


@dataclass(frozen=True)
class CitySplat:
    """Rows of ``splat_city``, figures, and a small JPEG of the city from above (None where it has no splat)."""

    boxes: pd.DataFrame
    figures: dict[str, Any]
    picture: bytes | None = None


def splat_of_city(lake: Lake, city: str, bounds: Bounds, grid: Grid, log: Callable[[str], None]) -> CitySplat:
    """Bring the splats of all boxes into the frame of the city's centre and publish them as one.

    Where the city's alignment is of the models that the splats were trained on, each box moves by it first.

    Args:
        lake: the lake.
        city: name of the city.
        bounds: bounds of the city [deg]; the origin is their centre, at the mean height of the boxes.
        grid: the city's boxes.
        log: a line each box.
    """
    found = []
    moves = {row["box"]: row for row in _main_rows(lake.read_if_any("city_alignment", None, city=city))}
    for box in grid:
        key = lake.key("splats", city=city, box=box)
        trained = lake.read_if_any("splat_ply", ["status"], city=city, box=box)
        if "trained" not in set(trained.status) or not lake.exists(f"{key}/splat.ply"):
            continue
        with lake.local(key) as folder:
            frame, gaussians = read_frame(folder / "splat.geo.json"), read_ply(folder / "splat.ply")
        aligned = _is_current(lake, city, box) and box in moves
        if aligned:
            gaussians = _aligned(gaussians, moves[box])
        else:
            log(f"{box}: the alignment of the city is not of the model that this splat was trained on; it is not moved")
        found.append((box, key, frame, gaussians, aligned))
    if not found:
        return CitySplat(TABLES["splat_city"].empty(), {"n_boxes": 0, "n_splats": 0})
    frame = LocalFrame(*bounds.centre, float(np.mean([f.alt_m for _, _, f, _, _ in found])))
    parts, rows = [], []
    for box, key, source, gaussians, aligned in found:
        inside = gaussians[within_cell(gaussians, source, grid.bounds(box))]
        parts.append(inside.moved(*between(frame, source)))
        log(f"{box}: {len(inside):,} of {len(gaussians):,} Gaussians lie in its cell")
        place = {"lon": source.lon, "lat": source.lat, "alt_m": source.alt_m}
        rows.append({"box": box, "n_splats": len(inside), "aligned": aligned, **place, "path": key})
    whole = joined(parts, DEGREE)
    camera = overview_camera(whole)
    with tempfile.TemporaryDirectory(prefix="geo_assets_city_") as folder:
        out = Path(folder)
        write_ply(out / "city.ply", whole)
        (out / "city.geo.json").write_text(json.dumps(splat_reference(frame), indent=1))
        shown = whole.most_opaque(MOST_SPLATS)
        (out / "viewer.html").write_text(viewer_page(shown, camera, title=city), encoding="utf8")
        lake.publish(out, lake.key("splats_city", city=city))
        size = (out / "city.ply").stat().st_size
    picture = inline_jpeg(as_bytes(render(whole, camera, background=SKY)))
    figures = {"n_boxes": len(found), "n_splats": len(whole), "ply_bytes": size, "n_shown": len(shown)}
    return CitySplat(pd.DataFrame(rows), figures, picture)


def _main_rows(alignment: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of ``city_alignment`` of each box's largest placed component: the one that its splat is made of."""
    main = alignment.sort_values("component").drop_duplicates("box")
    return [{str(key): value for key, value in row.items()} for row in main.to_dict("records")]


def _is_current(lake: Lake, city: str, box: str) -> bool:
    """Whether both the city's alignment and the box's splat are of the sparse models that are there now."""
    if not (lake.has("city_alignment", city=city) and lake.has("sparse_models", city=city, box=box)):
        return False
    aligned, trained = lake.written_at("city_alignment", city=city), lake.written_at("splat_ply", city=city, box=box)
    return lake.written_at("sparse_models", city=city, box=box) <= min(aligned, trained)


def _aligned(gaussians: Gaussians, row: dict[str, Any]) -> Gaussians:
    """A box's Gaussians where the joint fit of the city has them, still in the box's frame."""
    rotation = rotations_of(np.array([[row["qw"], row["qx"], row["qy"], row["qz"]]]))[0]
    translation = np.array([row["east_m"], row["north_m"], row["up_m"]], float)
    return gaussians.moved(rotation, translation, float(row["scale"]))


def within_cell(gaussians: Gaussians, frame: LocalFrame, bounds: Bounds) -> np.ndarray:
    """Which Gaussians lie in a box's cell, bool [N]: each place belongs to one box, and the sky to none."""
    lon, lat, _ = frame.geodetic(gaussians.means)
    up = gaussians.means[:, 2]
    return bounds.contains(lon, lat) & (up < TALLEST_M) & (up > -DEEPEST_M)


def overview_camera(gaussians: Gaussians) -> Camera:
    """A camera south of the middle of the splat that looks down on it at 45 degrees."""
    if not len(gaussians):
        return Camera.looking((0, -30, 30), (0, 0, 0), like=_lens())
    low, high = np.quantile(gaussians.means, [0.05, 0.95], axis=0)
    middle, reach = (low + high) / 2, max(float((high - low)[:2].max()), 5.0)
    return Camera.looking(middle + np.array([0, -0.8, 0.8]) * reach, middle, like=_lens())


def _lens() -> Camera:
    return Camera(np.eye(3), np.zeros(3), 560.0, 560.0, 400.0, 300.0, 800, 600)
