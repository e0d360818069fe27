"""What a person looks at: cameras against their GPS from above, and how strongly the pairs are tied."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from geo_assets.pictures import figure_png

Array = npt.NDArray[np.float64]

MARGIN_M = 15.0
_GPS, _CAMERA, _PAIR = "#2f6fb3", "#c8372d", "#9a9a9a"


def prior_map(images: pd.DataFrame, box: str) -> bytes:
    """The positions of the box (filled) and of its margin (open) with their headings, as PNG."""
    figure, axes = _plan("images by position", _places(images))
    at_home = images.home_box == box
    for chosen, filled, label in ((at_home, True, "in the box"), (~at_home, False, "in the margin")):
        part = images[chosen]
        axes.scatter(
            part.east_m, part.north_m, s=12, edgecolors=_GPS, facecolors=_GPS if filled else "none", lw=0.8, label=label
        )
    known = images[images.heading_deg.notna()]
    angle = np.radians(known.heading_deg.to_numpy(float))
    axes.quiver(
        known.east_m, known.north_m, np.sin(angle), np.cos(angle), color=_GPS, width=0.003, scale=35, headwidth=3
    )
    axes.legend(fontsize=7, loc="best")
    return figure_png(figure)


def pair_pictures(images: pd.DataFrame, pairs: pd.DataFrame) -> bytes:
    """Verified pairs from above, the darker the more inliers, beside the histogram of inliers, as PNG."""
    figure = Figure(figsize=(7.2, 3.4), dpi=72, layout="constrained")
    plan, histogram = figure.subplots(1, 2)
    _dress(plan, "verified pairs", _places(images))
    verified = pd.DataFrame(pairs[pairs.verified.astype(bool)])
    plan.add_collection(_lines(images, verified))
    plan.scatter(images.east_m, images.north_m, s=7, color=_GPS, zorder=2)
    tried = pairs.n_inliers.clip(lower=1)
    bins = np.geomspace(1, max(float(tried.max()) if len(tried) else 0, 1000), 31)
    histogram.hist(tried[~pairs.verified.astype(bool)], bins, color=_PAIR, label="rejected")
    histogram.hist(tried[pairs.verified.astype(bool)], bins, color=_CAMERA, alpha=0.8, label="verified")
    histogram.set(xscale="log", xlabel="inliers", ylabel="pairs")
    histogram.tick_params(labelsize=7)
    histogram.legend(fontsize=7)
    return figure_png(figure)


def model_map(images: pd.DataFrame, cameras: pd.DataFrame, points: Array) -> bytes:
    """Registered cameras against their GPS from above, over the model's points, as PNG.

    Args:
        images: rows of ``gps_db``.
        cameras: rows of ``model_cameras``.
        points: points of the largest model [n, 6]: east, north, up [m], red, green, blue (0 to 255).
    """
    # The points do not count: a few of them kilometres away would hide the street.
    figure, axes = _plan("cameras (red) and their GPS (blue)", np.vstack([_places(images), _places(cameras)]))
    if len(points):
        axes.scatter(points[:, 0], points[:, 1], s=0.4, c=points[:, 3:6] / 255, lw=0, zorder=0, rasterized=True)
    both = cameras.merge(images, on="image_id", suffixes=("", "_prior"))
    ends = both[["east_m", "north_m", "east_m_prior", "north_m_prior"]].to_numpy(float).reshape(-1, 2, 2)
    axes.add_collection(LineCollection(list(ends), colors=_PAIR, linewidths=0.5, zorder=1))
    axes.scatter(images.east_m, images.north_m, s=8, color=_GPS, lw=0, zorder=2)
    axes.scatter(cameras.east_m, cameras.north_m, s=8, color=_CAMERA, lw=0, zorder=3)
    return figure_png(figure)


def _lines(images: pd.DataFrame, pairs: pd.DataFrame) -> LineCollection:
    place = images.set_index("image_id")[["east_m", "north_m"]]
    ends = np.stack([place.loc[pairs[c]].to_numpy(float) for c in ("image_id_a", "image_id_b")], axis=1)
    strength = np.clip(pairs.n_inliers.to_numpy(float) / 200, 0.1, 1)
    shades = np.column_stack([np.full((len(pairs), 3), 0.27), strength])
    return LineCollection(list(ends), colors=shades, linewidths=0.6, zorder=1)


def _places(rows: pd.DataFrame) -> Array:
    """East and north [n, 2] in metres."""
    return rows[["east_m", "north_m"]].to_numpy(float)


def _plan(title: str, places: Array) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 4.2), dpi=80, layout="constrained")
    axes = figure.subplots()
    _dress(axes, title, places)
    return figure, axes


def _dress(axes: Axes, title: str, places: Array) -> None:
    """Title, axes in metres, and a square window around places [n, 2] in which both scales are the same."""
    axes.set_aspect("equal", adjustable="box")
    if len(places):
        low, high = places.min(0), places.max(0)
        middle, half = (low + high) / 2, (high - low).max() / 2 + MARGIN_M
        axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axes.set_title(title, fontsize=8)
    axes.set_xlabel("east [m]", fontsize=7)
    axes.set_ylabel("north [m]", fontsize=7)
    axes.tick_params(labelsize=7)
