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
import json
import random
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import aiohttp

from geo_assets.errors import ApiError, ConfigError
from geo_assets.grid import Bounds
from geo_assets.harvest.tiles import whole
from geo_assets.settings import Mapillary as Settings

Dataset = Literal["original", "computed"]
Purpose = Literal["tiles", "searches", "entities", "files"]
Kind = Literal["transient", "limited", "fatal", "dense", "gone", "forbidden", "refused"]

DATASETS: dict[Dataset, str] = {"original": "mly1_public", "computed": "mly1_computed_public"}
"""The two tile sets: positions as recorded, and as corrected by structure from motion."""

BATCH = 50
"""Images asked for in one request."""

SEARCH_LIMIT = 2000
"""Most rows that the API gives for one search."""

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
        pause_s: pause of all requests after the API said that the application asks too much.
        pauses: such pauses that one request sits through before it gives up.
        asks: times that a batch of images is asked for what its answers left out, before each is asked alone.
    """

    attempts: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    pause_s: float = 20.0
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


class _Pace:
    """Evenly spaced starts, so many a minute."""

    def __init__(self, per_minute: float) -> None:
        self._gap_s, self._next = 60.0 / per_minute, 0.0

    async def turn(self) -> None:
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + self._gap_s
        if start > now:
            await asyncio.sleep(start - now)


class Mapillary:
    """Tiles, sequences, searches, images and files of one imagery server.

    Args:
        settings: addresses, limits and the number of requests in flight.
        token: the access token; without it the first request that needs it says what to do.
        patience: how long to keep asking.
    """

    def __init__(self, settings: Settings, token: str | None, patience: Patience | None = None) -> None:
        self.settings, self.patience = settings, patience or Patience()
        self.requests: Counter[str] = Counter()
        """Requests sent so far, by purpose."""
        self._token = token
        self._paces = {
            "tiles": _Pace(settings.tiles_per_minute),
            "searches": _Pace(settings.searches_per_minute),
            "entities": _Pace(settings.entities_per_minute),
        }
        self._paused_until = 0.0
        self._tiles_blocked = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession | None = None
        self._slots: asyncio.Semaphore | None = None

    def __repr__(self) -> str:
        return f"Mapillary({self.settings.graph_url})"

    def __enter__(self) -> Mapillary:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mapillary", daemon=True)
        self._thread.start()
        self._run(self._open())
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
        url = f"{self.settings.tiles_url}/maps/vtp/{DATASETS[dataset]}/2/{z}/{x}/{y}"
        return self._run(self._ask("tiles", url, {"access_token": self._needed_token()}, parse=whole))

    def image_ids(self, sequence_id: str) -> list[str]:
        """Ids of the images of a sequence, in the order of capture, as the API lists them in one answer.

        Raises:
            ApiError: the API refused, or kept failing.
        """
        answer = self._run(self._graph("entities", "image_ids", {"sequence_id": sequence_id}))
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
        query = {
            "bbox": ",".join(f"{v:.9f}" for v in bounds.as_list()),
            "fields": ",".join(fields),
            "limit": str(limit),
        }
        query |= {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in filters.items()}
        return _rows(self._run(self._graph("searches", "images", query)))

    def images(self, ids: Iterable[str], fields: Sequence[str]) -> Images:
        """The images of the given ids, asked in batches; what answers leave out is asked again, then one by one.

        Raises:
            ApiError: the token is refused, a field is unknown, or the API says of every single id that it does
                not exist, which is what it says to a token without rights.
        """
        return self._run(self._images(list(dict.fromkeys(ids)), ",".join(dict.fromkeys(["id", *fields]))))

    def download(self, url: str) -> bytes:
        """The bytes behind a signed image URL; the token is not sent there.

        Raises:
            ApiError: status 403 where the signature has expired; otherwise the host kept failing.
        """
        return self._run(self._ask("files", url, {}))

    def each(self, function: Callable[[_ITEM], _RESULT], items: Iterable[_ITEM]) -> Iterator[_RESULT]:
        """Results of ``function`` for each item, in order, with as many threads as there may be requests in flight.

        The first exception ends the rest.
        """
        pool = concurrent.futures.ThreadPoolExecutor(self.settings.connections, thread_name_prefix="harvest")
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    # -- one request ----------------------------------------------------------------------------------------

    def _needed_token(self) -> str:
        if not self._token:
            raise ConfigError(
                "The imagery API needs a token and MAPILLARY_TOKEN is not set. Make one at "
                "https://www.mapillary.com/dashboard/developers and put MAPILLARY_TOKEN=... into the environment or .env."
            )
        return self._token

    def _run(self, coroutine: Coroutine[Any, Any, _RESULT]) -> _RESULT:
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
        self._slots = asyncio.Semaphore(self.settings.connections)

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
                    pauses += 1
                    wait_s = float(error.figures.get("retry_after_s") or 0) or self.patience.pause_s
                    # The limit is the application's, so every worker waits, each a little differently long.
                    self._paused_until = max(self._paused_until, time.monotonic() + wait_s)
                elif kind == "transient" and failures + 1 < self.patience.attempts:
                    failures += 1
                    await asyncio.sleep(self.patience.wait_s(failures))
                else:
                    error.may_pass = kind in ("limited", "transient")
                    raise

    async def _once(
        self, purpose: Purpose, url: str, query: dict[str, str], headers: dict[str, str], parse: Callable[[bytes], Any]
    ) -> Any:
        assert self._session is not None and self._slots is not None
        async with self._slots:
            await self._may_start(purpose)
            self.requests[purpose] += 1
            where = f"{purpose} {urllib.parse.urlsplit(url)._replace(query='', fragment='').geturl()}"
            try:
                async with self._session.get(
                    url, params=query or None, headers=headers, allow_redirects=purpose == "files"
                ) as answer:
                    body, status = await answer.read(), answer.status
                    kind, location = answer.content_type, answer.headers.get("Location", "")
                    retry_after = answer.headers.get("Retry-After", "")
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                # `from None`: the cause's text holds the URL, and a tile's URL holds the token.
                raise ApiError(self._clean(f"{where} failed: {type(error).__name__}.")) from None
        if 300 <= status < 400 or (purpose == "tiles" and kind == "text/html"):
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

    async def _may_start(self, purpose: Purpose) -> None:
        if purpose == "tiles" and self._tiles_blocked:
            raise ApiError(self._tiles_blocked, status=302)
        if purpose in self._paces:
            await self._paces[purpose].turn()
        while purpose != "files" and (left := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(left * random.uniform(1.0, 1.2))

    def _redirected(self, purpose: Purpose, where: str, status: int, location: str) -> ApiError:
        message = (
            f"{where} was answered by a redirect to {urllib.parse.urlsplit(location).netloc or 'a web page'}: "
            "the host has blocked this address. Wait 24 hours after the last request before asking for tiles again; "
            "tiles already fetched are kept."
        )
        if purpose == "tiles":
            self._tiles_blocked = self._clean(message)  # probing a block prolongs it
        return ApiError(self._clean(message), status=302)

    def _refusal(self, where: str, status: int, body: bytes, retry_after: str) -> ApiError:
        try:
            error = json.loads(body)["error"]
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


async def _together(coroutines: Iterable[Coroutine[Any, Any, _RESULT]]) -> list[_RESULT]:
    """Results in order; the first exception cancels the others."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _parsed(body: bytes) -> Any:
    answer = json.loads(body)
    if isinstance(answer, dict) and "error" in answer:
        raise ApiError("an error")
    return answer


def _rows(answer: Any) -> list[dict[str, Any]]:
    rows = answer.get("data") if isinstance(answer, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
