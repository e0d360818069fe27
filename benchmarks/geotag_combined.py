"""Thirty million photos of three sources become one table, on 2 threads: python benchmarks/geotag_combined.py [--rows N].

The sources are synthetic and have the shape of the real tables: Flickr ids and paths, hashed authors, licences, shards
of 30,000 records, landmarks of twenty photos at one coordinate, and photos that both Flickr sets hold. They are written
once and kept with --keep. Each step runs in a process of its own; time, memory and spilled bytes are printed beside the limits.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import apart, use_cores
from geo_assets.geotag.combine import combine, write_points
from geo_assets.lake import Lake
from geo_assets.settings import Geotag

ROWS = 30_000_000
PLACING, LANDMARK = 0.157, 0.137
"""Shares of the rows; the rest is Flickr's, which the real set does not reach."""

PER_SHARD = 30_000
MOST_MINUTES, MOST_GB = 5.0, 4.0

_MACROS = """
create macro u(i, salt) as hash(i * 31 + salt)::double / 18446744073709551616.0;
create macro city(i) as (20000 * u(i, 1) ^ 3)::int;
create macro flickr_number(i) as 1000000000 + (i * 7919) % 9000000011;
-- Towns of unequal size; each seventh photo stands where an album was put, on a coarser grid.
create macro town_lon(c) as -170 + 340 * u(c, 2);
create macro town_lat(c) as -55 + 125 * u(c, 3);
create macro spread(i, salt) as 0.05 * (u(i, salt) + u(i, salt + 1) + u(i, salt + 2) - 1.5);
create macro photo_lon(i) as case when i % 7 = 0 then round(town_lon(city(i)) + spread(i, 4), 3) else round(town_lon(city(i)) + spread(i, 4), 6) end;
create macro photo_lat(i) as case when i % 7 = 0 then round(town_lat(city(i)) + spread(i, 7), 3) else round(town_lat(city(i)) + spread(i, 7), 6) end;
create macro author(i) as substr(md5(((i // 40) % 400000)::varchar), 1, 16);
"""


def make_sources(root: str, rows: int) -> None:
    """Write the three tables of the sources, about as many rows as named."""
    lake = Lake(root)
    n_placing, n_landmark = int(rows * PLACING), int(rows * LANDMARK)
    n_flickr = rows - n_placing - n_landmark
    with lake.connect() as con:
        con.execute("set threads = 2; set timezone = 'UTC'; set memory_limit = '3GB'")
        con.execute(_MACROS)
        for shard, start in enumerate(range(0, n_placing, PER_SHARD)):
            stop = min(start + PER_SHARD, n_placing)
            lake.write_query(con, "placing_2016", _placing(start, stop, shard), shard=f"shard_{shard}")
        lake.write_query(con, "google_landmark", _landmark(n_landmark))
        lake.write_query(con, "flickr_geotag", _flickr(n_flickr, n_placing))


def _placing(start: int, stop: int, shard: int) -> str:
    # Photo i is the i-th of all Flickr photos; the Flickr set begins in the middle of these.
    return f"""
        select flickr_number(i)::varchar as photo_id, 'placing_2016' as source,
            substr(md5(i::varchar), 1, 2) || '/' || substr(md5(i::varchar), 3, 2) || '/' || flickr_number(i) || '.jpg' as path,
            photo_lon(i) as lon, photo_lat(i) as lat, null::timestamptz as captured_at, author(i) as author_hash,
            null::varchar as licence, null::varchar as landmark_id,
            case when i % 5000 = 0 then ['null_island'] else []::varchar[] end as flags, 'shard_{shard}.msg' as shard_file,
            i * 50000 as "offset", 50000 as bytes, null::varchar as file
        from (select range as i from range({start}, {stop}))"""


