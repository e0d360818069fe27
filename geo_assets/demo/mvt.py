"""Mapbox vector tiles 2.1, written by hand: points and lines with properties, as the imagery platform serves them.

Tile coordinates grow to the right and downwards from the tile's north-west corner, 4096 to a side.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

EXTENT = 4096

Value = str | bool | int | float
Part = Sequence[tuple[int, int]]

_POINT, _LINE = 1, 2
_MOVE_TO, _LINE_TO = 1, 2
_VARINT, _FIXED64, _BYTES = 0, 1, 2


@dataclass(frozen=True)
class Feature:
    """A point (one part of one position) or a line (parts of two positions or more), in tile coordinates."""

    parts: Sequence[Part]
    properties: Mapping[str, Value]

    @property
    def is_line(self) -> bool:
        """Whether it is a line; a single position is a point."""
        return any(len(part) > 1 for part in self.parts)


@dataclass(frozen=True)
class Points:
    """Many points at once, which are encoded a hundred times faster than as many features.

    Attributes:
        positions: tile coordinates [n, 2].
        columns: values of each property for each point [n], of one type a column; None where a point lacks it.
    """

    positions: npt.NDArray[np.int64]
    columns: Mapping[str, Sequence[Value | None]]

    def __len__(self) -> int:
        return len(self.positions)


def tile_position(lon: float, lat: float, zoom: int) -> tuple[float, float]:
    """Web Mercator position of a point in tiles of a zoom: the integer part names the tile (x, y)."""
    n = 1 << zoom
    y = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2
    return (lon / 360 + 0.5) * n, y * n


def encode(layers: Mapping[str, Sequence[Feature] | Points]) -> bytes:
    """The bytes of a tile; layers without features are left out, so that an empty tile has an empty body."""
    return b"".join(_field(3, _layer(name, features)) for name, features in layers.items() if len(features))


def _layer(name: str, features: Sequence[Feature] | Points) -> bytes:
    keys: dict[str, int] = {}
    values: dict[bytes, int] = {}
    body = bytearray(_key(15, _VARINT) + _varint(2) + _field(1, name.encode()))
    if isinstance(features, Points):
        body += _points(features, keys, values)
    else:
        for feature in features:
            tags = []
            for key, value in feature.properties.items():
                tags.append(keys.setdefault(key, len(keys)))
                tags.append(values.setdefault(_value(value), len(values)))
            body += _field(2, _feature(feature, tags))
    for key in keys:
        body += _field(3, key.encode())
    for value in values:
        body += _field(4, value)
    return bytes(body + _key(5, _VARINT) + _varint(EXTENT))


def _feature(feature: Feature, tags: Sequence[int]) -> bytes:
    geometry: list[int] = []
    x = y = 0
    for part in feature.parts:
        for k, (px, py) in enumerate(part):
            if k == 0:
                geometry.append(_MOVE_TO | 1 << 3)
            elif k == 1:
                geometry.append(_LINE_TO | (len(part) - 1) << 3)
            geometry += [_zigzag(px - x), _zigzag(py - y)]
            x, y = px, py
    kind = _LINE if feature.is_line else _POINT
    return _field(2, _packed(tags)) + _key(3, _VARINT) + _varint(kind) + _field(4, _packed(geometry))


def _points(points: Points, keys: dict[str, int], values: dict[bytes, int]) -> bytes:
    """The features of all points; their keys and values are added to the layer's tables.

    Lengths and contents of a point are varints one after another: [2, length, [2, length, tags], 3, kind, [4, length,
    geometry]], so that all points are one array of numbers that is encoded at once.
    """
    n = len(points)
    tags = np.full((n, 2 * len(points.columns)), -1, np.int64)  # -1: the point lacks the property
    for column, (key, given) in enumerate(points.columns.items()):
        known: dict[Value | None, int] = {None: -1}
        for value in given:
            if value not in known:
                known[value] = values.setdefault(_value(value), len(values))  # type: ignore[arg-type]
        tags[:, 2 * column + 1] = [known[value] for value in given]
        there = tags[:, 2 * column + 1] >= 0
        if there.any():
            tags[there, 2 * column] = keys.setdefault(key, len(keys))
    xy = np.asarray(points.positions, np.int64)
    geometry = np.column_stack([np.full(n, _MOVE_TO | 1 << 3), xy << 1 ^ xy >> 63])
    tags_bytes, geometry_bytes = _varint_sizes(tags).sum(axis=1), _varint_sizes(geometry).sum(axis=1)

    def same(number: int) -> npt.NDArray[np.int64]:
        return np.full(n, number)

    head = np.column_stack([same(2 << 3 | _BYTES), tags_bytes])
    middle = np.column_stack([same(3 << 3 | _VARINT), same(_POINT), same(4 << 3 | _BYTES), geometry_bytes])
    content = np.column_stack([head, tags, middle, geometry])
    opening = np.column_stack([same(2 << 3 | _BYTES), _varint_sizes(content).sum(axis=1)])
    return _varints(np.column_stack([opening, content]).ravel())


def _varint_sizes(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Bytes of each number as varint; 0 for a negative one, which stands for nothing."""
    steps = np.int64(1) << np.arange(7, 63, 7)
    return np.where(numbers < 0, 0, 1 + np.searchsorted(steps, numbers, side="right"))


def _varints(numbers: npt.NDArray[np.int64]) -> bytes:
    """The numbers as varints, negative ones left out."""
    numbers = numbers[numbers >= 0]
    sizes = _varint_sizes(numbers)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    septets = np.repeat(numbers, sizes) >> 7 * within & 0x7F
    more = within < np.repeat(sizes - 1, sizes)
    return (septets | more << 7).astype(np.uint8).tobytes()


def _value(value: Value) -> bytes:
    if isinstance(value, str):
        return _field(1, value.encode())
    if isinstance(value, bool):
        return _key(7, _VARINT) + _varint(int(value))
    if isinstance(value, int):
        return _key(4, _VARINT) + _varint(value & 0xFFFFFFFFFFFFFFFF)
    return _key(3, _FIXED64) + struct.pack("<d", value)


def _packed(numbers: Sequence[int]) -> bytes:
    return b"".join(_varint(n) for n in numbers)


def _field(number: int, payload: bytes) -> bytes:
    return _key(number, _BYTES) + _varint(len(payload)) + payload


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1
