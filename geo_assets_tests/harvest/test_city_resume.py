"""A city's harvest that is killed at any moment, and one of a city that was harvested before."""

from __future__ import annotations

import dataclasses
import random
import signal
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

from geo_assets.demo.paper import PaperWorld, paper_world
from geo_assets.demo.server import GRAPH_KINDS, Address, Behaviour, serving
from geo_assets.demo.world import DemoImage
from geo_assets.harvest.answers import Answers
from geo_assets.lake import Lake
from geo_assets.settings import City
from geo_assets.settings import Mapillary as Settings

from .cities import (
    CITY,
    assert_exact,
    city_of,
    command,
    harvest,
    living,
    started,
    table,
    timeless,
    write_settings,
)

TABLES = ("bbox_partitions", "sequence_ids", "sequence_images", "image_metadata", "certificates", "city_certificates")
BOX_M = 1500.0


@dataclass
class Asked:
    """What a server was asked, thing by thing: batches of ids differ from run to run, the ids do not."""

    lists: Counter[str] = field(default_factory=Counter)
    searches: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    tiles: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, targets: Counter[str]) -> Asked:
        """Take targets of :class:`Address` apart."""
        found = cls()
        for target, n in targets.items():
            url = urllib.parse.urlsplit(target)
            query = dict(urllib.parse.parse_qsl(url.query))
            if url.path == "/image_ids":
                found.lists[query["sequence_id"]] += n
            elif url.path.startswith("/maps/"):
                found.tiles[url.path] += n
            elif url.path.startswith("/files/"):
                found.files[url.path.split("/")[2]] += n
            elif "bbox" in query:
                window = [query[k] for k in ("start_captured_at", "end_captured_at") if k in query]
                found.searches[" ".join([query["bbox"], *window])] += n
            elif "thumb_" not in query["fields"]:  # addresses of files are asked late, and are not kept
                found.images.update({i: n for i in query.get("image_ids", url.path[1:]).split(",")})
        return found


def kept(lake: Lake) -> Asked:
    """What the answers of the lake hold, as the next run will read it."""
    answers, found = Answers(lake, CITY), Asked()
    for key in answers.keys("sequence"):
        found.lists[key] = len(answers.of("sequence", key))
    for key in answers.keys("search"):
        found.searches[key] = len(answers.of("search", key))
    for box in answers.keys("images"):
        found.images.update(answers.image_ids(box))
    found.images.update(answers.named("gone"))
    for name in lake.names(lake.key("tiles", city=CITY)):
        if name.endswith(".mvt"):
            data_set, z, x, y = name.removesuffix(".mvt").rsplit("-", 3)
            found.tiles[f"/maps/vtp/{data_set}/2/{z}/{x}/{y}"] = 1
    return found


def kill_at(address: Address, folder: Path, n_requests: int, wait_s: float, *arguments: str) -> bool:
    """SIGKILL a harvest some time after it sent so many requests; whether it was still running."""
    before = address.requests.total()
    with started(address, folder, *arguments) as run:
        while run.poll() is None and address.requests.total() - before < n_requests:
            time.sleep(0.001)
        time.sleep(wait_s)
        was_running = run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.communicate()
    return was_running


