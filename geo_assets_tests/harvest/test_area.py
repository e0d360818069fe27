import json
from pathlib import Path

import numpy as np
import pytest

from geo_assets.grid import Bounds, Grid
from geo_assets.harvest.area import Area
from geo_assets.settings import City
from geo_assets_tests.harvest.worlds import LAT, LON, town

GRID = Grid(11.0, 48.0, 100.0, 2, 3)
CITY = Bounds(11.0, 48.0, 11.0 + 2.5 * GRID.step_lon, 48.0 + 2 * GRID.step_lat)
NAN = float("nan")


def area(polygon: Path | None = None) -> Area:
    return Area(CITY, GRID, polygon)


def triangle(folder: Path) -> Path:
    """The half of the city south-west of its diagonal."""
    path = folder / "aoi.geojson"
    ring = [[CITY.west, CITY.south], [CITY.east, CITY.south], [CITY.west, CITY.north], [CITY.west, CITY.south]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


def test_all_four_edges_belong_to_the_city() -> None:
    x, y = CITY.centre
    lon = [CITY.west, CITY.east, x, x, CITY.west, CITY.east]
    lat = [y, y, CITY.south, CITY.north, CITY.south, CITY.north]
    assert area().contains(lon, lat).all()
    out = 1e-9
    lon = [CITY.west - out, CITY.east + out, x, x, NAN, x]
    lat = [y, y, CITY.south - out, CITY.north + out, y, NAN]
    assert not area().contains(lon, lat).any()


def test_each_point_has_one_home_and_the_outer_edge_the_last_box() -> None:
    step = GRID.step_lon
    lon = [CITY.west, CITY.west + 0.5 * step, CITY.west + 1.5 * step, CITY.east, CITY.west, CITY.east]
    lat = [CITY.south, CITY.south, CITY.south, CITY.south, CITY.north, CITY.north]
    assert area().home_of(lon, lat).tolist() == ["r00c00", "r00c00", "r00c01", "r00c02", "r01c00", "r01c02"]


def test_a_box_that_reaches_beyond_the_city_holds_only_what_is_in_the_city() -> None:
    beyond = CITY.east + 0.2 * GRID.step_lon
    assert GRID.box_at(beyond, CITY.south) == "r00c02"
    assert area().home_of([beyond, NAN, CITY.east], [CITY.south, NAN, NAN]).tolist() == [None, None, None]


def test_the_polygon_cuts_the_rectangle(tmp_path: Path) -> None:
    cut = area(triangle(tmp_path))
    near, far = (CITY.west + 1e-6, CITY.south + 1e-6), (CITY.east - 1e-6, CITY.north - 1e-6)
    lon, lat = zip(near, far, (CITY.west, CITY.south), (NAN, NAN), strict=True)
    assert cut.contains(lon, lat).tolist() == [True, False, True, False], "its corner belongs to it"
    assert cut.home_of(lon, lat).tolist() == ["r00c00", None, "r00c00", None]
    assert area().home_of(lon, lat).tolist() == ["r00c00", "r01c02", "r00c00", None]


@pytest.mark.parametrize(
    ("west", "south", "touched", "touched_polygon"),
    [(0.0, 0.0, True, True), (2.1, 1.1, True, False), (2.5, 0.0, True, True), (2.6, 0.0, False, False), (-2, 0, False, False)],
)  # fmt: skip
def test_what_touches_the_city(tmp_path: Path, west: float, south: float, touched: bool, touched_polygon: bool) -> None:
    lon, lat = CITY.west + west * GRID.step_lon, CITY.south + south * GRID.step_lat
    box = Bounds(lon, lat, lon + GRID.step_lon / 2, lat + GRID.step_lat / 2)
    assert area().touches(box) is touched
    assert area(triangle(tmp_path)).touches(box) is touched_polygon


def test_nothing_and_no_images() -> None:
    assert area().home_of([], []).tolist() == []
    assert area().contains(np.zeros(0), np.zeros(0)).tolist() == []


def test_the_area_of_a_city_of_the_settings(tmp_path: Path) -> None:
    city: City = town()
    found = Area.of(city.model_copy(update={"aoi": triangle(tmp_path)}))
    assert found.bounds == city.bounds and list(found.grid) == list(city.grid) and found.polygon is not None
    assert Area.of(city).home_of([LON], [LAT]).tolist() == ["r00c00"]
