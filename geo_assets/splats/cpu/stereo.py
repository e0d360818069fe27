"""Depth of the photos by PatchMatch stereo, so that training starts from surfaces and not from sparse points alone.

As Bleyer et al. 2011 and Schoenberger et al. 2016 do it: each pixel holds a plane (normal and depth), takes over the
planes of its neighbours and random variations of its own where they explain the neighbouring photos better, and is
believed where another photo finds the same place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_assets.splats.cameras import Camera, Scene, View
from geo_assets.splats.cpu.compiled import f32, kernel, parallel_kernel, prange
from geo_assets.splats.gaussians import Floats

LONG_SIDE_PX, LEAST_PX = 320, 96
"""Long side of the depth maps, and what it may fall to where there are many photos."""
MOST_PIXELS = 1_500_000
"""Pixels of all depth maps together: what bounds time (10 CPU-seconds a million) and memory (40 MB a million)."""
PIXELS_A_SECOND = 100_000
SOURCES, NEIGHBOURS = 4, 16
"""Photos that each photo is compared with, chosen among so many near ones."""
SWEEPS = 4
REACH_PX, STRIDE_PX = 6, 3
"""Half size of a patch and the step between its samples. Half the size finds a third less of a street."""
SAMPLES = (2 * (REACH_PX // STRIDE_PX) + 1) ** 2
ALIKE = 0.08
"""Difference of brightness at which a sample weighs 1/e of the middle: a patch should not reach over edges."""
WORST = 2.0
"""Cost of what cannot be compared; costs are 1 - correlation."""
GOOD_COST, FAIR_COST, SAME_DEPTH = 0.6, 1.0, 0.05
"""Highest cost of a believed pixel and of the one that confirms it, and the share by which their depths may differ."""
OF_RANGE = 0.7
"""What lies beyond this share of the farthest depth is sky, or anywhere."""


@dataclass(frozen=True)
class Depths:
    """Depth maps of V views, padded to one size.

    Args:
        views: the views, photos as given.
        cameras: their cameras at the size of the maps.
        planes: float32 [V, H, W, 4]: unit normal in the camera's frame, towards the camera, and depth along the optical
            axis in metres; depth 0 where unknown.
        costs: float32 [V, H, W].
        rig: the same views as the kernels know them.
    """

    views: list[View]
    cameras: list[Camera]
    planes: Floats
    costs: Floats
    rig: Rig


class Rig(NamedTuple):
    """What the kernels know of V views and their S sources."""

    grays: Floats
    """Brightness from 0 to 1 [V, H, W]."""
    sizes: npt.NDArray[np.int64]
    """Rows and columns in use [V, 2]."""
    lenses: Floats
    """fx, fy, cx, cy [V, 4], pixel centres at whole numbers."""
    poses: Floats
    """camera_from_world [V, 3, 4]."""
    sources: npt.NDArray[np.int64]
    """Views to compare with [V, S], -1 for none."""
    turns: Floats
    """K_source R K_view^-1 [V, S, 3, 3]."""
    shifts: Floats
    """K_source t [V, S, 3], so that a pixel p of depth d lies at turn p + shift / d."""
    ranges: Floats
    """Nearest and farthest depth [V, 2]."""


def depths_of(scene: Scene, views: list[View], *, seed: int, most_pixels: int = MOST_PIXELS) -> Depths | None:
    """Depth maps of photos, where at least two of them agree; None where there is nothing to compare.

    Args:
        scene: its points say how far the photos look.
        views: the photos to use; what their masks hide stays unknown.
        seed: of the random planes.
        most_pixels: of all maps together.
    """
    views = [view for view in views if len(view.point_rows) >= 3]
    most = max(2, most_pixels // LEAST_PX**2)
    if len(views) > most:
        views = [views[i] for i in np.linspace(0, len(views) - 1, most).round().astype(int)]
    if len(views) < 2:
        return None
    cameras = _cameras(views, most_pixels)
    rig = _rig(scene, views, cameras)
    planes = _random_planes(scene, views, cameras, rig, seed)
    costs = np.full(rig.grays.shape, WORST, np.float32)
    for i in range(SWEEPS + 1):
        sweep(i, seed, rig, planes, costs)
    for i, (view, camera) in enumerate(zip(views, cameras, strict=True)):
        costs[i, : camera.height, : camera.width][~reduced_mask(view, camera)] = WORST
    believed = agreed(rig, planes, costs) & (planes[..., 3] < OF_RANGE * rig.ranges[:, 1, None, None])
    planes[..., 3] *= believed
    return Depths(views, cameras, planes, costs, rig)


def _cameras(views: list[View], most_pixels: int) -> list[Camera]:
    """The cameras at the size of the depth maps."""
    sides = np.array([[view.camera.height, view.camera.width] for view in views], float)
    pixels = (sides.prod(axis=1) / sides.max(axis=1) ** 2).sum() * LONG_SIDE_PX**2
    long_side = max(LEAST_PX, LONG_SIDE_PX * min(1.0, math.sqrt(most_pixels / pixels)))
    return [view.camera.resized(min(1.0, long_side / max(view.camera.width, view.camera.height))) for view in views]


def _rig(scene: Scene, views: list[View], cameras: list[Camera]) -> Rig:
    sources = _sources(scene, views)
    grays = np.zeros((len(views), max(c.height for c in cameras), max(c.width for c in cameras)), np.float32)
    turns, shifts = np.zeros((*sources.shape, 3, 3), np.float32), np.zeros((*sources.shape, 3), np.float32)
    for i, (view, camera) in enumerate(zip(views, cameras, strict=True)):
        gray = reduced(view.photo, camera).mean(axis=2) / 255
        grays[i, : camera.height, : camera.width] = np.where(reduced_mask(view, camera), gray, 0.5)
        for k, j in enumerate(sources[i][sources[i] >= 0]):
            other = cameras[j]
            rotation = other.rotation @ camera.rotation.T
            turns[i, k] = _matrix(other) @ rotation @ np.linalg.inv(_matrix(camera))
            shifts[i, k] = _matrix(other) @ (other.translation - rotation @ camera.translation)
    return Rig(
        grays,
        np.array([[c.height, c.width] for c in cameras]),
        np.array([[c.fx, c.fy, c.cx - 0.5, c.cy - 0.5] for c in cameras], np.float32),
        np.array([np.column_stack([c.rotation, c.translation]) for c in cameras], np.float32),
        sources,
        turns,
        shifts,
        _ranges(scene, views),
    )


def reduced(photo: npt.NDArray[np.uint8], camera: Camera) -> Floats:
    """A photo at the size of a camera, each pixel a mean, float32 [H, W, 3] from 0 to 255."""
    from PIL import Image

    size = camera.width, camera.height
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX), np.float32)


def reduced_mask(view: View, camera: Camera) -> npt.NDArray[np.bool_]:
    """The mask of a view at the size of a camera, bool [H, W]: true where all of a pixel counts."""
    from PIL import Image

    if view.mask is None:
        return np.ones((camera.height, camera.width), np.bool_)
    hidden = Image.fromarray(np.where(view.mask, 0, 255).astype(np.uint8))
    return np.asarray(hidden.convert("F").resize((camera.width, camera.height), Image.Resampling.BOX)) == 0


def _matrix(camera: Camera) -> npt.NDArray[np.float64]:
    """Calibration matrix for pixel centres at whole numbers."""
    return np.array([[camera.fx, 0, camera.cx - 0.5], [0, camera.fy, camera.cy - 0.5], [0, 0, 1]])


def _sources(scene: Scene, views: list[View]) -> npt.NDArray[np.int64]:
    """For each view those that see its points best: from another side, but not too far off and not too different."""
    centres = np.array([view.camera.centre for view in views])
    chosen = np.full((len(views), SOURCES), -1)
    for i, view in enumerate(views):
        points = scene.points[view.point_rows]
        depth = view.camera.project(points)[2]
        worth = np.zeros(len(views))
        for j in np.argsort(np.linalg.norm(centres - centres[i], axis=1), kind="stable")[: NEIGHBOURS + 1]:
            if j == i:
                continue
            other = views[j].camera
            u, v, z = other.project(points)
            inside = (z > 0) & (u >= 0) & (v >= 0) & (u < other.width) & (v < other.height)
            angle = _angles(points - centres[i], points - centres[j])
            alike = np.exp(-np.abs(np.log(np.maximum(z, 1e-6) / np.maximum(depth, 1e-6))))
            worth[j] = (inside * alike * np.clip(angle / 3, 0, 1) * np.clip(2 - angle / 20, 0, 1)).sum()
        best = np.argsort(-worth, kind="stable")[:SOURCES]
        best = best[worth[best] > 0]
        chosen[i, : len(best)] = best
    return chosen


def _angles(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Angles between vectors [N, 3], degrees."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.degrees(np.arccos(np.clip((a * b).sum(axis=1) / (lengths + 1e-9), -1, 1)))


def _ranges(scene: Scene, views: list[View]) -> Floats:
    """Nearest and farthest depth of each view [V, 2], a little beyond what its points span."""
    spans = []
    for view in views:
        depth = view.camera.project(scene.points[view.point_rows])[2]
        low, high = np.quantile(np.maximum(depth, 1e-3), [0.02, 0.98])
        spans.append([low / 4, high * 1.5])
    spans = np.array(spans)
    # The road before the car is near in each photo, but has points in few.
    spans[:, 0] = np.minimum(spans[:, 0], np.median(spans[:, 0]))
    return spans.astype(np.float32)


def _random_planes(scene: Scene, views: list[View], cameras: list[Camera], rig: Rig, seed: int) -> Floats:
    """Planes to start from [V, H, W, 4]: at the depth of a point around where it is seen, anywhere else."""
    rng = np.random.default_rng(seed)
    shape = rig.grays.shape
    planes = np.empty((*shape, 4), np.float32)
    near, far = 1 / rig.ranges[:, 0, None, None], 1 / rig.ranges[:, 1, None, None]
    planes[..., 3] = 1 / (far + rng.random(shape, np.float32) * (near - far))
    planes[..., :2] = 1.6 * rng.random((*shape, 2), np.float32) - 0.8
    planes[..., 2] = -1
    planes[..., :3] /= np.linalg.norm(planes[..., :3], axis=-1, keepdims=True)
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for i, (camera, view) in enumerate(zip(cameras, views, strict=True)):
        u, v, depth = camera.project(scene.points[view.point_rows])
        seen = (depth > 0) & (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
        for dy, dx in around:
            row = np.clip(v[seen].astype(int) + dy, 0, camera.height - 1)
            column = np.clip(u[seen].astype(int) + dx, 0, camera.width - 1)
            planes[i, row, column, 3] = depth[seen]
    return planes


# -- kernels ------------------------------------------------------------------------------------------------


@kernel
def chance(state):
    """A number from 0 to 1; ``state``, uint64 [1], moves on (xorshift)."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return f32(x >> np.uint64(40)) * f32(1 / (1 << 24))


