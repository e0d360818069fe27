"""All boxes of a city in one scene: one frame, each box cut to its own cell, in pieces that a browser streams.

Boxes are processed one after the other, and what is kept of each in memory is nothing; the city's far levels are made
of the boxes' far levels. So the memory that a city needs is that of its largest box.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.files import replacing
from geo_assets.geodesy import LocalFrame
from geo_assets.grid import Bounds, Grid
from geo_assets.lake import Lake
from geo_assets.machine import peak_bytes
from geo_assets.splats import sog
from geo_assets.splats.cameras import Camera
from geo_assets.splats.city_boxes import seams, trained_boxes, within_cell
from geo_assets.splats.city_page import MOST_IN_ONE_FILE, city_page
from geo_assets.splats.city_sky import Sky, city_sky, sky_seen
from geo_assets.splats.gaussians import Gaussians, joined
from geo_assets.splats.georeference import splat_reference
from geo_assets.splats.globe import globe_page
from geo_assets.splats.ply import ply_bytes, read_ply, write_ply
from geo_assets.splats.preview import inline_jpeg, overview_camera
from geo_assets.splats.pyramid import Made, Piece, Pyramid, fetched, put_aside
from geo_assets.splats.render import SKY, as_bytes, render
from geo_assets.splats.tiles3d import glb_bytes, tile, write_tileset
from geo_assets.splats.viewer import PAGE_FROM_ENU, viewer_page
from geo_assets.tables import TABLES

MOST_IN_PLY = 5_000_000
"""Gaussians of a city that is written as one PLY too; a larger file is of use to no program."""
GLOBE_DEGREE = 1
SKY_DISTANCE = 4.0
"""The dome of the sky stands so many times the city's radius away."""
CESIUM_PX, WANTED_PX = 16.0, 0.5
"""CesiumJS refines a tile when its error covers 16 pixels. Ours is a mean over much that has not moved at all: when that
is half a pixel, one begins to see it."""


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
    boxes = list(trained_boxes(lake, city, grid, log))
    if not boxes:
        return CitySplat(TABLES["splat_city"].empty(), {"n_boxes": 0, "n_splats": 0})
    frame = LocalFrame(*bounds.centre, float(np.mean([box.frame.alt_m for box in boxes])))
    with tempfile.TemporaryDirectory(prefix="geo_assets_city_") as folder:
        made = _City(Path(folder), city, frame)
        rows = []
        for box in boxes:
            place = box.read(lake, "splat.ply", frame)
            within = within_cell(place, frame, grid.bounds(box.name), ground_m=box.frame.alt_m - frame.alt_m)
            log(f"{box.name}: {within.sum():,} of {len(place):,} Gaussians lie in its cell")
            inside = place[within]
            del place
            n_pieces, n_bytes = made.add(inside, box.read(lake, "sky.ply", frame))
            sizes = {"n_splats": len(inside), "n_pieces": n_pieces, "bytes": n_bytes}
            where = {"lon": box.frame.lon, "lat": box.frame.lat, "alt_m": box.frame.alt_m, "path": box.key}
            rows.append({"box": box.name, "aligned": box.move is not None} | sizes | where)
            del inside
        figures, picture = made.finish(log)
        lake.publish(made.out, lake.key("splats_city", city=city))
    pairs = seams(lake, city, boxes, grid, frame)
    for row in rows:
        row["seam_m"] = max((apart for pair, apart in pairs.items() if row["box"] in pair), default=None)
    not_aligned = [box.name for box in boxes if box.move is None]
    figures = {"n_boxes": len(boxes), "n_aligned": len(boxes) - len(not_aligned)} | figures
    if pairs:
        figures |= {"seam_m": max(pairs.values()), "seams": {f"{a} | {b}": round(m, 3) for (a, b), m in pairs.items()}}
    if not_aligned:
        figures["not_aligned"] = ", ".join(not_aligned)
    own_mb = peak[0] / (1 << 20) if (peak := peak_bytes()) else None
    return CitySplat(TABLES["splat_city"].frame(rows), figures | {"peak_rss_mb": own_mb}, picture)


