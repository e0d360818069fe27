from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from geo_assets.demo import world
from geo_assets.demo.place import demo_frame
from geo_assets.demo.scene import cam_from_world
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.reconstruct.priors import (
    UNKNOWN_ALTITUDE_SIGMA_M,
    box_frame,
    headings_deg,
    turned,
    upright_features,
    with_best_position,
    with_given_poses,
    with_priors,
)
from geo_assets.tables import TABLES
from geo_assets_tests.reconstruct.lakes import metadata_row
from geo_assets_tests.reconstruct.towns import GRID, METRE, OPTIONS, WEST


def metadata(*rows: dict) -> pd.DataFrame:
    common = {"lon": 10.0, "lat": 0.0, "altitude_m": 3.0}
    return TABLES["image_metadata"].frame([metadata_row(str(k), **common | row) for k, row in enumerate(rows)])


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
    best = with_best_position(metadata({"lon": 10 + recorded * METRE} | known), 3.0)
    assert best.best_lon[0] == pytest.approx(10 + wanted * METRE, abs=1e-9)
    assert best.best_altitude_m[0] == 3.0


def test_unknown_altitude_gets_a_number_and_a_wide_sigma():
    images = with_best_position(metadata({"altitude_m": 5.0}, {"altitude_m": None}), 3.0)
    priors = with_priors(images, LocalFrame(10, 0, 5.0), OPTIONS)
    assert priors[["east_m", "north_m", "up_m"]].notna().to_numpy().all()
    assert priors.sigma_z_m.tolist() == [OPTIONS.altitude_sigma_m, UNKNOWN_ALTITUDE_SIGMA_M]


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


@pytest.mark.parametrize(
    "orientation, source, upright",
    [([1, 1], [None, None], True), ([6, 1], [None, None], True), ([6, 1], ["a.jpg", "b.jpg"], False),
     ([None, None], [None, None], False)],
)  # fmt: skip
def test_features_are_upright_only_if_the_photos_are(orientation: list, source: list, upright: bool):
    frame = metadata({}, {}).assign(exif_orientation=pd.array(orientation, "Int64"), source_path=source)
    frame = with_priors(with_best_position(frame, 3.0), LocalFrame(10, 0), OPTIONS)
    assert upright_features(frame) is upright


def origin_after(lake: Lake, altitude_m: float | None) -> float:
    altitudes = pd.Series([] if altitude_m is None else [altitude_m], dtype=float)
    return box_frame(lake, "town", "r00c00", GRID, altitudes).alt_m


def test_a_box_keeps_its_origin_unless_its_images_moved_far(tmp_path: Path):
    lake = Lake(tmp_path)
    assert origin_after(lake, 500.0) == 500.0
    frame = box_frame(lake, "town", "r00c00", GRID, pd.Series([500.0]))
    note = {"origin": [frame.lon, frame.lat, frame.alt_m]}
    lake.write("gps_db", TABLES["gps_db"].empty(), note=note, **WEST)
    assert origin_after(lake, 560.0) == 500.0
    assert origin_after(lake, 620.0) == 620.0
    assert origin_after(lake, None) == 500.0
    path = tmp_path / "tables/gps_db/city=town/box=r00c00/data.parquet"
    path.write_bytes(b"torn")
    assert origin_after(lake, 560.0) == 560.0


def test_given_poses_of_the_demo_world_agree_with_its_truth():
    described = world._describe()
    images = metadata(
        *({
            "lon": i.lon, "lat": i.lat, "altitude_m": i.altitude_m, "computed_lon": i.computed_lon,
            "computed_lat": i.computed_lat, "computed_altitude_m": i.computed_altitude_m,
            "computed_rotation": i.computed_rotation, "exif_orientation": 1, "sequence_id": i.sequence_id,
        } for i, _, _ in described)
    )  # fmt: skip
    given = with_given_poses(images, demo_frame())
    known = images.computed_lon.notna()
    assert given.given_centre.notna().tolist() == known.tolist() == given.given_rotation.notna().tolist()
    assert (given.given_cluster[known] == images.sequence_id[known]).all() and given.given_cluster[~known].isna().all()
    poses = zip(given.given_centre, given.given_rotation, strict=True)
    for (_, camera, _), (centre, rotation) in zip(described, poses, strict=True):
        if centre is None:
            continue
        assert np.hypot(*(np.array(centre) - camera.centre)[:2]) < 15
        between = Rotation.from_rotvec(rotation).as_matrix() @ camera.cam_from_world.T
        assert np.degrees(Rotation.from_matrix(between).magnitude()) < 3


@pytest.mark.parametrize("orientation, degrees", [(1, 0), (3, 180), (6, 90), (8, -90)])
def test_given_rotations_are_those_of_the_upright_photo(orientation: int, degrees: float):
    upright = cam_from_world(0.3, 0.05, 0.0)
    # EXIF 6: the first row is the right-hand side of what was seen, so the sensor's x axis pointed down.
    sensor = cam_from_world(0.3, 0.05, np.radians(degrees))
    place = {"computed_lon": 10.0, "computed_lat": 0.0, "computed_altitude_m": 0.0, "sfm_cluster_id": "c"}
    rotation = Rotation.from_matrix(sensor).as_rotvec().tolist()
    row = with_given_poses(
        metadata(place | {"exif_orientation": orientation, "computed_rotation": rotation}), LocalFrame(10, 0)
    ).iloc[0]
    assert np.allclose(Rotation.from_rotvec(row.given_rotation).as_matrix(), upright, atol=1e-9)
    assert row.given_cluster == "c" and np.allclose(row.given_centre, 0)


@pytest.mark.parametrize("rotation", [None, [0.1, 0.2], [np.nan, 0.0, 0.0]])
def test_a_pose_that_is_not_whole_is_none(rotation: list | None):
    place = {"computed_lon": 10.0, "computed_lat": 0.0, "computed_altitude_m": 0.0}
    row = with_given_poses(metadata(place | {"computed_rotation": rotation}), LocalFrame(10, 0)).iloc[0]
    assert row.given_centre is None and row.given_rotation is None


def test_turning_a_camera():
    quarter = Rotation.from_euler("z", 90, degrees=True)
    assert turned(None, np.eye(3)) is None
    assert np.allclose(turned([0.0, 0.0, 0.1], quarter.as_matrix()) or [], [0, 0, 0.1 + np.pi / 2])


def test_photos_without_a_time_travel_in_the_order_of_their_names():
    n = 8
    frame = pd.DataFrame(
        {
            "image_id": [f"hash{(k * 5) % n}" for k in range(n)],
            "source_path": [f"drive/{k:03d}.jpg" for k in range(n)],
            "sequence_id": "drive",
            "captured_at": pd.Series([pd.NaT] * n, dtype="datetime64[ns, UTC]"),
            "east_m": np.arange(n) * 6.0,
            "north_m": 0.0,
            "compass_deg": np.nan,
            "computed_compass_deg": np.nan,
        }
    )
    assert headings_deg(frame).tolist() == pytest.approx([90.0] * n)
