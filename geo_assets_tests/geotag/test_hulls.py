import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely

from geo_assets.geotag.clustering import unit_sphere
from geo_assets.geotag.hulls import hulls, write_hulls, write_levels
from geo_assets.lake import Lake
from geo_assets.tables import TABLES
from geo_assets_tests.geotag.places import blobs


def hulled(places: pd.DataFrame, cell=None) -> geopandas.GeoDataFrame:
    """Hulls of places whose cells are their blobs."""
    cell = places["blob"].to_numpy() if cell is None else cell
    rows = []
    for number in range(cell.max() + 1):
        x, y, z = unit_sphere(*places.loc[cell == number, ["lon", "lat"]].to_numpy().T).mean(axis=0)
        rows.append(
            {"cell_id": number, "lon": np.degrees(np.arctan2(y, x)), "lat": np.degrees(np.arctan2(z, np.hypot(x, y)))}
        )
    return hulls(pd.DataFrame(rows), places["lon"].to_numpy(), places["lat"].to_numpy(), cell)


def assert_held(places: pd.DataFrame, shapes: geopandas.GeoDataFrame) -> None:
    assert shapes.geometry.is_valid.all()
    west, south, east, north = shapes.total_bounds
    assert west >= -180 and east <= 180 and south >= -90 and north <= 90
    of_place = shapes.geometry.to_numpy()[places["blob"].to_numpy()]
    assert shapely.covers(of_place, shapely.points(places["lon"], places["lat"])).all()


@pytest.mark.parametrize(
    "centre", [(2.0, 48.0), (180.0, -17.0), (-179.9, 65.0), (30.0, 90.0), (-170.0, -89.5), (179.0, 0.0)]
)
@pytest.mark.parametrize("km", [0.05, 20.0, 900.0])
def test_a_hull_holds_its_places_and_little_else(centre, km):
    places = blobs([centre], n=60, km=km, seed=2)
    shapes = hulled(places)
    assert_held(places, shapes)
    # Equal-area: a degree by a degree of the sine of the latitude.
    area = shapely.area(shapely.transform(shapely.segmentize(shapes.geometry.to_numpy()[0], 0.05), to_equal_area))
    assert area < 4 * np.pi * (3.5 * km / 6371 + 4e-6) ** 2


def to_equal_area(lon_lat: np.ndarray) -> np.ndarray:
    return np.stack([np.radians(lon_lat[:, 0]), np.sin(np.radians(lon_lat[:, 1]))], axis=-1)


def test_a_hull_on_the_antimeridian_is_cut_there():
    shapes = hulled(blobs([(180.0, -17.0)], n=60, km=30))
    (shape,) = shapes.geometry
    assert shape.geom_type == "MultiPolygon" and len(shape.geoms) == 2
    assert sorted(round(abs(bound)) for part in shape.geoms for bound in part.bounds[::2]) == [179, 179, 180, 180]


def test_one_place_and_a_row_of_places_have_an_area():
    places = pd.DataFrame({"lon": [5.0, 8.0, 8.1, 8.2], "lat": [50.0, 1.0, 1.0, 1.0], "blob": [0, 1, 1, 1]})
    shapes = hulled(places)
    assert_held(places, shapes)
    area = shapely.area(shapes.geometry.to_numpy())
    assert (area > 0).all() and area[0] < 1e-7


@pytest.mark.parametrize("crowded", [0, 5])
def test_a_crowded_cell_has_the_same_hull(monkeypatch, crowded):
    places = blobs([(2.0, 48.0), (180.0, -17.0), (30.0, 5.0)], n=40, km=10)
    row = pd.DataFrame({"lon": np.linspace(1, 2, 40), "lat": 0.0, "blob": 3})
    places = pd.concat([places, row], ignore_index=True)
    plain = hulled(places)
    monkeypatch.setattr("geo_assets.geotag.hulls._CROWDED", crowded)
    few = hulled(places)
    assert_held(places, few)
    assert shapely.area(shapely.symmetric_difference(plain.geometry.to_numpy(), few.geometry.to_numpy())).max() < 1e-9


def test_a_cell_around_the_globe_is_the_world():
    places = pd.DataFrame({"lon": [0.0, 120.0, -120.0, 10.0], "lat": [0.0, 5.0, 0.0, 80.0], "blob": 0})
    assert hulled(places).total_bounds.tolist() == [-180, -90, 180, 90]


def test_no_place_gives_files_without_rows(tmp_path):
    none = np.empty(0)
    (path,) = write_levels(TABLES["hierarchy_centroids"].empty(), none, none, [none.astype(int)], tmp_path)
    read = geopandas.read_parquet(path)
    assert len(read) == 0 and "n_photos" in read and read.crs == "EPSG:4326"


def test_files_a_level(tmp_path):
    lake = Lake(tmp_path / "lake")
    places = blobs([(2.0, 48.0), (180.0, -17.0), (30.0, 5.0)], n=9, km=10)
    points = places.assign(point_id=np.arange(len(places)), cluster=0, probability=1.0)
    lake.write("hdbscan_model", TABLES["hdbscan_model"].frame(points.to_dict("records")))
    photos = [
        {"photo_id": f"{photo}", "source": "s", "point_id": photo // 2, "is_noise": False,
         "cells": [f"0:{blob}", f"1:{int(blob > 1)}", "2:0"]}
        for photo, blob in enumerate(np.repeat(places["blob"].to_numpy(), 2).tolist())
    ]  # fmt: skip
    lake.write("photo_cells", TABLES["photo_cells"].frame(photos))
    centres = {0: [(2.0, 48.0), (180.0, -17.0), (30.0, 5.0)], 1: [(60.0, 45.0), (30.0, 5.0)], 2: [(30.0, 10.0)]}
    rows = pd.DataFrame(
        [(level, i, *centre) for level, cells in centres.items() for i, centre in enumerate(cells)],
        columns=["level", "cell_id", "lon", "lat"],
    )
    lake.write("hierarchy_centroids", TABLES["hierarchy_centroids"].frame(rows.to_dict("records")))
    files = write_hulls(lake, tmp_path / "gis")
    assert [file.name for file in files] == ["cells_level_0.parquet", "cells_level_1.parquet"]
    finest = geopandas.read_parquet(files[0])
    assert finest.crs == "EPSG:4326" and finest["cell_id"].tolist() == [0, 1, 2]
    assert_held(places, finest)
