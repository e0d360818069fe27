"""How fast landmarks are placed: python benchmarks/landmark_coordinates.py [--pages 200].

One web page a landmark, as earlier scripts did it, against batches of 50, both from the demo's Wikimedia on loopback,
where every answer takes 0.6 s. Then all 203,094 landmarks with a server in memory and simulated time: what that takes
is what the pace of Wikimedia leaves.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from geo_assets.demo.run import peak_memory_gb
from geo_assets.demo.wikimedia import Behaviour, Category, Statement, Wiki, World, serving, simulated_time
from geo_assets.geotag.coordinates import locate
from geo_assets.geotag.degrees import position_of
from geo_assets.geotag.inputs import landmark_parts
from geo_assets.geotag.wikimedia import Reply, Wikimedia
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.settings import Wikimedia as Api

LATENCY_S = 0.6
ALL = 203_094
GEOHACK = re.compile(r'href="[^"]*geohack[^>]*>([^<]*)<')


class Categories(Mapping[str, Category]):
    """Landmarks as they are at Commons, or all with a coordinate of their own; made when they are asked for."""

    def __init__(self, n: int, *, all_own: bool = False) -> None:
        self.n, self.all_own = n, all_own

    def __getitem__(self, title: str) -> Category:
        name, _, number = title.removeprefix("Category:").partition(" ")
        k = int(number) if number.isdigit() and name in ("Place", "Target") else self.n
        if k >= self.n:
            raise KeyError(title)
        form = 0.5 if self.all_own else random.Random(k).random()
        if name == "Place" and form < 0.03:
            return Category(text=f"{{{{Category redirect|Target {k}}}}}")
        if form < 0.05:
            raise KeyError(title)
        if form < 0.10:
            return Category()
        return Category(place(k), f"Q{k + 1}") if form < 0.55 else Category(item=f"Q{k + 1}")

    def __iter__(self) -> Iterator[str]:
        return (f"Category:Place {k}" for k in range(self.n))

    def __len__(self) -> int:
        return self.n


class Items(Mapping[str, tuple[Statement, ...]]):
    """Items of the landmarks; one in eight is about another, which has the coordinate."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __getitem__(self, item: str) -> tuple[Statement, ...]:
        k = int(item[1:])
        return (Statement(topic=f"Q{k + self.n}"),) if k <= self.n and k % 8 == 0 else (Statement(place(k % self.n)),)

    def __iter__(self) -> Iterator[str]:
        return (f"Q{k + 1}" for k in range(2 * self.n))

    def __len__(self) -> int:
        return 2 * self.n


def place(k: int) -> tuple[float, float]:
    return k % 36_000 / 100 - 180, k % 17_000 / 100 - 85


def write_inputs(folder: Path, n: int) -> Path:
    folder.mkdir()
    lines = (f"{k},http://commons.wikimedia.org/wiki/Category:Place_{k}\n" for k in range(n))
    (folder / "train_label_to_category.csv").write_text("landmark_id,category\n" + "".join(lines))
    return folder


def one_page_each(address: str, n: int) -> float:
    """Landmarks a second where a page is got for each."""

    async def get() -> int:
        found = 0
        async with aiohttp.ClientSession() as session:
            for k in range(n):
                async with session.get(f"{address}/wiki/Category:{urllib.parse.quote(f'Place {k}')}") as answer:
                    match = GEOHACK.search(await answer.text())
                    found += match is not None and position_of(match[1]) is not None
        return found

    began = time.perf_counter()
    asyncio.run(get())
    return n / (time.perf_counter() - began)


def in_batches(api: Api, n: int, scratch: Path) -> float:
    """Landmarks a second where fifty are a call."""
    settings = Geotag(landmarks=n, wikimedia=api)
    folder, lake = write_inputs(scratch / "few", n), Lake(scratch / "few_lake")
    began = time.perf_counter()
    with Wikimedia(api, lake=lake) as client:
        locate(lake, folder, landmark_parts(settings), settings, client)
    return n / (time.perf_counter() - began)


