"""The EXIF of one photo: byte orders, careless writers, broken files, and the same answers as Pillow's."""

import datetime as dt
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from geo_assets import exif
from geo_assets.geotag.headers import Header, read_header, satellite_time
from geo_assets_tests.geotag.places import jpeg

ASCII, LONG, RATIONAL, SIGNED = 2, 4, 5, 10
Entries = dict[int, tuple[int, Any]]
PLACE: Entries = {
    1: (ASCII, b"S\0"),
    2: (RATIONAL, [(33, 1), (51, 1), (4078, 100)]),
    3: (ASCII, b"W\0"),
    4: (RATIONAL, [(70, 1), (30, 1), (0, 1)]),
}


def directory(order: str, entries: Entries, at: int) -> bytes:
    """A TIFF directory that begins at an offset, its values behind it."""
    rows, values = b"", b""
    behind = at + 2 + 12 * len(entries) + 4
    for tag, (kind, value) in entries.items():
        if kind == ASCII:
            n, packed = len(value), value
        elif kind == LONG:
            n, packed = 1, struct.pack(f"{order}I", value)
        else:
            n, packed = len(value), b"".join(struct.pack(order + ("ii" if kind == SIGNED else "II"), *v) for v in value)
        where = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", behind + len(values))
        values += packed if len(packed) > 4 else b""
        rows += struct.pack(f"{order}HHI", tag, kind, n) + where
    return struct.pack(f"{order}H", len(entries)) + rows + bytes(4) + values


def tiff(gps: Entries, order: str = ">", main: Entries | None = None) -> bytes:
    main = {**(main or {}), exif.GPS: (LONG, 0)}
    size = len(directory(order, main, 8))
    main[exif.GPS] = (LONG, 8 + size)
    head = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(f"{order}I", 8)
    return head + directory(order, main, 8) + directory(order, gps, 8 + size)


