"""Small pictures of a box or a city for the metadata of its assets: maps of its images, a sheet of its photos."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.grid import Bounds
from geo_assets.pictures import small_jpeg, small_png

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

MAP_PX, CITY_PX = 420, 560
HEAT_CELL_PX = 4
"""Side of a cell of the heat map; a dot smaller than this is hard to see."""

_PAPER, _INK, _GREY, _ELSEWHERE = (250, 249, 245), (40, 40, 40), (196, 196, 190), (176, 176, 172)
_RED = (200, 30, 30)
_HEAT = ((255, 237, 160), (254, 178, 76), (240, 59, 32), (128, 0, 38), (60, 0, 30))  # light is few, dark is many
_DEPTH = ((222, 235, 247), (107, 174, 214), (33, 113, 181), (8, 48, 107))


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
    paper = _Paper(bounds, MAP_PX)
    for other in neighbours:
        paper.outline(other, _GREY)
    names = list(colour_by)
    xs, ys = np.asarray(lon, float).ravel(), np.asarray(lat, float).ravel()
    radius = 3.0 if len(xs) < 500 else 1.5
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        if math.isfinite(x) and math.isfinite(y):
            u, v = paper.pixel(x, y)
            colour = _colour(names[i] if i < len(names) else "") if bounds.contains(x, y) else _ELSEWHERE
            paper.draw.ellipse([u - radius, v - radius, u + radius, v + radius], fill=colour)
    paper.outline(bounds, _INK, 2)
    return paper.png((48, 16, 6))  # crowded maps compress badly; fewer colours keep them sharp


def heat_of(lon: npt.ArrayLike, lat: npt.ArrayLike, bounds: Bounds) -> bytes:
    """A heat map of the images of a box or a city as PNG: their density on a logarithmic scale; north is up.

    Args:
        lon: longitudes of the images [n], degrees.
        lat: latitudes of the images [n], degrees.
        bounds: the box, or the whole city; images outside are not shown.
    """
    from PIL import Image

    xs, ys = np.asarray(lon, float).ravel(), np.asarray(lat, float).ravel()
    here = np.isfinite(xs) & np.isfinite(ys) & np.asarray(bounds.contains(xs, ys), bool)
    paper = _Paper(bounds, MAP_PX)
    (left, top), (right, bottom) = paper.pixel(bounds.west, bounds.north), paper.pixel(bounds.east, bounds.south)
    cells = max(1, round((right - left) / HEAT_CELL_PX)), max(1, round((bottom - top) / HEAT_CELL_PX))
    edges = [[bounds.south, bounds.north], [bounds.west, bounds.east]]
    counts = np.histogram2d(ys[here], xs[here], bins=(cells[1], cells[0]), range=edges)[0][::-1]
    most = float(counts.max(initial=0.0))
    shade = np.log1p(counts) / np.log1p(max(most, 1.0))
    pixels = np.where(counts[..., None] > 0, _heat(shade), _PAPER).astype(np.uint8)
    size = max(1, round(right - left)), max(1, round(bottom - top))
    paper.image.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), (round(left), round(top)))
    paper.outline(bounds, _INK, 2)
    said = f"{int(here.sum()):,} images, at most {int(most):,} in {paper.metres(HEAT_CELL_PX):.0f} m"
    paper.draw.text((8, 6), said, fill=_INK)
    return paper.png((64, 32, 16))


def city_map(rows: pd.DataFrame) -> bytes:
    """A map of a city's boxes as PNG: the more images the darker, incomplete boxes crossed out in red; north is up.

    Args:
        rows: a row a box: ``west``, ``south``, ``east``, ``north`` [deg], ``n_images`` (null where it was not
            harvested) and ``complete`` (null where there is no certificate).
    """
    if rows.empty:
        return small_png(_Paper(Bounds(0.0, 0.0, 1.0, 1.0), MAP_PX).image)
    edges = rows[["west", "south", "east", "north"]].to_numpy(float)
    west, south, east, north = (*edges[:, :2].min(axis=0).tolist(), *edges[:, 2:].max(axis=0).tolist())
    bounds = Bounds(west, south, east, north)
    paper = _Paper(bounds, CITY_PX)
    counts = rows["n_images"].astype(float).to_numpy(float)
    complete = rows["complete"].astype("boolean")
    unknown, bad = complete.isna().to_numpy(bool), ~complete.fillna(True).to_numpy(bool)
    most = np.nanmax(counts, initial=1.0)
    for corners, n, broken in zip(edges, counts, bad, strict=True):
        box = Bounds(*(float(v) for v in corners))
        known = math.isfinite(n)
        shade = _heat(math.sqrt(n / most), _DEPTH) if known and n > 0 else np.array(_PAPER if known else _GREY)
        red, green, blue = (int(v) for v in shade)
        paper.outline(box, _RED if broken else _ELSEWHERE, fill=(red, green, blue))
        if broken:
            (left, top), (right, bottom) = paper.pixel(box.west, box.north), paper.pixel(box.east, box.south)
            paper.draw.line([(left, top), (right, bottom)], fill=_RED, width=2)
            paper.draw.line([(left, bottom), (right, top)], fill=_RED, width=2)
    n_bad, n_unknown = int(bad.sum()), int(unknown.sum())
    said = f"{np.nansum(counts):,.0f} images, {len(rows) - n_bad - n_unknown} of {len(rows)} boxes complete"
    paper.draw.text((8, 6), said + (f", {n_bad} incomplete" if n_bad else ""), fill=_INK)
    return paper.png((64, 32, 16))


class _Paper:
    """A sheet around some bounds: where a position lies on it, with a scale bar and an arrow to the north."""

    def __init__(self, bounds: Bounds, longest_px: int) -> None:
        from PIL import Image, ImageDraw

        self.frame = bounds.padded(0.2 * max(bounds.size_m))
        width_m, height_m = self.frame.size_m
        self.scale = (longest_px - 1) / max(width_m, height_m)  # pixels a metre
        self.size = (max(120, round(width_m * self.scale) + 1), max(120, round(height_m * self.scale) + 1))
        self.image = Image.new("RGB", self.size, _PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def pixel(self, lon: float, lat: float) -> tuple[float, float]:
        """Column and row of a position in degrees."""
        return (
            (lon - self.frame.west) / (self.frame.east - self.frame.west) * (self.size[0] - 1),
            (self.frame.north - lat) / (self.frame.north - self.frame.south) * (self.size[1] - 1),
        )

    def metres(self, pixels: float) -> float:
        """Length of some pixels on the ground."""
        return pixels / self.scale

    def outline(
        self, box: Bounds, colour: tuple[int, int, int], width: int = 1, fill: tuple[int, int, int] | None = None
    ) -> None:
        corners = [self.pixel(box.west, box.north), self.pixel(box.east, box.south)]
        self.draw.rectangle(corners, outline=colour, width=width, fill=fill)

    def png(self, colours: Sequence[int]) -> bytes:
        """The finished sheet, small enough for the event log."""
        _scale_bar(self.draw, self.scale, self.size)
        _north(self.draw, self.size)
        return small_png(self.image, colours=colours)


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


def _heat(shade: npt.ArrayLike, ramp: Sequence[tuple[int, int, int]] = _HEAT) -> npt.NDArray[np.float64]:
    """Colours [..., 3] of values from 0 to 1 [...]."""
    stops = np.linspace(0, 1, len(ramp))
    return np.stack(
        [np.interp(np.asarray(shade, float), stops, [colour[k] for colour in ramp]) for k in range(3)], axis=-1
    )


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
