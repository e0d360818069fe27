"""A made street that changes between two runs: what is done anew, and what stays to the last bit."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.lake import Lake
from geo_assets.reconstruct import matching, models, update
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.streets import Street, write_street

WHERE = {"city": "demo", "box": "r00c00"}
OPTIONS = Reconstruct(threads=1, given_poses="off")
N = 12
HELD_OUT = (4, 8)
ALL = tuple(range(N))
MOST = tuple(k for k in ALL if k not in HELD_OUT)
POSE = ["east_m", "north_m", "up_m", "qw", "qx", "qy", "qz"]


def run(lake: Lake, only: Sequence[int], street: Street | None = None, options: Reconstruct = OPTIONS) -> models.Models:
    """All steps on some cameras of the street, as the assets would run them."""
    frame = write_street(lake, street or Street(n=N), only)
    for key in frame.path:
        if not lake.exists(key):
            lake.put_bytes(key, _pixels())
    matched = matching.match_box(lake, "demo", "r00c00", options)
    lake.write("match_pairs", matched.frame, note=None, **WHERE)
    made = models.map_box(lake, "demo", "r00c00", options)
    for table, rows in (("model_cameras", made.cameras), ("model_blocks", made.blocks), ("sparse_models", made.models)):
        lake.write(table, rows, note=made.note, city="demo", box="r00c00")
    return made


def _pixels() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (640, 480), (90, 120, 150)).save(sink, "JPEG")
    return sink.getvalue()


def poses(cameras: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(cameras.set_index("image_id")[POSE]).sort_index()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake in which most of the street was mapped; tests work on copies of it."""
    root = tmp_path_factory.mktemp("first")
    made = run(Lake(root), MOST)
    assert made.models.status.tolist() == ["placed"] and len(made.cameras) == len(MOST)
    assert made.models.route.tolist() == ["rebuilt"]
    return root


@pytest.fixture
def lake(first: Path, tmp_path: Path) -> Lake:
    shutil.copytree(first, tmp_path / "lake")
    return Lake(tmp_path / "lake")


def test_new_images_are_added_and_the_others_stay(lake: Lake):
    before = poses(lake.read("model_cameras", None, **WHERE))
    made = run(lake, ALL)
    assert made.models.route.tolist() == ["updated"], made.figures
    assert made.figures["n_new_registered"] == 2 and made.figures["moved_m"] <= 1e-9
    after = poses(made.cameras)
    assert len(after) == N
    pd.testing.assert_frame_equal(pd.DataFrame(after.loc[before.index]), before, check_exact=True)
    for k in HELD_OUT:
        middle = (after.east_m[f"i{k - 1:03d}"] + after.east_m[f"i{k + 1:03d}"]) / 2
        assert after.east_m[f"i{k:03d}"] == pytest.approx(middle, abs=0.1)
    model = made.models.iloc[0]
    assert model.n_registered == N and model.reprojection_px < 1.5


def test_an_unchanged_box_keeps_its_models(lake: Lake):
    before = {name: lake.modified(lake.key("models", f"0/{name}", **WHERE)) for name in ("images.bin", "points3D.bin")}
    made = run(lake, MOST)
    assert made.models.route.tolist() == ["unchanged"]
    assert len(made.cameras) == len(MOST) and len(made.points)
    assert before == {name: lake.modified(lake.key("models", f"0/{name}", **WHERE)) for name in before}


def test_images_that_are_gone_leave_the_rest_in_place(lake: Lake):
    before = poses(lake.read("model_cameras", None, **WHERE))
    made = run(lake, [k for k in MOST if k not in (3, 10)])
    assert made.models.route.tolist() == ["updated"]
    after = poses(made.cameras)
    assert set(before.index) - set(after.index) == {"i003", "i010"}
    pd.testing.assert_frame_equal(after, pd.DataFrame(before.loc[after.index]), check_exact=True)
    import pycolmap

    model = pycolmap.Reconstruction(lake.uri(lake.key("models", "0", **WHERE)))
    assert {model.image(i).name for i in model.reg_image_ids()} == {f"{i}.jpg" for i in after.index}


def test_an_image_with_other_features_is_registered_again(lake: Lake):
    made = run(lake, MOST, Street(n=N, keys={5: "new pixels "}))
    assert made.models.route.tolist() == ["updated"]
    assert made.figures["n_changed"] == 1 and made.figures["n_new_registered"] == 1


