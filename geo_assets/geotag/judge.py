"""How good a partition of the world is: how far off its cells are for photos that did not make them.

A fifth of the places is held out. Each partition is made of the others; a held-out photo takes the cell of the nearest
photo that made them, or the cell that holds it where cells have borders; its error is the distance to the mean of that
cell's photos. No model that names the right cell each time does better, so this is the oracle error. Partitions are
comparable at the same number of cells only, so the other ones are made with as many cells as the levels of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.geotag.clustering import Floats, Ints, arc_m, cluster, dendrogram, unit_sphere
from geo_assets.geotag.grouping import centres, effective, kmeans, totals
from geo_assets.geotag.hierarchy import build
from geo_assets.geotag.model import input_hash
from geo_assets.geotag.quarters import Counted, Quarters, Split, rules, s2_codes, splits
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES

HELD_OUT = 0.2
"""Share of the places that are held out."""

MOST_PLACES = 1_000_000
"""Of more places a sample is judged, the same each time; all partitions alike, with as many fewer cells."""

WITHIN_KM = (1, 25, 200, 750, 2500)
"""Street, city, region, country, continent, as geolocation is reported."""

FEWEST_PLACES = 20
"""Of fewer nothing can be said."""

MOST_WORSE = 0.02
"""By so much the hierarchy may be worse than last time, in the median error and in the share within 25 km."""

ENOUGH_CELLS = 10
"""Levels of fewer cells may be better or worse than each other by chance."""

SEED = 0


@dataclass(frozen=True)
class Places:
    """Distinct places [N, degrees] and the photos at each."""

    lon: Floats
    lat: Floats
    photos: Floats

    @classmethod
    def of(cls, points: pd.DataFrame) -> Places:
        """Of rows of ``geotag_points``: ``lon, lat, n_photos``."""
        return cls(*(points[name].to_numpy(np.float64) for name in ("lon", "lat", "n_photos")))

    def __len__(self) -> int:
        return len(self.lon)

    def __getitem__(self, chosen: npt.NDArray[np.bool_]) -> Places:
        return Places(self.lon[chosen], self.lat[chosen], self.photos[chosen])

    @cached_property
    def xyz(self) -> Floats:
        """Unit vectors [N, 3]."""
        return unit_sphere(self.lon, self.lat)


@dataclass(frozen=True)
class Level:
    """One level of a partition: the cell of each place that made it and of each that is held out, -1 for none."""

    partition: str
    level: int
    train: Ints
    test: Ints
    overfull: int = 0
    """Cells that hold more photos than they should and could not be cut further."""


@dataclass(frozen=True)
class Judgement:
    """``errors``: rows of table ``partition_errors``. ``figures``: what was judged, and the main results."""

    errors: pd.DataFrame
    figures: dict[str, Any]


def write_errors(lake: Lake, settings: Geotag, log: Callable[[str], None] = lambda line: None) -> Judgement:
    """Judge the cells of ``geotag_points`` as the settings make them, and write ``partition_errors``.

    The table's note keeps the main figures of the table that it replaces, and the hash and number of the places of both.
    """
    n = lake.rows("geotag_points")
    with lake.connect("geotag_points") as con:
        batches = con.sql("select lon, lat, n_photos from geotag_points").to_arrow_reader(1_000_000)
        points = sample((batch.to_pandas() for batch in batches), n)
        ((n_photos,),) = con.execute("select coalesce(sum(n_photos), 0)::bigint from geotag_points").fetchall()
    judged = judge(
        points,
        exponents=settings.level_exponents,
        method=settings.method,
        splits=splits(settings),
        n_photos=n_photos,
        log=log,
        min_cluster_size=settings.min_cluster_size,
        min_samples=settings.min_samples,
        engine=settings.engine,
    )
    before = {}
    if lake.has("partition_errors"):
        before = {
            "figures": main_figures(lake.read("partition_errors")),
            **lake.note("partition_errors").get("now", {}),
        }
    now = {"n_places": n, "input_sha256": input_hash(points)}
    lake.write("partition_errors", judged.errors, note={"now": now, "before": before})
    return Judgement(judged.errors, {"n_places": n} | judged.figures)


def sample(batches: Iterable[pd.DataFrame], n_places: int, most: int = MOST_PLACES) -> pd.DataFrame:
    """Of batches of ``n_places`` places ``lon, lat, n_photos`` in all, about ``most`` at most; the same ones each time."""
    share = most / max(n_places, 1)
    taken = [batch.loc[_draw(Places.of(batch), SEED + 1) < share, :] for batch in batches]
    return pd.concat([TABLES["geotag_points"].empty().loc[:, ["lon", "lat", "n_photos"]], *taken], ignore_index=True)


def judge(
    points: pd.DataFrame,
    *,
    exponents: Sequence[float],
    method: Literal["tree", "kmeans"] = "tree",
    splits: Mapping[str, Split] | None = None,
    n_photos: int | None = None,
    published: Mapping[str, Quarters] | None = None,
    seed: int = SEED,
    log: Callable[[str], None] = lambda line: None,
    **clustering: Any,
) -> Judgement:
    """Judge the levels of cells, and other partitions with as many cells.

    Judged are ``hierarchy`` (our levels), ``clusters`` (the finest of them with the noise left out), ``kmeans`` (the
    clusters grouped by weighted spherical k-means), ``s2`` and ``quadtree`` (cells cut in four where they are full),
    tables of such cells with their own numbers of photos, made smaller by the share of the photos that is at hand, and
    published ones.

    Args:
        points: distinct places ``lon, lat`` [deg] and ``n_photos``, in the order of ``geotag_points``.
        exponents: as in :func:`geo_assets.geotag.hierarchy.build`.
        method: as there.
        splits: such tables, from :func:`geo_assets.geotag.quarters.splits`.
        n_photos: photos of all places, where ``points`` are a sample.
        published: cells of others by the name of their partition, from :func:`geo_assets.geotag.published.read_cells`.
        seed: another one holds out other places.
        log: takes a line about each level.
        clustering: as in :func:`geo_assets.geotag.clustering.cluster`: ``min_cluster_size``, ``min_samples``...

    Returns:
        The judgement; without rows where there are fewer than :data:`FEWEST_PLACES` places.
    """
    places = Places.of(points)
    train, test = split(places, seed)
    rows, figures = [], {"n_judged": len(places), "n_held_out": len(test), "seed": seed}
    splits = splits or {rule.name: (rule, ()) for rule in rules()}
    share = float(train.photos.sum() / max(n_photos or places.photos.sum(), 1))
    if len(places) >= FEWEST_PLACES and len(test):
        for level in _levels(train, test, exponents, method, splits, share, published or {}, clustering):
            row = score(level, train, test)
            log(
                f"{level.partition} {level.level}: {row['n_cells']:,} cells, median error {row['median_km']:.3g} km, "
                f"{row['within_25_km']:.1%} within 25 km"
            )
            rows.append(row)
            if level.overfull:
                figures[f"{level.partition}_level_{level.level}_overfull_cells"] = level.overfull
    errors = TABLES["partition_errors"].frame(rows)
    return Judgement(errors, figures | main_figures(errors))


def split(places: Places, seed: int = SEED) -> tuple[Places, Places]:
    """The places that make cells, and those that are held out."""
    held_out = _draw(places, seed) < HELD_OUT
    return places[~held_out], places[held_out]


def main_figures(errors: pd.DataFrame) -> dict[str, float]:
    """The figures of the hierarchy's levels, of rows of ``partition_errors``."""
    ours = errors.loc[errors["partition"] == "hierarchy", :].sort_values("level").to_dict("records")
    names = ("n_cells", "covered", "within_25_km", "median_km", "effective_cells", "gini")
    return {f"level_{row['level']}_{name}": round(row[name], 4) for row in ours for name in names}


