"""Where the landmarks of Google Landmarks v2 are, and who says so; one answer a landmark, whatever it was that knew it.

A file of coordinates that somebody has wins, then the dumps, then what the table says already, then Wikimedia's APIs.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pandas as pd

from geo_assets.errors import SourceError
from geo_assets.geotag import csvs
from geo_assets.geotag.degrees import number_of, position_of
from geo_assets.geotag.dumps import dump_answers
from geo_assets.geotag.landmarks import find_file
from geo_assets.geotag.photos import querying, refuse_swapped
from geo_assets.geotag.wikimedia import BATCH, PER_MINUTE, Answers, Wikimedia
from geo_assets.geotag.wikimedia_answers import Answer, Found, Item, Kind, Page, title_of
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    import duckdb

COORDINATES, HIERARCHY = "landmark_coordinates.csv", "train_label_to_hierarchical.csv"
CATEGORIES = {"train": "train_label_to_category.csv", "index": "index_label_to_category.csv"}
TABLE, REJECTS = "landmark_coordinates", "geotag_rejects"
JOURNAL = "wikimedia"
"""Folder of the lake's files for answers that are in no table yet."""

_ID = ("landmark_id", "id")
_TEXTS = ("coordinates", "geohack", "coordinate", "position")
_NOTHING = ("", "nan", "none", "null")


@dataclass
class _Landmark:
    id: str
    category: str | None
    fault: str | None = None  # why the category is no title
    found: Found | None = None
    at: dt.datetime | None = None
    kind: str | None = None
    hierarchy: str | None = None

    def row(self) -> dict[str, Any]:
        assert self.found is not None
        known = {name: value for name, value in vars(self.found).items() if name != "title"}
        of_files = {"category": self.category, "kind": self.kind, "hierarchy": self.hierarchy}
        return {"landmark_id": self.id, **known, **of_files, "fetched_at": self.at}


@dataclass
class _Part:
    """A partition: the landmarks of one set from ``first`` to ``last`` exclusively, by number."""

    name: str
    set: str
    first: int
    last: int
    landmarks: dict[int, _Landmark] = field(default_factory=dict)
    rejects: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, settings: Geotag) -> _Part:
        """A part by its partition key, ``train-002500``."""
        kind, _, first = name.partition("-")
        last = min(int(first) + settings.landmarks_per_part, _count(kind, settings))
        return cls(name, kind, int(first), last)

    @property
    def is_open(self) -> bool:
        return any(landmark.found is None for landmark in self.landmarks.values())

    def reject(self, file: str, row: object, reason: str, value: object) -> None:
        self.rejects.append({"file": file, "row": str(row), "reason": reason, "value": str(value)[:200]})

    def write(self, lake: Lake) -> None:
        """Rejects first and the table last, so that a killed run is taken up where the table is missing."""
        rejects = pd.DataFrame(self.rejects, columns=TABLES[REJECTS].column_names)
        lake.write(REJECTS, rejects, source=TABLE, part=self.name)
        rows = [landmark.row() for landmark in self.landmarks.values()]
        lake.write(TABLE, pd.DataFrame(rows, columns=TABLES[TABLE].column_names), part=self.name)


