from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from geo_assets.reconstruct.candidates import PairRules, _ring_pairs, angle_between_deg, choose_pairs, sees_the_same
from geo_assets.reconstruct.graph import components
from geo_assets.reconstruct.matching import with_inliers


def cameras(east, north, heading, sequence="a") -> pd.DataFrame:
    n = len(east)
    return pd.DataFrame(
        {
            "image_id": [f"{sequence}{k:04d}" for k in range(n)],
            "sequence_id": sequence,
            "east_m": np.asarray(east, float),
            "north_m": np.asarray(north, float),
            "heading_deg": np.broadcast_to(np.asarray(heading, float), n),
            "captured_at": pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(n), "s"),
        }
    )


def drive(n: int, step_m: float = 4.0, north_m: float = 0.0, heading: float = 90.0, sequence: str = "a"):
    return cameras(np.arange(n) * step_m, np.full(n, north_m), heading, sequence)


def as_set(pairs: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(pairs.image_id_a, pairs.image_id_b, strict=True))


def test_each_pair_stands_once_in_order():
    pairs = choose_pairs(pd.concat([drive(40), drive(40, north_m=2, sequence="b")]).sample(frac=1, random_state=1))
    assert (pairs.image_id_a < pairs.image_id_b).all()
    assert not pairs.duplicated(["image_id_a", "image_id_b"]).any()
    assert pairs.equals(pairs.sort_values(["image_id_a", "image_id_b"], ignore_index=True))


def test_the_order_of_the_rows_does_not_matter():
    frame = pd.concat([drive(30), drive(30, north_m=3, heading=270, sequence="b")])
    assert choose_pairs(frame).equals(choose_pairs(frame.iloc[::-1]))


def test_a_crowd_on_one_spot_does_not_take_the_pairs_of_the_far_rings():
    crowd = cameras(np.random.default_rng(0).normal(0, 0.5, 60), np.zeros(60), 90)
    pairs = choose_pairs(pd.concat([crowd, drive(15, sequence="b")]))
    per_image = len(pairs) / 75
    assert per_image < 15
    assert (pairs.distance_m > 15).sum() >= 30


def test_few_pairs_with_any_one_foreign_sequence_in_a_ring():
    frame = pd.concat([drive(1), drive(40, 0.5, 1.0, sequence="b")], ignore_index=True)
    xy, heading = frame[["east_m", "north_m"]].to_numpy(float), frame.heading_deg.to_numpy(float)
    directed = _ring_pairs(xy, heading, np.array([0] + [1] * 40), PairRules())
    mine = directed[directed[:, 0] == 0]
    ring = np.searchsorted(PairRules().rings_m, np.hypot(*(xy[mine[:, 1]] - xy[0]).T))
    assert np.bincount(ring).tolist() == [2, 2, 2]


def test_opposite_directions_do_not_match_unless_they_face_each_other():
    rules = PairRules(min_degree=0, bridge_pairs=0, sequence_steps=())
    there = drive(1, heading=90, sequence="a")
    back = cameras([30], [0], 270, "b")
    beside = cameras([0], [12], 270, "c")
    quarter = cameras([20], [0], 190, "d")
    assert _passing(there, back, rules) == set()  # 180 degrees: front against back of things
    assert _passing(there, beside, rules) == set()
    assert _passing(there, quarter, rules) == set()  # 100 degrees, one looks across the line
    near = cameras([3], [0], 170, "e")
    assert len(_passing(there, near, rules)) == 1


def _passing(a: pd.DataFrame, b: pd.DataFrame, rules: PairRules) -> set[tuple[str, str]]:
    both = pd.concat([a, b], ignore_index=True)
    xy, heading = both[["east_m", "north_m"]].to_numpy(float), both.heading_deg.to_numpy(float)
    passes = sees_the_same(xy, heading, np.array([0]), np.array([1]), rules)
    return {(both.image_id[0], both.image_id[1])} if passes[0] else set()


def test_unknown_headings_pass():
    pairs = choose_pairs(pd.concat([drive(10, heading=np.nan), drive(10, north_m=4, heading=270, sequence="b")]))
    assert pairs.heading_difference_deg.isna().any()
    assert {a[0] + b[0] for a, b in as_set(pairs)} >= {"aa", "ab"}


def test_sequence_neighbours_are_paired_whatever_their_gps_says():
    frame = drive(12)
    frame.loc[6, ["east_m", "north_m"]] = [900.0, 900.0]
    pairs = choose_pairs(frame)
    for step in (1, 2, 3):
        assert (f"a{6 - step:04d}", "a0006") in as_set(pairs)
    assert set(pairs[pairs.image_id_b == "a0006"].reason) == {"sequence"}


def test_every_image_gets_enough_candidates():
    lonely = cameras([200], [200], 10, "z")
    pairs = choose_pairs(pd.concat([drive(30), lonely]))
    mine = pairs[pairs.image_id_b == "z0000"]
    assert len(mine) >= 6 and set(mine.reason) <= {"degree"}


def test_two_streets_are_bridged_into_one_graph():
    rules = PairRules(min_degree=3)
    frame = pd.concat([drive(20), drive(20, north_m=300, sequence="b"), drive(20, north_m=-400, sequence="c")])
    pairs = choose_pairs(frame, rules)
    assert len(set(components(frame.image_id.to_list(), pairs.image_id_a.to_list(), pairs.image_id_b.to_list()))) == 1
    assert 20 <= (pairs.reason == "bridge").sum() <= 60


@pytest.mark.parametrize("n, wanted", [(1, 0), (2, 1), (3, 3)])
def test_small_sets(n: int, wanted: int):
    assert len(choose_pairs(drive(n))) == wanted


def test_images_on_one_point_are_still_paired():
    assert len(choose_pairs(cameras(np.zeros(4), np.zeros(4), np.nan))) == 6


def test_angles_wrap():
    assert angle_between_deg(np.array([350.0, 10, 90]), np.array([10.0, 350, 270])).tolist() == [20, 20, 180]


def test_inliers_join_by_id_in_either_order_and_missing_pairs_count_as_nothing():
    chosen = choose_pairs(drive(3))
    frame = with_inliers(chosen, [["a0001", "a0000", 50, 30, "CALIBRATED"], ["a0000", "a0002", 40, 35, "WATERMARK"]])
    assert frame.verified.tolist() == [True, False, False]
    assert frame.n_inliers.tolist() == [30, 35, 0]
    assert frame.geometry.tolist() == ["CALIBRATED", "WATERMARK", "UNDEFINED"]
