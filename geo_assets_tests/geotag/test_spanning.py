from collections.abc import Callable

import numpy as np
import pytest

from geo_assets.errors import ConfigError, SourceError
from geo_assets.geotag.clustering import unit_sphere
from geo_assets.geotag.spanning import LEAF, minimum_spanning_tree, radix_order
from geo_assets_tests.geotag.places import blobs

Cloud = Callable[[], np.ndarray]


def cities(n: int = 60) -> np.ndarray:
    places = blobs([(2.35, 48.85), (13.4, 52.5), (139.7, 35.7), (151.2, -33.9)], n=n)
    return unit_sphere(places["lon"], places["lat"])


def grid() -> np.ndarray:
    lon, lat = np.meshgrid(np.arange(17) * 0.5, np.arange(17) * 0.5)
    return unit_sphere(lon.ravel(), lat.ravel())


def pole() -> np.ndarray:
    draw = np.random.default_rng(1)
    lat = np.concatenate([[90.0, 90.0], 90 - np.abs(draw.normal(0, 0.1, 150)), [-90.0]])
    return unit_sphere(draw.uniform(-180, 180, len(lat)), lat)


def antimeridian() -> np.ndarray:
    draw = np.random.default_rng(2)
    lon = np.concatenate([[180.0, -180.0], draw.uniform(179.5, 180.5, 150)])
    return unit_sphere((lon + 180) % 360 - 180, draw.normal(-17, 0.5, len(lon)))


def copies() -> np.ndarray:
    return np.repeat(cities(8), [40, *[1] * 15, 3, 17, *[2] * 14], axis=0)


def everywhere(n: int = 300) -> np.ndarray:
    xyz = np.random.default_rng(3).normal(size=(n, 3))
    return xyz / np.linalg.norm(xyz, axis=1, keepdims=True)


def by_definition(xyz: np.ndarray, min_samples: int) -> np.ndarray:
    """Lengths of a minimum spanning tree, ascending, from all N x N distances by Prim's rule."""
    far = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
    core = np.sort(far, axis=1)[:, min(min_samples, len(xyz) - 1)]
    reach = np.maximum(far, np.maximum(core[:, None], core[None]))
    nearest, inside, lengths = reach[0].copy(), np.zeros(len(xyz), bool), []
    inside[0] = True
    for _ in range(len(xyz) - 1):
        i = int(np.argmin(np.where(inside, np.inf, nearest)))
        lengths.append(nearest[i])
        inside[i] = True
        nearest = np.minimum(nearest, reach[i])
    return np.sort(lengths)


def is_tree(a: np.ndarray, b: np.ndarray, n: int) -> bool:
    group = list(range(n))

    def leader(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for i, j in zip(a.tolist(), b.tolist(), strict=True):
        one, other = leader(i), leader(j)
        if one == other:
            return False
        group[one] = other
    return len(a) == n - 1


@pytest.mark.parametrize("cloud", [cities, grid, pole, antimeridian, copies, everywhere])
@pytest.mark.parametrize("min_samples", [1, 2, 5, LEAF + 9, 1000])
def test_lengths_are_those_of_the_definition(cloud: Cloud, min_samples: int):
    xyz = cloud()
    a, b, chords = minimum_spanning_tree(xyz, min_samples)
    assert is_tree(a, b, len(xyz))
    np.testing.assert_allclose(np.sort(chords), by_definition(xyz, min_samples), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("n", [2, 3, 4, LEAF, LEAF + 1, 2 * LEAF + 1])
@pytest.mark.parametrize("min_samples", [1, 2, 10])
def test_few_points(n: int, min_samples: int):
    xyz = everywhere(n)
    _, _, chords = minimum_spanning_tree(xyz, min_samples)
    np.testing.assert_allclose(np.sort(chords), by_definition(xyz, min_samples), rtol=1e-12)


@pytest.mark.parametrize("n", [0, 1])
def test_no_edges_without_two_points(n: int):
    assert [len(part) for part in minimum_spanning_tree(everywhere(2)[:n], 2)] == [0, 0, 0]


def test_what_has_no_tree_is_refused():
    xyz = everywhere(4)
    with pytest.raises(ConfigError, match="min_samples is 0;"):
        minimum_spanning_tree(xyz, 0)
    xyz[2, 1] = np.nan
    with pytest.raises(SourceError, match="Place 2 of 4 has no finite coordinates"):
        minimum_spanning_tree(xyz, 2)


@pytest.mark.parametrize("min_samples", [2, 6])
def test_length_is_that_of_the_library(min_samples: int):
    from hdbscan import HDBSCAN

    xyz = cities(1000)
    _, _, chords = minimum_spanning_tree(xyz, min_samples)
    for algorithm in ("prims_kdtree", "boruvka_kdtree"):
        library = HDBSCAN(
            min_samples=min_samples,
            algorithm=algorithm,
            approx_min_span_tree=False,
            gen_min_span_tree=True,
            core_dist_n_jobs=1,
        ).fit(xyz)
        tree = library.minimum_spanning_tree_
        assert tree is not None
        assert chords.sum() == pytest.approx(tree.to_numpy()[:, 2].sum(), rel=1e-9)


@pytest.mark.parametrize("cloud", [lambda: cities(1000), grid, copies])
def test_lengths_do_not_follow_threads_or_order_of_rows(cloud: Cloud):
    xyz = cloud()
    lengths = [np.sort(minimum_spanning_tree(xyz, 3, threads)[2]) for threads in (1, 2, 5)]
    order = np.random.default_rng(0).permutation(len(xyz))
    lengths.append(np.sort(minimum_spanning_tree(xyz[order], 3)[2]))
    # To the last bit.
    assert all(np.array_equal(lengths[0], other) for other in lengths)


def test_twenty_thousand_copies_of_two_points():
    # All pairs of copies would be 800 million; a loop over them would show in the time of this file.
    xyz = np.concatenate([np.repeat(everywhere(2), 20_000, axis=0), cities(20)])
    a, b, chords = minimum_spanning_tree(xyz, 2)
    assert is_tree(a, b, len(xyz))
    assert np.count_nonzero(chords == 0) == 2 * 19_999
    few = np.concatenate([np.repeat(everywhere(2), 3, axis=0), cities(20)])
    np.testing.assert_allclose(np.sort(chords)[2 * 19_999 :], by_definition(few, 2)[2 * 2 :], rtol=1e-9)


def test_radix_order_is_stable():
    draw = np.random.default_rng(4)
    for top in (3, 5000, 2**63):
        keys = draw.integers(0, top, 3000).astype(np.uint64)
        assert np.array_equal(radix_order(keys), np.argsort(keys, kind="stable"))
    assert len(radix_order(np.empty(0, np.uint64))) == 0
