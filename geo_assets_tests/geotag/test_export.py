import csv
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from geo_assets.errors import ConfigError, GeoAssetsError
from geo_assets.geotag.export import export_csv
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES

SETTINGS = Geotag()
ROWS = [
    ("1", "placing_2016", "13/20/8010869266.jpg", -98.490723, 29.426458, [], "train"),
    ("2", "google_landmark", "6/e/1/6e158a47eb2ca3f6.jpg", 0.1 + 0.2, -33.0, ["unclean"], "test"),
    ("3", "flickr_geotag", 'a, "b"/ü.jpg', 180.0, 1e-7, [], "validation"),
    ("4", "mapillary", "4.jpg", 13.4, 52.5, ["shared_position"], "train"),
    ("5", "placing_2016", "0/0/5.jpg", 0.0, 0.0, ["null_island", "shared_position"], "train"),
]


@pytest.fixture
def lake(tmp_path) -> Lake:
    lake = Lake(tmp_path / "lake")
    names = ("photo_id", "source", "path", "lon", "lat", "flags", "split")
    frame = TABLES["geotag_combined"].frame([dict(zip(names, row, strict=True)) for row in ROWS])
    lake.write("geotag_combined", frame)
    return lake


def exported(lake: Lake, tmp_path, **options) -> list[list[str]]:
    target = tmp_path / "out" / "path_to_coords.csv"
    n = export_csv(lake, target, SETTINGS, **options)
    lines = list(csv.reader(target.open(encoding="utf-8", newline="")))
    assert len(lines) == n + 1 and [path.name for path in target.parent.iterdir()] == [target.name]
    return lines


def test_the_file_has_the_earlier_header_and_folders(lake, tmp_path):
    header, *rows = exported(lake, tmp_path)
    assert (tmp_path / "out" / "path_to_coords.csv").read_bytes().startswith(b"path,lat,lon\n")
    assert header == ["path", "lat", "lon"]
    assert [row[0] for row in rows] == [
        './flickr_geotag/a, "b"/ü.jpg',
        "./google_landmark/6/e/1/6e158a47eb2ca3f6.jpg",
        "./mapillary/4.jpg",
        "./2016_placing/13/20/8010869266.jpg",
    ]


def test_numbers_read_back_as_they_were(lake, tmp_path):
    exported(lake, tmp_path, null_islands=True)
    frame = pd.read_csv(tmp_path / "out" / "path_to_coords.csv")
    wanted = {(row[3], row[4]) for row in ROWS}
    assert set(zip(frame["lon"], frame["lat"], strict=True)) == wanted


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"source": "placing_2016"}, ["8010869266.jpg"]),
        ({"source": "placing_2016", "null_islands": True}, ["8010869266.jpg", "5.jpg"]),
        ({"split": "train"}, ["4.jpg", "8010869266.jpg"]),
        ({"split": "test", "source": "mapillary"}, []),
    ],
)
def test_sources_splits_and_null_islands_are_chosen(lake, tmp_path, options, names):
    rows = exported(lake, tmp_path, **options)[1:]
    assert [row[0].rsplit("/", 1)[-1] for row in rows] == names


@pytest.mark.parametrize("options", [{"source": "placing"}, {"split": "dev' or true --"}])
def test_an_unknown_choice_names_the_known_ones(lake, tmp_path, options):
    with pytest.raises(ConfigError, match=r"Take one of .*(mapillary|validation)"):
        export_csv(lake, tmp_path / "x.csv", SETTINGS, **options)


def test_a_failure_leaves_the_old_file(lake, tmp_path, monkeypatch):
    target = tmp_path / "x.csv"
    target.write_text("old")
    with pytest.raises(GeoAssetsError, match="Make it first: geo-assets materialize"):
        export_csv(Lake(tmp_path / "empty"), target, SETTINGS)
    table = Path(lake.facts("geotag_combined").uri)
    data = table.read_bytes()
    table.write_bytes(data[:4] + bytes(400) + data[404:])
    with pytest.raises(duckdb.Error):
        export_csv(lake, target, SETTINGS)
    assert target.read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == ["lake", "x.csv"]
