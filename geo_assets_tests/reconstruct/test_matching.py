from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import GeoAssetsError, ReconstructionError, SourceError
from geo_assets.lake import Lake
from geo_assets.reconstruct import matching, results
from geo_assets.reconstruct.candidates import PairRules, choose_pairs, describe_pairs
from geo_assets.reconstruct.databases import pair_rows
from geo_assets.reconstruct.stage import StepAnswer, run_step
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.photos import with_banner
from geo_assets_tests.reconstruct.streets import Street, write_street

OPTIONS = Reconstruct(threads=1, expansion_rounds=0)
WHERE = {"city": "demo", "box": "r00c00"}
pytest.importorskip("pycolmap")


def match(lake: Lake, box: str = "r00c00", options: Reconstruct = OPTIONS, said: list[str] | None = None):
    """Match a box and write its table, as the asset does."""
    matched = matching.match_box(lake, "demo", box, options, said.append if said is not None else None)
    lake.write("match_pairs", matched.frame, note=None, city="demo", box=box)
    return matched


def table(lake: Lake) -> bytes:
    return Path(lake.uri(f"tables/match_pairs/city={WHERE['city']}/box={WHERE['box']}/data.parquet")).read_bytes()


def database(lake: Lake, kind: str = "matches", box: str = "r00c00") -> Path:
    return Path(lake.uri(lake.key(kind, "database.db", city="demo", box=box)))


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """The arguments of each step; it runs in this process, which saves a second each."""
    from geo_assets.reconstruct import verification

    asked: list[Mapping[str, Any]] = []

    def here(step: str, arguments: Mapping[str, Any], *_: Any, **__: Any) -> StepAnswer:
        assert step == "match"
        asked.append(arguments)
        return StepAnswer(verification.match(**arguments))

    monkeypatch.setattr(results, "run_step", here)
    return asked


def in_small_steps(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    monkeypatch.setattr(results, "MATCH_CHUNK", pairs)
    monkeypatch.setattr(results, "SAVE_EVERY_S", 0.0)


# -- what is published ------------------------------------------------------------------------------------------


def test_a_street_is_matched_and_published_without_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results, "run_step", run_step)
    lake, said = Lake(tmp_path), []
    write_street(lake, Street(6))
    matched = match(lake, said=said)
    assert len(matched.frame) == 15 and matched.frame.verified.all() and not matched.frame.reused.any()
    assert matched.frame.quarantine.isna().all() and set(matched.frame["round"]) == {0}
    assert matched.figures["n_matched"] == 15 and matched.figures["n_components"] == 1
    assert 0 < matched.figures["cpu_seconds"] < 60 and 20 < matched.figures["peak_mb"] < 2000
    assert any("matched 15 of 15 pairs" in line and "s left" in line for line in said)
    folder = lake.key("matches", **WHERE)
    assert lake.names(folder) == ["database.db", "features.json", "pairs.txt", "pairs_ring.txt"]
    lines = lake.get_bytes(f"{folder}/pairs.txt").decode().splitlines()
    assert lines[0] == "i000.jpg i001.jpg" and len(lines) == 15
    assert lake.names("files/matches_partial/city=demo") == []
    with sqlite3.connect(database(lake)) as con:
        counts = {t: con.execute(f"select count(*) from {t}").fetchone()[0] for t in ("keypoints", "descriptors")}
    assert counts == {"keypoints": 6, "descriptors": 0}


def test_nearer_pairs_have_more_inliers(tmp_path: Path):
    write_street(Lake(tmp_path), Street(6))
    frame = match(Lake(tmp_path)).frame.set_index(["image_id_a", "image_id_b"])
    assert frame.n_inliers["i000", "i001"] > frame.n_inliers["i000", "i003"] > frame.n_inliers["i000", "i005"] > 30


# -- taking over ------------------------------------------------------------------------------------------------


def test_nothing_is_matched_twice(tmp_path: Path, steps: list):
    lake = Lake(tmp_path)
    write_street(lake, Street(6))
    first = match(lake)
    second = match(lake)
    assert len(steps) == 1
    assert second.frame.reused.all() and second.figures["n_reused"] == 15 and second.figures["n_matched"] == 0
    pd.testing.assert_frame_equal(second.frame.drop(columns="reused"), first.frame.drop(columns="reused"))


