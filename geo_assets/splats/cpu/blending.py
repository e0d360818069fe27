"""Ellipses blended front to back on tiles of 16 x 16 pixels, and the gradient back.

Gaussians are the outer loop and the sixteen pixels of a row the innermost one, over arrays of sixteen float32, so
that LLVM makes one vector of it. A (tile, Gaussian) pair has a row of its own for its gradient: no two threads add to
the same number, and a result does not depend on their timing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from geo_assets.splats.cpu.compiled import f32, kernel, parallel_kernel, prange
from geo_assets.splats.cpu.projection import LEAST_ALPHA, MOST_ALPHA, TILE_PX

OPAQUE = f32(1e-4)  # a pixel that lets less through is finished
LOWEST_EXPONENT = f32(-6)  # exp(-6) < 1/255


class Tiles(NamedTuple):
    """Which Gaussians each tile blends, nearest first; a pair of both is an entry."""

    starts: np.ndarray  # int64 [T + 1]: a tile's entries are members[starts[t] : starts[t + 1]]
    members: np.ndarray  # int32 [M]: the Gaussian of an entry
    slot_starts: np.ndarray  # int64 [V + 1]: a visible Gaussian's entries are slots[slot_starts[v] : ...]
    slots: np.ndarray  # int32 [M]: the entry


class Picture(NamedTuple):
    """A rendered image and what its gradient needs again."""

    colours: np.ndarray  # float32 [H, W, 3]
    transmittance: np.ndarray  # float32 [H, W]: what is left of the background
    last: np.ndarray  # int32 [H, W]: last entry of the tile that changed the pixel, -1 for none
    ends: np.ndarray  # int64 [T]: entry at which the tile was finished


@kernel
def exponential(x):
    """``exp(x)`` for x from -6 to 0, to 1e-6, as (exp(x / 8))^8: a polynomial that LLVM can vectorise."""
    y = x * f32(0.125)
    p = f32(1) + y * (
        f32(1)
        + y
        * (f32(0.5) + y * (f32(0.16666667) + y * (f32(0.041666667) + y * (f32(0.008333333) + y * f32(0.001388889)))))
    )
    p = p * p
    p = p * p
    return p * p


@kernel
def sort_into_tiles(order, boxes, columns, starts, members, slot_starts, slots):
    """Distribute the Gaussians, given from near to far, to the tiles they touch.

    Args:
        order: visible Gaussians from near to far [V].
        boxes: first and last tile column, first and last tile row of each Gaussian [N, 4].
        columns: tiles in a row.
        starts: result [T + 1].
        members: result, room for all entries.
        slot_starts: result [V + 1].
        slots: result, room for all entries.
    """
    starts[:] = 0
    for n in order:
        for row in range(boxes[n, 2], boxes[n, 3] + 1):
            for column in range(boxes[n, 0], boxes[n, 1] + 1):
                starts[row * columns + column + 1] += 1
    for tile in range(starts.shape[0] - 1):
        starts[tile + 1] += starts[tile]
    cursor = starts[:-1].copy()
    entry = 0
    for v in range(order.shape[0]):
        n = order[v]
        slot_starts[v] = entry
        for row in range(boxes[n, 2], boxes[n, 3] + 1):
            for column in range(boxes[n, 0], boxes[n, 1] + 1):
                place = cursor[row * columns + column]
                cursor[row * columns + column] = place + 1
                members[place] = n
                slots[entry] = place
                entry += 1
    slot_starts[order.shape[0]] = entry


@parallel_kernel
def blend(tiles, ellipses, columns, width, height, background, image, transmittance, last, ends):
    """Fill the arrays of a picture: colour += transmittance * alpha * colour of the Gaussian, nearest first."""
    starts, members, _, _ = tiles
    centres, conics, half_height, _, colours, opacities, _, _, _ = ellipses
    for tile in prange(starts.shape[0] - 1):
        top, left = (tile // columns) * TILE_PX, (tile % columns) * TILE_PX
        through = np.ones((TILE_PX, TILE_PX), np.float32)
        red = np.zeros((TILE_PX, TILE_PX), np.float32)
        green = np.zeros((TILE_PX, TILE_PX), np.float32)
        blue = np.zeros((TILE_PX, TILE_PX), np.float32)
        latest = np.full((TILE_PX, TILE_PX), -1, np.int32)
        first, end = starts[tile], starts[tile + 1]
        for entry in range(starts[tile], starts[tile + 1]):
            if (entry - first) & 31 == 31:  # now and then: is anything left to see?
                brightest = f32(0)
                for j in range(TILE_PX):
                    for i in range(TILE_PX):
                        brightest = max(brightest, through[j, i])
                if brightest < OPAQUE:
                    end = entry
                    break
            n = members[entry]
            x, y = centres[n, 0] - f32(left) - f32(0.5), centres[n, 1] - f32(top) - f32(0.5)
            cxx, cxy, cyy, opacity = conics[n, 0], conics[n, 1], conics[n, 2], opacities[n]
            r, g, b = colours[n, 0], colours[n, 1], colours[n, 2]
            number = np.int32(entry - first)
            for j in range(max(math.ceil(y - half_height[n]), 0), min(math.floor(y + half_height[n]), TILE_PX - 1) + 1):
                dy = f32(j) - y
                constant, linear = f32(-0.5) * cyy * dy * dy, -cxy * dy
                for i in range(TILE_PX):
                    dx = f32(i) - x
                    exponent = max(constant + dx * (linear - f32(0.5) * cxx * dx), LOWEST_EXPONENT)
                    alpha = min(opacity * exponential(exponent), MOST_ALPHA)
                    before = through[j, i]
                    counts = (alpha >= LEAST_ALPHA) and (before >= OPAQUE)
                    alpha = alpha if counts else f32(0)
                    weight = alpha * before
                    red[j, i] += weight * r
                    green[j, i] += weight * g
                    blue[j, i] += weight * b
                    through[j, i] = before - weight
                    latest[j, i] = number if counts else latest[j, i]
        ends[tile] = end
        for j in range(min(TILE_PX, height - top)):
            for i in range(min(TILE_PX, width - left)):
                rest = through[j, i]
                image[top + j, left + i, 0] = red[j, i] + rest * background[0]
                image[top + j, left + i, 1] = green[j, i] + rest * background[1]
                image[top + j, left + i, 2] = blue[j, i] + rest * background[2]
                transmittance[top + j, left + i] = rest
                last[top + j, left + i] = latest[j, i]


@parallel_kernel
def blend_backward(tiles, ellipses, columns, width, height, background, picture, image_gradient, slot_gradients):
    """Gradient of the loss in colour (3), opacity, conic (3) and centre (2) of each entry, from far to near.

    With C the colour behind an entry, d(image)/d(alpha) = transmittance before it * its colour - C / (1 - alpha).
    ``behind`` carries C times the image's gradient along; transmittance is recovered by dividing.
    """
    starts, members, _, _ = tiles
    centres, conics, half_height, _, colours, opacities, _, _, _ = ellipses
    _, transmittance, last, ends = picture
    for tile in prange(starts.shape[0] - 1):
        top, left = (tile // columns) * TILE_PX, (tile % columns) * TILE_PX
        through = np.ones((TILE_PX, TILE_PX), np.float32)
        latest = np.full((TILE_PX, TILE_PX), -1, np.int32)
        g_red = np.zeros((TILE_PX, TILE_PX), np.float32)
        g_green = np.zeros((TILE_PX, TILE_PX), np.float32)
        g_blue = np.zeros((TILE_PX, TILE_PX), np.float32)
        behind = np.zeros((TILE_PX, TILE_PX), np.float32)
        for j in range(min(TILE_PX, height - top)):
            for i in range(min(TILE_PX, width - left)):
                rest = transmittance[top + j, left + i]
                gr, gg, gb = (
                    image_gradient[top + j, left + i, 0],
                    image_gradient[top + j, left + i, 1],
                    image_gradient[top + j, left + i, 2],
                )
                through[j, i], latest[j, i] = rest, last[top + j, left + i]
                g_red[j, i], g_green[j, i], g_blue[j, i] = gr, gg, gb
                behind[j, i] = rest * (background[0] * gr + background[1] * gg + background[2] * gb)
        first = starts[tile]
        for entry in range(ends[tile], starts[tile + 1]):
            for c in range(9):
                slot_gradients[entry, c] = f32(0)
        for entry in range(ends[tile] - 1, first - 1, -1):
            n = members[entry]
            x, y = centres[n, 0] - f32(left) - f32(0.5), centres[n, 1] - f32(top) - f32(0.5)
            cxx, cxy, cyy, opacity = conics[n, 0], conics[n, 1], conics[n, 2], opacities[n]
            r, g, b = colours[n, 0], colours[n, 1], colours[n, 2]
            number = np.int32(entry - first)
            s_red = s_green = s_blue = s_opacity = s_cxx = s_cxy = s_cyy = s_x = s_y = f32(0)
            for j in range(max(math.ceil(y - half_height[n]), 0), min(math.floor(y + half_height[n]), TILE_PX - 1) + 1):
                dy = f32(j) - y
                constant, linear = f32(-0.5) * cyy * dy * dy, -cxy * dy
                sum_0 = sum_1 = sum_2 = row_red = row_green = row_blue = row_opacity = f32(0)
                for i in range(TILE_PX):
                    dx = f32(i) - x
                    exponent = max(constant + dx * (linear - f32(0.5) * cxx * dx), LOWEST_EXPONENT)
                    falloff = exponential(exponent)
                    raw = opacity * falloff
                    alpha = min(raw, MOST_ALPHA)
                    counts = (alpha >= LEAST_ALPHA) and (number <= latest[j, i])
                    alpha = alpha if counts else f32(0)
                    inverse = f32(1) / (f32(1) - alpha)
                    before = through[j, i] * inverse
                    through[j, i] = before
                    weight = alpha * before
                    gr, gg, gb = g_red[j, i], g_green[j, i], g_blue[j, i]
                    row_red += weight * gr
                    row_green += weight * gg
                    row_blue += weight * gb
                    own = r * gr + g * gg + b * gb
                    g_alpha = own * before - behind[j, i] * inverse
                    behind[j, i] += weight * own
                    g_alpha = g_alpha if (counts and raw < MOST_ALPHA) else f32(0)
                    row_opacity += falloff * g_alpha
                    g_exponent = raw * g_alpha
                    sum_0 += g_exponent
                    sum_1 += g_exponent * dx
                    sum_2 += g_exponent * dx * dx
                s_red += row_red
                s_green += row_green
                s_blue += row_blue
                s_opacity += row_opacity
                s_cxx -= f32(0.5) * sum_2
                s_cxy -= dy * sum_1
                s_cyy -= f32(0.5) * dy * dy * sum_0
                s_x += cxx * sum_1 + cxy * dy * sum_0
                s_y += cyy * dy * sum_0 + cxy * sum_1
            out = slot_gradients[entry]
            out[0], out[1], out[2], out[3], out[4] = s_red, s_green, s_blue, s_opacity, s_cxx
            out[5], out[6], out[7], out[8] = s_cxy, s_cyy, s_x, s_y
