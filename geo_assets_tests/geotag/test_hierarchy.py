from typing import Literal

import numpy as np
import pandas as pd
import pytest

from geo_assets.geodesy import haversine_m
from geo_assets.geotag.clustering import cluster, dendrogram, unit_sphere
from geo_assets.geotag.grouping import (
    CUT_SHARE,
    by_kmeans,
    centres,
    effective,
    join_noise,
    kmeans,
    majority,
    pruned,
    split_widest,
)
from geo_assets.geotag.hierarchy import Hierarchy, build
from geo_assets.geotag.s2 import cell_ids, tokens
from geo_assets.tables import TABLES
from geo_assets_tests.geotag.places import blobs

Method = Literal["tree", "kmeans"]
BOTH = pytest.mark.parametrize("method", ["tree", "kmeans"])

CITIES = [(2.35 + 3 * i, 48.85 - 2 * j) for i in range(4) for j in range(4)] + [
    (180.0, -16.5),
    (178.0, -17.5),
    (-74.0, 40.7),
]


def built(places: pd.DataFrame, exponents=(0.75, 0.5), method: Method = "tree") -> tuple[Hierarchy, pd.DataFrame]:
    found = cluster(places["lon"], places["lat"], min_cluster_size=5, min_samples=2)
    points = places.assign(cluster=found.labels)
    tree = dendrogram(found.edges, len(points))
    return build(points, tree, min_cluster_size=5, exponents=exponents, method=method), points


@pytest.fixture(scope="module")
def world() -> tuple[Hierarchy, pd.DataFrame]:
    alone = blobs([(20.0, -30.0), (-60.0, -10.0), (100.0, 60.0)], n=1)
    return built(pd.concat([blobs(CITIES, n=25, km=10), alone], ignore_index=True))


def test_rows_fit_the_table(world):
    TABLES["hierarchy_centroids"].conform(world[0].centroids)


def test_every_cell_has_one_parent_and_children_add_up(world):
    levels, points = world
    rows = levels.centroids.set_index(["level", "cell_id"])
    top = rows.index.get_level_values("level").max()
    assert top == 3 and len(rows.loc[top]) == 1
    for level in range(top):
        pairs = {*zip(levels.cells[level].tolist(), levels.cells[level + 1].tolist(), strict=True)}
        assert len(pairs) == len(rows.loc[level])
        assert {cell: int(p) for cell, p in rows.loc[level]["parent_id"].items()} == dict(pairs)
        below = rows.loc[level].groupby("parent_id")[["n_photos", "n_points", "n_noise_filled"]].sum()
        above = rows.loc[level + 1]
        assert below.to_numpy().tolist() == above[["n_photos", "n_points", "n_noise_filled"]].to_numpy().tolist()
        assert rows.loc[level].groupby("parent_id").size().tolist() == above["n_children"].tolist()
    assert rows.loc[(top, 0), "n_photos"] == points["n_photos"].sum()
    assert pd.isna(rows.loc[(top, 0), "parent_id"])


def test_levels_have_the_cells_of_their_exponent(world):
    cells = world[0].centroids.groupby("level").size()
    n = cells[0]
    assert [cells[1], cells[2], cells[3]] == [int(n**0.75), int(n**0.5), 1]


def test_noise_joins_a_cell_and_is_counted(world):
    levels, points = world
    assert (levels.cells >= 0).all()
    noise = (points["cluster"] < 0).sum()
    assert noise > 0
    assert (levels.centroids.groupby("level")["n_noise_filled"].sum() == noise).all()
    kept = points["cluster"] >= 0
    assert (levels.cells[0][kept] == points["cluster"][kept]).all()


