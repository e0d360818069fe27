from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geo_assets.errors import SourceError
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.ply import cleaned, ply_bytes, property_names, read_ply, write_ply
from geo_assets_tests.splats.scenes import blobs


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip(tmp_path: Path, degree: int) -> None:
    splat = cleaned(blobs(20, degree)).gaussians
    write_ply(tmp_path / "a.ply", splat)
    assert read_ply(tmp_path / "a.ply").rows == pytest.approx(splat.rows, abs=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]
    assert len(read_ply(ply_bytes(Gaussians.none(degree)))) == 0


def test_order_and_layout_of_the_original_code() -> None:
    wanted = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    assert " ".join(property_names(0)) == wanted
    splat = blobs(2, 1)
    data = ply_bytes(splat)
    table = np.frombuffer(data[data.index(b"end_header\n") + 11 :], "<f4").reshape(2, 26)
    # f_rest holds the three coefficients of red first; ours keep the colours innermost.
    assert table[:, 9:12] == pytest.approx(splat.sh[:, 1:4, 0])
    assert table[:, 15:18] == pytest.approx(splat.sh[:, 1:4, 2])


def test_properties_may_come_in_another_order_and_type() -> None:
    splat = cleaned(blobs(4, 0)).gaussians
    names = list(reversed(property_names(0)))
    written = dict(zip(property_names(0), _table(splat).T, strict=True))
    table = np.stack([written[n] for n in names], axis=1).astype("<f8")
    header = ["ply", "format binary_little_endian 1.0", "comment x", "element vertex 4"]
    header += [*(f"property double {n}" for n in names), "end_header"]
    assert read_ply("\n".join(header).encode() + b"\n" + table.tobytes()).rows == pytest.approx(splat.rows, abs=1e-6)


def _table(splat: Gaussians) -> np.ndarray:
    data = ply_bytes(splat)
    return np.frombuffer(data[data.index(b"end_header\n") + 11 :], "<f4").reshape(len(splat), -1)


def test_what_is_not_fit_for_a_file_is_dropped_or_clamped() -> None:
    splat = blobs(6)
    splat.means[0, 1] = np.nan
    splat.log_scales[1, 0] = -np.inf
    splat.opacity_logits[2] = -9
    splat.opacity_logits[3] = 99
    splat.log_scales[4] = 30
    splat.quats[5] = 0
    found = cleaned(splat)
    assert (len(found.gaussians), found.n_nonfinite, found.n_invisible) == (3, 2, 1)
    assert found.gaussians.opacity_logits[0] == 15
    assert found.gaussians.log_scales[1].tolist() == [20, 20, 20]
    assert found.gaussians.quats[2].tolist() == [1, 0, 0, 0]


GOOD = ply_bytes(blobs(3))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a PLY"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nend_header\n", "little-endian"),
        (GOOD[:-1], "cut short"),
        (GOOD.replace(b"property float opacity\n", b""), "lacks the properties opacity"),
        (GOOD.replace(b"property float opacity", b"property float x"), "a name of its own"),
        (GOOD.replace(b"property float nx", b"property list uchar int nx"), "not a number property"),
        (GOOD.replace(b"element vertex 3", b"element face 3"), "begins with the element 'face'"),
        (GOOD.replace(b"property float nx", b"property float f_rest_0"), "f_rest_"),
    ],
)
def test_broken_files_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        read_ply(data)
