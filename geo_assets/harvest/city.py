"""The harvest of a whole city: every box through the functions that the assets use, in one process.

Requests are made for a district of boxes at a time, so that no request is made half full; every answer is kept in
the lake, so a killed harvest goes on where it was. Boxes whose tiles name the same images as before are left alone.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.grid import Bounds
from geo_assets.harvest import images
from geo_assets.harvest.answers import Answers
from geo_assets.harvest.area import Area
from geo_assets.harvest.audit import ASKS, EMPTY_ASKS
from geo_assets.harvest.certificate import city_certificate
from geo_assets.harvest.closure import Discovery, Report, silent, survey
from geo_assets.harvest.coverage import DISTRICT_ZOOM, Coverage, Tiles, content_hash
from geo_assets.harvest.describe import Description, Register, describe, homes_of
from geo_assets.harvest.images import Harvest
from geo_assets.harvest.mapillary import BATCH, Mapillary
from geo_assets.harvest.metadata import now
from geo_assets.harvest.plan import audit_cells
from geo_assets.harvest.source import Box, Source, planned_row
from geo_assets.harvest.tiles import Tile, tile_at
from geo_assets.lake import Lake
from geo_assets.settings import City
from geo_assets.tables import TABLES, to_pandas

FILE_BYTES = {"256": 12_000, "1024": 90_000, "2048": 265_000, "original": 3_000_000}
"""Mean size of a file, as others have measured; for estimates alone."""

LATENCY_S, BITS_PER_S = 1.0, 100e6
"""What a request takes and a line carries, for estimates alone."""

GROUP_BYTES = 20_000_000
"""Tiles that are read together: about 170,000 images."""


@dataclass
class Outcome:
    """What became of a city's harvest; :meth:`as_dict` is the JSON of the command line."""

    city: str
    certificate: pd.DataFrame
    requests: int = 0
    seconds: float = 0.0
    changed: list[str] = field(default_factory=list)
    n_new: int = 0
    n_deleted: int = 0
    n_files: int = 0
    n_dead: int = 0

    @property
    def complete(self) -> bool:
        """Whether every box is complete."""
        return bool(self.certificate["complete"].iloc[0])

    def as_dict(self) -> dict[str, Any]:
        """Figures under plain names."""
        row = self.certificate.iloc[0]
        figures = {str(k): (None if pd.isna(v) else v.item() if hasattr(v, "item") else v) for k, v in row.items()}
        short = {name: figures[f"n_{name}"] for name in ("unresolved", "unverifiable", "unclosed", "failed_tiles")}
        own = {
            "city": self.city,
            "requests": self.requests,
            "complete": self.complete,
            "seconds": round(self.seconds, 3),
            "n_boxes_changed": len(self.changed),
            "n_new": self.n_new,
            "n_deleted": self.n_deleted,
            "n_files": self.n_files,
            "n_dead": self.n_dead,
        }
        return figures | short | own | {"fetched_at": str(figures["fetched_at"])}


@dataclass(frozen=True)
class Estimate:
    """What a harvest will ask for, by the tiles alone."""

    n_images: int
    n_sequences: int
    n_boxes: int
    n_failed_tiles: int
    tiles: int
    sequences: int
    searches: int
    pages: int
    bytes: int
    graph_hours: float
    file_hours: float

    @property
    def requests(self) -> int:
        """Requests without files."""
        return self.tiles + self.sequences + self.searches + self.pages


