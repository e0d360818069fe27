from collections import Counter

import numpy as np
import pytest

from geo_assets.geotag.quarters import QUADTREE_DEPTH, S2_DEPTH, Counted, Rule, box_codes, rules, s2_codes


def world(n: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(5)
    lon, lat = draw.normal(10, 40, n) % 360 - 180, np.clip(draw.normal(30, 20, n), -90, 90)
    return lon, lat, draw.integers(1, 9, n)


def by_recursion(codes, photos, depth, most, fewest, level=0) -> set[tuple[int, int]]:
    """The rule as it is told: a cell above ``most`` photos is cut in four."""
    total = sum(photos)
    width = 1 << 2 * (depth - level)
    if total <= most or level == depth:
        return {(codes[0] // width * width, total)} if total >= fewest else set()
    parts: dict[int, tuple[list[int], list[int]]] = {}
    for code, n in zip(codes, photos, strict=True):
        into = parts.setdefault(code // (width // 4), ([], []))
        into[0].append(code)
        into[1].append(n)
    return set().union(*(by_recursion(*part, depth, most, fewest, level + 1) for part in parts.values()))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_cells_are_those_of_the_rule(rule: Rule):
    lon, lat, photos = world()
    codes = rule.codes(lon, lat)
    cells = Counted(codes, photos, rule.depth).cut(most=200, fewest=10)
    faces = {c >> 2 * rule.depth for c in codes.tolist()}
    told = set()
    for face in faces:
        inside = [i for i, c in enumerate(codes.tolist()) if c >> 2 * rule.depth == face]
        told |= by_recursion([int(codes[i]) for i in inside], [int(photos[i]) for i in inside], rule.depth, 200, 10)
    at = cells.of(codes)
    held = Counter()
    for cell, n in zip(at.tolist(), photos.tolist(), strict=True):
        held[cell] += n
    assert {(int(cells.first[c]), n) for c, n in held.items() if c >= 0} == told
    assert (cells.first[1:] > cells.last[:-1]).all()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
@pytest.mark.parametrize("wanted", [8, 60, 400])
def test_about_as_many_cells_as_wanted(rule: Rule, wanted):
    lon, lat, photos = world()
    codes = rule.codes(lon, lat)
    cells = Counted(codes, photos, rule.depth).cut_into(wanted, rule.kept)
    assert abs(len(cells) - wanted) <= 0.1 * wanted + 1


def test_a_place_that_no_photo_was_near_lies_in_no_cell():
    codes = s2_codes([2.35, 2.36], [48.85, 48.86])
    cells = Counted(codes, [3, 4], S2_DEPTH).cut(most=3, fewest=1)
    assert len(cells) == 2 and sorted(cells.of(codes)) == [0, 1]
    assert cells.of(s2_codes([-70.0], [-30.0])).tolist() == [-1]
    assert Counted(codes, [3, 4], S2_DEPTH).cut(most=10, fewest=8).of(codes).tolist() == [-1, -1]


def test_many_photos_at_one_place_end_at_the_last_cut():
    codes = s2_codes([2.35], [48.85])
    cells = Counted(codes, [1000], S2_DEPTH).cut(most=10, fewest=1)
    assert cells.first.tolist() == cells.last.tolist() == codes.tolist()


def test_no_place_gives_no_cell():
    none = np.empty(0, np.uint64)
    assert len(Counted(none, [], S2_DEPTH).cut_into(5, 0.1)) == 0


def test_boxes_are_halves_of_the_degrees():
    top = box_codes([-90, 90, -90, 90], [-45, -45, 45, 45]) >> np.uint64(2 * QUADTREE_DEPTH - 2)
    assert top.tolist() == [0, 1, 2, 3]
    corners = box_codes([-180, 180], [-90, 90])
    assert corners.tolist() == [0, 4**QUADTREE_DEPTH - 1]
    side = 360 / 2**QUADTREE_DEPTH
    assert box_codes([0.01, side - 0.01], [0.01, 0.01]).tolist()[0] == box_codes([side - 0.01], [0.01]).tolist()[0]
    assert box_codes([side + 0.01], [0.01]).tolist() != box_codes([side - 0.01], [0.01]).tolist()
