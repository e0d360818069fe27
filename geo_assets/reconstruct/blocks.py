"""Cuts a component of the verified graph into blocks that one process can map, and that hold together afterwards.

A mapper's memory and time grow faster than its images, so a component is bisected until each part is small. The
cut crosses the street network where few pairs cross it, and both sides then take images of each other, so that
their models can be joined by cameras that both know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_assets.reconstruct.graph import labels_of

Array = npt.NDArray[Any]

MIDDLE = 0.3
"""A cut leaves at least this share of the images on each side, where the graph allows it."""

_FILL = 0.8  # blocks are planned so full, which leaves a cut the room to look for a weak place
_RESERVED_SHARE = 0.4  # of a block at most, for images of its neighbours
_LOST_BALANCE = 0.1  # a smaller side than this share is no bisection; another order of the images is tried


@dataclass(frozen=True)
class Block:
    """A part of a component: the images it owns, and those that it shares with its neighbours.

    Attributes:
        own: ids of the images that belong to this block alone, sorted; every image is owned once.
        shared: ids that other blocks own and this one maps too, sorted.
    """

    own: list[str]
    shared: list[str]

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images of the block, sorted."""
        return sorted([*self.own, *self.shared])


@dataclass(frozen=True)
class _Graph:
    """Units that stay together (frames), their positions and weights, and how strongly pairs tie them."""

    xy: Array  # [n, 2]
    weights: Array  # [n] images of each unit
    edges: Array  # [m, 2], each pair of units once
    strengths: Array  # [m]


def cut(
    image_ids: Sequence[str],
    positions: Array,
    edges: Sequence[tuple[str, str, int]],
    frames: Sequence[Any],
    max_images: int,
    shared: int,
) -> list[Block]:
    """Cut a component into connected blocks of bounded size whose neighbours share images.

    Args:
        image_ids: ids of the images of one component.
        positions: their positions east and north [m], [n, 2]; unknown ones may be nan.
        edges: verified pairs of them with the number of inliers.
        frames: the frame of each image; images of one frame stay together.
        max_images: most images of a block, those that it shares counted in.
        shared: images that two blocks with pairs across are to share, or as many as there are.

    Returns:
        Blocks in the order of their first own image. One alone if the component is small enough.
    """
    order = sorted(range(len(image_ids)), key=lambda i: image_ids[i])
    ids = [image_ids[i] for i in order]
    if len(ids) <= max_images:
        return [Block(ids, [])]
    graph, unit_of = _units(ids, np.asarray(positions, float)[order], edges, [frames[i] for i in order])
    shared = min(shared, int(_RESERVED_SHARE * max_images))
    bound = max_images - min(2 * shared, int(_RESERVED_SHARE * max_images))
    labels = _joined(graph, _bisected(graph, bound), bound)
    return _as_blocks(ids, unit_of, labels, _with_shared(graph, labels, max_images, shared))


