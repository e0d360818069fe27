from pathlib import Path

import duckdb
import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag import csvs
from geo_assets.geotag.photos import (
    author_hash,
    flickr_id,
    is_safe_path,
    no_rejects,
    prepared,
    refuse_swapped,
    sift,
)
from geo_assets.lake import Lake
from geo_assets.settings import Geotag


@pytest.fixture
def con(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    return prepared(duckdb.connect(), Geotag(), tmp_path / "spill")


@pytest.mark.parametrize("path", ["a.jpg", "13/20/8010869266.jpg", "with space/ü.jpg", "..a/b..", "a/.hidden"])
def test_paths_inside_are_safe(path, con):
    assert is_safe_path(path)
    assert con.execute("select safe_path(?)", [path]).fetchall() == [(True,)]


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../a", "a/../b", "a/..", "./a", "a//b", "a\\b", "C:/a", "a\x00b", "a\ud800", None, 3]
)
def test_paths_that_leave_are_not(path, con):
    assert not is_safe_path(path)
    if path not in ("a\ud800", 3):  # no query takes the one, and makes text of the other
        assert con.execute("select safe_path(?::varchar)", [path]).fetchall() == [(False,)]


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
def test_flickr_ids_in_file_names(path, wanted, con):
    assert flickr_id(path) == wanted
    assert con.execute("select flickr_id(?)", [path]).fetchall() == [(wanted,)]


def test_authors_are_hashed(con):
    assert author_hash("Ada") == author_hash(" Ada ") != author_hash("Bea")
    assert len(author_hash("Ada") or "") == 16
    assert author_hash("") is None and author_hash("  ") is None and author_hash(None) is None
    for name in ("Ada", " Ada ", "", "  ", None, "Žofie"):
        assert con.execute("select author_hash(?::varchar)", [name]).fetchall() == [(author_hash(name),)]


def test_each_record_is_a_photo_or_a_reject(con, tmp_path):
    con.execute("""create table raw as select *, 'f.csv' as file, row_number() over () - 1 as row from (values
        ('a', 'x/a.jpg', '10', '20', null, null), ('b', 'x/b.jpg', null, '20.0', null, null),
        ('c', 'x/c.jpg', 'east', '20.0', null, null), ('d', 'x/d.jpg', '180.5', '20.0', null, null),
        ('e', '../e.jpg', '200.0', '20.0', null, null), ('f', 'x/f.jpg', '0.0', '0.0', null, ['unclean']),
        ('g', 'x/g.jpg', '-180.0', '-90.0', null, null), ('h', 'x/h.jpg', 'nan', '1', null, null),
        ('i', 'x/i.jpg', '1', 'inf', null, null), ('j', '../j.jpg', '1', '1', 'the reader says no', null)
        ) as t(photo_id, path, lon, lat, fault, flags)""")
    sifted = sift(con, "raw", "google_landmark")
    lake = Lake(tmp_path / "lake")
    assert lake.write_query(con, "google_landmark", sifted.photos).rows == 3
    lake.write_query(con, "geotag_rejects", sifted.rejects, source="google_landmark", part="all")
    photos = lake.read("google_landmark")
    rejects = lake.read("geotag_rejects", source="google_landmark", part="all")
    assert photos["photo_id"].tolist() == ["a", "f", "g"]
    assert [list(flags) for flags in photos["flags"]] == [[], ["null_island", "unclean"], []]
    assert rejects["row"].tolist() == ["1", "2", "3", "4", "7", "8", "9"]
    assert [reason.split(" is ")[-1] for reason in rejects["reason"]] == [
        "missing or not a number",
        "missing or not a number",
        "out of range",
        "none",
        "missing or not a number",
        "out of range",
        "the reader says no",
    ]
    assert rejects["value"].tolist()[2:4] == ["lon=180.5, lat=20.0", "path=../e.jpg"]


def test_nothing_gives_tables_of_nothing(con, tmp_path):
    con.execute("create table raw (file varchar, photo_id varchar, path varchar, lon double, lat double)")
    sifted, lake = sift(con, "raw", "flickr_geotag"), Lake(tmp_path / "lake")
    assert lake.write_query(con, "flickr_geotag", sifted.photos).rows == 0
    for query in (sifted.rejects, no_rejects()):
        assert lake.write_query(con, "geotag_rejects", query, source="a", part="all").rows == 0


def test_a_swapped_header_is_refused(con, tmp_path):
    con.execute("create table swapped as from (values (32.3, -64.7), (29.9, 122.3), (-33.8, 151.2)) as t(lon, lat)")
    with pytest.raises(
        SourceError, match=r"header seems swapped: 2 of 3 values of column LAT .* Exchange the two names"
    ):
        refuse_swapped(con, "swapped", tmp_path / "a.csv", ("LON", "LAT"))
    con.execute("create table one_bad_row as select 10 as lon, if(range = 7, 95, 50) as lat from range(50)")
    refuse_swapped(con, "one_bad_row", tmp_path / "a.csv", ("LON", "LAT"))


def test_the_published_swapped_file_is_refused(real_data: Path, con):
    file = real_data / "geotag/points/im2gps3k_swapped_header_head.csv"
    opened = csvs.open_csv(con, file, {"lon": csvs.LON_NAMES, "lat": csvs.LAT_NAMES})
    with pytest.raises(SourceError, match="swapped"):
        refuse_swapped(con, opened.view, file, (opened.names["lon"], opened.names["lat"]))
