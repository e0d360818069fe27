import hashlib
import math
import os
import time
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from geo_assets.errors import GeoAssetsError
from geo_assets.geotag import combine as combine_module
from geo_assets.geotag.combine import combine, write_points
from geo_assets.geotag.photos import flickr_id, querying
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES

SETTINGS = Geotag()


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(tmp_path)


def put(lake: Lake, source: str, rows: list[tuple[str, float, float]], part: str = "shard_0", **more: Any) -> None:
    """Photos as (path, lon, lat) in the table of a source, as its reader would write them."""
    columns = {"source": source, "flags": [], **more}
    records = [
        columns | {"photo_id": flickr_id(path) or path, "path": path, "lon": lon, "lat": lat} for path, lon, lat in rows
    ]
    partition = {"shard": part} if source == "placing_2016" else {}
    lake.write(source, TABLES[source].frame(records), note=None, **partition)


def put_images(lake: Lake, images: list[dict], box: str = "r00c00", city: str = "here") -> None:
    columns = TABLES["image_metadata"].column_names
    frame = pd.DataFrame(images).reindex(columns=columns).astype(object)
    lake.write("image_metadata", frame, city=city, box=box)


def combined(lake: Lake, settings: Geotag = SETTINGS) -> pd.DataFrame:
    combine(lake, settings)
    return lake.read("geotag_combined").set_index("photo_id")


def table_bytes(lake: Lake, table: str = "geotag_combined") -> bytes:
    return Path(lake.facts(table).uri).read_bytes()


def test_an_empty_lake_gives_empty_tables(lake):
    assert combine(lake, SETTINGS)["n_photos"] == write_points(lake, SETTINGS)["n_points"] == 0
    for table in ("geotag_combined", "geotag_points"):
        assert lake.read(table).empty


def test_a_flickr_photo_of_two_sources_is_kept_once(lake):
    put(lake, "placing_2016", [("13/20/8010869266.jpg", 1, 2), ("aa/bb/3.jpg", 5, 6)])
    put(
        lake,
        "flickr_geotag",
        [("x/8010869266_e60e9cdfb4_o.jpg", 1.0001, 2), ("x/8010869266.jpg", 1, 2), ("aa/bb/3.jpg", 5, 6)],
    )
    # Another set's names mean nothing: a landmark photo called like a Flickr photo is another photo.
    put(lake, "google_landmark", [("8/0/1/8010869266.jpg", 1, 2)])
    figures = combine(lake, SETTINGS)
    photos = lake.read("geotag_combined")
    assert sorted(photos["source"] + " " + photos["path"]) == [
        "flickr_geotag aa/bb/3.jpg",
        "google_landmark 8/0/1/8010869266.jpg",
        "placing_2016 13/20/8010869266.jpg",
        "placing_2016 aa/bb/3.jpg",
    ]
    assert (figures["n_duplicates_within"], figures["n_duplicates_across"], figures["n_read"]) == (1, 1, 6)
    assert figures["by_source"]["flickr_geotag"]["read"] == 3 and figures["by_source"]["flickr_geotag"]["photos"] == 1


def test_a_photo_that_two_sets_place_differently_is_not_both_learnt_and_tested(lake):
    # A pair of copies in cells of different splits; earlier scripts kept both.
    places = [(f"{10_000 + i}.jpg", i * 0.5, 10.0) for i in range(60)]
    moved = [(path, lon, -lat) for path, lon, lat in places]
    put(lake, "placing_2016", places)
    alone = combined(lake)["split"]
    put(lake, "placing_2016", moved)
    assert combined(lake)["split"].to_dict() != alone.to_dict(), "the copies would leak"
    put(lake, "placing_2016", places)
    put(lake, "flickr_geotag", moved)
    photos = combined(lake)
    assert photos.index.is_unique and photos["split"].to_dict() == alone.to_dict()


