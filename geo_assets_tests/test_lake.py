import os
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from geo_assets.errors import GeoAssetsError
from geo_assets.lake import BoxPartition, Lake
from geo_assets.tables import TABLES

SEQUENCES = pd.DataFrame(
    {
        "sequence_id": ["b", "a"],
        "n_images": [3, 2],
        "n_in_tiles": [1, 2],
        "n_in_box": [1, 2],
        "first_seen_in": ["tile", "tile"],
        "closed": [True, True],
    }
)
BOX = BoxPartition(city="demo", box="r00c00")


@pytest.fixture(params=["folder", "memory"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake" if request.param == "folder" else f"memory://{tmp_path.name}")


def test_a_partition_comes_back_sorted_and_typed(lake: Lake) -> None:
    facts = lake.write("sequence_ids", SEQUENCES, note={"bounds": [1, 2, 3, 4]}, **BOX)
    assert facts.rows == 2
    assert facts.bytes > 0
    back = lake.read("sequence_ids", **BOX)
    assert list(back["sequence_id"]) == ["a", "b"]
    assert lake.note("sequence_ids", **BOX) == {"bounds": [1, 2, 3, 4]}
    assert lake.partitions("sequence_ids") == [BOX]


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    a, b = Lake(tmp_path / "a"), Lake(tmp_path / "b")
    first = a.write("sequence_ids", SEQUENCES, **BOX)
    second = b.write("sequence_ids", SEQUENCES.iloc[::-1], **BOX)
    assert Path(first.uri).read_bytes() == Path(second.uri).read_bytes()


def test_a_wrong_frame_replaces_nothing(lake: Lake) -> None:
    lake.write("sequence_ids", SEQUENCES, **BOX)
    with pytest.raises(GeoAssetsError, match=r"missing \['closed'\].*Nothing was written"):
        lake.write("sequence_ids", SEQUENCES.drop(columns="closed"), **BOX)
    with pytest.raises(GeoAssetsError, match="column n_images"):
        lake.write("sequence_ids", SEQUENCES.assign(n_images=["many", "few"]), **BOX)
    assert len(lake.read("sequence_ids", **BOX)) == 2


def test_a_missing_partition_says_what_to_type(lake: Lake) -> None:
    with pytest.raises(GeoAssetsError, match=r"--select image_files --partition 'r00c00\|demo'"):
        lake.read("image_files", **BOX)
    assert lake.read_if_any("image_files", **BOX).empty


def test_a_wrong_partition_is_refused(lake: Lake) -> None:
    with pytest.raises(GeoAssetsError, match="partitioned by"):
        lake.write("sequence_ids", SEQUENCES, city="demo")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b", "", "x/../y", ".hidden"])
def test_names_from_outside_stay_inside(lake: Lake, name: str) -> None:
    with pytest.raises(GeoAssetsError):
        lake.put_bytes(lake.key("images", name or "/", **BOX), b"x")
    with pytest.raises(GeoAssetsError):
        lake.get_bytes(f"files/{name}/../../x")


def test_files_and_folders(lake: Lake, tmp_path: Path) -> None:
    key = lake.key("images", "1.jpg", **BOX)
    assert key == "files/images/city=demo/box=r00c00/1.jpg"
    lake.put_bytes(key, b"jpeg")
    assert lake.get_bytes(key) == b"jpeg"
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.bin").write_bytes(b"1")
    target = lake.key("models", **BOX)
    lake.publish(folder, target)
    (folder / "sub" / "a.bin").unlink()
    (folder / "b.bin").write_bytes(b"2")
    lake.publish(folder, target)
    with lake.local(target) as local:
        assert sorted(p.name for p in local.rglob("*.bin")) == ["b.bin"], "the old folder is replaced, not merged"
    assert lake.names(lake.key("images", **BOX)) == ["1.jpg"]
    lake.link(key, tmp_path / "linked.jpg")
    assert (tmp_path / "linked.jpg").read_bytes() == b"jpeg"


def test_a_file_can_be_removed_and_many_synced_at_once(lake: Lake) -> None:
    key = lake.key("images", "1.jpg", **BOX)
    lake.sync(lake.key("images", **BOX))  # a folder that is not there is no error
    lake.put_bytes(key, b"jpeg", sync_folder=False)
    lake.sync(lake.key("images", **BOX))
    assert lake.get_bytes(key) == b"jpeg"
    lake.remove(key)
    lake.remove(key)
    assert lake.names(lake.key("images", **BOX)) == []
    with pytest.raises(GeoAssetsError, match="inside the lake"):
        lake.remove("../outside")


def test_views_hold_city_and_box_and_an_empty_table_is_an_empty_view(lake: Lake) -> None:
    lake.write("sequence_ids", SEQUENCES, **BOX)
    lake.write("sequence_ids", SEQUENCES, city="demo", box="r00c01")
    with lake.connect("sequence_ids", "splat_ply") as con:
        rows = con.execute(
            "select box, count(*) from sequence_ids where city = 'demo' group by box order by box"
        ).fetchall()
        assert rows == [("r00c00", 2), ("r00c01", 2)]
        assert con.execute("select count(*) from splat_ply where city = 'x' and psnr_db > 0").fetchall() == [(0,)]


def test_a_column_that_all_files_lack_is_null(lake: Lake) -> None:
    """A lake that an earlier version wrote is read by the schema of today."""
    lake.write_arrow("sequence_ids", pa.table({"sequence_id": ["a"], "n_images": [2]}), **BOX)
    assert lake.read("sequence_ids", ["closed", "sequence_id"], **BOX).to_dict("list") == {
        "closed": [None],
        "sequence_id": ["a"],
    }
    assert set(lake.read("sequence_ids", **BOX).columns) == set(SEQUENCES.columns)
    with lake.connect("sequence_ids") as con:
        rows = con.sql(
            "select sequence_id, n_images, n_in_box, closed, city, box from sequence_ids where closed is null"
        )
        assert rows.fetchall() == [("a", 2, None, None, "demo", "r00c00")]


def test_writers_of_one_partition_never_leave_half_a_file(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    threads = [threading.Thread(target=lake.write, args=("sequence_ids", SEQUENCES), kwargs=BOX) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lake.read("sequence_ids", **BOX)) == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_failed_write_leaves_the_old_rows_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(tmp_path)
    lake.write("sequence_ids", SEQUENCES, **BOX)

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        lake.write("sequence_ids", SEQUENCES.iloc[:1], **BOX)
    monkeypatch.undo()
    assert len(lake.read("sequence_ids", **BOX)) == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_catalogue_is_swapped_under_a_reader(tmp_path: Path) -> None:
    import duckdb

    lake = Lake(tmp_path)
    lake.write("sequence_ids", SEQUENCES, **BOX)
    path = lake.rebuild_catalog()
    with duckdb.connect(path, read_only=True) as reader:
        lake.write("sequence_ids", SEQUENCES, city="demo", box="r01c01")
        lake.rebuild_catalog()
        assert reader.execute("select count(*) from sequence_ids").fetchall() == [(4,)]


def test_a_query_streams_into_a_table(lake: Lake) -> None:
    with lake.connect() as con:
        rows = "select 'f' as file, (9 - range)::varchar as row, 'r' as reason, null as value from range(10)"
        facts = lake.write_query(con, "geotag_rejects", rows, note={"of": "it's"}, source="a", part="all")
    assert facts.rows == 10 and facts.bytes > 0
    assert lake.read("geotag_rejects", source="a", part="all")["row"].tolist() == [str(k) for k in range(10)]
    assert lake.note("geotag_rejects", source="a", part="all") == {"of": "it's"}


def test_numbers_and_times_of_a_query_come_back_as_the_table_says(lake: Lake) -> None:
    columns = {c.name: "null" for c in TABLES["google_landmark"].columns}
    columns |= {"photo_id": "'1'", "lon": "1::float", "captured_at": "'2020-01-02 03:04:05.678+00'::timestamptz"}
    query = "select " + ", ".join(f"{value} as {name}" for name, value in columns.items())
    with lake.connect() as con:
        lake.write_query(con, "google_landmark", query)
    assert lake.read("google_landmark").dtypes.astype(str)["captured_at"] == "datetime64[ms, UTC]"
    assert lake.read("google_landmark")["captured_at"].tolist() == [pd.Timestamp("2020-01-02 03:04:05.678", tz="UTC")]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("select 'f' as file, '1' as row, 'r' as reason", r"missing \['value'\]"),
        ("select 'f' as file, '1' as row, 'r' as reason, 'v' as value, 1 as more", r"unknown \['more'\]"),
        ("select 'f' as file, 1 as row, 'r' as reason, 'v' as value", "column row: the query gives integer"),
        ("select 'f' as file, '1' as row, error('boom') as reason, 'v' as value", "boom"),
    ],
)
def test_a_query_that_does_not_fit_replaces_nothing(lake: Lake, query: str, said: str) -> None:
    good = "select 'f' as file, '1' as row, 'r' as reason, 'v' as value"
    with lake.connect() as con:
        lake.write_query(con, "geotag_rejects", good, source="a", part="all")
        with pytest.raises(Exception, match=said):
            lake.write_query(con, "geotag_rejects", query, source="a", part="all")
    assert lake.rows("geotag_rejects", source="a", part="all") == 1
    assert lake.names("tables/geotag_rejects/part=all/source=a") == ["data.parquet"]
