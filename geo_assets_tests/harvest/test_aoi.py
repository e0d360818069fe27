import json
from pathlib import Path

import pytest

from geo_assets.errors import SourceError
from geo_assets.grid import Bounds
from geo_assets.harvest.aoi import bounds_of, inside, read_strata, stratum_of, touches
from geo_assets_tests.harvest.rows import LAT, LON, polygons, square

TRIANGLE = {"type": "Polygon", "coordinates": [[[4.0, 52.0], [4.2, 52.0], [4.0, 52.2], [4.0, 52.0]]]}


@pytest.mark.parametrize(
    "document",
    [
        TRIANGLE,
        {"type": "Feature", "geometry": TRIANGLE, "properties": {}},
        {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": TRIANGLE, "properties": {}}]},
    ],
)
def test_a_polygon_in_any_wrapping(tmp_path: Path, document: dict) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_text(json.dumps(document))
    assert bounds_of(path) == (4.0, 52.0, 4.2, 52.2)
    assert inside(path, [4.01, 4.19, 4.1], [52.01, 52.19, 52.0]).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not GeoJSON"),
        ("[]", "not GeoJSON"),
        ('{"type": "Polygon"}', "not GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[0, "x"], [1, 0], [1, 1], [0, 0]]]}', "not GeoJSON"),
        ('{"type": "Point", "coordinates": [4, 52]}', "no Polygon"),
        (json.dumps({"type": "Polygon", "coordinates": [[[0, 0], [5e5, 0], [0, 5e5], [0, 0]]]}), "not degrees"),
    ],
)
def test_what_is_no_area_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_text(text)
    with pytest.raises(SourceError, match=said):
        bounds_of(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        bounds_of(tmp_path / "none.geojson")


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = polygons(tmp_path / "a.geojson", ("x", square(0, 10)))
    assert inside(path, [LON + 5e-5], [LAT]).tolist() == [True]
    assert stratum_of(path, [LON + 5e-5], [LAT]).tolist() == ["x"]
    polygons(path, ("y", square(1000, 1010)))
    assert inside(path, [LON + 5e-5], [LAT]).tolist() == [False]
    assert [name for name, _ in read_strata(path)] == ["y"]


@pytest.mark.parametrize(
    ("bounds", "meets"),
    [
        ((4.05, 52.05, 4.06, 52.06), True),  # inside the area
        ((3.0, 51.0, 5.0, 53.0), True),  # around it
        ((4.2, 52.0, 4.3, 52.1), True),  # at its corner only
        ((4.15, 52.15, 4.2, 52.2), False),  # in the bounds of the triangle, not in the triangle
        ((5.0, 52.0, 5.1, 52.1), False),
    ],
)
def test_whether_a_rectangle_meets_the_area(tmp_path: Path, bounds: tuple, meets: bool) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_text(json.dumps(TRIANGLE))
    assert touches(path, Bounds(*bounds)) is meets


@pytest.mark.parametrize("key", ["name", "stratum"])
def test_the_first_stratum_wins_and_a_name_may_have_several_polygons(tmp_path: Path, key: str) -> None:
    path = polygons(
        tmp_path / "strata.geojson",
        ("urban", square(0, 10)),
        ("park", square(5, 30)),
        ("urban", square(40, 50)),
        key=key,
    )
    metre = 1 / 111_319.49
    lon = [LON + m * metre for m in (2, 7, 20, 45, 35)] + [float("nan")]
    assert stratum_of(path, lon, [LAT] * 6).tolist() == ["urban", "urban", "park", "urban", None, None]
    assert stratum_of(path, [], []).tolist() == []


def test_a_stratum_without_a_name_is_said(tmp_path: Path) -> None:
    path = polygons(tmp_path / "strata.geojson", ("urban", square(0, 10)), (None, square(5, 30)))
    with pytest.raises(SourceError, match="polygon 2 has no name"):
        stratum_of(path, [LON], [LAT])
