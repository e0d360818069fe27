"""How many pairs are matched, what is lost by it, and how fast they are planned: python benchmarks/pairs.py [--photos FOLDER].

Three parts. Pairs of a simulated district of 11,000 street images, beside the 50 nearest within 100 m and beside all
pairs. With a folder of geotagged photos: all pairs are matched and ours are matched, in processor seconds, and the
pairs with at least 30 inliers that ours find. Planning of up to a million images, each size in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from scipy.spatial import KDTree

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import apart
from geo_assets.geodesy import LocalFrame
from geo_assets.harvest.photos import scan
from geo_assets.reconstruct.candidates import PairRules, choose_pairs, pair_lines
from geo_assets.reconstruct.priors import with_best_position, with_priors
from geo_assets.reconstruct.stage import run_step
from geo_assets.settings import Reconstruct

DISTRICT = 11_000
WIDTH_M, HEIGHT_M = 1370.0, 1670.0
MOST_PAIRS = 160_000
MOST_SECONDS, MOST_MEMORY_MB = 60.0, 2000.0
MOST_COST = 0.55
STRONG = 30
_EDGES_M = [0, 6, 15, 30, 60, 100, 300]


def district(n: int = DISTRICT, seed: int = 1) -> pd.DataFrame:
    """Street images of a district of avenues every 96 m and streets every 200 m, as ``choose_pairs`` takes them.

    Few streets are driven much more than the others. A drive is 100 to 800 m long, with an image every 3 to 12 m,
    looking ahead, to a side or back; its positions err by 3 m together and 1 m each.
    """
    random = np.random.default_rng(seed)
    ends = [((x, 0.0), (x, HEIGHT_M)) for x in np.arange(0, WIDTH_M, 96)]
    ends += [((0.0, y), (WIDTH_M, y)) for y in np.arange(0, HEIGHT_M, 200)]
    streets = np.array(ends)
    popularity = random.pareto(1.2, len(streets)) + 0.3
    popularity /= popularity.sum()
    drives: list[np.ndarray] = []
    n_made = 0
    while n_made < n:
        begin, end = streets[random.choice(len(streets), p=popularity)]
        length_m = np.linalg.norm(end - begin)
        way = (end - begin) / length_m
        if random.random() < 0.5:
            begin, way = end, -way
        drive_m = min(length_m, random.uniform(100, 800))
        first_m, step_m = random.uniform(0, length_m - drive_m), random.choice([3, 5, 8, 12])
        lane = np.array([-way[1], way[0]]) * random.uniform(-4, 4) + random.normal(0, 3, 2)
        side_deg = random.choice([0, 0, 0, 0, 90, -90, 180])
        along = np.arange(first_m, first_m + drive_m, step_m)
        places = begin + way * along[:, None] + lane + random.normal(0, 1, (len(along), 2))
        heading = (np.degrees(np.arctan2(*way)) + side_deg) % 360
        drives.append(np.column_stack([places, np.full(len(along), heading), np.full(len(along), len(drives))]))
        n_made += len(along)
    east, north, heading, drive = np.concatenate(drives)[:n].T
    return pd.DataFrame(
        {
            "image_id": (10**15 + np.arange(n)).astype(str),
            "sequence_id": pd.Series(drive.astype(int)).astype(str),
            "east_m": east,
            "north_m": north,
            "heading_deg": heading,
            "captured_at": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(n), "s"),
            "sigma_xy_m": 3.0,
            "home_box": "r00c00",
        }
    )


def city(n: int) -> pd.DataFrame:
    """Districts side by side until there are ``n`` images, each with its own drives."""
    parts = []
    for number in range(-(-n // DISTRICT)):
        row, column = divmod(number, 10)
        part = district(seed=number + 1)
        part["image_id"] = (10**15 + number * DISTRICT + np.arange(DISTRICT)).astype(str)
        part["sequence_id"] = f"d{number:03d}-" + part.sequence_id
        part["east_m"] += column * WIDTH_M
        part["north_m"] += row * HEIGHT_M
        part["home_box"] = f"r{row:02d}c{column:02d}"
        parts.append(part)
    return pd.concat(parts, ignore_index=True).iloc[:n]


def nearest_pairs(images: pd.DataFrame, k: int = 50, most_m: float = 100.0) -> int:
    """How many pairs the ``k`` nearest neighbours of each image within a distance make."""
    n, xy = len(images), images[["east_m", "north_m"]].to_numpy(float)
    _, near = KDTree(xy).query(xy, k=k + 1, distance_upper_bound=most_m)
    a, b = np.repeat(np.arange(n), k), np.asarray(near)[:, 1:].ravel()
    a, b = a[b < n], b[b < n]
    return len(np.unique(np.minimum(a, b) * n + np.maximum(a, b)))


def simulated() -> dict[str, float]:
    """Pairs of the simulated district by ours, by nearest neighbours and of all with all."""
    images = district()
    ours = choose_pairs(images)
    lengths = np.histogram(ours.distance_m, _EDGES_M)[0] / len(ours)
    nearest, every = nearest_pairs(images), DISTRICT * (DISTRICT - 1) // 2
    return {
        "n_images": DISTRICT,
        "pairs": len(ours),
        "pairs_per_image": len(ours) / DISTRICT,
        "of_the_limit": len(ours) / MOST_PAIRS,
        "pairs_50_nearest_100_m": nearest,
        "of_50_nearest": len(ours) / nearest,
        "pairs_exhaustive": every,
        "exhaustive_is_times_as_many": every / len(ours),
    } | {f"share_{a}_to_{b}_m": v for a, b, v in zip(_EDGES_M, _EDGES_M[1:], lengths, strict=False)}


def photographed(folder: Path, threads: int = 1) -> dict[str, float]:
    """Match all pairs of the photos and match ours, on the same features."""
    found = scan(folder).photos
    # Photos without a capture time count in the order of their names.
    found["captured_at"] = found.captured_at.fillna(
        pd.Timestamp("2000-01-01", tz="UTC") + pd.to_timedelta(found.source_path.rank(), "s")
    )
    options = Reconstruct(threads=threads)
    placed = with_best_position(found, options.gps_sigma_m)
    cameras = with_priors(placed, LocalFrame(placed.best_lon.mean(), placed.best_lat.mean(), 0.0), options)
    cameras = cameras.assign(image_id=cameras.source_path)
    ours = choose_pairs(cameras, PairRules.of(options))
    names = sorted(cameras.image_id)
    every = pd.DataFrame([(a, b) for i, a in enumerate(names) for b in names[i + 1 :]])
    every.columns = ["image_id_a", "image_id_b"]
    with tempfile.TemporaryDirectory() as scratch:
        features = Path(scratch) / "features.db"
        _extract(features, folder, names, threads)
        all_cost, all_inliers = _matched(features, every, Path(scratch), threads)
        our_cost, our_inliers = _matched(features, ours, Path(scratch), threads)
    strong = {pair for pair, inliers in all_inliers.items() if inliers >= STRONG}
    ours_strong = {pair for pair, inliers in our_inliers.items() if inliers >= STRONG}
    return {
        "n_photos": len(names),
        "pairs_exhaustive": len(every),
        "pairs": len(ours),
        "of_exhaustive": len(ours) / len(every),
        "strong_pairs_exhaustive": len(strong),
        "recall": len(strong & ours_strong) / max(len(strong), 1),
        "cpu_s_exhaustive": all_cost,
        "cpu_s": our_cost,
        "cost_of_exhaustive": our_cost / all_cost,
        "of_the_limit": our_cost / all_cost / MOST_COST,
    }


def _extract(database: Path, folder: Path, names: list[str], threads: int) -> None:
    """Features in a process of its own: COLMAP may end the process that it runs in."""
    code = (
        "import json, sys, pycolmap as c; db, folder, names, threads = json.loads(sys.argv[1]); "
        "o = c.FeatureExtractionOptions(); o.num_threads = threads; o.sift.max_num_features = 4096; "
        "o.sift.upright, o.sift.max_num_orientations = True, 1; o.max_image_size = 2048; "
        "c.extract_features(db, folder, image_names=names, camera_mode=c.CameraMode.SINGLE, extraction_options=o, device=c.Device.cpu)"
    )
    arguments = json.dumps([str(database), str(folder), names, threads])
    subprocess.run([sys.executable, "-c", code, arguments], check=True, stderr=subprocess.DEVNULL)


def _matched(
    features: Path, pairs: pd.DataFrame, scratch: Path, threads: int
) -> tuple[float, dict[frozenset[str], int]]:
    """Processor seconds of matching, less those of a step that matches nothing, and inliers of each pair."""
    seconds = []
    database = scratch / "matches.db"
    for some in (pairs.iloc[:0], pairs):
        shutil.copyfile(features, database)
        listed = scratch / "pairs.txt"
        listed.write_text(pair_lines(some, suffix=""))
        before = _children_s()
        run_step(
            "match",
            {"database": str(database), "pairs": str(listed), "threads": threads, "seed": 0, "device": "cpu"},
            scratch,
        )
        seconds.append(_children_s() - before)
    with contextlib.closing(sqlite3.connect(database)) as con:
        names = dict(con.execute("select image_id, name from images"))
        rows = con.execute("select pair_id, rows from two_view_geometries").fetchall()
    base = 2**31 - 1  # COLMAP's: pair_id = base * smaller id + larger id
    return seconds[1] - seconds[0], {frozenset((names[p // base], names[p % base])): n for p, n in rows}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def planned(n: int) -> dict[str, float]:
    """Seconds and peak memory of planning ``n`` images, in a process of its own."""
    ran = apart(_plan, n)
    memory_mb = ran.peak_bytes / (1 << 20)
    return ran.result | {
        "memory_mb": memory_mb,
        "of_60_s": ran.result["seconds"] / MOST_SECONDS,
        "of_2_gb": memory_mb / MOST_MEMORY_MB,
    }


def _plan(n: int) -> dict[str, float]:
    images = city(n)
    choose_pairs(images.iloc[:100])  # compiled code is read, or made once for this machine
    wall, cpu = time.perf_counter(), time.process_time()
    pairs = choose_pairs(images)
    return {
        "n_images": n,
        "pairs_per_image": len(pairs) / n,
        "seconds": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }


def _print(title: str, figures: dict[str, Any]) -> None:
    click.echo(title)
    for name, value in figures.items():
        shown = f"{value:14,.3f}" if isinstance(value, float) else f"{value:14,}"
        click.echo(f"  {name:30} {shown}")


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), help="geotagged photos")
@click.option("--images", multiple=True, default=(10_000, 100_000, 1_000_000), show_default=True, help="sizes to plan")
def _command(photos: Path | None, images: tuple[int, ...]) -> None:
    _print("Simulated district", simulated())
    if photos is not None:
        _print(f"Photos of {photos.name}", photographed(photos))
    for n in images:
        _print(f"Planning {n:,} images", planned(n))


if __name__ == "__main__":
    _command()
