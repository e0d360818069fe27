import ast
import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import GeoAssetsError
from geo_assets.geodesy import haversine_m
from geo_assets.geotag import hierarchy
from geo_assets.geotag.checks import doubtful_radii, nesting_faults
from geo_assets.geotag.clustering import dendrogram
from geo_assets.geotag.combine import write_points
from geo_assets.geotag.hierarchy import build, write_photo_cells
from geo_assets.geotag.hierarchy_export import export_hierarchy
from geo_assets.geotag.model import fit
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES
from geo_assets_tests.geotag.places import blobs

SETTINGS = Geotag(memory_gb=0.5)
KEYS = ["cluster_2", "cluster_1", "cluster_0"]


def photos() -> pd.DataFrame:
    """Photos of two sources: cities on both sides of the antimeridian, lonely places, and a null island."""
    cities = [(10.0 + 5 * (i % 5), 40.0 - 6 * (i // 5)) for i in range(20)]
    places = pd.concat(
        [blobs([*cities, (180.0, -16.5)], n=9, km=3), blobs([(-60.0, -10.0), (100.0, 60.0), (-40.0, 50.0)], n=1)]
    )
    # As many photos as the place has, and the antimeridian by its other name.
    rows = places.iloc[np.repeat(np.arange(len(places)), places["n_photos"])]
    rows = pd.concat([rows[["lon", "lat"]], pd.DataFrame({"lon": [0.0, 180.0, -180.0], "lat": [0.0, -16.5, -16.5]})])
    rows = rows.reset_index(drop=True)
    number = pd.Series(range(len(rows))).astype(str)
    island = (rows["lon"] == 0) & (rows["lat"] == 0)
    return rows.assign(
        photo_id=number.str.zfill(5),
        source=np.where(np.arange(len(rows)) % 3 > 0, "placing_2016", "flickr_geotag"),
        path=number + ', "a".jpg',
        captured_at=pd.NaT,
        author_hash=None,
        licence=None,
        landmark_id=None,
        flags=[["null_island"] if flag else [] for flag in island],
        split="train",
    )


def make(lake: Lake, combined: pd.DataFrame) -> None:
    lake.write("geotag_combined", combined)
    write_points(lake, SETTINGS)
    model = fit(lake.read("geotag_points", ["point_id", "lon", "lat", "n_photos"]), min_cluster_size=5, min_samples=2)
    levels = build(model.points, dendrogram(model.edges, len(model.points)), min_cluster_size=5, exponents=(0.75, 0.5))
    write_photo_cells(lake, model.points, levels, SETTINGS)
    lake.write("hdbscan_model", model.points)
    lake.write("hierarchical_structure", levels.structure())
    lake.write("hierarchy_centroids", levels.centroids)


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    lake = Lake(tmp_path_factory.mktemp("lake"))
    make(lake, photos())
    return lake


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as source:
        return list(csv.DictReader(source))


def key(row: dict[str, str]) -> tuple[int | None, ...]:
    return tuple(int(row[name]) if row[name] else None for name in KEYS)


def test_photos_have_the_cells_of_their_points(lake, tmp_path, monkeypatch):
    rows = lake.read("photo_cells")
    TABLES["photo_cells"].conform(rows)
    combined = photos()
    kept = combined.loc[[not flags for flags in combined["flags"]]].sort_values(by=["source", "photo_id"])
    assert rows["photo_id"].tolist() == kept["photo_id"].tolist() and not any(nesting_faults(lake).values())
    points = lake.read("hdbscan_model").set_index("point_id").loc[rows["point_id"]]
    assert points["lat"].tolist() == kept["lat"].tolist()
    assert ((points["cluster"] < 0).to_numpy() == rows["is_noise"].to_numpy()).all() and rows["is_noise"].any()
    inside = points["cluster"] >= 0
    assert rows["cells"].str[0][inside.to_numpy()].tolist() == [f"0:{c}" for c in points["cluster"][inside]]
    # In pieces it is the same table.
    monkeypatch.setattr(hierarchy, "SORTED_AT_ONCE", 50)
    again = Lake(tmp_path / "lake")
    make(again, combined)
    pd.testing.assert_frame_equal(again.read("photo_cells"), rows)


def test_radii_of_levels_are_sound_until_parents_are_shuffled(lake, monkeypatch):
    monkeypatch.setattr("geo_assets.geotag.checks.ENOUGH_TO_JUDGE", 3)
    rows = lake.read("hierarchy_centroids")
    try:
        lake.write("hierarchy_centroids", rows.assign(mean_km=rows["mean_km"].where(rows["level"] != 1, 4374.0)))
        assert list(doubtful_radii(lake)) == ["level_1", "level_2"]
    finally:
        lake.write("hierarchy_centroids", rows)
    radii = rows[rows["level"] < 3].groupby("level")["mean_km"].median()
    assert radii.is_monotonic_increasing


def test_files_are_what_training_scripts_ask_for(lake, tmp_path):
    files = export_hierarchy(lake, tmp_path, SETTINGS)
    assert [path.name for path in files] == [
        "hierarchical_clustered_coords.csv",
        "hierarchical_structure.csv",
        "hierarchical_cluster_centroids.csv",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files)
    coords, structure, centroids = (read(path) for path in files)
    assert list(coords[0]) == ["path", "lat", "lon", "cluster_0", "cluster_1", "cluster_2"]
    assert list(structure[0]) == ["cluster_0", "cluster_1", "cluster_2", "num_items", "children"]
    assert list(centroids[0]) == ["cluster_0", "cluster_1", "cluster_2", "lat", "lon", "mean_dist", "std_dist"]

    root, *nodes = structure
    n = lake.rows("photo_cells")
    assert key(root) == (None, None, None) and int(root["num_items"]) == n == len(coords)
    tree = {key(row): row for row in structure}
    assert len(tree) == len(structure) == len(centroids) + 1
    for row in structure:
        path = [part for part in key(row) if part is not None]
        children = ast.literal_eval(row["children"])
        assert children == sorted(children) and (len(path) == 3) == (children == [])
        below = [tree[(*path, child, *[None] * (2 - len(path)))] for child in children]
        assert not below or sum(int(child["num_items"]) for child in below) == int(row["num_items"])
    for level, name in enumerate(reversed(KEYS)):
        ids = sorted(int(row[name]) for row in nodes if sum(k is not None for k in key(row)) == 3 - level)
        assert ids == list(range(len(ids)))
        assert {int(row[name]) for row in coords} == set(ids)
    assert {key(row) for row in coords} <= set(tree)


def test_centroids_are_in_km_and_coordinates_are_those_of_the_photos(lake, tmp_path):
    coords, _, centroids = (read(path) for path in export_hierarchy(lake, tmp_path, SETTINGS))
    combined = photos()
    folder = combined["source"].replace("placing_2016", "2016_placing")
    at = dict(
        zip("./" + folder + "/" + combined["path"], zip(combined["lat"], combined["lon"], strict=True), strict=True)
    )
    assert all(at[row["path"]] == (float(row["lat"]), float(row["lon"])) for row in coords)
    cells: dict[tuple[int | None, ...], list[tuple[float, float]]] = {}
    for row in coords:
        c2, c1, c0 = key(row)
        for cell in ((c2, None, None), (c2, c1, None), (c2, c1, c0)):
            cells.setdefault(cell, []).append((float(row["lon"]), float(row["lat"])))
    assert len(cells) == len(centroids)
    for row in centroids:
        lon, lat = np.array(cells[key(row)]).T
        km = haversine_m(lon, lat, float(row["lon"]), float(row["lat"])) / 1000
        assert [float(row["mean_dist"]), float(row["std_dist"])] == pytest.approx([km.mean(), km.std()], abs=1e-6)
    fiji = [row for row in centroids if row["cluster_0"] and float(row["lat"]) < -10 and abs(float(row["lon"])) > 170]
    assert len(fiji) == 1 and float(fiji[0]["mean_dist"]) < 20


def test_noise_is_minus_one_where_it_is_asked_for(lake, tmp_path):
    coords, structure, centroids = (
        read(path) for path in export_hierarchy(lake, tmp_path, SETTINGS, include_noise=True)
    )
    noise = lake.read("photo_cells")["is_noise"].sum()
    lost = [row for row in coords if "-1" in (row["cluster_0"], row["cluster_1"], row["cluster_2"])]
    assert len(lost) == noise > 0 and {key(row) for row in lost} == {(-1, -1, -1)}
    tree = {key(row): row for row in structure}
    assert int(structure[0]["num_items"]) == len(coords) and ast.literal_eval(structure[0]["children"])[0] == -1
    assert [int(tree[path]["num_items"]) for path in ((-1, None, None), (-1, -1, None), (-1, -1, -1))] == [noise] * 3
    assert len(centroids) == len(structure) - 1 and sum(row["cluster_2"] == "-1" for row in centroids) == 3
    plain = {key(row): row for row in read(export_hierarchy(lake, tmp_path, SETTINGS)[2])}
    same = [row for row in centroids if key(row) in plain and row["mean_dist"][:9] == plain[key(row)]["mean_dist"][:9]]
    assert len(same) > 15, "a cell that no noise joined is described alike"


def test_a_cell_of_one_place_has_a_distance_that_can_be_divided_by(tmp_path):
    lake = Lake(tmp_path / "lake")
    make(lake, photos().iloc[:1])
    coords, structure, centroids = (read(path) for path in export_hierarchy(lake, tmp_path / "out", SETTINGS))
    assert [key(row) for row in coords] == [(0, 0, 0)] and [row["children"] for row in structure] == ["[0]"] * 3 + [
        "[]"
    ]
    assert {float(row["mean_dist"]) for row in centroids} == {1e-6}


def test_no_photo_gives_headers_alone(tmp_path):
    lake = Lake(tmp_path / "lake")
    make(lake, photos().head(0))
    coords, structure, centroids = export_hierarchy(lake, tmp_path / "out", SETTINGS)
    assert coords.read_text() == "path,lat,lon,cluster_0,cluster_1,cluster_2\n"
    assert read(structure)[0]["children"] == "[]" and read(centroids) == []


def test_what_was_never_made_is_named(tmp_path):
    with pytest.raises(GeoAssetsError, match=r"geotag_combined has no data\. Make it first"):
        export_hierarchy(Lake(tmp_path), tmp_path / "out", SETTINGS)