class CityHarvest:
    """The harvest of one city.

    Args:
        client: the API.
        lake: where tables, files and answers lie.
        name: name of the city.
        city: its settings.
        report: makes reporters of progress.
        renew: ask again about boxes that have not changed.
    """

    def __init__(
        self, client: Mapillary, lake: Lake, name: str, city: City, report: Report = silent, renew: bool = False
    ) -> None:
        self.client, self.lake, self.name, self.city, self.report = client, lake, name, city, report
        self.area = Area.of(city)
        self.tiles = Tiles(client, lake, name, self.area)
        self.answers = Answers(lake, name, 0.0 if renew else client.settings.answers_fresh_for_s)
        self.renew = renew
        self._before: dict[str, dict[str, pd.DataFrame]] = {}
        self._asked_at = now()  # one time for all boxes: what one of them asks counts for its neighbours
        self.outcome = Outcome(name, TABLES["city_certificates"].empty())

    def run(self, files: bool = False) -> Outcome:
        """Harvest every box of the city.

        Args:
            files: fetch the image files as well.

        Raises:
            ApiError: the token is refused, or the API is down. What was answered until then is kept.
            SourceError: the city's polygon cannot be read.
        """
        began, self._asked_at = time.monotonic(), now()
        with self.answers:
            register = Register(self.client, self.answers, self.area)
            self._before = {table: self._rows(table) for table in ("bbox_partitions", "certificates")}
            for boxes in self._groups():
                self._harvest(boxes, register)
            self._take_in_strays(register)
        self.answers.prune()
        if files:
            self._fetch_files()
        self.outcome.certificate = certify(self.lake, self.name, boxes_of(self.city))
        self.outcome.requests = self.client.requests.total()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def estimate(self, files: bool = False) -> Estimate:
        """What :meth:`run` would ask for, were nothing kept; only tiles are asked."""
        n_images = 0
        sequences: set[str] = set()
        tiles, failed = set(), set()
        searches: dict[Bounds, int] = {}
        for boxes in self._groups():
            seen = self._coverage(boxes)
            homes = self.area.home_of(*seen.position)
            here = np.isin(homes, list(boxes))
            n_images += int(here.sum())
            sequences |= {s for s in seen.images["sequence_id"].to_numpy(object)[here] if s}
            lon, lat = seen.position
            tiles |= set(seen.tiles)
            failed |= set(seen.failed)
            for district in seen.districts:
                cells = audit_cells(lon, lat, district)
                searches[district] = sum(ASKS if len(members) else EMPTY_ASKS for _, members in cells)
        settings, n_pages = self.client.settings, -(-n_images // BATCH)
        size = FILE_BYTES[settings.image_size] * n_images if files else 0
        n_searches, n_tiles = sum(searches.values()), 2 * len(tiles)
        graph = len(sequences) + n_searches + n_pages
        slowest_s = max(
            n_searches / settings.searches_per_minute * 60,
            (len(sequences) + n_pages) / settings.entities_per_minute * 60,
            graph * LATENCY_S / settings.connections,
        )
        return Estimate(
            *(n_images, len(sequences), len(boxes_of(self.city)), len(failed)),
            *(n_tiles, len(sequences), n_searches, n_pages, size),
            graph_hours=(slowest_s + n_tiles / settings.tiles_per_minute * 60) / 3600,
            file_hours=size * 8 / BITS_PER_S / 3600,
        )

    # -- districts ------------------------------------------------------------------------------------------

    def _groups(self) -> list[list[str]]:
        """Boxes that are harvested together: whole districts, as many as memory bears. Their tiles are fetched."""
        districts: dict[Tile, list[str]] = {}
        for box in boxes_of(self.city):
            districts.setdefault(tile_at(*self.area.grid.bounds(box).centre, DISTRICT_ZOOM), []).append(box)
        bounds = [self.area.grid.bounds(box) for boxes in districts.values() for box in boxes]
        fresh_for_s = 0.0 if self.renew else self.client.settings.tiles_fresh_for_s
        self.tiles.fetch(self.tiles.districts(bounds), fresh_for_s)
        groups: list[list[str]] = []
        room = 0
        for tile in sorted(districts):
            size = self.tiles.bytes_over(tile.bounds)
            if size > room:
                groups.append([])
                room = GROUP_BYTES
            groups[-1] += districts[tile]
            room -= size
        return groups

    def _coverage(self, boxes: Collection[str]) -> Coverage:
        return self.tiles.coverage(self.tiles.districts([self.area.grid.bounds(box) for box in boxes]))

    def _harvest(self, boxes: list[str], register: Register) -> None:
        seen = self._coverage(boxes)
        homes = self.area.home_of(*seen.position)
        members: dict[Any, Any] = pd.Series(np.arange(len(homes))).groupby(homes).indices
        changed, asked_at = [], self._asked_at
        rows: dict[str, pd.DataFrame] = {}
        for name in boxes:
            box = Box(self.name, name, self.city, self.lake)
            here = np.asarray(members.get(name, []), int)
            rows[name] = planned_row(box, seen, here, asked_at, self._before["bbox_partitions"].get(name))
            if self.renew or not self._is_done(name, rows[name], seen):
                changed.append(name)
        if not changed:
            return
        for name in changed:
            if rows[name]["n_images"].iloc[0] == 0 and name not in self._before["bbox_partitions"]:
                continue  # nothing there, nothing to say but the certificate
            self.lake.write("bbox_partitions", rows[name], note=self._note(name), city=self.name, box=name)
        since = max((self._since(name, rows[name]) for name in changed), default=0.0)
        found = survey(self.client, self.answers, self.area, seen, changed, since, self.report)
        discoveries = {name: found.of_box(name) for name in changed}
        register.renew(since)
        homes_by_id: dict[str, str | None] = {}
        for discovery in discoveries.values():
            homes_by_id |= homes_of(discovery.images)
        register.ask(homes_by_id, report=self.report)
        for name, discovery in discoveries.items():
            self._write(name, discovery, register, asked_at)
        self.outcome.changed += changed
        self.answers.forget_ids()

    def _rows(self, table: str) -> dict[str, pd.DataFrame]:
        """The rows that the boxes of the city have in a table of one row a box."""
        everything = to_pandas(
            self.lake.connect(table).sql(f"select * from {table} where city = ?", params=[self.name]).to_arrow_table()
        )
        return {str(everything["box"].iloc[i]): everything.iloc[[i]] for i in range(len(everything))}

    def _since(self, name: str, row: pd.DataFrame) -> float:
        """Answers from before this do not count for a box; see :attr:`geo_assets.harvest.source.Box.since`."""
        proof = self._before["certificates"].get(name)
        if proof is None:
            return 0.0
        still_empty = name not in self._before["bbox_partitions"] and row["n_images"].iloc[0] == 0
        return (proof["fetched_at"] if still_empty else row["changed_at"]).iloc[0].timestamp()

    def _is_done(self, name: str, row: pd.DataFrame, seen: Coverage) -> bool:
        """Whether the box was harvested completely and the tiles name the same images as then."""
        before, proof = self._before["bbox_partitions"].get(name), self._before["certificates"].get(name)
        if proof is None or not proof["complete"].iloc[0]:
            return False
        age_s = (now() - proof["fetched_at"].iloc[0]).total_seconds()
        was = content_hash([]) if before is None else before["coverage_hash"].iloc[0]
        same = was == row["coverage_hash"].iloc[0]
        failed = bool(seen.failed_over(self.area.grid.bounds(name)))
        return bool(same and not failed and age_s < self.client.settings.answers_fresh_for_s)

    def _write(self, name: str, found: Discovery, register: Register, asked_at: dt.datetime) -> None:
        box, note = Box(self.name, name, self.city, self.lake), self._note(name)
        previous = box.before("image_metadata")
        told = describe(
            register, name, found.images, found.sequences, found.figures, previous, asked_at, self.city.select
        )
        if len(found.images) or len(previous):
            self.lake.write("sequence_images", found.images, note=note, **box.partition)
            self.lake.write("sequence_ids", found.sequences, note=note | {"figures": found.figures}, **box.partition)
        self._conclude(box, told, register)

    def _conclude(self, box: Box, told: Description, register: Register) -> None:
        """Write a box's certificate, and its images if it is complete: what an earlier harvest left stays else."""
        note, n_strays = self._note(box.name), sum(home == box.name for home in register.strays.values())
        proof = told.certificate
        complete = bool(proof["complete"].iloc[0])
        if complete and (len(told.metadata) or self.lake.has("image_metadata", **box.partition)):
            self.lake.write("image_metadata", told.metadata, note=note, **box.partition)
        self.lake.write("certificates", proof, note=note | {"n_strays": n_strays}, **box.partition)
        if complete:
            self.outcome.n_new += told.figures["n_new"]
            self.outcome.n_deleted += told.figures["n_deleted"]

    def _take_in_strays(self, register: Register) -> None:
        """Images that turned out to lie in a box that was written before they were asked about, in this run or not."""
        n_strays_of = Counter(register.strays.values())
        for name in boxes_of(self.city):
            n_strays, box = n_strays_of[name], Box(self.name, name, self.city, self.lake)
            written = n_strays and self.lake.has("certificates", **box.partition)
            if not written or n_strays <= self.lake.note("certificates", **box.partition).get("n_strays", 0):
                continue
            candidates, sequences = box.before("sequence_images"), box.before("sequence_ids")
            has = self.lake.has("sequence_ids", **box.partition)
            figures = self.lake.note("sequence_ids", **box.partition).get("figures", {}) if has else {}
            previous = box.before("image_metadata")
            told = describe(register, name, candidates, sequences, figures, previous, box.asked_at, self.city.select)
            self._conclude(box, told, register)

    def _note(self, name: str) -> dict[str, Any]:
        return {"bounds": self.area.grid.bounds(name).as_list()}

    # -- files ----------------------------------------------------------------------------------------------

    def _fetch_files(self) -> None:
        with_images = [p["box"] for p in self.lake.partitions("image_metadata") if p.get("city") == self.name]
        for name in with_images:
            box = Box(self.name, name, self.city, self.lake)
            metadata = self.lake.read("image_metadata", None, **box.partition)
            found = images.fetch(
                self.client, self.lake, metadata, box.partition, self.report(f"files of {name}", len(metadata))
            )
            self._count_files(box, found)

    def _count_files(self, box: Box, found: Harvest) -> None:
        note = self._note(box.name) | {"size": self.client.settings.image_size}
        self.lake.write("image_files", found.files, note=note, **box.partition)
        done = int((found.files["status"] == "done").to_numpy(bool).sum())
        self.outcome.n_files += done
        self.outcome.n_dead += len(found.files) - done


def boxes_of(city: City) -> list[str]:
    """The boxes that hold any of a city's area.

    Raises:
        SourceError: the city's polygon cannot be read.
    """
    area = Area.of(city)
    return [box for box in area.grid if area.touches(area.grid.bounds(box))]


def certify(lake: Lake, city: str, boxes: Collection[str]) -> pd.DataFrame:
    """Write and return the certificate of a city: what those of its boxes say together.

    Args:
        lake: where they lie.
        city: the city.
        boxes: the boxes that hold any of the city.
    """
    con = lake.connect("certificates", "image_metadata")
    asked = con.sql("select * from certificates where city = ? order by box", params=[city])
    proofs = to_pandas(asked.to_arrow_table())
    proofs = proofs.loc[proofs["box"].isin(list(boxes))]
    columns = [name for name, *_ in con.execute("describe image_metadata").fetchall()]
    living = "tombstoned_at is null" if "tombstoned_at" in columns else "true"
    count = con.execute(
        f"select count(distinct sequence_id) from image_metadata where city = ? and {living}", [city]
    ).fetchone()
    row = city_certificate(proofs, len(boxes), int(count[0]) if count else 0, now())
    lake.write("city_certificates", row, city=city)
    return row


def harvest_photos(make: Callable[[str], Source], lake: Lake, name: str, city: City, files: bool = False) -> Outcome:
    """Harvest a city that is a folder of photos, box by box.

    Args:
        make: the source of a box.
        lake: where tables and files lie.
        name: name of the city.
        city: its settings.
        files: copy the files as well.

    Raises:
        ConfigError: the folder does not exist.
    """
    began, outcome = time.monotonic(), Outcome(name, TABLES["city_certificates"].empty())
    for box_name in city.grid:
        box, source = Box(name, box_name, city, lake), make(box_name)
        note = {"bounds": city.grid.bounds(box_name).as_list()}
        lake.write("bbox_partitions", source.plan().row, note=note, **box.partition)
        found = source.discover()
        told = source.describe(found.images, found.sequences, found.figures)
        lake.write("sequence_images", found.images, note=note, **box.partition)
        lake.write("sequence_ids", found.sequences, note=note | {"figures": found.figures}, **box.partition)
        lake.write("certificates", told.certificate, note=note, **box.partition)
        lake.write("image_metadata", told.metadata, note=note, **box.partition)
        outcome.changed.append(box_name)
        if files:
            got = source.fetch(told.metadata)
            lake.write("image_files", got.files, note=note | {"size": "original"}, **box.partition)
            outcome.n_files += int((got.files["status"] == "done").to_numpy(bool).sum())
            outcome.n_dead += int((got.files["status"] == "dead").to_numpy(bool).sum())
    outcome.certificate = certify(lake, name, list(city.grid))
    outcome.seconds = time.monotonic() - began
    return outcome
