"""Commands about what was reconstructed: models and splats for other programs, and pages that show them."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

import click

from geo_assets.cli.group import Command
from geo_assets.errors import GeoAssetsError


@click.command(
    cls=Command,
    examples="""
    model lund --to models --as colmap
    model lund r00c00 --to models --as ply --as geojson
    """,
    writes="a folder for each box, FOLDER/BOX, or FOLDER/CITY for the city as a whole.",
    then="splat CITY --format ply --out FILE",
)
@click.argument("city")
@click.argument("boxes", nargs=-1)
@click.option("--to", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder to write")
@click.option(
    "--as",
    "formats",
    multiple=True,
    required=True,
    type=click.Choice(
        ["colmap", "text", "colmap3", "ply", "nvm", "undistorted", "geoparquet", "geojson"], case_sensitive=False
    ),
    help="may be repeated; colmap3 is for readers that know no rigs and frames",
)
@click.option("--component", type=click.IntRange(min=0), default=0, show_default=True, help="the largest is 0")
@click.option("--city-model", "whole", is_flag=True, help="the model of all boxes together (asset city_model)")
def model(
    city: str, boxes: tuple[str, ...], folder: Path, formats: tuple[str, ...], component: int, whole: bool
) -> None:
    """Write COLMAP models for other programs.

    They are of BOXES, by default of every box that has one. Each box becomes a folder FOLDER/BOX, the city as a whole FOLDER/CITY; an earlier export there is replaced.
    """
    from geo_assets.lake import Lake
    from geo_assets.reconstruct.export import boxes_with_models, export_model
    from geo_assets.settings import load

    if whole and (boxes or component):
        raise click.UsageError("Name boxes and a component, or --city-model, but not both.")
    settings = load()
    settings.city(city)
    lake = Lake(settings.lake)
    named = [settings.box(city, box) for box in boxes]
    chosen: list[str | None] = [None] if whole else list(named or boxes_with_models(lake, city, component))
    if not chosen:
        raise GeoAssetsError(
            f"No box of {city} has a component {component}. Make models: "
            f"geo-assets materialize --select sparse_models --city {city}"
        )
    for box in chosen:
        done = export_model(lake, city, box, formats, folder / (box or city), component)
        click.echo(f"{folder / (box or city)}: {', '.join(path.name for path in done)}")


@click.command(
    cls=Command,
    examples="""
    show demo
    show demo r00c00
    show demo --globe
    """,
    writes="nothing; the page of a splat lies in the lake.",
    then="splat CITY --format spz --out FILE",
)
@click.argument("name", default="demo")
@click.argument("box", required=False)
@click.option("--globe", is_flag=True, help="show it on the globe, in CesiumJS, which is fetched once")
@click.option("--print", "only_print", is_flag=True, help="print the page's address on this disk, open nothing")
@click.option("--host", default="127.0.0.1", show_default=True, help="where to serve; 0.0.0.0 shows it to the network")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="where to serve; any that is free by default")
def show(name: str, box: str | None, globe: bool, only_print: bool, host: str, port: int) -> None:
    """Open the splat of a city or box in the browser.

    A large city and the globe need a server; it answers this machine alone until it is stopped with Ctrl+C.
    """
    from geo_assets.lake import Lake
    from geo_assets.settings import load
    from geo_assets.splats import serve

    lake = Lake(load().lake)
    load().city(name)
    page = serve.page_of(lake, name, box, globe=globe)
    from_disk = Path(lake.uri(page.key)).absolute().as_uri() if lake.is_local else lake.uri(page.key)
    if only_print or not page.served:
        click.echo(from_disk)
        if not only_print:
            webbrowser.open(from_disk)
        return
    folders = {}
    if globe:
        from geo_assets.splats.cesium import cesium_folder, fetched, pinned

        folders = {f"pages/{pinned().folder}": fetched(cesium_folder(lake), click.echo)}
    app = serve.application(folders | serve.folders_of(lake), hosts=serve.allowed_hosts(host))
    _serve(app, host, port, serve.web_path(page.key))


@click.command(
    cls=Command,
    examples="""
    serve
    serve lund --style https://tiles.example.org/style.json
    """,
    writes="nothing.",
    then="status",
)
@click.argument("city", required=False)
@click.option("--port", type=click.IntRange(0, 65535), default=3001, show_default=True, help="0 takes one that is free")
@click.option(
    "--style", help="address of a MapLibre style for the background of the map; by default nothing outside is asked"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="where to serve")
@click.option("--public", is_flag=True, help="the whole network may see it: needed with another --host")
@click.option("--no-browser", is_flag=True, help="open no browser")
def serve(city: str | None, port: int, style: str | None, host: str, public: bool, no_browser: bool) -> None:
    """Show every city on a map in the browser.

    Boxes by state and quality, their certificates, photos beside renders, splats and credits, and the cells of the
    photos. It reads the lake, and looks again by itself while other commands work. Ctrl+C stops it.
    """
    from geo_assets.serve.command import run

    run(city, say=click.echo, port=port, host=host, public=public, style=style, browser=not no_browser)


@click.command(
    cls=Command,
    examples="""
    splat demo r00c00 --format spz --out street.spz
    splat demo --format tiles --out globe/
    """,
    writes="one file, or with tiles a folder with a page that shows them.",
    then="globe FOLDER",
)
@click.argument("city")
@click.argument("box", required=False)
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["ply", "spz", "compressed.ply", "tiles"]),
    help="ply: every program, 100 bytes a Gaussian; compressed.ply: SuperSplat and PlayCanvas, a quarter of it; "
    "spz: a fifth; tiles: 3D Tiles for CesiumJS, with a page that shows them",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="file to write, or a folder; with tiles a folder"
)
@click.option(
    "--version",
    type=click.IntRange(2, 3),
    default=3,
    show_default=True,
    help="of SPZ: 3 has finer rotations, 2 is what glTF readers expect",
)
@click.option("--sky", is_flag=True, help="with the sky, which is kept apart from the place")
def splat(city: str, box: str | None, form: Any, out: Path, version: int, sky: bool) -> None:
    """Write the splat of a city or box for another program."""
    from geo_assets.lake import Lake
    from geo_assets.settings import load
    from geo_assets.splats.exports import export_splat

    if sky and form == "tiles":
        raise click.UsageError("Tiles hold the place alone: a globe has a sky of its own.")
    settings = load()
    settings.city(city)
    box = settings.box(city, box) if box else None
    done = export_splat(Lake(settings.lake), city, box, form, out, version=version, sky=sky)
    for path, size in list(done.items())[:5]:
        click.echo(f"{path}: {size:,} bytes")
    if len(done) > 5:
        click.echo(f"{len(done)} files in {out}: {sum(done.values()):,} bytes")


@click.command(
    cls=Command,
    examples="globe globe/",
    writes="CesiumJS into the lake, once.",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="where to serve; any that is free by default")
@click.option("--print", "only_print", is_flag=True, help="print the address, open nothing")
def globe(folder: Path, port: int, only_print: bool) -> None:
    """Show tiles that were written to a folder on the globe.

    FOLDER is what `splat --format tiles` wrote. Ctrl+C stops it. Of what is in the lake, `show --globe` shows the same. CesiumJS is fetched once with npm (23 MB).
    """
    from geo_assets.lake import Lake
    from geo_assets.settings import load
    from geo_assets.splats import serve
    from geo_assets.splats.cesium import cesium_folder, fetched, pinned

    if not (folder / "globe.html").is_file():
        raise GeoAssetsError(
            f"{folder} has no globe.html. Write one: geo-assets splat CITY --format tiles --out {folder}"
        )
    cesium = fetched(cesium_folder(Lake(load().lake)), click.echo)
    app = serve.application({pinned().folder: cesium, "": folder}, hosts=serve.allowed_hosts(serve.LOOPBACK))
    _serve(app, serve.LOOPBACK, port, "globe.html", only_print)


def _serve(app: Any, host: str, port: int, path: str, only_print: bool = False) -> None:
    """Serve an application until it is stopped, and open one of its pages."""
    from geo_assets.splats import serve

    with serve.listening(host, port) as listener:
        address = serve.address(listener, path)
        click.echo(f"{address}\nCtrl+C stops the server.")
        if not only_print:
            webbrowser.open(address)
        serve.serve(app, listener)


COMMANDS = (model, show, serve, splat, globe)
