"""Small PNG maps of the world for the metadata: density of photos, a map a source, cells of each level; and a table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from geo_assets.geotag.combine import SOURCES
from geo_assets.lake import Lake
from geo_assets.pictures import figure_png

Grid = npt.NDArray[np.int64]
"""Photos in cells of :data:`STEP_DEG`, south to north by west to east."""

STEP_DEG = 0.5
_COARSER = (1, 2, 4, 6)
_CELLS_OF_A_PICTURE = 1500
_LAND, _SEA, _LINES = "#e4e3dd", "#f7f8f9", "#ffffff"
# The palest colours of the scale would not be seen on the sea.
_COLOURS = ListedColormap(colormaps["inferno_r"](np.linspace(0.1, 1, 256)))

MOST_REASONS = 40
"""Rows of the table of rejects; what is rarer is summed up."""


def photo_grids(lake: Lake) -> dict[str, Grid]:
    """Photos of ``geotag_combined`` in cells of :data:`STEP_DEG`, for each source that has any; null islands are left out."""
    n_rows, n_columns = _empty().shape
    with lake.connect("geotag_combined") as con:
        counted = con.execute(f"""
            select source, least(floor((lat + 90) / {STEP_DEG}), {n_rows - 1})::int as i,
                (floor((lon + 180) / {STEP_DEG}) % {n_columns})::int as j, count(*) as n
            from geotag_combined where not list_contains(flags, 'null_island') group by all""").df()
    grids = {str(source): _empty() for source in sorted(counted["source"].unique(), key=SOURCES.index)}
    for source, cells in counted.groupby("source"):
        grids[str(source)][cells["i"], cells["j"]] = cells["n"]
    return grids


def density_map(grids: Mapping[str, Grid]) -> bytes:
    """PNG of the photos of all sources together."""
    total = sum(grids.values(), start=_empty())
    return _one_map(total, f"{total.sum():,} photos")


def points_map(lon: npt.ArrayLike, lat: npt.ArrayLike, what: str) -> bytes:
    """PNG of the density of positions [deg]."""
    counts, _, _ = np.histogram2d(
        np.asarray(lat, float), np.asarray(lon, float), bins=_empty().shape, range=[[-90, 90], [-180, 180]]
    )
    return _one_map(counts.astype(np.int64), what)


def source_maps(grids: Mapping[str, Grid]) -> bytes:
    """PNG of a map a source, each with its number of photos."""
    shown = dict(grids) or {"no photo": _empty()}
    n_rows = -(-len(shown) // 2)
    figure = Figure(figsize=(8.4, 2.35 * n_rows), dpi=100)
    for number, (source, grid) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(n_rows, min(2, len(shown)), number)
        step = _density(axes, grid, finest=2)
        _world(axes, f"{source}: {grid.sum():,} photos, per {step:g}° cell", labels=False)
    figure.tight_layout(pad=0.6)
    return figure_png(figure, flat=True)


def level_map(centroids: pd.DataFrame, *, has_root: bool = True) -> bytes:
    """PNG of the cells of each level below the root, a panel a level, the area of a dot following the photos."""
    panels = max(int(centroids["level"].to_numpy().max(initial=0)) + (not has_root), 1)
    figure = Figure(figsize=(7.2, 2.6 * panels), dpi=75)
    for level in range(panels):
        axes = figure.add_subplot(panels, 1, level + 1)
        cells = centroids.loc[centroids["level"] == level, :]
        size = 2 + 60 * cells["n_photos"] / cells["n_photos"].to_numpy().max(initial=1)
        axes.scatter(
            cells["lon"], cells["lat"], s=size, c=np.arange(len(cells)) % 20, cmap="tab20", linewidths=0, zorder=2
        )
        _world(axes, f"level {level}: {len(cells):,} cells")
    figure.tight_layout()
    return figure_png(figure, flat=True)


def rejects_table(lake: Lake) -> str:
    """Records that were not taken, by source and reason, as a Markdown table with an example of each."""
    with lake.connect("geotag_rejects") as con:
        rows = con.execute("""
            select source, reason, count(*) as n, min({file: file, row: row, value: value}) as example
            from geotag_rejects group by all order by source, n desc, reason""").fetchall()
    if not rows:
        return "No record was rejected."
    lines = ["| source | reason | records | for example |", "|---|---|---:|---|"]
    for source, reason, n, example in rows[:MOST_REASONS]:
        where = f"{example['file']}, {example['row']}: {example['value']}"
        lines.append(f"| {_cell(source)} | {_cell(reason)} | {n:,} | {_cell(where)} |")
    rest = rows[MOST_REASONS:]
    if rest:
        lines.append(f"| | {len(rest):,} more reasons | {sum(row[2] for row in rest):,} | |")
    return "\n".join(lines)


def _cell(text: object) -> str:
    """Text that stays in its cell of a Markdown table and is shown as it is."""
    plain = " ".join(str(text).split())
    return (plain if len(plain) <= 120 else f"{plain[:119]}…").translate(_MARKDOWN)


_MARKDOWN = str.maketrans({c: f"&#{ord(c)};" for c in "|<>&*_`[]\\~"})


def _empty() -> Grid:
    return np.zeros((int(180 / STEP_DEG), int(360 / STEP_DEG)), np.int64)


def _one_map(grid: Grid, what: str) -> bytes:
    figure = Figure(figsize=(8.4, 4.4), dpi=100)
    axes = figure.add_axes((0.045, 0.13, 0.925, 0.81))
    step = _density(axes, grid, scale=figure)
    _world(axes, f"{what}, per {step:g}° cell")
    return figure_png(figure, flat=True)


def _density(axes: Axes, grid: Grid, finest: int = 1, scale: Figure | None = None) -> float:
    """Draw a grid, in coarser cells where they are too few to be seen; the size of a cell [deg]."""
    usable = [factor for factor in _COARSER if factor >= finest]
    inked = (factor for factor in usable if np.count_nonzero(_summed(grid, factor)) * factor**2 >= _CELLS_OF_A_PICTURE)
    factor = next(inked, usable[-1])
    counts = _summed(grid, factor)
    # Two steps a decade: a picture of few colours is small.
    decades = len(str(max(counts.max(), 10)))
    bounds = [step * 10**decade for decade in range(decades) for step in (1, 3)] + [10**decades]
    image = axes.imshow(
        np.where(counts > 0, counts, np.nan),
        origin="lower",
        extent=(-180, 180, -90, 90),
        norm=BoundaryNorm(bounds, 256),
        cmap=_COLOURS,
        interpolation="nearest",
        aspect="auto",
        zorder=2,
    )
    if scale:
        bar = scale.colorbar(image, cax=scale.add_axes((0.3, 0.045, 0.4, 0.02)), orientation="horizontal")
        bar.set_ticks(bounds[::2], labels=[f"{bound:,}" for bound in bounds[::2]])
        bar.ax.tick_params(labelsize=7, length=2)
        bar.outline.set_visible(False)
    return STEP_DEG * factor


def _summed(grid: Grid, factor: int) -> Grid:
    rows, columns = grid.shape
    return grid.reshape(rows // factor, factor, columns // factor, factor).sum((1, 3))


@functools.cache
def _land() -> list[npt.NDArray[np.float64]]:
    """Outlines of the continents [deg], of Natural Earth (public domain) as pyogrio brings it; none where it does not."""
    import geopandas
    import pyogrio

    path = Path(pyogrio.__file__).parent / "tests/fixtures/naturalearth_lowres/naturalearth_lowres.shp"
    if not path.is_file():
        return []
    shapes = geopandas.read_file(path, columns=[]).geometry.explode(index_parts=False)
    return [np.asarray(shape.exterior.coords) for shape in shapes]


def _world(axes: Axes, title: str, *, labels: bool = True) -> None:
    axes.set(xlim=(-180, 180), ylim=(-90, 90), xticks=range(-180, 181, 60), yticks=range(-90, 91, 30))
    axes.set_title(title, fontsize=9)
    axes.xaxis.set_major_formatter("{x:.0f}°")
    axes.yaxis.set_major_formatter("{x:.0f}°")
    axes.tick_params(labelsize=7, length=0, labelbottom=labels, labelleft=labels)
    axes.set_facecolor(_SEA)
    axes.add_collection(PolyCollection(_land(), facecolors=_LAND, edgecolors=_LAND, linewidths=0.3, zorder=0), False)
    axes.set_axisbelow(True)
    axes.grid(color=_LINES, linewidth=0.6)
    for side in axes.spines.values():
        side.set_visible(False)
