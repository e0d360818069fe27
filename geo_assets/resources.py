"""The two things that steps are given: the lake, and a connection to the imagery of a city."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from geo_assets.lake import Lake
from geo_assets.settings import EMBEDDED, City, load, mapillary_token

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
    def of(self, city: City) -> Iterator[Mapillary]:
        """A client for the city's imagery, closed at the end.

        Raises:
            ConfigError: the city needs a token and ``MAPILLARY_TOKEN`` is not set.
        """
        from geo_assets.harvest.mapillary import Mapillary

        settings = load().mapillary
        if city.graph_url == EMBEDDED:
            from geo_assets.demo.server import serving  # only the demo city pays for the demo world
            from geo_assets.demo.world import demo_world

            with serving(demo_world()) as address:
                # Our own server needs no patience, and its world may have changed since the last run.
                quick = {"tiles_per_minute": 100_000, "tiles_fresh_for_s": 0}
                local = settings.model_copy(update={"graph_url": address, "tiles_url": address} | quick)
                with Mapillary(local, token="MLY|1|demo") as client:
                    yield client
            return
        urls = {k: v for k in ("graph_url", "tiles_url") if (v := getattr(city, k))}
        token = mapillary_token()
        with Mapillary(settings.model_copy(update=urls), token=token.get_secret_value() if token else None) as client:
            yield client
