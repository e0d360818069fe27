"""EXIF and panorama tags: what is written is what is read back, here and by other readers."""

import datetime as dt
import io
import math
import xml.etree.ElementTree as ET
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import piexif
import pytest
from PIL import Image

from geo_assets.errors import SourceError
from geo_assets.harvest.exif import position, read_back, with_exif, written
from geo_assets.harvest.jpeg import APP1, layout
from geo_assets_tests.harvest.worlds import jpeg

XMP = b"http://ns.adobe.com/xap/1.0/\0"
GPANO = "{http://ns.google.com/photos/1.0/panorama/}"
IMAGE: dict[str, Any] = {
    "image_id": "42",
    "sequence_id": "seq_-1",
    "lon": -122.4,
    "lat": 37.7,
    "computed_lon": -122.4194155,
    "computed_lat": -37.7749295,
    "altitude_m": -15.25,
    "computed_altitude_m": 3.0,
    "compass_deg": 10.0,
    "computed_compass_deg": 123.456,
    "captured_at": pd.Timestamp("2019-07-21 14:57:52.184", tz="UTC"),
    "creator_username": "jürgen 宇佐美",
    "make": "Maker",
    "model": None,
    "camera_type": "perspective",
    "is_pano": False,
    "attribution": "Photos from Mapillary, CC BY-SA 4.0, by @jürgen",
}


def exact(parts: Any) -> Fraction:
    return sum((Fraction(*part) / 60**i for i, part in enumerate(parts)), Fraction(0))


def xmp_of(data: bytes) -> list[bytes]:
    found = [data[s.start + 4 : s.end] for s in layout(data).segments if s.marker == APP1]
    return [body.removeprefix(XMP) for body in found if body.startswith(XMP)]


def test_everything_comes_back() -> None:
    assert read_back(with_exif(jpeg(), IMAGE, "original", "2048")) == {
        "image_id": "42",
        "sequence_id": "seq_-1",
        "size": "original",
        "asked": "2048",
        "lon": -122.4194155,
        "lat": -37.7749295,
        "altitude_m": -15.25,
        "compass_deg": 123.46,
        "captured_at": dt.datetime(2019, 7, 21, 14, 57, 52, 184_000, dt.UTC),
        "creator_username": "jürgen 宇佐美",
        "attribution": "Photos from Mapillary, CC BY-SA 4.0, by @jürgen",
        "make": "Maker",
    }


def test_another_reader_finds_the_same() -> None:
    found = piexif.load(with_exif(jpeg(), IMAGE, "2048"))
    zeroth, camera, gps = found["0th"], found["Exif"], found["GPS"]
    assert (gps[1], gps[3], gps[5], gps[6]) == (b"S", b"W", 1, (15250, 1000)), "15 m below the sea"
    assert (gps[16], gps[17]) == (b"T", (12346, 100))
    assert (camera[0x9003], camera[0x9011], camera[0x9291]) == (b"2019:07:21 14:57:52", b"+00:00", b"184")
    assert (gps[29], gps[7]) == (b"2019:07:21", ((14, 1), (57, 1), (52184, 1000)))
    assert zeroth[0x8298].decode() == IMAGE["attribution"] and zeroth[0x0112] == 1


def test_positions_are_those_of_the_table_to_seven_decimals() -> None:
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 1000), rng.uniform(-90, 90, 1000)
    lon[:6], lat[:6] = [180, -180, 0.00000005, -1e-9, 59.99999995, 0], [90, -90, 1e-7, -0.0, 1 / 3, 89.9999999]
    picture = jpeg(size=(8, 8))
    for x, y in zip(lon.tolist(), lat.tolist(), strict=True):
        data = with_exif(picture, {"image_id": "1", "lon": x, "lat": y}, "256")
        found, gps = read_back(data), piexif.load(data)["GPS"]
        assert (found["lon"], found["lat"]) == (round(x, 7), round(y, 7)) == position({"lon": x, "lat": y})
        signs = 1 if gps[3] == b"E" else -1, 1 if gps[1] == b"N" else -1
        exactly = signs[0] * exact(gps[4]), signs[1] * exact(gps[2])
        assert exactly == tuple(Fraction(Decimal(f"{round(v, 7):.7f}")) for v in (x, y))


@pytest.mark.parametrize(
    ("metres", "said"), [(0.0, 0.0), (-0.0004, 0.0), (8848.8605, 8848.86), (-431, -431), (4e9, None)]
)
def test_altitudes_have_their_sign(metres: float, said: float | None) -> None:
    found = read_back(with_exif(jpeg(), {"image_id": "1", "altitude_m": metres}, "256"))
    assert found.get("altitude_m") == said


