"""Each fault that the demo API can show, and that it shows the same ones in each run."""

import http.client
import io
import json
import time
import urllib.error
from collections import Counter
from typing import Any

import pytest
from PIL import Image

from geo_assets.demo import mvt
from geo_assets.demo.faults import ALL, APPLIES, Faults, lagging, mix
from geo_assets.demo.paper import PaperWorld, paper_world
from geo_assets.demo.server import GRAPH_KINDS, KINDS, TOKEN, Address, Behaviour, serving

from .test_mvt import decode
from .test_server import get

BROKEN = (ConnectionError, http.client.HTTPException, urllib.error.URLError)


@pytest.fixture(scope="module")
def city() -> PaperWorld:
    return paper_world(300, side_m=500, seed=2)


@pytest.fixture(scope="module")
def urls(city: PaperWorld) -> dict[str, str]:
    """A path of each kind of request that has an answer with rows."""
    longest = max(city.sequences, key=lambda s: len(city.sequences[s]))
    ids = ",".join(image.id for image in city.images[:20])
    x, y = (int(v) for v in mvt.tile_position(city.images[0].lon, city.images[0].lat, 14))
    with serving(city) as api:
        thumb = json.loads(get(f"{api}/{city.images[0].id}?fields=thumb_1024_url")[1])["thumb_1024_url"]
    return {
        "search": f"/images?bbox={','.join(map(str, city.bounds.as_list()))}&fields=id,thumb_256_url",
        "images": f"/images?image_ids={ids}&fields=id,thumb_256_url",
        "sequence": f"/image_ids?sequence_id={longest}",
        "entity": f"/{city.images[0].id}?fields=thumb_256_url",
        "entities": f"/?ids={ids}&fields=thumb_256_url",
        "tile": f"/maps/vtp/mly1_public/2/14/{x}/{y}?access_token={TOKEN}",
        "file": "/" + thumb.split("/", 3)[3],  # an address signed by one server is honoured by the next
    }


def outcome(url: str) -> tuple[int, bytes]:
    """Status and body; status 0 where the line broke."""
    try:
        return get(url, token=None if "/files/" in url or "/maps/" in url else TOKEN)
    except BROKEN:
        return 0, b""


def always(fault: str, kind: str, city: PaperWorld, urls: dict[str, str], n: int = 6) -> list[tuple[int, bytes]]:
    """Some answers to a request of a kind that always meets the fault."""
    with serving(city, Behaviour(fault=Faults({fault: 1.0}), slow_s=0.05)) as api:
        found = [outcome(f"{api}{urls[kind]}") for _ in range(n)]
        assert api.faulted == {fault: 1 if fault == "blocked" else n}
        assert not api.answered or fault == "slow"
    return found


def error_of(answer: tuple[int, bytes]) -> dict[str, Any]:
    return json.loads(answer[1])["error"]


# -- drawing ----------------------------------------------------------------------------------------------------


def test_draws_depend_on_seed_kind_and_number_alone() -> None:
    a, b, c = Faults({"reset": 0.3}, 1), Faults({"reset": 0.3}, 1), Faults({"reset": 0.3}, 2)
    numbers = range(1, 200)
    drawn = [a("search", n) for n in numbers]
    assert drawn == [b("search", n) for n in reversed(numbers)][::-1]
    assert drawn != [c("search", n) for n in numbers]
    assert drawn != [a("entity", n) for n in numbers]


def test_rates_are_shares_of_the_requests() -> None:
    drawn = Counter(mix(0.03, 5)("search", n) for n in range(1, 20_001))
    applying = {name for name, kinds in APPLIES.items() if "search" in kinds}
    assert set(drawn) == applying | {None}
    for name in applying:
        assert 0.024 < drawn[name] / 20_000 < 0.036


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_faults_meet_only_the_requests_that_they_apply_to(kind: str) -> None:
    drawn = {mix(0.05, 1, blocked=True)(kind, n) for n in range(1, 3000)} - {None}
    assert drawn == {name for name, kinds in APPLIES.items() if kind in kinds}


def test_the_mix_holds_all_faults_but_a_block() -> None:
    assert set(mix(0.02).rates) == ALL - {"blocked"}
    assert set(mix(0.02, blocked=True).rates) == ALL
    assert mix(0.0)("search", 1) is None


