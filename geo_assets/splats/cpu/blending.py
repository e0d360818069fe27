"""Ellipses blended front to back on tiles of 16 x 16 pixels, and the gradient back.

Gaussians are the outer loop and the sixteen pixels of a row the innermost one, so that LLVM makes one vector of it.
What a tile remembers lies in one array whose planes are a known distance apart: of separate arrays LLVM would first
have to prove that none overlaps another. A (tile, Gaussian) pair has a row of its own for its gradient, and the threads
share tiles and Gaussians by rules that fix every sum's order: no result depends on their number or timing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from geo_assets.splats.cpu.compiled import f32, kernel, parallel_kernel, prange
from geo_assets.splats.cpu.projection import (
    BLUE,
    CENTRE,
    CONIC,
    GREEN,
    LEAST_ALPHA,
    LEVEL,
    LOG_OPACITY,
    MOST_ALPHA,
    REACH,
    RED,
    TILE_PX,
)

OPAQUE = f32(1e-4)  # a pixel that lets less through is finished
LOWEST_EXPONENT = f32(-5.6)  # exp(-5.6) < 1/255
LOOK_EVERY = 16
"""Entries after which a tile is asked whether anything is left to see."""

PLANE = TILE_PX * TILE_PX
THROUGH, LATEST = 0, PLANE
SEEN_RED, SEEN_GREEN, SEEN_BLUE = 2 * PLANE, 3 * PLANE, 4 * PLANE  # forward: colour so far; backward: its gradient
BEHIND = 5 * PLANE
SUMS = 6 * PLANE  # six sums of an entry for each column of the tile: three colours, three moments in the row
TILE_FLOATS = SUMS + 6 * TILE_PX

SLOT_FLOATS = 9
"""Sums over an entry's pixels: the gradient in red, green and blue, and with g the gradient in the exponent and d the
pixel's place relative to the centre, the sums of g, g dx, g dy, g dx dx, g dx dy and g dy dy."""


class Tiles(NamedTuple):
    """Which Gaussians each tile blends, nearest first; a pair of both is an entry."""

    starts: np.ndarray  # int64 [T + 1]: a tile's entries are members[starts[t] : starts[t + 1]]
    members: np.ndarray  # int32 [M]: the Gaussian of an entry
    spans: np.ndarray  # uint8 [M, 2]: first and last row of the tile that it reaches
    slot_starts: np.ndarray  # int64 [V + 1]: a visible Gaussian's entries are slots[slot_starts[v] : ...]
    slots: np.ndarray  # int32 [M]: the entry; of length 0 where no gradient is wanted


class Picture(NamedTuple):
    """A rendered image and what its gradient needs again."""

    colours: np.ndarray  # float32 [H, W, 3]
    transmittance: np.ndarray  # float32 [H, W]: what is left of the background
    last: np.ndarray  # int32 [H, W]: last entry of the tile that changed the pixel, -1 for none
    ends: np.ndarray  # int64 [T]: entry at which the tile was finished


@kernel
def exponential(x):
    """``exp(x)`` for x from -5.6 to 0, to 2e-6 of its value, as (exp(x / 8))^8 by a polynomial that is best on there."""
    y = x * f32(0.125)
    p = f32(0.99999994) + y * (
        f32(0.9999915) + y * (f32(0.49987075) + y * (f32(0.16593106) + y * (f32(0.03970883) + y * f32(0.0058131367))))
    )
    p = p * p
    p = p * p
    return p * p


# -- which tiles an ellipse touches -------------------------------------------------------------------------------


@kernel
def tile_columns(ellipse, width):
    """First and last tile column that the ellipse where alpha is 1/255 touches, within the image."""
    u, reach = ellipse[CENTRE], ellipse[REACH]
    first = max(math.ceil(u - reach - f32(0.5)), 0) // TILE_PX
    return first, min(math.floor(u + reach - f32(0.5)), width - 1) // TILE_PX


