"""Each behaviour of the demo API by itself, asked with the standard library alone."""

import http.client
import io
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from geo_assets.demo import mvt
from geo_assets.demo.place import demo_city
from geo_assets.demo.server import TOKEN, Address, Behaviour, encode_tile, serving
from geo_assets.demo.world import World

from .test_mvt import decode

CITY = ",".join(str(v) for v in demo_city().bbox)
WORST = "MLY|1|nobody"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def get(url: str, token: str | None = TOKEN, **query: str) -> tuple[int, bytes]:
    url += ("&" if "?" in url else "?") + urllib.parse.urlencode(query) if query else ""
    request = urllib.request.Request(url, headers={"Authorization": f"OAuth {token}"} if token else {})
    try:
        with _OPENER.open(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ask(url: str, token: str | None = TOKEN, **query: str) -> Any:
    status, body = get(url, token, **query)
    assert status == 200, body
    return json.loads(body)


def refused(url: str, token: str | None = TOKEN, **query: str) -> tuple[int, dict[str, Any]]:
    status, body = get(url, token, **query)
    assert status >= 400, body
    return status, json.loads(body)["error"]


@pytest.fixture(scope="module")
def api(world: World) -> Iterator[Address]:
    with serving(world) as address:
        yield address


# -- searches -------------------------------------------------------------------------------------------------


def test_a_search_gives_what_lies_in_the_box(api: Address, world: World) -> None:
    rows = ask(f"{api}/images", bbox=CITY, fields="id,geometry")["data"]
    assert {row["id"] for row in rows} == set(world.by_id)
    for row in rows:
        image = world.by_id[row["id"]]
        assert row == {"id": image.id, "geometry": {"type": "Point", "coordinates": [image.lon, image.lat]}}
    west, south, east, north = demo_city().grid.bounds("r01c01").as_list()
    part = {r["id"] for r in ask(f"{api}/images", bbox=f"{west},{south},{east},{north}")["data"]}
    assert part == {i.id for i in world.images if west <= i.lon <= east and south <= i.lat <= north}
    assert 0 < len(part) < len(rows)


def test_only_asked_fields_come_and_absent_ones_stay_away(api: Address, world: World) -> None:
    fields = "captured_at,computed_geometry,computed_rotation,camera_parameters,creator,organization,sequence"
    rows = {r["id"]: r for r in ask(f"{api}/images", bbox=CITY, fields=fields)["data"]}
    for image in world.images:
        row = rows[image.id]
        assert ("computed_geometry" in row) == (image.computed_lon is not None)
        assert ("organization" in row) == (image.organization_id is not None)
        assert ("camera_parameters" in row) == (not image.is_pano)
        assert row["creator"] == {"username": image.creator_username, "id": image.creator_id}
        assert row["sequence"] == image.sequence_id
        assert set(row) <= {"id", *fields.split(",")}


@pytest.mark.parametrize(
    ("bbox", "why"),
    [
        ("11,48,11.1,48.1", "0.01 degrees"),
        ("11.6,48,11.5,48.05", "west < east"),
        ("11,48,11.01", "four numbers"),
        ("a,b,c,d", "four numbers"),
    ],
)
def test_bad_boxes_are_refused(api: Address, bbox: str, why: str) -> None:
    status, error = refused(f"{api}/images", bbox=bbox)
    assert (status, error["code"]) == (400, 100)
    assert why in error["message"]


def test_an_area_just_below_the_limit_is_served(api: Address) -> None:
    assert len(ask(f"{api}/images", bbox="11.53,48.09,11.629,48.19")["data"]) > 80


def test_a_dense_box_is_refused_whatever_the_limit(world: World) -> None:
    with serving(world, Behaviour(dense_above=50)) as api:
        status, error = refused(f"{api}/images", bbox=CITY, limit="1")
        assert status == 500
        assert error["code"] == 1
        assert error["message"] == "Please reduce the amount of data you're asking for, then retry your request"
        west, south, east, north = demo_city().grid.bounds("r00c00").as_list()
        assert ask(f"{api}/images", bbox=f"{west},{south},{east},{north}")["data"]


def test_a_full_answer_is_cut_without_a_word(world: World) -> None:
    def answers() -> list[list[str]]:
        with serving(world, Behaviour(rows=40, short=0.3, seed=5)) as api:
            bodies = [ask(f"{api}/images", bbox=CITY) for _ in range(4)]
        assert all(set(body) == {"data"} for body in bodies)
        return [[row["id"] for row in body["data"]] for body in bodies]

    first = answers()
    assert all(27 <= len(set(ids)) == len(ids) <= 40 for ids in first)
    assert min(len(ids) for ids in first) < 40, "a cut answer holds fewer rows than the limit"
    assert len({frozenset(ids) for ids in first}) > 1, "asking again gives others"
    assert answers() == first, "the seed decides"


def test_a_limit_cuts_too(api: Address) -> None:
    assert len(ask(f"{api}/images", bbox=CITY, limit="10")["data"]) <= 10


@pytest.mark.parametrize("limit", ["0", "2001", "many"])
def test_limits_out_of_range_are_refused(api: Address, limit: str) -> None:
    assert refused(f"{api}/images", bbox=CITY, limit=limit)[1]["code"] == 100


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ({"is_pano": "true"}, lambda i: i.is_pano),
        ({"is_pano": "false"}, lambda i: not i.is_pano),
        ({"creator_username": "ben-cycles"}, lambda i: i.creator_username == "ben-cycles"),
        ({"creator_username": "Cara Öst"}, lambda i: i.creator_username == "Cara Öst"),
        ({"organization_id": "2100345678901"}, lambda i: i.organization_id == "2100345678901"),
        ({"make": "GoPro"}, lambda i: i.make == "GoPro"),
        ({"start_captured_at": "2024-05-16T00:00:00Z"}, lambda i: i.captured_at_ms >= 1715817600000),
        ({"end_captured_at": "2024-05-16"}, lambda i: i.captured_at_ms <= 1715817600000),
        ({"start_time": "2030-01-01"}, lambda i: True),  # not a name that the API knows
    ],
)
def test_filters(api: Address, world: World, query: dict[str, str], holds: Any) -> None:
    ids = {row["id"] for row in ask(f"{api}/images", bbox=CITY, **query)["data"]}
    assert ids == {image.id for image in world.images if holds(image)}
    assert ids


