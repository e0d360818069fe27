"""Files: EXIF, resume, broken downloads, expired addresses, absent sizes."""

import datetime as dt
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.demo.server import Behaviour, serving
from geo_assets.errors import SourceError
from geo_assets.exif import rationals
from geo_assets.harvest.exif import with_exif, written
from geo_assets.harvest.images import fetch, problem_of
from geo_assets.harvest.metadata import FIELDS, rows
from geo_assets.lake import Lake
from geo_assets.tables import TABLES
from geo_assets_tests.harvest.worlds import client, jpeg, street

PARTITION = {"city": "town", "box": "r00c00"}
NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
IMAGE = {
    "image_id": "42",
    "sequence_id": "seq_-1",
    "lon": -122.4,
    "lat": 37.7,
    "computed_lon": -122.4194155,
    "computed_lat": -37.7749295,
    "altitude_m": -15.25,
    "computed_altitude_m": 3.0,
    "compass_deg": 10.0,
    "computed_compass_deg": 359.999,
    "captured_at": pd.Timestamp("2019-07-21 14:57:52.184", tz="UTC"),
    "creator_username": "jürgen",
    "make": "Maker",
    "model": None,
    "attribution": "Photos from Mapillary, CC BY-SA 4.0, by @jürgen",
}


def gps_of(data: bytes) -> dict:
    return dict(Image.open(io.BytesIO(data)).getexif().get_ifd(0x8825))


def degrees(parts: tuple) -> float:
    return sum(float(p) / 60**i for i, p in enumerate(parts))


def test_exif_says_where_when_and_who() -> None:
    data = with_exif(jpeg(), IMAGE, "2048")
    image = Image.open(io.BytesIO(data))
    exif, camera, gps = image.getexif(), dict(image.getexif().get_ifd(0x8769)), gps_of(data)
    assert (gps[3], gps[1]) == ("W", "S")
    assert degrees(gps[4]) == pytest.approx(122.4194155, abs=1e-8) and degrees(gps[2]) == pytest.approx(
        37.7749295, abs=1e-8
    )
    assert float(gps[6]) == 15.25 and gps[5] in (1, b"\x01"), "15 m below the sea"
    assert float(gps[17]) == 360.0 or float(gps[17]) == pytest.approx(360.0, abs=0.01)
    assert camera[0x9003] == "2019:07:21 14:57:52" and camera[0x9011] == "+00:00" and camera[0x9291] == "184"
    assert "rgen" in exif[0x013B] and "CC BY-SA 4.0" in exif[0x8298] and exif[0x010F] == "Maker"
    assert written(data) == ("42", "2048")


def test_the_picture_is_not_encoded_again() -> None:
    before, after = (np.asarray(Image.open(io.BytesIO(d))) for d in (jpeg(3), with_exif(jpeg(3), IMAGE, "1024")))
    assert np.array_equal(before, after)


def test_foreign_exif_is_replaced_even_if_broken() -> None:
    sink = io.BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffbroken")
    assert degrees(gps_of(with_exif(sink.getvalue(), IMAGE, "256"))[2]) == pytest.approx(37.7749295)


def test_an_image_of_which_little_is_known() -> None:
    data = with_exif(jpeg(), {"image_id": "7", "lon": None, "captured_at": pd.NaT, "make": float("nan")}, "256")
    assert not gps_of(data) and written(data) == ("7", "256")


@pytest.mark.parametrize("value", [0.0, 59.99999999, 179.999999999, 1e-9, 11.575])
def test_angles_as_rationals(value: float) -> None:
    d, m, s = rationals(value)
    assert m[0] < 60 and s[0] < 60 * s[1]
    assert d[0] + m[0] / 60 + s[0] / s[1] / 3600 == pytest.approx(value, abs=2e-9)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"<html>", "not a JPEG"),
        (jpeg(size=(640, 480))[:-900], "end is missing"),
        (jpeg()[:200] + jpeg()[-2:], "does not decode"),
        (b"\xff\xd8 nothing \xff\xd9", "does not decode"),
        (jpeg(), None),
        (jpeg() + b"trailer of a camera", None),
    ],
)
def test_broken_files_are_known(data: bytes, said: str | None) -> None:
    problem = problem_of(data)
    assert problem is None if said is None else said in (problem or "")


def test_what_is_no_jpeg_gets_no_exif() -> None:
    with pytest.raises(SourceError, match="Image 42"):
        with_exif(b"GIF89a", IMAGE, "256")


