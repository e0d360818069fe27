from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from geo_assets.splats.quality import CHECKS, FIGURES, Geometry, geometry, misplaced, verdict
from geo_assets.tables import TABLES
from geo_assets_tests.splats.scenes import blobs, ring, scene_of

GOOD = {
    "status": "trained", "engine": "brush", "init_psnr_db": 10.0, "psnr_db": 24.0, "ssim": 0.8, "cc_psnr_db": 25.0,
    "train_psnr_db": 27.0, "engine_psnr_db": 24.2, "n_train": 28, "n_holdout": 4, "in_view_share": 0.97,
    "distance_ratio": 1.1, "size_ratio": 1.2,
}  # fmt: skip
NAN = float("nan")


def test_a_good_splat_passes_every_check() -> None:
    assert all(verdict(name, GOOD).passed for name in CHECKS)
    assert "+14.0 dB" in verdict("splat_quality", GOOD).reason
    assert set(FIGURES) == set(CHECKS)
    assert {c for columns in FIGURES.values() for c in columns} <= set(TABLES["splat_ply"].column_names)


@pytest.mark.parametrize("check", CHECKS)
def test_what_was_not_trained_passes(check: str) -> None:
    assert verdict(check, None).passed
    judged = verdict(check, {"status": "too_few", "engine": None, "n_train": 0, "n_holdout": 0})
    assert judged.passed and "nothing was trained (too_few)" in judged.reason


@pytest.mark.parametrize("check", ["splat_frame", "splat_overfit", "splat_held_out"])
def test_a_row_from_before_a_column_was_there(check: str) -> None:
    old = GOOD | dict.fromkeys(
        ("in_view_share", "distance_ratio", "size_ratio", "engine_psnr_db", "train_psnr_db", "cc_psnr_db"), NAN
    )
    assert verdict(check, old).passed
    assert verdict(check, {k: v for k, v in old.items() if v == v}).passed


@pytest.mark.parametrize(
    ("check", "change", "passed", "said"),
    [
        ("splat_quality", {"psnr_db": 13.0}, True, "+3.0 dB"),
        ("splat_quality", {"psnr_db": 12.99}, False, r"\+3 wanted"),
        ("splat_quality", {"psnr_db": NAN}, False, "no photo was held out"),
        ("splat_overfit", {"train_psnr_db": 32.0}, True, "+8.0 dB"),
        ("splat_overfit", {"train_psnr_db": 32.01}, False, "overfit"),
        ("splat_held_out", {"n_holdout": 2, "n_train": 18}, True, "2 of 20"),
        ("splat_held_out", {"n_holdout": 1}, False, "1 photo was held out"),
        ("splat_held_out", {"n_holdout": 3, "n_train": 16}, False, "19 photos are few"),
        ("splat_held_out", {"cc_psnr_db": 15.0}, True, "15.0 dB"),
        ("splat_held_out", {"cc_psnr_db": 14.99}, False, "colour fit"),
        ("splat_frame", {"distance_ratio": 100.0}, True, "97%"),
        ("splat_frame", {"distance_ratio": 100.1}, False, "100 times as far from them"),
        ("splat_frame", {"size_ratio": 0.2}, True, "97%"),
        ("splat_frame", {"size_ratio": 0.199}, False, "spread 0.199 times"),
        ("splat_frame", {"size_ratio": 5.0}, True, "97%"),
        ("splat_frame", {"size_ratio": 5.01}, False, "spread 5.01 times"),
        ("splat_frame", {"in_view_share": 0.5}, True, "50%"),
        ("splat_frame", {"in_view_share": 0.499}, False, "of its Gaussians are in the view"),
        ("splat_frame", {"engine_psnr_db": 27.0}, True, "97%"),
        ("splat_frame", {"engine_psnr_db": 27.01}, False, "the engine reported 27.0"),
        ("splat_frame", {"psnr_db": 11.0, "engine_psnr_db": NAN}, True, "97%"),
        ("splat_frame", {"psnr_db": 10.99, "engine_psnr_db": NAN}, False, "11.0 dB, 10.0 before"),
        ("splat_frame", {"psnr_db": 9.0, "engine_psnr_db": 12.0}, True, "97%"),
        ("splat_frame", {"psnr_db": 9.0, "engine_psnr_db": 12.1}, False, "normalised the scene"),
        ("splat_frame", {"psnr_db": 9.0, "engine_psnr_db": 24.0, "engine": "cpu"}, True, "97%"),
    ],
)
def test_each_verdict_at_its_limits(check: str, change: dict, passed: bool, said: str) -> None:
    judged = verdict(check, GOOD | change)
    assert judged.passed == passed, judged.reason
    assert said.replace("\\", "") in judged.reason
    if not passed:
        assert judged.is_error == (check in ("splat_quality", "splat_frame"))
        assert {name for name in CHECKS if not verdict(name, GOOD | change).passed} >= {check}


@pytest.mark.parametrize(
    ("engine", "hint"),
    [
        ("gsplat", "--no-normalize-world-space"),
        ("opensplat", "--keep-crs"),
        ("nerfstudio", "--center-method none"),
        ("command", "splats.command"),
        ("brush", "splats.extra_args"),
        ("a_plugin", "splats.extra_args"),
    ],
)
def test_the_fault_names_the_flag_of_the_engine(engine: str, hint: str) -> None:
    fault = misplaced(GOOD | {"engine": engine, "psnr_db": 8.1, "engine_psnr_db": 23.9})
    assert fault is not None
    assert hint in fault
    assert fault.startswith(
        f"The PLY of {engine} does not line up with the cameras (held-out PSNR 8.1 dB, 10.0 before training, the engine reported 23.9)"
    )


def test_geometry_tells_a_moved_scene() -> None:
    here = blobs()
    scene = scene_of(here, ring(12))
    true = geometry(here, scene)
    assert true.in_view_share > 0.95
    assert 0.2 < true.distance_ratio < 0.4, "the ball lies in the middle of the ring"
    assert true.size_ratio == pytest.approx(1, abs=0.2)
    assert faulty(true) is None
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    changes = {
        "times as far from": here.moved(turn, [0, 0, 400]),
        "spread 0.0": here.moved(np.eye(3), np.zeros(3), 1 / 20),
        "spread 19": here.moved(np.eye(3), np.zeros(3), 20),
        "0% of its Gaussians": here.moved(np.eye(3), [0, 0, 40]),
    }
    for said, changed in changes.items():
        assert said in str(faulty(geometry(changed, scene)))


def faulty(found: Geometry) -> str | None:
    return misplaced(GOOD | dataclasses.asdict(found))


def test_many_gaussians_and_cameras_are_sampled() -> None:
    few, many = scene_of(blobs(), ring(4)), scene_of(blobs(), ring(4))
    many = dataclasses.replace(many, views=many.views * 100)
    one, other = (
        geometry(blobs(100), few),
        geometry(blobs(100)[np.random.default_rng(0).integers(0, 100, 200_000)], many),
    )
    assert dataclasses.astuple(other) == pytest.approx(dataclasses.astuple(one), rel=0.05)
