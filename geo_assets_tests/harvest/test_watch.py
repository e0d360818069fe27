"""Looks at the tiles of small cities that change: what is found, what it costs, and what is said where nothing is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from geo_assets.demo.server import Address, Behaviour, serving
from geo_assets.demo.world import World
from geo_assets.harvest.city import CityHarvest, harvest_photos
from geo_assets.harvest.source import Box, PhotoFolder
from geo_assets.harvest.watch import NEW, TRIES, UPDATED, Look, look
from geo_assets.lake import Lake
from geo_assets.settings import Automation, City
from geo_assets.tables import TABLES

from .test_photos import photo
from .worlds import LAT, LON, client, image, jpeg, street, town

ALWAYS = Automation(look_every_s=0)


def opener(address: Address) -> Callable[[City, Lake], Any]:
    return lambda _city, lake: client(address, lake=lake)


def harvest(world: World, lake: Lake, name: str = "town", city: City | None = None) -> None:
    with serving(world) as address, client(address, lake=lake) as mapillary:
        CityHarvest(mapillary, lake, name, city or town()).run()


def look_at(
    world: World,
    lake: Lake,
    state: dict | None = None,
    *,
    name: str = UPDATED,
    cities: dict[str, City] | None = None,
    options: Automation = ALWAYS,
    behaviour: Behaviour | None = None,
) -> tuple[Look, Address]:
    with serving(world, behaviour) as address:
        found = look(name, lake, cities or {"town": town()}, options, state or {}, opener(address))
    return found, address


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return street(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    root = tmp_path_factory.mktemp("harvested")
    harvest(world, Lake(root))
    return root


@pytest.fixture
def lake(tmp_path: Path, harvested: Path) -> Lake:
    shutil.copytree(harvested, tmp_path / "lake")  # with its times
    return Lake(tmp_path / "lake")


def changed(world: World) -> World:
    """The street without the first sequence, and with a new one in the last box whose photos are old."""
    came = [image(900 + k, "seq-late", 210.0 + 5 * k, 22.0, captured_at_ms=1_000_000_000_000 + k) for k in range(7)]
    for one in came:
        (world.folder / f"{one.id}.jpg").write_bytes(jpeg(1))
    return World((*(i for i in world.images if i.sequence_id != "seq-0_x"), *came), {}, world.folder)


def test_a_city_that_did_not_change_asks_for_nothing(world: World, lake: Lake) -> None:
    found, address = look_at(world, lake)
    assert not found.changes and found.n_boxes == 3
    assert found.n_requests == address.requests["tile"] == sum(address.requests.values()) > 0
    assert "none changed" in found.summary and f"{2000 - found.n_requests:,} tile requests left" in found.summary


def test_new_and_deleted_images_are_found_and_each_tile_is_asked_once(world: World, lake: Lake) -> None:
    found, address = look_at(changed(world), lake)
    assert {c.box: (c.n_new, c.n_gone) for c in found.changes} == {"r00c00": (0, 20), "r00c02": (7, 0)}
    assert [c.why for c in found.changes] == ["+0 images, -20 images", "+7 images, -0 images"]
    assert set(address.asked.values()) == {1}
    again, _ = look_at(changed(world), lake)
    assert [c.key for c in again.changes] == [c.key for c in found.changes]


def test_after_the_harvest_there_is_nothing_left_and_a_state_that_returns_is_another_change(
    world: World, lake: Lake
) -> None:
    first, _ = look_at(changed(world), lake)
    harvest_again(changed(world), lake)
    assert not look_at(changed(world), lake)[0].changes
    harvest_again(world, lake)
    returned, _ = look_at(changed(world), lake)
    assert {c.box for c in returned.changes} == {"r00c00", "r00c02"}
    assert not {c.key for c in returned.changes} & {c.key for c in first.changes}


def harvest_again(world: World, lake: Lake) -> None:
    with serving(world) as address, client(address, lake=lake, tiles_fresh_for_s=0) as mapillary:
        CityHarvest(mapillary, lake, "town", town()).run()


def test_a_city_is_looked_at_once_in_a_while(world: World, lake: Lake) -> None:
    found, _ = look_at(world, lake, options=Automation(look_every_s=1000))
    again, address = look_at(changed(world), lake, found.state, options=Automation(look_every_s=1000))
    assert not again.changes and not address.requests
    assert "looked at as a whole; again from 20" in again.words[0]


def test_the_budget_holds_and_the_look_goes_on_the_next_day(world: World, lake: Lake) -> None:
    options, state = Automation(look_every_s=0, tiles_per_day=1), {}
    asked: list[str] = []
    changes: list[str] = []
    for _ in range(2):  # days
        for n_left in (1, 0):
            found, address = look_at(changed(world), lake, state, options=options)
            assert found.n_requests == address.requests["tile"] == n_left and found.left == 0
            state = json.loads(json.dumps(found.state))
            asked += list(address.asked)
            changes += [c.box for c in found.changes]
            if not n_left and not found.changes:
                assert any("1 tile requests are spent" in word for word in found.words)
        key = lake.key("watch", f"{UPDATED}.json")
        lake.put_bytes(key, json.dumps({"day": "2020-01-01", "spent": 1}).encode())
    assert len(set(asked)) == len(asked) == 2, "no tile is asked twice in a round"
    assert set(changes) == {"r00c00", "r00c02"}
    assert len(json.dumps(state)) < 200


def test_both_looks_spend_from_one_budget(world: World, lake: Lake) -> None:
    lake.put_bytes(lake.key("watch", f"{NEW}.json"), b'{"day": "2020-01-01", "spent": 5}')
    found, _ = look_at(world, lake, options=Automation(look_every_s=0, tiles_per_day=2))
    assert found.left == 0
    bigger, grown = {"town": town(40)}, Automation(look_every_s=0, tiles_per_day=2)
    late, address = look_at(world, lake, name=NEW, cities=bigger, options=grown)
    assert not address.requests and any("spent" in word for word in late.words)


def test_a_blocked_host_is_said_and_not_probed(world: World, lake: Lake) -> None:
    blocking = Behaviour(fault=lambda kind, n: "blocked" if kind == "tile" else None)
    found, _ = look_at(changed(world), lake, behaviour=blocking)
    assert not found.changes and "blocked this address; it is asked again from 20" in found.words[0]
    with serving(world, blocking) as address:
        blocked = [name for name in lake.names(lake.key("limits")) if name.endswith(".blocked.json")]
        host = str(address).removeprefix("http://").replace(":", "_")
        lake.put_bytes(lake.key("limits", f"{host}.blocked.json"), lake.get_bytes(lake.key("limits", blocked[0])))
        again = look(UPDATED, lake, {"town": town()}, ALWAYS, found.state, opener(address))
        assert not address.requests and again.n_requests == 0 and "blocked" in again.words[0]


def test_a_tile_that_fails_is_asked_again_and_then_passed_over(world: World, lake: Lake) -> None:
    failing = Behaviour(fault=lambda kind, n: "tile_not_found" if kind == "tile" else None)
    state: dict[str, Any] = {}
    for n in range(TRIES):
        found, _ = look_at(changed(world), lake, state, behaviour=failing)
        state = found.state
        assert not found.changes, "an older tile says nothing of today"
        assert ("passed over" if n == TRIES - 1 else "asked again") in found.words[0]
    assert look_at(changed(world), lake, state)[0].changes


def test_a_missing_token_is_said_in_words(world: World, lake: Lake) -> None:
    with serving(world) as address:
        found = look(UPDATED, lake, {"town": town()}, ALWAYS, {}, lambda _, lake: client(address, None, lake))
    assert not found.changes and found.words[0].startswith("town: ") and "MAPILLARY_TOKEN" in found.words[0]


def test_a_city_that_grows_gets_its_new_boxes_alone(world: World, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "young")
    harvest(world, lake, city=town(2))
    found, _ = look_at(world, lake, name=NEW)
    assert [(c.box, c.n_new, c.n_gone, c.base) for c in found.changes] == [("r00c02", 20, 0, 0)]
    assert not look_at(world, lake, name=NEW, cities={"town": town(2)})[0].changes
    assert not look_at(world, lake, name=UPDATED)[0].changes


def test_a_city_of_which_nothing_was_harvested_is_left_to_a_person(world: World, lake: Lake) -> None:
    for name in (UPDATED, NEW):
        found, address = look_at(world, lake, name=name, cities={"other": town()})
        assert not found.changes and not address.requests
        assert found.words == ["other was never harvested; begin with: geo-assets harvest other"]


def test_cities_take_turns(world: World, lake: Lake) -> None:
    harvest(world, lake, name="second")
    cities, options = {"town": town(), "second": town()}, Automation(look_every_s=0, tiles_per_day=2)
    first, _ = look_at(changed(world), lake, cities=cities, options=options)
    assert {c.city for c in first.changes} == {"town"}
    lake.remove(lake.key("watch", f"{UPDATED}.json"))
    second, _ = look_at(changed(world), lake, first.state, cities=cities, options=options)
    assert {c.city for c in second.changes} == {"second"}


def test_a_harvest_that_was_not_finished_is_asked_for_again(world: World, lake: Lake) -> None:
    proof = lake.read("certificates", city="town", box="r00c01")
    proof = proof.loc[:, TABLES["certificates"].column_names].assign(complete=False)
    lake.write("certificates", proof, city="town", box="r00c01")
    found, _ = look_at(world, lake)
    assert [(c.box, c.unfinished) for c in found.changes] == [("r00c01", True)]
    assert found.changes[0].why == "+0 images, -0 images; the harvest before was not finished"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "photos"
    for k in range(4):
        photo(root / "a" / f"{k}.jpg", LON + 0.0002 + 0.0008 * k, LAT + 0.0002)
    yield root


def test_a_folder_of_photos_is_read_where_its_listing_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, city = Lake(tmp_path / "lake"), town().model_copy(update={"photos": folder})
    harvest_photos(lambda box: PhotoFolder(Box("own", box, city, lake), folder), lake, "own", city)
    first = look(UPDATED, lake, {"own": city}, ALWAYS, {})
    assert not first.changes and first.n_boxes == 3
    photo(folder / "b" / "9.jpg", LON + 0.0003, LAT + 0.0002)
    (folder / "a" / "3.jpg").unlink()
    found = look(UPDATED, lake, {"own": city}, ALWAYS, first.state)
    assert {c.box: (c.n_new, c.n_gone) for c in found.changes} == {"r00c00": (1, 0), "r00c02": (0, 1)}
    monkeypatch.setattr("geo_assets.harvest.photos.scan", lambda _: pytest.fail("the listing is the same"))
    assert not look(UPDATED, lake, {"own": city}, ALWAYS, found.state).changes
