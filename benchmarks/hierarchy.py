"""The levels of five million places in 250,000 clusters: python benchmarks/hierarchy.py [--points N] [--photos N].

Places are synthetic: small spots in towns of unequal size, and lonely places between them. The clustering is made first
and kept with --keep. CPU seconds and memory of the levels, from the stored spanning tree to the rows, are printed beside
the limits. With --photos the table of that many photos at these places is written too, and its cost is printed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import apart, peak
from geo_assets.geotag.clustering import cluster, dendrogram
from geo_assets.geotag.hierarchy import build, write_photo_cells
from geo_assets.lake import Lake
from geo_assets.settings import Geotag

POINTS = 5_000_000
PER_SPOT, LONELY = 19, 0.05
MOST_CPU_S, MOST_GB = 20.0, 4.0


def places(n: int) -> pd.DataFrame:
    """Distinct places by longitude and latitude, with their photos."""
    draw = np.random.default_rng(1)
    n_lonely = int(LONELY * n)
    n_spots = (n - n_lonely) // PER_SPOT
    n_towns = max(n_spots // 40, 1)
    town = (n_towns * draw.random(n_spots) ** 3).astype(int)
    lons, lats = draw.uniform(-180, 180, n_towns), np.degrees(np.arcsin(draw.uniform(-0.8, 0.9, n_towns)))
    spot = draw.integers(0, n_spots, n - n_lonely)
    spread = draw.normal(0, 0.08, (2, n_spots)), draw.normal(0, 0.0006, (2, n - n_lonely))
    lon, lat = ((axis[town] + far)[spot] + near for axis, far, near in zip((lons, lats), *spread, strict=True))
    around = town[draw.integers(0, n_spots, n_lonely)]
    alone = np.stack([lons[around], lats[around]]) + draw.normal(0, 1.0, (2, n_lonely))
    frame = pd.DataFrame({"lon": np.append(lon, alone[0]), "lat": np.append(lat, alone[1])}).round(6)
    frame["lon"] = ((frame["lon"] + 180) % 360 - 180).round(6)
    frame = frame.drop_duplicates().sort_values(["lon", "lat"], ignore_index=True)
    return frame.assign(point_id=np.arange(len(frame)), n_photos=draw.geometric(0.4, len(frame)))


def clustered(n: int, folder: Path) -> None:
    """Write the clustering of so many places into a folder."""
    points = places(n)
    found = cluster(points["lon"], points["lat"], min_cluster_size=5, min_samples=2)
    found.edges.to_parquet(folder / f"edges_{n}.parquet")
    points.assign(cluster=found.labels).to_parquet(folder / f"points_{n}.parquet")


def measured(n: int, folder: Path, method: Any, photos: int) -> tuple[dict[str, float], dict[str, float]]:
    """The figures and the cost of the levels, compiled before."""
    settings = Geotag(method=method)

    def levels(frame: pd.DataFrame, edges: pd.DataFrame) -> Any:
        tree = dendrogram(edges, len(frame))
        return build(frame, tree, min_cluster_size=5, exponents=settings.level_exponents, method=method)

    small = places(2000)
    found = cluster(small["lon"], small["lat"], min_cluster_size=5, min_samples=2)
    levels(small.assign(cluster=found.labels), found.edges)
    points, edges = (pd.read_parquet(folder / f"{what}_{n}.parquet") for what in ("points", "edges"))
    began = time.process_time()
    made = levels(points, edges)
    cost = {"cpu_s": time.process_time() - began, "peak_gb": peak() / 1e9}
    began = time.process_time()
    structure = made.structure()
    cost["structure_cpu_s"] = time.process_time() - began
    del structure
    if photos:
        lake = Lake(folder / "lake")
        _write_photos(lake, points, photos)
        began, wall = time.process_time(), time.perf_counter()
        write_photo_cells(lake, points, made, settings)
        cost |= {
            "photo_cells_cpu_s": time.process_time() - began,
            "photo_cells_wall_s": time.perf_counter() - wall,
            "photo_cells_peak_gb": peak() / 1e9,
            "photo_cells_gb": lake.size("tables/photo_cells/data.parquet") / 1e9,
        }
    return made.figures, cost


def _write_photos(lake: Lake, points: pd.DataFrame, n: int) -> None:
    """So many photos in ``geotag_combined``, at the places in turn."""
    if lake.has("geotag_combined") and lake.rows("geotag_combined") == n:
        return
    with lake.connect() as con:
        con.execute("set threads = 2; set memory_limit = '3GB'")
        con.register("places", points[["point_id", "lon", "lat"]])
        query = f"""
            select (1000000000 + i)::varchar as photo_id, 'placing_2016' as source, i || '.jpg' as path, lon, lat,
                null::timestamptz as captured_at, null::varchar as author_hash, null::varchar as licence,
                null::varchar as landmark_id, []::varchar[] as flags, 'train' as split
            from range({n}) photos(i) join places on point_id = (i * 7919) % {len(points)}"""
        lake.write_query(con, "geotag_combined", query)


@click.command()
@click.option("--points", default=POINTS, show_default=True)
@click.option("--photos", default=0, show_default=True, help="photos of the table photo_cells; 0 leaves it out")
@click.option("--method", type=click.Choice(["tree", "kmeans"]), default="tree", show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="folder that holds the clustering, or is to hold it")
def main(points: int, photos: int, method: str, keep: Path | None) -> None:
    """Make the clustering, build the levels, and say what it cost."""
    with tempfile.TemporaryDirectory(prefix="hierarchy_") as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / f"points_{points}.parquet").exists():
            apart(clustered, points, folder)
        figures, cost = apart(measured, points, folder, method, photos).result
    print(json.dumps(figures))
    print(", ".join(f"{name} {value:.2f}" for name, value in cost.items()))
    good = cost["cpu_s"] <= MOST_CPU_S and cost["peak_gb"] <= MOST_GB
    print(f"{'holds' if good else 'MISSED'}: {MOST_CPU_S:g} CPU seconds, {MOST_GB:g} GB")
    sys.exit(not good)


if __name__ == "__main__":
    main()
