from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.reconstruct.frames import best_similarity
from geo_assets.reconstruct.models import geo_reference, map_box, mappable
from geo_assets.reconstruct.stage import run_step
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

OPTIONS = Reconstruct(threads=1)
WHERE = {"city": "town", "box": "r00c00"}
NOTE = {"origin": [10.0, 50.0, 100.0]}


def image_rows(n: int) -> pd.DataFrame:
    """Rows of ``gps_db`` along a line."""
    frame = pd.DataFrame({"image_id": [f"i{k}" for k in range(n)], "east_m": np.arange(n) * 5.0})
    known: dict[str, Any] = {"north_m": 0.0, "up_m": 0.0, "sigma_xy_m": 3.0, "sigma_z_m": 10.0, "home_box": "r00c00"}
    return frame.assign(**known, n_keypoints=100).reindex(columns=TABLES["gps_db"].column_names)


def pair_rows(pairs: list[tuple[int, int]], verified: bool = True) -> pd.DataFrame:
    frame = pd.DataFrame({"image_id_a": [f"i{a}" for a, _ in pairs], "image_id_b": [f"i{b}" for _, b in pairs]})
    frame = frame.assign(n_inliers=100, n_matches=120, geometry="CALIBRATED", reason="ring", verified=verified)
    return frame.reindex(columns=TABLES["match_pairs"].column_names)


def lake_with(root: Path, images: pd.DataFrame, pairs: pd.DataFrame) -> Lake:
    lake = Lake(root)
    lake.write("gps_db", images, note=NOTE, **WHERE)
    lake.write("match_pairs", pairs, note=None, **WHERE)
    return lake


def test_components_come_by_size_and_small_ones_are_dropped():
    chain = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7), (7, 8), (9, 10)]
    groups = mappable(image_rows(11), pair_rows(chain), min_images=4)
    assert [len(g) for g in groups] == [5, 4]
    assert groups[1] == ["i0", "i1", "i2", "i3"]


@pytest.mark.parametrize(
    "n, verified, status", [(3, True, "too_few"), (8, False, "no_overlap")], ids=["too_few", "no_overlap"]
)
def test_what_cannot_be_mapped_says_why(tmp_path: Path, n: int, verified: bool, status: str):
    lake = lake_with(tmp_path, image_rows(n), pair_rows([(k, k + 1) for k in range(n - 1)], verified))
    made = map_box(lake, "town", "r00c00", OPTIONS)
    assert made.models.status.tolist() == [status]
    assert made.cameras.empty
    assert lake.write("sparse_models", made.models, note=None, **WHERE).rows == 1
    assert lake.write("model_cameras", made.cameras, note=None, **WHERE).rows == 0


def test_an_empty_box_stays_empty(tmp_path: Path):
    lake = lake_with(tmp_path, TABLES["gps_db"].empty(), TABLES["match_pairs"].empty())
    made = map_box(lake, "town", "r00c00", OPTIONS)
    assert made.models.empty and made.figures["n_images"] == 0


def test_the_geo_reference_leads_to_the_place():
    frame = LocalFrame(10.0, 50.0, 100.0)
    reference = geo_reference(frame)
    ecef = np.array(reference["ecef_from_enu"]) @ [3.0, 4.0, 5.0, 1.0]
    assert np.allclose(frame.enu(*frame.geodetic([3.0, 4.0, 5.0])), [3, 4, 5], atol=1e-6)
    from geo_assets.geodesy import geodetic

    assert np.allclose(geodetic(ecef[:3]), frame.geodetic([3.0, 4.0, 5.0]))


class Street:
    """A synthetic database of cameras in metres, and what the room would ask of it."""

    def __init__(self, folder: Path, n: int = 12) -> None:
        import pycolmap

        pycolmap.set_random_seed(1)
        options = pycolmap.SyntheticDatasetOptions()
        options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, n, 300
        options.camera_has_prior_focal_length = True
        self.database = str(folder / "database.db")
        with pycolmap.Database.open(self.database) as db:
            truth = pycolmap.synthesize_dataset(options, db)
        images = [truth.image(i) for i in sorted(truth.reg_image_ids())]
        self.names = [image.name for image in images]
        self.metres = np.array([image.projection_center() for image in images]) * 20  # about 100 m across
        self.folder = folder

    def reconstruct(self, out: str, noise_m: float = 0.0, names: list[str] | None = None) -> dict[str, Any]:
        import shutil

        database = self.folder / f"{out}.db"
        shutil.copy(self.database, database)
        sigma = np.array([3.0, 3.0, 3.0])
        places = self.metres + np.random.default_rng(0).normal(0, noise_m, self.metres.shape)
        columns = ("east_m", "north_m", "up_m")
        cameras = [
            {"name": name, "sigma_xy_m": sigma[0], "sigma_z_m": sigma[2]} | dict(zip(columns, place, strict=True))
            for name, place in zip(self.names, places.tolist(), strict=True)
        ]
        return run_step(
            "reconstruct",
            {
                "database": str(database),
                "images_folder": str(self.folder),
                "out": str(self.folder / out),
                "components": [names or self.names],
                "cameras": cameras,
                "min_images": 5,
                "seed": 0,
            },
            self.folder,
        )


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    pytest.importorskip("pycolmap")
    return Street(tmp_path_factory.mktemp("street"))


def test_a_known_scene_comes_out_whole(street: Street):
    said = street.reconstruct("whole")
    model = said["models"][0]
    assert len(said["models"]) == 1 and model["n_registered"] == len(street.names)
    assert model["reprojection_px"] < 0.1
    assert (street.folder / "whole" / "0" / "points3D.bin").exists()


def test_mapping_repeats_itself(street: Street):
    first, second = street.reconstruct("once", noise_m=1.0), street.reconstruct("again", noise_m=1.0)
    assert first["models"] == second["models"] and first["cameras"] == second["cameras"]
    files = ("cameras.bin", "images.bin", "points3D.bin")
    assert all(
        (street.folder / "once" / "0" / f).read_bytes() == (street.folder / "again" / "0" / f).read_bytes()
        for f in files
    )


def test_too_small_a_component_makes_no_model(street: Street):
    assert street.reconstruct("small", names=street.names[:4])["models"] == []


def test_shape_is_that_of_the_scene(street: Street):
    import pycolmap

    street.reconstruct("shape")
    model = pycolmap.Reconstruction(str(street.folder / "shape" / "0"))
    found = np.array([model.find_image_with_name(name).projection_center() for name in street.names])
    assert np.linalg.norm(best_similarity(found, street.metres)(found) - street.metres, axis=1).max() < 0.05


def test_groups_that_share_a_handful_of_points_do_not_hold_together():
    import pycolmap

    from geo_assets.reconstruct.mapping import held_together

    pycolmap.set_random_seed(2)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 12, 300
    model = pycolmap.synthesize_dataset(options)
    first, last = set(sorted(model.reg_image_ids())[:8]), set(sorted(model.reg_image_ids())[8:])
    for number, point in enumerate(sorted(model.points3D)):
        blind = set() if number < 5 else (last if number % 3 else first)
        track = [(element.image_id, element.point2D_idx) for element in model.points3D[point].track.elements]
        for image_id, index in track:
            if image_id in blind:
                model.delete_observation(image_id, index)
    assert set(held_together(model).reg_image_ids()) == first
