"""A model's own coordinates brought to east-north-up metres by the positions of its cameras.

Positions alone leave the roll of a straight street free, so the cameras' x axes are held level too ("no roll"):
street cameras look up and down, but they hardly lean to the side. Poses are ``camera_from_world``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from geo_assets.geodesy import LocalFrame

Array = npt.NDArray[np.float64]

ROLL_SIGMA_DEG = 1.0
LEVEL_WEIGHT = 3.0
"""The level of all cameras counts as nine observations: their lean is shared, not independent."""

ROBUST_SIGMAS = 2.0
"""Standard deviations at which a position begins to lose its pull."""

GROSS_SIGMAS = 4.0
"""Standard deviations from which on a position is an error, not noise."""

MIN_EXTENT_M = 10.0
"""Cameras that spread over less stand in one place: their positions fix neither turn nor scale."""

_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Similarity:
    """``target = scale * rotation @ source + translation``."""

    scale: float
    rotation: Array  # [3, 3]
    translation: Array  # [3]

    def __call__(self, points: npt.ArrayLike) -> Array:
        """Points [..., 3] of the source in the target's coordinates."""
        return self.scale * np.asarray(points, float) @ self.rotation.T + self.translation

    def after(self, first: Similarity) -> Similarity:
        """The similarity that applies ``first`` and then this one."""
        return Similarity(self.scale * first.scale, self.rotation @ first.rotation, self(first.translation[None])[0])

    def inverse(self) -> Similarity:
        """The similarity that leads back."""
        back = self.rotation.T / self.scale
        return Similarity(1 / self.scale, self.rotation.T, -back @ self.translation)


IDENTITY = Similarity(1.0, np.eye(3), np.zeros(3))


def between_frames(target: LocalFrame, source: LocalFrame) -> Similarity:
    """From one east-north-up frame to another, exactly, through ECEF metres; its scale is 1."""
    to_target = target.enu_from_ecef_rotation
    offset = source.ecef_from_enu[:3, 3] - target.ecef_from_enu[:3, 3]
    return Similarity(1.0, to_target @ source.enu_from_ecef_rotation.T, to_target @ offset)


@dataclass(frozen=True)
class Alignment:
    """A similarity to east-north-up metres and how well the cameras fit their priors under it."""

    similarity: Similarity
    offsets_m: Array  # [n, 3] camera minus prior
    roll_deg: float
    scale_spread: float  # relative difference of the scales of both halves; 0 where the halves cannot tell

    @property
    def horizontal_m(self) -> Array:
        """Horizontal distance of each camera to its prior [n]."""
        return np.hypot(self.offsets_m[:, 0], self.offsets_m[:, 1])


def best_similarity(source: Array, target: Array) -> Similarity:
    """The similarity of least squares between two sets of points [n, 3] (Umeyama 1991)."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    x, y = source - source_mean, target - target_mean
    u, singular, vt = np.linalg.svd(y.T @ x / len(x))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    scale = float((singular * signs).sum() / (x**2).sum(1).mean())
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def align(
    centres: Array,
    rotations: Array,
    priors: Array,
    sigma_m: Array,
    *,
    roll_sigma_deg: float = ROLL_SIGMA_DEG,
    seed: int = 0,
) -> Alignment:
    """Bring a model upright and to the positions of its cameras, robustly, with seven degrees of freedom.

    Args:
        centres: camera centres in the model's coordinates, [n, 3].
        rotations: rotations ``camera_from_world`` of the cameras (x right, y down, z forward), [n, 3, 3].
        priors: positions of the cameras, east-north-up [m], [n, 3].
        sigma_m: standard deviations of the priors, [n, 3].
        roll_sigma_deg: how level the cameras are held.
        seed: of the sampling that finds a start in spite of gross errors.
    """
    upright = _upright(rotations)
    start = _level_similarity(centres @ upright.T, priors, sigma_m, seed).after(Similarity(1.0, upright, np.zeros(3)))
    similarity = _refined(start, centres, rotations, priors, sigma_m, roll_sigma_deg)
    # Soft-L1 bounds the pull of a gross error but does not end it; the second fit does without them.
    near = (np.abs(similarity(centres) - priors) < GROSS_SIGMAS * sigma_m).all(axis=1)
    if len(centres) > near.sum() >= max(3, len(centres) / 2):
        similarity = _refined(similarity, centres[near], rotations[near], priors[near], sigma_m[near], roll_sigma_deg)
    aligned = similarity(centres)
    return Alignment(
        similarity,
        aligned - priors,
        roll_deg(rotations @ similarity.rotation.T),
        _scale_spread(aligned, priors, sigma_m),
    )


def _upright(rotations: Array) -> Array:
    """Rotation [3, 3] that turns the model's up, as its cameras see it, to the z axis."""
    mean_up = -rotations[:, 1].mean(0)
    right_axes = rotations[:, 0]
    spread, axes = np.linalg.eigh(right_axes.T @ right_axes)
    up = mean_up
    # Level x axes of cameras that look different ways span the ground; of one direction they span a line only.
    if spread[1] > 0.05 * spread[2]:
        up = axes[:, 0] * np.sign(axes[:, 0] @ mean_up)
    return rotation_between(up, _UP)


