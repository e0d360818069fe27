"""The boxes of a city: their splats in the city's frame, each cut to its own cell, and how well two of them meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import Bounds, Grid, box_cell, box_name
from geo_assets.lake import Lake
from geo_assets.splats.cameras import Camera
from geo_assets.splats.gaussians import Gaussians, rotations_of
from geo_assets.splats.georeference import between, read_frame
from geo_assets.splats.ply import cleaned, read_ply
from geo_assets.splats.seam import facade_patches

TALLEST_M, DEEPEST_M = 150.0, 50.0
"""Height of a cell above and below the box's origin; what is outside is sky or fog."""
BORDER_M = 60.0
"""What lies so near the border of two boxes is compared."""
CAMERAS_OF_SEAM = 4
_LENS = Camera(np.eye(3), np.zeros(3), 460.0, 460.0, 320.0, 240.0, 640, 480)


@dataclass(frozen=True)
class Box:
    """A trained box.

    Args:
        name: of the box.
        key: folder of its splat in the lake.
        frame: that the splat was trained in.
        move: row of ``city_alignment`` by which it moves within that frame; None where that is of another model.
    """

    name: str
    key: str
    frame: LocalFrame
    move: dict[str, Any] | None

    def into(self, frame: LocalFrame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
        """Rotation [3, 3], translation [3] and scale from the box's metres to those of another frame."""
        rotation, translation = between(frame, self.frame)
        if self.move is None:
            return rotation, translation, 1.0
        turn = rotations_of(np.array([[self.move["qw"], self.move["qx"], self.move["qy"], self.move["qz"]]]))[0]
        shift = np.array([self.move["east_m"], self.move["north_m"], self.move["up_m"]], float)
        return rotation @ turn, rotation @ shift + translation, float(self.move["scale"])

    def read(self, lake: Lake, name: str, frame: LocalFrame) -> Gaussians:
        """The Gaussians of one of its PLYs in a frame; none where there is no such file."""
        if not lake.exists(f"{self.key}/{name}"):
            return Gaussians.none()
        with lake.local(f"{self.key}/{name}") as path:
            return cleaned(read_ply(path)).gaussians.moved(*self.into(frame))


def trained_boxes(lake: Lake, city: str, grid: Grid, log: Callable[[str], None]) -> Iterator[Box]:
    """The boxes of a city that have a splat; the log hears of those that the city's alignment does not move."""
    moves = {row["box"]: row for row in _main_rows(lake.read_if_any("city_alignment", None, city=city))}
    for box in grid:
        key = lake.key("splats", city=city, box=box)
        trained = lake.read_if_any("splat_ply", ["status"], city=city, box=box)
        if "trained" not in set(trained.status) or not lake.exists(f"{key}/splat.ply"):
            continue
        with lake.local(f"{key}/splat.geo.json") as reference:
            frame = read_frame(reference)
        aligned = _is_current(lake, city, box) and box in moves
        if not aligned:
            log(f"{box}: the alignment of the city is not of the model that this splat was trained on; it is not moved")
        yield Box(box, key, frame, moves[box] if aligned else None)


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


def within_cell(
    gaussians: Gaussians, frame: LocalFrame, bounds: Bounds, *, ground_m: float = 0.0
) -> npt.NDArray[np.bool_]:
    """Which Gaussians lie in a box's cell, bool [N]: each place belongs to one box, and the sky to none.

    Args:
        gaussians: in the frame's metres.
        frame: any local frame.
        bounds: the cell [deg].
        ground_m: height of the box's origin in the frame [m].
    """
    lon, lat, alt = frame.geodetic(gaussians.means)
    up = alt - frame.alt_m - ground_m
    return bounds.contains(lon, lat) & (up < TALLEST_M) & (up > -DEEPEST_M)


# -- seams ------------------------------------------------------------------------------------------------------


def seams(lake: Lake, city: str, boxes: list[Box], grid: Grid, frame: LocalFrame) -> dict[tuple[str, str], float]:
    """For each two boxes with a common side: nine tenths of the edges that both show differ by less than this [m].

    Both are drawn, uncut, by cameras of photos that both were made of; pairs without such photos are left out.
    """
    by_name, found = {box.name: box for box in boxes}, {}
    for box in boxes:
        row, column = box_cell(box.name)
        for other in (by_name.get(box_name(row, column + 1)), by_name.get(box_name(row + 1, column))):
            cameras = _shared_cameras(lake, city, box, other, grid, frame) if other else []
            if other is None or not cameras:
                continue
            place = _border(box, other, grid, frame)
            a, b = (_near(each.read(lake, "splat.ply", frame), place) for each in (box, other))
            apart = [facade_patches(a, b, camera).distances_m for camera in cameras]
            if sum(map(len, apart)):
                found[box.name, other.name] = float(np.quantile(np.concatenate(apart), 0.9))
    return found


def _border(a: Box, b: Box, grid: Grid, frame: LocalFrame) -> npt.NDArray[np.float64]:
    """The ends [2, 3] of the side that two boxes share, in a frame."""
    one, two = grid.bounds(a.name), grid.bounds(b.name)
    west, east = max(one.west, two.west), min(one.east, two.east)
    south, north = max(one.south, two.south), min(one.north, two.north)
    return frame.enu([west, east], [south, north], [frame.alt_m, frame.alt_m])


def _near(gaussians: Gaussians, line: npt.NDArray[np.float64]) -> Gaussians:
    return gaussians[_distances(gaussians.means, line) < BORDER_M]


def _distances(points: npt.NDArray[np.floating], line: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distances on the plane from points [N, 3] to a line from one end to the other [2, 3]."""
    start, along = line[0, :2], line[1, :2] - line[0, :2]
    share = np.clip((points[:, :2] - start) @ along / max(float(along @ along), 1e-12), 0, 1)
    return np.linalg.norm(points[:, :2] - start - share[:, None] * along, axis=1)


def _shared_cameras(lake: Lake, city: str, a: Box, b: Box, grid: Grid, frame: LocalFrame) -> list[Camera]:
    """A few cameras of photos in both boxes' models, those nearest to their border, as the first box has them."""
    here, there = (
        lake.read_if_any("model_cameras", None, city=city, box=box.name).query("component == 0") for box in (a, b)
    )
    both = here.merge(there[["image_id"]], on="image_id").sort_values("image_id")
    if both.empty:
        return []
    turn, shift, scale = a.into(frame)
    centres = scale * both[["east_m", "north_m", "up_m"]].to_numpy(float) @ turn.T + shift
    rotations = rotations_of(both[["qw", "qx", "qy", "qz"]].to_numpy(float)) @ turn.T
    nearest = np.argsort(_distances(centres, _border(a, b, grid, frame)), kind="stable")
    half = nearest[: max(len(nearest) // 2, CAMERAS_OF_SEAM)]
    chosen = half[np.linspace(0, len(half) - 1, min(CAMERAS_OF_SEAM, len(half))).astype(int)]
    lens = (_LENS.fx, _LENS.fy, _LENS.cx, _LENS.cy, _LENS.width, _LENS.height)
    return [Camera(rotations[i], -rotations[i] @ centres[i], *lens) for i in chosen]
