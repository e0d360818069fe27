"""What the coverage tiles say of a place. A tile covers many boxes, so the lake keeps it for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.errors import ApiError, SourceError
from geo_assets.grid import Bounds, Grid
from geo_assets.harvest.area import Area
from geo_assets.harvest.mapillary import DATASETS, Dataset, Mapillary, kind_of, pooled
from geo_assets.harvest.tiles import POSITIONS, Tile, images_of, tiles_over
from geo_assets.lake import Lake

PAD_M = 25.0
"""Tiles place images on a grid of half a metre, and two data sets place them differently: look a little further."""

DISTRICT_ZOOM = 12
"""Searches are planned for districts of 4 x 4 tiles: empty land is searched in few large cells, and a plan for one
box needs no tile far away."""

_KEPT_IMAGES = 500_000


@dataclass(frozen=True)
class Coverage:
    """The images that the tiles over some districts name.

    Attributes:
        districts: rectangles in degrees that were read.
        tiles: the tiles that were read.
        failed: data set and tile, as ``original 14/x/y``, of the tiles that could not be had.
        images: one row an image: ``image_id``, ``sequence_id``, ``lon``, ``lat`` (recorded), ``computed_lon``,
            ``computed_lat``, ``captured_at_ms`` (0 where unknown), ``in_tiles`` and ``in_computed`` (which set
            names it); a position that a set does not give is NaN.
    """

    districts: list[Bounds]
    tiles: list[Tile]
    failed: list[str]
    images: pd.DataFrame

    @property
    def position(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Longitude and latitude of each image: the computed ones if there are any, else the recorded ones [n]."""
        names = ["lon", "lat", "computed_lon", "computed_lat"]
        lon, lat, computed_lon, computed_lat = self.images[names].to_numpy(float).T
        has = np.isfinite(computed_lon)
        return np.where(has, computed_lon, lon), np.where(has, computed_lat, lat)

    def failed_over(self, bounds: Bounds) -> list[str]:
        """The failed tiles that touch a rectangle."""
        here = {str(tile) for tile in tiles_over(bounds)}
        return [name for name in self.failed if name.split()[1] in here]


