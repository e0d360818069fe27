import io

import numpy as np
import pytest
from PIL import Image

from geo_assets.pictures import MAX_BYTES, figure_png, small_jpeg, small_png


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (1200, 700)])
def test_pictures_fit_into_the_event_log(size: tuple[int, int]) -> None:
    for made in (small_png(noise(*size)), small_jpeg(noise(*size))):
        assert len(made) <= MAX_BYTES
        width, height = opened(made).size
        assert width / height == pytest.approx(size[0] / size[1], rel=0.02)


def test_what_fits_keeps_its_size() -> None:
    plain = Image.new("RGB", (900, 300), (10, 200, 30))
    assert opened(small_png(plain)).size == opened(small_jpeg(plain)).size == (900, 300)
    assert opened(small_png(plain)).convert("RGB").getpixel((5, 5)) == (10, 200, 30)
    assert opened(small_jpeg(plain, longest_px=300)).size == (300, 100)


def test_fewer_colours_go_before_fewer_pixels() -> None:
    crowd = noise(360, 300)
    assert opened(small_png(crowd, colours=(64, 4))).size == crowd.size > opened(small_png(crowd, colours=(64,))).size


def test_a_figure_is_drawn_at_its_size() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2), dpi=100)
    figure.subplots().plot([0, 1], [1, 0])
    assert opened(figure_png(figure)).size == (300, 200)
