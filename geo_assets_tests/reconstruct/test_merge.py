from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pycolmap = pytest.importorskip("pycolmap")

from geo_assets.reconstruct.merge import adjust, join_models, merge  # noqa: E402
from geo_assets.reconstruct.stage import run_step  # noqa: E402

N = 14
FIRST, LAST = range(0, 9), range(5, N)  # frames of two models that share four


class Scene:
    """A synthetic model, and parts of it as models of their own."""

    def __init__(self, folder: Path, cameras_per_rig: int = 1) -> None:
        pycolmap.set_random_seed(3)
        options = pycolmap.SyntheticDatasetOptions()
        options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, cameras_per_rig, N
        options.num_points3D, options.track_length = 400, 5 * cameras_per_rig
        self.truth = pycolmap.synthesize_dataset(options)
        self.frames = sorted(self.truth.reg_frame_ids())
        self.folder = folder / "truth"
        self.folder.mkdir()
        self.truth.write_binary(str(self.folder))

    def names(self, frames: range) -> set[str]:
        ids = [data.id for k in frames for data in self.truth.frame(self.frames[k]).image_ids]
        return {self.truth.image(i).name for i in ids}

    def part(self, frames: range, change: Callable[[Any], None] = lambda model: None) -> Any:
        """The model of some frames only."""
        model = pycolmap.Reconstruction(str(self.folder))
        for k, frame in enumerate(self.frames):
            if k not in frames:
                model.deregister_frame(frame)
        change(model)
        return model

    def far_from_truth(self, model: Any) -> float:
        """Largest distance of a camera from its true place."""
        pairs = ((i.projection_center(), self.truth.find_image_with_name(i.name)) for i in registered(model))
        return max(float(np.linalg.norm(centre - true.projection_center())) for centre, true in pairs)


def registered(model: Any) -> list[Any]:
    return [model.image(i) for i in model.reg_image_ids()]


def moved(by: float) -> Callable[[Any], None]:
    """Move a model a little to the side."""
    return lambda model: model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), np.array([by, 0.0, 0.0])))


