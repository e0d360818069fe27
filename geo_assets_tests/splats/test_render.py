"""Pictures and depths against a renderer that is plain to read, and what must not change them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import pytest

from geo_assets.splats.cameras import Camera
from geo_assets.splats.cpu import compiled
from geo_assets.splats.cpu.compiled import Threads, threads_in_use, use_threads
from geo_assets.splats.cpu.rasteriser import Rasteriser
from geo_assets.splats.gaussians import SH_0, Floats, Gaussians, rotations_of
from geo_assets.splats.render import render, render_depth

BACKGROUND = (0.1, 0.2, 0.3)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests that set threads leave one behind."""
    yield
    use_threads(1)


def camera(width: int = 77, height: int = 53) -> Camera:
    """A camera whose image is no whole number of tiles."""
    lens = Camera(np.eye(3), np.zeros(3), 60, 63, 37, 29, width, height)
    return Camera.looking((0.6, -4.0, 0.9), (0.1, 0.2, -0.1), like=lens)


def needles(n: int, seed: int = 0) -> Gaussians:
    """Long thin Gaussians, faint and opaque, within and beside the image."""
    rng = np.random.default_rng(seed)
    return Gaussians.of(
        rng.uniform(-2.5, 2.5, (n, 3)),
        np.log(np.stack([rng.uniform(0.2, 2.0, n), rng.uniform(0.005, 0.1, n), rng.uniform(0.005, 0.1, n)], axis=1)),
        rng.normal(size=(n, 4)),
        rng.uniform(-4, 4, n),
        rng.normal(0, 0.8, (n, 1, 3)),
    )


