from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geo_assets.lake import Lake
from geo_assets.reconstruct.feature_cache import (
    FeatureCache,
    Features,
    feature_key,
    features_path,
    read_features,
    write_features,
)

SETTINGS = {"max_features": 4096, "device": "cpu"}


def some(n: int = 3) -> Features:
    rng = np.random.default_rng(n)
    return Features(rng.random((n, 6), np.float32), rng.integers(0, 255, (n, 128), dtype=np.uint8))


def kept(lake: Lake, folder: Path, key: str = "ab12") -> FeatureCache:
    folder.mkdir(exist_ok=True)
    cache = FeatureCache(lake)
    write_features(features_path(folder, key), some())
    cache.keep(key, folder)
    return cache


def test_the_key_depends_on_everything_that_decides_the_features():
    keys = [
        feature_key("p", None, SETTINGS),
        feature_key("q", None, SETTINGS),
        feature_key("p", "m", SETTINGS),
        feature_key("p", None, SETTINGS | {"device": "cuda"}),
    ]
    assert len(set(keys)) == 4
    assert keys[0] == feature_key("p", None, dict(reversed(SETTINGS.items())))


def test_features_come_back_as_they_were(tmp_path: Path):
    cache = kept(Lake(tmp_path / "lake"), tmp_path / "first")
    assert cache.path("ab12") == "files/feature_cache/ab/ab12.npz"
    other = tmp_path / "second"
    other.mkdir()
    again = FeatureCache(cache.lake)
    assert again.fetch("ab12", other) and again.n_keypoints == {"ab12": 3}
    for folder in (other, tmp_path / "first"):
        found = read_features(features_path(folder, "ab12"))
        assert np.array_equal(found.keypoints, some().keypoints)
        assert np.array_equal(found.descriptors, some().descriptors)
    assert not again.fetch("cd34", other) and again.n_damaged == 0


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_counts_as_missing(tmp_path: Path, damage: bytes | None):
    cache = kept(Lake(tmp_path / "lake"), tmp_path / "first")
    whole = cache.lake.get_bytes(cache.path("ab12"))
    flipped = whole[:400] + bytes([whole[400] ^ 1]) + whole[401:]
    cache.lake.put_bytes(cache.path("ab12"), flipped if damage is None else damage)
    (tmp_path / "second").mkdir()
    again = FeatureCache(cache.lake)
    assert not again.fetch("ab12", tmp_path / "second") and again.n_damaged == 1
    assert not any((tmp_path / "second").iterdir())


@pytest.mark.parametrize(
    "features",
    [
        Features(np.zeros((2, 5), np.float32), np.zeros((2, 128), np.uint8)),
        Features(np.zeros((2, 4), np.float32), np.zeros((3, 128), np.uint8)),
        Features(np.zeros((2, 4), np.float64), np.zeros((2, 128), np.uint8)),  # type: ignore[arg-type]
    ],
)
def test_something_else_is_not_taken_for_features(tmp_path: Path, features: Features):
    write_features(tmp_path / "x.npz", features)
    with pytest.raises(ValueError, match=r"x\.npz"):
        read_features(tmp_path / "x.npz")


def test_a_lake_that_cannot_be_written_to_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Lake, "put_bytes", full)
    cache = kept(Lake(tmp_path / "lake"), tmp_path / "first")
    assert cache.n_not_kept == 1 and cache.n_keypoints == {"ab12": 3}
    assert len(read_features(features_path(tmp_path / "first", "ab12")).keypoints) == 3
