from __future__ import annotations

import dataclasses
import io
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from geo_assets.pictures import MAX_BYTES
from geo_assets.splats.cameras import View
from geo_assets.splats.gaussians import joined
from geo_assets.splats.judge import SequenceGains, colour_fitted, evenly, judge, mean, psnr_db
from geo_assets.splats.preview import (
    compare,
    contact_sheet,
    curve_png,
    difference,
    inline_jpeg,
    median_view,
    raised_camera,
)
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


def test_the_gain_of_a_sequence_is_learnt_from_its_trained_photos_alone() -> None:
    gaussians = blobs()
    views = scene_of(gaussians, ring(6), gains=[0.6, 1.0] * 3).views  # sequences s0 and s1 in turn
    gains = SequenceGains()
    judge(gaussians, views[:4], "train", gains)
    dark, bright = judge(gaussians, views[4:], "holdout", gains)
    assert gains.of("s0") == pytest.approx([0.6] * 3, abs=0.02)
    assert dark.psnr_db < 30 < 40 < (dark.sequence_psnr_db or 0)
    assert bright.sequence_psnr_db == pytest.approx(bright.psnr_db, abs=3)
    stranger = dataclasses.replace(views[4], sequence="other")
    scores = judge(gaussians, [stranger], "holdout", gains)
    assert scores[0].sequence_psnr_db is None
    assert mean([*scores, bright], "sequence_psnr_db") is None


def test_what_a_mask_hides_does_not_count() -> None:
    splat = blobs()
    clean = scene_of(splat, ring(3)).views
    spoilt = []
    for view in clean:
        photo, mask = view.photo.copy(), np.ones(view.photo.shape[:2], bool)
        photo[:20], mask[:20] = 255, False
        spoilt.append(dataclasses.replace(view, photo=photo, mask=mask))
    without = judge(splat, [dataclasses.replace(view, mask=None) for view in spoilt], "train")
    assert max(s.psnr_db for s in without) < 15
    masked = judge(splat, spoilt, "train")
    assert min(s.psnr_db for s in masked) > 45
    assert min(s.cc_psnr_db for s in masked) > 45
    assert min(s.ssim for s in masked) > max(s.ssim for s in without) + 0.1
    darker = [
        dataclasses.replace(view, photo=np.where(view.mask[..., None], view.photo // 2, 255).astype(np.uint8))
        for view in spoilt
        if view.mask is not None
    ]
    assert min(s.cc_psnr_db for s in judge(splat, darker, "train")) > 35, "the colour fit must not see what is hidden"


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_any_degree_is_judged(degree: int) -> None:
    splat = blobs(degree=degree)
    views = scene_of(splat, ring(2)).views
    assert min(s.psnr_db for s in judge(splat, views, "holdout")) > 45
    if degree:
        assert max(s.psnr_db for s in judge(splat.to_degree(degree - 1), views, "holdout")) < 45


def test_views_are_not_kept_once_judged() -> None:
    splat = blobs()
    scene, alive, most = scene_of(splat, ring(5)), [], 0

    def read() -> Iterator[View]:
        nonlocal most
        for view in scene.views:
            fresh = dataclasses.replace(view)
            alive.append(weakref.ref(fresh))
            most = max(most, sum(made() is not None for made in alive))
            yield fresh
            del fresh

    assert len(judge(splat, read(), "train")) == 5
    assert most <= 2, "the one that is read, and the one before it"


def test_an_even_choice() -> None:
    assert evenly(range(5), 50) == [0, 1, 2, 3, 4]
    chosen = evenly(range(1000), 50)
    assert (len(chosen), chosen[0], chosen[-1]) == (50, 0, 999)
    assert set(np.diff(chosen)) <= {20, 21}


def test_psnr() -> None:
    a = np.full((4, 4, 3), 0.5, np.float32)
    assert psnr_db(a, a) == 100
    assert psnr_db(a, a + 0.1) == pytest.approx(20, abs=1e-4)
    assert colour_fitted(a, a + 0.2) == pytest.approx(a + 0.2)


def test_pictures() -> None:
    scene = scene_of(blobs(), ring(6))
    scores = judge(blobs(), scene.held_out(2), "holdout")
    view = median_view(scene.views, scores)
    assert compare(blobs(), view).shape == (48, 3 * 68, 3)
    sheet = contact_sheet(blobs(), scene)
    assert sheet.shape == (100, 2 * 68, 3)
    assert sheet[52:, 68:132].std() > 5
    noise = np.random.default_rng(0).integers(0, 256, (900, 1600, 3)).astype(np.uint8)
    assert len(inline_jpeg(noise)) <= MAX_BYTES


def test_photos_of_two_sizes_still_make_a_sheet_of_two_rows() -> None:
    cameras = ring(4)
    cameras[2] = cameras[2].resized(0.5)
    assert contact_sheet(blobs(), scene_of(blobs(), cameras)).shape == (100, 136, 3)


def test_the_raised_camera_looks_down_along_the_street() -> None:
    scene = scene_of(blobs(), ring(4, turn=0.2))
    camera = raised_camera(scene)
    middle = scene.views[1].camera
    assert camera.centre[2] > middle.centre[2] and camera.forward[2] < 0
    assert camera.forward[:2] @ middle.forward[:2] > 0.8


def test_the_difference_is_black_where_there_is_none_and_white_where_it_is_large() -> None:
    photo = np.zeros((2, 2, 3), np.uint8)
    image = photo.copy()
    image[0, 1], image[1, 0], image[1, 1] = 51, 102, 255
    assert difference(image, photo).tolist() == [[[0, 0, 0], [255, 0, 0]], [[255, 255, 0], [255, 255, 255]]]


def test_a_mask_pales_what_it_hides() -> None:
    view = scene_of(blobs(), ring(1)).views[0]
    mask = np.ones((48, 64), bool)
    mask[:, :32] = False
    shown = compare(blobs(), dataclasses.replace(view, mask=mask))
    assert np.ptp(shown[:, :32], axis=2).max() == 0 and shown[:, :32].min() >= 170
    assert (shown[:, 32:64] == view.photo[:, 32:]).all()


def test_the_sky_is_seen_behind_the_place() -> None:
    splat = blobs()
    place, sky = splat[:100], splat[100:]
    views = scene_of(splat, ring(2)).views
    whole = judge(joined([place, sky], 0), views, "holdout")
    assert min(s.psnr_db for s in whole) > 45 > max(s.psnr_db for s in judge(place, views, "holdout"))


@pytest.mark.parametrize(
    "curve",
    [
        [{"step": 100.0, "psnr_db": 15.0, "n_splats": 900.0}, {"step": 200.0, "psnr_db": 17.0, "n_splats": 1200.0}],
        [{"step": 100.0, "loss": 0.2}, {"step": 200.0, "loss": 0.1}],
        [{"step": 1.0}, {"step": 2.0}],
    ],
)
def test_the_course_of_a_training(curve: list[dict[str, float]]) -> None:
    data = curve_png(curve)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.width > 300
    assert len(data) <= MAX_BYTES