def locate(
    lake: Lake,
    folder: Path,
    parts: Sequence[str],
    settings: Geotag,
    client: Wikimedia | None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fill partitions of table ``landmark_coordinates``; each is written as soon as its last landmark is known.

    Answers of the APIs are kept in the lake until all parts are written, so that a killed run repeats no more than the
    calls in flight, three at most. One ``locate`` at a time: each keeps to Wikimedia's pace by itself.

    Args:
        lake: the table and what it says already.
        folder: holds ``train_label_to_category.csv`` (landmark_id, category), ``index_label_to_category.csv`` for parts
            of the index set and, where somebody has them, ``train_label_to_hierarchical.csv`` and
            ``landmark_coordinates.csv``: a column ``landmark_id`` (``index/7`` for those of the index set), columns
            ``lon`` and ``lat`` in degrees or one column ``coordinates`` with text; empty fields are no answers.
        parts: partition keys, see :func:`geo_assets.geotag.inputs.landmark_parts`.
        settings: counts, dumps and whether the APIs may be asked.
        client: asks them; None where nobody may be asked.
        log: told how far it is.

    Returns:
        Figures: landmarks by status and by origin, rejects by reason, calls.

    Raises:
        SourceError: a file or a column is missing, or the header of coordinates is swapped.
        ApiError: the APIs refuse or do not answer; finished parts are written, answers are kept.
    """
    todo = [_Part.of(name, settings) for name in parts]
    with querying(lake, settings) as (con, _):
        _read(con, todo, folder, settings)
    taken = {"by file": _n_found(todo)}
    unplaced = _from_dumps(todo, settings, log)
    taken["by dumps"] = _n_found(todo) - sum(taken.values())
    _from_table(todo, lake, settings)
    taken["known already"] = _n_found(todo) - sum(taken.values())
    may_ask = client is not None and settings.wikimedia.ask
    for landmark in _open(todo):
        landmark.found = _without_asking(landmark, unplaced, may_ask=may_ask)
    said = ", ".join(f"{n:,} {how}" for how, n in taken.items())
    log(f"{sum(len(part.landmarks) for part in todo):,} landmarks in {len(todo):,} parts: {said}")
    waiting = _written(todo, lake)
    calls = _ask(waiting, lake, settings, client, log) if waiting and client is not None else {}
    return _figures(todo) | {"n_known_already": taken["known already"], "calls": calls}


# -- files -------------------------------------------------------------------------------------------------------


def _read(con: duckdb.DuckDBPyConnection, parts: Sequence[_Part], folder: Path, settings: Geotag) -> None:
    """Landmarks, categories, coordinates and kinds that files in the folder know."""
    places, kinds = find_file(folder, COORDINATES), find_file(folder, HIERARCHY)
    for name in dict.fromkeys(part.set for part in parts):
        file = find_file(folder, CATEGORIES[name])
        if file is not None:
            _read_categories(con, file, [part for part in parts if part.set == name], settings)
        elif places is None:
            raise SourceError(
                f"{CATEGORIES[name]} is missing in {folder}: it must hold the columns landmark_id, category "
                f"(s3.amazonaws.com/google-landmark/metadata/{name}/{CATEGORIES[name]}).",
                file=str(folder / CATEGORIES[name]),
            )
    if places is not None:
        _read_places(con, places, parts, settings)
    if kinds is not None:
        _read_kinds(con, kinds, parts)


def _read_categories(con: duckdb.DuckDBPyConnection, file: Path, parts: Sequence[_Part], settings: Geotag) -> None:
    csv = csvs.open_csv(con, file, {"landmark_id": _ID, "category": ("category",)}, view="categories")
    con.execute(f"create or replace view numbered as {_numbered(csv, '')}")
    _reject_ids(con, file, csv, parts, settings)
    for part in parts:
        for number, row, category in _of_part(con, part, "category"):
            if number in part.landmarks:
                part.reject(file.name, row, "the landmark has a category already", category)
            else:
                part.landmarks[number] = _landmark(part, number, category)


def _landmark(part: _Part, number: int, category: str | None) -> _Landmark:
    title = title_of(category) if category else None
    fault = None if title else f"'{category or ''}'"[:200] + " is no category of Wikimedia Commons"
    return _Landmark(str(number) if part.set == "train" else f"{part.set}/{number}", title, fault)


def _read_places(con: duckdb.DuckDBPyConnection, file: Path, parts: Sequence[_Part], settings: Geotag) -> None:
    """Coordinates that somebody has, of both sets."""
    numbers = {"lon": csvs.LON_NAMES, "lat": csvs.LAT_NAMES}
    others = {"text": _TEXTS, "wikidata_id": ("wikidata_id",), "category": ("category",)}
    has_text = "text" in csvs.recognised(csvs.header(file)[0], others)
    required, optional = ({}, numbers | others) if has_text else (numbers, others)
    csv = csvs.open_csv(con, file, {"landmark_id": _ID, **required}, optional, view="places")
    if "lon" in csv.names and "lat" in csv.names:
        refuse_swapped(con, csv.view, file, (csv.names["lon"], csv.names["lat"]))
    columns = ", ".join(k if k in csv.names else f"null as {k}" for k in (*numbers, *others))
    for name in dict.fromkeys(part.set for part in parts):
        of_set = [part for part in parts if part.set == name]
        con.execute(f"create or replace view numbered as {_numbered(csv, '' if name == 'train' else f'{name}/')}")
        if name == "train":
            _reject_ids(con, file, csv, of_set, settings)
        for part in of_set:
            for number, row, lon, lat, text, wikidata_id, category in _of_part(con, part, columns):
                _place(part, number, (file.name, row), (lon, lat, text), wikidata_id, category)


def _place(
    part: _Part,
    number: int,
    where: tuple[str, int],
    fields: tuple[str | None, str | None, str | None],
    wikidata_id: str | None,
    category: str | None,
) -> None:
    """Take one line of coordinates."""
    lon, lat, text = ((value or "").strip() for value in fields)
    is_text = lon.lower() in _NOTHING and lat.lower() in _NOTHING
    if is_text and text.lower() in _NOTHING:
        return  # a search that found nothing left empty fields: no answer, and no fault
    said = text if is_text else f"lon={lon}, lat={lat}"
    position = position_of(text) if is_text else (_degrees(lon), _degrees(lat))
    landmark = part.landmarks.get(number) or _landmark(part, number, category)
    if position is None or any(map(math.isnan, position)):
        part.reject(*where, "the position is missing or not a number", said)
    elif abs(position[0]) > 180 or abs(position[1]) > 90:
        part.reject(*where, "the position is out of range", said)
    elif landmark.found is not None:
        part.reject(*where, "the landmark has a coordinate already", said)
    else:
        landmark.found = Found(landmark.category or "", "found", wikidata_id, *position, origin="csv")
        part.landmarks[number] = landmark


def _degrees(text: str) -> float:
    """A longitude or latitude as number or text; NaN where it is neither."""
    with contextlib.suppress(ValueError):
        return float(text)
    value = number_of(text)
    return math.nan if value is None else value


def _read_kinds(con: duckdb.DuckDBPyConnection, file: Path, parts: Sequence[_Part]) -> None:
    names = {"kind": ("natural_or_human_made",), "hierarchy": ("hierarchical_label",)}
    csv = csvs.open_csv(con, file, {"landmark_id": _ID}, names, view="kinds")
    con.execute(f"create or replace view numbered as {_numbered(csv, '')}")
    columns = ", ".join(k if k in csv.names else f"null as {k}" for k in names)
    for part in parts:
        for number, _, kind, hierarchy in _of_part(con, part, columns) if part.set == "train" else ():
            if landmark := part.landmarks.get(number):
                landmark.kind, landmark.hierarchy = kind, hierarchy


def _numbered(csv: csvs.Csv, prefix: str) -> str:
    """A query of a file's lines with the number of the landmark, null where the id is none of the set's."""
    number = f"landmark_id[{len(prefix) + 1}:]"
    return f"""select *, case when starts_with(landmark_id, '{prefix}') and regexp_full_match({number}, '[0-9]{{1,9}}')
        then {number}::bigint end as number from {csv.view}"""


def _of_part(con: duckdb.DuckDBPyConnection, part: _Part, columns: str) -> list[tuple[Any, ...]]:
    return con.execute(
        f"select number, row, {columns} from numbered where number >= ? and number < ? order by row",
        [part.first, part.last],
    ).fetchall()


def _reject_ids(
    con: duckdb.DuckDBPyConnection, file: Path, csv: csvs.Csv, parts: Sequence[_Part], settings: Geotag
) -> None:
    """Lines that are no landmark's are rejects of the first part of the set."""
    first = next((part for part in parts if part.first == 0), None)
    if first is None:
        return
    for name, row, reason, value in con.execute(csv.rejects).fetchall():
        first.reject(name, row, reason, value)
    n = _count(first.set, settings)
    unused = "number is null and not starts_with(coalesce(landmark_id, ''), 'index/')"
    strange = con.execute(
        f"select row, number, landmark_id from numbered where {unused} or number >= {n} order by row"
    ).fetchall()
    for row, number, landmark_id in strange:
        setting = "landmarks" if first.set == "train" else "index_landmarks"
        known = f"the landmark id is not below geotag.{setting} = {n}: raise it in geo_assets.toml"
        first.reject(file.name, row, "the landmark id is no number" if number is None else known, landmark_id or "")


def _count(name: str, settings: Geotag) -> int:
    return settings.landmarks if name == "train" else settings.index_landmarks


# -- dumps and table ---------------------------------------------------------------------------------------------


def _open(parts: Sequence[_Part]) -> list[_Landmark]:
    return [landmark for part in parts for landmark in part.landmarks.values() if landmark.found is None]


def _n_found(parts: Sequence[_Part]) -> int:
    return sum(landmark.found is not None for part in parts for landmark in part.landmarks.values())


def _from_dumps(parts: Sequence[_Part], settings: Geotag, log: Callable[[str], None]) -> dict[str, Found]:
    """Take the coordinates that the dumps know; what they say of the other titles is returned."""
    titles = list(dict.fromkeys(landmark.category for landmark in _open(parts) if landmark.category))
    if settings.wikimedia.dumps is None or not titles:
        return {}
    answers = dump_answers(settings.wikimedia.dumps, titles, log)
    for landmark in _open(parts):
        if (answer := answers.get(landmark.category or "")) and answer.status == "found":
            landmark.found = answer
    return {title: answer for title, answer in answers.items() if answer.status != "found"}


def _from_table(parts: Sequence[_Part], lake: Lake, settings: Geotag) -> None:
    """Take what is known already; only errors, and what is too old, are asked again."""
    renew = settings.wikimedia.renew_before
    for part in parts:
        frame = lake.read_if_any(TABLE, part=part.name)
        by_id = {landmark.id: landmark for landmark in part.landmarks.values() if landmark.found is None}
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
            landmark = by_id.get(row["landmark_id"])
            at: dt.datetime | None = row["fetched_at"]
            if landmark is None or row["category"] != landmark.category or row["status"] == "error":
                continue
            # What a file said counts as long as it says so; a gap in the dumps is none of the APIs.
            if row["origin"] == "csv" or (at is None and row["status"] != "found"):
                continue
            if renew is not None and (at is None or at < _utc(renew)):
                continue
            names = ("status", "wikidata_id", "lon", "lat", "precision_deg", "origin", "reason")
            landmark.found, landmark.at = Found(landmark.category or "", **{k: row[k] for k in names}), at


def _utc(time: dt.datetime) -> dt.datetime:
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)


