"""The provider's poses on a made scene whose true poses are known: when they are used, and what they give."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pycolmap = pytest.importorskip("pycolmap")

from geo_assets.reconstruct.frames import best_similarity  # noqa: E402
from geo_assets.reconstruct.given_poses import (  # noqa: E402
    GivenPose,
    agreement,
    posed,
    poses_of,
    triangulate_on_given,
)
from geo_assets.reconstruct.mapping import map_block  # noqa: E402

METRES = 20.0  # the made scene is about five units across


class Scene:
    """Cameras around a cloud of points, in a database with verified pairs."""

    def __init__(self, folder: Path, n: int = 14) -> None:
        pycolmap.set_random_seed(3)
        options = pycolmap.SyntheticDatasetOptions()
        options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, n, 250
        options.camera_has_prior_focal_length = True
        self.database = str(folder / "database.db")
        with pycolmap.Database.open(self.database) as db:
            truth = pycolmap.synthesize_dataset(options, db)
            noise = pycolmap.SyntheticNoiseOptions()
            noise.point2D_stddev = 0.5
            pycolmap.synthesize_noise(noise, truth, db)
        self.images = sorted((truth.image(i) for i in truth.reg_image_ids()), key=lambda image: image.name)
        self.truth = truth
        self.names = [image.name for image in self.images]
        self.centres = np.array([image.projection_center() for image in self.images]) * METRES

    def given(self, metres: float, degrees: float, *, n: int | None = None, seed: int = 0) -> list[GivenPose]:
        """Poses of the first n images, each with its own noise."""
        rng = np.random.default_rng(seed)
        found = []
        for image, centre in zip(self.images[:n], self.centres, strict=False):
            turn = Rotation.from_rotvec(rng.normal(0, np.radians(degrees), 3))
            rotation = (turn * Rotation.from_matrix(image.cam_from_world().rotation.matrix())).as_rotvec()
            found.append(GivenPose(image.name, (centre + rng.normal(0, metres, 3)).tolist(), rotation.tolist()))
        return found

    def error_m(self, model: Any) -> float:
        """Largest error of a camera centre after the best similarity [m]."""
        found = {model.image(i).name: model.image(i).projection_center() for i in model.reg_image_ids()}
        at = [self.names.index(name) for name in sorted(found)]
        now, true = np.array([found[name] for name in sorted(found)]), self.centres[at]
        return float(np.linalg.norm(best_similarity(now, true)(now) - true, axis=1).max())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


def tried(scene: Scene, given: list[GivenPose], scratch: Path, **options: Any) -> tuple[Any, Any]:
    return triangulate_on_given(scene.database, str(scratch), scratch, scene.names, given, **options)


@pytest.mark.parametrize("metres, degrees", [(0.0, 0.0), (0.1, 0.1), (0.3, 0.3)])
def test_good_poses_give_the_scene(scene: Scene, tmp_path: Path, metres: float, degrees: float):
    model, figures = tried(scene, scene.given(metres, degrees), tmp_path)
    assert figures.used and model is not None, figures.reason
    assert figures.n_registered == len(scene.names)
    assert scene.error_m(model) < 0.1 and figures.reprojection_px < 1.0
    assert figures.before.epipolar_deg <= 0.75 and figures.moved_m <= 2 * metres + 0.1


def test_poses_that_cost_more_than_mapping_are_left_aside_unless_there_is_no_other_way(scene: Scene, tmp_path: Path):
    given = scene.given(3.0, 1.0)
    model, figures = tried(scene, given, tmp_path)
    assert model is None and not figures.used and "deg from where the poses predict" in figures.reason
    assert figures.before.rotation_deg > 0.5 and figures.before.direction_deg > 0.5
    model, figures = tried(scene, given, tmp_path, only=True)
    assert figures.used and scene.error_m(model) < 0.1


def test_wrong_poses_are_refused(scene: Scene, tmp_path: Path):
    given = scene.given(0.0, 0.0)
    turned = [GivenPose(p.name, p.centre, q.rotation) for p, q in zip(given, given[1:] + given[:1], strict=True)]
    model, figures = tried(scene, turned, tmp_path, only=True)
    assert model is None and not figures.used
    assert figures.cpu_seconds < 2.0


def test_one_wrong_pose_among_good_ones_does_not_stand(scene: Scene, tmp_path: Path):
    given = scene.given(0.05, 0.05)
    away = GivenPose(given[4].name, (np.array(given[4].centre) + 40.0).tolist(), given[9].rotation)
    model, figures = tried(scene, [*given[:4], away, *given[5:]], tmp_path)
    assert not figures.used or scene.error_m(model) < 0.1


def test_images_without_a_pose_are_registered_too(scene: Scene, tmp_path: Path):
    model, figures = tried(scene, scene.given(0.05, 0.1, n=11), tmp_path)
    assert figures.used and figures.n_given == 11 and figures.n_registered == len(scene.names)
    assert scene.error_m(model) < 0.2


def test_too_few_poses_are_not_asked(scene: Scene, tmp_path: Path):
    model, figures = tried(scene, scene.given(0.0, 0.0, n=6), tmp_path)
    assert model is None and figures.reason == "6 of 14 images have a pose"


def test_poses_without_pairs_are_not_asked(scene: Scene, tmp_path: Path):
    shutil.copy(scene.database, tmp_path / "bare.db")
    with pycolmap.Database.open(str(tmp_path / "bare.db")) as db:
        db.clear_two_view_geometries()
    given = scene.given(0.0, 0.0)
    model, figures = triangulate_on_given(str(tmp_path / "bare.db"), str(tmp_path), tmp_path, scene.names, given)
    assert model is None and "no verified pair" in figures.reason


def test_the_agreement_is_that_of_the_noise(scene: Scene):
    def asked(metres: float, degrees: float) -> Any:
        return agreement(
            scene.database, posed(scene.database, scene.names, {p.name: p for p in scene.given(metres, degrees)})
        )

    exact, turned, moved = asked(0.0, 0.0), asked(0.0, 1.0), asked(2.0, 0.0)
    assert exact.epipolar_px < 1.0 and exact.rotation_deg < 0.5 and exact.direction_deg < 1.0
    assert 1.0 < turned.rotation_deg < 4.0
    assert moved.rotation_deg < 0.5 and moved.direction_deg > exact.direction_deg + 0.3
    assert turned.epipolar_deg > 5 * exact.epipolar_deg


def test_a_block_is_mapped_on_them(scene: Scene, tmp_path: Path):
    poses = {pose.name: pose for pose in scene.given(0.05, 0.1)}
    images = [
        {
            "name": image.name,
            "colmap_image_id": image.image_id,
            "heading_deg": None,
            "sigma_xy_m": 3.0,
            "sigma_z_m": 10.0,
        }
        | dict(zip(("east_m", "north_m", "up_m"), centre.tolist(), strict=True))
        | {"given_centre": list(poses[image.name].centre), "given_rotation": list(poses[image.name].rotation)}
        for image, centre in zip(scene.images, scene.centres, strict=True)
    ]
    pairs = [(a, b, 100, "CALIBRATED") for k, a in enumerate(scene.names) for b in scene.names[k + 1 :]]
    said = map_block(scene.database, str(tmp_path / "first" / "out"), images, pairs, 5, 0, "auto")
    assert [model["mapper"] for model in said["models"]] == ["given"]
    assert said["given"][0]["used"] and said["models"][0]["names"] == scene.names
    for image in images:
        image["given_centre"] = None
    assert poses_of(images) == []
    said = map_block(scene.database, str(tmp_path / "second" / "out"), images, pairs, 5, 0, "auto")
    assert said["given"] == [] and said["models"][0]["mapper"] != "given"
    said = map_block(scene.database, str(tmp_path / "third" / "out"), images, pairs, 5, 0, "only")
    assert said["models"] == [] and "0 of 14 images have a pose" in said["given"][0]["reason"]
