from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import ConfigError
from geo_assets.geodesy import haversine_m
from geo_assets.geotag.clustering import (
    ENGINES,
    QUANTUM_M,
    Dendrogram,
    arc_m,
    cluster,
    dendrogram,
    numbered,
    spanning_tree,
    unit_sphere,
)
from geo_assets_tests.geotag.places import blobs, same_partition

CITIES = [(2.35, 48.85), (13.4, 52.5), (-74.0, 40.7), (139.7, 35.7), (151.2, -33.9)]


def fitted(places: pd.DataFrame, size: int = 5, samples: int = 2):
    return cluster(places["lon"], places["lat"], min_cluster_size=size, min_samples=samples)


def lattice() -> pd.DataFrame:
    """Two grids on the equator, full of equal distances, where one-by-one removal follows the order of the rows."""
    steps = np.arange(12) * 0.001
    one = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    return pd.DataFrame(np.concatenate([one, one * 3 + 5]), columns=["lon", "lat"])


def test_chords_become_arcs():
    lon, lat = np.array([0.0, 179.9]), np.array([10.0, -5.0])
    one, other = unit_sphere(lon, lat)
    assert arc_m(np.linalg.norm(one - other)) == pytest.approx(haversine_m(0, 10, 179.9, -5), rel=1e-9)


def test_cities_are_clusters():
    places = blobs(CITIES)
    labels = fitted(places, size=15).labels
    for _, city in places.assign(label=labels).groupby("blob"):
        assert np.median(city["label"].to_numpy()) >= 0
    assert len(set(labels[labels >= 0])) >= len(CITIES)


def test_labels_are_those_of_the_library_where_nothing_ties():
    from hdbscan import HDBSCAN

    places = blobs(CITIES, n=60)
    ours = fitted(places, size=8, samples=1)
    library = HDBSCAN(
        min_cluster_size=8, min_samples=1, algorithm="boruvka_kdtree", approx_min_span_tree=False, core_dist_n_jobs=1
    ).fit(unit_sphere(places["lon"], places["lat"]))
    assert same_partition(ours.labels, library.labels_)
    # The library's densities are by chord, ours by arc: alike to the curvature of a few kilometres.
    np.testing.assert_allclose(ours.strength, library.probabilities_, atol=1e-3)


@pytest.mark.parametrize("places", [blobs(CITIES, n=80, km=2), lattice()], ids=["cities", "lattice"])
def test_labels_do_not_follow_the_order_of_rows(places):
    straight = fitted(places)
    assert straight.n_clusters >= 2
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(places))
        shuffled = fitted(places.iloc[order])
        back = np.empty(len(places), np.int64)
        back[order] = shuffled.labels
        assert same_partition(straight.labels, back)
        assert shuffled.spanning_km == pytest.approx(straight.spanning_km, rel=1e-12)


def labels_of(xyz: np.ndarray, samples: int = 2, **options) -> np.ndarray:
    return Dendrogram.of(*spanning_tree(xyz, samples, **options)).condensed(5).labels()[0]


@pytest.mark.parametrize("samples", [1, 2, 8])
@pytest.mark.parametrize("places", [blobs(CITIES, n=80, km=2), lattice()], ids=["cities", "lattice"])
def test_labels_do_not_follow_engine_threads_or_where_north_is(places: pd.DataFrame, samples: int):
    xyz = unit_sphere(places["lon"], places["lat"])
    straight = labels_of(xyz, samples)
    assert straight.max() >= 1
    for engine in ENGINES:
        assert np.array_equal(labels_of(xyz, samples, engine=engine), straight)
    assert np.array_equal(labels_of(xyz, samples, threads=3), straight)
    for seed in range(3):
        turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
        assert np.array_equal(labels_of(xyz @ turn, samples), straight)


def test_labels_of_repeated_rows_do_not_follow_their_order():
    draw = np.random.default_rng(0)
    places = blobs(CITIES, n=80, km=2)
    rows = draw.permutation(np.concatenate([np.arange(len(places)), draw.integers(0, len(places), 300)]))
    xyz = unit_sphere(places["lon"], places["lat"])
    straight = labels_of(xyz[rows])
    of_place = np.full(len(places), -2)
    of_place[rows] = straight
    assert np.array_equal(of_place[rows], straight)  # copies stay together
    order = draw.permutation(len(rows))
    assert same_partition(labels_of(xyz[rows][order]), straight[order])


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="Engine 'fast' finds no spanning tree; choose one of own, hdbscan"):
        spanning_tree(unit_sphere([0, 1], [0, 1]), 2, engine="fast")


def test_merges_at_one_height_are_one():
    # Points at 0, 1, 2 and 5, 6 on a line: three meet at 1, two at 1 elsewhere, and all at 3; 0.2 mm is no difference.
    tree = Dendrogram.of(np.array([2, 0, 3, 1]), np.array([3, 1, 4, 2]), np.array([3.0, 1.0, 1.0002, 0.9998]))
    assert tree.height_m.tolist() == pytest.approx([0, 0, 0, 0, 0, 1, 1, 3], abs=QUANTUM_M / 2)
    assert sorted(tree.size.tolist()) == [1, 1, 1, 1, 1, 2, 3, 5]
    assert tree.parent[0] == tree.parent[1] == tree.parent[2] != tree.parent[3] == tree.parent[4]
    assert tree.parent[5:].tolist() == [7, 7, -1]


