"""Ray casting of textured axis-aligned boxes above a ground plane, compiled by numba.

Frame of everything here: metres, x and y along the two streets, z up, ground at z = 0. Cameras look along their own
+z with x right and y down. Faces of a box are numbered 0..5: -x, +x, -y, +y, -z, +z.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

import geo_assets.splats.cpu.compiled  # noqa: F401  (finds numba a folder for its cache where the code is read-only)

N_LEVELS = 6
"""Levels of a texture's pyramid; each halves the one before."""

_TILE = 16
_FAR = np.float32(1e9)
_SHADE = np.array([0.80, 0.92, 0.72, 1.0, 0.4, 1.05], np.float32)  # sun from the south-east of the street frame

F32 = npt.NDArray[np.float32]


def pyramid(texture: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """The texture and its halvings, ``N_LEVELS`` in all; odd edges are repeated so that texels stay exact halves."""
    levels = [texture]
    while len(levels) < N_LEVELS:
        last = levels[-1]
        last = np.pad(last, ((0, last.shape[0] % 2), (0, last.shape[1] % 2), (0, 0)), mode="edge")
        sums = last[0::2, 0::2].astype(np.uint16) + last[1::2, 0::2] + last[0::2, 1::2] + last[1::2, 1::2]
        levels.append(((sums + 2) // 4).astype(np.uint8))
    return levels


@numba.njit(cache=True, nogil=True, fastmath=True, inline="always")
def _bilinear(texels, start, rows, columns, x, y):
    x = min(max(x, np.float32(0.0)), np.float32(columns - 1.001))
    y = min(max(y, np.float32(0.0)), np.float32(rows - 1.001))
    if columns == 1:
        x = np.float32(0.0)
    if rows == 1:
        y = np.float32(0.0)
    j, i = int(x), int(y)
    fx, fy = x - np.float32(j), y - np.float32(i)
    right = 1 if j + 1 < columns else 0
    below = columns if i + 1 < rows else 0
    p = start + i * columns + j
    a, b, c, d = (1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy
    q, r, s = p + right, p + below, p + right + below
    return (
        a * texels[p, 0] + b * texels[q, 0] + c * texels[r, 0] + d * texels[s, 0],
        a * texels[p, 1] + b * texels[q, 1] + c * texels[r, 1] + d * texels[s, 1],
        a * texels[p, 2] + b * texels[q, 2] + c * texels[r, 2] + d * texels[s, 2],
    )


@numba.njit(cache=True, nogil=True, fastmath=True)
def _sample(texels, layout, texture, u, v, texel_m, footprint_m):
    """Colour 0..255 at ``u`` metres right and ``v`` metres below the texture's top left corner, trilinear."""
    level = math.log2(max(footprint_m / texel_m, np.float32(1.0)))
    level = min(level, np.float32(layout.shape[1] - 1.001))
    fine = int(level)
    blend = np.float32(level - fine)
    size = texel_m * np.float32(1 << fine)
    r0, g0, b0 = _bilinear(
        texels, layout[texture, fine, 0], layout[texture, fine, 1], layout[texture, fine, 2],
        u / size - np.float32(0.5), v / size - np.float32(0.5),
    )  # fmt: skip
    if blend < 0.02:
        return r0, g0, b0
    size *= np.float32(2.0)
    coarse = fine + 1
    r1, g1, b1 = _bilinear(
        texels, layout[texture, coarse, 0], layout[texture, coarse, 1], layout[texture, coarse, 2],
        u / size - np.float32(0.5), v / size - np.float32(0.5),
    )  # fmt: skip
    return r0 + blend * (r1 - r0), g0 + blend * (g1 - g0), b0 + blend * (b1 - b0)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _hit(o, dx, dy, dz, boxes, candidates, n):
    """Nearest hit of a ray: its parameter, the box (-1 sky, -2 ground) and the face."""
    best, which, face = _FAR, -1, 0
    if dz < -1e-6:
        best, which = -o[2] / dz, -2
    ix = 1 / dx if abs(dx) > 1e-9 else _FAR
    iy = 1 / dy if abs(dy) > 1e-9 else _FAR
    iz = 1 / dz if abs(dz) > 1e-9 else _FAR
    for k in range(n):
        b = candidates[k]
        x0, x1 = (boxes[b, 0] - o[0]) * ix, (boxes[b, 1] - o[0]) * ix
        y0, y1 = (boxes[b, 2] - o[1]) * iy, (boxes[b, 3] - o[1]) * iy
        z0, z1 = (boxes[b, 4] - o[2]) * iz, (boxes[b, 5] - o[2]) * iz
        nx, ny, nz = min(x0, x1), min(y0, y1), min(z0, z1)
        enter = max(nx, ny, nz)
        leave = min(max(x0, x1), max(y0, y1), max(z0, z1))
        if enter < leave and enter > 1e-3 and enter < best:
            best, which = enter, b
            if enter == nx:
                face = 0 if dx > 0 else 1
            elif enter == ny:
                face = 2 if dy > 0 else 3
            else:
                face = 4 if dz > 0 else 5
    return best, which, face


@numba.njit(cache=True, nogil=True, fastmath=True)
def _colour(o, dx, dy, dz, angle, boxes, faces, candidates, n, texels, layout, texel_m, strip, shades):
    """Colour 0..255 and ray parameter of one ray; ``angle`` is the width of a ray in radians."""
    t, b, face = _hit(o, dx, dy, dz, boxes, candidates, n)
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    if b == -1:
        up = max(dz / length, np.float32(0.0)) ** np.float32(0.7)
        return 226 - 106 * up, 232 - 66 * up, 240 - 14 * up, np.float32(0.0)
    x, y, z = o[0] + t * dx, o[1] + t * dy, o[2] + t * dz
    reach = t * length * angle
    if b == -2:
        tilt = max(abs(dz) / length, np.float32(0.03))
        footprint = reach / math.sqrt(tilt)
        half_l, half_w = strip[0], strip[1]
        if abs(y) <= half_w:
            r, g, bl = _sample(texels, layout, 0, x + half_l, half_w - y, texel_m, footprint)
        else:  # the other street: along it is +y, its left is -x
            r, g, bl = _sample(texels, layout, 1, y + half_l, x + half_w, texel_m, footprint)
        return r, g, bl, t
    top = boxes[b, 5] - z
    if face == 0:
        across, u, v = dx, boxes[b, 3] - y, top
    elif face == 1:
        across, u, v = dx, y - boxes[b, 2], top
    elif face == 2:
        across, u, v = dy, x - boxes[b, 0], top
    elif face == 3:
        across, u, v = dy, boxes[b, 1] - x, top
    else:
        across, u, v = dz, x - boxes[b, 0], boxes[b, 3] - y
    tilt = max(abs(across) / length, np.float32(0.03))
    r, g, bl = _sample(texels, layout, faces[b, face], u, v, texel_m, reach / math.sqrt(tilt))
    s = shades[face]
    return r * s, g * s, bl * s, t


@numba.njit(cache=True, nogil=True, fastmath=True)
def _screen_rectangles(o, m, f, cx, cy, width, height, boxes):
    """Pixels that each box may cover [n, 4] (left, right, top, bottom); empty where it is behind the camera."""
    n = boxes.shape[0]
    out = np.empty((n, 4), np.float32)
    for b in range(n):
        left, right, top, bottom = np.float32(1e9), np.float32(-1e9), np.float32(1e9), np.float32(-1e9)
        n_front = 0
        for k in range(8):
            x, y, z = boxes[b, k & 1] - o[0], boxes[b, 2 + ((k >> 1) & 1)] - o[1], boxes[b, 4 + (k >> 2)] - o[2]
            # m is world_from_cam, so its columns are the camera's axes
            depth = m[0, 2] * x + m[1, 2] * y + m[2, 2] * z
            if depth > 0.05:
                n_front += 1
                px = f * (m[0, 0] * x + m[1, 0] * y + m[2, 0] * z) / depth + cx
                py = f * (m[0, 1] * x + m[1, 1] * y + m[2, 1] * z) / depth + cy
                left, right, top, bottom = min(left, px), max(right, px), min(top, py), max(bottom, py)
        if 0 < n_front < 8:  # it crosses the camera plane: its projection is not the hull of its corners
            left, right, top, bottom = np.float32(0), np.float32(width), np.float32(0), np.float32(height)
        out[b] = left - 1, right + 1, top - 1, bottom + 1
    return out


@numba.njit(cache=True, nogil=True, fastmath=True)
def perspective(o, m, f, cx, cy, samples, boxes, faces, texels, layout, texel_m, strip, shades, image, depth):
    """Fill ``image`` [h, w, 3] (0..255) and ``depth`` [h, w] (metres along the axis, 0 for sky) of a pinhole camera."""
    height, width = depth.shape
    rectangles = _screen_rectangles(o, m, f, cx, cy, width, height, boxes)
    candidates = np.empty(boxes.shape[0], np.int64)
    angle = np.float32(1.0 / (f * samples))
    weight = np.float32(1.0 / (samples * samples))
    for tile_y in range(0, height, _TILE):
        for tile_x in range(0, width, _TILE):
            n = 0
            for b in range(boxes.shape[0]):
                inside_x = rectangles[b, 0] < tile_x + _TILE and rectangles[b, 1] > tile_x
                if inside_x and rectangles[b, 2] < tile_y + _TILE and rectangles[b, 3] > tile_y:
                    candidates[n] = b
                    n += 1
            for j in range(tile_y, min(tile_y + _TILE, height)):
                for i in range(tile_x, min(tile_x + _TILE, width)):
                    red, green, blue = np.float32(0), np.float32(0), np.float32(0)
                    for s in range(samples * samples):
                        x = (np.float32(i + (s % samples + 0.5) / samples) - cx) / f
                        y = (np.float32(j + (s // samples + 0.5) / samples) - cy) / f
                        dx = m[0, 0] * x + m[0, 1] * y + m[0, 2]
                        dy = m[1, 0] * x + m[1, 1] * y + m[1, 2]
                        dz = m[2, 0] * x + m[2, 1] * y + m[2, 2]
                        r, g, b_, _ = _colour(
                            o, dx, dy, dz, angle, boxes, faces, candidates, n, texels, layout, texel_m, strip, shades
                        )
                        red += r
                        green += g
                        blue += b_
                    image[j, i, 0], image[j, i, 1], image[j, i, 2] = red * weight, green * weight, blue * weight
                    x, y = (np.float32(i + 0.5) - cx) / f, (np.float32(j + 0.5) - cy) / f
                    t, which, _ = _hit(
                        o,
                        m[0, 0] * x + m[0, 1] * y + m[0, 2],
                        m[1, 0] * x + m[1, 1] * y + m[1, 2],
                        m[2, 0] * x + m[2, 1] * y + m[2, 2],
                        boxes, candidates, n,
                    )  # fmt: skip
                    depth[j, i] = t if which != -1 else 0.0


@numba.njit(cache=True, nogil=True, fastmath=True)
def equirectangular(o, m, samples, boxes, faces, texels, layout, texel_m, strip, shades, image):
    """Fill ``image`` [h, w, 3] (0..255) of a panorama: its middle column looks along the camera's +z, row 0 up."""
    height, width = image.shape[0], image.shape[1]
    candidates = np.arange(boxes.shape[0])
    angle = np.float32(2 * math.pi / (width * samples))
    weight = np.float32(1.0 / (samples * samples))
    for j in range(height):
        for i in range(width):
            red, green, blue = np.float32(0), np.float32(0), np.float32(0)
            for s in range(samples * samples):
                lon = ((i + (s % samples + 0.5) / samples) / width - 0.5) * 2 * math.pi
                lat = (0.5 - (j + (s // samples + 0.5) / samples) / height) * math.pi
                x = np.float32(math.cos(lat) * math.sin(lon))
                y = np.float32(-math.sin(lat))
                z = np.float32(math.cos(lat) * math.cos(lon))
                dx = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z
                dy = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z
                dz = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z
                r, g, b, _ = _colour(
                    o, dx, dy, dz, angle, boxes, faces, candidates, boxes.shape[0],
                    texels, layout, texel_m, strip, shades,
                )  # fmt: skip
                red += r
                green += g
                blue += b
            image[j, i, 0], image[j, i, 1], image[j, i, 2] = red * weight, green * weight, blue * weight


def shades() -> F32:
    """Brightness of the six faces of a box under the demo's sun."""
    return _SHADE.copy()
