from pathlib import Path

import pytest

from geo_assets.errors import ConfigError
from geo_assets.settings import City, add_city, load, mapillary_token


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEO_ASSETS_SETTINGS", raising=False)
    return tmp_path


def test_without_a_file_there_is_the_demo_city() -> None:
    settings = load()
    assert list(settings.cities) == ["demo"]
    assert settings.boxes == ["r00c00", "r00c01", "r01c00", "r01c01"]


def test_a_city_is_written_and_read_back_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / "geo_assets.toml").write_text("# my notes stay\n[splats]\nsteps = 300\n")
    add_city("san_francisco", City(bbox=(-122.52, 37.70, -122.35, 37.83)))
    assert "# my notes stay" in (tmp_path / "geo_assets.toml").read_text()
    settings = load()
    assert settings.splats.steps == 300
    assert settings.city("san_francisco").origin == (-122.52, 37.70)
    assert len(settings.city("san_francisco").grid) == 870


def test_a_box_that_the_city_does_not_have_is_refused() -> None:
    assert load().box("demo", "r01c00") == "r01c00"
    with pytest.raises(ConfigError, match="demo has no box r02c00; its grid is 2 rows by 2 columns"):
        load().box("demo", "r02c00")


def test_relative_paths_of_a_city_begin_at_the_settings(tmp_path: Path) -> None:
    (tmp_path / "geo_assets.toml").write_text(
        '[cities.x]\nbbox = [4.0, 52.0, 4.01, 52.01]\nmasks = "masks"\npairs = "pairs.txt"\n'
    )
    city = load().city("x")
    assert (city.masks, city.pairs) == (tmp_path / "masks", tmp_path / "pairs.txt")


def test_names_of_boxes_do_not_move_when_the_city_grows(tmp_path: Path) -> None:
    add_city("x", City(bbox=(4.0, 52.0, 4.01, 52.01)))
    before = load().city("x").grid.bounds("r01c01")
    text = (tmp_path / "geo_assets.toml").read_text().replace("4.01, 52.01", "4.05, 52.05")
    (tmp_path / "geo_assets.toml").write_text(text)
    assert load().city("x").grid.bounds("r01c01") == before


def test_a_city_twice_is_refused() -> None:
    add_city("x", City(bbox=(4.0, 52.0, 4.01, 52.01)))
    with pytest.raises(ConfigError, match="exists already"):
        add_city("x", City(bbox=(4.0, 52.0, 4.01, 52.01)))


@pytest.mark.parametrize("name", ["San Francisco", "a|b", "../x", "9lives", ""])
def test_a_name_that_cannot_be_a_key_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a city"):
        add_city(name, City(bbox=(4.0, 52.0, 4.01, 52.01)))


def test_too_many_boxes_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(ConfigError, match=r"partition keys, more than 25,000.*larger box_m"):
        add_city("germany", City(bbox=(6.0, 47.0, 15.0, 55.0)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lake = [", "not valid TOML"),
        ("colour = 1", "colour"),
        ("[cities.x]\nbbox = [10, 0, 5, 1]", "west < east"),
        ("[splats]\nsteps = 'many'", "splats.steps"),
    ],
)
def test_a_broken_file_is_named_with_the_field(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "geo_assets.toml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load()
    assert "geo_assets.toml" in str(caught.value)


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "geo_assets.toml").write_text("[mapillary]\ngraph_url = 'http://a'\n")
    monkeypatch.setenv("GEO_ASSETS_MAPILLARY__GRAPH_URL", "http://b")
    assert load().mapillary.graph_url == "http://b"


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "geo_assets.toml").write_text("lake = 'data/lake'\n")
    monkeypatch.setenv("GEO_ASSETS_SETTINGS", str(tmp_path / "geo_assets.toml"))
    monkeypatch.chdir("/")
    assert load().lake == str(tmp_path / "data" / "lake")


def test_the_token_does_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPILLARY_TOKEN", "MLY|1|secret")
    assert "secret" not in repr(mapillary_token())
    assert "secret" not in repr(load())
    monkeypatch.delenv("MAPILLARY_TOKEN")
    assert mapillary_token() is None


def test_a_city_may_be_trained_differently(tmp_path: Path) -> None:
    city = "[cities.x]\nbbox = [4.0, 52.0, 4.01, 52.01]\n[cities.x.splats]\n"
    (tmp_path / "geo_assets.toml").write_text("[splats]\nsteps = 300\n" + city + "sh_degree = 0\n")
    settings = load()
    assert (settings.splats_of("x").steps, settings.splats_of("x").sh_degree) == (300, 0)
    (tmp_path / "geo_assets.toml").write_text(city + "stepps = 3\n")
    with pytest.raises(ConfigError, match=r"cities\.x\.splats: stepps"):
        load()
