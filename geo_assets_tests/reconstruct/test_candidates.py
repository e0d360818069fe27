from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import ConfigError, ReconstructionError
from geo_assets.reconstruct import rings
from geo_assets.reconstruct.candidates import (
    PairRules,
    angle_between_deg,
    check_budget,
    choose_pairs,
    describe_pairs,
    pair_lines,
    tie_together,
)
from geo_assets.reconstruct.graph import components
from geo_assets.reconstruct.matching import with_inliers
from geo_assets.settings import Reconstruct

RINGS_ONLY = PairRules(min_degree=0, bridge_pairs=0, sequence_steps=(), turn_steps=())


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


def as_set(pairs: Any) -> set[tuple[str, str]]:
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
    one, many = drive(1), drive(40, 0.5, 1.0, sequence="b")
    frame = pd.concat([one, many], ignore_index=True)
    cells = rings.Cells.of(frame[["east_m", "north_m"]].to_numpy(float), 100.0)
    a, b = rings.partners(
        cells,
        np.full(41, 90.0),
        np.array([0] + [1] * 40),
        np.arange(41),
        np.zeros(41, bool),
        rings_m=(6.0, 15.0, 30.0),
        quotas=(4, 8, 6),
        per_foreign_sequence=2,
        wide_m=0.0,
        few=0,
        sight=None,
    )
    east = frame.east_m.to_numpy()[b[a == 0]]
    assert east.tolist() == [0.0, 0.5, 6.0, 6.5, 15.0, 15.5]


def test_the_search_finds_what_looking_at_all_pairs_finds():
    random = np.random.default_rng(3)
    n = 400
    frame = cameras(random.uniform(0, 250, n), random.uniform(-90, 90, n), random.uniform(0, 360, n))
    frame["sequence_id"] = random.integers(0, 30, n).astype(str)
    got = as_set(choose_pairs(frame, RINGS_ONLY))
    assert got == _rings_slowly(frame, RINGS_ONLY)
    assert len(got) > 1000


def _rings_slowly(frame: pd.DataFrame, rules: PairRules) -> set[tuple[str, str]]:
    xy, heading = frame[["east_m", "north_m"]].to_numpy(float), frame.heading_deg.to_numpy(float)
    sequence, ids = frame.sequence_id.to_numpy(object), frame.image_id.to_numpy(object)
    found = set()
    for i in range(len(frame)):
        distance = np.hypot(*(xy - xy[i]).T)
        line = np.degrees(np.arctan2(*(xy - xy[i]).T))
        turned = angle_between_deg(heading, heading[i])
        off = [np.minimum(o := angle_between_deg(h, line), 180 - o) for h in (heading, heading[i])]
        sees = (turned <= 50) | ((distance < 8) & (turned <= 100))
        sees |= (turned <= 110) & (off[0] <= 60) & (off[1] <= 60) & (distance < 40)
        sees[i] = False
        reach = 60.0 if (sees & (distance <= 60)).sum() >= rules.few else 100.0
        ring = np.minimum(np.searchsorted(rules.rings_m, distance), 3)
        left = 0
        for number, quota in enumerate(rules.quotas):
            mine: list[str] = []
            for j in np.lexsort((np.arange(len(frame)), np.where(ring == number, distance, np.inf))):
                if ring[j] != number or len(mine) == quota + left:
                    break
                foreign = sequence[j] != sequence[i] and mine.count(sequence[j]) >= rules.per_foreign_sequence
                if sees[j] and distance[j] <= reach and not foreign:
                    mine.append(sequence[j])
                    found.add(tuple(sorted((ids[i], ids[j]))))
            left += quota - len(mine)
    return found


def test_where_photos_are_sparse_the_far_ones_make_up_for_the_near():
    rules = PairRules(rings_m=(6.0, 60.0), quotas=(4, 2), min_degree=0, bridge_pairs=0, sequence_steps=())
    pairs = choose_pairs(drive(30, 10.0), rules)  # nobody within 6 m
    middle = pairs[pairs.image_id_a.between("a0008", "a0015")]
    assert middle.distance_m.max() == 30  # three to each side


