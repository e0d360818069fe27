"""Metadata of the candidates of a box: each image is asked once in a city, whichever box asks first."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import ApiError
from geo_assets.harvest.answers import Answers
from geo_assets.harvest.area import Area
from geo_assets.harvest.certificate import certificate
from geo_assets.harvest.closure import OUTSIDE, Report, list_sequences, silent
from geo_assets.harvest.mapillary import BATCH, Mapillary, kind_of, pooled
from geo_assets.harvest.metadata import FIELDS, Columns, columns, from_epoch
from geo_assets.harvest.metadata import table as table_of
from geo_assets.settings import Select

ROUNDS = 4
"""Times that images are asked in batches before each that is still missing is asked alone."""

_SCOPELESS = 20


@dataclass(frozen=True)
class Description:
    """Rows of tables ``image_metadata`` and ``certificates`` of a box, and counts for people.

    Attributes:
        strays: boxes that images of other boxes' candidates turned out to lie in.
    """

    metadata: pd.DataFrame
    certificate: pd.DataFrame
    figures: dict[str, int]


class Register:
    """Which images of a city were asked, what came of it, and where they lie.

    Args:
        client: the API.
        answers: what was answered before, and where new answers are kept.
        area: the city.
        since: when the boxes changed [s since the epoch]; that an image is gone is not believed from before.
    """

    def __init__(self, client: Mapillary, answers: Answers, area: Area, since: float = 0.0) -> None:
        self.client, self.answers, self.area, self.since = client, answers, area, since
        self.strays: dict[str, str] = answers.named("strays")
        self.gone: dict[str, float] = {}
        self.renew(since)

    def renew(self, since: float) -> None:
        """Go on to boxes that changed at another time."""
        self.since = since
        self.gone = self.answers.named("gone", since)

    def lacks(self, homes: Mapping[str, str | None], again: Collection[str] = ()) -> list[str]:
        """The images of which nothing is known yet.

        Args:
            homes: box in which tiles or searches place each image, None where none does.
            again: images whose answers from before ``since`` do not count.
        """
        fresh: dict[str, set[str]] = {}
        found = []
        for image, home in homes.items():
            if image in self.gone:
                continue
            box = self.strays.get(image, home)
            if box is None:
                found.append(image)
            elif image in again:
                if box not in fresh:
                    fresh[box] = self.answers.image_ids(box, self.since)
                if image not in fresh[box]:
                    found.append(image)
            elif image not in self.answers.image_ids(box):
                found.append(image)
        return found

    def ask(self, homes: Mapping[str, str | None], again: Collection[str] = (), report: Report = silent) -> list[str]:
        """Ask what is not known yet; the images of which the API says nothing at all.

        Raises:
            ApiError: the token is refused, the API is down, or it says of every image that it does not exist.
        """
        missing = self.lacks(homes, again)
        return self.client.run(self._ask(missing, homes, report)) if missing else []

    async def _ask(self, ids: list[str], homes: Mapping[str, str | None], report: Report) -> list[str]:
        progress, total, got = report("images", len(ids)), len(ids), 0
        missing = ids

        async def page(batch: Sequence[str]) -> set[str]:
            nonlocal got
            try:
                found = await self.client.ask_page(batch, FIELDS)
            except ApiError as error:
                if kind_of(error) == "fatal" or self.client.is_down or not error.may_pass:
                    raise
                return set()
            wanted = set(batch)
            here = [row for row in found if str(row.get("id")) in wanted]
            self._keep(here, homes)
            got += len(here)
            progress(got)
            return {str(row["id"]) for row in here}

        for _ in range(ROUNDS):
            batches = [missing[i : i + BATCH] for i in range(0, len(missing), BATCH)]
            answered = set().union(*await pooled(self.client.settings.connections, page, batches))
            missing = [i for i in missing if i not in answered]
            if not missing or self.client.is_down:
                break
        return await self._ask_alone(missing, homes, nothing_else=len(missing) == total)

    async def _ask_alone(self, ids: list[str], homes: Mapping[str, str | None], nothing_else: bool) -> list[str]:
        said = await pooled(self.client.settings.connections, lambda i: self.client.ask_image(i, FIELDS), ids)
        gone = [i for i, what in zip(ids, said, strict=True) if what == "gone"]
        if len(gone) > _SCOPELESS and nothing_else and not any(isinstance(what, dict) for what in said):
            raise ApiError(
                f"The API says of all {len(gone)} images asked that they do not exist. It says the same to a token "
                "without the right to read; check MAPILLARY_TOKEN.",
                code=100,
                subcode=33,
            )
        self._keep([what for what in said if isinstance(what, dict)], homes)
        if gone:
            at = time.time()
            self.answers.keep("gone", "", dict.fromkeys(gone, at))
            self.gone |= dict.fromkeys(gone, at)
        return [i for i, what in zip(ids, said, strict=True) if what == "unknown"]

    def _keep(self, found: Sequence[dict[str, Any]], homes: Mapping[str, str | None]) -> None:
        if not found:
            return
        said = columns(found)
        ids = said["id"]
        places = (
            said["computed_geometry.lon"],
            said["computed_geometry.lat"],
            said["geometry.lon"],
            said["geometry.lat"],
        )
        best = [(x, y) if x is not None else (lon, lat) for x, y, lon, lat in zip(*places, strict=True)]
        lon, lat = np.array(best, float).T
        by_home: dict[str, list[int]] = {}
        for i, home in enumerate(self.area.home_of(lon, lat)):
            by_home.setdefault(OUTSIDE if home is None else home, []).append(i)
        strays = {ids[i]: home for home, members in by_home.items() for i in members if homes.get(ids[i]) != home}
        if strays:  # kept first: an image whose home is not known would be asked again
            self.answers.keep("strays", "", strays)
            self.strays |= strays
        for home, members in by_home.items():
            whole = len(members) == len(ids)
            part = said if whole else {name: [values[i] for i in members] for name, values in said.items()}
            self.answers.keep_images(home, part)


def describe(
    register: Register,
    box: str,
    candidates: pd.DataFrame,
    sequences: pd.DataFrame,
    figures: Mapping[str, Any],
    previous: pd.DataFrame,
    asked_at: dt.datetime,
    select: Select | None = None,
    report: Report = silent,
) -> Description:
    """The images that lie in a box, and the certificate.

    Args:
        register: what is known of the city's images.
        box: the box.
        candidates: rows of ``sequence_images``.
        sequences: rows of ``sequence_ids``.
        figures: those of the box's :class:`~geo_assets.harvest.closure.Discovery`.
        previous: rows of ``image_metadata`` of the harvest before. Of those that no source names any more the API
            is asked, and what it does not know any more is a tombstone.
        asked_at: when the tiles were asked.
        select: which images are wanted as files.
        report: makes the reporter of progress.

    Raises:
        ApiError: the token is refused, or the API is down.
        SourceError: a polygon cannot be read.
    """
    homes = homes_of(candidates)
    alive = previous.loc[previous["tombstoned_at"].isna(), "image_id"] if len(previous) else []
    vanished = dict.fromkeys((i for i in alive if i not in homes), box)
    asked = homes | vanished
    unresolved = set(register.ask(asked, vanished, report))
    lists = {s: True for s, closed in zip(sequences["sequence_id"], sequences["closed"], strict=True) if closed}
    late: dict[str, str] = {}
    while True:  # until the sources agree: a sequence that only metadata name is listed too
        said, times = _wanted(register, box, asked)
        new = sorted({str(s) for s in said["sequence"] if s} - lists.keys())
        if not new:
            break
        found = register.client.run(list_sequences(register.client, register.answers, new, {}, register.since))
        lists |= {s: bool(ids) for s, ids in found.items()}
        more = {i: s for s, ids in found.items() for i in ids if i not in asked}
        late |= more
        asked |= dict.fromkeys(more)
        unresolved |= set(register.ask(dict.fromkeys(more)))
    everything = pd.concat([candidates, _late_rows(late)], ignore_index=True) if late else candidates
    have = set(said["id"])
    lost = {i for i, home in homes.items() if home == box and i not in have and i not in register.gone}
    unresolved |= {i for i in lost if register.strays.get(i, box) == box}  # a second look: nothing is silently short
    tombstones = {i for i in [*homes, *vanished, *late] if i in register.gone}
    table = _table(register, said, times, everything, previous, tombstones, asked_at)
    if select is not None and (select != Select() or bool(table["tombstoned_at"].notna().to_numpy().any())):
        from geo_assets.harvest.selection import select as selected

        table[["stratum", "dropped_by"]] = selected(table, select)[["stratum", "dropped_by"]]
    living = table.loc[table["tombstoned_at"].isna()]
    proof = certificate(
        everything,
        living,
        unclosed=[s for s in set(living["sequence_id"].dropna()) if not lists.get(s)],
        tombstones=tombstones,
        unresolved=unresolved,
        figures=figures,
        fetched_at=asked_at,
    )
    counts = {
        "n_candidates": len(everything),
        "n_outside": len(asked) - len(living) - len(tombstones) - len(unresolved),
        "n_dropped": int(living["dropped_by"].notna().sum()),
        "n_new": int((~living["image_id"].isin(previous["image_id"])).sum()) if len(previous) else len(living),
        "n_deleted": len(tombstones & set(alive)),
    }
    return Description(table, proof, counts)


def _wanted(register: Register, box: str, asked: Mapping[str, Any]) -> tuple[Columns, list[float]]:
    """What was said of the images of a box that were asked for or came astray, without those that are gone."""
    said, times = register.answers.images(box)
    if not times:
        return columns([]), []
    wanted = [(i in asked or i in register.strays) and i not in register.gone for i in said["id"]]
    if all(wanted):
        return said, times
    chosen = [i for i, keep in enumerate(wanted) if keep]
    return {name: [values[i] for i in chosen] for name, values in said.items()}, [times[i] for i in chosen]


def _table(
    register: Register,
    said: Columns,
    answered_at: Sequence[float],
    candidates: pd.DataFrame,
    previous: pd.DataFrame,
    tombstones: Collection[str],
    asked_at: dt.datetime,
) -> pd.DataFrame:
    given = [from_epoch(at) for at in answered_at]
    table = table_of(said, given)
    times = dict(zip(said["id"], given, strict=True))
    flags = candidates[["in_tiles", "in_computed", "in_closure", "in_audit", "in_late_closure"]].to_numpy(bool)
    mask = (flags @ np.array([1, 2, 4, 8, 4])) - 4 * (flags[:, 2] & flags[:, 4])
    masks = dict(zip(candidates["image_id"], mask.tolist(), strict=True))
    table["source_mask"] = [masks.get(i, 0) for i in table["image_id"]]
    table["in_aoi_original"] = register.area.contains(table["lon"], table["lat"])
    computed = table["computed_lon"].notna().to_numpy(bool)
    inside = register.area.contains(table["computed_lon"].astype(float), table["computed_lat"].astype(float))
    table["in_aoi_computed"] = pd.array(inside, "boolean")
    table.loc[~computed, "in_aoi_computed"] = pd.NA
    first = first_seen(previous)
    table["first_seen"] = [first.get(i, times[i]) for i in table["image_id"]]
    table["last_seen"] = [max(times[i], asked_at) for i in table["image_id"]]
    if not len(previous):
        return table
    dead = previous.loc[previous["image_id"].isin(list(tombstones)) | previous["tombstoned_at"].notna()].copy()
    dead = dead.loc[~dead["image_id"].isin(said["id"])]
    gone_at = [from_epoch(register.gone.get(i) or asked_at.timestamp()) for i in dead["image_id"]]
    dead["tombstoned_at"] = dead["tombstoned_at"].where(dead["tombstoned_at"].notna(), pd.Series(gone_at, dead.index))
    return pd.concat([table, dead], ignore_index=True) if len(dead) else table


def first_seen(previous: pd.DataFrame) -> dict[str, Any]:
    """When each image of an earlier harvest was seen first, by image id; images of which that is unknown are absent."""
    known = previous.loc[previous["first_seen"].notna()]
    return dict(zip(known["image_id"], known["first_seen"], strict=True))


def _late_rows(late: Mapping[str, str]) -> pd.DataFrame:
    flags = {name: np.zeros(len(late), bool) for name in ("in_tiles", "in_computed", "in_closure", "in_audit")}
    ids: dict[str, Any] = {"image_id": list(late), "sequence_id": list(late.values())}
    return pd.DataFrame({**ids, **flags, "in_late_closure": np.ones(len(late), bool), "home_box": None})


def homes_of(candidates: pd.DataFrame) -> dict[str, str | None]:
    """The box in which tiles or searches place each candidate, by image id; None where none does."""
    homes = (v if isinstance(v, str) else None for v in candidates["home_box"])
    return dict(zip(candidates["image_id"], homes, strict=True))
