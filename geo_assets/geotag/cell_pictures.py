"""Plots of cells and of how far off they are, as small PNG for the metadata."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from geo_assets.geotag.judge import WITHIN_KM
from geo_assets.pictures import figure_png

_COLOURS = ("#0b6e8a", "#7fb3c4", "#c8553d", "#d69e2e", "#6b7f3a", "#7d5ba6", "#444444", "#d07fae")


def error_curves(errors: pd.DataFrame) -> bytes:
    """PNG of rows of ``partition_errors``: median error against cells, and the share within each distance at each level."""
    figure = Figure(figsize=(8.4, 3.4), dpi=100)
    median, within = figure.subplots(1, 2)
    names = sorted(errors["partition"].unique(), key=lambda name: (name != "hierarchy", name))
    for number, name in enumerate(names):
        rows = errors.loc[errors["partition"] == name, :].sort_values("n_cells")
        colour, strong = _COLOURS[number % len(_COLOURS)], name == "hierarchy"
        style = {"color": colour, "lw": 2 if strong else 1, "zorder": 3 if strong else 2, "label": name}
        median.plot(rows["n_cells"], rows["median_km"], "o-", ms=4 if strong else 3, **style)
        for row in rows.to_dict("records"):
            shares = [100 * row[f"within_{limit}_km"] for limit in WITHIN_KM]
            within.plot(WITHIN_KM, shares, **{**style, "label": None})
            if strong:
                within.annotate(f"{row['level']}", (WITHIN_KM[1], shares[1]), fontsize=7, ha="right", va="bottom")
    median.set(xscale="log", yscale="log", xlabel="cells", ylabel="median error [km]")
    median.set_title("photos held out, in a cell", fontsize=9)
    within.set(xscale="log", xticks=WITHIN_KM, ylim=(0, 101), xlabel="within [km]", ylabel="of all photos held out [%]")
    within.xaxis.set_major_formatter("{x:,.0f}")
    within.minorticks_off()
    within.set_title("each level; those of the hierarchy are numbered", fontsize=9)
    if names:
        median.legend(fontsize=7, frameon=False)
    _plain(figure)
    return figure_png(figure, flat=True)


def radius_histograms(centroids: pd.DataFrame) -> bytes:
    """PNG of the mean radius [km] of the cells of each level, rows of ``hierarchy_centroids``."""
    return _histograms(centroids, "mean_km", "mean distance from the centroid [km]", least=1e-3)


def size_histograms(centroids: pd.DataFrame) -> bytes:
    """PNG of the photos in the cells of each level, rows of ``hierarchy_centroids``."""
    return _histograms(centroids, "n_photos", "photos in a cell", least=1.0)


def _histograms(centroids: pd.DataFrame, column: str, label: str, least: float) -> bytes:
    """A histogram a level below the root, on one logarithmic scale; what is less than ``least`` is drawn there."""
    top = max(int(centroids["level"].to_numpy().max(initial=0)), 1)
    below = centroids.loc[centroids["level"] < top, :]
    most = max(float(below[column].to_numpy(np.float64).max(initial=0)), least * 10)
    bins = np.geomspace(least, most * 1.001, 41)
    figure = Figure(figsize=(7.2, 1.6 * top + 0.3), dpi=90)
    for level, axes in enumerate(figure.subplots(top, 1, sharex=True, squeeze=False)[:, 0]):
        values = below.loc[below["level"] == level, column].to_numpy(np.float64)
        axes.hist(np.maximum(values, least), bins, color=_COLOURS[0])
        axes.set(xscale="log", ylabel="cells")
        middle = f", median {np.median(values):,.4g}" if len(values) else ""
        axes.set_title(f"level {level}: {len(values):,} cells{middle}", fontsize=9, loc="left")
    figure.axes[-1].set_xlabel(label, fontsize=8)
    _plain(figure)
    return figure_png(figure, flat=True)


def _plain(figure: Figure) -> None:
    for axes in figure.axes:
        axes.tick_params(labelsize=7, length=2)
        axes.xaxis.label.set_fontsize(8)
        axes.yaxis.label.set_fontsize(8)
        axes.grid(color="#e4e3dd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
