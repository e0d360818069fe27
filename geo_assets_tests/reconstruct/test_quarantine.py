from __future__ import annotations

import itertools

import pandas as pd

from geo_assets.reconstruct.quarantine import SAME_VIEW, TOO_ALIKE, TOO_FAR, WATERMARK, quarantine


def pair(a: str, b: str, distance_m: float, inliers: int, matches: int | None = None, **known) -> dict:
    row = {"image_id_a": a, "image_id_b": b, "distance_m": distance_m, "n_inliers": inliers}
    return row | {"n_matches": matches or 3 * inliers, "geometry": "CALIBRATED", "verified": inliers >= 15} | known


def clique(names: str, **known) -> list[dict]:
    return [pair(a, b, 10.0, 100, **known) for a, b in itertools.combinations(names, 2)]


def reasons(*rows: dict) -> list[str | None]:
    return quarantine(pd.DataFrame(rows)).tolist()


def test_ordinary_pairs_stay():
    assert reasons(pair("a", "b", 5, 900), pair("a", "c", 149, 400), pair("b", "c", 151, 100)) == [None] * 3


def test_many_inliers_far_apart():
    assert reasons(pair("a", "b", 151, 101)) == [TOO_FAR]


def test_nearly_all_matches_agree_far_apart():
    assert reasons(pair("a", "b", 61, 300, 310), pair("a", "b", 59, 300, 310), pair("a", "b", 61, 300, 400)) == [
        TOO_ALIKE,
        None,
        None,
    ]


def test_watermarks_whatever_else_they_are():
    assert reasons(pair("a", "b", 200, 500, geometry="WATERMARK", verified=False)) == [WATERMARK]


def test_the_same_view_goes_where_both_images_keep_three_other_pairs():
    rows = clique("abcde")
    rows[0] |= {"distance_m": 0.4, "n_inliers": 800}  # a-b, both of degree four
    assert reasons(*rows) == [SAME_VIEW] + [None] * 9


def test_the_same_view_stays_where_an_image_needs_it():
    rows = clique("abcd")
    rows[0] |= {"distance_m": 0.4, "n_inliers": 800}  # both of degree three
    assert reasons(*rows) == [None] * 6


def test_the_same_view_stays_where_it_alone_ties_two_parts():
    rows = [*clique("abcd"), *clique("efgh"), pair("a", "e", 0.4, 800)]
    assert reasons(*rows) == [None] * 13


def test_of_a_vehicle_that_stands_each_photo_keeps_three_pairs():
    rows = [r | {"distance_m": 0.3, "n_inliers": 600 + k} for k, r in enumerate(clique("abcdefgh"))]
    found = quarantine(frame := pd.DataFrame(rows))
    assert (found == SAME_VIEW).any()
    kept = frame[found.isna()]
    assert pd.concat([kept.image_id_a, kept.image_id_b]).value_counts().min() >= 3
    shuffled = frame.sample(frac=1, random_state=1)
    assert quarantine(shuffled).sort_index().equals(found)
