"""Models that share cameras brought to one place together: positions, level cameras and shared cameras in one fit.

Models that are placed one by one by their positions disagree by metres about the cameras they share. Here each
model keeps its shape and moves by a similarity (seven unknowns) so that the shared cameras agree, in place and
in direction, while the positions of all cameras hold the whole. Frames differ from model to model: everything is
compared in one earth-fixed frame of parallel axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from geo_assets.geodesy import LocalFrame, geodetic
from geo_assets.reconstruct.frames import (
    GROSS_SIGMAS,
    IDENTITY,
    LEVEL_WEIGHT,
    ROBUST_SIGMAS,
    ROLL_SIGMA_DEG,
    Similarity,
    align,
    between_frames,
    rotation_from_vector,
    skew,
    vectors_from_rotations,
)

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SHARED_SIGMA_M = 0.1
SHARED_SIGMA_DEG = 0.5
"""How well two good models agree about the direction of a camera; few shared cameras cannot tip a model with it."""

GPS_CORRELATION = 0.05
"""Neighbouring positions err together: many of them in one model are worth 1 / 0.05 = 20 independent ones."""

FEW_SHARED = 3
"""With fewer shared cameras no majority tells a wrong one, so they count only where their positions bear it."""

MOST_ASTRAY = 1 / 3
"""Of the parts that hold each other, at most this share is found to have wrong positions altogether."""

_HOLD = 1 / np.array([0.2, *np.radians([20.0, 20.0, 20.0]), 100.0, 100.0, 100.0])
"""Inverse deviations of scale, turn [rad] and shift [m] from the start: they hold what nothing else does."""

_MOST_STEPS, _STILL = 60, 1e-6


@dataclass(frozen=True)
class Part:
    """One model: a block, or a component of a box. Lengths are metres or, where it is not placed yet, any unit.

    Attributes:
        name: name of the part, unique among those that are solved together.
        image_ids: ids of its registered images.
        centres: camera centres in the part's own frame, [n, 3].
        rotations: ``camera_from_part``, [n, 3, 3].
        priors: positions of the cameras, east-north-up of ``frame`` [m], [n, 3]; NaN where a camera has none.
        sigma_m: standard deviations of the priors, [n, 3].
        frame: where the part's east-north-up lies.
        fixed: whether it stays as it is, as a finished neighbour does.
    """

    name: str
    image_ids: list[str]
    centres: Array
    rotations: Array
    priors: Array
    sigma_m: Array
    frame: LocalFrame
    fixed: bool = False

    @property
    def has_prior(self) -> npt.NDArray[np.bool_]:
        """Which cameras have a position, [n]."""
        return np.asarray(np.isfinite(np.hstack([self.priors, self.sigma_m])).all(axis=1), bool)

    def gps_median_m(self, similarity: Similarity) -> float:
        """Median horizontal distance of the cameras to their positions under a similarity [m]; NaN without any."""
        known = self.has_prior
        offsets = similarity(self.centres[known]) - self.priors[known]
        return float(np.median(np.hypot(offsets[:, 0], offsets[:, 1]))) if len(offsets) else math.nan


def solve(
    parts: Sequence[Part], *, shared_sigma_m: float = SHARED_SIGMA_M, roll_sigma_deg: float = ROLL_SIGMA_DEG
) -> dict[str, Similarity]:
    """The similarity of each part, in its own frame, under which shared cameras and positions agree best.

    A part that shares no camera with another stays where it stands, or where its positions alone put it if it was
    not placed before. Wrong positions and wrong shared cameras lose their pull.

    Args:
        parts: the models; fixed ones hold the others and get the identity.
        shared_sigma_m: how well two good models agree about the centre of a camera [m].
        roll_sigma_deg: how level the cameras of a part are held.

    Raises:
        ValueError: two parts have the same name.
    """
    if len({part.name for part in parts}) < len(parts):
        raise ValueError("Two parts have the same name; each needs its own.")
    if not parts:
        return {}
    starts = [_start(part) for part in parts]
    common = _common_frame(parts)
    bodies = [_body(part, start, common, roll_sigma_deg) for part, start in zip(parts, starts, strict=True)]
    ties = _ties(parts, bodies, shared_sigma_m)
    tied = {number for tie in ties for number in (tie.a, tie.b)}
    free = [number for number, part in enumerate(parts) if number in tied and not part.fixed]
    if free:
        problem = _Problem(bodies, ties, free)
        problem.descend()
        # Soft-L1 bounds the pull of a gross error but does not end it; the second descent does without them.
        problem.drop_gross()
        problem.descend()
    moved = {number: _in_own_frame(bodies[number]) for number in free}
    return {
        part.name: moved[number].after(start) if number in moved else start
        for number, (part, start) in enumerate(zip(parts, starts, strict=True))
    }


def disagreements(parts: Sequence[Part], similarities: Mapping[str, Similarity]) -> pd.DataFrame:
    """How far apart each two parts place the cameras they share, before and after.

    Args:
        parts: the models.
        similarities: the result of :func:`solve`; a part that it lacks counts as unmoved.

    Returns:
        One row a pair: name_a, name_b, n_shared, before_m (median), median_m, max_m.
    """
    columns = ["name_a", "name_b", "n_shared", "before_m", "median_m", "max_m"]
    if not parts:
        return pd.DataFrame(columns=columns)
    common = _common_frame(parts)
    before = [between_frames(common, part.frame)(part.centres) for part in parts]
    after = [between_frames(common, p.frame)(similarities.get(p.name, IDENTITY)(p.centres)) for p in parts]
    rows = []
    for a, b, in_a, in_b in _shared(parts):
        was, is_now = (np.linalg.norm(c[a][in_a] - c[b][in_b], axis=1) for c in (before, after))
        rows.append((parts[a].name, parts[b].name, len(in_a), np.median(was), np.median(is_now), is_now.max()))
    return pd.DataFrame(rows, columns=columns)


def _start(part: Part) -> Similarity:
    """The identity for a part that is roughly in place, else the similarity that its positions give."""
    known = part.has_prior
    if part.fixed or known.sum() < 3:
        return IDENTITY
    centres, priors, sigma = part.centres[known], part.priors[known], part.sigma_m[known]
    if _in_place(centres, part.rotations[known], priors, sigma):
        return IDENTITY
    return align(centres, part.rotations[known], priors, sigma).similarity


def _in_place(centres: Array, rotations: Array, priors: Array, sigma_m: Array) -> bool:
    """Whether cameras stand near their positions, about level, and neither turned nor of another size."""
    near = np.median((np.abs(centres - priors) / sigma_m).max(axis=1)) < GROSS_SIGMAS
    level = np.abs(rotations[:, 0, 2]).mean() < np.sin(np.radians(20))
    ours, theirs = ((points - points.mean(0))[:, :2] for points in (centres, priors))
    size = (theirs**2).sum()
    # Over a few metres noise decides the ratio, and says nothing.
    alike = size < len(priors) * (3 * np.median(sigma_m[:, 0])) ** 2 or 0.5 < (ours * theirs).sum() / size < 2
    return bool(near and level and alike)


def _common_frame(parts: Sequence[Part]) -> LocalFrame:
    """A frame in the middle of all: far from the earth's centre numbers stay small."""
    lon, lat, alt_m = geodetic(np.mean([part.frame.ecef_from_enu[:3, 3] for part in parts], axis=0))
    return LocalFrame(float(lon), float(lat), float(alt_m))


