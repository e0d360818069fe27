from pathlib import Path

import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag.placing2016 import read_placing
from geo_assets_tests.geotag.places import record, write_shard

MP16 = "IMG_ID,AUTHOR,LAT,LON,S3_Label\n13/20/8010869266.jpg,78841376@N00,29.4,-98.5,1\nba/08/6468190417.jpg,b@N00,41.9,12.5,2\n"


def test_good_records_become_photos(tmp_path):
    write_shard(tmp_path / "shard_0.msg", [record("13/20/8010869266.jpg", -98.49, 29.42), record("aa/bb/3.jpg", 4, 3)])
    photos, rejects = read_placing(tmp_path)
    assert photos[["photo_id", "path", "lon", "lat"]].values.tolist() == [
        ["8010869266", "13/20/8010869266.jpg", -98.49, 29.42],
        ["aa/bb/3", "aa/bb/3.jpg", 4.0, 3.0],
    ]
    assert rejects.empty


def test_records_without_coordinates_get_them_from_the_csv(tmp_path):
    write_shard(
        tmp_path / "s.msg", [{"id": "13/20/8010869266.jpg", "image": b""}, {"id": "cc/cc/99999.jpg", "image": b""}]
    )
    (tmp_path / "mp16_places365.csv").write_text(MP16)
    photos, rejects = read_placing(tmp_path)
    assert photos[["lon", "lat"]].values.tolist() == [[-98.5, 29.4]]
    assert photos["author_hash"].map(len).tolist() == [16]
    assert rejects["reason"].tolist() == ["the record has no position, and mp16_places365.csv does not name it"]


def test_without_the_csv_they_are_rejects_that_name_it(tmp_path):
    write_shard(tmp_path / "s.msg", [{"id": "a/b/1.jpg", "image": b""}])
    photos, rejects = read_placing(tmp_path)
    assert photos.empty and "mp16_places365.csv" in rejects["reason"][0]


def test_a_swapped_csv_is_refused(tmp_path):
    write_shard(tmp_path / "s.msg", [{"id": "a/b/1.jpg"}])
    (tmp_path / "mp16_places365.csv").write_text("IMG_ID,AUTHOR,LON,LAT\na/b/1.jpg,x,-33.8,151.2\n")
    with pytest.raises(SourceError, match="swapped"):
        read_placing(tmp_path)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([1, 2, 3], "not a map"),
        ({"latitude": 1.0, "longitude": 2.0}, "no id"),
        ({"id": "../../x.jpg", "latitude": 1.0, "longitude": 2.0}, "leaves its folder"),
        ({"id": "a/1.jpg", "latitude": 1.0}, "half a position"),
        ({"id": "a/1.jpg", "latitude": float("nan"), "longitude": 5.0}, "not a number"),
        ({"id": "a/1.jpg", "latitude": "north", "longitude": 5.0}, "latitude is not a number"),
        ({"id": "a/1.jpg", "latitude": 95.0, "longitude": 5.0}, "out of range"),
        ({"id": "a/1.jpg", "latitude": 5.0, "longitude": float("inf")}, "out of range"),
    ],
)
def test_a_bad_record_is_a_reject_and_the_next_is_read(tmp_path, bad, reason):
    write_shard(tmp_path / "s.msg", [bad, record("a/b/2.jpg", 1.0, 2.0)])
    photos, rejects = read_placing(tmp_path)
    assert photos["path"].tolist() == ["a/b/2.jpg"]
    assert reason in rejects["reason"][0] and rejects["row"].tolist() == ["0"]


def test_a_cut_shard_keeps_its_good_records_and_the_next_shard_is_read(tmp_path):
    write_shard(tmp_path / "s0.msg", [record("a/b/1.jpg", 1, 1), record("a/b/2.jpg", 2, 2)], cut=7)
    write_shard(tmp_path / "s1.msg", [record("a/b/3.jpg", 3, 3)])
    photos, rejects = read_placing(tmp_path)
    assert photos["path"].tolist() == ["a/b/1.jpg", "a/b/3.jpg"]
    assert rejects[["file", "row"]].values.tolist() == [["s0.msg", "1"]]
    assert "breaks after 1 records" in rejects["reason"][0]


def test_rubbish_in_a_shard_ends_it_with_a_reason(tmp_path):
    shard = tmp_path / "s.msg"
    write_shard(shard, [record("a/b/1.jpg", 1, 1)])
    shard.write_bytes(shard.read_bytes() + b"\xc1\xc1\xc1")
    photos, rejects = read_placing(tmp_path)
    assert len(photos) == 1 and "breaks after 1 records" in rejects["reason"][0]


def test_a_folder_without_shards_says_what_to_set(tmp_path):
    with pytest.raises(SourceError, match=r"geotag\.placing_2016"):
        read_placing(tmp_path)


def test_the_sample_shards(real_data: Path):
    photos, rejects = read_placing(real_data / "geotag/msgpack")
    assert len(photos) == 10 and len(rejects) == 8
    assert sum(map(len, photos["flags"])) == 1  # the null island
    assert {-179.9999, 179.9999} <= set(photos["lon"])
    broken = rejects[rejects["file"] == "shard_3_truncated.msg"]
    assert broken["reason"].tolist() == ["the shard breaks after 1 records, at byte 705 of 1,057"]


def test_a_line_of_the_csv_with_too_many_fields_is_a_reject(tmp_path):
    write_shard(tmp_path / "s.msg", [{"id": "13/20/8010869266.jpg"}])
    (tmp_path / "mp16_places365.csv").write_text(MP16 + "aa/bb/1.jpg,x,1,2,3,4\n")
    photos, rejects = read_placing(tmp_path)
    assert len(photos) == 1 and rejects["file"].tolist() == ["mp16_places365.csv"]
