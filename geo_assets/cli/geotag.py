"""Commands about photo coordinates and the cells of a geolocation model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from geo_assets.cli.group import Command, numbers


@click.command(
    cls=Command,
    examples="""
    geotag --out photos.csv
    geotag --out train.csv --source flickr_geotag --split train
    """,
    writes="one CSV file with the header path,lat,lon.",
    then="cells --out FOLDER",
)
@click.option(
    "--out", "target", required=True, type=click.Path(dir_okay=False, path_type=Path), help="CSV file to write"
)
@click.option("--source", help="only this photo set: placing_2016, google_landmark, flickr_geotag or mapillary")
@click.option("--split", help="only train, validation or test")
@click.option(
    "--null-islands", is_flag=True, help="photos at longitude and latitude zero as well: their place is unknown"
)
def geotag(target: Path, source: str | None, split: str | None, null_islands: bool) -> None:
    """Write all photo coordinates as a CSV file.

    It is what training scripts read, with the header path,lat,lon.
    """
    from geo_assets.geotag.export import export_csv
    from geo_assets.lake import Lake
    from geo_assets.settings import load

    settings = load()
    lake = Lake(settings.lake)
    n = export_csv(lake, target, settings.geotag, source=source, split=split, null_islands=null_islands)
    click.echo(f"{target}: {n:,} photos")


@click.command(
    cls=Command,
    examples="""
    cells --out cells
    cells --out cells --hulls
    """,
    writes="photos, structure and centroids of all levels as CSV files; with --hulls GeoParquet files for a GIS.",
)
@click.option(
    "--out", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder to write"
)
@click.option("--include-noise", is_flag=True, help="noise as -1 in every level, as earlier scripts had it")
@click.option("--hulls", is_flag=True, help="write the hulls of the cells for a GIS as well, a GeoParquet file a level")
def cells(folder: Path, include_noise: bool, hulls: bool) -> None:
    """Write the cells of a geolocation model as CSV files.

    Photos, structure and centroids are as earlier training scripts read them. Tables s2_cells and quadtree_cells, where
    they were made, become files in the columns of GeoEstimation and OSV-5M.
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


@click.command(
    cls=Command,
    examples="""
    cluster points.parquet --out clusters
    cluster points.csv --out clusters --region 11.3,48.0,11.8,48.3 --judge
    """,
    writes="the labels, the levels and their centroids, and the model that places new points, into the folder.",
)
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
    """Cluster any table of points on the globe.

    The clusters are nested in levels of cells. POINTS is parquet or CSV with columns lon and lat in degrees, and perhaps
    photo_id. Neither a lake nor Dagster is needed.
    """
    from geo_assets.geotag.command import Options, cluster_file, sentences

    bounds = numbers(region, "--region") if region else None
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


COMMANDS = (geotag, cells, cluster)
