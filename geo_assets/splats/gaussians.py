"""Gaussians as one table of numbers: a row each, the columns that every trainer of splats agrees on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from geo_assets.splats.harmonics import turning

Floats = npt.NDArray[np.float32]

MEAN, SCALE, QUAT, OPACITY, SH = 0, 3, 6, 10, 11
"""First column of each parameter in :attr:`Gaussians.rows`."""

SH_0 = 0.28209479177387814
"""The constant spherical harmonic: colour = 0.5 + SH_0 * coefficient."""


def coefficients(degree: int) -> int:
    """Number of spherical harmonics up to a degree."""
    return (degree + 1) ** 2


@dataclass(frozen=True)
class Gaussians:
    """N Gaussians; ``rows`` is float32 [N, 11 + 3 K], K spherical harmonics for each of red, green and blue.

    Columns: mean (3, in the frame's unit), log of the three standard deviations (3), rotation quaternion wxyz (4, of
    any length), logit of the opacity (1), harmonics [K, 3] with the colours innermost.
    """

    rows: Floats

    @classmethod
    def of(
        cls,
        means: npt.ArrayLike,
        log_scales: npt.ArrayLike,
        quats: npt.ArrayLike,
        opacity_logits: npt.ArrayLike,
        sh: npt.ArrayLike,
    ) -> Gaussians:
        """From one array a parameter: [N, 3], [N, 3], [N, 4] wxyz, [N] and [N, K, 3]."""
        n = len(np.asarray(means))
        widths = (3, 3, 4, 1, 3 * np.asarray(sh).shape[1])
        given = (means, log_scales, quats, opacity_logits, sh)
        parts = [np.asarray(p, np.float32).reshape(n, width) for p, width in zip(given, widths, strict=True)]
        return cls(np.ascontiguousarray(np.concatenate(parts, axis=1)))

    @classmethod
    def none(cls, degree: int = 0) -> Gaussians:
        """No Gaussian at all, of a degree."""
        return cls(np.zeros((0, SH + 3 * coefficients(degree)), np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def means(self) -> Floats:
        """Centres [N, 3]; a view, as are the others."""
        return self.rows[:, MEAN:SCALE]

    @property
    def log_scales(self) -> Floats:
        """Logarithms of the standard deviations [N, 3]."""
        return self.rows[:, SCALE:QUAT]

    @property
    def quats(self) -> Floats:
        """Rotations of the axes, wxyz [N, 4]."""
        return self.rows[:, QUAT:OPACITY]

    @property
    def opacity_logits(self) -> Floats:
        """Logits of the opacities [N]."""
        return self.rows[:, OPACITY]

    @property
    def opacities(self) -> Floats:
        """Opacities from 0 to 1 [N]."""
        return (1 / (1 + np.exp(-self.opacity_logits))).astype(np.float32)

    @property
    def sh(self) -> Floats:
        """Spherical harmonics [N, K, 3]."""
        return self.rows[:, SH:].reshape(len(self), (self.rows.shape[1] - SH) // 3, 3)

    @property
    def degree(self) -> int:
        """Highest degree of the spherical harmonics."""
        return round(((self.rows.shape[1] - SH) // 3) ** 0.5) - 1

    def __getitem__(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.integer] | slice) -> Gaussians:
        return Gaussians(np.ascontiguousarray(self.rows[which]))

    def most_opaque(self, n: int) -> Gaussians:
        """The ``n`` most opaque, or all where there are no more; of equals the first."""
        return self if len(self) <= n else self[np.argsort(-self.opacities, kind="stable")[:n]]

    def to_degree(self, degree: int) -> Gaussians:
        """The same Gaussians with harmonics cut, or zeros added, to a degree."""
        wanted = np.zeros((len(self), SH + 3 * coefficients(degree)), np.float32)
        shared = min(wanted.shape[1], self.rows.shape[1])
        wanted[:, :shared] = self.rows[:, :shared]
        return Gaussians(wanted)

    def moved(self, rotation: npt.ArrayLike, translation: npt.ArrayLike, scale: float = 1.0) -> Gaussians:
        """The Gaussians in another frame: ``x' = scale rotation x + translation``, in metres.

        Harmonics of all degrees turn with the rest, so that a colour seen along R d is what was seen along d before.
        """
        rotation, translation = np.asarray(rotation, float), np.asarray(translation, float)
        moved = Gaussians(self.rows.copy())
        moved.means[:] = scale * self.means.astype(float) @ rotation.T + translation
        moved.log_scales[:] += np.float32(np.log(scale))
        moved.quats[:] = quaternion_product(quaternion_of(rotation), self.quats.astype(float))
        for degree in range(1, self.degree + 1):
            ours = slice(degree**2, (degree + 1) ** 2)
            moved.sh[:, ours] = turning(degree, rotation).astype(np.float32) @ self.sh[:, ours]
        return moved


def joined(parts: list[Gaussians], degree: int) -> Gaussians:
    """All parts in one, brought to one degree."""
    return Gaussians(np.concatenate([Gaussians.none(degree).rows, *(part.to_degree(degree).rows for part in parts)]))


def quaternion_of(rotation: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Unit quaternion wxyz of a rotation matrix [3, 3], w not below zero."""
    quaternion = quaternions_of(np.asarray(rotation, float)[None])[0]
    return quaternion * (1 if quaternion[0] >= 0 else -1)


def quaternions_of(rotations: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Unit quaternions wxyz [N, 4] of rotation matrices [N, 3, 3], computed from the largest component of each."""
    m = rotations
    x, y, z = m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]
    # Four times the products of the quaternion with itself; the row with the largest diagonal has the most digits.
    products = np.empty((len(m), 4, 4))
    products[:, 0, 0], products[:, 1, 1] = 1 + x + y + z, 1 + x - y - z
    products[:, 2, 2], products[:, 3, 3] = 1 - x + y - z, 1 - x - y + z
    products[:, 0, 1] = products[:, 1, 0] = m[:, 2, 1] - m[:, 1, 2]
    products[:, 0, 2] = products[:, 2, 0] = m[:, 0, 2] - m[:, 2, 0]
    products[:, 0, 3] = products[:, 3, 0] = m[:, 1, 0] - m[:, 0, 1]
    products[:, 1, 2] = products[:, 2, 1] = m[:, 1, 0] + m[:, 0, 1]
    products[:, 1, 3] = products[:, 3, 1] = m[:, 0, 2] + m[:, 2, 0]
    products[:, 2, 3] = products[:, 3, 2] = m[:, 2, 1] + m[:, 1, 2]
    best = products[np.arange(len(m)), np.einsum("nii->ni", products).argmax(axis=1)]
    return best / np.linalg.norm(best, axis=1, keepdims=True)


def quaternion_product(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Hamilton product a b of wxyz quaternions [..., 4]: the rotation b, then a."""
    aw, ax, ay, az = np.moveaxis(a, -1, 0)
    bw, bx, by, bz = np.moveaxis(b, -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )


def rotations_of(quats: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Rotation matrices [N, 3, 3] of wxyz quaternions [N, 4] of any length."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(float).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
