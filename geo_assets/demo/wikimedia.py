"""A server on loopback that speaks the action APIs of Commons and Wikidata over a small world of categories and items.

Answers have the shapes of https://www.mediawiki.org/wiki/API:Query (``formatversion=2``) and
https://www.wikidata.org/w/api.php?action=help&modules=wbgetentities, and so have its refusals. Pages of categories
with a link to GeoHack are there as well, as earlier scripts read them one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import html
import math
import re
import time
import unicodedata
import urllib.parse
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import orjson
from aiohttp import web

from geo_assets.demo.serving import serving as served
from geo_assets.geotag.wikimedia import Reply
from geo_assets.settings import Wikimedia as Settings

BATCH = 50
REDIRECTS = "Category:Category redirects"
COMMONS, WIKIDATA = "/commons/w/api.php", "/wikidata/w/api.php"
ALLOWED = {"unknown": 10, "known": 200, "account": 2000}
"""Requests a minute of those who do not say who they are, of those who do, and of those who are logged in."""

_KNOWN = re.compile(r"(?!Mozilla)[^\s/]+/\S+ \([^)]*[@/][^)]*\)")
_INVALID = re.compile(r"[#<>\[\]|{}\x00-\x1f\x7f]")
_Payload = dict[str, Any]


@dataclass(frozen=True)
class Category:
    """A category of Commons.

    Attributes:
        position: longitude and latitude [deg] of its own coordinate, or None.
        item: its Wikidata item.
        redirect: the title that a real redirect leads to.
        text: its wikitext, where that has a ``{{Category redirect}}``.
        globe: of its coordinate.
    """

    position: tuple[float, float] | None = None
    item: str | None = None
    redirect: str | None = None
    text: str | None = None
    globe: str = "earth"


@dataclass(frozen=True)
class Statement:
    """A coordinate [deg] or a topic that an item states; neither is an unknown coordinate."""

    position: tuple[float, float] | None = None
    topic: str | None = None
    rank: str = "normal"
    globe: str = "Q2"
    precision_deg: float | None = 0.0001

    def as_json(self) -> tuple[str, _Payload]:
        """Its property, and itself as the API writes it."""
        value: _Payload | None = None
        if self.topic is not None:
            value = {"entity-type": "item", "numeric-id": int(self.topic[1:]), "id": self.topic}
        elif self.position is not None:
            lon, lat = self.position
            globe = f"http://www.wikidata.org/entity/{self.globe}"
            value = {
                "latitude": lat,
                "longitude": lon,
                "altitude": None,
                "precision": self.precision_deg,
                "globe": globe,
            }
        name = "P301" if self.topic is not None else "P625"
        snak: _Payload = {"snaktype": "value" if value else "somevalue", "property": name}
        if value:
            kind = "wikibase-entityid" if self.topic is not None else "globecoordinate"
            snak["datavalue"] = {"value": value, "type": kind}
        snak["datatype"] = "wikibase-item" if self.topic is not None else "globe-coordinate"
        return name, {"mainsnak": snak, "type": "statement", "rank": self.rank}


@dataclass(frozen=True)
class World:
    """Categories by title, statements of items by id, and items that were merged into others."""

    categories: Mapping[str, Category]
    items: Mapping[str, tuple[Statement, ...]] = field(default_factory=dict)
    merged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Behaviour:
    """How the server behaves.

    Attributes:
        limited: whether more requests than :data:`ALLOWED` within 60 s of the clock are refused with 429.
        coordinates: most coordinates of one answer; the rest comes with ``continue``.
        poison: titles and items that make the whole call fail that asks for them.
        fault: called with the kind of each request (pages, redirects, items, page) and its number from 1; the name of
            a fault, or None for a proper answer. Faults are ``maxlag``, ``ratelimited``, ``too_many`` (429 with
            seconds), ``too_many_until`` (429 with a date), ``busy`` (503 with seconds), ``unavailable`` (503),
            ``internal`` (an error of the API that may pass), ``html``, ``half``, ``empty``, ``reset``, ``denied``
            (403), ``bad_token`` and ``moved`` (301).
        retry_after_s: what refusals name.
        latency_s: time that each answer of the APIs takes.
        page_latency_s: time that each page takes.
        clock: seconds since the epoch.
    """

    limited: bool = False
    coordinates: int = 500
    poison: frozenset[str] = frozenset()
    fault: Callable[[str, int], str | None] = field(default=lambda kind, n: None)
    retry_after_s: int = 5
    latency_s: float = 0.0
    page_latency_s: float = 0.0
    clock: Callable[[], float] = field(default=lambda: time.time())


@dataclass(frozen=True)
class Record:
    """What the server was asked: calls by kind, titles and ids in order by kind, refusals for asking too much, headers."""

    calls: Counter[str] = field(default_factory=Counter)
    asked: dict[str, list[str]] = field(default_factory=lambda: {"pages": [], "redirects": [], "items": [], "page": []})
    refused: Counter[str] = field(default_factory=Counter)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


class Address(str):
    """The base address of a running server, ``http://127.0.0.1:<port>``, with the record of what it was asked."""

    record: Record

    @classmethod
    def of(cls, url: str, record: Record) -> Address:
        """The address with its record."""
        address = cls(url)
        address.record = record
        return address

    def settings(self, **others: Any) -> Settings:
        """Settings of a client of this server, which is asked as fast as it answers."""
        urls = {"commons_url": f"{self}{COMMONS}", "wikidata_url": f"{self}{WIKIDATA}"}
        return Settings(**{**urls, "per_minute": 1e6, **others})


