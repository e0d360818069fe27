import dataclasses

import numpy as np
import pandas as pd
import pytest

from geo_assets.geotag import judge as judging
from geo_assets.geotag.judge import (
    Level,
    Places,
    gini,
    judge,
    main_figures,
    not_falling,
    regressions,
    sample,
    score,
    split,
    weighted_median,
    write_errors,
)
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES
from geo_assets_tests.geotag.places import blobs

KM = 1 / 111.195
"""Degrees of latitude a kilometre."""

OURS = {"exponents": (0.75, 0.5), "min_cluster_size": 5, "min_samples": 2}


@pytest.fixture(scope="module")
def places() -> pd.DataFrame:
    """Cities in five countries and hermits in between."""
    draw = np.random.default_rng(1)
    countries = [(2.0, 47.0), (-100.0, 40.0), (139.0, 36.0), (179.5, -17.0), (25.0, -30.0)]
    cities = [(lon + x, lat + y) for lon, lat in countries for x, y in draw.uniform(-4, 4, (12, 2))]
    hermits = blobs([(x, y) for x, y in draw.uniform(-60, 60, (60, 2))], n=1)
    return pd.concat([blobs(cities, n=25, km=8), hermits], ignore_index=True)


@pytest.fixture(scope="module")
def errors(places) -> pd.DataFrame:
    return judge(places, **OURS).errors


def frame(*rows: tuple[float, float, int]) -> Places:
    return Places.of(pd.DataFrame(rows, columns=["lon", "lat", "n_photos"]))


def test_a_row_by_hand():
    train = frame((0, 0, 3), (0, 40 * KM, 1), (90, 0, 4), (10, 10, 8))
    test = frame((0, 10.5 * KM, 5), (0, 110 * KM, 2), (90, 0, 1), (0, 0, 2))
    row = score(Level("mine", 1, np.array([7, 7, 3, -1]), np.array([7, 7, 3, -1])), train, test)
    # The mean of cell 7 lies 10 km north, as three photos of four are at the equator.
    assert (row["n_cells"], row["n_test"], row["covered"]) == (2, 10, 0.8)
    assert [row[f"within_{km}_km"] for km in (1, 25, 200)] == pytest.approx([0.6, 0.6, 0.8])
    assert row["median_km"] == pytest.approx(0.5, abs=1e-3)
    assert row["mean_km"] == pytest.approx((5 * 0.5 + 2 * 100 + 0) / 8, abs=1e-2)
    assert row["effective_cells"] == pytest.approx(2) and row["gini"] == pytest.approx(0)
    TABLES["partition_errors"].conform(pd.DataFrame([row]))


def test_a_cell_that_no_photo_made_covers_nothing():
    row = score(Level("x", 0, np.array([0]), np.array([5])), frame((0, 0, 1)), frame((0, 0, 1)))
    assert row["covered"] == 0 and np.isnan(row["median_km"]) and row["within_2500_km"] == 0


def test_a_mean_across_the_antimeridian_is_near():
    row = score(
        Level("x", 0, np.zeros(2, int), np.zeros(1, int)), frame((179.9, 0, 1), (-179.9, 0, 1)), frame((180, 0, 1))
    )
    assert row["median_km"] < 1e-6


def test_median_and_gini_count_photos():
    assert weighted_median(np.array([5.0, 1.0, 2.0]), np.array([1.0, 5.0, 1.0])) == 1.0
    assert gini(np.array([1.0, 1.0, 1.0])) == pytest.approx(0)
    assert gini(np.array([0.0, 0.0, 0.0, 4.0])) == pytest.approx(0.75)


def test_partitions_have_as_many_cells_and_cover_what_they_should(errors):
    TABLES["partition_errors"].conform(errors)
    cells = errors.pivot(index="partition", columns="level", values="n_cells")
    for level in (0, 1, 2):
        for other in ("kmeans", "s2", "quadtree")[level == 0 :]:
            assert (
                abs(cells.loc[other, level] - cells.loc["hierarchy", level]) <= 0.15 * cells.loc["hierarchy", level] + 1
            )
    covered = errors.set_index(["partition", "level"])["covered"]
    assert (covered[["hierarchy", "kmeans"]] == 1).all()
    assert 0.5 < covered["clusters", 0] < 1, "noise is a miss"


def test_finer_levels_are_nearer_and_farther_limits_hold_more(errors):
    assert not_falling(errors) == []
    within = errors[[f"within_{km}_km" for km in judging.WITHIN_KM]].to_numpy()
    assert (np.diff(within, axis=1) >= 0).all()


def test_shuffled_parents_are_found_out(errors, places, monkeypatch):
    """Labels looked up in the wrong row leave the levels above the first at random."""
    build = judging.build

    def shuffled(*args, **kwargs):
        found = build(*args, **kwargs)
        above = found.above.copy()
        above[0] = np.random.default_rng(0).permutation(above[0])
        return dataclasses.replace(found, above=above)

    monkeypatch.setattr(judging, "build", shuffled)
    broken = judge(places, **OURS).errors
    assert not_falling(broken) == [1]
    assert "level_1_median_km" in regressions(main_figures(broken), main_figures(errors))


