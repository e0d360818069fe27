"""Whole cities: every image of the area and no other, whatever the API does; and when that cannot be, it is said."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from geo_assets import limits
from geo_assets.demo.faults import APPLIES, Faults, lagging, mix
from geo_assets.demo.paper import PaperWorld, paper_world
from geo_assets.demo.server import BLOCK_S, GRAPH_KINDS, Behaviour, serving
from geo_assets.harvest import mapillary
from geo_assets.harvest.aoi import bounds_of
from geo_assets.harvest.mapillary import Patience
from geo_assets.lake import Lake

from .cities import assert_exact, city_of, command, fast_clock, harvest, living, stalls, table, write_settings

SHARE = 0.05
FILE_FAULTS = ("empty_file", "truncated_file", "expired")
PASSING = sorted(set(APPLIES) - {"blocked", *FILE_FAULTS})


@pytest.fixture(scope="module")
def city() -> PaperWorld:
    return paper_world(20_000, hot_spots=1, seed=3)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def absent(world: PaperWorld, share: float, seed: int = 1) -> frozenset[str]:
    """The images of that share of the sequences."""
    names = sorted(world.sequences)
    late = random.Random(seed).sample(names, round(share * len(names)))
    return frozenset(image.id for name in late for image in world.sequences[name])


# -- recall -----------------------------------------------------------------------------------------------------


def test_without_faults_every_image_is_found_within_the_budget(city: PaperWorld, lake: Lake) -> None:
    with serving(city) as api:
        outcome = harvest(api, lake, city_of(city))
    assert outcome.complete and outcome.requests == api.requests.total()
    assert_exact(lake, city.truth_inside())
    figures = outcome.as_dict()
    assert figures["n_images"] == len(city.truth_inside())
    assert api.requests.total() <= 1.1 * budget(api.requests, outcome.as_dict())
    row = table(lake, "city_certificates").iloc[0]
    assert row["n_unresolved"] == row["n_unverifiable"] == row["n_failed_tiles"] == row["n_unclosed"] == 0


def budget(requests: Counter[str], figures: dict[str, Any]) -> float:
    """Requests that a harvest may take: 2 a tile, 1 a sequence, 2 searches for 220 images, 1 page for 50."""
    n = figures["n_images"]
    return requests["tile"] + figures["n_sequences"] + 2 * n / 220 + n / 50


def test_a_wide_city_keeps_the_budget_too(lake: Lake) -> None:
    world = paper_world(20_000, side_m=40_000, seed=5)
    with serving(world) as api:
        outcome = harvest(api, lake, city_of(world, box_m=2000))
    assert outcome.complete
    assert_exact(lake, world.truth_inside())
    assert api.requests.total() <= 1.1 * budget(api.requests, outcome.as_dict())


@pytest.mark.parametrize("fault", PASSING)
def test_each_fault_alone(city: PaperWorld, lake: Lake, fault: str) -> None:
    share = 0.5 if APPLIES[fault] == {"tile"} else SHARE  # a city has few tiles
    with serving(city, Behaviour(fault=Faults({fault: share}, seed=7), slow_s=0.02, seed=7)) as api:
        outcome = harvest(api, lake, city_of(city))
    assert api.faulted[fault] or fault == "without_thumb", "the fault was not shown"
    assert_exact(lake, city.truth_inside())
    assert outcome.complete


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_each_fault_of_files(lake: Lake, fault: str) -> None:
    world = paper_world(600, side_m=600, seed=4)
    with serving(world, Behaviour(fault=Faults({fault: SHARE}, seed=7))) as api:
        outcome = harvest(api, lake, city_of(world), files=True)
    assert api.faulted[fault]
    assert outcome.complete and outcome.n_files == len(world.truth_inside()) and not outcome.n_dead
    assert_exact(lake, world.truth_inside())


def behaviours(world: PaperWorld) -> dict[str, Behaviour]:
    """Quirks of the API that are no faults of single requests."""
    gone = frozenset(random.Random(2).sample(sorted(world.ids), 300)) | absent(world, 0.01, seed=5)
    return {
        "lagging tiles": Behaviour(absent_from_tiles=lagging(world, seed=1)),
        "most tiles lag": Behaviour(absent_from_tiles=absent(world, 0.9)),
        "most tiles lag, gate": Behaviour(absent_from_tiles=absent(world, 0.9), dense_above=2500),
        "deleted": Behaviour(deleted=gone),
        "gate at 2,500": Behaviour(dense_above=2500),
        "gate at 4,000": Behaviour(dense_above=4000, absent_from_tiles=lagging(world, seed=1)),
        "short answers": Behaviour(short=0.4, absent_from_tiles=lagging(world, seed=1)),
        "short answers of few rows": Behaviour(short=0.4, rows=500),
    }


@pytest.mark.parametrize("name", list(behaviours(paper_world(500, side_m=600))))
def test_each_quirk_alone(city: PaperWorld, lake: Lake, name: str) -> None:
    behaviour = behaviours(city)[name]
    with serving(city, behaviour) as api:
        outcome = harvest(api, lake, city_of(city))
    assert_exact(lake, city.truth_inside() - behaviour.deleted)
    assert outcome.complete


@pytest.mark.parametrize("shape", ["stacked", "long_sequence"])
@pytest.mark.parametrize("gate", [20_000, 2_600])
def test_thousands_of_images_on_one_point_or_in_one_sequence(lake: Lake, shape: str, gate: int) -> None:
    world = paper_world(20_000, seed=6, **{shape: 2500})
    behaviour = Behaviour(dense_above=gate, absent_from_tiles=lagging(world, seed=6) if gate == 2_600 else frozenset())
    with serving(world, behaviour) as api:
        outcome = harvest(api, lake, city_of(world))
    assert_exact(lake, world.truth_inside())
    assert outcome.complete


def test_a_polygon_is_exact(city: PaperWorld, lake: Lake, tmp_path: Path) -> None:
    import shapely

    (west, south), (east, north) = city.bounds.as_list()[:2], city.bounds.as_list()[2:]
    angles = np.linspace(0, 2 * np.pi, 9, endpoint=False)
    reach = np.array([0.47, 0.2, 0.44, 0.41, 0.18, 0.46, 0.3, 0.45, 0.22])
    ring = np.column_stack([0.5 + reach * np.cos(angles), 0.5 + reach * np.sin(angles)])
    hole = 0.5 + 0.06 * np.array([[-1, -1], [1, -0.9], [0.8, 1.1], [-1.1, 0.9]])
    polygon = shapely.Polygon(*(
        [[west, south] + r * [east - west, north - south] for r in ring],
        [[[west, south] + r * [east - west, north - south] for r in hole]],
    ))  # fmt: skip
    path = tmp_path / "aoi.geojson"
    path.write_text(
        json.dumps({"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(polygon))})
    )
    with serving(city) as api:
        outcome = harvest(api, lake, city_of(city, aoi=path))
    truth = {
        image.id
        for image in city.images
        if shapely.intersects_xy(
            polygon,
            image.lon if image.computed_lon is None else image.computed_lon,
            image.lat if image.computed_lat is None else image.computed_lat,
        )
    }
    assert 2000 < len(truth) < 15_000
    assert bounds_of(path)[0] == pytest.approx(polygon.bounds[0])
    assert_exact(lake, truth)
    assert outcome.complete


@pytest.mark.chaos
def test_a_large_city_with_all_faults_at_once(lake: Lake) -> None:
    world = paper_world(200_000, hot_spots=5, side_m=6000, seed=8)
    behaviour = Behaviour(
        fault=mix(0.03, seed=8), slow_s=0.02, absent_from_tiles=lagging(world, seed=8), seed=8, record=False
    )
    with serving(world, behaviour) as api:
        outcome = harvest(api, lake, city_of(world))
    # Nobody asks for thumbs here, and of the few tiles none need be hit.
    assert set(api.faulted) >= set(PASSING) - {"without_thumb", "tile_not_found"}
    assert_exact(lake, world.truth_inside())
    assert outcome.complete


# -- what cannot be complete --------------------------------------------------------------------------------------


def test_a_refused_spot_that_tiles_do_not_show_is_said_to_be_unverifiable(lake: Lake) -> None:
    world = paper_world(5000, side_m=1500, stacked=2500, seed=6)
    spots = Counter((image.lon, image.lat) for image in world.images)
    spot, n = spots.most_common(1)[0]
    assert n == 2500
    late = frozenset(image.id for image in world.images if (image.lon, image.lat) == spot)
    with serving(world, Behaviour(absent_from_tiles=late, dense_above=1000)) as api:
        outcome = harvest(api, lake, city_of(world))
    figures = outcome.as_dict()
    assert not outcome.complete and not figures["complete"]
    assert figures["unverifiable"] > 0
    assert figures["n_complete"] < figures["n_boxes"]
    assert set(living(lake)) <= world.truth_inside()
    proofs = table(lake, "certificates")
    assert set(proofs.loc[~proofs["complete"], "box"]).isdisjoint(table(lake, "image_metadata")["box"])


def test_a_blocked_tile_host_is_left_alone_for_a_day_and_the_rest_goes_on(tmp_path: Path) -> None:
    world = paper_world(3000, side_m=4000, seed=9)
    write_settings(tmp_path, world)
    passed_s = 0.0

    def blocks(kind: str, n: int) -> str | None:
        return "blocked" if kind == "tile" and n == 5 else None

    with serving(world, Behaviour(fault=blocks, clock=lambda: time.time() + passed_s)) as api:
        code, said, told = command(api, tmp_path)
        assert code == 1 and not said["complete"] and said["failed_tiles"] > 0
        assert "Not complete" in told and "tiles" in told
        first = Counter(api.requests)
        assert 5 <= first["tile"] <= 6, "one more may have been on its way"
        assert all(first[kind] > 0 for kind in ("search", "sequence", "images"))
        had = {target for target in api.answered if target.startswith("/maps/")}

        code, said, _ = command(api, tmp_path)
        assert code == 1 and not said["complete"]
        assert api.requests == first, "a day has not passed, and everything else was answered"

        passed_s = BLOCK_S + 1
        lake = Lake(tmp_path / "lake")
        (block,) = (name for name in lake.names(lake.key("limits")) if name.endswith(".blocked.json"))
        lake.put_bytes(f"{lake.key('limits')}/{block}", json.dumps({"until": time.time() - 1}).encode())
        asked = Counter(api.asked)
        code, said, told = command(api, tmp_path)
        assert code == 0 and said["complete"], told
        again = {target for target in api.asked if target.startswith("/maps/") and api.asked[target] > asked[target]}
    assert again and had.isdisjoint(again)
    assert_exact(lake, world.truth_inside())


# -- manners ------------------------------------------------------------------------------------------------------


def most_within(times: list[float], window_s: float) -> int:
    """The most moments that any window of that length holds."""
    ordered = np.sort(times)
    return int((np.searchsorted(ordered, ordered + window_s, "left") - np.arange(len(ordered))).max())


def test_requests_are_spaced_evenly_so_that_no_minute_holds_more_than_the_limit(lake: Lake) -> None:
    world = paper_world(4000, side_m=800, seed=10)
    searches, entities = 600, 1800
    with serving(world) as api:
        outcome = harvest(
            api, lake, city_of(world), searches_per_minute=searches, entities_per_minute=entities, connections=32
        )
    assert outcome.complete
    for kinds, per_minute in (({"search"}, searches), (GRAPH_KINDS - {"search"}, entities)):
        times = [at for kind, at in api.times if kind in kinds]
        assert len(times) >= 15
        for window_s in (0.5, 1.0, 2.0):
            # What starts on time may come a moment late on a busy machine: two requests more than the pace.
            assert most_within(times, window_s) <= math.ceil(per_minute / 60 * window_s) + 2


def test_no_window_holds_more_tiles_than_the_limit(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WINDOW_S", 1.0)  # a minute lasts a second here
    world = paper_world(300, side_m=6000, seed=11)
    with serving(world) as api:
        outcome = harvest(api, lake, city_of(world, box_m=2000), tiles_per_minute=8)
    assert outcome.complete
    times = [at for kind, at in api.times if kind == "tile"]
    assert len(times) >= 24 and most_within(times, 0.99) <= 8


def test_an_unknown_limit_is_learned_with_less_than_one_percent_refused(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, city: PaperWorld
) -> None:
    """With the documented pauses, but on a clock that runs 20 times as fast for client and server alike."""
    factor, clock = 20, fast_clock(20)

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / factor)

    quick = SimpleNamespace(sleep=sleep, Event=asyncio.Event)
    monkeypatch.setattr(limits, "time", clock)
    monkeypatch.setattr(limits, "asyncio", quick)
    monkeypatch.setattr(mapillary, "time", clock)
    monkeypatch.setattr(mapillary, "_MOST_PER_S", mapillary._MOST_PER_S / factor)
    patience = Patience(first_wait_s=0.001, longest_wait_s=0.002)
    with serving(city, Behaviour(per_minute=300, clock=clock.time)) as api, stalls(0.05) as stalled:
        outcome = harvest(
            *(api, lake, city_of(city)),
            patience=patience,
            searches_per_minute=10_000,
            entities_per_minute=60_000,
            tiles_per_minute=60,
            connections=3,
        )
    assert outcome.complete
    assert_exact(lake, city.truth_inside())
    n_graph = sum(api.requests[kind] for kind in GRAPH_KINDS)
    refused = sum(api.refused.values())
    # A machine that stands still for a moment stands still for seconds of the fast clock: what was spaced comes at once,
    # and what is in flight is refused, with the requests that probe afterwards.
    excused = (3 + limits.CERTAIN) * len(stalled)
    assert n_graph > 600 and 0 < refused < 0.01 * n_graph + excused, (api.refused, stalled)


@pytest.mark.parametrize("fault", ["html", "server_error", "reset"])
def test_a_tile_that_fails_for_a_moment_is_no_block(lake: Lake, fault: str) -> None:
    world = paper_world(300, side_m=600, seed=12)

    def fails(kind: str, n: int) -> str | None:
        return fault if kind == "tile" and n in (1, 2) else None

    with serving(world, Behaviour(fault=fails, seed=1)) as api:
        outcome = harvest(api, lake, city_of(world))
    assert outcome.complete and outcome.as_dict()["failed_tiles"] == 0
    assert_exact(lake, world.truth_inside())