def test_a_filter_that_does_not_parse_is_refused(api: Address) -> None:
    assert refused(f"{api}/images", bbox=CITY, start_captured_at="yesterday")[1]["code"] == 100


def test_a_search_needs_a_place(api: Address) -> None:
    assert refused(f"{api}/images", is_pano="true")[1]["code"] == 100


# -- sequences and images ---------------------------------------------------------------------------------------


def test_sequences_list_their_images_in_order(api: Address, world: World) -> None:
    for sequence_id, images in world.sequences.items():
        rows = ask(f"{api}/image_ids", sequence_id=sequence_id)["data"]
        assert rows == [{"id": image.id} for image in images]
    assert ask(f"{api}/image_ids", sequence_id="nothing")["data"] == []
    assert refused(f"{api}/image_ids")[1]["code"] == 100


@pytest.mark.parametrize("form", ["{},{}", "['{}','{}']"])
def test_images_of_sequences(api: Address, world: World, form: str) -> None:
    a, b = list(world.sequences)[:2]
    rows = ask(f"{api}/images", sequence_ids=form.format(a, b), fields="sequence")["data"]
    assert len(rows) == len(world.sequences[a]) + len(world.sequences[b])


def test_images_by_id_leave_out_unknown_ones(api: Address, world: World) -> None:
    a, b = world.images[0].id, world.images[9].id
    rows = ask(f"{api}/images", image_ids=f"{a},999999999999999,{b}", fields="width")["data"]
    assert rows == [{"id": a, "width": 480}, {"id": b, "width": 480}]


