import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_assets.demo.geotag_inputs import write_geotag_inputs
from geo_assets.errors import SourceError
from geo_assets.geotag import mp16
from geo_assets.geotag.placing2016 import photo_bytes, take_shard, take_shards
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets_tests.geotag.places import jpeg, record, write_shard

EXTRACTING = Geotag(extract=True)
HEADER = "IMG_ID,AUTHOR,LAT,LON,S3_Label\n"
MP16 = HEADER + "13/20/8010869266.jpg,78841376@N00,29.4,-98.5,1\nba/08/6468190417.jpg,,41.9,12.5,2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set" / "placing").mkdir(parents=True)
    return tmp_path / "set" / "placing"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def quiet(line: str) -> None: ...


def take(lake: Lake, folder: Path, shard: str = "s", settings: Geotag | None = None) -> dict[str, Any]:
    return take_shard(lake, folder, Path(f"{shard}.msg"), shard, settings or Geotag(), quiet)


def rows(lake: Lake, shard: str = "s") -> list[dict[str, Any]]:
    frame = lake.read("placing_2016", shard=shard)
    return frame.assign(flags=frame["flags"].map(list)).to_dict("records")


def rejects(lake: Lake, part: str = "s") -> list[tuple[str, str, str]]:
    frame = lake.read("geotag_rejects", source="placing_2016", part=part)
    return list(frame[["row", "reason", "value"]].itertuples(index=False, name=None))


def table(lake: Lake, shard: str = "s") -> Path:
    return Path(lake.root) / f"tables/placing_2016/shard={shard}/data.parquet"


def files(lake: Lake) -> dict[str, bytes]:
    root = Path(lake.root) / "files/placing_2016"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# -- records ----------------------------------------------------------------------------------------------------


def test_a_record_becomes_a_row_that_says_where_its_photo_lies(folder, lake):
    write_shard(folder / "s.msg", [record("13/20/8010869266.jpg", -98.49, 29.42), record("aa/bb/3.jpg", 4, 3)])
    figures = take(lake, folder)
    (first, second) = rows(lake)
    assert (first["photo_id"], first["path"]) == ("8010869266", "13/20/8010869266.jpg")
    assert (second["photo_id"], second["path"]) == ("aa/bb/3", "aa/bb/3.jpg")
    assert (first["lon"], first["lat"], first["source"], first["flags"]) == (-98.49, 29.42, "placing_2016", [])
    assert first["shard_file"] == "s.msg" and pd.isna(first["file"])
    assert photo_bytes(folder, first) == photo_bytes(folder, second) == jpeg()
    assert figures["n_photos"] == 2 and figures["reject_reasons"] == {} and not figures["unchanged"]
    assert not (Path(lake.root) / "files").exists()


@pytest.mark.parametrize(
    ("bad", "reason", "value"),
    [
        ([1, 2, 3], "the record is not a map", "list"),
        ({"latitude": 1.0, "longitude": 2.0}, "the record has no id", "latitude, longitude"),
        ({"id": 7, "latitude": 1.0}, "the record has no id", "id, latitude"),
        ({"id": "../../x.jpg", "latitude": 1.0, "longitude": 2.0}, "the path leaves its folder", "path=../../x.jpg"),
        ({"id": "/x.jpg", "latitude": 1.0, "longitude": 2.0}, "the path leaves its folder", "path=/x.jpg"),
        ({"id": "a\0b", "latitude": 1.0, "longitude": 2.0}, "the path leaves its folder", "path=a"),
        ({"id": "a/1.jpg", "latitude": 1.0}, "the record has half a position", "lon=None, lat=1.0"),
        ({"id": "a/1.jpg", "latitude": float("nan"), "longitude": 5.0}, "missing or not a number", "lon=5.0, lat=nan"),
        ({"id": "a/1.jpg", "latitude": "48.1 N", "longitude": 5.0}, "the latitude is not a number", "48.1 N"),
        ({"id": "a/1.jpg", "latitude": 95.0, "longitude": 5.0}, "out of range", "lon=5.0, lat=95.0"),
        ({"id": "a/1.jpg", "latitude": 5.0, "longitude": float("inf")}, "out of range", "lon=inf, lat=5.0"),
    ],
)
def test_a_bad_record_is_a_reject_and_the_next_is_read(folder, lake, bad, reason, value):
    write_shard(folder / "s.msg", [bad, record("a/b/2.jpg", 1.0, 2.0)])
    figures = take(lake, folder, settings=EXTRACTING)
    assert [row["path"] for row in rows(lake)] == ["a/b/2.jpg"]
    ((row, why, what),) = rejects(lake)
    assert row == "0" and reason in why and what.startswith(value)
    assert figures["n_rejects"] == 1 and figures["reject_reasons"] == {why: 1}
    # Nothing was written but the one photo: an id is no path before it is found safe.
    assert list(files(lake)) == ["a/b/2.jpg"]


