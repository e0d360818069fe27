"""Memory and time of the clustering in one piece and in tiles: python benchmarks/tiles.py [--points FILE] [--n 5000000].

Each step has a process of its own, as a partition has: its CPU seconds, and the most memory that it held above what it
held after a run on few places (libraries, compiled code). Tiles must find edges as long as those of one piece to the
last bit, and the same condensed tree and labels.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pandas as pd

if __package__ in (None, ""):
    # In the place of this folder, where this very file would be found for the library.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.apart import apart, memory, use_cores
from benchmarks.hdbscan import MIN_CLUSTER_SIZE, MIN_SAMPLES, load_places
from geo_assets.geotag.clustering import cluster_tree, spanning_edges
from geo_assets.geotag.tile_tables import cut_places, merged_edges, write_cores, write_trees
from geo_assets.lake import Lake
from geo_assets.settings import Geotag

FEW = 2000


def _one_tree(root: Path, settings: Geotag) -> dict[str, Any]:
    points = Lake(root).read("geotag_points", ["lon", "lat"])
    edges = spanning_edges(points["lon"], points["lat"], settings.min_samples)
    edges.to_parquet(root / "one.parquet")
    return {"arcs": _hash(np.sort(edges["arc_m"].to_numpy()))}


def _cut(root: Path, settings: Geotag) -> dict[str, Any]:
    return {"most_points": cut_places(Lake(root), settings)["most_points"]}


def _cores(root: Path, settings: Geotag, key: str) -> dict[str, Any]:
    write_cores(Lake(root), [key], settings)
    return {}


def _trees(root: Path, settings: Geotag, key: str) -> dict[str, Any]:
    write_trees(Lake(root), [key], settings)
    return {}


def _merge(root: Path, settings: Geotag) -> dict[str, Any]:
    edges = merged_edges(Lake(root), settings)
    edges.to_parquet(root / "tiles.parquet")
    return {"arcs": _hash(np.sort(edges["arc_m"].to_numpy()))}


def _labels(root: Path, settings: Geotag, file: str) -> dict[str, Any]:
    edges = pd.read_parquet(root / file)
    found = cluster_tree(edges, len(edges) + 1, settings.min_cluster_size)
    tree = found.condensed
    columns = (tree.cluster, tree.left_at, tree.parent, tree.birth, tree.size, tree.stability)
    return {"labels": _hash(found.labels, found.strength, *columns), "clusters": found.n_clusters}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "one piece: tree": _one_tree,
    "cut": _cut,
    "cores of a tile": _cores,
    "tree of a tile": _trees,
    "merge": _merge,
    "labels": _labels,
}


def _hash(*columns: npt.NDArray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(column).tobytes() for column in columns)).hexdigest()[:12]


def _write(points: str | None, root: Path, n: int) -> int:
    lon, lat = load_places(points, n)
    order = np.lexsort((lat, lon))
    rows = pd.DataFrame({"point_id": np.arange(len(lon)), "lon": lon[order], "lat": lat[order]})
    Lake(root).write("geotag_points", rows.assign(n_photos=1, n_sources=1))
    return len(lon)


def _measured(step: str, root: Path, few: Path, settings: Geotag, *args: str) -> dict[str, Any]:
    use_cores(1)
    for warm in STEPS:  # loads and compiles
        rest = {"cores of a tile": ("t000",), "tree of a tile": ("t000",), "labels": ("one.parquet",)}.get(warm, ())
        STEPS[warm](few, settings.model_copy(update={"tiles": 1}), *rest)
        if warm == step:
            break
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu = memory("VmRSS"), time.process_time()
    figures = STEPS[step](root, settings, *args)
    figures["cpu_s"] = time.process_time() - cpu
    return figures | {"bytes": memory("VmHWM") - before}


@click.command()
@click.option("--points", type=click.Path(exists=True, dir_okay=False), help="parquet of lon, lat, or lon_e6, lat_e6")
@click.option("--n", default=5_000_000, show_default=True)
@click.option("--tiles", "n_tiles", default=10, show_default=True)
@click.option("--memory-gb", default=1.0, show_default=True, help="of the sorting of the cut")
@click.option("--json", "as_json", is_flag=True, help="print all figures as JSON at the end")
def main(points: str | None, n: int, n_tiles: int, memory_gb: float, as_json: bool) -> None:
    """Measure, and compare both trees."""
    settings = Geotag(tiles=n_tiles, min_samples=MIN_SAMPLES, min_cluster_size=MIN_CLUSTER_SIZE, memory_gb=memory_gb)
    every = []
    with tempfile.TemporaryDirectory(prefix="tiles_") as scratch:
        root, few = Path(scratch) / "lake", Path(scratch) / "few"
        n = apart(_write, points, root, n).result
        apart(_write, None, few, FEW)
        print(f"{n:,} places ({points or 'made by this script'}) in {n_tiles} tiles, min_samples {MIN_SAMPLES}")

        def run(step: str, *args: str) -> dict[str, Any]:
            figures = apart(_measured, step, root, few, settings, *args).result
            every.append({"step": " ".join((step, *args)), "n": n, "tiles": n_tiles} | figures)
            return every[-1]

        one = run("one piece: tree")
        _say(one, n)
        _say(run("cut"), n)
        for step in ("cores of a tile", "tree of a tile"):
            each = [run(step, f"t{tile:03d}") for tile in range(n_tiles)]
            worst = max(each, key=lambda figures: figures["bytes"])
            _say(worst, -(-n // n_tiles), f", all tiles {sum(figures['cpu_s'] for figures in each):.1f} CPU s")
        merged = run("merge")
        _say(merged, n)
        labels = [run("labels", file) for file in ("one.parquet", "tiles.parquet")]
        _say(labels[1], n)
        size = sum(path.stat().st_size for path in (root / "files").rglob("*.*") if path.is_file())
        print(f"files of the tiles: {size / n:.0f} B a place")
    same = {"edges": one["arcs"] == merged["arcs"], "labels": labels[0]["labels"] == labels[1]["labels"]}
    for what, equal in same.items():
        print(f"{'holds' if equal else 'MISSED'}: {what} of tiles and of one piece are the same to the last bit")
    if as_json:
        print(json.dumps(every))
    sys.exit(not all(same.values()))


def _say(figures: dict[str, Any], n: int, more: str = "") -> None:
    print(
        f"{figures['step']:24} {figures['cpu_s']:7.1f} CPU s, {figures['bytes'] / 1e6:8,.0f} MB, "
        f"{figures['bytes'] / n:6.0f} B a place of {n:,}{more}",
        flush=True,
    )


if __name__ == "__main__":
    main()
