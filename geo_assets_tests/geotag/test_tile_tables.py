"""The tree of tiles as tables of a lake: the same model as in one piece, and nothing of other places in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from geo_assets.errors import GeoAssetsError
from geo_assets.geotag import rules
from geo_assets.geotag.inputs import tile_keys
from geo_assets.geotag.model import CARD, CLUSTERS, EDGES, POINTS, Model, fit, save
from geo_assets.geotag.tile_tables import cut_places, merged_edges, run_name, settle_tiles, write_cores, write_trees
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets_tests.geotag.places import blobs

FOUR = Geotag(tiles=4, min_samples=3)
KEYS = ["t000", "t001", "t002", "t003"]


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """That each of many small files reaches the disk is not what is tested here."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    yield


def places() -> pd.DataFrame:
    """Towns whose places lie on a grid of 10 m or so, and so tie, and a far island."""
    towns = blobs([(2.35, 48.85), (2.5, 48.9), (13.4, 52.5), (179.99, -17.0)], n=80, km=1)
    towns = pd.concat([towns, blobs([(-140.0, 10.0)], n=3)])
    return towns.round({"lon": 4, "lat": 4}).drop_duplicates(["lon", "lat"])


def with_points(lake: Lake, found: pd.DataFrame) -> pd.DataFrame:
    order = np.lexsort((found["lat"], found["lon"]))
    rows = found.iloc[order].assign(point_id=np.arange(len(found)), n_sources=1)
    lake.write("geotag_points", rows[["point_id", "lon", "lat", "n_photos", "n_sources"]])
    return lake.read("geotag_points", ["point_id", "lon", "lat", "n_photos"])


def spanned(lake: Lake, settings: Geotag = FOUR) -> pd.DataFrame:
    cut_places(lake, settings)
    write_cores(lake, tile_keys(settings), settings)
    write_trees(lake, tile_keys(settings), settings)
    return merged_edges(lake, settings)


def model_of(points: pd.DataFrame, edges: pd.DataFrame | None = None, engine: str = "own") -> Model:
    return fit(points, min_cluster_size=5, min_samples=3, engine=engine, edges=edges)


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_ino) for p in folder.rglob("*") if p.is_file()}


def test_the_rules_of_tiles_hold(tmp_path: Path):
    lake = Lake(tmp_path / "lake")
    with_points(lake, places())
    spanned(lake)
    assert rules.PLACES_IN_TILES.find(lake, {}).passed
    for key in KEYS:
        assert rules.CORES_OF_TILE.find(lake, {"tile": key}).passed
        assert rules.TREE_OF_TILE.find(lake, {"tile": key}).passed
    with_points(lake, places().iloc[:-1])
    assert not rules.PLACES_IN_TILES.find(lake, {}).passed, "the tiles are of other places"


def test_the_model_is_that_of_one_piece(tmp_path: Path):
    lake = Lake(tmp_path / "lake")
    points = with_points(lake, places())
    one, four = model_of(points), model_of(points, spanned(lake), "own, in 4 tiles")
    for name, model in (("one", one), ("four", four)):
        (tmp_path / name).mkdir()
        save(model, tmp_path / name)
    assert one.card["n_clusters"] > 3
    assert one.card | {"engine": ""} == four.card | {"engine": ""}
    for file in (POINTS, CLUSTERS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "four" / file).read_bytes(), file
    # Where edges tie, either tree is a shortest one.
    ours, theirs = (np.sort(pd.read_parquet(tmp_path / name / EDGES)["arc_m"]) for name in ("four", "one"))
    assert np.array_equal(ours, theirs)
    assert json.loads((tmp_path / "four" / CARD).read_text())["engine"] == "own, in 4 tiles"


def test_tiles_at_once_and_again_give_the_same_and_what_is_done_is_left_alone(tmp_path: Path):
    lake, other = Lake(tmp_path / "one"), Lake(tmp_path / "other")
    for store in (lake, other):
        with_points(store, places())
    spanned(lake)
    cut_places(other, FOUR)
    with ThreadPoolExecutor(4) as crew:
        for step in (write_cores, write_trees):
            list(crew.map(lambda key, step=step: step(other, [key], FOUR), [*KEYS, *reversed(KEYS)]))
    merged_edges(other, FOUR)
    made = files(tmp_path / "one" / "files")
    assert {k: v[0] for k, v in made.items()} == {k: v[0] for k, v in files(tmp_path / "other" / "files").items()}
    spanned(lake)
    assert files(tmp_path / "one" / "files") == made


