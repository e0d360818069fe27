"""What ``geo-assets serve`` says, refuses and opens."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from geo_assets.cli import main
from geo_assets.splats import serve


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were served, of a server that ends at once."""
    monkeypatch.chdir(tmp_path)
    found: list[str] = []
    monkeypatch.setattr(serve, "serve", lambda app, listener: found.append(serve.address(listener)))
    return found


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["serve", "--no-browser", "--port", "0", *arguments])
    return done.exit_code, done.output


def test_it_listens_on_this_machine_and_begins_with_the_city(served: list[str]) -> None:
    code, said = run("demo")
    assert (code, len(served)) == (0, 1)
    assert served[0].startswith("http://127.0.0.1:")
    assert f"{served[0]}#/demo" in said
    assert "outside" not in said


def test_a_style_is_told_to_come_from_outside(served: list[str]) -> None:
    code, said = run("--style", "https://tiles.example/style.json")
    assert (code, len(served)) == (0, 1)
    assert "comes from outside" in said


def test_the_network_sees_it_only_when_that_is_said(served: list[str]) -> None:
    code, said = run("--host", "0.0.0.0")
    assert (code, served) == (1, [])
    assert "Say --public if they may" in said
    code, said = run("--host", "0.0.0.0", "--public")
    assert (code, len(served)) == (0, 1)
    assert said.startswith("Warning: everybody")


def test_a_city_that_is_not_there(served: list[str]) -> None:
    code, said = run("atlantis")
    assert (code, served) == (1, [])
    assert "No city 'atlantis'" in said
