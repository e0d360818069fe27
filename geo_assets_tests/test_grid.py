import math

import numpy as np
import pytest

from geo_assets.errors import ConfigError
from geo_assets.grid import METRES_PER_DEGREE, Bounds, Grid, box_cell, box_name, touching


def test_names_round_trip() -> None:
    assert box_name(3, 7) == "r03c07"
    assert box_cell("r03c07") == (3, 7)
    assert box_cell(box_name(120, 4)) == (120, 4)


@pytest.mark.parametrize("name", ["r3c7", "c07r03", "../r00c00", "", "r00c00|demo"])
def test_a_wrong_name_is_refused_with_its_form(name: str) -> None:
    with pytest.raises(ConfigError, match="r03c07"):
        box_cell(name)


def test_san_francisco_has_the_boxes_that_its_size_asks_for() -> None:
    grid = Grid.over(Bounds(-122.52, 37.70, -122.35, 37.83), 500)
    assert (grid.rows, grid.columns) == (29, 30)
    assert len(list(grid)) == len(grid) == 870


def test_boxes_tile_the_city_without_gap_or_overlap() -> None:
    grid = Grid.over(Bounds(4.0, 52.0, 4.02, 52.01), 300)
    for name in grid:
        bounds = grid.bounds(name)
        lon, lat = bounds.centre
        assert grid.box_at(lon, lat) == name
        # The west and south edges belong to the box.
        assert grid.box_at(bounds.west + 1e-12, bounds.south + 1e-12) == name
        assert not bounds.contains(bounds.east, lat)


def test_a_box_is_as_wide_as_it_is_high_in_metres() -> None:
    grid = Grid.over(Bounds(11.5, 60.0, 11.6, 60.05), 500)
    bounds = grid.bounds("r00c00")
    width_m = (bounds.east - bounds.west) * METRES_PER_DEGREE * math.cos(math.radians(60))
    assert width_m == pytest.approx(500, rel=1e-6)


def test_outside_is_no_box() -> None:
    grid = Grid.over(Bounds(0, 0, 0.01, 0.01), 500)
    assert grid.box_at(-0.001, 0.005) is None
    assert grid.box_at(0.5, 0.005) is None
    assert "r99c00" not in grid
    assert "nonsense" not in grid


def test_neighbours_touch_and_stay_inside() -> None:
    grid = Grid(0, 0, 500, 3, 3)
    assert len(grid.neighbours("r01c01")) == 8
    assert grid.neighbours("r00c00") == ["r00c01", "r01c00", "r01c01"]
    assert "r01c01" in touching("r01c01")


def test_padding_is_in_metres() -> None:
    padded = Bounds(10, 60, 10.1, 60.1).padded(100)
    assert (10 - padded.west) * METRES_PER_DEGREE * math.cos(math.radians(60.05)) == pytest.approx(100, rel=1e-6)
    assert (60 - padded.south) * METRES_PER_DEGREE == pytest.approx(100, rel=1e-6)


def test_many_points_are_asked_as_one_is() -> None:
    bounds = Bounds(10, 60, 10.1, 60.1)
    lon, lat = np.array([10, 10.05, 10.1, 10.05, np.nan]), np.array([60, 60.1, 60.05, 60.05, 60.05])
    assert bounds.contains(lon, lat).tolist() == [True, False, False, True, False]
    assert bounds.contains(lon, lat).tolist() == [bounds.contains(x, y) for x, y in zip(lon, lat, strict=True)]


def test_the_size_of_a_box_is_in_metres() -> None:
    grid = Grid.over(Bounds(11.5, 60.0, 11.6, 60.05), 500)
    assert grid.bounds("r00c00").size_m == pytest.approx((500, 500), rel=1e-3)
