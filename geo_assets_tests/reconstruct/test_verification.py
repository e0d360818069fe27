from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geo_assets.errors import ConfigError, ReconstructionError
from geo_assets.lake import Lake
from geo_assets.reconstruct.databases import CONFIGURATIONS, PAIR_BASE, copy_images, empty_like, pair_id, pair_rows
from geo_assets_tests.reconstruct.streets import Street, write_street

pycolmap = pytest.importorskip("pycolmap")


@pytest.fixture()
def work(tmp_path: Path) -> Path:
    """A database with the features of a street of five cameras."""
    return made(tmp_path, Street(5))


def made(folder: Path, street: Street) -> Path:
    lake = Lake(folder / "lake")
    write_street(lake, street)
    target = folder / "work.db"
    shutil.copyfile(lake.uri(lake.key("features", "database.db", city="demo", box="r00c00")), target)
    return target


def listed(folder: Path, *pairs: tuple[int, int]) -> str:
    path = folder / "list.txt"
    path.write_text("".join(f"i{a:03d}.jpg i{b:03d}.jpg\n" for a, b in pairs))
    return str(path)


def match(database: Path, pairs: str, **more: Any) -> dict[str, Any]:
    from geo_assets.reconstruct.verification import match

    return match(**({"database": str(database), "pairs": pairs, "threads": 1, "seed": 0, "device": "cpu"} | more))


ALL = [(a, b) for a in range(5) for b in range(a + 1, 5)]


def test_names_and_numbers_are_colmaps_own():
    members = pycolmap.TwoViewGeometryConfiguration.__members__
    assert {name: int(member) for name, member in members.items()} == {n: i for i, n in enumerate(CONFIGURATIONS)}
    assert pair_id(7, 3) == pair_id(3, 7) == pycolmap.image_pair_to_pair_id(3, 7) == 3 * PAIR_BASE + 7


def test_the_list_is_worked_off_with_progress(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = match(work, listed(tmp_path, *ALL), chunk=4, done=10, total=20)
    assert said["n_done"] == 10
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" pairs")[0] for line in lines] == [f"matched {n} of 20" for n in (14, 18, 20)]
    assert lines[-1].endswith("a second, 0 s left")
    assert len(pair_rows(work)) == 10
    assert not list(tmp_path.glob("work.db-*")) and not (tmp_path / "list.chunk").exists()


def test_it_ends_after_its_time_with_at_least_one_chunk(work: Path, tmp_path: Path):
    assert match(work, listed(tmp_path, *ALL), chunk=3, seconds=0.0)["n_done"] == 3
    assert len(pair_rows(work)) == 3


def test_chunks_threads_and_order_do_not_change_what_is_found(tmp_path: Path):
    found = []
    for number, (chunk, order) in enumerate([(10, 1), (3, -1)]):
        (folder := tmp_path / str(number)).mkdir()
        database = made(folder, Street(5))
        match(database, listed(folder, *ALL[::order]), chunk=chunk, threads=number + 1)
        with contextlib.closing(sqlite3.connect(database)) as con:
            found.append(
                [con.execute(f"select * from {t} order by 1").fetchall() for t in ("matches", "two_view_geometries")]
            )
    assert found[0] == found[1] and len(found[0][0]) == 10


def test_few_keypoints_are_no_failure(work: Path, tmp_path: Path):
    with sqlite3.connect(work) as con:
        for table, width in (("keypoints", 16), ("descriptors", 128)):
            con.execute(f"update {table} set rows = 2, data = substr(data, 1, ?) where image_id = 101", [2 * width])
            con.execute(f"update {table} set rows = 0, data = null where image_id = 102")
    assert match(work, listed(tmp_path, *ALL))["n_done"] == 10
    rows = {number: (inliers, name) for number, _, inliers, name in pair_rows(work)}
    assert rows[pair_id(100, 101)][0] == 0 and rows[pair_id(100, 103)][0] > 100


def test_an_empty_list_is_done_at_once(work: Path, tmp_path: Path):
    assert match(work, listed(tmp_path))["n_done"] == 0