def _shared(parts: Sequence[Part]) -> Iterator[tuple[int, int, Ints, Ints]]:
    """For each two parts with cameras in common their numbers and the rows of these cameras in both."""
    rows = pd.concat(
        [pd.DataFrame({"image": p.image_ids, "part": k, "row": range(len(p.image_ids))}) for k, p in enumerate(parts)]
    ).drop_duplicates(["image", "part"])
    rows = rows[rows.image.duplicated(keep=False)]
    both = rows.merge(rows, on="image", suffixes=("_a", "_b"))
    both = pd.DataFrame(both[both.part_a < both.part_b]).sort_values(["part_a", "part_b", "row_a"])
    for _, pair in both.groupby(["part_a", "part_b"], sort=True):
        a, b = int(pair.part_a.iloc[0]), int(pair.part_b.iloc[0])
        yield a, b, pair.row_a.to_numpy(np.int64), pair.row_b.to_numpy(np.int64)


@dataclass
class _Body:
    """A part in the common axes, where it starts, and how the fit has moved it so far.

    A camera centre is now at ``exp(log_scale) * turn @ arm + middle + shift``.
    """

    own: Similarity  # common frame from the part's own
    middle: Array  # [3]
    arms: Array  # centres from the middle [n, 3]
    axes: Array  # common_from_camera [n, 3, 3]
    priors: Array  # [n, 3]
    sigma: Array  # of the priors along the part's own axes [n, 3]
    counted: npt.NDArray[np.bool_]  # whether a camera's prior counts [n]
    lean: Array  # lean @ turn.T @ up is how far the cameras' x axes are from level [k, 3]
    log_scale: float = 0.0
    turn: Array = field(default_factory=lambda: np.eye(3))
    shift: Array = field(default_factory=lambda: np.zeros(3))

    def levers(self) -> Array:
        """Scaled and turned arms [n, 3]."""
        return np.exp(self.log_scale) * self.arms @ self.turn.T

    def misses(self) -> Array:
        """Centres minus priors in standard deviations, along the part's own axes [n, 3]."""
        return (self.levers() + self.middle + self.shift - self.priors) @ self.own.rotation / self.sigma

    @property
    def placement(self) -> tuple[float, Array, Array]:
        """Scale, turn and shift."""
        return self.log_scale, self.turn, self.shift

    @placement.setter
    def placement(self, placement: tuple[float, Array, Array]) -> None:
        self.log_scale, self.turn, self.shift = placement


