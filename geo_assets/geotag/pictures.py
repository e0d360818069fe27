"""Small PNG maps of the world for the metadata: density of photos, cells of each level."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from geo_assets.pictures import figure_png


def density_map(lon: npt.ArrayLike, lat: npt.ArrayLike, what: str) -> bytes:
    """PNG of the number of positions [deg] in cells of 1 or, where there are few, 3 degrees; logarithmic, plate carrée."""
    lon, lat = np.asarray(lon, float), np.asarray(lat, float)
    step = 1 if len(lon) > 50_000 else 3
    figure = Figure(figsize=(7.2, 3.8), dpi=100)
    axes = figure.add_axes((0.06, 0.08, 0.92, 0.84))
    counts, _, _ = np.histogram2d(lat, lon, bins=[180 // step, 360 // step], range=[[-90, 90], [-180, 180]])
    if counts.any():
        axes.imshow(
            np.where(counts > 0, counts, np.nan),
            origin="lower",
            extent=(-180, 180, -90, 90),
            norm=LogNorm(1, max(counts.max(), 2)),
            cmap="viridis",
            interpolation="nearest",
            aspect="auto",
        )
    _world(axes, f"{what}, per cell of {step}°")
    return figure_png(figure)


def level_map(centroids: pd.DataFrame) -> bytes:
    """PNG of the cells of each level below the root, a panel a level, the area of a dot following the photos."""
    top = int(centroids["level"].to_numpy().max()) if len(centroids) else 0
    panels = max(top, 1)
    figure = Figure(figsize=(7.2, 2.6 * panels), dpi=75)
    for level in range(panels):
        axes = figure.add_subplot(panels, 1, level + 1)
        cells = centroids.loc[centroids["level"] == level, :]
        size = 1 + 60 * cells["n_photos"] / cells["n_photos"].to_numpy().max(initial=1)
        axes.scatter(cells["lon"], cells["lat"], s=size, c=cells["cell_id"] % 20, cmap="tab20", linewidths=0)
        _world(axes, f"level {level}: {len(cells):,} cells")
    figure.tight_layout()
    return figure_png(figure)


def _world(axes: Axes, title: str) -> None:
    axes.set(xlim=(-180, 180), ylim=(-90, 90), xticks=range(-180, 181, 60), yticks=range(-90, 91, 30))
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