class _City:
    """The files of a city as they are made, below ``scratch``; those to publish are in :attr:`out`."""

    def __init__(self, scratch: Path, city: str, frame: LocalFrame) -> None:
        self.out, self._aside = scratch / "out", scratch / "aside"
        self._city, self._frame = city, frame
        self._pyramid = Pyramid(self._write)
        self._tops: list[tuple[Piece, Path]] = []
        self._plys: list[Path] = []
        self._skies: list[Sky] = []
        self._n, self._n_pieces, self._streamed, self._tiled = 0, 0, 0, 0
        for folder in (self.out / "lod", self.out / "tiles", self._aside):
            folder.mkdir(parents=True)

    def add(self, gaussians: Gaussians, sky: Gaussians) -> tuple[int, int]:
        """Cut a box and write its pieces; their number, and their bytes as streamed."""
        before = self._n_pieces, self._streamed
        self._skies.append(sky_seen(sky))
        if len(gaussians):
            self._n += len(gaussians)
            self._keep_whole(gaussians)
            top, content = self._pyramid.over(gaussians)
            path = self._aside / f"{len(self._tops)}.npz"
            put_aside(content, path)
            self._tops.append((top, path))
        return self._n_pieces - before[0], self._streamed - before[1]

    def finish(self, log: Callable[[str], None]) -> tuple[dict[str, Any], bytes | None]:
        """Write what is of the whole city: figures and the picture from above."""
        (self.out / "city.geo.json").write_text(json.dumps(splat_reference(self._frame), indent=1))
        if not self._tops:
            return {"n_splats": 0}, None
        root, content = self._above(self._tops)
        camera = overview_camera(content.gaussians)
        sky = city_sky(self._skies, SKY_DISTANCE * float(np.linalg.norm(np.maximum(-root.low, root.high)[:2])))
        self._write_stream(root, sky, camera)
        self._write_globe(root, content.gaussians, camera)
        whole = self._write_ply(log)
        shown = self._small(content.gaussians)
        everything = joined([shown, sky], shown.degree)
        (self.out / "viewer.html").write_text(viewer_page(everything, camera, title=self._city), encoding="utf8")
        picture = inline_jpeg(as_bytes(render(everything, camera, background=SKY)))
        figures = {
            "n_splats": self._n,
            "n_shown": len(shown),
            "n_sky": len(sky),
            "levels": root.level + 1,
            "n_pieces": self._n_pieces,
            "streamed_bytes": self._streamed,
            "tile_bytes": self._tiled,
            "ply_bytes": whole,
        }
        return figures, picture

    # -- pieces ---------------------------------------------------------------------------------------------

    def _write(self, piece: Piece, gaussians: Gaussians) -> None:
        self._n_pieces += 1
        self._streamed += sog.write_sog(self.out / "lod" / piece.name, _for_page(gaussians))
        glb = glb_bytes(gaussians.to_degree(min(gaussians.degree, GLOBE_DEGREE)))
        (self.out / "tiles" / f"{piece.name}.glb").write_bytes(glb)
        self._tiled += len(glb)

    def _above(self, tops: list[tuple[Piece, Path]]) -> Made:
        """The piece above those of some boxes, by halves of the plane, as within a box."""
        if len(tops) == 1:
            return tops[0][0], fetched(tops[0][1])
        centres = np.array([(piece.low + piece.high)[:2] / 2 for piece, _ in tops])
        order = np.argsort(centres[:, int(np.argmax(np.ptp(centres, axis=0)))], kind="stable")
        halves = np.array_split(order, 2)
        return self._pyramid.above([self._above([tops[i] for i in half]) for half in halves])

    # -- files of the whole -----------------------------------------------------------------------------------

    def _write_stream(self, root: Piece, sky: Gaussians, camera: Camera) -> None:
        if len(sky):
            self._streamed += sog.write_sog(self.out / "lod" / "sky", _for_page(sky))
        meta = stream_meta(root, "sky/meta.json" if len(sky) else None)
        (self.out / "lod" / "lod-meta.json").write_text(json.dumps(meta, separators=(",", ":")))
        page = city_page(
            camera,
            title=self._city,
            content="lod/lod-meta.json",
            command=f"geo-assets show {self._city}",
            look_m=_distance(camera),
        )
        (self.out / "index.html").write_text(page, encoding="utf8")

    def _write_globe(self, root: Piece, seen: Gaussians, camera: Camera) -> None:
        write_tileset(self.out / "tileset.json", tiles_of(root), self._frame)
        ground = float(np.quantile(seen.means[:, 2], 0.02))
        page = globe_page("tileset.json", camera, self._frame, title=self._city, ground_m=ground)
        (self.out / "globe.html").write_text(page, encoding="utf8")

    def _keep_whole(self, gaussians: Gaussians) -> None:
        if self._n <= MOST_IN_PLY:
            path = self._aside / f"{len(self._plys)}.ply"
            write_ply(path, gaussians)
            self._plys.append(path)

    def _write_ply(self, log: Callable[[str], None]) -> int | None:
        if self._n > MOST_IN_PLY:
            log(f"No city.ply: {self._n:,} Gaussians are more than one file should hold ({MOST_IN_PLY:,})")
            return None
        join_plys(self._plys, self.out / "city.ply")
        return (self.out / "city.ply").stat().st_size

    def _small(self, coarsest: Gaussians) -> Gaussians:
        """The finest of what fits into one page: everything, or each box's top, or the city's."""
        if self._n <= MOST_IN_ONE_FILE:
            parts = [read_ply(path) for path in self._plys]
        elif sum(sum(top.counts) for top, _ in self._tops) <= MOST_IN_ONE_FILE:
            parts = [fetched(path).gaussians for _, path in self._tops]
        else:
            parts = [coarsest]
        return joined(parts, max(part.degree for part in parts))


