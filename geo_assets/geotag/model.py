"""The clustering as data: places, condensed tree and spanning tree as parquet, parameters as JSON; one folder a version.

``models_geotag/hdbscan/<version>/`` in the lake holds a fit, ``current.json`` beside it names the one in force. Cluster
ids are those of one version alone: a refit on more places moves most of them, and ``overlap.parquet`` says where to.
Reading a model runs no code of its own, unlike a pickle.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from geo_assets.errors import GeoAssetsError, SourceError
from geo_assets.geodesy import MEAN_RADIUS_M
from geo_assets.geotag.clustering import QUANTUM_M, Condensed, Dendrogram, cluster_tree, dendrogram, spanning_edges
from geo_assets.lake import Facts, Lake
from geo_assets.tables import TABLES

ALGORITHM = "hdbscan with equal edges removed together, excess of mass; version 1"
FORMAT = 1
"""Of the files of a model; raised when an older reader could not understand them."""

KEPT = 3
"""Versions that stay in the lake, the one in force among them."""

CARD, POINTS, CLUSTERS, EDGES, OVERLAP, POINTER = (
    "model.json",
    "points.parquet",
    "clusters.parquet",
    "spanning_tree.parquet",
    "overlap.parquet",
    "current.json",
)
_ROWS_AT_ONCE = 1_000_000
_AGAIN = "Make both again: dagster asset materialize -m geo_assets.definitions --select hdbscan_model"


@dataclass(frozen=True)
class Model:
    """Rows of ``hdbscan_model``, the condensed tree, the spanning tree's edges ``a, b, arc_m``, and their description.

    The card names algorithm, parameters, engine, metric, radius [m], quantum [m], counts, the length of the spanning
    tree [km], the hash of the input, the versions of the libraries, and the version of the model.
    """

    points: pd.DataFrame
    condensed: Condensed
    edges: pd.DataFrame
    card: dict[str, Any]

    @property
    def tree(self) -> pd.DataFrame:
        """Rows of table ``hdbscan_tree``."""
        return self.condensed.rows()

    @property
    def dendrogram(self) -> Dendrogram:
        """Which places meet at which arc."""
        return dendrogram(self.edges, len(self.points))

    @property
    def version(self) -> str:
        """Name of the fit: a hash of places, photo counts and parameters."""
        return self.card["version"]


def fit(
    points: pd.DataFrame,
    *,
    min_cluster_size: int,
    min_samples: int,
    engine: str = "own",
    edges: pd.DataFrame | None = None,
) -> Model:
    """Cluster distinct places.

    Args:
        points: ``point_id, lon, lat`` [deg] ``, n_photos``, sorted by ``point_id``.
        min_cluster_size: fewest places of a cluster.
        min_samples: neighbours that make a place dense.
        engine: who finds the spanning tree, or has found ``edges``.
        edges: of the spanning tree, ``a, b, arc_m``, where it was found before.
    """
    if edges is None:
        edges = spanning_edges(points["lon"], points["lat"], min_samples, engine)
    found = cluster_tree(edges, len(points), min_cluster_size)
    # What the labels follow from; whichever engine finds the tree, they are the same.
    decisive = {
        "algorithm": ALGORITHM,
        "metric": "great circle",
        "min_cluster_size": min_cluster_size,
        "min_samples": min_samples,
        "radius_m": MEAN_RADIUS_M,
        "quantum_m": QUANTUM_M,
        "input_sha256": input_hash(points),
    }
    card = decisive | {
        "format": FORMAT,
        "version": hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16],
        "engine": engine,
        "n_points": len(points),
        "n_photos": int(points["n_photos"].to_numpy().sum()),
        "n_clusters": found.n_clusters,
        "n_noise": int((found.labels < 0).sum()),
        "spanning_tree_km": found.spanning_km,
        "versions": {name: importlib.metadata.version(name) for name in ("hdbscan", "numpy", "numba")},
    }
    rows = points.assign(cluster=found.labels, probability=found.strength)
    return Model(rows, found.condensed, found.edges, card)


def input_hash(points: pd.DataFrame) -> str:
    """SHA-256 of longitudes, latitudes and photo counts, little-endian, in the order of the points."""
    digest = hashlib.sha256()
    for column, kind in (("lon", "<f8"), ("lat", "<f8"), ("n_photos", "<i8")):
        digest.update(np.ascontiguousarray(points[column].to_numpy(), kind).tobytes())
    return digest.hexdigest()


# -- folders -----------------------------------------------------------------------------------------------------


def save(model: Model, folder: Path) -> None:
    """Write the four files of a model into an existing folder.

    ``points.parquet`` has the columns of ``hdbscan_model`` with ``node`` and ``left_at`` (last cluster of the condensed
    tree that the place is in, and the density [1/m] at which it leaves it); ``clusters.parquet`` has a row for each cluster
    of the condensed tree, the root first: ``parent`` (-1 for the root), ``birth`` [1/m], ``size`` [places], ``stability``.
    """
    tree = model.condensed
    (folder / CARD).write_text(json.dumps(model.card, indent=1, sort_keys=True) + "\n")
    _write(model.points.assign(node=tree.cluster.astype(np.int32), left_at=tree.left_at), folder / POINTS)
    columns = ("parent", "birth", "size", "stability")
    _write(pd.DataFrame({name: getattr(tree, name) for name in columns}), folder / CLUSTERS)
    _write(model.edges.astype({"a": "int32", "b": "int32"}), folder / EDGES)


def load(folder: Path) -> Model:
    """Read a model that :func:`save` wrote.

    Raises:
        SourceError: a file is missing or damaged, the files do not belong together, or a later version wrote them.
    """
    try:
        card = json.loads((folder / CARD).read_text())
        if card["format"] > FORMAT:
            raise SourceError(f"{folder} has format {card['format']}, this program reads {FORMAT}. Update geo-assets.")
        points, clusters, edges = (pd.read_parquet(folder / name) for name in (POINTS, CLUSTERS, EDGES))
        nodes = (points[name].to_numpy(kind) for name, kind in (("node", np.int64), ("left_at", np.float64)))
        shape = {"parent": np.int64, "birth": np.float64, "size": np.int64, "stability": np.float64}
        condensed = Condensed(*nodes, *(clusters[name].to_numpy(kind) for name, kind in shape.items()))
        is_whole = card["input_sha256"] == input_hash(points) and _fits(condensed, edges)
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors too
        raise SourceError(f"{folder} holds no model that can be read: {error}. Make it again.") from None
    if not is_whole:
        raise SourceError(f"The files in {folder} do not belong to one model. Make it again.")
    return Model(points.drop(columns=["node", "left_at"]), condensed, edges, card)


def _fits(tree: Condensed, edges: pd.DataFrame) -> bool:
    """Whether every index names what is there; compiled code follows them unchecked."""
    n, c, ends = len(tree.cluster), len(tree.parent), edges[["a", "b"]].to_numpy()
    return bool(
        c
        and len(edges) == max(n - 1, 0)
        and ((tree.cluster >= 0) & (tree.cluster < c)).all()
        and ((tree.parent[1:] >= 0) & (tree.parent[1:] < np.arange(1, c))).all()
        and ((ends >= 0) & (ends < n)).all()
    )


def _write(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, compression="zstd", index=False)


# -- versions in the lake ----------------------------------------------------------------------------------------


def publish(model: Model, lake: Lake, key: str) -> dict[str, Any]:
    """Put a model into its own folder below ``key``, then let the pointer name it; older versions than three go.

    Args:
        model: the fit.
        lake: where it is put.
        key: the folder of all versions.

    Returns:
        ``version``, ``previous_version`` and, where there is one, ``n_places_shared`` with it, ``n_clusters_kept`` (those
        that hold the same shared places) and ``mean_jaccard`` (of each older cluster with its likest, by places).
    """
    before = [version for version in _versions(lake, key) if version != model.version]
    before = [version for version in before if lake.exists(f"{key}/{version}/{CARD}")]
    figures: dict[str, Any] = {"version": model.version, "previous_version": before[0] if before else None}
    with tempfile.TemporaryDirectory(prefix="geo_assets_model_") as scratch:
        save(model, Path(scratch))
        if before:
            with lake.local(f"{key}/{before[0]}/{POINTS}") as path:
                rows = overlap(pd.read_parquet(path, columns=["lon", "lat", "cluster"]), model.points)
            _write(rows, Path(scratch) / OVERLAP)
            likest = rows.loc[(rows["old"] >= 0) & (rows["new"] >= 0)].groupby("old")["jaccard"].max().to_numpy()
            figures |= {
                "n_places_shared": int(rows["n_points"].to_numpy().sum()),
                "n_clusters_kept": int((likest == 1).sum()),
                "mean_jaccard": round(float(likest.mean()), 4) if len(likest) else None,
            }
        lake.publish(Path(scratch), f"{key}/{model.version}")
    versions = [model.version, *before][:KEPT]
    lake.put_bytes(f"{key}/{POINTER}", json.dumps({"version": model.version, "versions": versions}).encode() + b"\n")
    for name in lake.names(key):
        if name not in (*versions, POINTER):
            lake.remove_folder(f"{key}/{name}")
    return figures


def write_tree(tree: Condensed, lake: Lake) -> Facts:
    """Write table ``hdbscan_tree``, the rows of :meth:`Condensed.rows`, without a copy of all of them."""
    n = len(tree.cluster)
    inner, size = tree.parent[1:], tree.size[1:]
    # Within a parent the points come first, as clusters are numbered behind them.
    order = np.argsort(np.concatenate([tree.cluster, inner]), kind="stable")

    def batches() -> Iterator[pa.RecordBatch]:
        for begin in range(0, len(order), _ROWS_AT_ONCE):
            rows = order[begin : begin + _ROWS_AT_ONCE]
            is_point = rows < n
            point, cell = rows[is_point], rows[~is_point] - n
            columns: dict[str, npt.NDArray[Any]] = {}
            for name, of_point, of_cell in (
                ("parent", n + tree.cluster[point], n + inner[cell]),
                ("child", point, n + 1 + cell),
                ("density", tree.left_at[point], tree.birth[1:][cell]),
                ("size", 1, size[cell]),
            ):
                columns[name] = np.empty(len(rows), np.float64 if name == "density" else np.int64)
                columns[name][is_point], columns[name][~is_point] = of_point, of_cell
            yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns.values()], schema=schema)

    schema = TABLES["hdbscan_tree"].schema
    with lake.connect() as con:
        con.register("tree", pa.RecordBatchReader.from_batches(schema, batches()))
        return lake.write_query(con, "hdbscan_tree", "from tree", is_sorted=True)


def overlap(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Where the places of each older cluster are now, by the places that both fits have.

    Args:
        old: ``lon, lat, cluster`` of the older fit, -1 for noise.
        new: the same of the newer one.

    Returns:
        ``old``, ``new`` (-1 for noise), ``n_points`` that both have in common, and ``jaccard``, that number over the shared
        places in either of them; sorted by ``old``, the largest share first.
    """
    both = old[["lon", "lat", "cluster"]].merge(new[["lon", "lat", "cluster"]], on=["lon", "lat"])
    both = both.rename(columns={"cluster_x": "old", "cluster_y": "new"})
    rows = both.groupby(["old", "new"], as_index=False).agg(n_points=("lon", "size"))
    shared = rows["n_points"].to_numpy(np.int64)
    n_old, n_new = (np.bincount(rows[side] + 1, shared)[rows[side] + 1] for side in ("old", "new"))
    rows["jaccard"] = shared / (n_old + n_new - shared)
    return rows.sort_values(["old", "n_points", "new"], ascending=[True, False, True], ignore_index=True)


