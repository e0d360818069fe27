"""Which boxes differ from what was harvested: tiles are asked a few at a time, and their images compared by id.

New uploads may carry old capture times, so times say nothing; the set of ids that the tiles name in a box does. Each
tile is asked once for all its boxes. Where a look stopped is a few numbers for each city; what was seen lies in the
lake: the tiles themselves, and the rows of the harvest that they are compared with.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from geo_assets.errors import GeoAssetsError
from geo_assets.harvest import photos
from geo_assets.harvest.area import Area
from geo_assets.harvest.coverage import Coverage, Tiles, content_hash
from geo_assets.harvest.mapillary import Mapillary, Patience
from geo_assets.harvest.metadata import position
from geo_assets.harvest.source import Box
from geo_assets.harvest.tiles import tile_at
from geo_assets.imagery import imagery_of
from geo_assets.lake import Lake
from geo_assets.settings import Automation, City

UPDATED, NEW = "updated_boxes", "new_boxes"
"""The two looks: at boxes that were harvested, with the tiles asked anew; at those that never were, with those kept."""

MOST_REQUESTS, MOST_CHANGES, WITHIN_S = 24, 100, 25.0
"""Bounds of one look: tile requests, boxes found, and seconds; who calls it has a minute."""

TRIES = 3
"""Looks in a row that may fail for the same tiles before these are passed over until the next round."""

_BRIEF = Patience(attempts=2, first_wait_s=0.5, longest_wait_s=1.0, first_pause_s=1.0, pause_s=5.0, pauses=1)
Opener = Callable[[City, Lake], AbstractContextManager[Mapillary]]


@dataclass(frozen=True)
class Change:
    """A box that has to be harvested.

    Attributes:
        city: its city.
        box: its name.
        n_new: images that the harvest before does not know.
        n_gone: images that are no longer named.
        coverage: hash of the ids that are named now.
        base: when the images of the harvest before were written [ms since the epoch], 0 where there are none.
        unfinished: the harvest before did not come to its end.
    """

    city: str
    box: str
    n_new: int
    n_gone: int
    coverage: str
    base: int
    unfinished: bool = False

    @property
    def key(self) -> str:
        """Names this change of this harvest: the same is never asked for twice, but a state that returns is."""
        return f"{self.city}/{self.box}@{self.coverage[:16]}-{self.base}"

    @property
    def why(self) -> str:
        """What a person wants to know."""
        counts = f"+{self.n_new:,} images, -{self.n_gone:,} images"
        return f"{counts}; the harvest before was not finished" if self.unfinished else counts


@dataclass
class Look:
    """What one look found and what it took.

    Attributes:
        changes: boxes to harvest.
        n_requests: tile requests sent.
        n_boxes: boxes that were compared.
        left: tile requests left of the day.
        words: why it did not see more, a sentence each.
        state: where the next look goes on; small, and JSON.
    """

    state: dict[str, Any]
    changes: list[Change] = field(default_factory=list)
    n_requests: int = 0
    n_boxes: int = 0
    left: int = 0
    words: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One sentence with the figures."""
        n_new, n_gone = (sum(getattr(c, name) for c in self.changes) for name in ("n_new", "n_gone"))
        found = f"{len(self.changes):,} changed (+{n_new:,} -{n_gone:,} images)" if self.changes else "none changed"
        midnight = "until 00:00 UTC"
        asked = f"Asked {self.n_requests:,} tiles, looked at {self.n_boxes:,} boxes, {found}"
        return f"{asked}; {self.left:,} tile requests left {midnight}."


def look(
    name: str,
    lake: Lake,
    cities: Mapping[str, City],
    options: Automation,
    state: Mapping[str, Any],
    opener: Opener = imagery_of,
    within_s: float = WITHIN_S,
) -> Look:
    """Look at some more of the cities; each look begins with another city, so that all have their turn.

    Args:
        name: :data:`UPDATED` or :data:`NEW`.
        lake: holds what was harvested, the tiles, and what was spent of the day's requests.
        cities: the cities by name.
        options: the budget, and how often a city is looked at.
        state: what the look before returned; empty at first.
        opener: gives the client of a city.
        within_s: no tile is asked for after so many seconds.
    """
    names = list(cities)
    turn = int(state.get("turn", 0)) % max(len(names), 1)
    known = {city: dict(mine) for city, mine in state.get("cities", {}).items() if city in cities}
    found = Look({"turn": (turn + 1) % max(len(names), 1), "cities": known})
    purse = _Purse(lake, name, options.tiles_per_day)
    looking = _Looking(name, lake, options, opener, found, purse, time.monotonic() + within_s)
    for city in names[turn:] + names[:turn]:
        if looking.is_full:
            break
        try:
            looking.at(city, cities[city])
        except GeoAssetsError as error:
            found.words.append(f"{city}: {error}")
    found.left = purse.left
    return found


