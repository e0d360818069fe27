"""Procedural textures of the demo street: facades, cars, advertising columns and the ground, drawn from a seed.

Every texture is uint8 [rows, columns, 3], row 0 at the top, ``TEXEL_M`` metres a texel. Detail is kept above two
texels, so that a supersampled ray caster does not alias it, and every facade differs, so that features are distinct.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

TEXEL_M = 0.025
LANE_EDGE_M = 4.7
"""Half width of the carriageway; the pavement begins here."""

Texture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Colour = tuple[int, int, int]

_WALLS = np.array(
    [
        (176, 92, 70), (206, 190, 160), (222, 208, 120), (150, 160, 150), (196, 150, 120), (160, 176, 196),
        (214, 214, 206), (140, 100, 84), (186, 200, 160), (210, 160, 140), (128, 128, 136), (230, 190, 150),
    ],
    np.float32,
)  # fmt: skip


def metres(length_m: float) -> int:
    """Texels of a length, at least one."""
    return max(1, round(length_m / TEXEL_M))


def noise(rng: np.random.Generator, rows: int, columns: int, cell: int) -> Floats:
    """Smooth noise [rows, columns] of unit standard deviation whose blobs are about ``cell`` texels wide."""
    grid = rng.standard_normal((rows // cell + 4, columns // cell + 4), dtype=np.float32)
    large = Image.fromarray(grid).resize((grid.shape[1] * cell, grid.shape[0] * cell), Image.Resampling.BICUBIC)
    patch = np.asarray(large, np.float32)[cell : cell + rows, cell : cell + columns]
    return patch / np.float32(max(float(patch.std()), 1e-6))


def fractal(rng: np.random.Generator, rows: int, columns: int, octaves: dict[int, float]) -> Floats:
    """Sum of noises [rows, columns]; ``octaves`` maps blob size in texels to standard deviation."""
    total = np.zeros((rows, columns), np.float32)
    for cell, weight in octaves.items():
        total += np.float32(weight) * noise(rng, rows, columns, cell)
    return total


def facade(rng: np.random.Generator, width_m: float, height_m: float) -> Texture:
    """A house front: wall, cornices, windows with content of their own, shops with signs, posters."""
    rows, columns = metres(height_m), metres(width_m)
    wall = _WALLS[rng.integers(len(_WALLS))] * rng.uniform(0.8, 1.08)
    relief = fractal(rng, rows, columns, {8: 0.025, 24: 0.035, 80: 0.05})
    relief += _masonry(rng, rows, columns)
    canvas = Image.new("RGB", (columns, rows), _colour(wall))
    draw = ImageDraw.Draw(canvas)
    shop_m = min(3.4, 0.45 * height_m)
    trim = _colour(np.clip(wall * rng.choice([0.62, 1.2]), 0, 245))
    _storeys(rng, canvas, height_m - shop_m, trim)
    _shops(rng, canvas, rows - metres(shop_m), trim)
    for _ in range(max(2, round(width_m / 3))):
        _poster(rng, canvas, rng.uniform(0.5, 1.1), rng.uniform(0.6, 1.4), low_m=0.6, high_m=min(3.0, height_m - 1))
    draw.rectangle((0, 0, columns, metres(0.35)), fill=trim)
    shade = np.ones((rows, 1), np.float32)
    shade[-metres(0.8) :, 0] = np.linspace(1, 0.8, metres(0.8), dtype=np.float32)
    front = np.asarray(canvas, np.float32)
    # Daylight without sun: what stands on a wall differs less from it than its paint does in the pot.
    front = wall + np.float32(0.5) * (front - wall)
    return _bytes(front * ((1 + relief) * shade)[..., None])


def column(rng: np.random.Generator, width_m: float, height_m: float) -> Texture:
    """An advertising column or kiosk wall, covered with posters."""
    canvas = Image.new("RGB", (metres(width_m), metres(height_m)), _bright(rng))
    for _ in range(max(3, round(2.5 * width_m * height_m))):
        _poster(rng, canvas, rng.uniform(0.4, 0.9), rng.uniform(0.5, 1.0), low_m=0.1, high_m=height_m)
    relief = fractal(rng, canvas.height, canvas.width, {3: 0.02, 12: 0.03})
    return _bytes(np.asarray(canvas, np.float32) * (1 + relief[..., None]))


def car_side(rng: np.random.Generator, width_m: float, height_m: float, paint: Colour, cabin: bool) -> Texture:
    """A side of a car's body (wheels, doors, stickers) or of its cabin (window glass)."""
    rows, columns = metres(height_m), metres(width_m)
    canvas = Image.new("RGB", (columns, rows), paint)
    draw = ImageDraw.Draw(canvas)
    if cabin:
        edge, middle = max(3, columns // 20), columns // 2
        for left, right in ((edge, middle - 2), (middle + 2, columns - edge)):
            glass = _pane(rng, rows - 6, right - left)
            canvas.paste(glass, (left, 3))
    else:
        wheel = metres(0.3)
        for x in (columns * 0.2, columns * 0.8) if columns > metres(2.5) else ():
            draw.ellipse((x - wheel, rows - 1.4 * wheel, x + wheel, rows + 0.6 * wheel), fill=(24, 24, 26))
            draw.ellipse(
                (x - wheel / 2, rows - 0.9 * wheel, x + wheel / 2, rows + 0.1 * wheel), fill=_grey(rng, 120, 200)
            )
        for x in (0.36, 0.52, 0.68):
            draw.line((columns * x, 2, columns * x, rows - 4), fill=tuple(int(c * 0.55) for c in paint), width=2)
        _poster(rng, canvas, rng.uniform(0.3, 0.6), 0.25, low_m=0.15, high_m=height_m)
        draw.rectangle((1, 3, metres(0.2), metres(0.16)), fill=_bright(rng))
        draw.rectangle((columns - metres(0.2), 3, columns - 2, metres(0.16)), fill=(190, 30, 30))
    relief = fractal(rng, rows, columns, {4: 0.02, 16: 0.04, 50: 0.05})
    return _bytes(np.asarray(canvas, np.float32) * (1 + relief[..., None]))


def plain(rng: np.random.Generator, width_m: float, height_m: float, colour: Sequence[float]) -> Texture:
    """A surface of one colour with stains: roofs, posts, car tops."""
    rows, columns = metres(height_m), metres(width_m)
    relief = fractal(rng, rows, columns, {6: 0.03, 20: 0.04})
    return _bytes(np.asarray(colour, np.float32) * (1 + relief[..., None]))


def ground(rng: np.random.Generator, length_m: float, width_m: float, footprints: npt.NDArray[np.float64]) -> Texture:
    """A strip of street around the origin: asphalt, patches, marks, pavements, and shadows at what stands on it.

    Args:
        rng: source of all that is random.
        length_m: extent along the street, the columns; the crossing is in the middle.
        width_m: extent across it, the rows; row 0 has the largest offset to the left.
        footprints: rectangles (along0, along1, across0, across1) of what stands on the ground [n, 4] in metres.
    """
    rows, columns = metres(width_m), metres(length_m)
    along = (np.arange(columns, dtype=np.float32) + 0.5) * TEXEL_M - length_m / 2
    across = width_m / 2 - (np.arange(rows, dtype=np.float32) + 0.5) * TEXEL_M
    x, y = np.abs(along)[None, :], np.abs(across)[:, None]
    road = (x < LANE_EDGE_M) | (y < LANE_EDGE_M)
    slab = _slabs(rng, along, across)
    shade = np.where(road, 0.34 * np.ones_like(slab), slab)
    shade *= 1 + fractal(rng, rows, columns, {8: 0.035, 28: 0.06, 110: 0.08})
    canvas = Image.fromarray(shade)
    draw = ImageDraw.Draw(canvas)
    _patches(rng, canvas, draw, shade)
    shade = np.array(canvas)
    kerb = (np.minimum(x, y) >= LANE_EDGE_M) & (np.minimum(x, y) < LANE_EDGE_M + 0.16)
    shade[kerb] = 0.6 + 0.04 * noise(rng, rows, columns, 9)[kerb]
    paint = _marks(x, y, along, across) & (noise(rng, rows, columns, 7) > -1.3)
    shade[paint] = 0.62 + 0.04 * noise(rng, rows, columns, 12)[paint]
    tint = np.where(road[..., None], np.array((0.97, 0.99, 1.04), np.float32), np.array((1.05, 1.0, 0.92), np.float32))
    return _bytes(255 * shade[..., None] * tint * _shadow(length_m, width_m, footprints, rows, columns)[..., None])


def _slabs(rng: np.random.Generator, along: Floats, across: Floats) -> Floats:
    """Brightness of a pavement of 0.6 m slabs, each with its own grey and a dark joint."""
    i, j = np.floor(across / 0.6).astype(int), np.floor(along / 0.6).astype(int)
    greys = rng.normal(0.56, 0.05, (int(np.ptp(i)) + 1, int(np.ptp(j)) + 1)).astype(np.float32)
    slab = greys[(i - i.min())[:, None], (j - j.min())[None, :]]
    joint = ((across / 0.6) % 1 < 0.07)[:, None] | ((along / 0.6) % 1 < 0.07)[None, :]
    return np.where(joint, np.float32(0.42), slab)


def _patches(rng: np.random.Generator, canvas: Image.Image, draw: ImageDraw.ImageDraw, shade: Floats) -> None:
    """Repaired asphalt, tar lines, manhole covers and stains."""
    rows, columns = shade.shape
    area_m2 = rows * columns * TEXEL_M**2
    for _ in range(int(area_m2 / 14)):
        x, y = rng.integers(columns), rng.integers(rows)
        w, h = rng.integers(metres(0.4), metres(2.2)), rng.integers(metres(0.3), metres(1.4))
        patch = canvas.crop((x, y, x + w, y + h)).point(functools.partial(_scaled, float(rng.uniform(0.72, 1.32))))
        canvas.paste(patch, (int(x), int(y)))
    for _ in range(int(area_m2 / 30)):
        x, y, r = rng.integers(columns), rng.integers(rows), metres(rng.uniform(0.1, 0.35))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=float(rng.uniform(0.16, 0.3)))
        draw.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=float(rng.uniform(0.25, 0.5)))
    for _ in range(int(area_m2 / 40)):
        x, y = rng.integers(columns), rng.integers(rows)
        points = [(x, y)]
        for _ in range(5):
            x, y = x + rng.integers(-40, 60), y + rng.integers(-30, 31)
            points.append((x, y))
        draw.line(points, fill=float(rng.uniform(0.15, 0.24)), width=3)


