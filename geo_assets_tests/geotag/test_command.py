import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from geo_assets.cli import main
from geo_assets.errors import ConfigError, SourceError
from geo_assets.geotag.command import Options, cluster_file
from geo_assets.geotag.model import load
from geo_assets.geotag.predict import predict
from geo_assets_tests.geotag.places import blobs

CITIES = [(2.35, 48.85), (13.4, 52.5), (-74.0, 40.7), (139.7, 35.7), (180.0, -16.5)]
BAD = [("a", "", "1"), ("b", "x", "1"), ("c", "7", "91"), ("d", "0", "0"), ("e", "181", "3")]


def photos(n: int = 30) -> pd.DataFrame:
    """Photos in no order, some of them at one place, named by no safe path."""
    rows = blobs(CITIES, n=n).sample(frac=1, random_state=0)
    rows = pd.concat([rows, rows.head(7)], ignore_index=True)
    return rows.loc[:, ["lon", "lat"]].assign(photo_id=[f"../{i}" for i in range(len(rows))])


def written(path: Path, rows: pd.DataFrame) -> Path:
    if path.suffix == ".csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["points.parquet", "points.csv"])
def test_a_table_becomes_a_folder(tmp_path: Path, name: str) -> None:
    rows = photos()
    said: list[str] = []
    summary = cluster_file(written(tmp_path / name, rows), tmp_path / "out", log=said.append)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "cells.parquet", "clusters.parquet", "map.png", "model", "radii.png", "rejects.csv", "sizes.png", "structure.parquet", "summary.json",
    ]  # fmt: skip
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (summary["n_rows"], summary["n_places"], summary["n_rejects"]) == (len(rows), len(rows) - 7, 0)
    found = pd.read_parquet(out / "clusters.parquet")
    assert found["photo_id"].tolist() == rows["photo_id"].tolist()  # in the order of the file
    np.testing.assert_array_equal(found[["lon", "lat"]], rows[["lon", "lat"]])
    assert found["cluster"].max() + 1 == summary["n_clusters"] >= len(CITIES) - 1
    cells = pd.read_parquet(out / "cells.parquet")
    for level in range(3):
        of_level = cells[cells["level"] == level].set_index("cell_id")
        assert found[f"cell_{level}"].value_counts().to_dict() == of_level["n_photos"].to_dict()
        if level < 2:
            assert (of_level["parent_id"].loc[found[f"cell_{level}"]].tolist()) == found[f"cell_{level + 1}"].tolist()
    assert len(pd.read_parquet(out / "structure.parquet")) == len(cells)
    model = load(out / "model")
    assert predict(model, found["lon"], found["lat"]).cluster.tolist() == found["cluster"].tolist()
    assert said[1] == f"{len(rows) - 7:,} places of {len(rows):,} photos"