def undisturbed(world: PaperWorld, folder: Path, *arguments: str) -> tuple[Lake, Asked, int, float]:
    """The lake, what was asked, the requests, and how long the harvest went on after the last one."""
    folder.mkdir()
    write_settings(folder, world, BOX_M)
    with serving(world, Behaviour()) as api:
        code, said, told = command(api, folder, *arguments)
        ended = time.monotonic()
        assert code == 0 and said["complete"], told
        return Lake(folder / "lake"), Asked.of(api.asked), api.requests.total(), ended - api.times[-1][1]


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("world", "n_kills", "arguments"),
    [
        pytest.param(paper_world(5000, side_m=9000, hot_spots=1, seed=21), 20, (), id="discovery"),
        pytest.param(paper_world(400, side_m=500, seed=22), 8, ("--files",), id="files"),
    ],
)
def test_a_killed_harvest_goes_on_where_it_was(
    tmp_path: Path, world: PaperWorld, n_kills: int, arguments: tuple[str, ...]
) -> None:
    alone, wanted, n_requests, tail_s = undisturbed(world, tmp_path / "alone", *arguments)
    folder = tmp_path / "killed"
    folder.mkdir()
    write_settings(folder, world, BOX_M)
    lake, chance, n_killed = Lake(folder / "lake"), random.Random(23), 0
    # Some kills come after the last request, when a run only writes.
    moments = [*sorted(chance.sample(range(n_requests), n_kills - 3)), *[n_requests] * 3]
    with serving(world, Behaviour()) as api:
        for moment in [*moments, None]:
            before, had = Counter(api.asked), kept(lake)
            if moment is not None:
                left = moment - api.requests.total()
                wait_s = chance.uniform(0, 0.05 if moment < n_requests else tail_s)
                n_killed += kill_at(api, folder, left, wait_s if left > 0 else chance.uniform(0.2, 1.5), *arguments)
            else:
                code, said, told = command(api, folder, *arguments)
                assert code == 0 and said["complete"], told
            now = Asked.of(Counter(api.asked) - before)
            assert not set(now.lists) & set(had.lists), "a kept list was asked again"
            assert not set(now.tiles) & set(had.tiles), "a kept tile was asked again"
            assert not set(now.images) & set(had.images), "a kept image was asked again"
            for cell, n in now.searches.items():
                assert n + had.searches[cell] <= wanted.searches[cell], "a kept search was asked again"
        assert n_killed >= n_kills - 3, "harvests had ended before they were killed"
        total = Asked.of(api.answered)
    for name in ("lists", "searches", "tiles", "images", "files"):
        answered, needed = getattr(total, name), getattr(wanted, name)
        assert set(answered) == set(needed), name
        again = sum((answered - needed).values()) / (50 if name == "images" else 1)
        assert again <= n_killed * Settings().connections, f"{name}: more asked again than was in flight at the kills"
    assert_exact(lake, world.truth_inside())
    names = [*TABLES, "image_files"] if arguments else list(TABLES)
    expected = timeless(alone, names)
    for name, rows in timeless(lake, names).items():
        pd.testing.assert_frame_equal(rows, expected[name], obj=name)
    if arguments:
        files = table(lake, "image_files")
        assert set(files["status"]) == {"done"}
        assert sorted(p.stem for p in (folder / "lake/files/images").rglob("*.jpg")) == sorted(files["image_id"])
        assert not list((folder / "lake/files/images").rglob("*.tmp"))


# -- a city that was harvested before -----------------------------------------------------------------------------


def moved(world: PaperWorld, images: list[DemoImage]) -> PaperWorld:
    """The same place with other images."""
    return dataclasses.replace(world, images=tuple(images))


def later(world: PaperWorld, box_m: float = 500.0) -> tuple[PaperWorld, list[str], frozenset[str]]:
    """The world with a new sequence of old capture times and without a short one: it, what is new, what is gone."""
    model = world.sequences[max(world.sequences, key=lambda s: len(world.sequences[s]))][0]
    bounds = world.bounds
    lon, lat = bounds.west + 0.3 * (bounds.east - bounds.west), bounds.south + 0.3 * (bounds.north - bounds.south)
    taken = max(int(i.id) for i in world.images)
    new = [
        dataclasses.replace(
            model,
            id=str(taken + 1 + k),
            sequence_id="uploaded-late-but-old_",
            captured_at_ms=1_300_000_000_000 + 1000 * k,
            **dict.fromkeys(("lon", "computed_lon"), lon + k * 1e-5),
            **dict.fromkeys(("lat", "computed_lat"), lat),
        )
        for k in range(20)
    ]
    inside = world.truth_inside()
    short = min(
        (s for s, rows in world.sequences.items() if 5 <= len(rows) <= 60 and all(i.id in inside for i in rows)),
        key=lambda s: len(world.sequences[s]),
    )
    gone = frozenset(i.id for i in world.sequences[short])
    images = [i for i in world.images if i.id not in gone]
    return moved(world, [*images, *new]), [i.id for i in new], gone