@pytest.mark.parametrize(
    "n_new, rules, origin, status, words",
    [
        (3, "r", 500.0, "placed", "30% of the images changed"),
        (2, "other", 500.0, "placed", "settings or version"),
        (2, "r", 510.0, "placed", "frame is another"),
        (2, "r", 500.0, "unplaced", "no model was placed"),
        (2, "r", 500.0, "placed", None),
        (0, "r", 500.0, "placed", None),
    ],
)
def test_what_cannot_be_updated_is_built_anew(n_new: int, rules: str, origin: float, status: str, words: str | None):
    rows = pd.DataFrame([{"component": 0, "status": status, "path": "files/models/0"}])
    before = update.Published({"rules": "r", "origin": [11.5, 48.1, 500.0], "pairs": "p"}, rows, rows, rows)
    now = {"rules": rules, "origin": [11.5, 48.1, origin], "pairs": "p"}
    change = update.Change(tuple("abc"[:n_new]), (), (), 10)
    why = update.why_rebuild(before, now, change, OPTIONS)
    assert why is None if words is None else words in str(why)


def test_settings_that_do_not_touch_the_model_do_not_make_it_anew():
    assert update.rules_of(OPTIONS) == update.rules_of(OPTIONS.model_copy(update={"threads": 2, "rebuild_share": 0.5}))
    assert update.rules_of(OPTIONS) != update.rules_of(OPTIONS.model_copy(update={"min_images": 6}))


def test_a_new_image_that_shows_nothing_known_leaves_the_box_as_it_is(lake: Lake):
    made = run(lake, [*MOST, 4], Street(n=N, blind=frozenset({4})))
    assert made.models.route.tolist() == ["updated"] and made.figures["n_new_registered"] == 0
    assert len(made.cameras) == len(MOST)


def test_a_damaged_model_is_built_anew(lake: Lake):
    lake.put_bytes(lake.key("models", "0/images.bin", **WHERE), b"no model")
    made = run(lake, ALL)
    assert made.models.route.tolist() == ["rebuilt"] and len(made.cameras) == N


def test_the_plan_counts_what_differs():
    change = update.plan({"a": "1", "b": "1", "c": "1", "d": "1"}, {"a": "1", "b": "2", "d": "1", "e": "1"})
    assert (change.new, change.gone, change.changed) == (("e",), ("c",), ("b",))
    assert change.share == 0.75 and change.to_register == {"b", "e"} and change
    assert not update.plan({"a": "1"}, {"a": "1"})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"registered": ["a.jpg"]}, "1 of 4 new images"),
        ({"moved_m": 0.5}, "moved by 0.5 m"),
        ({"border_m": 0.5}, "0.50 m apart"),
        ({"reprojection_px": 2.0}, "2.00 px"),
        ({"status": "unplaced", "reason": "too short"}, "too short"),
        ({"image_ids": ["a"]}, "1 images are left"),
        ({}, None),
    ],
)
def test_gates_send_a_poor_update_to_a_rebuild(changes: dict[str, object], words: str | None):
    new = {f"{i}.jpg" for i in "abcd"}
    row: dict[str, object] = {"part_of": 0, "status": "placed", "image_ids": list("abcdefgh"), "reprojection_px": 0.9}
    row |= {"border_m": 0.1} | {k: v for k, v in changes.items() if k not in ("registered", "moved_m")}
    said = {
        "models": [row],
        "registered": changes.get("registered", sorted(new)),
        "moved_m": changes.get("moved_m", 0.0),
    }
    before = pd.DataFrame([{"component": 0, "status": "placed", "reprojection_px": 0.8, "border_m": 0.1}])
    why = update.refused(said, before, new, min_images=5)
    assert why is None if words is None else words in str(why)


@pytest.mark.parametrize("n_cameras", [1, 3], ids=["photos", "views of a panorama"])
def test_a_part_of_a_model_in_the_numbers_of_a_database(tmp_path: Path, n_cameras: int):
    pycolmap = pytest.importorskip("pycolmap")
    from geo_assets.reconstruct.growing import renumbered

    pycolmap.set_random_seed(1)
    asked = pycolmap.SyntheticDatasetOptions()
    asked.num_rigs, asked.num_frames_per_rig, asked.num_points3D = 1, 8, 100
    asked.num_cameras_per_rig = n_cameras
    path = str(tmp_path / "database.db")
    with pycolmap.Database.open(path) as db:
        truth = pycolmap.synthesize_dataset(asked, db)
    frames = sorted(truth.reg_frame_ids())[:6]
    kept = sorted(truth.image(data.id).name for frame in frames for data in truth.frame(frame).image_ids)
    model = renumbered(truth, path, kept)
    assert sorted(model.image(i).name for i in model.reg_image_ids()) == kept
    for name in kept:
        a, b = truth.find_image_with_name(name), model.find_image_with_name(name)
        assert a is not None and b is not None
        assert np.allclose(a.projection_center(), b.projection_center(), rtol=0, atol=1e-12)
    assert model.compute_mean_reprojection_error() < 0.1 and model.num_points3D() > 50
