"""S2 cells: names for pieces of the globe, by Google's S2 geometry (s2geometry.io, "S2 Cells").

A cube around the globe has six faces; each is halved 30 times both ways, and a Hilbert curve numbers the squares. An id
has the face in 3 bits, the way along the curve in 2 bits a level, and a 1 that marks the end; a token is the id in
hexadecimal without the zeros at its end. Level 30 is about a centimetre.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numba
import numpy as np
import numpy.typing as npt

FINEST = 30
"""Level of the smallest cells."""

Ids = npt.NDArray[np.uint64]

# Order of the quarters (i << 1 | j) along the curve in each of its four orientations, and how a quarter turns it:
# 1 swaps i and j, 2 inverts both.
_PLACE_OF = np.array([[0, 1, 3, 2], [0, 3, 1, 2], [2, 3, 1, 0], [2, 1, 3, 0]])
_TURN = np.array([1, 0, 0, 3])


def cell_ids(lon: npt.ArrayLike, lat: npt.ArrayLike, level: int = FINEST) -> Ids:
    """Ids [N] of the cells of a level that hold places [deg]."""
    lam, phi = np.radians(np.asarray(lon, np.float64)), np.radians(np.asarray(lat, np.float64))
    finest = _ids(np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi))
    return parents(finest, level)


def parents(ids: Ids, level: int | npt.NDArray[np.int64]) -> Ids:
    """Ids [N] of the cells of a level, or of one for each, that hold cells of that level or finer ones."""
    end = np.uint64(1) << (2 * (FINEST - np.asarray(level))).astype(np.uint64)
    return (ids & ~(end - np.uint64(1)) & ~end) | end


def levels(ids: Ids) -> npt.NDArray[np.int64]:
    """Level [N] of cells."""
    end = ids & (~ids + np.uint64(1))
    return FINEST - np.rint(np.log2(end.astype(np.float64)) / 2).astype(np.int64)


def tokens(ids: Ids) -> list[str]:
    """Tokens of cells: ``47e66e2964e34e2d`` at level 30, ``47e67`` at level 8."""
    return [f"{number:016x}".rstrip("0") or "X" for number in ids.tolist()]


def bounds(ids: Ids) -> tuple[npt.NDArray[np.float64], ...]:
    """West, south, east and north [N, deg] of cells; west is the greater where a cell lies across the antimeridian."""
    level = levels(ids)
    face, i, j = _on_cube(ids)
    side, whole = 1 << (FINEST - level), level == 0
    corners = []
    for right, up in ((0, 0), (1, 0), (1, 1), (0, 1)):
        u, v = (_from_square((k // side + step) / (1 << level)) for k, step in ((i, right), (j, up)))
        one = np.ones(len(ids))
        axes = [(one, u, v), (-u, one, v), (-u, -v, one), (-one, -v, -u), (v, -one, -u), (v, u, -one)]
        corners.append(np.array(axes)[face, :, np.arange(len(ids))].T)
    x, y, z = np.stack(corners, axis=1)
    away = np.hypot(x, y)
    # The corners are the extremes, but of whole faces, whose sides bulge to 45 degrees or that hold a pole.
    lat = np.degrees(np.arctan2(z, away))
    south, north = np.where(whole, np.where(face == 2, lat, -45), lat).min(axis=0), lat.max(axis=0)
    north = np.where(whole, np.choose(face, [45, 45, 90, 45, 45, lat.max(axis=0)]), north)
    south = np.where(whole & (face == 5), -90, south)
    lon = np.where(away > 0, np.degrees(np.arctan2(y, x)), np.nan)  # a pole has no longitude
    first = np.nanmax(lon, axis=0)
    lon = first + (lon - first + 180) % 360 - 180
    west, east = np.nanmin(lon, axis=0), np.nanmax(lon, axis=0)
    turned = 360.0 * (west >= 180)
    west, east = west - turned, east - turned
    around = whole & (face % 3 == 2)
    return np.where(around, -180, west), south, np.where(around, 180, np.where(east > 180, east - 360, east)), north


def ids_of_tokens(tokens: Iterable[str]) -> Ids:
    """Ids [N] of tokens.

    Raises:
        ValueError: a token is not one, such as ``4.7E+064``, which a spreadsheet leaves of ``47e64``.
    """
    known = list(tokens)
    for token in known:
        if not re.fullmatch("0*[1-9a-f][0-9a-f]*", token.lower()) or len(token) > 16:
            raise ValueError(f"'{token}' is not a token of an S2 cell. Read the column as text, not as a number.")
    return np.array([int(token.ljust(16, "0"), 16) for token in known], np.uint64)


@numba.njit(cache=True)
def _ids(x, y, z):
    ids = np.empty(len(x), np.uint64)
    for n in range(len(x)):
        face, u, v = _on_face(x[n], y[n], z[n])
        i, j = _square(u), _square(v)
        turned = face & 1
        way = 0
        for bit in range(FINEST - 1, -1, -1):
            quarter = _PLACE_OF[turned, ((i >> bit) & 1) << 1 | ((j >> bit) & 1)]
            way = way << 2 | quarter
            turned ^= _TURN[quarter]
        ids[n] = np.uint64(face) << np.uint64(61) | np.uint64(way) << np.uint64(1) | np.uint64(1)
    return ids


def _on_cube(ids: Ids) -> tuple[npt.NDArray[np.int64], ...]:
    """The face of cells, and a square of the finest level both ways that lies in them."""
    quarter_of = np.argsort(_PLACE_OF, axis=1)
    face = (ids >> np.uint64(61)).astype(np.int64)
    turned = face & 1
    i, j = np.zeros_like(face), np.zeros_like(face)
    for bit in range(FINEST - 1, -1, -1):
        place = (ids >> np.uint64(2 * bit + 1)).astype(np.int64) & 3
        quarter = quarter_of[turned, place]
        turned = turned ^ _TURN[place]
        i, j = i << 1 | quarter >> 1, j << 1 | quarter & 1
    return face, i, j


def _from_square(s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A coordinate on a face, -1 to 1, of a square's, 0 to 1; undoes :func:`_square`."""
    return np.where(s >= 0.5, 4 * s * s - 1, 1 - 4 * (1 - s) * (1 - s)) / 3


@numba.njit(cache=True)
def _on_face(x, y, z):
    """The face that a direction meets, and where on it, -1 to 1 both ways."""
    if abs(x) > abs(y) and abs(x) > abs(z):
        return (0, y / x, z / x) if x > 0 else (3, z / x, y / x)
    if abs(y) > abs(x) and abs(y) > abs(z):
        return (1, -x / y, z / y) if y > 0 else (4, z / y, -x / y)
    return (2, -x / z, -y / z) if z > 0 else (5, -y / z, -x / z)


@numba.njit(cache=True)
def _square(u):
    """The number of a coordinate on a face, after the quadratic map that makes the squares nearly equal on the globe."""
    s = 0.5 * np.sqrt(1 + 3 * u) if u >= 0 else 1 - 0.5 * np.sqrt(1 - 3 * u)
    return min(max(int(np.floor(s * (1 << FINEST))), 0), (1 << FINEST) - 1)