class Wiki:
    """The server itself; :meth:`post` answers without a network."""

    def __init__(self, world: World, behaviour: Behaviour | None = None) -> None:
        self.world, self.behaviour = world, behaviour or Behaviour()
        self.record = Record()
        self._served: dict[str, deque[float]] = {who: deque() for who in ALLOWED}

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        """Answer a form of either API.

        Raises:
            ConnectionResetError: for the fault ``reset``.
        """
        is_query = form["action"] == "query"
        kind = "items" if not is_query else "redirects" if form["prop"] == "revisions" else "pages"
        refusal = self._refusal(kind, headers)
        if self.behaviour.latency_s:
            await asyncio.sleep(self.behaviour.latency_s)
        return refusal or _json(self._items(form) if kind == "items" else self._query(kind, form))

    async def page(self, title: str, headers: Mapping[str, str]) -> Reply:
        """The web page of a category, redirects followed."""
        refusal = self._refusal("page", headers)
        await asyncio.sleep(self.behaviour.page_latency_s)
        self.record.asked["page"].append(title)
        return refusal or self._html(_normal(title))

    # -- refusals -------------------------------------------------------------------------------------------

    def _refusal(self, kind: str, headers: Mapping[str, str]) -> Reply | None:
        self.record.calls[kind] += 1
        self.record.headers.append(dict(headers))
        self.record.times.append(self.behaviour.clock())
        if self.behaviour.limited and (wait_s := self._over(headers)):
            self.record.refused[kind] += 1
            return Reply(429, b"Too many requests.", {"Retry-After": str(math.ceil(wait_s))})
        fault = self.behaviour.fault(kind, self.record.calls[kind])
        return self._failing(fault) if fault else None

    def _over(self, headers: Mapping[str, str]) -> float:
        """Seconds until a client may ask again, 0 where it may now."""
        known = _KNOWN.match(headers.get("User-Agent", ""))
        who = "account" if headers.get("Authorization") else "known" if known else "unknown"
        now, served = self.behaviour.clock(), self._served[who]
        while served and served[0] <= now - 60:
            served.popleft()
        if len(served) >= ALLOWED[who]:
            return served[0] + 60 - now
        served.append(now)
        return 0.0

    def _failing(self, fault: str) -> Reply:
        after_s = self.behaviour.retry_after_s
        after = {"Retry-After": str(after_s)}
        if fault == "reset":
            raise ConnectionResetError
        if fault in _ERRORS:
            return _json({"error": _ERRORS[fault]}, after if fault == "maxlag" else {})
        until = email.utils.formatdate(self.behaviour.clock() + after_s, usegmt=True)
        return {
            "too_many": Reply(429, b"Too many requests.", after),
            "too_many_until": Reply(429, b"Too many requests.", {"Retry-After": until}),
            "busy": Reply(503, b"<html>Our servers are busy.</html>", after),
            "unavailable": Reply(503, b"upstream connect error", {}),
            "html": Reply(200, b"<!DOCTYPE html><html>Wikimedia Error</html>", {}),
            "half": Reply(200, b'{"batchcomplete":true,"query":{"pages":[{"pagei', {}),
            "empty": Reply(200, b"{}", {}),
            "denied": Reply(403, b"<html>Please respect our robot policy</html>", {}),
            "moved": Reply(301, b"", {"Location": "https://elsewhere.invalid/"}),
        }[fault]

    # -- Commons --------------------------------------------------------------------------------------------

    def _query(self, kind: str, form: Mapping[str, str]) -> _Payload:
        titles = _split(form["titles"])
        if len(titles) > BATCH:
            return _error("toomanyvalues", f'Too many values supplied for parameter "titles". The limit is {BATCH}.')
        if bad := self.behaviour.poison.intersection(titles):
            return _error("invalidtitle", f'Bad title "{min(bad)}".')
        if "cocontinue" not in form:
            self.record.asked[kind] += titles
        query: _Payload = {}
        normalized = [_change(t, _normal(t)) for t in titles if t != _normal(t)]
        if normalized:
            query["normalized"] = normalized
        ends, redirects = self._followed(dict.fromkeys(map(_normal, titles)), form)
        if redirects:
            query["redirects"] = redirects
        pages = sorted((self._page(title, kind) for title in ends), key=lambda page: page.get("pageid", -1))
        first = int(form.get("cocontinue", 0))
        last = first + self.behaviour.coordinates
        placed = [page for page in pages if "coordinates" in page]
        for page in placed[:first] + placed[last:]:
            del page["coordinates"]
        query["pages"] = pages
        if last < len(placed):
            return {"continue": {"cocontinue": str(last), "continue": "||pageprops|categories"}, "query": query}
        return {"batchcomplete": True, "query": query}

    def _followed(self, titles: Mapping[str, None], form: Mapping[str, str]) -> tuple[list[str], list[_Payload]]:
        """The titles behind all redirects, and the steps to them; those that lead in a circle are dropped."""
        steps: dict[str, str] = {}
        ends: dict[str, None] = {}
        for title in titles:
            seen = [title]
            while "redirects" in form and (to := self._category(seen[-1]).redirect):
                steps[seen[-1]] = to
                if to in seen:
                    break
                seen.append(to)
            else:
                ends[seen[-1]] = None
        return list(ends), [{"from": a, "to": b} for a, b in steps.items()]

    def _category(self, title: str) -> Category:
        return self.world.categories.get(title, Category())

    def _page(self, title: str, kind: str) -> _Payload:
        if _INVALID.search(title):
            reason = "The requested page title contains invalid characters."
            return {"title": title, "invalidreason": reason, "invalid": True}
        known = self.world.categories.get(title)
        if known is None:
            return {"ns": 14, "title": title, "missing": True}
        page: _Payload = {"pageid": 100_000 + zlib.crc32(title.encode()) % 10**8, "ns": 14, "title": title}
        if kind == "redirects":
            slots = {"main": {"contentmodel": "wikitext", "contentformat": "text/x-wiki", "content": known.text or ""}}
            return page | {"revisions": [{"slots": slots}]}
        if known.position is not None:
            lon, lat = known.position
            page["coordinates"] = [{"lat": lat, "lon": lon, "primary": True, "globe": known.globe}]
        if known.item is not None:
            page["pageprops"] = {"wikibase_item": known.item}
        if known.text is not None:
            page["categories"] = [{"ns": 14, "title": REDIRECTS}]
        return page

    def _html(self, title: str) -> Reply:
        for _ in range(5):
            title = self._category(title).redirect or title
        if title not in self.world.categories:
            return Reply(404, b"<html>No such category</html>", {})
        known = self.world.categories[title]
        text = ""
        place = self._of_item(known.item) if known.position is None else known.position
        if place is not None:
            (lon, east), (lat, north) = ((_degrees(v), s[v < 0]) for v, s in zip(place, ("EW", "NS"), strict=True))
            text = (
                f'<a class="external" href="https://geohack.toolforge.org/geohack.php">{lat} {north}, {lon} {east}</a>'
            )
        return Reply(200, f"<html><h1>{html.escape(title)}</h1>{text}</html>".encode(), {"Content-Type": "text/html"})

    def _of_item(self, item: str | None) -> tuple[float, float] | None:
        statements = self.world.items.get(item, ()) if item else ()
        return next((s.position for s in statements if s.position and s.rank != "deprecated" and s.globe == "Q2"), None)

    # -- Wikidata -------------------------------------------------------------------------------------------

    def _items(self, form: Mapping[str, str]) -> _Payload:
        ids = _split(form["ids"])
        if len(ids) > BATCH:
            return _error("toomanyvalues", f'Too many values supplied for parameter "ids". The limit is {BATCH}.')
        if bad := self.behaviour.poison.intersection(ids):
            return _error("no-such-entity", f'Could not find an entity with the ID "{min(bad)}".')
        self.record.asked["items"] += ids
        return {"entities": {item: self._entity(item) for item in ids}, "success": 1}

    def _entity(self, item: str) -> _Payload:
        to = self.world.merged.get(item, item)
        if to not in self.world.items:
            return {"id": item, "missing": ""}
        claims: dict[str, list[_Payload]] = {}
        for statement in self.world.items[to]:
            name, written = statement.as_json()
            claims.setdefault(name, []).append(written)
        entity: _Payload = {"type": "item", "id": to, "claims": claims or []}
        return entity if to == item else entity | {"redirects": {"from": item, "to": to}}