def test_only_the_pairs_of_changed_images_are_matched_anew(tmp_path: Path, steps: list):
    lake = Lake(tmp_path)
    write_street(lake, Street(6))
    first = match(lake).frame
    write_street(lake, Street(6, keys={2: "retouched"}))
    second = match(lake)
    touched = (second.frame.image_id_a == "i002") | (second.frame.image_id_b == "i002")
    assert second.figures["n_matched"] == touched.sum() == 5
    assert second.frame.reused.eq(~touched).all()
    assert (second.frame.n_inliers == first.n_inliers)[~touched].all()


@pytest.mark.parametrize("changed", ["feature_key", "camera_model", "known_focal", "colmap_image_id"])
def test_the_result_of_another_camera_or_number_is_not_taken(tmp_path: Path, steps: list, changed: str):
    lake = Lake(tmp_path)
    frame = write_street(lake, Street(3))
    match(lake)
    said_of = json.loads(lake.get_bytes(lake.key("matches", "features.json", **WHERE)))
    identity = said_of["images"]["i001"]
    value = {"feature_key": "other", "camera_model": "RADIAL", "known_focal": True, "colmap_image_id": 77}[changed]
    frame.loc[frame.image_id == "i001", changed] = value
    said_of["images"]["i001"] = results._identities(frame)["i001"]
    assert said_of["images"]["i001"] != identity
    lake.put_bytes(lake.key("matches", "features.json", **WHERE), json.dumps(said_of).encode())
    assert match(lake).figures["n_matched"] == 2


def test_another_seed_is_another_result(tmp_path: Path):
    lake = Lake(tmp_path)
    write_street(lake, Street(3))
    match(lake)
    assert match(lake, options=Reconstruct(threads=1, seed=4, expansion_rounds=0)).figures["n_reused"] == 0


def test_a_pair_at_the_border_is_matched_once_and_has_one_owner(tmp_path: Path, steps: list):
    lake = Lake(tmp_path)
    street = Street(8, homes=["r00c00"] * 4 + ["r00c01"] * 4)
    write_street(lake, street, only=range(6))
    write_street(lake, street, only=range(2, 8), box="r00c01")
    west, east = match(lake), match(lake, "r00c01")
    both = west.frame.merge(east.frame, on=["image_id_a", "image_id_b"], suffixes=("_west", "_east"))
    assert len(both) == 6  # of the four images that both hold
    assert both.reused_east.all() and not both.reused_west.any()
    assert (both.n_inliers_west == both.n_inliers_east).all() and (both.owner_west == both.owner_east).all()
    assert east.figures["n_matched"] == len(east.frame) - 6
    for matched in (west.frame, east.frame):
        own = matched.set_index(["image_id_a", "image_id_b"])
        assert own.owner["i002", "i003"] == "r00c00" and not own.fringe["i002", "i003"]
        assert own.owner["i003", "i004"] == "r00c00" and own.fringe["i003", "i004"]
        assert own.owner["i004", "i005"] == "r00c01" and not own.fringe["i004", "i005"]
    assert west.figures["n_fringe"] == int(west.frame.fringe.sum()) == 8


def test_it_does_not_matter_which_box_comes_first(tmp_path: Path):
    found = []
    for order in (("r00c00", "r00c01"), ("r00c01", "r00c00")):
        lake = Lake(tmp_path / order[0])
        street = Street(6, homes=["r00c00"] * 3 + ["r00c01"] * 3)
        write_street(lake, street, only=range(5))
        write_street(lake, street, only=range(1, 6), box="r00c01")
        frames = {box: match(lake, box).frame.drop(columns="reused") for box in order}
        found.append(pd.concat([frames["r00c00"], frames["r00c01"]]))
    pd.testing.assert_frame_equal(*found)


# -- rounds of expansion, and likeness --------------------------------------------------------------------------


def neighbours(reach: int):
    """A choice of pairs that are up to ``reach`` places apart along the street."""

    def chosen(cameras: pd.DataFrame, _: object) -> pd.DataFrame:
        ids = cameras.image_id.to_list()
        return describe_pairs(cameras, [(a, b) for k, a in enumerate(ids) for b in ids[k + 1 : k + 1 + reach]], "ring")

    return chosen


