"""Every image that may lie in some boxes: three sources that have to agree.

Tiles name images but lag behind. The list of a sequence names images that tiles do not show yet. A bounding-box
search names images of sequences that neither has seen; what it finds sends its sequences back to be listed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.errors import ApiError
from geo_assets.grid import Bounds
from geo_assets.harvest.answers import Answers
from geo_assets.harvest.area import Area
from geo_assets.harvest.audit import Audit, Auditor, Found
from geo_assets.harvest.coverage import PAD_M, Coverage
from geo_assets.harvest.mapillary import Mapillary, kind_of, pooled

Report = Callable[[str, int], Callable[[int], None]]
"""Given a noun and a total, makes what is told how many are done."""


def silent(_what: str, _total: int) -> Callable[[int], None]:
    """Report nothing."""
    return lambda _done: None


LISTINGS = 4
"""Times that a sequence's list is asked for while it lacks more than a few of the images that tiles show of it."""

LACKING = 0.05
OUTSIDE = "-"
"""Home of an image that lies outside the city."""


@dataclass(frozen=True)
class Discovery:
    """What the sources named for a box.

    Attributes:
        sequences: rows of table ``sequence_ids``.
        images: rows of table ``sequence_images``: the candidates, some of which will lie outside the box.
        figures: counts of the search: ``n_tiles``, ``n_failed_tiles``, ``n_audit_cells``, ``n_audit_asks``,
            ``n_unverifiable``.
    """

    sequences: pd.DataFrame
    images: pd.DataFrame
    figures: dict[str, int]