def all_landmarks(per_minute: float, scratch: Path, *, all_own: bool = False) -> dict[str, Any]:
    """All landmarks at a pace, on a simulated clock; without those that need their item it is the first step alone."""
    api = Api(contact="bench@example.org", per_minute=per_minute)
    settings, lake = Geotag(wikimedia=api), Lake(scratch / f"all_{per_minute:.0f}_{all_own}")
    folder = scratch / "all"
    if not folder.exists():
        write_inputs(folder, ALL)
    with simulated_time() as clock:
        wiki = Wiki(World(Categories(ALL, all_own=all_own), Items(ALL)), Behaviour(clock=clock))
        served_s = 0.0

        async def post(url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
            nonlocal served_s
            await asyncio.sleep(0.3)
            began_s = time.process_time()
            reply = await wiki.post(url, form, headers)
            served_s += time.process_time() - began_s
            return reply

        began, cpu = clock.now, time.process_time()
        with Wikimedia(api, lake=lake, post=post) as client:
            figures = locate(lake, folder, landmark_parts(settings), settings, client)
        minutes, cpu_s = (clock.now - began) / 60, time.process_time() - cpu - served_s
        again, cpu = Wiki(wiki.world), time.process_time()
        with Wikimedia(api, lake=lake, post=again.post) as client:
            locate(lake, folder, landmark_parts(settings), settings, client)
        if again.record.calls:
            raise SystemExit("what was known was asked again")
    asked, calls = wiki.record.asked, wiki.record.calls
    n_soft, n_items = len(asked["redirects"]), len(asked["items"])
    bound = 4062 + 2 * -(-n_soft // 50) + -(-n_items // 50) + 1
    if sum(calls.values()) > bound or (all_own and minutes > 21):
        raise SystemExit(f"{sum(calls.values())} calls in {minutes:.1f} minutes; {bound} are allowed")
    return {
        "per_minute": per_minute,
        "calls": sum(calls.values()),
        "calls_by_kind": dict(calls),
        "bound": bound,
        "redirects": n_soft,
        "items": n_items,
        "found_share": round(figures["n_found"] / figures["n_landmarks"], 4),
        "minutes": round(minutes, 2),
        "landmarks_per_s": round(ALL / 60 / minutes, 1),
        "client_cpu_s": round(cpu_s, 1),
        "again_cpu_s": round(time.process_time() - cpu, 1),
    }


def landmarks(n_pages: int = 200, n_batches: int = 600) -> dict[str, Any]:
    """Both ways on loopback, and all landmarks at the paces of Wikimedia."""
    world = World(Categories(10_000), Items(10_000))
    with tempfile.TemporaryDirectory(prefix="landmarks_") as name:
        scratch = Path(name)
        with serving(world, Behaviour(latency_s=LATENCY_S, page_latency_s=LATENCY_S)) as api:
            pages = one_page_each(api, n_pages)
            batches = in_batches(api.settings(), n_batches, scratch)
        first = all_landmarks(200.0, scratch, all_own=True)
        simulated = [all_landmarks(pace, scratch) for pace in (200.0, 2000.0)]
    return {
        "one_page_each_per_s": round(pages, 2),
        "batches_per_s": round(batches, 1),
        "ratio": round(batches / pages, 1),
        "ratio_at_the_pace_of_wikimedia": round(first["landmarks_per_s"] / pages, 1),
        "hours_one_page_each": round(ALL / pages / 3600, 1),
        "first_step": first,
        "simulated": simulated,
        "peak_gb": round(peak_memory_gb(), 2),
    }


@click.command(help=__doc__)
@click.option("--pages", "n_pages", default=200, help="landmarks that are asked one page each")
@click.option("--batches", "n_batches", default=600, help="landmarks that are asked in batches")
def main(n_pages: int, n_batches: int) -> None:
    click.echo(json.dumps(landmarks(n_pages, n_batches), indent=1))


if __name__ == "__main__":
    main()
