from __future__ import annotations

import io
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.errors import GeoAssetsError
from geo_assets.geodesy import LocalFrame
from geo_assets.grid import METRES_PER_DEGREE, Grid
from geo_assets.lake import Lake
from geo_assets.reconstruct import features
from geo_assets.reconstruct.features import (
    cameras_of,
    effective_margin_m,
    gps_database,
    headings_deg,
    images_around,
    stable_ids,
    upright_features,
    with_best_position,
    with_priors,
)
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.lakes import metadata_row, write_box

OPTIONS = Reconstruct(threads=1)
GRID = Grid(10.0, 0.0, 100.0, 1, 2)  # on the equator a metre is as many degrees either way
METRE = 1 / METRES_PER_DEGREE


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A JPEG with corners to find."""
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(sink, "JPEG")
    return sink.getvalue()


def rows(*east_m: float, prefix: str = "i", **known) -> list[dict]:
    """Metadata rows at distances east of the grid's origin, 50 m north of it."""
    common = {"altitude_m": 5.0, "lat": 50 * METRE, "width": 320, "height": 240, "exif_orientation": 1} | known
    return [metadata_row(f"{prefix}{k}", lon=10.0 + e * METRE, **common) for k, e in enumerate(east_m)]


def lake_with(root: Path, west: list[dict], east: list[dict] | None = None) -> Lake:
    lake = Lake(root)
    for box, found in (("r00c00", west), ("r00c01", east)):
        if found is not None:
            photos = {row["image_id"]: photo(k) for k, row in enumerate(found)}
            write_box(lake, "town", box, found, photos)
    return lake


def test_images_that_the_provider_deleted_take_no_part(tmp_path):
    found = rows(10, 20, 30)
    found[1]["tombstoned_at"] = pd.Timestamp("2025-01-01", tz="UTC")
    images, left_out = images_around(lake_with(tmp_path, found), "town", "r00c00", GRID, OPTIONS)
    assert images.image_id.tolist() == ["i0", "i2"] and not any(left_out.values())


def test_ids_are_stable_positive_and_distinct():
    names = [f"{k}" for k in range(3000)]
    ids = stable_ids(names)
    assert len(set(ids)) == 3000 and min(ids) > 0 and max(ids) < 2**31 - 1
    assert stable_ids(["77", "abc"]) == [ids[77], stable_ids(["abc"])[0]]
    assert stable_ids(["a", "b", "a"])[0] == stable_ids(["a"])[0]


def test_ids_that_collide_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "MAX_ID", 5)
    assert sorted(stable_ids(["a", "b", "c", "d", "e"])) == [1, 2, 3, 4, 5]


def test_margin_is_at_most_a_quarter_of_the_box():
    assert effective_margin_m(OPTIONS, 500) == 60
    assert effective_margin_m(OPTIONS, 60) == 15


def test_images_of_the_margin_take_part_and_keep_their_home(tmp_path: Path):
    lake = lake_with(tmp_path, rows(50, 99), rows(110, 124, 126, 180, prefix="j"))
    images, _ = images_around(lake, "town", "r00c00", GRID, OPTIONS)
    assert dict(zip(images.image_id, images.home_box, strict=True)) == {
        "i0": "r00c00",
        "i1": "r00c00",
        "j0": "r00c01",
        "j1": "r00c01",
    }


def test_a_neighbour_that_was_not_harvested_is_no_error(tmp_path: Path):
    images, _ = images_around(lake_with(tmp_path, rows(50)), "town", "r00c00", GRID, OPTIONS)
    assert list(images.image_id) == ["i0"]


def test_the_box_itself_must_be_harvested(tmp_path: Path):
    with pytest.raises(GeoAssetsError, match=r"image_metadata|image_files"):
        gps_database(Lake(tmp_path), "town", "r00c00", GRID, OPTIONS)


def test_panoramas_fisheye_and_dead_files_are_left_out_and_counted(tmp_path: Path):
    mixed = rows(10, 20, 30, 40)
    mixed[0] |= {"is_pano": True, "camera_type": "spherical"}
    mixed[1] |= {"camera_type": "fisheye"}
    mixed[2] |= {"lon": np.nan}
    images, left_out = images_around(lake_with(tmp_path, mixed), "town", "r00c00", GRID, OPTIONS)
    assert list(images.image_id) == ["i3"]
    assert left_out == {"panorama": 1, "fisheye": 1, "no_position": 1}


@pytest.mark.parametrize(
    "recorded, computed, wanted",
    [
        (0.0, None, 0.0),  # nothing was corrected
        (0.0, 4.0, 2.0),  # two errors of one size: the middle
        (0.0, 100.0, 100.0),  # they contradict each other: the corrected one has seen the neighbours
    ],
)
def test_best_position(recorded: float, computed: float | None, wanted: float):
    known = {} if computed is None else {"computed_lon": 10 + computed * METRE, "computed_lat": 0.0}
    row = metadata_row("a", lon=10 + recorded * METRE, lat=0.0, altitude_m=3.0, **known)
    best = with_best_position(pd.DataFrame([row]).astype({"computed_lon": float, "computed_lat": float}), 3.0)
    assert best.best_lon[0] == pytest.approx(10 + wanted * METRE, abs=1e-9)
    assert best.best_altitude_m[0] == 3.0


