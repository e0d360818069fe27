"""Small pictures of a box for the metadata of its assets: a map of its images, a sheet of its photos."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from geo_assets.grid import Bounds
from geo_assets.pictures import small_jpeg, small_png

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

MAP_PX = 420

_PAPER, _INK, _GREY, _ELSEWHERE = (250, 249, 245), (40, 40, 40), (196, 196, 190), (176, 176, 172)


def map_of(
    lon: npt.ArrayLike,
    lat: npt.ArrayLike,
    bounds: Bounds,
    *,
    colour_by: Sequence[str | None] = (),
    neighbours: Iterable[Bounds] = (),
) -> bytes:
    """A map of a box as PNG: its outline, its neighbours, a dot an image, a scale bar; north is up.

    Args:
        lon: longitudes of the images [n], degrees.
        lat: latitudes of the images [n], degrees.
        bounds: the box.
        colour_by: a name for each image [n]; equal names have equal colours. Without it all are alike.
        neighbours: the boxes around it, drawn as thin outlines.
    """
    from PIL import Image, ImageDraw

    width_m, height_m = bounds.size_m
    frame = bounds.padded(0.2 * max(width_m, height_m))
    frame_w, frame_h = frame.size_m
    scale = (MAP_PX - 1) / max(frame_w, frame_h)  # pixels a metre
    size = (max(120, round(frame_w * scale) + 1), max(120, round(frame_h * scale) + 1))
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)

    def pixel(x: float, y: float) -> tuple[float, float]:
        return (
            (x - frame.west) / (frame.east - frame.west) * (size[0] - 1),
            (frame.north - y) / (frame.north - frame.south) * (size[1] - 1),
        )

    for other in neighbours:
        draw.rectangle([pixel(other.west, other.north), pixel(other.east, other.south)], outline=_GREY)
    names = list(colour_by)
    xs, ys = np.asarray(lon, float).ravel(), np.asarray(lat, float).ravel()
    radius = 3.0 if len(xs) < 500 else 1.5
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if math.isfinite(x) and math.isfinite(y):
            u, v = pixel(x, y)
            colour = _colour(names[i] if i < len(names) else "") if bounds.contains(x, y) else _ELSEWHERE
            draw.ellipse([u - radius, v - radius, u + radius, v + radius], fill=colour)
    draw.rectangle([pixel(bounds.west, bounds.north), pixel(bounds.east, bounds.south)], outline=_INK, width=2)
    _scale_bar(draw, scale, size)
    _north(draw, size)
    return small_png(image, colours=(48, 16, 6))  # crowded maps compress badly; fewer colours keep them sharp


def contact_sheet(jpegs: Iterable[bytes], columns: int = 4, cell_px: tuple[int, int] = (160, 120)) -> bytes:
    """Photos side by side as one JPEG small enough for the event log; a photo that does not decode is left out.

    Args:
        jpegs: the files.
        columns: photos in a row.
        cell_px: width and height of a photo's place [px].
    """
    from PIL import Image, ImageOps

    photos = []
    for data in jpegs:
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.draft("RGB", cell_px)
                upright = ImageOps.exif_transpose(image).convert("RGB")
                photos.append(ImageOps.contain(upright, cell_px))
        except (OSError, ValueError, SyntaxError):
            continue
    rows = max(1, math.ceil(len(photos) / columns))
    used = min(columns, max(1, len(photos)))
    sheet = Image.new("RGB", (used * (cell_px[0] + 4) + 4, rows * (cell_px[1] + 4) + 4), _PAPER)
    for i, photo in enumerate(photos):
        row, column = divmod(i, columns)
        x = 4 + column * (cell_px[0] + 4) + (cell_px[0] - photo.width) // 2
        y = 4 + row * (cell_px[1] + 4) + (cell_px[1] - photo.height) // 2
        sheet.paste(photo, (x, y))
    return small_jpeg(sheet)


def evenly(items: Sequence[str], most: int = 12) -> list[str]:
    """At most ``most`` items, spread evenly over a sequence."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _colour(name: str | None) -> tuple[int, int, int]:
    """A colour that follows from the name alone, so that a sequence looks the same on every map."""
    if not name:
        return (30, 110, 200)
    hue = sum(ord(c) * (i * 37 + 11) for i, c in enumerate(name)) * 0.618034 % 1.0
    red, green, blue = colorsys.hsv_to_rgb(round(hue * 12) / 12, 0.75, 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)


def _scale_bar(draw: ImageDraw, scale: float, size: tuple[int, int]) -> None:
    target_m = size[0] / scale / 4
    step = 10 ** math.floor(math.log10(max(target_m, 1e-3)))
    metres = max(k * step for k in (1, 2, 5) if k * step <= target_m)
    x, y = 8, size[1] - 10
    draw.line([(x, y), (x + metres * scale, y)], fill=_INK, width=3)
    draw.text((x, y - 14), f"{metres:g} m" if metres < 1000 else f"{metres / 1000:g} km", fill=_INK)


def _north(draw: ImageDraw, size: tuple[int, int]) -> None:
    x, y = size[0] - 14, 8
    draw.polygon([(x, y), (x - 5, y + 14), (x + 5, y + 14)], fill=_INK)
    draw.text((x - 3, y + 15), "N", fill=_INK)
