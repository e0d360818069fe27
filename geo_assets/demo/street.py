"""An endless street for the grown demo world: blocks of houses drawn one by one, each from a seed of its own.

Frame of a block: metres, x along the street from the middle of the block, y to the left, z up, road surface at z = 0.
A block looks the same whichever blocks are drawn beside it. What is seen from a block is drawn with the block before
and the block behind, so everything within a block's length is there; what is further away is sky.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geo_assets.demo.scene import Camera, _cover, _Thing, flattened

BLOCK_M = 120.0
_HALF_M, _FRONT_M, _BACK_M, _NICHE_M = BLOCK_M / 2, 6.0, 16.0, 9.0
_STRIP_WIDTH_M = 18.0

Array = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Street:
    """Boxes and flat textures as :class:`geo_assets.demo.scene.Scene` has them, and the ground's half length [m]."""

    boxes: npt.NDArray[np.float32]
    faces: npt.NDArray[np.int64]
    texels: Bytes
    layout: npt.NDArray[np.int64]
    half_length_m: float

    def render(self, camera: Camera, samples: int = 2) -> npt.NDArray[np.float32]:
        """Picture [h, w, 3] in 0..1 of a perspective camera whose place and turn are given in the block's frame."""
        from geo_assets.demo import raycast
        from geo_assets.demo.textures import TEXEL_M

        image = np.zeros((camera.height, camera.width, 3), np.float32)
        depth = np.zeros((camera.height, camera.width), np.float32)
        raycast.perspective(
            camera.centre.astype(np.float32), np.ascontiguousarray(camera.cam_from_world.T, np.float32),
            np.float32(camera.focal_px), np.float32(camera.width / 2), np.float32(camera.height / 2), samples,
            self.boxes, self.faces, self.texels, self.layout, np.float32(TEXEL_M),
            np.array([self.half_length_m, _STRIP_WIDTH_M / 2], np.float32), raycast.shades(), image, depth,
        )  # fmt: skip
        return np.clip(image / 255, 0, 1).astype(np.float32)


def street(seed: int, block: int) -> Street:
    """What is seen from a block: itself and the blocks at both of its ends. The same seed gives the same bytes."""
    parts = [_block(seed, number) for number in (block - 1, block, block + 1)]
    shift = np.array([[1, 1, 0, 0, 0, 0]]) * BLOCK_M
    boxes = np.concatenate([extents + (k - 1) * shift for k, (extents, _, _) in enumerate(parts)])
    ground = np.concatenate([ground for _, ground, _ in parts], axis=1)
    # The ray caster looks for the ground beside the strip in texture 1: here it is seen through slits only.
    pictures = [ground, np.full((1, 1, 3), 90, np.uint8), *(cover for _, _, covers in parts for cover in covers)]
    faces = 2 + np.arange(6 * len(boxes)).reshape(-1, 6)
    return Street(boxes.astype(np.float32), faces, *flattened(pictures), 1.5 * BLOCK_M)


@functools.lru_cache(maxsize=4)
def _block(seed: int, number: int) -> tuple[Array, Bytes, list[Bytes]]:
    """Extents of the things of a block [n, 6], its ground, and the textures of their faces [6 n]."""
    from geo_assets.demo import textures

    rng = np.random.default_rng([seed, number + 1])
    things = [*_houses(rng), *_furniture(rng)]
    extents = np.array([thing.extent for thing in things], np.float64)
    ground = textures.ground(rng, BLOCK_M, _STRIP_WIDTH_M, extents[extents[:, 4] < 0.4][:, :4])
    return extents, ground, [_cover(rng, thing, face) for thing in things for face in range(6)]


def _houses(rng: np.random.Generator) -> list[_Thing]:
    """Rows along both sides; in the middle each steps back, for a niche that a house of its own closes."""
    found = []
    for side in (-1, 1):

        def add(along: tuple[float, float], front_m: float, back_m: float, height_m: float, side: int = side) -> None:
            across = sorted((side * front_m, side * back_m))
            found.append(_Thing((*sorted(along), *across, 0.0, height_m), "house"))  # type: ignore[arg-type]

        add((-_FRONT_M, _FRONT_M), _NICHE_M + rng.uniform(0, 0.5), _BACK_M + 3, rng.uniform(9, 14))
        for direction in (-1, 1):
            at = _FRONT_M
            while at < _HALF_M:
                end = at + rng.uniform(6.5, 10.5)
                end = _HALF_M if end > _HALF_M - 4 else end
                add((direction * at, direction * end), _FRONT_M + rng.uniform(0, 1.3), _BACK_M, rng.uniform(7, 14))
                at = end + (rng.choice([0.0, 0.0, 0.8]) if end < _HALF_M else 0.0)
    return found


def _furniture(rng: np.random.Generator) -> list[_Thing]:
    """Parked cars, lamp posts and advertising columns along both kerbs."""
    from geo_assets.demo.textures import car_paint

    found = []
    for side in (-1, 1):

        def add(
            along: tuple[float, float], across: tuple[float, float], z: tuple[float, float], side: int = side, **cover
        ) -> None:
            y = sorted((side * across[0], side * across[1]))
            found.append(_Thing((*along, *y, *z), **cover))  # type: ignore[arg-type]

        at = -_HALF_M + rng.uniform(1, 5)
        while at < _HALF_M - 5:
            if abs(at + 2) > 9 and rng.random() < 0.62:  # zebra crossings stay free
                paint, length = car_paint(rng), rng.uniform(3.7, 4.5)
                add((at, at + length), (3.0, 4.65), (0.22, 0.86), cover="car", paint=paint)
                add((at + 0.22 * length, at + 0.82 * length), (3.1, 4.55), (0.86, 1.42), cover="cabin", paint=paint)
            at += rng.uniform(6.5, 10)
        at = -_HALF_M + rng.uniform(3, 8)
        while at < _HALF_M - 2:
            add((at, at + 0.14), (5.1, 5.24), (0.0, 5.2), cover="post", paint=(70, 84, 78))
            at += rng.uniform(15, 19)
        for half in (-1, 1):
            if rng.random() < 0.75:
                at, size = half * rng.uniform(16, 46), rng.uniform(0.7, 1.0)
                add((at, at + size), (4.95, 4.95 + size), (0.0, rng.uniform(2.2, 2.8)), cover="column")
    return found
