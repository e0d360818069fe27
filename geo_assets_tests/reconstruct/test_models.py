from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import ReconstructionError
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import BoxPartition, Lake
from geo_assets.reconstruct import block_runs
from geo_assets.reconstruct.alignment import CityAlignment, align_city
from geo_assets.reconstruct.block_runs import ANSWER
from geo_assets.reconstruct.frames import best_similarity
from geo_assets.reconstruct.models import Box, Models, geo_reference, map_box, mappable
from geo_assets.reconstruct.neighbours import settled_neighbours
from geo_assets.reconstruct.stage import StepAnswer, StepEnded, run_step
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES
from geo_assets_tests.reconstruct.scenes import ORIGIN, Scene

OPTIONS = Reconstruct(threads=1)
IN_BLOCKS = Reconstruct(threads=1, block_images=28, block_shared=10)
WHERE = BoxPartition(city="town", box="r00c00")
NOTE: dict[str, Any] = {"origin": [10.0, 50.0, 100.0]}
FILES = ("cameras.bin", "frames.bin", "images.bin", "points3D.bin", "rigs.bin")


def image_rows(n: int, step_m: float = 5.0) -> pd.DataFrame:
    """Rows of ``gps_db`` along a line."""
    known = {"north_m": 0.0, "up_m": 0.0, "sigma_xy_m": 3.0, "sigma_z_m": 10.0, "home_box": "r00c00"}
    return TABLES["gps_db"].frame(
        [
            {column.name: None for column in TABLES["gps_db"].columns}
            | known
            | {"image_id": f"i{k}", "photo_id": f"i{k}", "frame_id": k + 1, "colmap_image_id": k + 1, "camera_id": 1}
            | {"east_m": k * step_m, "n_keypoints": 100, "sequence_id": "s", "width": 640, "height": 480}
            for k in range(n)
        ]
    )


def pair_rows(pairs: list[tuple[int, int]], verified: bool = True) -> pd.DataFrame:
    known = {"n_inliers": 100, "n_matches": 120, "geometry": "CALIBRATED", "reason": "ring", "verified": verified}
    return TABLES["match_pairs"].frame(
        [
            {column.name: None for column in TABLES["match_pairs"].columns}
            | known
            | {"image_id_a": f"i{a}", "image_id_b": f"i{b}", "distance_m": 5.0 * abs(a - b)}
            for a, b in pairs
        ]
    )


def lake_with(root: Path, images: pd.DataFrame, pairs: pd.DataFrame, note: dict[str, Any] = NOTE) -> Lake:
    lake = Lake(root)
    lake.write("gps_db", images, note=note, **WHERE)
    lake.write("match_pairs", pairs, note=None, **WHERE)
    return lake


def written(lake: Lake, made: Models, where: BoxPartition = WHERE) -> Models:
    """What the asset does with what was made: all rows fit their tables."""
    for table, frame in (
        ("model_cameras", made.cameras),
        ("model_blocks", made.blocks),
        ("sparse_models", made.models),
    ):
        assert lake.write(table, frame, note=made.note, **where).rows == len(frame)
    return made


def model_bytes(lake: Lake) -> dict[str, bytes]:
    """The files of the largest model."""
    folder = Path(lake.root) / lake.key("models", **WHERE) / "0"
    return {name: (folder / name).read_bytes() for name in FILES}


def errors_m(cameras: pd.DataFrame, scene: Scene) -> tuple[float, float]:
    """Median error of the centres after the best similarity, and without it [m]."""
    truth = scene.truth()
    true = np.array([truth[i] for i in cameras.image_id])
    found = LocalFrame(*ORIGIN).enu(cameras.lon, cameras.lat, cameras.alt_m)
    shape = np.linalg.norm(best_similarity(found, true)(found) - true, axis=1)
    return float(np.median(shape)), float(np.median(np.linalg.norm(found - true, axis=1)))


# -- what cannot be mapped ------------------------------------------------------------------------------------


def test_components_come_by_size_and_small_ones_are_dropped():
    chain = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7), (7, 8), (9, 10)]
    groups = mappable(image_rows(11), pair_rows(chain), min_images=4)
    assert [len(g) for g in groups] == [5, 4]
    assert groups[1] == ["i0", "i1", "i2", "i3"]


