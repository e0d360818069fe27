"""The two things that steps are given: the lake, and a connection to the imagery of a city."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from geo_assets.imagery import imagery_of
from geo_assets.lake import Lake
from geo_assets.settings import City, load

if TYPE_CHECKING:
    from geo_assets.harvest.mapillary import Mapillary


class LakeResource(dg.ConfigurableResource):
    """The lake of the settings; ``root`` overrides it in tests."""

    root: str = ""

    def open(self) -> Lake:
        """The plain library object."""
        return Lake(self.root or load().lake)


class ImageryResource(dg.ConfigurableResource):
    """The imagery API that a city names; the demo city's is started in this process, on loopback."""

    @contextlib.contextmanager
    def of(self, city: City, lake: Lake) -> Iterator[Mapillary]:
        """A client for the city's imagery, closed at the end; the workers of a lake share the limits of its host.

        Raises:
            ConfigError: the city needs a token and ``MAPILLARY_TOKEN`` is not set.
        """
        with imagery_of(city, lake) as client:
            yield client
