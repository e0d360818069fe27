from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from geo_assets.reconstruct.frames import Similarity
from geo_assets.reconstruct.joint import Part, disagreements, solve
from geo_assets_tests.reconstruct.made_cities import Town

STILL = Similarity(1.0, np.eye(3), np.zeros(3))


def of(part: Part, rows: list[int]) -> Part:
    """Some of a part's cameras."""
    ids = [part.image_ids[row] for row in rows]
    arrays = {name: getattr(part, name)[rows] for name in ("centres", "rotations", "priors", "sigma_m")}
    return replace(part, image_ids=ids, **arrays)


def shared_rows(a: Part, b: Part) -> list[int]:
    return [row for row, image in enumerate(a.image_ids) if image in set(b.image_ids)]


def moved_m(part: Part, a: Similarity, b: Similarity) -> float:
    return float(np.linalg.norm(a(part.centres) - b(part.centres), axis=1).max())


def rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("aligned", [True, False])
def test_four_boxes_around_a_corner_agree(aligned: bool):
    parts = Town(bias_m=2.0).parts(aligned=aligned)
    found = disagreements(parts, solve(parts))
    assert len(found) == 4 and (found.n_shared == 10).all()
    assert found.before_m.min() > 1 and found.median_m.max() < 0.05 and found.max_m.max() < 0.1


def test_the_place_is_that_of_all_boxes_together():
    town = Town(rows=4, columns=4, bias_m=2.0, seed=3)
    parts = town.parts()
    found = solve(parts)
    alone = rms([town.error_m(part, STILL) for part in parts])
    together = rms([town.error_m(part, found[part.name]) for part in parts])
    assert alone > 1.5 and together < 0.5 * alone


def test_few_shared_cameras_do_not_tip_a_straight_street():
    town = Town(rows=1, columns=2, streets="east", margin_m=4.0, seed=2)
    parts = town.parts()
    found = solve(parts)
    assert disagreements(parts, found).n_shared.tolist() == [2]
    before = [town.tilt_deg(part, STILL) for part in parts]
    after = [town.tilt_deg(part, found[part.name]) for part in parts]
    # Both boxes tilt as one: their positions are twice as many.
    assert abs(after[0] - after[1]) < 0.1 and max(after) < max(before)


def test_fixed_neighbours_are_met_and_stay():
    parts = Town(bias_m=2.0, seed=1).parts()
    finished = solve(parts)
    turned = [replace(p, fixed=True, centres=finished[p.name](p.centres)) for p in parts]
    neighbours = [replace(p, rotations=p.rotations @ finished[p.name].rotation.T) for p in turned[1:]]
    together = [parts[0], *neighbours]
    found = solve(together)
    assert all(np.array_equal(found[p.name](p.centres), p.centres) for p in neighbours)
    assert disagreements(together, found).max_m.max() < 0.1
    assert moved_m(parts[0], found[parts[0].name], finished[parts[0].name]) < 0.1


@pytest.mark.parametrize("aligned", [True, False])
def test_what_shares_nothing_keeps_to_its_positions(aligned: bool):
    town = Town(rows=1, columns=2, margin_m=-4.0)
    parts = town.parts(aligned=aligned)
    found = solve(parts)
    assert disagreements(parts, found).empty
    assert all(town.error_m(part, found[part.name]) < 2 for part in parts)
    if aligned:
        assert all(np.array_equal(found[p.name](p.centres), p.centres) for p in parts)


def test_a_wrong_shared_camera_does_not_bend_the_town():
    parts = Town(bias_m=1.5, seed=1).parts()
    centres = parts[0].centres.copy()
    centres[shared_rows(parts[0], parts[1])[0]] += [30.0, -10.0, 5.0]
    broken = [replace(parts[0], centres=centres), *parts[1:]]
    right, found = solve(parts), solve(broken)
    assert all(moved_m(p, right[p.name], found[p.name]) < 0.2 for p in parts[1:])
    assert disagreements(broken, found).median_m.max() < 0.05


def test_a_single_shared_camera_that_positions_contradict_is_not_believed():
    parts = Town(rows=1, columns=2, streets="east").parts()
    row = shared_rows(parts[0], parts[1])[0]
    lone = of(parts[0], [k for k in range(len(parts[0].image_ids)) if k not in shared_rows(*parts)[1:]])
    centres = lone.centres.copy()
    centres[lone.image_ids.index(parts[0].image_ids[row])] += [0.0, 60.0, 0.0]
    broken = [replace(lone, centres=centres), parts[1]]
    assert moved_m(parts[1], solve(broken)[parts[1].name], STILL) == 0
    assert moved_m(parts[1], solve([lone, parts[1]])[parts[1].name], STILL) > 0.1


def test_positions_that_are_wrong_for_a_whole_box_are_given_up():
    town = Town(seed=1)
    parts = town.parts()
    off = np.array([30.0, 0.0, 0.0])
    lost = replace(parts[0], priors=parts[0].priors + off, centres=parts[0].centres + off)
    found = solve([lost, *parts[1:]])
    assert town.error_m(lost, found[lost.name]) < 1.5
    assert all(town.error_m(part, found[part.name]) < 1.5 for part in parts[1:])


@pytest.mark.parametrize("factor", [1.0, 0.1])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_tiny_parts_do_no_harm(n: int, factor: float):
    parts = Town().parts()
    tiny = of(parts[0], shared_rows(parts[0], parts[1])[:n])
    tiny = replace(tiny, centres=tiny.centres * factor)
    found = solve([tiny, *parts[1:]])
    assert np.isfinite(found[tiny.name].translation).all() and 0 < found[tiny.name].scale < 100
    assert disagreements([tiny, *parts[1:]], found).iloc[-2:].max_m.max() < 0.1


def test_cameras_without_position_are_held_by_the_others():
    town = Town(seed=4)
    parts = town.parts()
    blind = replace(parts[0], priors=np.full_like(parts[0].priors, np.nan))
    found = solve([blind, *parts[1:]])
    assert town.error_m(blind, found[blind.name]) < 1.5
    assert disagreements([blind, *parts[1:]], found).max_m.max() < 0.1


def test_no_parts_and_two_of_one_name():
    assert solve([]) == {} and disagreements([], {}).empty
    part = Town(rows=1, columns=1).parts()[0]
    with pytest.raises(ValueError, match="same name"):
        solve([part, part])


def test_the_same_input_gives_the_same_numbers():
    parts = Town(bias_m=1.0).parts()
    first, second = solve(parts), solve(parts)
    assert all(np.array_equal(first[p.name].translation, second[p.name].translation) for p in parts)
