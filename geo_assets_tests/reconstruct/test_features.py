from __future__ import annotations

import io
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geo_assets.errors import GeoAssetsError, ReconstructionError
from geo_assets.lake import Lake
from geo_assets.reconstruct import features
from geo_assets.reconstruct.features import gps_database
from geo_assets.reconstruct.stage import StepEnded
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.towns import EAST, GRID, OPTIONS, WEST, lake_with, photo, rows


def blobs(lake: Lake, where: Any = WEST) -> dict[str, tuple[bytes, bytes]]:
    """Keypoints and descriptors of each image of a published database."""
    with lake.local(lake.key("features", "database.db", **where)) as path:
        con = sqlite3.connect(path)
        found = con.execute(
            "select name, k.data, d.data from images join keypoints k using (image_id) join descriptors d using (image_id)"
        ).fetchall()
        con.close()
    return {name: (keypoints, descriptors) for name, keypoints, descriptors in found}


def test_the_box_itself_must_be_harvested(tmp_path: Path):
    with pytest.raises(GeoAssetsError, match=r"image_metadata|image_files"):
        gps_database(Lake(tmp_path), "town", "r00c00", GRID, OPTIONS)


def test_the_database_holds_our_ids_cameras_and_priors(tmp_path: Path):
    pycolmap = pytest.importorskip("pycolmap")
    found = rows(40, 44, 48, camera_parameters=[0.9, 0.01, 0.0])
    lake = lake_with(tmp_path / "lake", found)
    broken = lake.key("images", "i2.jpg", **WEST)
    lake.put_bytes(broken, lake.get_bytes(broken)[:900])
    lines: list[str] = []
    made = gps_database(lake, "town", "r00c00", GRID, OPTIONS, lines.append)
    assert made.frame.image_id.tolist() == ["i0", "i1"] and (made.frame.n_keypoints > 0).all()
    assert made.note["left_out"] == {"broken": 1} and made.figures["n_left_out_broken"] == 1
    assert any("3 images" in line for line in lines) and any("i2" in line for line in lines)
    folder = lake.key("features", **WEST)
    assert lake.names(folder) == ["database.db", "manifest.json"]  # no write-ahead log left beside it
    with lake.local(f"{folder}/database.db") as path, pycolmap.Database.open(path) as db:
        images = {image.name: image for image in db.read_all_images()}
        assert {n: i.image_id for n, i in images.items()} == {
            f"{name}.jpg": number for name, number in zip(made.frame.image_id, made.frame.colmap_image_id, strict=True)
        }
        camera = db.read_all_cameras()[0]
        assert camera.has_prior_focal_length and camera.params[0] == pytest.approx(0.9 * 320)
        prior = next(p for p in db.read_all_pose_priors() if p.corr_data_id.id == images["i1.jpg"].image_id)
        row = made.frame.set_index("image_id").loc["i1"]
        assert np.allclose(prior.position, [row.east_m, row.north_m, row.up_m])
        assert np.allclose(np.diag(prior.position_covariance), [9, 9, 100])
        assert prior.has_gravity() and prior.corr_data_id.sensor_id.type == pycolmap.SensorType.CAMERA
        assert db.num_keypoints_for_image(row.colmap_image_id) == row.n_keypoints == db.num_descriptors_for_image(row.colmap_image_id)  # fmt: skip
    lake.write("gps_db", made.frame, note=made.note, **WEST)
    assert lake.read("gps_db", None, **WEST).path.tolist() == [
        lake.key("images", f"i{k}.jpg", **WEST) for k in range(2)
    ]


def test_the_second_box_takes_the_margin_from_the_cache_and_has_the_same_features(tmp_path: Path):
    lake = lake_with(tmp_path, rows(80, 90), rows(105, 160, prefix="j"))
    west = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    east = gps_database(lake, "town", "r00c01", GRID, OPTIONS)
    assert (west.figures["n_extracted"], west.figures["n_from_cache"]) == (3, 0)
    assert (east.figures["n_extracted"], east.figures["n_from_cache"]) == (1, 3)
    here, there = blobs(lake, WEST), blobs(lake, EAST)
    assert set(here) & set(there) == {"i0.jpg", "i1.jpg", "j0.jpg"}
    assert all(here[name] == there[name] for name in set(here) & set(there))
    columns = ["image_id", "colmap_image_id", "camera_id", "frame_id", "feature_key"]
    shared = west.frame[columns].merge(east.frame[columns], on="image_id")
    assert len(shared) == 3
    assert all((shared[f"{c}_x"] == shared[f"{c}_y"]).all() for c in columns[1:])


def test_a_box_made_again_extracts_nothing_and_a_damaged_cache_is_mended(tmp_path: Path):
    lake = lake_with(tmp_path, rows(40, 44))
    first = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    before = blobs(lake)
    key = first.frame.feature_key[0]
    cached = f"files/feature_cache/{key[:2]}/{key}.npz"
    lake.put_bytes(cached, lake.get_bytes(cached)[:-100])
    lake.put_bytes(lake.key("features", "database.db-wal", **WEST), b"left by a reader that was killed")
    again = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    assert (again.figures["n_extracted"], again.figures["n_from_cache"]) == (1, 1)
    assert again.figures["n_cache_damaged"] == 1
    assert blobs(lake) == before and lake.names(lake.key("features", **WEST)) == ["database.db", "manifest.json"]


