"""The cells of the clustering, level by level, of what a map shows at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import ConfigError
from geo_assets.lake import Lake
from geo_assets.serve.kept import Kept
from geo_assets.tables import TABLES

MOST = 2_000
"""Cells that one answer holds at most: those of most photos in the view."""

_SHOWN = ("cell_id", "lon", "lat", "n_photos", "p90_km")


@dataclass(frozen=True)
class Cells:
    """The cells by level, within each those of most photos first."""

    levels: dict[int, pd.DataFrame]


def kept_cells(lake: Lake, pause_s: float = 1.0) -> Kept[Cells]:
    """The cells of ``hierarchy_centroids``."""
    return Kept(lake, lambda: ["hierarchy_centroids"], lambda: read_cells(lake), lambda: read_cells(lake), pause_s)


def read_cells(lake: Lake) -> Cells:
    """All cells, or none where nothing was clustered yet."""
    rows = lake.read_if_any("hierarchy_centroids").sort_values(["n_photos", "cell_id"], ascending=[False, True])
    levels = rows["level"].to_numpy(int)
    return Cells({int(level): rows.loc[levels == level].reset_index(drop=True) for level in np.unique(levels)})


def levels_json(cells: Cells) -> dict[str, Any]:
    """The levels, finest first, or what to type where there are none."""
    levels = [
        {
            "level": level,
            "n_cells": len(rows),
            "n_photos": int(rows["n_photos"].to_numpy(int).sum()),
            "median_km": round(float(np.median(rows["p90_km"].to_numpy(float))), 3),
        }
        for level, rows in sorted(cells.levels.items())
    ]
    return {"levels": levels, "next": None if levels else "geo-assets materialize --select hierarchy_centroids"}


def cells_json(cells: Cells, level: int, bounds: tuple[float, float, float, float] | None) -> dict[str, Any]:
    """The cells of a level whose centroid lies in a view, as columns.

    Args:
        cells: all of them.
        level: 0 is the finest.
        bounds: west, south, east, north [deg]; the west may lie beyond the antimeridian. None: the whole world.

    Raises:
        ConfigError: there is no such level.
    """
    rows = _level(cells, level)
    if bounds is not None:
        west, south, east, north = bounds
        lon, lat = rows["lon"].to_numpy(float), rows["lat"].to_numpy(float)
        inside = (lat >= south) & (lat <= north) & ((lon - west) % 360 <= min(east - west, 360))
        rows = rows.loc[inside]
    shown = rows.head(MOST)
    return {
        "level": level,
        "n": len(rows),
        "columns": {
            name: shown[name].round(5).tolist() if shown[name].dtype.kind == "f" else shown[name].tolist()
            for name in _SHOWN
        },
    }


def cell_json(cells: Cells, level: int, cell_id: int) -> dict[str, Any]:
    """One cell with every figure and its meaning.

    Raises:
        ConfigError: there is no such cell.
    """
    rows = _level(cells, level)
    found = rows.loc[rows["cell_id"] == cell_id]
    if found.empty:
        raise ConfigError(f"Level {level} has no cell {cell_id}; its cells are 0 to {len(rows) - 1}.")
    row = found.iloc[0]
    figures = [column for column in TABLES["hierarchy_centroids"].columns if column.name not in ("level", "cell_id")]
    terms = [
        {"name": c.name, "value": v.item() if isinstance(v := row[c.name], np.generic) else v, "meaning": c.meaning}
        for c in figures
        if not pd.isna(row[c.name])
    ]
    return {"level": level, "cell_id": cell_id, "lon": float(row["lon"]), "lat": float(row["lat"]), "terms": terms}


def _level(cells: Cells, level: int) -> pd.DataFrame:
    if level not in cells.levels:
        known = (
            f"0 to {max(cells.levels)}"
            if cells.levels
            else "none; make them: geo-assets materialize --select hierarchy_centroids"
        )
        raise ConfigError(f"There is no level {level}; known: {known}.")
    return cells.levels[level]