@dataclass
class _Tie:
    """Two parts and the rows of the cameras they share; what is not ``kept`` does not count."""

    a: int
    b: int
    in_a: Ints
    in_b: Ints
    sigma: Array  # of the differences: three of the centre [m], three of the direction [rad]
    kept: npt.NDArray[np.bool_]


def _body(part: Part, start: Similarity, common: LocalFrame, roll_sigma_deg: float) -> _Body:
    own = between_frames(common, part.frame)
    placed = own.after(start)
    centres = placed(part.centres)
    middle = centres.mean(0) if len(centres) else np.zeros(3)
    known = part.has_prior
    x_axes = part.rotations[:, 0] @ placed.rotation.T
    level = LEVEL_WEIGHT / (np.radians(roll_sigma_deg) * np.sqrt(max(len(centres), 1)))
    return _Body(
        own=own,
        middle=middle,
        arms=centres - middle,
        axes=placed.rotation @ part.rotations.transpose(0, 2, 1),
        priors=own(np.where(known[:, None], part.priors, 0.0)),
        sigma=np.where(known[:, None], part.sigma_m, 1.0),
        counted=known,
        lean=level * np.linalg.qr(x_axes)[1] if len(x_axes) else np.zeros((0, 3)),
    )


def _ties(parts: Sequence[Part], bodies: Sequence[_Body], shared_sigma_m: float) -> list[_Tie]:
    """Every two parts that hold each other, by the cameras they share."""
    sigma = np.array([shared_sigma_m] * 3 + [np.radians(SHARED_SIGMA_DEG)] * 3)
    ties = []
    for a, b, in_a, in_b in _shared(parts):
        if parts[a].fixed and parts[b].fixed:
            continue
        gap = _gaps(bodies[a], bodies[b], in_a, in_b)[:, :3] @ bodies[a].own.rotation
        allowed = GROSS_SIGMAS * np.hypot(parts[a].sigma_m[in_a], parts[b].sigma_m[in_b])
        if len(in_a) >= FEW_SHARED or (np.abs(gap) <= allowed).all():
            ties.append(_Tie(a, b, in_a, in_b, sigma, np.ones(len(in_a), bool)))
    return ties


def _gaps(a: _Body, b: _Body, in_a: Ints, in_b: Ints) -> Array:
    """Difference of the shared cameras, centre [m] and direction [rad], in common axes [n, 6]."""
    centres = (a.levers()[in_a] + a.middle + a.shift) - (b.levers()[in_b] + b.middle + b.shift)
    turns = (a.turn @ a.axes[in_a]) @ (b.turn @ b.axes[in_b]).transpose(0, 2, 1)
    return np.concatenate([centres, vectors_from_rotations(turns)], axis=1)