def test_views_of_a_panorama_are_one_photo_of_a_component():
    images = image_rows(12).assign(frame_id=lambda rows: [k // 4 + 1 for k in range(12)])
    images["photo_id"] = [f"p{k // 4}" for k in range(12)]
    pairs = pair_rows([(0, 4), (5, 9)])
    assert [len(g) for g in mappable(images, pairs, min_images=3)] == [12]
    assert mappable(images, pairs, min_images=4) == []
    here = Box(WHERE, images, pairs, NOTE)
    assert here.counts == {"n_images": 3, "n_home_images": 3}


@pytest.mark.parametrize(
    "n, verified, status", [(3, True, "too_few"), (8, False, "no_overlap")], ids=["too_few", "no_overlap"]
)
def test_what_cannot_be_mapped_says_why(tmp_path: Path, n: int, verified: bool, status: str):
    lake = lake_with(tmp_path, image_rows(n), pair_rows([(k, k + 1) for k in range(n - 1)], verified))
    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    assert made.models.status.tolist() == [status]
    assert made.models.reason.notna().all() and made.cameras.empty


def test_quarantined_pairs_do_not_tie(tmp_path: Path):
    pairs = pair_rows([(k, k + 1) for k in range(7)]).assign(quarantine="a logo")
    lake = lake_with(tmp_path, image_rows(8), pairs)
    assert map_box(lake, "town", "r00c00", OPTIONS).models.status.tolist() == ["no_overlap"]


def test_without_positions_there_is_no_place(tmp_path: Path):
    images, pairs = image_rows(8), pair_rows([(k, k + 1) for k in range(7)])
    images.loc[2:, ["east_m", "north_m", "up_m"]] = np.nan
    lake = lake_with(tmp_path, images, pairs)
    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    assert made.models.status.tolist() == ["no_gps"] and "2 of 8" in made.models.reason[0]
    note = NOTE | {"left_out": {"no_position": 9}}
    lake = lake_with(tmp_path, TABLES["gps_db"].empty(), TABLES["match_pairs"].empty(), note)
    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    assert made.models.status.tolist() == ["no_gps"] and "9 photos" in made.models.reason[0]


def test_an_empty_box_stays_empty(tmp_path: Path):
    lake = lake_with(tmp_path, TABLES["gps_db"].empty(), TABLES["match_pairs"].empty())
    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    assert made.models.empty and made.figures["n_images"] == 0


def test_the_geo_reference_leads_to_the_place():
    frame = LocalFrame(10.0, 50.0, 100.0)
    reference = geo_reference(frame)
    ecef = np.array(reference["ecef_from_enu"]) @ [3.0, 4.0, 5.0, 1.0]
    assert np.allclose(frame.enu(*frame.geodetic([3.0, 4.0, 5.0])), [3, 4, 5], atol=1e-6)
    from geo_assets.geodesy import geodetic

    assert np.allclose(geodetic(ecef[:3]), frame.geodetic([3.0, 4.0, 5.0]))


# -- a known scene --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene() -> Scene:
    pytest.importorskip("pycolmap")
    return Scene(48)


@pytest.fixture(scope="module")
def matched(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the scene, to be copied."""
    folder = tmp_path_factory.mktemp("matched") / "lake"
    scene.write(Lake(folder))
    return folder


@pytest.fixture
def lake(matched: Path, tmp_path: Path) -> Lake:
    shutil.copytree(matched, tmp_path / "lake")
    return Lake(tmp_path / "lake")


@pytest.fixture(scope="module")
def undisturbed(matched: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Models, dict[str, bytes]]:
    """The scene mapped in blocks by a run that nothing disturbs, and the bytes of its model."""
    folder = tmp_path_factory.mktemp("undisturbed") / "lake"
    shutil.copytree(matched, folder)
    lake = Lake(folder)
    return written(lake, map_box(lake, "town", "r00c00", IN_BLOCKS)), model_bytes(lake)


def test_a_known_scene_comes_out_whole_and_in_its_place(lake: Lake, scene: Scene):
    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    row = made.models.iloc[0]
    assert made.models.status.tolist() == ["placed"] and row.n_registered == row.n_home_registered == 48
    assert row.reprojection_px < 0.5 and row.roll_deg < 0.2 and row.focal_change < 0.02
    assert row.route == "rebuilt" and row.n_blocks == 1 and row.n_verified == row.n_pairs > 100
    assert row.cpu_seconds > 0 and row.peak_mb > 50 and row.largest_gap_m == 0
    shape_m, place_m = errors_m(made.cameras, scene)
    assert shape_m < 0.1 and place_m < 1.0
    assert made.blocks.status.tolist() == ["mapped"]
    assert lake.names("files/blocks/city=town") == []


def test_blocks_make_one_model_as_good_as_that_of_one_block(undisturbed: tuple[Models, dict[str, bytes]], scene: Scene):
    made, _ = undisturbed
    row = made.models.iloc[0]
    assert made.models.status.tolist() == ["placed"] and row.n_registered == 48 and row.n_blocks == len(made.blocks) > 2
    assert row.reprojection_px < 0.5
    assert errors_m(made.cameras, scene)[0] < 0.15
    assert (made.blocks.n_images <= 28).all() and (made.blocks.n_registered == made.blocks.n_images).all()


def test_mapping_repeats_itself_whatever_runs_beside_it(lake: Lake, undisturbed: tuple[Models, dict[str, bytes]]):
    made = map_box(lake, "town", "r00c00", IN_BLOCKS.model_copy(update={"threads": 2}))
    assert model_bytes(lake) == undisturbed[1]
    pd.testing.assert_frame_equal(made.cameras, undisturbed[0].cameras)


def test_a_component_that_two_blocks_lost_is_named(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(block_runs, "run_step", lambda *_, **__: StepAnswer(models=[], given=[]))
    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    assert made.models.status.tolist() == ["not_mapped"]
    assert "no mapper found" in made.models.reason[0] and made.models.n_verified[0] > 100


def test_cameras_in_one_place_are_a_static_scene(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    images = lake.read("gps_db", None, **WHERE)
    images["east_m"], images["north_m"] = 0.1 * np.arange(len(images)) % 2, 1.0
    lake.write("gps_db", images, note=NOTE, **WHERE)
    monkeypatch.setattr(block_runs, "run_step", lambda *_, **__: StepAnswer(models=[], given=[]))
    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    assert made.models.status.tolist() == ["static_scene"] and "within" in made.models.reason[0]


@pytest.mark.parametrize(
    "n, wrong, why",
    [
        (4, {}, "4 registered images"),
        (12, {"spread": 0.05}, "positions spread over"),
        (12, {"far": 6}, "beyond three standard deviations"),
        (12, {}, None),
    ],
)
def test_what_positions_do_not_fix_stays_unplaced(n: int, wrong: dict[str, float], why: str | None):
    pytest.importorskip("pycolmap")
    from geo_assets.reconstruct.frames import align
    from geo_assets.reconstruct.joining import unplaced_because

    scene = Scene(n)
    centres = np.array([scene.centre(k) for k in range(n)])
    rotations = np.array([scene.rotation(k) for k in range(n)])
    priors = centres * wrong.get("spread", 1.0)
    priors[: int(wrong.get("far", 0)), 1] += 400.0 * np.arange(int(wrong.get("far", 0)))
    sigma = np.full((n, 3), 3.0)
    reason = unplaced_because(align(centres, rotations, priors, sigma), priors, sigma, n)
    assert reason is None if why is None else why in str(reason)


def test_a_full_disk_is_said_and_keeps_the_finished_blocks(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Lake, "publish", full)
    with pytest.raises(ReconstructionError, match="No space left on device"):
        map_box(lake, "town", "r00c00", OPTIONS)


# -- neighbours -----------------------------------------------------------------------------------------------


def test_a_box_built_anew_is_held_to_its_aligned_neighbour(tmp_path: Path):
    pytest.importorskip("pycolmap")
    lake, east = Lake(tmp_path), BoxPartition(city="town", box="r00c01")
    first = Scene(36, gps_sigma_m=2.0)
    second = Scene(36, gps_sigma_m=2.0, first=24, where=east, origin=(10.001, 50.0, 101.0), seed=5)
    for scene, where in ((first, WHERE), (second, east)):
        scene.write(lake)
        made = written(lake, map_box(lake, "town", where["box"], OPTIONS), where)
        assert made.models.status.tolist() == ["placed"]
        assert made.models.border_m.isna().all()  # nobody is held to a neighbour that stands by its positions alone
    align(lake)
    lake.remove_folder(lake.key("models", **east))
    made = written(lake, map_box(lake, "town", "r00c01", OPTIONS), east)
    assert made.models.border_m[0] < 0.15
    assert made.figures["fitted_to"] == "r00c00/0" and made.note["held_to"] == ["r00c00/0"]
    aligned = align(lake)
    assert aligned.figures["worst_border_m"] < 0.1
    assert aligned.rows.set_index("box").moved_m["r00c01"] < 0.5  # it stands where the fit of all boxes had put it


def align(lake: Lake) -> CityAlignment:
    made = align_city(lake, "town", ["r00c00", "r00c01"])
    lake.write("city_alignment", made.rows, city="town")
    return made


def test_a_neighbour_that_contradicts_the_positions_is_not_followed(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    import pycolmap

    from geo_assets.reconstruct import joining
    from geo_assets.reconstruct.frames import Similarity

    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    moved = made.cameras.assign(north_m=made.cameras.north_m + 15.0)
    east = BoxPartition(city="town", box="r00c01")
    written(lake, replace(made, cameras=moved, note=made.note | {"held_to": ["r00c02/0"]}), east)
    here = Box(WHERE, lake.read("gps_db", None, **WHERE), lake.read("match_pairs", None, **WHERE), NOTE)
    (neighbour,) = settled_neighbours(lake, "town", "r00c00", set(here.images.image_id), here.frame)
    assert neighbour["name"] == "r00c01/0" and len(neighbour["image_ids"]) == 48
    priors = {f"{row['image_id']}.jpg": row for row in here.images.to_dict("records")}
    fixed = [joining.fixed_part(neighbour)]
    for shift_m, refused in ((15.0, True), (1.0, False)):
        model = pycolmap.Reconstruction(str(Path(lake.root) / lake.key("models", **WHERE) / "0"))
        shift = Similarity(1.0, np.eye(3), np.array([0.0, shift_m, 0.0]))
        monkeypatch.setattr(joining.joint, "solve", lambda _, shift=shift: {"this": shift})
        facts, _ = joining.place(model, priors, here.frame, fixed)
        assert ("refused_fit_m" in facts) == refused and facts["neighbours"] == ["r00c01/0"]
        assert facts["border_m"] == pytest.approx(15.0 if refused else 14.0, abs=0.3)
        assert facts["gps_median_m"] < 3


# -- processes that die ---------------------------------------------------------------------------------------


def fails_above(n: int, by: str, calls: list[int]) -> Callable[..., StepAnswer]:
    """A child that ends on blocks of more than ``n`` images."""

    def step(name: str, arguments: dict[str, Any], *args: Any, **kwargs: Any) -> StepAnswer:
        calls.append(len(arguments["images"]))
        if len(arguments["images"]) > n:
            error = StepEnded("COLMAP's step 'map_block' held 99 MB. Its log ends:\nnothing")
            error.by = by  # pyright: ignore[reportAttributeAccessIssue]
            raise error
        return run_step(name, arguments, *args, **kwargs)

    return step


def test_a_block_that_is_too_much_is_cut_in_two(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    monkeypatch.setattr(block_runs, "run_step", fails_above(36, "memory", calls))
    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    assert made.models.status.tolist() == ["placed"] and made.models.n_registered[0] == 48
    assert sorted(made.blocks.status) == ["mapped", "mapped", "split"] and calls[0] == 48 and len(calls) == 3
    split = made.blocks[made.blocks.status == "split"].iloc[0]
    assert split.reason == "COLMAP's step 'map_block' held 99 MB."


@pytest.mark.parametrize("by, n_tries", [("timeout", 1), ("abort", 1), ("signal", 2)])
def test_a_kill_from_outside_is_forgiven_once(lake: Lake, monkeypatch: pytest.MonkeyPatch, by: str, n_tries: int):
    calls: list[int] = []
    monkeypatch.setattr(block_runs, "run_step", fails_above(0, by, calls))
    made = map_box(lake, "town", "r00c00", OPTIONS)
    assert calls.count(48) == n_tries and (made.blocks.status == "split").any()


def test_no_end_of_cutting_is_reached_without_an_end(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    monkeypatch.setattr(block_runs, "run_step", fails_above(0, "memory", calls))
    made = written(lake, map_box(lake, "town", "r00c00", OPTIONS))
    assert made.models.status.tolist() == ["not_mapped"] and "held 99 MB" in made.models.reason[0]
    assert len(calls) == len(made.blocks) < 20


def test_a_limit_that_was_reached_is_believed_until_it_is_raised(lake: Lake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(block_runs.BlockMapper, "forget", lambda _: None)
    tight = OPTIONS.model_copy(update={"block_memory_mb": 100.0, "block_images": 48})
    calls: list[int] = []
    monkeypatch.setattr(block_runs, "run_step", fails_above(0, "memory", calls))
    map_box(lake, "town", "r00c00", tight)
    n = len(calls)
    again = map_box(lake, "town", "r00c00", tight)
    assert len(calls) == n and again.blocks.resumed.all()
    map_box(lake, "town", "r00c00", OPTIONS)
    assert len(calls) == 2 * n


@pytest.mark.chaos
def test_a_block_whose_process_is_killed_is_mapped_again(lake: Lake, undisturbed: tuple[Models, dict[str, bytes]]):
    killed: list[int] = []

    def kill_once() -> None:
        while not killed:
            for pid in children_of(os.getpid(), "map_block"):
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_once, daemon=True)
    killer.start()
    said: list[str] = []
    made = written(lake, map_box(lake, "town", "r00c00", IN_BLOCKS, said.append))
    killer.join(10)
    assert killed and any("was killed; once more" in line for line in said)
    assert model_bytes(lake) == undisturbed[1]
    assert set(made.blocks.status) == {"mapped"}


@pytest.mark.chaos
def test_a_killed_run_resumes_with_its_finished_blocks(lake: Lake, undisturbed: tuple[Models, dict[str, bytes]]):
    code = (
        "import sys; from geo_assets.lake import Lake; from geo_assets.reconstruct.models import map_box; "
        "from geo_assets.settings import Reconstruct; "
        f"map_box(Lake(sys.argv[1]), 'town', 'r00c00', Reconstruct(**{IN_BLOCKS.model_dump()!r}))"
    )
    run = subprocess.Popen([sys.executable, "-c", code, lake.root], process_group=0)
    folder = Path(lake.root) / lake.key("blocks", **WHERE)
    deadline = time.monotonic() + 300
    while not finished_blocks(folder):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    finished = finished_blocks(folder)
    assert 1 <= len(finished) < len(undisturbed[0].blocks)
    made = written(lake, map_box(lake, "town", "r00c00", IN_BLOCKS))
    assert finished <= set(made.blocks.block[made.blocks.resumed.astype(bool)])
    assert model_bytes(lake) == undisturbed[1]
    pd.testing.assert_frame_equal(made.cameras, undisturbed[0].cameras)
    assert not folder.exists()


@pytest.mark.chaos
def test_an_interrupted_run_leaves_no_process(lake: Lake):
    def interrupt(line: str) -> None:
        if line.startswith("block 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_box(lake, "town", "r00c00", IN_BLOCKS, interrupt)
    assert children_of(os.getpid(), "map_block") == []
    folder = Path(lake.root) / lake.key("blocks", **WHERE)
    answers = [json.loads(path.read_text()) for path in folder.glob(f"*/{ANSWER}")]
    assert answers and all(answer["status"] == "mapped" for answer in answers)


def finished_blocks(folder: Path) -> set[str]:
    """Keys of the blocks that are kept whole."""
    return {path.parent.name for path in folder.glob(f"*/{ANSWER}") if not path.parent.name.endswith(".tmp")}


def children_of(pid: int, step: str) -> list[int]:
    """Processes below this one that run a step."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            try:
                if step in Path(f"/proc/{child}/cmdline").read_text():
                    found.append(int(child))
            except OSError:
                continue
    return found