@pytest.mark.parametrize("image", [None, b"", b"not a jpeg", "a text", 7])
def test_a_record_without_a_jpeg_keeps_its_position(folder, lake, image):
    content = {"id": "a/b/2.jpg", "latitude": 1.0, "longitude": 2.0, "image": image}
    write_shard(folder / "s.msg", [content if image != 7 else {k: content[k] for k in ("id", "latitude", "longitude")}])
    assert take(lake, folder, settings=EXTRACTING)["n_without_image"] == 1
    (row,) = rows(lake)
    assert row["lon"] == 2.0 and pd.isna(row["offset"]) and pd.isna(row["bytes"]) and pd.isna(row["file"])
    with pytest.raises(SourceError, match="has no image"):
        photo_bytes(folder, row)


def test_null_island_is_flagged_and_the_antimeridian_is_not(folder, lake):
    write_shard(folder / "s.msg", [record("a/1.jpg", 0, 0), record("a/2.jpg", 180, -16), record("a/3.jpg", -180, -16)])
    assert take(lake, folder)["n_null_island"] == 1
    assert [(row["lon"], row["flags"]) for row in rows(lake)] == [(0, ["null_island"]), (180, []), (-180, [])]


def test_a_cut_shard_keeps_its_good_records(folder, lake):
    write_shard(folder / "s.msg", [record("a/b/1.jpg", 1, 1), record("a/b/2.jpg", 2, 2)], cut=7)
    take(lake, folder)
    assert [row["path"] for row in rows(lake)] == ["a/b/1.jpg"]
    ((row, reason, value),) = rejects(lake)
    assert (row, reason) == ("1", "the shard breaks off") and value.startswith("after 1 records, at byte ")


# -- the CSV ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [".", ".."])
def test_the_csv_gives_positions_and_authors(folder, lake, where):
    (folder / where / mp16.COORDINATES).write_text(MP16)
    bare = [{"id": path, "image": jpeg()} for path in ("13/20/8010869266.jpg", "cc/cc/99999.jpg")]
    write_shard(folder / "s.msg", [*bare, record("ba/08/6468190417.jpg", 1, 2), record("aa/aa/77777.jpg", 3, 4)])
    figures = take(lake, folder)
    author = hashlib.sha256(b"78841376@N00").hexdigest()[:16]
    # A record's own position is better than the file's.
    assert [(r["photo_id"], r["lon"], r["lat"]) for r in rows(lake)] == [
        ("6468190417", 1, 2),
        ("77777", 3, 4),
        ("8010869266", -98.5, 29.4),
    ]
    assert lake.read("placing_2016", shard="s")["author_hash"].fillna("").tolist() == ["", "", author]
    assert figures["n_positions_of_csv"] == 1
    assert rejects(lake) == [
        ("1", f"the record has no position, and {mp16.COORDINATES} has none for it", "cc/cc/99999.jpg")
    ]


def test_without_the_csv_they_are_rejects_that_name_it(folder, lake):
    write_shard(folder / "s.msg", [{"id": "a/b/1.jpg", "image": b""}])
    take(lake, folder)
    assert rejects(lake) == [
        ("0", f"the record has no position, and the folder has no {mp16.COORDINATES}", "a/b/1.jpg")
    ]


