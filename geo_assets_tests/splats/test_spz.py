from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from geo_assets.errors import SourceError
from geo_assets.splats import spz
from geo_assets.splats.gaussians import Gaussians, rotations_of
from geo_assets.splats.judge import psnr_db
from geo_assets.splats.ply import cleaned
from geo_assets.splats.render import render
from geo_assets.splats.spz import read_spz, spz_bytes
from geo_assets_tests.splats.scenes import blobs, ring


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_round_trip_is_exact_to_the_steps_of_the_format(version: int, degree: int) -> None:
    splat = cleaned(blobs(500, degree)).gaussians
    splat.sh[:, 1:] = np.clip(splat.sh[:, 1:], -1, 127 / 128)
    data = spz_bytes(splat, version)
    found = read_spz(data)
    assert found.degree == degree
    assert np.abs(found.means - splat.means).max() <= 1.01 / 2**13
    assert np.abs(found.log_scales - splat.log_scales).max() <= 1.01 / 32
    assert np.abs(found.opacities - splat.opacities).max() <= 1.01 / 510
    assert np.abs(found.sh[:, 0] - splat.sh[:, 0]).max() <= 1.01 / (2 * 0.15 * 255)
    assert np.abs(found.sh[:, 1:] - splat.sh[:, 1:]).max(initial=0) <= 1.01 / 256
    assert spz_bytes(splat, version) == data, "the same splat gives the same file, whatever the hour"


@pytest.mark.parametrize(("version", "most_deg"), [(2, 1.0), (3, 0.25)])
def test_rotations_keep_the_ellipsoid(version: int, most_deg: float) -> None:
    """A Gaussian may come back turned by half a turn around an axis of its own; its axes are the same lines."""
    splat = cleaned(blobs(5000)).gaussians
    splat.quats[:3] = [[0, 1, 0, 0], [0, 0, 1, 0], [1e-4, 0.5, -0.5, 0.7071]]
    ours, theirs = rotations_of(splat.quats), rotations_of(read_spz(spz_bytes(splat, version)).quats)
    cosines = np.abs(np.einsum("nij,nij->nj", ours, theirs))
    assert np.degrees(np.arccos(np.minimum(cosines, 1))).max() < most_deg


@pytest.mark.parametrize("version", [2, 3])
def test_a_round_trip_cannot_be_seen(version: int) -> None:
    splat, camera = blobs(150, 3), ring(5)[1]
    wanted = render(splat, camera)
    assert psnr_db(render(read_spz(spz_bytes(splat, version)), camera), wanted) > 38


def test_layout_of_the_reference_implementation() -> None:
    """Bytes worked out by hand from load-spz.cc: one Gaussian of degree 1."""
    rest = np.array([[0.5, -0.5, 0], [0.25, 0, 0], [0, 0, -1]])
    one = Gaussians.of(
        [[1.0, -2.0, 0.5]], [[-2.0, 0.0, 1.0]], [[1, 0, 0, 0]], [0.0], np.concatenate([[[0.0, 1.0, -1.0]], rest])[None]
    )
    raw = gzip.decompress(spz_bytes(one, 2))
    assert struct.unpack("<4sIIBBBB", raw[:16]) == (b"NGSP", 2, 1, 1, 12, 0, 0)
    assert raw[16:25] == bytes([0, 16, 0, 0, 224, 255, 0, 8, 0])  # 4096, -8192 and 2048 in three bytes each
    assert raw[25] == 128  # round(127.5) to even
    assert list(raw[26:29]) == [128, 166, 89]  # 127.5 and 38.25 more or less
    assert list(raw[29:32]) == [128, 160, 176]
    assert list(raw[32:35]) == [128, 128, 128]
    assert list(raw[35:]) == [192, 64, 128, 160, 128, 128, 128, 128, 0]
    turned = Gaussians(one.rows.copy())
    turned.quats[:] = [[0.5, -0.5, 0.5, 0.5]]
    (word,) = struct.unpack("<I", gzip.decompress(spz_bytes(turned, 3))[32:36])
    # The largest is x (index 0, and negative): the others change sign; y, z, w follow, ten bits each.
    assert word == 0 << 30 | (512 | 361) << 20 | (512 | 361) << 10 | (512 | 361)


def test_positions_get_coarser_before_they_are_refused() -> None:
    splat = blobs(10)
    splat.means[0] = [2048.0, 0, 0]
    assert gzip.decompress(spz_bytes(splat))[13] == 11
    assert np.abs(read_spz(spz_bytes(splat)).means - splat.means).max() <= 1 / 2**12
    splat.means[0] = [70_000.0, 0, 0]
    with pytest.raises(SourceError, match=r"lies 70,000 m from the origin; SPZ holds 65,535 m"):
        spz_bytes(splat)


def test_none_and_what_is_not_visible() -> None:
    assert len(read_spz(spz_bytes(Gaussians.none(2)))) == 0
    splat = blobs(5)
    splat.means[1, 0] = np.nan
    splat.opacity_logits[2] = -12
    assert len(read_spz(spz_bytes(splat))) == 3


def test_versions_of_others_and_extensions() -> None:
    raw = gzip.decompress(spz_bytes(blobs(3)))
    with_extension = raw[:14] + b"\x02" + raw[15:] + b"an extension"
    assert len(read_spz(gzip.compress(with_extension))) == 3


GOOD = spz_bytes(blobs(300, 1))
RAW = gzip.decompress(GOOD)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short"),
        (b"ply\nformat", "not an SPZ file"),
        (b"NGSP" + bytes(28), "version 4"),
        (GOOD[:20], "cut short"),
        (GOOD[: len(GOOD) // 2], "cut short"),
        (GOOD[:-6], "cut short"),
        (GOOD[:400] + b"\xff\x00\xff\x00" + GOOD[404:], "damaged|cut short"),
        (GOOD[:-6] + b"\0\0" + GOOD[-4:], "damaged"),
        (gzip.compress(b"PLY!" + RAW[4:]), "does not begin with 'NGSP'"),
        (gzip.compress(RAW[:4] + b"\x01\0\0\0" + RAW[8:]), "of version 1"),
        (gzip.compress(RAW[:12] + b"\x04" + RAW[13:]), "of degree 4"),
        (gzip.compress(RAW[:8] + b"\xff\xff\xff\x7f" + RAW[12:]), "2,147,483,647 splats"),
        (gzip.compress(RAW[:-1]), "cut short"),
        (gzip.compress(RAW + b"\0"), "longer than its header says"),
    ],
    # Named, for the bytes hold the second at which each test process was started.
    ids=[
        "empty", "ply", "version_4", "20_bytes", "half", "no_end", "flipped", "wrong_sum",
        "magic", "version_1", "degree_4", "2_billion", "one_short", "one_more",
    ],
)  # fmt: skip
def test_broken_files_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read_spz(data)


def test_no_more_is_inflated_than_the_header_says() -> None:
    bomb = gzip.compress(RAW[:8] + struct.pack("<I", 2) + RAW[12:] + bytes(300_000_000), 9)
    tracemalloc.start()
    with pytest.raises(SourceError, match="longer than"):
        read_spz(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


def test_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "street.spz").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"street\.spz"):
        read_spz(tmp_path / "street.spz")
    (tmp_path / "street.spz").write_bytes(GOOD)
    assert len(read_spz(tmp_path / "street.spz")) == 300


def test_a_header_cannot_ask_for_more_than_a_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spz, "MOST_SPLATS", 299)
    with pytest.raises(SourceError, match="300 splats"):
        read_spz(GOOD)