@kernel
def rows_within(ellipse, column, width, height):
    """First and last row of the image whose pixel centres in a tile column lie in the ellipse.

    The top and bottom of an ellipse between two verticals are those of the whole ellipse, or lie on a vertical.
    """
    u, v, reach_x, reach_y = ellipse[CENTRE], ellipse[CENTRE + 1], ellipse[REACH], ellipse[REACH + 1]
    cxx, cxy, cyy = ellipse[CONIC], ellipse[CONIC + 1], ellipse[CONIC + 2]
    left = f32(TILE_PX * column) + f32(0.5)
    right = min(left + f32(TILE_PX - 1), f32(width) - f32(0.5))
    from_x, to_x = max(left - u, -reach_x), min(right - u, reach_x)
    lowest = -cxy / cxx * reach_y  # where the ellipse reaches farthest down; farthest up is opposite
    x_low, x_high = min(max(lowest, from_x), to_x), min(max(-lowest, from_x), to_x)
    shrunk = (cxx * cyy - cxy * cxy) / cyy
    low = (-cxy * x_low + math.sqrt(max(cyy * (ellipse[LEVEL] - shrunk * x_low * x_low), f32(0)))) / cyy
    high = (-cxy * x_high - math.sqrt(max(cyy * (ellipse[LEVEL] - shrunk * x_high * x_high), f32(0)))) / cyy
    first = max(math.ceil(v + max(high, -reach_y) - f32(0.51)), 0)
    return first, min(math.floor(v + min(low, reach_y) - f32(0.49)), height - 1)