class _Problem:
    """The fit as a sum of squares, whose cost and normal equations are made part by part and pair by pair.

    Most pairs of parts share nothing: the equations are sparse, and a city of hundreds of boxes is solved at once.
    """

    def __init__(self, bodies: Sequence[_Body], ties: Sequence[_Tie], free: Sequence[int]) -> None:
        self.bodies, self.ties = bodies, ties
        self.free = {number: place for place, number in enumerate(free)}

    def descend(self) -> None:
        """Steps of Levenberg and Marquardt until nothing moves by a micrometre or a microradian."""
        damping = 1e-6
        cost, gradient, matrix = self._equations()
        for _ in range(_MOST_STEPS):
            scaled = matrix + diags_array(damping * matrix.diagonal())
            step = -splu(scaled.tocsc()).solve(gradient).reshape(-1, 7)
            before = self._move(step)
            new_cost, new_gradient, new_matrix = self._equations()
            if new_cost > cost * (1 + 1e-12):
                for number, placement in before.items():
                    self.bodies[number].placement = placement
                damping *= 10
                if damping > 1e6:
                    return
                continue
            cost, gradient, matrix = new_cost, new_gradient, new_matrix
            damping = max(damping / 10, 1e-9)
            if np.abs(step).max() < _STILL:
                return

    def drop_gross(self) -> None:
        """Leave out the positions and shared cameras that are far from what the others say."""
        astray = []
        for number in self.free:
            body = self.bodies[number]
            near = body.counted & (np.abs(body.misses()) < GROSS_SIGMAS).all(axis=1)
            if near.sum() >= body.counted.sum() / 2:
                body.counted = near
            else:
                astray.append(number)
        # Positions that are wrong for a whole part are given up where most parts that hold it have good ones.
        groups = self._groups()
        for number in astray:
            if (groups[astray] == groups[number]).sum() <= MOST_ASTRAY * (groups == groups[number]).sum():
                self.bodies[number].counted = np.zeros_like(self.bodies[number].counted)
        for tie in self.ties:
            miss = np.linalg.norm(_gaps(self.bodies[tie.a], self.bodies[tie.b], tie.in_a, tie.in_b) / tie.sigma, axis=1)
            tie.kept = miss <= GROSS_SIGMAS * max(1.0, float(np.median(miss)))

    def _groups(self) -> Ints:
        """Number of the group of parts that hold each other, for each part."""
        ends = np.array([(tie.a, tie.b) for tie in self.ties]).T
        n = len(self.bodies)
        links = coo_array((np.ones(len(self.ties)), (ends[0], ends[1])), shape=(n, n))
        return connected_components(links, directed=False)[1]

    def _move(self, step: Array) -> dict[int, tuple[float, Array, Array]]:
        """Move the free parts by a step [f, 7]; returns where they were."""
        before = {}
        for number, place in self.free.items():
            body, change = self.bodies[number], step[place]
            before[number] = body.placement
            body.placement = (
                body.log_scale + float(change[0]),
                rotation_from_vector(change[1:4]) @ body.turn,
                body.shift + change[4:7],
            )
        return before

    def _equations(self) -> tuple[float, Array, csr_array]:
        """Cost, gradient [7 f] and the normal equations [7 f, 7 f]."""
        gradient = np.zeros((len(self.free), 7))
        diagonal = np.zeros((len(self.free), 7, 7))
        cost = 0.0
        for number, place in self.free.items():
            for residual, jacobian, weight, paid in _alone(self.bodies[number]):
                cost += paid
                gradient[place] += np.einsum("nij,ni,n->j", jacobian, residual, weight)
                diagonal[place] += _product(jacobian, jacobian, weight)
        rows, columns, blocks = list(self.free.values()), list(self.free.values()), list(diagonal)
        for tie in self.ties:
            a, b = self.bodies[tie.a], self.bodies[tie.b]
            in_a, in_b = tie.in_a[tie.kept], tie.in_b[tie.kept]
            residual = _gaps(a, b, in_a, in_b) / tie.sigma
            weight, paid = _soft(residual)
            cost += paid
            by_a, by_b = _swing(a, in_a) / tie.sigma[:, None], -_swing(b, in_b) / tie.sigma[:, None]
            for number, jacobian in ((tie.a, by_a), (tie.b, by_b)):
                if number in self.free:
                    gradient[self.free[number]] += np.einsum("nij,ni,n->j", jacobian, residual, weight)
                    diagonal[self.free[number]] += _product(jacobian, jacobian, weight)
            if tie.a in self.free and tie.b in self.free:
                i, j, block = self.free[tie.a], self.free[tie.b], _product(by_a, by_b, weight)
                rows += (i, j)
                columns += (j, i)
                blocks += (block, block.T)
        return cost, gradient.ravel(), _assembled(rows, columns, blocks, len(self.free))


