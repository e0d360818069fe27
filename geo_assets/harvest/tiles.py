"""Coverage tiles: z14 slippy-map arithmetic, and Mapbox vector tiles read column by column from the wire format.

A tile of a city centre holds up to two million images, so features are never turned into objects one by one: all
of them are decoded as one array of varints, and every property becomes a column.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.errors import SourceError
from geo_assets.grid import Bounds

ZOOM = 14
"""The only zoom whose tiles have the ``image`` layer."""

POSITIONS = ["image_id", "sequence_id", "lon", "lat", "captured_at_ms", "compass_deg", "is_pano"]
"""Columns of :func:`images_of`."""

_MAX_LAT = 85.0511287798
_BLOCK = 1 << 18
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, order=True)
class Tile:
    """A slippy-map tile; y grows downwards (southwards)."""

    z: int
    x: int
    y: int

    def __str__(self) -> str:
        return f"{self.z}/{self.x}/{self.y}"

    @property
    def bounds(self) -> Bounds:
        """Bounds of the tile in degrees."""
        west, north = lon_lat(self, 0.0, 0.0)
        east, south = lon_lat(self, 1.0, 1.0)
        return Bounds(float(west), float(south), float(east), float(north))


def tile_at(lon: float, lat: float, z: int = ZOOM) -> Tile:
    """The tile that holds a point; latitudes beyond Web Mercator fall into its last row."""
    n = 1 << z
    phi = math.radians(min(max(lat, -_MAX_LAT), _MAX_LAT))
    x = math.floor((lon + 180) / 360 * n)
    y = math.floor((1 - math.asinh(math.tan(phi)) / math.pi) / 2 * n)
    return Tile(z, min(max(x, 0), n - 1), min(max(y, 0), n - 1))


def tile_numbers(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> tuple[pd.Series, pd.Series]:
    """Column and row of the z14 tile of each point [n]; missing for NaN."""
    n = 1 << ZOOM
    phi = np.radians(np.clip(lat, -_MAX_LAT, _MAX_LAT))
    x = np.clip(np.floor((lon + 180) / 360 * n), 0, n - 1)
    y = np.clip(np.floor((1 - np.arcsinh(np.tan(phi)) / np.pi) / 2 * n), 0, n - 1)
    return pd.Series(x).astype("Int64"), pd.Series(y).astype("Int64")


def lon_lat(tile: Tile, u: npt.ArrayLike, v: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Degrees of places in a tile, given as fractions of its side: u eastwards, v southwards."""
    n = 1 << tile.z
    lon = (tile.x + np.asarray(u, float)) / n * 360 - 180
    lat = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * (tile.y + np.asarray(v, float)) / n))))
    return lon, lat


def tiles_over(bounds: Bounds, z: int = ZOOM) -> list[Tile]:
    """The tiles that a rectangle touches, row by row from the north-west."""
    first, last = tile_at(bounds.west, bounds.north, z), tile_at(bounds.east, bounds.south, z)
    return [Tile(z, x, y) for y in range(first.y, last.y + 1) for x in range(first.x, last.x + 1)]


@dataclass(frozen=True)
class Layer:
    """One layer of a vector tile.

    Attributes:
        name: name of the layer.
        extent: tile units along a side.
        first: first vertex of each feature in tile units, x eastwards and y southwards [n, 2].
        columns: the value of each property for each feature [n], None where a feature lacks it.
    """

    name: str
    extent: int
    first: npt.NDArray[np.int64]
    columns: dict[str, npt.NDArray[np.object_]]

    def __len__(self) -> int:
        return len(self.first)

    def column(self, name: str) -> npt.NDArray[np.object_]:
        """Values of a property; all None where no feature has it."""
        return self.columns.get(name, np.full(len(self), None, object))


def decode(data: bytes) -> dict[str, Layer]:
    """The layers of a vector tile (Mapbox Vector Tile 2.1); an empty body is a tile without layers.

    Raises:
        SourceError: the bytes are not a vector tile.
    """
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        layers = [_layer(data[a:b]) for number, wire, a, b in _fields(data) if number == 3 and wire == _LENGTH]
    except (IndexError, ValueError, OverflowError, EOFError, OSError, struct.error) as error:
        raise SourceError(
            f"A tile of {len(data)} bytes is not a vector tile ({error}). Delete it from the cache and fetch it again."
        ) from None
    return {layer.name: layer for layer in layers}


def whole(data: bytes) -> bytes:
    """The bytes of a tile as they are, after a look at whether every layer is there to its end.

    Raises:
        ValueError: they were cut off, or are no tile.
    """
    if data[:2] != b"\x1f\x8b":
        try:
            for _ in _fields(data):
                pass
        except IndexError:
            raise ValueError("it ends within a number") from None
    return data


