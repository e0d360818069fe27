"""The client of Commons and Wikidata against the answers they document; where something waits, time is simulated."""

import asyncio
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr

from geo_assets.demo import wikimedia as demo
from geo_assets.demo.geotag_inputs import wikimedia_world
from geo_assets.demo.wikimedia import Behaviour, Category, Statement, Wiki, World, simulated_time
from geo_assets.errors import ApiError, ConfigError
from geo_assets.geotag.wikimedia import Answers, Patience, Reply, Wikimedia
from geo_assets.geotag.wikimedia_answers import Found, Item, Page, items_of, merge, pages_of, redirect_target, title_of
from geo_assets.lake import Lake
from geo_assets.settings import Wikimedia as Settings

FAST = Settings(per_minute=1e6)
KNOWN = Settings(contact="mail@example.org")


def world_of(n: int) -> World:
    """Categories that have a coordinate of their own."""
    return World({f"Category:Place {k}": Category((k / 1000, 1.0)) for k in range(n)})


def ask(
    wiki: Wiki | Callable,
    titles: list[str],
    settings: Settings = FAST,
    *,
    answers: Answers | None = None,
    log: Callable[[str], None] = lambda line: None,
    **options: object,
) -> dict[str, Found]:
    """What a client finds that is given a server without a network."""
    found: dict[str, Found] = {}
    post = wiki.post if isinstance(wiki, Wiki) else wiki
    with Wikimedia(settings, post=post, **options) as client:  # type: ignore[arg-type]
        client.find(titles, answers or Answers(), lambda one, at: found.update({one.title: one}), log)
    return found


def query_of(**parts: object) -> dict:
    query: dict = {}
    merge(query, parts)
    return query


# -- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "title"),
    [
        ("http://commons.wikimedia.org/wiki/Category:Tweed_Heads,_New_South_Wales", "Tweed Heads, New South Wales"),
        ("https://commons.m.wikimedia.org/wiki/Category:Isa_Khan_Niyazi's_tomb", "Isa Khan Niyazi's tomb"),
        ("//commons.wikimedia.org/wiki/Category:PalaKr%C3%B2", "PalaKrò"),
        ("http://commons.wikimedia.org/wiki/Category%3APalaKr%C3%B2?uselang=de#mw-pages", "PalaKrò"),
        ("https://commons.wikimedia.org/w/index.php?title=Category:100%25_Design&action=edit", "100% Design"),
        ("http://commons.wikimedia.org/wiki/Category:What%3F_(book)", "What? (book)"),
        ("http://commons.wikimedia.org/wiki/Category:Caf%E9", "Café"),  # Windows-1252, as MediaWiki takes it
        ("http://commons.wikimedia.org/wiki/Category:Cafe%CC%81", "Café"),  # Unicode's form C
        ("http://commons.wikimedia.org/wiki/Category:Plus+minus_100%", "Plus+minus 100%"),
        ("Category: happy__Valley ", "Happy Valley"),
        ("category:A:B", "A:B"),
        ("Happy_Valley", "Happy Valley"),
        ("http://commons.wikimedia.org/wiki/File:A.jpg", None),
        ("http://en.wikipedia.org/wiki/Category:A", None),
        ("http://commons.wikimedia.org/wiki/Category:", None),
        ("http://commons.wikimedia.org/wiki/Category:A%7CB", None),
        ("http://commons.wikimedia.org/wiki/Category:" + "ö" * 130, None),
        ("", None),
    ],
)
def test_a_title_is_read_from_any_spelling_of_the_address(category: str, title: str | None) -> None:
    assert title_of(category) == (title and f"Category:{title}")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("{{Category redirect|Grand Ventron}}", "Grand Ventron"),
        ("{{category_redirect|1=Category:Grand_Ventron|reason=x}}", "Grand Ventron"),
        ("{{Categoryredirect| :Category:grand Ventron }}", "Grand Ventron"),
        ("text {{Cat-red|[[:Category:Grand Ventron|the mountain]]}} [[Category:Other]]", "Grand Ventron"),
        ("<!-- {{Category redirect|Old}} -->\n{{Seecat|reason=moved|Grand Ventron}}", "Grand Ventron"),
        ("{{Synonym taxon category redirect|Felis &amp; Lynx}}", "Felis & Lynx"),
        ("{{Redirect category|Grand Ventron}}", "Grand Ventron"),
        ("{{Object location|1|2}}{{Wikidata Infobox}}", None),
        ("{{Category redirect|}}", None),
        ("{{Category redirect", None),
        ("", None),
    ],
)
def test_the_category_that_is_meant_is_read_from_the_text(text: str, target: str | None) -> None:
    assert redirect_target(text) == (target and f"Category:{target}")


