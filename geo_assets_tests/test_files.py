from pathlib import Path

import pytest

from geo_assets import files
from geo_assets.files import replacing


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.bin"
    for content in (b"old", b"new"):
        with replacing(path) as sink:
            sink.write(content)
            assert not path.exists() or path.read_bytes() == b"old"
        assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="half way"), replacing(path) as sink:
        sink.write(b"ne")
        raise ValueError("half way")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("sync_folder", [True, False])
def test_the_folder_is_synced_unless_the_caller_will(
    sync_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    with replacing(tmp_path / "a.bin", sync_folder=sync_folder) as sink:
        sink.write(b"new")
    assert synced == ([tmp_path] if sync_folder else []) and (tmp_path / "a.bin").read_bytes() == b"new"
