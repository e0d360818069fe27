"""The tiles of a splat in CesiumJS: at their true place, with their true colours, and offline."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from geo_assets.errors import ConfigError
from geo_assets.geodesy import LocalFrame, ecef
from geo_assets.splats import serve
from geo_assets.splats.cameras import Camera
from geo_assets.splats.cesium import fetched, pinned, users_cache
from geo_assets.splats.exports import write_exports
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.globe import globe_page
from geo_assets.splats.render import render
from geo_assets.splats.tiles3d import glb_bytes, leaf, tile, write_tileset
from geo_assets_tests.browser.chromium import Watch, chromium_path, open_page, pixels

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("globe"),
    pytest.mark.skipif(chromium_path() is None, reason="no Chromium on this machine"),
]

FRAME = LocalFrame(-122.4, 37.79, -32.0)
"""A street at sea level in San Francisco, which is below the ellipsoid: the globe must not bury it."""

WIDTH, HEIGHT = 480, 320

STATE = """() => {
    const shown = window.splatGlobe, said = window.splatGlobeSaid;
    if (said) return { said };
    const splats = shown && shown.tileset.gaussianSplatPrimitive;
    return { ready: Boolean(splats && shown.tileset.tilesLoaded && splats.isStable && splats._numSplats) };
}"""

PLACES = """() => {
    const { tileset } = window.splatGlobe, splats = tileset.gaussianSplatPrimitive, places = [];
    for (let i = 0; i < splats._numSplats; i++) {
        const place = Cesium.Cartesian3.fromArray(splats._positions, 3 * i);
        Cesium.Matrix4.multiplyByPoint(splats._rootTransform, place, place);
        places.push([place.x, place.y, place.z]);
    }
    const { center, radius } = tileset.boundingSphere;
    return { places, centre: [center.x, center.y, center.z], radius };
}"""


@pytest.fixture(scope="module")
def cesium() -> Path:
    try:
        return fetched(users_cache(), print)
    except ConfigError as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def served(folder: Path, cesium: Path) -> Iterator[str]:
    with serve.in_background(serve.application({pinned().folder: cesium, "": folder}), "globe.html") as address:
        yield address


@contextlib.contextmanager
def shown(folder: Path, cesium: Path) -> Iterator[tuple[Page, Watch]]:
    """The page of a folder once its splats are drawn."""
    with served(folder, cesium) as address, open_page(WIDTH, HEIGHT) as (page, watch):
        page.goto(address, wait_until="load", timeout=60_000)
        state: dict = {}
        for _ in range(60):
            page.wait_for_timeout(1000)
            state = page.evaluate(STATE)
            if state.get("said") or state.get("ready"):
                break
        assert state == {"ready": True}
        yield page, watch


def wall() -> Gaussians:
    """A wall of coloured squares, 30 m east of the frame's origin, redder from the east than from the west."""
    rng = np.random.default_rng(5)
    y, z = (a.ravel() for a in np.meshgrid(np.linspace(-6, 6, 49), np.linspace(0, 8, 33)))
    n = len(y)
    patches = rng.uniform(-1.2, 1.2, (5, 4, 3))
    colour = patches[np.minimum((y + 6) / 2.5, 4).astype(int), np.minimum(z / 2.1, 3).astype(int)]
    harmonics = np.zeros((n, 4, 3))
    harmonics[:, 0] = colour
    harmonics[:, 3, 0] = -0.8  # the basis is -x
    harmonics[:, 2, 2] = 0.5
    return Gaussians.of(
        np.column_stack([30 + 0.05 * y, y, z]),
        np.log(np.tile([0.03, 0.16, 0.16], (n, 1))),
        np.tile([1.0, 0, 0, 0], (n, 1)),
        np.full(n, 6.0),
        harmonics,
    )


def camera_of(eye: tuple[float, float, float]) -> Camera:
    lens = Camera(np.eye(3), np.zeros(3), 400.0, 400.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)
    return Camera.looking(eye, (30, 0, 4), like=lens)


def test_a_splat_stands_at_its_place_with_its_colours(tmp_path: Path, cesium: Path) -> None:
    splat, camera = wall(), camera_of((18.0, -3.0, 3.0))
    write_exports(tmp_path, splat, FRAME, title="a wall", camera=camera)
    with shown(tmp_path, cesium) as (page, watch):
        found = page.evaluate(PLACES)
        page.wait_for_timeout(3000)
        shot = pixels(page.screenshot(timeout=60_000)) / 255
    assert watch.outside == []
    assert watch.errors == []

    true = ecef(*FRAME.geodetic(splat.means.astype(float)))
    assert np.linalg.norm(np.array(found["places"]) - true, axis=1).max() < 0.01
    assert np.linalg.norm(np.array(found["centre"]) - true.mean(axis=0)) < 0.1
    assert found["radius"] < 15

    # Where our renderer sees the wall from the same camera, CesiumJS shows the same colours.
    dark, bright = (render(splat, camera, background=(g, g, g)) for g in (0.0, 1.0))
    solid = (np.abs(bright - dark) < 0.02).all(axis=2)
    assert solid.mean() > 0.3
    assert np.abs(shot - dark)[solid].mean() < 0.03
    unlike = render(splat.to_degree(0), camera)
    assert np.abs(unlike - dark)[solid].mean() > 0.1, "without the harmonics it would look different"
    assert np.ptp(shot[solid], axis=0).min() > 0.3


def test_the_fine_tiles_take_the_place_of_the_coarse_one(tmp_path: Path, cesium: Path) -> None:
    splat = wall()
    halves = [splat[splat.means[:, 1] < 0], splat[splat.means[:, 1] >= 0]]
    for name, part in zip(("a", "b", "coarse"), (*halves, splat[::7]), strict=True):
        (tmp_path / f"{name}.glb").write_bytes(glb_bytes(part))
    low, high = splat.means.min(axis=0), splat.means.max(axis=0)
    root = tile(low, high, 1.0, "coarse.glb", [leaf(halves[0], "a.glb"), leaf(halves[1], "b.glb")])
    write_tileset(tmp_path / "tileset.json", root, FRAME)
    count = "n => window.splatGlobe.tileset.gaussianSplatPrimitive._numSplats === n"
    for eye, n in (((10.0, -3.0, 3.0), len(splat)), ((-300.0, -40.0, 90.0), len(splat[::7]))):
        page_text = globe_page("tileset.json", camera_of(eye), FRAME, title="tree")
        (tmp_path / "globe.html").write_text(page_text)
        with shown(tmp_path, cesium) as (page, watch):
            page.wait_for_function(count, arg=n, timeout=20_000)
            page.wait_for_timeout(2000)
            assert page.evaluate(f"({count})({n})"), "it stays so"
        assert watch.errors == []


def test_a_page_without_cesium_says_what_to_do(tmp_path: Path) -> None:
    write_exports(tmp_path, wall(), FRAME, title="a wall")
    with served(tmp_path, tmp_path / "nowhere") as address, open_page(WIDTH, HEIGHT) as (page, watch):
        from_disk = (tmp_path / "globe.html").as_uri()
        for place, said in ((address, "fetches CesiumJS once"), (from_disk, "only from a server")):
            page.goto(place, wait_until="load", timeout=60_000)
            page.wait_for_function("() => window.splatGlobeSaid", timeout=20_000)
            assert said in page.inner_text("#words")
            assert "geo-assets globe" in page.inner_text("#words")
    assert watch.outside == []
