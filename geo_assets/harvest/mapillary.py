"""A client of the Mapillary API v4 that plain, synchronous code can call.

Requests run on one event loop in a thread of their own; any number of threads may call the methods, and
:meth:`Mapillary.each` is the pool of threads that does. Answers are classified by the API's code and subcode, not
by status alone: its 500 can mean a wrong token and its 400 a timeout. The token never leaves this module: it is
not in URLs that are reported, nor in messages, nor in causes of exceptions.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import threading
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import aiohttp
import orjson

from geo_assets.errors import ApiError, ConfigError
from geo_assets.grid import Bounds
from geo_assets.harvest.tiles import whole
from geo_assets.lake import Lake
from geo_assets.limits import HostLimits, Manners, Purpose
from geo_assets.settings import Mapillary as Settings

Dataset = Literal["original", "computed"]
Kind = Literal["transient", "limited", "fatal", "dense", "gone", "forbidden", "refused"]

DATASETS: dict[Dataset, str] = {"original": "mly1_public", "computed": "mly1_computed_public"}
"""The two tile sets: positions as recorded, and as corrected by structure from motion."""

BATCH = 50
"""Images asked for in one request."""

SEARCH_LIMIT = 2000
"""Most rows that the API gives for one search."""

_HOPELESS = 20
_FEWEST_IN_FLIGHT, _MOST_PER_S = 3, 250
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ITEM = TypeVar("_ITEM")
_RESULT = TypeVar("_RESULT")


@dataclass(frozen=True)
class Patience:
    """How long a client keeps asking.

    Args:
        attempts: tries of one request that fails for a passing reason.
        first_wait_s: wait after the first failure; it doubles with each one, and is drawn at random around that.
        longest_wait_s: bound of that wait.
        first_pause_s: pause of all requests after the API said that the application asks too much.
        pause_s: that pause where three requests after it were refused as well, one after another: then it is a
            limit and not chance. It doubles with each further one.
        pauses: such pauses that one request sits through before it gives up.
        asks: times that a batch of images is asked for what its answers left out, before each is asked alone.
    """

    attempts: int = 8
    first_wait_s: float = 0.25
    longest_wait_s: float = 30.0
    first_pause_s: float = 0.1
    pause_s: float = 60.0
    pauses: int = 30
    asks: int = 4

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after so many failures, jittered so that workers do not come back together."""
        return random.uniform(0.5, 1.0) * min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s)