def test_answers_are_mapped_back_to_what_was_asked() -> None:
    query = query_of(
        normalized=[
            {"fromencoded": True, "from": "Category%3ACafe%CC%81", "to": "Category:Café"},
            {"fromencoded": False, "from": "Category:a", "to": "Category:A"},
        ],
        redirects=[
            {"from": "Category:A", "to": "Category:B"},
            {"from": "Category:B", "to": "Category:Café"},
            {"from": "Category:Round", "to": "Category:And round"},
            {"from": "Category:And round", "to": "Category:Round"},
            {"from": "Category:Away", "to": "de:Weg", "tointerwiki": "de"},
        ],
        pages=[
            {"title": "Category:Café", "pageprops": {"wikibase_item": "Q1"}},
            {"title": "Category:No", "missing": True},
            {"title": "Category:<", "invalid": True, "invalidreason": "bad character"},
        ],
    )
    titles = ["Category:Cafe\u0301", "Category:a", "Category:Round", "Category:Away", "Category:No", "Category:<", "?"]
    pages = pages_of(query, titles)
    assert pages.pop("Category:Cafe\u0301") == Page("Category:Café", item="Q1")
    assert pages.pop("Category:a") == Page("Category:Café", via=("Category:B", "Category:Café"), item="Q1")
    assert pages.pop("Category:<") == Page("Category:<", exists=False, reason="bad character")
    assert {title: page.exists for title, page in pages.items()} == dict.fromkeys(titles[2:5], False)


@pytest.mark.parametrize(
    ("coordinate", "position"),
    [
        ({"lat": 1, "lon": 2, "primary": True, "globe": "earth"}, (2.0, 1.0)),
        ({"lat": 1, "lon": 2, "primary": True}, (2.0, 1.0)),
        ({"lat": 1, "lon": 2, "primary": True, "globe": "moon"}, None),
        ({"lat": 1, "lon": 2, "primary": False, "globe": "earth"}, None),
        ({"lat": 91, "lon": 2, "primary": True, "globe": "earth"}, None),
        ({"lat": None, "lon": 2, "primary": True, "globe": "earth"}, None),
    ],
)
def test_only_primary_coordinates_on_earth_count(coordinate: dict, position: tuple | None) -> None:
    query = query_of(pages=[{"title": "Category:A", "coordinates": [coordinate]}])
    assert pages_of(query, ["Category:A"])["Category:A"].position == position


def test_an_item_without_claims_or_under_another_id_is_known() -> None:
    entities = {"Q1": {"id": "Q1", "claims": []}, "Q3": {"id": "Q3", "redirects": {"from": "Q2", "to": "Q3"}}}
    assert items_of({"entities": entities}, ["Q1", "Q2", "Q4"]) == {"Q1": Item("Q1"), "Q2": Item("Q3")}


def test_real_answer_of_commons(real_data: Path) -> None:
    answer = json.loads((real_data / "geotag/wikimedia/commons_query_coordinates_pageprops.json").read_text())
    asked = [n["from"] for n in answer["query"]["normalized"]] + ["Category:No such category"]
    pages = pages_of(query_of(**answer["query"]), asked)
    assert pages["Category:Happy_Valley_Racecourse"].position == (114.182, 22.2728)
    assert pages["Category:Grand_Ventron"] == Page("Category:Grand Ventron", item="Q3114629")
    assert sum(page.position is not None for page in pages.values()) == 4
    assert not pages["Category:No such category"].exists and len(pages) == 6