def _scaled(factor: float, value: float) -> float:
    return value * factor


def _marks(x: Floats, y: Floats, along: Floats, across: Floats) -> npt.NDArray[np.bool_]:
    """Where road paint lies: centre dashes, edge lines, zebra crossings and stop lines of both streets."""
    dash_a, dash_b = (along % 5.0 < 2.6)[None, :], (across % 5.0 < 2.6)[:, None]
    marks = ((y < 0.09) & (x > 10) & dash_a) | ((x < 0.09) & (y > 10) & dash_b)
    marks |= ((np.abs(y - 2.9) < 0.06) & (x > 9.5)) | ((np.abs(x - 2.9) < 0.06) & (y > 9.5))
    stripe_a, stripe_b = (across % 1.0 < 0.5)[:, None], (along % 1.0 < 0.5)[None, :]
    marks |= (np.abs(x - 7.0) < 1.2) & (y < 4.2) & stripe_a
    marks |= (np.abs(y - 7.0) < 1.2) & (x < 4.2) & stripe_b
    return marks | ((np.abs(x - 9.0) < 0.2) & (y < 2.9)) | ((np.abs(y - 9.0) < 0.2) & (x < 2.9))


def _shadow(length_m: float, width_m: float, footprints: npt.NDArray[np.float64], rows: int, columns: int) -> Floats:
    """Soft darkening [rows, columns] around what stands on the ground."""
    coarse_m = 0.1
    mask = Image.new("L", (round(length_m / coarse_m), round(width_m / coarse_m)), 255)
    draw = ImageDraw.Draw(mask)
    for along0, along1, across0, across1 in footprints:
        corners = (along0 + length_m / 2, width_m / 2 - across1, along1 + length_m / 2, width_m / 2 - across0)
        draw.rectangle([c / coarse_m for c in corners], fill=110)
    soft = mask.filter(ImageFilter.GaussianBlur(4)).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(soft, np.float32) / np.float32(255)


