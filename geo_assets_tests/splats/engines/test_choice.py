"""Which engine is chosen, and what is said about it."""

from __future__ import annotations

import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from geo_assets.errors import ConfigError, TrainingError
from geo_assets.settings import Splats
from geo_assets.splats import engine as module
from geo_assets.splats.engine import SplatEngine, choose_engine, engines
from geo_assets_tests.splats.engines.look_alikes import alone_on_path, brush, program

BUILT_IN = {"brush", "gsplat", "cpu", "command", "nerfstudio", "opensplat"}


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone_on_path(monkeypatch, tmp_path / "bin")


def test_every_engine_is_an_entry_point() -> None:
    found = engines(Splats())
    assert set(found) >= BUILT_IN
    assert list(found)[:3] == ["brush", "gsplat", "cpu"]
    assert all(isinstance(engine, SplatEngine) for engine in found.values())
    assert all(name == engine.name for name, engine in found.items())


def test_auto_takes_the_cpu_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    began = time.process_time()
    assert choose_engine(Splats(), said.append).name == "cpu"
    assert time.process_time() - began < 1
    assert "not brush: engine 'brush' not found" in said[0] and "not gsplat:" in said[0]
    assert said[1].startswith("Used only where splats.engine names them: ")
    assert "opensplat" in said[1] and "nerfstudio" in said[1] and "command" not in said[1]


def test_auto_takes_brush_and_says_which(tmp_path: Path) -> None:
    path, said = brush(tmp_path / "bin" / "brush", "1.0.0"), []
    program(tmp_path / "bin" / "opensplat", 'print("--keep-crs")')
    assert choose_engine(Splats(), said.append).name == "brush"
    assert said[0] == f"Splat engine: brush 1.0.0 ({path}), the first that can run here."


def test_a_command_goes_first_where_one_is_set(tmp_path: Path) -> None:
    brush(tmp_path / "bin" / "brush", "1.0.0")
    path, said = program(tmp_path / "bin" / "mine", ""), []
    assert choose_engine(Splats(command="mine {dataset} {out_ply}"), said.append).name == "command"
    assert said[0] == f"Splat engine: command ({path}), the command of the settings."
    assert choose_engine(Splats(command="gone {dataset} {out_ply}"), said.append).name == "brush"
    assert "not command: engine 'command': the program 'gone'" in said[-2]
    with pytest.raises(ConfigError, match="unknown placeholder"):
        choose_engine(Splats(command="mine {dataset} {out_ply} {x}"), said.append)


def test_named_engines(tmp_path: Path) -> None:
    said: list[str] = []
    assert choose_engine(Splats(engine="cpu"), said.append).name == "cpu"
    assert said == ["Splat engine: cpu, as the settings say."]
    with pytest.raises(TrainingError, match=r"No splat engine 'nerf'; installed: brush, gsplat, cpu, "):
        choose_engine(Splats(engine="nerf"), said.append)
    with pytest.raises(
        TrainingError, match=r"^Splat engine 'brush' not found: .* releases page\. Or set splats.engine"
    ):
        choose_engine(Splats(engine="brush"), said.append)
    with pytest.raises(TrainingError, match=r"^Splat engine 'gsplat' .* Or set splats.engine"):
        choose_engine(Splats(engine="gsplat"), said.append)
    assert choose_engine(Splats(engine="opensplat", opensplat=program(tmp_path / "o", 'print("--keep-crs")')), print)


def test_a_package_that_cannot_be_imported_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("odd", "no_such_package:Engine", module.GROUP)]
    monkeypatch.setattr(module, "entry_points", lambda group: points)
    assert "cannot be loaded: ModuleNotFoundError" in (engines(Splats())["odd"].available() or "")
    assert choose_engine(Splats(), print).name == "cpu"
    with pytest.raises(TrainingError, match="Splat engine 'odd' cannot be loaded"):
        choose_engine(Splats(engine="odd"), print)