def rotation_between(a: Array, b: Array) -> Array:
    """The smallest rotation [3, 3] that turns the direction ``a`` into the direction ``b``."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    cosine = float(a @ b)
    if cosine < -1 + 1e-9:  # opposite: half a turn about any axis across
        axis = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])
        axis /= np.linalg.norm(axis)
        return np.asarray(2 * np.outer(axis, axis) - np.eye(3), float)
    k = skew(np.cross(a, b))
    return np.eye(3) + k + k @ k / (1 + cosine)


def _level_similarity(points: Array, priors: Array, sigma_m: Array, seed: int, trials: int = 300) -> Similarity:
    """Similarity with a turn about the vertical alone, from the pair of cameras that most others agree with."""
    source, target = points[:, 0] + 1j * points[:, 1], priors[:, 0] + 1j * priors[:, 1]
    tolerance = 3.0 * sigma_m[:, 0]
    rng = np.random.default_rng(seed)
    # Pairs far apart fix scale and turn best, so they are drawn more often.
    first, second = rng.integers(len(source), size=(2, trials * 4))
    apart = np.abs(target[first] - target[second])
    order = np.argsort(-apart, kind="stable")[: trials * 2]
    best: tuple[float, complex, complex] = (-np.inf, 1 + 0j, target.mean() - source.mean())
    for i, j in zip(first[order], second[order], strict=True):
        if abs(source[i] - source[j]) < 1e-12:
            continue
        turn = (target[i] - target[j]) / (source[i] - source[j])
        shift = target[i] - turn * source[i]
        miss = np.abs(turn * source + shift - target)
        # Truncated squares rank two fits of equally many cameras by how well they fit.
        score = -(np.minimum(miss / tolerance, 1.0) ** 2).sum()
        if score > best[0]:
            best = (float(score), complex(turn), complex(shift))
    _, turn, shift = best
    scale, angle = max(abs(turn), 1e-9), np.angle(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    height = float(np.median(priors[:, 2] - scale * points[:, 2]))
    return Similarity(scale, rotation, np.array([shift.real, shift.imag, height]))


def _refined(
    start: Similarity, centres: Array, rotations: Array, priors: Array, sigma_m: Array, roll_sigma_deg: float
) -> Similarity:
    """Least squares over seven parameters: soft-L1 on positions, level x axes."""
    placed = start(centres)
    middle = placed.mean(0)
    right_axes = rotations[:, 0] @ start.rotation.T
    level = LEVEL_WEIGHT / (np.radians(roll_sigma_deg) * np.sqrt(len(centres)))

    def residuals(x: Array) -> Array:
        rotation = rotation_from_vector(x[:3])
        miss = (np.exp(x[6]) * (placed - middle) @ rotation.T + middle + x[3:6] - priors) / sigma_m
        squared = (miss**2).sum(1, keepdims=True) / ROBUST_SIGMAS**2 + 1e-12
        soft = miss * np.sqrt(2 * (np.sqrt(1 + squared) - 1) / squared)
        return np.concatenate([soft.ravel(), (right_axes @ rotation.T)[:, 2] * level])

    x = least_squares(residuals, np.zeros(7)).x
    rotation, scale = rotation_from_vector(x[:3]), float(np.exp(x[6]))
    return Similarity(scale, rotation, middle + x[3:6] - scale * rotation @ middle).after(start)


def _scale_spread(aligned: Array, priors: Array, sigma_m: Array) -> float:
    """Relative difference of the scale that each half of the track asks for; 0 where noise would decide it."""
    along = np.linalg.svd(aligned[:, :2] - aligned[:, :2].mean(0), full_matrices=False)[2][0]
    order = np.argsort(aligned[:, :2] @ along, kind="stable")
    scales = []
    for half in np.array_split(order, 2):
        x, y = (p[half, :2] - p[half, :2].mean(0) for p in (aligned, priors))
        size = np.sqrt((x**2).sum())
        if size < 20 * np.median(sigma_m[:, 0]):
            return 0.0
        scales.append(float((x * y).sum() / (x**2).sum()))
    return abs(scales[0] - scales[1]) / max(abs(np.mean(scales)), 1e-9)


def rotation_from_vector(vector: Array) -> Array:
    """Rotation [3, 3] of an axis-angle vector [rad]."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3) + skew(vector)
    k = skew(vector / angle)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def vectors_from_rotations(rotations: Array) -> Array:
    """Axis-angle vectors [n, 3] in radians of rotations [n, 3, 3]."""
    return Rotation.from_matrix(rotations).as_rotvec() if len(rotations) else np.zeros((0, 3))


def rotation_from_quaternion(quaternion: npt.ArrayLike) -> Array:
    """Rotations [..., 3, 3] of quaternions wxyz [..., 4] of any length."""
    q = np.asarray(quaternion, float)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def quaternion_from_rotation(rotation: Array) -> Array:
    """Quaternion wxyz [4] with w >= 0 of a rotation [3, 3]."""
    x, y, z, w = Rotation.from_matrix(rotation).as_quat(canonical=True)
    return np.array([w, x, y, z])


def heading_deg(rotations: Array) -> Array:
    """Heading of cameras [n], clockwise from north, of ``camera_from_world`` [n, 3, 3] in an east-north-up world."""
    forward = rotations[:, 2]
    return np.degrees(np.arctan2(forward[:, 0], forward[:, 1])) % 360


def skew(v: Array) -> Array:
    """The matrix [3, 3] whose product with a vector is the cross product ``v x vector``."""
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])


def extent_m(positions: Array) -> float:
    """Over how many metres positions [n, 2 or 3] spread, but for a tenth of them."""
    if not len(positions):
        return 0.0
    centred = positions[:, :2] - np.median(positions[:, :2], axis=0)
    return 2 * float(np.percentile(np.hypot(*centred.T), 90))


def roll_deg(rotations: Array) -> float:
    """How far the x axes of cameras ``camera_from_world`` [n, 3, 3] are from level, as a mean [deg]."""
    return float(np.degrees(np.abs(np.arcsin(np.clip(rotations[:, 0, 2], -1, 1)))).mean())
