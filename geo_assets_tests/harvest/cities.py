"""Cities on paper, harvested whole: the settings, the run, and what the lake says afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from geo_assets.demo.paper import PaperWorld
from geo_assets.demo.server import TOKEN, Address
from geo_assets.harvest.city import CityHarvest, Outcome
from geo_assets.harvest.mapillary import Mapillary, Patience
from geo_assets.lake import Lake
from geo_assets.settings import City
from geo_assets.settings import Mapillary as Settings
from geo_assets.tables import TABLES

from .worlds import HURRY

CITY = "paper"
TIMES = {"fetched_at", "first_seen", "last_seen", "changed_at", "tombstoned_at", "url_expires_at"}
"""Columns that differ between two harvests of the same images."""


def city_of(world: PaperWorld, box_m: float = 500.0, aoi: Path | None = None) -> City:
    bounds = world.bounds
    if aoi is not None:
        from geo_assets.harvest.aoi import bounds_of

        bbox = bounds_of(aoi)
    else:
        bbox = (bounds.west, bounds.south, bounds.east, bounds.north)
    return City.model_validate({"bbox": bbox, "box_m": box_m, "aoi": aoi})


def harvest(
    address: Address,
    lake: Lake,
    city: City,
    *,
    patience: Patience = HURRY,
    files: bool = False,
    renew: bool = False,
    **settings: Any,
) -> Outcome:
    """What ``geo-assets harvest paper`` does, in this process and without waiting long."""
    known = {"graph_url": str(address), "tiles_url": str(address), "tiles_per_minute": 1_000_000}
    known |= {"searches_per_minute": 1_000_000, "entities_per_minute": 1_000_000} | settings
    with Mapillary(Settings.model_validate(known), TOKEN, patience, lake) as client:
        return CityHarvest(client, lake, CITY, city, renew=renew).run(files)


def living(lake: Lake) -> list[str]:
    """Ids of the harvested images that exist."""
    rows = table(lake, "image_metadata")
    return list(rows.loc[rows["tombstoned_at"].isna(), "image_id"])


def table(lake: Lake, name: str) -> pd.DataFrame:
    """All rows of a table, with the box of each."""
    parts = []
    for partition in lake.partitions(name):
        if partition["city"] == CITY:
            parts.append(lake.read(name, None, **partition).assign(box=partition.get("box", "")))
    return pd.concat(parts, ignore_index=True) if parts else TABLES[name].empty().assign(box="")


def timeless(lake: Lake, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Tables without the columns that say when, in an order of their own."""
    found = {}
    for name in names:
        rows = table(lake, name)
        rows = rows.loc[:, [c for c in rows if c not in TIMES]]
        keys = [c for c in ("box", "image_id", "sequence_id") if c in rows]
        found[name] = rows.sort_values(by=keys).reset_index(drop=True)
    return found


def assert_exact(lake: Lake, truth: Iterable[str]) -> None:
    """Every image of the truth is there once, and no other."""
    got, wanted = living(lake), set(truth)
    missing, extra = wanted - set(got), set(got) - wanted
    assert not missing, f"{len(missing)} of {len(wanted)} missing: {sorted(missing)[:5]}"
    assert not extra, f"{len(extra)} do not belong here: {sorted(extra)[:5]}"
    assert len(got) == len(wanted), "an image lies in two boxes"


def fast_clock(factor: float) -> SimpleNamespace:
    """Stands for module ``time``: a clock that runs so many times as fast."""
    return SimpleNamespace(time=lambda: time.time() * factor, monotonic=time.monotonic)


@contextmanager
def stalls(longest_s: float) -> Iterator[list[float]]:
    """How long this process stood still, each time that it did so for longer than ``longest_s`` [s]."""
    found: list[float] = []
    over = threading.Event()

    def watch() -> None:
        before = time.monotonic()
        while not over.wait(0.01):
            now = time.monotonic()
            if now - before > longest_s:
                found.append(now - before)
            before = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def write_settings(folder: Path, world: PaperWorld, box_m: float = 500.0) -> None:
    """The settings file of :func:`started`, under which tiles do not wait."""
    (folder / "geo_assets.toml").write_text(
        f"[cities.{CITY}]\nbbox = {world.bounds.as_list()}\nbox_m = {box_m}\n[mapillary]\ntiles_per_minute = 1000000\n"
    )


def started(address: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """``geo-assets harvest paper --json``, running in a folder."""
    environment = os.environ | {
        "GEO_ASSETS_MAPILLARY__GRAPH_URL": address,
        "GEO_ASSETS_MAPILLARY__TILES_URL": address,
        "MAPILLARY_TOKEN": TOKEN,
        "GEO_ASSETS_SETTINGS": str(folder / "geo_assets.toml"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "geo_assets.cli", "harvest", CITY, "--json", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def command(address: str, folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the last line and the whole output of ``geo-assets harvest paper --json``."""
    with started(address, folder, *arguments) as run:
        said, _ = run.communicate()
    lines = said.splitlines()
    last = lines[-1] if lines and lines[-1].startswith("{") else "{}"
    return run.returncode, json.loads(last), said
