"""Where Wikimedia says the categories of Commons are: a client of the action APIs of Commons and Wikidata.

Fifty titles or items are one call. A category's own coordinate comes first, then that of its Wikidata item (P625),
then that of the item's topic (P301), as for an item that is itself about a category. Redirects are followed: real ones
by the API, ``{{Category redirect}}`` by reading the page. The formats are those of
https://www.mediawiki.org/wiki/API:Query, https://www.mediawiki.org/wiki/API:Etiquette and
https://www.wikidata.org/wiki/Wikidata:Data_access.

The token and the contact never leave this module but in the headers of a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import email.utils
import random
import re
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import aiohttp
import orjson
from pydantic import SecretStr

from geo_assets.errors import ApiError, ConfigError
from geo_assets.geotag.wikimedia_answers import (
    REDIRECTS,
    Answer,
    Found,
    Item,
    Kind,
    Page,
    items_of,
    merge,
    pages_of,
    texts_of,
)
from geo_assets.lake import Lake
from geo_assets.limits import HostLimits
from geo_assets.progress import Progress
from geo_assets.settings import Wikimedia as Settings

BATCH = 50
"""Titles or ids of one call: the limit for those who are no bot."""

PER_MINUTE, PER_MINUTE_UNKNOWN = 200.0, 10.0
"""Calls that Wikimedia allows whoever says how to reach them, and whoever does not."""

_WAITING = ("maxlag", "ratelimited")
_BLAMES = re.compile(r"title|entit|value|param|toomany|toobig|invalid|page")
"""Codes of errors that blame something that was asked for, as ``no-such-entity``; the rest may do better without it."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOPELESS = 3


