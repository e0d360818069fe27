from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_assets.reconstruct.quality import (
    Verdict,
    component_pairs,
    focal_change,
    gates,
    largest_gap_m,
    pairs_verdict,
    stretches,
)
from geo_assets.tables import TABLES


def street(east_m: list[float], sequence_id: str = "s") -> pd.DataFrame:
    """Photos of one sequence along the east axis, a second apart."""
    n = len(east_m)
    times = pd.date_range("2024-05-01", periods=n, freq="s", tz="UTC")
    frame = pd.DataFrame({"image_id": [f"{sequence_id}{k}" for k in range(n)], "captured_at": times})
    return frame.assign(sequence_id=sequence_id, east_m=east_m, north_m=0.0)


def test_a_gap_is_the_way_past_images_that_are_missing():
    cameras = street([0, 10, 20, 30, 40, 50])
    assert largest_gap_m(cameras, {"s0", "s1", "s4", "s5"}) == 30
    assert largest_gap_m(cameras.sample(frac=1, random_state=0), {"s0", "s1", "s4", "s5"}) == 30


@pytest.mark.parametrize(
    "registered", [set(), {"s2"}, {"s0", "s1", "s2"}, {"s0", "s1", "s2", "s3", "s4", "s5"}], ids=len
)
def test_no_image_missing_between_others_is_no_gap(registered: set[str]):
    assert largest_gap_m(street([0, 60, 70, 80, 90, 150]), registered) == 0


def test_a_way_around_a_corner_is_measured_along_it():
    cameras = street([0, 40, 40]).assign(north_m=[0.0, 0.0, 30.0])
    assert largest_gap_m(cameras, {"s0", "s2"}) == 70


def test_a_sequence_that_left_the_box_is_two_stretches():
    cameras = street([0, 10, 20, 520, 530])
    assert stretches(cameras[["east_m", "north_m"]].to_numpy()).tolist() == [0, 0, 0, 1, 1]
    assert largest_gap_m(cameras, {"s0", "s1", "s4"}) == 0


def test_sequences_do_not_mix():
    both = pd.concat([street([0, 10, 20], "a"), street([5, 15, 25], "b")])
    assert largest_gap_m(both, {"a0", "a2", "b0", "b1", "b2"}) == 20


def lenses(**columns: Any) -> pd.DataFrame:
    known = {"camera_id": 1, "camera_model": "RADIAL", "parameters": [800.0, 512, 384, 0, 0], "known_focal": True}
    return pd.DataFrame([known | {"width": 1024, "height": 768} | columns] * 2)


def test_a_known_focal_length_is_compared_and_a_guess_only_with_what_cameras_have():
    assert focal_change({1: 1000.0}, lenses()) == pytest.approx(0.25)
    assert focal_change({1: 600.0}, lenses()) == pytest.approx(0.25)
    guess = lenses(known_focal=False)
    assert focal_change({1: 600.0}, guess) == 0
    assert focal_change({1: 2 * 2.5 * 1024}, guess) == pytest.approx(1.0)
    assert focal_change({2: 1.0}, lenses()) == 0
    assert focal_change({1: 5.0}, lenses(camera_model="EQUIRECTANGULAR", parameters=[1024.0, 512.0])) == 0


def test_the_worst_camera_counts():
    images = pd.concat([lenses(), lenses(camera_id=2)])
    assert focal_change({1: 808.0, 2: 880.0}, images) == pytest.approx(0.1)


def pairs(*rows: tuple[str, str, bool, str | None]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["image_id_a", "image_id_b", "verified", "quarantine"])
    return frame.reindex(columns=TABLES["match_pairs"].column_names)


def test_pairs_of_a_component_are_those_with_both_ends_in_it():
    some = pairs(("a", "b", True, None), ("a", "c", True, None), ("b", "d", False, "far"), ("a", "d", False, None))
    assert component_pairs(some, {"a", "b", "d"}) == (3, 1, 1)
    assert component_pairs(some.iloc[:0], {"a"}) == (0, 0, 0)