def test_opposite_directions_do_not_match_unless_they_face_each_other():
    there = drive(1, heading=90, sequence="a")
    back = cameras([30], [0], 270, "b")
    beside = cameras([0], [12], 270, "c")
    quarter = cameras([20], [0], 190, "d")
    assert _passing(there, back) == set()  # 180 degrees: front against back of things
    assert _passing(there, beside) == set()
    assert _passing(there, quarter) == set()  # 100 degrees, one looks across the line
    assert len(_passing(there, cameras([3], [0], 170, "e"))) == 1
    facing = cameras([20], [0], 40, "f"), cameras([0], [0], 140, "g")  # 100 degrees, both 50 off the line
    assert len(_passing(*facing)) == 1


def _passing(a: pd.DataFrame, b: pd.DataFrame) -> set[tuple[str, str]]:
    return as_set(choose_pairs(pd.concat([a, b], ignore_index=True), RINGS_ONLY))


@pytest.mark.parametrize("column, value", [("heading_deg", np.nan), ("camera_model", "EQUIRECTANGULAR")])
def test_who_looks_everywhere_passes(column: str, value):
    back = cameras([30], [0], 270, "b").assign(camera_model="RADIAL")
    assert len(_passing(drive(1).assign(camera_model="RADIAL"), back.assign(**{column: value}))) == 1


def test_uncertain_positions_and_lonely_images_look_further():
    crowd, far = drive(9, 0.5), cameras([90], [0], 90, "z")
    lonely = as_set(choose_pairs(pd.concat([crowd, far]), RINGS_ONLY))
    assert ("a0008", "z0000") in lonely
    crowds = pd.concat([crowd, *(far.assign(image_id=f"z{k}", east_m=90 + k / 10) for k in range(9))])
    assert not any(a[0] != b[0] for a, b in as_set(choose_pairs(crowds, RINGS_ONLY)))
    uncertain = choose_pairs(crowds.assign(sigma_xy_m=9.0), RINGS_ONLY)
    assert any(a[0] != b[0] for a, b in as_set(uncertain))


def test_views_of_a_panorama_are_paired_with_those_that_look_the_same_way_and_never_with_each_other():
    frames = [drive(8).assign(image_id=[f"p{k}_v{v}" for k in range(8)], heading_deg=90 * v) for v in range(4)]
    frame = pd.concat([f.assign(frame_id=range(8)) for f in frames], ignore_index=True)
    pairs = choose_pairs(frame)
    photo_a, photo_b = pairs.image_id_a.str[:2], pairs.image_id_b.str[:2]
    assert not (photo_a == photo_b).any()
    sequence = pairs[pairs.reason != "degree"]
    assert (sequence.image_id_a.str[-2:] == sequence.image_id_b.str[-2:]).mean() > 0.6
    assert {(f"p3_v{v}", f"p4_v{v}") for v in range(4)} <= as_set(pairs)
    assert ("p0_v0", "p3_v2") not in as_set(sequence)


def test_unknown_headings_pass():
    pairs = choose_pairs(pd.concat([drive(10, heading=np.nan), drive(10, north_m=4, heading=270, sequence="b")]))
    assert pairs.heading_difference_deg.isna().any()
    assert {a[0] + b[0] for a, b in as_set(pairs)} >= {"aa", "ab"}


def test_sequence_neighbours_are_paired_whatever_their_gps_says():
    frame = drive(12)
    frame.loc[6, ["east_m", "north_m"]] = [200.0, 200.0]
    pairs = choose_pairs(frame)
    for step in (1, 2, 3):
        assert (f"a{6 - step:04d}", "a0006") in as_set(pairs)
    assert "ring" not in set(pairs[pairs.image_id_b == "a0006"].reason)