def images_of(data: bytes, tile: Tile) -> pd.DataFrame:
    """The images that a tile names, one row a feature of layer ``image``, columns :data:`POSITIONS`.

    Positions are those of the tile's grid (0.5 m at 38 degrees north). Render buffers repeat images across tiles,
    so rows are not unique between tiles. Ids are strings; a blank id or sequence is None.

    Raises:
        SourceError: the bytes are not a vector tile.
    """
    layer = decode(data).get("image")
    if layer is None or not len(layer):
        layer = Layer("image", 4096, np.zeros((0, 2), np.int64), {})
    lon, lat = lon_lat(tile, layer.first[:, 0] / layer.extent, layer.first[:, 1] / layer.extent)
    return pd.DataFrame(
        {
            "image_id": _texts(layer.column("id")),
            "sequence_id": _texts(layer.column("sequence_id")),
            "lon": lon,
            "lat": lat,
            "captured_at_ms": pd.array(_numbers(layer.column("captured_at"), int), "Int64"),
            "compass_deg": np.array(_numbers(layer.column("compass_angle"), float), float),
            "is_pano": pd.array([v if isinstance(v, bool) else None for v in layer.column("is_pano")], "boolean"),
        }
    )


def _texts(values: npt.NDArray[np.object_]) -> pd.Series:
    return pd.Series([str(v) if v not in (None, "") else None for v in values], dtype=object)


def _numbers(values: npt.NDArray[np.object_], kind: type) -> list[Any]:
    # Recorders of fixtures blank numbers to "", and a bool is an int in Python.
    return [kind(v) if isinstance(v, int | float) and not isinstance(v, bool) else None for v in values]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, first and last byte of the content of each field of a message.

    For a varint the third value is the number itself and the fourth is 0.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value, 0
            continue
        size = 8 if wire == _FIXED64 else 4
        if wire == _LENGTH:
            size, at = _varint(data, at)
        elif wire not in (_FIXED64, _FIXED32):
            raise ValueError(f"wire type {wire}")
        if at + size > end:
            raise ValueError("it ends within a field")
        yield number, wire, at, at + size
        at += size


def _layer(data: bytes) -> Layer:
    name, extent, keys = "", 4096, []
    raw = np.frombuffer(data, np.uint8)
    number, starts, ends = _spans(raw)
    for n, a, b in zip(*(v[(number != 2) & (number != 4)].tolist() for v in (number, starts, ends)), strict=True):
        if n == 1:
            name = data[a:b].decode()
        elif n == 3:
            keys.append(data[a:b].decode())
        elif n == 5:
            extent = _varint(data, a)[0]
    spans = np.stack([starts, ends], axis=1)
    first, tags = _features(raw, spans[number == 2])
    values = _values(data, raw, spans[number == 4])
    n_features = int((number == 2).sum())
    columns = {}
    for index, key in enumerate(keys):
        chosen = np.full(n_features, len(values) - 1, np.int64)
        rows = tags[:, 1] == index
        chosen[tags[rows, 0]] = tags[rows, 2]
        columns[key] = values[chosen]
    return Layer(name, max(extent, 1), first, columns)