class _Purse:
    """The day's tile requests. Each look counts its own in a file, so that none overwrites what another spent."""

    def __init__(self, lake: Lake, name: str, per_day: int) -> None:
        self.lake, self.per_day = lake, per_day
        self._folder, self._own = lake.key("watch"), lake.key("watch", f"{name}.json")
        self._day = dt.datetime.now(dt.UTC).date().isoformat()

    def _spent(self, key: str) -> int:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(self.lake.get_bytes(key))
            return int(said["spent"]) if said["day"] == self._day else 0
        return 0

    @property
    def left(self) -> int:
        spent = sum(self._spent(f"{self._folder}/{name}") for name in self.lake.names(self._folder))
        return max(0, self.per_day - spent)

    def spend(self, n: int) -> None:
        said = {"day": self._day, "spent": self._spent(self._own) + n}
        self.lake.put_bytes(self._own, json.dumps(said).encode())


@dataclass
class _Looking:
    name: str
    lake: Lake
    options: Automation
    opener: Opener
    found: Look
    purse: _Purse
    ends: float

    @property
    def is_full(self) -> bool:
        found = self.found
        return len(found.changes) >= MOST_CHANGES or time.monotonic() >= self.ends or found.n_requests >= MOST_REQUESTS

    def at(self, name: str, city: City) -> None:
        """Go on with a city where the look before stopped."""
        if not self.lake.exists(f"tables/certificates/city={name}"):
            self.found.words.append(f"{name} was never harvested; begin with: geo-assets harvest {name}")
            return
        mine = self.found.state["cities"].setdefault(name, {})
        if city.photos is not None:
            self._photos(name, city, city.photos, mine)
            return
        area = Area.of(city)
        units = _units(city)
        if mine.get("next", len(units)) >= len(units):
            due = mine.get("began", 0.0) + self.options.look_every_s
            if time.time() < due:
                again = dt.datetime.fromtimestamp(due, dt.UTC)
                self.found.words.append(f"{name} was looked at as a whole; again from {again:%Y-%m-%d %H:%M} UTC")
                return
            mine.update(began=time.time(), next=0, tries=0)
        with self.opener(city, self.lake) as client:
            client.patience = _BRIEF
            tiles = Tiles(client, self.lake, name, area)
            while mine["next"] < len(units) and not self.is_full:
                if not self._unit(name, city, tiles, units[mine["next"]], mine):
                    return
                mine.update(next=mine["next"] + 1, tries=0)

    # -- a tile and its boxes -------------------------------------------------------------------------------

    def _unit(self, name: str, city: City, tiles: Tiles, boxes: Sequence[str], mine: dict[str, Any]) -> bool:
        """Look at the boxes of a tile; whether that is done with."""
        boxes = [box for box in boxes if self.lake.has("certificates", city=name, box=box) == (self.name == UPDATED)]
        if not boxes:
            return True
        fresh_for_s = max(self.options.look_every_s / 2, time.time() - mine["began"])
        bounds = [tiles.area.grid.bounds(box) for box in boxes]
        stale = tiles.stale(bounds, math.inf if self.name == NEW else fresh_for_s)
        failed = False
        if stale:
            if self._is_blocked(name, tiles.client):
                return False
            affordable = stale[: min(self.purse.left, MOST_REQUESTS - self.found.n_requests)]
            failed = bool(affordable) and self._ask(tiles, affordable)
            if self._is_blocked(name, tiles.client):
                return False
            if len(affordable) < len(stale):
                if self.purse.left == 0:
                    self.found.words.append(f"The day's {self.options.tiles_per_day:,} tile requests are spent")
                return False
        if failed:
            mine["tries"] = mine.get("tries", 0) + 1
            last = mine["tries"] >= TRIES
            then = "they are passed over until the next round" if last else "they are asked again"
            self.found.words.append(f"{name}: tiles of {boxes[0]} and around could not be had; {then}")
            if not last:
                return False
        for box, where in zip(boxes, bounds, strict=True):
            seen = tiles.kept([where])
            if not seen.failed:
                self._compare(Box(name, box, city, self.lake), *_named(seen, tiles.area, box))
        return True

    def _ask(self, tiles: Tiles, which: Sequence[Any]) -> bool:
        """Ask for some tiles; whether any could not be had."""
        before = tiles.client.requests["tiles"]
        try:
            return bool(tiles.ask(which, within_s=max(1.0, self.ends - time.monotonic())))
        finally:
            n = tiles.client.requests["tiles"] - before
            self.found.n_requests += n
            self.purse.spend(n)

    def _is_blocked(self, name: str, client: Mapillary) -> bool:
        until = client.tiles_blocked_until
        if until <= time.time():
            return False
        said = dt.datetime.fromtimestamp(until, dt.UTC)
        self.found.words.append(
            f"{name}: the tile host has blocked this address; it is asked again from {said:%Y-%m-%d %H:%M} UTC"
        )
        return True

    # -- a folder of photos ---------------------------------------------------------------------------------

    def _photos(self, name: str, city: City, folder: Path, mine: dict[str, Any]) -> None:
        """Look at a folder of photos: read only where its listing is another one."""
        if (self.name == NEW) or (listing := _listing(folder)) == mine.get("listing"):
            return
        area, taken = Area.of(city), photos.scan(folder).photos
        homes = area.home_of(*position(taken))
        for box in city.grid:
            here = pd.DataFrame(taken[homes == box])
            ids = set(here["image_id"])
            if ids or self.lake.has("certificates", city=name, box=box):
                edited = max((_modified(folder / path) for path in here["source_path"]), default=0.0)
                self._compare(Box(name, box, city, self.lake), ids, content_hash(ids), edited)
        mine["listing"] = listing

    # -- one box --------------------------------------------------------------------------------------------

    def _compare(self, box: Box, ids: set[str], coverage: str, edited: float = 0.0) -> None:
        self.found.n_boxes += 1
        harvested = self.lake.has("certificates", **box.partition)
        has_images = self.lake.has("image_metadata", **box.partition)
        base = self.lake.written_at("image_metadata", **box.partition) if has_images else 0.0
        row = box.before("bbox_partitions")
        was = str(row["coverage_hash"].iloc[0]) if len(row) else content_hash([])
        unfinished = harvested and not _is_finished(box, row)
        if (harvested or not ids) and coverage == was and not unfinished and edited <= base:
            return
        known = _known(box)
        change = Change(
            *(box.city, box.name, len(ids - known), len(known - ids), coverage),
            *(int(base * 1000), unfinished),
        )
        self.found.changes.append(change)