def test_real_answer_of_wikidata(real_data: Path) -> None:
    answer = json.loads((real_data / "geotag/wikimedia/wbgetentities_claims.json").read_text())
    items = items_of(answer, answer["entities"])
    assert items["Q3114629"] == Item("Q3114629", (6.9255555555556, 47.959444444444), 0.0001)
    assert items["Q9999901"] == Item("Q9999901", topic="Q837662")
    assert items["Q9999902"].position == (6.0, 5.0)  # the preferred one
    assert [items[f"Q999990{k}"].position for k in (3, 4, 5)] == [None] * 3  # unknown, no item, Titan
    assert len(items) == 9


@pytest.mark.parametrize(("name", "status"), [("error_maxlag", 200), ("error_ratelimited", 200)])
def test_real_refusals_are_waited_for(real_data: Path, name: str, status: int) -> None:
    wiki, bodies = Wiki(world_of(1)), [(real_data / f"geotag/wikimedia/{name}.json").read_bytes()] * 2

    async def post(url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        return Reply(status, bodies.pop(), {}) if bodies else await wiki.post(url, form, headers)

    with simulated_time() as clock:
        began = clock.now
        assert ask(post, ["Category:Place 0"], patience=Patience(attempts=1))["Category:Place 0"].status == "found"
        assert 10 <= clock.now - began < 20


# -- the way to a coordinate -------------------------------------------------------------------------------------

HERE, THERE = (6.9, 47.9), (1.0, 2.0)
ROADS = World(
    {
        "Category:Own": Category(HERE, "Q1"),
        "Category:Moon": Category(THERE, globe="moon"),
        "Category:Item": Category(item="Q1"),
        "Category:Merged": Category(item="Q10"),
        "Category:Topic": Category(item="Q2"),
        "Category:Topic of topic": Category(item="Q3"),
        "Category:Deprecated": Category(item="Q4"),
        "Category:Unknown": Category(item="Q5"),
        "Category:Titan": Category(item="Q6"),
        "Category:Preferred": Category(item="Q7"),
        "Category:Gone item": Category(item="Q8"),
        "Category:Nothing": Category(),
        "Category:Hard": Category(redirect="Category:Hard 2"),
        "Category:Hard 2": Category(redirect="Category:Item"),
        "Category:Round": Category(redirect="Category:And round"),
        "Category:And round": Category(redirect="Category:Round"),
        "Category:Soft": Category(text="{{Cat redirect|Item}}"),
        "Category:Soft twice": Category(text="{{Category redirect|Category:Soft}}"),
        "Category:Soft to hard": Category(text="{{Category redirect|Hard}}"),
        "Category:Soft to itself": Category(item="Q1", text="{{Category redirect|Soft to itself}}"),
        "Category:Soft to nowhere": Category(item="Q1", text="{{Category redirect|Nowhere}}"),
        "Category:Soft but placed": Category(HERE, text="{{Category redirect|Nothing}}"),
    },
    {
        "Q1": (Statement(HERE, precision_deg=0.01),),
        "Q2": (Statement(topic="Q1"),),
        "Q3": (Statement(topic="Q2"),),
        "Q4": (Statement(HERE, rank="deprecated"),),
        "Q5": (Statement(),),
        "Q6": (Statement(HERE, globe="Q2565"),),
        "Q7": (Statement(THERE), Statement(THERE, rank="deprecated"), Statement(HERE, rank="preferred")),
    },
    merged={"Q10": "Q1"},
)


@pytest.mark.parametrize(
    ("name", "status", "origin", "item", "reason"),
    [
        ("Own", "found", "geo_tags", "Q1", None),
        ("Moon", "no_coordinate", None, None, None),
        ("Item", "found", "P625", "Q1", None),
        ("Merged", "found", "P625", "Q1", None),
        ("Topic", "found", "P301", "Q1", None),
        ("Topic of topic", "no_coordinate", None, "Q3", None),  # one step, not a chain
        ("Deprecated", "no_coordinate", None, "Q4", None),
        ("Unknown", "no_coordinate", None, "Q5", None),
        ("Titan", "no_coordinate", None, "Q6", None),
        ("Preferred", "found", "P625", "Q7", None),
        ("Gone item", "no_coordinate", None, "Q8", None),
        ("Nothing", "no_coordinate", None, None, None),
        ("No such", "missing", None, None, None),
        ("Bad[title]", "missing", None, None, "The requested page title contains invalid characters."),
        ("Hard", "found", "P625", "Q1", "redirect to Category:Hard 2, then Category:Item"),
        ("Round", "missing", None, None, "redirect to Category:And round"),
        ("Soft", "found", "P625", "Q1", "redirect to Category:Item"),
        ("Soft twice", "no_coordinate", None, None, "redirect to Category:Soft"),
        ("Soft to hard", "found", "P625", "Q1", "redirect to Category:Hard, then Category:Hard 2, then Category:Item"),
        ("Soft to itself", "found", "P625", "Q1", None),
        ("Soft to nowhere", "found", "P625", "Q1", "redirect to Category:Nowhere"),
        ("Soft but placed", "found", "geo_tags", None, None),
    ],
)
def test_every_way_to_a_coordinate(
    name: str, status: str, origin: str | None, item: str | None, reason: str | None
) -> None:
    title = f"Category:{name}"
    found = ask(Wiki(ROADS), [title])[title]
    assert (found.status, found.origin, found.wikidata_id, found.reason) == (status, origin, item, reason)
    assert (found.lon, found.lat) == (HERE if status == "found" else (None, None))
    precise = 0.01 if item == "Q1" else 0.0001
    assert found.precision_deg == (precise if origin in ("P625", "P301") else None)


def test_the_demo_world_over_a_network_and_who_asks() -> None:
    token, contact = "t0ken/+", "https://example.org/me"
    world = wikimedia_world()
    titles = [title for title in world.categories if "moved" not in title]
    found: dict[str, Found] = {}
    with demo.serving(world) as api:
        with Wikimedia(api.settings(contact=contact), SecretStr(token)) as client:
            client.find(titles, Answers(), lambda one, at: found.update({one.title: one}))
            assert contact not in repr(client) and token not in repr(client)
        headers = api.record.headers[0]
    assert {one.status for one in found.values()} == {"found", "no_coordinate"} and len(found) == len(titles)
    assert 0.85 < sum(one.status == "found" for one in found.values()) / len(titles) < 0.95
    assert headers["User-Agent"].startswith("geo_assets/") and f"({contact}) aiohttp/" in headers["User-Agent"]
    assert headers["Authorization"] == f"Bearer {token}"
    assert "gzip" in headers["Accept-Encoding"]
    assert "Referer" not in headers and "Mozilla" not in headers["User-Agent"] and "Cookie" not in headers


def test_a_contact_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"geotag\.wikimedia\.contact"):
        Wikimedia(Settings(contact="me\r\nReferer: x"))