def _spans(raw: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Field number, first byte and end of the content of each field of a layer.

    Where a field would end is worked out for every byte as if one began there; then the chain is followed.
    """
    n, at = len(raw), 0
    parts: list[npt.NDArray[np.int64]] = []
    while at < n:
        block = raw[at : at + _BLOCK + 6]
        if len(block) < _BLOCK + 6:
            block = np.append(block, np.zeros(6, np.uint8))
        tag, content, following = _hops(block)
        hops, chain, here, most = memoryview(following.data), [], 0, min(_BLOCK, n - at)
        while here < most:
            chain.append(here)
            here = hops[here]
            if here < 0:
                raise ValueError("a layer ends within a field")
        if at + here > n:
            raise ValueError("a layer ends within a field")
        begun = np.array(chain, np.int64)
        parts.append(np.stack([tag[begun] >> 3, content[begun] + at, following[begun] + at]))
        at += here
    number, starts, ends = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), np.int64)
    return number, starts, ends


def _hops(
    block: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tag, first byte and end of the content of the field that would begin at each byte but the last six.

    The end is -1 where no field can begin.
    """
    n = len(block) - 6
    tag = block[:n]
    wire = tag & 7
    size, n_digits, going = np.zeros(n, np.int64), np.ones(n, np.int64), np.ones(n, bool)
    for i in range(5):  # lengths, and the numbers of a layer, have up to five bytes
        digit = block[1 + i : 1 + i + n]
        size += np.where(going, (digit & 0x7F).astype(np.int64) << (7 * i), 0)
        going = going & (digit >= 0x80)
        n_digits += going
    content = np.arange(1, n + 1) + np.where(wire == _LENGTH, n_digits, 0)
    fixed = np.where(wire == _FIXED64, 8, 4)
    length = np.where(wire == _LENGTH, size, np.where(wire == _VARINT, n_digits, fixed))
    numbered = (wire == _LENGTH) | (wire == _VARINT)
    bad = (going & numbered) | (tag >= 0x80) | ~(numbered | (wire == _FIXED64) | (wire == _FIXED32))
    return tag, content, np.where(bad, -1, content + length)


def _values(data: bytes, raw: npt.NDArray[np.uint8], spans: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    """The values of a layer [n + 1]; the last entry stands for "the feature lacks it"."""
    values = np.full(len(spans) + 1, None, object)
    if not len(spans):
        return values
    tag = np.where(spans[:, 1] > spans[:, 0], raw[np.minimum(spans[:, 0], len(raw) - 1)], 0)
    plain = np.flatnonzero((tag == 0x20) | (tag == 0x28) | (tag == 0x38))
    begins, ends = spans[plain, 0] + 1, spans[plain, 1]
    lengths = ends - begins
    stream = raw[np.repeat(begins - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())]
    last = stream < 0x80
    single = len(plain) > 0 and (lengths > 0).all() and last.sum() == len(plain) and last[np.cumsum(lengths) - 1].all()
    if single:  # one number a value, and nothing behind it
        numbers = _varints(stream, last)
        for kind, convert in ((0x20, np.int64), (0x28, np.uint64), (0x38, np.bool_)):
            chosen = tag[plain] == kind
            values[plain[chosen]] = numbers[chosen].astype(convert).tolist()
    reals = np.flatnonzero((tag == 0x19) & (spans[:, 1] - spans[:, 0] == 9))
    values[reals] = np.frombuffer(raw[spans[reals, 0, None] + 1 + np.arange(8)].tobytes(), "<f8").tolist()
    done = np.zeros(len(spans), bool)
    done[reals] = True
    done[plain] = single
    for i in np.flatnonzero(~done).tolist():
        values[i] = _value(data[spans[i, 0] : spans[i, 1]])
    return values


def _value(data: bytes) -> str | float | int | bool | None:
    for number, _, a, b in _fields(data):
        if number == 1:
            return data[a:b].decode(errors="replace")
        if number == 2:
            return struct.unpack("<f", data[a:b])[0]
        if number == 3:
            return struct.unpack("<d", data[a:b])[0]
        if number == 4:
            return a - (1 << 64) if a >> 63 else a
        if number == 5:
            return a
        if number == 6:
            return (a >> 1) ^ -(a & 1)
        if number == 7:
            return bool(a)
    return None


def _features(
    data: npt.NDArray[np.uint8], spans: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First vertices [n, 2] and the properties of all features as rows (feature, key, value) [m, 3].

    A feature holds nothing but varints and packed varints, so the bytes of all features are one stream of varints:
    it is decoded at once, and then all features are walked in step, field by field.
    """
    n = len(spans)
    lengths = spans[:, 1] - spans[:, 0]
    stream = data[np.repeat(spans[:, 0] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())]
    last = stream < 0x80
    if len(stream) and not last[np.cumsum(lengths[lengths > 0]) - 1].all():
        raise ValueError("a feature ends within a number")
    numbers = _varints(stream, last)
    index_at = np.concatenate([[0], np.cumsum(last)])  # varints that end before each byte
    byte_at = np.concatenate([[0], np.flatnonzero(last) + 1])  # first byte of each varint
    ends = np.cumsum(lengths)
    at, stop = index_at[ends - lengths], index_at[ends]

    first = np.zeros((n, 2), np.int64)
    tag_from, tag_to = np.zeros(n, np.int64), np.zeros(n, np.int64)
    walking = np.flatnonzero(at < stop)
    while len(walking):
        here = at[walking]
        if (here + 1 >= stop[walking]).any():
            raise ValueError("a feature ends within a field")
        number, wire = numbers[here] >> 3, numbers[here] & 7
        packed = wire == _LENGTH
        if not (packed | (wire == _VARINT)).all():
            raise ValueError("a feature with a field that is no varint")
        content_end = byte_at[here + 2] + np.where(packed, numbers[here + 1], 0).astype(np.int64)
        if (content_end > ends[walking]).any() or (content_end < byte_at[here + 2]).any():
            raise ValueError("a feature ends within a field")
        following = index_at[content_end]
        tags = packed & (number == 2)
        tag_from[walking[tags]], tag_to[walking[tags]] = here[tags] + 2, following[tags]
        shapes = packed & (number == 4) & (following - here >= 5)  # MoveTo and its first x and y
        for axis in (0, 1):
            zigzag = numbers[here[shapes] + 3 + axis].astype(np.int64)
            first[walking[shapes], axis] = (zigzag >> 1) ^ -(zigzag & 1)
        at[walking] = following
        walking = walking[following < stop[walking]]

    pairs = (tag_to - tag_from) // 2
    feature = np.repeat(np.arange(n), pairs)
    within = np.arange(pairs.sum()) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    key_at = np.repeat(tag_from, pairs) + 2 * within
    return first, np.stack([feature, numbers[key_at].astype(np.int64), numbers[key_at + 1].astype(np.int64)], axis=1)


def _varints(stream: npt.NDArray[np.uint8], last: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """All varints of a stream of bytes; ``last`` marks the byte that ends each."""
    ends = np.flatnonzero(last)
    if not len(ends):
        return np.zeros(0, np.uint64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 9:
        raise ValueError("a varint of more than ten bytes")
    place = (np.arange(ends[-1] + 1) - np.repeat(starts, ends - starts + 1)).astype(np.uint64)
    parts = (stream[: ends[-1] + 1].astype(np.uint64) & np.uint64(0x7F)) << (np.uint64(7) * place)
    return np.add.reduceat(parts, starts)
