"""``geo-assets``: cities, materialization, the demo and the UI from one command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any, NoReturn

import click

from geo_assets.errors import GeoAssetsError
from geo_assets.home import find_home, load_env_file, prepare_home


class _Group(click.Group):
    """Ends with the sentence of an error that a user can act on, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GeoAssetsError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="geo-assets")
def main() -> None:
    """A place on the map, turned into Gaussian splats and geolocation data.

    Begin with:  geo-assets demo

    Then a city of your own:  geo-assets city add lund --photos FOLDER
    """
    load_env_file()


@main.group()
def city() -> None:
    """Cities of the settings file geo_assets.toml."""


@city.command("add")
@click.argument("name")
@click.option("--bbox", help="west,south,east,north in degrees, longitude first: -122.52,37.70,-122.35,37.83")
@click.option(
    "--aoi",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="GeoJSON file with a polygon; images outside it are dropped",
)
@click.option(
    "--photos",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="folder of your own photos with GPS in their EXIF, instead of Mapillary",
)
@click.option(
    "--box-m", type=float, default=500.0, show_default=True, help="side of a box [m]; a box is the unit of work"
)
def city_add(name: str, bbox: str | None, aoi: Path | None, photos: Path | None, box_m: float) -> None:
    """Add a city: a rectangle, a polygon, or a folder of photos; some are known by name (city presets)."""
    from geo_assets.places import PRESETS
    from geo_assets.settings import City, add_city

    n_places = sum(option is not None for option in (bbox, aoi, photos))
    if n_places > 1 or (not n_places and name not in PRESETS):
        raise click.UsageError("Say where the city is with exactly one of --bbox, --aoi and --photos.")
    if not n_places:
        place = _city(bbox=PRESETS[name], box_m=box_m)
    elif photos is not None:
        from geo_assets.harvest.photos import photo_city

        place = photo_city(photos.absolute(), box_m)
    elif aoi is not None:
        from geo_assets.harvest.aoi import bounds_of

        place = _city(bbox=bounds_of(aoi), box_m=box_m, aoi=aoi.absolute())
    else:
        place = _city(bbox=_numbers(bbox or ""), box_m=box_m)
    assert isinstance(place, City)
    path = add_city(name, place)
    grid = place.grid
    count = f"{grid.rows} x {grid.columns} = {len(grid)} boxes" if len(grid) > 1 else "one box"
    click.echo(f"Added {name} to {path.name}: {count} of {box_m:g} m.")
    if place.photos is None and not os.environ.get("MAPILLARY_TOKEN"):
        click.echo("Mapillary wants a token: put MAPILLARY_TOKEN=MLY|... into .env (it is never logged).")
    click.echo(f"Next: geo-assets materialize --select splat_ply --city {name}")


@city.command("presets")
def city_presets() -> None:
    """List the cities that `city add NAME` knows without --bbox."""
    from geo_assets.places import PRESETS

    for name, bounds in PRESETS.items():
        click.echo(f"{name:<20} {','.join(f'{v:g}' for v in bounds)}")


@city.command("list")
def city_list() -> None:
    """List the cities with their grids and sources."""
    from geo_assets.settings import EMBEDDED, load

    for name, place in load().cities.items():
        source = "demo world" if place.graph_url == EMBEDDED else str(place.photos) if place.photos else "Mapillary"
        click.echo(f"{name:<20} {place.grid.rows:>3} x {place.grid.columns:<3} boxes of {place.box_m:g} m   {source}")


@main.command()
@click.argument("city")
@click.option("--files", is_flag=True, help="fetch the image files as well")
@click.option("--dry-run", is_flag=True, help="say what it will take, from the coverage tiles alone")
@click.option("--renew", is_flag=True, help="ask again about boxes whose tiles have not changed")
@click.option("--json", "as_json", is_flag=True, help="end with one line of JSON")
def harvest(city: str, files: bool, dry_run: bool, renew: bool, as_json: bool) -> None:
    """Harvest every box of a city; it ends with 0 only when nothing is known to be missing.

    It can be killed at any moment: run again, it asks for no answer that it has.
    """
    from geo_assets.harvest.command import run_harvest

    home = find_home()
    code = run_harvest(city, click.echo, files=files, dry_run=dry_run, renew=renew, as_json=as_json)
    if home is not None and not dry_run:
        from geo_assets.recording import record_harvest

        record_harvest(city)
    sys.exit(code)