def test_pairs_of_pairs_are_tried_at_the_border_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lake, said = Lake(tmp_path), []
    write_street(lake, Street(20, step_m=2.0, homes=["r00c00"] * 18 + ["r00c01"] * 2))
    monkeypatch.setattr(matching, "choose_pairs", neighbours(4))
    options = Reconstruct(threads=1, expansion_rounds=2, margin_m=8.0, max_pairs_per_image=40)
    matched = match(lake, options=options, said=said)
    more = matched.frame[matched.frame["round"] > 0]
    assert set(more["round"]) == {1, 2} and set(more.reason) == {"expansion"} and more.verified.all()
    rounds = dict(zip(zip(more.image_id_a, more.image_id_b, strict=True), more["round"], strict=True))
    # Within 8 m of the two images of the other box; and all others have four partners, as many as are needed.
    border = {f"i{k:03d}" for k in range(14, 20)}
    assert all(border & {*pair} for pair in rounds)
    assert rounds["i014", "i019"] == 1 and ("i004", "i009") not in rounds
    assert matched.figures["n_expansion"] == len(more) <= 40
    assert any(line.startswith("round 1 of expansion proposes") for line in said)
    assert lake.exists(lake.key("matches", "pairs_expansion.txt", **WHERE))
    assert match(lake, options=options).frame.drop(columns="reused").equals(matched.frame.drop(columns="reused"))


def test_without_rounds_nothing_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_street(Lake(tmp_path), Street(6, homes=["r00c00"] * 5 + ["r00c01"]))
    monkeypatch.setattr(matching, "choose_pairs", neighbours(1))
    assert len(match(Lake(tmp_path)).frame) == 5


def test_similar_images_are_matched_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results, "run_step", run_step)
    lake = Lake(tmp_path)
    write_street(lake, Street(8))
    monkeypatch.setattr(matching, "choose_pairs", neighbours(1))
    matched = match(lake, options=Reconstruct(threads=1, expansion_rounds=0, vocabulary_tree=True))
    assert matched.frame.reason.value_counts()["ring"] == 7 and matched.figures["n_vocabulary"] >= 5
    assert not matched.frame.duplicated(["image_id_a", "image_id_b"]).any()
    assert matched.frame.verified.mean() > 0.9


# -- pairs that cannot be ---------------------------------------------------------------------------------------


def test_impossible_pairs_are_verified_but_kept_apart(tmp_path: Path):
    lake = Lake(tmp_path)
    frame = write_street(lake, Street(6))
    frame.loc[frame.image_id == "i005", "east_m"] = 220.0  # what it sees says that it stands 20 m along the street
    lake.write("gps_db", frame, note=lake.note("gps_db", **WHERE), **WHERE)
    matched = match(lake)
    impossible = matched.frame[matched.frame.quarantine.notna()]
    assert len(impossible) and impossible.verified.all() and set(impossible.image_id_b) == {"i005"}
    assert matched.figures["n_quarantined"] == len(impossible) == len(matched.figures["quarantined"])
    assert "too many inliers for the distance" in matched.figures["quarantined"][0]
    listed = lake.get_bytes(lake.key("matches", "pairs_quarantine.txt", **WHERE)).decode().splitlines()
    assert listed == [f"{a}.jpg {b}.jpg" for a, b in zip(impossible.image_id_a, impossible.image_id_b, strict=True)]
    assert matched.figures["n_in_largest_component"] <= 6


def test_a_list_of_your_own_is_matched_beside_the_chosen_pairs(tmp_path: Path):
    lake = Lake(tmp_path)
    write_street(lake, Street(12, step_m=30.0))
    chosen = match(lake).frame
    listed = tmp_path / "pairs.txt"
    listed.write_text("# mine\ni000.jpg i011.jpg\ni011 i000\n\ni001.jpg elsewhere.jpg\ni003.jpg i003.jpg\n")
    frame = matching.match_box(lake, "demo", "r00c00", OPTIONS, listed=listed).frame
    mine = frame[frame.reason == "listed"]
    assert list(zip(mine.image_id_a, mine.image_id_b, strict=True)) == [("i000", "i011")]
    assert len(frame) == len(chosen) + 1
    listed.write_text("i000.jpg i001.jpg i002.jpg\n")
    with pytest.raises(SourceError, match=r"pairs.txt, line 1: .* two image names"):
        matching.match_box(lake, "demo", "r00c00", OPTIONS, listed=listed)


