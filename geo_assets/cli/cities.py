"""Commands about the cities of the settings file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geo_assets.cli.group import Group, numbers

if TYPE_CHECKING:
    from geo_assets.lake import Lake
    from geo_assets.settings import City


@click.group(cls=Group)
def city() -> None:
    """Add, list, show and remove cities."""


@city.command(
    "add",
    examples="""
    city add amsterdam
    city add san_francisco --bbox -122.52,37.70,-122.35,37.83
    city add malmo --aoi malmo.geojson --box-m 1000
    city add lund --photos photos/lund
    """,
    writes="a section [cities.NAME] of geo_assets.toml, with the grid's corner, so that names of boxes never move.",
    then="""
    harvest NAME --dry-run
    materialize --select splat_ply --city NAME
    """,
)
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
        place = _checked(bbox=PRESETS[name], box_m=box_m)
    elif photos is not None:
        from geo_assets.harvest.photos import photo_city

        place = photo_city(photos.absolute(), box_m)
    elif aoi is not None:
        from geo_assets.harvest.aoi import bounds_of

        place = _checked(bbox=bounds_of(aoi), box_m=box_m, aoi=aoi.absolute())
    else:
        place = _checked(bbox=numbers(bbox or ""), box_m=box_m)
    assert isinstance(place, City)
    path = add_city(name, place)
    grid = place.grid
    count = f"{grid.rows} x {grid.columns} = {len(grid)} boxes" if len(grid) > 1 else "one box"
    click.echo(f"Added {name} to {path.name}: {count} of {box_m:g} m.")
    if place.photos is None and not os.environ.get("MAPILLARY_TOKEN"):
        click.echo("Mapillary wants a token: put MAPILLARY_TOKEN=MLY|... into .env (it is never logged).")
    click.echo(f"Next: geo-assets materialize --select splat_ply --city {name}")


@city.command("presets", examples="city presets", writes="nothing.", then="city add amsterdam")
def city_presets() -> None:
    """List the cities that `city add NAME` knows without --bbox."""
    from geo_assets.places import PRESETS

    for name, bounds in PRESETS.items():
        click.echo(f"{name:<20} {','.join(f'{v:g}' for v in bounds)}")


@city.command(
    "list",
    examples="city list",
    writes="nothing.",
    then="""
    city show NAME
    status
    """,
)
def city_list() -> None:
    """List the cities with their grids and sources."""
    from geo_assets.settings import load

    for name, place in load().cities.items():
        source = _source(place)
        click.echo(f"{name:<20} {place.grid.rows:>3} x {place.grid.columns:<3} boxes of {place.box_m:g} m   {source}")


@city.command(
    "show",
    examples="""
    city show demo
    city show lund --boxes
    """,
    writes="nothing.",
    then="status NAME",
)
@click.argument("name")
@click.option("--boxes", "all_boxes", is_flag=True, help="every box; by default the first twenty that were asked about")
def city_show(name: str, all_boxes: bool) -> None:
    """Say where a city is, where its images come from, how far it is and where its files lie."""
    from geo_assets.lake import Lake
    from geo_assets.settings import load, settings_path
    from geo_assets.status import city_lines, city_status

    settings = load()
    place, lake = settings.city(name), Lake(settings.lake)
    grid = place.grid
    rows = {
        "bounds": f"{', '.join(f'{v:g}' for v in place.bbox)} (west, south, east, north in degrees)",
        "grid": f"{grid.rows} x {grid.columns} = {len(grid):,} boxes of {place.box_m:g} m; corner {grid.origin_lon:g}, {grid.origin_lat:g}",
        "area": f"inside {place.aoi}" if place.aoi else "the whole rectangle",
        "source": _source(place),
        "filters": ", ".join(f"{k} = {v}" for k, v in place.select.model_dump(exclude_defaults=True).items()) or "none",
        "settings": f"{settings_path()}",
        "lake": lake.uri(lake.root),
    }
    click.echo(name)
    for title, said in rows.items():
        click.echo(f"  {title:<9} {said}")
    for what, size in _by_kind(_sizes(lake, name)).items():
        click.echo(f"  {'':<9} {_megabytes(size):>10}  {what}")
    (found,) = city_status(lake, settings, [name])
    click.echo("\n".join(city_lines(found)))
    shown = list(found.box_states.items())[: None if all_boxes else 20]
    for box, state in shown:
        click.echo(f"  {box}  {state}")
    if len(shown) < len(found.box_states):
        click.echo(f"  ... and {len(found.box_states) - len(shown):,} more: geo-assets city show {name} --boxes")


@city.command(
    "remove",
    examples="""
    city remove lund
    city remove lund --data
    """,
    writes="geo_assets.toml without the city, all other lines and comments as they were; with --data the lake loses its tables and files.",
    then="city list",
)
@click.argument("name")
@click.option("--data", is_flag=True, help="remove its tables and files from the lake as well")
@click.option("--yes", is_flag=True, help="do not ask before data are removed")
def city_remove(name: str, data: bool, yes: bool) -> None:
    """Take a city out of the settings; its tables and files stay in the lake unless --data is given."""
    from geo_assets.lake import Lake
    from geo_assets.settings import load, remove_city

    lake = Lake(load().lake)
    sizes = _sizes(lake, name) if name in load().cities else []
    total = sum(size for _, size in sizes)
    if not data:
        path = remove_city(name)
        click.echo(f"Removed {name} from {path.name}.")
        if sizes:
            click.echo(
                f"The lake keeps {_megabytes(total)} of it in {len(sizes)} folders. Add the city again to remove them with --data."
            )
        return
    if sizes and not yes:
        question = f"Remove {name} and {len(sizes)} folders of it, {_megabytes(total)} ({total:,} bytes), from {lake.uri(lake.root)}?"
        click.confirm(question, abort=True)
    path = remove_city(name)  # first: it refuses what is none of the file's, before anything is gone
    for key, _ in sizes:
        lake.remove_folder(key)
    click.echo(f"Removed {name} from {path.name}, and {total:,} bytes in {len(sizes)} folders from the lake.")
    click.echo(
        "Tables of all cities together still count it until they are made again: geo-assets materialize --select group:marts"
    )


def _source(place: City) -> str:
    from geo_assets.settings import EMBEDDED

    if place.graph_url == EMBEDDED:
        return "demo world"
    return (
        f"photos in {place.photos}"
        if place.photos
        else f"Mapillary{f' at {place.graph_url}' if place.graph_url else ''}"
    )


def _sizes(lake: Lake, name: str) -> list[tuple[str, int]]:
    """Each folder of the lake that is the city's own, with its size [B], the largest first."""
    return sorted(((key, lake.bytes_below(key)) for key in lake.folders_of(name)), key=lambda item: -item[1])


def _by_kind(sizes: list[tuple[str, int]]) -> dict[str, int]:
    """Bytes of the tables together, and of each kind of file; what is below a megabyte is one entry."""
    found: dict[str, int] = {}
    for key, size in sizes:
        what = "tables" if key.startswith("tables/") else key if size >= 1e6 else "other files"
        found[what] = found.get(what, 0) + size
    return found


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _checked(**fields: Any) -> Any:
    from pydantic import ValidationError

    from geo_assets.settings import City

    try:
        return City(**fields)
    except ValidationError as error:
        raise click.BadParameter("; ".join(e["msg"] for e in error.errors()), param_hint="city") from None


COMMANDS = (city,)
