import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import GeoAssetsError, SourceError
from geo_assets.geotag.hierarchy import build
from geo_assets.geotag.icicle import busiest_region, tree_picture
from geo_assets.geotag.model import (
    KEPT,
    OVERLAP,
    POINTER,
    Model,
    current,
    fit,
    load,
    overlap,
    publish,
    read_card,
    read_dendrogram,
    read_model,
    save,
    write_tree,
)
from geo_assets.lake import Lake
from geo_assets_tests.geotag.places import blobs, same_partition

CITIES = [(2.35, 48.85), (13.4, 52.5), (-74.0, 40.7), (139.7, 35.7), (180.0, -16.5)]
KEY = "files/models_geotag/hdbscan"


def places(n: int = 30, seed: int = 0, cities: list[tuple[float, float]] = CITIES) -> pd.DataFrame:
    rows = blobs(cities, n=n, seed=seed).sort_values(["lon", "lat"], ignore_index=True)
    return rows.assign(point_id=np.arange(len(rows))).loc[:, ["point_id", "lon", "lat", "n_photos"]]


def fitted(points: pd.DataFrame, size: int = 5, samples: int = 2) -> Model:
    return fit(points, min_cluster_size=size, min_samples=samples)


def equal(one: Model, other: Model) -> bool:
    trees = (vars(model.condensed).values() for model in (one, other))
    return (
        one.points.equals(other.points)
        and one.card == other.card
        and all(np.array_equal(a, b) for a, b in zip(*trees, strict=True))
        and np.array_equal(one.edges.to_numpy(), other.edges.to_numpy())
    )


@pytest.mark.parametrize("n", [0, 1, 150])
def test_a_model_comes_back_from_its_files(tmp_path: Path, n: int) -> None:
    model = fitted(places().head(n))
    save(model, tmp_path)
    again = load(tmp_path)
    assert equal(model, again)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".json", ".parquet")]
    assert same_partition(again.dendrogram.condensed(5).labels()[0], model.points["cluster"].to_numpy())


