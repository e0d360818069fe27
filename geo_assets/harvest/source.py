"""Where the images of a box come from: the API, a folder of photos, or nowhere (a pair outside the city's grid)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.harvest import images, photos
from geo_assets.harvest.answers import Answers
from geo_assets.harvest.area import Area
from geo_assets.harvest.certificate import certificate
from geo_assets.harvest.closure import Discovery, Report, silent, survey, touch
from geo_assets.harvest.coverage import PAD_M, Coverage, Tiles, box_row
from geo_assets.harvest.describe import Description, Register, describe, first_seen
from geo_assets.harvest.images import Harvest
from geo_assets.harvest.mapillary import Mapillary
from geo_assets.harvest.metadata import belongs, now
from geo_assets.harvest.selection import select
from geo_assets.lake import Lake
from geo_assets.settings import City
from geo_assets.tables import TABLES


@dataclass(frozen=True)
class Plan:
    """What lies in a box at first sight.

    Attributes:
        row: the row of table ``bbox_partitions``.
        images: the images that it counts, with ``lon``, ``lat`` and ``sequence_id``.
        rejects: a sentence for each thing of the city that was not taken.
    """

    row: pd.DataFrame
    images: pd.DataFrame
    rejects: list[str] = field(default_factory=list)


_NOTHING: dict[str, pd.DataFrame] = {}


@dataclass(frozen=True)
class Box:
    """A box of a city, and the lake that its files go to."""

    city: str
    name: str
    place: City
    lake: Lake

    @property
    def partition(self) -> dict[str, str]:
        """The partition as the lake wants it."""
        return {"city": self.city, "box": self.name}

    @property
    def area(self) -> Area:
        """The city that the box is part of."""
        return Area.of(self.place)

    def before(self, table: str) -> pd.DataFrame:
        """The rows of a table of the box as an earlier harvest left them; none where there was none."""
        if not self.lake.has(table, **self.partition):
            return _NOTHING.setdefault(table, TABLES[table].empty())
        rows = self.lake.read(table, None, **self.partition)
        lacking = [c for c in TABLES[table].column_names if c not in rows]
        return rows.assign(**dict.fromkeys(lacking)) if lacking else rows

    @property
    def changed_at(self) -> dt.datetime:
        """When the tiles' images in the box were first seen as they are now."""
        row = self.before("bbox_partitions")
        time = row["changed_at"].iloc[0] if len(row) else None
        return now() if time is None or pd.isna(time) else time.to_pydatetime()

    @property
    def since(self) -> float:
        """Answers from before this do not count [s since the epoch]: what changed has to be asked again.

        It is 0 until the box has a certificate. Until then nothing was concluded from its answers, and those that
        its neighbours' harvests brought are as good as its own.
        """
        return 0.0 if self.before("certificates").empty else self.changed_at.timestamp()

    @property
    def asked_at(self) -> dt.datetime:
        """When the tiles were asked last."""
        row = self.before("bbox_partitions")
        return row["fetched_at"].iloc[0].to_pydatetime() if len(row) else now()


def planned_row(
    box: Box,
    seen: Coverage,
    here: npt.NDArray[np.bool_ | np.int64],
    asked_at: dt.datetime,
    before: pd.DataFrame | None,
) -> pd.DataFrame:
    """The row of table ``bbox_partitions`` of a box.

    Args:
        box: the box.
        seen: the tiles over it.
        here: which of their images lie in it, as a mask or as indices.
        asked_at: when the tiles were asked.
        before: the row of the harvest before, if there was one.
    """
    images = seen.images.loc[here]
    bounds = box.place.grid.bounds(box.name).padded(PAD_M)
    tiles = [tile for tile in seen.tiles if touch(tile.bounds, bounds)]
    ids, sequences = list(images["image_id"]), images["sequence_id"]
    return box_row(ids, sequences, box.place.grid, box.name, tiles, asked_at, before)


def _placed(seen: Coverage) -> pd.DataFrame:
    lon, lat = seen.position
    return seen.images[["image_id", "sequence_id"]].assign(lon=lon, lat=lat)


class Source(Protocol):
    """What every source can say of a box, in the order in which it is asked."""

    @property
    def requests(self) -> int:
        """Requests sent so far."""
        ...

    def plan(self) -> Plan:
        """The box and what lies in it at first sight."""
        ...

    def discover(self, report: Report = silent) -> Discovery:
        """Every image that may lie in the box, and their sequences."""
        ...

    def describe(
        self, candidates: pd.DataFrame, sequences: pd.DataFrame, figures: Mapping[str, Any], report: Report = silent
    ) -> Description:
        """Metadata of the candidates that do lie in the box, and the certificate."""
        ...

    def fetch(self, metadata: pd.DataFrame, report: Report = silent) -> Harvest:
        """The files of the box, put into the lake."""
        ...