@parallel_kernel
def count_entries(order, table, width, height, counts, n_entries):
    """Count the entries of each tile and of each Gaussian.

    Args:
        order: visible Gaussians from near to far [V]; each row of ``counts`` is about an equal share of them.
        table: the ellipses.
        width: of the image [px].
        height: of the image [px].
        counts: result [shares, T].
        n_entries: result [V].
    """
    shares, columns = counts.shape[0], (width + TILE_PX - 1) // TILE_PX
    for share in prange(shares):
        counts[share] = 0
        for v in range(share * order.shape[0] // shares, (share + 1) * order.shape[0] // shares):
            ellipse, total = table[order[v]], 0
            first_column, last_column = tile_columns(ellipse, width)
            for column in range(first_column, last_column + 1):
                first, last = rows_within(ellipse, column, width, height)
                if first > last:
                    continue
                for tile_row in range(first // TILE_PX, last // TILE_PX + 1):
                    counts[share, tile_row * columns + column] += 1
                total += last // TILE_PX - first // TILE_PX + 1
            n_entries[v] = total


@kernel
def begin_entries(counts, n_entries, starts, slot_starts):
    """Where each tile's and each Gaussian's entries begin; ``counts`` become places of each share's first entries."""
    place = 0
    for tile in range(counts.shape[1]):
        starts[tile] = place
        for share in range(counts.shape[0]):
            n = counts[share, tile]
            counts[share, tile] = place
            place += n
    starts[counts.shape[1]] = place
    slot = 0
    for v in range(n_entries.shape[0]):
        slot_starts[v] = slot
        slot += n_entries[v]
    slot_starts[n_entries.shape[0]] = slot


@parallel_kernel
def fill_entries(order, table, width, height, places, members, spans, slot_starts, slots):
    """Distribute the Gaussians to the tiles that they touch, as counted; see :class:`Tiles`."""
    shares, columns = places.shape[0], (width + TILE_PX - 1) // TILE_PX
    for share in prange(shares):
        for v in range(share * order.shape[0] // shares, (share + 1) * order.shape[0] // shares):
            ellipse, slot = table[order[v]], slot_starts[v]
            first_column, last_column = tile_columns(ellipse, width)
            for column in range(first_column, last_column + 1):
                first, last = rows_within(ellipse, column, width, height)
                if first > last:
                    continue
                for tile_row in range(first // TILE_PX, last // TILE_PX + 1):
                    tile = tile_row * columns + column
                    place = places[share, tile]
                    places[share, tile] = place + 1
                    members[place] = order[v]
                    spans[place, 0] = max(first - tile_row * TILE_PX, 0)
                    spans[place, 1] = min(last - tile_row * TILE_PX, TILE_PX - 1)
                    if slots.shape[0]:
                        slots[slot] = place
                        slot += 1


# -- forward ------------------------------------------------------------------------------------------------------


@kernel
def blend_entry(ellipse, left, top, first_row, last_row, number, tile):
    """Blend one ellipse into a tile's planes: colour += transmittance * alpha * colour of the Gaussian."""
    x, y = ellipse[CENTRE] - left, ellipse[CENTRE + 1] - top
    half_cxx, cxy, half_cyy = f32(0.5) * ellipse[CONIC], ellipse[CONIC + 1], f32(0.5) * ellipse[CONIC + 2]
    log_opacity, red, green, blue = ellipse[LOG_OPACITY], ellipse[RED], ellipse[GREEN], ellipse[BLUE]
    for j in range(first_row, last_row + 1):
        dy = f32(j) - y
        constant, linear = log_opacity - half_cyy * dy * dy, -cxy * dy
        row = (j * TILE_PX) & (PLANE - 1)
        for i in range(TILE_PX):
            at = row + i
            dx = f32(i) - x
            exponent = max(constant + dx * (linear - half_cxx * dx), LOWEST_EXPONENT)
            alpha = min(exponential(exponent), MOST_ALPHA)
            before = tile[THROUGH + at]
            counts = (alpha >= LEAST_ALPHA) and (before >= OPAQUE)
            weight = alpha * before if counts else f32(0)
            tile[SEEN_RED + at] += weight * red
            tile[SEEN_GREEN + at] += weight * green
            tile[SEEN_BLUE + at] += weight * blue
            tile[THROUGH + at] = before - weight
            tile[LATEST + at] = number if counts else tile[LATEST + at]


@kernel
def wipe(tile):
    """Begin a tile: nothing seen, everything let through, no entry blended yet."""
    tile[:] = f32(0)
    tile[THROUGH : THROUGH + PLANE] = f32(1)
    tile[LATEST : LATEST + PLANE] = f32(-1)


@kernel
def is_finished(tile):
    """Whether no pixel of a tile lets anything through any more."""
    brightest = f32(0)
    for at in range(THROUGH, THROUGH + PLANE):
        brightest = max(brightest, tile[at])
    return brightest < OPAQUE


@parallel_kernel
def blend(hands, tiles, table, width, height, background, image, transmittance, last, ends):
    """Fill the last four, the arrays of a :class:`Picture`, nearest Gaussians first.

    ``hands`` are the tiles that each thread is dealt, -1 for none [threads, ...]; ``background`` is the colour behind
    everything [3].
    """
    columns = (width + TILE_PX - 1) // TILE_PX
    starts, members, spans = tiles.starts, tiles.members, tiles.spans
    for hand in prange(hands.shape[0]):
        tile = np.empty(TILE_FLOATS, np.float32)
        for t in hands[hand]:
            if t < 0:
                continue
            top, left = (t // columns) * TILE_PX, (t % columns) * TILE_PX
            wipe(tile)
            first, end = starts[t], starts[t + 1]
            for entry in range(first, starts[t + 1]):
                number = entry - first
                if number % LOOK_EVERY == LOOK_EVERY - 1 and is_finished(tile):
                    end = entry
                    break
                blend_entry(
                    table[members[entry]],
                    f32(left) + f32(0.5),
                    f32(top) + f32(0.5),
                    np.intp(spans[entry, 0]),
                    np.intp(spans[entry, 1]),
                    f32(number),
                    tile,
                )
            ends[t] = end
            for j in range(min(TILE_PX, height - top)):
                for i in range(min(TILE_PX, width - left)):
                    at = j * TILE_PX + i
                    rest = tile[THROUGH + at]
                    image[top + j, left + i, 0] = tile[SEEN_RED + at] + rest * background[0]
                    image[top + j, left + i, 1] = tile[SEEN_GREEN + at] + rest * background[1]
                    image[top + j, left + i, 2] = tile[SEEN_BLUE + at] + rest * background[2]
                    transmittance[top + j, left + i] = rest
                    last[top + j, left + i] = np.int32(tile[LATEST + at])


# -- backward -----------------------------------------------------------------------------------------------------


@kernel
def entry_backward(ellipse, left, top, first_row, last_row, number, tile, slot):
    """The sums of an entry (see :data:`SLOT_FLOATS`), and the tile's planes as they were before it."""
    x, y = ellipse[CENTRE] - left, ellipse[CENTRE + 1] - top
    half_cxx, cxy, half_cyy = f32(0.5) * ellipse[CONIC], ellipse[CONIC + 1], f32(0.5) * ellipse[CONIC + 2]
    log_opacity, red, green, blue = ellipse[LOG_OPACITY], ellipse[RED], ellipse[GREEN], ellipse[BLUE]
    for i in range(SUMS, SUMS + 6 * TILE_PX):
        tile[i] = f32(0)
    for j in range(first_row, last_row + 1):
        dy = f32(j) - y
        constant, linear = log_opacity - half_cyy * dy * dy, -cxy * dy
        row = (j * TILE_PX) & (PLANE - 1)
        for i in range(TILE_PX):
            at = row + i
            dx = f32(i) - x
            exponent = max(constant + dx * (linear - half_cxx * dx), LOWEST_EXPONENT)
            raw = exponential(exponent)
            alpha = min(raw, MOST_ALPHA)
            counts = (alpha >= LEAST_ALPHA) and (number <= tile[LATEST + at])
            alpha = alpha if counts else f32(0)
            inverse = f32(1) / (f32(1) - alpha)
            before = tile[THROUGH + at] * inverse
            tile[THROUGH + at] = before
            weight = alpha * before
            g_red, g_green, g_blue = tile[SEEN_RED + at], tile[SEEN_GREEN + at], tile[SEEN_BLUE + at]
            own = red * g_red + green * g_green + blue * g_blue
            behind = tile[BEHIND + at]
            g = raw * (own * before - behind * inverse)
            g = g if (counts and raw < MOST_ALPHA) else f32(0)
            tile[BEHIND + at] = behind + weight * own
            tile[SUMS + i] += weight * g_red
            tile[SUMS + TILE_PX + i] += weight * g_green
            tile[SUMS + 2 * TILE_PX + i] += weight * g_blue
            tile[SUMS + 3 * TILE_PX + i] += g
            tile[SUMS + 4 * TILE_PX + i] += g * dy
            tile[SUMS + 5 * TILE_PX + i] += g * dy * dy
    s_red = s_green = s_blue = s_0 = s_x = s_y = s_xx = s_xy = s_yy = f32(0)
    for i in range(TILE_PX):
        dx = f32(i) - x
        g, g_y = tile[SUMS + 3 * TILE_PX + i], tile[SUMS + 4 * TILE_PX + i]
        s_red += tile[SUMS + i]
        s_green += tile[SUMS + TILE_PX + i]
        s_blue += tile[SUMS + 2 * TILE_PX + i]
        s_0 += g
        s_x += g * dx
        s_y += g_y
        s_xx += g * dx * dx
        s_xy += g_y * dx
        s_yy += tile[SUMS + 5 * TILE_PX + i]
    slot[0], slot[1], slot[2], slot[3], slot[4] = s_red, s_green, s_blue, s_0, s_x
    slot[5], slot[6], slot[7], slot[8] = s_y, s_xx, s_xy, s_yy


@parallel_kernel
def blend_backward(hands, tiles, table, width, height, background, picture, image_gradient, slot_gradients):
    """Sums of the gradient over each entry's pixels (see :data:`SLOT_FLOATS`), from far to near.

    With C the colour behind an entry, d(image)/d(alpha) = transmittance before it * its colour - C / (1 - alpha).
    The plane ``BEHIND`` carries C times the image's gradient along; transmittance is recovered by dividing.
    """
    columns = (width + TILE_PX - 1) // TILE_PX
    starts, members, spans = tiles.starts, tiles.members, tiles.spans
    transmittance, last, ends = picture.transmittance, picture.last, picture.ends
    for hand in prange(hands.shape[0]):
        tile = np.empty(TILE_FLOATS, np.float32)
        for t in hands[hand]:
            if t < 0:
                continue
            top, left = (t // columns) * TILE_PX, (t % columns) * TILE_PX
            wipe(tile)
            for j in range(min(TILE_PX, height - top)):
                for i in range(min(TILE_PX, width - left)):
                    at = j * TILE_PX + i
                    rest = transmittance[top + j, left + i]
                    red = image_gradient[top + j, left + i, 0]
                    green = image_gradient[top + j, left + i, 1]
                    blue = image_gradient[top + j, left + i, 2]
                    tile[THROUGH + at], tile[LATEST + at] = rest, f32(last[top + j, left + i])
                    tile[SEEN_RED + at], tile[SEEN_GREEN + at], tile[SEEN_BLUE + at] = red, green, blue
                    tile[BEHIND + at] = rest * (background[0] * red + background[1] * green + background[2] * blue)
            first = starts[t]
            slot_gradients[ends[t] : starts[t + 1]] = f32(0)
            for entry in range(ends[t] - 1, first - 1, -1):
                entry_backward(
                    table[members[entry]],
                    f32(left) + f32(0.5),
                    f32(top) + f32(0.5),
                    np.intp(spans[entry, 0]),
                    np.intp(spans[entry, 1]),
                    f32(entry - first),
                    tile,
                    slot_gradients[entry],
                )