def test_levels_of_few_cells_are_not_asked_to_fall(errors):
    rows = errors.assign(median_km=1 / (1 + errors["level"]))
    assert not_falling(rows) == [0, 1]
    assert not_falling(rows.assign(n_cells=judging.ENOUGH_CELLS - 1)) == []


def test_places_are_held_out_by_where_they_are(places):
    train, test = split(Places.of(places), 3)
    assert sorted([*train.lon, *test.lon]) == sorted(places["lon"]) and len(test) < 0.3 * len(places)
    chosen = judging._draw(Places.of(places), 0) < judging.HELD_OUT
    assert 0.15 < chosen.mean() < 0.25
    turned = places.iloc[::-1]
    assert (judging._draw(Places.of(turned), 0)[::-1] < judging.HELD_OUT).tolist() == chosen.tolist()
    assert (judging._draw(Places.of(places), 1) < judging.HELD_OUT).tolist() != chosen.tolist()
    assert judging._draw(frame((0.0, 0.0, 1)), 0) == judging._draw(frame((-0.0, -0.0, 1)), 0)


def test_a_sample_does_not_follow_the_batches(places):
    whole = sample([places], len(places), most=400)
    pieces = sample([places.iloc[:70], places.iloc[70:]], len(places), most=400)
    assert 300 < len(whole) < 500
    assert whole["lon"].tolist() == pieces["lon"].tolist() and whole["lat"].tolist() == pieces["lat"].tolist()
    assert len(sample([places], len(places))) == len(places)


def test_the_table_remembers_the_one_before(tmp_path, places):
    lake = Lake(tmp_path)
    sorted_places = places.sort_values(["lon", "lat"], ignore_index=True)
    rows = sorted_places.assign(point_id=np.arange(len(places)), n_sources=1)[TABLES["geotag_points"].column_names]
    lake.write("geotag_points", rows)
    first = write_errors(lake, Geotag()).figures
    assert lake.note("partition_errors")["before"] == {}
    lake.write("geotag_points", rows.iloc[: len(rows) // 2].assign())
    second = write_errors(lake, Geotag()).figures
    note = lake.note("partition_errors")
    assert note["before"]["figures"] == main_figures(judge(sorted_places, **OURS).errors)
    assert note["before"]["input_sha256"] != note["now"]["input_sha256"]
    assert first["n_places"] == len(rows) and second["n_judged"] == len(rows) // 2
    assert {k: v for k, v in first.items() if k.startswith("level")} == note["before"]["figures"]


def test_worse_by_more_than_two_percent_is_a_regression():
    before = {"level_0_median_km": 10.0, "level_0_within_25_km": 0.9, "level_0_gini": 0.1}
    assert regressions({"level_0_median_km": 10.1, "level_0_within_25_km": 0.89, "level_0_gini": 0.9}, before) == {}
    assert regressions({"level_0_median_km": 10.3, "level_0_within_25_km": 0.9}, before) == {
        "level_0_median_km": [10.0, 10.3]
    }
    assert list(regressions({"level_0_median_km": 5, "level_0_within_25_km": 0.8}, before)) == ["level_0_within_25_km"]
    assert regressions({}, before) == {}


@pytest.mark.parametrize("n", [0, 1, 19])
def test_too_few_places_are_not_judged(places, n):
    judged = judge(places.head(n), **OURS)
    assert judged.errors.empty and judged.figures["n_judged"] == n
    assert not_falling(judged.errors) == [] and main_figures(judged.errors) == {}


def test_real_photos_are_nearer_by_the_tree_than_by_kmeans(real_data):
    """Held out by place: filling in noise, and levels cut from the tree, are what the cells are good for."""
    points = real_data / "geotag" / "points"
    yfcc = pd.read_parquet(points / "yfcc25600.parquet", columns=["LON", "LAT"])
    im2gps = pd.read_csv(points / "im2gps3k_places365.csv", usecols=["LON", "LAT"])
    photos = pd.concat([yfcc, im2gps]).rename(columns=str.lower)
    where, counts = np.unique(photos[["lon", "lat"]].to_numpy(), axis=0, return_counts=True)
    distinct = pd.DataFrame({"lon": where[:, 0], "lat": where[:, 1], "n_photos": counts})
    rows = pd.concat([judge(distinct, seed=seed, **OURS).errors for seed in range(3)])
    mean = pd.DataFrame(rows.groupby(["partition", "level"]).mean())
    assert mean.loc[("hierarchy", 0), "within_25_km"] > mean.loc[("clusters", 0), "within_25_km"] + 0.1
    for level in (1, 2):
        tree, kmeans = mean.loc[("hierarchy", level)], mean.loc[("kmeans", level)]
        assert tree["median_km"] < 0.9 * kmeans["median_km"] and tree["mean_km"] < kmeans["mean_km"]
        assert tree["within_25_km"] > 1.2 * kmeans["within_25_km"] and tree["gini"] < kmeans["gini"]
    for other in ("s2", "quadtree"):
        assert (mean.loc["hierarchy"]["median_km"] < mean.loc[other]["median_km"]).all()
