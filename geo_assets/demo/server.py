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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from geo_assets.demo import mvt
from geo_assets.demo.world import DemoImage, World

TOKEN = "MLY|1|demo"
MAX_AREA_DEG2 = 0.01
MAX_ROWS = 2000
MAX_ENTITIES = 50
THUMB_PX = {"256": 256, "1024": 1024, "2048": 2048, "original": 0}
TILE_SETS = ("mly1_public", "mly1_computed_public")

_FIELDS = frozenset(
    [
        *("id", "geometry", "computed_geometry", "captured_at", "compass_angle", "computed_compass_angle", "altitude"),
        *("computed_altitude", "sequence", "creator", "organization", "is_pano", "camera_type", "camera_parameters"),
        *("computed_rotation", "exif_orientation", "width", "height", "make", "model", "quality_score", "atomic_scale"),
        *("merge_cc", "mesh", "sfm_cluster"),
        *(f"thumb_{size}_url" for size in THUMB_PX),
    ]
)

ERRORS: dict[str, tuple[int, dict[str, Any]]] = {
    "no_token": (
        500,
        {"message": "Invalid OAuth 2.0 Access Token", "type": "MLYApiException", "code": 190, "error_data": {}},
    ),
    "malformed_token": (401, {"message": "Failed to decode", "type": "OAuthException", "code": 190}),
    "unknown_token_header": (401, {"message": "Error validating application", "type": "OAuthException", "code": 190}),
    "unknown_token_query": (400, {"message": "Error validating application", "type": "OAuthException", "code": 190}),
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
        fault: called with the kind of each request and its number from 1; a name of :data:`ERRORS`, or ``empty``
            (200 without rows), ``html`` (200, a web page), ``half`` (half an answer), ``reset`` (the connection
            breaks), ``blocked`` (302 to a login page), ``not_found`` (404), or None for a proper answer.
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
    clock: Callable[[], float] = time.time


class Address(str):
    """The base address of a running server, ``http://127.0.0.1:<port>``, with what tests ask about it.

    Attributes:
        requests: requests so far by kind: search, sequence, images, entity, entities, tile, file.
    """

    requests: Counter[str]


@contextlib.contextmanager
def serving(world: World, behaviour: Behaviour | None = None) -> Iterator[Address]:
    """Serve the world in a thread of its own on a free port of loopback, until the block ends.

    Yields:
        The base address; graph, tiles and image files all live below it.
    """
    api = _Api(world, behaviour or Behaviour())
    ready: threading.Event = threading.Event()
    loop = asyncio.new_event_loop()
    failure: list[BaseException] = []

    async def main() -> None:
        runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=1.0)
        try:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            api.address = f"http://127.0.0.1:{port}"
            api.stop = asyncio.Event()
            ready.set()
            await api.stop.wait()
        finally:
            await runner.cleanup()

    def run() -> None:
        try:
            loop.run_until_complete(main())
        except BaseException as error:
            failure.append(error)
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run, name="demo-imagery", daemon=True)
    thread.start()
    ready.wait()
    if failure:
        raise failure[0]
    address = Address(api.address)
    address.requests = api.requests
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(api.stop.set)
        thread.join()


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

    stop: asyncio.Event

    def __init__(self, world: World, behaviour: Behaviour) -> None:
        self.world, self.behaviour = world, behaviour
        self.address = ""
        self.requests: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        # A new process must honour the addresses that the one before it signed.
        self._secret = hashlib.sha256(f"demo imagery {behaviour.seed}".encode()).digest()
        self._known = {i.id: i for i in world.images if i.id not in behaviour.deleted}
        self._reduced = functools.lru_cache(maxsize=256)(self._reduce)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._errors])
        app.router.add_get("/images", self._images)
        app.router.add_get("/image_ids", self._image_ids)
        app.router.add_get("/", self._entities)
        app.router.add_get("/maps/vtp/{tiles}/2/{z}/{x}/{y}", self._tile)
        app.router.add_get("/files/{image_id}/{size}.jpg", self._file)
        app.router.add_get("/{image_id}", self._entity)
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: Any) -> web.StreamResponse:
        kind = _kind(request)
        self.requests[kind] += 1
        try:
            fault = self.behaviour.fault(kind, self.requests[kind])
            if fault is not None:
                return self._failing(request, fault, await self._answer(request, handler))
            return await self._answer(request, handler)
        except _Refusal as refusal:
            digest = hashlib.sha256(f"{request.path_qs}{self.requests[kind]}".encode()).hexdigest()
            return web.json_response(
                {"error": refusal.error | {"fbtrace_id": f"A{digest[:22]}"}}, status=refusal.status
            )

    async def _answer(self, request: web.Request, handler: Any) -> web.Response:
        return await handler(request)

    def _failing(self, request: web.Request, fault: str, proper: web.Response) -> web.Response:
        if fault == "empty":
            return web.json_response({"data": []})
        if fault == "html":
            return web.Response(text="<html><body>Sorry, something went wrong.</body></html>", content_type="text/html")
        if fault == "blocked":
            return web.Response(status=302, headers={"Location": "https://www.mapillary.com/login"})
        if fault == "not_found":
            return web.Response(status=404)
        if fault == "half":
            body = proper.body if isinstance(proper.body, bytes) else b""
            return web.Response(body=body[: len(body) // 2], content_type=proper.content_type)
        if fault == "reset":
            if request.transport is not None:
                request.transport.abort()
            return proper
        raise _Refusal.named(fault)

    # -- graph ----------------------------------------------------------------------------------------------

    async def _images(self, request: web.Request) -> web.Response:
        """Search by box, or images of sequences, or images by id, or images of an author; filters apply to all."""
        self._authorise(request)
        query = request.query
        fields = _fields(query.get("fields"))
        limit = _number(query.get("limit", str(MAX_ROWS)), "limit")
        if not 1 <= limit <= MAX_ROWS:
            raise _Refusal.parameter(f"Param limit must be a number between 1 and {MAX_ROWS}")
        wants = _filter(query)
        if "image_ids" in query:
            found = [self._known[i] for i in _list(query["image_ids"]) if i in self._known]
        elif "sequence_ids" in query:
            wanted = set(_list(query["sequence_ids"]))
            found = [i for i in self._known.values() if i.sequence_id in wanted]
        elif "bbox" in query:
            found = self._in_box(query["bbox"])
            if len(found) > self.behaviour.dense_above:
                raise _Refusal.named("dense")  # whatever the limit and the filters
        elif "creator_username" in query:
            found = list(self._known.values())
        else:
            raise _Refusal.parameter("One of the params bbox, sequence_ids, image_ids or creator_username is required")
        found = self._cut([image for image in found if wants(image)], limit, request.query_string)
        return web.json_response({"data": [self._record(image, fields) for image in found]})

    def _in_box(self, text: str) -> list[DemoImage]:
        try:
            west, south, east, north = (float(v) for v in text.split(","))
        except ValueError:
            raise _Refusal.parameter("Param bbox must be an array of four numbers: west, south, east, north") from None
        if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
            raise _Refusal.parameter("Param bbox must hold west < east and south < north in degrees")
        if (east - west) * (north - south) >= MAX_AREA_DEG2:
            raise _Refusal.parameter("Param bbox must be smaller than 0.01 degrees square")
        return [i for i in self._known.values() if west <= i.lon <= east and south <= i.lat <= north]

    def _cut(self, found: list[DemoImage], limit: int, search: str) -> list[DemoImage]:
        """At most the rows that the search may hold; a cut answer is short by chance, and does not say so."""
        rows = min(limit, self.behaviour.rows)
        if len(found) <= rows:
            return found
        search = "&".join(part for part in search.split("&") if not part.startswith("access_token="))
        self._asked[search] += 1
        chance = random.Random(f"{self.behaviour.seed} {search} {self._asked[search]}")
        rows = max(1, rows - math.ceil(rows * self.behaviour.short * chance.random()))
        return chance.sample(found, rows)

    async def _image_ids(self, request: web.Request) -> web.Response:
        self._authorise(request)
        sequence_id = request.query.get("sequence_id")
        if not sequence_id:
            raise _Refusal.parameter("The param sequence_id is required")
        images = self.world.sequences.get(sequence_id, ())
        return web.json_response({"data": [{"id": image.id} for image in images]})

    async def _entity(self, request: web.Request) -> web.Response:
        self._authorise(request)
        image_id = request.match_info["image_id"]
        fields = _fields(request.query.get("fields"))
        if image_id not in self._known:
            raise _Refusal.unknown_id(image_id)
        return web.json_response(self._record(self._known[image_id], fields))

    async def _entities(self, request: web.Request) -> web.Response:
        self._authorise(request)
        if "ids" not in request.query:
            raise _Refusal.parameter("The param ids is required")
        ids, fields = _list(request.query["ids"]), _fields(request.query.get("fields"))
        if len(ids) > MAX_ENTITIES:
            raise _Refusal.parameter(f"Too many IDs. Maximum: {MAX_ENTITIES}. Provided: {len(ids)}.")
        return web.json_response({i: self._record(self._known[i], fields) for i in ids if i in self._known})

    def _authorise(self, request: web.Request) -> None:
        header, query = request.headers.get("Authorization"), request.query.get("access_token")
        token = query if query is not None else (header or "").removeprefix("OAuth ").strip()
        if not token:
            raise _Refusal.named("no_token")
        parts = token.split("|")
        if len(parts) != 3 or parts[0] != "MLY" or not parts[1].isdigit() or not parts[2]:
            raise _Refusal.named("malformed_token")
        if token not in self.behaviour.tokens:
            raise _Refusal.named("unknown_token_header" if query is None else "unknown_token_query")

    def _record(self, image: DemoImage, fields: Sequence[str]) -> dict[str, Any]:
        """The asked fields of an image that it has, and its id."""
        known: dict[str, Any] = {
            "geometry": _point(image.lon, image.lat),
            "computed_geometry": _point(image.computed_lon, image.computed_lat),
            "captured_at": image.captured_at_ms,
            "compass_angle": image.compass_deg,
            "computed_compass_angle": image.computed_compass_deg,
            "altitude": image.altitude_m,
            "computed_altitude": image.computed_altitude_m,
            "sequence": image.sequence_id,
            "creator": {"username": image.creator_username, "id": image.creator_id},
            "organization": {"id": image.organization_id} if image.organization_id else None,
            "is_pano": image.is_pano,
            "camera_type": image.camera_type,
            "camera_parameters": list(image.camera_parameters) or None,
            "computed_rotation": list(image.computed_rotation) if image.computed_rotation else None,
            "exif_orientation": image.exif_orientation,
            "width": image.width,
            "height": image.height,
            "make": image.make,
            "model": image.model,
            "quality_score": image.quality_score,
            "atomic_scale": 1.0 if image.computed_rotation else None,
        }
        record: dict[str, Any] = {"id": image.id}
        for name in fields:
            if name.startswith("thumb_"):
                if image.id not in self.behaviour.without_thumb:
                    record[name] = self._signed(image.id, name.split("_")[1])
            elif known.get(name) is not None:
                record[name] = known[name]
        return record

    # -- files ----------------------------------------------------------------------------------------------

    def _signed(self, image_id: str, size: str) -> str:
        expiry = f"{int(self.behaviour.clock() + self.behaviour.url_lifetime_s):X}"
        return f"{self.address}/files/{image_id}/{size}.jpg?oh={self._signature(image_id, size, expiry)}&oe={expiry}"

    def _signature(self, image_id: str, size: str, expiry: str) -> str:
        return hmac.new(self._secret, f"{image_id}/{size}/{expiry}".encode(), hashlib.sha256).hexdigest()[:40]

    async def _file(self, request: web.Request) -> web.Response:
        image_id, size = request.match_info["image_id"], request.match_info["size"]
        signature, expiry = request.query.get("oh", ""), request.query.get("oe", "")
        if not hmac.compare_digest(signature, self._signature(image_id, size, expiry)):
            return web.Response(status=403, text="URL signature mismatch")
        if int(expiry, 16) <= self.behaviour.clock():
            return web.Response(status=403, text="URL signature expired")
        if image_id not in self._known or size not in THUMB_PX:
            return web.Response(status=404)
        body = await asyncio.to_thread(self._reduced, image_id, THUMB_PX[size])
        return web.Response(body=body, content_type="image/jpeg")

    def _reduce(self, image_id: str, long_side_px: int) -> bytes:
        """The photo with its long side at most this (0: any); a photo that is smaller stays as it is."""
        image, data = self._known[image_id], self.world.jpeg(image_id)
        if not long_side_px or max(image.width, image.height) <= long_side_px:
            return data
        from PIL import Image

        photo = Image.open(io.BytesIO(data))
        photo.thumbnail((long_side_px, long_side_px), Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        photo.save(sink, "JPEG", quality=90)
        return sink.getvalue()

    # -- tiles ----------------------------------------------------------------------------------------------

    async def _tile(self, request: web.Request) -> web.Response:
        token = request.query.get("access_token")
        if token is None or token not in self.behaviour.tokens:  # the header does not count here
            return web.json_response({"error": {"message": "Forbidden", "type": "OAuthException"}}, status=403)
        tiles = request.match_info["tiles"]
        try:
            z, x, y = (int(request.match_info[k]) for k in "zxy")
        except ValueError:
            return web.Response(status=404)
        if tiles not in TILE_SETS or not 0 <= z <= 14 or not (0 <= x < 1 << z and 0 <= y < 1 << z):
            return web.Response(status=404)
        body = encode_tile(self.world, tiles, z, x, y, self.behaviour.absent_from_tiles)
        return web.Response(body=body, content_type="application/x-protobuf")


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
    placed = []
    for image in world.images:
        lon, lat = (image.lon, image.lat) if tiles == "mly1_public" else (image.computed_lon, image.computed_lat)
        if lon is None or lat is None or image.id in absent:
            continue
        u, v = mvt.tile_position(lon, lat, z)
        placed.append((image, math.floor((u - x) * mvt.EXTENT), math.floor((v - y) * mvt.EXTENT)))
    inside = [p for p in placed if all(-BUFFER <= c < mvt.EXTENT + BUFFER for c in p[1:])]
    if z <= 5:
        return mvt.encode({"overview": [mvt.Feature([[(u, v)]], _overview(i)) for i, u, v in inside]})
    layers = {"sequence": _lines(inside)}
    if z == 14:
        layers["image"] = [mvt.Feature([[(u, v)]], _image(i)) for i, u, v in inside]
    return mvt.encode(layers)


def _lines(inside: list[tuple[DemoImage, int, int]]) -> list[mvt.Feature]:
    """Lines of the sequences that have three images or more here: the real layer lacks the shorter ones."""
    found: dict[str, list[tuple[DemoImage, int, int]]] = {}
    for placed in inside:
        found.setdefault(placed[0].sequence_id, []).append(placed)
    lines = []
    for sequence_id, members in found.items():
        if len(members) < 3:
            continue
        first = members[0][0]
        properties = {
            "captured_at": first.captured_at_ms,
            "id": sequence_id,
            "image_id": int(first.id),
            "is_pano": first.is_pano,
        }
        lines.append(mvt.Feature([[(u, v) for _, u, v in members]], properties | _organization(first)))
    return lines


def _overview(image: DemoImage) -> dict[str, mvt.Value]:
    return {
        "captured_at": image.captured_at_ms,
        "id": int(image.id),
        "sequence_id": image.sequence_id,
        "is_pano": image.is_pano,
    }


def _image(image: DemoImage) -> dict[str, mvt.Value]:
    more = {
        "compass_angle": image.compass_deg,
        "creator_id": int(image.creator_id),
        "quality_score": image.quality_score,
    }
    return _overview(image) | more | _organization(image)


def _organization(image: DemoImage) -> dict[str, mvt.Value]:
    return {"organization_id": int(image.organization_id)} if image.organization_id else {}


def _kind(request: web.Request) -> str:
    """What a request asks for, as ``Address.requests`` counts it."""
    path, query = request.path, request.query
    if path.startswith("/maps/"):
        return "tile"
    if path.startswith("/files/"):
        return "file"
    if path == "/images":
        return "images" if "image_ids" in query else "search"
    return {"/image_ids": "sequence", "/": "entities"}.get(path, "entity")


def _fields(text: str | None) -> list[str]:
    fields = _list(text or "")
    for name in fields:
        if name not in _FIELDS:
            raise _Refusal.parameter(f"Tried accessing nonexisting field ({name}) on node type (Image)")
    return fields


def _filter(query: Any) -> Callable[[DemoImage], bool]:
    """The filters of a search as one test of an image."""
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
    return lambda image: all(test(image) for test in tests)


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