@pytest.mark.parametrize(
    ("rates", "why"),
    [
        ({"gremlins": 0.1}, "No fault is named gremlins"),
        ({"reset": -0.1}, "rate of reset is -0.1"),
        ({"reset": float("nan")}, "rate of reset is nan"),
        ({"reset": 0.6, "html": 0.6}, "add up to 1.20"),
    ],
)
def test_rates_that_make_no_sense_are_refused(rates: dict[str, float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Faults(rates)


def test_rates_of_different_kinds_do_not_add_up() -> None:
    assert Faults({"empty_file": 0.9, "tile_not_found": 0.9})


# -- showing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(GRAPH_KINDS))
def test_limited(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    found = always("limited", kind, city, urls, 12)
    assert {status for status, _ in found} == {403, 429}
    assert {error_of(answer)["code"] for answer in found} == {4}
    assert all(error_of(answer)["is_transient"] is True for answer in found)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_server_error(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    found = always("server_error", kind, city, urls, 24)
    assert {status for status, _ in found} == {500, 502, 503, 504}
    assert {error_of(answer)["code"] for answer in found if answer[0] == 500} == {2}
    assert all(body.startswith(b"<html>") for status, body in found if status != 500)


@pytest.mark.parametrize("kind", sorted(GRAPH_KINDS))
def test_timeout(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    for answer in always("timeout", kind, city, urls):
        error = error_of(answer)
        assert (answer[0], error["code"], error["error_subcode"], error["is_transient"]) == (400, -2, 3404014, False)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_reset(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    assert all(answer == (0, b"") for answer in always("reset", kind, city, urls))


def test_a_reset_comes_before_an_answer_or_in_its_middle(city: PaperWorld, urls: dict[str, str]) -> None:
    broken = set()
    with serving(city, Behaviour(fault=Faults({"reset": 1.0}))) as api:
        for _ in range(12):
            try:
                get(f"{api}{urls['search']}")
            except BROKEN as error:
                broken.add(isinstance(error, http.client.IncompleteRead))
    assert broken == {True, False}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_slow(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    with serving(city, Behaviour(fault=Faults({"slow": 1.0}), slow_s=0.2)) as api:
        began = time.monotonic()
        status, body = outcome(f"{api}{urls[kind]}")
        assert time.monotonic() - began >= 0.2
        assert status == 200 and body
        assert api.faulted == {"slow": 1} and api.answered.total() == 1


@pytest.mark.parametrize("kind", sorted(APPLIES["half"]))
def test_half(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    for status, body in always("half", kind, city, urls):
        assert status == 200
        with pytest.raises(json.JSONDecodeError):
            json.loads(body)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_html(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    assert all(s == 200 and body.startswith(b"<html>") for s, body in always("html", kind, city, urls))


@pytest.mark.parametrize("kind", sorted(APPLIES["empty"]))
def test_empty(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    assert set(always("empty", kind, city, urls)) == {(200, b'{"data":[]}')}


@pytest.mark.parametrize("kind", sorted(APPLIES["partial"]))
def test_partial(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    with serving(city) as api:
        body = json.loads(outcome(f"{api}{urls[kind]}")[1])
    whole = set(body) if kind == "entities" else {row["id"] for row in body["data"]}
    lost = []
    for status, answer in always("partial", kind, city, urls, 12):
        rows = json.loads(answer)
        part = set(rows) if kind == "entities" else {row["id"] for row in rows["data"]}
        assert status == 200 and part < whole
        lost.append(frozenset(whole - part))
        assert 0.1 - 1 / len(whole) <= len(lost[-1]) / len(whole) <= 0.2 + 1 / len(whole)
    assert len(set(lost)) > 1


def test_a_single_row_cannot_be_partial(city: PaperWorld) -> None:
    with serving(city, Behaviour(fault=Faults({"partial": 1.0}))) as api:
        image_id = city.images[0].id
        for target in (f"/images?image_ids={image_id}", f"/?ids={image_id}"):
            assert image_id.encode() in outcome(f"{api}{target}")[1]
        assert not api.faulted


@pytest.mark.parametrize("kind", sorted(APPLIES["without_thumb"]))
def test_without_thumb(city: PaperWorld, urls: dict[str, str], kind: str) -> None:
    for status, answer in always("without_thumb", kind, city, urls):
        body = json.loads(answer)
        rows = [body] if kind == "entity" else list(body.values()) if kind == "entities" else body["data"]
        having = sum("thumb_256_url" in row for row in rows)
        assert status == 200 and all("id" in row for row in rows)
        assert having == len(rows) // 2


def test_where_no_thumb_is_asked_for_none_is_missed(city: PaperWorld) -> None:
    with serving(city, Behaviour(fault=Faults({"without_thumb": 1.0}))) as api:
        assert json.loads(outcome(f"{api}/{city.images[0].id}?fields=width")[1])["width"] == 64
        assert not api.faulted and api.answered.total() == 1


def test_empty_file(city: PaperWorld, urls: dict[str, str]) -> None:
    assert set(always("empty_file", "file", city, urls)) == {(200, b"")}


def test_truncated_file(city: PaperWorld, urls: dict[str, str]) -> None:
    whole = city.jpeg(city.images[0].id)
    found = [body for status, body in always("truncated_file", "file", city, urls, 12) if status == 200]
    assert len(found) == 12
    assert all(0 < len(body) < len(whole) and whole.startswith(body) for body in found)
    assert not any(body.endswith(b"\xff\xd9") for body in found)
    assert min(map(len, found)) < 0.7 * len(whole) and max(map(len, found)) >= len(whole) - 64


def test_expired(city: PaperWorld, urls: dict[str, str]) -> None:
    assert set(always("expired", "file", city, urls)) == {(403, b"URL signature expired")}


def test_tile_not_found(city: PaperWorld, urls: dict[str, str]) -> None:
    assert {status for status, _ in always("tile_not_found", "tile", city, urls)} == {404}


def test_blocked(city: PaperWorld, urls: dict[str, str]) -> None:
    now = [0.0]
    rates = Faults({"blocked": 0.2}, seed=1)
    first = next(n for n in range(1, 100) if rates("tile", n))
    assert first > 1 and rates("tile", first + 4) is None, "another seed, please"
    with serving(city, Behaviour(fault=rates, clock=lambda: now[0])) as api:
        statuses = [outcome(f"{api}{urls['tile']}")[0] for _ in range(first + 3)]
        assert statuses == [200] * (first - 1) + [302] * 4
        now[0] = 86_401.0
        assert outcome(f"{api}{urls['tile']}")[0] == 200
        assert (api.faulted["blocked"], api.refused["tile"]) == (1, 3)


def test_refusals_come_before_faults(city: PaperWorld) -> None:
    """An unknown image is unknown whatever else goes wrong, and no fault was shown."""
    with serving(city, Behaviour(fault=Faults({"html": 1.0}))) as api:
        assert error_of(outcome(f"{api}/999999999999999"))["error_subcode"] == 33
        assert not api.faulted


# -- all together -----------------------------------------------------------------------------------------------


def _talk(api: Address, urls: dict[str, str]) -> list[tuple[str, int, int]]:
    found = []
    for kind in sorted(KINDS):
        for _ in range(40):
            status, body = outcome(f"{api}{urls[kind]}")
            found.append((kind, status, len(body)))
    return found


def test_the_mix_is_the_same_in_each_run(city: PaperWorld, urls: dict[str, str]) -> None:
    def run(seed: int) -> tuple[list[tuple[str, int, int]], Counter[str]]:
        behaviour = Behaviour(fault=mix(0.08, seed, blocked=True), slow_s=0.01, seed=seed, clock=lambda: 1.7e9)
        with serving(city, behaviour) as api:
            return _talk(api, urls), Counter(api.faulted)

    (first, shown), (second, _), (other, _) = run(1), run(1), run(2)
    assert first == second
    assert first != other
    assert set(shown) >= ALL - {"blocked", "tile_not_found"}


def test_asking_again_ends_in_the_truth(city: PaperWorld, urls: dict[str, str]) -> None:
    """No fault of the mix is for ever: most answers are proper ones, also for files."""
    with serving(city, Behaviour(fault=mix(0.05, 4), slow_s=0.01)) as api:
        bodies = [body for status, body in (outcome(f"{api}{urls['file']}") for _ in range(60)) if status == 200]
        [(whole, n)] = Counter(bodies).most_common(1)
        assert whole == city.jpeg(city.images[0].id) and n > 30
        with Image.open(io.BytesIO(whole)) as photo:
            photo.load()


# -- lag --------------------------------------------------------------------------------------------------------


def test_lagging_tiles_lack_whole_sequences_and_single_images() -> None:
    large = paper_world(8000, seed=3)
    late = lagging(large, sequences=0.1, images=0.02, seed=1)
    assert late == lagging(large, sequences=0.1, images=0.02, seed=1) != lagging(large, sequences=0.1, seed=2)
    shares = [sum(i.id in late for i in images) / len(images) for images in large.sequences.values()]
    assert 0.03 < sum(share == 1 for share in shares) / len(shares) < 0.25
    single = [image.id in late for s, image in _images_with_share(large, shares) if s < 1]
    assert 0.01 < sum(single) / len(single) < 0.03
    assert lagging(large, 0, 0) == frozenset()


def _images_with_share(world: PaperWorld, shares: list[float]) -> list[tuple[float, Any]]:
    return [(s, image) for s, images in zip(shares, world.sequences.values(), strict=True) for image in images]


def test_what_lags_is_in_no_tile_and_in_every_search(city: PaperWorld, urls: dict[str, str]) -> None:
    late = lagging(city, 0.2, 0.1, seed=1)
    x, y = (int(v) for v in mvt.tile_position(city.images[0].lon, city.images[0].lat, 14))
    with serving(city, Behaviour(absent_from_tiles=late)) as api:
        for tiles in ("mly1_public", "mly1_computed_public"):
            body = get(f"{api}/maps/vtp/{tiles}/2/14/{x}/{y}?access_token={TOKEN}", token=None)[1]
            shown = {str(f["properties"]["id"]) for f in decode(body)["image"]["features"]}
            assert shown and not shown & late
        rows = json.loads(get(f"{api}{urls['search']}")[1])["data"]
        assert {row["id"] for row in rows} & late
