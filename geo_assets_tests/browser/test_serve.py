"""The map of ``geo-assets serve`` in a browser: by mouse, by keyboard, on a phone, and with nobody outside asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from geo_assets.lake import Lake
from geo_assets.serve.app import application
from geo_assets.settings import City, Settings
from geo_assets.splats.serve import allowed_hosts, in_background
from geo_assets_tests.browser.chromium import Watch, chromium_path, open_page, pixels
from geo_assets_tests.serve.lakes import BOXES, CITY, GRID, NAUGHTY, N, clustered, made

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("serve"),
    pytest.mark.skipif(chromium_path() is None, reason="no Chromium on this machine"),
]

DESK, PHONE = (1280, 800), (390, 844)
DRAWN = """async () => {
    const { map } = window.geoAssets;
    if (!map.loaded() || map.isMoving()) await new Promise(done => map.once('idle', done));
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""
COUNT = "layer => window.geoAssets.map.queryRenderedFeatures({ layers: [layer] }).length"
PLACE = """([lon, lat]) => {
    const { map } = window.geoAssets, point = map.project([lon, lat]), box = map.getCanvas().getBoundingClientRect();
    return [point.x + box.left, point.y + box.top];
}"""
FOCUS = "() => document.activeElement.textContent"


@pytest.fixture(scope="module")
def cities() -> dict[str, City]:
    return {"town": CITY, "young": City(bbox=(13.0, 55.0, 13.01, 55.01))}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, cities: dict[str, City]) -> Iterator[str]:
    lake = made(Lake(tmp_path_factory.mktemp("serve") / "lake"))
    clustered(lake)
    app = application(lake, lambda: Settings(lake=lake.root, cities=cities), hosts=allowed_hosts("127.0.0.1"))
    with in_background(app) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[tuple[Page, Watch]]:
    with open_page(*DESK) as (page, watch):
        yield page, watch


@pytest.fixture
def page(browser: tuple[Page, Watch], address: str) -> Iterator[Page]:
    """The map of the town on a desk; nothing outside was asked and nothing broke when the test is over."""
    page, watch = browser
    page.set_viewport_size({"width": DESK[0], "height": DESK[1]})
    go(page, address, "#/town")
    yield page
    assert page.evaluate("() => window.broken") is None, "a name from the lake became markup"
    assert watch.outside == []
    assert watch.errors == []
    assert any(url.endswith("maplibre-gl-worker.mjs") for url in watch.requests)


def go(page: Page, address: str, place: str) -> None:
    page.goto(address + place)
    shown(page, place)


def shown(page: Page, place: str) -> None:
    page.wait_for_function("place => document.body.dataset.shown === place", arg=place, timeout=30_000)
    page.evaluate(DRAWN)


def click_on_map(page: Page, lon: float, lat: float) -> None:
    page.mouse.click(*page.evaluate(PLACE, [lon, lat]))


def heading(page: Page) -> str:
    return page.inner_text("#content h2")


