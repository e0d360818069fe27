from pathlib import Path

import pandas as pd
import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag.photos import author_hash, flickr_id, is_safe_path, refuse_swapped, sift
from geo_assets.tables import TABLES


@pytest.mark.parametrize("path", ["a.jpg", "13/20/8010869266.jpg", "with space/ü.jpg", "..a/b..", "a/.hidden"])
def test_paths_inside_are_safe(path):
    assert is_safe_path(path)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../a", "a/../b", "a/..", "./a", "a//b", "a\\b", "C:/a", "a\x00b", "a\ud800", None, 3]
)
def test_paths_that_leave_are_not(path):
    assert not is_safe_path(path)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("13/20/8010869266.jpg", "8010869266"),
        ("1000269685_e60e9cdfb4_1125_78841376@N00.jpg", "1000269685"),
        ("8010869266", "8010869266"),
        # A phone's date is no Flickr id: all photos of a day would become one.
        ("20160101_120000.jpg", None),
        ("aa/bb/3.jpg", None),
        ("IMG_1234567.jpg", None),
    ],
)
def test_flickr_ids_in_file_names(path, wanted):
    assert flickr_id(path) == wanted


def test_authors_are_hashed():
    assert author_hash("Ada") == author_hash(" Ada ") != author_hash("Bea")
    assert len(author_hash("Ada") or "") == 16
    assert author_hash("") is None and author_hash(None) is None and author_hash(float("nan")) is None


def test_each_record_is_a_photo_or_a_reject():
    raw = pd.DataFrame(
        [
            ("a", "x/a.jpg", 10, "20"),
            ("b", "x/b.jpg", None, 20.0),
            ("c", "x/c.jpg", "east", 20.0),
            ("d", "x/d.jpg", 180.5, 20.0),
            ("e", "../e.jpg", 200.0, 20.0),
            ("f", "x/f.jpg", 0.0, 0.0),
            ("g", "x/g.jpg", -180.0, -90.0),
        ],
        columns=["photo_id", "path", "lon", "lat"],
    )
    photos, rejects = sift(raw.assign(file="f.csv", row=range(len(raw))), "placing_2016")
    assert photos["photo_id"].tolist() == ["a", "f", "g"]
    assert photos["flags"].tolist() == [[], ["null_island"], []]
    assert rejects["row"].tolist() == ["1", "2", "3", "4"]
    assert [r.split(" is ")[-1] for r in rejects["reason"]] == [
        "missing or not a number",
        "missing or not a number",
        "out of range",
        "none",
    ]
    assert rejects["value"].tolist()[2:] == ["lon=180.5, lat=20.0", "path=../e.jpg"]
    TABLES["placing_2016"].conform(photos)
    TABLES["geotag_rejects"].conform(rejects)


def test_nothing_gives_tables_of_nothing():
    raw = pd.DataFrame(columns=["file", "row", "photo_id", "path", "lon", "lat"])
    photos, rejects = sift(raw, "placing_2016")
    assert TABLES["placing_2016"].conform(photos).num_rows == TABLES["geotag_rejects"].conform(rejects).num_rows == 0


def test_a_swapped_header_is_refused(tmp_path):
    swapped = pd.DataFrame({"lon": ["32.3", "29.9", "-33.8"], "lat": ["-64.7", "122.3", "151.2"]})
    with pytest.raises(
        SourceError, match=r"header seems swapped: 2 of 3 values of column LAT .* Exchange the two names"
    ):
        refuse_swapped(tmp_path / "a.csv", swapped, ("LON", "LAT"))
    one_bad_row = pd.DataFrame({"lon": ["10"] * 50, "lat": ["50"] * 49 + ["95"]})
    refuse_swapped(tmp_path / "a.csv", one_bad_row, ("LON", "LAT"))


def test_the_published_swapped_file_is_refused(real_data: Path):
    file = real_data / "geotag/points/im2gps3k_swapped_header_head.csv"
    frame = pd.read_csv(file).rename(columns={"LON": "lon", "LAT": "lat"})
    with pytest.raises(SourceError, match="swapped"):
        refuse_swapped(file, frame, ("LON", "LAT"))