def segment(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def read(folder: Path, data: bytes) -> Header:
    path = folder / "a.jpg"
    path.unlink(missing_ok=True)  # to write over a file that was just written waits for the disk
    path.write_bytes(data)
    return read_header(path)


def photo(block: bytes, before: bytes = b"") -> bytes:
    whole = jpeg()
    return whole[:2] + before + segment(0xE1, b"Exif\0\0" + block) + whole[2:]


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(tmp_path, order):
    gps = {**PLACE, 29: (ASCII, b"2014:05:06\0"), 7: (RATIONAL, [(7, 1), (8, 1), (95, 10)])}
    main: Entries = {exif.ARTIST: (ASCII, b"Ada \0"), exif.COPYRIGHT: (ASCII, "© B".encode())}
    found = read(tmp_path, photo(tiff(gps, order, main)))
    assert (found.lon, found.lat) == (-70.5, pytest.approx(-33.8613277, abs=1e-6)) and found.fault is None
    assert found.captured_at == dt.datetime(2014, 5, 6, 7, 8, 9, 500_000, dt.UTC)
    assert (found.author, found.licence) == ("Ada", "© B")


@pytest.mark.parametrize(
    ("lat", "wanted"),
    [
        ([(48137154, 1000000), (0, 1), (0, 1)], 48.137154),
        ([(48137154, 1000000)], 48.137154),  # nothing behind the decimal degrees
        ([(48137154, 1000000), (0, 0), (0, 0)], 48.137154),
        ([(48, 1), (8229, 1000), (0, 0)], 48.13715),
        ([(48, 1), (8, 1), (0, 0)], None),  # somewhere within a minute
        ([(48, 0), (8, 1), (1, 1)], None),
        ([(48, 1), (8, 1)], None),
        ([(48, 1), (8, 1), (1374, 1)], None),  # no seconds
    ],
)
def test_rationals_of_careless_writers(tmp_path, lat, wanted):
    found = read(tmp_path, photo(tiff({**PLACE, 1: (ASCII, b"N\0"), 2: (RATIONAL, lat)})))
    assert found.lat == (None if wanted is None else pytest.approx(wanted, abs=1e-9))
    assert found.fault == (None if wanted else "the GPS position of the EXIF is incomplete")


def test_signs_need_their_letter(tmp_path):
    for without in (1, 3):
        found = read(tmp_path, photo(tiff({tag: entry for tag, entry in PLACE.items() if tag != without})))
        assert (found.fault, found.lon) == ("the GPS position of the EXIF is incomplete", None)
    assert read(tmp_path, photo(tiff({**PLACE, 1: (ASCII, b"South\0")}))).lat == pytest.approx(-33.8613277)
    signed = read(tmp_path, photo(tiff({**PLACE, 2: (SIGNED, [(-33, 1), (51, 1), (40, 1)])})))
    assert signed.fault and "-33.0" in str(signed.value)


def test_segments_before_the_exif(tmp_path):
    block = tiff(PLACE)
    others = [
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        segment(0xE2, bytes(60_000)) + segment(0xFE, bytes(60_000)),  # beyond what is read at once
        b"\xff\xff\xff",  # filling
        b"\0\0 junk",
    ]
    for before in others:
        assert read(tmp_path, photo(block, before)).lon == -70.5
    far = b"\xff\xd8" + segment(0xE1, b"Exif\0\0" + tiff({**PLACE, 0xFFFF: (ASCII, bytes(20_000))}))
    assert read(tmp_path, far).lon == -70.5


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "the file is no JPEG"),
        (b"<html>404</html>", "the file is no JPEG"),
        (b"\xff\xd8 cut", "the photo breaks off in its header"),
        (b"\xff\xd8" + b"\xff" * 20_000, "the photo has no end of its header"),
        (photo(tiff(PLACE))[:90], "the photo breaks off in its header"),
        (jpeg(), "the photo has no EXIF"),
        (photo(tiff({})), "the EXIF has no GPS position"),
        (photo(b"QQ*\0" + bytes(20)), "the EXIF cannot be read"),
        (photo(b"II*\0"), "the EXIF cannot be read"),
        (photo(b"II*\0" + b"\xff" * 8), "the EXIF has no GPS position"),
    ],
    ids=range(11),
)
def test_what_cannot_be_read_says_why(tmp_path, data, fault):
    assert read(tmp_path, data).fault == fault


def test_pixels_are_not_needed(tmp_path):
    data = photo(tiff(PLACE))
    assert read(tmp_path, data[: len(data) - len(jpeg()) + 40]).lon == -70.5


def test_no_bytes_break_the_reader(tmp_path):
    draw, whole = random.Random(3), photo(tiff({**PLACE, 29: (ASCII, b"2014:05:06\0")}))
    for _ in range(1000):
        broken = bytearray(whole[: draw.randrange(2, len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(1, 6)):
            broken[draw.randrange(2, min(len(broken), 250)) if len(broken) > 2 else 1] = draw.choice((0, 1, 255, 0x7F))
        found = read(tmp_path, bytes(broken))
        assert (found.fault is None) == (found.lon is not None)


@pytest.mark.parametrize(
    ("day", "time"),
    [
        (b"0000:00:00", (1.0, 2.0, 3.0)),
        (b"2014:05:06", (25.0, 0.0, 0.0)),
        (b"2014:05:06", (1.0, None, 0.0)),
        (b"2014:05", (1.0, 2.0, 3.0)),
        (b"yesterday", (1.0, 2.0, 3.0)),
        (None, (1.0, 2.0, 3.0)),
    ],
)
def test_times_that_are_none(day, time):
    assert satellite_time({29: day, 7: time}) is None


def test_real_photos_are_read_as_pillow_reads_them(real_data: Path):
    photos = sorted((real_data / "images").rglob("*.jpg"))
    placed = 0
    for path in photos:
        with Image.open(path) as image:
            wanted = exif.position(dict(image.getexif().get_ifd(exif.GPS)))
        found = read_header(path)
        assert (found.lon, found.lat) == ((None, None) if wanted is None else pytest.approx(wanted, abs=1e-12))
        placed += wanted is not None
    assert placed > 10