@dataclass(frozen=True)
class Patience:
    """How long a client keeps asking.

    Args:
        attempts: tries of a call that fails for a passing reason.
        first_wait_s: wait after the first failure; it doubles with each one, and is drawn at random around that.
        longest_wait_s: bound of that wait.
        told_to_wait_s: how long one call may be told to wait, by maxlag and limits, before the search ends.
    """

    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    told_to_wait_s: float = 3600.0

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after so many failures."""
        return random.uniform(0.5, 1.0) * min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s)


@dataclass(frozen=True)
class Reply:
    """An answer as it came over the wire."""

    status: int
    body: bytes
    headers: Mapping[str, str]


Post = Callable[[str, Mapping[str, str], Mapping[str, str]], Awaitable[Reply]]
"""Sends a form to an address with headers."""


class Answers:
    """Answers by what was asked, with the time [UTC] at which they came; who derives from it can keep them."""

    def __init__(self) -> None:
        self.known: dict[Kind, dict[str, tuple[Answer, dt.datetime]]] = {"pages": {}, "redirects": {}, "items": {}}

    def add(self, kind: Kind, answers: Mapping[str, Answer], at: dt.datetime) -> None:
        """Take the answers of one call."""
        self.known[kind].update((key, (answer, at)) for key, answer in answers.items())


_Outcome = tuple[dict[str, Answer], dict[str, str]]
"""Answers of a call, and the reasons of what it leaves unanswered."""


class _Later(Exception):
    """The server asks to come back later; ``wait_s`` is None where it does not say when."""

    def __init__(self, why: str, wait_s: float | None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class _Passing(Exception):
    """Something that may well work a moment later."""


class _Blamed(Exception):
    """The API does not like something that was asked for; which of the fifty, it may not say."""


class Wikimedia:
    """Asks Commons and Wikidata where categories are.

    Args:
        settings: addresses, contact and pace.
        token: of an account, which may ask more often; sent to the two APIs only.
        lake: whose workers share the pace; None for a client that is alone.
        patience: how long to keep asking.
        post: how forms are sent; by default over HTTP.

    Raises:
        ConfigError: the contact cannot stand in a header.
    """

    def __init__(
        self,
        settings: Settings,
        token: SecretStr | None = None,
        lake: Lake | None = None,
        patience: Patience | None = None,
        post: Post | None = None,
    ) -> None:
        contact = settings.contact
        if contact and not (contact.isascii() and contact.isprintable()):
            raise ConfigError(
                "geotag.wikimedia.contact must be one line of ASCII, a mail address or a URL; correct it in geo_assets.toml."
            )
        self.settings, self.patience = settings, patience or Patience()
        self.calls: Counter[str] = Counter()
        """Calls sent so far by kind, repetitions included."""
        self.per_minute = settings.per_minute or (PER_MINUTE if contact else PER_MINUTE_UNKNOWN)
        secret = token.get_secret_value() if token else ""
        self._secrets = [text for text in (contact, secret) if text]
        self._headers = {"User-Agent": _user_agent(contact)} | ({"Authorization": f"Bearer {secret}"} if secret else {})
        self._limits = HostLimits({"calls": self.per_minute}, "wikimedia", lake)
        self._post = post
        self._runner: asyncio.Runner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._log: Callable[[str], None] = lambda line: None

    def __repr__(self) -> str:
        return f"Wikimedia({self.settings.commons_url})"

    def __enter__(self) -> Wikimedia:
        self._runner = asyncio.Runner()
        self._session = self._runner.run(self._open()) if self._post is None else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._runner is None:
            return
        if self._session is not None:
            self._runner.run(self._session.close())
        self._runner.close()
        self._runner = self._session = None

    def find(
        self,
        titles: Iterable[str],
        answers: Answers,
        found: Callable[[Found, dt.datetime | None], None],
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Ask where categories are, each title once.

        Calls are made and taken in an order that depends on the titles and the answers alone.

        Args:
            titles: of categories.
            answers: what is known already, which is not asked again; new answers are added call by call.
            found: told of each title, with the time [UTC] of the last answer to it, as soon as all are there.
            log: told how far the search is, and of waits.

        Raises:
            ApiError: the client is refused, told to wait longer than its patience lasts, or nothing answers any more.
                What was found by then has been told.
            RuntimeError: the client is not open.
        """
        if self._runner is None:
            raise RuntimeError("Wikimedia is a context manager: use it in a with block.")
        self._log = log
        self._runner.run(self._find(list(dict.fromkeys(titles)), answers, found))

    async def _find(
        self, titles: list[str], answers: Answers, found: Callable[[Found, dt.datetime | None], None]
    ) -> None:
        search = _Search(titles, answers, found)
        n, progress = search.n_waiting, Progress(self._log, "categories", search.n_waiting)
        flying: deque[tuple[Kind, list[str], asyncio.Task[_Outcome]]] = deque()
        doubtful: list[tuple[Kind, dict[str, str]]] = []
        answered = False
        try:
            while True:
                while len(flying) < self.settings.connections and (batch := search.batch(is_idle=not flying)):
                    flying.append((*batch, asyncio.create_task(self._ask(*batch))))
                if not flying:
                    break
                # The oldest first, so that what is asked next does not depend on which answer is quicker.
                kind, keys, task = flying.popleft()
                try:
                    got, reasons = await task
                    answered = True
                except _Passing as error:
                    got, reasons = {}, dict.fromkeys(keys, str(error))
                doubtful.append((kind, reasons))
                if not got:
                    if len(doubtful) >= _HOPELESS:
                        raise self._silence(reasons)
                    continue
                # Only now it is sure that what failed did so for what was asked.
                search.take(kind, got)
                search.fail(doubtful)
                doubtful.clear()
                progress(n - search.n_waiting)
        finally:
            for *_, task in flying:
                task.cancel()
            await asyncio.gather(*(task for *_, task in flying), return_exceptions=True)
        if doubtful and not answered:
            raise self._silence(doubtful[-1][1])
        search.fail(doubtful)

    def _silence(self, reasons: Mapping[str, str]) -> ApiError:
        return self._passing(
            f"Wikimedia does not answer: {next(iter(reasons.values()))}. What was found is kept; run again later, set "
            "geotag.wikimedia.dumps to a folder of their dumps, or go on without: geotag.wikimedia.ask = false."
        )

    # -- one call -------------------------------------------------------------------------------------------

    async def _ask(self, kind: Kind, keys: Sequence[str]) -> _Outcome:
        """Answers of up to :data:`BATCH` keys, and the reasons of those that have none."""
        failures = 0
        while True:
            try:
                answers = await self._answers(kind, keys)
            except _Passing as error:
                failures += 1
                if failures >= self.patience.attempts:
                    raise _Passing(f"{error}, {failures} times") from None
                await asyncio.sleep(self.patience.wait_s(failures))
            except _Blamed as error:
                if len(keys) == 1:
                    return {}, {keys[0]: str(error)}
                half = len(keys) // 2
                (first, why), (second, why_not) = await self._ask(kind, keys[:half]), await self._ask(kind, keys[half:])
                return first | second, why | why_not
            else:
                return answers, {key: "the answer leaves it out" for key in keys if key not in answers}

    async def _answers(self, kind: Kind, keys: Sequence[str]) -> dict[str, Answer]:
        asked, form = _joined(keys), {"format": "json", "formatversion": "2", "maxlag": str(self.settings.maxlag_s)}
        if kind == "items":
            form |= {"action": "wbgetentities", "props": "claims", "ids": asked}
            whole = await self._call(kind, self.settings.wikidata_url, form)
            return {**_parsed(items_of, whole, keys)}
        form |= {"action": "query", "titles": asked}
        if kind == "redirects":
            form |= {"prop": "revisions", "rvprop": "content", "rvslots": "main"}
            return {**_parsed(texts_of, await self._query(kind, form), keys)}
        form |= {"prop": "coordinates|pageprops|categories", "ppprop": "wikibase_item", "coprimary": "primary"}
        form |= {"colimit": "max", "clcategories": REDIRECTS, "cllimit": "max", "redirects": "1"}
        return {**_parsed(pages_of, await self._query(kind, form), keys)}

    async def _query(self, kind: Kind, form: Mapping[str, str]) -> dict[str, Any]:
        """The ``query`` of an answer with all its continuations."""
        answer = await self._call(kind, self.settings.commons_url, form)
        whole: dict[str, Any] = {}
        _parsed(merge, whole, answer.get("query"))
        while further := answer.get("continue"):
            answer = await self._call(kind, self.settings.commons_url, {**form, **further})
            _parsed(merge, whole, answer.get("query", {}))
        return whole

    async def _call(self, kind: Kind, url: str, form: Mapping[str, str]) -> dict[str, Any]:
        """One answer, as late as the server wants."""
        waited_s = 0.0
        while True:
            await self._turn()
            self.calls[kind] += 1
            try:
                return await self._exchange(url, form)
            except _Later as later:
                wait_s = later.wait_s or min(max(waited_s, 5.0), 60.0)
                waited_s += wait_s
                if waited_s > self.patience.told_to_wait_s:
                    raise self._passing(
                        f"Wikimedia keeps saying to wait, now {wait_s:.0f} s more: {str(later).rstrip('.')}. What was found "
                        "is kept; run again later, or with a lower geotag.wikimedia.per_minute."
                    ) from None
                self._log(f"Wikimedia says to wait {wait_s:.0f} s: {later}")
                self._limits.pause(time.time() + wait_s)

    async def _turn(self) -> None:
        """Wait until a call may start."""
        while True:
            start = self._limits.take("calls")
            while (wait_s := start - time.time()) > 0:
                await asyncio.sleep(wait_s)
            if self._limits.paused_until <= time.time():  # no other call was told to wait in the meantime
                return

    async def _exchange(self, url: str, form: Mapping[str, str]) -> dict[str, Any]:
        host = urllib.parse.urlsplit(url).netloc
        try:
            reply = await self._send(url, form)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _Passing(self._clean(f"{host} failed with {type(error).__name__}")) from None
        answer: Any = None
        with contextlib.suppress(ValueError):
            answer = orjson.loads(reply.body)
        error = answer.get("error") if isinstance(answer, dict) else None
        if reply.status == 200 and isinstance(answer, dict) and error is None:
            return answer
        raise self._failure(host, reply, error if isinstance(error, dict) else {})

    def _failure(self, host: str, reply: Reply, error: Mapping[str, Any]) -> Exception:
        """What an answer that is none means."""
        code, status = str(error.get("code", "")), reply.status
        body = "a web page" if b"<" in reply.body[:20] else reply.body[:100].decode(errors="replace")
        said = " ".join(str(error.get("info") or body).split())
        text = self._clean(f"{host} answered {status}" + (f" {code}" if code else "") + (f": {said}" if said else ""))
        retry_after_s = _retry_after_s(reply.headers)
        if code in _WAITING or status == 429 or (status == 503 and retry_after_s is not None):
            return _Later(text, retry_after_s or error.get("lag"))
        if code.startswith(("mwoauth", "badtoken", "assert")) or status == 401:
            return self._fatal(text, "Check WIKIMEDIA_TOKEN, or unset it: nothing here needs an account.", status)
        if status == 403:
            advice = "Set geotag.wikimedia.contact to a mail address or URL of yours: they turn away who hides."
            return self._fatal(text, advice, status)
        if 300 <= status < 400 or status in (404, 405):
            advice = "Check geotag.wikimedia.commons_url and wikidata_url; they end in /w/api.php."
            return self._fatal(text, advice, status)
        if status in (400, 413, 414) or (status < 500 and _BLAMES.search(code)):
            return _Blamed(text)
        return _Passing(text)

    def _fatal(self, text: str, advice: str, status: int) -> ApiError:
        return ApiError(f"{text.rstrip('.')}. {advice}", status=status)

    def _passing(self, text: str) -> ApiError:
        error = ApiError(text)
        error.may_pass = True
        return error

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:300]

    async def _open(self) -> aiohttp.ClientSession:
        host = urllib.parse.urlsplit(self.settings.commons_url).hostname
        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self.settings.timeout_s),
            connector=aiohttp.TCPConnector(limit=self.settings.connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=host not in _LOOPBACK,  # a proxy of the environment cannot reach this machine's own server
        )

    async def _send(self, url: str, form: Mapping[str, str]) -> Reply:
        if self._post is not None:
            return await self._post(url, form, self._headers)
        assert self._session is not None
        # A redirect would carry the token to another host.
        async with self._session.post(url, data=form, headers=self._headers, allow_redirects=False) as answer:
            return Reply(answer.status, await answer.read(), answer.headers)


