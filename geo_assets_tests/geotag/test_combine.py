import hashlib

import pandas as pd
import pytest

from geo_assets.geotag.combine import SPLIT_CELL_DEG, combine, unique_points
from geo_assets.geotag.photos import sift
from geo_assets.lake import Lake
from geo_assets.tables import TABLES


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(tmp_path)


def put(lake: Lake, source: str, rows: list[tuple[str, float, float]]) -> None:
    raw = pd.DataFrame(rows, columns=["path", "lon", "lat"])
    photos, _ = sift(raw.assign(file="f", row=0, photo_id=raw["path"]), source)
    lake.write(source, photos)


def put_images(lake: Lake, images: list[dict], box: str = "r00c00", city: str = "here") -> None:
    columns = TABLES["image_metadata"].column_names
    frame = pd.DataFrame(images).reindex(columns=columns).astype(object)
    lake.write("image_metadata", frame, city=city, box=box)


def test_an_empty_lake_gives_an_empty_table(lake):
    combined = combine(lake)
    assert combined.photos.empty and combined.rejects.empty
    lake.write("geotag_combined", combined.photos)
    assert unique_points(lake).empty


def test_a_flickr_photo_of_two_sources_is_kept_once(lake):
    put(lake, "placing_2016", [("13/20/8010869266.jpg", 1, 2), ("aa/bb/3.jpg", 5, 6)])
    put(
        lake,
        "flickr_geotag",
        [("x/8010869266_e60e9cdfb4_o.jpg", 1.0001, 2), ("x/8010869266.jpg", 1, 2), ("c/3.jpg", 5, 6)],
    )
    # Another set's names mean nothing: a landmark photo called like a Flickr photo is another photo.
    put(lake, "google_landmark", [("8/0/1/8010869266.jpg", 1, 2)])
    combined = combine(lake)
    assert sorted(combined.photos["source"] + " " + combined.photos["path"]) == [
        "flickr_geotag c/3.jpg",
        "google_landmark 8/0/1/8010869266.jpg",
        "placing_2016 13/20/8010869266.jpg",
        "placing_2016 aa/bb/3.jpg",
    ]
    assert combined.figures["n_duplicates"] == 2


def test_harvested_images_of_all_cities_join(lake):
    put_images(lake, [{"image_id": "1", "lon": 1.0, "lat": 2.0, "computed_lon": 1.5, "computed_lat": 2.5,
                       "creator_username": "ada", "licence": "CC BY-SA 4.0"}])  # fmt: skip
    put_images(lake, [{"image_id": "2", "lon": 3.0, "lat": 4.0, "computed_lon": 3.5}], city="there")
    photos = combine(lake).photos.sort_values("photo_id")
    assert photos["source"].unique().tolist() == ["mapillary"]
    assert photos[["lon", "lat"]].values.tolist() == [[1.5, 2.5], [3.0, 4.0]]
    assert photos["author_hash"].tolist()[0] == hashlib.sha256(b"ada").hexdigest()[:16]
    assert photos["path"].tolist() == ["1.jpg", "2.jpg"]


def test_images_that_the_provider_deleted_stay_out(lake):
    gone = pd.Timestamp("2025-01-01", tz="UTC")
    put_images(lake, [{"image_id": "1", "lon": 1.0, "lat": 2.0},
                      {"image_id": "2", "lon": 1.0, "lat": 2.0, "tombstoned_at": gone}])  # fmt: skip
    combined = combine(lake)
    assert combined.photos["photo_id"].tolist() == ["1"] and combined.figures["n_read"] == 1


def test_positions_off_the_globe_are_rejects(lake):
    put_images(lake, [{"image_id": "1", "lon": 200.0, "lat": 2.0}, {"image_id": "2", "lon": None, "lat": 2.0},
                      {"image_id": "3", "lon": float("inf"), "lat": 2.0}, {"image_id": "4", "lon": 0.0, "lat": 0.0}])  # fmt: skip
    combined = combine(lake)
    assert combined.photos["photo_id"].tolist() == ["4"]
    assert combined.photos["flags"].map(list).tolist() == [["null_island"]]
    assert sorted(combined.rejects["row"]) == ["1", "2", "3"]
    lake.write("geotag_rejects", combined.rejects, source="geotag_combined")


def test_a_place_has_one_split_whatever_its_longitude_is_called(lake):
    put(
        lake, "placing_2016", [("a.jpg", 180.0, -16.5), ("b.jpg", -180.0, -16.5), ("c.jpg", 10, 90), ("d.jpg", -70, 90)]
    )
    lake.write("geotag_combined", combine(lake).photos)
    splits = lake.read("geotag_combined").set_index("photo_id")["split"]
    assert splits["a.jpg"] == splits["b.jpg"] and splits["c.jpg"] == splits["d.jpg"]
    points = unique_points(lake)
    assert points[["lon", "lat", "n_photos"]].values.tolist() == [[-180.0, -16.5, 2.0], [0.0, 90.0, 2.0]]


def test_splits_are_near_their_shares_and_the_same_for_any_order(lake):
    places = [(f"{i}.jpg", -170 + (i * 37 % 3400) / 10, -60 + (i * 53 % 1200) / 10) for i in range(3000)]
    put(lake, "placing_2016", places)
    combined = combine(lake)
    assert combined.figures["n_train"] / 3000 == pytest.approx(0.8, abs=0.03)
    assert combined.figures["n_validation"] / 3000 == pytest.approx(0.1, abs=0.03)
    put(lake, "placing_2016", places[::-1])
    again = combine(lake).photos.set_index("photo_id")["split"]
    assert combined.photos.set_index("photo_id")["split"].to_dict() == again.to_dict()
    cells = (combined.photos[["lon", "lat"]] // SPLIT_CELL_DEG).astype(int)
    assert combined.photos.groupby([cells["lon"], cells["lat"]])["split"].nunique().to_numpy().max() == 1


def test_null_island_is_no_place(lake):
    put(lake, "placing_2016", [("a.jpg", 0, 0), ("b.jpg", 0, 0), ("c.jpg", 1, 1)])
    lake.write("geotag_combined", combine(lake).photos)
    assert unique_points(lake)["n_photos"].tolist() == [1]