def _alone(body: _Body) -> Iterator[tuple[Array, Array, Array, float]]:
    """Residuals [n, k], their derivatives [n, k, 7], weights [n] and cost of what one part is held by itself."""
    n = int(body.counted.sum())
    if n:
        miss = body.misses()[body.counted]
        weight, paid = _soft(miss)
        worth = 1 / (1 + GPS_CORRELATION * (n - 1))
        moved = _swing(body, np.flatnonzero(body.counted))[:, :3]
        yield miss, body.own.rotation.T @ moved / body.sigma[body.counted][:, :, None], worth * weight, worth * paid
    up = body.own.rotation[:, 2]
    leaning = body.lean @ body.turn.T @ up
    tilt = np.zeros((len(leaning), 7))
    tilt[:, 1:4] = body.lean @ body.turn.T @ skew(up)
    held = _HOLD * np.concatenate([[body.log_scale], vectors_from_rotations(body.turn[None])[0], body.shift])
    for residual, jacobian in ((leaning, tilt), (held, np.diag(_HOLD))):
        yield residual[None], jacobian[None], np.ones(1), float(residual @ residual)


def _swing(body: _Body, rows: Ints) -> Array:
    """How centres [m] and directions [rad] follow scale, turn and shift of their part, in common axes [n, 6, 7]."""
    levers = body.levers()[rows]
    swing = np.zeros((len(rows), 6, 7))
    swing[:, :3, 0] = levers
    # A turn w moves a lever l by w x l.
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        swing[:, i, 1 + j], swing[:, i, 1 + k] = levers[:, k], -levers[:, j]
    swing[:, :3, 4:7] = swing[:, 3:6, 1:4] = np.eye(3)
    return swing


def _soft(residual: Array) -> tuple[Array, float]:
    """Weights [n] and cost of the soft-L1 loss on the lengths of residuals [n, k]."""
    root = np.sqrt(1 + (residual**2).sum(1) / ROBUST_SIGMAS**2)
    return 1 / root, float(2 * ROBUST_SIGMAS**2 * (root - 1).sum())


def _product(a: Array, b: Array, weight: Array) -> Array:
    """Sum over n of ``weight * a.T @ b`` [7, 7] of two stacks of derivatives [n, k, 7]."""
    return (a * weight[:, None, None]).reshape(-1, 7).T @ b.reshape(-1, 7)


def _assembled(rows: list[int], columns: list[int], blocks: list[Array], n: int) -> csr_array:
    """A sparse matrix [7 n, 7 n] of blocks [7, 7] at their places."""
    inner, outer = np.meshgrid(np.arange(7), np.arange(7))
    i, j = (7 * np.array(at)[:, None, None] + offset for at, offset in ((rows, outer), (columns, inner)))
    return coo_array((np.array(blocks).ravel(), (i.ravel(), j.ravel())), shape=(7 * n, 7 * n)).tocsr()


def _in_own_frame(body: _Body) -> Similarity:
    """The move of a part in its own frame."""
    scale = float(np.exp(body.log_scale))
    moved = Similarity(scale, body.turn, body.middle + body.shift - scale * body.turn @ body.middle)
    back = Similarity(1.0, body.own.rotation.T, -body.own.rotation.T @ body.own.translation)
    return back.after(moved).after(body.own)