@kernel
def along_ray(plane, lens, x, y):
    """Cosine-like factor of a plane and the ray of a pixel: depth times it is the plane's distance, negated."""
    return plane[0] * (f32(x) - lens[2]) / lens[0] + plane[1] * (f32(y) - lens[3]) / lens[1] + plane[2]


@kernel
def look(gray, x, y, patch, weights):
    """Fill the patch around a pixel, less its mean, and its weights; returns the variance."""
    n, total, weight = 0, f32(0), f32(0)
    for dy in range(-REACH_PX, REACH_PX + 1, STRIDE_PX):
        for dx in range(-REACH_PX, REACH_PX + 1, STRIDE_PX):
            value = gray[y + dy, x + dx]
            w = math.exp(-abs(value - gray[y, x]) * f32(1 / ALIKE))
            patch[n], weights[n] = value, w
            total += w * value
            weight += w
            n += 1
    variance = f32(0)
    for n in range(SAMPLES):
        weights[n] /= weight
        patch[n] -= total / weight
        variance += weights[n] * patch[n] * patch[n]
    return variance


@kernel
def cost_of(plane, i, x, y, rig, patch, weights, variance):
    """Cost of a plane (nx, ny, nz, depth) at a pixel of view i: 1 - correlation, the mean of the two best sources."""
    worst, lens = f32(WORST), rig.lenses[i]
    facing = along_ray(plane, lens, x, y)
    if facing > f32(-0.05) or plane[3] <= f32(0):
        return worst
    # The homography of the plane: turn + shift m^T, with m^T p = 1 / depth at each pixel p.
    inverse = f32(1) / (plane[3] * facing)
    mx, my = plane[0] / lens[0] * inverse, plane[1] / lens[1] * inverse
    mz = plane[2] * inverse - mx * lens[2] - my * lens[3]
    best, second = worst, worst
    for k in range(SOURCES):
        j = rig.sources[i, k]
        if j < 0:
            break
        turn, shift, gray = rig.turns[i, k], rig.shifts[i, k], rig.grays[j]
        h20, h21 = turn[2, 0] + shift[2] * mx, turn[2, 1] + shift[2] * my
        w = h20 * f32(x) + h21 * f32(y) + turn[2, 2] + shift[2] * mz
        if w <= f32(1e-3):
            continue
        w = f32(1) / w
        h00, h01 = turn[0, 0] + shift[0] * mx, turn[0, 1] + shift[0] * my
        h10, h11 = turn[1, 0] + shift[1] * mx, turn[1, 1] + shift[1] * my
        u = (h00 * f32(x) + h01 * f32(y) + turn[0, 2] + shift[0] * mz) * w
        v = (h10 * f32(x) + h11 * f32(y) + turn[1, 2] + shift[1] * mz) * w
        # Over a patch it is taken as affine.
        ux, uy = (h00 - u * h20) * w, (h01 - u * h21) * w
        vx, vy = (h10 - v * h20) * w, (h11 - v * h21) * w
        reach_u, reach_v = f32(REACH_PX) * (abs(ux) + abs(uy)), f32(REACH_PX) * (abs(vx) + abs(vy))
        if u < reach_u or u + reach_u >= f32(rig.sizes[j, 1] - 1):
            continue
        if v < reach_v or v + reach_v >= f32(rig.sizes[j, 0] - 1):
            continue
        total, square, product, n = f32(0), f32(0), f32(0), 0
        for dy in range(-REACH_PX, REACH_PX + 1, STRIDE_PX):
            for dx in range(-REACH_PX, REACH_PX + 1, STRIDE_PX):
                su, sv = u + ux * f32(dx) + uy * f32(dy), v + vx * f32(dx) + vy * f32(dy)
                column, row = np.int64(su), np.int64(sv)
                a, b = su - f32(column), sv - f32(row)
                top = gray[row, column] + a * (gray[row, column + 1] - gray[row, column])
                bottom = gray[row + 1, column] + a * (gray[row + 1, column + 1] - gray[row + 1, column])
                value = top + b * (bottom - top)
                total += weights[n] * value
                square += weights[n] * value * value
                product += weights[n] * value * patch[n]
                n += 1
        there = square - total * total
        cost = f32(1) - product / math.sqrt(there * variance) if there > f32(1e-6) else worst
        if cost < best:
            best, second = cost, best
        elif cost < second:
            second = cost
    if second < worst:
        return f32(0.5) * (best + second)
    # Where one source alone sees it, its word is worth a little less.
    return best + f32(0.1) if best < worst else worst


