"""A server on loopback that speaks the Mapillary API v4 over a demo world, quirks included.

What the real API does that a harvester must survive is here: searches that are cut short without a word, boxes that
are refused for their density, signed image addresses that expire, tiles that lag, and its own error bodies.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import hashlib
import hmac
import io
import math
import random
import re
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import orjson
from aiohttp import web

from geo_assets.demo import mvt
from geo_assets.demo.serving import serving as served
from geo_assets.demo.world import DemoImage, World

TOKEN = "MLY|1|demo"
MAX_AREA_DEG2 = 0.01
MAX_ROWS = 2000
MAX_ENTITIES = 50
THUMB_PX = {"256": 256, "1024": 1024, "2048": 2048, "original": 0}
TILE_SETS = ("mly1_public", "mly1_computed_public")

GRAPH_KINDS = frozenset({"search", "sequence", "images", "entity", "entities"})
KINDS = GRAPH_KINDS | {"tile", "file"}
"""Kinds of requests, as :class:`Address` counts them."""
BLOCK_S = 86_400.0
"""A blocked address is served tiles again so long after its last refused request [s]."""
_TILE_PATH = re.compile(r"/maps/vtp/([^/]+)/2/(\d+)/(\d+)/(\d+)", re.ASCII)
_TOKEN_IN_QUERY = re.compile(r"(?<=[?&])access_token=[^&]*&?")

_Payload = dict[str, Any]
_Getter = Callable[[DemoImage], Any]
_VALUES: dict[str, _Getter] = {
    "id": lambda i: i.id,
    "geometry": lambda i: _point(i.lon, i.lat),
    "computed_geometry": lambda i: _point(i.computed_lon, i.computed_lat),
    "captured_at": lambda i: i.captured_at_ms,
    "compass_angle": lambda i: i.compass_deg,
    "computed_compass_angle": lambda i: i.computed_compass_deg,
    "altitude": lambda i: i.altitude_m,
    "computed_altitude": lambda i: i.computed_altitude_m,
    "sequence": lambda i: i.sequence_id,
    "creator": lambda i: {"username": i.creator_username, "id": i.creator_id},
    "organization": lambda i: {"id": i.organization_id} if i.organization_id else None,
    "is_pano": lambda i: i.is_pano,
    "camera_type": lambda i: i.camera_type,
    "camera_parameters": lambda i: i.camera_parameters or None,
    "computed_rotation": lambda i: i.computed_rotation,
    "exif_orientation": lambda i: i.exif_orientation,
    "width": lambda i: i.width,
    "height": lambda i: i.height,
    "make": lambda i: i.make,
    "model": lambda i: i.model,
    "quality_score": lambda i: i.quality_score,
    "atomic_scale": lambda i: 1.0 if i.computed_rotation else None,
    "merge_cc": lambda i: None,
    "mesh": lambda i: None,
    "sfm_cluster": lambda i: None,
}
"""Where the fields of an image come from; None stands for a field that the image lacks."""

ERRORS: dict[str, tuple[int, dict[str, Any]]] = {
    "no_token": (
        500,
        {"message": "Invalid OAuth 2.0 Access Token", "type": "MLYApiException", "code": 190, "error_data": {}},
    ),
    "malformed_token": (401, {"message": "Failed to decode", "type": "OAuthException", "code": 190}),
    "unknown_token_header": (401, {"message": "Error validating application", "type": "OAuthException", "code": 190}),
    "unknown_token_query": (400, {"message": "Error validating application", "type": "OAuthException", "code": 190}),
    "expired_token": (
        401,
        {
            "message": "Error validating access token: Session has expired",
            "type": "OAuthException",
            "code": 190,
            "error_subcode": 463,
        },
    ),
    "service_unavailable": (
        500,
        {"message": "Service temporarily unavailable", "type": "OAuthException", "is_transient": False, "code": 2},
    ),
    "app_rate_limit": (
        403,
        {
            "message": "Application request limit reached",
            "type": "MLYApiException",
            "is_transient": True,
            "code": 4,
        },
    ),
    "dense": (
        500,
        {"code": 1, "message": "Please reduce the amount of data you're asking for, then retry your request"},
    ),
    "query_timeout": (
        400,
        {
            "message": "Timeout",
            "type": "OAuthException",
            "code": -2,
            "error_subcode": 3404014,
            "is_transient": False,
            "error_user_title": "Query Timeout",
            "error_user_msg": "The request took too long to process.",
        },
    ),
}
"""Bodies of the API's errors by name, with their HTTP status; ``Behaviour.fault`` may name any of them."""


