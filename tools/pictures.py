"""Make the pictures of the README and of ``docs/`` from the demo: maps, splats, and the pages of the Dagster UI.

Run ``make demo`` first, then ``make pictures``. They land in ``docs/pictures/``. The check that fails does so in a copy
of lake and instance, which is thrown away: a file is taken out of it, and the tables are made again.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from geo_assets.home import prepare_home
from geo_assets.lake import Lake
from geo_assets.settings import load
from geo_assets.splats import serve
from geo_assets.splats.cesium import cesium_folder, fetched, pinned
from geo_assets_tests.browser.chromium import open_page, wait_until_drawn
from geo_assets_tests.browser.dagster_ui import dagster_ui

if TYPE_CHECKING:
    from playwright.sync_api import Page

TARGET = Path(__file__).parent.parent / "docs" / "pictures"
MOST_BYTES = 400_000
"""Of a picture: a page of the documentation holds several."""

BOX = "r00c00"
FEATURED = "n_featured_at_most_n_downloaded"
"""The check that is made to fail: photos with features were downloaded before."""


def keep(png: bytes, target: Path, crop: tuple[float, float, float, float] | None = None) -> None:
    """Write a picture; with a palette only where it would be too large, since that moves colours that mean something.

    Args:
        png: as it was taken.
        target: file to write.
        crop: left, top, right, bottom of what is kept [px].
    """
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    if crop is not None:
        image = image.crop((round(crop[0]), round(crop[1]), round(crop[2]), round(crop[3])))
    found = io.BytesIO()
    image.save(found, "png", optimize=True)
    if found.tell() > MOST_BYTES:
        found = io.BytesIO()
        # Given a palette, Pillow spreads what it misses over the neighbours: no steps in the sky.
        image.quantize(palette=image.quantize(256)).save(found, "png", optimize=True)
    target.write_bytes(found.getvalue())


# -- the Dagster UI -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def ui(folder: Path | None = None) -> Iterator[str]:
    """The Dagster UI of this folder, or of a copy, on a free port of loopback; without the daemon."""
    environment = of_copy(folder) if folder else dict(os.environ)
    with dagster_ui(environment, Path(os.devnull), folder) as address:
        yield address


@contextlib.contextmanager
def ui_page(address: str, width: int, height: int) -> Iterator[Page]:
    """A page of the UI without its greeting and without the navigation at the left."""
    with open_page(width, height) as (page, _):
        page.add_init_script("localStorage.setItem('communityNux', '\"1\"')")
        page.goto(address, wait_until="load", timeout=120_000)
        with contextlib.suppress(Exception):  # the greeting of an instance that no browser has seen
            page.get_by_role("button", name="Skip").click(timeout=5_000)
        page.get_by_text("Hide navigation").click(timeout=60_000)
        page.reload(wait_until="load", timeout=120_000)  # graphs are fitted to the page as it is when they come
        page.add_style_tag(content=".dialog-backdrop, [class*=overlay-backdrop] { background: #0002 !important }")
        page.wait_for_timeout(6_000)
        yield page


def asset_graph(address: str, target: Path) -> None:
    """The asset graph with all its groups unfolded."""
    with ui_page(f"{address}/asset-groups", 1600, 3300) as page:
        page.get_by_placeholder("Jump to").locator("xpath=following::button[1]").click()
        page.keyboard.press("Alt+e")
        page.wait_for_timeout(4_000)
        page.reload(wait_until="load", timeout=120_000)
        page.wait_for_timeout(8_000)
        corners = page.eval_on_selector_all(
            "svg foreignObject",
            "all => all.map(one => one.getBoundingClientRect()).map(r => [r.left, r.top, r.right, r.bottom])",
        )
        left, top, right, bottom = (f(c[n] for c in corners) for n, f in enumerate((min, min, max, max)))
        keep(page.screenshot(), target, (left - 16, top - 16, right + 16, bottom + 16))


def asset_with_map(address: str, target: Path) -> None:
    """The metadata of a partition, its map open."""
    with ui_page(f"{address}/assets/image_metadata?view=partitions&partition={BOX}%7Cdemo", 1280, 820) as page:
        page.get_by_role("row", name="map", exact=False).get_by_text("[Show Markdown]").first.click()
        page.wait_for_timeout(2_000)
        keep(page.screenshot(), target)


def lineage(address: str, target: Path) -> None:
    """What an asset is made from and what is made of it."""
    with ui_page(f"{address}/assets/image_metadata?view=lineage", 1280, 960) as page:
        page.wait_for_timeout(3_000)
        keep(page.screenshot(), target)


def column_lineage(address: str, target: Path) -> None:
    """What each column of a table in SQL is made of."""
    with ui_page(f"{address}/assets/box_quality?view=partitions&partition=demo", 1280, 900) as page:
        page.get_by_role("row", name="made_of", exact=False).get_by_text("[Show Markdown]").first.click()
        page.wait_for_timeout(2_000)
        keep(page.screenshot(), target)


def failed_check(address: str, target: Path) -> None:
    """A check that failed, with the rows that break it."""
    where = f"{address}/assets/reconstruction_funnel?view=checks&checkDetail={FEATURED}"
    with ui_page(where, 1280, 680) as page:
        page.get_by_text("Plots", exact=True).click()  # folds them: of two runs there is little to see
        page.wait_for_timeout(1_000)
        keep(page.screenshot(), target)


def of_copy(folder: Path) -> dict[str, str]:
    """The environment of what works on a copy of lake and instance. It works there, too: of ``.env`` Dagster thinks more."""
    return {**os.environ, "GEO_ASSETS_LAKE": str(folder / "lake"), "DAGSTER_HOME": str(folder / "home")}


@contextlib.contextmanager
def broken_copy(lake: Lake) -> Iterator[Path]:
    """A copy of the tables and the instance, in which the list of a box's files was lost.

    The tables in SQL are made again there, so that their checks meet what is left.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(Path(lake.root, "tables"), folder / "lake" / "tables")
        shutil.copytree(os.environ["DAGSTER_HOME"], folder / "home")
        (lost,) = (folder / "lake" / "tables" / "image_files" / "city=demo" / f"box={BOX}").iterdir()
        lost.unlink()
        command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "geo_assets.definitions"]
        command += ["--select", "stg_images,stg_boxes,reconstruction_funnel", "--partition", "demo"]
        run = subprocess.run(command, cwd=folder, env=of_copy(folder), capture_output=True, text=True, check=False)
        if FEATURED not in run.stdout + run.stderr:
            raise click.ClickException(f"The check {FEATURED} did not run: {run.stderr[-2000:]}")
        yield folder