@dataclass
class Images:
    """What the API knows of the images that were asked for.

    Attributes:
        rows: one JSON object an image.
        tombstones: ids that the API says do not exist.
        unresolved: ids that got neither.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    tombstones: list[str] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)


def kind_of(error: ApiError) -> Kind:
    """What a client has to do about an error of the API."""
    text = str(error)
    if error.code == 190:
        return "fatal"
    if error.code == 4 or error.status == 429:
        return "limited"
    if error.code == 1 and "reduce the amount of data" in text:
        return "dense"
    if error.code == 100:
        return "gone" if error.subcode == 33 else "refused"
    if error.code in (-2, 1, 2) or error.status in (0, 200, 404, 408) or error.status >= 500:
        return "transient"
    return "forbidden" if error.status == 403 else "refused"


class _Room:
    """Requests in flight: as many as it takes to ask :data:`_MOST_PER_S` a second at the latency that is measured.

    More would not be faster. They would queue at the server, and all be refused at once when a limit is reached.
    """

    def __init__(self, most: int) -> None:
        self._most, self._in_flight, self._latency_s = most, 0, 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def _size(self) -> int:
        return max(min(_FEWEST_IN_FLIGHT, self._most), min(self._most, round(_MOST_PER_S * self._latency_s)))

    async def enter(self) -> None:
        while self._in_flight >= self._size:
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            await place
        self._in_flight += 1

    def leave(self, latency_s: float | None) -> None:
        self._in_flight -= 1
        if latency_s is not None:
            self._latency_s += 0.1 * (latency_s - self._latency_s)
        for _ in range(self._size - self._in_flight):
            while self._waiting and self._waiting[0].done():
                self._waiting.popleft()
            if not self._waiting:
                return
            self._waiting.popleft().set_result(None)


class Mapillary:
    """Tiles, sequences, searches, images and files of one imagery server.

    Args:
        settings: addresses, limits and the number of requests in flight.
        token: the access token; without it the first request that needs it says what to do.
        patience: how long to keep asking.
        lake: whose workers share the limits of the hosts; None for a client that is alone.
    """

    def __init__(
        self, settings: Settings, token: str | None, patience: Patience | None = None, lake: Lake | None = None
    ) -> None:
        self.settings, self.patience = settings, patience or Patience()
        self.requests: Counter[str] = Counter()
        """Requests sent so far, by purpose."""
        self._token = token
        graph = {"searches": settings.searches_per_minute, "entities": settings.entities_per_minute}
        self._graph_limits = HostLimits(graph, _host(settings.graph_url), lake)
        self._tile_limits = HostLimits({"tiles": settings.tiles_per_minute}, _host(settings.tiles_url), lake)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession | None = None
        self._given_up = 0
        self._manners: dict[str, Manners] = {}
        self._rooms: dict[str, _Room] = {}

    def __repr__(self) -> str:
        return f"Mapillary({self.settings.graph_url})"

    def __enter__(self) -> Mapillary:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mapillary", daemon=True)
        self._thread.start()
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._close(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
        self._loop = self._thread = None

    # -- what can be asked ----------------------------------------------------------------------------------

    def tile(self, dataset: Dataset, z: int, x: int, y: int) -> bytes:
        """The bytes of one coverage tile; empty where there is no image.

        Raises:
            ApiError: the tile host has blocked this address, or kept failing.
            ConfigError: there is no token.
        """
        return self.run(self.ask_tile(dataset, z, x, y))

    async def ask_tile(self, dataset: Dataset, z: int, x: int, y: int) -> bytes:
        """:meth:`tile`, to be awaited within :meth:`run`."""
        url = f"{self.settings.tiles_url}/maps/vtp/{DATASETS[dataset]}/2/{z}/{x}/{y}"
        return await self._ask("tiles", url, {"access_token": self._needed_token()}, parse=whole)

    def image_ids(self, sequence_id: str) -> list[str]:
        """Ids of the images of a sequence, in the order of capture, as the API lists them in one answer.

        Raises:
            ApiError: the API refused, or kept failing.
        """
        return self.run(self.ask_image_ids(sequence_id))

    async def ask_image_ids(self, sequence_id: str) -> list[str]:
        """:meth:`image_ids`, to be awaited within :meth:`run`."""
        answer = await self._graph("entities", "image_ids", {"sequence_id": sequence_id})
        return [str(row["id"]) for row in _rows(answer) if "id" in row]

    def search(
        self,
        bounds: Bounds,
        fields: Sequence[str] = ("id", "sequence"),
        *,
        limit: int = SEARCH_LIMIT,
        **filters: str | bool | int,
    ) -> list[dict[str, Any]]:
        """Images in a rectangle, as one answer gives them: a sample, which may be short without saying so.

        Args:
            bounds: rectangle of less than 0.01 square degrees.
            fields: fields of each image.
            limit: most rows, up to 2000.
            filters: ``start_captured_at``, ``end_captured_at``, ``is_pano``, ``make``, ``model``,
                ``organization_id``, ``creator_username``.

        Raises:
            ApiError: too many images lie in the rectangle (:func:`kind_of` says ``dense``), or the API failed.
        """
        return self.run(self.ask_search(bounds, fields, limit=limit, filters=filters))

    async def ask_search(
        self,
        bounds: Bounds,
        fields: Sequence[str] = ("id", "sequence"),
        *,
        limit: int = SEARCH_LIMIT,
        filters: Mapping[str, str | bool | int] = MappingProxyType({}),
    ) -> list[dict[str, Any]]:
        """:meth:`search`, to be awaited within :meth:`run`."""
        query = {
            "bbox": ",".join(f"{v:.9f}" for v in bounds.as_list()),
            "fields": ",".join(fields),
            "limit": str(limit),
        }
        query |= {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in filters.items()}
        return _rows(await self._graph("searches", "images", query))

    def images(self, ids: Iterable[str], fields: Sequence[str]) -> Images:
        """The images of the given ids, asked in batches; what answers leave out is asked again, then one by one.

        Raises:
            ApiError: the token is refused, a field is unknown, or the API says of every single id that it does
                not exist, which is what it says to a token without rights.
        """
        return self.run(self._images(list(dict.fromkeys(ids)), ",".join(dict.fromkeys(["id", *fields]))))

    async def ask_page(self, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of up to :data:`BATCH` images in one answer, which may lack some; to be awaited within :meth:`run`."""
        return await self._batch(list(ids), ",".join(dict.fromkeys(["id", *fields])))

    async def ask_image(self, image_id: str, fields: Sequence[str]) -> dict[str, Any] | Literal["gone", "unknown"]:
        """One image alone, or whether the API says that it does not exist; to be awaited within :meth:`run`."""
        return await self._one(image_id, ",".join(dict.fromkeys(["id", *fields])))

    def download(self, url: str) -> bytes:
        """The bytes behind a signed image URL; the token is not sent there.

        Raises:
            ApiError: status 403 where the signature has expired; otherwise the host kept failing.
        """
        return self.run(self._ask("files", url, {}))

    def each(self, function: Callable[[_ITEM], _RESULT], items: Iterable[_ITEM]) -> Iterator[_RESULT]:
        """Results of ``function`` for each item, in order, with as many threads as there may be requests in flight.

        The first exception ends the rest.
        """
        pool = concurrent.futures.ThreadPoolExecutor(self.settings.connections, thread_name_prefix="harvest")
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def is_down(self) -> bool:
        """Whether the last requests all failed however often they were repeated: asking on is of no use."""
        return self._given_up >= _HOPELESS

    @property
    def tiles_blocked_until(self) -> float:
        """Time [s since the epoch] before which the tile host must not be probed; 0 where it is not blocked."""
        return self._tile_limits.blocked_until

    # -- one request ----------------------------------------------------------------------------------------

    def _needed_token(self) -> str:
        if not self._token:
            raise ConfigError(
                "The imagery API needs a token and MAPILLARY_TOKEN is not set. Make one at "
                "https://www.mapillary.com/dashboard/developers and put MAPILLARY_TOKEN=... into the environment or .env."
            )
        return self._token

    def run(self, coroutine: Coroutine[Any, Any, _RESULT]) -> _RESULT:
        """The result of a coroutine that runs on the client's loop; many requests at once are one coroutine.

        Raises:
            RuntimeError: the client is not open.
        """
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("Mapillary is a context manager: use it in a with block.")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupted caller leaves no request behind
            raise

    async def _open(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self.settings.timeout_s)
        connector = aiohttp.TCPConnector(limit=self.settings.connections)
        host = urllib.parse.urlsplit(self.settings.graph_url).hostname
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=host not in _LOOPBACK,  # a proxy of the environment cannot reach this machine's own server
        )
        pauses = (self.patience.first_pause_s, self.patience.pause_s)
        self._manners = {
            "graph": Manners(self._graph_limits, *pauses),
            "tiles": Manners(self._tile_limits, *pauses),
        }
        self._rooms = {name: _Room(self.settings.connections) for name in ("searches", "entities", "files")}
        self._rooms["tiles"] = _Room(2)

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _graph(self, purpose: Purpose, path: str, query: dict[str, str]) -> Any:
        headers = {"Authorization": f"OAuth {self._needed_token()}"}
        return await self._ask(purpose, f"{self.settings.graph_url}/{path}", query, headers, parse=_parsed)

    async def _ask(
        self,
        purpose: Purpose,
        url: str,
        query: dict[str, str],
        headers: dict[str, str] | None = None,
        parse: Callable[[bytes], Any] = bytes,
    ) -> Any:
        """One answer, asked again as often as its failures deserve."""
        failures = pauses = 0
        while True:
            try:
                return await self._once(purpose, url, query, headers or {}, parse)
            except ApiError as error:
                kind = kind_of(error)
                if kind == "limited" and pauses < self.patience.pauses:
                    pauses += 1  # the limit is the application's: every worker waits at its next turn
                elif kind == "transient" and failures + 1 < self.patience.attempts:
                    failures += 1
                    await asyncio.sleep(self.patience.wait_s(failures))
                else:
                    error.may_pass = kind in ("limited", "transient")
                    self._given_up += error.may_pass
                    raise

    async def _once(
        self, purpose: Purpose, url: str, query: dict[str, str], headers: dict[str, str], parse: Callable[[bytes], Any]
    ) -> Any:
        room, manners = self._rooms[purpose], self._manners.get("tiles" if purpose == "tiles" else "graph")
        await room.enter()
        latency_s: float | None = None
        try:
            if purpose == "tiles":
                self._refuse_blocked()
            if purpose != "files" and manners is not None:
                await manners.turn(purpose)
            started_at = time.time()
            try:
                result = await self._exchange(purpose, url, query, headers, parse)
                self._given_up = 0
            except ApiError as error:
                if purpose != "files" and manners is not None:
                    if kind_of(error) == "limited":
                        manners.refused(started_at, error.figures.get("retry_after_s"))
                    elif error.status and error.status < 500:
                        manners.accepted(started_at)
                    else:
                        manners.ended(started_at)
                raise
            except BaseException:
                if manners is not None:
                    manners.ended(started_at)
                raise
            latency_s = time.time() - started_at
            if purpose != "files" and manners is not None:
                manners.accepted(started_at)
            return result
        finally:
            room.leave(latency_s)

    async def _exchange(
        self, purpose: Purpose, url: str, query: dict[str, str], headers: dict[str, str], parse: Callable[[bytes], Any]
    ) -> Any:
        assert self._session is not None
        self.requests[purpose] += 1
        where = f"{purpose} {urllib.parse.urlsplit(url)._replace(query='', fragment='').geturl()}"
        try:
            async with self._session.get(
                url, params=query or None, headers=headers, allow_redirects=purpose == "files"
            ) as answer:
                body, status = await answer.read(), answer.status
                location = answer.headers.get("Location", "")
                retry_after = answer.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # `from None`: the cause's text holds the URL, and a tile's URL holds the token.
            raise ApiError(self._clean(f"{where} failed: {type(error).__name__}.")) from None
        if 300 <= status < 400:  # a web page with another status is no block, and may pass
            raise self._redirected(purpose, where, status, location)
        if status >= 400:
            raise self._refusal(where, status, body, retry_after)
        try:
            return parse(body)
        except ValueError:
            raise ApiError(
                self._clean(f"{where} answered {len(body)} bytes that are not what was asked for."), status=status
            ) from None
        except ApiError:  # an error in the clothes of a 200
            raise self._refusal(where, status, body, retry_after) from None

    def _refuse_blocked(self) -> None:
        until = self._tile_limits.blocked_until
        if until > time.time():
            hours = (until - time.time()) / 3600
            raise ApiError(
                f"The tile host has blocked this address; it is not asked again for {hours:.1f} hours, because probing a "
                "block prolongs it. Tiles already fetched are used.",
                status=302,
            )

    def _redirected(self, purpose: Purpose, where: str, status: int, location: str) -> ApiError:
        message = (
            f"{where} was answered by a redirect to {urllib.parse.urlsplit(location).netloc or 'a web page'}: "
            "the host has blocked this address. Wait 24 hours after the last request before asking for tiles again; "
            "tiles already fetched are kept."
        )
        if purpose == "tiles":
            self._tile_limits.block()
        return ApiError(self._clean(message), status=302)

    def _refusal(self, where: str, status: int, body: bytes, retry_after: str) -> ApiError:
        try:
            error = orjson.loads(body)["error"]
            said = " ".join(str(error[k]) for k in ("message", "error_user_msg") if error.get(k))
            code, subcode = error.get("code"), error.get("error_subcode")
        except (ValueError, KeyError, TypeError, AttributeError):
            said, code, subcode = body[:200].decode(errors="replace"), None, None
        advice = " Check MAPILLARY_TOKEN: the API does not accept it." if code == 190 else ""
        message = f"{where} answered {status}, code {code}: {said}.{advice}"
        wait_s = float(retry_after) if retry_after.isdigit() else None
        return ApiError(self._clean(message), status=status, code=code, subcode=subcode, retry_after_s=wait_s)

    def _clean(self, text: str) -> str:
        for secret in filter(None, (self._token, urllib.parse.quote(self._token or "", safe=""))):
            text = text.replace(secret, "***")
        return text

    # -- many images ----------------------------------------------------------------------------------------

    async def _images(self, ids: list[str], fields: str) -> Images:
        found: dict[str, dict[str, Any]] = {}
        missing = ids
        for _ in range(self.patience.asks):
            batches = [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]
            for rows in await _together(self._batch(batch, fields) for batch in batches):
                found.update((str(row["id"]), row) for row in rows if "id" in row)
            missing = [i for i in missing if i not in found]
            if not missing:
                break
        answer = Images()
        for image_id, result in zip(missing, await _together(self._one(i, fields) for i in missing), strict=True):
            if isinstance(result, dict):
                found[image_id] = result
            else:
                (answer.tombstones if result == "gone" else answer.unresolved).append(image_id)
        if len(answer.tombstones) > 20 and not found:
            raise ApiError(
                f"The API says of all {len(answer.tombstones)} images asked that they do not exist. It says the same "
                "to a token without the right to read; check MAPILLARY_TOKEN.",
                code=100,
                subcode=33,
            )
        answer.rows = [found[i] for i in ids if i in found]
        return answer

    async def _batch(self, ids: list[str], fields: str) -> list[dict[str, Any]]:
        try:
            return _rows(await self._graph("entities", "images", {"image_ids": ",".join(ids), "fields": fields}))
        except ApiError as error:
            if kind_of(error) in ("gone", "dense", "transient"):
                return []  # they stay missing, and are asked again or alone
            raise

    async def _one(self, image_id: str, fields: str) -> dict[str, Any] | Literal["gone", "unknown"]:
        try:
            row = await self._graph("entities", urllib.parse.quote(image_id, safe=""), {"fields": fields})
        except ApiError as error:
            if kind_of(error) == "gone":
                return "gone"
            if kind_of(error) == "transient":
                return "unknown"
            raise
        return row if isinstance(row, dict) and str(row.get("id", "")) == image_id else "unknown"


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


async def pooled(
    n: int,
    function: Callable[[_ITEM], Coroutine[Any, Any, _RESULT]],
    items: Iterable[_ITEM],
    progress: Callable[[int], None] = lambda _: None,
) -> list[_RESULT]:
    """Results of a coroutine for each item, in order, ``n`` at a time; the first exception cancels the rest."""
    waiting = list(items)
    results: list[Any] = [None] * len(waiting)
    left, done = iter(enumerate(waiting)), 0

    async def work() -> None:
        nonlocal done
        for index, item in left:
            results[index] = await function(item)
            done += 1
            progress(done)

    await _together(work() for _ in range(min(n, len(waiting))))
    return results


async def _together(coroutines: Iterable[Coroutine[Any, Any, _RESULT]]) -> list[_RESULT]:
    """Results in order; the first exception cancels the others."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _parsed(body: bytes) -> Any:
    answer = orjson.loads(body)
    if isinstance(answer, dict) and "error" in answer:
        raise ApiError("an error")
    return answer


def _rows(answer: Any) -> list[dict[str, Any]]:
    rows = answer.get("data") if isinstance(answer, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
