"""The tree of tiles against the tree in one piece: tiles are tiny, so that most edges cross a border."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import ConfigError, SourceError
from geo_assets.geotag import tiles
from geo_assets.geotag.clustering import dendrogram, spanning_tree, unit_sphere
from geo_assets.geotag.s2 import cell_ids
from geo_assets.lake import Lake
from geo_assets_tests.geotag.places import blobs


def frame(lon: np.ndarray, lat: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"lon": lon, "lat": lat})


def cities() -> pd.DataFrame:
    return blobs([(2.35, 48.85), (2.6, 48.9), (13.4, 52.5), (151.2, -33.9)], n=40)


def seams() -> pd.DataFrame:
    """Both poles, the antimeridian, a place far from everything, each end of the antimeridian, and a pole twice."""
    dense = blobs([(180.0, -17.0), (30.0, 89.95), (-120.0, -89.95)], n=60, km=20)
    lone = frame(np.array([-100.0, 180.0, -180.0, 0.0, 90.0]), np.array([-40.0, 10.0, 10.0, 90.0, 90.0]))
    return pd.concat([dense.drop(columns=["blob", "n_photos"]), lone])


def copies() -> pd.DataFrame:
    """Places of up to 70 copies, more than a tile holds."""
    few = blobs([(8.5, 47.4), (-70.0, 40.0)], n=6)
    rows = np.repeat(np.arange(len(few)), [70, 1, 1, 30, 2, 25, 1, 1, 50, 1, 3, 1])
    return frame(few["lon"].to_numpy()[rows], few["lat"].to_numpy()[rows])


def grid() -> pd.DataFrame:
    lon, lat = np.meshgrid(np.arange(13) * 0.5, np.arange(13) * 0.5)
    return frame(lon.ravel(), lat.ravel())


def everywhere() -> pd.DataFrame:
    x, y, z = np.random.default_rng(3).normal(size=(3, 200))
    return frame(np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y))))


CLOUDS = {cloud.__name__: cloud() for cloud in (cities, seams, copies, grid, everywhere)}


def stored(places: pd.DataFrame, path: Path) -> Path:
    shuffled = places[["lon", "lat"]].sample(frac=1, random_state=7)
    shuffled.to_parquet(path, index=False)
    return path


def files(folder: Path) -> dict[str, bytes]:
    found = [
        path for path in folder.rglob("*.*") if path.is_file() and path.suffix != ".tmp" and "cut_" not in str(path)
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def tree_of(points: Path, folder: Path, min_samples: int, n_tiles: int) -> Path:
    """The file of the tree of tiles."""
    return folder / tiles.spanning_tree([points], Lake(folder), min_samples=min_samples, n_tiles=n_tiles)


def assert_same(points: Path, tree: Path, min_samples: int) -> None:
    """Lengths to the last bit, a tree, and labels."""
    places, edges = pd.read_parquet(points), pd.read_parquet(tree)
    n = len(places)
    a, b, arcs = spanning_tree(unit_sphere(places["lon"], places["lat"]), min_samples)
    assert np.array_equal(np.sort(edges["arc_m"]), np.sort(arcs))
    whole = pd.DataFrame({"a": a, "b": b, "arc_m": arcs})
    for size in (2, 5, 12):
        ours, theirs = (dendrogram(one, n).condensed(size).labels()[0] for one in (edges, whole))
        assert np.array_equal(ours, theirs)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run of tiny tiles is thousands of files: that each reaches the disk is not what is tested here."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    yield


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(("min_samples", "n_tiles"), [(1, 5), (4, 9), (30, 4), (1000, 2), (3, 1)])
def test_same_tree_as_in_one_piece(cloud: str, min_samples: int, n_tiles: int, tmp_path: Path):
    points = stored(CLOUDS[cloud], tmp_path / "points.parquet")
    tree = tree_of(points, tmp_path / "run", min_samples, n_tiles)
    assert_same(points, tree, min_samples)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("n_tiles", [1, 2, 10])
def test_few_places_and_tiles_of_fewer_than_min_samples(n: int, n_tiles: int, tmp_path: Path):
    points = stored(CLOUDS["everywhere"].head(n), tmp_path / "points.parquet")
    tree = tree_of(points, tmp_path / "run", 3, n_tiles)
    assert len(pd.read_parquet(tree)) == max(n - 1, 0)
    assert_same(points, tree, 3)


@pytest.mark.parametrize("seed", range(4))
def test_random_clusters(seed: int, tmp_path: Path):
    draw = np.random.default_rng(seed)
    centres = zip(draw.uniform(-180, 180, 6), draw.uniform(-89, 89, 6), strict=True)
    places = blobs(list(centres), n=30, km=float(draw.choice([1, 50, 1000])), seed=seed)
    points, min_samples = stored(places, tmp_path / "points.parquet"), int(draw.integers(1, 9))
    tree = tree_of(points, tmp_path / "run", min_samples, 6)
    assert_same(points, tree, min_samples)


def test_tiles_follow_the_curve_and_hold_every_place_once(tmp_path: Path):
    one, two = (stored(CLOUDS[name], tmp_path / f"{name}.parquet") for name in ("cities", "copies"))
    assert tiles.cut([one, two], Lake(tmp_path / "run"), 8, 2) == 8  # 160 and 186 places
    places = pd.concat([pd.read_parquet(one), pd.read_parquet(two)], ignore_index=True)
    parts = [pd.read_parquet(path) for path in sorted((tmp_path / "run" / "tiles").glob("*.parquet"))]
    assert [len(part) for part in parts] == [43, 43, 43, 44, 43, 43, 43, 44]
    rows = pd.concat(parts, ignore_index=True)
    assert sorted(rows["row"]) == list(range(346))
    in_order = places.loc[rows["row"]]
    cells = cell_ids(in_order["lon"], in_order["lat"])
    assert (cells[1:] >= cells[:-1]).all()
    assert np.array_equal(rows[["x", "y", "z"]], unit_sphere(in_order["lon"], in_order["lat"]))


def test_core_distances_are_those_of_the_definition(tmp_path: Path):
    points = stored(CLOUDS["seams"], tmp_path / "points.parquet")
    places = pd.read_parquet(points)
    xyz = unit_sphere(places["lon"], places["lat"])
    far = np.sort(np.linalg.norm(xyz[:, None] - xyz[None], axis=-1), axis=1)
    run = Lake(tmp_path / "run")
    for tile in range(tiles.cut([points], run, 10, 25)):
        core = pd.read_parquet(tmp_path / "run" / tiles.core_distances(run, tile))["square"]
        rows = pd.read_parquet(tmp_path / "run" / "tiles" / f"{tile:06d}.parquet")["row"]
        np.testing.assert_allclose(np.sqrt(core), far[rows, 25], rtol=1e-9, atol=1e-15)


def test_a_tile_reads_only_those_in_reach(tmp_path: Path):
    points = stored(blobs([(2.35, 48.85), (151.2, -33.9)], n=60), tmp_path / "points.parquet")
    run, south = tmp_path / "run", pd.read_parquet(points)["lat"].to_numpy() < 0
    whole = tmp_path / "whole"
    for tile in range(tiles.cut([points], Lake(whole), 6, 3)):
        tiles.core_distances(Lake(whole), tile)
    assert tiles.cut([points], Lake(run), 6, 3) == 6
    far = [path for path in (run / "tiles").iterdir() if south[pd.read_parquet(path)["row"]].all()]
    for path in far:
        path.unlink()
    assert len(far) == 3
    for path in (run / "tiles").iterdir():
        core = tiles.core_distances(Lake(run), int(path.stem))
        assert (run / core).read_bytes() == (whole / core).read_bytes()
        assert (run / tiles.local_tree(Lake(run), int(path.stem))).exists()


def test_what_is_certain_in_a_tile_is_most_of_it_and_stays(tmp_path: Path):
    points = stored(blobs([(2.35, 48.85), (13.4, 52.5)], n=600), tmp_path / "points.parquet")
    tree_of(points, tmp_path / "run", 2, 2)
    certain = sum(len(pd.read_parquet(path)) for path in (tmp_path / "run" / "certain").glob("*.parquet"))
    assert certain > 0.95 * 1200
    assert len(pd.read_parquet(tmp_path / "run" / "tree.parquet")) == 1199


def test_same_bytes_in_any_order_of_tiles(tmp_path: Path):
    points = stored(CLOUDS["cities"], tmp_path / "points.parquet")
    tree_of(points, tmp_path / "whole", 3, 4)
    run = Lake(tmp_path / "run")
    n_tiles = tiles.cut([points], run, 4, 3)
    for tile in reversed(range(n_tiles)):
        tiles.core_distances(run, tile)
    for tile in reversed(range(n_tiles)):
        tiles.local_tree(run, tile)
    count = 0
    while tiles.join(run, count) > 1:
        for tile in reversed(range(n_tiles)):
            tiles.search(run, tile, count)
        count += 1
    tiles.gather(run)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


_KILLED = """
import os, signal, sys
from pathlib import Path
from geo_assets.geotag import tiles
from geo_assets.lake import Lake
put, replace = 0, Path.replace
os.fsync = lambda descriptor: None
def counted(self, target):
    global put
    put += 1
    if put == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = counted