def focal(factor: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for camera in model.cameras.values():
            camera.params = [camera.params[0] * factor, *camera.params[1:]]

    return change


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def rigs(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("rigs"), cameras_per_rig=4)


def first_half(scene: Scene) -> Callable[[str], int]:
    home = scene.names(range(0, 7))
    return lambda name: 0 if name in home else 1


def tracks(model: Any) -> set[frozenset[tuple[str, int]]]:
    return {
        frozenset((model.image(e.image_id).name, e.point2D_idx) for e in p.track.elements)
        for p in model.points3D.values()
    }


@pytest.mark.parametrize("which", ["scene", "rigs"])
def test_two_halves_make_the_whole(which: str, request: pytest.FixtureRequest, tmp_path: Path):
    scene: Scene = request.getfixturevalue(which)
    made, figures = merge([scene.part(FIRST), scene.part(LAST)], first_half(scene))
    assert figures.n_images == made.num_reg_images() == scene.truth.num_reg_images()
    assert made.num_cameras() == scene.truth.num_cameras() and figures.n_cameras_kept_apart == 0
    assert made.num_reg_frames() == N and made.num_rigs() == 1
    assert figures.n_tracks_joined > 20 and figures.n_ambiguous == figures.n_other_keypoints == 0
    # What only the left alone or the right alone saw twice is there as a whole; nothing is there twice.
    known = tracks(scene.truth)
    found = tracks(made)
    assert len(found) == made.num_points3D() and len(found & known) > 0.8 * len(known)
    seen = [o for track in found for o in track]
    assert len(seen) == len(set(seen))
    assert scene.far_from_truth(made) < 1e-9 and made.compute_mean_reprojection_error() < 0.01
    made.write_binary(str(tmp_path))
    assert pycolmap.Reconstruction(str(tmp_path)).num_points3D() == figures.n_points


def test_poses_are_the_owners(scene: Scene):
    made, _ = merge([scene.part(FIRST), scene.part(LAST, moved(0.5))], first_half(scene))
    home = scene.names(range(0, 7))
    for image in registered(made):
        true = scene.truth.find_image_with_name(image.name).projection_center()
        assert np.allclose(image.projection_center() - true, [0 if image.name in home else 0.5, 0, 0], atol=1e-9)


def test_who_lost_an_image_lends_it(scene: Scene):
    models = [scene.part(FIRST), scene.part(LAST)]
    made, _ = merge(models, lambda name: 1)
    assert made.num_reg_images() == N
    assert merge(models, lambda name: -1)[0].num_reg_images() == N


def test_the_seam_is_adjusted_and_the_rest_stands(scene: Scene):
    made, figures = merge([scene.part(FIRST), scene.part(LAST, moved(0.02))], first_half(scene))
    before = {image.name: image.projection_center() for image in registered(made)}
    variable = scene.names(range(5, 9))
    said = adjust(made, variable)
    assert said["n_variable"] == len(variable) == 4
    assert said["error_after_px"] < said["error_before_px"]
    way = {i.name: float(np.linalg.norm(i.projection_center() - before[i.name])) for i in registered(made)}
    assert {name for name, m in way.items() if m > 0} == variable
    assert figures.seam >= variable


def test_without_an_anchor_the_whole_stays_in_place(scene: Scene):
    made, _ = merge([scene.part(FIRST), scene.part(LAST, moved(0.02))], first_half(scene))
    said = adjust(made, scene.names(range(N)))
    assert said["n_variable"] == N and said["error_after_px"] < 0.5 * said["error_before_px"]
    assert scene.far_from_truth(made) < 0.1


def test_wrong_observations_are_filtered(scene: Scene):
    made = scene.part(range(N))
    image = registered(made)[6]
    index = image.get_observation_point2D_idxs()[0]
    made.image(image.image_id).point2D(index).xy += 40.0
    assert adjust(made, {image.name})["n_filtered"] >= 1
    assert not made.image(image.image_id).point2D(index).has_point3D()


def test_nothing_to_adjust(scene: Scene):
    made = scene.part(range(N))
    assert adjust(made, set())["n_variable"] == 0 and scene.far_from_truth(made) == 0


@pytest.mark.parametrize("factor, n_cameras", [(1.0, 1), (1.0002, 1), (1.02, 2)])
def test_calibrations_that_differ_are_kept_apart(scene: Scene, factor: float, n_cameras: int):
    made, figures = merge([scene.part(FIRST), scene.part(LAST, focal(factor))], first_half(scene))
    assert made.num_cameras() == n_cameras and figures.n_cameras_kept_apart == n_cameras - 1
    focals = {image.name: image.camera.params[0] for image in registered(made)}
    if n_cameras == 2:
        home = scene.names(range(0, 7))
        assert {focals[n] for n in home} != {focals[n] for n in set(focals) - home}


def test_rigs_whose_mounting_differs_are_kept_apart(rigs: Scene):
    def bend(model: Any) -> None:
        rig = next(iter(model.rigs.values()))
        sensor = sorted(rig.non_ref_sensors, key=lambda s: s.id)[0]
        pose = rig.sensor_from_rig(sensor)
        rig.set_sensor_from_rig(sensor, pycolmap.Rigid3d(pose.rotation, pose.translation + np.array([0.5, 0.0, 0.0])))

    made, _ = merge([rigs.part(FIRST), rigs.part(LAST, bend)], first_half(rigs))
    assert made.num_rigs() == 2 and made.num_cameras() == 8 and made.num_reg_frames() == N


def test_images_with_other_keypoints_do_not_join_tracks(scene: Scene, tmp_path: Path):
    scene.part(LAST).write_text(str(tmp_path))
    lines = (tmp_path / "images.txt").read_text().splitlines()
    head = sum(line.startswith("#") for line in lines)
    # Every second line holds keypoints; each image gets one more.
    lines[head + 1 :: 2] = [f"{line} 1.0 1.0 -1" for line in lines[head + 1 :: 2]]
    (tmp_path / "images.txt").write_text("\n".join(lines) + "\n")
    _, figures = merge([scene.part(FIRST), pycolmap.Reconstruction(str(tmp_path))], first_half(scene))
    assert figures.n_other_keypoints == 4 and figures.n_tracks_joined == 0


def test_tracks_that_meet_two_others_stay_apart(scene: Scene):
    def confuse(model: Any) -> None:
        # One point takes over the observations of another: a false match at the seam.
        images = {model.find_image_with_name(name).image_id for name in scene.names(range(5, 9))}
        seam = [i for i, p in sorted(model.points3D.items()) if {e.image_id for e in p.track.elements} & images]
        for a in seam:
            for b in seam:
                seen_a = {e.image_id for e in model.point3D(a).track.elements}
                if a < b and not seen_a & {e.image_id for e in model.point3D(b).track.elements}:
                    model.merge_points3D(a, b)
                    return

    made, figures = merge([scene.part(FIRST), scene.part(LAST, confuse)], first_half(scene))
    seen = [o for track in tracks(made) for o in track]
    assert len(seen) == len(set(seen))
    assert figures.n_ambiguous == 1


def test_the_step_moves_merges_and_writes(scene: Scene, tmp_path: Path):
    folders, similarity = [tmp_path / "a", tmp_path / "b"], pycolmap.Sim3d(2.0, pycolmap.Rotation3d(), np.ones(3))
    for folder, frames in zip(folders, (FIRST, LAST), strict=True):
        folder.mkdir()
        model = scene.part(frames)
        model.transform(similarity)
        model.write_binary(str(folder))
    back = {"scale": 0.5, "rotation": np.eye(3).tolist(), "translation": [-0.5] * 3}
    home = scene.names(range(0, 7))
    said = run_step(
        "join_models",
        {
            "models": [{"folder": str(folder)} | back for folder in folders],
            "owner": {name: 0 for name in home},
            "out": str(tmp_path / "out" / "merged"),
        },
        tmp_path,
    )
    made = pycolmap.Reconstruction(str(tmp_path / "out" / "merged"))
    assert said["n_images"] == made.num_reg_images() == N and said["n_points"] == made.num_points3D()
    assert said["figures"]["n_tracks_joined"] > 0 and said["adjusted"]["n_variable"] > 0
    assert scene.far_from_truth(made) < 1e-3
    (camera,) = [c for c in said["cameras"] if c["name"] == min(home)]
    true = scene.truth.find_image_with_name(min(home))
    assert np.allclose(camera["centre"], true.projection_center(), atol=1e-3)
    assert join_models.__doc__ and camera["quaternion"][0] >= 0