def test_the_card_says_what_the_labels_follow_from() -> None:
    card = fitted(places()).card
    assert card["metric"] == "great circle" and card["engine"] == "own" and card["format"] == 1
    versions = {
        fitted(places()).version,
        fitted(places(), size=6).version,
        fitted(places(), samples=3).version,
        fitted(places(seed=1)).version,
        fit(places(), min_cluster_size=5, min_samples=2, engine="hdbscan").version,
    }
    assert len(versions) == 4  # the engine changes nothing


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    save(fitted(places()), whole)

    def broken(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    missing = broken("missing")
    (missing / "clusters.parquet").unlink()
    torn = broken("torn")
    (torn / "points.parquet").write_bytes((torn / "points.parquet").read_bytes()[:-20])
    other = broken("other")
    save_points = pd.read_parquet(other / "points.parquet")
    save_points.assign(lon=save_points["lon"] + 1).to_parquet(other / "points.parquet")
    astray = broken("astray")
    save_points.assign(node=10_000).to_parquet(astray / "points.parquet")
    later = broken("later")
    card = json.loads((later / "model.json").read_text())
    (later / "model.json").write_text(json.dumps(card | {"format": 99}))
    for folder, said in (
        (missing, "no model"),
        (torn, "no model"),
        (other, "belong"),
        (astray, "belong"),
        (later, "Update"),
    ):
        with pytest.raises(SourceError, match=said):
            load(folder)


def test_a_refit_is_a_new_version_and_three_stay(tmp_path: Path) -> None:
    lake, points = Lake(tmp_path), places(60)
    models = [fitted(points.head(n).copy()) for n in (200, 240, 280, 300)]
    figures = [publish(model, lake, KEY) for model in models]
    assert [f["previous_version"] for f in figures] == [None, *(m.version for m in models[:-1])]
    assert figures[1]["n_places_shared"] == 200 and 0 < figures[1]["mean_jaccard"] <= 1
    assert set(lake.names(KEY)) == {POINTER, *(m.version for m in models[-KEPT:])}
    assert read_card(lake, KEY) == models[-1].card and equal(read_model(lake, KEY), models[-1])
    with lake.local(f"{current(lake, KEY)}/{OVERLAP}") as path:
        rows = pd.read_parquet(path)
    assert rows["n_points"].to_numpy().sum() == 280
    # Back to an older fit: it is in force again, compared with the one before it.
    again = publish(models[1], lake, KEY)
    assert read_card(lake, KEY)["version"] == models[1].version == again["version"]
    assert again["previous_version"] == models[-1].version
    assert len(lake.names(KEY)) == KEPT + 1


def test_the_same_fit_twice_is_one_version(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    first, second = (publish(fitted(places()), lake, KEY) for _ in range(2))
    assert first == second and len(lake.names(KEY)) == 2


def test_the_pointer_moves_only_when_the_model_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, old = Lake(tmp_path), fitted(places())
    publish(old, lake, KEY)
    monkeypatch.setattr(Lake, "put_bytes", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError):
        publish(fitted(places(seed=1)), lake, KEY)
    assert read_card(lake, KEY)["version"] == old.version


def test_readers_say_what_is_missing(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    with pytest.raises(GeoAssetsError, match="no clustering"):
        read_card(lake, KEY)
    model = fitted(places())
    publish(model, lake, KEY)
    tree = read_dendrogram(lake, KEY, model.points)
    assert tree.n_points == len(model.points)
    assert build(model.points, tree, min_cluster_size=5, exponents=(0.5,)).centroids["level"].tolist()[-1] == 2
    with pytest.raises(GeoAssetsError, match="other points"):
        read_dendrogram(lake, KEY, model.points.iloc[1:])


def test_an_overlap_counts_the_places_that_both_have() -> None:
    old = pd.DataFrame({"lon": range(8), "lat": 0, "cluster": [0, 0, 0, 1, 1, 1, -1, 2]})
    new = pd.DataFrame({"lon": range(1, 9), "lat": 0, "cluster": [7, 7, 7, 8, 8, 8, -1, 8]})
    rows = overlap(old, new)
    # Place 0 is gone, place 8 is new: neither counts, not even in the unions.
    assert rows.to_dict("list") == {
        "old": [-1, 0, 1, 1, 2],
        "new": [8, 7, 8, 7, -1],
        "n_points": [1, 2, 2, 1, 1],
        "jaccard": [1 / 3, 2 / 3, 2 / 4, 1 / 5, 1.0],
    }


@pytest.mark.parametrize("bounds", [(-180, -90, 180, 90), (170, -30, -170, 0), (2, 48, 3, 49), (50, 0, 51, 1)])
def test_a_region_is_drawn(bounds: tuple[float, float, float, float]) -> None:
    assert tree_picture(fitted(places()), bounds).startswith(b"\x89PNG")


def test_bars_hold_the_places_of_the_region() -> None:
    from geo_assets.geotag.icicle import _bars, _inside

    model = fitted(places(60))
    inside = _inside(model, (170, -30, -170, 0))  # Fiji, on both sides of the antimeridian
    assert set(np.sign(model.points["lon"].to_numpy()[inside])) == {-1, 1} and len(inside) == 60
    bars = _bars(model, inside)
    assert bars[0].left[0] == 60 and bars[0].middle == 0
    for bar in bars:
        assert (np.diff(bar.left) <= 0).all() and (np.diff(bar.arcs_m) <= 0).all() and bar.arcs_m[-1] >= bar.end_m
        assert abs(bar.middle) + bar.left[0] / 2 <= 30
    assert sum(bar.left[0] - bar.left[-1] for bar in bars) >= 0.9 * 60  # each place leaves one bar


def test_a_region_off_the_globe_is_refused_and_an_empty_model_drawn() -> None:
    with pytest.raises(GeoAssetsError, match="no region"):
        tree_picture(fitted(places()), (48, 2, 49, 200))
    nothing = fitted(places().head(0))
    assert tree_picture(nothing, busiest_region(nothing)).startswith(b"\x89PNG")
    west, south, east, north = busiest_region(fitted(places()))
    assert (east - west, north - south) == (1, 1)


@pytest.mark.parametrize("at_once", [7, 10_000])
def test_the_tree_is_written_as_its_rows(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("geo_assets.geotag.model._ROWS_AT_ONCE", at_once)
    lake, tree = Lake(tmp_path), fitted(places()).condensed
    facts = write_tree(tree, lake)
    rows = tree.rows().sort_values(["parent", "child"], ignore_index=True)
    assert facts.rows == len(rows) > len(places())
    pd.testing.assert_frame_equal(lake.read("hdbscan_tree"), rows)
