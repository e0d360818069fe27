import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag import folder as folders
from geo_assets.geotag import headers
from geo_assets.geotag.flickr import take_flickr
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets_tests.geotag.places import write_photo


class Set:
    """A folder of the Flickr set, the lake, and what the last run said."""

    def __init__(self, root: Path) -> None:
        self.folder, self.lake = root / "set", Lake(root / "lake")
        self.folder.mkdir()
        self.figures: dict[str, Any] = {}

    def write(self, name: str, text: str | bytes) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(text.encode() if isinstance(text, str) else text)

    def photo(self, name: str, lon: float | None = None, lat: float | None = None) -> None:
        write_photo(self.folder / name, lon, lat)

    def take(self, processes: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
        self.figures = take_flickr(self.lake, self.folder, Geotag(processes=processes))
        return (
            self.lake.read("flickr_geotag").set_index("photo_id"),
            self.lake.read("geotag_rejects", source="flickr_geotag", part="all").set_index("file"),
        )


@pytest.fixture
def photos(tmp_path: Path) -> Set:
    return Set(tmp_path)


def table_bytes(lake: Lake) -> list[bytes]:
    names = ("flickr_geotag/", "geotag_rejects/part=all/source=flickr_geotag/")
    return [Path(lake.root, "tables", f"{name}data.parquet").read_bytes() for name in names]


# -- EXIF -------------------------------------------------------------------------------------------------------


def test_photos_are_read_from_their_exif(photos):
    photos.photo("1/8010869266.jpg", -98.490723, 29.426458)
    photos.photo("2/my holiday ü.JPEG", 151.209039, -33.861328)
    found, rejects = photos.take()
    assert set(found.index) == {"8010869266", "2/my holiday ü.JPEG"}
    assert found.loc["8010869266", ["lon", "lat"]].tolist() == pytest.approx([-98.490723, 29.426458], abs=1e-7)
    assert found.loc["2/my holiday ü.JPEG", ["lon", "lat"]].tolist() == pytest.approx(
        [151.209039, -33.861328], abs=1e-7
    )
    assert set(found["captured_at"]) == {pd.Timestamp("2014-05-06T07:08:09Z")}
    assert found["author_hash"].map(len).tolist() == [16, 16] and rejects.empty


def test_what_is_no_photo_is_a_reject_with_its_reason(photos):
    photos.photo("a.jpg")
    photos.write("cut.jpg", b"\xff\xd8 cut")
    photos.write("empty.jpg", b"")
    photos.write("page.jpg", "<html>")
    (photos.folder / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(photos.folder / "pipe.jpg")
    photos.photo("north.jpg", 10.0, 95.0)
    photos.write(os.fsdecode(b"\xff.jpg"), "<html>")
    found, rejects = photos.take()
    assert found.empty and photos.figures["n_rejects"] == 8
    assert rejects["reason"].to_dict() == {
        "\\udcff.jpg": "the name is not UTF-8",
        "a.jpg": "the EXIF has no GPS position",
        "cut.jpg": "the photo breaks off in its header",
        "empty.jpg": "the file is empty",
        "gone.jpg": "the photo cannot be opened",
        "north.jpg": "the position is out of range",
        "page.jpg": "the file is no JPEG",
        "pipe.jpg": "this is no file",
    }


def test_links_to_folders_are_not_followed(photos):
    photos.photo("1/8010869266.jpg", 1.0, 1.0)
    (photos.folder / "1" / "loop").symlink_to(photos.folder)
    assert len(photos.take()[0]) == 1


def test_only_what_is_new_or_changed_is_opened(photos):
    for number in (1, 2, 3):
        photos.photo(f"801086926{number}.jpg", number, number)
    photos.take()
    assert photos.figures["n_opened"] == 3
    photos.take()
    assert photos.figures["n_opened"] == 0
    photos.photo("8010869262.jpg", 22.0, 2.0)
    photos.photo("8010869264.jpg", 4.0, 4.0)
    (photos.folder / "8010869263.jpg").unlink()
    found, _ = photos.take()
    assert photos.figures["n_opened"] == 2
    assert found["lon"].round(6).to_dict() == {"8010869261": 1.0, "8010869262": 22.0, "8010869264": 4.0}


def test_what_is_kept_of_photos_that_went_goes(photos):
    photos.photo("8010869261.jpg", 1.0, 1.0)
    photos.take()
    kept = photos.lake.key("flickr_geotag", f"headers-{headers.READER}")
    old = photos.lake.names(kept)
    photos.lake.put_bytes(photos.lake.key("flickr_geotag", "headers-0/a.parquet"), b"of another reader")
    photos.photo("8010869261.jpg", 11.0, 1.0)
    photos.take()
    assert len(photos.lake.names(kept)) == 1 and photos.lake.names(kept) != old
    assert photos.lake.names(photos.lake.key("flickr_geotag")) == [f"headers-{headers.READER}"]


def test_a_photo_that_could_not_be_opened_is_tried_again(photos, monkeypatch):
    photos.photo("8010869261.jpg", 1.0, 1.0)
    photos.photo("8010869262.jpg", 2.0, 2.0)
    real = headers.read_header

    def failing(path: str) -> headers.Header:
        if path.endswith("2.jpg"):
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(headers, "read_header", failing)
    found, rejects = photos.take()
    assert list(found.index) == ["8010869261"]
    assert rejects.loc["8010869262.jpg", ["reason", "value"]].tolist() == [
        "the photo cannot be opened",
        "Input/output error",
    ]
    monkeypatch.undo()
    found, rejects = photos.take()
    assert photos.figures["n_opened"] == 1 and len(found) == 2 and rejects.empty


def many(folder: Path, n: int) -> None:
    """Photos of 20 places, many names each."""
    for k in range(n):
        first = folder / f"{k % 20}" / f"{8010860000 + k % 20}.jpg"
        if k < 20:
            write_photo(first, k - 10.0, k)
        else:
            os.link(first, folder / f"{k % 20}" / f"{8010860000 + k}.jpg")


def take_and_die(root: Path, folder: Path) -> None:
    """Kill this process when the first chunk is kept, after noting its own processes."""
    keep, folders.CHUNK = Lake.put_bytes, 2048

    def put_bytes(self: Lake, key: str, data: bytes, *, sync_folder: bool = True) -> None:
        keep(self, key, data, sync_folder=sync_folder)
        children = [str(child.pid) for child in multiprocessing.active_children()]
        (root / "children").write_text(" ".join(children))
        os.kill(os.getpid(), signal.SIGKILL)

    Lake.put_bytes = put_bytes
    take_flickr(Lake(root / "lake"), folder, Geotag(processes=2))


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.chaos
def test_a_killed_run_is_taken_up_and_ends_in_the_same_bytes(photos, tmp_path, monkeypatch):
    many(photos.folder, 5000)
    photos.write("bad.jpg", b"")
    run = multiprocessing.get_context("spawn").Process(target=take_and_die, args=(tmp_path, photos.folder))
    run.start()
    run.join()
    assert run.exitcode == -signal.SIGKILL and not photos.lake.partitions("flickr_geotag")
    children = (tmp_path / "children").read_text().split()
    end = time.monotonic() + 20
    while any(map(runs, children)) and time.monotonic() < end:
        time.sleep(0.01)
    assert len(children) == 2 and not any(map(runs, children)), "processes outlive their parent"
    monkeypatch.setattr(folders, "CHUNK", 2048)
    found, _ = photos.take()
    assert len(found) == 5000 and photos.figures["n_opened"] == 5001 - 2048
    undisturbed = Lake(tmp_path / "other")
    take_flickr(undisturbed, photos.folder, Geotag(processes=1))
    assert table_bytes(photos.lake) == table_bytes(undisturbed)


# -- CSV --------------------------------------------------------------------------------------------------------


def test_a_csv_goes_before_the_exif_of_its_photos(photos):
    photos.photo("1/8010869266.jpg", 1.0, 1.0)
    photos.photo("1/8010869267.jpg", 3.0, 3.0)
    photos.photo("1/8010869268.jpg", 4.0, 4.0)
    photos.write(
        "photos.csv", "photo_id,owner,Latitude,Longitude\n8010869266,ada,10,20\n8010869268,bea,x,2\n8010869269,,1,2\n"
    )
    found, rejects = photos.take()
    assert found["lon"].round(6).to_dict() == {
        "8010869266": 20.0,
        "8010869267": 3.0,
        "8010869268": 4.0,  # the CSV has no position of it
        "8010869269": 2.0,
    }
    assert found["path"].tolist()[::3] == ["1/8010869266.jpg", "8010869269"]
    assert rejects[["row", "value"]].to_records().tolist() == [("photos.csv", "1", "lon=2, lat=x")]
    assert photos.figures["n_opened"] == 2 and photos.figures["n_by_csv"] == 2


def test_paths_lie_below_the_folder_or_beside_the_csv(photos):
    for name in ("a.jpg", "sub/b.jpg", "c.jpg"):
        photos.photo(name)
    photos.write("sub/list.csv", "File Path,lat,lon\nb.jpg,1,2\n./c.jpg,3,4\n..\\..\\d.jpg,5,6\n")
    found, rejects = photos.take()
    assert found["path"].to_dict() == {"sub/b.jpg": "sub/b.jpg", "c.jpg": "c.jpg"}
    assert rejects["value"].to_dict() == {
        "a.jpg": pytest.approx(float("nan"), nan_ok=True),
        "sub/list.csv": "path=../../d.jpg",
    }


def test_columns_are_found_by_many_names(photos):
    for number, text in enumerate(
        [
            "PHOTO ID;LAT;LNG\n70000;48,5;11,25\n",
            "flickr_id\tlatitude\tlongitude\n70001\t48.5\t11.25\n",
            'id|coordinates\n70002|"48° 30′ 0″ N, 11° 15′ 0″ E"\n',
            "image-id,LatLon\n70003.jpg,48.5 11.25\n",
            "url,lat,long\nhttps://live.staticflickr.com/65535/70004_0123456789_b.jpg?x=1,48.5,11.25\n",
            "id,path,geo lat,geo lon\n30000,x/70005.jpg,48.5,11.25\n",
        ]
    ):
        photos.write(f"{number}.csv", text)
    found, rejects = photos.take()
    assert rejects.empty and set(found["lon"]) == {11.25} and set(found["lat"]) == {48.5}
    assert found["path"].to_dict() == {
        **{f"{number}": f"{number}" for number in (70000, 70001, 70002, 70004)},
        "70003": "70003.jpg",
        "70005": "x/70005.jpg",
    }


def test_a_time_counts_where_its_zone_is_known(photos):
    times = {
        "2013-08-17T12:00:00+02:00": "2013-08-17T10:00:00Z",
        "2013:08:17 12:00:00 UTC": "2013-08-17T12:00:00Z",
        "1376740800": "2013-08-17T12:00:00Z",
        "1376740800500": "2013-08-17T12:00:00.5Z",
        "2013-08-17 12:00:00": None,
        "2013-08-17": None,
        "20130817": None,
        "201308171200": None,
        "soon": None,
    }
    lines = [f"{70001 + k},1,2,{time},4,ada\n" for k, time in enumerate(times)]
    photos.write("a.csv", "id,lat,lon,DateTaken,License,owner\n" + "".join(lines))
    photos.write("b.csv", "id,lat,lon,date_taken\n80001,1,2,2013-08-17 12:00:00\n")
    found = photos.take()[0]
    got = [None if pd.isna(time) else time for time in found["captured_at"]]
    assert got == [*(time and pd.Timestamp(time) for time in times.values()), None]
    assert set(found["licence"].dropna()) == {"4"} and "ada" not in set(found["author_hash"])
    assert [
        "captured_at is date_taken (without a time zone, not used)" in said for said in photos.figures["csv_files"]
    ] == [
        False,
        True,
    ]


def test_each_csv_says_what_was_recognised(photos):
    photos.write("a.csv", "photo_id,lat,lon,title\n8010869266,1,2,x\n7,1,2,x\n")
    photos.write("b.csv", "photo,tag\n1,dog\n")
    photos.write("c.csv", "")
    photos.write("d.csv", "photo_id,location\n8.01E+09,1 2\n80001,Berlin\n")
    _, rejects = photos.take()
    said = photos.figures["csv_files"]
    assert (
        said[0]
        == "a.csv: 2 lines, 1 with an id as Flickr's; photo_id is photo_id, lon is lon, lat is lat; ignored: title"
    )
    assert said[1].startswith(
        "b.csv: passed over, the CSV has no id and coordinate columns: its columns are photo, tag"
    )
    assert rejects[["reason", "value"]].to_records().tolist() == [
        ("b.csv", "the CSV has no id and coordinate columns", "its columns are photo, tag"),
        ("c.csv", "the CSV cannot be read", rejects.loc["c.csv", "value"]),
        ("d.csv", "a spreadsheet has rounded the id", "1 2"),
        ("d.csv", "the text is no position", "Berlin"),
    ]
    assert "is empty" in rejects.loc["c.csv", "value"]


def test_names_from_outside_break_no_query(photos):
    photos.write("it's/o'clock.csv", "id,lat,lon\n70001,1,2\n70002,1\n")
    photos.photo("it's/7 'o'.jpg", 3.0, 4.0)
    photos.write(os.fsdecode(b"it's/\xe9.csv"), "id,lat,lon\n70003,1,2\n")
    found, rejects = photos.take()
    assert set(found.index) == {"70001", "it's/7 'o'.jpg"}
    assert rejects["reason"].to_dict() == {
        "it's/\\udce9.csv": "the name is not UTF-8",
        "it's/o'clock.csv": "the line has too few fields",
    }


def test_an_empty_folder_says_what_to_set(photos):
    photos.write("readme.txt", "nothing")
    with pytest.raises(SourceError, match=r"geotag\.flickr_geotag"):
        photos.take()


def test_the_published_files_are_read_in_full(real_data: Path, photos):
    points = real_data / "geotag/points"
    shutil.copy(points / "im2gps3k_places365.csv", photos.folder)
    duckdb.sql(f"copy (from '{points}/yfcc25600.parquet') to '{photos.folder}/yfcc.csv'")
    found, rejects = photos.take()
    assert len(found) == 2997 + 25_600 and rejects.empty and found["author_hash"].notna().all()
    assert found.loc["3228511372", ["path", "lon", "lat"]].tolist() == ["45/77/3228511372.jpg", 23.611207, 46.778991]


def test_the_published_swapped_file_is_refused(real_data: Path, photos):
    shutil.copy(real_data / "geotag/points/im2gps3k_swapped_header_head.csv", photos.folder / "a.csv")
    with pytest.raises(SourceError, match="swapped"):
        photos.take()
    assert not photos.lake.partitions("flickr_geotag")
