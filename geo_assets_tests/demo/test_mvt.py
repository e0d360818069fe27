"""The encoder against a decoder that is written here from the specification, and shares no code with it."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from geo_assets.demo import mvt


def decode(data: bytes) -> dict[str, dict[str, Any]]:
    """Layers by name: version, extent and features (kind, parts, properties)."""
    layers = {}
    for number, body in _messages(data):
        assert number == 3
        fields = list(_messages(body))
        keys = [v.decode() for n, v in fields if n == 3]
        values = [_value(v) for n, v in fields if n == 4]
        features = [_feature(v, keys, values) for n, v in fields if n == 2]
        only = {n: v for n, v in fields if n in (1, 5, 15)}
        layers[only[1].decode()] = {"version": only[15], "extent": only[5], "features": features}
    return layers


def _messages(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 1:
            value, at = data[at : at + 8], at + 8
        else:
            assert wire == 2
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at


def _value(body: bytes) -> Any:
    [(number, raw)] = _messages(body)
    if number == 1:
        return raw.decode()
    if number == 3:
        return struct.unpack("<d", raw)[0]
    if number == 4:
        return raw - (1 << 64) if raw >> 63 else raw
    assert number == 7
    return bool(raw)


def _feature(body: bytes, keys: list[str], values: list[Any]) -> dict[str, Any]:
    fields = dict(_messages(body))
    tags, commands = _numbers(fields.get(2, b"")), _numbers(fields[4])
    parts: list[list[tuple[int, int]]] = []
    x = y = at = 0
    while at < len(commands):
        command, count, at = commands[at] & 7, commands[at] >> 3, at + 1
        assert command in (1, 2)
        for _ in range(count):
            x, y = x + _signed(commands[at]), y + _signed(commands[at + 1])
            at += 2
            if command == 1:
                parts.append([])
            parts[-1].append((x, y))
    properties = {keys[k]: values[v] for k, v in zip(tags[::2], tags[1::2], strict=True)}
    return {"kind": fields[3], "parts": parts, "properties": properties}


def _numbers(data: bytes) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _signed(value: int) -> int:
    return (value >> 1) ^ -(value & 1)


@pytest.mark.parametrize(
    "parts", [[[(0, 0)]], [[(-64, 4159)]], [[(3, 4), (5, 1), (-7, 9)]], [[(1, 1), (2, 2)], [(4000, 0), (0, 4000)]]]
)
def test_geometry_survives_a_round_trip(parts: list[list[tuple[int, int]]]) -> None:
    tile = decode(mvt.encode({"image": [mvt.Feature(parts, {})]}))
    [feature] = tile["image"]["features"]
    assert feature["parts"] == parts
    assert feature["kind"] == (2 if len(parts[0]) > 1 else 1)
    assert tile["image"]["version"] == 2
    assert tile["image"]["extent"] == 4096


def test_properties_keep_their_types() -> None:
    properties = {"id": 9007199254740993, "name": "Öst", "pano": True, "angle": 12.25, "below": -3}
    [feature] = decode(mvt.encode({"a": [mvt.Feature([[(1, 2)]], properties)]}))["a"]["features"]
    assert feature["properties"] == properties
    assert [type(v) for v in feature["properties"].values()] == [int, str, bool, float, int]


def test_true_is_not_one() -> None:
    """A value table that takes 1 and True for the same value would give a flag the type of a number."""
    [a, b] = decode(mvt.encode({"a": [mvt.Feature([[(0, 0)]], {"v": v}) for v in (1, True)]}))["a"]["features"]
    assert a["properties"]["v"] is not True
    assert b["properties"]["v"] is True


def test_keys_and_values_are_shared_between_features() -> None:
    one = mvt.encode({"a": [mvt.Feature([[(0, 0)]], {"sequence_id": "x" * 22})]})
    many = mvt.encode({"a": [mvt.Feature([[(0, 0)]], {"sequence_id": "x" * 22})] * 50})
    assert many.count(b"x" * 22) == one.count(b"x" * 22) == 1


def test_points_are_the_same_as_features() -> None:
    """Numbers on both sides of each length of a varint, absent values, and values that two columns share."""
    n = 300
    columns: dict[str, list[mvt.Value | None]] = {
        "id": [2**k % (2**63 - 25) for k in range(n)],
        "name": [f"Öst {k % 7}" if k % 3 else None for k in range(n)],
        "pano": [k % 2 == 0 for k in range(n)],
        "angle": [k / 7 for k in range(n)],
        "other": [k % 9 - 4 for k in range(n)],
        "never": [None] * n,
    }
    positions = np.random.default_rng(0).integers(-64, 4160, (n, 2))
    features = [
        mvt.Feature([[(int(x), int(y))]], {key: v for key, given in columns.items() if (v := given[k]) is not None})
        for k, (x, y) in enumerate(positions)
    ]
    fast, slow = (decode(mvt.encode({"image": v})) for v in (mvt.Points(positions, columns), features))
    assert fast == slow
    assert [f["properties"] for f in fast["image"]["features"]] == [f.properties for f in features]
    assert [{type(v) for v in f["properties"].values()} for f in fast["image"]["features"]] == [
        {type(v) for v in f.properties.values()} for f in features
    ]


def test_no_points_are_no_layer() -> None:
    assert mvt.encode({"image": mvt.Points(np.zeros((0, 2), np.int64), {"id": []})}) == b""


def test_an_empty_tile_has_an_empty_body() -> None:
    assert mvt.encode({"image": [], "sequence": []}) == b""


@pytest.mark.parametrize(
    ("lon", "lat", "zoom", "tile"),
    [(0.0, 0.0, 1, (1, 1)), (-122.42, 37.78, 14, (2620, 6332)), (11.575, 48.137, 0, (0, 0))],
)
def test_positions_fall_into_the_known_tiles(lon: float, lat: float, zoom: int, tile: tuple[int, int]) -> None:
    x, y = mvt.tile_position(lon, lat, zoom)
    assert (int(x), int(y)) == tile


def test_north_is_up() -> None:
    assert mvt.tile_position(11, 49, 14)[1] < mvt.tile_position(11, 48, 14)[1]