# -- calls -------------------------------------------------------------------------------------------------------


def test_fifty_are_one_call_and_nothing_is_asked_twice() -> None:
    rng = random.Random(0)
    categories, items = {}, {}
    for k in range(1230):
        form = rng.random()
        item = f"Q{k % 400 + 1}"
        categories[f"Category:P {k}"] = Category((1.0, 2.0)) if form < 0.5 else Category(item=item)
        if form > 0.9:
            target = f"Category:T {k % 150}"
            categories |= {
                f"Category:P {k}": Category(text=f"{{{{Cat redirect|T {k % 150}}}}}"),
                target: Category(item=item),
            }
        items |= {item: (Statement((3.0, 4.0)),) if k % 3 else (Statement(topic=f"Q{1000 + k % 7}"),)}
    items |= {f"Q{1000 + k}": (Statement((5.0, 6.0)),) for k in range(7)}
    wiki, titles = Wiki(World(categories, items)), [f"Category:P {k}" for k in range(1230)]
    ask(wiki, titles + titles)
    asked, calls = wiki.record.asked, wiki.record.calls
    assert all(len(set(keys)) == len(keys) for keys in asked.values())
    n_soft, n_targets = len(asked["redirects"]), len(asked["pages"]) - len(titles)
    assert n_soft > 100 and n_targets > 70
    assert calls["pages"] == math.ceil(len(titles) / 50) + math.ceil(n_targets / 50)
    assert calls["redirects"] == math.ceil(n_soft / 50)
    # One more, because the topics of the last items are known only when these have answered.
    assert calls["items"] <= math.ceil(len(asked["items"]) / 50) + 1


