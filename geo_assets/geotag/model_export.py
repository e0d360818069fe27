"""A model for programs that know hdbscan's objects: its condensed tree as a table or a graph, and, on request, a pickle."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import ConfigError
from geo_assets.files import replacing
from geo_assets.geodesy import MEAN_RADIUS_M
from geo_assets.geotag.clustering import Floats, unit_sphere
from geo_assets.geotag.model import Model

PICKLE_WARNING = (
    "A pickle runs code when it is opened: open none that you did not make. It fits the versions of hdbscan, numpy and "
    "scikit-learn that wrote it, and perhaps no other. geo_assets itself never reads one; the model as data is beside it."
)


def condensed_frame(model: Model) -> pd.DataFrame:
    """The condensed tree as ``hdbscan.HDBSCAN.condensed_tree_.to_pandas()`` gives it.

    Returns:
        ``parent``, ``child``, ``lambda_val`` [1/m of great circle], ``child_size``; places are 0..N-1, the root is N. A split
        into more than two clusters has a row for each, where the library would invent an order among equal edges.
    """
    return model.tree.rename(columns={"density": "lambda_val", "size": "child_size"})


def graph(model: Model) -> Any:
    """The condensed tree as the ``networkx.DiGraph`` of ``condensed_tree_.to_networkx()``: edges with ``weight`` [1/m], nodes with ``size``.

    Raises:
        ConfigError: networkx is not installed.
    """
    try:
        networkx = importlib.import_module("networkx")
    except ImportError:
        raise ConfigError(
            "A graph needs the package networkx, which is not installed. Add it: pip install networkx"
        ) from None
    rows = condensed_frame(model)
    made = networkx.DiGraph()
    made.add_node(len(model.points), size=len(model.points))
    made.add_nodes_from(zip(rows["child"].tolist(), ({"size": n} for n in rows["child_size"].tolist()), strict=True))
    made.add_weighted_edges_from(rows[["parent", "child", "lambda_val"]].itertuples(index=False, name=None))
    return made


def write_pickle(model: Model, path: Path) -> str:
    """Write :func:`as_hdbscan` of a model as a pickle, for scripts that open one.

    Returns:
        What to know before such a file is opened or passed on.
    """
    with replacing(path) as sink:
        pickle.dump(as_hdbscan(model), sink, protocol=5)
    return PICKLE_WARNING


def as_hdbscan(model: Model) -> Any:
    """An ``hdbscan.HDBSCAN`` that holds this model.

    It was not fitted by the library: labels, probabilities, condensed tree and spanning tree are the model's own. Its
    points are unit vectors (x, y, z) of the sphere and its lambdas are 1 / chord, so that the library's methods, such as
    ``generate_prediction_data``, agree with each other; who predicts passes unit vectors, not degrees.
    """
    from hdbscan import HDBSCAN

    rows, n = condensed_frame(model), len(model.points)
    raw = np.empty(
        len(rows), [("parent", np.intp), ("child", np.intp), ("lambda_val", np.float64), ("child_size", np.intp)]
    )
    # The library predicts labels by the order of ids: first what lies above the chosen clusters, then each with what is below.
    label, _ = model.condensed.selected()
    number = np.concatenate([np.arange(n), n + np.argsort(np.argsort(label, kind="stable"))])
    raw["parent"], raw["child"] = number[rows["parent"]], number[rows["child"]]
    raw["child_size"] = rows["child_size"]
    density = rows["lambda_val"].to_numpy(np.float64)
    raw["lambda_val"] = np.divide(1, _chord(1 / np.maximum(density, 1e-9)), out=np.zeros(len(rows)), where=density > 0)
    labels = model.points["cluster"].to_numpy(np.intp)
    made: Any = HDBSCAN(
        min_cluster_size=model.card["min_cluster_size"],
        min_samples=model.card["min_samples"],
        algorithm="boruvka_kdtree",
        approx_min_span_tree=False,
        gen_min_span_tree=True,
    )
    made.labels_ = labels
    made.probabilities_ = model.points["probability"].to_numpy(np.float64)
    made._condensed_tree = raw
    made._raw_data = unit_sphere(model.points["lon"], model.points["lat"])
    made._all_finite = True
    made._min_spanning_tree = np.column_stack(
        [model.edges["a"], model.edges["b"], _chord(model.edges["arc_m"].to_numpy(np.float64))]
    )
    return made


def _chord(arc_m: Floats) -> Floats:
    """Chords of the unit sphere of great-circle metres."""
    return 2 * np.sin(arc_m / (2 * MEAN_RADIUS_M))