def _without_asking(landmark: _Landmark, unplaced: Mapping[str, Found], *, may_ask: bool) -> Found | None:
    """The answer for a landmark that nobody is asked about, or None where somebody must be."""
    title = landmark.category
    if title is None:
        return Found("", "missing", reason=landmark.fault)
    if title in unplaced:
        return unplaced[title]
    if may_ask:
        return None
    return Found(
        title,
        "error",
        reason=f"nobody was asked: set geotag.wikimedia.ask = true, or dumps, or put {COORDINATES} into the folder",
    )


# -- the APIs ----------------------------------------------------------------------------------------------------


def _written(parts: Sequence[_Part], lake: Lake) -> list[_Part]:
    """Write the parts of which everything is known; the others are returned."""
    for part in parts:
        if not part.is_open:
            part.write(lake)
    return [part for part in parts if part.is_open]


def _ask(
    parts: Sequence[_Part], lake: Lake, settings: Geotag, client: Wikimedia, log: Callable[[str], None]
) -> dict[str, int]:
    """Ask for what is open, and write each part when its last landmark is known; calls by kind."""
    waiting: dict[str, list[tuple[_Part, _Landmark]]] = {}
    left: Counter[str] = Counter()
    for part in parts:
        for landmark in part.landmarks.values():
            if landmark.found is None and landmark.category is not None:
                waiting.setdefault(landmark.category, []).append((part, landmark))
                left[part.name] += 1

    def found(answer: Found, at: dt.datetime | None) -> None:
        for part, landmark in waiting[answer.title]:
            landmark.found, landmark.at = answer, at
            left[part.name] -= 1
            if not left[part.name]:
                part.write(lake)

    before = Counter(client.calls)
    journal = Journal(lake, settings.wikimedia.renew_before)
    n = -(-len(waiting.keys() - journal.known["pages"].keys()) // BATCH)
    log(
        f"{len(waiting):,} categories to ask for: {n:,} calls and those for their items, {client.per_minute:,.0f} a minute, "
        f"so at least {n / client.per_minute:,.1f} minutes"
    )
    if not settings.wikimedia.contact and settings.wikimedia.per_minute is None:
        log(f"Set geotag.wikimedia.contact: Wikimedia lets those whom it can reach ask {PER_MINUTE:.0f} times a minute")
    client.find(waiting, journal, found, log)
    journal.clear()
    return dict(client.calls - before)


class Journal(Answers):
    """Answers kept in the lake, one small file a call, until they stand in the table.

    Args:
        lake: where they are kept.
        renew_before: answers older than this do not count.
    """

    def __init__(self, lake: Lake, renew_before: dt.datetime | None = None) -> None:
        super().__init__()
        self._lake = lake
        self._names = set(lake.names(lake.key(JOURNAL)))
        for name in sorted(self._names):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a file of another version is no answer
                kept = orjson.loads(lake.get_bytes(lake.key(JOURNAL, name)))
                at = dt.datetime.fromisoformat(kept["at"])
                if renew_before is None or at >= _utc(renew_before):
                    super().add(kept["kind"], {k: _answer(kept["kind"], a) for k, a in kept["answers"].items()}, at)

    def add(self, kind: Kind, answers: Mapping[str, Answer], at: dt.datetime) -> None:
        """Take the answers of one call and keep them."""
        super().add(kind, answers, at)
        name = f"{kind}-{hashlib.sha256(orjson.dumps(list(answers))).hexdigest()[:16]}.json"
        data = orjson.dumps({"kind": kind, "at": at.isoformat(), "answers": dict(answers)})
        self._lake.put_bytes(self._lake.key(JOURNAL, name), data, sync_folder=False)
        self._names.add(name)

    def clear(self) -> None:
        """Remove what was kept."""
        for name in self._names:
            self._lake.remove(self._lake.key(JOURNAL, name))


def _answer(kind: Kind, kept: Any) -> Answer:
    if kind == "redirects":
        return kept
    if kept["position"] is not None:
        kept["position"] = tuple(kept["position"])
    return Item(**kept) if kind == "items" else Page(**kept | {"via": tuple(kept["via"])})


def _figures(parts: Collection[_Part]) -> dict[str, Any]:
    answers = [landmark.found for part in parts for landmark in part.landmarks.values() if landmark.found]
    reasons = Counter(reject["reason"] for part in parts for reject in part.rejects)
    return {
        "n_landmarks": len(answers),
        "n_found": sum(answer.status == "found" for answer in answers),
        "statuses": dict(Counter(answer.status for answer in answers).most_common()),
        "origins": dict(Counter(answer.origin for answer in answers if answer.origin).most_common()),
        "n_rejects": sum(reasons.values()),
        "reject_reasons": dict(reasons.most_common()),
    }
