"""How far off cells are for photos held out by place: python benchmarks/cells.py POINTS... [--published CSV].

Points are parquet or CSV files with longitude and latitude [deg], by any of their usual names or as ``lon_e6, lat_e6``
[1e-6 deg]; several files are one set. Prints the table of the hierarchy's levels beside other partitions with as many
cells, each figure as the mean over the places held out with different seeds, and the CPU seconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from geo_assets.geotag.csvs import LAT_NAMES, LON_NAMES, recognised
from geo_assets.geotag.judge import MOST_PLACES, WITHIN_KM, judge, sample
from geo_assets.geotag.published import read_cells


def read_points(paths: tuple[Path, ...]) -> pd.DataFrame:
    """Distinct places ``lon, lat`` [deg] and their ``n_photos``, in order."""
    frames = []
    for path in paths:
        rows = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        known = {"lon": (*LON_NAMES, "lon_e6"), "lat": (*LAT_NAMES, "lat_e6")}
        names = recognised([str(name) for name in rows.columns], known)
        scale = 1e-6 if names["lon"].lower() == "lon_e6" else 1.0
        frames.append(pd.DataFrame({role: rows[name].to_numpy(np.float64) * scale for role, name in names.items()}))
    places, counts = np.unique(pd.concat(frames)[["lon", "lat"]].to_numpy(), axis=0, return_counts=True)
    return pd.DataFrame({"lon": places[:, 0], "lat": places[:, 1], "n_photos": counts})


@click.command()
@click.argument("points", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--published", multiple=True, type=click.Path(exists=True, path_type=Path), help="CSV of S2 cells.")
@click.option("--seeds", default=3, show_default=True, help="How often other places are held out.")
@click.option("--min-cluster-size", default=5, show_default=True)
@click.option("--min-samples", default=2, show_default=True)
@click.option("--most-places", default=MOST_PLACES, show_default=True, help="Of more places a sample is judged.")
def main(
    points: tuple[Path, ...],
    published: tuple[Path, ...],
    seeds: int,
    min_cluster_size: int,
    min_samples: int,
    most_places: int,
) -> None:
    """Print the table."""
    places = read_points(points)
    cells = {path.stem: read_cells(path) for path in published}
    judged = sample([places], len(places), most_places)
    click.echo(
        f"{places['n_photos'].sum():,} photos at {len(places):,} places, {len(judged):,} judged, 20 % held out {seeds} times"
    )
    began, tables = time.process_time(), []
    for seed in range(seeds):
        found = judge(
            judged,
            exponents=(0.75, 0.5),
            published=cells,
            seed=seed,
            min_cluster_size=min_cluster_size,
            min_samples=min_samples,
        )
        tables.append(found.errors)
    taken = (time.process_time() - began) / seeds
    mean = pd.DataFrame(pd.concat(tables).groupby(["level", "partition"]).mean())
    click.echo(
        f"| level | partition | K | covered | median km | mean | {' | '.join(f'<{k}' for k in WITHIN_KM)} | eff | Gini |"
    )
    click.echo("|---|---|" + "---:|" * (6 + len(WITHIN_KM)))
    for row in mean.reset_index().to_dict("records"):
        within = " | ".join(f"{100 * row[f'within_{km}_km']:.1f}" for km in WITHIN_KM)
        click.echo(
            f"| {row['level']} | {row['partition']} | {row['n_cells']:,.0f} | {row['covered']:.3f} | {row['median_km']:.4g} | "
            f"{row['mean_km']:.4g} | {within} | {row['effective_cells']:,.0f} | {row['gini']:.2f} |"
        )
    click.echo(f"{taken:.1f} CPU seconds each")


if __name__ == "__main__":
    main()
