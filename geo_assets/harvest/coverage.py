"""What the coverage tiles say of a place. A tile covers many boxes, so the lake keeps it for all of them."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from geo_assets.errors import SourceError
from geo_assets.grid import Bounds, Grid
from geo_assets.harvest.mapillary import DATASETS, Dataset, Mapillary
from geo_assets.harvest.tiles import POSITIONS, Tile, images_of, tiles_over
from geo_assets.lake import Lake

PAD_M = 25.0
"""Tiles place images on a grid of half a metre, and two data sets place them differently: look a little further."""


@dataclass(frozen=True)
class Coverage:
    """The images that the tiles over a place name, one row an image in each data set.

    Attributes:
        tiles: the tiles that were read.
        original: images at recorded positions, columns :data:`geo_assets.harvest.tiles.POSITIONS`.
        computed: images at positions corrected by structure from motion, same columns.
    """

    tiles: list[Tile]
    original: pd.DataFrame
    computed: pd.DataFrame

    @property
    def images(self) -> pd.DataFrame:
        """Each image once, at its computed position if it has one, else at the recorded one."""
        both = pd.concat([self.computed, self.original], ignore_index=True)
        return both.drop_duplicates("image_id").reset_index(drop=True)


def coverage(
    client: Mapillary, lake: Lake, city: str, bounds: Bounds, *, fresh_for_s: float = float("inf")
) -> Coverage:
    """Read the tiles of both data sets over ``bounds`` grown by :data:`PAD_M`, from the lake where it has them.

    Args:
        client: who asks for tiles that the lake lacks.
        lake: where tiles are kept, as ``files/tiles/city=<city>/<dataset>-<z>-<x>-<y>.mvt``.
        city: the city whose tiles they are.
        bounds: rectangle in degrees.
        fresh_for_s: age up to which a kept tile is believed [s].

    Raises:
        ApiError: a tile could not be had.
        SourceError: a tile is not a vector tile.
    """
    tiles = tiles_over(bounds.padded(PAD_M))

    def positions(dataset: Dataset) -> pd.DataFrame:
        frames = [_images(client, lake, city, dataset, tile, fresh_for_s) for tile in tiles]
        everything = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=POSITIONS)
        # Render buffers repeat images in neighbouring tiles.
        return everything.dropna(subset=["image_id"]).drop_duplicates("image_id").reset_index(drop=True)

    return Coverage(tiles, positions("original"), positions("computed"))


def _images(client: Mapillary, lake: Lake, city: str, dataset: Dataset, tile: Tile, fresh_for_s: float) -> pd.DataFrame:
    key = lake.key("tiles", f"{DATASETS[dataset]}-{tile.z}-{tile.x}-{tile.y}.mvt", city=city)
    if lake.exists(key) and _age_s(lake, key) <= fresh_for_s:
        try:
            return images_of(lake.get_bytes(key), tile)
        except SourceError:
            pass  # a spoilt copy is fetched again
    data = client.tile(dataset, tile.z, tile.x, tile.y)
    images = images_of(data, tile)  # decoded before it is kept, so that only tiles are kept
    lake.put_bytes(key, data)
    return images


def _age_s(lake: Lake, key: str) -> float:
    modified = lake.fs.modified(lake.uri(key))
    if modified.tzinfo is None:
        modified = modified.replace(tzinfo=dt.UTC)
    return (dt.datetime.now(dt.UTC) - modified).total_seconds()


def within(images: pd.DataFrame, bounds: Bounds) -> pd.DataFrame:
    """The rows whose ``lon`` and ``lat`` lie in a rectangle, its west and south edges included."""
    return images.loc[bounds.contains(images.loc[:, "lon"], images.loc[:, "lat"]), :]


def in_box(lon: Iterable[float], lat: Iterable[float], grid: Grid, box: str) -> np.ndarray:
    """Whether each point belongs to a box; every point of a city belongs to exactly one [n] bool."""
    return np.array([grid.box_at(x, y) == box for x, y in zip(lon, lat, strict=True)], bool)


def content_hash(ids: Iterable[str]) -> str:
    """SHA-256 of the sorted ids; equal where two harvests name the same images."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def box_row(
    images: pd.DataFrame,
    grid: Grid,
    box: str,
    tiles: Iterable[Tile],
    fetched_at: dt.datetime,
) -> pd.DataFrame:
    """The row of table ``bbox_partitions`` of a box.

    Args:
        images: images with ``image_id``, ``sequence_id``, ``lon``, ``lat``; only those in the box are counted.
        grid: the city's grid.
        box: name of the box.
        tiles: the tiles that were read.
        fetched_at: when.
    """
    bounds = grid.bounds(box)
    near = within(images, bounds.padded(1.0))  # box_at is exact and slow: ask it about near points only
    here = near.loc[in_box(near["lon"], near["lat"], grid, box)]
    return pd.DataFrame(
        {
            "west": [bounds.west],
            "south": [bounds.south],
            "east": [bounds.east],
            "north": [bounds.north],
            "neighbours": [grid.neighbours(box)],
            "tiles": [[str(tile) for tile in tiles]],
            "n_images": [len(here)],
            "n_sequences": [len(set(here["sequence_id"].dropna()))],
            "coverage_hash": [content_hash(here["image_id"])],
            "fetched_at": [fetched_at],
        }
    )