# -- forms ------------------------------------------------------------------------------------------------------


def stream_meta(root: Piece, environment: str | None) -> dict[str, Any]:
    """``lod-meta.json`` of a tree whose pieces lie in folders of their names, in the viewer's axes."""
    levels: dict[int, dict[int, tuple[int, int, int]]] = {leaf.number: {} for leaf in root.leaves}
    files = []
    for piece in root.walk():
        starts = np.cumsum([0, *piece.counts])
        for leaf, start, count in zip(piece.leaves, starts, piece.counts, strict=False):
            levels[leaf.number][piece.level] = (len(files), int(start), count)
        files.append(f"{piece.name}/meta.json")
    leaves = []
    for leaf in root.leaves:
        corners = np.stack([leaf.low, leaf.high]) @ PAGE_FROM_ENU.T
        leaves.append(sog.Leaf(corners.min(axis=0).tolist(), corners.max(axis=0).tolist(), levels[leaf.number]))
    return sog.lod_meta(leaves, files, environment=environment)


def tiles_of(piece: Piece) -> dict[str, Any]:
    """The tile of a piece and all below it, whose GLBs lie in the folder ``tiles``."""
    error_m = piece.error_m * CESIUM_PX / WANTED_PX if piece.children else 0.0
    children = [tiles_of(child) for child in piece.children]
    return tile(piece.low, piece.high, error_m, f"tiles/{piece.name}.glb", children)


def _for_page(gaussians: Gaussians) -> Gaussians:
    return gaussians.moved(PAGE_FROM_ENU, np.zeros(3))


def join_plys(paths: list[Path], target: Path) -> None:
    """Write PLYs of :func:`write_ply` as one, a part in memory at a time; harmonics become those of the highest degree."""
    sizes, degrees = zip(*((len(g), g.degree) for g in map(read_ply, paths)), strict=True)
    end = b"end_header\n"
    header = ply_bytes(Gaussians.none(max(degrees))).partition(end)[0]
    with replacing(target) as sink:
        sink.write(header.replace(b"element vertex 0\n", b"element vertex %d\n" % sum(sizes)) + end)
        for path in paths:
            sink.write(ply_bytes(read_ply(path).to_degree(max(degrees))).partition(end)[2])


def _distance(camera: Camera) -> float:
    """How far an overview camera is from what it looks at: it looks down at 45 degrees on the ground near height 0."""
    return max(float(camera.centre[2]) * math.sqrt(2), 8.0)