@dataclass(frozen=True)
class Behaviour:
    """How the server behaves; the defaults are those of the real API.

    Attributes:
        tokens: tokens that were issued.
        rows: most rows of a search, whatever ``limit`` allows.
        short: a search that is cut holds up to this share fewer rows than it might; which rows, the seed decides,
            anew for each time the same search is asked.
        dense_above: a box with more images than this is refused with code 1.
        url_lifetime_s: life of a signed image address.
        absent_from_tiles: images that the tiles do not show yet.
        deleted: images that tiles and sequences still name, but that do not exist any more.
        without_thumb: images whose thumb addresses are absent.
        fault: called with the kind of each request and its number from 1; the name of a fault, or None for a proper
            answer. Faults are the names of :data:`ERRORS`, ``not_found`` (404), and those of
            :mod:`geo_assets.demo.faults`, which draws them by chance.
        slow_s: how long a ``slow`` answer takes.
        per_minute: graph requests that are served within any 60 s of the clock; the others are refused with code 4.
        record: whether the address remembers each request; counts by kind are always kept.
        clock: seconds since the epoch.
    """

    tokens: frozenset[str] = frozenset({TOKEN})
    rows: int = MAX_ROWS
    short: float = 0.08
    dense_above: int = 20_000
    url_lifetime_s: float = 30 * 86_400
    absent_from_tiles: frozenset[str] = frozenset()
    deleted: frozenset[str] = frozenset()
    without_thumb: frozenset[str] = frozenset()
    seed: int = 0
    fault: Callable[[str, int], str | None] = field(default=lambda kind, n: None)
    slow_s: float = 0.5
    per_minute: int | None = None
    record: bool = True
    clock: Callable[[], float] = time.time


@dataclass(frozen=True)
class Record:
    """What a server was asked and how it answered; :class:`Address` describes the parts."""

    requests: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faulted: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    times: list[tuple[str, float]] = field(default_factory=list)


class Address(str):
    """The base address of a running server, ``http://127.0.0.1:<port>``, with what tests ask about it.

    Attributes:
        requests: requests so far by kind: search, sequence, images, entity, entities, tile, file.
        refused: of these, the requests beyond the limit per minute and the tiles refused by a lasting block, by kind.
        faulted: faults that were shown, by name; a fault that changes nothing in an answer is not shown.
        asked: requests by target, which is path and query without the token.
        answered: of these, the requests that were answered with 200 and without a fault other than slowness.
        times: kind and monotonic time [s] of each request, in order.
    """

    requests: Counter[str]
    refused: Counter[str]
    faulted: Counter[str]
    asked: Counter[str]
    answered: Counter[str]
    times: list[tuple[str, float]]

    @classmethod
    def of(cls, url: str, record: Record) -> Address:
        """The address with its record."""
        address = cls(url)
        vars(address).update(vars(record))
        return address


@contextlib.contextmanager
def serving(world: World, behaviour: Behaviour | None = None, port: int = 0) -> Iterator[Address]:
    """Serve the world in a thread of its own on loopback, until the block ends.

    Args:
        world: the images.
        behaviour: how the server behaves.
        port: 0 takes a free one.

    Yields:
        The base address; graph, tiles and image files all live below it.
    """
    api = _Api(world, behaviour or Behaviour())
    with served(api.handle, port, name="demo-imagery") as api.address:
        yield Address.of(api.address, api.record)