@kernel
def propose(trial, iteration, x, y, step, plane, lens, span, state, tried):
    """A plane to try at a pixel: a neighbour's (0, 1), another depth (2), another slant (3), a little of both (4)."""
    for c in range(4):
        tried[c] = plane[y, x, c]
    narrow = f32(0.5) ** f32(iteration)
    if trial < 2:
        column, row = (x - step, y) if trial == 0 else (x, y - step)
        for c in range(4):
            tried[c] = plane[row, column, c]
        tried[3] *= along_ray(tried, lens, column, row) / min(along_ray(tried, lens, x, y), f32(-1e-6))
    if trial == 2 or trial == 4:
        reach = (f32(1) / span[0] - f32(1) / span[1]) * narrow if trial == 2 else f32(0.03) / tried[3]
        tried[3] = f32(1) / max(f32(1) / tried[3] + (f32(2) * chance(state) - f32(1)) * reach, f32(1e-6))
    if trial >= 3:
        reach, length = max(f32(2) * narrow, f32(0.1)), f32(1e-9)
        for c in range(3):
            tried[c] += (f32(2) * chance(state) - f32(1)) * reach
            length += tried[c] * tried[c]
        for c in range(3):
            tried[c] /= math.sqrt(length)
    tried[3] = min(max(tried[3], span[0]), span[1])


