import io

import numpy as np
import pytest
from PIL import Image

from geo_assets.grid import Bounds
from geo_assets.harvest.pictures import contact_sheet, evenly, map_of
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