tiles.spanning_tree([Path(sys.argv[1])], Lake(sys.argv[2]), min_samples=3, n_tiles=4)
"""


def test_a_killed_run_ends_in_the_same_bytes(tmp_path: Path):
    points, run = stored(CLOUDS["cities"], tmp_path / "points.parquet"), tmp_path / "run"
    tree_of(points, tmp_path / "whole", 3, 4)
    for kill_at in (4, 36):  # while it is cut, and in a round
        command = [sys.executable, "-c", _KILLED, str(points), str(run), str(kill_at)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (run / "tree.parquet").exists()
    tree_of(points, run, 3, 4)
    assert files(run) == files(tmp_path / "whole")


def test_a_run_stopped_again_and_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    points = stored(CLOUDS["copies"], tmp_path / "points.parquet")
    tree_of(points, tmp_path / "whole", 2, 4)
    replace, made, stops = Path.replace, 0, 0

    def counted(self: Path, target: Path) -> Path:
        nonlocal made
        made += 1
        if made == 8 + stops % 3:  # the cut puts seven files in place, and starts anew
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counted)
    while not (tmp_path / "run" / "tree.parquet").exists():
        made = 0
        try:
            tree_of(points, tmp_path / "run", 2, 4)
        except KeyboardInterrupt:
            stops += 1
    assert stops > 4
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_what_does_not_fit_is_refused(tmp_path: Path):
    points = stored(CLOUDS["grid"], tmp_path / "points.parquet")
    run = Lake(tmp_path / "run")
    with pytest.raises(SourceError, match="holds no tiles; cut them first"):
        tiles.core_distances(run, 0)
    with pytest.raises(ConfigError, match="min_samples is 0;"):
        tiles.cut([points], run, 2, 0)
    with pytest.raises(ConfigError, match="0 tiles hold no place"):
        tiles.cut([points], run, 0, 2)
    tiles.cut([points], run, 2, 2)
    others = stored(CLOUDS["grid"].tail(-1), tmp_path / "others.parquet")
    for other in (([points], run, 2, 3), ([points], run, 3, 2), ([others], run, 2, 2)):
        with pytest.raises(ConfigError, match=r"the tiles of other places, or other tiles, .*; choose an empty folder"):
            tiles.cut(*other)
    wrong = tmp_path / "wrong.parquet"
    frame(np.array([1.0, 2.0]), np.array([1.0, np.nan])).to_parquet(wrong)
    with pytest.raises(SourceError, match="Place 170 has no finite coordinates"):
        tiles.cut([points, wrong], Lake(tmp_path / "other"), 2, 2)