@parallel_kernel
def sweep(iteration, seed, rig, planes, costs):
    """One pass over all views, each from the other corner than the pass before; the first only finds the costs.

    Args:
        iteration: number of the pass.
        seed: of the random proposals.
        rig: the views.
        planes: normal and depth [V, H, W, 4], changed.
        costs: [V, H, W], changed.
    """
    for i in prange(len(costs)):
        height, width = rig.sizes[i, 0], rig.sizes[i, 1]
        plane, cost = planes[i], costs[i]
        patch, weights, tried = np.empty(SAMPLES, np.float32), np.empty(SAMPLES, np.float32), np.empty(4, np.float32)
        state = np.empty(1, np.uint64)
        state[0] = np.uint64(88172645463325252 + 1000003 * (seed + 1) + 7919 * (i * 64 + iteration))
        for _ in range(8):
            chance(state)
        step = 1 if iteration % 2 else -1
        for line in range(REACH_PX, height - REACH_PX):
            y = line if step == 1 else height - 1 - line
            for place in range(REACH_PX, width - REACH_PX):
                x = place if step == 1 else width - 1 - place
                variance = look(rig.grays[i], x, y, patch, weights)
                if variance < f32(1e-6):
                    continue
                if iteration == 0:
                    cost[y, x] = cost_of(plane[y, x], i, x, y, rig, patch, weights, variance)
                    continue
                for trial in range(5):
                    propose(trial, iteration, x, y, step, plane, rig.lenses[i], rig.ranges[i], state, tried)
                    if tried[0] == plane[y, x, 0] and tried[1] == plane[y, x, 1] and trial < 2:
                        continue  # the neighbour's plane, taken over before
                    found = cost_of(tried, i, x, y, rig, patch, weights, variance)
                    if found < cost[y, x]:
                        cost[y, x] = found
                        for c in range(4):
                            plane[y, x, c] = tried[c]


