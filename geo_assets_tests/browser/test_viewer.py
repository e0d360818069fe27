"""The page that a user opens at the end: offline, from a file, and it shows a street."""

from pathlib import Path

import pytest

from geo_assets.lake import Lake
from geo_assets_tests.browser.chromium import chromium_path, drawn_share, open_page, wait_until_drawn

pytestmark = [
    pytest.mark.browser,
    pytest.mark.demo,
    pytest.mark.xdist_group("demo"),
    pytest.mark.skipif(chromium_path() is None, reason="no Chromium on this machine"),
]


@pytest.mark.parametrize("box", ["r00c00", "r01c01", None])
def test_the_viewer_draws_the_street_offline(finished_demo: Lake, box: str | None) -> None:
    lake = finished_demo
    key = (
        lake.key("splats", "viewer.html", city="demo", box=box)
        if box
        else lake.key("splats_city", "viewer.html", city="demo")
    )
    page_path = Path(lake.uri(key))
    with open_page() as (page, watch):
        page.goto(page_path.as_uri(), wait_until="load", timeout=120_000)
        png = wait_until_drawn(page)
    assert drawn_share(png) > 0.3, "most of the picture is the background"
    assert watch.outside == []
    assert watch.errors == []
