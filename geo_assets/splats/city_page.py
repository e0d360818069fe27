"""The page of a city: the vendored viewer, which fetches of each place the level of detail that the view needs.

It lies beside the pieces and asks for them by relative addresses, so it works wherever the folder is served; from a
disk a browser lets no page read other files, and the page says what to do.
"""

from __future__ import annotations

import html
import json

from geo_assets.errors import GeoAssetsError
from geo_assets.splats.cameras import Camera
from geo_assets.splats.viewer import MOST_SPLATS, VENDORED, viewer_settings

MOST_DRAWN = 1_000_000
"""Gaussians that the page draws at a time, wherever it looks; this bounds its memory. ``?budget=4`` draws 4 million."""

SKY_POINTS = 3000
MOST_IN_ONE_FILE = MOST_SPLATS - SKY_POINTS
"""Gaussians of a city that are all in the page that opens from a disk; of a larger city it shows coarse levels."""

_BOOTSTRAP = '<script type="application/json" id="sse-bootstrap">'
_ANIMATED = "noanim: url.searchParams.has('noanim')"
_BUDGET = "const budgetParam = url.searchParams.get('budget');"
_FROM_DISK = """<script>
if (location.protocol === 'file:') {
    window.stop();
    document.documentElement.innerHTML = '<body style="font: 16px sans-serif; margin: 3em">' +
        '<p>A browser lets no page from a disk fetch the pieces of a city. Serve it: <code>%s</code></p></body>';
}
</script>"""


def city_page(camera: Camera, *, title: str, content: str, command: str, look_m: float) -> str:
    """The page of a streamed city.

    Args:
        camera: where the page begins, in the city's frame, in metres, z up.
        title: of the page.
        content: where ``lod-meta.json`` lies, relative to the page.
        command: the command line that serves the page, said where it is opened from a disk.
        look_m: distance of the point that the camera turns around [m].
    """
    bootstrap = {"contentUrl": content, "settings": viewer_settings(camera, look_m)}
    page = _template()
    page = _replaced(page, _ANIMATED, "noanim: !url.searchParams.has('anim')")
    page = _replaced(page, _BUDGET, f"const budgetParam = url.searchParams.get('budget') ?? '{MOST_DRAWN / 1e6:g}';")
    start = page.index(_BOOTSTRAP) + len(_BOOTSTRAP)
    # In JSON "</" may be written "<\/"; as such it cannot end the script element.
    page = page[:start] + json.dumps(bootstrap).replace("</", "<\\/") + page[page.index("</script>", start) :]
    hint = _FROM_DISK % html.escape(command).replace("\\", "\\\\").replace("'", "\\'")
    hint = '<link rel="icon" href="data:,">' + hint  # a browser would ask for one that is not there
    head = page.index("<head>") + len("<head>")
    page = page[:head] + hint + page[head:]
    begin = page.index("<title>") + len("<title>")
    return page[:begin] + html.escape(title) + page[page.index("</title>", begin) :]


def _template() -> str:
    record = json.loads((VENDORED / "VENDORED.json").read_text())
    return (VENDORED / record["page"]).read_text(encoding="utf8")


def _replaced(page: str, old: str, new: str) -> str:
    if page.count(old) != 1 or page.count(_BOOTSTRAP) != 1:
        raise GeoAssetsError(
            "The vendored viewer page has no place for a splat. Rebuild it: node tools/vendor_viewer.mjs"
        )
    return page.replace(old, new)