def test_boxes_agree_on_the_pairs_at_their_border(tmp_path: Path):
    lake = Lake(tmp_path)
    n = 40
    street = Street(n, homes=["r00c00"] * 20 + ["r00c01"] * 20)
    west = write_street(lake, street, only=range(24))
    write_street(lake, street, only=range(16, n), box="r00c01")
    rules = PairRules()
    around = matching.surroundings(lake, "demo", "r00c00", west, rules.wide_m)
    assert sorted(around.image_id) == [f"i{k:03d}" for k in range(24, n)]
    planned = matching._planned(west, around, rules)
    one_city = pd.concat([pd.DataFrame(west[around.columns]), around], ignore_index=True)
    both_here = choose_pairs(one_city, rules).query("image_id_a < 'i024' and image_id_b < 'i024'")
    pairs = {tuple(pair) for pair in planned[["image_id_a", "image_id_b"]].to_numpy()}
    assert pairs == {tuple(pair) for pair in both_here[["image_id_a", "image_id_b"]].to_numpy()}
    assert len(pairs) < len(choose_pairs(west, rules))  # in view of its margin alone, a box would choose more


# -- a run that is cut short ------------------------------------------------------------------------------------

KILLED = """
import sys
from geo_assets.lake import Lake
from geo_assets.reconstruct import matching, results
from geo_assets.settings import Reconstruct
results.MATCH_CHUNK, results.SAVE_EVERY_S = 5, 0.0
matching.match_box(Lake(sys.argv[1]), "demo", "r00c00", Reconstruct(threads=1, expansion_rounds=0), print)
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, steps: list):
    whole, killed = Lake(tmp_path / "whole"), Lake(tmp_path / "killed")
    for lake in (whole, killed):
        write_street(lake, Street(8))
    expected = match(whole)
    partial = Path(killed.uri(killed.key("matches_partial", **WHERE)))
    with subprocess.Popen([sys.executable, "-c", KILLED, killed.root], stdout=subprocess.DEVNULL) as run:
        until = time.monotonic() + 60
        while not (partial / "000001").exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGKILL)
    assert not killed.exists(killed.key("matches", **WHERE))
    kept = sum(len(pair_rows(path)) for path in partial.glob("[0-9]*/database.db"))
    assert 10 <= kept < 28
    matched = match(killed)
    assert matched.figures["n_resumed"] == kept and matched.figures["n_matched"] == 28 - kept
    assert steps[-1]["total"] == 28 - kept
    assert table(killed) == table(whole) and matched.figures["n_verified"] == expected.figures["n_verified"]
    assert pair_rows(database(killed)) == pair_rows(database(whole))
    assert not partial.exists()


def test_what_was_matched_before_colmap_failed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lake, run, calls = Lake(tmp_path), results.run_step, []

    def fails_at_the_third(step: str, arguments: Mapping[str, Any], *args: Any, **kwargs: Any) -> StepAnswer:
        calls.append(arguments)
        if len(calls) == 3:
            raise ReconstructionError("COLMAP's step 'match' was ended by signal SIGABRT.")
        return run(step, arguments, *args, **kwargs)

    write_street(lake, Street(6))
    in_small_steps(monkeypatch, 4)
    monkeypatch.setattr(results, "run_step", fails_at_the_third)
    with pytest.raises(ReconstructionError, match="SIGABRT"):
        match(lake)
    resumed = match(lake)
    assert resumed.figures["n_resumed"] == 8 and resumed.figures["n_matched"] == 7
    assert [call["done"] for call in calls] == [0, 4, 8, 0, 4]
    assert not resumed.frame.reused.any() and resumed.frame.verified.all()


def test_object_storage_holds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk, store = Lake(tmp_path), Lake(f"memory://{tmp_path.name}")
    frames = []
    for lake in (disk, store):
        write_street(lake, Street(5))
        frames.append(match(lake).frame)
    pd.testing.assert_frame_equal(*frames)
    monkeypatch.setattr(results, "run_step", None)  # nothing is left to match
    assert match(store).figures["n_reused"] == 10
    folder = store.key("matches", **WHERE)
    assert store.names(folder) == disk.names(folder)
    assert not store.exists(store.key("matches_partial", **WHERE))
    store.remove(store.key("features", "database.db", **WHERE))
    with pytest.raises(ReconstructionError, match="Run gps_db of this box again"):
        match(store)


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, blind", [(1, []), (3, [0, 1]), (2, [0])])
def test_without_a_pair_there_is_an_empty_list(tmp_path: Path, steps: list, n: int, blind: list[int]):
    lake = Lake(tmp_path)
    write_street(lake, Street(n, blind=frozenset(blind)))
    matched = match(lake)
    assert matched.frame.empty and matched.figures["n_images"] == n and not steps
    assert lake.get_bytes(lake.key("matches", "pairs.txt", **WHERE)) == b""
    assert pair_rows(database(lake)) == []


def test_images_without_keypoints_take_no_part(tmp_path: Path):
    lake = Lake(tmp_path)
    write_street(lake, Street(5, blind=frozenset({2})))
    matched = match(lake)
    assert len(matched.frame) == 6 and "i002" not in {*matched.frame.image_id_a, *matched.frame.image_id_b}
    assert matched.figures["n_without_verified_pair"] == 1


def test_no_image_with_keypoints_is_no_failure(tmp_path: Path):
    lake = Lake(tmp_path)
    write_street(lake, Street(2, blind=frozenset({0, 1})))
    matched = match(lake)
    assert matched.frame.empty and matched.figures["n_pairs"] == 0 and matched.figures["n_images"] == 2


def test_gps_db_must_be_there(tmp_path: Path):
    with pytest.raises(GeoAssetsError, match="--select gps_db"):
        match(Lake(tmp_path))


def test_a_database_that_another_program_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from geo_assets.reconstruct import databases

    lake = Lake(tmp_path)
    write_street(lake, Street(3))
    monkeypatch.setattr(databases, "BUSY_S", 0.1)
    holder = sqlite3.connect(database(lake, "features"), isolation_level=None)
    holder.execute("begin exclusive")
    with pytest.raises(ReconstructionError, match=r"r00c00\|demo is held by another program .*run match_pairs again"):
        match(lake)
    holder.close()
    assert match(lake).frame.verified.all()


@pytest.mark.parametrize("damage", ["missing", "cut", "text"])
def test_a_damaged_database_of_gps_db_is_named(tmp_path: Path, damage: str):
    lake = Lake(tmp_path)
    write_street(lake, Street(4))
    path = database(lake, "features")
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"no database at all" * 400)
    with pytest.raises(ReconstructionError, match=r"r00c00\|demo cannot be read .*Run gps_db of this box again"):
        match(lake)
    assert not lake.exists(lake.key("matches", **WHERE))


def test_a_table_of_another_run_than_its_database_is_named(tmp_path: Path):
    lake = Lake(tmp_path)
    write_street(lake, Street(3))
    frame = lake.read("gps_db", city="demo", box="r00c00")
    frame.loc[1, "colmap_image_id"] = 999
    lake.write("gps_db", frame, city="demo", box="r00c00")
    with pytest.raises(ReconstructionError, match="lacks 1 images of the table, i001 among them"):
        match(lake)


def test_a_log_left_beside_a_replaced_database_is_not_mixed_in(tmp_path: Path):
    lake = Lake(tmp_path)
    write_street(lake, Street(5))
    good = match(lake).frame
    for kind in ("features", "matches"):
        path = database(lake, kind)
        other = tmp_path / "other.db"
        with sqlite3.connect(other, isolation_level=None) as con:
            con.execute("pragma journal_mode = wal")
            con.execute("create table junk (x)")
            con.executemany("insert into junk values (?)", [("x" * 3000,)] * 200)
            Path(f"{path}-wal").write_bytes(Path(f"{other}-wal").read_bytes())
            con.execute("drop table junk")
        data = bytearray(path.read_bytes())
        data[18:20] = b"\x02\x02"  # written in the mode that looks for the log
        path.write_bytes(data)
    frame = match(lake).frame
    assert frame.reused.all()
    pd.testing.assert_frame_equal(frame.drop(columns="reused"), good.drop(columns="reused"))


@pytest.mark.parametrize("damage", ["cut", "text", "facts", "gone"])
def test_a_damaged_result_is_matched_anew(tmp_path: Path, damage: str):
    lake, said = Lake(tmp_path), []
    write_street(lake, Street(5))
    good = match(lake).frame
    path = database(lake)
    data = path.read_bytes()
    if damage == "facts":
        path.with_name("features.json").write_text('["half a fi')
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 3] if damage == "cut" else b"text" * 2000)
    again = match(lake, said=said)
    assert again.figures["n_matched"] == 10 and any("cannot be taken over" in line for line in said)
    pd.testing.assert_frame_equal(again.frame, good)
    assert match(lake).figures["n_reused"] == 10


def test_results_that_another_program_holds_are_matched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from geo_assets.reconstruct import databases

    lake, said = Lake(tmp_path), []
    write_street(lake, Street(3))
    match(lake)
    monkeypatch.setattr(databases, "BUSY_S", 0.1)
    holder = sqlite3.connect(database(lake), isolation_level=None)
    holder.execute("begin exclusive")
    assert match(lake, said=said).figures["n_matched"] == 3
    assert any("the last run cannot be taken over (database is locked)" in line for line in said)
    holder.close()


@pytest.mark.parametrize("call", ["copy_images", "copy_pairs"])
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    lake = Lake(tmp_path)
    write_street(lake, Street(3))
    match(lake)
    monkeypatch.setattr(results, call, full)
    with pytest.raises(ReconstructionError, match=r"is full\. Free some space"):
        match(lake)


def test_a_blob_that_is_too_short_is_no_match(tmp_path: Path):
    lake = Lake(tmp_path)
    write_street(lake, Street(3))
    good = match(lake).frame
    with sqlite3.connect(database(lake)) as con:
        con.execute("update two_view_geometries set data = x'00' where pair_id = (select min(pair_id) from matches)")
    again = match(lake)
    assert again.figures["n_matched"] == 1 and again.frame.n_inliers.equals(good.n_inliers)


def test_leftovers_of_a_publication_are_not_taken_for_results(tmp_path: Path):
    lake = Lake(tmp_path)
    write_street(lake, Street(3))
    (tmp_path / lake.key("matches_partial", **WHERE) / "000000.1234abcd.tmp").mkdir(parents=True)
    assert match(lake).figures["n_matched"] == 3


def test_the_budget_is_held(tmp_path: Path, steps: list):
    lake = Lake(tmp_path)
    write_street(lake, Street(8))
    with pytest.raises(GeoAssetsError, match="max_pairs_per_image"):
        match(lake, options=Reconstruct(threads=1, max_pairs_per_image=2.0))
    assert not steps


# -- a car's banner ---------------------------------------------------------------------------------------------


def test_a_banner_ties_no_far_pairs_together(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results, "run_step", run_step)
    from geo_assets.reconstruct import features
    from geo_assets_tests.reconstruct.lakes import lund_lake

    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((real_data / "images" / "lund").glob("*.jpg")):
        (photos / path.name).write_bytes(with_banner(path.read_bytes(), seed=3))
    lake, grid = lund_lake(tmp_path / "lake", photos)
    options = Reconstruct(threads=1, max_image_px=800, expansion_rounds=0)
    made = features.gps_database(lake, "lund", "r00c00", grid, options)
    lake.write("gps_db", made.frame, note=made.note, city="lund", box="r00c00")
    monkeypatch.setattr(matching, "choose_pairs", near_and_far)
    frame = matching.match_box(lake, "lund", "r00c00", options).frame
    far = frame[frame.distance_m > 90]
    assert len(far) >= 25 and (far.n_inliers < 30).all() and not (frame.geometry == "WATERMARK").any()
    near = frame[frame.distance_m < 20]
    assert len(near) >= 15 and near.verified.mean() >= 0.9 and near.n_inliers.median() >= 40


def near_and_far(cameras: pd.DataFrame, _: object) -> pd.DataFrame:
    """Each image with the next, and some of the pairs further than 90 m apart, which place alone would not choose."""
    place = cameras.set_index("image_id")[["east_m", "north_m"]].astype(float)
    far = [(a, b) for a, b in itertools.combinations(place.index, 2) if np.hypot(*(place.loc[a] - place.loc[b])) > 90]
    return describe_pairs(cameras, [*itertools.pairwise(place.index), *far[:: len(far) // 30]], "ring")