def test_unknown_altitude_gets_a_number_and_a_wide_sigma(tmp_path: Path):
    lake = lake_with(tmp_path, [*rows(10), *rows(30, prefix="j", altitude_m=None)])
    images, _ = images_around(lake, "town", "r00c00", GRID, OPTIONS)
    priors = with_priors(images, LocalFrame(10, 0, 5.0), OPTIONS)
    assert priors[["east_m", "north_m", "up_m"]].notna().to_numpy().all()
    assert priors.sigma_z_m.tolist() == [OPTIONS.altitude_sigma_m, features.UNKNOWN_ALTITUDE_SIGMA_M]


def test_heading_is_corrected_then_travel_then_compass():
    n = 8
    frame = pd.DataFrame(
        {
            "image_id": [str(k) for k in range(n)],
            "sequence_id": "s",
            "captured_at": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(range(n), "s"),
            "east_m": np.arange(n) * 3.0,
            "north_m": 0.0,
            "computed_compass_deg": [271.0] + [np.nan] * (n - 1),
            "compass_deg": 200.0,
        }
    )
    heading = headings_deg(frame)
    assert np.allclose(heading, [271] + [90] * (n - 1))
    standing = frame.assign(east_m=0.0)
    assert np.allclose(headings_deg(standing)[1:], 200)


def test_one_camera_for_each_sequence_and_size():
    frame = pd.DataFrame(
        {
            "sequence_id": ["a", "a", "b", "b"],
            "width": [400, 400, 400, 300],
            "height": [300, 300, 300, 400],
            "camera_parameters": [[0.8, 0.1, 0.0], [0.82, 0.1, 0.0], None, []],
        }
    )
    cameras = cameras_of(frame)
    assert len(cameras) == 3 and cameras.camera_id.is_unique
    known, guessed = cameras[cameras.sequence_id == "a"].iloc[0], cameras[cameras.sequence_id == "b"].iloc[0]
    assert (
        known.model == "RADIAL"
        and known.parameters == pytest.approx([0.81 * 400, 200, 150, 0.1, 0])
        and known.known_focal
    )
    assert guessed.model == "SIMPLE_RADIAL" and guessed.parameters[0] == 0.85 * 400 and not guessed.known_focal


@pytest.mark.parametrize(
    "orientation, source, upright",
    [([1, 1], [None, None], True), ([6, 1], [None, None], True), ([6, 1], ["a.jpg", "b.jpg"], False),
     ([None, None], [None, None], False)],
)  # fmt: skip
def test_features_are_upright_only_if_the_photos_are(orientation: list, source: list, upright: bool):
    frame = pd.DataFrame([metadata_row(str(k), lon=10.0, lat=0.0, altitude_m=1.0) for k in range(2)])
    frame = frame.assign(exif_orientation=pd.array(orientation, "Int64"), source_path=source)
    frame[["computed_lon", "computed_lat", "computed_altitude_m"]] = np.nan
    frame = with_priors(with_best_position(frame, 3.0), LocalFrame(10, 0), OPTIONS)
    assert upright_features(frame) is upright


def test_the_database_holds_our_ids_cameras_and_priors(tmp_path: Path):
    pycolmap = pytest.importorskip("pycolmap")
    found = rows(40, 44, 48, camera_parameters=[0.9, 0.01, 0.0])
    lake = lake_with(tmp_path / "lake", found)
    broken = lake.key("images", "i2.jpg", city="town", box="r00c00")
    lake.put_bytes(broken, lake.get_bytes(broken)[:900])
    made = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    assert made.frame.set_index("image_id").n_keypoints.gt(0).to_dict() == {"i0": True, "i1": True, "i2": False}
    folder = lake.key("features", city="town", box="r00c00")
    assert lake.names(folder) == ["database.db", "manifest.json"]  # no write-ahead log left beside it
    with lake.local(f"{folder}/database.db") as path, pycolmap.Database.open(path) as db:
        images = {image.name: image for image in db.read_all_images()}
        assert {n: i.image_id for n, i in images.items()} == {
            f"{name}.jpg": number
            for name, number in zip(made.frame.image_id, made.frame.colmap_image_id, strict=True)
            if name != "i2"
        }
        camera = db.read_all_cameras()[0]
        assert camera.has_prior_focal_length and camera.params[0] == pytest.approx(0.9 * 320)
        prior = next(p for p in db.read_all_pose_priors() if p.corr_data_id.id == images["i1.jpg"].image_id)
        row = made.frame.set_index("image_id").loc["i1"]
        assert np.allclose(prior.position, [row.east_m, row.north_m, row.up_m])
        assert np.allclose(np.diag(prior.position_covariance), [9, 9, 100])
        assert prior.has_gravity() and prior.corr_data_id.sensor_id.type == pycolmap.SensorType.CAMERA


def test_features_are_the_same_twice(tmp_path: Path):
    lake = lake_with(tmp_path, rows(40, 44))
    blobs = []
    for _ in range(2):
        gps_database(lake, "town", "r00c00", GRID, OPTIONS)
        with lake.local(lake.key("features", "database.db", city="town", box="r00c00")) as path:
            con = sqlite3.connect(path)
            blobs.append(con.execute("select image_id, data from descriptors order by 1").fetchall())
            con.close()
    assert blobs[0] == blobs[1]


def test_a_box_without_images_is_an_empty_partition(tmp_path: Path):
    lake = lake_with(tmp_path, [], rows(101, prefix="j"))  # the margin alone makes no work
    made = gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    assert made.frame.empty and made.figures["n_images"] == 0
    lake.write("gps_db", made.frame, note=made.note, city="town", box="r00c00")
