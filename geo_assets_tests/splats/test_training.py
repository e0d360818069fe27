"""The embedded engine learns, repeats itself, and goes on after a kill."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from geo_assets.errors import TrainingError
from geo_assets.splats.cameras import Scene
from geo_assets.splats.cpu import training
from geo_assets.splats.cpu.density import Population
from geo_assets.splats.cpu.exposure import groups
from geo_assets.splats.cpu.initial import initial_gaussians
from geo_assets.splats.engine import SplatRequest
from geo_assets.splats.judge import judge, mean
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
    after = mean(judge(done.gaussians, held_out, "holdout"), "psnr_db")
    assert before is not None
    assert after is not None
    assert after - before > 8
    assert done.steps_done == 300
    assert len(start) <= len(done.gaussians) <= 400
    assert done.curve[-1]["psnr_db"] == pytest.approx(after, abs=1.0)  # of the first four of them


def test_the_same_seed_gives_the_same_splat(scene: Scene, tmp_path: Path) -> None:
    request = request_for(tmp_path, steps=60)
    one, other = (training.train(scene, request, quiet).gaussians.rows for _ in range(2))
    assert np.array_equal(one, other)
    different = training.train(scene, dataclasses.replace(request, seed=1), quiet).gaussians.rows
    assert different.shape != one.shape or not np.array_equal(different, one)


def test_a_killed_training_goes_on_from_its_checkpoint(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 20)
    request = request_for(tmp_path, steps=90)
    whole = training.train(scene, request, quiet)

    resumable = dataclasses.replace(request, scratch_dir=tmp_path / "scratch")
    steps = training._Trainer._step

    def killed(self: training._Trainer, state: training._State, progress: float) -> float:
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
    assert not (tmp_path / "scratch" / "checkpoint.npz").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip"])
def test_a_broken_checkpoint_is_left_aside(scene: Scene, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.npz").write_bytes(content)
    said: list[str] = []
    done = training.train(scene, request_for(tmp_path, steps=2, scratch_dir=tmp_path), said.append)
    assert done.resumed_at == 0
    assert any("cannot be read" in line for line in said)


def test_a_time_limit_ends_the_training(scene: Scene, tmp_path: Path) -> None:
    done = training.train(scene, request_for(tmp_path, steps=100_000, timeout_s=0.5), quiet)
    assert 0 < done.steps_done < 100_000


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
    by_sequence = scene_of(splat, cameras, gains=[1.0, 0.7] * 5)
    assert groups(by_sequence.views, 80) == [f"s{i % 2}" for i in range(10)]
    jumpy = scene_of(splat, cameras, gains=[1.0, 1.0, 0.6, 0.6, 0.9, 0.9, 0.5, 0.5, 0.8, 0.8])
    assert groups(jumpy.views, 80) == [v.name for v in jumpy.views]


def test_refinement_keeps_to_the_cap_and_drops_the_faint() -> None:
    people = Population.of(blobs(50).rows)
    people.rows[:5, 10] = -9
    people.felt(np.arange(50), np.full(50, 1.0, np.float32))
    rng = np.random.default_rng(0)
    grown = people.refined(cap=60, growth=0.5, reach=3.0, rng=rng)
    assert len(grown.rows) <= 60
    assert grown.rows[:, 10].min() > -6
    calm = Population.of(blobs(50).rows).refined(cap=60, growth=0.5, reach=3.0, rng=rng)
    assert np.array_equal(calm.rows, blobs(50).rows)


def test_the_start_leaves_room_to_grow(scene: Scene) -> None:
    start = initial_gaussians(scene, scene.views, max_splats=40, degree=1, seed=0)
    assert len(start) <= 4 + 27
    assert start.degree == 1
