"""The client against the demo server, whose answers and faults are those recorded of the real API."""

import json
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from geo_assets.demo.server import TOKEN, Behaviour, serving
from geo_assets.demo.world import World
from geo_assets.errors import ApiError, ConfigError
from geo_assets.harvest.mapillary import Mapillary, kind_of
from geo_assets.harvest.tiles import images_of, tile_at
from geo_assets.settings import Mapillary as Settings
from geo_assets_tests.harvest.worlds import LAT, LON, around, client, street


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return street(tmp_path_factory.mktemp("street"), n=120)


def failing(*faults: str | None, kind: str = "") -> Callable[[str, int], str | None]:
    """The first requests fail in the given ways, of one kind if one is named; then all is well."""
    left = list(faults)
    return lambda what, n: left.pop(0) if left and (not kind or what == kind) else None


def test_the_whole_api_on_a_good_day(world: World) -> None:
    ids = [i.id for i in world.images]
    with serving(world) as address, client(address) as api:
        tile = tile_at(LON, LAT)
        named = images_of(api.tile("original", tile.z, tile.x, tile.y), tile)
        assert sorted(named["image_id"]) == ids
        assert api.image_ids("seq-0_x") == ids[:20]
        assert {r["id"] for r in api.search(around(50, 20, 10))} == set(ids[8:12])
        answer = api.images(ids, ["thumb_2048_url"])
        assert [r["id"] for r in answer.rows] == ids and not answer.tombstones and not answer.unresolved
        assert api.download(answer.rows[3]["thumb_2048_url"]) == world.jpeg(ids[3])
        assert address.requests["images"] == 3, "120 images are three batches"
        assert api.requests == {"tiles": 1, "entities": 4, "searches": 1, "files": 1}


@pytest.mark.parametrize(
    "fault", ["service_unavailable", "query_timeout", "app_rate_limit", "html", "half", "reset", "empty"]
)
def test_passing_faults_are_sat_out(world: World, fault: str) -> None:
    ids = [i.id for i in world.images]
    with serving(world, Behaviour(fault=failing(fault, fault))) as address, client(address) as api:
        assert [r["id"] for r in api.images(ids, ["sequence"]).rows] == ids


def test_a_tile_that_is_away_for_a_moment(world: World) -> None:
    tile = tile_at(LON, LAT)
    with serving(world, Behaviour(fault=failing("not_found", "half"))) as address, client(address) as api:
        assert len(images_of(api.tile("computed", tile.z, tile.x, tile.y), tile)) == 120


def test_a_limit_pauses_every_worker(world: World) -> None:
    refused = failing(*["app_rate_limit"] * 12, kind="sequence")
    with serving(world, Behaviour(fault=refused)) as address, client(address) as api:
        lists = list(api.each(api.image_ids, [f"seq-{i}_x" for i in range(6)]))
        assert [len(ids) for ids in lists] == [20] * 6
        assert address.requests["sequence"] == 18


@pytest.mark.parametrize("fault", ["no_token", "malformed_token", "unknown_token_header"])
def test_a_refused_token_is_not_tried_again(world: World, fault: str) -> None:
    with (
        serving(world, Behaviour(fault=lambda kind, n: fault)) as address,
        client(address) as api,
        pytest.raises(ApiError, match="Check MAPILLARY_TOKEN") as caught,
    ):
        api.image_ids("seq-0_x")
    assert address.requests["sequence"] == 1
    assert kind_of(caught.value) == "fatal"


def test_a_dense_box_is_not_tried_again(world: World) -> None:
    with serving(world, Behaviour(dense_above=10)) as address, client(address) as api:
        with pytest.raises(ApiError) as caught:
            api.search(around(50, 20, 100))
        assert kind_of(caught.value) == "dense" and address.requests["search"] == 1


def test_deleted_images_become_tombstones(world: World) -> None:
    ids = [i.id for i in world.images]
    with serving(world, Behaviour(deleted=frozenset(ids[5:8]))) as address, client(address) as api:
        answer = api.images([*ids, "424242"], ["sequence"])
    assert answer.tombstones == [*ids[5:8], "424242"] and len(answer.rows) == 117


def test_a_token_without_rights_is_no_deletion(world: World) -> None:
    everything = frozenset(i.id for i in world.images)
    with (
        serving(world, Behaviour(deleted=everything)) as address,
        client(address) as api,
        pytest.raises(ApiError, match="without the right to read"),
    ):
        api.images(everything, ["sequence"])


