import shutil
from pathlib import Path

import pandas as pd
import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag.flickr import read_flickr
from geo_assets_tests.geotag.places import write_photo


def test_photos_are_read_from_their_exif(tmp_path):
    write_photo(tmp_path / "1" / "8010869266.jpg", -98.490723, 29.426458)
    write_photo(tmp_path / "2" / "holiday.JPEG", 151.209039, -33.861328)
    photos, rejects = read_flickr(tmp_path)
    by_id = photos.set_index("photo_id")
    assert set(by_id.index) == {"8010869266", "2/holiday.JPEG"}
    assert by_id.loc["8010869266", ["lon", "lat"]].tolist() == pytest.approx([-98.490723, 29.426458], abs=1e-7)
    assert by_id.loc["2/holiday.JPEG", ["lon", "lat"]].tolist() == pytest.approx([151.209039, -33.861328], abs=1e-7)
    assert set(photos["captured_at"]) == {pd.Timestamp("2014-05-06T07:08:09Z")}
    assert photos["author_hash"].map(len).tolist() == [16, 16] and rejects.empty


def test_photos_without_a_position_are_rejects(tmp_path):
    write_photo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8 cut")
    photos, rejects = read_flickr(tmp_path)
    assert photos.empty
    assert rejects["reason"].tolist() == ["the EXIF has no GPS position", "the photo cannot be read"]


def test_a_csv_goes_before_the_exif_of_its_photos(tmp_path):
    write_photo(tmp_path / "1" / "8010869266.jpg", 1.0, 1.0)
    write_photo(tmp_path / "1" / "8010869267.jpg", 3.0, 3.0)
    (tmp_path / "photos.csv").write_text(
        "photo_id,owner,Latitude,Longitude\n8010869266,ada,10,20\n8010869268,bea,x,2\n"
    )
    photos, rejects = read_flickr(tmp_path)
    assert photos.set_index("photo_id")["lon"].to_dict() == {"8010869266": 20.0, "8010869267": pytest.approx(3.0)}
    assert rejects[["file", "row"]].values.tolist() == [["photos.csv", "1"]]


def test_an_unknown_csv_is_one_reject(tmp_path):
    (tmp_path / "tags.csv").write_text("photo,tag\n1,dog\n")
    photos, rejects = read_flickr(tmp_path)
    assert photos.empty and rejects["value"].tolist() == ["photo,tag"]


def test_an_empty_folder_says_what_to_set(tmp_path):
    with pytest.raises(SourceError, match=r"geotag\.flickr_geotag"):
        read_flickr(tmp_path)


def test_the_published_swapped_file_is_refused(real_data: Path, tmp_path):
    shutil.copy(real_data / "geotag/points/im2gps3k_swapped_header_head.csv", tmp_path / "a.csv")
    with pytest.raises(SourceError, match="swapped"):
        read_flickr(tmp_path)
