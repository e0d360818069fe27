"""Where the demo city lies: four boxes that meet where its two streets cross."""

from __future__ import annotations

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import METRES_PER_DEGREE, Bounds
from geo_assets.settings import EMBEDDED, City

BOX_M = 60.0
CROSSING_LON, CROSSING_LAT, GROUND_ALT_M = 11.575, 48.137, 565.0
"""The crossing, which is the corner that the four boxes share [deg], and the height of its road surface [m]."""


def demo_frame() -> LocalFrame:
    """East-north-up metres of the demo world: the crossing is its origin, the road surface its zero height."""
    return LocalFrame(CROSSING_LON, CROSSING_LAT, GROUND_ALT_M)


def demo_city() -> City:
    """The city as settings know it: a two-by-two grid around the crossing, served by the embedded world."""
    import math

    dlat = BOX_M / METRES_PER_DEGREE
    # The grid's step is taken at the southern edge, so the crossing is measured from there too.
    south = CROSSING_LAT - dlat
    dlon = BOX_M / (METRES_PER_DEGREE * math.cos(math.radians(south)))
    bounds = Bounds(CROSSING_LON - dlon, south, CROSSING_LON + dlon, CROSSING_LAT + dlat)
    return City(
        bbox=(bounds.west, bounds.south, bounds.east, bounds.north),
        origin=(bounds.west, bounds.south),
        box_m=BOX_M,
        photos=None,
        aoi=None,
        graph_url=EMBEDDED,
        tiles_url=EMBEDDED,
        splats={"learning_rate_scale": 4.0},  # a drawn world without motion blur bears longer steps than photos do
    )