def halves(
    image_ids: Sequence[str],
    positions: Array,
    edges: Sequence[tuple[str, str, int]],
    frames: Sequence[Any],
    shared: int,
) -> list[Block]:
    """Two blocks of a block that was too much for a process; one alone where it cannot be cut.

    Arguments are those of :func:`cut`.
    """
    order = sorted(range(len(image_ids)), key=lambda i: image_ids[i])
    ids = [image_ids[i] for i in order]
    graph, unit_of = _units(ids, np.asarray(positions, float)[order], edges, [frames[i] for i in order])
    if len(graph.weights) < 2:
        return [Block(ids, [])]
    bound = int(graph.weights.sum() / (2 * _FILL)) + 1
    labels = _bisection(graph, np.arange(len(graph.weights)), graph.edges, graph.strengths, bound).astype(int)
    bound = max(int(0.75 * len(ids)), int(np.bincount(labels, graph.weights).max()))
    return _as_blocks(ids, unit_of, labels, _with_shared(graph, labels, bound, min(shared, len(ids) // 4)))


def block_key(images: Sequence[Mapping[str, Any]], pairs: Sequence[Sequence[Any]], options: Mapping[str, Any]) -> str:
    """Key of a block: the same images with the same features and pairs, mapped in the same way, have the same model.

    Args:
        images: what mapping knows of each image (id, key of its features, camera, prior), as JSON can hold it.
        pairs: its verified pairs: both ids and the number of inliers.
        options: the settings that the mappers see.
    """
    said = {
        "images": sorted(images, key=lambda image: str(image["image_id"])),
        "pairs": sorted([str(v) for v in pair] for pair in pairs),
        "options": dict(options),
        "pycolmap": version("pycolmap"),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _units(
    ids: list[str], positions: Array, edges: Sequence[tuple[str, str, int]], frames: Sequence[Any]
) -> tuple[_Graph, Array]:
    """The graph of frames, and for each image its unit; units come in the order of their first image."""
    numbers: dict[Any, int] = {}
    unit_of = np.array([numbers.setdefault(frame, len(numbers)) for frame in frames], int)
    weights = np.bincount(unit_of)
    known = ~np.isnan(positions.sum(axis=1))
    # An image without a position lies in the middle: the graph, not its place, then decides to which side it holds.
    filled = np.where(known[:, None], positions, positions[known].mean(axis=0) if known.any() else 0.0)
    xy = np.stack([np.bincount(unit_of, filled[:, k]) / weights for k in range(2)], axis=1)
    index = {image_id: k for k, image_id in enumerate(ids)}
    ends = np.array([(index[a], index[b]) for a, b, _ in edges], int).reshape(-1, 2)
    strengths = np.array([n for _, _, n in edges], float)
    ends = np.sort(unit_of[ends], axis=1)
    across = ends[:, 0] != ends[:, 1]
    ends, strengths = ends[across], strengths[across]
    pairs, which = np.unique(ends[:, 0] * len(weights) + ends[:, 1], return_inverse=True)
    merged = np.stack([pairs // len(weights), pairs % len(weights)], axis=1)
    return _Graph(xy, weights, merged, np.bincount(which, strengths, minlength=len(pairs))), unit_of


def _bisected(graph: _Graph, bound: int) -> Array:
    """For each unit the number of its part; a part is connected and weighs at most ``bound``, or is one unit."""
    labels = np.zeros(len(graph.weights), int)
    waiting = [(np.arange(len(graph.weights)), graph.edges, graph.strengths)]
    n_done = 0
    while waiting:
        units, edges, strengths = waiting.pop()
        if graph.weights[units].sum() <= bound or len(units) < 2:
            labels[units] = n_done
            n_done += 1
            continue
        right = _bisection(graph, units, edges, strengths, bound)
        for side in (right, ~right):
            number = np.cumsum(side) - 1
            inside = side[edges].all(axis=1)
            waiting.append((units[side], number[edges[inside]], strengths[inside]))
    return labels


def _bisection(graph: _Graph, units: Array, edges: Array, strengths: Array, bound: int) -> Array:
    """Which of some connected units go to the second of two connected parts; ``edges`` count within ``units``."""
    weights = graph.weights[units]
    best: tuple[float, Array] | None = None
    for order in _orders(graph.xy[units], edges):
        right = _connected(_cut_along(order, weights, edges, strengths, bound), weights, edges)
        balance = min(weights[right].sum(), weights[~right].sum()) / weights.sum()
        if best is None or balance > best[0]:
            best = float(balance), right
        if balance >= _LOST_BALANCE:
            break
    assert best is not None
    return best[1]


def _orders(xy: Array, edges: Array) -> Any:
    """Orders of the units to cut along: the longer principal axis, the shorter, then the steps from one end."""
    centred = xy - xy.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    for axis in (axes[:, 1], axes[:, 0]):
        axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
        yield np.argsort(np.round(centred @ axis, 6), kind="stable")
    yield _by_steps(len(xy), edges)


def _by_steps(n: int, edges: Array) -> Array:
    """Units in the order of their steps from a unit at the end of the graph."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order

    ones = np.ones(len(edges), np.int8)
    matrix = coo_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(n, n)).tocsr()
    far = breadth_first_order(matrix, 0, directed=False, return_predecessors=False)[-1]
    order = breadth_first_order(matrix, far, directed=False, return_predecessors=False)
    return np.concatenate([order, np.setdiff1d(np.arange(n), order)])


def _cut_along(order: Array, weights: Array, edges: Array, strengths: Array, bound: int) -> Array:
    """Which units lie behind the cut near the middle of an order that the weakest pairs cross."""
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    first, last = rank[edges].min(axis=1), rank[edges].max(axis=1)
    # A pair of hundreds of inliers holds no better than one of a hundred.
    held = np.minimum(strengths, 100.0)
    n = len(order)
    crossing = np.cumsum(np.bincount(first, held, minlength=n) - np.bincount(last, held, minlength=n))[:-1]
    before, whole = np.cumsum(weights[order])[:-1], float(weights.sum())
    # Both sides are to come out in whole blocks, or a cut in the middle would leave blocks half full.
    n_blocks = max(2, int(np.ceil(whole / (_FILL * bound))))
    n_first = n_blocks // 2
    low, high = max(whole - (n_blocks - n_first) * bound, MIDDLE * whole), min(n_first * bound, (1 - MIDDLE) * whole)
    off = np.abs(before - whole * n_first / n_blocks) / whole
    allowed = np.flatnonzero((before >= low) & (before <= high))
    if not len(allowed):
        allowed = np.array([np.argmin(off)])
    # Of two equally weak cuts the one nearer to the middle.
    cost = crossing[allowed] + 1e-3 * max(float(held.sum()), 1.0) * off[allowed]
    return rank > allowed[np.argmin(cost)]


def _connected(right: Array, weights: Array, edges: Array) -> Array:
    """The second part with the loose fragments of both sides given to the side that they hold to."""
    # The whole is connected, so what is not in a side's largest piece is tied to the other side only.
    left = _largest_piece(~right, weights, edges)
    return _largest_piece(~left, weights, edges)


def _largest_piece(side: Array, weights: Array, edges: Array) -> Array:
    """Which units are in the largest connected piece of one side."""
    number = np.cumsum(side) - 1
    inside = side[edges].all(axis=1)
    labels = labels_of(int(side.sum()), number[edges[inside]])
    largest = np.zeros(len(side), bool)
    largest[side] = labels == int(np.bincount(labels, weights[side]).argmax())
    return largest


def _joined(graph: _Graph, labels: Array, bound: int) -> Array:
    """Small parts united with the neighbour that they hold to most, as far as the bound allows."""
    weights = np.bincount(labels, graph.weights).astype(float)
    ties: dict[int, dict[int, float]] = {part: {} for part in range(len(weights))}
    for (a, b), strength in zip(labels[graph.edges].tolist(), graph.strengths.tolist(), strict=True):
        if a != b:
            ties[a][b] = ties[a].get(b, 0.0) + strength
            ties[b][a] = ties[b].get(a, 0.0) + strength
    into = np.arange(len(weights))
    for part in np.argsort(weights, kind="stable").tolist():
        fitting = [other for other in ties[part] if weights[part] + weights[other] <= bound]
        if weights[part] > bound / 3 or not fitting:
            continue
        host = max(fitting, key=lambda other: (ties[part][other], -other))
        into[into == part] = host
        weights[host] += weights[part]
        for other, strength in ties.pop(part).items():
            del ties[other][part]
            if other != host:
                ties[host][other] = ties[host].get(other, 0.0) + strength
                ties[other][host] = ties[other].get(host, 0.0) + strength
        weights[part] = np.inf
    return np.unique(into[labels], return_inverse=True)[1]


def _with_shared(graph: _Graph, labels: Array, max_images: int, shared: int) -> list[set[int]]:
    """For each part the units of other parts that it takes in."""
    n = int(labels.max()) + 1
    held = np.bincount(labels, graph.weights, minlength=n).astype(int)
    taken: list[set[int]] = [set() for _ in range(n)]
    neighbours = _neighbours(graph)
    ends = labels[graph.edges]
    across = np.flatnonzero(ends[:, 0] != ends[:, 1])
    borders: dict[tuple[int, int], list[int]] = {}
    for edge in across.tolist():
        a, b = sorted(ends[edge].tolist())
        borders.setdefault((a, b), []).append(edge)
    strongest_first = sorted(borders, key=lambda pair: (-float(graph.strengths[borders[pair]].sum()), pair))
    for a, b in strongest_first:
        offers = {
            taker: _ranked(graph, neighbours, labels, borders[a, b], giver, shared) for taker, giver in ((a, b), (b, a))
        }
        both = sum(int(graph.weights[u]) for u in _members(a, b, labels, taken, offers))
        # Each side takes in turn; where one is full the other takes more.
        while both < shared:
            before = both
            for taker in sorted((a, b), key=lambda part: (held[part], part)):
                fitting = [
                    u for u in offers[taker] if u not in taken[taker] and held[taker] + graph.weights[u] <= max_images
                ]
                if not fitting or both >= shared:
                    continue
                taken[taker].add(fitting[0])
                held[taker] += int(graph.weights[fitting[0]])
                both += int(graph.weights[fitting[0]])
            if both == before:
                break
    return taken


def _members(a: int, b: int, labels: Array, taken: list[set[int]], offers: dict[int, list[int]]) -> set[int]:
    """Units that both parts hold already."""
    return (taken[a] & taken[b]) | {u for u in taken[a] if labels[u] == b} | {u for u in taken[b] if labels[u] == a}


def _neighbours(graph: _Graph) -> list[list[tuple[int, float]]]:
    """For each unit the units that pairs tie it to, with the strength."""
    found: list[list[tuple[int, float]]] = [[] for _ in graph.weights]
    for (a, b), strength in zip(graph.edges.tolist(), graph.strengths.tolist(), strict=True):
        found[a].append((b, strength))
        found[b].append((a, strength))
    return found


def _ranked(
    graph: _Graph, neighbours: list[list[tuple[int, float]]], labels: Array, edges: list[int], giver: int, wanted: int
) -> list[int]:
    """Units of one part in the order in which the other takes them: those with pairs across, then those behind them."""
    ties: dict[int, float] = {}
    for edge in edges:
        a, b = graph.edges[edge].tolist()
        unit = a if labels[a] == giver else b
        ties[unit] = ties.get(unit, 0.0) + min(float(graph.strengths[edge]), 100.0)
    ranked: list[int] = []
    seen: set[int] = set()
    ring = ties
    while ring and sum(int(graph.weights[u]) for u in ranked) < wanted:
        ordered = sorted(ring, key=lambda unit: (-ring[unit], unit))
        ranked += ordered
        seen.update(ordered)
        ring = {}
        for unit in ordered:
            for other, strength in neighbours[unit]:
                if labels[other] == giver and other not in seen:
                    ring[other] = ring.get(other, 0.0) + min(strength, 100.0)
    return ranked


def _as_blocks(ids: list[str], unit_of: Array, labels: Array, taken: list[set[int]]) -> list[Block]:
    names = np.array(ids, dtype=object)
    part_of = labels[unit_of]
    images_of: list[list[int]] = [[] for _ in range(int(unit_of.max()) + 1)]
    for image, unit in enumerate(unit_of.tolist()):
        images_of[unit].append(image)
    found = []
    for part, units in enumerate(taken):
        shared = sorted(ids[image] for unit in units for image in images_of[unit])
        found.append(Block(names[part_of == part].tolist(), shared))
    return sorted(found, key=lambda block: block.own)
