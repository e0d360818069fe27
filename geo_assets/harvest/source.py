"""Where the images of a box come from: the API, a folder of photos, or nowhere (a pair outside the city's grid)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from geo_assets.harvest import images, photos
from geo_assets.harvest.certificate import certificate
from geo_assets.harvest.closure import Discovery, Report, discover, silent
from geo_assets.harvest.coverage import box_row, coverage
from geo_assets.harvest.images import Harvest
from geo_assets.harvest.mapillary import Images, Mapillary
from geo_assets.harvest.metadata import FIELDS, belongs, now, position, rows
from geo_assets.harvest.tiles import POSITIONS
from geo_assets.lake import Lake
from geo_assets.settings import City
from geo_assets.tables import TABLES

_CHUNK = 2000


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


@dataclass(frozen=True)
class Description:
    """Rows of tables ``image_metadata`` and ``certificates`` of a box, and counts for people."""

    metadata: pd.DataFrame
    certificate: pd.DataFrame
    figures: dict[str, int]


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
        grid, fresh_for_s = self.box.place.grid, self.client.settings.tiles_fresh_for_s
        bounds = grid.bounds(self.box.name)
        seen = coverage(self.client, self.box.lake, self.box.city, bounds, fresh_for_s=fresh_for_s)
        row = box_row(seen.images, grid, self.box.name, seen.tiles, now())
        return Plan(row, seen.images)

    def discover(self, report: Report = silent) -> Discovery:
        """Tiles, sequence lists and an audit by searches."""
        bounds = self.box.place.grid.bounds(self.box.name)
        seen = coverage(self.client, self.box.lake, self.box.city, bounds)
        return discover(self.client, seen, bounds, report)

    def describe(
        self, candidates: pd.DataFrame, sequences: pd.DataFrame, figures: Mapping[str, Any], report: Report = silent
    ) -> Description:
        """Ask the metadata of every candidate, and keep those whose exact position lies in the box."""
        fetched_at = now()
        answer = self._ask([str(i) for i in candidates["image_id"]], report)
        everything = rows(answer.rows, fetched_at)
        place = self.box.place
        metadata = everything.loc[belongs(everything, place.grid, self.box.name, place.aoi)].reset_index(drop=True)
        proof = certificate(
            candidates,
            sequences,
            metadata,
            tombstones=answer.tombstones,
            unresolved=answer.unresolved,
            figures=figures,
            fetched_at=fetched_at,
        )
        lon, _ = position(everything)
        counts = {
            "n_candidates": len(candidates),
            "n_outside": len(everything) - len(metadata),
            "n_without_position": int(pd.isna(lon).sum()),
        }
        return Description(metadata, proof, counts)

    def fetch(self, metadata: pd.DataFrame, report: Report = silent) -> Harvest:
        """Download what the lake lacks."""
        progress = report("files", len(metadata))
        return images.fetch(self.client, self.box.lake, metadata, self.box.partition, progress)

    def _ask(self, ids: list[str], report: Report) -> Images:
        answer, progress = Images(), report("images", len(ids))
        for start in range(0, len(ids), _CHUNK):
            part = self.client.images(ids[start : start + _CHUNK], FIELDS)
            answer.rows += part.rows
            answer.tombstones += part.tombstones
            answer.unresolved += part.unresolved
            progress(start + len(part.rows))
        return answer


@dataclass(frozen=True)
class PhotoFolder:
    """A box of a city that is a folder of photos."""

    box: Box
    folder: Path
    requests: int = 0

    def plan(self) -> Plan:
        """Count the photos in the box."""
        found = photos.scan(self.folder)
        row = box_row(found.photos, self.box.place.grid, self.box.name, [], now())
        return Plan(row, found.photos, [str(reason) for reason in found.rejects["reason"]])

    def discover(self, report: Report = silent) -> Discovery:
        """List the photos in the box; a subfolder is a sequence."""
        found = photos.scan(self.folder).photos
        here = belongs(found, self.box.place.grid, self.box.name, self.box.place.aoi)
        sequences = photos.sequence_rows(found.assign(here=here))
        return Discovery(sequences, photos.candidate_rows(found.loc[here]), {})

    def describe(
        self, candidates: pd.DataFrame, sequences: pd.DataFrame, figures: Mapping[str, Any], report: Report = silent
    ) -> Description:
        """Take the EXIF of the photos in the box; a photo that has gone since is a tombstone."""
        found = photos.scan(self.folder)
        place = self.box.place
        here = found.photos.loc[belongs(found.photos, place.grid, self.box.name, place.aoi)].reset_index(drop=True)
        proof = certificate(
            candidates,
            sequences,
            here,
            tombstones=set(candidates["image_id"]) - set(here["image_id"]),
            unresolved=[],
            figures=figures,
            fetched_at=now(),
        )
        return Description(here, proof, {"n_candidates": len(candidates), "n_rejected": len(found.rejects)})

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
        none = pd.DataFrame(columns=POSITIONS)
        return Plan(box_row(none, self.box.place.grid, self.box.name, [], now()), none)

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
