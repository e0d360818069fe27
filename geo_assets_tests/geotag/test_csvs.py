"""CSV files as people have them: any separator, any case, and lines that are not what the header promises."""

from pathlib import Path

import duckdb
import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag.csvs import LAT_NAMES, LON_NAMES, open_csv
from geo_assets.geotag.photos import prepared
from geo_assets.settings import Geotag

ROLES = {"photo_id": ("photo_id", "id"), "lon": LON_NAMES, "lat": LAT_NAMES}


def read(folder: Path, data: bytes, optional: dict[str, tuple[str, ...]] | None = None) -> tuple[list, list, dict]:
    file = folder / "a.csv"
    file.write_bytes(data)
    con = prepared(duckdb.connect(), Geotag(), folder / "spill")
    opened = open_csv(con, file, ROLES, optional)
    return con.execute(f"from {opened.view}").fetchall(), con.execute(opened.rejects).fetchall(), opened.names


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_and_line_ends(tmp_path, separator, end):
    lines = [["Title", "LAT", "Longitude", "ID"], ["x", "2", "1", "a"], ["", "", "3", "b"]]
    text = end.join(separator.join(line) for line in lines)
    rows, rejects, names = read(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert rows == [("a", "1", "2", 0), ("b", "3", None, 1)] and rejects == []
    assert names == {"photo_id": "ID", "lon": "Longitude", "lat": "LAT"}


def test_lines_that_do_not_fit_are_rejects_and_the_others_rows(tmp_path):
    text = b'id,lat,lon,title\n1,2,3,a\n2,4,5\n3,4,5,6,7\n4,1,2,"q ""x"", y\nnew"\n5,1,2,it"s\n'
    rows, rejects, _ = read(tmp_path, text)
    assert [row[0] for row in rows] == ["1", "4", "5"]
    assert [(reject[1], reject[2]) for reject in rejects] == [
        ("line 3", "the line has too few fields"),
        ("line 4", "the line has too many fields"),
    ]
    assert rejects[1][3] == "3,4,5,6,7"


def test_an_open_quote_is_a_reject(tmp_path):
    rows, rejects, _ = read(tmp_path, b'id,lat,lon\n1,2,3\n2,3,"4\n')
    assert [row[0] for row in rows] == ["1"] and "unquoted value" in rejects[0][2]


def test_optional_columns_are_there_or_not(tmp_path):
    rows, _, names = read(tmp_path, b"id,lat,lon,owner\n1,2,3,o\n", {"author": ("owner",), "licence": ("license",)})
    assert rows == [("1", "3", "2", "o", 0)] and set(names) == {"photo_id", "lon", "lat", "author"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"id,x,y\n1,2,3\n", r"a.csv lacks lon \(lon or .*its columns are id, x, y"),
        (b"", "is empty"),
        (b"\xff\xfe\x00", "no readable header"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, data, said):
    with pytest.raises(SourceError, match=said):
        read(tmp_path, data)


def test_names_of_files_and_folders_may_hold_quotes(tmp_path):
    folder = tmp_path / "it's"
    folder.mkdir()
    assert read(folder, b"id,lat,lon\n1,2,3\n")[0] == [("1", "3", "2", 0)]
