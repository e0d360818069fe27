"""Searches by rectangle that check what tiles and sequence lists name, and find what both lack.

The answer of one search is a sample that may be short without a word. So cells are planned small from what is known,
each is asked at least twice, answers are united and never replaced, and an empty one is believed only after five.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.errors import ApiError
from geo_assets.grid import Bounds
from geo_assets.harvest.answers import Answers
from geo_assets.harvest.mapillary import Mapillary, kind_of
from geo_assets.harvest.metadata import point
from geo_assets.harvest.plan import MAX_IMAGES, audit_cells, can_split, quarters

ASKS, MOST_ASKS, EMPTY_ASKS = 2, 6, 5
"""Answers of a cell in any case; while they lack what is known or still bring news; empty ones to believe."""

LACKING = 0.02
"""Share of the known images of a cell that its answers may lack: tiles go on showing deleted ones."""

_FIELDS = ("id", "sequence", "geometry", "computed_geometry")
_EDGE_M = 1.0  # an image this near to the edge of a cell may count to the next one


class Found(NamedTuple):
    """What a search says of an image; positions in degrees, NaN where there is none."""

    sequence_id: str | None
    lon: float
    lat: float
    computed_lon: float
    computed_lat: float
    captured_at_ms: int


_KNOWN = Found(None, float("nan"), float("nan"), float("nan"), float("nan"), 0)
"""Stands for what a search says of an image that tiles show: they say the same, in less memory."""


@dataclass
class Audit:
    """What the searches of one planned cell gave.

    Attributes:
        cell: the cell as planned.
        images: what was found, by image id.
        cells: cells asked, its parts included.
        asks: answers.
        unverifiable: cells that the API would not answer in full however small.
    """

    cell: Bounds
    images: dict[str, Found] = field(default_factory=dict)
    cells: int = 1
    asks: int = 0
    unverifiable: list[Bounds] = field(default_factory=list)

    def add(self, part: Audit) -> None:
        """Take up what the part of a cell gave."""
        self.images.update(part.images)
        self.cells += part.cells
        self.asks += part.asks
        self.unverifiable += part.unverifiable


class Auditor:
    """Audits cells against the images that tiles name.

    Args:
        client: the API.
        answers: what was answered before.
        images: :attr:`geo_assets.harvest.coverage.Coverage.images`.
        since: answers older than this [s since the epoch] are not believed.
    """

    def __init__(self, client: Mapillary, answers: Answers, images: pd.DataFrame, since: float = 0.0) -> None:
        self.client, self.answers, self.since = client, answers, since
        self.ids = images["image_id"].to_numpy(object)
        names = ["lon", "lat", "computed_lon", "computed_lat"]
        self.lon, self.lat, self.computed_lon, self.computed_lat = images[names].to_numpy(float).T
        self.times = images["captured_at_ms"].to_numpy(np.int64)
        self.known = set(self.ids)

    def cells(self, bounds: Bounds) -> list[tuple[Bounds, npt.NDArray[np.int64]]]:
        """Cells over a rectangle, each with the indices of the images known in it."""
        return audit_cells(*self._position(), bounds)

    async def audit(self, cell: Bounds, members: npt.NDArray[np.int64], news: Collection[str] = ()) -> Audit:
        """Search a cell, in parts if it is too dense.

        Args:
            cell: the cell.
            members: indices of the images known in it.
            news: ids of other images that searches have placed well inside it.

        Raises:
            ApiError: the token is refused, or the API is down.
        """
        result = Audit(cell)
        expected = self._well_inside(cell, members) | set(news)
        try:
            whole = await self._ask_until_stable(result, cell, expected, {})
        except ApiError as error:
            if kind_of(error) == "fatal" or self.client.is_down or not (kind_of(error) == "dense" or error.may_pass):
                raise
            whole = False
        if whole:
            return result
        if can_split(cell):
            for part, inside, new in self._parts(cell, members, result.images):
                result.add(await self.audit(part, inside, new))
        elif result.images and len(result.images) > MAX_IMAGES:
            await self._audit_by_time(result, cell, members)
        else:
            result.unverifiable.append(cell)
        return result

    async def _ask_until_stable(
        self, result: Audit, cell: Bounds, expected: Collection[str], window: dict[str, str]
    ) -> bool:
        """Ask one cell until its answers hold what is expected and bring no news; False where it holds too many.

        Raises:
            ApiError: the API refuses the cell for its density, or failed.
        """
        key = ",".join(f"{v:.9f}" for v in cell.as_list()) + "".join(f" {v}" for v in window.values())
        kept = iter(self.answers.of("search", key, self.since))
        found: dict[str, Found] = {}
        answered = empty = 0
        while answered < MOST_ASKS and empty < EMPTY_ASKS:
            before = len(found)
            answer = next(kept, None)
            value = answer.value if answer is not None else await self._search(cell, key, window)
            if value == "dense":
                raise ApiError("The API said of a cell: please reduce the amount of data.", status=500, code=1)
            result.asks += 1
            if not value["known"] and not value["news"]:
                empty += 1
                continue
            answered += 1
            for image in value["known"]:
                found[image] = _KNOWN
            for row in value["news"]:
                image = str(row["id"])
                found[image] = _KNOWN if image in self.known else _found(row)
            result.images.update(found)
            if len(found) > 2 * MAX_IMAGES:
                return False  # near the number at which answers are cut without a word
            lacking = sum(image not in found for image in expected)
            has_news = len(found.keys() - self.known) > 0
            if answered >= ASKS and lacking <= LACKING * len(expected) and (not has_news or len(found) == before):
                break
        return True

    async def _search(self, cell: Bounds, key: str, window: dict[str, str]) -> Any:
        try:
            fields = [*_FIELDS, "captured_at"] if window else _FIELDS
            rows = await self.client.ask_search(cell, fields, filters=window)
        except ApiError as error:
            if kind_of(error) == "dense":
                self.answers.keep("search", key, "dense")
            raise
        ids = [str(row.get("id")) for row in rows]
        value = {
            "known": [image for image in ids if image in self.known],
            "news": [row for image, row in zip(ids, rows, strict=True) if image not in self.known and "id" in row],
        }
        self.answers.keep("search", key, value)
        return value

    async def _audit_by_time(self, result: Audit, cell: Bounds, members: npt.NDArray[np.int64]) -> None:
        """Search a spot that holds more images than one answer can, in windows of capture time."""
        if any(found is not _KNOWN and not found.captured_at_ms for found in result.images.values()):
            dated = Audit(cell, cells=0)  # only a search with a window asks for times
            await self._ask_window(dated, cell, (), {"start_captured_at": str(_iso(0))})
            result.add(dated)
        # Tiles round positions, so what is found here may count to the next cell by them.
        shown = [i for i, image in enumerate(self.ids) if image in result.images]
        times = {str(self.ids[i]): int(self.times[i]) for i in (*members, *shown)}
        times |= {image: found.captured_at_ms for image, found in result.images.items() if found is not _KNOWN}
        ordered = np.sort(np.array([t for t in times.values() if t > 0], np.int64))
        n = -(-len(ordered) // (MAX_IMAGES * 9 // 10)) if len(ordered) else 0
        cuts = np.unique(ordered[np.linspace(0, len(ordered) - 1, n + 1).astype(int)[1:-1]]) if n > 1 else ordered[:0]
        edges = [None, *(int(c) for c in cuts), None]
        inside = self._well_inside(cell, members)
        for first, last in itertools.pairwise(edges):
            window = {k: v for k, v in (("start_captured_at", _iso(first)), ("end_captured_at", _iso(last))) if v}
            expected = {i for i in inside if (first or 0) < times[i] < (last or 2**62)}
            part = Audit(cell, cells=0)
            whole = await self._ask_window(part, cell, expected, window)
            outside = (times.get(i, f.captured_at_ms) for i, f in part.images.items())
            stray = [t for t in outside if t and not (first or 0) <= t <= (last or 2**62)]
            # Times outside the window say that the server ignores windows: then they prove nothing.
            if not whole or stray or n < 2:
                part.unverifiable.append(cell)
            result.add(part)
            if part.unverifiable:
                return

    async def _ask_window(self, part: Audit, cell: Bounds, expected: Collection[str], window: dict[str, str]) -> bool:
        try:
            return await self._ask_until_stable(part, cell, expected, window)
        except ApiError as error:
            if kind_of(error) == "fatal" or self.client.is_down:
                raise
            return False

    def _parts(
        self, cell: Bounds, members: npt.NDArray[np.int64], found: dict[str, Found]
    ) -> list[tuple[Bounds, npt.NDArray[np.int64], set[str]]]:
        """Smaller cells that cover a cell, each with the known images and the news in it."""
        lon, lat = self._position()
        news = [image for image in found if image not in self.known]
        x = np.concatenate([lon[members], [found[i].lon for i in news]])
        y = np.concatenate([lat[members], [found[i].lat for i in news]])
        parts = audit_cells(x, y, cell, max(1, min(MAX_IMAGES, len(x) // 4)))
        if len(parts) < 2:
            parts = [(part, np.flatnonzero(_in(part, x, y))) for part in quarters(cell)]
        result = []
        for part, inside in parts:
            inner, own = part.padded(-_EDGE_M), inside < len(members)
            new = {news[i - len(members)] for i in inside[~own] if inner.contains(float(x[i]), float(y[i]))}
            result.append((part, members[inside[own]], new))
        return result

    def _position(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        has = np.isfinite(self.lon)
        return np.where(has, self.lon, self.computed_lon), np.where(has, self.lat, self.computed_lat)

    def _well_inside(self, cell: Bounds, members: npt.NDArray[np.int64]) -> set[str]:
        """Members that lie in the cell by every position that is known: nobody says which one searches go by."""
        inner = cell.padded(-_EDGE_M)
        lon, lat = self.lon[members], self.lat[members]
        computed_lon, computed_lat = self.computed_lon[members], self.computed_lat[members]
        recorded = np.isnan(lon) | _in(inner, lon, lat)
        computed = np.isnan(computed_lon) | _in(inner, computed_lon, computed_lat)
        if can_split(cell):
            return set(self.ids[members[recorded & computed]])
        return set(self.ids[members[_in(cell, *(v[members] for v in self._position()))]])


def _in(cell: Bounds, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return (lon >= cell.west) & (lon <= cell.east) & (lat >= cell.south) & (lat <= cell.north)


def _found(row: dict[str, Any]) -> Found:
    nan = float("nan")
    lon, lat = (nan if v is None else v for v in point(row.get("geometry")))
    computed_lon, computed_lat = (nan if v is None else v for v in point(row.get("computed_geometry")))
    time, sequence = row.get("captured_at"), row.get("sequence")
    milliseconds = int(time) if isinstance(time, int | float) and abs(time) < 2**62 else 0
    return Found(str(sequence) if sequence else None, lon, lat, computed_lon, computed_lat, milliseconds)


def _iso(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    time = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=milliseconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"
