"""The structure of a JPEG file: its segments, its size in pixels, and whether the picture is whole."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

APP0, APP1 = 0xE0, 0xE1
_START, _SCAN, _END = 0xD8, 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD8)])
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset([0xC2, 0xC6, 0xCA, 0xCE])
_COEFFICIENTS = (1 << 64) - 1
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""A marker that ends a scan: neither a stuffed zero, nor a restart, nor a fill byte."""

MOST_PIXELS = 500_000_000
"""A picture that claims more is damaged, or meant to exhaust the memory of its readers."""

_ONES = b"\xff\x00" * 24
"""Bits that no Huffman code begins with."""


@dataclass(frozen=True)
class Segment:
    """One marker segment before the first scan: the marker's second byte, and where it begins and ends."""

    marker: int
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """Where the parts of a JPEG file lie.

    Attributes:
        segments: segments before the first scan, the start marker left out.
        width: width [px].
        height: height [px].
        n_scans: scans of the picture; a progressive one has several.
        scans_end: where the data of the last scan end.
        has_end: whether the end marker stands there.
        has_all: whether the scans bring every coefficient of every component to its last bit.
    """

    segments: tuple[Segment, ...]
    width: int
    height: int
    n_scans: int
    scans_end: int
    has_end: bool
    has_all: bool


def layout(jpeg: bytes) -> Layout:
    """The parts of a JPEG file; what follows its end marker is not looked at.

    Raises:
        ValueError: the bytes do not have the structure of a JPEG.
    """
    if jpeg[:2] != b"\xff\xd8":
        raise ValueError("it does not begin as a JPEG")
    segments: list[Segment] = []
    size, progressive, n_scans, at = (0, 0), False, 0, 2
    had: dict[int, int] = {}  # component -> bits of the coefficients that are complete
    while (start := jpeg.find(b"\xff", at)) >= 0:
        at = start + 1
        marker = jpeg[at] if at < len(jpeg) else 0xFF
        if marker in (0x00, 0xFF) or marker in _WITHOUT_LENGTH:
            continue
        if marker in (_END, _START):
            break
        length = int.from_bytes(jpeg[at + 1 : at + 3])
        end = at + 1 + length
        if length < 2 or end > len(jpeg):
            raise ValueError(f"segment {marker:02X} at byte {start} does not fit")
        body, at = jpeg[at + 3 : end], end
        if marker in _FRAMES:
            size, progressive = _frame(body), marker in _PROGRESSIVE
            had = {body[6 + 3 * i]: 0 for i in range(body[5])}
        if marker == _SCAN:
            _add_scan(had, body, progressive)
            n_scans += 1
            after = _AFTER_SCAN.search(jpeg, at)
            at = after.start() if after else len(jpeg)
        elif not n_scans:
            segments.append(Segment(marker, start, end))
    if not n_scans or not all(size):
        raise ValueError("it holds no picture")
    has_end = start >= 0 and jpeg[start + 1 : start + 2] == bytes([_END])
    scans_end = start if start >= 0 else len(jpeg)
    return Layout(tuple(segments), *size, n_scans, scans_end, has_end, all(c == _COEFFICIENTS for c in had.values()))


def _frame(body: bytes) -> tuple[int, int]:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise ValueError("its frame header is cut off")
    return int.from_bytes(body[3:5]), int.from_bytes(body[1:3])


def _add_scan(had: dict[int, int], body: bytes, progressive: bool) -> None:
    n = body[0] if body else 0
    if len(body) < 4 + 2 * n:
        raise ValueError("the header of a scan is cut off")
    first, last, bits_left = body[1 + 2 * n], body[2 + 2 * n], body[3 + 2 * n] & 15
    if not progressive:
        first, last, bits_left = 0, 63, 0  # the only values there may be; careless encoders write others
    if bits_left == 0 and first <= last <= 63:
        for component in body[1 : 1 + 2 * n : 2]:
            had[component] = had.get(component, 0) | (1 << (last + 1)) - (1 << first)


def problem_of(jpeg: bytes, longest_px: int | None = None) -> str | None:
    """Why bytes are not a whole JPEG picture, or None where they are.

    Every Huffman code is decoded, at an eighth of the size and in grey, which costs a third of a full decoding.

    Args:
        jpeg: the file.
        longest_px: most pixels that the longer side may have; None: any.
    """
    if not jpeg:
        return "it is empty"
    if not jpeg.startswith(b"\xff\xd8"):
        return "it is not a JPEG"
    try:
        found = layout(jpeg)
    except ValueError as error:
        return f"it does not decode ({error})"
    if not found.has_end:
        return "its end is missing"
    if not found.has_all:
        return "it does not decode (its last scans are missing)"
    if found.width * found.height > MOST_PIXELS or (longest_px and max(found.width, found.height) > longest_px):
        return f"its size of {found.width} x {found.height} pixels is not one that was asked for"
    return _decoding_problem(jpeg, found)


def _decoding_problem(jpeg: bytes, found: Layout) -> str | None:
    from PIL import Image
    from PIL.JpegImagePlugin import JpegImageFile

    # A decoder that meets the end marker too early fills the rest with grey and says nothing. Without the marker
    # it must find every code in the data; the ones behind them are what it may read ahead. Several scans need it.
    tail = _ONES if found.n_scans == 1 else b"\xff\xd9"
    try:
        with JpegImageFile(io.BytesIO(jpeg[: found.scans_end] + tail)) as image:
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, Image.DecompressionBombError) as error:
        return f"it does not decode ({error})"
    return None