def not_falling(errors: pd.DataFrame) -> list[int]:
    """Levels of the hierarchy whose median error is greater than that of the level above, of rows of ``partition_errors``.

    Levels of fewer than :data:`ENOUGH_CELLS` cells are not asked.
    """
    ours = errors.loc[errors["partition"] == "hierarchy", :].sort_values("level")
    median = ours["median_km"].to_numpy(np.float64)
    wrong = ~(median[:-1] <= median[1:]) & (ours["n_cells"].to_numpy(np.int64)[:-1] >= ENOUGH_CELLS)
    return ours["level"].to_numpy(np.int64)[:-1][wrong].tolist()


def regressions(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, list[float]]:
    """What is worse than before by more than :data:`MOST_WORSE`, of :func:`main_figures`: name -> before and now."""
    worse = {}
    for name in before.keys() & now.keys():
        further = now[name] > before[name] * (1 + MOST_WORSE)
        fewer = now[name] < before[name] * (1 - MOST_WORSE)
        if (further and name.endswith("median_km")) or (fewer and name.endswith("within_25_km")):
            worse[name] = [before[name], now[name]]
    return dict(sorted(worse.items()))


def score(level: Level, train: Places, test: Places) -> dict[str, Any]:
    """A row of table ``partition_errors``: the photos held out against the mean of their cell's photos."""
    used, cells = np.unique(np.r_[-1, level.train], return_inverse=True)
    cells = cells[1:]  # 0 is no cell
    sums, counts = totals(train.xyz, train.photos, cells, len(used))
    counts, length = counts[1:], np.linalg.norm(sums, axis=1)
    at = np.searchsorted(used, level.test)
    at = np.where((at < len(used)) & (used[np.minimum(at, len(used) - 1)] == level.test), at, 0)
    covered = (at > 0) & (length[at] > 0)
    chord = np.linalg.norm(sums[at] / np.maximum(length[at], 1e-300)[:, None] - test.xyz, axis=1)
    km = np.where(covered, arc_m(chord) / 1000, np.inf)
    photos, total = test.photos[covered], test.photos.sum()
    return {
        "partition": level.partition,
        "level": level.level,
        "n_cells": int((counts > 0).sum()),
        "n_test": int(total),
        "covered": float(photos.sum() / total),
        **{f"within_{limit}_km": float(test.photos[km <= limit].sum() / total) for limit in WITHIN_KM},
        "median_km": weighted_median(km[covered], photos),
        "mean_km": float(photos @ km[covered] / photos.sum()) if len(photos) else float("nan"),
        "effective_cells": effective(counts),
        "gini": gini(counts),
    }


