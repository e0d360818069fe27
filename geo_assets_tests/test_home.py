import os
from pathlib import Path

import pytest

from geo_assets.home import prepare_home


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")


def test_the_instance_is_made_once_and_shared_through_the_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MAPILLARY_TOKEN=MLY|1|x\n")
    home = prepare_home(tmp_path)
    assert os.environ["DAGSTER_HOME"] == str(home)
    assert "run_monitoring" in (home / "dagster.yaml").read_text()
    lines = (tmp_path / ".env").read_text().splitlines()
    assert lines == ["MAPILLARY_TOKEN=MLY|1|x", f"DAGSTER_HOME={home}"]
    (home / "dagster.yaml").write_text("# mine\n")
    os.environ["DAGSTER_HOME"] = ""
    assert prepare_home(tmp_path) == home
    assert (home / "dagster.yaml").read_text() == "# mine\n"
    assert (tmp_path / ".env").read_text().splitlines() == lines


def test_an_exported_home_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "elsewhere"))
    assert prepare_home(tmp_path) == tmp_path / "elsewhere"
    assert not (tmp_path / ".env").exists()