class Tiles:
    """The tiles of a city: from the lake where it has them, else from the API; decoded once.

    Args:
        client: who asks for tiles that the lake lacks.
        lake: where tiles are kept, as ``files/tiles/city=<city>/<dataset>-<z>-<x>-<y>.mvt``.
        city: the city whose tiles they are.
        area: what belongs to it.
    """

    def __init__(self, client: Mapillary, lake: Lake, city: str, area: Area) -> None:
        self.client, self.lake, self.city, self.area = client, lake, city, area
        self._decoded: dict[tuple[str, Tile, float], pd.DataFrame] = {}
        self._failed: set[tuple[Dataset, Tile]] = set()

    def over(self, bounds: Bounds) -> list[Tile]:
        """The tiles that a rectangle grown by :data:`PAD_M` touches, as far as they hold any of the city."""
        return [t for t in tiles_over(bounds.padded(PAD_M)) if self.area.touches(t.bounds.padded(PAD_M))]

    def districts(self, bounds: Iterable[Bounds]) -> list[Bounds]:
        """The districts that rectangles touch, cut off where the city ends."""
        edge = self.area.bounds.padded(PAD_M)
        names = {tile for b in bounds for tile in tiles_over(b.padded(PAD_M), DISTRICT_ZOOM)}
        cut = [_common(tile.bounds, edge) for tile in sorted(names)]
        return [b for b in cut if b is not None and self.area.touches(b.padded(PAD_M))]

    def coverage(self, bounds: Sequence[Bounds], fresh_for_s: float = float("inf")) -> Coverage:
        """Read the tiles over some rectangles.

        Args:
            bounds: rectangles in degrees.
            fresh_for_s: age up to which a kept tile is believed [s].

        Raises:
            ApiError: the token is refused. A tile that cannot be had for another reason is in ``failed``; an older
                copy is used if there is one.
        """
        self.fetch(bounds, fresh_for_s)
        return self.kept(bounds)

    def kept(self, bounds: Sequence[Bounds]) -> Coverage:
        """What the kept tiles over some rectangles say; nothing is asked."""
        wanted = self.wanted(bounds)
        tiles = sorted({tile for _, tile in wanted})
        failed = [f"{dataset} {tile}" for dataset, tile in wanted if (dataset, tile) in self._failed]
        frames: dict[str, list[pd.DataFrame]] = {d: [self._images(d, tile) for tile in tiles] for d in DATASETS}
        return Coverage(list(bounds), tiles, failed, _merged(_unique(frames["original"]), _unique(frames["computed"])))

    def fetch(self, bounds: Sequence[Bounds], fresh_for_s: float = float("inf")) -> list[tuple[Dataset, Tile]]:
        """Bring the tiles over some rectangles into the lake, as far as they can be had; what :meth:`coverage` reads.

        Raises:
            ApiError: the token is refused.
        """
        if missing := self.stale(bounds, fresh_for_s):
            self.ask(missing)
        return self.wanted(bounds)

    def wanted(self, bounds: Iterable[Bounds]) -> list[tuple[Dataset, Tile]]:
        """The tiles of both data sets over some rectangles."""
        tiles = sorted({tile for b in bounds for tile in self.over(b)})
        return [(dataset, tile) for tile in tiles for dataset in DATASETS]

    def stale(self, bounds: Iterable[Bounds], fresh_for_s: float) -> list[tuple[Dataset, Tile]]:
        """Of the tiles over some rectangles those that the lake has not, or has for so long already."""
        return [w for w in self.wanted(bounds) if self._age_s(*w) >= fresh_for_s]

    def ask(self, which: Sequence[tuple[Dataset, Tile]], within_s: float | None = None) -> set[tuple[Dataset, Tile]]:
        """Ask for some tiles and keep them; those that could not be had, or not within so many seconds.

        Raises:
            ApiError: the token is refused.
        """
        failed = self.client.run(self._fetch(list(which), within_s))
        self._failed = (self._failed - set(which)) | failed
        return failed

    def bytes_over(self, bounds: Bounds) -> int:
        """Size of the kept tiles over a rectangle, which goes with the number of their images [B]."""
        keys = [self._key(dataset, tile) for tile in self.over(bounds) for dataset in DATASETS]
        return sum(self.lake.size(key) for key in keys if self.lake.exists(key))

    async def _fetch(
        self, wanted: list[tuple[Dataset, Tile]], within_s: float | None = None
    ) -> set[tuple[Dataset, Tile]]:
        failed = set(wanted)

        async def one(item: tuple[Dataset, Tile]) -> None:
            dataset, tile = item
            try:
                data = await self.client.ask_tile(dataset, tile.z, tile.x, tile.y)
                frame = images_of(data, tile)  # decoded before it is kept, so that only tiles are kept
            except ApiError as error:
                if kind_of(error) == "fatal":
                    raise
            except SourceError:
                pass
            else:
                failed.discard(item)
                key = self._key(dataset, tile)
                self.lake.put_bytes(key, data)
                self._remember((dataset, tile, self.lake.modified(key)), frame)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pooled(2, one, wanted), within_s)
        return failed

    def _images(self, dataset: Dataset, tile: Tile) -> pd.DataFrame:
        key = self._key(dataset, tile)
        if not self.lake.exists(key):
            return images_of(b"", tile)
        version = (dataset, tile, self.lake.modified(key))
        if version not in self._decoded:
            try:
                frame = images_of(self.lake.get_bytes(key), tile)
            except SourceError:
                self.lake.remove(key)  # a spoilt copy is fetched again
                return images_of(b"", tile)
            self._remember(version, frame)
        return self._decoded[version]

    def _remember(self, version: tuple[str, Tile, float], frame: pd.DataFrame) -> None:
        while self._decoded and sum(map(len, self._decoded.values())) > _KEPT_IMAGES:
            del self._decoded[next(iter(self._decoded))]
        self._decoded[version] = frame.dropna(subset=["image_id"])

    def _key(self, dataset: Dataset, tile: Tile) -> str:
        return self.lake.key("tiles", f"{DATASETS[dataset]}-{tile.z}-{tile.x}-{tile.y}.mvt", city=self.city)

    def _age_s(self, dataset: Dataset, tile: Tile) -> float:
        key = self._key(dataset, tile)
        if not self.lake.exists(key):
            return float("inf")
        # A spoilt copy counts as none.
        self._images(dataset, tile)
        return dt.datetime.now(dt.UTC).timestamp() - self.lake.modified(key) if self.lake.exists(key) else float("inf")