def plain_render(gaussians: Gaussians, camera: Camera) -> Floats:
    """Every Gaussian on every pixel, in double precision."""
    v, u = np.mgrid[: camera.height, : camera.width] + 0.5
    image, through = np.zeros((camera.height, camera.width, 3)), np.ones((camera.height, camera.width))
    local = gaussians.means.astype(float) @ camera.rotation.T + camera.translation
    for n in np.argsort(local[:, 2]):
        x, y, z = local[n]
        if z < 0.01:
            continue
        slopes = [
            float(np.clip(slope, -0.65 * size / focal, 0.65 * size / focal))
            for slope, size, focal in ((x / z, camera.width, camera.fx), (y / z, camera.height, camera.fy))
        ]
        jacobian = np.array(
            [[camera.fx / z, 0, -camera.fx * slopes[0] / z], [0, camera.fy / z, -camera.fy * slopes[1] / z]]
        )
        axes = rotations_of(gaussians.quats[n : n + 1].astype(float))[0] * np.exp(gaussians.log_scales[n].astype(float))
        half = jacobian @ camera.rotation @ axes
        conic = np.linalg.inv(half @ half.T + 0.3 * np.eye(2))
        dx, dy = u - (camera.fx * x / z + camera.cx), v - (camera.fy * y / z + camera.cy)
        exponent = -0.5 * (conic[0, 0] * dx * dx + 2 * conic[0, 1] * dx * dy + conic[1, 1] * dy * dy)
        alpha = np.minimum(gaussians.opacities[n] * np.exp(exponent), 0.99)
        alpha[(alpha < 1 / 255) | (through < 1e-4)] = 0
        colour = np.maximum(0.5 + SH_0 * gaussians.sh[n, 0].astype(float), 0)
        image += (through * alpha)[..., None] * colour
        through *= 1 - alpha
    return (image + through[..., None] * np.array(BACKGROUND)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_is_that_of_the_definition(seed: int) -> None:
    """Above all: no pixel that an ellipse reaches is left out where tiles and rows are skipped."""
    splat = needles(60, seed)
    wanted = plain_render(splat, camera())
    found = Rasteriser().forward(splat.rows, 0, camera(), np.array(BACKGROUND, np.float32))
    # At the rim alpha is 1/255, and rounding decides whether it counts.
    assert np.abs(found - wanted).max() < 0.01
    assert np.abs(found - wanted).mean() < 1e-4
    assert wanted.std() > 0.1


def test_tiles_that_an_ellipse_does_not_touch_are_not_visited() -> None:
    diagonal = Gaussians.of(
        [[0, 0, 5]], np.log([[2.0, 0.01, 0.01]]), [[math.cos(math.pi / 8), 0, 0, math.sin(math.pi / 8)]], [4], np.zeros((1, 1, 3))
    )  # fmt: skip
    straight = Camera(np.eye(3), np.zeros(3), 100, 100, 64, 64, 128, 128)
    raster = Rasteriser()
    raster.forward(diagonal.rows, 0, straight, np.zeros(3, np.float32))
    assert 8 <= raster.n_entries <= 22  # of 64 tiles


def test_nothing_changes_with_the_threads() -> None:
    splat = needles(400)
    weights = np.random.default_rng(0).normal(size=(53, 77, 3)).astype(np.float32)
    results = []
    for threads in (1, 2, 3):
        use_threads(threads)
        raster = Rasteriser()
        image = raster.forward(splat.rows, 0, camera(), np.array(BACKGROUND, np.float32))
        gradients, pull = raster.backward(weights)
        results.append([image, gradients, pull])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert np.abs(results[0][1]).max() > 0


def test_pictures_without_gradients_are_the_same() -> None:
    splat = needles(100)
    wanted = np.clip(Rasteriser().forward(splat.rows, 0, camera(), np.array(BACKGROUND, np.float32)), 0, 1)
    assert np.array_equal(render(splat, camera(), background=BACKGROUND), wanted)


def test_no_gaussian_is_background() -> None:
    assert render(Gaussians.none(), camera(), background=BACKGROUND) == pytest.approx(
        np.broadcast_to(np.array(BACKGROUND, np.float32), (53, 77, 3))
    )
    assert np.isnan(render_depth(Gaussians.none(), camera())).all()


def test_depth() -> None:
    """Two walls, the nearer one left of the middle; neither in the topmost rows."""
    straight = Camera(np.eye(3), np.zeros(3), 50, 50, 32, 24, 64, 48)
    y = np.linspace(-0.3, 3, 34)

    def wall(x: np.ndarray, depth: float) -> Gaussians:
        places = np.stack([*np.meshgrid(x, y), np.full((len(y), len(x)), depth)], axis=-1).reshape(-1, 3)
        n = len(places)
        flat = np.tile(np.log([0.1, 0.1, 0.001]), (n, 1))
        return Gaussians.of(places, flat, np.tile([1.0, 0, 0, 0], (n, 1)), np.full(n, 5.0), np.zeros((n, 1, 3)))

    near, far = wall(np.arange(-3, -0.2, 0.1), 4), wall(np.arange(-4, 4, 0.1), 6)
    depth = render_depth(Gaussians(np.concatenate([far.rows, near.rows])), straight)
    assert depth[26:44, 4:26] == pytest.approx(4, abs=0.02)
    assert depth[26:44, 36:60] == pytest.approx(6, abs=0.02)
    assert np.isnan(depth[:10]).all()


def test_threads_are_used_where_they_help(monkeypatch: pytest.MonkeyPatch) -> None:
    if use_threads(0) == 1:
        pytest.skip("one core")
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(seconds_alone: float, seconds_together: float, threads: Threads) -> list[int]:
        used = []
        for _ in range(300):
            threads.next_step()
            used.append(threads_in_use())
            now[0] += seconds_alone if threads_in_use() == 1 else seconds_together
        return used

    threads = Threads(0)
    idle = run(2.0, 1.0, threads)
    assert idle.count(1) <= 4 * compiled.TRIAL_STEPS
    assert set(run(2.0, 5.0, threads)[-50:]) == {1}  # the other core became busy
    assert min(run(2.0, 1.0, threads)[-50:]) > 1
    assert set(run(2.0, 5.0, Threads(2))) == {2}  # as asked for


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_broken_rows_do_not_break_the_renderer(value: float) -> None:
    """A training that diverges notices it by its loss, so that the kernels must survive such rows."""
    rows = needles(300).rows.copy()
    for column in range(rows.shape[1]):
        rows[column::40, column] = value
    raster = Rasteriser()
    raster.forward(rows, 0, camera(), np.zeros(3, np.float32))
    gradients, _ = raster.backward(np.ones((53, 77, 3), np.float32))
    assert gradients.shape == rows.shape
    assert raster.n_entries <= 300 * 20
