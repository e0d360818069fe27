"""How far off cells are for photos held out by place: python benchmarks/cells.py POINTS... [--published CSV].

Points are parquet or CSV files with longitude and latitude [deg], by any of their usual names or as ``lon_e6, lat_e6``
[1e-6 deg]; several files are one set. Prints the table of the hierarchy's levels beside other partitions with as many
cells, each figure as the mean over the places held out with different seeds, and the CPU seconds.

Beside the partitions of the judge there are peers of the levels above the clusters, all of the same clusters: ``cut 40``
is the tree cut at a cluster size of 40, noise joined to the nearest and the widest cells split until there are as many
(each level alone, so that levels need not nest); ``bisected`` is the splitting alone; ``earlier`` is the rule of earlier
scripts as it was meant: clusters on degrees without the noise, their unweighted means grouped by K-means on degrees.
At the end the hierarchy is held against the peers in the figures that a geolocation model is judged by.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pandas as pd

if __package__ in (None, ""):
    # In the place of this folder, where a file would be found for the library hdbscan.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from geo_assets.geotag.clustering import Ints, cluster, dendrogram
from geo_assets.geotag.csvs import LAT_NAMES, LON_NAMES, recognised
from geo_assets.geotag.grouping import by_kmeans, centres, join_noise, majority, split_widest
from geo_assets.geotag.judge import MOST_PLACES, WITHIN_KM, Level, Places, judge, sample, score, split
from geo_assets.geotag.published import read_cells

EXPONENTS = (0.75, 0.5)
CUTS = {1: (40, 80), 2: (320, 640)}
"""Sizes at which the tree is cut, by level; 40 and 640 are those of a training set of some 100,000 photos."""

FIGURES = ("median_km", "within_25_km", "within_200_km")
"""What the hierarchy is held against its peers in; within 1 km cells of this size hit a handful, by chance."""

PEERS = ("cut 40", "cut 640", "earlier")


def peers(places: Places, seed: int, min_cluster_size: int, min_samples: int) -> Iterator[dict[str, object]]:
    """Rows as of the judge for other ways to make the levels above the clusters, at the hierarchy's number of cells."""
    from scipy.spatial import KDTree

    train, test = split(places, seed)
    found = cluster(train.lon, train.lat, min_cluster_size=min_cluster_size, min_samples=min_samples)
    tree = dendrogram(found.edges, len(train))
    finest = join_noise(train.xyz, found.labels)
    mean, weight = centres(train.xyz, train.photos, finest)
    clustered = found.labels >= 0
    wanted = [int(len(weight) ** exponent) for exponent in EXPONENTS]
    nested = by_kmeans(mean, weight, exponents=EXPONENTS)
    earlier = as_earlier(train, wanted, min_cluster_size, min_samples)
    nearest = np.asarray(KDTree(train.xyz).query(test.xyz)[1], np.int64)
    for level, number in enumerate(wanted, 1):
        groupings = {"kmeans nested": nested[level - 1], "bisected": np.zeros(len(weight), np.int64)}
        for size in CUTS[level]:
            labels, _ = tree.condensed(size).labels()
            cut = join_noise(
                mean, majority(found.labels[clustered], labels[clustered], np.ones(clustered.sum()), len(weight))
            )
            groupings[f"cut {size}"] = np.unique(cut, return_inverse=True)[1].astype(np.int64)
        for name, groups in groupings.items():
            if groups.max() < number:
                cells = split_widest(mean, weight, groups, number)[finest]
                yield score(Level(name, level, cells, cells[nearest]), train, test)
        yield score(Level("earlier", level, earlier[level - 1], earlier[level - 1][nearest]), train, test)


def as_earlier(train: Places, wanted: list[int], min_cluster_size: int, min_samples: int) -> list[Ints]:
    """Cells [N] of each level by the rule of earlier scripts, -1 for noise, with their labels looked up by their ids."""
    from hdbscan import HDBSCAN
    from sklearn.cluster import KMeans

    degrees = np.stack([train.lat, train.lon], axis=-1)
    model = HDBSCAN(min_cluster_size=min_cluster_size, min_samples=min_samples, algorithm="boruvka_kdtree")
    cells, levels = np.asarray(model.fit(degrees).labels_, np.int64), []
    for number in wanted:
        means = np.stack([np.bincount(cells[cells >= 0], axis[cells >= 0]) for axis in degrees.T], axis=-1)
        means /= np.bincount(cells[cells >= 0])[:, None]
        groups = np.asarray(KMeans(min(number, len(means)), random_state=42).fit_predict(means), np.int64)
        cells = np.where(cells >= 0, groups[cells], -1)
        levels.append(cells)
    return levels


def held(mean: pd.DataFrame) -> bool:
    """Print and return whether the hierarchy is as good as its peers, and its mean error no worse than K-means'."""
    good = True
    for level in CUTS:
        rows = mean.loc[level]
        ours = rows.loc["hierarchy"]
        limits = [(name, peer) for peer in rows.index if peer in PEERS for name in FIGURES]
        for name, peer in [*limits, ("mean_km", "kmeans")]:
            mine, other = float(ours[name]), float(rows.loc[peer, name])
            holds = mine >= other if name.startswith("within") else mine <= other
            click.echo(f"{'holds' if holds else 'MISSED'}: level {level}, {name} {mine:.4g}, {peer} {other:.4g}")
            good &= holds
    return good


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
            exponents=EXPONENTS,
            published=cells,
            seed=seed,
            min_cluster_size=min_cluster_size,
            min_samples=min_samples,
        )
        tables.append(found.errors)
    taken = (time.process_time() - began) / seeds
    for seed in range(seeds):
        tables.append(pd.DataFrame(peers(Places.of(judged), seed, min_cluster_size, min_samples)))
    mean = pd.DataFrame(pd.concat(tables, ignore_index=True).groupby(["level", "partition"]).mean())
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
    click.echo(f"{taken:.1f} CPU seconds each, without the peers")
    sys.exit(not held(mean))


if __name__ == "__main__":
    main()