class _Refusal(Exception):
    """An error of the API on its way to the client."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.status, self.error = status, error

    @classmethod
    def named(cls, name: str) -> _Refusal:
        return cls(*ERRORS[name])

    @classmethod
    def parameter(cls, message: str) -> _Refusal:
        return cls(400, {"message": message, "type": "MLYApiException", "code": 100})

    @classmethod
    def unknown_id(cls, image_id: str) -> _Refusal:
        message = (
            f"Unsupported get request. Object with ID '{image_id}' does not exist, cannot be loaded due to missing "
            "permissions, or does not support this operation"
        )
        return cls(400, {"message": message, "type": "MLYApiException", "code": 100, "error_subcode": 33})


class _Api:
    """The handlers; one instance a server."""

    def __init__(self, world: World, behaviour: Behaviour) -> None:
        self.world, self.behaviour = world, behaviour
        self.address = ""
        self.record = Record()
        self._searched: Counter[str] = Counter()
        self._served: deque[float] = deque()
        self._blocked_until = -math.inf
        # A new process must honour the addresses that the one before it signed.
        self._secret = hashlib.sha256(f"demo imagery {behaviour.seed}".encode()).digest()
        self._known = {i.id: i for i in world.images if i.id not in behaviour.deleted}
        self._places = _Places(list(self._known.values()))
        self._tiles = _Tiles(world, behaviour.absent_from_tiles)
        self._reduced = functools.lru_cache(maxsize=256)(self._reduce)
        self._getters = functools.lru_cache(maxsize=256)(self._getters_of)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, or show the fault that the behaviour wants."""
        path = request.path
        if path == "/_stats":
            return _json(self._stats())
        kind = _kind(path, request.query)
        n, target = self._note(kind, request)
        try:
            if kind == "tile" and self.behaviour.clock() < self._blocked_until:
                self.record.refused[kind] += 1
                return self._login(kind)
            if kind in GRAPH_KINDS and not self._has_room():
                self.record.refused[kind] += 1
                raise _Refusal.named("app_rate_limit")
            answer = await self._answer(request, kind, path)
            fault = self.behaviour.fault(kind, n)
            if fault is not None:
                shown = await self._failing(request, fault, kind, n, answer)
                if shown is not None:
                    self.record.faulted[fault] += 1
                    return shown
            response = answer if isinstance(answer, web.Response) else _json(answer)
            if self.behaviour.record and response.status == 200:
                self.record.answered[target] += 1
            return response
        except _Refusal as refusal:
            digest = hashlib.sha256(f"{target}{n}".encode()).hexdigest()
            return _json({"error": refusal.error | {"fbtrace_id": f"A{digest[:22]}"}}, refusal.status)

    def _note(self, kind: str, request: web.BaseRequest) -> tuple[int, str]:
        """Number of the request within its kind, and its target without the token."""
        self.record.requests[kind] += 1
        target = request.raw_path
        if "access_token=" in target:
            target = _TOKEN_IN_QUERY.sub("", target).rstrip("?&")
        if self.behaviour.record:
            self.record.asked[target] += 1
            self.record.times.append((kind, time.monotonic()))
        return self.record.requests[kind], target

    def _stats(self) -> _Payload:
        counts = {name: dict(getattr(self.record, name)) for name in ("requests", "refused", "faulted")}
        return counts | {"cpu_seconds": time.process_time()}

    async def _answer(self, request: web.BaseRequest, kind: str, path: str) -> _Payload | web.Response:
        query = request.query
        if kind == "tile":
            return self._tile(path, query)
        if kind == "file":
            return await self._file(path, query)
        self._authorise(request)
        if kind in ("search", "images"):
            return self._images(query, request.query_string)
        if kind == "sequence":
            return self._image_ids(query)
        return self._entities(query) if kind == "entities" else self._entity(path[1:], query)

    # -- faults ---------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        """Whether a graph request may be served; served ones fill the window of a minute, refused ones do not."""
        if self.behaviour.per_minute is None:
            return True
        now = self.behaviour.clock()
        while self._served and self._served[0] <= now - 60:
            self._served.popleft()
        if len(self._served) >= self.behaviour.per_minute:
            return False
        self._served.append(now)
        return True

    def _login(self, kind: str) -> web.Response:
        """The redirect of a blocked address; for tiles it lasts, and each request makes it last longer."""
        if kind == "tile":
            self._blocked_until = self.behaviour.clock() + BLOCK_S
        return web.Response(status=302, headers={"Location": "https://www.mapillary.com/login"})

    async def _failing(
        self, request: web.BaseRequest, fault: str, kind: str, n: int, proper: _Payload | web.Response
    ) -> web.StreamResponse | None:
        """The answer with a fault; None where the fault changes nothing, or nothing but the time."""
        chance = random.Random(f"{self.behaviour.seed} {kind} {n}")  # which of its forms the fault takes
        if fault == "slow":
            await asyncio.sleep(self.behaviour.slow_s)
            self.record.faulted[fault] += 1
            return None
        if fault in ("partial", "without_thumb"):
            if isinstance(proper, web.Response):
                return None
            less = _partial(proper, chance) if fault == "partial" else _without_thumbs(proper, chance)
            return None if less is None else _json(less)
        response = proper if isinstance(proper, web.Response) else _json(proper)
        body = response.body if isinstance(response.body, bytes) else b""
        if fault == "empty":
            return _json({"data": []})
        if fault == "html":
            return web.Response(text="<html><body>Sorry, something went wrong.</body></html>", content_type="text/html")
        if fault == "blocked":
            return self._login(kind)
        if fault in ("not_found", "tile_not_found"):
            return web.Response(status=404)
        if fault == "half":
            return web.Response(body=body[: len(body) // 2], content_type=response.content_type)
        if fault == "empty_file":
            return web.Response(body=b"", content_type=response.content_type)
        if fault == "truncated_file":
            cut = chance.randint(len(body) // 3, len(body) * 2 // 3) if chance.random() < 0.5 else chance.randint(2, 64)
            return web.Response(body=body[:-cut], content_type=response.content_type)
        if fault == "expired":
            return web.Response(status=403, text="URL signature expired")
        if fault == "reset":
            return await _reset(request, body if chance.random() < 0.5 else b"")
        if fault == "server_error":
            status = chance.choice([500, 502, 503, 504])
            if status != 500:
                return web.Response(status=status, text=f"<html><h1>{status}</h1></html>", content_type="text/html")
            fault = "service_unavailable"
        refusal = ERRORS[{"limited": "app_rate_limit", "timeout": "query_timeout"}.get(fault, fault)]
        status = chance.choice([403, 429]) if fault == "limited" else refusal[0]
        digest = hashlib.sha256(f"{kind}{n}".encode()).hexdigest()
        return _json({"error": refusal[1] | {"fbtrace_id": f"A{digest[:22]}"}}, status)

    # -- graph ----------------------------------------------------------------------------------------------

    def _images(self, query: Mapping[str, str], search: str) -> _Payload:
        """Search by box, or images of sequences, or images by id, or images of an author; filters apply to all."""
        getters = self._getters(query.get("fields", ""))
        limit = _number(query.get("limit", str(MAX_ROWS)), "limit")
        if not 1 <= limit <= MAX_ROWS:
            raise _Refusal.parameter(f"Param limit must be a number between 1 and {MAX_ROWS}")
        wants = _filter(query)
        if "image_ids" in query:
            found = [self._known[i] for i in _list(query["image_ids"]) if i in self._known]
        elif "sequence_ids" in query:
            wanted = dict.fromkeys(_list(query["sequence_ids"]))
            found = [i for s in wanted for i in self.world.sequences.get(s, ()) if i.id in self._known]
        elif "bbox" in query:
            found = self._places.inside(*_box(query["bbox"]))
            if len(found) > self.behaviour.dense_above:
                raise _Refusal.named("dense")  # whatever the limit and the filters
        elif "creator_username" in query:
            found = list(self._known.values())
        else:
            raise _Refusal.parameter("One of the params bbox, sequence_ids, image_ids or creator_username is required")
        if wants is not None:
            found = [image for image in found if wants(image)]
        return {"data": [_record(image, getters) for image in self._cut(found, limit, search)]}

    def _cut(self, found: list[DemoImage], limit: int, search: str) -> list[DemoImage]:
        """At most the rows that the search may hold; a cut answer is short by chance, and does not say so."""
        rows = min(limit, self.behaviour.rows)
        if len(found) <= rows:
            return found
        search = "&".join(part for part in search.split("&") if not part.startswith("access_token="))
        self._searched[search] += 1
        chance = random.Random(f"{self.behaviour.seed} {search} {self._searched[search]}")
        rows = max(1, rows - math.ceil(rows * self.behaviour.short * chance.random()))
        return chance.sample(found, rows)

    def _image_ids(self, query: Mapping[str, str]) -> _Payload:
        sequence_id = query.get("sequence_id")
        if not sequence_id:
            raise _Refusal.parameter("The param sequence_id is required")
        return {"data": [{"id": image.id} for image in self.world.sequences.get(sequence_id, ())]}

    def _entity(self, image_id: str, query: Mapping[str, str]) -> _Payload | web.Response:
        getters = self._getters(query.get("fields", ""))
        if "/" in image_id:
            return web.Response(status=404)
        if image_id not in self._known:
            raise _Refusal.unknown_id(image_id)
        return _record(self._known[image_id], getters)

    def _entities(self, query: Mapping[str, str]) -> _Payload:
        if "ids" not in query:
            raise _Refusal.parameter("The param ids is required")
        ids, getters = _list(query["ids"]), self._getters(query.get("fields", ""))
        if len(ids) > MAX_ENTITIES:
            raise _Refusal.parameter(f"Too many IDs. Maximum: {MAX_ENTITIES}. Provided: {len(ids)}.")
        return {i: _record(self._known[i], getters) for i in ids if i in self._known}

    def _getters_of(self, fields: str) -> list[tuple[str, _Getter]]:
        """What takes each asked field from an image.

        Raises:
            _Refusal: images have no such field.
        """
        thumbs = {f"thumb_{size}_url": functools.partial(self._thumb, size) for size in THUMB_PX}
        getters = []
        for name in _list(fields):
            if name not in thumbs and name not in _VALUES:
                raise _Refusal.parameter(f"Tried accessing nonexisting field ({name}) on node type (Image)")
            getters.append((name, thumbs.get(name) or _VALUES[name]))
        return getters

    def _authorise(self, request: web.BaseRequest) -> None:
        header, query = request.headers.get("Authorization"), request.query.get("access_token")
        token = query if query is not None else (header or "").removeprefix("OAuth ").strip()
        if not token:
            raise _Refusal.named("no_token")
        parts = token.split("|")
        if len(parts) != 3 or parts[0] != "MLY" or not parts[1].isdigit() or not parts[2]:
            raise _Refusal.named("malformed_token")
        if token not in self.behaviour.tokens:
            raise _Refusal.named("unknown_token_header" if query is None else "unknown_token_query")

    # -- files ----------------------------------------------------------------------------------------------

    def _thumb(self, size: str, image: DemoImage) -> str | None:
        """A signed address of the photo, None where it has none."""
        if image.id in self.behaviour.without_thumb:
            return None
        expiry = f"{int(self.behaviour.clock() + self.behaviour.url_lifetime_s):X}"
        oh = self._signature(image.id, size, expiry)
        return f"{self.address}/files/{image.id}/{size}.jpg?oh={oh}&oe={expiry}"

    def _signature(self, image_id: str, size: str, expiry: str) -> str:
        return hmac.digest(self._secret, f"{image_id}/{size}/{expiry}".encode(), "sha256").hex()[:40]

    async def _file(self, path: str, query: Mapping[str, str]) -> web.Response:
        parts = path.split("/")
        if len(parts) != 4 or not parts[3].endswith(".jpg"):
            return web.Response(status=404)
        image_id, size = parts[2], parts[3].removesuffix(".jpg")
        signature, expiry = query.get("oh", ""), query.get("oe", "")
        if not hmac.compare_digest(signature.encode(), self._signature(image_id, size, expiry).encode()):
            return web.Response(status=403, text="URL signature mismatch")
        if int(expiry, 16) <= self.behaviour.clock():
            return web.Response(status=403, text="URL signature expired")
        if image_id not in self._known or size not in THUMB_PX:
            return web.Response(status=404)
        image, long_side_px = self._known[image_id], THUMB_PX[size]
        if not long_side_px or max(image.width, image.height) <= long_side_px:
            body = self.world.jpeg(image_id)
        else:
            body = await asyncio.to_thread(self._reduced, image_id, long_side_px)
        return web.Response(body=body, content_type="image/jpeg")

    def _reduce(self, image_id: str, long_side_px: int) -> bytes:
        """The photo with its long side reduced to this."""
        from PIL import Image

        photo = Image.open(io.BytesIO(self.world.jpeg(image_id)))
        photo.thumbnail((long_side_px, long_side_px), Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        photo.save(sink, "JPEG", quality=90)
        return sink.getvalue()

    # -- tiles ----------------------------------------------------------------------------------------------

    def _tile(self, path: str, query: Mapping[str, str]) -> web.Response:
        token = query.get("access_token")
        if token is None or token not in self.behaviour.tokens:  # the header does not count here
            return _json({"error": {"message": "Forbidden", "type": "OAuthException"}}, 403)
        found = _TILE_PATH.fullmatch(path)
        if not found:
            return web.Response(status=404)
        tiles, z, x, y = found[1], *(int(v) for v in found.group(2, 3, 4))
        if tiles not in TILE_SETS or not 0 <= z <= 14 or not (0 <= x < 1 << z and 0 <= y < 1 << z):
            return web.Response(status=404)
        return web.Response(body=self._tiles.body(tiles, z, x, y), content_type="application/x-protobuf")


BUFFER = 64
"""Tiles repeat what lies this far beyond their edges, in tile units."""


def encode_tile(world: World, tiles: str, z: int, x: int, y: int, absent: frozenset[str] = frozenset()) -> bytes:
    """One vector tile of the world.

    Args:
        world: the images.
        tiles: ``mly1_public`` for positions as recorded, ``mly1_computed_public`` for corrected ones.
        z: zoom, 0 to 14; images stand in tiles of zoom 14 only.
        x: column.
        y: row, from the north.
        absent: images that the tiles do not show.
    """
    return _Tiles(world, absent).body(tiles, z, x, y)


class _Places:
    """Recorded positions, sorted by latitude for searches by box."""

    def __init__(self, images: list[DemoImage]) -> None:
        lon, lat = np.array([i.lon for i in images], float), np.array([i.lat for i in images], float)
        self._images, self._order = images, np.argsort(lat, kind="stable")
        self._lon, self._lat = lon[self._order], lat[self._order]

    def inside(self, west: float, south: float, east: float, north: float) -> list[DemoImage]:
        """The images in a closed rectangle, in the order of the world."""
        first, stop = np.searchsorted(self._lat, south, "left"), np.searchsorted(self._lat, north, "right")
        lon = self._lon[first:stop]
        found = np.sort(self._order[first:stop][(lon >= west) & (lon <= east)])
        return [self._images[k] for k in found.tolist()]


class _Tiles:
    """The vector tiles of a world; each is encoded once."""

    def __init__(self, world: World, absent: frozenset[str]) -> None:
        self._images = [image for image in world.images if image.id not in absent]
        self._units = {
            "mly1_public": _units([i.lon for i in self._images], [i.lat for i in self._images]),
            "mly1_computed_public": _units(
                [i.computed_lon for i in self._images], [i.computed_lat for i in self._images]
            ),
        }
        self._bodies: dict[tuple[str, int, int, int], bytes] = {}

    def body(self, tiles: str, z: int, x: int, y: int) -> bytes:
        """The bytes of a tile, as :func:`encode_tile` describes them."""
        key = (tiles, z, x, y)
        if key not in self._bodies:
            self._bodies[key] = self._encode(*key)
        return self._bodies[key]

    def _encode(self, tiles: str, z: int, x: int, y: int) -> bytes:
        places = (self._units[tiles] * (1 << z) - (x, y)) * mvt.EXTENT
        inside = np.flatnonzero(((places >= -BUFFER) & (places < mvt.EXTENT + BUFFER)).all(axis=1))
        images, places = [self._images[k] for k in inside.tolist()], np.floor(places[inside]).astype(np.int64)
        if z <= 5:
            return mvt.encode({"overview": mvt.Points(places, _columns(images, _OVERVIEW))})
        layers: dict[str, Sequence[mvt.Feature] | mvt.Points] = {"sequence": _lines(images, places)}
        if z == 14:
            layers["image"] = mvt.Points(places, _columns(images, _OVERVIEW | _IMAGE))
        return mvt.encode(layers)


def _units(lon: Sequence[float | None], lat: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """Web Mercator positions [n, 2], the world being one unit wide; not a number where there is no position."""
    x, y = np.array(lon, float) / 360 + 0.5, np.radians(np.array(lat, float))
    return np.column_stack([x, (1 - np.arcsinh(np.tan(y)) / math.pi) / 2])


def _lines(images: list[DemoImage], places: npt.NDArray[np.int64]) -> list[mvt.Feature]:
    """Lines of the sequences that have three images or more here: the real layer lacks the shorter ones."""
    members: dict[str, list[int]] = {}
    for k, image in enumerate(images):
        members.setdefault(image.sequence_id, []).append(k)
    lines, points = [], [(u, v) for u, v in places.tolist()]
    for sequence_id, found in members.items():
        if len(found) < 3:
            continue
        first = images[found[0]]
        properties = {
            "captured_at": first.captured_at_ms,
            "id": sequence_id,
            "image_id": int(first.id),
            "is_pano": first.is_pano,
        }
        if first.organization_id:
            properties["organization_id"] = int(first.organization_id)
        lines.append(mvt.Feature([[points[k] for k in found]], properties))
    return lines


_OVERVIEW: dict[str, _Getter] = {
    "captured_at": lambda i: i.captured_at_ms,
    "id": lambda i: int(i.id),
    "sequence_id": lambda i: i.sequence_id,
    "is_pano": lambda i: i.is_pano,
}
_IMAGE: dict[str, _Getter] = {
    "compass_angle": lambda i: i.compass_deg,
    "creator_id": lambda i: int(i.creator_id),
    "quality_score": lambda i: i.quality_score,
    "organization_id": lambda i: int(i.organization_id) if i.organization_id else None,
}


def _columns(images: list[DemoImage], properties: dict[str, _Getter]) -> dict[str, list[mvt.Value | None]]:
    return {name: [get(image) for image in images] for name, get in properties.items()}


def _json(payload: _Payload, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(payload), status=status, content_type="application/json")


def _record(image: DemoImage, getters: list[tuple[str, _Getter]]) -> _Payload:
    """The asked fields of an image that it has, and its id."""
    record: _Payload = {"id": image.id}
    for name, get in getters:
        value = get(image)
        if value is not None:
            record[name] = value
    return record


def _partial(payload: _Payload, chance: random.Random) -> _Payload | None:
    """The answer without 10 to 20 % of its rows, at least one; None where there is only one, or none."""
    rows = payload.get("data", payload)
    n = len(rows)
    if n < 2 or ("data" not in payload and "id" in payload):  # one image is no list of rows
        return None
    gone = set(chance.sample(range(n), max(1, round(n * chance.uniform(0.1, 0.2)))))
    if isinstance(rows, list):
        return {"data": [row for k, row in enumerate(rows) if k not in gone]}
    return {key: row for k, (key, row) in enumerate(rows.items()) if k not in gone}


def _without_thumbs(payload: _Payload, chance: random.Random) -> _Payload | None:
    """The answer with the addresses of about half its images missing, at least of one; None where it has none."""
    data = payload.get("data")
    rows = data if isinstance(data, list) else [payload] if "id" in payload else list(payload.values())
    having = [row for row in rows if any(name.startswith("thumb_") for name in row)]
    if not having:
        return None
    for row in chance.sample(having, (len(having) + 1) // 2):
        for name in [name for name in row if name.startswith("thumb_")]:
            del row[name]
    return payload


async def _reset(request: web.BaseRequest, body: bytes) -> web.StreamResponse:
    """Break the connection, before an answer or, with a body, in the middle of it."""
    response = web.StreamResponse(headers={"Content-Length": str(len(body))})
    if request.transport is None:
        return response
    if len(body) > 1:
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        request.transport.close()
    else:
        request.transport.abort()
    return response


def _box(text: str) -> tuple[float, float, float, float]:
    try:
        west, south, east, north = (float(v) for v in text.split(","))
    except ValueError:
        raise _Refusal.parameter("Param bbox must be an array of four numbers: west, south, east, north") from None
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise _Refusal.parameter("Param bbox must hold west < east and south < north in degrees")
    if (east - west) * (north - south) >= MAX_AREA_DEG2:
        raise _Refusal.parameter("Param bbox must be smaller than 0.01 degrees square")
    return west, south, east, north


def _kind(path: str, query: Mapping[str, str]) -> str:
    """What a request asks for, as ``Address.requests`` counts it."""
    if path == "/images":
        return "images" if "image_ids" in query else "search"
    if path.startswith("/files/"):
        return "file"
    if path.startswith("/maps/"):
        return "tile"
    return {"/image_ids": "sequence", "/": "entities"}.get(path, "entity")


def _filter(query: Mapping[str, str]) -> Callable[[DemoImage], bool] | None:
    """The filters of a search as one test of an image; None without a filter."""
    tests: list[Callable[[DemoImage], bool]] = []
    if "start_captured_at" in query:
        start = _instant_ms(query["start_captured_at"])
        tests.append(lambda image: image.captured_at_ms >= start)
    if "end_captured_at" in query:
        end = _instant_ms(query["end_captured_at"])
        tests.append(lambda image: image.captured_at_ms <= end)
    if "is_pano" in query:
        pano = query["is_pano"].lower() == "true"
        tests.append(lambda image: image.is_pano == pano)
    attributes = {"creator_username": "creator_username", "organization_id": "organization_id"}
    if "bbox" in query:
        attributes |= {"make": "make", "model": "model"}
    for param, attribute in attributes.items():
        if param in query:
            tests.append(functools.partial(_equals, attribute, query[param]))
    return (lambda image: all(test(image) for test in tests)) if tests else None


def _equals(attribute: str, wanted: str, image: DemoImage) -> bool:
    return getattr(image, attribute) == wanted


def _instant_ms(text: str) -> float:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise _Refusal.parameter(f"'{text}' is not an ISO 8601 time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp() * 1000


def _number(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _Refusal.parameter(f"Param {name} must be a number") from None


def _list(text: str) -> list[str]:
    """``A,B`` or ``['A','B']``: the API takes both."""
    return [part.strip().strip("'\"") for part in text.strip().removeprefix("[").removesuffix("]").split(",") if part]


def _point(lon: float | None, lat: float | None) -> dict[str, Any] | None:
    return None if lon is None or lat is None else {"type": "Point", "coordinates": [lon, lat]}


@click.command()
@click.option("--images", default=20_000, show_default=True, help="images of the city on paper")
@click.option("--hot-spots", default=0, show_default=True, help="crowds of a tenth of the images within 60 m")
@click.option("--stacked", default=0, show_default=True, help="images on one point")
@click.option("--long-sequence", default=0, show_default=True, help="length of one sequence")
@click.option("--side-m", default=4000.0, show_default=True, help="side of the area [m]")
@click.option("--jpeg-kb", default=0.0, show_default=True, help="size of a photo [kB]; 0: tiny")
@click.option("--faults", default=0.0, show_default=True, help="share of requests that show each fault")
@click.option("--short", default=0.08, show_default=True, help="share of rows that a cut answer may lack")
@click.option("--dense-above", default=20_000, show_default=True, help="images above which a box is refused")
@click.option("--per-minute", type=int, help="graph requests served in any 60 s")
@click.option("--lag", is_flag=True, help="tiles lack 5 % of the sequences and 2 % of the images")
@click.option("--record", is_flag=True, help="remember each request, which costs memory")
@click.option("--seed", default=0, show_default=True, help="of the city, the faults and the answers")
@click.option("--port", default=0, show_default=True, help="0: a free one")
def main(
    images: int,
    hot_spots: int,
    stacked: int,
    long_sequence: int,
    side_m: float,
    jpeg_kb: float,
    faults: float,
    short: float,
    dense_above: int,
    per_minute: int | None,
    lag: bool,
    record: bool,
    seed: int,
    port: int,
) -> None:
    """Serve a city on paper on loopback until SIGTERM; says where as one line of JSON once it listens.

    GET /_stats answers with the requests so far and the processor time of this process.
    """
    from geo_assets.demo.faults import lagging, mix
    from geo_assets.demo.paper import paper_world

    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before the server's thread starts, which inherits it
    world = paper_world(
        images,
        hot_spots=hot_spots,
        stacked=stacked,
        long_sequence=long_sequence,
        side_m=side_m,
        jpeg_kb=jpeg_kb,
        seed=seed,
    )
    behaviour = Behaviour(
        short=short,
        dense_above=dense_above,
        absent_from_tiles=lagging(world, seed=seed) if lag else frozenset(),
        seed=seed,
        fault=mix(faults, seed),
        per_minute=per_minute,
        record=record,
    )
    with serving(world, behaviour, port) as address:
        about = {"url": str(address), "bbox": world.bounds.as_list(), "token": TOKEN}
        click.echo(orjson.dumps(about | {"n_inside": len(world.truth_inside())}))
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
