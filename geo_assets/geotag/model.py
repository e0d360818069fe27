"""The clustering as a model in the lake: points and tree as tables, spanning tree and parameters as files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import GeoAssetsError
from geo_assets.geodesy import MEAN_RADIUS_M
from geo_assets.geotag.clustering import QUANTUM_M, Dendrogram, cluster, dendrogram
from geo_assets.lake import Lake

ALGORITHM = "hdbscan with equal edges removed together, excess of mass; version 1"
_CARD, _EDGES = "model.json", "spanning_tree.parquet"


@dataclass(frozen=True)
class Model:
    """Rows of ``hdbscan_model`` and ``hdbscan_tree``, the spanning tree's edges, and the card that describes them."""

    points: pd.DataFrame
    tree: pd.DataFrame
    edges: pd.DataFrame
    card: dict[str, Any]


def fit(points: pd.DataFrame, *, min_cluster_size: int, min_samples: int) -> Model:
    """Cluster distinct places.

    Args:
        points: ``point_id, lon, lat`` [deg] ``, n_photos``, sorted by ``point_id``.
        min_cluster_size: fewest places of a cluster.
        min_samples: neighbours that make a place dense.
    """
    found = cluster(points["lon"], points["lat"], min_cluster_size=min_cluster_size, min_samples=min_samples)
    card = {
        "algorithm": ALGORITHM,
        "min_cluster_size": min_cluster_size,
        "min_samples": min_samples,
        "radius_m": MEAN_RADIUS_M,
        "quantum_m": QUANTUM_M,
        "n_points": len(points),
        "n_photos": int(points["n_photos"].to_numpy().sum()),
        "n_clusters": found.n_clusters,
        "n_noise": int((found.labels < 0).sum()),
        "spanning_tree_km": found.spanning_km,
        "input_sha256": input_hash(points),
        "versions": {name: importlib.metadata.version(name) for name in ("hdbscan", "numpy", "numba")},
    }
    rows = points.assign(cluster=found.labels, probability=found.strength)
    return Model(rows, found.condensed.rows(), found.edges, card)


def input_hash(points: pd.DataFrame) -> str:
    """SHA-256 of longitudes, latitudes and photo counts, little-endian, in the order of the points."""
    digest = hashlib.sha256()
    for column, kind in (("lon", "<f8"), ("lat", "<f8"), ("n_photos", "<i8")):
        digest.update(np.ascontiguousarray(points[column].to_numpy(), kind).tobytes())
    return digest.hexdigest()


def publish(model: Model, lake: Lake, key: str) -> None:
    """Put ``model.json`` and ``spanning_tree.parquet`` into a folder of the lake, both at once."""
    with tempfile.TemporaryDirectory(prefix="geo_assets_model_") as scratch:
        folder = Path(scratch)
        (folder / _CARD).write_text(json.dumps(model.card, indent=1, sort_keys=True) + "\n")
        edges = model.edges.astype({"a": "int32", "b": "int32"})
        edges.to_parquet(folder / _EDGES, compression="zstd", index=False)
        lake.publish(folder, key)


def read_card(lake: Lake, key: str) -> dict[str, Any]:
    """The card of the published model."""
    return json.loads(lake.get_bytes(f"{key}/{_CARD}"))


def read_dendrogram(lake: Lake, key: str, points: pd.DataFrame) -> Dendrogram:
    """The dendrogram of the published model.

    Raises:
        GeoAssetsError: there is no model, or it was made of other points.
    """
    again = "Make both again: dagster asset materialize -m geo_assets.definitions --select hdbscan_model"
    if not lake.exists(f"{key}/{_CARD}"):
        raise GeoAssetsError(f"There is no clustering in {key}. {again}")
    card = read_card(lake, key)
    if card["input_sha256"] != input_hash(points):
        raise GeoAssetsError(f"The spanning tree in {key} belongs to other points than table hdbscan_model. {again}")
    with lake.local(f"{key}/{_EDGES}") as path:
        return dendrogram(pd.read_parquet(path), len(points))