def test_many_photos_are_found_in_the_csv(folder, lake):
    lines = [f"a/{k}.jpg,author {k % 7},{k / 100},{-k / 100}" for k in range(5000)]
    (folder / mp16.COORDINATES).write_text(HEADER.replace(",S3_Label", "") + "\n".join(lines))
    write_shard(folder / "s.msg", [{"id": f"a/{k}.jpg"} for k in range(0, 6000, 3)])
    take(lake, folder)
    frame = lake.read("placing_2016", shard="s")
    number = frame["path"].str[2:-4].astype(int)
    assert sorted(number) == list(range(0, 5000, 3)) and np.array_equal(frame["lat"], number / 100)
    hashes = [hashlib.sha256(f"author {k % 7}".encode()).hexdigest()[:16] for k in number]
    assert frame["author_hash"].tolist() == hashes and len(rejects(lake)) == 333


def test_bad_lines_are_rejects_of_the_csv_and_the_first_of_two_counts(folder, lake):
    wrong = ["aa/bb/1.jpg,x,1,2,3,4", "aa/bb/2.jpg,x,north,2,3", "aa/bb/3.jpg,x,91,2,3", "../4.jpg,x,1,2,3"]
    (folder / mp16.COORDINATES).write_text(MP16 + "\n".join([*wrong, "13/20/8010869266.jpg,x,1,1,1"]))
    write_shard(folder / "s.msg", [{"id": "13/20/8010869266.jpg"}, {"id": "aa/bb/2.jpg"}])
    take(lake, folder)
    assert [(row["lon"], row["lat"]) for row in rows(lake)] == [(-98.5, 29.4)]
    found = {reason: value for _, reason, value in rejects(lake, mp16.PART)}
    assert len(found) == 4 and found["the position is missing or not a number"] == "lon=2, lat=north"
    assert "has none for it" in rejects(lake)[0][1]


def test_a_swapped_csv_is_refused(folder, lake):
    write_shard(folder / "s.msg", [{"id": "a/b/1.jpg"}])
    (folder / mp16.COORDINATES).write_text("IMG_ID,AUTHOR,LON,LAT\na/b/1.jpg,x,-33.8,151.2\n")
    with pytest.raises(SourceError, match="swapped"):
        take(lake, folder)
    assert not lake.has("placing_2016", shard="s")


def test_the_csv_is_read_once_and_again_when_it_changes(folder, lake, monkeypatch):
    read, times = mp16._read, []
    monkeypatch.setattr(mp16, "_read", lambda *args: (times.append(1), read(*args)))
    (folder / mp16.COORDINATES).write_text(MP16)
    write_shard(folder / "s.msg", [{"id": "13/20/8010869266.jpg"}])
    write_shard(folder / "t.msg", [{"id": "ba/08/6468190417.jpg"}])
    take(lake, folder)
    take(lake, folder, "t")
    assert len(times) == 1
    (folder / mp16.COORDINATES).write_text(MP16.replace("29.4", "29.75"))
    take(lake, folder)
    assert len(times) == 2 and rows(lake)[0]["lat"] == 29.75
    assert len(lake.names("files/placing_2016_coordinates")) == 1  # the old one is gone
    assert rejects(lake, mp16.PART) == []
    (folder / mp16.COORDINATES).unlink()
    assert take(lake, folder)["n_rejects"] == 1


# -- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["lake", "memory://placing_lake"])
def test_extracted_photos_have_the_bytes_of_the_shard(folder, tmp_path, root):
    # Pixels that a second encoding would change.
    photo = jpeg()[:-2] + np.random.default_rng(0).bytes(40_000) + jpeg()[-2:]
    sent = {f"0{k}/ab/{k}00000.jpg": photo[: 30_000 + k] for k in range(4)} | {"ü@N00/5.jpg": photo}
    write_shard(folder / "s.msg", [record(path, 1, 2) | {"image": image} for path, image in sent.items()])
    lake = Lake(root if "://" in root else tmp_path / root)
    if not lake.is_local:
        lake.fs.store.clear()
    assert take(lake, folder, settings=EXTRACTING)["n_extracted"] == 5
    for row in rows(lake):
        assert row["file"] == f"files/placing_2016/{row['path']}"
        assert lake.get_bytes(row["file"]) == sent[row["path"]] == photo_bytes(folder, row)


