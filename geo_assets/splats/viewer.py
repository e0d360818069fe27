"""A splat as one HTML file that opens from a disk, without a server or a network.

The page is the vendored SuperSplat viewer (``viewer_page/``); this module puts the splat and a first camera into it.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from geo_assets.errors import GeoAssetsError
from geo_assets.splats.cameras import Camera
from geo_assets.splats.compressed import compressed_ply_bytes
from geo_assets.splats.gaussians import Gaussians, coefficients
from geo_assets.splats.render import SKY

VENDORED = Path(__file__).with_name("viewer_page")
MOST_SPLATS = 750_000
"""At degree 1 a page of about 30 MB; more is for a viewer that streams."""

MOST_BYTES = 20_000_000
"""Of the splat in a page, four thirds as text; harmonics are cut to the degree that stays below."""

PAGE_FROM_ENU = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
"""The viewer expects y down in a file, as most trainers have it; ours is z up, so the page gets a turned copy."""

_BOOTSTRAP = re.compile(r'(<script type="application/json" id="sse-bootstrap">)(.*?)(</script>)', re.DOTALL)
_ANIMATED = "noanim: url.searchParams.has('noanim')"
_TITLE = re.compile(r"<title>.*?</title>", re.DOTALL)


def viewer_page(gaussians: Gaussians, camera: Camera, *, title: str) -> str:
    """The page of a splat, seen first through one of its cameras.

    Args:
        gaussians: in metres, z up; many of them lose the harmonics of degrees 3 and 2, for the sake of the page's size.
        camera: where the page begins, in the same frame.
        title: of the page.

    Raises:
        GeoAssetsError: more Gaussians than a page can hold.
    """
    if len(gaussians) > MOST_SPLATS:
        raise GeoAssetsError(
            f"{len(gaussians):,} Gaussians are too many for one page (at most {MOST_SPLATS:,}). Open the PLY in a viewer that streams."
        )
    shown = gaussians.to_degree(_degree_that_fits(gaussians))
    ply = compressed_ply_bytes(shown.moved(PAGE_FROM_ENU, np.zeros(3)))
    bootstrap = {
        "contentUrl": "data:application/octet-stream;base64," + base64.b64encode(ply).decode(),
        "contentFilename": "scene.compressed.ply",
        "settings": viewer_settings(camera),
    }
    template = _template()
    # In JSON "</" may be written "<\/"; as such it cannot end the script element.
    text = json.dumps(bootstrap).replace("</", "<\\/")
    page, n = _BOOTSTRAP.subn(lambda m: m[1] + text + m[3], template)
    # By itself the viewer turns around the target, which is nothing to look at from inside a street.
    page, still = page.replace(_ANIMATED, "noanim: !url.searchParams.has('anim')"), page.count(_ANIMATED)
    if n != 1 or still != 1:
        raise GeoAssetsError(
            "The vendored viewer page has no place for a splat. Rebuild it: node tools/vendor_viewer.mjs"
        )
    return _TITLE.sub(lambda _: f"<title>{html.escape(title)}</title>", page, count=1)


def _degree_that_fits(gaussians: Gaussians) -> int:
    """The highest degree of harmonics with which a page stays within its size; a splat is 16 bytes, a harmonic 3."""
    degree = gaussians.degree
    while degree > 1 and len(gaussians) * (13 + 3 * coefficients(degree)) > MOST_BYTES:
        degree -= 1
    return degree


def viewer_settings(camera: Camera, look_m: float = 8.0) -> dict[str, Any]:
    """The viewer's settings (version 2) with a first camera.

    Args:
        camera: in metres, z up.
        look_m: distance of the point that the camera turns around.
    """
    return {
        "version": 2,
        "tonemapping": "none",
        "highPrecisionRendering": False,
        "background": {"color": list(SKY)},
        "postEffectSettings": _no_effects(),
        "animTracks": [],
        "cameras": [
            {
                "initial": {
                    "position": in_viewer(camera.centre),
                    "target": in_viewer(camera.centre + look_m * camera.forward),
                    # The viewer takes it across the longer side of its window.
                    "fov": math.degrees(2 * math.atan(max(camera.width, camera.height) / (2 * camera.fx))),
                }
            }
        ],
        "annotations": [],
        "startMode": "default",
    }


def in_viewer(point_enu: np.ndarray) -> list[float]:
    """A point in the viewer's own axes: y up, and files turned by 180 degrees about z."""
    x, y, z = PAGE_FROM_ENU @ np.asarray(point_enu, float)
    return [float(-x), float(-y), float(z)]


def _template() -> str:
    record = json.loads((VENDORED / "VENDORED.json").read_text())
    return (VENDORED / record["page"]).read_text(encoding="utf8")


def _no_effects() -> dict[str, Any]:
    return {
        "sharpness": {"enabled": False, "amount": 0},
        "bloom": {"enabled": False, "intensity": 1, "blurLevel": 2},
        "grading": {"enabled": False, "brightness": 0, "contrast": 1, "saturation": 1, "tint": [1, 1, 1]},
        "vignette": {"enabled": False, "intensity": 0.5, "inner": 0.3, "outer": 0.75, "curvature": 1},
        "fringing": {"enabled": False, "intensity": 0.5},
    }
