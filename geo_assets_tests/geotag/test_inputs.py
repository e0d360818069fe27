"""Where photo sets lie, what their partitions are called, and how the demo's inputs leave a lake."""

from pathlib import Path

import pytest

from geo_assets.errors import ConfigError
from geo_assets.geotag.inputs import landmark_parts, settle_inputs, shards
from geo_assets.lake import Lake
from geo_assets.settings import Demo, Geotag, Settings
from geo_assets.tables import TABLES


def with_folder(folder: Path) -> Settings:
    return Settings(geotag=Geotag(placing_2016=folder))


def test_shards_lie_in_the_folder_or_in_its_shards_in_natural_order(tmp_path: Path):
    for name in ("shard_10.msg", "shard_2.msg", "shards/shard 3.msg", "aa/bb/deep.msg", "readme.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert {key: path.as_posix() for key, path in shards(with_folder(tmp_path)).items()} == {
        "shard_2": "shard_2.msg",
        "shard_10": "shard_10.msg",
        "shard_3": "shards/shard 3.msg",
    }


def test_two_shards_of_one_key_are_refused(tmp_path: Path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "a.msg").touch()
    (tmp_path / "shards" / "a.msg").touch()
    with pytest.raises(ConfigError, match="would both be partition a of placing_2016"):
        shards(with_folder(tmp_path))


def test_without_any_photo_set_the_demo_stands_in(tmp_path: Path):
    assert list(shards(Settings())) == [f"shard_{k}" for k in range(5)]
    assert shards(Settings(demo=Demo(enabled=False))) == {}
    assert shards(Settings(geotag=Geotag(flickr_geotag=tmp_path))) == {}


def test_landmarks_are_cut_by_their_ids():
    assert len(landmark_parts(Geotag())) == 82  # 203,094 landmarks, 50 calls of 50 titles each
    small = Geotag(landmarks=120, landmarks_per_part=50, landmark_index=True, index_landmarks=50)
    assert landmark_parts(small) == ["train-000000", "train-000050", "train-000100", "index-000000"]


def test_what_the_demo_made_goes_when_a_photo_set_is_configured(tmp_path: Path):
    lake = Lake(tmp_path / "lake")
    settle_inputs(lake, Settings())
    lake.write("placing_2016", TABLES["placing_2016"].empty(), shard="shard_0")
    lake.write("google_landmark", TABLES["google_landmark"].empty())
    settle_inputs(lake, Settings())
    assert lake.has("placing_2016", shard="shard_0")
    settle_inputs(lake, with_folder(tmp_path))
    assert not lake.has("placing_2016", shard="shard_0") and not lake.has("google_landmark")
    lake.write("placing_2016", TABLES["placing_2016"].empty(), shard="shard_0")
    settle_inputs(lake, with_folder(tmp_path))
    assert lake.has("placing_2016", shard="shard_0"), "what was made of real photos stays"


def test_shards_that_are_gone_leave_the_lake_unless_all_are(tmp_path: Path):
    lake, folder = Lake(tmp_path / "lake"), tmp_path / "placing"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.msg").touch()
        lake.write("placing_2016", TABLES["placing_2016"].empty(), shard=name)
        lake.write("geotag_rejects", TABLES["geotag_rejects"].empty(), source="placing_2016", part=name)
    (folder / "b.msg").unlink()
    settle_inputs(lake, with_folder(folder))
    assert lake.partitions("placing_2016") == [{"shard": "a"}]
    assert lake.partitions("geotag_rejects") == [{"part": "a", "source": "placing_2016"}]
    (folder / "a.msg").unlink()  # a disk that is not mounted looks like this
    settle_inputs(lake, with_folder(folder))
    assert lake.partitions("placing_2016") == [{"shard": "a"}]