def _landmark(n: int) -> str:
    return f"""
        select id as photo_id, 'google_landmark' as source,
            id[1] || '/' || id[2] || '/' || id[3] || '/' || id || '.jpg' as path, photo_lon(-mark) as lon,
            photo_lat(-mark) as lat, null::timestamptz as captured_at, author(i) as author_hash,
            'https://creativecommons.org/licenses/by/3.0/' as licence, mark::varchar as landmark_id,
            case when i % 3 = 0 then []::varchar[] else ['unclean'] end as flags
        from (select range as i, substr(md5(range::varchar), 1, 16) as id, ({max(n // 20, 1)} * u(range, 11) ^ 2)::bigint as mark
            from range({n}))"""


def _flickr(n: int, n_placing: int) -> str:
    # Three tenths of Placing's photos are here too, and each hundredth photo is listed twice.
    return f"""
        select flickr_number(i)::varchar as photo_id, 'flickr_geotag' as source,
            (i % 2 + 1) || '/' || (i % 997) || '/' || flickr_number(i) || '_' || substr(md5(i::varchar), 1, 10) || '_o.jpg' as path,
            photo_lon(i) as lon, photo_lat(i) as lat, timestamptz '2005-01-01 00:00:00Z' + interval (i * 17 % 300000000) second as captured_at,
            author(i) as author_hash, 'CC BY-NC-SA 2.0' as licence, null::varchar as landmark_id, []::varchar[] as flags
        from (select case when range % 100 = 99 then range - 1 else range end + {int(n_placing * 0.7)} as i from range({n}))"""


def measured(what: str, root: str, settings: Geotag) -> tuple[dict[str, Any], dict[str, float]]:
    """Run one step here: its figures, and what it took beside processor time and memory."""
    use_cores(2)
    lake = Lake(root)
    most, done = [0], threading.Event()
    watch = threading.Thread(target=_watch, args=(Path(root), most, done))
    watch.start()
    began = time.perf_counter()
    step = {"geotag_combined": combine, "geotag_points": write_points}[what]
    figures = step(lake, settings, lambda line: print(f"  {time.perf_counter() - began:6.1f} s  {line}", flush=True))
    wall = time.perf_counter() - began
    done.set()
    watch.join()
    table_gb = lake.size(f"tables/{what}/data.parquet") / 1e9
    return figures, {"wall_s": wall, "spilled_gb": most[0] / 1e9, "table_gb": table_gb}


def _watch(root: Path, most: list[int], done: threading.Event) -> None:
    while not done.wait(0.2):
        sizes = []
        for path in (root / "scratch").rglob("*"):
            try:
                sizes.append(path.stat().st_blocks * 512)
            except OSError:  # gone since it was listed
                continue
        most[0] = max(most[0], sum(sizes))


@click.command()
@click.option("--rows", default=ROWS, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="folder that holds the sources, or is to hold them")
@click.option("--step", type=click.Choice(["geotag_combined", "geotag_points"]), help="one step alone")
def main(rows: int, keep: Path | None, step: str | None) -> None:
    """Make the sources, combine them, and say what it cost."""
    with tempfile.TemporaryDirectory(prefix="geotag_combined_") as scratch:
        root = str(keep or scratch)
        if not Lake(root).has("flickr_geotag"):
            apart(make_sources, root, rows)
        missed = False
        for what in [step] if step else ["geotag_combined", "geotag_points"]:
            ran = apart(measured, what, root, Geotag())
            figures, taken = ran.result
            cost = taken | {"cpu_s": ran.cpu_s, "peak_gb": ran.peak_gb}
            print(json.dumps(figures))
            print(f"{what}: " + ", ".join(f"{name} {value:.2f}" for name, value in cost.items()))
            good = cost["wall_s"] <= 60 * MOST_MINUTES and cost["peak_gb"] <= MOST_GB
            print(f"{'holds' if good else 'MISSED'}: {MOST_MINUTES:g} minutes, {MOST_GB:g} GB")
            missed |= not good
    sys.exit(missed)


if __name__ == "__main__":
    main()