def keep(page: Page, name: str) -> bytes:
    """A screenshot, also as a file where ``GEO_ASSETS_SCREENSHOTS`` names a folder."""
    png = page.screenshot(timeout=60_000)
    if folder := os.environ.get("GEO_ASSETS_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(png)
    return png


def colours(png: bytes, wanted: tuple[int, int, int]) -> int:
    """Pixels of a colour, or near to it."""
    return int((np.abs(pixels(png).astype(int) - wanted).max(axis=2) < 12).sum())


def test_boxes_are_drawn_and_one_is_clicked(page: Page) -> None:
    assert page.evaluate(COUNT, "boxes") >= len(BOXES)
    assert page.evaluate(COUNT, "images") == 3 * N
    assert page.evaluate(COUNT, "sequences") >= 3
    assert colours(keep(page, "town"), (213, 94, 0)) > 100, "the dots of registered images"
    bounds = GRID.bounds(BOXES[1])
    click_on_map(page, bounds.centre[0], bounds.south + 0.2 * (bounds.north - bounds.south))
    shown(page, f"#/town/{BOXES[1]}")
    text = page.inner_text("#content")
    assert heading(page).startswith(BOXES[1])
    assert f"geo-assets materialize --select splat_ply --city town --box {BOXES[1]}" in text
    assert "Complete: 6 images" in text
    assert NAUGHTY in text
    assert "median horizontal distance of cameras to their priors" in text.lower()
    page.go_back()
    shown(page, "#/town")


def test_an_image_is_clicked(page: Page) -> None:
    bounds = GRID.bounds(BOXES[2])
    click_on_map(page, bounds.west + (bounds.east - bounds.west) * 3 / (N + 1), bounds.centre[1])
    shown(page, f"#/town/{BOXES[2]}/{BOXES[2]}_2")
    assert page.evaluate("() => document.querySelector('.photo').naturalWidth") == 64
    page.keyboard.press("Escape")
    shown(page, f"#/town/{BOXES[2]}")
    assert "Incomplete: 2 ids without an answer" in page.inner_text("#content")


def test_boxes_are_coloured_by_quality(page: Page) -> None:
    said = {}
    for measure in ("state", "registered_share", "gps_median_m", "psnr_db"):
        page.select_option("#measure", measure)
        page.wait_for_function(
            "id => window.geoAssets.map.queryRenderedFeatures({layers: ['boxes']}).length && document.querySelector('#measure').value === id",
            arg=measure,
        )
        page.evaluate(DRAWN)
        first = page.evaluate(
            "box => window.geoAssets.map.queryRenderedFeatures({layers: ['boxes']}).find(f => f.properties.box === box).properties",
            BOXES[0],
        )
        said[measure] = (first["tip"].split(": ")[1], page.locator("#keys li:visible").count())
    assert {name: words for name, (words, _) in said.items()} == {
        "state": "splat trained", "registered_share": "100 %", "gps_median_m": "1.3 m", "psnr_db": "24.5 dB",
    }  # fmt: skip
    assert min(count for _, count in said.values()) >= 5
    page.select_option("#measure", "state")


def test_the_keyboard_is_enough(page: Page) -> None:
    page.reload()
    shown(page, "#/town")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUS) == "Skip the map"
    page.keyboard.press("Enter")
    for _ in range(12):
        if page.evaluate("() => Boolean(document.activeElement.closest('.list'))"):
            break
        page.keyboard.press("Tab")
    first = page.evaluate(FOCUS)
    page.keyboard.press("ArrowDown")
    second = page.evaluate(FOCUS)
    assert first != second
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.body.dataset.shown.split('/').length === 3")
    assert heading(page)[:6] == second[:6]
    assert page.evaluate(FOCUS)[:6] == second[:6], "the focus is on the heading of what was opened"
    page.keyboard.press("Escape")
    shown(page, "#/town")
    page.wait_for_function("() => Boolean(document.activeElement.closest('.list'))")
    assert page.evaluate(FOCUS) == second, "and back where it was"


def test_a_splat_opens_over_the_map(page: Page, address: str) -> None:
    go(page, address, f"#/town/{BOXES[0]}")
    page.get_by_role("button", name="Open the splat").click()
    assert page.frame_locator("#viewer-frame").locator("#splat").inner_text() == "A splat"
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    slider = page.get_by_label("How much of the render")
    slider.focus()
    page.keyboard.press("End")
    assert page.evaluate("() => document.querySelector('.stage').style.getPropertyValue('--at')") == "100%"
    assert page.evaluate("() => document.querySelector('.stage').style.aspectRatio") == "160 / 120"


def test_cells_by_level(page: Page, address: str) -> None:
    go(page, address, "#/cells")
    assert page.evaluate("() => window.geoAssets.map.querySourceFeatures('cells').length") >= 3
    keep(page, "cells")
    assert page.locator(".list li").count() == 3
    page.focus("#level")
    page.select_option("#level", "1")
    shown(page, "#/cells/1")
    assert page.locator(".list li").count() == 1
    assert page.evaluate("() => document.activeElement.id") == "level"
    page.locator(".list a").first.click()
    shown(page, "#/cells/1/0")
    assert "90th percentile of that distance\t9,000 km" in page.inner_text("#content")


def test_on_a_phone(page: Page, address: str) -> None:
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    go(page, address, f"#/town/{BOXES[0]}")
    keep(page, "phone")
    panel: Any = page.locator("#panel").bounding_box()
    assert panel["y"] > 0.4 * PHONE[1], "a sheet at the bottom"
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE[0]
    assert page.evaluate(COUNT, "boxes") >= 1
    page.locator("#grip").click()
    page.wait_for_function("() => document.querySelector('#panel').getBoundingClientRect().top < 100")
    assert page.locator("#grip").get_attribute("aria-expanded") == "true"
    small = page.evaluate(
        "() => [...document.querySelectorAll('button, select, .list a')].filter(e => e.offsetParent && e.offsetHeight < 30).map(e => e.id)"
    )
    assert small == []


def test_what_is_not_there_yet_says_what_to_type(page: Page, address: str, cities: dict[str, City]) -> None:
    go(page, address, "#/young")
    assert "geo-assets harvest young --files" in page.inner_text("#content")
    go(page, address, "#/nowhere")
    assert "There is no city nowhere." in page.inner_text("#content")
    go(page, address, "#/town/r77c77")
    assert "town has no box r77c77" in page.inner_text("#content")
    kept = dict(cities)
    cities.clear()
    try:
        page.reload()
        shown(page, "#/town/r77c77")
        assert "geo-assets city add" in page.inner_text("#content")
    finally:
        cities.update(kept)