@pytest.mark.parametrize(("degrees", "said"), [(359.999, 0.0), (-90.0, 270.0), (0.0, 0.0), (359.99, 359.99)])
def test_headings_lie_below_360(degrees: float, said: float) -> None:
    assert read_back(with_exif(jpeg(), {"image_id": "1", "compass_deg": degrees}, "256"))["compass_deg"] == said


def test_the_recorded_position_stands_in_as_a_pair() -> None:
    assert position({"computed_lon": 1.0, "computed_lat": math.nan, "lon": 2.0, "lat": 3.0}) == (2.0, 3.0)
    assert position({"lon": 2.0, "lat": pd.NA}) is None


def test_an_image_of_which_little_is_known() -> None:
    data = with_exif(jpeg(), {"image_id": "7", "lon": None, "captured_at": pd.NaT, "make": float("nan")}, "256")
    assert read_back(data) == {"image_id": "7", "size": "256", "asked": "256"}
    assert not piexif.load(data)["GPS"]


def test_names_that_are_no_text_are_written_as_well_as_can_be() -> None:
    found = read_back(with_exif(jpeg(), IMAGE | {"creator_username": "a\ud800b", "make": ""}, "256"))
    assert found["creator_username"] == "a?b" and "make" not in found


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_the_picture_is_not_encoded_again(options: dict) -> None:
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(sink, "JPEG", **options)
    before, after = sink.getvalue(), with_exif(sink.getvalue(), IMAGE, "1024")
    pixels = [np.asarray(Image.open(io.BytesIO(d))) for d in (before, after)]
    assert np.array_equal(pixels[0], pixels[1])
    assert before[layout(before).segments[-1].end :] == after[layout(after).segments[-1].end :]


def test_writing_twice_is_writing_once() -> None:
    image = IMAGE | {"camera_type": "spherical"}
    once = with_exif(jpeg(), image, "2048")
    assert with_exif(once, image, "2048") == once
    assert read_back(with_exif(once, image | {"computed_lon": 1.5}, "2048"))["lon"] == 1.5


@pytest.mark.parametrize("foreign", [b"II*\x00\xff\xff\xff\xffbroken", b"MM\x00*\x00\x00\x00\x08\xff\xff", b""])
def test_foreign_exif_is_replaced_even_if_broken_and_the_rest_stays(foreign: bytes) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(
        sink, "JPEG", exif=b"Exif\x00\x00" + foreign, xmp=b"<theirs/>", icc_profile=b"profile", comment=b"a comment"
    )
    data = with_exif(sink.getvalue(), IMAGE, "256")
    assert read_back(data)["lat"] == -37.7749295 and xmp_of(data) == []
    with Image.open(io.BytesIO(data)) as image:
        assert (image.info["icc_profile"], image.info["comment"]) == (b"profile", b"a comment")
        assert data[2:4] == b"\xff\xe0", "JFIF stands first"


@pytest.mark.parametrize(
    ("size", "full", "top"), [((64, 32), (64, 32), 0), ((64, 20), (64, 32), 6), ((64, 40), (64, 40), 0)]
)
def test_panoramas_say_so(size: tuple[int, int], full: tuple[int, int], top: int) -> None:
    data = with_exif(jpeg(size=size), IMAGE | {"camera_type": "spherical", "is_pano": True}, "2048")
    (packet,) = xmp_of(data)
    description = ET.fromstring(packet).find(".//{*}Description")
    said = {} if description is None else description.attrib
    assert {k.removeprefix(GPANO): v for k, v in said.items() if k.startswith(GPANO)} == {
        "ProjectionType": "equirectangular",
        "UsePanoramaViewer": "True",
        "FullPanoWidthPixels": str(full[0]),
        "FullPanoHeightPixels": str(full[1]),
        "CroppedAreaImageWidthPixels": str(size[0]),
        "CroppedAreaImageHeightPixels": str(size[1]),
        "CroppedAreaLeftPixels": "0",
        "CroppedAreaTopPixels": str(top),
        "PoseHeadingDegrees": "123.46",
    }
    assert read_back(data)["gpano"]["ProjectionType"] == "equirectangular" and read_back(data)["is_pano"]


@pytest.mark.parametrize("kind", ["perspective", "fisheye"])
def test_what_is_no_panorama_does_not(kind: str) -> None:
    assert xmp_of(with_exif(jpeg(), IMAGE | {"camera_type": kind, "is_pano": True}, "2048")) == []


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff\xe0\x00", jpeg()[:60]])
def test_what_is_no_jpeg_gets_no_exif(data: bytes) -> None:
    with pytest.raises(SourceError, match="Image 42"):
        with_exif(data, IMAGE, "256")
    with pytest.raises(SourceError, match="cannot be read"):
        read_back(data[:4])
    assert written(data) is None


def test_a_foreign_file_is_not_ours() -> None:
    assert written(jpeg()) is None and read_back(jpeg()) == {}
