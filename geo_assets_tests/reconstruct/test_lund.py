"""Real photos of one phone in Lund: the case in which COLMAP's default mapper registers none to two of 29."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from geo_assets.grid import Grid
from geo_assets.lake import BoxPartition, Lake
from geo_assets.pictures import MAX_BYTES
from geo_assets.reconstruct import features, matching, models, pictures
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.lakes import lund_lake
from geo_assets_tests.reconstruct.photos import with_banner

OPTIONS = Reconstruct(threads=1)
WHERE = BoxPartition(city="lund", box="r00c00")


def reconstructed(lake: Lake, grid: Grid) -> tuple[pd.DataFrame, pd.DataFrame, models.Models]:
    """Rows of ``gps_db`` and ``match_pairs``, and the models."""
    made = features.gps_database(lake, "lund", "r00c00", grid, OPTIONS)
    lake.write("gps_db", made.frame, note=made.note, **WHERE)
    matched = matching.match_box(lake, "lund", "r00c00", OPTIONS)
    lake.write("match_pairs", matched.frame, note=None, **WHERE)
    return made.frame, matched.frame, models.map_box(lake, "lund", "r00c00", OPTIONS)


def test_lund_is_reconstructed_whole_and_in_its_place(real_data: Path, tmp_path: Path):
    lake, grid = lund_lake(tmp_path, real_data / "images" / "lund")
    images, pairs, found = reconstructed(lake, grid)
    assert found.models.status.tolist() == ["placed"]
    best = found.models.iloc[0]
    assert best.n_home_registered == 29
    assert best.gps_median_m <= 4.0
    assert best.reprojection_px <= 1.0 and best.roll_deg < 1.0
    for png in (
        pictures.prior_map(images, "r00c00"),
        pictures.pair_pictures(images, pairs),
        pictures.model_map(images, found.cameras, found.points),
    ):
        assert png.startswith(b"\x89PNG") and len(png) <= MAX_BYTES
    folder = tmp_path / lake.key("models", **WHERE)
    first = {path.name: path.read_bytes() for path in (folder / "0").iterdir()}
    lake.remove_folder(lake.key("models", **WHERE))
    models.map_box(lake, "lund", "r00c00", OPTIONS)
    assert {path.name: path.read_bytes() for path in (folder / "0").iterdir()} == first


def test_a_banner_over_a_fifth_of_each_photo_costs_no_image(real_data: Path, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (real_data / "images" / "lund").glob("*.jpg"):
        (photos / path.name).write_bytes(with_banner(path.read_bytes(), seed=1))
    lake, grid = lund_lake(tmp_path / "lake", photos)
    _, _, found = reconstructed(lake, grid)
    assert found.models.status.tolist() == ["placed"]
    assert found.models.n_home_registered.tolist() == [29] and found.models.gps_median_m[0] <= 4.5


@pytest.mark.parametrize("n, status", [(5, "too_few"), (3, "unplaced")])
def test_berlin_has_a_clear_state(real_data: Path, tmp_path: Path, n: int, status: str):
    lake, grid = lund_lake(tmp_path, real_data / "images" / "berlin")
    options = OPTIONS.model_copy(update={"min_images": n})
    made = features.gps_database(lake, "lund", "r00c00", grid, options)
    lake.write("gps_db", made.frame, note=made.note, **WHERE)
    matched = matching.match_box(lake, "lund", "r00c00", options)
    lake.write("match_pairs", matched.frame, note=None, **WHERE)
    found = models.map_box(lake, "lund", "r00c00", options)
    assert found.models.status.tolist() == [status]
    assert found.models.reason.notna().all()