def _common(a: Bounds, b: Bounds) -> Bounds | None:
    west, south, east, north = max(a.west, b.west), max(a.south, b.south), min(a.east, b.east), min(a.north, b.north)
    return Bounds(west, south, east, north) if west < east and south < north else None


def _unique(frames: list[pd.DataFrame]) -> pd.DataFrame:
    # Render buffers repeat images in neighbouring tiles.
    full = [frame for frame in frames if len(frame)]
    everything = pd.concat(full, ignore_index=True) if full else images_of(b"", Tile(14, 0, 0))
    return everything.drop_duplicates("image_id").reset_index(drop=True)


def _merged(original: pd.DataFrame, computed: pd.DataFrame) -> pd.DataFrame:
    names = {"lon": "computed_lon", "lat": "computed_lat", "sequence_id": "other", "captured_at_ms": "other_ms"}
    right = computed.loc[:, ["image_id", *names]].set_axis(["image_id", *names.values()], axis=1)
    left = original[["image_id", "sequence_id", "lon", "lat", "captured_at_ms"]]
    both = left.merge(right, on="image_id", how="outer", sort=False)
    sequence = both["sequence_id"].where(both["sequence_id"].notna(), both["other"])
    return pd.DataFrame(
        {
            "image_id": both["image_id"].astype(object),
            "sequence_id": sequence.astype(object).where(sequence.notna(), None),
            "lon": both["lon"].to_numpy(float),
            "lat": both["lat"].to_numpy(float),
            "computed_lon": both["computed_lon"].to_numpy(float),
            "computed_lat": both["computed_lat"].to_numpy(float),
            "captured_at_ms": both["captured_at_ms"].fillna(both["other_ms"]).fillna(0).astype("int64"),
            "in_tiles": both["lon"].notna().to_numpy(bool),
            "in_computed": both["computed_lon"].notna().to_numpy(bool),
        }
    )


def within(images: pd.DataFrame, bounds: Bounds) -> pd.DataFrame:
    """The rows whose ``lon`` and ``lat`` lie in a rectangle, its west and south edges included."""
    return images.loc[bounds.contains(images.loc[:, "lon"], images.loc[:, "lat"]), :]


def content_hash(ids: Iterable[str]) -> str:
    """SHA-256 of the sorted ids; equal where two harvests name the same images."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def box_row(
    image_ids: Collection[str],
    sequence_ids: Iterable[str | None],
    grid: Grid,
    box: str,
    tiles: Iterable[Tile],
    fetched_at: dt.datetime,
    before: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The row of table ``bbox_partitions`` of a box.

    Args:
        image_ids: the images in the box.
        sequence_ids: their sequences.
        grid: the city's grid.
        box: name of the box.
        tiles: the tiles that were read.
        fetched_at: when.
        before: the row of the harvest before, if there was one; where the images are the same, so is ``changed_at``.
    """
    bounds, found = grid.bounds(box), content_hash(image_ids)
    same = before is not None and len(before) and before["coverage_hash"].iloc[0] == found
    changed_at = before["changed_at"].iloc[0] if same and before is not None and "changed_at" in before else None
    return pd.DataFrame(
        {
            "west": [bounds.west],
            "south": [bounds.south],
            "east": [bounds.east],
            "north": [bounds.north],
            "neighbours": [grid.neighbours(box)],
            "tiles": [[str(tile) for tile in tiles]],
            "n_images": [len(image_ids)],
            "n_sequences": [len({s for s in sequence_ids if s})],
            "coverage_hash": [found],
            "changed_at": [fetched_at if changed_at is None or pd.isna(changed_at) else changed_at],
            "fetched_at": [fetched_at],
        }
    )


__all__ = ["PAD_M", "POSITIONS", "Coverage", "Tiles", "box_row", "content_hash", "within"]
