"""A box from its sparse model in the lake to the published splat, and through Dagster."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import SourceError, TrainingError
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.settings import Splats
from geo_assets.splats import box as box_module
from geo_assets.splats.box import splat_of_box
from geo_assets.splats.cameras import Scene
from geo_assets.splats.engine import ON_CPU, SplatRequest, SplatResult
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.georeference import splat_reference
from geo_assets.splats.ply import read_ply, write_ply
from geo_assets.tables import TABLES
from geo_assets_tests.splats.scenes import blobs, ring, scene_of, write_colmap

CITY, BOX = "demo", "r00c00"
OPTIONS = Splats(engine="cpu", steps=60, max_splats=300, threads=1, max_image_px=64)


def quiet(line: str) -> None:
    pass


def frame_of(table: str, *rows: dict) -> pd.DataFrame:
    types = {"time": pd.NaT}
    filled = [{c.name: types.get(c.type) for c in TABLES[table].columns} | row for row in rows]
    return pd.DataFrame(filled, columns=TABLES[table].column_names)


def put_model(lake: Lake, folder: Path, scene: Scene, **model: object) -> None:
    """What the reconstruct room leaves behind for a box."""
    write_colmap(scene, folder / "models" / "0", folder / "photos")
    (folder / "models" / "geo.json").write_text(json.dumps(splat_reference(LocalFrame(11.575, 48.137, 565))))
    lake.publish(folder / "models", lake.key("models", city=CITY, box=BOX))
    for path in (folder / "photos").iterdir():
        lake.put_bytes(lake.key("images", path.name, city=CITY, box=BOX), path.read_bytes())
    row = {"component": 0, "status": "placed", "n_registered": len(scene.views), "n_points": len(scene.points)}
    path_of = {"path": lake.key("models", "0", city=CITY, box=BOX)}
    lake.write("sparse_models", frame_of("sparse_models", row | path_of | model), city=CITY, box=BOX)
    cameras = [{"image_id": v.image_id, "component": 0, "home_box": BOX} for v in scene.views]
    lake.write("model_cameras", frame_of("model_cameras", *cameras), city=CITY, box=BOX)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setattr(box_module, "_scratch", lambda name: _folder(tmp_path / "scratch"))
    return Lake(tmp_path / "lake")


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def test_a_box_is_trained_and_published(lake: Lake, tmp_path: Path) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(16, turn=1.6)))
    made = splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=quiet)
    row = made.splat.iloc[0]
    assert (row.status, row.engine, row.steps, row.n_train, row.n_holdout) == ("trained", "cpu", 60, 14, 2)
    assert (row.width, row.height) == (64, 48)
    assert row.path == "files/splats/city=demo/box=r00c00"
    assert lake.names(row.path) == [
        *("compare.jpg", "preview.jpg", "splat.geo.json", "splat.ply", "train.json", "train.log", "viewer.html"),
    ]
    assert len(read_ply(lake.get_bytes(f"{row.path}/splat.ply"))) == row.n_splats
    assert json.loads(lake.get_bytes(f"{row.path}/train.json"))["curve"]
    lake.write("splat_ply", made.splat, city=CITY, box=BOX)
    lake.write("splat_views", made.views, city=CITY, box=BOX)
    assert lake.read("splat_views", city=CITY, box=BOX).split.value_counts().to_dict() == {"train": 14, "holdout": 2}


def test_three_photos_are_enough_and_one_is_held_out(lake: Lake, tmp_path: Path) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(3, turn=0.3)))
    said: list[str] = []
    made = splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=said.append)
    assert (made.figures["n_train"], made.figures["n_holdout"]) == (2, 1)
    assert any("20 or more are recommended" in line for line in said)


@pytest.mark.parametrize(
    ("model", "status"),
    [
        ({"status": "too_few"}, "too_few"),
        ({"status": "unplaced"}, "too_few"),
        ({"n_registered": 2}, "too_few"),
        ({"n_points": 0}, "too_few"),
    ],
)
def test_what_cannot_be_trained_is_a_result(lake: Lake, tmp_path: Path, model: dict, status: str) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(3)), **model)
    made = splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=quiet)
    assert made.splat.status.to_list() == [status]
    assert made.figures["n_splats"] == 0


def test_a_box_without_photos(lake: Lake) -> None:
    lake.write("sparse_models", TABLES["sparse_models"].empty(), city=CITY, box=BOX)
    assert splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=quiet).splat.status.to_list() == ["empty"]


def test_photos_that_are_not_in_the_lake_are_named(lake: Lake, tmp_path: Path) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(4)))
    (tmp_path / "lake" / lake.key("images", "002.jpg", city=CITY, box=BOX)).unlink()
    with pytest.raises(SourceError, match=r"1 of 4 photos .*002\.jpg"):
        splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=quiet)


class _Engine:
    """An engine of our own making, for what engines do wrong."""

    def __init__(self, splat: Gaussians | None, **metrics: float) -> None:
        self.splat, self.metrics, self.name, self.effort = splat, metrics, "fake", ON_CPU

    def available(self) -> str | None:
        return None

    def train(self, request: SplatRequest, log: object) -> SplatResult:
        path = request.out_dir / "made.ply"
        if self.splat is not None:
            write_ply(path, self.splat)
        return SplatResult(path, "fake", "1", 0.1, 10, 5, metrics=self.metrics)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (_Engine(None), "wrote no PLY"),
        (_Engine(blobs(4)[np.zeros(4, bool)]), "no Gaussian is visible"),
        (_Engine(blobs().moved(np.eye(3), [50, 0, 0]), psnr_db=28.0), "does not line up"),
    ],
)
def test_engines_that_fail(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: _Engine, said: str
) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(4, turn=0.5)))
    monkeypatch.setattr(box_module, "choose_engine", lambda wanted, log: engine)
    with pytest.raises(TrainingError, match=said):
        splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=quiet)


def test_the_assets_and_their_check(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geo_assets.partitions import partition_key
    from geo_assets.resources import LakeResource
    from geo_assets.splats.assets import ASSETS, splat_city, splat_ply
    from geo_assets.splats.checks import CHECKS

    for name, value in {"STEPS": 60, "MAX_SPLATS": 300, "THREADS": 1, "MAX_IMAGE_PX": 64}.items():
        monkeypatch.setenv(f"GEO_ASSETS_SPLATS__{name}", str(value))
    put_model(lake, tmp_path, scene_of(blobs(), ring(16, turn=1.6)))
    resources = {"lake": LakeResource(root=str(tmp_path / "lake"))}
    done = dg.materialize(
        [*ASSETS, *CHECKS], selection=[splat_ply], partition_key=partition_key("demo", "r00c00"), resources=resources
    )
    metadata = done.asset_materializations_for_node("splat_ply")[0].metadata
    assert {"compare", "preview", "viewer", "psnr_db", "dagster/row_count"} <= set(metadata)
    checks = done.get_asset_check_evaluations()
    assert [c.check_name for c in checks] == ["splat_quality"]
    assert "PSNR" in (checks[0].description or "")
    city = dg.materialize([splat_city], partition_key="demo", resources=resources)
    metadata = city.asset_materializations_for_node("splat_city")[0].metadata
    assert metadata["n_boxes"].value == 1
    outside = dg.materialize(
        [splat_ply], partition_key=partition_key("demo", "r01c01"), resources=resources, raise_on_error=False
    )
    assert not outside.success  # sparse_models of that box was never made: the failure says so