def current(lake: Lake, key: str) -> str:
    """Key of the folder of the version in force.

    Raises:
        GeoAssetsError: there is no model.
    """
    versions = _versions(lake, key)
    if not versions or not lake.exists(f"{key}/{versions[0]}/{CARD}"):
        raise GeoAssetsError(f"There is no clustering in {key}. {_AGAIN}")
    return f"{key}/{versions[0]}"


def _versions(lake: Lake, key: str) -> list[str]:
    """Versions that the pointer names, the one in force first."""
    if not lake.exists(f"{key}/{POINTER}"):
        return []
    return json.loads(lake.get_bytes(f"{key}/{POINTER}"))["versions"]


def read_card(lake: Lake, key: str) -> dict[str, Any]:
    """The card of the model in force."""
    return json.loads(lake.get_bytes(f"{current(lake, key)}/{CARD}"))


def read_model(lake: Lake, key: str) -> Model:
    """The model in force."""
    with lake.local(current(lake, key)) as folder:
        return load(folder)


def read_dendrogram(lake: Lake, key: str, points: pd.DataFrame) -> Dendrogram:
    """The dendrogram of the model in force.

    Raises:
        GeoAssetsError: there is no model, or it was made of other points.
    """
    if read_card(lake, key)["input_sha256"] != input_hash(points):
        raise GeoAssetsError(f"The spanning tree in {key} belongs to other points than table hdbscan_model. {_AGAIN}")
    with lake.local(f"{current(lake, key)}/{EDGES}") as path:
        return dendrogram(pd.read_parquet(path), len(points))
