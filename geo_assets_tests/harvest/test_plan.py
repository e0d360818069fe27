import numpy as np
import pytest

from geo_assets.grid import Bounds
from geo_assets.harvest.plan import MAX_AREA_DEG2, area_deg2, audit_cells, can_split, quarters

CITY = Bounds(11.5, 48.1, 11.6, 48.2)


@pytest.mark.parametrize(("n", "spread"), [(0, 1.0), (1, 1.0), (399, 0.1), (5000, 1.0), (5000, 0.001), (5000, 0.0)])
def test_cells_cover_without_overlap_and_hold_few(n: int, spread: float) -> None:
    rng = np.random.default_rng(n)
    lon = 11.53 + 0.05 * spread * rng.uniform(-0.5, 0.5, n)
    lat = 48.16 + 0.05 * spread * rng.uniform(-0.5, 0.5, n)
    cells = audit_cells(lon, lat, CITY)
    assert sorted(i for _, members in cells for i in members) == list(range(n)), "each image in one cell"
    assert sum(area_deg2(cell) for cell, _ in cells) == pytest.approx(area_deg2(CITY))
    for cell, members in cells:
        assert area_deg2(cell) < MAX_AREA_DEG2
        assert len(members) <= 400 or max(cell.size_m) < 2.0
        assert set(members) == set(np.flatnonzero(cell.contains(lon, lat)))
    for x, y in zip(rng.uniform(11.5, 11.6, 50), rng.uniform(48.1, 48.2, 50), strict=True):
        assert sum(cell.contains(x, y) for cell, _ in cells) == 1


def test_images_outside_are_not_planned_for() -> None:
    here = Bounds(11.54, 48.14, 11.56, 48.16)
    [(cell, members)] = audit_cells([0.0, 11.55, np.nan], [0.0, 48.15, np.nan], here)
    assert cell == here and members.tolist() == [1]


@pytest.mark.parametrize("most", [1, 7, 50])
def test_fewer_images_a_cell_can_be_asked_for(most: int) -> None:
    rng = np.random.default_rng(most)
    cells = audit_cells(11.5 + 0.1 * rng.random(300), 48.1 + 0.1 * rng.random(300), CITY, most)
    assert max(len(members) for _, members in cells) <= most
    assert sum(len(members) for _, members in cells) == 300


def test_cells_follow_density() -> None:
    rng = np.random.default_rng(0)
    cells = audit_cells(11.5 + 0.1 * rng.beta(8, 2, 20_000), 48.1 + 0.1 * rng.random(20_000), CITY)
    assert 20_000 / 400 <= len(cells) < 2.5 * 20_000 / 400


def test_quarters() -> None:
    parts = quarters(CITY)
    assert sum(map(area_deg2, parts)) == pytest.approx(area_deg2(CITY)) and len(set(parts)) == 4
    assert can_split(CITY) and not can_split(Bounds(11.5, 48.1, 11.500005, 48.100005))