def test_statistics_are_those_of_the_photos_one_by_one(world):
    levels, points = world
    for level in (0, 2):
        for _, row in levels.centroids[levels.centroids["level"] == level].head(5).iterrows():
            inside = points[levels.cells[level] == row["cell_id"]]
            inside = inside.loc[inside.index.repeat(inside["n_photos"])]
            mean = unit_sphere(inside["lon"], inside["lat"]).mean(axis=0)
            assert np.linalg.norm(mean) == pytest.approx(row["resultant"], rel=1e-12)
            assert mean / np.linalg.norm(mean) == pytest.approx(unit_sphere(row["lon"], row["lat"]), abs=1e-12)
            km = haversine_m(inside["lon"], inside["lat"], row["lon"], row["lat"]) / 1000
            assert [km.mean(), km.std(), km.max()] == pytest.approx(
                [row["mean_km"], row["std_km"], row["max_km"]], abs=1e-7
            )
            for share, name in ((0.5, "p50_km"), (0.9, "p90_km"), (0.95, "p95_km")):
                assert row[name] == pytest.approx(np.quantile(km, share, method="inverted_cdf"), abs=1e-7)
            assert km.min() == pytest.approx(
                haversine_m(row["medoid_lon"], row["medoid_lat"], row["lon"], row["lat"]) / 1000
            )


def test_a_cell_on_the_antimeridian_has_its_mean_there():
    levels, _ = built(blobs([(180.0, -16.5), (0.0, 51.5)], n=60, km=1))
    cells = levels.centroids[levels.centroids["level"] == 0]
    fiji = cells[cells["lat"] < 0]
    assert np.abs(fiji["lon"]).min() > 179.8 and max(fiji["max_km"]) < 50


def test_numbers_and_cells_do_not_follow_the_order_of_rows():
    places = blobs(CITIES, n=25, km=10)
    order = np.random.default_rng(3).permutation(len(places))
    straight, _ = built(places.sort_values(["lon", "lat"], ignore_index=True))
    shuffled, _ = built(places.iloc[order].sort_values(["lon", "lat"], ignore_index=True))
    pd.testing.assert_frame_equal(straight.centroids, shuffled.centroids)


def test_farther_levels_are_wider(world):
    radius = world[0].centroids.groupby("level")["mean_km"].median()
    assert radius.is_monotonic_increasing


@pytest.mark.parametrize("n", [1, 2, 6])
def test_all_noise_is_one_cell(n):
    levels, points = built(blobs(CITIES[:1], n=n, km=0.01))
    assert points["cluster"].tolist() == [-1] * n
    assert levels.centroids["level"].tolist() == [0, 1, 2, 3]
    assert (levels.centroids["n_noise_filled"] == n).all()


def test_twenty_photos_at_one_place_are_one_cell():
    place = pd.DataFrame({"lon": [11.575], "lat": [48.137], "n_photos": [20]})
    levels, _ = built(place)
    finest = levels.centroids.iloc[0]
    assert finest[["n_photos", "n_points"]].tolist() == [20, 1]
    assert finest[["lon", "lat"]].tolist() == pytest.approx([11.575, 48.137])
    assert finest["max_km"] == pytest.approx(0, abs=1e-9)


def test_no_point_gives_no_cell():
    levels, _ = built(blobs(CITIES[:1], n=1).head(0))
    assert levels.centroids.empty and levels.cells.shape == (4, 0)
    TABLES["hierarchy_centroids"].conform(levels.centroids)


def test_noise_joins_the_nearest_cluster_across_the_antimeridian():
    xyz = unit_sphere([179.9, -170.0, -179.9], [0, 0, 0])
    assert join_noise(xyz, np.array([0, 1, -1])).tolist() == [0, 1, 0]


def test_opposite_points_have_a_mean_that_is_said_to_mean_nothing():
    levels, _ = built(pd.DataFrame({"lon": [0.0, 180.0], "lat": [0.0, 0.0], "n_photos": [1, 1]}))
    root = levels.centroids.iloc[-1]
    assert root["resultant"] < 1e-9 and np.isfinite(root[["lon", "lat", "max_km"]].astype(float)).all()


def test_places_that_coincide_cannot_be_split():
    mean = np.repeat(unit_sphere([10.0], [20.0]), 4, axis=0)
    assert split_widest(mean, np.ones(4), np.zeros(4, np.int64), 3).tolist() == [0, 0, 0, 0]


def spread_out(n: int) -> pd.DataFrame:
    """Places around as many centres as named, all over the globe."""
    draw = np.random.default_rng(5)
    lats = np.degrees(np.arcsin(draw.uniform(-0.9, 0.9, n)))
    return blobs(zip(draw.uniform(-180, 180, n).tolist(), lats.tolist(), strict=True), n=12, km=2)


