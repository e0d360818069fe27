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
    assert sum(count for _, count in cells) == n
    assert sum(area_deg2(cell) for cell, _ in cells) == pytest.approx(area_deg2(CITY))
    for cell, count in cells:
        assert area_deg2(cell) < MAX_AREA_DEG2
        assert count <= 400 or max(cell.size_m) < 2.0
        assert count == sum(cell.contains(x, y) for x, y in zip(lon, lat, strict=True)) if n < 500 else True
    for x, y in zip(rng.uniform(11.5, 11.6, 50), rng.uniform(48.1, 48.2, 50), strict=True):
        assert sum(cell.contains(x, y) for cell, _ in cells) == 1


def test_images_outside_are_not_planned_for() -> None:
    assert audit_cells([0.0, 11.55], [0.0, 48.15], Bounds(11.54, 48.14, 11.56, 48.16)) == [
        (Bounds(11.54, 48.14, 11.56, 48.16), 1)
    ]


def test_cells_follow_density() -> None:
    rng = np.random.default_rng(0)
    cells = audit_cells(11.5 + 0.1 * rng.beta(8, 2, 20_000), 48.1 + 0.1 * rng.random(20_000), CITY)
    assert 20_000 / 400 <= len(cells) < 2.5 * 20_000 / 400


def test_quarters() -> None:
    parts = quarters(CITY)
    assert sum(map(area_deg2, parts)) == pytest.approx(area_deg2(CITY)) and len(set(parts)) == 4
    assert can_split(CITY) and not can_split(Bounds(11.5, 48.1, 11.500005, 48.100005))