def test_one_image(api: Address, world: World) -> None:
    image = world.images[3]
    record = ask(f"{api}/{image.id}", fields="compass_angle,is_pano,thumb_2048_url")
    assert record.keys() == {"id", "compass_angle", "is_pano", "thumb_2048_url"}
    assert record["compass_angle"] == image.compass_deg
    assert ask(f"{api}/{image.id}") == {"id": image.id}


def test_several_images_keyed_by_id(api: Address, world: World) -> None:
    ids = [image.id for image in world.images[:3]]
    assert ask(f"{api}/", ids=",".join(ids), fields="height") == {i: {"id": i, "height": 360} for i in ids}
    assert refused(f"{api}/", ids=",".join(["1"] * 51))[1]["code"] == 100


def test_unknown_ids_and_fields(api: Address, world: World) -> None:
    status, error = refused(f"{api}/999999999999999")
    assert (status, error["code"], error["error_subcode"], error["type"]) == (400, 100, 33, "MLYApiException")
    assert "Object with ID '999999999999999' does not exist" in error["message"]
    status, error = refused(f"{api}/{world.images[0].id}", fields="id,colour")
    assert (status, error["code"]) == (400, 100)
    assert "nonexisting field (colour)" in error["message"]


def test_deleted_images_remain_in_old_lists(world: World) -> None:
    gone = world.images[4]
    with serving(world, Behaviour(deleted=frozenset({gone.id}))) as api:
        listed = ask(f"{api}/image_ids", sequence_id=gone.sequence_id)["data"]
        assert {"id": gone.id} in listed
        assert refused(f"{api}/{gone.id}")[1]["error_subcode"] == 33
        assert ask(f"{api}/images", image_ids=gone.id)["data"] == []


# -- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "long_side"), [("256", 256), ("1024", 480), ("2048", 480), ("original", 480)])
def test_photos_are_served_without_a_token(api: Address, world: World, size: str, long_side: int) -> None:
    image = world.images[0]
    url = ask(f"{api}/{image.id}", fields=f"thumb_{size}_url")[f"thumb_{size}_url"]
    assert url.startswith(f"{api}/")
    status, body = get(url, token=None)
    assert status == 200
    assert max(Image.open(io.BytesIO(body)).size) == long_side
    assert (body == world.jpeg(image.id)) == (size != "256")


def test_addresses_expire(world: World) -> None:
    now = [1_700_000_000.0]
    with serving(world, Behaviour(url_lifetime_s=60, clock=lambda: now[0])) as api:
        url = ask(f"{api}/{world.images[0].id}", fields="thumb_256_url")["thumb_256_url"]
        expiry = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["oe"][0]
        assert int(expiry, 16) == 1_700_000_060
        assert get(url, token=None)[0] == 200
        now[0] += 61
        assert get(url, token=None) == (403, b"URL signature expired")
        later = url.replace(expiry, f"{int(expiry, 16) + 600:X}")
        assert get(later, token=None) == (403, b"URL signature mismatch")


def test_a_thumb_may_be_absent(world: World) -> None:
    image = world.images[0]
    with serving(world, Behaviour(without_thumb=frozenset({image.id}))) as api:
        assert ask(f"{api}/{image.id}", fields="thumb_2048_url,width") == {"id": image.id, "width": 480}


# -- tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        (None, 500, "Invalid OAuth 2.0 Access Token"),
        ("secret", 401, "Failed to decode"),
        (WORST, 401, "Error validating application"),
    ],
)
def test_token_errors(api: Address, token: str | None, status: int, message: str) -> None:
    got, error = refused(f"{api}/images", token, bbox=CITY)
    assert (got, error["message"], error["code"]) == (status, message, 190)


def test_a_token_in_the_query(api: Address, world: World) -> None:
    assert ask(f"{api}/{world.images[0].id}", None, access_token=TOKEN)
    assert refused(f"{api}/{world.images[0].id}", None, access_token=WORST)[0] == 400