@BOTH
def test_cells_lie_where_their_parents_are(method):
    levels, _ = built(spread_out(400), method=method)
    rows = levels.centroids
    child, parent = (rows[rows["level"] == level].reset_index() for level in (0, 1))
    up = child["parent_id"].to_numpy(np.int64)
    there = parent.loc[up]
    apart = haversine_m(child["lon"], child["lat"], there["lon"], there["lat"]) / 1000
    assert (apart <= there["max_km"].to_numpy() + child["max_km"].to_numpy()).all()
    # By a lookup in another order than that of the clusters they lay half a globe apart.
    elsewhere = parent.loc[np.random.default_rng(0).permutation(up)]
    lost = haversine_m(child["lon"], child["lat"], elsewhere["lon"], elsewhere["lat"]) / 1000
    assert np.median(apart) < 0.1 * np.median(lost)


@BOTH
def test_noise_is_no_cluster_when_cells_are_counted(method):
    alone = blobs([(20.0, -30.0), (-60.0, -10.0), (100.0, 60.0)], n=1)
    places = pd.concat([blobs(CITIES[:15], n=20, km=1), alone], ignore_index=True)
    levels, points = built(places, method=method)
    n = points["cluster"].to_numpy().max() + 1
    assert n == 15 and int(16**0.75) == 8
    assert levels.centroids.groupby("level").size().tolist() == [15, 7, 3, 1]


def test_a_town_that_is_not_split_is_whole_on_every_level():
    """Cut from the tree, and followed as a whole by the level above."""
    grid = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    towns = [(0, 0.6), (10, 0.3), (20, 0.3)]
    levels, _ = built(
        blobs([(lon + step * x, step * y) for lon, step in towns for x, y in grid], n=12, km=0.3),
        exponents=(0.43, 0.22),
    )
    assert levels.centroids.groupby("level").size().tolist() == [27, 4, 2, 1]
    town = np.repeat([0, 1, 2], 9 * 12)
    assert [len(np.unique(levels.cells[1][town == t])) for t in range(3)] == [2, 1, 1], "the widest town is split"
    assert [len(np.unique(levels.cells[2][town == t])) for t in range(3)] == [1, 1, 1]


def test_the_tree_leaves_room_for_splits(monkeypatch):
    given = []

    def splitting(mean, weight, groups, wanted):
        given.append((int(groups.max()) + 1, wanted))
        return split_widest(mean, weight, groups, wanted)

    monkeypatch.setattr("geo_assets.geotag.grouping.split_widest", splitting)
    built(spread_out(200), exponents=(0.75, 0.5))
    for cut, wanted in (given[0], given[3]):
        assert 1 < cut <= CUT_SHARE * wanted


def test_a_majority_is_by_what_counts():
    cell, labels = np.array([0, 0, 0, 1, 2]), np.array([4, 4, 7, -1, 3])
    assert majority(cell, labels, np.array([1.0, 1.0, 3.0, 9.0, 1.0]), 4).tolist() == [7, -1, 3, -1]
    assert majority(cell, labels, np.ones(5), 3).tolist() == [4, -1, 3]


def test_centres_and_effective_cells_by_hand():
    xyz = unit_sphere([0.0, 90.0, 0.0, 180.0], [0.0] * 4)
    mean, photos = centres(xyz, np.array([1.0, 1.0, 2.0, 2.0]), np.array([0, 0, 1, 1]))
    assert mean[0] == pytest.approx(unit_sphere(45.0, 0.0)) and photos.tolist() == [2, 4]
    assert mean[1] == pytest.approx(xyz[2]), "opposite photos have no direction: the first one stands for them"
    assert effective(np.array([5.0, 5.0, 0.0, 5.0])) == pytest.approx(3) and effective(np.array([9.0])) == 1


def test_kmeans_is_the_same_again_and_nests():
    one, _ = built(spread_out(60), method="kmeans")
    two, _ = built(spread_out(60), method="kmeans")
    pd.testing.assert_frame_equal(one.centroids, two.centroids)
    assert one.above.shape == (3, 60)
    for below, above in zip([np.arange(60), *one.above], one.above, strict=False):
        assert len(np.unique(below)) == len(np.unique(np.stack([below, above]), axis=1).T)


