"""Real spherical harmonics up to degree 3, with the signs of the original splatting code, and how they turn."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MOST_DEGREE = 3

_C0 = 0.28209479177387814
_C1 = 0.4886025119029199
_C2 = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
_C3 = 0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277


def band(degree: int, directions: Array) -> Array:
    """The 2 degree + 1 harmonics of one degree [N, 2 degree + 1] in unit directions [N, 3]."""
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    if degree == 0:
        values = [np.full(len(directions), _C0)]
    elif degree == 1:
        values = [-_C1 * y, _C1 * z, -_C1 * x]
    elif degree == 2:
        a, b, c = _C2
        values = [a * x * y, -a * y * z, b * (2 * zz - xx - yy), -a * x * z, c * (xx - yy)]
    elif degree == 3:
        a, b, c, d, e = _C3
        values = [
            -a * y * (3 * xx - yy),
            b * x * y * z,
            -c * y * (4 * zz - xx - yy),
            d * z * (2 * zz - 3 * xx - 3 * yy),
            -c * x * (4 * zz - xx - yy),
            e * z * (xx - yy),
            -a * x * (xx - 3 * yy),
        ]
    else:
        raise ValueError(f"Harmonics of degree {degree} are not in use; the highest is {MOST_DEGREE}.")
    return np.stack(values, axis=1)


def basis(degree: int, directions: Array) -> Array:
    """All harmonics up to a degree [N, (degree + 1)^2] in unit directions [N, 3]."""
    return np.concatenate([band(d, directions) for d in range(degree + 1)], axis=1)


def turning(degree: int, rotation: npt.ArrayLike) -> Array:
    """The orthogonal matrix [2 degree + 1, 2 degree + 1] that turns coefficients of one degree with the space.

    A function c . Y(d) seen in directions turned by the rotation is c' . Y(R d) with c' = D c. Because Y(R d) = D Y(d)
    for every d, D follows from the values of Y in a few directions.

    Args:
        degree: of the harmonics.
        rotation: matrix [3, 3] of determinant 1.
    """
    directions, inverse = _samples(degree)
    return (inverse @ band(degree, directions @ np.asarray(rotation, float).T)).T


@cache
def _samples(degree: int) -> tuple[Array, Array]:
    """Directions [M, 3] spread evenly (a Fibonacci lattice), and the pseudoinverse of the harmonics in them."""
    n = 32
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    across = np.sqrt(1 - z * z)
    directions = np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)
    return directions, np.asarray(np.linalg.pinv(band(degree, directions)), float)
