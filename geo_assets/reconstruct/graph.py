"""Connected components of images tied by pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Array = npt.NDArray[Any]


def components(nodes: list[str], a: list[str], b: list[str]) -> Array:
    """For each node the number of its component in the graph of the edges ``a[i]``-``b[i]``."""
    index = {node: i for i, node in enumerate(nodes)}
    edges = np.array([[index[x] for x in a], [index[y] for y in b]], int).reshape(2, -1)
    return labels_of(len(nodes), edges.T)


def labels_of(n: int, edges: Array) -> Array:
    """For each of n nodes the number of its component in the graph of edges [m, 2]."""
    graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]