_ERRORS: dict[str, _Payload] = {
    "maxlag": {
        "code": "maxlag",
        "info": "Waiting for 10.64.16.7: 5.7 seconds lagged.",
        "host": "10.64.16.7",
        "lag": 5.7,
        "type": "db",
    },
    "ratelimited": {
        "code": "ratelimited",
        "info": "You've exceeded your rate limit. Please wait some time and try again.",
    },
    "internal": {"code": "internal_api_error_DBQueryError", "info": "[d6a2] Caught exception of type DBQueryError"},
    "bad_token": {
        "code": "mwoauth-invalid-authorization",
        "info": "The authorization headers in your request are not valid: Invalid access token",
    },
}


def _error(code: str, info: str) -> _Payload:
    return {"error": {"code": code, "info": info}}


def _json(payload: _Payload, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(200, orjson.dumps(payload), {"Content-Type": "application/json", **(headers or {})})


def _split(values: str) -> list[str]:
    """Values of a parameter: after U+001F they are separated by it, else by bars."""
    return values[1:].split("\x1f") if values.startswith("\x1f") else values.split("|")


def _normal(title: str) -> str:
    text = " ".join(unicodedata.normalize("NFC", title).replace("_", " ").split())
    space, _, name = text.partition(":")
    name = name.strip()
    return f"{space[:1].upper()}{space[1:]}:{name[:1].upper()}{name[1:]}" if name else text


def _change(title: str, to: str) -> _Payload:
    """An entry of ``normalized``; what is not in Unicode's form C stands there percent-encoded."""
    encoded = unicodedata.normalize("NFC", title) != title
    return {"fromencoded": encoded, "from": urllib.parse.quote(title, safe="") if encoded else title, "to": to}


def _degrees(value: float) -> str:
    seconds = round(abs(value) * 3600)
    return f"{seconds // 3600}° {seconds // 60 % 60}′ {seconds % 60}″"


# -- serving -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(world: World, behaviour: Behaviour | None = None, port: int = 0) -> Iterator[Address]:
    """Serve the world in a thread of its own on loopback, until the block ends.

    Args:
        world: categories and items.
        behaviour: how the server behaves.
        port: 0 takes a free one.

    Yields:
        The base address; :data:`COMMONS`, :data:`WIKIDATA` and ``/wiki/Category:...`` live below it.
    """
    wiki = Wiki(world, behaviour)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.path.startswith("/wiki/"):
                reply = await wiki.page(request.path.removeprefix("/wiki/"), request.headers)
            elif request.path in (COMMONS, WIKIDATA) and request.method == "POST":
                form = {k: v for k, v in (await request.post()).items() if isinstance(v, str)}
                reply = await wiki.post(request.path, form, request.headers)
            else:
                reply = Reply(404, b"", {})
        except ConnectionResetError:
            if request.transport is not None:
                request.transport.abort()
            reply = Reply(500, b"", {})
        return web.Response(body=reply.body, status=reply.status, headers=reply.headers)

    with served(handle, port, name="demo-wikimedia") as address:
        yield Address.of(address, wiki.record)


class Clock:
    """Seconds since the epoch that pass only while something sleeps."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        """The time now."""
        return self.now


@contextlib.contextmanager
def simulated_time() -> Iterator[Clock]:
    """In this block nothing waits: ``time.time()`` and asyncio's loops go by a clock that jumps over every sleep.

    It is for clients that are given :meth:`Wiki.post`; on a network an answer would come after its time limit.
    """
    clock = Clock()

    class Loop(asyncio.SelectorEventLoop):
        def __init__(self) -> None:
            super().__init__()
            self._clock_resolution = 1e-6  # what a float can tell apart since the epoch
            selector: Any = vars(self)["_selector"]
            look = selector.select

            def select(timeout: float | None = None) -> list[Any]:
                clock.now += timeout or 0.0
                return look(0 if timeout is not None else None)

            selector.select = select

        def time(self) -> float:
            return clock.now

    with mock.patch("asyncio.events.new_event_loop", Loop), mock.patch("time.time", clock):
        yield clock
