"""The imagery API that a city names, as a client that is ready to be asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from geo_assets.lake import Lake
from geo_assets.settings import EMBEDDED, City, load, mapillary_token

if TYPE_CHECKING:
    from geo_assets.harvest.mapillary import Mapillary


@contextlib.contextmanager
def imagery_of(city: City, lake: Lake) -> Iterator[Mapillary]:
    """A client for a city's imagery, closed at the end; the demo city's server is started in this process.

    Args:
        city: the city.
        lake: whose workers share the limits of the hosts.

    Raises:
        ConfigError: the settings are wrong.
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
    secret = token.get_secret_value() if token else None
    with Mapillary(settings.model_copy(update=urls), secret, lake=lake) as client:
        yield client
