"""Clusters of millions of places against the earlier call and two libraries: python benchmarks/hdbscan.py [--points FILE].

The earlier call is hdbscan's ``prims_kdtree`` on degrees with prediction data; its cost grows with the square of the
places, so beyond the sizes measured it is extrapolated. Ours is the whole of ``cluster``: spanning tree, merges, labels.
Each measurement has a process of its own, with compiled code loaded beforehand, and cores by affinity; CPU seconds count,
wall seconds only between one and two cores, and only while nothing else ran on the machine. ``fast_hdbscan`` is no
dependency; where it is not installed, it is put into a temporary folder for this run.

The reference of the tree's length is the library's Prim on the sphere. Its exact Boruvka agrees on the places of photos,
but on those made here its tree can be some 1e-5 longer than Prim's and ours, so it only must not be shorter.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

if __package__ in (None, ""):
    # In the place of this folder, where this very file would be found for the library.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.apart import apart, memory, peak, use_cores
from geo_assets.geotag.clustering import Dendrogram, arc_m, cluster, unit_sphere

MIN_CLUSTER_SIZE, MIN_SAMPLES = 5, 2
MOST_CPU_S = {1_000_000: 8.0, 5_000_000: 40.0}
LEAST_RATIO = {100_000: 100}
"""Of the earlier call's CPU seconds to ours."""

MOST_BYTES, LEAST_SPEEDUP = 300, 1.6
IDLE = 0.1
"""Cores that all other processes may take while a machine is called idle."""

FAST = "fast_hdbscan==0.3.4"

Floats = npt.NDArray[np.float64]


def load_places(file: str | None, n: int) -> tuple[Floats, Floats]:
    """Longitudes and latitudes [deg] of distinct places in random order, of a file or made here."""
    draw = np.random.default_rng(0)
    steps = _from_file(Path(file), n, draw) if file else _towns(n, draw)
    key = np.unique((steps[:, 0] + 180_000_000) * 1_000_000_000 + steps[:, 1] + 90_000_000)
    key = draw.permutation(key)[:n]
    return key // 1_000_000_000 / 1e6 - 180, key % 1_000_000_000 / 1e6 - 90


def _from_file(file: Path, n: int, draw: np.random.Generator) -> npt.NDArray[np.int64]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    if "lon_e6" in table.column_names:
        steps = np.stack([table[name].to_numpy().astype(np.int64) for name in ("lon_e6", "lat_e6")], axis=-1)
    else:
        steps = np.stack([np.rint(table[name].to_numpy() * 1e6).astype(np.int64) for name in ("lon", "lat")], axis=-1)
    if n > len(steps):
        # More than the file holds: places beside its own, within some hundred metres.
        beside = steps[draw.integers(0, len(steps), int(1.1 * (n - len(steps))))]
        steps = np.concatenate([steps, beside + np.rint(draw.normal(0, 1000, beside.shape)).astype(np.int64)])
    return np.clip(steps, [-180_000_000, -90_000_000], [179_999_999, 90_000_000])


