"""A box from its sparse model in the lake to the published splat, and through Dagster."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.errors import SourceError, TrainingError
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.settings import Splats
from geo_assets.splats import box as box_module
from geo_assets.splats.box import splat_of_box
from geo_assets.splats.cameras import Scene
from geo_assets.splats.engine import ON_CPU, SplatRequest, SplatResult
from geo_assets.splats.gaussians import Gaussians, joined
from geo_assets.splats.georeference import splat_reference
from geo_assets.splats.ply import read_ply, write_ply
from geo_assets.splats.spz import read_spz
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
    """What the reconstruct room leaves behind for a box; ``model`` replaces what its row says."""
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
        *("compare.jpg", "globe.html", "photos.json", "preview.jpg", "sky.ply", "splat.compressed.ply"),
        *("splat.geo.json", "splat.glb", "splat.ply", "splat.spz", "tileset.json", "train.json", "train.log"),
        "viewer.html",
    ]
    assert len(read_ply(lake.get_bytes(f"{row.path}/splat.ply"))) == row.n_splats
    assert json.loads(lake.get_bytes(f"{row.path}/train.json"))["curve"]
    lake.write("splat_ply", made.splat, city=CITY, box=BOX)
    lake.write("splat_views", made.views, city=CITY, box=BOX)
    assert lake.read("splat_views", city=CITY, box=BOX).split.value_counts().to_dict() == {"train": 14, "holdout": 2}


def put_masks(lake: Lake, scene: Scene, hidden: dict[str, int | bytes | None]) -> None:
    """Masks that hide so many rows of a photo from above, are such bytes, or are not in the lake."""
    rows = []
    for view in scene.views:
        key = lake.key("masks", f"{view.image_id}.png", city=CITY, box=BOX) if view.image_id in hidden else None
        what = hidden.get(view.image_id)
        if key and isinstance(what, int):
            kept = np.full((view.camera.height, view.camera.width), 255, np.uint8)
            kept[:what] = 0
            sink = io.BytesIO()
            Image.fromarray(kept).save(sink, "PNG")
            lake.put_bytes(key, sink.getvalue())
        elif key and isinstance(what, bytes):
            lake.put_bytes(key, what)
        size = {"width": view.camera.width, "height": view.camera.height}
        rows.append({"image_id": view.image_id, "sequence_id": "a", "mask_path": key} | size)
    lake.write("gps_db", frame_of("gps_db", *rows), city=CITY, box=BOX)


MASKS: dict[str, int | bytes | None] = {"001": 20, "002": 48, "003": b"no PNG", "004": None}


def test_masks_of_the_city_reach_the_training(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(blobs(), ring(8, turn=0.8))
    put_model(lake, tmp_path, scene)
    put_masks(lake, scene, MASKS)
    engine = _Engine(blobs())
    monkeypatch.setattr(box_module, "choose_engine", lambda wanted, log: engine)
    said: list[str] = []
    made = splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=said.append)
    figures = made.figures
    assert (figures["n_masked"], figures["n_left_out"], figures["n_bad_masks"]) == (1, 1, 2)
    assert (figures["n_train"], figures["n_holdout"]) == (6, 1)
    assert "002" not in set(made.views.image_id)
    assert engine.saw == ["images", "masks", "masks/001.jpg.png", "sequences.json", "sparse"]
    text = "\n".join(said)
    assert "1 photos are left out since their mask hides nearly all of them, the first: 002.jpg" in text
    assert "The mask of 003.jpg is not a PNG" in text and "The mask of 004.jpg is not in the lake" in text


def test_masks_can_be_switched_off(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_of(blobs(), ring(8, turn=0.8))
    put_model(lake, tmp_path, scene)
    put_masks(lake, scene, MASKS)
    engine = _Engine(blobs())
    monkeypatch.setattr(box_module, "choose_engine", lambda wanted, log: engine)
    options = OPTIONS.model_copy(update={"masks": False})
    figures = splat_of_box(lake, city=CITY, box=BOX, options=options, log=quiet).figures
    assert (figures["n_masked"], figures["n_left_out"], figures["n_bad_masks"], figures["n_train"]) == (0, 0, 0, 7)
    assert engine.saw == ["images", "sequences.json", "sparse"]


def test_too_few_photos_that_are_not_hidden(lake: Lake, tmp_path: Path) -> None:
    scene = scene_of(blobs(), ring(4, turn=0.4))
    put_model(lake, tmp_path, scene)
    put_masks(lake, scene, {"001": 48, "002": 48})
    said: list[str] = []
    made = splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=said.append)
    assert made.splat.status.to_list() == ["too_few"]
    assert "2 photos can be used; at least 3 are needed (20 or more recommended)" in said[-1]


def test_the_sky_is_published_and_judged_but_kept_apart(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(8, turn=0.8)))
    engine = _Engine(blobs()[:100], sky=blobs()[100:])
    monkeypatch.setattr(box_module, "choose_engine", lambda wanted, log: engine)
    made = splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=quiet)
    row = made.splat.iloc[0]
    assert (row.n_splats, row.n_sky) == (100, 50)
    assert row.psnr_db > 30, "place and sky together are the photo"
    assert len(read_ply(lake.get_bytes(f"{row.path}/splat.ply"))) == 100
    assert len(read_ply(lake.get_bytes(f"{row.path}/sky.ply"))) == 50
    assert made.figures["shown_in_page"] == 150


def test_a_far_floater_costs_the_exports_no_precision(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(8, turn=0.8)))
    floater = blobs(1).moved(np.eye(3), [0, 0, 90_000])
    engine = _Engine(joined([blobs(), floater], 0))
    monkeypatch.setattr(box_module, "choose_engine", lambda wanted, log: engine)
    said: list[str] = []
    path = splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=said.append).splat.path[0]
    assert "1 Gaussians lie farther than 2000 m; they are in splat.ply alone." in said
    assert len(read_ply(lake.get_bytes(f"{path}/splat.ply"))) == 151
    kept = read_spz(lake.get_bytes(f"{path}/splat.spz"))
    assert np.abs(kept.means - blobs().means).max() < 0.5 / 4096 + 1e-6


def test_only_the_largest_placed_component_is_trained_and_said_so(lake: Lake, tmp_path: Path) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(8, turn=0.8)))
    first = lake.read("sparse_models", city=CITY, box=BOX)
    others = [first.assign(component=1, n_registered=5), first.assign(component=2, status="unplaced")]
    lake.write("sparse_models", pd.concat([others[1], others[0], first]), city=CITY, box=BOX)
    said: list[str] = []
    made = splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=said.append)
    assert "2 placed components; the largest alone is trained (8 of 13 placed photos)" in said[0]
    assert made.splat.n_components.to_list() == [2]
    assert made.splat.n_registered.to_list() == [8]


def test_what_does_not_fit_is_refused_before_any_work(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(blobs(), ring(4, turn=0.4))
    put_model(lake, tmp_path, scene)
    put_masks(lake, scene, {})
    monkeypatch.setattr(box_module, "make_dataset", lambda *a, **k: pytest.fail("nothing may be made"))
    options = OPTIONS.model_copy(update={"max_splats": 10**12})
    with pytest.raises(TrainingError, match=r"GB for 4 photos of 0\.0 Mpx, .* 1,000,000,000,000 Gaussians"):
        splat_of_box(lake, city=CITY, box=BOX, options=options, log=quiet)


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

    def __init__(self, splat: Gaussians | None, sky: Gaussians | None = None, **metrics: float) -> None:
        self.splat, self.sky, self.metrics, self.name, self.effort = splat, sky, metrics, "fake", ON_CPU
        self.saw: list[str] = []

    def available(self) -> str | None:
        return None

    def train(self, request: SplatRequest, log: Callable[[str], None]) -> SplatResult:
        found = [p for p in request.dataset_dir.rglob("*") if p.parent.name not in ("images", "sparse", "0")]
        self.saw = sorted(str(p.relative_to(request.dataset_dir)) for p in found)
        log("WARN: the export failed")
        path, sky_path = request.out_dir / "made.ply", request.out_dir / "around.ply"
        if self.splat is not None:
            write_ply(path, self.splat)
        if self.sky is not None:
            write_ply(sky_path, self.sky)
        (request.out_dir / "brush.log").write_text("all of it")
        metrics, n = self.metrics, len(self.splat or ())
        return SplatResult(path, "fake", "1", 0.1, 10, n, sky_path=sky_path if self.sky else None, metrics=metrics)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (_Engine(None), "wrote no PLY"),
        (_Engine(blobs(4)[np.zeros(4, bool)]), "no Gaussian is visible"),
        (_Engine(blobs().moved(np.eye(3), [50, 0, 0]), psnr_db=28.0), "does not line up"),
        (_Engine(blobs().moved(np.eye(3), [0, 0, 0], 1000)), "times as far"),
        (_Engine(blobs(seed=5), psnr_db=28.0), r"the engine reported 28\.0\): the engine normalised the scene"),
        (_Engine(blobs(seed=5)), r"before training\): the engine normalised the scene"),
    ],
)
def test_engines_that_fail(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: _Engine, said: str
) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(4, turn=0.5)))
    monkeypatch.setattr(box_module, "choose_engine", lambda wanted, log: engine)
    with pytest.raises(TrainingError, match=said) as caught:
        splat_of_box(lake, city=CITY, box=BOX, options=OPTIONS, log=quiet)
    if "PLY" in said or "visible" in said:
        assert "WARN: the export failed" in caught.value.figures["log"]
        assert "WARN: the export failed" in (tmp_path / "scratch" / "train.log").read_text()
        assert (tmp_path / "scratch" / "brush.log").read_text() == "all of it"
    assert not lake.exists("files/splats/city=demo/box=r00c00"), "nothing is published"


def test_an_engine_that_stops_early_is_told(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_model(lake, tmp_path, scene_of(blobs(), ring(4, turn=0.5)))
    monkeypatch.setattr(box_module, "choose_engine", lambda wanted, log: _Engine(blobs()))
    said: list[str] = []
    options = OPTIONS.model_copy(update={"timeout_s": 7.0})
    made = splat_of_box(lake, city=CITY, box=BOX, options=options, log=said.append)
    assert "fake stopped after 10 of 60 steps (splats.timeout_s is 7 s)." in said
    protocol = json.loads(lake.get_bytes(f"{made.splat.path[0]}/train.json"))
    assert (protocol["engine"], protocol["engine_version"], protocol["figures"]["n_splats"]) == ("fake", "1", 150)
    assert b"stopped after 10 of 60" in lake.get_bytes(f"{made.splat.path[0]}/train.log")
    assert lake.get_bytes(f"{made.splat.path[0]}/brush.log") == b"all of it"


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
    assert {"compare", "preview", "curve", "viewer", "psnr_db", "dagster/row_count"} <= set(metadata)
    course = metadata["training"]
    assert isinstance(course, dg.TableMetadataValue) and len(course.records) > 2
    assert [column.name for column in course.schema.columns] == ["step", "n_splats", "loss", "psnr_db"]
    checks = done.get_asset_check_evaluations()
    told = {c.check_name: c for c in checks}
    assert set(told) > {"splat_quality", "splat_overfit", "splat_held_out", "splat_frame"}
    assert "PSNR" in (told["splat_quality"].description or "")
    assert told["splat_held_out"].passed is False and told["splat_held_out"].severity == dg.AssetCheckSeverity.WARN
    assert "16 photos are few" in (told["splat_held_out"].description or "")
    assert told["splat_frame"].passed and "% of the Gaussians are in view" in (told["splat_frame"].description or "")
    city = dg.materialize([splat_city], partition_key="demo", resources=resources)
    metadata = city.asset_materializations_for_node("splat_city")[0].metadata
    assert metadata["n_boxes"].value == 1
    outside = dg.materialize(
        [splat_ply], partition_key=partition_key("demo", "r01c01"), resources=resources, raise_on_error=False
    )
    assert not outside.success  # sparse_models of that box was never made: the failure says so
