import json
from pathlib import Path

import pytest

from geo_assets.errors import SourceError
from geo_assets.harvest.aoi import bounds_of, inside

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
        ('{"type": "Point", "coordinates": [4, 52]}', "no Polygon"),
        (json.dumps({"type": "Polygon", "coordinates": [[[0, 0], [5e5, 0], [0, 5e5], [0, 0]]]}), "not degrees"),
    ],
)
def test_what_is_no_area_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_text(text)
    with pytest.raises(SourceError, match=said):
        bounds_of(path)