def test_the_order_of_calls_does_not_depend_on_which_answer_is_quicker() -> None:
    world = wikimedia_world()
    titles, asked, flying = [*world.categories], [], []
    for seed in (0, 1):
        wiki, rng, forms = Wiki(world), random.Random(seed), []
        n = 0

        async def post(url, form, headers, wiki=wiki, rng=rng, forms=forms) -> Reply:
            nonlocal n
            n += 1
            flying.append(n)
            forms.append(form)
            await asyncio.sleep(rng.random())
            n -= 1
            return await wiki.post(url, form, headers)

        with simulated_time():
            ask(post, titles * 3)
        asked.append(forms)
    assert asked[0] == asked[1] and max(flying) <= 3


def test_coordinates_that_come_in_several_parts() -> None:
    wiki = Wiki(world_of(50), Behaviour(coordinates=20))
    found = ask(wiki, [*wiki.world.categories])
    assert all(one.status == "found" for one in found.values()) and wiki.record.calls["pages"] == 3


def test_a_title_that_spoils_its_call_is_found_out() -> None:
    categories = dict(world_of(120).categories) | {f"Category:I {k}": Category(item=f"Q{k}") for k in range(1, 40)}
    world = World(categories, {f"Q{k}": (Statement((1.0, 2.0)),) for k in range(1, 40)})
    bad = {"Category:Place 7", "Category:Place 8", "Q3"}
    found = ask(Wiki(world, Behaviour(poison=frozenset(bad))), [*categories])
    errors = {title: one.reason for title, one in found.items() if one.status == "error"}
    assert errors.keys() == {"Category:Place 7", "Category:Place 8", "Category:I 3"}
    assert "invalidtitle" in str(errors["Category:Place 7"]) and "no-such-entity" in str(errors["Category:I 3"])
    assert sum(one.status == "found" for one in found.values()) == len(categories) - 3


def test_titles_with_bars_are_joined_otherwise() -> None:
    found = ask(Wiki(world_of(1)), ["Category:Place 0", "Category:A|B"])
    assert [one.status for one in found.values()] == ["found", "missing"]


# -- failures ----------------------------------------------------------------------------------------------------

PASSING = ("unavailable", "internal", "html", "half", "empty", "reset")
WAITS = ("maxlag", "ratelimited", "too_many", "too_many_until", "busy")


@pytest.mark.parametrize("fault", PASSING)
def test_what_may_pass_is_asked_again(fault: str) -> None:
    wiki = Wiki(wikimedia_world(), Behaviour(fault=lambda kind, n: fault if n % 2 else None))
    with simulated_time():
        assert ask(wiki, [*wiki.world.categories]) == ask(Wiki(wiki.world), [*wiki.world.categories])


@pytest.mark.parametrize("fault", WAITS)
def test_who_is_told_to_wait_waits(fault: str) -> None:
    wiki = Wiki(world_of(120), Behaviour(retry_after_s=7, fault=lambda kind, n: fault if n <= 20 else None))
    said: list[str] = []
    with simulated_time() as clock:
        began = clock.now
        # Waiting is no failure: a client that gives up after one goes on.
        found = ask(wiki, [*wiki.world.categories], patience=Patience(attempts=1), log=said.append)
        assert clock.now - began >= (6 * 7 if fault != "ratelimited" else 30)
    assert all(one.status == "found" for one in found.values())
    assert any(line.startswith("Wikimedia says to wait") for line in said)


def test_patience_ends() -> None:
    wiki = Wiki(world_of(1), Behaviour(fault=lambda kind, n: "maxlag"))
    with (
        simulated_time() as clock,
        pytest.raises(ApiError, match=r"keeps saying to wait.*5\.7 seconds lagged") as caught,
    ):
        began = clock.now
        try:
            ask(wiki, ["Category:Place 0"])
        finally:
            assert 3500 < clock.now - began < 3700
    assert caught.value.may_pass


