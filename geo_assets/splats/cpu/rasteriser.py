"""A picture of Gaussians and the gradient of a loss in them, with buffers that are made once."""

from __future__ import annotations

import numpy as np

from geo_assets.splats.cameras import Camera
from geo_assets.splats.cpu.blending import Picture, Tiles, blend, blend_backward, sort_into_tiles
from geo_assets.splats.cpu.projection import TILE_PX, Ellipses, Pinhole, project, project_backward
from geo_assets.splats.gaussians import Floats


class Rasteriser:
    """Renders rows of Gaussians; :meth:`backward` belongs to the latest :meth:`forward`.

    The arrays that both return are buffers: the next call overwrites them.
    """

    def __init__(self) -> None:
        self._ellipses = Ellipses.room_for(0)
        self._pictures: dict[tuple[int, int], Picture] = {}
        self._entries = (np.empty(0, np.int32), np.empty(0, np.int32))
        self._slot_gradients = np.empty((0, 9), np.float32)
        self.gradients = np.empty((0, 0), np.float32)
        self.pull = np.empty(0, np.float32)
        self.order = np.empty(0, np.int64)

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
        if len(self._ellipses.depths) != len(rows):
            self._ellipses = Ellipses.room_for(len(rows))
        lens, ellipses = Pinhole.of(camera), self._ellipses
        project(rows, degree, lens, *ellipses)
        visible = np.flatnonzero(ellipses.n_tiles)
        self.order = visible[np.argsort(ellipses.depths[visible], kind="stable")]
        columns, n_tiles = _tiling(camera)
        n_entries = int(ellipses.n_tiles.sum(dtype=np.int64))
        if len(self._entries[0]) < n_entries:
            room = int(1.3 * n_entries) + 1
            self._entries = np.empty(room, np.int32), np.empty(room, np.int32)
        members, slots = self._entries
        tiles = Tiles(np.empty(n_tiles + 1, np.int64), members, np.empty(len(self.order) + 1, np.int64), slots)
        sort_into_tiles(self.order, ellipses.tiles, columns, *tiles)
        picture = self._picture(camera, n_tiles)
        background = np.asarray(background, np.float32)
        blend(tiles, ellipses, columns, camera.width, camera.height, background, *picture)
        self._latest = rows, degree, camera, lens, background, tiles, n_entries
        return picture.colours

    def backward(self, image_gradient: Floats) -> tuple[Floats, Floats]:
        """Gradient in the rows of the visible Gaussians (:attr:`order`), and the pull on their centres.

        Args:
            image_gradient: gradient of the loss in the image [H, W, 3].
        """
        rows, degree, camera, lens, background, tiles, n_entries = self._latest
        columns, n_tiles = _tiling(camera)
        if len(self._slot_gradients) < n_entries:
            self._slot_gradients = np.empty((len(self._entries[0]), 9), np.float32)
        if self.gradients.shape != rows.shape:
            self.gradients, self.pull = np.zeros(rows.shape, np.float32), np.zeros(len(rows), np.float32)
        picture = self._picture(camera, n_tiles)
        size = camera.width, camera.height
        blend_backward(tiles, self._ellipses, columns, *size, background, picture, image_gradient, self._slot_gradients)
        project_backward(
            self.order,
            tiles.slot_starts,
            tiles.slots,
            self._slot_gradients,
            rows,
            degree,
            lens,
            self._ellipses,
            self.gradients,
            self.pull,
        )
        return self.gradients, self.pull

    def _picture(self, camera: Camera, n_tiles: int) -> Picture:
        size = camera.height, camera.width
        if size not in self._pictures:
            self._pictures[size] = Picture(
                np.empty((*size, 3), np.float32),
                np.empty(size, np.float32),
                np.empty(size, np.int32),
                np.empty(n_tiles, np.int64),
            )
        return self._pictures[size]


def _tiling(camera: Camera) -> tuple[int, int]:
    """Tiles in a row, and in all."""
    columns, rows = -(-camera.width // TILE_PX), -(-camera.height // TILE_PX)
    return columns, columns * rows