def test_of_two_records_with_one_path_the_first_becomes_the_file(folder, lake):
    write_shard(
        folder / "s.msg", [record("a/1.jpg", 1, 1) | {"image": jpeg() + tail} for tail in (b"first", b"second")]
    )
    take(lake, folder, settings=EXTRACTING)
    assert files(lake) == {"a/1.jpg": jpeg() + b"first"}
    assert [pd.isna(row["file"]) for row in rows(lake)] == [False, True]


def test_a_photo_whose_path_no_disk_takes_keeps_its_row(folder, lake):
    odd = ["a", "a/1.jpg", "x" * 300 + ".jpg"]
    write_shard(folder / "s.msg", [record(path, 1, 1) for path in odd])
    assert take(lake, folder, settings=EXTRACTING)["n_extracted"] == 1
    assert {row["path"]: not pd.isna(row["file"]) for row in rows(lake)} == {odd[0]: True, odd[1]: False, odd[2]: False}


def test_what_a_crash_left_half_is_written_again_and_the_rest_kept(folder, lake):
    write_shard(folder / "s.msg", [record(f"a/{k}.jpg", 1, 1) for k in range(3)])
    take(lake, folder, settings=EXTRACTING)
    whole, root = table(lake).read_bytes(), Path(lake.root) / "files/placing_2016/a"
    table(lake).unlink()
    (root / "0.jpg").write_bytes(bytes(len(jpeg())))  # its name was on the disk, its bytes were not
    (root / "1.jpg").write_bytes(b"")
    os.utime(root / "2.jpg", (1, 1))
    half = Path(lake.root) / "files/placing_2016_staged/s/killed"
    half.mkdir(parents=True)
    (half / "photo").write_bytes(b"half")
    take(lake, folder, settings=EXTRACTING)
    assert set(files(lake).values()) == {jpeg()} and len(files(lake)) == 3
    assert (root / "2.jpg").stat().st_mtime == 1 and not half.exists()
    assert table(lake).read_bytes() == whole


def test_a_photo_of_a_shard_that_has_changed_is_not_taken_for_another(folder, lake):
    write_shard(folder / "s.msg", [record("a/1.jpg", 1, 1)])
    take(lake, folder)
    (row,) = rows(lake)
    with pytest.raises(SourceError, match="no shard inside"):
        photo_bytes(folder, row | {"shard_file": "../s.msg"})
    (folder / "s.msg").write_bytes(bytes(5000))
    with pytest.raises(SourceError, match="holds no JPEG at byte"):
        photo_bytes(folder, row)
    (folder / "s.msg").unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        photo_bytes(folder, row)


# -- again ------------------------------------------------------------------------------------------------------


def test_a_shard_is_read_again_only_where_something_changed(folder, lake):
    write_shard(folder / "s.msg", [record("a/1.jpg", 1, 1), [1]])
    first = take(lake, folder)
    written = table(lake).stat().st_mtime_ns
    assert take(lake, folder) == first | {"unchanged": True}
    assert table(lake).stat().st_mtime_ns == written
    assert not take(lake, folder, settings=EXTRACTING)["unchanged"]
    write_shard(folder / "s.msg", [record("a/1.jpg", 1, 1), record("a/2.jpg", 1, 1)])
    assert take(lake, folder)["n_photos"] == 2