GOOD = {
    "component": 0, "status": "placed", "n_home_images": 100, "n_home_registered": 90, "n_registered": 110,
    "reprojection_px": 0.8, "gps_median_m": 2.0, "gps_p95_m": 4.0, "roll_deg": 0.5, "focal_change": 0.1,
    "largest_gap_m": 10.0, "border_m": 0.05,
}  # fmt: skip


def models(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([GOOD | row for row in rows]).reindex(columns=TABLES["sparse_models"].column_names)


def verdicts(*rows: dict[str, Any]) -> dict[str, Verdict]:
    return gates(models(*rows), gps_sigma_m=3.0)


def test_a_good_box_passes_every_gate():
    found = verdicts({})
    assert all(verdict.passed for verdict in found.values())
    assert all(verdict.note == "" for verdict in found.values())


@pytest.mark.parametrize(
    ("gate", "row", "is_error"),
    [
        ("registered_share", {"n_home_registered": 79}, False),
        ("registered_share", {"n_home_registered": 59}, True),
        ("registered_share", {"status": "unplaced"}, True),
        ("reprojection_error", {"reprojection_px": 1.51}, True),
        ("gps_residual", {"gps_median_m": 6.1}, True),
        ("border_fits", {"border_m": 0.31}, True),
        ("cameras_are_level", {"roll_deg": 3.1}, False),
        ("focal_lengths_hold", {"focal_change": 0.26}, False),
        ("no_gap", {"largest_gap_m": 51.0}, False),
    ],
)
def test_a_gate_closes_at_its_limit(gate: str, row: dict[str, Any], is_error: bool):
    found = verdicts(row)
    assert [name for name, verdict in found.items() if not verdict.passed] == [gate]
    assert found[gate].is_error == is_error
    assert found[gate].note.endswith(".") and any(letter.isdigit() for letter in found[gate].note)


def test_limits_belong_to_what_is_good():
    found = verdicts(
        {"n_home_registered": 80, "reprojection_px": 1.5, "gps_median_m": 6.0, "border_m": 0.3, "roll_deg": 3.0}
        | {"focal_change": 0.25, "largest_gap_m": 50.0}
    )
    assert all(verdict.passed for verdict in found.values())


@pytest.mark.parametrize("status", ["too_few", "no_gps", "static_scene"])
def test_a_fact_about_the_box_passes_with_a_note(status: str):
    empty = {name: np.nan for name in GOOD} | {"component": 0, "n_home_images": 100, "n_home_registered": 0}
    found = verdicts(empty | {"status": status})
    assert all(verdict.passed for verdict in found.values())
    assert status in found["registered_share"].note


@pytest.mark.parametrize("status, is_error", [("no_overlap", False), ("not_mapped", True)])
def test_what_the_mapper_owes_does_not_pass(status: str, is_error: bool):
    empty = {name: np.nan for name in GOOD} | {"component": 0, "n_home_images": 100, "n_home_registered": 0}
    share = verdicts(empty | {"status": status})["registered_share"]
    assert not share.passed and share.is_error == is_error and status in share.note


def test_the_worst_placed_component_counts_and_no_other():
    found = verdicts(
        {}, {"component": 1, "reprojection_px": 1.7}, {"component": 2, "status": "unplaced", "roll_deg": 60.0}
    )
    assert not found["reprojection_error"].passed and "1.7" in found["reprojection_error"].note
    assert found["cameras_are_level"].passed


def test_an_empty_box_passes():
    assert all(verdict.passed for verdict in gates(TABLES["sparse_models"].empty(), gps_sigma_m=3.0).values())


def test_many_quarantined_pairs_warn_with_their_count():
    clean = pairs(*[("a", f"b{k}", True, None) for k in range(99)])
    one = pd.concat([clean, pairs(("a", "z", True, "identical at 90 m"))])
    assert pairs_verdict(100, clean, 20.0).passed
    assert pairs_verdict(100, one, 20.0).passed  # one in a hundred
    two = pairs_verdict(100, pd.concat([one, pairs(("b", "z", True, "identical at 90 m"))]), 20.0)
    assert not two.passed and not two.is_error and two.note.startswith("2 of 101 pairs")
    assert two.figures["budget"] == 2200 and two.figures["n_quarantined"] == 2
    assert pairs_verdict(0, clean.iloc[:0], 20.0).passed
