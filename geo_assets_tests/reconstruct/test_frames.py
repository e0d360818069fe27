from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geo_assets.geodesy import LocalFrame
from geo_assets.reconstruct.frames import (
    Similarity,
    align,
    best_similarity,
    between_frames,
    heading_deg,
    quaternion_from_rotation,
    rotation_between,
    rotation_from_quaternion,
    rotation_from_vector,
    vectors_from_rotations,
)

SIGMA = np.array([3.0, 3.0, 10.0])


def street(n: int, *, turns: bool, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Centres [n, 3] and camera_from_world [n, 3, 3] of a car that drives east and, if it turns, on to the north."""
    rng = np.random.default_rng(seed)
    s = np.linspace(0, 120, n)
    bend = (s > 60) & turns
    x, y = np.where(bend, 60, s), np.where(bend, s - 60, 0)
    heading = np.where(bend, np.pi / 2, 0.0) + rng.normal(0, 0.03, n)
    forward = np.column_stack([np.cos(heading), np.sin(heading), rng.normal(0, 0.02, n)])
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.column_stack([np.sin(heading), -np.cos(heading), np.zeros(n)])
    return np.column_stack([x, y, np.full(n, 2.0)]), np.stack([right, np.cross(forward, right), forward], axis=1)


def in_model_frame(centres: np.ndarray, rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same cameras in a model's own coordinates: turned, shifted, a seventh of the size."""
    turn = Rotation.from_euler("xyz", [100, -20, 33], degrees=True).as_matrix()
    return (centres @ turn.T) / 7 + [5, -3, 8], rotations @ turn.T


@pytest.mark.parametrize("turns", [True, False])
def test_exact_positions_give_the_exact_place(turns: bool):
    centres, rotations = street(30, turns=turns)
    found = align(*in_model_frame(centres, rotations), centres, np.tile(SIGMA, (30, 1)))
    assert np.allclose(found.offsets_m, 0, atol=0.05)
    assert found.similarity.scale == pytest.approx(7, rel=1e-3)


def test_noise_averages_out_in_the_middle_of_the_track():
    centres, rotations = street(60, turns=True)
    priors = centres + np.random.default_rng(3).normal(0, SIGMA, (60, 3))
    found = align(*in_model_frame(centres, rotations), priors, np.tile(SIGMA, (60, 1)))
    placed = priors + found.offsets_m
    middle = placed.mean(0) - centres.mean(0)
    assert np.hypot(*middle[:2]) < 3 * 3.0 / np.sqrt(60)
    assert np.degrees(np.linalg.norm(Rotation.from_matrix(best_similarity(placed, centres).rotation).as_rotvec())) < 4


def test_a_straight_street_does_not_roll():
    centres, rotations = street(30, turns=False)
    priors = centres + np.random.default_rng(5).normal(0, SIGMA, (30, 3))
    found = align(*in_model_frame(centres, rotations), priors, np.tile(SIGMA, (30, 1)))
    # Positions alone leave the turn about the line of the street to the noise: tens of degrees.
    assert found.roll_deg < 2


def test_gross_errors_do_not_pull():
    centres, rotations = street(40, turns=True)
    priors = centres.copy()
    priors[::5] += [80.0, -150.0, 0.0]
    found = align(*in_model_frame(centres, rotations), priors, np.tile(SIGMA, (40, 1)))
    good = np.ones(40, bool)
    good[::5] = False
    assert np.median(found.horizontal_m[good]) < 1.0
    assert found.horizontal_m[~good].min() > 100


def test_halves_of_different_scale_are_noticed():
    centres, rotations = street(60, turns=False)
    priors = centres.copy()
    priors[30:, 0] = 60 + (priors[30:, 0] - 60) * 2
    found = align(*in_model_frame(centres, rotations), priors, np.tile(SIGMA / 3, (60, 1)))
    assert found.scale_spread > 0.4


def test_the_same_input_gives_the_same_numbers():
    centres, rotations = street(25, turns=True)
    priors = centres + np.random.default_rng(9).normal(0, SIGMA, (25, 3))
    first, second = (align(*in_model_frame(centres, rotations), priors, np.tile(SIGMA, (25, 1))) for _ in range(2))
    assert np.array_equal(first.offsets_m, second.offsets_m)


@pytest.mark.parametrize("a, b", [([0, 0, 1], [0, 0, -1]), ([1, 2, 3], [1, 2, 3]), ([1, 0, 0], [0, 5, 0])])
def test_rotation_between_directions(a: list[float], b: list[float]):
    source, target = np.array(a, float), np.array(b, float)
    rotation = rotation_between(source, target)
    assert np.allclose(rotation @ source / np.linalg.norm(source), target / np.linalg.norm(target))
    assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.linalg.det(rotation) == pytest.approx(1)


def test_rotation_vectors_are_those_of_scipy():
    for vector in np.random.default_rng(0).normal(size=(5, 3)):
        assert np.allclose(rotation_from_vector(vector), Rotation.from_rotvec(vector).as_matrix())


def test_quaternions_and_vectors_lead_back_to_the_rotation():
    rotations = Rotation.random(6, rng=np.random.default_rng(1)).as_matrix()
    quaternions = np.array([quaternion_from_rotation(rotation) for rotation in rotations])
    assert np.allclose(rotation_from_quaternion(3 * quaternions), rotations) and (quaternions[:, 0] >= 0).all()
    again = [rotation_from_vector(vector) for vector in vectors_from_rotations(rotations)]
    assert np.allclose(again, rotations) and vectors_from_rotations(rotations[:0]).shape == (0, 3)


def test_frames_meet_at_the_same_place_on_the_earth():
    here, there = LocalFrame(11.0, 48.0, 500.0), LocalFrame(11.02, 48.01, 520.0)
    points = np.array([[30.0, -20.0, 5.0], [1500.0, 900.0, 40.0]])
    assert np.allclose(between_frames(there, here)(points), there.enu(*here.geodetic(points)), atol=1e-6)


def test_similarities_compose():
    rng = np.random.default_rng(2)
    a, b = (Similarity(s, Rotation.random(rng=rng).as_matrix(), rng.normal(size=3)) for s in (2.0, 0.3))
    points = rng.normal(size=(4, 3))
    assert np.allclose(a.after(b)(points), a(b(points)))


def test_headings_run_clockwise_from_north():
    _, rotations = street(9, turns=True)
    heading = heading_deg(rotations)
    assert np.allclose(heading[:4], 90, atol=10)
    assert np.allclose((heading[-4:] + 180) % 360, 180, atol=10)