def test_only_changed_boxes_are_asked_again(tmp_path: Path) -> None:
    world = paper_world(8000, side_m=4000, seed=31)
    second, new, gone = later(world)
    lake, city = Lake(tmp_path / "lake"), city_of(world)
    with serving(world) as api:
        first = harvest(api, lake, city)
        n_first = api.requests.total()
    assert first.complete
    before = table(lake, "image_metadata").set_index("image_id")
    files = {path: path.read_bytes() for path in (tmp_path / "lake/tables").rglob("*.parquet")}

    with serving(second) as api:
        outcome = harvest(api, lake, city, tiles_fresh_for_s=0)
        n_graph = sum(api.requests[kind] for kind in GRAPH_KINDS)
    assert outcome.complete and (outcome.n_new, outcome.n_deleted) == (len(new), len(gone))
    assert_exact(lake, second.truth_inside())
    touched = boxes_of(city, [i for i in (*world.images, *second.images) if i.id in gone or i.id in set(new)])
    assert set(outcome.changed) == touched and len(touched) < len(city.grid) / 4
    assert 0 < n_graph < n_first / 3

    after = table(lake, "image_metadata").set_index("image_id")
    assert set(after.index) == set(before.index) | set(new), "deleted images keep their rows"
    assert set(living(lake)) == set(after.index) - gone
    assert after.loc[before.index, "first_seen"].equals(before["first_seen"])
    stayed = [i for i in before.index if i not in gone and after["box"][i] in touched]
    assert stayed and min(after["last_seen"][stayed]) > max(before["last_seen"][stayed])
    for path, content in files.items():
        box = next((part.removeprefix("box=") for part in path.parts if part.startswith("box=")), None)
        if box is not None and box not in touched:
            assert path.read_bytes() == content, f"{path} was written again"


def boxes_of(city: City, images: list[DemoImage]) -> set[str]:
    places = [(i.lon if i.computed_lon is None else i.computed_lon, i.lat if i.computed_lat is None else i.computed_lat)
              for i in images]  # fmt: skip
    lon, lat = zip(*places, strict=True)
    return {box for box in city.grid.boxes_at(lon, lat) if box is not None}


def test_where_nothing_changed_only_tiles_are_asked(tmp_path: Path) -> None:
    world = paper_world(3000, side_m=2000, seed=32)
    lake, city = Lake(tmp_path / "lake"), city_of(world)
    with serving(world) as api:
        assert harvest(api, lake, city).complete
        asked = Counter(api.requests)
        again = harvest(api, lake, city)
        assert api.requests == asked and again.requests == 0, "young tiles are believed"
        files = {path: path.read_bytes() for path in (tmp_path / "lake/tables").rglob("box=*/*.parquet")}
        later = harvest(api, lake, city, tiles_fresh_for_s=0)
        assert {k: n for k, n in api.requests.items() if k in GRAPH_KINDS} == {
            k: n for k, n in asked.items() if k in GRAPH_KINDS
        }
        assert api.requests["tile"] == 2 * asked["tile"]
    assert again.complete and later.complete and not again.changed and not later.changed
    assert (later.n_new, later.n_deleted) == (0, 0)
    assert files and all(path.read_bytes() == content for path, content in files.items())
    assert_exact(lake, world.truth_inside())


def test_renew_asks_everything_again(tmp_path: Path) -> None:
    world = paper_world(1000, side_m=700, seed=33)
    lake, city = Lake(tmp_path / "lake"), city_of(world)
    with serving(world) as api:
        harvest(api, lake, city)
        asked = Counter(api.requests)
        outcome = harvest(api, lake, city, renew=True)
        assert api.requests == Counter({kind: 2 * n for kind, n in asked.items()})
    assert outcome.complete and (outcome.n_new, outcome.n_deleted) == (0, 0)
    assert_exact(lake, world.truth_inside())