def test_calls_that_keep_failing_are_errors_and_the_others_go_on() -> None:
    wiki = Wiki(world_of(250), Behaviour(fault=lambda kind, n: "internal" if n <= 6 else None))
    with simulated_time():
        found = ask(wiki, [*wiki.world.categories], Settings(per_minute=1e6, connections=1))
    statuses = [one.status for one in found.values()]
    assert statuses.count("error") == 50 and statuses.count("found") == 200
    (reason,) = {one.reason for one in found.values() if one.status == "error"}
    assert str(reason).endswith("6 times") and "internal_api_error_DBQueryError" in str(reason)


@pytest.mark.parametrize("n", [20, 5000])
def test_nothing_is_written_where_nobody_answers(n: int) -> None:
    wiki = Wiki(world_of(n), Behaviour(fault=lambda kind, n: "reset"))
    with simulated_time(), pytest.raises(ApiError, match=r"does not answer.*ConnectionResetError.*dumps") as caught:
        ask(wiki, [*wiki.world.categories])
    assert caught.value.may_pass and wiki.record.calls["pages"] <= 5 * 6


@pytest.mark.parametrize(
    ("fault", "advice"),
    [("denied", r"geotag\.wikimedia\.contact"), ("bad_token", "WIKIMEDIA_TOKEN"), ("moved", r"commons_url")],
)
def test_what_cannot_pass_is_said_at_once(fault: str, advice: str) -> None:
    wiki = Wiki(world_of(60), Behaviour(fault=lambda kind, n: fault))
    with simulated_time(), pytest.raises(ApiError, match=advice) as caught:
        ask(wiki, [*wiki.world.categories], KNOWN, token=SecretStr("secret-token"))
    assert not caught.value.may_pass and sum(wiki.record.calls.values()) <= 3


def test_no_message_holds_the_token_or_the_contact() -> None:
    async def post(url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        return Reply(403, json.dumps({"error": {"code": "x", "info": str(headers)}}).encode(), {})

    with simulated_time(), pytest.raises(ApiError) as caught:
        ask(post, ["Category:A"], KNOWN, token=SecretStr("secret-token"))
    assert "User-Agent" in str(caught.value)
    assert "secret-token" not in str(caught.value) and "mail@example.org" not in str(caught.value)


# -- pace --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "n", "minutes"),
    [
        (Settings(), 31, 3.1),  # 10 a minute for who does not say who they are
        (KNOWN, 260, 1.35),
        (Settings(contact="a@b.c", per_minute=60), 120, 2.05),
    ],
)
def test_the_server_refuses_nothing_at_the_default_pace(
    settings: Settings, n: int, minutes: float, tmp_path: Path
) -> None:
    with simulated_time() as clock:
        began = clock.now
        wiki = Wiki(world_of(50 * n), Behaviour(limited=True, latency_s=0.4, clock=clock))
        ask(wiki, [*wiki.world.categories], settings, lake=Lake(tmp_path))
        assert wiki.record.calls["pages"] == n and not wiki.record.refused
        assert 0.95 * minutes < (clock.now - began) / 60 < 1.05 * minutes


def test_a_client_that_asks_too_much_slows_down_as_it_is_told() -> None:
    with simulated_time() as clock:
        wiki = Wiki(world_of(50 * 250), Behaviour(limited=True, clock=clock))
        found = ask(wiki, [*wiki.world.categories], Settings(contact="a@b.c", per_minute=1000))
        assert all(one.status == "found" for one in found.values())
        assert 0 < wiki.record.refused["pages"] < 30


def test_all_landmarks_take_4062_calls_and_21_minutes() -> None:
    n_calls = 0

    async def post(url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        nonlocal n_calls
        n_calls += 1
        await asyncio.sleep(0.5)
        pages = ",".join(f'{{"title":"{title}","missing":true}}' for title in form["titles"].split("|"))
        return Reply(200, f'{{"query":{{"pages":[{pages}]}}}}'.encode(), {})

    found: list[Found] = []
    with simulated_time() as clock, Wikimedia(KNOWN, post=post) as client:
        began = clock.now
        client.find((f"Category:{k}" for k in range(203_094)), Answers(), lambda one, at: found.append(one))
        assert clock.now - began <= 21 * 60
    assert n_calls == 4062 and len(found) == 203_094
