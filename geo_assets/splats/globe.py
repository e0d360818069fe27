"""Splats on the globe: a page for CesiumJS that asks nobody outside."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from urllib.parse import urlsplit

from geo_assets.errors import ConfigError
from geo_assets.geodesy import LocalFrame
from geo_assets.splats.cameras import Camera
from geo_assets.splats.cesium import pinned

_TEMPLATE = Path(__file__).with_name("globe_page") / "globe.html"


def globe_page(tileset: str, camera: Camera, frame: LocalFrame, *, title: str, ground_m: float = 0.0) -> str:
    """A page that shows a tileset in CesiumJS; it has to come from a server (:mod:`~geo_assets.splats.serve`).

    CesiumJS is looked for in the folder ``cesium-<version>`` beside the page, then among the lake's pages.

    Args:
        tileset: its JSON, relative to the page.
        camera: where the page begins, in the frame's local metres.
        frame: where these lie on the Earth.
        title: of the page.
        ground_m: height of the ground in the frame [m]; the globe is drawn there.

    Raises:
        ConfigError: the tileset is not named relative to the page.
    """
    parts = urlsplit(tileset)
    if parts.scheme or parts.netloc or tileset.startswith(("/", "\\")):
        raise ConfigError(f"The tileset '{tileset}' is not relative to the page. Name it as tileset.json.")
    to_ecef = frame.ecef_from_enu
    folder = pinned().folder
    up = -camera.rotation[1]  # y of a camera points down
    scene = {
        "tileset": tileset,
        "ground": frame.alt_m + ground_m,
        "cesium": [f"{folder}/", *(f"{'../' * n}pages/{folder}/" for n in (2, 3))],
        "camera": {
            "position": (to_ecef[:3, :3] @ camera.centre + to_ecef[:3, 3]).tolist(),
            "direction": (to_ecef[:3, :3] @ camera.forward).tolist(),
            "up": (to_ecef[:3, :3] @ up).tolist(),
            "fov": 2 * math.atan(camera.height / (2 * camera.fy)),
        },
    }
    page = _TEMPLATE.read_text(encoding="utf8").replace("{{title}}", html.escape(title))
    # In JSON "</" may be written "<\/"; as such it cannot end the script element.
    return page.replace("{{scene}}", json.dumps(scene).replace("</", "<\\/"))
