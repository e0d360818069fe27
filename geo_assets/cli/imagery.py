"""Commands about the imagery of a city: harvest it, and write it for other programs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from geo_assets.cli.group import Command
from geo_assets.home import find_home


@click.command(
    cls=Command,
    examples="""
    harvest lund --dry-run
    harvest lund --files
    """,
    writes="tables of images, sequences and certificates in the lake; with --files the JPEG files and their EXIF.",
    then="""
    materialize --select splat_ply --city CITY --missing
    export CITY --out FOLDER
    """,
)
@click.argument("city")
@click.option("--files", is_flag=True, help="fetch the image files as well")
@click.option("--dry-run", is_flag=True, help="say what it will take, from the coverage tiles alone")
@click.option("--renew", is_flag=True, help="ask again about boxes whose tiles have not changed")
@click.option("--json", "as_json", is_flag=True, help="end with one line of JSON")
def harvest(city: str, files: bool, dry_run: bool, renew: bool, as_json: bool) -> None:
    """Fetch the imagery of a city: metadata, and files.

    It ends with 0 only when nothing is known to be missing. It can be killed at any moment: run again, it asks for no answer that it has.
    """
    from geo_assets.harvest.command import run_harvest

    home = find_home()
    code = run_harvest(city, click.echo, files=files, dry_run=dry_run, renew=renew, as_json=as_json)
    if home is not None and not dry_run:
        from geo_assets.recording import record_harvest

        record_harvest(city)
    sys.exit(code)


@click.command(
    cls=Command,
    examples="""
    export lund --out lund
    export lund --out lund --format geojson --selected
    export lund --out credits --format attribution
    """,
    writes="images.gpkg, images.parquet, images.csv or images.geojson into the folder, always with the credits (attribution.csv, ATTRIBUTION.md, attribution.html) and a README.md that says how complete it is.",
)
@click.argument("city")
@click.option(
    "--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder to write"
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["gpkg", "parquet", "csv", "geojson", "attribution"]),
    help="may be repeated; gpkg, parquet and csv by default; attribution is the credits alone",
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
    """Write images, sequences and boxes for a GIS, and credits.

    The credits are what the licence of the images asks for.
    """
    from geo_assets.harvest.export import DEFAULT_FORMATS, export_city, export_shards
    from geo_assets.lake import Lake
    from geo_assets.settings import load

    settings = load()
    settings.city(city)
    lake = Lake(settings.lake)
    done = export_city(
        lake, city, folder, formats or DEFAULT_FORMATS, without=without, also=also, only_selected=selected
    )
    names = [path.name for path in done.files]
    names += export_shards(lake, city, folder, shards) if shards else []
    click.echo(f"{folder}: {', '.join(sorted(names))}")


COMMANDS = (harvest, export)