def test_without_times_a_sequence_has_no_order():
    frame = drive(12).assign(captured_at=pd.Series(pd.NaT, index=range(12), dtype="datetime64[ns, UTC]"))
    assert "sequence" not in set(choose_pairs(frame, PairRules(quotas=(0, 0, 0, 0))).reason)
    assert "sequence" in set(choose_pairs(drive(12), PairRules(quotas=(0, 0, 0, 0))).reason)


def test_a_sequence_that_jumps_is_not_paired_across_the_jump():
    frame = pd.concat([drive(6), drive(6, north_m=400).assign(image_id=[f"b{k}" for k in range(6)])])
    frame["captured_at"] = pd.date_range("2024-01-01", periods=12, freq="s", tz="UTC")
    assert not any(a[0] != b[0] for a, b in as_set(choose_pairs(frame)))


def test_further_neighbours_at_a_turn():
    heading = np.where(np.arange(20) < 10, 0, 80)
    frame = cameras(np.arange(20) * 9.0, np.zeros(20), heading)
    pairs = choose_pairs(frame, PairRules(quotas=(0, 0, 0, 0), min_degree=0, bridge_pairs=0))
    assert ("a0008", "a0013") in as_set(pairs) and ("a0000", "a0008") not in as_set(pairs)
    assert ("a0008", "a0016") in as_set(pairs)


def test_every_image_gets_enough_candidates():
    lonely = cameras([200], [80], 270, "z")
    pairs = choose_pairs(pd.concat([drive(30), lonely]))
    mine = pairs[pairs.image_id_b == "z0000"]
    assert len(mine) >= 6 and set(mine.reason) <= {"degree"}
    assert mine.distance_m.max() <= 150


def test_an_image_far_from_all_others_stays_alone():
    pairs = choose_pairs(pd.concat([drive(30), cameras([2000], [2000], 10, "z")]))
    assert "z0000" not in set(pairs.image_id_b)


def test_two_streets_are_bridged_into_one_graph():
    rules = PairRules(min_degree=3)
    frame = pd.concat([drive(20), drive(20, north_m=250, sequence="b"), drive(20, north_m=-290, sequence="c")])
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


def test_two_thousand_components_become_one():
    n = 2000
    columns, rows = np.divmod(np.arange(n), 45)
    frame = cameras(columns * 170.0, rows * 170.0, np.nan).assign(sequence_id=[f"s{k}" for k in range(n)])
    pairs = choose_pairs(frame)
    assert set(pairs.reason) == {"bridge"}
    assert len(set(components(frame.image_id.to_list(), pairs.image_id_a.to_list(), pairs.image_id_b.to_list()))) == 1
    assert len(pairs) <= 6 * n


def test_bridges_are_the_nearest_pairs():
    rules = PairRules(min_degree=0, bridge_pairs=3, sequence_steps=(), turn_steps=())
    north = cameras(np.arange(10) * 2.0, np.full(10, 200.0) + np.arange(10), 90, "b")
    pairs = choose_pairs(pd.concat([drive(10, 2.0), north]), rules)
    bridges = pairs[pairs.reason == "bridge"]
    assert as_set(bridges) == {("a0000", "b0000"), ("a0001", "b0000"), ("a0002", "b0000")}


def test_images_without_a_position_are_an_error():
    frame = drive(5)
    frame.loc[3, "north_m"] = np.nan
    with pytest.raises(ReconstructionError, match="1 of 5 images have no position, the first is a0003"):
        choose_pairs(frame)


def test_pairs_across_a_border_are_told():
    frame = drive(20).assign(home_box=["r00c00"] * 10 + ["r00c01"] * 10)
    pairs = choose_pairs(frame)
    home = frame.set_index("image_id").home_box
    assert (pairs.fringe == (pairs.image_id_a.map(home) != pairs.image_id_b.map(home))).all()
    assert pairs.fringe.any() and not pairs.fringe.all()