def weighted_median(values: Floats, weights: Floats) -> float:
    """The least value that half of the weight does not exceed; NaN of none."""
    if not len(values):
        return float("nan")
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def gini(counts: Floats) -> float:
    """Gini coefficient of photos over cells: 0 where all have as many, near 1 where few have all."""
    sizes = np.sort(counts)
    n, total = len(sizes), sizes.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ sizes / (n * total)) if total > 0 else 0.0


def _levels(
    train: Places,
    test: Places,
    exponents: Sequence[float],
    method: Literal["tree", "kmeans"],
    splits: Mapping[str, Split],
    share: float,
    published: Mapping[str, Quarters],
    clustering: Mapping[str, Any],
) -> Iterable[Level]:
    from scipy.spatial import KDTree

    found = cluster(train.lon, train.lat, **clustering)
    points = pd.DataFrame({"lon": train.lon, "lat": train.lat, "n_photos": train.photos, "cluster": found.labels})
    tree = dendrogram(found.edges, len(points))
    size = clustering["min_cluster_size"]
    ours = build(points, tree, min_cluster_size=size, exponents=exponents, method=method).cells[:-1]
    _, near = KDTree(train.xyz).query(test.xyz)
    nearest = np.asarray(near, np.int64)

    yield Level("clusters", 0, found.labels, found.labels[nearest])
    for level, cells in enumerate(ours):
        yield Level("hierarchy", level, cells, cells[nearest])
    mean, weight = centres(train.xyz, train.photos, ours[0])
    for level, cells in enumerate(ours[1:], 1):
        grouped = kmeans(mean, weight, int(cells.max()) + 1)[ours[0]]
        yield Level("kmeans", level, grouped, grouped[nearest])
    for table, (rule, wanted) in splits.items():
        codes = rule.codes(train.lon, train.lat)
        counted, there = Counted(codes, train.photos, rule.depth), rule.codes(test.lon, test.lat)
        for level, cells in enumerate(ours):
            quarters = counted.cut_into(int(cells.max()) + 1, rule.kept)
            yield Level(rule.name, level, quarters.of(codes), quarters.of(there), quarters.overfull)
        for level, numbers in enumerate(wanted):
            fewest, most = (max(round(number * share), 1) for number in numbers)
            quarters = counted.cut(most, fewest)
            yield Level(table, level, quarters.of(codes), quarters.of(there), quarters.overfull)
    for name, quarters in published.items():
        made, held_out = (quarters.of(s2_codes(places.lon, places.lat)) for places in (train, test))
        yield Level(name, 0, made, held_out)


def _draw(places: Places, seed: int) -> Floats:
    """A number from 0 to 1 for each place, by its coordinates and the seed alone (the finalizer of splitmix64)."""

    def mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))

    # Zero has two signs.
    lon, lat = ((degrees + 0.0).view(np.uint64) for degrees in (places.lon, places.lat))
    start = np.full(len(places), seed + 1, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mixed(mixed(mixed(start) ^ lon) + lat) / 2.0**64
