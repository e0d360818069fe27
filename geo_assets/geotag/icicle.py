"""The condensed tree of a region as an icicle, beside the map of its places in the same colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from geo_assets.errors import ConfigError
from geo_assets.geotag.clustering import Floats, Ints
from geo_assets.geotag.model import Model
from geo_assets.pictures import figure_png

Bounds = tuple[float, float, float, float]
"""West, south, east, north [deg]; west is greater than east where the antimeridian lies between."""

_STEPS = 48
_NEAREST_M = 1.0
_OPEN, _NOISE, _SEA = "#c9c7c0", "#a9a7a0", "#eef1f4"
# Neighbours in the picture lie far apart in the palette; its greys are left to what is not chosen.
_COLOURS = [to_rgb(colormaps["tab20"](k)) for k in (0, 4, 8, 12, 16, 2, 6, 10, 18, 1, 5, 9, 13, 17, 3, 7, 11, 19)]
_OUTLINED = 300
"""Bars; the outlines of more would hide them."""


def tree_picture(model: Model, bounds: Bounds) -> bytes:
    """PNG of how the places of a region fall apart as the distance that holds them together shrinks from top to bottom.

    A bar is a cluster of the condensed tree, as wide as the places of the region that are still in it; a bar that
    narrows loses noise, one that parts becomes several. Coloured bars are the clusters that were chosen, and what lies
    in them; grey ones were not.

    Args:
        model: the fit.
        bounds: west, south, east, north [deg].

    Raises:
        ConfigError: the bounds are no region of the globe.
    """
    inside = _inside(model, bounds)
    figure = Figure(figsize=(9.6, 4.6), dpi=100)
    tree, places = figure.subplots(1, 2, width_ratios=[1.7, 1])
    bars = _bars(model, inside)
    label, _ = model.condensed.selected()
    shown = list(dict.fromkeys(label[bar.node] for bar in bars if label[bar.node] >= 0))
    colour = {number: _COLOURS[k % len(_COLOURS)] for k, number in enumerate(shown)}
    _draw_tree(tree, bars, label, colour, len(inside))
    _draw_places(places, model, inside, bounds, colour)
    here = np.unique(model.points["cluster"].to_numpy(np.int64)[inside])
    tree.set_title(f"{len(inside):,} places, {int((here >= 0).sum()):,} clusters", fontsize=9, loc="left")
    figure.tight_layout(pad=0.8)
    return figure_png(figure, flat=True)


def busiest_region(model: Model) -> Bounds:
    """The cell of a degree by a degree that holds most places; of equal ones the first from the west, then the south."""
    lon, lat = (np.floor(model.points[name].to_numpy(np.float64)) for name in ("lon", "lat"))
    if not len(lon):
        return (-1.0, -1.0, 1.0, 1.0)
    cells, counts = np.unique(np.stack([np.clip(lon, -180, 179), np.clip(lat, -90, 89)]), axis=1, return_counts=True)
    west, south = cells[:, counts.argmax()].tolist()
    return west, south, west + 1, south + 1


@dataclass(frozen=True)
class _Bar:
    """A cluster: its places of the region left [S] from arcs [S] (m, falling) on, about a middle [places]."""

    node: int
    middle: float
    arcs_m: Floats
    left: Floats
    end_m: float


def refuse_region(bounds: Bounds) -> None:
    """Refuse bounds that are no region of the globe.

    Raises:
        ConfigError: as the name says.
    """
    west, south, east, north = bounds
    if not (-90 <= south < north <= 90 and -180 <= west <= 180 and -180 <= east <= 180 and west != east):
        raise ConfigError(
            f"{west:g},{south:g},{east:g},{north:g} is no region: give west,south,east,north in degrees, longitude first."
        )


def _inside(model: Model, bounds: Bounds) -> Ints:
    refuse_region(bounds)
    west, south, east, north = bounds
    lon, lat = (model.points[name].to_numpy(np.float64) for name in ("lon", "lat"))
    is_between = (lon >= west) & (lon <= east) if west < east else (lon >= west) | (lon <= east)
    return np.flatnonzero(is_between & (lat >= south) & (lat <= north))


def _bars(model: Model, inside: Ints) -> list[_Bar]:
    """Bars of the clusters that hold places of the region, parents first, from where the region begins to part."""
    tree = model.condensed
    if not len(inside):
        return []
    count = np.bincount(tree.cluster[inside], minlength=len(tree.parent))
    for c in range(len(count) - 1, 0, -1):
        count[tree.parent[c]] += count[c]
    held = np.flatnonzero(count)
    children: dict[int, list[int]] = {}
    for c in held[held > 0].tolist():
        children.setdefault(int(tree.parent[c]), []).append(c)
    own: dict[int, Floats] = {}
    order = inside[np.argsort(tree.cluster[inside], kind="stable")]
    for part in np.split(order, np.flatnonzero(np.diff(tree.cluster[order])) + 1):
        own[int(tree.cluster[part[0]])] = np.sort(tree.left_at[part])
    top = 0
    while top not in own and len(children[top]) == 1:
        (top,) = children[top]
    bars, waiting = [], [(top, 0.0)]
    while waiting:
        node, middle = waiting.pop()
        bars.append(_bar(model, node, middle, own.get(node, np.empty(0)), children.get(node, []), count))
        at = middle - sum(count[c] for c in children.get(node, [])) / 2
        for child in children.get(node, []):
            waiting.append((child, at + count[child] / 2))
            at += count[child]
    return sorted(bars, key=lambda bar: bar.node)


def _bar(model: Model, node: int, middle: float, own: Floats, children: list[int], count: Ints) -> _Bar:
    """A bar as it narrows; where many places leave, only some of the steps are drawn."""
    tree = model.condensed
    end = float(tree.birth[children[0]]) if children else float(own[-1])
    begin = float(tree.birth[node]) if node else float(min(own[0] if len(own) else end, end)) / 2
    steps = np.unique(np.linspace(0, len(own), min(len(own), _STEPS) + 1).astype(np.int64))
    arcs = 1 / np.concatenate([[begin], own[steps[1:] - 1]])
    return _Bar(node, middle, arcs, (count[node] - steps).astype(np.float64), 1 / end)


def _draw_tree(
    axes: Axes, bars: list[_Bar], label: Ints, colour: dict[int, tuple[float, float, float]], n: int
) -> None:
    shapes, fills = [], []
    depth: dict[int, int] = {}
    for bar in bars:
        y = np.maximum(np.append(bar.arcs_m, bar.end_m), _NEAREST_M)
        left = np.repeat(bar.left, 2) / 2
        heights = np.repeat(y, 2)[1:-1]
        shapes.append(
            np.concatenate(
                [
                    np.column_stack([bar.middle - left, heights]),
                    np.column_stack([bar.middle + left, heights])[::-1],
                ]
            )
        )
        number = int(label[bar.node])
        nested = depth[number] = depth.get(number, -1) + 1
        fills.append(_lighter(colour[number], nested) if number >= 0 else to_rgb(_OPEN))
    outline = "white" if len(bars) <= _OUTLINED else "none"
    axes.add_collection(PolyCollection(shapes, facecolors=fills, edgecolors=outline, linewidths=0.4))
    highest = max((bar.arcs_m[0] for bar in bars), default=10.0)
    lowest = max(min((bar.end_m for bar in bars), default=1.0), _NEAREST_M)
    axes.set(xlim=(-n / 2 - 0.5, n / 2 + 0.5), yscale="log", ylim=(lowest * 0.8, max(highest, lowest * 10) * 1.15))
    axes.set_ylabel("distance that holds them together", fontsize=8)
    ticks = [10.0**k for k in range(-1, 8) if lowest * 0.8 <= 10.0**k <= max(highest, lowest * 10) * 1.15]
    axes.set_yticks(ticks, [_length(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xticks([])
    axes.tick_params(labelsize=7, length=2)
    axes.grid(axis="y", color="#e4e3dd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_places(
    axes: Axes, model: Model, inside: Ints, bounds: Bounds, colour: dict[int, tuple[float, float, float]]
) -> None:
    west, south, east, north = bounds
    east += 360 * (east < west)
    lon, lat = (model.points[name].to_numpy(np.float64)[inside] for name in ("lon", "lat"))
    lon = np.where(lon < west, lon + 360, lon)
    cluster = model.points["cluster"].to_numpy(np.int64)[inside]
    size = float(np.clip(4000 / max(len(inside), 1), 0.6, 12))
    noise = cluster < 0
    axes.scatter(lon[noise], lat[noise], s=size / 2, color=_NOISE, linewidths=0)
    if not noise.all():
        fills: npt.ArrayLike = [colour.get(number, to_rgb(_OPEN)) for number in cluster[~noise].tolist()]
        axes.scatter(lon[~noise], lat[~noise], s=size, c=fills, linewidths=0)
    axes.set(xlim=(west, east), ylim=(south, north), facecolor=_SEA)
    axes.set_aspect(1 / max(np.cos(np.radians((south + north) / 2)), 0.05), adjustable="box")
    axes.xaxis.set_major_formatter(lambda x, _: f"{(x + 180) % 360 - 180:g}°")
    axes.yaxis.set_major_formatter("{x:g}°")
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=7, length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _lighter(colour: tuple[float, float, float], steps: int) -> tuple[float, float, float]:
    """Clusters within a chosen one are paler, so that their edges show."""
    share = min(0.18 * steps, 0.45) if steps else 0.0
    red, green, blue = (part + (1 - part) * share for part in colour)
    return red, green, blue


def _length(metres: float) -> str:
    return f"{metres / 1000:,.0f} km" if metres >= 1000 else f"{metres:,.0f} m"