@main.command()
@click.argument("city")
@click.option(
    "--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder to write"
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["gpkg", "parquet", "csv"]),
    help="may be repeated; all three by default",
)
@click.option(
    "--without",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="an older harvest (GPKG, parquet or CSV) whose images and sequences are left out",
)
@click.option(
    "--also",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="an older harvest that is merged in, each image once",
)
@click.option("--selected", is_flag=True, help="only the images that the city's filters select")
@click.option("--shards", type=click.IntRange(min=1), help="so many equal lists of the image files, for parallel work")
def export(
    city: str,
    folder: Path,
    formats: tuple[str, ...],
    without: tuple[Path, ...],
    also: tuple[Path, ...],
    selected: bool,
    shards: int | None,
) -> None:
    """Write a city's images, sequences and boxes for a GIS, with the credits that their licence asks for."""
    from geo_assets.harvest.export import FORMATS, export_city, export_shards
    from geo_assets.lake import Lake
    from geo_assets.settings import load

    settings = load()
    settings.city(city)
    lake = Lake(settings.lake)
    done = export_city(lake, city, folder, formats or FORMATS, without=without, also=also, only_selected=selected)
    names = [path.name for path in done.files]
    names += export_shards(lake, city, folder, shards) if shards else []
    click.echo(f"{folder}: {', '.join(sorted(names))}")


@main.command()
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
    """Write sparse models for other programs: of BOXES, by default of every box that has one.

    Each box becomes a folder FOLDER/BOX, the city as a whole FOLDER/CITY; an earlier export there is replaced.
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


@main.command()
@click.option(
    "--out", "target", required=True, type=click.Path(dir_okay=False, path_type=Path), help="CSV file to write"
)
@click.option("--source", help="only this photo set: placing_2016, google_landmark, flickr_geotag or mapillary")
@click.option("--split", help="only train, validation or test")
@click.option(
    "--null-islands", is_flag=True, help="photos at longitude and latitude zero as well: their place is unknown"
)
def geotag(target: Path, source: str | None, split: str | None, null_islands: bool) -> None:
    """Write the combined photo coordinates as a CSV file for training scripts, with the header path,lat,lon."""
    from geo_assets.geotag.export import export_csv
    from geo_assets.lake import Lake
    from geo_assets.settings import load

    settings = load()
    lake = Lake(settings.lake)
    n = export_csv(lake, target, settings.geotag, source=source, split=split, null_islands=null_islands)
    click.echo(f"{target}: {n:,} photos")


@main.command()
@click.option(
    "--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder to write"
)
@click.option("--include-noise", is_flag=True, help="noise as -1 in every level, as earlier scripts had it")
@click.option("--hulls", is_flag=True, help="write the hulls of the cells for a GIS as well, a GeoParquet file a level")
def cells(folder: Path, include_noise: bool, hulls: bool) -> None:
    """Write photos, structure and centroids of the cells as the CSV files that earlier training scripts read.

    Tables s2_cells and quadtree_cells, where they were made, become files in the columns of GeoEstimation and OSV-5M.
    """
    from geo_assets.geotag.hierarchy_export import export_hierarchy
    from geo_assets.geotag.hulls import write_hulls
    from geo_assets.geotag.quarter_cells import export_cells
    from geo_assets.lake import Lake
    from geo_assets.settings import load

    settings = load()
    lake = Lake(settings.lake)
    written = export_hierarchy(lake, folder, settings.geotag, include_noise=include_noise)
    written += export_cells(lake, folder)
    written += write_hulls(lake, folder) if hulls else []
    click.echo(f"{folder}: {', '.join(path.name for path in written)}")


@main.command()
@click.argument("points", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder to write"
)
@click.option("--min-cluster-size", type=click.IntRange(min=2), default=5, show_default=True, help="fewest places")
@click.option(
    "--min-samples", type=click.IntRange(min=1), default=2, show_default=True, help="neighbours of a dense place"
)
@click.option(
    "--engine",
    type=click.Choice(["own", "hdbscan"]),
    default="own",
    show_default=True,
    help="who finds the spanning tree: our own code, or the library (the same tree, slower)",
)
@click.option(
    "--method",
    type=click.Choice(["tree", "kmeans"]),
    default="tree",
    show_default=True,
    help="how the levels above the clusters are made",
)
@click.option("--region", help="west,south,east,north: draw the condensed tree of this region as tree.png")
@click.option("--hulls", is_flag=True, help="write the hulls of the cells for a GIS, a GeoParquet file a level")
@click.option("--judge", is_flag=True, help="hold places out and measure how far off the cells are")
@click.option(
    "--others", is_flag=True, help="write S2 cells and boxes of degrees too, as GeoEstimation and OSV-5M cut them"
)
@click.option("--csv", is_flag=True, help="write the levels as the three CSV files of earlier training scripts too")
@click.option("--pickle", is_flag=True, help="write model.pkl too, for scripts that unpickle an hdbscan.HDBSCAN")
@click.option("--json", "as_json", is_flag=True, help="print the summary as JSON; progress goes to stderr")
def cluster(
    points: Path,
    folder: Path,
    min_cluster_size: int,
    min_samples: int,
    engine: Any,
    method: Any,
    region: str | None,
    hulls: bool,
    judge: bool,
    others: bool,
    csv: bool,
    pickle: bool,
    as_json: bool,
) -> None:
    """Cluster any table of points on the globe, and nest the clusters in levels of cells.

    POINTS is parquet or CSV with columns lon and lat in degrees, and perhaps photo_id. Neither a lake nor Dagster is
    needed.
    """
    from geo_assets.geotag.command import Options, cluster_file, sentences

    bounds = _numbers(region, "--region") if region else None
    options = Options(
        min_cluster_size,
        min_samples,
        engine,
        method,
        region=bounds,
        pickle=pickle,
        hulls=hulls,
        judge=judge,
        others=others,
        csv=csv,
    )
    summary = cluster_file(points, folder, options, lambda line: click.echo(line, err=True))
    click.echo(json.dumps(summary) if as_json else sentences(summary, folder))


@main.command()
@click.option(
    "--select",
    "selection",
    required=True,
    help="assets in Dagster's selection syntax: splat_ply, '*splat_ply', 'group:geotag'",
)
@click.option("--city", "cities", multiple=True, help="only this city (may be repeated); all by default")
@click.option(
    "--box", "boxes", multiple=True, help="only this box (may be repeated); every box that holds images by default"
)
@click.option("--missing", is_flag=True, help="leave alone what is there already, even if selected")
@click.option("--verbose", is_flag=True, help="show Dagster's own log")
def materialize(selection: str, cities: tuple[str, ...], boxes: tuple[str, ...], missing: bool, verbose: bool) -> None:
    """Materialize assets for every box that holds images, upstream first where it is missing."""
    if boxes and len(cities) != 1:
        raise click.UsageError("A box belongs to a city: give exactly one --city with --box.")
    prepare_home()
    outcome = _materializer(verbose).run(selection, cities, boxes, only_missing=missing)
    click.echo(f"{len(outcome.done)} runs done, {outcome.skipped} boxes without images, {len(outcome.failed)} failed.")
    if outcome.failed:
        for place, reason in outcome.failed.items():
            click.echo(f"  {place}: {reason}", err=True)
        sys.exit(1)


@main.command()
@click.option("--verbose", is_flag=True, help="show Dagster's own log")
def demo(verbose: bool) -> None:
    """Run the whole graph for the embedded demo city; a killed run resumes where it was."""
    from geo_assets.demo.run import run_demo

    prepare_home()
    sys.exit(run_demo(lambda: _materializer(verbose), click.echo))


@main.command()
@click.argument("name", default="demo")
@click.argument("box", required=False)
@click.option("--globe", is_flag=True, help="show it on the globe, in CesiumJS, which is fetched once")
@click.option("--print", "only_print", is_flag=True, help="print the page's address on this disk, open nothing")
@click.option("--host", default="127.0.0.1", show_default=True, help="where to serve; 0.0.0.0 shows it to the network")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="where to serve; any that is free by default")
def show(name: str, box: str | None, globe: bool, only_print: bool, host: str, port: int) -> None:
    """Open the splat of a city, or of one of its boxes, in the browser.

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


