import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import ConfigError
from geo_assets.geodesy import MEAN_RADIUS_M
from geo_assets.geotag.clustering import unit_sphere
from geo_assets.geotag.model_export import condensed_frame, graph, write_pickle
from geo_assets_tests.geotag.test_model import fitted, places
from geo_assets_tests.geotag.test_predict import town


def leaves(frame: pd.DataFrame, n: int) -> dict[int, frozenset[int]]:
    """The places below each cluster, whatever its number."""
    below: dict[int, set[int]] = {}
    for parent, child in sorted(zip(frame["parent"].tolist(), frame["child"].tolist(), strict=True), reverse=True):
        below.setdefault(parent, set()).update({child} if child < n else below[child])
    return {cluster: frozenset(members) for cluster, members in below.items()}


def test_the_condensed_tree_is_the_librarys_where_nothing_ties() -> None:
    from hdbscan import HDBSCAN

    points = places(60)
    ours = condensed_frame(fitted(points, size=8, samples=1))
    library = HDBSCAN(
        min_cluster_size=8, min_samples=1, algorithm="boruvka_kdtree", approx_min_span_tree=False, core_dist_n_jobs=1
    ).fit(unit_sphere(points["lon"], points["lat"]))
    theirs = library.condensed_tree_.to_pandas()
    assert list(ours.columns) == list(theirs.columns) and (ours.dtypes == theirs.dtypes).all()
    rows = []
    for frame in (ours, theirs):
        names = leaves(frame, len(points))
        rows.append(
            {
                (names[p], names.get(c, c)): (density, size)
                for p, c, density, size in frame.itertuples(index=False, name=None)
            }
        )
    mine, other = rows
    assert mine.keys() == other.keys()
    for edge, (density, size) in mine.items():
        arc_m = 2 * MEAN_RADIUS_M * np.arcsin(0.5 / other[edge][0])
        assert size == other[edge][1] and abs(1 / density - arc_m) <= 0.6e-3


def test_a_graph_needs_networkx() -> None:
    model = fitted(places())
    if importlib.util.find_spec("networkx") is None:
        with pytest.raises(ConfigError, match="pip install networkx"):
            graph(model)
        return
    made, rows = graph(model), condensed_frame(model)
    assert made.number_of_edges() == len(rows) and made.nodes[len(model.points)]["size"] == len(model.points)
    first = rows.iloc[0]
    assert made.edges[first["parent"], first["child"]]["weight"] == first["lambda_val"]


def test_a_pickle_holds_our_labels_and_the_library_works_with_it(tmp_path: Path) -> None:
    from hdbscan import approximate_predict

    model = fitted(town(), size=8)
    warning = write_pickle(model, tmp_path / "model.pkl")
    assert "runs code" in warning
    opened = pickle.loads((tmp_path / "model.pkl").read_bytes())
    assert (opened.labels_ == model.points["cluster"]).all()
    assert (opened.probabilities_ == model.points["probability"]).all()
    assert len(opened.condensed_tree_.to_pandas()) == len(model.tree)
    assert len(opened.minimum_spanning_tree_.to_pandas()) == len(model.points) - 1
    opened.generate_prediction_data()
    labels = approximate_predict(opened, unit_sphere(model.points["lon"], model.points["lat"]))[0]
    agreed = labels == model.points["cluster"]  # by its own numbers; its rule is no exact one for places that it knows
    assert agreed.mean() > 0.95 and model.card["n_clusters"] > 3