def test_images_that_never_answer_are_unresolved(world: World) -> None:
    ids = [i.id for i in world.images[:3]]
    faults = {"images": "empty", "entity": "service_unavailable"}
    with serving(world, Behaviour(fault=lambda kind, n: faults.get(kind))) as address, client(address) as api:
        assert api.images(ids, ["sequence"]).unresolved == ids


def test_an_unknown_field_is_said(world: World) -> None:
    with serving(world) as address, client(address) as api, pytest.raises(ApiError, match="nonsense"):
        api.images([world.images[0].id], ["nonsense"])


def test_a_blocked_address_is_not_probed(world: World) -> None:
    with serving(world, Behaviour(fault=lambda kind, n: "blocked")) as address, client(address) as api:
        for _ in range(3):
            with pytest.raises(ApiError, match="blocked this address"):
                api.tile("original", 14, 8192, 8191)
        assert address.requests["tile"] == 1


def test_an_expired_address_is_forbidden_at_once(world: World) -> None:
    with serving(world, Behaviour(url_lifetime_s=-1)) as address, client(address) as api:
        row = api.images([world.images[0].id], ["thumb_1024_url"]).rows[0]
        with pytest.raises(ApiError) as caught:
            api.download(row["thumb_1024_url"])
        assert kind_of(caught.value) == "forbidden" and address.requests["file"] == 1


@pytest.mark.parametrize("fault", ["service_unavailable", "html", "half", "reset", "no_token", "blocked"])
def test_no_error_holds_the_token(world: World, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    token = "MLY|1|demo-secret"
    behaviour = Behaviour(tokens=frozenset({TOKEN, token}), fault=lambda kind, n: fault)
    with serving(world, behaviour) as address, client(address, token) as api:
        for ask in (lambda: api.tile("original", 14, 8192, 8191), lambda: api.image_ids("seq-0_x")):
            try:
                answer = ask()
            except ApiError as error:
                said = "".join(traceback.format_exception(error)) + repr(error.figures) + repr(api)
                assert "demo-secret" not in said and "demo-secret" not in repr(vars(error))
            else:
                assert fault in ("half", "html") and b"demo-secret" not in bytes(str(answer), "utf8")
    assert "demo-secret" not in caplog.text


def test_a_server_that_repeats_the_token_is_cleaned(world: World) -> None:
    api = client("http://127.0.0.1:9", "MLY|2|ech o/")
    error = api._refusal("x", 400, b'{"error": {"message": "bad MLY|2|ech o/ and MLY%7C2%7Cech%20o%2F"}}', "")
    assert "ech" not in str(error) and str(error).count("***") == 2


def test_nobody_there(world: World) -> None:
    with client("http://127.0.0.1:9") as api, pytest.raises(ApiError, match="failed: ClientConnectorError") as caught:
        api.tile("original", 14, 0, 0)
    said = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in said and "MLY%7C" not in said


def test_without_a_token_the_first_request_says_what_to_do() -> None:
    with client("http://127.0.0.1:9", None) as api:
        for ask in (lambda: api.tile("original", 14, 0, 0), lambda: api.image_ids("x"), lambda: api.images(["1"], [])):
            with pytest.raises(ConfigError, match="MAPILLARY_TOKEN"):
                ask()


def test_no_thread_is_left_behind(world: World) -> None:
    before = threading.active_count()
    with serving(world) as address, client(address) as api:
        list(api.each(api.image_ids, ["seq-0_x"] * 8))
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="context manager"):
        Mapillary(Settings(), "MLY|1|x").image_ids("x")


def test_the_first_failure_ends_the_rest(world: World) -> None:
    with serving(world, Behaviour(fault=lambda kind, n: "no_token")) as address, client(address) as api:
        with pytest.raises(ApiError):
            list(api.each(api.image_ids, [f"s{i}" for i in range(500)]))
        assert address.requests["sequence"] < 100


def test_recorded_errors_are_understood(real_data: Path) -> None:
    recorded = json.loads((real_data / "mapillary/errors/observed_errors.json").read_text())
    wanted = {
        "app_rate_limit": "limited",
        "no_token": "fatal",
        "malformed_token": "fatal",
        "never_issued_token_header": "fatal",
        "never_issued_token_query": "fatal",
        "unknown_image_id": "gone",
        "unknown_field": "refused",
        "query_timeout": "transient",
        "density_gate": "dense",
        "service_unavailable": "transient",
    }
    api = client("http://127.0.0.1:9")
    for name, kind in wanted.items():
        entry = recorded[name]
        body = entry.get("body") or entry.get("body_shape") or entry["body_head"]
        status = int(str(entry["http_status"])[:3])
        assert kind_of(api._refusal("x", status, json.dumps(body).encode(), "")) == kind, name
