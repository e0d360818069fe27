import math

import pytest

from geo_assets.exif import number, position, rationals, text


@pytest.mark.parametrize(("lon", "lat"), [(-70.65, -33.45), (151.209039, -33.861328), (-98.490723, 29.426458), (0, 0)])
def test_a_position_survives_its_rationals(lon: float, lat: float) -> None:
    lat_parts, lon_parts = (tuple(a / b for a, b in rationals(v)) for v in (lat, lon))
    gps = {1: "N" if lat >= 0 else "S", 2: lat_parts, 3: b"E\0" if lon >= 0 else b"w\0", 4: lon_parts}
    assert position(gps) == pytest.approx((lon, lat), abs=1e-8)


@pytest.mark.parametrize("parts", [(48.5, 0, 0), (48.5,), 48.5, (48.5, math.nan, math.nan), (48, 30.0001, None)])
def test_nothing_is_needed_behind_a_fraction(parts: object) -> None:
    assert position({1: "North", 2: parts, 3: "W", 4: (1, 0, 0)}) == pytest.approx((-1, 48.5), abs=1e-5)


@pytest.mark.parametrize(
    "gps",
    [
        {},
        {1: "N", 2: (1, 2, 3)},
        {1: "N", 2: (1, 2), 3: "E", 4: (1, 2, 3)},
        {1: "", 2: (1, 2, 3), 3: "E", 4: (1, 2, 3)},
        {2: (1, 2, 3), 4: (1, 2, 3)},
        {1: "N", 2: (1, math.nan, 3), 3: "E", 4: (1, 2, 3)},
        {1: "N", 2: (-1, 2, 3), 3: "E", 4: (1, 2, 3)},
        {1: "N", 2: (1, 2, math.nan), 3: "E", 4: (1, 2, 3)},
        {1: "N", 2: (1, 2, 61), 3: "E", 4: (1, 2, 3)},
        {1: "N", 2: 48.0, 3: "E", 4: 11.0},
    ],
)
def test_half_a_position_is_none(gps: dict) -> None:
    assert position(gps) is None


def test_texts_and_numbers_of_careless_cameras() -> None:
    assert text(b"Ada\0\0 ") == text("Ada\n") == "Ada"
    assert text("\0") is text(None) is text(7) is None
    assert text("a\udc80") == "a?"
    assert number("x") is number(None) is number(math.inf) is None
    assert number("2.5") == 2.5