def test_a_tile_that_was_killed_is_asked_for_and_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lake = Lake(tmp_path)
    with_points(lake, places())
    cut_places(lake, FOUR)
    write_cores(lake, ["t000", "t001", "t003"], FOUR)
    with pytest.raises(GeoAssetsError, match="Tile t002 has no core distances"):
        write_trees(lake, KEYS, FOUR)
    replace, left = Path.replace, 2

    def dies(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return replace(self, target)

    write_cores(lake, ["t002"], FOUR)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            write_trees(lake, ["t002"], FOUR)
    with pytest.raises(GeoAssetsError, match=r"2 of 4 tiles \(t002 first\) were not spanned .*--select place_tiles"):
        merged_edges(lake, FOUR)
    write_trees(lake, ["t002", "t003"], FOUR)
    whole = Lake(tmp_path / "whole")
    with_points(whole, places())
    assert merged_edges(lake, FOUR).equals(spanned(whole))


def test_tiles_of_other_places_are_refused_and_made_again(tmp_path: Path):
    lake = Lake(tmp_path)
    with_points(lake, places())
    spanned(lake)
    before = run_name(lake, FOUR)
    points = with_points(lake, places().iloc[1:])
    with pytest.raises(GeoAssetsError, match=r"4 of 4 tiles \(t000 first\) were not spanned for the places"):
        merged_edges(lake, FOUR)
    cut_places(lake, FOUR)
    with pytest.raises(GeoAssetsError, match="were not spanned"):
        merged_edges(lake, FOUR)
    with pytest.raises(GeoAssetsError, match="Tile t001 has no core distances for the places as they are cut"):
        write_trees(lake, ["t001"], FOUR)
    assert lake.names("files/place_tiles") == [run_name(lake, FOUR)] != [before]
    settle_tiles(lake, FOUR)
    assert lake.has("place_tiles") and not lake.partitions("tile_cores") and not lake.partitions("tile_trees")
    write_cores(lake, KEYS, FOUR)
    write_trees(lake, KEYS, FOUR)
    ours, theirs = model_of(points, merged_edges(lake, FOUR)), model_of(points)
    assert ours.points.equals(theirs.points)


@pytest.mark.parametrize("other", [Geotag(tiles=5, min_samples=3), Geotag(tiles=4, min_samples=2)])
def test_tiles_of_other_settings_are_refused(other: Geotag, tmp_path: Path):
    lake = Lake(tmp_path)
    with_points(lake, places())
    with pytest.raises(GeoAssetsError, match="The places are not cut into 4 tiles with min_samples 3"):
        write_cores(lake, KEYS, FOUR)
    spanned(lake)
    with pytest.raises(GeoAssetsError, match=f"not cut into {other.tiles} tiles with min_samples {other.min_samples}"):
        write_trees(lake, ["t000"], other)
    with pytest.raises(GeoAssetsError, match="were not spanned"):
        merged_edges(lake, other)
    settle_tiles(lake, other)
    assert not lake.has("place_tiles")


@pytest.mark.parametrize("n", [0, 1, 3])
def test_fewer_places_than_tiles(n: int, tmp_path: Path):
    lake = Lake(tmp_path)
    points = with_points(lake, places().head(n))
    edges = spanned(lake)
    assert len(edges) == max(n - 1, 0)
    assert lake.read("place_tiles")["n_points"].tolist() == [1] * n + [0] * (4 - n)
    assert model_of(points, edges).points.equals(model_of(points).points)


@pytest.mark.parametrize("wrong", [{"tiles": 0}, {"tiles": 5000}, {"tiles": 2, "engine": "hdbscan"}])
def test_wrong_settings(wrong: dict):
    with pytest.raises(ValidationError, match=r"equal to|works in one piece; set tiles = 1"):
        Geotag(**wrong)


_GRAPH = """
import dagster as dg
from geo_assets.geotag import assets
from geo_assets.lake import Lake
from geo_assets.materialize import Materializer
from geo_assets.partitions import settings
from geo_assets.resources import LakeResource
from geo_assets_tests.geotag.test_tile_tables import places, with_points
names = ("place_tiles", "tile_cores", "tile_trees", "hdbscan_model")
made = [asset for asset in assets.ASSETS if asset.key.to_user_string() in names]
lake = Lake(settings.lake)
defs = dg.Definitions(assets=made, resources={"lake": LakeResource(root=settings.lake)})
with dg.DagsterInstance.ephemeral() as instance:
    others = places().iloc[1:]
    for rows, asked in ((places(), "tile_trees"), (places(), "hdbscan_model"), (others, "tile_trees")):
        with_points(lake, rows)
        work = Materializer(defs, settings, lake, instance, lambda line: None, "CRITICAL").run(asked)
        assert not work.failed, work.failed
        print(*(f"{', '.join(w.assets)} {w.place}" for w in work.done), sep="; ")
"""


def test_a_model_is_materialized_tile_by_tile_and_again_only_for_other_places(tmp_path: Path):
    (tmp_path / "geo_assets.toml").write_text("[demo]\nenabled = false\n[geotag]\ntiles = 4\nmin_samples = 3\n")
    environment = os.environ | {"GEO_ASSETS_SETTINGS": str(tmp_path / "geo_assets.toml")}
    done = subprocess.run(
        [sys.executable, "-c", _GRAPH], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert not done.returncode, done.stderr
    steps = "place_tiles all; tile_cores t000 to t003; tile_trees t000 to t003"
    assert done.stdout.splitlines() == [steps, "hdbscan_model all", steps]
    table, whole = (
        Lake(tmp_path / "lake").read("hdbscan_model"),
        model_of(with_points(Lake(tmp_path / "one"), places())),
    )
    assert table.equals(whole.points)
