"""Whole pictures are known from broken ones, whatever encoder made them."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from geo_assets.harvest.jpeg import layout, problem_of
from geo_assets_tests.harvest.worlds import jpeg

END = b"\xff\xd9"
ENCODINGS = list(itertools.product(["RGB", "L", "CMYK"], [0, 2], [False, True], [0, 1]))


def photo(mode: str = "RGB", size: tuple[int, int] = (320, 200), **options) -> bytes:
    """Blobs and some noise: coefficients of all kinds."""
    rng, (width, height) = np.random.default_rng(1), size
    small = Image.fromarray(rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8))
    blobs = np.asarray(small.resize(size, Image.Resampling.BICUBIC)) + rng.normal(0, 5, (height, width, 3))
    sink = io.BytesIO()
    Image.fromarray(np.clip(blobs, 0, 255).astype(np.uint8)).convert(mode).save(sink, "JPEG", **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"<html>", "not a JPEG"),
        (b'{"data":[]}', "not a JPEG"),
        (jpeg(size=(640, 480))[:-900], "end is missing"),
        (jpeg()[:-2], "end is missing"),
        (jpeg()[:-1], "end is missing"),
        (jpeg()[:200] + jpeg()[-2:], "does not decode"),
        (b"\xff\xd8 nothing \xff\xd9", "does not decode"),
        (b"\xff\xd8\xff\xd9", "does not decode"),
        (jpeg(), None),
        (jpeg() + b"trailer of a camera", None),
        (jpeg() + jpeg(1)[:50], None),
    ],
)
def test_broken_files_are_known(data: bytes, said: str | None) -> None:
    problem = problem_of(data)
    assert problem is None if said is None else said in (problem or "")


@pytest.mark.parametrize(("mode", "subsampling", "progressive", "restarts"), ENCODINGS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (33, 17), (320, 200)])
def test_no_whole_picture_is_refused(
    mode: str, subsampling: int, progressive: bool, restarts: int, size: tuple[int, int]
) -> None:
    data = photo(mode, size, subsampling=subsampling, progressive=progressive, restart_marker_rows=restarts)
    assert problem_of(data) is None
    found = layout(data)
    assert (found.width, found.height) == size and (found.n_scans > 1) == progressive


@pytest.mark.parametrize("progressive", [False, True])
def test_a_picture_that_was_cut_off_is_known_wherever_it_was_cut(progressive: bool) -> None:
    data = photo(progressive=progressive)
    for at in range(0, len(data) - 1, 97):
        assert problem_of(data[:at]), at


def test_an_end_marker_does_not_make_half_a_picture_whole() -> None:
    data = photo()
    for at in range(700, len(data) - 66, 97):
        assert problem_of(data[:at] + END), at


def test_scans_that_never_came_are_missed() -> None:
    data = photo(progressive=True)
    found = layout(data)
    last = data.rindex(b"\xff\xda")
    assert found.n_scans > 5 and found.has_all
    assert "last scans are missing" in (problem_of(data[:last] + END) or "")


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture() -> None:
    data, thumbnail = photo(), jpeg()
    block = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2) + b"Exif\0\0" + thumbnail
    whole = data[:2] + block + data[2:]
    assert problem_of(whole) is None
    assert "end is missing" in (problem_of(whole[: len(whole) // 2]) or "")


def test_a_page_of_a_file_that_was_not_written() -> None:
    data = photo(size=(640, 480))
    assert problem_of(data[: len(data) // 2] + bytes(len(data) - len(data) // 2)), "zeros to the end"


@pytest.mark.parametrize(("longest_px", "is_whole"), [(None, True), (320, True), (319, False)])
def test_a_size_that_was_not_asked_for(longest_px: int | None, is_whole: bool) -> None:
    assert (problem_of(photo(), longest_px) is None) == is_whole


@pytest.mark.parametrize(("width", "height"), [(0, 200), (320, 0), (65500, 65500)])
def test_sizes_that_no_picture_has(width: int, height: int) -> None:
    data = photo()
    at = data.index(b"\xff\xc0") + 5
    assert problem_of(data[:at] + height.to_bytes(2) + width.to_bytes(2) + data[at + 4 :])


def test_damage_never_breaks_the_check() -> None:
    rng, data = np.random.default_rng(0), photo(size=(64, 48))
    for _ in range(300):
        spoilt = bytearray(data)
        for at in rng.integers(2, len(data), 3):
            spoilt[at] = rng.integers(256)
        assert isinstance(problem_of(bytes(spoilt)), str | None)