def test_a_killed_extraction_keeps_the_chunks_that_were_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lake = lake_with(tmp_path, rows(40, 44, 48))
    monkeypatch.setattr(features, "CHUNK", 2)
    run_step, calls = features.run_step, []

    def killed_at_the_second(step: str, arguments: dict, scratch: Path, **kwargs: Any) -> Any:
        calls.append(step)
        if step == "extract_features" and calls.count(step) == 2:
            raise ReconstructionError("killed")
        return run_step(step, arguments, scratch, **kwargs)

    monkeypatch.setattr(features, "run_step", killed_at_the_second)
    with pytest.raises(ReconstructionError):
        gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    made = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    assert (made.figures["n_extracted"], made.figures["n_from_cache"]) == (1, 2)


def aborting(features_of: set[str]) -> Any:
    """``run_step`` whose extraction aborts on some images, as COLMAP does in a worker thread."""
    run_step = features.run_step

    def run(step: str, arguments: dict, scratch: Path, **kwargs: Any) -> Any:
        if step == "extract_features" and features_of & {image["image_id"] for image in arguments["images"]}:
            raise StepEnded("COLMAP's step 'extract_features' was ended by signal SIGABRT.")
        return run_step(step, arguments, scratch, **kwargs)

    return run


def test_an_image_on_which_colmap_aborts_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lake = lake_with(tmp_path, rows(40, 44, 48))
    monkeypatch.setattr(features, "run_step", aborting({"i1"}))
    made = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    assert made.frame.image_id.tolist() == ["i0", "i2"] and made.note["left_out"] == {"broken": 1}


def test_a_colmap_that_aborts_on_every_image_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lake = lake_with(tmp_path, rows(*range(40, 64, 4)))
    monkeypatch.setattr(features, "run_step", aborting({f"i{k}" for k in range(6)}))
    with pytest.raises(ReconstructionError, match="SIGABRT"):
        gps_database(lake, "town", "r00c00", GRID, OPTIONS)


def test_options_that_change_features_change_their_key(tmp_path: Path):
    lake = lake_with(tmp_path, rows(40))
    made = [gps_database(lake, "town", "r00c00", GRID, Reconstruct(threads=1, max_features=n)) for n in (4096, 50)]
    assert made[1].figures["n_extracted"] == 1 and made[0].frame.feature_key[0] != made[1].frame.feature_key[0]
    assert made[1].frame.n_keypoints[0] < made[0].frame.n_keypoints[0]


def test_a_gpu_that_this_build_has_not_is_said(tmp_path: Path):
    pycolmap = pytest.importorskip("pycolmap")
    if pycolmap.has_cuda:
        pytest.skip("this pycolmap has CUDA")
    with pytest.raises(ReconstructionError, match="cuda"):
        gps_database(lake_with(tmp_path, rows(40)), "town", "r00c00", GRID, Reconstruct(device="cuda"))


def test_a_box_without_images_is_an_empty_partition(tmp_path: Path):
    lake = lake_with(tmp_path, [], rows(101, prefix="j"))  # the margin alone makes no work
    made = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    assert made.frame.empty and made.figures["n_images"] == 0 and made.figures["n_margin_images"] == 0
    lake.write("gps_db", made.frame, note=made.note, **WEST)


@pytest.mark.parametrize("why", ["no_position", "broken", "fisheye"])
def test_a_box_of_which_no_image_can_be_used_says_why(tmp_path: Path, why: str):
    known: dict[str, Any] = {"no_position": {"lat": None}, "fisheye": {"camera_type": "fisheye"}}.get(why, {})
    torn = {f"i{k}": photo(k)[:700] for k in range(3)} if why == "broken" else None
    lake = lake_with(tmp_path, rows(10, 20, 30, **known), photos=torn)
    made = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    assert made.frame.empty and made.figures["n_images"] == 0
    lake.write("gps_db", made.frame, note=made.note, **WEST)
    assert lake.note("gps_db", **WEST)["left_out"] == {why: 3}


def test_a_photo_of_nothing_has_no_features_but_a_row(tmp_path: Path):
    sink = io.BytesIO()
    Image.new("RGB", (320, 240), (200, 200, 200)).save(sink, "JPEG")
    made = gps_database(
        lake_with(tmp_path, rows(40, 44), photos={"i1": sink.getvalue()}), "town", "r00c00", GRID, OPTIONS
    )
    assert (made.frame.n_keypoints == 0).tolist() == [False, True] and made.figures["n_without_keypoints"] == 1


def test_a_file_of_another_size_than_harvested_is_broken(tmp_path: Path):
    lake = lake_with(tmp_path, rows(40, 44), photos={"i1": photo(1, (160, 120))})
    assert gps_database(lake, "town", "r00c00", GRID, OPTIONS).note["left_out"] == {"broken": 1}


def test_an_update_stays_in_the_frame(tmp_path: Path):
    lake = lake_with(tmp_path, rows(40, 44))
    first = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    lake.write("gps_db", first.frame, note=first.note, **WEST)
    higher = lake_with(tmp_path, rows(40, 44, altitude_m=25.0))
    second = gps_database(higher, "town", "r00c00", GRID, OPTIONS)
    assert second.note["origin"] == first.note["origin"]
    assert np.allclose(second.frame.up_m - first.frame.up_m, 20, atol=0.01)
