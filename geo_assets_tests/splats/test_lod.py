from __future__ import annotations

import numpy as np
import pytest

from geo_assets.splats.cameras import Camera
from geo_assets.splats.compressed import morton_order
from geo_assets.splats.gaussians import Gaussians, quaternions_of, rotations_of
from geo_assets.splats.judge import psnr_db
from geo_assets.splats.lod import Level, extent, in_two, seen
from geo_assets.splats.ply import cleaned
from geo_assets.splats.pyramid import Piece, Pyramid
from geo_assets.splats.render import render
from geo_assets_tests.splats.scenes import blobs
from geo_assets_tests.splats.towns import town

FAR = Camera.looking((0, -90, 60), (0, 0, 5), like=Camera(np.eye(3), np.zeros(3), 200, 200, 80, 60, 160, 120))


def test_two_become_their_joint_moments() -> None:
    pair = Gaussians.of([[0, 0, 0], [2, 0, 0]], np.zeros((2, 3)), [[1, 0, 0, 0]] * 2, [-3, -3], np.ones((2, 4, 3)))
    one = Level.of(pair).merged(1)
    assert one.gaussians.means[0] == pytest.approx([1, 0, 0])
    assert np.sort(np.exp(one.gaussians.log_scales[0])) == pytest.approx([1, 1, np.sqrt(2)])
    longest = rotations_of(one.gaussians.quats)[0][:, np.argmax(one.gaussians.log_scales[0])]
    assert np.abs(longest) == pytest.approx([1, 0, 0], abs=1e-6)
    assert one.gaussians.sh == pytest.approx(1)
    assert seen(one.gaussians) == pytest.approx(seen(pair).sum(), rel=1e-5), "as much is seen as before"
    assert one.error_m == pytest.approx(1.0)


def test_what_is_seen_more_of_weighs_more() -> None:
    pair = blobs(2, 1)
    pair.opacity_logits[:] = [6, -6]
    one = Level.of(pair).merged(1).gaussians
    assert one.means[0] == pytest.approx(pair.means[0], abs=0.05)
    assert one.sh[0] == pytest.approx(pair.sh[0], abs=0.05)


def test_merging_is_nearer_to_the_whole_than_dropping_from_afar() -> None:
    whole = town(20_000, size_m=100)
    truth, level = render(whole, FAR), Level.of(whole)
    rng = np.random.default_rng(0)
    for times in (1, 2, 3):
        level = level.halved()
        assert len(level) == -(-len(whole) // 2**times)
        dropped = whole[rng.choice(len(whole), len(level), replace=False)]
        gain = psnr_db(render(level.gaussians, FAR), truth) - psnr_db(render(dropped, FAR), truth)
        assert gain > 4, f"level {times} is {gain:.1f} dB better than dropping"


def test_the_faint_and_far_apart_do_not_vanish() -> None:
    faint = blobs(40)
    faint.means[:] *= 100
    faint.opacity_logits[:] = -5.5
    for n in (20, 5, 1):
        level = Level.of(faint).merged(n)
        assert len(cleaned(level.gaussians).gaussians) == n


def test_levels_are_the_same_each_time() -> None:
    whole = town(3000, size_m=50, degree=3)
    a, b = (Level.of(whole).merged(500) for _ in range(2))
    assert np.array_equal(a.gaussians.rows, b.gaussians.rows)
    assert np.isfinite(a.gaussians.rows).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_and_equal_gaussians(n: int) -> None:
    same = Gaussians(np.repeat(blobs(1).rows, n, axis=0))
    assert len(Level.of(same).halved()) == min(n, 1)


def test_quaternions_of_any_rotation() -> None:
    quats = np.concatenate([np.random.default_rng(0).normal(size=(200, 4)), np.eye(4)])
    rotations = rotations_of(quats)
    assert rotations_of(quaternions_of(rotations)) == pytest.approx(rotations, abs=1e-9)


def test_cutting_and_ordering_lose_nothing() -> None:
    whole = blobs(101)
    first, second = in_two(whole)
    assert sorted([*first, *second]) == list(range(101))
    assert abs(len(first) - len(second)) <= 1
    order = morton_order(whole.means)
    assert sorted(order) == list(range(101))
    steps = np.linalg.norm(np.diff(whole.means[order], axis=0), axis=1).mean()
    assert steps < 0.8 * np.linalg.norm(np.diff(whole.means, axis=0), axis=1).mean()
    low, high = extent(whole)
    assert (low <= whole.means.min(axis=0)).all()
    assert (high >= whole.means.max(axis=0)).all()


def test_a_pyramid_holds_everything_at_every_level() -> None:
    whole, written = town(5000, size_m=60), dict[str, Gaussians]()

    def write(piece: Piece, gaussians: Gaussians) -> None:
        assert piece.name not in written
        assert len(gaussians) == sum(piece.counts) <= 800
        written[piece.name] = gaussians

    root, content = Pyramid(write, most=800).over(whole)
    pieces = list(root.walk())
    assert {piece.name for piece in pieces} == set(written)
    leaves = [piece for piece in pieces if piece.level == 0]
    rows = np.concatenate([written[piece.name].rows for piece in leaves])
    assert np.array_equal(rows[np.lexsort(rows.T)], whole.rows[np.lexsort(whole.rows.T)])
    for level in range(root.level + 1):
        here = [leaf.number for piece in pieces if piece.level == level for leaf in piece.leaves]
        assert sorted(here) == [leaf.number for leaf in root.leaves]
    for piece in pieces:
        assert piece.error_m >= max((child.error_m for child in piece.children), default=0)
    assert root.error_m > 0.05
    dropped = whole[np.random.default_rng(0).choice(len(whole), len(content), replace=False)]
    truth = render(whole, FAR)
    assert psnr_db(render(content.gaussians, FAR), truth) > psnr_db(render(dropped, FAR), truth) + 3
