"""Mapbox vector tiles 2.1, written by hand: points and lines with properties, as the imagery platform serves them.

Tile coordinates grow to the right and downwards from the tile's north-west corner, 4096 to a side.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def tile_position(lon: float, lat: float, zoom: int) -> tuple[float, float]:
    """Web Mercator position of a point in tiles of a zoom: the integer part names the tile (x, y)."""
    n = 1 << zoom
    y = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2
    return (lon / 360 + 0.5) * n, y * n


def encode(layers: Mapping[str, Sequence[Feature]]) -> bytes:
    """The bytes of a tile; layers without features are left out, so that an empty tile has an empty body."""
    return b"".join(_field(3, _layer(name, features)) for name, features in layers.items() if features)


def _layer(name: str, features: Sequence[Feature]) -> bytes:
    keys: dict[str, int] = {}
    values: dict[bytes, int] = {}
    body = bytearray(_key(15, _VARINT) + _varint(2) + _field(1, name.encode()))
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