def test_far_outliers_cost_nothing():
    frame = pd.concat([drive(30), cameras([4e7], [-4e7], 90, "z")])
    assert len(choose_pairs(frame)) == len(choose_pairs(drive(30)))


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"rings_m": (6.0, 15.0)}, "2 radii and reconstruct.ring_quotas 4 quotas"),
        ({"rings_m": (6.0, 6.0, 30.0, 60.0)}, "each larger than the one before"),
        ({"rings_m": (0.0, 6.0, 30.0, 60.0)}, "above 0 m"),
        ({"ring_quotas": (4, -1, 6, 4)}, "0 or more"),
    ],
)
def test_rules_that_contradict_themselves(changed, says: str):
    with pytest.raises(ConfigError, match=says):
        PairRules.of(Reconstruct(**changed))


def test_rules_come_from_the_settings():
    rules = PairRules.of(Reconstruct(rings_m=(10.0, 20.0), ring_quotas=(3, 2), max_pairs_per_image=9))
    assert (rules.rings_m, rules.quotas, rules.max_pairs_per_image) == ((10.0, 20.0), (3, 2), 9)


def _counted(n: int, distance_m: float, **columns) -> pd.DataFrame:
    return pd.DataFrame({"reason": "ring", "distance_m": np.full(n, distance_m), "round": 0, "fringe": False} | columns)


def test_over_budget_names_the_ring():
    pairs = pd.concat([_counted(3, 3.0), _counted(18, 20.0)])
    with pytest.raises(
        ReconstructionError, match=r"21 pairs within the box for 1 images.* over its share is ring 15-30 m"
    ):
        check_budget(pairs, 1, PairRules())
    many = _counted(21, 3.0, reason="bridge")
    with pytest.raises(ReconstructionError, match="over its share is bridge"):
        check_budget(many, 1, PairRules())


def test_the_fringe_and_the_expansion_have_a_share_of_their_own():
    rules = PairRules()
    full = _counted(200, 3.0)
    fringe, expansion = _counted(10, 3.0, fringe=True), _counted(10, 80.0, reason="expansion", round=1)
    said = check_budget(pd.concat([full, fringe, expansion]), 10, rules)
    assert said == {"pairs_per_image": 20, "fringe_pairs_per_image": 1, "expansion_pairs_per_image": 1}
    with pytest.raises(ReconstructionError, match="211 pairs with the fringe"):
        check_budget(pd.concat([full, _counted(11, 3.0, fringe=True)]), 10, rules)
    with pytest.raises(ReconstructionError, match="11 pairs of expansion"):
        check_budget(_counted(11, 80.0, reason="expansion", round=1), 10, rules)
    theirs = pd.concat([full, _counted(50, 3.0, fringe=True, owner="r00c00")]).fillna({"owner": "r00c01"})
    check_budget(theirs, 10, rules, box="r00c01")


def test_listed_pairs_are_described_once():
    pairs = describe_pairs(drive(4), [("a0003", "a0000"), ("a0000", "a0003"), ("a0001", "a0001")], "vocabulary")
    assert pairs.to_dict("records") == [
        {
            "image_id_a": "a0000",
            "image_id_b": "a0003",
            "reason": "vocabulary",
            "distance_m": 12.0,
            "heading_difference_deg": 0.0,
        }
    ]


def test_pair_lists_as_colmap_reads_them():
    assert pair_lines(choose_pairs(drive(2))) == "a0000.jpg a0001.jpg\n"


def test_groups_that_no_chain_of_pairs_connects_are_tied_together():
    frame = pd.concat([drive(10), drive(10, north_m=80, sequence="b")])
    apart = choose_pairs(frame).query("image_id_a.str[0] == image_id_b.str[0]")
    ties = tie_together(frame, apart)
    assert len(ties) and set(ties.reason) == {"bridge"}
    assert {(a[0], b[0]) for a, b in as_set(ties)} == {("a", "b")}
    assert tie_together(frame, pd.concat([apart, ties])).empty