def test_of_equal_ids_the_first_record_is_kept_whatever_the_order(lake):
    rows = [("b/12345.jpg", 3.0, 1.0), ("a/12345.jpg", 9.0, 9.0), ("b/12345.jpg", 2.0, 5.0)]
    for shards in (rows, rows[::-1]):
        for number, row in enumerate(shards):
            put(lake, "placing_2016", [row], part=f"shard_{number}")
        photos = combined(lake)
        assert photos[["path", "lon", "lat"]].to_numpy().tolist() == [["a/12345.jpg", 9.0, 9.0]]
    put(lake, "google_landmark", [("a.jpg", 1.0, 1.0)] * 3)
    assert combine(lake, SETTINGS)["n_duplicates_within"] == 4


def test_harvested_images_of_all_cities_join(lake):
    put_images(lake, [{"image_id": "1", "lon": 1.0, "lat": 2.0, "computed_lon": 1.5, "computed_lat": 2.5,
                       "creator_username": "ada", "licence": "CC BY-SA 4.0"}])  # fmt: skip
    put_images(lake, [{"image_id": "2", "lon": 3.0, "lat": 4.0, "computed_lon": 3.5}], city="there")
    photos = combined(lake)
    assert photos["source"].unique().tolist() == ["mapillary"]
    assert photos[["lon", "lat"]].values.tolist() == [[1.5, 2.5], [3.0, 4.0]]
    assert photos["author_hash"].tolist()[0] == hashlib.sha256(b"ada").hexdigest()[:16]
    assert photos["path"].tolist() == ["1.jpg", "2.jpg"]


def test_images_that_the_provider_deleted_stay_out(lake):
    gone = pd.Timestamp("2025-01-01", tz="UTC")
    put_images(lake, [{"image_id": "1", "lon": 1.0, "lat": 2.0},
                      {"image_id": "2", "lon": 1.0, "lat": 2.0, "tombstoned_at": gone}])  # fmt: skip
    figures = combine(lake, SETTINGS)
    assert lake.read("geotag_combined")["photo_id"].tolist() == ["1"] and figures["n_read"] == 1


def test_positions_off_the_globe_are_rejects(lake):
    off = [(200.0, 2.0), (None, 2.0), (math.inf, 2.0), (3.0, -90.1), (math.nan, 1.0)]
    images = [{"image_id": str(i), "lon": lon, "lat": lat} for i, (lon, lat) in enumerate([*off, (180.0, -90.0)])]
    put_images(lake, images)
    figures = combine(lake, SETTINGS)
    assert lake.read("geotag_combined")["photo_id"].tolist() == ["5"]
    rejects = lake.read("geotag_rejects", source="geotag_combined", part="all")
    assert rejects["row"].tolist() == ["0", "1", "2", "3", "4"] and figures["n_out_of_range"] == 5
    assert rejects["value"].tolist()[0] == "lon=200.0, lat=2.0"


def test_flags_say_null_island_shared_positions_and_what_the_source_said(lake):
    put(lake, "placing_2016", [("a.jpg", 0, 0), ("b.jpg", 0, 0)], flags=["null_island"])
    put(lake, "google_landmark", [("c.jpg", 5, 5), ("d.jpg", 5, 5)], flags=["unclean"])
    put(lake, "flickr_geotag", [("e.jpg", 5, 5.000001), ("f.jpg", 180, 3), ("g.jpg", -180, 3), ("h.jpg", -0.0, 7)])
    put_images(lake, [{"image_id": "1", "lon": 5e-4, "lat": 0.0}, {"image_id": "2", "lon": 0.0, "lat": 7.0}])
    figures = combine(lake, SETTINGS)
    flags = lake.read("geotag_combined").set_index("photo_id")["flags"].map(list).to_dict()
    assert flags == {
        "a.jpg": ["null_island", "shared_position"],
        "b.jpg": ["null_island", "shared_position"],
        "c.jpg": ["unclean", "shared_position"],
        "d.jpg": ["unclean", "shared_position"],
        "e.jpg": [],
        "f.jpg": ["shared_position"],
        "g.jpg": ["shared_position"],
        "h.jpg": ["shared_position"],
        "1": ["null_island"],
        "2": ["shared_position"],
    }
    assert (figures["n_null_island"], figures["n_shared_position"]) == (3, 8)


def test_a_copy_that_was_dropped_shares_no_position(lake):
    put(lake, "placing_2016", [("12345.jpg", 1, 2)])
    put(lake, "flickr_geotag", [("x/12345.jpg", 1, 2)])
    assert combined(lake)["flags"].map(list).tolist() == [[]]


