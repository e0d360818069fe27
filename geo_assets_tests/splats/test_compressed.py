from __future__ import annotations

import numpy as np
import pytest

from geo_assets.errors import SourceError
from geo_assets.splats import compressed
from geo_assets.splats.compressed import CHUNK, chunk_order, compressed_ply_bytes, morton_order, read_compressed_ply
from geo_assets.splats.gaussians import Gaussians, rotations_of
from geo_assets.splats.judge import psnr_db
from geo_assets.splats.ply import cleaned, ply_bytes
from geo_assets.splats.render import render
from geo_assets_tests.splats.scenes import blobs, ring


def ordered(n: int, degree: int) -> Gaussians:
    splat = cleaned(blobs(n, degree)).gaussians
    return splat[chunk_order(splat.means)]


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_round_trip_is_exact_to_the_steps_of_each_chunk(degree: int) -> None:
    splat = ordered(700, degree)
    found = read_compressed_ply(compressed_ply_bytes(splat))
    assert found.degree == degree
    for start in range(0, 700, CHUNK):
        ours, theirs = splat[start : start + CHUNK], found[start : start + CHUNK]
        for wanted, got, most in (
            (ours.means, theirs.means, np.array([2047, 1023, 2047])),
            (ours.log_scales, theirs.log_scales, np.array([2047, 1023, 2047])),
            (ours.sh[:, 0], theirs.sh[:, 0], np.full(3, 255)),
        ):
            step = np.ptp(wanted, axis=0) / most
            assert (np.abs(got - wanted) <= 0.51 * step + 1e-6).all()
    assert np.abs(found.opacities - splat.opacities).max() <= 1.01 / 510
    assert np.abs(found.sh[:, 1:] - splat.sh[:, 1:]).max(initial=0) <= 1.001 / 64
    aligned = np.einsum("nij,nij->n", rotations_of(splat.quats), rotations_of(found.quats))
    assert np.degrees(np.arccos(np.clip((aligned - 1) / 2, -1, 1))).max() < 0.2


def test_a_round_trip_cannot_be_seen() -> None:
    splat, camera = blobs(600, 3), ring(5)[1]
    wanted = render(splat, camera)
    assert psnr_db(render(read_compressed_ply(compressed_ply_bytes(splat)), camera), wanted) > 40


def test_a_morton_order_keeps_neighbours_together() -> None:
    points = blobs(5000).means
    order = morton_order(points)
    assert sorted(order.tolist()) == list(range(5000))
    steps, unsorted = (np.median(np.linalg.norm(np.diff(p, axis=0), axis=1)) for p in (points[order], points))
    assert steps < 0.2 * unsorted
    assert len(morton_order(points[:0])) == len(chunk_order(points[:0])) == 0
    assert morton_order(np.ones((4, 3))).tolist() == chunk_order(np.ones((4, 3))).tolist() == [0, 1, 2, 3]


def test_what_lies_far_away_does_not_coarsen_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    splat = blobs(5000)
    splat.means[::500] *= 400
    near = np.abs(splat.means).max(axis=1) < 4

    def worst_near_m() -> float:
        found = read_compressed_ply(compressed_ply_bytes(splat)).means
        order = compressed.chunk_order(splat.means)
        return float(np.quantile(np.abs(found - splat.means[order])[near[order]], 0.95))

    in_shells = worst_near_m()
    monkeypatch.setattr(compressed, "chunk_order", morton_order)
    assert in_shells < 0.002
    assert worst_near_m() > 0.02


def test_words_of_the_format() -> None:
    """Two Gaussians, worked out by hand: the bounds of a chunk are its extremes, and x is the highest of a word."""
    two = Gaussians.of(
        [[0.0, 10, -4], [1.0, 20, -2]],
        [[-3.0, -2, -1], [-1.0, -1, -1]],
        [[1, 0, 0, 0], [0, 0, -1, 0]],
        [0.0, 15.0],
        np.zeros((2, 1, 3)),
    )
    data = compressed_ply_bytes(two)
    head, body = data.split(b"end_header\n", 1)
    assert b"element chunk 1\n" in head and b"element vertex 2\n" in head and b"element sh" not in head
    bounds, words = np.frombuffer(body[:72], "<f4"), np.frombuffer(body[72:], "<u4").reshape(2, 4)
    assert bounds[:12].tolist() == [0, 10, -4, 1, 20, -2, -3, -2, -1, -1, -1, -1]
    assert bounds[12:] == pytest.approx(0.5)
    assert words[0].tolist() == [0, 512 << 20 | 512 << 10 | 512, 0, 128]
    assert words[1].tolist() == [2**32 - 1, 2 << 30 | 512 << 20 | 512 << 10 | 512, 0x7FF << 21 | 0x3FF << 11, 255]


def test_none_and_older_files() -> None:
    assert len(read_compressed_ply(compressed_ply_bytes(Gaussians.none(1)))) == 0
    data = compressed_ply_bytes(ordered(3, 0))
    head, body = data.split(b"end_header\n", 1)
    for name in (f"{side}_{c}" for side in ("min", "max") for c in "rgb"):
        head = head.replace(f"property float {name}\n".encode(), b"")
    old = read_compressed_ply(head + b"end_header\n" + body[:48] + body[72:])
    assert old.means == pytest.approx(read_compressed_ply(data).means)
    assert (np.abs(old.sh[:, 0] * 0.28209479) <= 0.5001).all()


GOOD = compressed_ply_bytes(blobs(300, 1))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a binary little-endian PLY"),
        (ply_bytes(blobs(3)), "not a compressed PLY"),
        (GOOD[:-1], "cut short"),
        (GOOD.replace(b"element chunk 2", b"element chunk 1"), "has 1 chunks of 256 for 300"),
        (GOOD.replace(b"element vertex 300", b"element vertex 999999999"), "cut short"),
        (GOOD.replace(b"property uint packed_scale", b"property list uchar uint x"), "none of a compressed PLY"),
        (GOOD.replace(b"property uchar f_rest_8\n", b""), "has 8 harmonics"),
        (GOOD.replace(b"property float min_x", b"property float max_q"), "not a compressed PLY"),
    ],
)
def test_broken_files_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read_compressed_ply(data)
