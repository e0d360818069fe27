"""The demo street: two crossing streets of houses, cars and kiosks, built from a seed and rendered by ray casting.

Two frames: the world is east-north-up metres around the crossing (``place.demo_frame``); the streets run along the
axes of the street frame, which is the world turned by ``STREET_DEG`` about the vertical. Road surface at z = 0.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

STREET_DEG = 40.0
"""Street A runs this far counter-clockwise from east; street B at right angles to it."""

ARM_M = 60.0
"""From the crossing to the house that closes each arm."""

_HALF_STREET_M = 6.0
_HOUSE_DEPTH_M = 10.0
_STRIP_LENGTH_M, _STRIP_WIDTH_M = 2 * ARM_M + 4, 18.0

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A camera without distortion: where it is, how it is turned, and how it projects.

    Attributes:
        kind: perspective (pinhole) or spherical (equirectangular, no focal length).
        width: width [px].
        height: height [px].
        focal_px: focal length [px]; the principal point is the middle of the image.
        centre: position [3] in the world, east-north-up metres.
        cam_from_world: rotation [3, 3] to the camera's axes: x right, y down, z forward.
    """

    kind: Literal["perspective", "spherical"]
    width: int
    height: int
    focal_px: float
    centre: Array = field(repr=False)
    cam_from_world: Array = field(repr=False)

    def project(self, points: npt.ArrayLike) -> tuple[Array, Array]:
        """Pixels [n, 2] (the corner of the image is 0, 0) and depths [n] in metres of world points [n, 3]."""
        local = (np.asarray(points, float) - self.centre) @ self.cam_from_world.T
        depth = local[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = self.focal_px * local[:, :2] / depth[:, None] + np.array([self.width, self.height]) / 2
        return pixels, depth

    def unproject(self, pixels: npt.ArrayLike, depth_m: npt.ArrayLike) -> Array:
        """World points [n, 3] of pixels [n, 2] at depths [n] in metres along the axis."""
        offsets = (np.asarray(pixels, float) - np.array([self.width, self.height]) / 2) / self.focal_px
        local = np.column_stack([offsets, np.ones(len(offsets))]) * np.asarray(depth_m, float)[:, None]
        return local @ self.cam_from_world + self.centre


def world_from_street() -> Array:
    """Rotation [3, 3] from the street frame to the world."""
    angle = np.radians(STREET_DEG)
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def cam_from_world(heading_rad: float, pitch_rad: float, roll_rad: float) -> Array:
    """Rotation of a camera that looks ``heading`` counter-clockwise from east, ``pitch`` upwards, ``roll`` clockwise."""
    forward = np.array(
        [np.cos(heading_rad) * np.cos(pitch_rad), np.sin(heading_rad) * np.cos(pitch_rad), np.sin(pitch_rad)]
    )
    right = np.array([np.sin(heading_rad), -np.cos(heading_rad), 0.0])
    down = np.cross(forward, right)
    c, s = np.cos(roll_rad), np.sin(roll_rad)
    return np.stack([c * right + s * down, c * down - s * right, forward])


@dataclass(frozen=True)
class Scene:
    """Boxes in the street frame, their textures in one flat array, and the layout of that array.

    Attributes:
        boxes: x0, x1, y0, y1, z0, z1 of each box [n, 6] in metres.
        faces: texture of each face [n, 6]; textures 0 and 1 are the ground of the two streets.
        texels: all textures and their halvings, flat [m, 3].
        layout: start in ``texels``, rows and columns of each texture and level [k, levels, 3].
    """

    boxes: npt.NDArray[np.float32]
    faces: npt.NDArray[np.int64]
    texels: npt.NDArray[np.uint8]
    layout: npt.NDArray[np.int64]

    def render(self, camera: Camera, samples: int = 2) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Picture [h, w, 3] in 0..1 and depth [h, w] in metres along the axis (0 for sky; panoramas have none).

        Args:
            camera: where to look from.
            samples: rays a pixel along each direction.
        """
        from geo_assets.demo import raycast
        from geo_assets.demo.textures import TEXEL_M

        turn = world_from_street()
        origin = (camera.centre @ turn).astype(np.float32)
        street_from_cam = np.ascontiguousarray((camera.cam_from_world @ turn).T, np.float32)
        image = np.zeros((camera.height, camera.width, 3), np.float32)
        depth = np.zeros((camera.height, camera.width), np.float32)
        strip = np.array([_STRIP_LENGTH_M / 2, _STRIP_WIDTH_M / 2], np.float32)
        textured = (self.boxes, self.faces, self.texels, self.layout, np.float32(TEXEL_M), strip, raycast.shades())
        if camera.kind == "spherical":
            raycast.equirectangular(origin, street_from_cam, samples, *textured, image)
        else:
            lens = (np.float32(camera.focal_px), np.float32(camera.width / 2), np.float32(camera.height / 2))
            raycast.perspective(origin, street_from_cam, *lens, samples, *textured, image, depth)
        return np.clip(image / 255, 0, 1).astype(np.float32), depth


@dataclass
class _Thing:
    """A box before it has textures: its extent and what covers its sides and top."""

    extent: tuple[float, float, float, float, float, float]
    cover: Literal["house", "column", "car", "cabin", "post"]
    paint: tuple[int, int, int] = (90, 90, 95)


@functools.lru_cache(maxsize=1)
def build_scene(seed: int = 7) -> Scene:
    """The scene of a seed: the same seed gives the same bytes."""
    from geo_assets.demo import textures

    rng = np.random.default_rng(seed)
    things = [*_houses(rng), *_street_furniture(rng)]
    boxes = np.array([t.extent for t in things], np.float64)
    # Furniture and cars throw a shadow at their foot; so do the walls.
    low = boxes[boxes[:, 4] < 0.4][:, :4]
    strip = (_STRIP_LENGTH_M, _STRIP_WIDTH_M)
    pictures = [
        textures.ground(rng, *strip, low),
        # Seen along street B, "along" is y and "left" is -x.
        textures.ground(rng, *strip, np.column_stack([low[:, 2], low[:, 3], -low[:, 1], -low[:, 0]])),
    ]
    faces = np.zeros((len(things), 6), np.int64)
    for i, thing in enumerate(things):
        for face in range(6):
            faces[i, face] = len(pictures)
            pictures.append(_cover(rng, thing, face))
    return Scene(boxes.astype(np.float32), faces, *flattened(pictures))


def flattened(pictures: Sequence[npt.NDArray[np.uint8]]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The pictures and their halvings as ``texels`` and ``layout`` of a :class:`Scene`."""
    from geo_assets.demo.raycast import pyramid

    starts, shapes, flat, at = [], [], [], 0
    for picture in pictures:
        for level in pyramid(picture):
            starts.append(at)
            shapes.append(level.shape[:2])
            flat.append(level.reshape(-1, 3))
            at += len(flat[-1])
    layout = np.column_stack([starts, shapes]).reshape(len(pictures), -1, 3).astype(np.int64)
    return np.concatenate(flat), layout


def _cover(rng: np.random.Generator, thing: _Thing, face: int) -> npt.NDArray[np.uint8]:
    """The texture of one face; faces that no camera can see get one of a single texel's worth of colour."""
    from geo_assets.demo import textures

    x0, x1, y0, y1, z0, z1 = thing.extent
    if face == 4:
        return textures.plain(rng, 0.1, 0.1, (60, 60, 60))
    if face == 5:
        seen = z1 < 2.0
        return textures.plain(rng, (x1 - x0) if seen else 0.1, (y1 - y0) if seen else 0.1, thing.paint)
    width, height = (y1 - y0 if face < 2 else x1 - x0), z1 - z0
    if thing.cover == "house":
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        outward = (-1 if face in (0, 2) else 1) * middle[face // 2]
        edge = abs((x0, x1, y0, y1)[face])
        corner = _HALF_STREET_M + _HOUSE_DEPTH_M
        in_a_row = max(abs(middle[0]), abs(middle[1])) > corner
        hidden = outward > 0 and ((edge == corner and in_a_row) or edge > ARM_M + 2)  # a back wall
        if hidden:
            return textures.plain(rng, 0.1, 0.1, (120, 110, 100))
        return textures.facade(rng, width, height)
    if thing.cover == "column":
        return textures.column(rng, width, height)
    if thing.cover == "post":
        return textures.plain(rng, width, height, thing.paint)
    return textures.car_side(rng, width, height, thing.paint, cabin=thing.cover == "cabin")


def _houses(rng: np.random.Generator) -> list[_Thing]:
    """Houses along both sides of both streets, a corner house in each quadrant, and a pair that closes each arm."""
    houses = []

    def add(x: tuple[float, float], y: tuple[float, float], height: float) -> None:
        houses.append(_Thing((*sorted(x), *sorted(y), 0.0, height), "house"))  # type: ignore[arg-type]

    corner = _HALF_STREET_M + _HOUSE_DEPTH_M
    for sx in (-1, 1):
        for sy in (-1, 1):
            fx, fy = _HALF_STREET_M + rng.uniform(0, 1.2, 2)
            add((sx * fx, sx * corner), (sy * fy, sy * corner), rng.uniform(9, 14))
            for along_x in (True, False):
                at = corner
                while at < ARM_M:
                    end = at + rng.uniform(6.5, 10.5)
                    end = ARM_M if end > ARM_M - 4 else end
                    front = _HALF_STREET_M + rng.uniform(0, 1.3)
                    along, across = (at, end), (front, corner)
                    x, y = (along, across) if along_x else (across, along)
                    add((sx * x[0], sx * x[1]), (sy * y[0], sy * y[1]), rng.uniform(7, 14))
                    at = end + rng.choice([0.0, 0.0, 0.8])
    for sign in (-1, 1):
        for along_x in (True, False):
            split = rng.uniform(-2, 2)
            for across in ((-corner, split), (split, corner)):
                along = (sign * (ARM_M + rng.uniform(0, 0.8)), sign * (ARM_M + 4))
                add(*((along, across) if along_x else (across, along)), rng.uniform(9, 15))
    return houses


def _street_furniture(rng: np.random.Generator) -> list[_Thing]:
    """Parked cars, advertising columns, kiosks and lamp posts along the four arms."""
    from geo_assets.demo.textures import car_paint

    things = []

    def add(
        along: tuple[float, float], across: tuple[float, float], z: tuple[float, float], axis: int, **cover
    ) -> None:
        x, y = (along, across) if axis == 0 else (across, along)
        things.append(_Thing((*sorted(x), *sorted(y), *z), **cover))  # type: ignore[arg-type]

    for axis in (0, 1):
        for arm in (-1, 1):
            for side in (-1, 1):
                at = rng.uniform(14, 20)
                while at < ARM_M - 8:
                    if rng.random() < 0.62:
                        paint = car_paint(rng)
                        length, inner = rng.uniform(3.7, 4.5), 3.0
                        across = (side * inner, side * (inner + 1.65))
                        add((arm * at, arm * (at + length)), across, (0.22, 0.86), axis, cover="car", paint=paint)
                        cabin = (arm * (at + 0.22 * length), arm * (at + 0.82 * length))
                        across = (side * (inner + 0.1), side * (inner + 1.55))
                        add(cabin, across, (0.86, 1.42), axis, cover="cabin", paint=paint)
                    at += rng.uniform(6.5, 10)
                at = rng.uniform(10, 13)
                while at < ARM_M - 5:
                    across = (side * 5.1, side * (5.1 + 0.14))
                    add((arm * at, arm * (at + 0.14)), across, (0.0, 5.2), axis, cover="post", paint=(70, 84, 78))
                    at += rng.uniform(15, 19)
                if rng.random() < 0.75:
                    at, size = rng.uniform(16, 46), rng.uniform(0.7, 1.0)
                    across = (side * 4.95, side * (4.95 + size))
                    add((arm * at, arm * (at + size)), across, (0.0, rng.uniform(2.2, 2.8)), axis, cover="column")
    return things
