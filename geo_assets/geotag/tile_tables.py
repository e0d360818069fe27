"""The spanning tree of ``geotag_points`` in tiles, in the lake: what the steps of each tile have done, as tables.

The steps' own files lie in ``files/place_tiles/<run>/``. A run is named by a hash of the places, the number of tiles
and ``min_samples``, so what was made for other places lies elsewhere and is never merged with it. The tables name the
run that they tell of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from geo_assets.errors import GeoAssetsError
from geo_assets.geotag import tiles
from geo_assets.geotag.clustering import arc_m
from geo_assets.geotag.inputs import tile_keys
from geo_assets.lake import Lake
from geo_assets.settings import Geotag

_POINTS = "tables/geotag_points/data.parquet"
_AGAIN = "Make them again: geo-assets materialize --select place_tiles,tile_cores,tile_trees,hdbscan_model"

Log = Callable[[str], None]


def cut_places(lake: Lake, settings: Geotag) -> dict[str, Any]:
    """Write ``place_tiles``: the places of ``geotag_points`` along the Hilbert curve, cut into equally many a tile.

    The files of other runs go; a run that is there is not cut again.

    Returns:
        The name of the run, and counts.
    """
    run = run_name(lake, settings)
    with lake.local(_POINTS) as points:
        tiles.cut([points], _store(lake, run), settings.tiles, settings.min_samples, memory_gb=settings.memory_gb)
    sizes = _sizes(lake, run, settings)
    lake.write("place_tiles", pd.DataFrame({"tile": list(sizes), "n_points": list(sizes.values())}), note={"run": run})
    for other in lake.names(lake.key("place_tiles")):
        if other != run:
            lake.remove_folder(lake.key("place_tiles", other))
    return {"run": run, "n_points": sum(sizes.values()), "most_points": max(sizes.values())}


def write_cores(lake: Lake, keys: Sequence[str], settings: Geotag, log: Log = lambda line: None) -> dict[str, Any]:
    """Write ``tile_cores`` of some tiles: the core distances of their places, whichever tile the neighbours lie in.

    Returns:
        The name of the run, and counts.
    """

    def step(store: Lake, tile: int) -> dict[str, Any]:
        (squares,) = tiles.read(store, tiles.core_distances(store, tile), "square")
        return {"core_m": float(np.median(arc_m(np.sqrt(squares))))}

    return _write_steps(lake, "tile_cores", keys, settings, step, {"core_m": np.nan}, log)


def write_trees(lake: Lake, keys: Sequence[str], settings: Geotag, log: Log = lambda line: None) -> dict[str, Any]:
    """Write ``tile_trees`` of some tiles: the spanning tree within each, by the core distances among all places.

    Returns:
        The name of the run, and counts.
    """

    def step(store: Lake, tile: int) -> dict[str, Any]:
        key = tile_keys(settings)[tile]
        if _run_of(lake, "tile_cores", tile=key) != _run_of(lake, "place_tiles"):
            raise GeoAssetsError(f"Tile {key} has no core distances for the places as they are cut. {_AGAIN}")
        with store.local(tiles.local_tree(store, tile)) as path:
            return {"n_open": pq.read_metadata(path).num_rows}

    return _write_steps(lake, "tile_trees", keys, settings, step, {"n_open": 0}, log)


def merged_edges(lake: Lake, settings: Geotag) -> pd.DataFrame:
    """Edges ``a, b, arc_m`` of the spanning tree of all places: those of the tiles, and those found between them.

    Raises:
        GeoAssetsError: a tile was not spanned, or it was for other places, another number of tiles or other core distances.
    """
    run = run_name(lake, settings)
    if stale := [key for key in tile_keys(settings) if _run_of(lake, "tile_trees", tile=key) != run]:
        raise GeoAssetsError(
            f"{len(stale)} of {settings.tiles} tiles ({stale[0]} first) were not spanned for the places of geotag_points "
            f"in as many tiles with min_samples {settings.min_samples}. {_AGAIN}"
        )
    store = _store(lake, run)
    with store.local(tiles.merge(store)) as path, pq.ParquetFile(path) as file:
        # Put in place group by group: all at once would take twice the memory.
        edges = {"a": np.int32, "b": np.int32, "arc_m": np.float64}
        columns = {name: np.empty(file.metadata.num_rows, kind) for name, kind in edges.items()}
        first = 0
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group)
            for name, column in columns.items():
                column[first : first + len(rows)] = rows[name].to_numpy()
            first += len(rows)
    return pd.DataFrame(columns)


def settle_tiles(lake: Lake, settings: Geotag) -> None:
    """Remove from the tables what tells of another run than the places and the settings ask for; it is made again then."""
    if settings.tiles == 1 or not lake.has("geotag_points"):
        return
    run = run_name(lake, settings)
    for table in ("place_tiles", "tile_cores", "tile_trees"):
        for partition in lake.partitions(table):
            if _run_of(lake, table, **partition) != run:
                lake.remove_partition(table, **partition)


def run_name(lake: Lake, settings: Geotag) -> str:
    """The run that places and settings ask for."""
    with lake.local(_POINTS) as points:
        of = f"{tiles.place_hash([points])} {settings.tiles} {settings.min_samples}"
    return hashlib.sha256(of.encode()).hexdigest()[:16]


def _write_steps(
    lake: Lake,
    table: str,
    keys: Sequence[str],
    settings: Geotag,
    step: Callable[[Lake, int], dict[str, Any]],
    nothing: Mapping[str, Any],
    log: Log,
) -> dict[str, Any]:
    """Take a step for some tiles, and write a row for each; a tile without places has nothing to do."""
    run = _run_of(lake, "place_tiles")
    sizes = _sizes(lake, run, settings)
    for key in keys:
        figures = step(_store(lake, run), list(sizes).index(key)) if sizes[key] else nothing
        lake.write(table, pd.DataFrame([{"n_points": sizes[key], **figures}]), note={"run": run}, tile=key)
        log(f"{key}: {sizes[key]:,} places")
    return {"run": run, "n_points": sum(sizes[key] for key in keys)}


def _run_of(lake: Lake, table: str, **partition: str) -> str:
    """The run that a table tells of; empty where it was not written."""
    return lake.note(table, **partition).get("run", "") if lake.has(table, **partition) else ""


def _sizes(lake: Lake, run: str, settings: Geotag) -> dict[str, int]:
    """Places of each tile; fewer places than tiles leave some empty.

    Raises:
        GeoAssetsError: the places were cut into another number of tiles, with another min_samples, or not at all.
    """
    store = _store(lake, run)
    of = tiles.read_cut(store) if run and store.exists(tiles.CUT) else {"of": {}, "sizes": []}
    if (of["of"].get("tiles"), of["of"].get("min_samples")) != (settings.tiles, settings.min_samples):
        raise GeoAssetsError(
            f"The places are not cut into {settings.tiles} tiles with min_samples {settings.min_samples}. {_AGAIN}"
        )
    sizes = of["sizes"]
    return dict(zip(tile_keys(settings), sizes + [0] * (settings.tiles - len(sizes)), strict=True))


def _store(lake: Lake, run: str) -> Lake:
    return Lake(lake.uri(lake.key("place_tiles", run)))