@dataclass
class Survey:
    """What the three sources say of some boxes that are surveyed together.

    Attributes:
        area: the city.
        coverage: the tiles over the boxes.
        audits: what the searches gave, one entry a planned cell.
        lists: image ids of each sequence that was listed; empty where the API would not.
        late: sequences that no tile names.
    """

    area: Area
    coverage: Coverage
    audits: list[Audit]
    lists: dict[str, list[str]] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        images = self.coverage.images
        self.ids = images["image_id"].to_numpy(object)
        self.sequence_ids = images["sequence_id"].to_numpy(object)
        self.audited = {image for audit in self.audits for image in audit.images}
        known = set(self.ids)
        news = {i: found for a in self.audits for i, found in a.images.items() if i not in known}
        self.news = pd.DataFrame.from_dict(news, orient="index", columns=list(Found._fields))
        self.homes = self.area.home_of(*self.coverage.position)
        self.homes[self.homes == None] = OUTSIDE  # noqa: E711  (an array is compared, element by element)
        news_lon, news_lat = self._news_position()
        news_homes = self.area.home_of(news_lon, news_lat)
        news_homes[np.isfinite(news_lon) & (news_homes == None)] = OUTSIDE  # noqa: E711
        self.home_of = dict(zip(self.news.index, news_homes, strict=True))
        self.placed = known | set(self.news.index[np.isfinite(news_lon)])
        self.sequence_of = {i: s for i, s in zip(self.news.index, self.news["sequence_id"], strict=True) if s}

    def _news_position(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        names = ["lon", "lat", "computed_lon", "computed_lat"]
        lon, lat, computed_lon, computed_lat = self.news[names].to_numpy(float).reshape(-1, 4).T
        has = np.isfinite(computed_lon)
        return np.where(has, computed_lon, lon), np.where(has, computed_lat, lat)

    def near(self, bounds: Bounds) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Indices of the tiles' images, and the audit's news, that any position places in or near a rectangle."""
        grown, images = bounds.padded(PAD_M), self.coverage.images
        here = _any_in(grown, images)
        return np.flatnonzero(here), list(self.news.index[_any_in(grown, self.news)])

    def sequences_near(self, bounds: Iterable[Bounds]) -> dict[str, bool]:
        """Sequences with an image in or near rectangles, and whether tiles name them there."""
        found: dict[str, bool] = {}
        for rectangle in bounds:
            members, news = self.near(rectangle)
            found |= {s: found.get(s, False) for i in news if (s := self.sequence_of.get(i))}
            found |= dict.fromkeys((s for s in self.sequence_ids[members] if s), True)
        return found

    def of_box(self, box: str) -> Discovery:
        """What the survey says of one of its boxes."""
        bounds = self.area.grid.bounds(box)
        members, news = self.near(bounds)
        images = self.coverage.images.iloc[members]
        near = dict(zip(self.ids[members], range(len(members)), strict=True))
        sequences = self.sequences_near([bounds])
        sequence_of = {i: s for i, s in zip(self.ids[members], self.sequence_ids[members], strict=True) if s}
        sequence_of |= {i: s for i in news if (s := self.sequence_of.get(i))}
        listed: dict[str, str] = {}
        late: dict[str, str] = {}
        for sequence in sequences:
            kind = late if sequence in self.late else listed
            # A source knows where the others are, and it is not here: a long sequence does not bring in half the town.
            here = (i for i in self.lists.get(sequence, ()) if i in near or i not in self.placed or i in news)
            kind.update(dict.fromkeys(here, sequence))
        ids = list(dict.fromkeys([*near, *news, *listed, *late]))
        rows = np.array([near.get(i, -1) for i in ids], int)
        in_tiles, in_computed = (
            np.append(images[name].to_numpy(bool), False)[rows] if len(rows) else np.zeros(0, bool)
            for name in ("in_tiles", "in_computed")
        )
        homes = np.append(self.homes[members], np.array([None], object))[rows] if len(rows) else np.zeros(0, object)
        table = pd.DataFrame(
            {
                "image_id": pd.Series(ids, dtype=object),
                "sequence_id": pd.Series(
                    [listed.get(i) or late.get(i) or sequence_of.get(i) for i in ids], dtype=object
                ),
                "in_tiles": in_tiles,
                "in_computed": in_computed,
                "in_closure": np.array([i in listed for i in ids], bool),
                "in_audit": np.array([i in self.audited for i in ids], bool),
                "in_late_closure": np.array([i in late for i in ids], bool),
                "home_box": pd.Series(
                    [self.home_of.get(i) if h is None else h for i, h in zip(ids, homes, strict=True)], dtype=object
                ),
            }
        )
        return Discovery(self._sequence_rows(sequences, table, box), table, self._figures(bounds))

    def _sequence_rows(self, sequences: dict[str, bool], table: pd.DataFrame, box: str) -> pd.DataFrame:
        counts = table["sequence_id"].value_counts().to_dict()
        inside = table.loc[(table["in_tiles"] | table["in_computed"]) & (table["home_box"] == box), "sequence_id"]
        shown = inside.value_counts().to_dict()
        names = sorted(sequences)
        return pd.DataFrame(
            {
                "sequence_id": pd.Series(names, dtype=object),
                "n_images": np.array([len(self.lists.get(s, ())) for s in names], int),
                "n_in_tiles": np.array([shown.get(s, 0) for s in names], int),
                "n_in_box": np.array([counts.get(s, 0) for s in names], int),
                "first_seen_in": pd.Series(["audit" if s in self.late else "tile" for s in names], dtype=object),
                "closed": np.array([bool(self.lists.get(s)) for s in names], bool),
            }
        )

    def _figures(self, bounds: Bounds) -> dict[str, int]:
        grown = bounds.padded(PAD_M)
        cells = [audit for audit in self.audits if touch(audit.cell, grown)]
        tiles = [tile for tile in self.coverage.tiles if touch(tile.bounds, grown)]
        return {
            "n_tiles": 2 * len(tiles),
            "n_failed_tiles": len(self.coverage.failed_over(grown)),
            "n_audit_cells": sum(audit.cells for audit in cells),
            "n_audit_asks": sum(audit.asks for audit in cells),
            "n_unverifiable": sum(touch(cell, grown) for audit in cells for cell in audit.unverifiable),
        }


def survey(
    client: Mapillary,
    answers: Answers,
    area: Area,
    coverage: Coverage,
    boxes: Collection[str],
    since: float = 0.0,
    report: Report = silent,
) -> Survey:
    """Audit some boxes and close the set of their images over their sequences.

    Args:
        client: the API.
        answers: what was answered before, and where new answers are kept.
        area: the city.
        coverage: the tiles of all districts that the boxes touch.
        boxes: names of boxes.
        since: answers older than this [s since the epoch] are not believed.
        report: makes the reporter of progress.

    Raises:
        ApiError: the token is refused, or the API is down.
    """
    return client.run(_survey(client, answers, area, coverage, boxes, since, report))


async def _survey(
    client: Mapillary,
    answers: Answers,
    area: Area,
    coverage: Coverage,
    boxes: Collection[str],
    since: float,
    report: Report,
) -> Survey:
    wanted = [area.grid.bounds(box) for box in boxes]
    auditor = Auditor(client, answers, coverage.images, since)
    cells = [
        (cell, members)
        for district in coverage.districts
        for cell, members in auditor.cells(district)
        if any(touch(cell, bounds.padded(PAD_M)) for bounds in wanted) and area.touches(cell.padded(PAD_M))
    ]
    in_flight = client.settings.connections
    audits = await pooled(in_flight, lambda c: auditor.audit(*c), cells, report("search cells", len(cells)))
    found = Survey(area, coverage, audits)
    sequences = found.sequences_near(wanted)
    named = set(found.sequence_ids)
    found.late = {s for s in sequences if s not in named}
    shown: dict[str, list[str]] = {}
    for image, sequence in zip(found.ids, found.sequence_ids, strict=True):
        if sequence in sequences:
            shown.setdefault(sequence, []).append(image)
    found.lists = await list_sequences(client, answers, list(sequences), shown, since, report)
    return found


async def list_sequences(
    client: Mapillary,
    answers: Answers,
    sequences: Sequence[str],
    shown: dict[str, list[str]],
    since: float = 0.0,
    report: Report = silent,
) -> dict[str, list[str]]:
    """Ids of the images of each sequence; empty where the API would not list them.

    A list is asked for again while it lacks images that tiles show; what any answer named is kept. It may go on
    lacking them: tiles show deleted images for a while.

    Raises:
        ApiError: the token is refused, or the API is down.
    """

    async def one(sequence: str) -> list[str]:
        ids: dict[str, None] = {}
        kept = iter(answers.of("sequence", sequence, since))
        for _ in range(LISTINGS):
            answer = next(kept, None)
            if answer is not None:
                listed = answer.value
            else:
                try:
                    listed = await client.ask_image_ids(sequence)
                except ApiError as error:
                    if kind_of(error) == "fatal" or client.is_down:
                        raise
                    continue
                answers.keep("sequence", sequence, listed)
            ids |= dict.fromkeys(listed)
            known = shown.get(sequence, ())
            if ids and sum(i not in ids for i in known) <= max(1, LACKING * len(known)):
                break
        return list(ids)

    lists = await pooled(client.settings.connections, one, sequences, report("sequences", len(sequences)))
    return dict(zip(sequences, lists, strict=True))


def _any_in(bounds: Bounds, images: pd.DataFrame) -> npt.NDArray[np.bool_]:
    names = ["lon", "lat", "computed_lon", "computed_lat"]
    lon, lat, computed_lon, computed_lat = images[names].to_numpy(float).reshape(-1, 4).T
    return _inside(bounds, lon, lat) | _inside(bounds, computed_lon, computed_lat)


def _inside(bounds: Bounds, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return (lon >= bounds.west) & (lon <= bounds.east) & (lat >= bounds.south) & (lat <= bounds.north)


def touch(a: Bounds, b: Bounds) -> bool:
    """Whether two rectangles have a point in common."""
    return a.west <= b.east and a.east >= b.west and a.south <= b.north and a.north >= b.south