def _named(seen: Coverage, area: Area, box: str) -> tuple[set[str], str]:
    """The images that tiles place in a box, and their hash, as ``bbox_partitions`` has it."""
    ids = set(seen.images["image_id"].to_numpy(object)[area.home_of(*seen.position) == box])
    return ids, content_hash(ids)


def _known(box: Box) -> set[str]:
    """The images that tiles or the folder placed in the box when it was harvested."""
    rows = box.before("sequence_images")
    if box.place.photos is not None:
        return set(rows["image_id"])
    named = rows["in_tiles"].to_numpy(bool) | rows["in_computed"].to_numpy(bool)
    return set(rows["image_id"].to_numpy(object)[named & (rows["home_box"] == box.name).to_numpy(bool)])


def _is_finished(box: Box, row: pd.DataFrame) -> bool:
    """Whether the last harvest of a box came to its end, its files included where it has files."""
    proof = box.before("certificates")
    if proof.empty or not proof["complete"].iloc[0]:
        return False
    if len(row) and proof["fetched_at"].iloc[0] < row["changed_at"].iloc[0] and box.place.photos is None:
        return False
    where = box.partition
    tables = ("image_metadata", "image_files")
    times = [box.lake.written_at(table, **where) for table in tables if box.lake.has(table, **where)]
    return len(times) < 2 or times[0] <= times[1]


def _units(city: City) -> list[list[str]]:
    aoi_at = _modified(city.aoi) if city.aoi is not None else 0.0
    return _units_of(city.model_dump_json(), aoi_at)


@functools.lru_cache(maxsize=64)
def _units_of(city_json: str, _aoi_at: float) -> list[list[str]]:
    """The boxes of a city by the tile that their middle lies in."""
    area = Area.of(City.model_validate_json(city_json))
    found: dict[Any, list[str]] = {}
    for box in area.grid:
        bounds = area.grid.bounds(box)
        if area.touches(bounds):
            found.setdefault(tile_at(*bounds.centre), []).append(box)
    return [found[tile] for tile in sorted(found)]


def _listing(folder: Path) -> str:
    """Digest of names, sizes and times of all photos below a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in photos.SUFFIXES):
        with contextlib.suppress(OSError):
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)!s} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()[:16]


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


__all__ = ["MOST_REQUESTS", "NEW", "TRIES", "UPDATED", "Change", "Look", "look"]
