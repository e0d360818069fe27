import sys
from typing import Any

import dagster as dg
import pytest

from geo_assets.geotag.assets import (
    ASSETS,
    MODEL_FILES,
    google_landmark,
    hierarchy_centroids,
    landmark_coordinates,
    placing_2016,
)
from geo_assets.geotag.checks import CHECKS, nesting_faults, reject_shares
from geo_assets.geotag.model import read_card
from geo_assets.lake import Lake
from geo_assets.resources import LakeResource
from geo_assets_tests.geotag.places import blobs, record, write_photo, write_shard

LANDMARKS = ("train-000000",)
CITIES = [(2.35, 48.85), (13.4, 52.5), (-74.0, 40.7), (139.7, 35.7), (180.0, -16.5), (178.5, -17.5)]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Folders of the three photo sets, named in a settings file of the test."""
    placing, landmark, flickr = (tmp_path / name for name in ("placing", "landmark", "flickr"))
    for folder in (placing, landmark, flickr):
        folder.mkdir()
    places = blobs(CITIES, n=20, km=3)
    photos = [record(f"aa/bb/{70_000 + i}.jpg", *p) for i, p in enumerate(places[["lon", "lat"]].to_numpy().tolist())]
    write_shard(placing / "shard_0.msg", photos[:60])
    write_shard(placing / "shard_1.msg", [*photos[60:], [1], record("../x.jpg", 1, 1), record("aa/bb/1.jpg", 0, 0)])
    (landmark / "train.csv").write_text("id,url,landmark_id\n" + "".join(f"{i:016x},u,7\n" for i in range(20)))
    category = "http://commons.wikimedia.org/wiki/Category:Tower"
    (landmark / "train_label_to_category.csv").write_text(f"landmark_id,category\n7,{category}\n")
    (landmark / "landmark_coordinates.csv").write_text("landmark_id,lon,lat\n7,11.575,48.137\n")
    lon, lat = places[["lon", "lat"]].to_numpy()[3]
    write_photo(flickr / "1" / "70003.jpg", lon, lat)
    write_photo(flickr / "1" / "99999.jpg", 2.36, 48.86)
    lines = [f'{name} = "{folder}"' for name, folder in zip(
        ("placing_2016", "google_landmark", "flickr_geotag"), (placing, landmark, flickr), strict=True)]  # fmt: skip
    use_settings(tmp_path, monkeypatch, "[geotag]\n" + "\n".join(lines))
    return tmp_path


def use_settings(folder, monkeypatch, text: str) -> None:
    path = folder / "geo_assets.toml"
    path.write_text(text)
    monkeypatch.setenv("GEO_ASSETS_SETTINGS", str(path))


def run(root, assets=(*ASSETS, *CHECKS), shards=("shard_0", "shard_1")) -> dg.ExecuteInProcessResult:
    """Materialize assets; shards and landmarks come first, in runs of their own, as Dagster makes them too."""
    resources: Any = {"lake": LakeResource(root=str(root))}
    whole = [asset for asset in assets if asset not in (placing_2016, landmark_coordinates)]
    if placing_2016 in assets and shards:
        part = {"dagster/asset_partition_range_start": shards[0], "dagster/asset_partition_range_end": shards[-1]}
        done = dg.materialize([placing_2016], resources=resources, tags=part, raise_on_error=False)
        if not done.success or not whole:
            return done
    if landmark_coordinates in assets:
        for key in LANDMARKS:
            done = dg.materialize([landmark_coordinates], resources=resources, partition_key=key, raise_on_error=False)
            if not done.success:
                return done
    return dg.materialize(whole, resources=resources, raise_on_error=False)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(asset)
    return {key: value.value for key, value in event.metadata.items()}


def test_the_whole_room(sources):
    result = run(sources / "lake")
    assert result.success
    lake = Lake(sources / "lake")
    combined = lake.read("geotag_combined")
    assert len(combined) == 120 + 1 + 20 + 1  # shards, null island, landmark photos, the one new Flickr photo
    assert lake.read("geotag_rejects", source="placing_2016", part="shard_1")["reason"].map(len).to_numpy().min() > 0
    assert len(lake.read("photo_cells")) == len(combined) - 1
    assert lake.read("hierarchy_centroids")["level"].to_numpy().max() == 3
    card = read_card(lake, lake.key(*MODEL_FILES))
    assert card["n_clusters"] > 2 and len(card["input_sha256"]) == 64
    checks = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    said = {
        "landmarks_were_answered": True,
        "coordinates_in_range": True,
        "photo_ids_unique": True,
        "split_has_no_leak": True,
        "few_rejects": True,
        "split_shares": True,
        "points_add_up": True,
        "cells_nest": True,
        "radii_grow": True,
        "error_falls_with_level": True,
        "error_is_no_worse": True,
    }
    assert all(checks.values()) and said.items() <= checks.items()
    assert reject_shares(lake)["placing_2016"] == pytest.approx(2 / 122, abs=1e-3)
    pictures = [metadata(result, name)["map"] for name in ("geotag_combined", "hdbscan_model", "hierarchy_centroids")]
    assert all(
        picture.startswith("![picture](data:image/png;base64,") and len(picture) < 64_000 for picture in pictures
    )
    assert "the record is not a map" in metadata(result, "geotag_combined")["rejects"]


def test_a_second_run_gives_the_same_bytes(sources):
    for root in ("one", "two"):
        assert run(sources / root, ASSETS).success
    for table in (
        "geotag_combined",
        "hdbscan_model",
        "hdbscan_tree",
        "hierarchy_centroids",
        "photo_cells",
        "partition_errors",
    ):
        one, two = ((sources / root / "tables" / table / "data.parquet").read_bytes() for root in ("one", "two"))
        assert one == two, table


def test_sources_that_are_not_configured_give_empty_tables(tmp_path, monkeypatch):
    use_settings(tmp_path, monkeypatch, "[demo]\nenabled = false\n")
    result = run(tmp_path / "lake", shards=())
    assert result.success
    assert "not configured (set geotag.flickr_geotag" in metadata(result, "flickr_geotag")["input"]
    assert Lake(tmp_path / "lake").read("hierarchy_centroids").empty
    assert metadata(result, "hdbscan_model")["n_clusters"] == 0


def test_the_demo_has_inputs_of_its_own(tmp_path, monkeypatch):
    use_settings(tmp_path, monkeypatch, "")
    shards = tuple(f"shard_{k}" for k in range(5))
    monkeypatch.setattr(sys.modules[__name__], "LANDMARKS", ("train-000000", "train-002500"))
    result = run(tmp_path / "lake", shards=shards)
    assert result.success
    for name in ("google_landmark", "flickr_geotag"):
        facts = metadata(result, name)
        assert facts["input"] == "demo inputs" and facts["n_photos"] > 0, name
    assert {p["shard"] for p in Lake(tmp_path / "lake").partitions("placing_2016")} == set(shards)
    assert Lake(tmp_path / "lake").read("hdbscan_model")["cluster"].to_numpy().max() > 0


def test_demo_inputs_do_not_mix_with_real_ones(tmp_path, monkeypatch):
    use_settings(tmp_path, monkeypatch, "")
    assert run(tmp_path / "lake", [placing_2016], shards=("shard_0", "shard_1")).success
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "shard_0.msg", [record("a/b/1.jpg", 1, 2)])
    use_settings(tmp_path, monkeypatch, '[geotag]\nplacing_2016 = "shards"\n')
    result = run(tmp_path / "lake", [placing_2016], shards=("shard_0",))
    assert metadata(result, "placing_2016")["n_photos"] == 1
    assert Lake(tmp_path / "lake").partitions("placing_2016") == [{"shard": "shard_0"}]
    result = run(tmp_path / "lake", [google_landmark])
    assert metadata(result, "google_landmark")["input"].startswith("not configured")


def test_a_folder_that_is_not_there_fails_with_the_setting(tmp_path, monkeypatch):
    use_settings(tmp_path, monkeypatch, '[geotag]\nplacing_2016 = "nowhere"\n')
    result = run(tmp_path / "lake", [placing_2016], shards=("shard_0",))
    assert not result.success
    failure = result.failure_data_for_node("placing_2016")
    assert failure is not None and failure.error is not None and "geotag.placing_2016" in str(failure)


def test_a_wrong_parent_is_found(sources):
    assert run(sources / "lake", ASSETS).success
    lake = Lake(sources / "lake")
    rows = lake.read("hierarchy_centroids")
    assert not any(nesting_faults(lake).values())
    rows.loc[0, "parent_id"] = 10_000
    lake.write("hierarchy_centroids", rows)
    assert nesting_faults(lake)["cells_without_one_parent"] == 1


def test_a_model_of_other_points_is_refused(sources):
    assert run(sources / "lake", ASSETS).success
    lake = Lake(sources / "lake")
    lake.write("hdbscan_model", lake.read("hdbscan_model").iloc[1:])
    result = dg.materialize(
        [hierarchy_centroids], resources={"lake": LakeResource(root=str(sources / "lake"))}, raise_on_error=False
    )
    assert "belongs to other points" in str(result.failure_data_for_node("hierarchy_centroids"))