@dataclass(frozen=True)
class Api:
    """A box of a city that an imagery server serves."""

    box: Box
    client: Mapillary

    @property
    def requests(self) -> int:
        """Requests sent so far."""
        return self.client.requests.total()

    def plan(self) -> Plan:
        """Count the images of the tiles in the box; a tile younger than the settings say comes from the lake."""
        area, name = self.box.area, self.box.name
        tiles = Tiles(self.client, self.box.lake, self.box.city, area)
        seen = tiles.coverage([area.grid.bounds(name)], self.client.settings.tiles_fresh_for_s)
        here = area.home_of(*seen.position) == name
        return Plan(planned_row(self.box, seen, here, now(), self.box.before("bbox_partitions")), _placed(seen))

    def discover(self, report: Report = silent) -> Discovery:
        """Tiles, sequence lists and an audit by searches."""
        area, since = self.box.area, self.box.since
        tiles = Tiles(self.client, self.box.lake, self.box.city, area)
        seen = tiles.coverage(tiles.districts([area.grid.bounds(self.box.name)]))
        with self._answers() as answers:
            found = survey(self.client, answers, area, seen, [self.box.name], since, report)
        return found.of_box(self.box.name)

    def describe(
        self, candidates: pd.DataFrame, sequences: pd.DataFrame, figures: Mapping[str, Any], report: Report = silent
    ) -> Description:
        """Ask the API about the candidates; a deleted image is a tombstone, silence is unresolved."""
        with self._answers() as answers:
            register = Register(self.client, answers, self.box.area, self.box.since)
            return describe(
                register,
                self.box.name,
                candidates,
                sequences,
                figures,
                self.box.before("image_metadata"),
                self.box.asked_at,
                self.box.place.select,
                report,
            )

    def _answers(self) -> Answers:
        return Answers(self.box.lake, self.box.city, self.client.settings.answers_fresh_for_s)

    def fetch(self, metadata: pd.DataFrame, report: Report = silent) -> Harvest:
        """Download what the lake lacks."""
        progress = report("files", len(metadata))
        return images.fetch(self.client, self.box.lake, metadata, self.box.partition, progress)


@dataclass(frozen=True)
class PhotoFolder:
    """A box of a city that is a folder of photos."""

    box: Box
    folder: Path
    requests: int = 0

    def plan(self) -> Plan:
        """Count the photos in the box."""
        found = photos.scan(self.folder)
        here = found.photos.loc[belongs(found.photos, self.box.area, self.box.name)]
        grid, before = self.box.place.grid, self.box.before("bbox_partitions")
        row = box_row(list(here["image_id"]), here["sequence_id"], grid, self.box.name, [], now(), before)
        return Plan(row, found.photos, [str(reason) for reason in found.rejects["reason"]])

    def discover(self, report: Report = silent) -> Discovery:
        """List the photos in the box; a subfolder is a sequence."""
        found = photos.scan(self.folder).photos
        here = belongs(found, self.box.area, self.box.name)
        sequences = photos.sequence_rows(found.assign(here=here))
        return Discovery(sequences, photos.candidate_rows(found.loc[here]), {})

    def describe(
        self, candidates: pd.DataFrame, sequences: pd.DataFrame, figures: Mapping[str, Any], report: Report = silent
    ) -> Description:
        """Take the EXIF of the photos in the box; a photo that has gone since is a tombstone."""
        found = photos.scan(self.folder)
        here = found.photos.loc[belongs(found.photos, self.box.area, self.box.name)].reset_index(drop=True)
        before = self.box.before("image_metadata")
        first = first_seen(before)
        seen = [first.get(i, t) for i, t in zip(here["image_id"], here["fetched_at"], strict=True)]
        here = here.assign(first_seen=seen, last_seen=here["fetched_at"], source_mask=0, **self._chosen(here))
        proof = certificate(
            candidates,
            here,
            unclosed=[],
            tombstones=set(candidates["image_id"]) - set(here["image_id"]),
            unresolved=[],
            figures=figures,
            fetched_at=now(),
        )
        return Description(here, proof, {"n_candidates": len(candidates), "n_rejected": len(found.rejects)})

    def _chosen(self, photos: pd.DataFrame) -> dict[str, Any]:
        chosen = select(photos, self.box.place.select)
        return {name: chosen[name] for name in ("stratum", "dropped_by")}

    def fetch(self, metadata: pd.DataFrame, report: Report = silent) -> Harvest:
        """Copy the photos, byte for byte."""
        return photos.copy(self.box.lake, metadata, self.folder, self.box.partition)


@dataclass(frozen=True)
class Nowhere:
    """A pair of city and box outside the city's grid: empty tables, no request."""

    box: Box
    requests: int = 0

    def plan(self) -> Plan:
        """The bounds that the box would have, and no images."""
        none = pd.DataFrame(columns=["image_id", "sequence_id", "lon", "lat"])
        return Plan(box_row([], [], self.box.place.grid, self.box.name, [], now()), none)

    def discover(self, report: Report = silent) -> Discovery:
        """Nothing."""
        return Discovery(TABLES["sequence_ids"].empty(), TABLES["sequence_images"].empty(), {})

    def describe(
        self, candidates: pd.DataFrame, sequences: pd.DataFrame, figures: Mapping[str, Any], report: Report = silent
    ) -> Description:
        """No rows and no certificate: there is nothing to certify."""
        return Description(TABLES["image_metadata"].empty(), TABLES["certificates"].empty(), {})

    def fetch(self, metadata: pd.DataFrame, report: Report = silent) -> Harvest:
        """No files."""
        return Harvest(TABLES["image_files"].empty(), 0, 0)
