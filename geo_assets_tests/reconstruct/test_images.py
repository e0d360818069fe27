from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import GeoAssetsError
from geo_assets.lake import Lake
from geo_assets.reconstruct.images import REASONS, effective_margin_m, images_around
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.towns import GRID, OPTIONS, lake_with, photo, rows


def around(lake: Lake, box: str = "r00c00", options: Reconstruct = OPTIONS) -> tuple[pd.DataFrame, dict[str, int]]:
    images, left_out = images_around(lake, "town", box, GRID, options)
    assert set(left_out) == set(REASONS)
    return images, {why: n for why, n in left_out.items() if n}


def test_images_that_the_provider_deleted_take_no_part(tmp_path: Path):
    found = rows(10, 20, 30)
    found[1]["tombstoned_at"] = pd.Timestamp("2025-01-01", tz="UTC")
    images, left_out = around(lake_with(tmp_path, found))
    assert images.image_id.tolist() == ["i0", "i2"] and not left_out


def test_margin_is_at_most_a_quarter_of_the_box():
    assert effective_margin_m(OPTIONS, 500) == 60
    assert effective_margin_m(OPTIONS, 60) == 15


def test_images_of_the_margin_take_part_and_keep_their_home(tmp_path: Path):
    images, _ = around(lake_with(tmp_path, rows(50, 99), rows(110, 124, 126, 180, prefix="j")))
    assert dict(zip(images.image_id, images.home_box, strict=True)) == {
        "i0": "r00c00",
        "i1": "r00c00",
        "j0": "r00c01",
        "j1": "r00c01",
    }


def test_a_neighbour_that_was_not_harvested_is_no_error(tmp_path: Path):
    assert list(around(lake_with(tmp_path, rows(50)))[0].image_id) == ["i0"]


def test_the_box_itself_must_be_harvested(tmp_path: Path):
    with pytest.raises(GeoAssetsError, match=r"image_metadata|image_files"):
        around(Lake(tmp_path))


@pytest.mark.parametrize(
    "change, why",
    [
        ({"lon": np.nan}, "no_position"),
        ({"is_pano": True, "camera_type": "spherical"}, "panorama_shape"),  # 320 x 240 is no sphere
        ({"camera_type": "fisheye"}, "fisheye"),
        ({"camera_type": "fisheye", "camera_parameters": [np.nan, 0, 0]}, "fisheye"),
    ],
)
def test_what_cannot_help_is_left_out_and_counted(tmp_path: Path, change: dict, why: str):
    found = rows(10, 20)
    found[0] |= change | {"sequence_id": "other"}
    images, left_out = around(lake_with(tmp_path, found))
    assert images.image_id.tolist() == ["i1"] and left_out == {why: 1}


def test_fisheye_with_parameters_takes_part_and_lends_them_to_its_sequence(tmp_path: Path):
    found = rows(10, 20, camera_type="fisheye")
    found[0]["camera_parameters"] = [0.4, 0.01, 0.0]
    images, left_out = around(lake_with(tmp_path, found))
    assert images.kind.tolist() == ["fisheye"] * 2 and not left_out


def test_panoramas_as_the_settings_want_them(tmp_path: Path):
    found = rows(10, 20)
    found[0] |= {"is_pano": True, "camera_type": "spherical", "height": 160}
    lake = lake_with(tmp_path, found, photos={"i0": photo(1, (320, 160))})
    for wanted, n in (("rig", 2), ("spherical", 2), ("off", 1)):
        images, left_out = around(lake, options=Reconstruct(panoramas=wanted))  # type: ignore[arg-type]
        assert len(images) == n and left_out == ({"panorama": 1} if n == 1 else {})


def test_one_of_two_equal_files_stays(tmp_path: Path):
    same = {name: photo(5) for name in ("i1", "i2", "j0")}
    lake = lake_with(tmp_path, rows(10, 20, 95), rows(105, prefix="j"), same)
    images, left_out = around(lake)
    assert images.image_id.tolist() == ["i0", "i1"] and left_out == {"duplicate": 2}
    # On the other side of the border the box's own stays, not the one that lies in its margin.
    images, left_out = around(lake, "r00c01")
    assert images.image_id.tolist() == ["j0"] and left_out == {"duplicate": 1}


def test_a_vehicle_that_stands_on_the_border_is_thinned_alike_on_both_sides(tmp_path: Path):
    where = np.concatenate([np.arange(70, 99, 3), 99 + np.arange(30) / 15, np.arange(104, 130, 3)])
    every = rows(*where, compass_deg=90.0)
    for row in every:
        row["image_id"] = f"i{int(row['image_id'][1:]):03}"
    west, east = ([r for r, e in zip(every, where, strict=True) if (e < 100) == is_west] for is_west in (True, False))
    lake = lake_with(tmp_path, west, east)
    (from_west, left_out), (from_east, _) = around(lake), around(lake, "r00c01")
    near = {r["image_id"] for r, e in zip(every, where, strict=True) if 80 <= e < 120}
    assert left_out["standing"] >= 20
    assert near & set(from_west.image_id) == near & set(from_east.image_id)


def test_photos_without_a_sequence_share_none(tmp_path: Path):
    images, _ = around(lake_with(tmp_path, rows(10, 20, sequence_id=None)))
    assert images.sequence_id.tolist() == ["i0", "i1"]


def test_a_box_without_images(tmp_path: Path):
    images, left_out = around(lake_with(tmp_path, [], rows(160, prefix="j")))
    assert images.empty and not left_out and {"kind", "home_box", "best_lon", "sha256"} <= set(images)
