import random
import struct
from pathlib import Path

import numpy as np
import pytest

from geo_assets.errors import SourceError
from geo_assets.grid import Bounds
from geo_assets.harvest.tiles import Tile, decode, images_of, lon_lat, tile_at, tiles_over


def varint(value: int) -> bytes:
    out = b""
    while True:
        value, low = value >> 7, value & 0x7F
        out += bytes([low | (0x80 if value else 0)])
        if not value:
            return out


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def plain(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (-value << 1) - 1


def point(x: int, y: int, tags: list[int], extra: bytes = b"") -> bytes:
    geometry = b"".join(map(varint, [9, zigzag(x), zigzag(y)]))
    return message(
        2, plain(1, 77) + message(2, b"".join(map(varint, tags))) + plain(3, 1) + message(4, geometry) + extra
    )


KEYS = ["id", "sequence_id", "captured_at", "compass_angle", "is_pano"]
VALUES = [
    plain(4, 1234567890123456789),
    message(1, b"seq_-A"),
    plain(4, 1600000000000),
    varint(2 << 3 | 5) + struct.pack("<f", 12.5),
    plain(7, 1),
    plain(5, 99),
    message(1, b""),
    plain(6, zigzag(-3)),
    varint(3 << 3 | 1) + struct.pack("<d", 270.25),
]


def layer(features: list[bytes], name: str = "image", extent: int = 4096) -> bytes:
    body = plain(15, 2) + message(1, name.encode()) + b"".join(features)
    body += b"".join(message(3, key.encode()) for key in KEYS) + b"".join(message(4, v) for v in VALUES)
    return message(3, body + plain(5, extent))


def test_every_type_of_property_and_blank_values() -> None:
    features = [point(100, 4000, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]), point(-5, 4100, [0, 5, 1, 6, 3, 8]), point(7, 8, [])]
    frame = images_of(layer(features), Tile(14, 8192, 8191))
    assert [None if v is None or v != v else v for v in frame["image_id"]] == ["1234567890123456789", "99", None]
    assert frame["sequence_id"].iloc[0] == "seq_-A"
    assert frame["sequence_id"].isna().tolist() == [False, True, True]
    assert frame["captured_at_ms"].iloc[0] == 1600000000000
    assert frame["compass_deg"].tolist()[:2] == [12.5, 270.25]
    assert bool(frame["is_pano"].iloc[0]) is True and frame["is_pano"].isna().tolist() == [False, True, True]
    side_deg = 360 / 2**14
    np.testing.assert_allclose(frame["lon"], np.array([100, -5, 7]) / 4096 * side_deg)
    assert frame["lat"].iloc[2] > frame["lat"].iloc[0] > 0 > frame["lat"].iloc[1], "y grows southwards"


def test_empty_tiles_and_other_layers() -> None:
    tile = Tile(14, 1, 1)
    assert images_of(b"", tile).empty
    assert images_of(layer([], "sequence"), tile).empty
    assert list(images_of(b"", tile).columns) == list(images_of(layer([point(1, 1, [])]), tile).columns)


@pytest.mark.parametrize("n", [1, 5000])
def test_many_features_equal_one_by_one(n: int) -> None:
    chance = random.Random(n)
    spots = [(chance.randrange(-64, 4160), chance.randrange(-64, 4160)) for _ in range(n)]
    found = decode(layer([point(x, y, [0, i % 9, 1, 1]) for i, (x, y) in enumerate(spots)]))["image"]
    assert found.first.tolist() == [list(s) for s in spots]
    assert found.column("sequence_id").tolist() == ["seq_-A"] * n
    assert found.column("no_such").tolist() == [None] * n


WHOLE = layer([point(100, 4000, [0, 0, 1, 1]), point(300, 5, [0, 5])])


@pytest.mark.parametrize(
    "broken",
    [
        b"<!DOCTYPE html><html>login</html>",
        WHOLE[:-3],
        WHOLE[: len(WHOLE) // 2],
        b"\x1f\x8bnot gzip",
        b"\xff" * 40,
        layer([point(1, 1, [0, 99])]),
        layer([point(1, 1, [0, 0], extra=varint(9 << 3 | 5) + b"abcd")]),
        layer([message(2, plain(1, 5) + b"\x12\x7f\x01")]),
        layer([message(2, b"\x80")]),
    ],
)
def test_what_is_no_tile_is_said(broken: bytes) -> None:
    with pytest.raises(SourceError, match="not a vector tile"):
        decode(broken)


def test_random_damage_is_an_error_or_a_table_but_never_a_crash() -> None:
    chance = random.Random(3)
    for _ in range(2000):
        data = bytearray(WHOLE)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            images_of(bytes(data), Tile(14, 0, 0))
        except SourceError:
            continue


@pytest.mark.parametrize(
    ("lon", "lat", "tile"),
    [(-108.53, 39.07, (3252, 6257)), (0.0, 0.0, (8192, 8192)), (-180.0, 85.2, (0, 0)), (180.0, -89.9, (16383, 16383))],
)
def test_the_tile_of_a_place(lon: float, lat: float, tile: tuple[int, int]) -> None:
    assert tile_at(lon, lat) == Tile(14, *tile)


def test_places_go_there_and_back() -> None:
    chance = random.Random(1)
    for _ in range(200):
        tile = Tile(14, chance.randrange(2**14), chance.randrange(2**14))
        lon, lat = lon_lat(tile, chance.uniform(0.01, 0.99), chance.uniform(0.01, 0.99))
        assert tile_at(float(lon), float(lat)) == tile
        assert tile.bounds.contains(float(lon), float(lat))


def test_tiles_over_a_rectangle() -> None:
    corner = Tile(14, 3252, 6257).bounds
    assert tiles_over(Bounds(corner.west + 1e-6, corner.south + 1e-6, corner.east - 1e-6, corner.north - 1e-6)) == [
        Tile(14, 3252, 6257)
    ]
    assert len(tiles_over(corner.padded(1.0))) == 9


@pytest.mark.parametrize(("y", "images", "sequences", "lines"), [(6257, 8695, 89, 89), (6258, 4888, 72, 70)])
def test_recorded_tiles(real_data: Path, y: int, images: int, sequences: int, lines: int) -> None:
    data = (real_data / f"mapillary/coverageTiles/14/3252/{y}.mvt").read_bytes()
    tile = Tile(14, 3252, y)
    frame = images_of(data, tile)
    assert (len(frame), frame["sequence_id"].nunique()) == (images, sequences)
    assert len(decode(data)["sequence"]) == lines
    assert set(frame["image_id"]) == {None}, "the recorders blanked the ids"
    bounds = tile.bounds
    assert (
        frame["lon"].between(bounds.west, bounds.east).all() and frame["lat"].between(bounds.south, bounds.north).all()
    )