def test_what_stands_still_in_the_frame_ties_nothing_together(tmp_path: Path):
    """Cameras 60 m apart share nothing but a banner."""
    database = made(tmp_path, Street(3, step_m=60.0))
    rng = np.random.default_rng(5)
    xy = np.column_stack([rng.uniform(0, 640, 400), rng.uniform(400, 480, 400)])
    banner = np.hstack([xy, np.tile([1.0, 0.0], (400, 1))]).astype(np.float32)
    faces = np.abs(rng.normal(size=(400, 128))) ** 2
    faces = np.clip(512 * faces / np.linalg.norm(faces, axis=1, keepdims=True), 0, 255).astype(np.uint8)
    with sqlite3.connect(database) as con:
        for table, more in (("keypoints", banner), ("descriptors", faces)):
            con.execute(f"update {table} set rows = rows + 400, data = cast(data || ? as blob)", [more.tobytes()])
    match(database, listed(tmp_path, (0, 1), (1, 2), (0, 2)))
    assert len(rows := pair_rows(database)) == 3
    assert all(inliers < 15 for _, _, inliers, _ in rows)


def test_views_of_one_frame_are_not_matched(work: Path, tmp_path: Path):
    with sqlite3.connect(work) as con:
        # Two cameras of one rig, as two views of a panorama are.
        con.execute("insert into cameras select 2, model, width, height, params, prior_focal_length from cameras")
        con.execute("update images set camera_id = 2 where image_id = 101")
        pose = np.array([1.0, 0, 0, 0, 0, 0, 0]).tobytes()
        con.execute("insert into rig_sensors values (1, 2, 0, ?)", [pose])
        con.execute("delete from frames where frame_id = 101")
        con.execute("update frame_data set frame_id = 100, sensor_id = 2 where data_id = 101")
    match(work, listed(tmp_path, *ALL))
    tried = {number for number, *_ in pair_rows(work)}
    assert pair_id(100, 101) not in tried and len(tried) == 9


def test_a_device_that_is_not_there_is_named(work: Path, tmp_path: Path):
    if pycolmap.has_cuda:
        pytest.skip("this build has CUDA")
    with pytest.raises(ConfigError, match=r'reconstruct\.device is "cuda"'):
        match(work, listed(tmp_path, *ALL), device="cuda")


def test_a_database_that_another_program_reads_is_named(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from geo_assets.reconstruct import colmap

    monkeypatch.setattr(colmap, "BUSY_S", 0.1)
    with contextlib.closing(sqlite3.connect(work, isolation_level=None)) as con:
        con.execute("pragma journal_mode = wal")
        con.execute("begin")
        con.execute("select count(*) from images").fetchone()
        with pytest.raises(ReconstructionError, match="Another program holds the database"):
            colmap.checkpoint(str(work))
    colmap.checkpoint(str(work))
    assert not list(tmp_path.glob("work.db-*"))


def test_a_step_that_left_no_database_is_an_error(tmp_path: Path):
    from geo_assets.reconstruct.colmap import checkpoint

    with pytest.raises(ReconstructionError, match="left no database"):
        checkpoint(str(tmp_path / "none.db"))


def test_a_derived_database_has_the_features_that_are_asked_for(work: Path, tmp_path: Path):
    counts = {}
    for name, images in (("without", None), ("some", {101, 103})):
        target = tmp_path / f"{name}.db"
        empty_like(work, target)
        copy_images(work, target, images)
        with sqlite3.connect(target) as con:
            counts[name] = [
                con.execute(f"select count(*) from {table}").fetchone()[0]
                for table in ("cameras", "rigs", "frames", "frame_data", "images", "keypoints", "descriptors")
            ]
            assert con.execute("pragma user_version").fetchone()[0] == 4020100
    assert counts == {"without": [1, 1, 5, 5, 5, 5, 0], "some": [1, 1, 5, 5, 5, 2, 2]}
    with pycolmap.Database.open(str(tmp_path / "some.db")) as db:  # COLMAP takes it for its own
        assert db.num_images() == 5 and db.num_keypoints_for_image(101) > 100


def test_columns_go_by_their_names(work: Path, tmp_path: Path):
    from geo_assets.reconstruct.databases import copy_pairs

    match(work, listed(tmp_path, *ALL))
    older = tmp_path / "older.db"
    shutil.copyfile(work, older)
    with sqlite3.connect(older) as con:
        con.execute("alter table two_view_geometries drop column camera2")
        con.execute("alter table matches add column note text default 'x'")
    target = tmp_path / "target.db"
    empty_like(work, target)
    asked = [pair_id(100, 101), pair_id(100, 102), pair_id(5, 6)]
    assert copy_pairs(older, target, asked) == set(asked[:2])
    assert pair_rows(target) == pair_rows(work)[:2]
    with pycolmap.Database.open(str(target)) as db:
        assert len(db.read_two_view_geometry(100, 101).inlier_matches) > 100
