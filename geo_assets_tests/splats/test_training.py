"""The embedded engine learns, repeats itself, and goes on after a kill."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from geo_assets.errors import TrainingError
from geo_assets.splats.cameras import Scene, View
from geo_assets.splats.cpu import training
from geo_assets.splats.cpu.checkpoint import State
from geo_assets.splats.cpu.density import Population
from geo_assets.splats.cpu.exposure import Exposure, groups
from geo_assets.splats.cpu.initial import initial_gaussians, start_of
from geo_assets.splats.cpu.photos import halved
from geo_assets.splats.engine import SplatRequest
from geo_assets.splats.gaussians import Gaussians, joined
from geo_assets.splats.judge import judge, mean
from geo_assets.splats.render import render
from geo_assets_tests.splats.scenes import blobs, ring, scene_of


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def scene() -> Scene:
    return scene_of(blobs(), ring(24, turn=1.6), n_points=150)


def request_for(folder: Path, **other: object) -> SplatRequest:
    return dataclasses.replace(
        SplatRequest(folder, folder, steps=300, max_splats=400, sh_degree=1, holdout_every=5, threads=1), **other
    )


def test_held_out_photos_become_better_by_more_than_8_db(scene: Scene, tmp_path: Path) -> None:
    request = request_for(tmp_path, learning_rate_scale=4.0)
    held_out, trained = scene.held_out(5), scene.trained(5)
    start = initial_gaussians(scene, trained, max_splats=400, degree=1, seed=0)
    before = mean(judge(start, held_out, "holdout"), "psnr_db")
    done = training.train(scene, request, quiet)
    after = mean(judge(joined([done.gaussians, done.sky], 1), held_out, "holdout"), "psnr_db")
    assert before is not None
    assert after is not None
    assert after - before > 8
    assert done.steps_done == 300
    assert len(start) <= len(done.gaussians) + len(done.sky) <= 400
    assert done.curve[-1]["psnr_db"] == pytest.approx(after, abs=1.0)  # of the first four of them


def test_the_same_seed_gives_the_same_splat(scene: Scene, tmp_path: Path) -> None:
    request = request_for(tmp_path, steps=60)
    one, other = (training.train(scene, request, quiet).gaussians.rows for _ in range(2))
    assert np.array_equal(one, other)
    different = training.train(scene, dataclasses.replace(request, seed=1), quiet).gaussians.rows
    assert different.shape != one.shape or not np.array_equal(different, one)


def test_the_number_of_threads_changes_nothing(scene: Scene, tmp_path: Path) -> None:
    request = request_for(tmp_path, steps=60)
    one, two = (training.train(scene, dataclasses.replace(request, threads=n), quiet) for n in (1, 2))
    assert np.array_equal(one.gaussians.rows, two.gaussians.rows)
    assert np.array_equal(one.sky.rows, two.sky.rows)


def test_a_killed_training_goes_on_from_its_checkpoint(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 20)
    request = request_for(tmp_path, steps=90)
    whole = training.train(scene, request, quiet)

    resumable = dataclasses.replace(request, scratch_dir=tmp_path / "scratch")
    steps = training._Trainer._step

    def killed(self: training._Trainer, state: State, progress: float) -> float:
        if state.step == 50:
            raise KeyboardInterrupt
        return steps(self, state, progress)

    monkeypatch.setattr(training._Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(scene, resumable, quiet)
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == ["checkpoint.npz"]
    monkeypatch.setattr(training._Trainer, "_step", steps)
    resumed = training.train(scene, resumable, quiet)
    assert resumed.resumed_at == 40
    assert np.array_equal(resumed.gaussians.rows, whole.gaussians.rows)
    assert np.array_equal(resumed.sky.rows, whole.sky.rows)
    assert not (tmp_path / "scratch" / "checkpoint.npz").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip"])
def test_a_broken_checkpoint_is_left_aside(scene: Scene, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.npz").write_bytes(content)
    said: list[str] = []
    done = training.train(scene, request_for(tmp_path, steps=2, scratch_dir=tmp_path), said.append)
    assert done.resumed_at == 0
    assert any("cannot be read" in line for line in said)


def test_a_time_limit_ends_the_training(scene: Scene, tmp_path: Path) -> None:
    said: list[str] = []
    done = training.train(scene, request_for(tmp_path, steps=100_000, timeout_s=1.5), said.append)
    assert 0 < done.steps_done < 100_000
    assert any("time limit of 1.5 s" in line for line in said)


def test_non_finite_training_fails_after_one_setback(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training._Trainer, "_step", lambda self, state, progress: float("nan"))
    said: list[str] = []
    with pytest.raises(TrainingError, match="non-finite again"):
        training.train(scene, request_for(tmp_path), said.append)
    assert any("half the learning rate" in line for line in said)


def test_nothing_to_start_from(scene: Scene, tmp_path: Path) -> None:
    bare = dataclasses.replace(scene, points=np.zeros((0, 3)), colours=np.zeros((0, 3), np.uint8))
    with pytest.raises(TrainingError, match="0 points"):
        training.train(bare, request_for(tmp_path), quiet)


def test_exposure_is_modelled_where_it_varies() -> None:
    splat, cameras = blobs(), ring()
    assert groups(scene_of(splat, cameras).views, 80) is None
    assert groups(scene_of(splat, cameras, gains=[1.0, 0.97] * 5).views, 80) is None
    for gain in (0.7, 0.9):
        by_sequence = scene_of(splat, cameras, gains=[1.0, gain] * 5)
        assert groups(by_sequence.views, 80) == [f"s{i % 2}" for i in range(10)]
    jumpy = scene_of(splat, cameras, gains=[1.0, 1.0, 0.6, 0.6, 0.9, 0.9, 0.5, 0.5, 0.8, 0.8])
    assert groups(jumpy.views, 80) == [v.name for v in jumpy.views]


def test_exposure_follows_the_setting() -> None:
    views = scene_of(blobs(), ring()).views
    assert groups(views, 80, "off") is None
    assert groups(views, 80, "image") == [v.name for v in views]
    assert groups(views, 80, "sequence") == [v.sequence for v in views]


def test_exposures_are_centred_on_the_mean_photo() -> None:
    exposure = Exposure(["a", "a", "a", "b"])
    bright = np.full((4, 4, 3), 0.5, np.float32)
    for _ in range(20):
        exposure.learn(np.full((4, 4, 3), 0.1, np.float32), bright, 3)
    dark, light = exposure.apply(bright, 3).mean(), exposure.apply(bright, 0).mean()
    assert dark < 0.5 < light
    assert np.allclose(3 * exposure.values[0] + exposure.values[1], 0, atol=1e-6)


def test_a_mask_hides_the_exposure_of_its_pixels() -> None:
    scene = scene_of(blobs(), ring(), gains=[1.0, 0.5] * 5)
    black = [dataclasses.replace(v, mask=np.zeros(v.photo.shape[:2], bool)) for v in scene.views]
    assert groups(scene.views, 80) is not None
    assert groups(black, 80) is None


def test_what_a_mask_hides_is_not_learnt(scene: Scene, tmp_path: Path) -> None:
    mask = np.ones((48, 64), bool)
    mask[:20] = False
    painted = [dataclasses.replace(v, photo=np.where(mask[..., None], v.photo, 255)) for v in scene.views]
    masked = [dataclasses.replace(v, mask=mask) for v in painted]
    request = request_for(tmp_path, steps=60)
    learnt = []
    for views in (painted, masked):
        done = training.train(dataclasses.replace(scene, views=views), request, quiet)
        image = render(joined([done.gaussians, done.sky], 1), scene.views[0].camera)
        learnt.append(float(image[:20].mean()))
    assert learnt[0] > learnt[1] + 0.3


def test_the_sky_stays_where_it_is_and_takes_the_colour_of_the_photos(scene: Scene, tmp_path: Path) -> None:
    request = request_for(tmp_path, steps=120)
    start = start_of(scene, scene.trained(5), max_splats=400, degree=1, seed=0)
    done = training.train(scene, request, quiet)
    assert len(done.sky) == len(start.sky) > 0
    assert np.array_equal(done.sky.means, start.sky.means)
    assert not np.array_equal(done.sky.sh, start.sky.sh)
    assert np.linalg.norm(done.gaussians.means, axis=1).max() < np.linalg.norm(done.sky.means, axis=1).min()


def test_a_photo_is_halved_with_its_mask() -> None:
    camera = dataclasses.replace(ring(1)[0], width=200, height=101)
    photo = np.arange(101 * 200 * 3, dtype=np.uint8).reshape(101, 200, 3)
    mask = np.ones((101, 200), bool)
    mask[3, 5] = False
    view = View("a.jpg", camera, photo, "", np.zeros(0, np.int64), np.zeros((0, 2)), mask)
    small = halved(view)
    assert small.photo.shape == (50, 100, 3)
    assert small.mask is not None
    assert np.argwhere(~small.mask).tolist() == [[1, 2]]
    assert small.photo[7, 9, 1] == (photo[14:16, 18:20, 1].astype(int).sum() + 2) // 4


def test_no_gaussian_grows_into_the_face_of_a_camera() -> None:
    people = Population.of(Gaussians.none(), blobs(50))
    people.rows[:, 3:6] = 2.0
    people.limit_sizes(np.full(50, 3.0))
    assert np.exp(people.rows[:, 3:6]).max() == pytest.approx(0.6)


def test_refinement_keeps_to_the_cap_and_drops_the_faint() -> None:
    people = Population.of(blobs(7, seed=3), blobs(50))
    people.rows[:12, 10] = -9
    people.felt(np.arange(57), np.full(57, 1.0, np.float32))
    rng = np.random.default_rng(0)
    grown = people.refined(cap=66, growth=0.5, reach=3.0, rng=rng)
    assert 52 < len(grown.rows) <= 66
    assert grown.place.opacity_logits.min() > -6
    assert np.array_equal(grown.sky.rows, people.sky.rows)  # however faint, and whatever pulls
    calm = Population.of(Gaussians.none(), blobs(50)).refined(cap=60, growth=0.5, reach=3.0, rng=rng)
    assert np.array_equal(calm.rows, blobs(50).rows)


def test_the_start_leaves_room_to_grow(scene: Scene) -> None:
    start = initial_gaussians(scene, scene.views, max_splats=40, degree=1, seed=0)
    assert len(start) <= 4 + 27
    assert start.degree == 1