def test_positions_stay_as_they_were_read(lake):
    put(lake, "placing_2016", [("a.jpg", 180.0, -16.5), ("b.jpg", -70.123456789012345, 90.0)])
    assert combined(lake)[["lon", "lat"]].to_numpy().tolist() == [[180.0, -16.5], [-70.123456789012345, 90.0]]


def test_a_place_has_one_split_whatever_its_longitude_is_called(lake):
    put(
        lake, "placing_2016", [("a.jpg", 180.0, -16.5), ("b.jpg", -180.0, -16.5), ("c.jpg", 10, 90), ("d.jpg", -70, 90)]
    )
    splits = combined(lake)["split"].to_dict()
    assert splits["a.jpg"] == splits["b.jpg"] and splits["c.jpg"] == splits["d.jpg"]
    write_points(lake, SETTINGS)
    points = lake.read("geotag_points")
    assert points[["lon", "lat", "n_photos"]].values.tolist() == [[-180.0, -16.5, 2.0], [0.0, 90.0, 2.0]]


def test_the_split_follows_cells_and_shares_of_the_settings(lake):
    places = [(f"{i}.jpg", -170 + (i * 37 % 3400) / 10, -60 + (i * 53 % 1200) / 10) for i in range(3000)]
    put(lake, "placing_2016", places)
    settings = Geotag(split_cell_deg=0.25, validation_share=0.3, test_share=0.2)
    for chosen, validation, test in ((SETTINGS, 0.1, 0.1), (settings, 0.3, 0.2)):
        figures = combine(lake, chosen)
        assert figures["n_validation"] / 3000 == pytest.approx(validation, abs=0.03)
        assert figures["n_test"] / 3000 == pytest.approx(test, abs=0.03)
        photos = lake.read("geotag_combined")
        cells = (photos[["lon", "lat"]] // chosen.split_cell_deg).astype(int)
        assert photos.groupby([cells["lon"], cells["lat"]])["split"].nunique().to_numpy().max() == 1
        assert lake.note("geotag_combined")["split_cell_deg"] == chosen.split_cell_deg


def mixed(lake: Lake, order: int = 1) -> None:
    """Photos of all sources, some of them twice, in one order or the other."""
    flickr = [(f"{i % 7}/{20_000 + i % 900}.jpg", i % 360 - 180.0, (i * 7) % 180 - 90.0) for i in range(1000)]
    landmarks = [(f"{hashlib.md5(str(i).encode()).hexdigest()}.jpg", 2.0 + i // 10, 48.0) for i in range(500)]
    placing = [(f"p/{20_500 + i}.jpg", i % 30 + 0.5, 1.0) for i in range(600)]
    put(lake, "flickr_geotag", flickr[::order])
    put(lake, "google_landmark", landmarks[::order])
    for shard in range(3)[::order]:
        put(lake, "placing_2016", placing[shard::3][::order], part=f"shard_{shard}")
    put_images(lake, [{"image_id": str(i), "lon": 13.0, "lat": 52.0 + i} for i in range(9)][::order])


def test_the_bytes_follow_the_photos_alone(lake, tmp_path, monkeypatch):
    mixed(lake)
    combine(lake, SETTINGS)
    write_points(lake, SETTINGS)
    wanted = table_bytes(lake), table_bytes(lake, "geotag_points")
    other = Lake(tmp_path / "other")
    mixed(other, -1)
    monkeypatch.setattr(combine_module, "COMPARED_PER_GB", 100)
    monkeypatch.setattr(duckdb, "connect", single_threaded(duckdb.connect))
    combine(other, SETTINGS)
    write_points(other, SETTINGS)
    assert (table_bytes(other), table_bytes(other, "geotag_points")) == wanted


def single_threaded(connect):
    return lambda *args: connect(*args, config={"threads": 1})


def test_many_pieces_are_one_sorted_table(lake, monkeypatch):
    mixed(lake)
    whole = combined(lake).reset_index()
    monkeypatch.setattr(combine_module, "SORTED_AT_ONCE", 200)
    monkeypatch.setattr(combine_module, "SAMPLED", 2)
    said: list[str] = []
    combine(lake, SETTINGS, said.append)
    assert "flickr_geotag: piece 5 of 5 is sorted" in said and "placing_2016: piece 3 of 3 is sorted" in said
    again = lake.read("geotag_combined")
    pd.testing.assert_frame_equal(again, whole)
    assert again[["source", "photo_id"]].apply(tuple, axis=1).is_monotonic_increasing


def test_where_hashes_agree_the_names_decide(lake, monkeypatch):
    mixed(lake)
    figures, wanted = combine(lake, SETTINGS), table_bytes(lake)
    query = combine_module._PHOTOS
    monkeypatch.setattr(
        combine_module, "_PHOTOS", query.replace("hash(same_photo(source, photo_id))", "hash(length(photo_id))")
    )
    assert query != combine_module._PHOTOS
    assert combine(lake, SETTINGS) == figures and table_bytes(lake) == wanted


def test_points_count_photos_and_sources_and_leave_null_islands_out(lake):
    put(lake, "placing_2016", [("a.jpg", 0, 0), ("b.jpg", 0, 0)], flags=["null_island"])
    put(lake, "google_landmark", [("c.jpg", 2, 1), ("d.jpg", 2, 1), ("e.jpg", 1, 5)])
    put(lake, "flickr_geotag", [("f.jpg", 2, 1), ("g.jpg", 1, -5)])
    combine(lake, SETTINGS)
    figures = write_points(lake, SETTINGS)
    assert lake.read("geotag_points").to_numpy().tolist() == [[0, 1, -5, 1, 1], [1, 1, 5, 1, 1], [2, 2, 1, 3, 2]]
    assert figures == {"n_points": 3, "n_photos": 5, "n_shared": 1, "n_of_several_sources": 1, "most_photos": 3}


def test_what_was_spilled_goes_at_the_end_and_after_a_kill(lake):
    scratch = Path(lake.root) / "scratch"
    forgotten, recent = scratch / "geotag_query_old", scratch / "geotag_query_new"
    for folder in (forgotten, recent):
        folder.mkdir(parents=True)
    two_days_ago = time.time() - 2 * 86_400
    os.utime(forgotten, (two_days_ago, two_days_ago))
    combine(lake, SETTINGS)
    assert list(scratch.iterdir()) == [recent]


def test_too_little_memory_is_said(lake):
    with (
        pytest.raises(GeoAssetsError, match=r"geotag.memory_gb = 0.02 and the room"),
        querying(lake, Geotag(memory_gb=0.02), "geotag_combined") as (con, _),
    ):
        con.execute("set max_temp_directory_size = '1MB'")
        con.execute("select max(s) from (select range as r, md5(range::varchar) as s from range(2000000) order by s)")


def test_real_flickr_photos_of_two_sets(lake, real_data):
    points = real_data / "geotag" / "points"
    album = pd.read_csv(points / "im2gps3k_places365.csv")
    wide = pd.read_parquet(points / "yfcc25600.parquet")
    shared = album.head(500).assign(LAT=-album["LAT"].head(500))  # the other set places them elsewhere
    for source, rows in (("placing_2016", album), ("flickr_geotag", pd.concat([wide, shared]))):
        put(lake, source, list(rows[["IMG_ID", "LON", "LAT"]].itertuples(index=False, name=None)))
    figures = combine(lake, SETTINGS)
    places = write_points(lake, SETTINGS)
    both = pd.concat([album, wide], ignore_index=True)
    both["id"] = both["IMG_ID"].map(flickr_id)
    kept = both.drop_duplicates("id")
    photos = lake.read("geotag_combined")
    assert set(photos["photo_id"]) == set(kept["id"]) and figures["n_photos"] == len(kept) > 28_000
    assert figures["n_duplicates_across"] == 500 + len(both) - len(kept)
    assert places["n_points"] == len(kept[["LON", "LAT"]].drop_duplicates())
    crowded = kept.duplicated(["LON", "LAT"], keep=False).to_numpy().sum()
    assert figures["n_shared_position"] == crowded > 3000
    assert figures["n_train"] / len(kept) == pytest.approx(0.8, abs=0.03)
