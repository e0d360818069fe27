"""What the action APIs of Commons and Wikidata say in their answers: pages, redirects, items, coordinates.

The formats are those of https://www.mediawiki.org/wiki/API:Query and https://www.wikidata.org/wiki/Wikidata:Data_access,
with ``formatversion=2``.
"""

from __future__ import annotations

import html
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["found", "missing", "no_coordinate", "error"]
Position = tuple[float, float]
"""Longitude and latitude [deg]."""

_CATEGORY, REDIRECTS = "Category:", "Category:Category redirects"
"""What a soft redirect of a category is itself a member of."""
_NO_TITLE = re.compile(r"[#<>\[\]|{}\x00-\x1f\x7f\ufffd\ud800-\udfff]")
_TEMPLATE = re.compile(r"\{\{([^{}|]+)\|([^{}]*)\}\}")
_NO_TEXT = re.compile(r"<!--.*?-->|<nowiki>.*?</nowiki>", re.DOTALL)
_REDIRECT_NAMES = re.compile(r"cat.*(red|move)|red.*cat|see ?cat|catr", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """What is known of one category.

    Attributes:
        title: as it was asked for, ``Category:Happy Valley Racecourse``.
        status: whether there is a coordinate; ``missing`` is a category that does not exist.
        wikidata_id: the item that the coordinate is of, or that was asked.
        lon: longitude [deg], None unless the status is found.
        lat: latitude [deg], None unless the status is found.
        precision_deg: precision that the source states [deg].
        origin: geo_tags (the category's own), P625 (its item), P301 (the item's topic) or dump.
        reason: what went wrong, or which redirects were followed.
    """

    title: str
    status: Status
    wikidata_id: str | None = None
    lon: float | None = None
    lat: float | None = None
    precision_deg: float | None = None
    origin: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Page:
    """What Commons answers of a category.

    Attributes:
        title: its title as Commons writes it, behind all redirects.
        exists: whether there is such a page.
        via: titles that redirects led to, this one last.
        position: its own coordinate on Earth.
        item: its Wikidata item.
        is_redirect: whether a template in its text says that another category is meant.
        reason: why a title can have no page.
    """

    title: str
    exists: bool = True
    via: tuple[str, ...] = ()
    position: Position | None = None
    item: str | None = None
    is_redirect: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Item:
    """What Wikidata answers of an item: its id, its coordinate on Earth with precision [deg], the item it is about."""

    id: str
    position: Position | None = None
    precision_deg: float | None = None
    topic: str | None = None


Kind = Literal["pages", "redirects", "items"]
Answer = Page | Item | str | None
"""To ``pages`` a :class:`Page`, to ``items`` an :class:`Item`, to ``redirects`` the title that is meant, if any."""


# -- titles and answers ------------------------------------------------------------------------------------------


def title_of(category: str) -> str | None:
    """The title of a category by its address on Commons, ``Category:Tweed Heads, New South Wales``.

    Takes ``http://commons.wikimedia.org/wiki/Category:...`` as Google Landmarks has it, percent-encoded or not, other
    spellings of the address, and bare titles. None for what can be no title.
    """
    text = category.strip()
    if "//" in text.partition(":")[2][:2] or text.startswith("//"):
        parts = urllib.parse.urlsplit(text)
        asked = dict(urllib.parse.parse_qsl(parts.query, errors="surrogateescape")).get("title")
        if "commons" not in (parts.hostname or "").split(".") or not (asked or parts.path.startswith("/wiki/")):
            return None
        encoded = asked or parts.path.removeprefix("/wiki/")
        return _titled(encoded if asked else _decoded(encoded), needs_namespace=True)
    return _titled(_decoded(text))


def _decoded(text: str) -> str:
    """Percent-encoding undone; what is no UTF-8 is Windows-1252, as MediaWiki takes it."""
    data = urllib.parse.unquote_to_bytes(text)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _titled(text: str, *, needs_namespace: bool = False) -> str | None:
    """A title as MediaWiki writes it, in the namespace of categories."""
    text = " ".join(unicodedata.normalize("NFC", text).replace("_", " ").split()).removeprefix(":").strip()
    space, colon, name = text.partition(":")
    if colon and space.strip().lower() == "category":
        text = name.strip()
    elif needs_namespace:
        return None
    if not text or _NO_TITLE.search(text) or len(text.encode()) > 255:
        return None
    return f"{_CATEGORY}{text[0].upper()}{text[1:]}"


def merge(whole: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add the ``query`` of a further part of an answer: lists grow, and pages of one title become one."""
    for name, value in more.items():
        if name == "pages":
            pages = whole.setdefault("pages", {})
            for page in value:
                merge(pages.setdefault(page["title"], {}), page)
        elif isinstance(value, list):
            whole.setdefault(name, []).extend(value)
        else:
            whole[name] = value


def pages_of(query: Mapping[str, Any], titles: Iterable[str]) -> dict[str, Page]:
    """What a merged ``query`` says of the titles that were asked; a title that it does not mention is left out."""
    normalized = {
        urllib.parse.unquote(n["from"]) if n.get("fromencoded") else n["from"]: n["to"]
        for n in query.get("normalized", ())
    }
    redirects = {r["from"]: r["to"] for r in query.get("redirects", ())}
    pages = query.get("pages", {})
    found = {}
    for title in titles:
        trail = [normalized.get(title, title)]
        while (to := redirects.get(trail[-1])) and to not in trail:
            trail.append(to)
        end, via = trail[-1], tuple(trail[1:])
        if end in pages and end not in redirects:
            found[title] = _page(end, pages[end], via)
        elif via:  # in a circle, or to another wiki
            found[title] = Page(end, exists=False, via=via)
    return found


def _page(title: str, page: Mapping[str, Any], via: tuple[str, ...]) -> Page:
    if page.get("invalid"):
        return Page(title, exists=False, via=via, reason=str(page.get("invalidreason", "no valid title")))
    if page.get("missing"):
        return Page(title, exists=False, via=via)
    places = (_on_earth(c) for c in page.get("coordinates", ()) if c.get("primary", True))
    is_redirect = any(c["title"] == REDIRECTS for c in page.get("categories", ()))
    item = page.get("pageprops", {}).get("wikibase_item")
    return Page(title, True, via, next(filter(None, places), None), item and str(item), is_redirect)


def _on_earth(place: Mapping[str, Any]) -> Position | None:
    if str(place.get("globe") or "earth").lower() != "earth":
        return None
    return _position(place.get("lon"), place.get("lat"))


def _position(lon: object, lat: object) -> Position | None:
    if not (isinstance(lon, int | float) and isinstance(lat, int | float)):
        return None
    return (float(lon), float(lat)) if abs(lon) <= 180 and abs(lat) <= 90 else None


def texts_of(query: Mapping[str, Any], titles: Iterable[str]) -> dict[str, str | None]:
    """The target of each page's ``{{Category redirect}}``, None where its text names none."""
    pages, found = query.get("pages", {}), {}
    for title in titles:
        revisions = pages.get(title, {}).get("revisions", ())
        found[title] = redirect_target(str(revisions[0]["slots"]["main"].get("content", ""))) if revisions else None
    return found


def redirect_target(text: str) -> str | None:
    """The category that a page's text says is meant: ``{{Category redirect|X}}``, its aliases and its taxa's kin."""
    for name, fields in _TEMPLATE.findall(_NO_TEXT.sub("", _unlinked(text))):
        if not _REDIRECT_NAMES.search(name.replace("_", " ")):
            continue
        values = [field.strip() for field in fields.split("|")]
        numbered = [v.partition("=")[2] for v in values if re.match(r"1\s*=", v)]
        plain = [v for v in values if not re.match(r"\w+\s*=", v)]
        for value in (*numbered, *plain):
            if title := _titled(_decoded(html.unescape(value))):
                return title
    return None


def _unlinked(text: str) -> str:
    """Links as their targets: ``[[:Category:X|shown]]`` reads ``:Category:X``."""
    return re.sub(r"\[\[([^\[\]|]*)(?:\|[^\[\]]*)?\]\]", r"\1", text)


def items_of(answer: Mapping[str, Any], ids: Iterable[str]) -> dict[str, Item]:
    """What ``wbgetentities`` says of the items that were asked; one that it does not mention is left out.

    Of several coordinates the one of the best rank is taken, never a deprecated one, an unknown one or one of another
    globe.
    """
    entities = answer["entities"]
    redirects = {e["redirects"]["from"]: e for e in entities.values() if "redirects" in e}
    found = {}
    for item_id in ids:
        entity = entities.get(item_id) or redirects.get(item_id)
        if entity is None:
            continue
        claims = entity.get("claims") or {}  # an empty list where there are none
        item = Item(str(entity.get("id", item_id)))
        if claims:
            position, precision = next(filter(None, map(_coordinate, _best(claims, "P625"))), (None, None))
            topic = next((t for v in _best(claims, "P301") if isinstance(v, dict) and (t := v.get("id"))), None)
            item = Item(item.id, position, precision, topic and str(topic))
        found[item_id] = item
    return found


def _best(claims: Mapping[str, Any], name: str) -> list[Any]:
    """Values of a property, preferred ones first, deprecated ones dropped."""
    statements = [s for s in claims.get(name, ()) if s["mainsnak"]["snaktype"] == "value" and s["rank"] != "deprecated"]
    statements.sort(key=lambda s: s["rank"] != "preferred")
    return [s["mainsnak"]["datavalue"]["value"] for s in statements]


def _coordinate(value: Mapping[str, Any]) -> tuple[Position, float | None] | None:
    position = _position(value.get("longitude"), value.get("latitude"))
    if position is None or str(value.get("globe", "")).rsplit("/", 1)[-1] != "Q2":
        return None
    stated = value.get("precision")
    return position, float(stated) if isinstance(stated, int | float) and stated > 0 else None