@main.command()
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
    """Write the splat of a BOX, or of the whole CITY, in a format for another program.

    geo-assets splat demo r00c00 --format spz --out street.spz

    geo-assets splat demo --format tiles --out globe/
    """
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


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="where to serve; any that is free by default")
@click.option("--print", "only_print", is_flag=True, help="print the address, open nothing")
def globe(folder: Path, port: int, only_print: bool) -> None:
    """Show the tiles that `splat --format tiles` wrote to FOLDER on the globe; Ctrl+C stops it.

    Of what is in the lake, `show --globe` shows the same. CesiumJS is fetched once with npm (23 MB).
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


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def dev(arguments: tuple[str, ...]) -> NoReturn:
    """Open the Dagster UI on http://127.0.0.1:3000, on the same instance as this command line."""
    prepare_home()
    command = [sys.executable, "-m", "dagster", "dev", "-m", "geo_assets.definitions", *arguments]
    os.execv(sys.executable, command)


@main.command()
def definitions() -> None:
    """Check that the code location loads."""
    command = [sys.executable, "-m", "dagster", "definitions", "validate", "-m", "geo_assets.definitions"]
    sys.exit(subprocess.run(command, check=False).returncode)


def _materializer(verbose: bool) -> Any:
    import dagster as dg

    from geo_assets.definitions import defs
    from geo_assets.lake import Lake
    from geo_assets.materialize import Materializer
    from geo_assets.partitions import settings

    return Materializer(
        defs, settings, Lake(settings.lake), dg.DagsterInstance.get(), click.echo, "INFO" if verbose else "CRITICAL"
    )


def _numbers(text: str, option: str = "--bbox") -> tuple[float, float, float, float]:
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"'{text}' is not west,south,east,north in degrees.", param_hint=option) from None
    return west, south, east, north


def _city(**fields: Any) -> Any:
    from pydantic import ValidationError

    from geo_assets.settings import City

    try:
        return City(**fields)
    except ValidationError as error:
        raise click.BadParameter("; ".join(e["msg"] for e in error.errors()), param_hint="city") from None


if __name__ == "__main__":
    main()