@kernel
def place_of(rig, i, x, y, depth):
    """World point of a pixel at a depth."""
    lens, pose = rig.lenses[i], rig.poses[i]
    cx = (f32(x) - lens[2]) / lens[0] * depth - pose[0, 3]
    cy = (f32(y) - lens[3]) / lens[1] * depth - pose[1, 3]
    cz = depth - pose[2, 3]
    return (
        pose[0, 0] * cx + pose[1, 0] * cy + pose[2, 0] * cz,
        pose[0, 1] * cx + pose[1, 1] * cy + pose[2, 1] * cz,
        pose[0, 2] * cx + pose[1, 2] * cy + pose[2, 2] * cz,
    )


@kernel
def pixel_of(rig, j, place):
    """Row, column and depth of a world point in a view; row -1 where it is not in the picture."""
    pose, lens = rig.poses[j], rig.lenses[j]
    depth = pose[2, 0] * place[0] + pose[2, 1] * place[1] + pose[2, 2] * place[2] + pose[2, 3]
    if depth <= f32(0):
        return -1, -1, depth
    u = (pose[0, 0] * place[0] + pose[0, 1] * place[1] + pose[0, 2] * place[2] + pose[0, 3]) / depth
    v = (pose[1, 0] * place[0] + pose[1, 1] * place[1] + pose[1, 2] * place[2] + pose[1, 3]) / depth
    u, v = u * lens[0] + lens[2] + f32(0.5), v * lens[1] + lens[3] + f32(0.5)
    if u < f32(0) or v < f32(0) or u >= f32(rig.sizes[j, 1]) or v >= f32(rig.sizes[j, 0]):
        return -1, -1, depth
    return int(v), int(u), depth


@parallel_kernel
def agreed(rig, planes, costs):
    """Pixels of low cost whose place a source finds at the same depth, bool [V, H, W]."""
    result = np.zeros(costs.shape, np.bool_)
    for i in prange(len(costs)):
        for y in range(rig.sizes[i, 0]):
            for x in range(rig.sizes[i, 1]):
                if costs[i, y, x] > f32(GOOD_COST):
                    continue
                place = place_of(rig, i, x, y, planes[i, y, x, 3])
                for k in range(SOURCES):
                    j = rig.sources[i, k]
                    if j < 0:
                        break
                    row, column, depth = pixel_of(rig, j, place)
                    if row < 0 or costs[j, row, column] > f32(FAIR_COST):
                        continue
                    if abs(planes[j, row, column, 3] - depth) < f32(SAME_DEPTH) * depth:
                        result[i, y, x] = True
                        break
    return result