def _user_agent(contact: str | None) -> str:
    """As https://foundation.wikimedia.org/wiki/Policy:User-Agent_policy wants it."""
    who = f" ({contact})" if contact else ""
    return f"geo_assets/{version('geo-assets')}{who} aiohttp/{aiohttp.__version__}"


def _joined(keys: Sequence[str]) -> str:
    """Values of a parameter: separated by ``|``, or by U+001F where a value has a bar itself."""
    return "\x1f" + "\x1f".join(keys) if any("|" in key for key in keys) else "|".join(keys)


def _parsed(parse: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return parse(*arguments)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise _Passing(f"an answer has another shape than the API's ({type(error).__name__} {error})") from None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The header Retry-After [s], which is a number of seconds or a date."""
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return None


# -- the search --------------------------------------------------------------------------------------------------


class _Search:
    """What has to be asked for some titles, one thing after another as the answers come.

    Every title is settled from the answers alone: either they say where it is, or which answer is needed first.
    """

    def __init__(self, titles: list[str], answers: Answers, found: Callable[[Found, dt.datetime | None], None]) -> None:
        self._answers, self._found = answers, found
        # Targets have a queue of their own, so that redirects do not change how the titles fall into calls.
        self._queues: dict[str, deque[str]] = {k: deque() for k in ("pages", "redirects", "targets", "items")}
        self._waiting: dict[tuple[Kind, str], list[str]] = {}
        self._failed: dict[tuple[Kind, str], str] = {}
        self.n_waiting = len(titles)
        for title in titles:
            self._settle(title)

    def batch(self, *, is_idle: bool) -> tuple[Kind, list[str]] | None:
        """What to ask next: fifty of a kind, or fewer when no answer is awaited that could add to them."""
        full = next((name for name in reversed(self._queues) if len(self._queues[name]) >= BATCH), None)
        name = full or next((name for name, queue in self._queues.items() if queue and is_idle), None)
        if name is None:
            return None
        queue = self._queues[name]
        keys = [queue.popleft() for _ in range(min(BATCH, len(queue)))]
        return ("pages" if name == "targets" else name), keys  # pyright: ignore[reportReturnType]

    def take(self, kind: Kind, answers: Mapping[str, Answer]) -> None:
        """Go on with what waited for these answers."""
        self._answers.add(kind, answers, dt.datetime.fromtimestamp(time.time(), dt.UTC))
        self._go_on(kind, answers)

    def fail(self, failed: Iterable[tuple[Kind, Mapping[str, str]]]) -> None:
        """Give up what has no answer, for the reasons that are given by kind and key."""
        for kind, reasons in failed:
            self._failed |= {(kind, key): reason for key, reason in reasons.items()}
            self._go_on(kind, reasons)

    def _go_on(self, kind: Kind, keys: Iterable[str]) -> None:
        for key in keys:
            for title in self._waiting.pop((kind, key), ()):
                self._settle(title)

    def _settle(self, title: str) -> None:
        try:
            found, at = _Trail(self._answers).follow(title)
        except _Needed as needed:
            kind, key = needed.kind, needed.key
            if reason := self._failed.get((kind, key)):
                self.n_waiting -= 1
                self._found(Found(title, "error", reason=reason), None)
            elif (kind, key) in self._waiting:
                self._waiting[kind, key].append(title)
            else:
                self._waiting[kind, key] = [title]
                self._queues["targets" if kind == "pages" and key != title else kind].append(key)
        else:
            self.n_waiting -= 1
            self._found(found, at)


class _Needed(Exception):
    """An answer that is not there yet."""

    def __init__(self, kind: Kind, key: str) -> None:
        super().__init__(kind, key)
        self.kind: Kind = kind
        self.key = key


_EVER = dt.datetime.min.replace(tzinfo=dt.UTC)


class _Trail:
    """The way from a title to its coordinate through the answers that are known."""

    def __init__(self, answers: Answers) -> None:
        self._known = answers.known
        self._at = _EVER

    def _get(self, kind: Kind, key: str) -> Any:
        if key not in self._known[kind]:
            raise _Needed(kind, key)
        answer, at = self._known[kind][key]
        self._at = max(self._at, at)
        return answer

    def follow(self, title: str) -> tuple[Found, dt.datetime]:
        """Where the title is, and when the last answer to it came.

        Raises:
            _Needed: an answer is not known.
        """
        return self._follow(title), self._at

    def _follow(self, title: str) -> Found:
        page: Page = self._get("pages", title)
        via = page.via
        if page.is_redirect and page.position is None:
            target: str | None = self._get("redirects", page.title)
            if target is not None and target != page.title:
                meant: Page = self._get("pages", target)
                via = (*via, target, *meant.via)
                page = meant if meant.exists else page
        reason = page.reason or (f"redirect to {', then '.join(via)}" if via else None)
        if not page.exists:
            return Found(title, "missing", reason=reason)
        if page.position is not None:
            return Found(title, "found", page.item, *page.position, origin="geo_tags", reason=reason)
        if page.item is None:
            return Found(title, "no_coordinate", reason=reason)
        item: Item = self._get("items", page.item)
        origin = "P625"
        if item.position is None and item.topic is not None:
            topic: Item = self._get("items", item.topic)
            item, origin = (topic, "P301") if topic.position is not None else (item, origin)
        if item.position is None:
            return Found(title, "no_coordinate", item.id, reason=reason)
        return Found(title, "found", item.id, *item.position, item.precision_deg, origin, reason)
