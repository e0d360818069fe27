import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.grid import Bounds, Grid
from geo_assets.harvest.pictures import city_map, contact_sheet, evenly, heat_of, map_of
from geo_assets.pictures import MAX_BYTES

BOX = Bounds(11.5, 48.1, 11.507, 48.1045)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize("n", [0, 1, 20_000])
def test_a_map_is_small_whatever_it_shows(n: int) -> None:
    rng = np.random.default_rng(n)
    lon, lat = rng.uniform(11.498, 11.509, n), rng.uniform(48.099, 48.106, n)
    names = [None if i % 7 == 0 else f"seq{i % 40}" for i in range(n)]
    data = map_of(lon, lat, BOX, colour_by=names, neighbours=[Bounds(11.507, 48.1, 11.514, 48.1045)])
    assert data.startswith(b"\x89PNG") and len(data) <= MAX_BYTES


def test_north_is_up_and_east_is_right() -> None:
    picture = np.asarray(opened(map_of([11.5065], [48.104], BOX))).astype(int)
    blue = (picture[..., 2] > 150) & (picture[..., 0] < 80)
    rows, columns = np.nonzero(blue)
    assert rows.mean() < picture.shape[0] * 0.4 and columns.mean() > picture.shape[1] * 0.6


def test_a_sequence_keeps_its_colour_on_every_map() -> None:
    a = map_of([11.502, 11.505], [48.102, 48.102], BOX, colour_by=["x", "x"])
    b = map_of([11.502], [48.102], BOX, colour_by=["x"])
    colours = [{tuple(p) for p in np.asarray(opened(m)).reshape(-1, 3).tolist()} for m in (a, b)]
    assert colours[0] == colours[1]


def noise(size: tuple[int, int]) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(sink, "JPEG", quality=95)
    return sink.getvalue()


@pytest.mark.parametrize("n", [0, 1, 5, 12, 40])
def test_a_contact_sheet_is_small_even_of_noise(n: int) -> None:
    data = contact_sheet([noise((400, 300))] * n)
    assert len(data) <= MAX_BYTES
    opened(data).load()


def test_a_broken_photo_is_left_out() -> None:
    whole = noise((200, 150))
    assert contact_sheet([whole, b"", b"\xff\xd8broken"]) == contact_sheet([whole])


def test_a_few_evenly_chosen() -> None:
    assert evenly(list("abc")) == ["a", "b", "c"]
    assert evenly([str(i) for i in range(101)], 3) == ["0", "50", "100"]


@pytest.mark.parametrize("n", [0, 1, 50_000])
def test_a_heat_map_is_small_whatever_it_shows(n: int) -> None:
    rng = np.random.default_rng(n)
    data = heat_of(rng.uniform(11.49, 11.51, n), rng.uniform(48.09, 48.11, n), BOX)
    assert data.startswith(b"\x89PNG") and len(data) <= 40_000


def test_a_heat_map_is_darkest_where_most_images_are() -> None:
    # A thousand in the north-east, one in the south-west, and what lies outside or nowhere is not shown.
    lon = [11.5065] * 1000 + [11.5005, 11.6, np.nan]
    lat = [48.104] * 1000 + [48.1005, 48.102, 48.102]
    picture = np.asarray(opened(heat_of(lon, lat, BOX))).astype(int)
    inner = picture[70:330, 70:350]  # inside the outline
    shown = np.abs(inner - np.array([250, 249, 245])).sum(axis=2) > 60
    rows, columns = np.nonzero(shown)
    darkness = 765 - inner.sum(axis=2)
    dark = darkness[shown]
    north_east = (rows < 130) & (columns > 140)
    assert north_east.any() and (~north_east).any()
    assert dark[north_east].min() > dark[~north_east].max()


def boxes(n_images: list, complete: list) -> pd.DataFrame:
    grid = Grid(11.5, 48.1, 500.0, 1, len(n_images))
    edges = [dict(zip(["west", "south", "east", "north"], grid.bounds(b).as_list(), strict=True)) for b in grid]
    return pd.DataFrame(edges).assign(n_images=n_images, complete=complete)


def red(data: bytes) -> int:
    picture = np.asarray(opened(data)).astype(int)
    return int(((picture[..., 0] > 160) & (picture[..., 1] < 90) & (picture[..., 2] < 90)).sum())


def test_incomplete_boxes_stand_out_on_the_map_of_a_city() -> None:
    assert red(city_map(boxes([5, 900, 0], [True, True, True]))) == 0
    assert red(city_map(boxes([5, 900, None], [True, True, None]))) == 0
    assert red(city_map(boxes([5, 900, 0], [True, False, True]))) > 50


def test_more_images_are_darker() -> None:
    picture = np.asarray(opened(city_map(boxes([100, 10_000], [True, True])))).astype(int).sum(axis=2)
    row = picture[picture.shape[0] // 2]
    middle = len(row) // 2
    assert row[middle - 60] > row[middle + 60]


def test_a_map_of_a_large_or_an_empty_city_is_small() -> None:
    rng = np.random.default_rng(0)
    grid = Grid(11.5, 48.1, 500.0, 60, 80)
    edges = [dict(zip(["west", "south", "east", "north"], grid.bounds(b).as_list(), strict=True)) for b in grid]
    rows = pd.DataFrame(edges).assign(n_images=rng.integers(0, 5000, len(grid)), complete=rng.random(len(grid)) < 0.9)
    assert len(city_map(rows)) <= 45_000 and len(city_map(rows.head(0))) <= 45_000
