"""Make the pictures of the README from the demo's lake: graph, map of the boxes, splats in the viewer and on the globe.

Run ``make demo`` first, then ``make pictures``. They land in ``docs/pictures/``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import click

from geo_assets.home import prepare_home
from geo_assets.lake import Lake
from geo_assets.settings import load
from geo_assets.splats import serve
from geo_assets.splats.cesium import cesium_folder, fetched, pinned
from geo_assets_tests.browser.chromium import open_page, wait_until_drawn

TARGET = Path(__file__).parent.parent / "docs" / "pictures"


@contextlib.contextmanager
def webserver() -> Iterator[str]:
    """The Dagster UI on a free port of loopback, without the daemon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dagster_webserver", "-m", "geo_assets.definitions", "-h", "127.0.0.1"]
    server = subprocess.Popen([*command, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/server_info") as answer:
                if answer.status == 200:
                    break
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def asset_graph(target: Path) -> None:
    """The asset graph as the UI shows it."""
    with webserver() as address, open_page(2200, 2900) as (page, _):
        page.goto(f"{address}/asset-groups", wait_until="load", timeout=120_000)
        with contextlib.suppress(Exception):  # the greeting of a new instance
            page.get_by_role("button", name="Skip").click(timeout=15_000)
        page.wait_for_timeout(2_000)
        page.mouse.click(1500, 2850)
        page.keyboard.press("Alt+e")  # unfolds the groups
        page.wait_for_timeout(6_000)
        page.screenshot(path=str(target))


def box_map(lake: Lake, target: Path) -> None:
    """Every box of the demo with its images, its cameras and what its splat is worth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    grid = load().city("demo").grid
    figure, axes = plt.subplots(figsize=(8, 8), dpi=110)
    with lake.connect("image_metadata", "model_cameras", "box_quality") as con:
        images = con.execute("select box, lon, lat from image_metadata where city = 'demo'").df()
        cameras = con.execute("select box, lon, lat from model_cameras where city = 'demo' and home_box = box").df()
        quality = con.execute("select * from box_quality where city = 'demo'").df().set_index("box")
    axes.plot(images["lon"], images["lat"], ".", color="#9aa0a6", markersize=5, label="position by GPS")
    axes.plot(cameras["lon"], cameras["lat"], ".", color="#d93025", markersize=5, label="position by reconstruction")
    for box in grid:
        b = grid.bounds(box)
        axes.add_patch(
            Rectangle(
                (b.west, b.south), b.east - b.west, b.north - b.south, fill=False, edgecolor="#1a73e8", linewidth=1.5
            )
        )
        row = quality.loc[box]
        axes.text(
            b.west + 0.03 * (b.east - b.west), b.north - 0.05 * (b.north - b.south),
            f"{box}\n{row['n_images']:.0f} images, {row['n_registered']:.0f} registered\n{row['psnr_db']:.1f} dB held out",
            va="top", fontsize=9,
        )  # fmt: skip
    axes.set_aspect(grid.step_lon and grid.step_lat and grid.step_lon / grid.step_lat)
    axes.set_xlabel("longitude [deg]")
    axes.set_ylabel("latitude [deg]")
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(labelsize=7)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(target)


def viewer(address: str, target: Path) -> None:
    """A page of the SuperSplat viewer."""
    with open_page(1280, 720) as (page, _):
        page.goto(address, wait_until="load", timeout=120_000)
        wait_until_drawn(page)
        page.wait_for_timeout(5_000)
        target.write_bytes(page.screenshot(timeout=120_000))


def globe(address: str, target: Path) -> None:
    """The tiles of a city in CesiumJS, once all that are in view have come."""
    with open_page(1280, 720) as (page, _):
        page.goto(address, wait_until="load", timeout=120_000)
        page.wait_for_function(
            "() => window.splatGlobe && window.splatGlobe.tileset.tilesLoaded"
            " && window.splatGlobe.tileset.gaussianSplatPrimitive?.isStable",
            timeout=300_000,
        )
        page.wait_for_timeout(5_000)
        target.write_bytes(page.screenshot(timeout=120_000))


def city_map(lake: Lake, target: Path, *, width: int = 1280, height: int = 800, place: str = "#/demo/r00c00") -> None:
    """The map of ``geo-assets serve`` with one box open."""
    from geo_assets.serve.app import application

    app = application(lake, load, hosts=serve.allowed_hosts(serve.LOOPBACK))
    with serve.in_background(app) as address, open_page(width, height) as (page, _):
        page.goto(address + place)
        page.wait_for_function("place => document.body.dataset.shown === place", arg=place, timeout=120_000)
        page.wait_for_timeout(3_000)  # images and ways come when the map is at rest
        page.screenshot(path=str(target), timeout=120_000)


def main() -> None:
    """Make all of them."""
    os.chdir(Path(__file__).parent.parent)
    prepare_home()
    TARGET.mkdir(parents=True, exist_ok=True)
    lake = Lake(load().lake)
    box_map(lake, TARGET / "boxes.png")
    viewer(Path(lake.uri(lake.key("splats", "viewer.html", city="demo", box="r00c00"))).as_uri(), TARGET / "splat.png")
    folders = {f"pages/{pinned().folder}": fetched(cesium_folder(lake), click.echo)} | serve.folders_of(lake)
    with serve.in_background(serve.application(folders)) as address:
        viewer(address + serve.web_path(lake.key("splats_city", "index.html", city="demo")), TARGET / "city.png")
        globe(address + serve.web_path(lake.key("splats_city", "globe.html", city="demo")), TARGET / "globe.png")
    city_map(lake, TARGET / "map.png")
    asset_graph(TARGET / "asset_graph.png")
    for path in sorted(TARGET.glob("*.png")):
        click.echo(f"{path}  {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
