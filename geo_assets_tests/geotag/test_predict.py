from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag.clustering import unit_sphere
from geo_assets.geotag.hierarchy import join_noise
from geo_assets.geotag.model import fit
from geo_assets.geotag.model_export import as_hdbscan
from geo_assets.geotag.predict import Predictor, predict
from geo_assets_tests.geotag.places import blobs, same_partition
from geo_assets_tests.geotag.test_model import fitted, places


def town(n: int = 25, seed: int = 0) -> pd.DataFrame:
    """Squares full of photos and places strewn between them, on both sides of the antimeridian."""
    squares = [(180 + 0.1 * (k % 4), -16.5 + 0.1 * (k // 4)) for k in range(12)]
    rows = pd.concat([blobs(squares, n, km=0.6, seed=seed), blobs([(180.15, -16.4)], 6 * n, km=15, seed=seed + 1)])
    rows = rows.sort_values(["lon", "lat"], ignore_index=True)
    return rows.assign(point_id=np.arange(len(rows))).loc[:, ["point_id", "lon", "lat", "n_photos"]]


def fresh() -> tuple[np.ndarray, np.ndarray]:
    rows = town(n=20, seed=99)
    return rows["lon"].to_numpy(), rows["lat"].to_numpy()


@pytest.mark.parametrize("samples", [1, 2, 6])
def test_a_place_of_the_model_keeps_its_label(samples: int) -> None:
    model = fitted(town(), samples=samples)
    found = predict(model, model.points["lon"], model.points["lat"])
    assert (found.cluster == model.points["cluster"]).all() and (found.strength == model.points["probability"]).all()
    assert (found.distance_m < 1e-3).all()


def test_the_library_agrees_on_nearly_all_where_nothing_ties() -> None:
    from hdbscan import HDBSCAN, approximate_predict

    points = town()
    model = fitted(points, size=8, samples=1)
    library = HDBSCAN(
        min_cluster_size=8, min_samples=1, algorithm="boruvka_kdtree", approx_min_span_tree=False,
        core_dist_n_jobs=1, prediction_data=True,
    ).fit(unit_sphere(points["lon"], points["lat"]))  # fmt: skip
    assert same_partition(library.labels_, model.points["cluster"].to_numpy())
    ours = dict(zip(library.labels_.tolist(), model.points["cluster"].tolist(), strict=True)) | {-1: -1}
    labels = approximate_predict(library, unit_sphere(*fresh()))[0]
    assert (predict(model, *fresh()).cluster == [ours[label] for label in labels.tolist()]).mean() > 0.9


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_the_rule_is_that_of_the_library(samples: int) -> None:
    """With the core distances of the fit and all neighbours to choose from, its rule gives what ours does."""
    from hdbscan.prediction import _find_cluster_and_probability

    model = fitted(town(), size=8, samples=samples)
    library = as_hdbscan(model)
    library.generate_prediction_data()
    data, new = library.prediction_data_, unit_sphere(*fresh())
    core = data.tree.query(data.raw_data, k=samples + 1)[0][:, -1]
    distances, indices = data.tree.query(new, k=100)
    # It takes the distance at index `samples` for the core distance of a place that is not in the tree: one too many.
    distances, indices = (np.concatenate([rows[:, :1], rows], axis=1) for rows in (distances, indices))
    found = predict(model, *fresh())
    assert len(set(found.cluster.tolist())) > 4 and (found.cluster < 0).any()
    for i in range(len(new)):
        label, strength, _ = _find_cluster_and_probability(
            library.condensed_tree_, data.cluster_tree, indices[i], distances[i], core, data.cluster_map,
            data.max_lambdas, samples,
        )  # fmt: skip
        assert (label, strength) == (found.cluster[i], pytest.approx(found.strength[i], abs=1e-4))


def test_what_falls_out_is_noise_and_nearest_takes_it_in() -> None:
    model = fitted(town())
    exact, nearest = predict(model, *fresh()), predict(model, *fresh(), mode="nearest")
    noise = exact.cluster < 0
    assert 0.05 < noise.mean() < 0.95 and (exact.strength[noise] == 0).all() and (exact.strength[~noise] > 0).all()
    assert (nearest.cluster[~noise] == exact.cluster[~noise]).all()
    assert (nearest.cluster[noise] >= 0).all() and (nearest.strength[noise] == 0).all()


def test_the_antimeridian_is_no_border() -> None:
    model = fitted(town())
    found = predict(model, [-179.999, 179.999, 180.0, -180.0], [-16.5] * 4)
    assert len(set(found.cluster.tolist())) == 1 and found.cluster[0] >= 0
    assert (found.distance_m < 2_000).all()
    assert found.distance_m[2] == pytest.approx(found.distance_m[3])


def test_nearest_does_as_level_0_of_the_hierarchy() -> None:
    model = fitted(town())
    points = model.points
    joined = join_noise(unit_sphere(points["lon"], points["lat"]), points["cluster"].to_numpy(np.int64))
    assert points["cluster"].to_numpy().min() < 0
    assert (predict(model, points["lon"], points["lat"], mode="nearest").cluster == joined).all()


def test_a_prediction_follows_from_the_place_alone() -> None:
    steps = np.arange(12) * 0.001
    grid = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    points = pd.DataFrame(np.concatenate([grid, grid * 3 + 5]), columns=["lon", "lat"])
    points = points.sort_values(["lon", "lat"], ignore_index=True).assign(point_id=range(288), n_photos=1)
    model = fit(points, min_cluster_size=5, min_samples=2)
    assert model.card["n_clusters"] >= 2
    middle = grid[:-1] + 0.0005  # four places are equally near
    together = predict(model, *middle.T)
    predictor = Predictor(model)
    alone = [predictor.predict(lon, lat).cluster[0] for lon, lat in middle]
    order = np.random.default_rng(0).permutation(len(middle))
    assert together.cluster.tolist() == alone
    assert (predict(model, *middle[order].T).cluster == together.cluster[order]).all()


def test_a_neighbour_beyond_the_first_few_is_found() -> None:
    # Two lone places nearest by, with nobody near; a little further a crowd, whose core distances are short.
    crowd = np.random.default_rng(0).normal([0.0, 0.012], 1e-5, (30, 2))
    places = np.concatenate([[[0.01, 0.0], [-0.01, 0.0]], crowd, crowd + 1])
    rows = pd.DataFrame(places, columns=["lon", "lat"]).sort_values(["lon", "lat"], ignore_index=True)
    model = fit(rows.assign(point_id=range(62), n_photos=1), min_cluster_size=5, min_samples=1)
    assert 1_300 < predict(model, [0.0], [0.0]).distance_m[0] < 1_360


@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_few_places_predict_noise(n: int) -> None:
    found = predict(fitted(places().head(n), samples=10), [2.35, 0.0], [48.85, 0.0])
    assert found.cluster.tolist() == [-1, -1] and np.isinf(found.distance_m).all() == (n == 0)
    assert predict(fitted(places().head(n)), [], []).cluster.tolist() == []


@pytest.mark.parametrize("lon, lat", [(200.0, 0.0), (0.0, 95.0), (np.nan, 0.0)])
def test_positions_off_the_globe_are_refused(lon: float, lat: float) -> None:
    with pytest.raises(SourceError, match=r"Row 1 .* not on the globe"):
        predict(fitted(places()), [0.0, lon], [0.0, lat])


def test_real_places_are_predicted_as_they_are(real_data: Path) -> None:
    real = pd.read_csv(real_data / "geotag/points/im2gps3k_places365.csv")[["LON", "LAT"]].to_numpy()
    points = pd.DataFrame(np.unique(real, axis=0), columns=["lon", "lat"])
    points = points.assign(point_id=range(len(points)), n_photos=1)
    model = fitted(points.iloc[::2].reset_index(drop=True))
    again = predict(model, points["lon"], points["lat"])
    assert (again.cluster[::2] == model.points["cluster"]).all()
    assert 0.2 < (again.cluster[1::2] >= 0).mean() < 0.9
