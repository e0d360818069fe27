"""Cells cut in four by their photos, as tables and as the CSV files of those who cut so.

``s2_cells`` are cells of S2 as PlaNet and GeoEstimation cut them, ``quadtree_cells`` boxes of degrees as OSV-5M does. A
level is a pair of numbers: cells above the second are cut, and what is below the first in the end is dropped.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.files import replacing
from geo_assets.geotag import s2
from geo_assets.geotag.clustering import Floats, Ints
from geo_assets.geotag.hierarchy import Runs
from geo_assets.geotag.quarters import Codes, Counted, Quarters, Rule, splits
from geo_assets.lake import Facts, Lake
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES

WHOLE_WORLD = "world"
"""The quadtree's cell that was never cut."""

_OF_GEOESTIMATION = {
    "hex_id": "cell_id",
    "imgs_per_cell": "n_photos",
    "latitude_mean": "lat",
    "longitude_mean": "lon",
}
_OF_OSV5M = {
    "min_lat": "south",
    "max_lat": "north",
    "min_lon": "west",
    "max_lon": "east",
    "mean_lat": "lat",
    "mean_lon": "lon",
}
_FILES = {"s2_cells": ("class_label", _OF_GEOESTIMATION), "quadtree_cells": ("cluster_id", _OF_OSV5M)}


def write_cells(lake: Lake, table: str, settings: Geotag) -> tuple[Facts, pd.DataFrame, dict[str, Any]]:
    """Cut the places of ``geotag_points`` and write ``s2_cells`` or ``quadtree_cells``; its rows and figures as well."""
    points = lake.read("geotag_points", ["lon", "lat", "n_photos"])
    cells, figures = cut_cells(points, *splits(settings)[table])
    return lake.write(table, cells), cells, figures


def cut_cells(
    points: pd.DataFrame, rule: Rule, levels: Sequence[tuple[int, int]]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Cut places into cells, at several levels.

    Args:
        points: distinct places ``lon, lat`` [deg] and ``n_photos``.
        rule: names the places.
        levels: fewest and most photos of a cell, the finest level first.

    Returns:
        Rows of ``s2_cells`` or ``quadtree_cells``; and for each level the number of cells, the share of the photos in
        them, and how many hold too many since the depth allows no further cut.
    """
    photos = points["n_photos"].to_numpy(np.float64)
    codes = rule.codes(points["lon"], points["lat"])
    counted, order = Counted(codes, photos, rule.depth), np.argsort(codes, kind="stable")
    frames, figures = [TABLES["s2_cells"].empty()], {}
    for level, (fewest, most) in enumerate(levels):
        cells = counted.cut(most, fewest)
        of_place = cells.of(codes[order])
        runs = Runs.of(points, photos, order[of_place >= 0])
        bounds = np.append(np.flatnonzero(np.diff(of_place[of_place >= 0], prepend=-1)), len(runs.order))
        rows = runs.statistics(bounds)
        frames.append(
            pd.DataFrame({"level": level, **_named(cells, rule), **rows}, columns=TABLES["s2_cells"].column_names)
        )
        figures |= {
            f"level_{level}_cells": len(cells),
            f"level_{level}_covered": round(float(rows["n_photos"].sum() / max(photos.sum(), 1)), 4),
            f"level_{level}_overfull_cells": cells.overfull,
        }
    filled = [frame for frame in frames if len(frame)] or frames[:1]
    return pd.concat(filled, ignore_index=True).sort_values(["level", "cell_id"], ignore_index=True), figures


def export_cells(lake: Lake, folder: Path) -> list[Path]:
    """Write each level of ``s2_cells`` and ``quadtree_cells``, where they were made, as CSV.

    ``s2_cells_level_<n>.csv`` has GeoEstimation's columns ``class_label, hex_id, imgs_per_cell, latitude_mean,
    longitude_mean``, ``quadtree_cells_level_<n>.csv`` OSV-5M's ``cluster_id, min_lat, max_lat, min_lon, max_lon, mean_lat,
    mean_lon``; means are spherical [deg], and labels run from 0. Tokens are in quotes, for ``47e63`` looks like a number:
    read the column as text.

    Args:
        lake: holds the tables.
        folder: where to; files that are there are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for table in filter(lake.has, _FILES):
        for level, cells in lake.read(table).groupby("level"):
            files.append(folder / f"{table}_level_{level}.csv")
            with replacing(files[-1]) as sink:
                sink.write(_csv(table, cells).encode())
    return files


def _csv(table: str, cells: pd.DataFrame) -> str:
    label, columns = _FILES[table]
    text = io.StringIO()
    text.write(",".join([label, *columns]) + "\n")
    rows = zip(range(len(cells)), *(cells[column].tolist() for column in columns.values()), strict=True)
    csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _named(cells: Quarters, rule: Rule) -> dict[str, Any]:
    """Names and borders [deg] of cells."""
    cuts = rule.depth - np.rint(np.log2((cells.last - cells.first).astype(np.float64) + 1) / 2).astype(np.int64)
    if rule.name == "s2":
        ids = s2.parents(cells.first << np.uint64(1) | np.uint64(1), cuts)
        names, borders = s2.tokens(ids), s2.bounds(ids)
    else:
        names = [
            "".join(str(code >> 2 * (rule.depth - 1 - k) & 3) for k in range(n)) or WHOLE_WORLD
            for code, n in zip(cells.first.tolist(), cuts.tolist(), strict=True)
        ]
        borders = _box(cells.first, cuts, rule.depth)
    return {"cell_id": names, "cuts": cuts, **dict(zip(("west", "south", "east", "north"), borders, strict=True))}


def _box(first: Codes, cuts: Ints, depth: int) -> tuple[Floats, ...]:
    """West, south, east and north [deg] of boxes by their first codes."""
    column, row = (np.zeros(len(first), np.int64) for _ in range(2))
    for bit in range(depth):
        digit = (first >> np.uint64(2 * bit)).astype(np.int64) & 3
        column |= (digit & 1) << bit
        row |= (digit >> 1) << bit
    side, sides = 1 << (depth - cuts), 1 << depth
    west, east = (np.asarray(-180 + 360 * (k / sides), np.float64) for k in (column, column + side))
    south, north = (np.asarray(-90 + 180 * (k / sides), np.float64) for k in (row, row + side))
    return west, south, east, north