def _towns(n: int, draw: np.random.Generator) -> npt.NDArray[np.int64]:
    """Places as photographers leave them: towns whose sizes follow Zipf's law, dense cores, long tails."""
    n_towns = max(n // 60, 50)
    share = 1 / np.arange(1, n_towns + 1) ** 0.9
    town = draw.choice(n_towns, int(1.3 * n) + 100, p=share / share.sum())
    lon, lat = draw.uniform(-180, 180, n_towns), np.clip(draw.normal(30, 25, n_towns), -60, 75)
    wide = 0.01 * np.exp(draw.normal(0, 1, n_towns))
    away = wide[town] * draw.standard_exponential(len(town)) ** 2
    turn = draw.uniform(0, 2 * np.pi, len(town))
    x = lon[town] + away * np.cos(turn) / np.cos(np.radians(lat[town]))
    places = np.stack([(x + 180) % 360 - 180, np.clip(lat[town] + away * np.sin(turn), -90, 90)], axis=-1)
    return np.rint(places * 1e6).astype(np.int64)


def _ours(lon: Floats, lat: Floats) -> dict[str, Any]:
    found = cluster(lon, lat, min_cluster_size=MIN_CLUSTER_SIZE, min_samples=MIN_SAMPLES)
    return {"clusters": found.n_clusters, "tree_km": _total(found.edges["arc_m"].to_numpy()), "_labels": found.labels}


def _earlier(lon: Floats, lat: Floats) -> dict[str, Any]:
    from hdbscan import HDBSCAN

    model = HDBSCAN(
        min_cluster_size=MIN_CLUSTER_SIZE,
        min_samples=MIN_SAMPLES,
        algorithm="prims_kdtree",
        approx_min_span_tree=True,
        prediction_data=True,
        core_dist_n_jobs=1,
    ).fit(np.stack([lat, lon], axis=-1))
    return {"clusters": int(model.labels_.max()) + 1}


def _library(lon: Floats, lat: Floats, algorithm: str = "boruvka_kdtree") -> dict[str, Any]:
    from hdbscan import HDBSCAN

    model = HDBSCAN(
        min_cluster_size=MIN_CLUSTER_SIZE,
        min_samples=MIN_SAMPLES,
        algorithm=algorithm,
        approx_min_span_tree=False,
        gen_min_span_tree=True,
        core_dist_n_jobs=1,
    ).fit(unit_sphere(lon, lat))
    tree = model.minimum_spanning_tree_
    assert tree is not None
    return {"clusters": int(model.labels_.max()) + 1, "_tree": tree.to_numpy()}


def _fast(lon: Floats, lat: Floats) -> dict[str, Any]:
    from fast_hdbscan import HDBSCAN  # pyright: ignore[reportMissingImports]

    model = HDBSCAN(min_cluster_size=MIN_CLUSTER_SIZE, min_samples=MIN_SAMPLES).fit(unit_sphere(lon, lat))
    return {"clusters": int(model.labels_.max()) + 1, "_tree": np.asarray(model._min_spanning_tree, np.float64)}


def _prim(lon: Floats, lat: Floats) -> dict[str, Any]:
    return _library(lon, lat, "prims_kdtree")


METHODS = {"earlier": _earlier, "hdbscan exact": _library, "hdbscan Prim": _prim, "fast_hdbscan": _fast, "ours": _ours}


def _total(arcs_m: Floats) -> float:
    # Ascending: the same lengths in another order would differ in the last digits.
    return float(np.sort(arcs_m).sum() / 1000)


def _write(points: str | None, file: Path, n: int) -> None:
    np.save(file, load_places(points, n))


def _measured(method: str, file: Path, n: int, cores: int) -> dict[str, Any]:
    use_cores(cores)
    run = METHODS[method]
    run(*load_places(None, 30_000 if method == "fast_hdbscan" else 500))  # loads and compiles
    lon, lat = np.load(file)  # written by another process, whose heap would be used again here without being counted
    Path("/proc/self/clear_refs").write_text("5")
    before, busy = memory("VmRSS"), _busy_s()
    cpu, wall = time.process_time(), time.perf_counter()
    figures = run(lon, lat)
    figures |= {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    figures["others"] = max((_busy_s() - busy - figures["cpu_s"]) / figures["wall_s"], 0.0)
    # The two columns of the input count.
    figures["bytes_a_point"] = (peak() - before + lon.nbytes + lat.nbytes) / n
    if (edges := figures.pop("_tree", None)) is not None:
        arcs_m = arc_m(edges[:, 2])
        figures["tree_km"] = _total(arcs_m)
        tree = Dendrogram.of(edges[:, 0].astype(np.int64), edges[:, 1].astype(np.int64), arcs_m)
        figures["_labels"] = tree.condensed(MIN_CLUSTER_SIZE).labels()[0]
    if (labels := figures.pop("_labels", None)) is not None:
        figures["labels"] = hashlib.sha256(labels.tobytes()).hexdigest()[:12]
    return {"method": method, "n": n, "cores": cores} | figures


def _busy_s() -> float:
    """Processor time that all processes of the machine together have had [s]."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def measure(method: str, points: str | None, scratch: Path, n: int, cores: int = 1) -> dict[str, Any]:
    """Figures of one method."""
    file = scratch / f"{n}.npy"
    if not file.exists():
        apart(_write, points, file, n)
    figures = apart(_measured, method, file, n, cores).result
    tree = f"   tree {figures['tree_km']:,.6f} km, labels {figures['labels']}" if "labels" in figures else ""
    print(
        f"{method:14} {n:>9,} places, {cores} core{'s' * (cores > 1)}: {figures['cpu_s']:8.2f} CPU s, {figures['wall_s']:8.2f} s, "
        f"{figures['bytes_a_point']:6.0f} B a point, {figures['clusters']:>7,} clusters{tree}",
        flush=True,
    )
    return figures


def without_fast(folder: Path) -> str:
    """Why ``fast_hdbscan`` cannot be measured; empty where it can, installed into the folder if need be."""
    if importlib.util.find_spec("fast_hdbscan"):
        return ""
    # Without what it depends on: numba, scikit-learn and numpy are here, and are the ones that ours runs on.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), FAST]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    sys.path.append(str(folder))  # and so in each process that is started from here
    tried = subprocess.run(
        [sys.executable, "-c", "import fast_hdbscan"],
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return (tried.stderr.strip().splitlines() or ["it cannot be imported"])[-1] if tried.returncode else ""


def _numbers(_: Any, __: Any, text: str) -> list[int]:
    return [int(number.replace("_", "")) for number in text.split(",") if number]


@click.command()
@click.option("--points", type=click.Path(exists=True, dir_okay=False), help="parquet of lon, lat, or lon_e6, lat_e6")
@click.option("--sizes", default="10000,30000,100000,1000000,5000000", callback=_numbers, show_default=True)
@click.option(
    "--earlier", default="30000,100000", callback=_numbers, show_default=True, help="sizes of the earlier call"
)
@click.option("--library", default="10000,30000,100000", callback=_numbers, show_default=True, help="of hdbscan exact")
@click.option("--prim", default="10000,30000,100000", callback=_numbers, show_default=True, help="of hdbscan's Prim")
@click.option("--fast", default="30000,100000,1000000", callback=_numbers, show_default=True, help="of fast_hdbscan")
@click.option("--cores", default="1,2", callback=_numbers, show_default=True, help="numbers of cores that ours gets")
@click.option("--json", "as_json", is_flag=True, help="print all figures as JSON at the end")
def main(
    points: str | None,
    sizes: list[int],
    earlier: list[int],
    library: list[int],
    prim: list[int],
    fast: list[int],
    cores: list[int],
    as_json: bool,
) -> None:
    """Measure, compare, and say which limits hold."""
    print(f"Places: {points or 'made by this script'}; min_cluster_size {MIN_CLUSTER_SIZE}, min_samples {MIN_SAMPLES}")
    print(f"Load before: {' '.join(f'{load:.2f}' for load in os.getloadavg())} on {os.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="hdbscan_") as scratch:
        run = functools.partial(measure, points=points, scratch=Path(scratch))
        ours = {(n, k): run("ours", n=n, cores=k) for n in sizes for k in cores}
        asked = {"hdbscan exact": library, "hdbscan Prim": prim, "fast_hdbscan": fast, "earlier": earlier}
        if fast and (why := without_fast(Path(scratch) / "fast")):
            print(f"skipped: fast_hdbscan; {why}")
            del asked["fast_hdbscan"]
        others = {(method, n): run(method, n=n) for method in asked for n in asked[method]}
    held = _ratios(ours, others) & _limits(ours) & _threads(ours)
    if as_json:
        print(json.dumps([*ours.values(), *others.values()]))
    sys.exit(not held)


def _ratios(ours: dict[tuple[int, int], dict[str, Any]], others: dict[tuple[str, int], dict[str, Any]]) -> bool:
    """Print how many times the CPU seconds of ours the others take; whether the exact trees and labels agree."""
    held = True
    one = {n: figures for (n, k), figures in ours.items() if k == 1}
    for (method, n), other in others.items():
        if n not in one:
            continue
        ratio = f"{method} at {n:,}: {other['cpu_s'] / one[n]['cpu_s']:,.1f} x the CPU seconds of ours, measured"
        if method == "earlier" and n in LEAST_RATIO:
            held &= _said(other["cpu_s"] >= LEAST_RATIO[n] * one[n]["cpu_s"], f"{ratio}; at least {LEAST_RATIO[n]}")
        else:
            print(f"no limit: {ratio}")
        if "labels" in other:
            longer = other["tree_km"] / one[n]["tree_km"] - 1
            same = other["labels"] == one[n]["labels"]
            line = f"{method}'s tree at {n:,} is {longer:+.1e} longer, labels of both trees {'equal' if same else 'differ'}"
            if method == "fast_hdbscan":
                print(f"no limit: {line}; it computes in float32")
            elif method == "hdbscan exact" and longer > 1e-9:
                print(f"no limit: {line}; that tree is not the shortest")
            else:
                held &= _said(abs(longer) <= 1e-9 and same, f"{line}; at most 1e-9 either way, and equal")
    if measured := [n for method, n in others if method == "earlier"]:
        n = max(measured)
        a_pair = others["earlier", n]["cpu_s"] / n**2
        for more in (size for size in one if size > n):
            seconds = a_pair * more**2
            print(
                f"no limit: earlier at {more:,}: {seconds / one[more]['cpu_s']:,.0f} x the CPU seconds of ours, EXTRAPOLATED "
                f"by n^2 from {n:,} to {seconds:,.0f} CPU s ({seconds / 3600:.1f} h)"
            )
    return held


def _limits(ours: dict[tuple[int, int], dict[str, Any]]) -> bool:
    held = True
    for (n, k), figures in ours.items():
        if n in MOST_CPU_S:
            where, cpu, size = f"ours at {n:,} on {k}", figures["cpu_s"], figures["bytes_a_point"]
            held &= _said(cpu <= MOST_CPU_S[n], f"{where}: {cpu:.1f} CPU s, at most {MOST_CPU_S[n]:g}")
            held &= _said(size <= MOST_BYTES, f"{where}: {size:.0f} B a point, at most {MOST_BYTES}")
    return held


def _threads(ours: dict[tuple[int, int], dict[str, Any]]) -> bool:
    """Several cores against one: the same labels, in less time where the machine is idle."""
    held = True
    for n, k in ((n, k) for n, k in ours if k > 1 and (n, 1) in ours):
        one, more = ours[n, 1], ours[n, k]
        held &= _said(one["labels"] == more["labels"], f"labels at {n:,} on 1 and on {k} cores are equal")
        line = f"{n:,} on {k} cores {one['wall_s'] / more['wall_s']:.2f} x as fast as on one, at least {LEAST_SPEEDUP}"
        if n not in MOST_CPU_S:
            continue
        if (others := max(one["others"], more["others"])) > IDLE:
            print(f"not judged: {line}; the machine was not idle, other processes took {others:.2f} of a core")
        else:
            held &= _said(one["wall_s"] >= LEAST_SPEEDUP * more["wall_s"], line)
    return held


def _said(good: bool, line: str) -> bool:
    print(f"{'holds' if good else 'MISSED'}: {line}")
    return good


if __name__ == "__main__":
    main()
