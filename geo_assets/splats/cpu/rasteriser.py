"""A picture of Gaussians and the gradient of a loss in them, with buffers that are made once."""

from __future__ import annotations

import numpy as np

from geo_assets.splats.cameras import Camera
from geo_assets.splats.cpu.blending import (
    SLOT_FLOATS,
    Picture,
    Tiles,
    begin_entries,
    blend,
    blend_backward,
    count_entries,
    fill_entries,
)
from geo_assets.splats.cpu.compiled import threads_in_use
from geo_assets.splats.cpu.projection import (
    BLUE,
    ELLIPSE_FLOATS,
    GREEN,
    RED,
    TILE_PX,
    Pinhole,
    project,
    project_backward,
)
from geo_assets.splats.gaussians import Floats


class Rasteriser:
    """Renders rows of Gaussians; :meth:`backward` belongs to the latest :meth:`forward`.

    The arrays that both return are buffers: the next call overwrites them.

    Args:
        differentiable: false for pictures only, which need less memory.

    Attributes:
        order: the Gaussians that the latest picture shows, from near to far [V].
        n_entries: how many tiles they touch, each counted by itself: what a picture's cost goes with.
    """

    def __init__(self, *, differentiable: bool = True) -> None:
        self.differentiable = differentiable
        self._table = np.empty((0, ELLIPSE_FLOATS), np.float32)
        self._depths = np.empty(0, np.float32)
        self._pictures: dict[tuple[int, int], Picture] = {}
        self._entries = (np.empty(0, np.int32), np.empty((0, 2), np.uint8), np.empty(0, np.int32))
        self._slot_sums = np.empty((0, SLOT_FLOATS), np.float32)
        self.gradients = np.empty((0, 0), np.float32)
        self.pull = np.empty(0, np.float32)
        self.order = np.empty(0, np.int64)
        self.n_entries = 0

    def forward(self, rows: Floats, degree: int, camera: Camera, background: Floats) -> Floats:
        """Render.

        Args:
            rows: Gaussians [N, 11 + 3 K].
            degree: highest degree of harmonics to use.
            camera: the camera.
            background: colour behind everything [3].

        Returns:
            Image [H, W, 3], not clipped above 1.
        """
        self._project(rows, degree, camera)
        return self._blend(rows, degree, camera, np.asarray(background, np.float32)).colours

    def depths(self, rows: Floats, camera: Camera) -> tuple[Floats, Floats]:
        """Sums over each pixel's Gaussians of weight times depth, and of weight (alpha): two arrays [H, W]."""
        self._project(rows, 0, camera)
        self._table[:, RED], self._table[:, GREEN], self._table[:, BLUE] = self._depths, 1, 0
        image = self._blend(rows, 0, camera, np.zeros(3, np.float32)).colours
        return image[..., 0].copy(), image[..., 1].copy()

    def backward(self, image_gradient: Floats) -> tuple[Floats, Floats]:
        """Gradient in the rows of the visible Gaussians (:attr:`order`), and the pull on their centres.

        Args:
            image_gradient: gradient of the loss in the image [H, W, 3].
        """
        rows, degree, camera, lens, background, tiles, hands, picture = self._latest
        if len(self._slot_sums) < len(tiles.members):
            self._slot_sums = np.empty((len(tiles.members), SLOT_FLOATS), np.float32)
        if self.gradients.shape != rows.shape:
            self.gradients, self.pull = np.zeros(rows.shape, np.float32), np.zeros(len(rows), np.float32)
        size = camera.width, camera.height
        blend_backward(hands, tiles, self._table, *size, background, picture, image_gradient, self._slot_sums)
        project_backward(
            threads_in_use(),
            self.order,
            tiles,
            self._slot_sums,
            rows,
            degree,
            lens,
            self._table,
            self.gradients,
            self.pull,
        )
        return self.gradients, self.pull

    def _project(self, rows: Floats, degree: int, camera: Camera) -> None:
        if len(self._depths) != len(rows):
            self._table = np.empty((len(rows), ELLIPSE_FLOATS), np.float32)
            self._depths = np.empty(len(rows), np.float32)
        project(rows, degree, Pinhole.of(camera), self._table, self._depths)
        self.order = _from_near_to_far(self._depths)

    def _blend(self, rows: Floats, degree: int, camera: Camera, background: Floats) -> Picture:
        tiles = self._tiles(camera)
        hands = _dealt(np.diff(tiles.starts), threads_in_use())
        picture = self._picture(camera)
        blend(hands, tiles, self._table, camera.width, camera.height, background, *picture)
        self._latest = rows, degree, camera, Pinhole.of(camera), background, tiles, hands, picture
        return picture

    def _tiles(self, camera: Camera) -> Tiles:
        size, n_tiles, n_visible = (camera.width, camera.height), _n_tiles(camera), len(self.order)
        counts = np.empty((threads_in_use(), n_tiles), np.int64)
        n_entries = np.empty(n_visible, np.int32)
        count_entries(self.order, self._table, *size, counts, n_entries)
        starts, slot_starts = np.empty(n_tiles + 1, np.int64), np.empty(n_visible + 1, np.int64)
        begin_entries(counts, n_entries, starts, slot_starts)
        self.n_entries = int(starts[-1])
        if len(self._entries[0]) < self.n_entries:
            room = int(1.3 * self.n_entries) + 1
            slots = np.empty(room if self.differentiable else 0, np.int32)
            self._entries = np.empty(room, np.int32), np.empty((room, 2), np.uint8), slots
        members, spans, slots = self._entries
        fill_entries(self.order, self._table, *size, counts, members, spans, slot_starts, slots)
        return Tiles(starts, members, spans, slot_starts, slots)

    def _picture(self, camera: Camera) -> Picture:
        size = camera.height, camera.width
        if size not in self._pictures:
            self._pictures[size] = Picture(
                np.empty((*size, 3), np.float32),
                np.empty(size, np.float32),
                np.empty(size, np.int32),
                np.empty(_n_tiles(camera), np.int64),
            )
        return self._pictures[size]


def _n_tiles(camera: Camera) -> int:
    return -(-camera.width // TILE_PX) * -(-camera.height // TILE_PX)


def _from_near_to_far(depths: Floats) -> np.ndarray:
    """Rows with a depth above 0, the nearest first and of equals the first row.

    Floats above zero sort like their bits, so that depth and row make one number and a plain sort serves.
    """
    visible = np.flatnonzero(depths)
    keys = depths[visible].view(np.uint32).astype(np.uint64) << np.uint64(32) | visible.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _dealt(work: np.ndarray, hands: int) -> np.ndarray:
    """Tiles dealt to so many hands, the fullest first, so that each has about the same work; -1 fills up."""
    order = np.argsort(-work, kind="stable")
    dealt = np.full(-(-len(order) // hands) * hands, -1, np.int64)
    dealt[: len(order)] = order
    return np.ascontiguousarray(dealt.reshape(-1, hands).T)
