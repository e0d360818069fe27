"""City and box: the two dimensions every box asset shares. Keys read ``box|city``: Dagster sorts dimensions by name.

Both follow from the settings alone, so the command line works without an instance and neighbours are arithmetic. The
photo sets are cut by the names of their shards and by landmark ids, their places into tiles.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import dagster as dg

from geo_assets.geotag.inputs import landmark_parts, shards, tile_keys
from geo_assets.grid import Bounds, Grid
from geo_assets.lake import BoxPartition
from geo_assets.settings import City, Settings, load

warnings.filterwarnings("ignore", category=dg.BetaWarning)  # the two mappings below
warnings.filterwarnings("ignore", category=dg.PreviewWarning)  # partitioned asset checks

settings: Settings = load()

cities = dg.StaticPartitionsDefinition(list(settings.cities))
_names = settings.boxes  # there may be 25,000
boxes = dg.StaticPartitionsDefinition(_names)
city_boxes = dg.MultiPartitionsDefinition({"city": cities, "box": boxes})

SHOWN_BY_BOX = 2_500
"""Up to so many boxes a city the UI shows the outcome of a check for each of them, above only the latest.

Dagster makes the keys anew for every check that has partitions, which takes seconds where there are many of both.
"""
checked_boxes = city_boxes if len(_names) <= SHOWN_BY_BOX else None

placing_shards = dg.StaticPartitionsDefinition(list(shards(settings)))
landmark_ranges = dg.StaticPartitionsDefinition(landmark_parts(settings.geotag))
place_tiles = dg.StaticPartitionsDefinition(tile_keys(settings.geotag))

touching_boxes = dg.MultiPartitionMapping(
    {
        "city": dg.DimensionPartitionMapping("city", dg.IdentityPartitionMapping()),
        "box": dg.DimensionPartitionMapping(
            "box",
            dg.StaticPartitionMapping(settings.touching_boxes()),
        ),
    }
)
"""``match_pairs`` of a box reads the boxes that touch it."""

boxes_of_city = dg.MultiToSingleDimensionPartitionMapping("city")
"""``splat_city`` of a city reads all its boxes."""


@dataclass(frozen=True)
class BoxKey:
    """One box of one city, with the city's settings and the box's bounds."""

    city: str
    box: str
    place: City

    @property
    def bounds(self) -> Bounds:
        """Bounds of the box in degrees."""
        return self.place.grid.bounds(self.box)

    @property
    def grid(self) -> Grid:
        """The grid of the box's city."""
        return self.place.grid

    @property
    def in_grid(self) -> bool:
        """Whether the box belongs to its city's grid; a pair outside it is an empty partition."""
        return self.box in self.place.grid

    @property
    def partition(self) -> BoxPartition:
        """The partition as the lake wants it: ``lake.read(table, **key.partition)``."""
        return BoxPartition(city=self.city, box=self.box)


def box_key(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> BoxKey:
    """The box that a step works on."""
    key = context.partition_key
    assert isinstance(key, dg.MultiPartitionKey), key
    dimensions = key.keys_by_dimension
    return BoxKey(dimensions["city"], dimensions["box"], load().city(dimensions["city"]))


def partition_key(city: str, box: str) -> dg.MultiPartitionKey:
    """The Dagster key of a box."""
    return dg.MultiPartitionKey({"city": city, "box": box})
