"""Pictures as bytes, small enough to lie in the event log: every room shows its results in the metadata of its assets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

MAX_BYTES = 45_000
"""Larger pictures make the event log slow."""


def small_png(image: Image, colours: Sequence[int] = (64,), *, flat: bool = False) -> bytes:
    """An RGB picture as PNG of at most :data:`MAX_BYTES`.

    Args:
        image: the picture.
        colours: sizes of the palette to try, before the picture is made smaller by a fifth and they are tried again.
        flat: it is of few colours without shades; a palette that keeps these makes a file smaller by a third.
    """
    from PIL.Image import Dither, Quantize

    method = Quantize.FASTOCTREE if flat else Quantize.MEDIANCUT

    while True:
        for count in colours:
            sink = io.BytesIO()
            image.quantize(count, method=method, dither=Dither.NONE).save(sink, "PNG", optimize=True)
            if sink.tell() <= MAX_BYTES:
                return sink.getvalue()
        image = image.resize((max(1, image.width * 4 // 5), max(1, image.height * 4 // 5)))


def small_jpeg(image: Image, longest_px: int | None = None) -> bytes:
    """An RGB picture as JPEG of at most :data:`MAX_BYTES`, as good as fits.

    Args:
        image: the picture.
        longest_px: longer side of the result at most [px]; that of the picture by default.
    """
    from PIL.Image import Resampling

    side = min(longest_px or max(image.size), max(image.size))
    while True:
        reduced = image.copy()
        reduced.thumbnail((side, side), Resampling.LANCZOS)
        for quality in (85, 70, 55, 40):
            data = jpeg(reduced, quality)
            if len(data) <= MAX_BYTES:
                return data
        side = max(1, side * 3 // 4)


def jpeg(image: Image, quality: int) -> bytes:
    """JPEG bytes of an RGB picture."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality, optimize=True)
    return sink.getvalue()


def figure_png(figure: Figure, *, flat: bool = False) -> bytes:
    """A figure as PNG of at most :data:`MAX_BYTES`; ``flat`` as in :func:`small_png`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return small_png(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()), colours=(256, 64), flat=flat)
