"""Where categories of Wikimedia Commons are, by the SQL dumps of the wiki's tables: no call to any server.

The tables are those of https://www.mediawiki.org/wiki/Manual:Database_layout and of the extension GeoData.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from geo_assets.errors import SourceError
from geo_assets.geotag.wikimedia_answers import Found

CATEGORY = "Category:"
CATEGORY_NAMESPACE, ITEM_NAMESPACE = b"14", b"0"
NEEDED = ("page", "page_props", "geo_tags")
MAX_REDIRECTS = 8
_NAME = re.compile(r"(?P<wiki>.*(commons|wikidata)wiki.*)-(?P<table>page|page_props|geo_tags|redirect)\.sql(\.gz)?")


def dump_answers(
    folder: Path, titles: Collection[str], log: Callable[[str], None] = lambda line: None
) -> dict[str, Found]:
    """What the dumps in a folder know of categories: their coordinates, else those of their Wikidata items.

    Args:
        folder: holds ``commonswiki-<date>-page.sql.gz``, ``-page_props``, ``-geo_tags`` and, where there, ``-redirect``
            (hard redirects), ``wikidatawiki-<date>-page`` and ``-geo_tags`` (coordinates of items), packed or not.
        titles: ``Category:Grand Ventron``.
        log: told what each dump gave.

    Returns:
        An answer for each title; with origin ``dump`` where a coordinate was found.

    Raises:
        SourceError: a dump that is needed is missing, cannot be read, or breaks off.
    """
    commons = _dumps(folder, "commonswiki")
    if missing := [table for table in NEEDED if table not in commons]:
        raise SourceError(
            f"{folder} lacks {', '.join(f'commonswiki-<date>-{table}.sql.gz' for table in missing)}. "
            "Download it from https://dumps.wikimedia.org/commonswiki/latest/ into that folder.",
            folder=str(folder),
        )
    targets = _redirects(commons, log)
    names = {title: _name(title) for title in titles}
    pages = _pages(commons["page"], CATEGORY_NAMESPACE, {*names.values(), *targets.values()}, log)
    ends = {title: _end(name, pages, targets) for title, name in names.items()}
    page_ids = {page for page, _ in ends.values() if page}
    items = _items(commons["page_props"], page_ids, log)
    places = _places(commons["geo_tags"], page_ids, log)
    of_items = _item_places(folder, {items[page] for page in page_ids - places.keys() if page in items}, log)

    def answer(title: str) -> Found:
        page, reason = ends[title]
        item = items.get(page)
        place = places.get(page) or of_items.get(item or b"")
        id_ = item.decode() if item else None
        if place:
            return Found(title, "found", id_, *place, origin="dump", reason=reason)
        return Found(title, "no_coordinate" if page else "missing", id_, reason=reason)

    return {title: answer(title) for title in titles}


def _dumps(folder: Path, wiki: str) -> dict[str, Path]:
    """The dumps of one wiki by table: of several dates the fullest, then the last; an unpacked file before a packed."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []:
        if (match := _NAME.fullmatch(path.name)) and wiki in match["wiki"]:
            found.setdefault(match["wiki"], {})[match["table"]] = path
    return max(found.items(), key=lambda of: (len(of[1]), of[0]))[1] if found else {}


def _redirects(commons: Mapping[str, Path], log: Callable[[str], None]) -> dict[bytes, bytes]:
    """Names of the categories that pages redirect to, by the page's id."""
    if "redirect" not in commons:
        return {}
    columns = ("rd_from", "rd_title", "rd_interwiki")
    rows = _select(commons["redirect"], "rd_namespace", [CATEGORY_NAMESPACE], columns, log)
    return {page: name for page, name, interwiki in rows if page and name and not interwiki}


def _pages(dump: Path, namespace: bytes, names: Collection[bytes], log: Callable[[str], None]) -> dict[bytes, bytes]:
    """Page ids by name, for the wanted names."""
    rows = _select(dump, "page_title", names, ("page_title", "page_id", "page_namespace"), log)
    return {name: page for name, page, of in rows if name and page and of == namespace}


def _end(name: bytes, pages: Mapping[bytes, bytes], targets: Mapping[bytes, bytes]) -> tuple[bytes, str | None]:
    """The page at the end of a name's redirects, empty where there is none, and what was followed."""
    page, seen = pages.get(name, b""), [name]
    while page in targets and len(seen) <= MAX_REDIRECTS:
        seen.append(targets[page])
        page = pages.get(targets[page], b"")
    followed = ", ".join(CATEGORY + s.decode(errors="replace").replace("_", " ") for s in seen[1:])
    return page, f"redirects to {followed}" if followed else None


def _items(dump: Path, pages: Collection[bytes], log: Callable[[str], None]) -> dict[bytes, bytes]:
    """Wikidata items by page id."""
    rows = _select(dump, "pp_page", pages, ("pp_page", "pp_propname", "pp_value"), log)
    return {page: item for page, name, item in rows if page and item and name == b"wikibase_item"}


def _places(dump: Path, pages: Collection[bytes], log: Callable[[str], None]) -> dict[bytes, tuple[float, float]]:
    """Longitude and latitude [deg] by page id: the primary coordinate on Earth, as the API gives it."""
    columns = ("gt_page_id", "gt_primary", "gt_globe", "gt_lon", "gt_lat")
    places: dict[bytes, tuple[float, float]] = {}
    for page, primary, globe, lon, lat in _select(dump, "gt_page_id", pages, columns, log):
        if page and lon and lat and primary == b"1" and (globe or b"earth") == b"earth":
            place = float(lon), float(lat)
            if abs(place[0]) <= 180 and abs(place[1]) <= 90:
                places.setdefault(page, place)
    return places


def _item_places(
    folder: Path, items: Collection[bytes], log: Callable[[str], None]
) -> dict[bytes, tuple[float, float]]:
    """Longitude and latitude [deg] by item, where Wikidata's dumps lie in the folder, too."""
    wikidata = _dumps(folder, "wikidatawiki")
    if not items or "page" not in wikidata or "geo_tags" not in wikidata:
        return {}
    pages = _pages(wikidata["page"], ITEM_NAMESPACE, items, log)
    places = _places(wikidata["geo_tags"], set(pages.values()), log)
    return {item: places[page] for item, page in pages.items() if page in places}


def _select(
    dump: Path, key: str, wanted: Collection[bytes], columns: tuple[str, ...], log: Callable[[str], None]
) -> Iterable[tuple[bytes | None, ...]]:
    from geo_assets.geotag.sqldump import select  # imports numba

    return select(dump, key, wanted, columns, log)


def _name(title: str) -> bytes:
    """A title as the tables hold it: without the namespace, with underscores, the first letter large."""
    name = title.removeprefix(CATEGORY).replace(" ", "_").strip("_")
    # MediaWiki leaves letters as they are whose capital is two letters.
    first = name[:1].upper()
    return (first + name[1:] if len(first) == 1 else name).encode()
