from __future__ import annotations

import numpy as np
import pytest

from geo_assets.errors import TrainingError
from geo_assets.pictures import MAX_BYTES
from geo_assets.settings import Splats
from geo_assets.splats.engine import choose_engine, engines
from geo_assets.splats.judge import colour_fitted, judge, mean, psnr_db
from geo_assets.splats.preview import compare, contact_sheet, inline_jpeg, median_view
from geo_assets.splats.quality import verdict
from geo_assets_tests.splats.scenes import blobs, ring, scene_of


def test_a_perfect_splat_and_one_with_another_exposure() -> None:
    splat = blobs()
    perfect = judge(splat, scene_of(splat, ring(3)).views, "holdout")
    assert min(s.psnr_db for s in perfect) > 45
    assert min(s.ssim for s in perfect) > 0.99
    darker = judge(splat, scene_of(splat, ring(3), gains=[0.6] * 3).views, "holdout")
    assert max(s.psnr_db for s in darker) < 25
    assert min(s.cc_psnr_db for s in darker) > 35
    assert mean(darker, "psnr_db") == pytest.approx(np.mean([s.psnr_db for s in darker]))
    assert mean([], "psnr_db") is None


def test_psnr() -> None:
    a = np.full((4, 4, 3), 0.5, np.float32)
    assert psnr_db(a, a) == 100
    assert psnr_db(a, a + 0.1) == pytest.approx(20, abs=1e-4)
    assert colour_fitted(a, a + 0.2) == pytest.approx(a + 0.2)


def test_pictures() -> None:
    scene = scene_of(blobs(), ring(6))
    scores = judge(blobs(), scene.held_out(2), "holdout")
    view = median_view(scene.views, scores)
    assert compare(blobs(), view).shape == (48, 2 * 68, 3)
    sheet = contact_sheet(blobs(), scene)
    assert sheet.shape == (96, 2 * 68, 3)
    assert sheet[48:, 68:132].std() > 5
    noise = np.random.default_rng(0).integers(0, 256, (900, 1600, 3)).astype(np.uint8)
    assert len(inline_jpeg(noise)) <= MAX_BYTES


GOOD = {
    "status": "trained", "init_psnr_db": 10.0, "psnr_db": 24.0, "cc_psnr_db": 25.0, "train_psnr_db": 27.0, "n_holdout": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "passed", "is_error", "said"),
    [
        ({}, True, False, "+14.0 dB"),
        ({"psnr_db": 12.9}, False, True, "frame are wrong"),
        ({"psnr_db": float("nan")}, False, True, "before training"),
        ({"n_holdout": 1}, False, False, "only 1 photo"),
        ({"cc_psnr_db": 14.0}, False, False, "colour fit"),
        ({"train_psnr_db": 33.0}, False, False, "overfit"),
        ({"status": "too_few"}, True, False, "nothing was trained"),
    ],
)
def test_verdict(change: dict, passed: bool, is_error: bool, said: str) -> None:
    judged = verdict(GOOD | change)
    assert (judged.passed, judged.is_error) == (passed, is_error)
    assert said in judged.reason
    assert verdict(None).passed


def test_engines() -> None:
    said: list[str] = []
    assert "cpu" in engines(Splats())
    assert choose_engine(Splats(), said.append).name in engines(Splats())
    assert "Splat engine:" in said[0]
    assert choose_engine(Splats(engine="cpu"), said.append).name == "cpu"
    with pytest.raises(TrainingError, match=r"No splat engine 'nerf'; installed: .*cpu"):
        choose_engine(Splats(engine="nerf"), said.append)