def test_groups_are_numbered_by_their_first_member():
    assert numbered(np.array([7, -1, 7, 0, -1])).tolist() == [0, 1, 0, 2, 1]
    assert numbered(np.empty(0, np.int64)).tolist() == []


def test_any_spanning_tree_of_tied_points_gives_one_hierarchy():
    # A square of side 1 with a distant triple: three of the four sides span it, whichever is left out.
    sides = [(0, 1), (1, 2), (2, 3), (3, 0)]
    rest = [(4, 5), (5, 6)]
    trees = []
    for left_out in range(4):
        kept = [side for i, side in enumerate(sides) if i != left_out] + rest + [(2, 4)]
        a, b = np.array(kept).T
        condensed = Dendrogram.of(a, b, np.array([1.0] * 5 + [50.0])).condensed(3)
        trees.append((condensed.labels()[0].tolist(), condensed.rows().to_numpy().tolist()))
    assert all(tree == trees[0] for tree in trees)
    assert trees[0][0] == [0, 0, 0, 0, 1, 1, 1]


def test_clusters_are_numbered_by_their_smallest_point():
    labels = fitted(blobs(CITIES)).labels
    first = [int(np.flatnonzero(labels == c)[0]) for c in range(labels.max() + 1)]
    assert first == sorted(first)


def test_a_blob_on_the_antimeridian_is_one_cluster():
    places = blobs([(180.0, -16.5), (0.0, 51.5)], n=60, km=2)
    labels = fitted(places, size=30).labels
    west, east = (
        labels[(places["blob"] == 0) & (places["lon"] < 0)],
        labels[(places["blob"] == 0) & (places["lon"] > 0)],
    )
    assert len(west) and len(east)
    assert set(west[west >= 0]) == set(east[east >= 0]) and len(set(labels[labels >= 0])) == 2


def test_a_blob_on_the_pole_is_one_cluster():
    draw = np.random.default_rng(1)
    pole = pd.DataFrame({"lon": draw.uniform(-180, 180, 60), "lat": 90 - np.abs(draw.normal(0, 0.02, 60))})
    places = pd.concat([pole, blobs([(0.0, 51.5)], n=60, km=2)], ignore_index=True)
    labels = fitted(places, size=30).labels[:60]
    assert len(set(labels[labels >= 0])) == 1


def test_twenty_copies_of_one_point_are_finite():
    places = pd.concat([blobs(CITIES[:2], n=10)] + [blobs(CITIES[:1], n=1)] * 19, ignore_index=True)
    found = fitted(places)
    assert np.isfinite(found.condensed.left_at).all() and np.isfinite(found.condensed.stability).all()
    copies = found.labels[20:]
    assert len(set(copies)) == 1 and copies[0] >= 0


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_few_points_are_noise(n):
    places = blobs(CITIES[:1], n=max(n, 1)).head(n)
    found = fitted(places, samples=10)
    assert found.labels.tolist() == [-1] * n and found.n_clusters == 0
    assert len(found.condensed.rows()) == n


def test_one_dense_spot_alone_is_noise():
    assert set(fitted(blobs(CITIES[:1], n=20, km=0.01), size=15).labels) == {-1}


def test_the_tree_is_a_tree_of_all_points():
    places = blobs(CITIES)
    rows = fitted(places).condensed.rows()
    n = len(places)
    assert sorted(rows["child"]) == [*range(n), *range(n + 1, len(rows) + 1)]
    tree = list(zip(*(rows[name].tolist() for name in ("parent", "child", "density", "size")), strict=True))
    below: dict[int, int] = {}
    for parent, _, _, size in tree:
        below[parent] = below.get(parent, 0) + size
    assert below == {n: n, **{child: size for _, child, _, size in tree if child > n}}
    born = {child: density for _, child, density, _ in tree}
    assert all(born.get(parent, 0.0) < density for parent, _, density, _ in tree)


def test_a_coarser_cut_of_the_same_tree_has_larger_clusters():
    places = blobs([(lon + side, lat) for lon, lat in CITIES for side in (0.0, 0.7)])
    found = fitted(places)
    tree = dendrogram(found.edges, len(places))
    fine, coarse = (tree.condensed(size).labels()[0] for size in (5, 40))
    assert same_partition(fine, found.labels)
    assert coarse.max() == len(CITIES) - 1 < fine.max()


def test_real_photo_places_do_not_follow_the_order_of_rows(real_data: Path):
    real = pd.read_csv(real_data / "geotag/points/im2gps3k_places365.csv")[["LON", "LAT"]].to_numpy()
    places = pd.DataFrame(np.unique(real, axis=0), columns=["lon", "lat"])
    order = np.random.default_rng(0).permutation(len(places))
    back = np.empty(len(places), np.int64)
    back[order] = fitted(places.iloc[order]).labels
    assert same_partition(fitted(places).labels, back)