def test_a_step_that_dies_before_its_table_is_taken_up(folder, lake, monkeypatch):
    write_shard(folder / "s.msg", [record("a/1.jpg", 1, 1), [1]])
    take(lake, folder)
    whole = table(lake).read_bytes()
    table(lake).unlink()
    write = Lake.write_query

    def dies(self: Lake, con: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "placing_2016":
            raise KeyboardInterrupt
        return write(self, con, name, *args, **kwargs)

    monkeypatch.setattr(Lake, "write_query", dies)
    with pytest.raises(KeyboardInterrupt):
        take(lake, folder)
    monkeypatch.undo()
    assert not lake.has("placing_2016", shard="s") and rejects(lake)
    assert not take(lake, folder)["unchanged"] and table(lake).read_bytes() == whole


def test_a_missing_shard_is_named(folder, lake):
    with pytest.raises(SourceError, match=r"s\.msg cannot be read: No such file"):
        take(lake, folder)


def test_many_shards_make_one_account(folder, lake):
    write_shard(folder / "s.msg", [record("a/1.jpg", 1, 1), [1]])
    write_shard(folder / "t.msg", [record("a/2.jpg", 1, 1), [1], [2]])
    take(lake, folder, "t")
    said: list[str] = []
    shards = {name: Path(f"{name}.msg") for name in "st"}
    figures = take_shards(lake, folder, shards, Geotag(), said.append)
    assert (figures["n_shards"], figures["n_unchanged"], figures["n_photos"], figures["n_rejects"]) == (2, 1, 2, 3)
    assert figures["reject_reasons"] == {"the record is not a map": 3} and said == ["s: 1 photos, 1 rejects"]


# -- samples ----------------------------------------------------------------------------------------------------


def test_the_sample_shards(real_data: Path, lake: Lake) -> None:
    folder = real_data / "geotag/msgpack"
    shards = {path.stem: Path(path.name) for path in sorted(folder.glob("*.msg"))}
    figures = take_shards(lake, folder, shards, EXTRACTING, quiet)
    assert figures == {
        "n_shards": 4,
        "n_unchanged": 0,
        "n_photos": 10,
        "n_positions_of_csv": 0,
        "n_without_image": 1,
        "n_null_island": 1,
        "n_extracted": 9,
        "n_rejects": 8,
        "reject_reasons": {
            f"the record has no position, and the folder has no {mp16.COORDINATES}": 2,
            "the path leaves its folder or is none": 1,
            "the position is missing or not a number": 1,
            "the position is out of range": 1,
            "the record has half a position": 1,
            "the record is not a map": 1,
            "the shard breaks off": 1,
        },
    }
    good, bad = rows(lake, "shard_0"), rows(lake, "shard_2_bad_records")
    assert [(r["photo_id"], r["lon"], r["lat"]) for r in good][2] == ("8010869266", -98.490723, 29.426458)
    assert [(r["path"], r["lon"]) for r in bad] == [
        ("aa/bb/3.jpg", 20.5),
        ("aa/bb/7.jpg", 0),
        ("aa/bb/8.jpg", 179.9999),
        ("aa/bb/9.jpg", -179.9999),
    ]
    assert rejects(lake, "shard_3_truncated") == [
        ("1", "the shard breaks off", "after 1 records, at byte 705 of 1,057: the file ends inside a record")
    ]
    for row in [*good, *bad[1:]]:
        assert lake.get_bytes(row["file"]) == photo_bytes(folder, row)
    assert sorted(files(lake)) == sorted(r["path"] for s in shards for r in rows(lake, s) if r["path"] != "aa/bb/3.jpg")


def test_the_sample_without_coordinates_gets_them_from_a_csv(real_data: Path, folder: Path, lake: Lake) -> None:
    sample = real_data / "geotag/msgpack/shard_1_geoestimation_no_coords.msg"
    (folder / "s.msg").write_bytes(sample.read_bytes())
    (folder / mp16.COORDINATES).write_text(MP16)
    take(lake, folder)
    assert [(r["photo_id"], r["lon"], r["lat"]) for r in rows(lake)] == [
        ("6468190417", 12.5, 41.9),
        ("8010869266", -98.5, 29.4),
    ]


def test_the_demo_shards(tmp_path: Path, lake: Lake) -> None:
    write_geotag_inputs(tmp_path)
    folder = tmp_path / "placing_2016"
    shards = {path.stem: Path(path.name) for path in sorted(folder.glob("*.msg"))}
    figures = take_shards(lake, folder, shards, Geotag(), quiet)
    assert figures["n_photos"] == 1500 - 1 + 3 and figures["n_positions_of_csv"] == 500
    assert figures["n_rejects"] == len(rejects(lake, "shard_3")) + 1 == 9
    assert len({reason for _, reason, _ in rejects(lake, "shard_3")}) == 7
