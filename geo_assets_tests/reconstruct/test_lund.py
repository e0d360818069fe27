"""Real photos of one phone in Lund: the case in which COLMAP's default mapper registers none to two of 29."""

from __future__ import annotations

from pathlib import Path

from geo_assets.pictures import MAX_BYTES
from geo_assets.reconstruct import features, matching, models, pictures
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.lakes import lund_lake


def test_lund_is_reconstructed_whole_and_in_its_place(real_data: Path, tmp_path: Path):
    lake, grid = lund_lake(tmp_path, real_data / "images" / "lund")
    options, where = Reconstruct(threads=1), {"city": "lund", "box": "r00c00"}
    made = features.gps_database(lake, "lund", "r00c00", grid, options)
    lake.write("gps_db", made.frame, note=made.note, **where)
    matched = matching.match_box(lake, "lund", "r00c00", options)
    lake.write("match_pairs", matched.frame, note=None, **where)
    found = models.map_box(lake, "lund", "r00c00", options)
    assert found.models.status.tolist() == ["placed"]
    best = found.models.iloc[0]
    assert best.n_home_registered == 29
    assert best.gps_median_m <= 4.0
    assert best.reprojection_px <= 1.0 and best.roll_deg <= 1.5
    for png in (
        pictures.prior_map(made.frame, "r00c00"),
        pictures.pair_pictures(made.frame, matched.frame),
        pictures.model_map(made.frame, found.cameras, found.points),
    ):
        assert png.startswith(b"\x89PNG") and len(png) <= MAX_BYTES