def test_the_same_points_in_another_file_give_the_same_cells(tmp_path: Path) -> None:
    rows = photos()
    for name, order in (("a.parquet", rows), ("b.csv", rows.sort_index(ascending=False))):
        cluster_file(written(tmp_path / name, order), tmp_path / name[0])
    for name in ("cells.parquet", "structure.parquet", "model/points.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_every_row_is_a_photo_or_a_reject(tmp_path: Path, suffix: str) -> None:
    rows = photos(10).astype(str)
    bad = pd.DataFrame(BAD, columns=["photo_id", "lon", "lat"])
    both = pd.concat([rows.head(20), bad, rows.tail(20)]).rename(columns={"lon": "Longitude", "lat": "LAT"})
    summary = cluster_file(written(tmp_path / f"points{suffix}", both), tmp_path / "out")
    rejects = pd.read_csv(tmp_path / "out" / "rejects.csv")
    assert summary["n_rows"] == len(both) and summary["n_rejects"] == len(rejects) == len(BAD)
    assert rejects["row"].tolist() == [20, 21, 22, 23, 24]
    assert rejects["reason"].tolist()[2] == "the position is out of range" and "zero" in rejects["reason"][3]
    assert len(pd.read_parquet(tmp_path / "out" / "clusters.parquet")) == 40


def test_the_levels_as_earlier_scripts_read_them(tmp_path: Path) -> None:
    """A row a photo, by its own name, though names may be twice; the cells are those of the tables."""
    rows = photos()
    rows.loc[[3, 4], "photo_id"] = "twice, and with a comma"
    cluster_file(written(tmp_path / "points.csv", rows), tmp_path / "out", Options(csv=True))
    out = tmp_path / "out"
    coords = pd.read_csv(out / "hierarchical_clustered_coords.csv")
    assert coords["path"].tolist() == rows["photo_id"].tolist()
    found = pd.read_parquet(out / "clusters.parquet")
    for level in range(2):
        assert coords[f"cluster_{level}"].tolist() == found[f"cell_{level}"].tolist()
    structure = pd.read_csv(out / "hierarchical_structure.csv")
    assert structure["num_items"].iloc[0] == len(rows)
    centroids = pd.read_csv(out / "hierarchical_cluster_centroids.csv")
    assert len(centroids) + 1 == len(structure) == len(pd.read_parquet(out / "cells.parquet"))


def test_a_later_run_says_which_clusters_are_which_now(tmp_path: Path) -> None:
    rows = photos()
    first = cluster_file(written(tmp_path / "points.csv", rows), tmp_path / "out")
    assert not (tmp_path / "out/model/overlap.parquet").exists()
    again = cluster_file(written(tmp_path / "points.csv", rows), tmp_path / "out")
    assert again["version"] == first["version"] and not (tmp_path / "out/model/overlap.parquet").exists()
    cluster_file(written(tmp_path / "points.csv", rows.iloc[: len(rows) // 2]), tmp_path / "out")
    overlap = pd.read_parquet(tmp_path / "out/model/overlap.parquet")
    shared = rows.loc[: len(rows) // 2 - 1, ["lon", "lat"]].drop_duplicates()
    assert int(overlap["n_points"].to_numpy().sum()) == len(shared)
    load(tmp_path / "out/model")


def test_photos_without_an_id_are_called_by_their_row(tmp_path: Path) -> None:
    rows = photos(10).loc[:, ["lat", "lon"]]
    cluster_file(written(tmp_path / "points.csv", rows), tmp_path / "out")
    found = pd.read_parquet(tmp_path / "out" / "clusters.parquet")
    assert found["photo_id"].tolist() == [str(i) for i in range(len(rows))]


@pytest.mark.parametrize("n, said", [(0, "no rows"), (1, "1 place is too few"), (9, "9 places are too few")])
def test_few_points_are_told_so(tmp_path: Path, n: int, said: str) -> None:
    source = written(tmp_path / "points.parquet", photos().head(n))
    summary = cluster_file(
        source, tmp_path / "out", Options(region=(0, 0, 90, 90), pickle=True, hulls=True, judge=True)
    )
    assert said in summary["note"] and summary["n_clusters"] == 0
    assert len(pd.read_parquet(tmp_path / "out" / "clusters.parquet")) == n
    assert len(pd.read_parquet(tmp_path / "out" / "cells.parquet")) == (4 if n else 0)
    assert (tmp_path / "out" / "tree.png").is_file() and len(load(tmp_path / "out" / "model").points) == n


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    swapped = photos().rename(columns={"lon": "lat", "lat": "lon"})
    for name, rows, said in (
        ("swapped.parquet", swapped, "swapped"),
        ("no_lon.parquet", photos().drop(columns="lon"), "lacks lon"),
        ("no_lat.csv", photos().drop(columns="lat"), "lacks lat"),
    ):
        with pytest.raises(SourceError, match=said):
            cluster_file(written(tmp_path / name, rows), tmp_path / "out")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SourceError, match="cannot be read"):
        cluster_file(tmp_path / "torn.parquet", tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    source = written(tmp_path / "clusters.parquet", photos())
    with pytest.raises(ConfigError, match="would be replaced"):
        cluster_file(source, tmp_path)
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no model"):
        cluster_file(source, tmp_path / "out")
    assert (tmp_path / "out" / "model" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a file"):
        cluster_file(source, source)
    shutil.rmtree(tmp_path / "out")
    for _ in range(2):  # a second run takes the place of the first
        cluster_file(source, tmp_path / "out")


def test_the_command_prints_json_alone(tmp_path: Path) -> None:
    source = written(tmp_path / "points.csv", photos())
    call = ["cluster", str(source), "--out", str(tmp_path / "out"), "--min-cluster-size", "8"]
    done = CliRunner().invoke(
        main, [*call, "--json", "--pickle", "--hulls", "--judge", "--others", "--csv", "--region", "2,48,3,49"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["min_cluster_size"] == 8
    assert "places of" in done.stderr and "runs code" in done.stderr
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made > {
        "model.pkl",
        "tree.png",
        "s2_cells.parquet",
        "quadtree_cells.parquet",
        "errors.parquet",
        "errors.png",
        "cells_level_0.parquet",
        "hierarchical_clustered_coords.csv",
        "hierarchical_structure.csv",
        "hierarchical_cluster_centroids.csv",
    }
    told = CliRunner().invoke(main, call)
    assert "150 places" in told.stdout
    # What belonged to the earlier run alone is gone.
    assert {path.name for path in (tmp_path / "out").iterdir()}.isdisjoint(
        made
        - {
            "cells.parquet",
            "clusters.parquet",
            "map.png",
            "model",
            "radii.png",
            "rejects.csv",
            "sizes.png",
            "structure.parquet",
            "summary.json",
        }
    )
    wrong = CliRunner().invoke(main, [*call, "--region", "3,48,2"])
    assert wrong.exit_code == 2 and "--region" in wrong.stderr


def test_published_places_are_clustered(real_data: Path, tmp_path: Path) -> None:
    real = cluster_file(real_data / "geotag/points/im2gps3k_places365.csv", tmp_path / "out")
    assert real["n_photos"] > 2_900 and real["n_clusters"] > 100 and real["n_rejects"] < 5
