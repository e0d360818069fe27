from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.errors import ConfigError, SourceError
from geo_assets.lake import Lake
from geo_assets.reconstruct import features
from geo_assets.reconstruct.masks import Masks, mask_pixels, with_masks
from geo_assets_tests.reconstruct.towns import GRID, OPTIONS, WEST, lake_with, rows


def lower_half(width: int, height: int) -> np.ndarray:
    """A mask that ignores the lower half."""
    return (np.arange(height)[:, None] < height / 2) & np.ones((1, width), bool)


def save(folder: Path, name: str, mask: np.ndarray, mode: str = "L") -> Path:
    folder.mkdir(exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).convert(mode).save(folder / name)
    return folder / name


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P", "I;16"])
def test_a_mask_is_resized_to_the_photo_whatever_its_mode(tmp_path: Path, mode: str):
    path = save(tmp_path, "m.png", lower_half(64, 48), mode)
    assert np.array_equal(mask_pixels(path, 320, 240), lower_half(320, 240))


def test_a_mask_that_cannot_be_used(tmp_path: Path):
    torn, jpeg = tmp_path / "torn.png", tmp_path / "jpeg.png"
    torn.write_bytes(save(tmp_path, "whole.png", lower_half(64, 48)).read_bytes()[:60])
    Image.new("L", (64, 48), 255).save(jpeg, "JPEG")
    for path, why in (
        (torn, "cannot|can be read"),
        (jpeg, "not a PNG"),
        (save(tmp_path, "portrait.png", lower_half(48, 64)), "another shape"),
        (save(tmp_path, "black.png", np.zeros((48, 64), bool)), "ignores all"),
    ):
        with pytest.raises(SourceError, match=why):
            mask_pixels(path, 320, 240)


def test_the_photos_own_mask_goes_before_its_sequences_and_its_cameras(tmp_path: Path):
    for name in ("i1.png", "s.png", "ACME X 1.png"):
        save(tmp_path, name, lower_half(8, 6))
    masks = Masks(tmp_path)
    asked = [
        ("i1", "s", "ACME", "X 1"),
        ("i2", "s", "ACME", "X 1"),
        ("i2", "t", "ACME", "X 1"),
        ("i2", "t", None, None),
    ]
    found = [masks.path_of(*a) for a in asked]
    assert [path.name if path else None for path in found] == ["i1.png", "s.png", "ACME X 1.png", None]


def test_a_folder_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="'gone' does not exist"):
        Masks(tmp_path / "gone")


def pictures(n: int = 2, **known: Any) -> pd.DataFrame:
    common = {"sequence_id": "s", "make": None, "model": None, "width": 32, "height": 24, "kind": "perspective"}
    return pd.DataFrame([{"image_id": f"i{k}", "photo_id": f"i{k}", "view": None} | common | known for k in range(n)])


def test_masks_are_kept_in_the_lake_under_the_image(tmp_path: Path):
    lake = Lake(tmp_path / "lake")
    save(tmp_path / "masks", "i1.png", lower_half(8, 6))
    images, figures = with_masks(lake, "town", "r00c00", pictures(), tmp_path / "masks")
    assert images.mask_path.isna().tolist() == [True, False] == images.mask_sha256.isna().tolist()
    with Image.open(io.BytesIO(lake.get_bytes(images.mask_path[1]))) as mask:
        assert np.array_equal(np.asarray(mask), lower_half(32, 24) * np.uint8(255))
    assert figures == {"n_masked": 1, "n_bad_masks": 0}


def test_a_bad_mask_is_a_warning(tmp_path: Path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "s.png").write_text("no picture")
    images, figures = with_masks(Lake(tmp_path), "town", "r00c00", pictures(), tmp_path / "masks")
    assert images.mask_path.isna().all()
    assert figures["n_bad_masks"] == 1 and "s.png" in figures["bad_masks"]


def test_the_mask_of_a_panorama_is_cut_as_it_is(tmp_path: Path):
    right = (np.arange(64)[None] >= 32) & np.ones((32, 1), bool)  # ignores what is left of straight ahead
    save(tmp_path / "masks", "p.png", right)
    views = pictures(4, photo_id="p", kind="view", width=16, height=16).assign(view=range(4))
    lake = Lake(tmp_path / "lake")
    images, _ = with_masks(lake, "town", "r00c00", views, tmp_path / "masks")
    kept = []
    for path in images.mask_path:
        with Image.open(io.BytesIO(lake.get_bytes(path))) as mask:
            kept.append(np.asarray(mask) > 0)
    front, to_right, back, to_left = kept
    assert not front[:, :8].any() and front[:, 8:].all() and to_right.all()
    assert back[:, :8].all() and not back[:, 8:].any() and not to_left.any()


def test_features_keep_out_of_what_is_masked(tmp_path: Path):
    lake = lake_with(tmp_path / "lake", rows(40, 44))
    bare = features.gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    save(tmp_path / "masks", "i1.png", lower_half(64, 48))
    made = features.gps_database(lake, "town", "r00c00", GRID, OPTIONS, masks=tmp_path / "masks")
    # Only the masked photo is looked at anew.
    assert made.figures["n_extracted"] == 1 and made.figures["n_masked"] == 1
    assert (made.frame.feature_key == bare.frame.feature_key).tolist() == [True, False]
    pycolmap = pytest.importorskip("pycolmap")
    with lake.local(lake.key("features", "database.db", **WEST)) as path, pycolmap.Database.open(path) as db:
        rows_of = {i.name: db.read_keypoints(i.image_id)[:, 1] for i in db.read_all_images()}
    assert rows_of["i0.jpg"].max() > 180 and 100 < rows_of["i1.jpg"].max() <= 120
