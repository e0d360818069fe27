"""Cities that are known by name: rectangles around their centres, to begin with."""

from __future__ import annotations

PRESETS: dict[str, tuple[float, float, float, float]] = {
    "amsterdam": (4.83, 52.34, 4.96, 52.42),
    "berlin": (13.29, 52.46, 13.50, 52.57),
    "london": (-0.20, 51.47, -0.03, 51.55),
    "new_york": (-74.03, 40.70, -73.92, 40.82),
    "paris": (2.25, 48.81, 2.42, 48.91),
    "san_francisco": (-122.52, 37.70, -122.35, 37.83),
    "tokyo": (139.69, 35.64, 139.80, 35.74),
}
"""West, south, east, north in degrees (EPSG:4326)."""