# -- maps and splats ----------------------------------------------------------------------------------------


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
        # In the outer corners, away from the crossing.
        lower = b.south < grid.origin_lat + 0.5 * grid.step_lat
        axes.text(
            b.west + 0.03 * (b.east - b.west),
            b.south + 0.05 * (b.north - b.south) if lower else b.north - 0.05 * (b.north - b.south),
            f"{box}\n{row['n_images']:.0f} images, {row['n_registered']:.0f} registered\n{row['psnr_db']:.1f} dB held out",
            va="bottom" if lower else "top", fontsize=9,
        )  # fmt: skip
    axes.set_aspect(grid.step_lon and grid.step_lat and grid.step_lon / grid.step_lat)
    axes.set_xlabel("longitude [deg]")
    axes.set_ylabel("latitude [deg]")
    axes.ticklabel_format(useOffset=False)
    axes.tick_params(labelsize=7)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.07), ncols=2, fontsize=8, frameon=False)
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn)
    keep(drawn.getvalue(), target)


def viewer(address: str, target: Path) -> None:
    """A page of the SuperSplat viewer, without its buttons."""
    with open_page(960, 540) as (page, _):
        page.goto(f"{address}?noui", wait_until="load", timeout=120_000)
        wait_until_drawn(page)
        page.wait_for_timeout(5_000)
        keep(page.screenshot(timeout=120_000), target)


def globe(address: str, target: Path) -> None:
    """The tiles of a city in CesiumJS, once all that are in view have come."""
    with open_page(960, 540) as (page, _):
        page.goto(address, wait_until="load", timeout=120_000)
        page.wait_for_function(
            "() => window.splatGlobe && window.splatGlobe.tileset.tilesLoaded"
            " && window.splatGlobe.tileset.gaussianSplatPrimitive?.isStable",
            timeout=300_000,
        )
        page.wait_for_timeout(5_000)
        keep(page.screenshot(timeout=120_000), target)


def city_map(lake: Lake, target: Path, *, width: int = 1280, height: int = 800, place: str = f"#/demo/{BOX}") -> None:
    """The map of ``geo-assets serve`` with one box open."""
    from geo_assets.serve.app import application

    app = application(lake, load, hosts=serve.allowed_hosts(serve.LOOPBACK))
    with serve.in_background(app) as address, open_page(width, height) as (page, _):
        page.goto(address + place)
        page.wait_for_function("place => document.body.dataset.shown === place", arg=place, timeout=120_000)
        page.wait_for_timeout(3_000)  # images and ways come when the map is at rest
        keep(page.screenshot(timeout=120_000), target)


def splats(lake: Lake) -> None:
    """The pages of splats: of a box from the disk, of the city and on the globe from a server."""
    viewer(Path(lake.uri(lake.key("splats", "viewer.html", city="demo", box=BOX))).as_uri(), TARGET / "splat.png")
    folders = {f"pages/{pinned().folder}": fetched(cesium_folder(lake), click.echo)} | serve.folders_of(lake)
    with serve.in_background(serve.application(folders)) as address:
        viewer(address + serve.web_path(lake.key("splats_city", "index.html", city="demo")), TARGET / "city.png")
        globe(address + serve.web_path(lake.key("splats_city", "globe.html", city="demo")), TARGET / "globe.png")


def maps(lake: Lake) -> None:
    """The boxes as a drawing, and the map of the web app on a desk and on a phone."""
    box_map(lake, TARGET / "boxes.png")
    city_map(lake, TARGET / "map.png")
    city_map(lake, TARGET / "map_phone.png", width=390, height=844)


def dagster(lake: Lake) -> None:
    """Pages of the Dagster UI."""
    with ui() as address:
        asset_graph(address, TARGET / "asset_graph.png")
        asset_with_map(address, TARGET / "asset.png")
        lineage(address, TARGET / "lineage.png")
        column_lineage(address, TARGET / "column_lineage.png")
    with broken_copy(lake) as folder, ui(folder) as address:
        failed_check(address, TARGET / "check.png")


KINDS = {"maps": maps, "dagster": dagster, "splats": splats}


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice(tuple(KINDS)))
def main(kinds: tuple[str, ...]) -> None:
    """Make all of them, or some KINDS, from the demo of this folder."""
    prepare_home()
    TARGET.mkdir(parents=True, exist_ok=True)
    lake = Lake(load().lake)
    if not lake.has("splat_city", city="demo"):
        raise click.ClickException(f"There is no finished demo in {lake.uri(lake.root)}. Make it: make demo")
    for kind in kinds or KINDS:
        KINDS[kind](lake)
    for path in sorted(TARGET.glob("*.png")):
        click.echo(f"{path.relative_to(TARGET.parent.parent)}  {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
