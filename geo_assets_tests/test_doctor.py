"""What stands in the way is found, said with its way out, and ends with status 1; a token is never shown."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from geo_assets import doctor
from geo_assets.cli import main
from geo_assets.demo.server import TOKEN, Address, Behaviour, serving
from geo_assets.lake import Lake
from geo_assets.limits import HostLimits
from geo_assets_tests.harvest.worlds import street

Findings = dict[str, doctor.Finding]


@pytest.fixture
def examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Findings]:
    """The findings of the command line by what they are about, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ("GEO_ASSETS_SETTINGS", "GEO_ASSETS_LAKE", "DAGSTER_HOME", "MAPILLARY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # Tested by themselves; here they would cost seconds each time.
    monkeypatch.setattr(doctor, "_packages", lambda: iter(()))
    monkeypatch.setattr(doctor, "_engines", lambda settings: iter(()))

    def run(*options: str) -> Findings:
        result = CliRunner().invoke(main, ["doctor", "--json", *options])
        answer = json.loads(result.output)
        assert result.exit_code == (not answer["ok"]), result.output
        return {found["about"]: doctor.Finding(**found) for found in answer["findings"]}

    return run


@pytest.fixture(scope="module")
def imagery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with serving(street(tmp_path_factory.mktemp("world"), 3)) as address:
        yield address


def town(address: str) -> None:
    Path("geo_assets.toml").write_text(
        f'[cities.town]\nbbox = [11.0, 48.0, 11.002, 48.001]\ngraph_url = "{address}"\ntiles_url = "{address}"\n'
    )


def test_a_fresh_folder_is_well(examine: Callable[..., Findings], tmp_path: Path) -> None:
    found = examine("--offline")
    assert "fail" not in {finding.state for finding in found.values()}
    assert found["token"].said == "none is needed: no city asks Mapillary"
    assert found["lake"].state == "ok" and "there is nothing yet" in found["lake"].said
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_good_token_is_accepted_with_one_request(
    examine: Callable[..., Findings], imagery: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    town(imagery)
    monkeypatch.setenv("MAPILLARY_TOKEN", TOKEN)
    before = sum(imagery.requests.values())
    assert examine()["token"].state == "ok"
    assert sum(imagery.requests.values()) == before + 1
    assert "was not asked" in examine("--offline")["token"].said
    assert sum(imagery.requests.values()) == before + 1


def test_a_wrong_an_expired_and_a_missing_token_are_told_apart(
    examine: Callable[..., Findings], imagery: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    town(imagery)
    missing = examine()["token"]
    assert missing.state == "fail" and "MAPILLARY_TOKEN is not set, and town asks 127.0.0.1" in missing.said
    monkeypatch.setenv("MAPILLARY_TOKEN", "MLY|7|secret")
    wrong = examine()["token"]
    assert wrong.state == "fail" and "is not valid" in wrong.said and "MAPILLARY_TOKEN=MLY|..." in wrong.way_out
    expired_world = Behaviour(fault=lambda kind, n: "expired_token", tokens=frozenset({"MLY|7|secret"}))
    with serving(street(tmp_path, 1), expired_world) as address:
        town(address)
        found = examine()
    assert found["token"].state == "fail" and "has expired" in found["token"].said
    assert not [f for f in (*found.values(), wrong) if "secret" in str(f)], "the token is never shown"


def test_a_host_that_does_not_answer_is_no_fault_of_the_token(
    examine: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    town("http://127.0.0.1:9")
    monkeypatch.setenv("MAPILLARY_TOKEN", "MLY|7|secret")
    found = examine()["token"]
    assert found.state == "fail" and "no answer from 127.0.0.1:9" in found.said and "--offline" in found.way_out
    assert "secret" not in str(found)


def test_a_blocked_tile_host_is_known_from_the_lake_alone(
    examine: Callable[..., Findings], imagery: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    town(imagery)
    monkeypatch.setenv("MAPILLARY_TOKEN", TOKEN)
    host = imagery.removeprefix("http://")
    assert examine()["tile host"].state == "ok"
    HostLimits({}, host, Lake("lake")).block()
    found = examine()["tile host"]
    day = time.strftime("%Y-%m-%d", time.gmtime(HostLimits({}, host, Lake("lake")).blocked_until))
    assert found.state == "warn" and f"is not asked until {day}" in found.said


def test_a_lake_that_cannot_be_written_fails(
    examine: Callable[..., Findings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GEO_ASSETS_LAKE", str(tmp_path / "file" / "lake"))
    found = examine("--offline")["lake"]
    assert found.state == "fail" and "cannot be written" in found.said and "GEO_ASSETS_LAKE" in found.way_out


def test_a_lake_that_is_there_is_left_as_it_was(examine: Callable[..., Findings], tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    assert "can be written, synced and renamed in" in examine("--offline")["lake"].said
    assert not list((tmp_path / "lake").iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[splats]\nstepss = 3\n", "splats.stepss: there is no such setting. Did you mean 'steps'?"),
        ("[splats]\nsteps = 0\n", "splats.steps: Input should be greater than or equal to 1"),
        (
            "[cities.x]\nbbox = [1, 2, 3, 4]\nphoto = 'a'\n",
            "cities.x.photo: there is no such setting. Did you mean 'photos'?",
        ),
        ("[cities.x\n", "is not valid TOML"),
        ("[cities.X-y]\nbbox = [1.0, 2.0, 1.01, 2.01]\n", "cannot name a city"),
    ],
)
def test_broken_settings_name_the_field(examine: Callable[..., Findings], text: str, said: str) -> None:
    Path("geo_assets.toml").write_text(text)
    found = examine("--offline")
    assert found["settings"].state == "fail" and said in found["settings"].said, found["settings"]
    assert "lake" not in found, "what needs settings is not looked at"


def test_every_broken_field_is_a_finding_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("geo_assets.toml").write_text("[splats]\nsteps = 0\nsh_degree = 9\n")
    assert [f.said.split(":")[0] for f in doctor._settings()] == ["splats.steps", "splats.sh_degree"]


def test_what_the_settings_ask_is_held_against_the_memory(
    examine: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "available_bytes", lambda: int(8e9))
    assert examine("--offline")["memory"].said.startswith("reconstruct.block_memory_mb allows 16 GB")
    monkeypatch.setattr(doctor, "available_bytes", lambda: int(0.3e9))
    assert examine("--offline")["memory"].state == "fail"


def test_an_instance_without_limits_is_told(
    examine: Callable[..., Findings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    found = examine("--offline")
    assert found["pools"].state == "warn" and "no default limit" in found["pools"].said
    assert found["instance"].state == "ok" and found["runs"].state == "ok"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "elsewhere"))
    assert "which is no folder" in examine("--offline")["instance"].said


def test_a_package_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_one.py").write_text("raise ImportError('libgone.so: cannot open shared object file')\n")
    (tmp_path / "dies.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "NATIVE", ("json", "broken_one", "dies"))
    said = [f.said for f in doctor._packages() if f.about == "native code"]
    assert len(said) == 2
    assert "broken_one cannot be imported: ImportError ['libgone.so" in said[0]
    assert "dies cannot be imported: its process died with status 7" in said[1]


def test_an_engine_that_is_named_and_missing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geo_assets.settings import load

    monkeypatch.chdir(tmp_path)
    Path("geo_assets.toml").write_text(
        '[splats]\nengine = "cpu"\n[cities.x]\nbbox = [1.0, 2.0, 1.01, 2.01]\nsplats = {engine = "none"}\n'
    )
    found = {f.about: f for f in doctor._engines(load())}
    assert found["splat engine"].said == "cpu trains (splats.engine = cpu)"
    assert found["splats of x"].state == "fail" and "No splat engine 'none'" in found["splats of x"].said


def test_the_text_says_the_way_out_below_the_finding(
    examine: Callable[..., Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEO_ASSETS_SPLATS__STEPS", "0")
    result = CliRunner().invoke(main, ["doctor", "--offline"])
    assert result.exit_code == 1
    after = result.output.split("fail  settings")[1].splitlines()
    assert "splats.steps" in after[0] and after[1].strip().startswith("-> Correct it in")