def _masonry(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """Relative brightness of stones in running bond, of large panels, or of bare plaster."""
    kind = rng.integers(3)
    if kind == 2:
        return np.clip(0.12 * noise(rng, rows, columns, 60), -0.2, 0.05).astype(np.float32)
    height, width = ((9, 22), (44, 60))[kind]
    i = np.arange(rows) // height
    shift = (i % 2) * (width // 2)
    j = (np.arange(columns)[None, :] + shift[:, None]) // width
    stones = rng.normal(0, (0.075, 0.06)[kind], (rows // height + 1, columns // width + 2)).astype(np.float32)
    relief = stones[i[:, None], j]
    joint = (np.arange(rows) % height < 2)[:, None] | ((np.arange(columns)[None, :] + shift[:, None]) % width < 2)
    return np.where(joint, np.float32(-0.16), relief).astype(np.float32)


def _storeys(rng: np.random.Generator, canvas: Image.Image, upper_m: float, trim: Colour) -> None:
    """Rows of windows in the upper storeys; ``upper_m`` is their height together."""
    storeys = max(1, round((upper_m - 0.5) / 3.1))
    n = max(2, round(canvas.width * TEXEL_M / rng.uniform(2.0, 2.8)))
    step_x, step_y = canvas.width / n, metres(upper_m - 0.5) / storeys
    width, height = step_x * rng.uniform(0.45, 0.62), step_y * rng.uniform(0.5, 0.66)
    draw = ImageDraw.Draw(canvas)
    for storey in range(storeys):
        top = metres(0.5) + storey * step_y + (step_y - height) / 2
        draw.rectangle((0, top + height + metres(0.3), canvas.width, top + height + metres(0.42)), fill=trim)
        for k in range(n):
            if rng.random() < 0.08:
                _poster(rng, canvas, 0.9, 1.2, low_m=1e9, at=(k * step_x + 4, top))
                continue
            wide = width * rng.uniform(0.9, 1.08)
            _window(rng, canvas, k * step_x + (step_x - wide) / 2, top, wide, height, trim)


def _window(
    rng: np.random.Generator, canvas: Image.Image, left: float, top: float, width: float, height: float, trim: Colour
) -> None:
    draw = ImageDraw.Draw(canvas)
    frame = _grey(rng, 200, 245) if rng.random() < 0.6 else _dark(rng)
    draw.rectangle((left - 5, top - 5, left + width + 5, top + height + 5), fill=trim)
    draw.rectangle((left - 2, top - 2, left + width + 2, top + height + 2), fill=frame)
    canvas.paste(_pane(rng, int(height), int(width)), (int(left), int(top)))
    middle = left + width * rng.choice([0.5, 0.35, 0.65])
    draw.line((middle, top, middle, top + height), fill=frame, width=3)
    if rng.random() < 0.5:
        draw.line((left, top + height * 0.3, left + width, top + height * 0.3), fill=frame, width=3)
    draw.rectangle((left - 8, top + height + 3, left + width + 8, top + height + 7), fill=_grey(rng, 150, 225))
    if rng.random() < 0.35:  # a flower box
        for x in np.arange(left, left + width, 5):
            radius = rng.uniform(2, 5)
            spot = (x - radius, top + height - radius - 2, x + radius, top + height + radius - 2)
            draw.ellipse(
                spot, fill=(int(rng.integers(40, 220)), int(rng.integers(60, 150)), int(rng.integers(40, 120)))
            )


def _pane(rng: np.random.Generator, rows: int, columns: int) -> Image.Image:
    """Window glass: a gradient, and behind it curtains, blinds and things."""
    rows, columns = max(rows, 4), max(columns, 4)
    sky = np.array([0.86, 0.97, 1.08]) * (1 + rng.normal(0, 0.05, 3))
    top, bottom = rng.uniform(70, 135) * sky, rng.uniform(25, 75) * sky
    ramp = np.linspace(0, 1, rows)[:, None, None] * (bottom - top) + top
    glass = ramp * (1 + 0.12 * noise(rng, rows, columns, 12)[..., None])
    canvas = Image.fromarray(_bytes(glass))
    draw = ImageDraw.Draw(canvas)
    kind = rng.random()
    if kind < 0.3:
        wide = columns * rng.uniform(0.15, 0.4)
        cloth = _bright(rng)
        draw.rectangle((0, 0, wide, rows), fill=cloth)
        draw.rectangle((columns - wide * rng.uniform(0.5, 1.1), 0, columns, rows), fill=cloth)
    elif kind < 0.5:
        for y in range(0, int(rows * rng.uniform(0.3, 0.8)), 8):
            draw.rectangle((0, y, columns, y + 4), fill=_grey(rng, 150, 215))
    _shapes(rng, draw, columns, rows, int(rng.integers(2, 5)))
    return canvas


def _shops(rng: np.random.Generator, canvas: Image.Image, top: int, trim: Colour) -> None:
    """The ground floor: sign band, shop windows and doors."""
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, top, canvas.width, top + metres(0.12)), fill=trim)
    x, low = metres(0.3), canvas.height
    while x < canvas.width - metres(0.9):
        wide = min(metres(rng.uniform(1.2, 3.2)), canvas.width - x - metres(0.2))
        if wide < metres(0.6):
            break
        sign = _bright(rng) if rng.random() < 0.6 else _dark(rng)
        draw.rectangle((x, top + metres(0.25), x + wide, top + metres(0.75)), fill=sign)
        _glyphs(rng, draw, x + 3, top + metres(0.33), wide - 6, metres(0.32))
        if wide < metres(1.7):
            draw.rectangle((x, top + metres(0.95), x + wide, low), fill=_dark(rng))
            canvas.paste(_pane(rng, metres(0.9), max(6, wide - metres(0.5))), (x + metres(0.25), top + metres(1.15)))
            draw.ellipse((x + 4, low - metres(1.0), x + 9, low - metres(1.0) + 5), fill=(220, 200, 120))
        else:
            draw.rectangle((x - 3, top + metres(0.95) - 3, x + wide + 3, low - metres(0.4)), fill=_grey(rng, 60, 230))
            canvas.paste(_pane(rng, low - metres(0.5) - top - metres(0.95), wide), (x, top + metres(0.95)))
            for _ in range(int(rng.integers(1, 4))):
                size = metres(rng.uniform(0.25, 0.6))
                left, high = x + int(rng.integers(0, max(1, wide - size))), top + metres(rng.uniform(1.0, 1.9))
                _picture(rng, canvas, left, high, size, int(size * rng.uniform(0.7, 1.4)))
        x += wide + metres(rng.uniform(0.3, 0.8))


def _poster(
    rng: np.random.Generator, canvas: Image.Image, width_m: float, height_m: float, *, low_m: float,
    high_m: float = 0.0, at: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """A poster at ``at`` (left, top), or anywhere with its top between the two heights above the foot."""
    width, height = min(metres(width_m), canvas.width - 2), min(metres(height_m), canvas.height - 2)
    if at is None:
        top = canvas.height - metres(rng.uniform(min(low_m + height_m, high_m), high_m))
        at = (int(rng.integers(0, max(1, canvas.width - width))), max(0, min(top, canvas.height - height)))
    _picture(rng, canvas, int(at[0]), int(at[1]), width, height)


def _picture(rng: np.random.Generator, canvas: Image.Image, left: float, top: float, width: int, height: int) -> None:
    sheet = Image.new("RGB", (max(6, width), max(6, height)), _bright(rng))
    draw = ImageDraw.Draw(sheet)
    _shapes(rng, draw, sheet.width, sheet.height, int(rng.integers(2, 6)))
    _glyphs(rng, draw, 2, int(sheet.height * rng.uniform(0.05, 0.75)), sheet.width - 4, max(5, sheet.height // 6))
    draw.rectangle((0, 0, sheet.width - 1, sheet.height - 1), outline=_dark(rng), width=1)
    canvas.paste(sheet, (int(left), int(top)))


def _shapes(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int, n: int) -> None:
    for _ in range(n):
        colour = _bright(rng) if rng.random() < 0.5 else _dark(rng)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        a, b = rng.uniform(0.08, 0.35) * width, rng.uniform(0.08, 0.35) * height
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse((x - a, y - b, x + a, y + b), fill=colour)
        elif kind == 1:
            draw.rectangle((x - a, y - b, x + a, y + b), fill=colour)
        else:
            turn = rng.uniform(0, 2 * np.pi) + np.array([0, 2.1, 4.2])
            draw.polygon([(x + 1.3 * a * np.cos(t), y + 1.3 * b * np.sin(t)) for t in turn], fill=colour)


def _glyphs(rng: np.random.Generator, draw: ImageDraw.ImageDraw, left: int, top: int, width: int, height: int) -> None:
    """A line of made-up letters: strokes on a three-by-five raster, at least two texels thick."""
    stroke = max(2, height // 5)
    ink = _dark(rng) if rng.random() < 0.5 else _bright(rng)
    x = left
    while x + 3 * stroke <= left + width:
        for column in range(3):
            for row in range(5):
                if rng.random() < 0.55:
                    u, v = x + column * stroke, top + row * stroke
                    draw.rectangle((u, v, u + stroke - 1, v + stroke - 1), fill=ink)
        x += 4 * stroke


def _bytes(values: npt.NDArray[np.floating]) -> Texture:
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _colour(values: npt.NDArray[np.floating]) -> Colour:
    r, g, b = np.clip(values, 0, 255).astype(int)
    return int(r), int(g), int(b)


def _bright(rng: np.random.Generator) -> Colour:
    return _colour(_muted(rng, rng.uniform(110, 235)))


def _dark(rng: np.random.Generator) -> Colour:
    return _colour(_muted(rng, rng.uniform(28, 90)))


def _muted(rng: np.random.Generator, level: float) -> npt.NDArray[np.float64]:
    """A colour of a brightness, most of them as pale as painted things are, a few strong."""
    strength = 0.45 if rng.random() < 0.2 else 0.16
    return level * (1 + strength * rng.uniform(-1, 1, 3))


def car_paint(rng: np.random.Generator) -> Colour:
    """Paint of a car: mostly greys, white and black, some with colour."""
    return _colour(_muted(rng, rng.choice([45.0, 80.0, 150.0, 205.0])))


def _grey(rng: np.random.Generator, low: int, high: int) -> Colour:
    return _colour(np.full(3, rng.uniform(low, high)))