# -- tiles ------------------------------------------------------------------------------------------------------


def tiles_of(world: World) -> set[tuple[int, int]]:
    return {tuple(int(v) for v in mvt.tile_position(i.lon, i.lat, 14)) for i in world.images}  # type: ignore[misc]


def test_tiles_enumerate_every_image(api: Address, world: World) -> None:
    found: dict[str, dict[str, Any]] = {}
    for x, y in tiles_of(world):
        status, body = get(f"{api}/maps/vtp/mly1_public/2/14/{x}/{y}", token=None, access_token=TOKEN)
        assert status == 200
        for feature in decode(body)["image"]["features"]:
            properties = feature["properties"]
            found[str(properties["id"])] = properties
            image = world.by_id[str(properties["id"])]
            [[(u, v)]] = feature["parts"]
            lon, lat = mvt.tile_position(image.lon, image.lat, 14)
            assert (u, v) == (int((lon - x) * 4096 // 1), int((lat - y) * 4096 // 1))
    assert set(found) == set(world.by_id)
    for image in world.images:
        properties = found[image.id]
        assert properties["captured_at"] == image.captured_at_ms
        assert properties["sequence_id"] == image.sequence_id
        assert properties["is_pano"] is image.is_pano
        assert ("organization_id" in properties) == (image.organization_id is not None)


def test_the_sequence_layer_lacks_the_short_ones(world: World) -> None:
    named = set()
    for x, y in tiles_of(world):
        layers = decode(encode_tile(world, "mly1_public", 14, x, y))
        named |= {f["properties"]["id"] for f in layers["sequence"]["features"]}
    assert named == {s for s, images in world.sequences.items() if len(images) > 2}


def test_computed_tiles_hold_computed_positions(world: World) -> None:
    ids = set()
    for x, y in tiles_of(world):
        layers = decode(encode_tile(world, "mly1_computed_public", 14, x, y))
        ids |= {str(f["properties"]["id"]) for f in layers["image"]["features"]}
    assert ids == {i.id for i in world.images if i.computed_lon is not None}


def test_edges_are_repeated_in_the_next_tile(world: World) -> None:
    """A photo at an edge stands in both tiles, in one of them with a coordinate beyond the tile."""
    from dataclasses import replace

    west_edge = 8718 / (1 << 14) * 360 - 180
    at_edge = replace(world.images[0], lon=west_edge + 1e-7)
    y = int(mvt.tile_position(at_edge.lon, at_edge.lat, 14)[1])
    small = World((at_edge,), {}, world.folder)
    here, there = (decode(encode_tile(small, "mly1_public", 14, x, y)) for x in (8718, 8717))
    assert here["image"]["features"][0]["parts"][0][0][0] == 0
    assert there["image"]["features"][0]["parts"][0][0][0] == 4096
    assert encode_tile(small, "mly1_public", 14, 8716, y) == b""


@pytest.mark.parametrize(
    ("z", "layers"), [(5, {"overview"}), (6, {"sequence"}), (13, {"sequence"}), (14, {"sequence", "image"})]
)
def test_layers_by_zoom(world: World, z: int, layers: set[str]) -> None:
    x, y = (int(v) for v in mvt.tile_position(world.images[0].lon, world.images[0].lat, z))
    assert decode(encode_tile(world, "mly1_public", z, x, y)).keys() == layers


def test_an_empty_tile_is_an_empty_body(api: Address) -> None:
    assert get(f"{api}/maps/vtp/mly1_public/2/14/1/1", token=None, access_token=TOKEN) == (200, b"")


@pytest.mark.parametrize(
    "path", ["mly1_public/2/15/1/1", "mly1_private/2/14/1/1", "mly1_public/2/14/1/99999", "mly1_public/2/14/a/1"]
)
def test_tiles_that_do_not_exist(api: Address, path: str) -> None:
    assert get(f"{api}/maps/vtp/{path}", token=None, access_token=TOKEN)[0] == 404


def test_tiles_want_the_token_in_the_query(api: Address) -> None:
    assert get(f"{api}/maps/vtp/mly1_public/2/14/1/1", token=TOKEN)[0] == 403
    assert get(f"{api}/maps/vtp/mly1_public/2/14/1/1", token=None)[0] == 403


def test_tiles_may_lag(world: World) -> None:
    late = frozenset(image.id for image in world.images[:7])
    ids = set()
    for x, y in tiles_of(world):
        layers = decode(encode_tile(world, "mly1_public", 14, x, y, late))
        ids |= {str(f["properties"]["id"]) for f in layers["image"]["features"]}
    assert ids == set(world.by_id) - late


# -- faults, counts, life ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [("app_rate_limit", 403, 4), ("service_unavailable", 500, 2), ("query_timeout", 400, -2), ("dense", 500, 1)],
)
def test_faults_are_those_of_the_api(world: World, fault: str, status: int, code: int) -> None:
    with serving(world, Behaviour(fault=lambda kind, n: fault if kind == "entity" and n == 1 else None)) as api:
        got, error = refused(f"{api}/{world.images[0].id}")
        assert (got, error["code"]) == (status, code)
        assert ask(f"{api}/{world.images[0].id}")


def test_faults_of_the_line(world: World) -> None:
    faults = {1: "empty", 2: "html", 3: "half", 4: "not_found", 5: "reset", 6: "blocked"}
    with serving(world, Behaviour(fault=lambda kind, n: faults.get(n))) as api:
        url = f"{api}/images?bbox={CITY}"
        assert get(url) == (200, b'{"data":[]}')
        assert get(url)[1].startswith(b"<html>")
        with pytest.raises(json.JSONDecodeError):
            json.loads(get(url)[1])
        assert get(url)[0] == 404
        with pytest.raises((ConnectionError, http.client.HTTPException, urllib.error.URLError)):
            get(url)
        assert get(url)[0] == 302
        assert len(ask(url)["data"]) == len(world.images)


def test_requests_are_counted_by_kind(world: World) -> None:
    with serving(world) as api:
        image = world.images[0]
        ask(f"{api}/images", bbox=CITY)
        ask(f"{api}/images", image_ids=image.id)
        ask(f"{api}/image_ids", sequence_id=image.sequence_id)
        ask(f"{api}/", ids=image.id)
        url = ask(f"{api}/{image.id}", fields="thumb_1024_url")["thumb_1024_url"]
        get(url, token=None)
        get(f"{api}/maps/vtp/mly1_public/2/14/1/1", token=None, access_token=TOKEN)
        kinds = ("search", "images", "sequence", "entities", "entity", "file", "tile")
        assert api.requests == dict.fromkeys(kinds, 1)


def test_each_request_is_on_record_without_its_token(world: World) -> None:
    image = world.images[0]
    faults = {("entity", 1): "timeout"}
    with serving(world, Behaviour(fault=lambda kind, n: faults.get((kind, n)))) as api:
        assert get(f"{api}/{image.id}?fields=width&access_token={TOKEN}", token=None)[0] == 400
        ask(f"{api}/{image.id}?access_token={TOKEN}&fields=width", token=None)
        ask(f"{api}/{image.id}?fields=width")
        get(f"{api}/maps/vtp/mly1_public/2/14/1/1?access_token={TOKEN}", token=None)
        refused(f"{api}/999999999999999")
        target = f"/{image.id}?fields=width"
        assert api.asked == {target: 3, "/maps/vtp/mly1_public/2/14/1/1": 1, "/999999999999999": 1}
        assert api.answered == {target: 2, "/maps/vtp/mly1_public/2/14/1/1": 1}
        assert api.faulted == {"timeout": 1} and not api.refused
        kinds, times = zip(*api.times, strict=True)
        assert kinds == ("entity", "entity", "entity", "tile", "entity")
        assert list(times) == sorted(times)


def test_the_record_can_be_switched_off(world: World) -> None:
    with serving(world, Behaviour(record=False)) as api:
        ask(f"{api}/{world.images[0].id}")
        assert api.requests == {"entity": 1}
        assert not (api.asked or api.answered or api.times)


def test_statistics_are_served_and_not_counted(world: World) -> None:
    with serving(world) as api:
        ask(f"{api}/{world.images[0].id}")
        stats = ask(f"{api}/_stats", token=None)
        assert stats.pop("cpu_seconds") > 0
        assert stats == {"requests": {"entity": 1}, "refused": {}, "faulted": {}}


def test_a_limit_per_minute_slides(world: World) -> None:
    now = [1000.0]
    with serving(world, Behaviour(per_minute=3, clock=lambda: now[0])) as api:
        image = world.images[0]
        urls = [f"{api}/{image.id}", f"{api}/images?image_ids={image.id}", f"{api}/image_ids?sequence_id=x"]
        for url in urls:  # whatever their kinds
            ask(url)
            now[0] += 10
        for _ in range(2):
            status, error = refused(urls[0])
            assert (status, error["code"]) == (403, 4)
        assert get(f"{api}/maps/vtp/mly1_public/2/14/1/1?access_token={TOKEN}", token=None)[0] == 200
        now[0] = 1060.0  # the first request is a minute old
        ask(urls[0])
        assert refused(urls[1])[1]["code"] == 4
        assert api.refused == {"entity": 2, "images": 1}
        assert api.requests.total() - api.requests["tile"] - api.refused.total() == 4


def test_a_block_of_tiles_lasts_a_day_from_the_last_refused_request(world: World) -> None:
    now = [0.0]
    faults = {("tile", 2): "blocked"}
    with serving(world, Behaviour(fault=lambda kind, n: faults.get((kind, n)), clock=lambda: now[0])) as api:
        url = f"{api}/maps/vtp/mly1_public/2/14/1/1?access_token={TOKEN}"
        answers = []
        for hours in (0, 0, 1, 23, 46, 70.5):
            now[0] = hours * 3600
            answers.append(get(url, token=None)[0])
        assert answers == [200, 302, 302, 302, 302, 200]
        assert ask(f"{api}/{world.images[0].id}"), "the graph is another host"
        assert (api.faulted["blocked"], api.refused["tile"]) == (1, 3)


def test_the_command_serves_until_it_is_told_to_end() -> None:
    options = ["--images", "400", "--hot-spots", "1", "--faults", "0.01", "--lag", "--per-minute", "2", "--seed", "3"]
    with subprocess.Popen(
        [sys.executable, "-m", "geo_assets.demo.server", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            about = json.loads(process.stdout.readline())
            assert about["token"] == TOKEN
            bbox = ",".join(map(str, about["bbox"]))
            statuses = [get(f"{about['url']}/images?bbox={bbox}")[0] for _ in range(3)]
            assert statuses == [200, 200, 403]
            stats = ask(f"{about['url']}/_stats")
            assert (stats["requests"], stats["refused"]) == ({"search": 3}, {"search": 1})
        finally:
            process.terminate()
        assert process.wait(10) == 0


def test_servers_stand_side_by_side_and_end_with_their_block(world: World) -> None:
    before = threading.active_count()
    with serving(world) as a, serving(world) as b:
        assert a != b
        for address in (a, b):
            assert address.startswith("http://127.0.0.1:")
            assert ask(f"{address}/{world.images[0].id}")
    assert threading.active_count() <= before + 1  # the pool of file reads may keep a thread
    with pytest.raises(urllib.error.URLError):
        get(f"{a}/1")


def test_an_address_signed_by_one_server_is_honoured_by_the_next(world: World) -> None:
    with serving(world) as api:
        url = ask(f"{api}/{world.images[0].id}", fields="thumb_1024_url")["thumb_1024_url"]
        path = url.removeprefix(api)
    with serving(world) as api:
        assert get(f"{api}{path}", token=None)[0] == 200
