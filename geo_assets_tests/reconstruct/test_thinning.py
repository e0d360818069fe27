from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from geo_assets.demo import world
from geo_assets.demo.place import demo_frame
from geo_assets.reconstruct.thinning import duplicate_photos, standing_photos, superfluous

KEEP_EVERY_M = 1.0


def straight(spacing_m: float, n: int) -> np.ndarray:
    return np.column_stack([np.arange(n) * spacing_m, np.zeros(n)])


def noisy(xy: np.ndarray, seed: int, sigma_m: float = 3.0) -> np.ndarray:
    """Positions with white noise, of so much root mean square distance."""
    return xy + np.random.default_rng(seed).normal(0, sigma_m / np.sqrt(2), xy.shape)


def jam(n_standing: int = 30) -> np.ndarray:
    """A drive of 3 m a photo that crawls 2 m in the middle."""
    steps = np.concatenate([np.full(15, 3.0), np.full(n_standing, 2.0 / n_standing), np.full(15, 3.0)])
    return np.column_stack([np.cumsum(steps), np.zeros(len(steps))])


def frame(xy: np.ndarray, heading: float = 90.0, every_s: float = 1.0) -> pd.DataFrame:
    n = len(xy)
    times = pd.Timestamp("2024-05-01", tz="UTC") + pd.to_timedelta(np.arange(n) * every_s, "s")
    ids = [f"{k:04}" for k in range(n)]
    columns = {"east_m": xy[:, 0], "north_m": xy[:, 1], "heading_deg": heading, "captured_at": times}
    return pd.DataFrame({"image_id": ids, "sequence_id": "s"} | columns)


def test_of_a_vehicle_in_a_jam_one_photo_each_metre_stays():
    drop = standing_photos(jam(), np.arange(60.0), np.full(60, 90.0), KEEP_EVERY_M)
    assert not drop[:13].any() and not drop[-13:].any()
    assert drop[17:43].sum() >= 22
    thirty = straight(2 / 30, 30)
    alone = standing_photos(thirty, np.arange(30.0), np.full(30, 90.0), KEEP_EVERY_M)
    assert 2 <= (~alone).sum() <= 4 and not alone[0]


def test_a_stop_is_found_under_noise():
    for seed in range(20):
        drop = standing_photos(noisy(jam(60), seed, 1.0), np.arange(90.0), np.full(90, 90.0), KEEP_EVERY_M)
        assert drop[15:75].sum() >= 30 and drop[:10].sum() + drop[-10:].sum() == 0


@pytest.mark.parametrize("spacing_m", [2.0, 3.3, 8.0])
def test_a_noisy_drive_is_untouched(spacing_m: float):
    for seed in range(100):
        found = frame(noisy(straight(spacing_m, 60), seed), every_s=spacing_m / 5)
        assert not superfluous(found, KEEP_EVERY_M).to_numpy().any(), seed


def test_two_fixes_that_noise_brought_together_are_no_duplicates():
    xy = straight(3.3, 20)
    xy[8] = xy[7] + 0.1
    assert not duplicate_photos(xy, np.array([0.66 * k for k in range(20)]), np.full(20, 90.0)).any()


def test_the_same_spot_and_direction_at_once_is_a_duplicate():
    xy, seconds, heading = straight(3.3, 20), np.linspace(0, 12.54, 20), np.full(20, 90.0)
    again = np.insert(np.arange(20), 8, 7)
    found = duplicate_photos(
        xy[again] + 0.1 * np.eye(2)[again % 2],
        seconds[again] + np.linspace(0, 0.02, 21, dtype=np.float64),
        heading[again],
    )
    assert np.flatnonzero(found).tolist() == [8]


@pytest.mark.parametrize("turn_deg, stay", [(30.0, 12), (15.0, 12), (8.0, 6)])
def test_who_turns_on_the_spot_keeps_the_pictures(turn_deg: float, stay: int):
    found = frame(noisy(np.zeros((12, 2)), 1, 0.3), every_s=3).assign(heading_deg=np.arange(12) * turn_deg % 360)
    assert (~superfluous(found, KEEP_EVERY_M).any(axis=1)).sum() == stay


def test_without_a_compass_a_person_on_the_spot_is_left_alone_and_a_vehicle_that_stops_is_not():
    on_the_spot = frame(np.zeros((12, 2)), np.nan)
    assert not superfluous(on_the_spot, KEEP_EVERY_M).to_numpy().any()
    assert superfluous(frame(jam(), np.nan), KEEP_EVERY_M).standing.sum() >= 22


def test_a_photo_without_time_or_position_is_left_alone():
    found = frame(np.zeros((12, 2)))
    for column in ("captured_at", "east_m"):
        assert not superfluous(found.assign(**{column: None}).astype(found.dtypes), KEEP_EVERY_M).to_numpy().any()


def test_pauses_part_a_sequence():
    assert not superfluous(frame(np.zeros((12, 2)), every_s=60), KEEP_EVERY_M).to_numpy().any()


def test_thinning_can_be_switched_off():
    assert not superfluous(frame(straight(2 / 30, 30), every_s=3), 0.0).standing.any()


def test_the_demo_world_keeps_all_its_photos():
    images = [image for image, _, _ in world._describe()]
    enu = demo_frame().enu([i.lon for i in images], [i.lat for i in images])
    found = pd.DataFrame({"image_id": [i.id for i in images], "sequence_id": [i.sequence_id for i in images]}).assign(
        captured_at=pd.to_datetime([i.captured_at_ms for i in images], unit="ms", utc=True),
        heading_deg=[i.compass_deg for i in images], east_m=enu[:, 0], north_m=enu[:, 1],
    )  # fmt: skip
    assert not superfluous(found, KEEP_EVERY_M).to_numpy().any()