def test_means_follow_photos_not_cells():
    places = pd.DataFrame({"lon": [0.0, 1.0, 90.0, 91.0], "lat": [0.0] * 4, "n_photos": [1000, 1, 1, 1]})
    xyz = unit_sphere(places["lon"], places["lat"])
    groups = kmeans(xyz, places["n_photos"].to_numpy(float), 2)
    assert groups.tolist() == [0, 0, 1, 1]
    (level,) = by_kmeans(xyz, places["n_photos"].to_numpy(float), exponents=[0.5])
    assert level.tolist() == groups.tolist()


def test_kmeans_of_coincident_places_has_no_empty_cell():
    xyz = np.repeat(unit_sphere([10.0, 50.0, -120.0], [20.0, 0.0, 60.0]), 5, axis=0)
    assert kmeans(xyz, np.ones(15), 7).tolist() == [0] * 5 + [1] * 5 + [2] * 5


@BOTH
def test_cells_of_higher_levels_cross_the_antimeridian(method):
    lons = [179.0, -179.0, 179.5, -179.5, 0.0, 1.0, 2.0, 3.0]
    levels, _ = built(blobs([(lon, 10.0) for lon in lons], n=20, km=2), exponents=(0.34,), method=method)
    upper = levels.centroids[levels.centroids["level"] == 1]
    assert len(upper) == 2
    fiji = upper.iloc[np.argmax(np.abs(upper["lon"]))]
    assert abs(fiji["lon"]) > 179.9 and fiji["n_children"] == 4 and fiji["max_km"] < 200


def test_any_number_of_levels(world):
    _, points = world
    places = points[["lon", "lat", "n_photos"]]
    for exponents in ((), (0.3,), (0.2, 0.8, 0.6, 0.4, 0.9)):
        levels, _ = built(places, exponents=exponents)
        sizes = levels.centroids.groupby("level").size().tolist()
        assert len(sizes) == len(exponents) + 2 and sizes == sorted(sizes, reverse=True)
        assert sizes[1:-1] == [int(sizes[0] ** e) for e in sorted(exponents, reverse=True)]


def test_a_tree_that_was_pruned_has_the_same_clusters():
    places = spread_out(150)
    found = cluster(places["lon"], places["lat"], min_cluster_size=5, min_samples=2)
    whole = dendrogram(found.edges, len(places))
    less, remainder = pruned(whole, 8)
    least, again = pruned(less, 16)
    assert len(least.parent) < len(less.parent) < len(whole.parent)
    for tree, of_point, size in ((less, remainder, 8), (less, remainder, 25), (least, again[remainder], 40)):
        labels, _ = tree.condensed(size).labels()
        assert labels[of_point].tolist() == whole.condensed(size).labels()[0].tolist()


def test_the_medoid_names_its_cell(world):
    rows = world[0].centroids
    assert tokens(cell_ids(rows["medoid_lon"], rows["medoid_lat"])) == rows["s2_token"].tolist()
    assert rows["s2_token"].map(len).eq(16).all()


def test_the_structure_is_typed_and_begins_at_the_root(world):
    levels, points = world
    arrow = TABLES["hierarchical_structure"].conform(levels.structure())
    root, *below = arrow.to_pylist()
    assert root["level"] == 3 and root["path"] == [] and root["n_photos"] == points["n_photos"].sum()
    by_name = {f"{row['level']}:{row['cell_id']}": row for row in below}
    assert [row["level"] for row in below] == sorted((row["level"] for row in below), reverse=True)
    walked, left = [], [([], name) for name in root["children"]]
    while left:  # as training scripts walk it
        path, name = left.pop()
        row = by_name[name]
        assert row["path"] == path
        assert [int(c.split(":")[1]) for c in row["children"]] == sorted(int(c.split(":")[1]) for c in row["children"])
        walked.append(name)
        left += [([*path, name], child) for child in row["children"]]
    assert sorted(walked) == sorted(by_name) and not any(":-1" in name for name in by_name)


def test_no_point_has_no_structure():
    levels, _ = built(blobs(CITIES[:1], n=1).head(0))
    assert TABLES["hierarchical_structure"].conform(levels.structure()).num_rows == 0
