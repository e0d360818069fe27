from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geo_assets.errors import SourceError
from geo_assets.splats.compressed import morton_order
from geo_assets.splats.gaussians import Gaussians, rotations_of
from geo_assets.splats.judge import psnr_db
from geo_assets.splats.render import render
from geo_assets.splats.sog import Leaf, lod_meta, read_sog, write_sog
from geo_assets_tests.splats.scenes import blobs, ring
from geo_assets_tests.splats.towns import town


@pytest.mark.parametrize("n, degree", [(1, 0), (5, 1), (3000, 0), (3000, 1), (3000, 2), (3000, 3)])
def test_round_trip(tmp_path: Path, n: int, degree: int) -> None:
    splat = blobs(n, degree)
    size = write_sog(tmp_path / "a", splat)
    assert size == sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    back = read_sog(tmp_path / "a" / "meta.json")
    assert (len(back), back.degree) == (n, degree)
    assert back.means == pytest.approx(splat.means, abs=2e-4)
    assert back.log_scales == pytest.approx(splat.log_scales, abs=0.03)
    assert back.opacities == pytest.approx(splat.opacities, abs=1 / 255)
    assert rotations_of(back.quats) == pytest.approx(rotations_of(splat.quats), abs=0.03)
    assert back.sh[:, 0] == pytest.approx(splat.sh[:, 0], abs=0.08)
    if n > 1000:
        camera = ring(4, width=160, height=120)[0]
        # These blobs have the harmonics of noise, the worst for a palette.
        assert psnr_db(render(back.to_degree(0), camera), render(splat.to_degree(0), camera)) > 38


def test_harmonics_that_resemble_each_other_survive_the_palette(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    splat, kinds = blobs(4000, 2), rng.normal(0, 0.4, (50, 8, 3))
    splat.sh[:, 1:] = kinds[rng.integers(0, 50, 4000)]
    write_sog(tmp_path, splat)
    back = read_sog(tmp_path / "meta.json")
    assert np.sqrt(np.mean((back.sh[:, 1:] - splat.sh[:, 1:]) ** 2)) < 0.02


def test_few_bytes(tmp_path: Path) -> None:
    splat = town(20_000)
    assert write_sog(tmp_path, splat[morton_order(splat.means)]) < 20 * len(splat)


def test_far_from_the_origin_it_is_still_exact(tmp_path: Path) -> None:
    splat = town(2000, size_m=30)
    splat.means[:] += [3000, -2500, 0]
    write_sog(tmp_path, splat)
    assert read_sog(tmp_path / "meta.json").means == pytest.approx(splat.means, abs=0.01)


def test_transparent_pixels_keep_their_colours(tmp_path: Path) -> None:
    splat = blobs(64)
    splat.opacity_logits[:] = -5.4
    write_sog(tmp_path, splat)
    assert read_sog(tmp_path / "meta.json").sh == pytest.approx(splat.sh, abs=0.05)


def test_the_list_of_levels() -> None:
    leaves = [Leaf([0, 0, 0], [1, 1, 1], {0: (1, 0, 10), 1: (0, 0, 5)}), Leaf([1, 0, -1], [2, 1, 1], {1: (0, 5, 3)})]
    meta = lod_meta(leaves, ["1_0/meta.json", "0_0/meta.json"], environment="sky/meta.json")
    assert (meta["version"], meta["lodLevels"], meta["counts"], meta["count"]) == (1, 2, [10, 8], 18)
    assert meta["environment"] == "sky/meta.json"
    assert meta["tree"]["bound"] == {"min": [0, 0, -1], "max": [2, 1, 1]}
    assert meta["tree"]["children"][1]["lods"] == {"1": {"file": 0, "offset": 5, "count": 3}}
    json.dumps(meta)


@pytest.mark.parametrize("harm", ["version", "gone", "small", "outside", "no json"])
def test_what_is_no_sog_is_refused_in_a_sentence(tmp_path: Path, harm: str) -> None:
    write_sog(tmp_path, blobs(30))
    path = tmp_path / "meta.json"
    meta = json.loads(path.read_text())
    if harm == "version":
        meta["version"] = 1
    if harm == "gone":
        (tmp_path / "quats.webp").unlink()
    if harm == "small":
        Image.new("RGBA", (4, 4)).save(tmp_path / "sh0.webp", lossless=True)
    if harm == "outside":
        meta["means"]["files"][0] = "../means_l.webp"
    path.write_text("{" if harm == "no json" else json.dumps(meta))
    with pytest.raises(SourceError, match="does not describe a SOG"):
        read_sog(path)


def test_images_are_lossless(tmp_path: Path) -> None:
    splat = Gaussians(blobs(500).rows.copy())
    write_sog(tmp_path, splat)
    once = read_sog(tmp_path / "meta.json")
    write_sog(tmp_path / "again", once)
    twice = read_sog(tmp_path / "again" / "meta.json")
    assert twice.log_scales == pytest.approx(once.log_scales, abs=1e-6)
    assert twice.means == pytest.approx(once.means, abs=1e-4)
