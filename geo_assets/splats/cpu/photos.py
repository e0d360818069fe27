"""The photos that training draws from, at full size and, for its first part, at half the size."""

from __future__ import annotations

import dataclasses

import numpy as np

from geo_assets.splats.cameras import Camera, View

LEAST_PX = 160
"""Least long side of a photo that is halved."""


class Photos:
    """Views at two sizes; the small ones are made when they are first drawn, and forgotten once they are not needed."""

    def __init__(self, views: list[View]) -> None:
        self._views = views
        self._small: dict[int, View] = {}

    def __len__(self) -> int:
        return len(self._views)

    def full(self, i: int) -> View:
        """A view as it is."""
        self._small.clear()
        return self._views[i]

    def small(self, i: int) -> View:
        """A view at half the size."""
        if i not in self._small:
            self._small[i] = halved(self._views[i])
        return self._small[i]


def halved(view: View) -> View:
    """The view at half the size, each pixel the mean of four and masked where one of them is; a small one as it is."""
    camera = view.camera
    if max(camera.width, camera.height) < LEAST_PX:
        return view
    height, width = camera.height // 2, camera.width // 2
    fours = view.photo[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    photo = (fours.sum(axis=(1, 3), dtype=np.uint16) + 2) // 4
    mask = view.mask
    if mask is not None:
        mask = mask[: 2 * height, : 2 * width].reshape(height, 2, width, 2).all(axis=(1, 3))
    lens = camera.fx / 2, camera.fy / 2, camera.cx / 2, camera.cy / 2
    small = Camera(camera.rotation, camera.translation, *lens, width, height)
    return dataclasses.replace(view, camera=small, photo=photo.astype(np.uint8), mask=mask)
