from __future__ import annotations

import numpy as np
import pandas as pd

from geo_assets.reconstruct.candidates import PairRules
from geo_assets.reconstruct.expansion import expand


def row_of(n: int, at_border: bool = True, step_m: float = 10.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"i{k:02d}" for k in range(n)],
            "sequence_id": "s",
            "east_m": np.arange(n) * step_m,
            "north_m": 0.0,
            "heading_deg": 90.0,
            "captured_at": pd.Timestamp("2024-01-01", tz="UTC"),
            "at_border": at_border,
        }
    )


def matched(*pairs: tuple[int, int, int], geometry: str = "CALIBRATED") -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "image_id_a": f"i{a:02d}",
                "image_id_b": f"i{b:02d}",
                "n_inliers": n,
                "geometry": geometry,
                "verified": n >= 15,
                "round": 0,
            }
            for a, b, n in pairs
        ]
    )


def proposed(*arguments, **named) -> set[tuple[str, str]]:
    found = expand(*arguments, **named)
    assert set(found.reason) <= {"expansion"}
    return set(zip(found.image_id_a, found.image_id_b, strict=True))


def test_pairs_of_pairs_are_proposed():
    pairs = matched((0, 1, 50), (1, 2, 40), (2, 3, 29))
    assert proposed(row_of(4), pairs) == {("i00", "i02")}


def test_a_tried_pair_is_not_proposed_again():
    pairs = matched((0, 1, 50), (1, 2, 40), (0, 2, 3))
    assert proposed(row_of(4), pairs) == set()
    pairs = matched((0, 1, 50), (1, 2, 40))
    assert proposed(row_of(4), pairs, tried=[("i02", "i00")]) == set()
    assert proposed(row_of(4), pairs, tried=matched((0, 2, 3))) == set()


def test_planes_and_quarantined_pairs_do_not_count():
    pairs = matched((0, 1, 50), (1, 2, 40), geometry="PANORAMIC")
    assert proposed(row_of(4), pairs) == set()
    pairs = matched((0, 1, 50), (1, 2, 40)).assign(quarantine=[None, "watermark"])
    assert proposed(row_of(4), pairs) == set()


def test_only_at_the_border_or_for_images_with_few_matches():
    ring = [(k, (k + s) % 12, 60) for k in range(12) for s in (1, 2)]  # four pairs an image
    inside = row_of(12, at_border=False)
    assert proposed(inside, matched(*ring)) == set()
    # Image 0 loses a pair, so it has three; its partner 1 too.
    assert proposed(inside, matched(*ring[1:])) == {
        ("i00", "i01"),
        *(("i00", f"i{k:02d}") for k in (3, 4, 8, 9)),
        *(("i01", f"i{k:02d}") for k in (4, 5, 9, 10)),
    }


def test_an_image_with_a_pair_across_the_border_is_at_the_border():
    ring = matched(*[(k, (k + s) % 12, 60) for k in range(12) for s in (1, 2)]).assign(fringe=False)
    cameras = row_of(12).drop(columns="at_border")
    assert proposed(cameras, ring) == set()
    ring.loc[0, "fringe"] = True  # 0 and 1
    assert {i for pair in proposed(cameras, ring) for i in pair} >= {"i00", "i01"}


def test_not_too_far_apart():
    pairs = matched((0, 1, 50), (1, 2, 40))
    assert proposed(row_of(4, step_m=74), pairs) == {("i00", "i02")}
    assert proposed(row_of(4, step_m=76), pairs) == set()


def test_the_strongest_come_first_and_an_image_gets_few():
    star = [(0, k, 100 - k) for k in range(1, 10)]
    rules = PairRules(expansion_per_image=1)
    found = proposed(row_of(20), matched(*star), rules)
    assert found == {("i01", "i02"), ("i03", "i04"), ("i05", "i06"), ("i07", "i08")}


def test_the_allowance_is_kept_over_the_rounds():
    star = matched(*[(0, k, 100 - k) for k in range(1, 10)])
    rules = PairRules(max_pairs_per_image=10)  # 0.5 an image
    assert len(proposed(row_of(10), star, rules)) == 5
    star.loc[:2, "round"] = 1
    assert len(proposed(row_of(10), star, rules)) == 2


def test_views_of_one_panorama_are_not_proposed():
    cameras = row_of(4).assign(frame_id=[1, 2, 1, 3])
    assert proposed(cameras, matched((0, 1, 50), (1, 2, 40), (1, 3, 40))) == {("i00", "i03"), ("i02", "i03")}


def test_no_pairs_no_proposals():
    assert len(expand(row_of(4), matched((0, 1, 10)))) == 0