class Town:
    """A street, its metadata, and a lake."""

    def __init__(self, folder: Path, n: int = 30) -> None:
        self.world, self.lake = street(folder, n), Lake(folder / "lake")
        with serving(self.world) as address, client(address) as api:
            self.metadata = rows(api.images([i.id for i in self.world.images], FIELDS).rows, NOW)

    def fetch(self, behaviour: Behaviour | None = None, **settings: Any):
        with serving(self.world, behaviour) as address, client(address, **settings) as api:
            found = fetch(api, self.lake, self.metadata, PARTITION)
            self.requests = address.requests
        TABLES["image_files"].conform(found.files)
        return found

    def keep(self, found, size: str = "2048") -> None:
        self.lake.write("image_files", found.files, note={"size": size}, **PARTITION)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


def test_every_file_is_fetched_once(town: Town) -> None:
    found = town.fetch()
    assert set(found.files["status"]) == {"done"} and found.n_fetched == 30
    assert town.lake.names("files/images/city=town/box=r00c00") == sorted(f"{i}.jpg" for i in found.files["image_id"])
    town.keep(found)
    again = town.fetch()
    assert (again.n_fetched, again.n_kept, town.requests.total()) == (0, 30, 0)
    assert TABLES["image_files"].conform(again.files).equals(TABLES["image_files"].conform(found.files))


def test_a_run_that_was_ended_before_its_table_goes_on(town: Town) -> None:
    town.fetch()
    again = town.fetch()  # no table was written
    assert (again.n_fetched, again.n_kept, town.requests.total()) == (0, 30, 0)


def test_damaged_and_lost_files_are_fetched_again(town: Town) -> None:
    found = town.fetch()
    town.keep(found)
    paths = found.files["path"].tolist()
    town.lake.put_bytes(paths[0], town.lake.get_bytes(paths[0])[:-20])
    town.lake.put_bytes(paths[1], b"")
    town.lake.fs.rm(town.lake.uri(paths[2]))
    again = town.fetch()
    assert (again.n_fetched, again.n_kept) == (3, 27) and town.requests["file"] == 3
    assert problem_of(town.lake.get_bytes(paths[0])) is None


def test_another_size_is_another_harvest(town: Town) -> None:
    town.keep(town.fetch())
    assert town.fetch(image_size="1024").n_fetched == 30


def test_expired_addresses_are_renewed(town: Town) -> None:
    now = [1000.0]

    def clock() -> float:
        now[0] += 0.5
        return now[0]

    found = town.fetch(Behaviour(clock=clock, url_lifetime_s=25))
    assert set(found.files["status"]) == {"done"}
    assert town.requests["images"] > 1, "the addresses of the last files had expired"


@pytest.mark.parametrize("fault", ["half", "html", "reset", "service_unavailable", "empty"])
def test_broken_downloads_are_repeated(town: Town, fault: str) -> None:
    faults = [fault] * 3
    behaviour = Behaviour(fault=lambda kind, n: faults.pop() if kind == "file" and faults else None)
    assert set(town.fetch(behaviour).files["status"]) == {"done"}


def test_dead_files_say_why_and_leave_nothing_behind(town: Town) -> None:
    found = town.fetch(Behaviour(fault=lambda kind, n: "half" if kind == "file" else None))
    assert set(found.files["status"]) == {"dead"} and None not in set(found.files["reason"])
    assert town.lake.names("files/images/city=town/box=r00c00") == []
    town.keep(found)
    assert set(town.fetch().files["status"]) == {"done"}, "the dead are tried again"


def test_images_without_an_address_are_dead(town: Town) -> None:
    ids = [i.id for i in town.world.images]
    found = town.fetch(Behaviour(without_thumb=frozenset(ids[:2]))).files.set_index("image_id")
    assert found.loc[ids[:2], "reason"].tolist() == ["the API names no file of it"] * 2
    assert set(found.loc[ids[2:], "status"]) == {"done"}


def test_an_absent_size_is_replaced_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geo_assets.harvest import images

    town = Town(tmp_path, 3)
    real = images.urls

    def without_2048(api, ids):
        return {i: {s: u for s, u in sized.items() if s != "2048"} for i, sized in real(api, ids).items()}

    monkeypatch.setattr(images, "urls", without_2048)
    assert town.fetch().files["size"].tolist() == ["original"] * 3
