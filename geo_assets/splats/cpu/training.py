"""The training loop of the embedded engine.

The same seed gives the same splat, whatever the number of threads: photos are drawn by one generator, gradients are
summed in a fixed order, and a training that was killed goes on from its checkpoint as if nothing had happened. Only a
time limit breaks this, since it ends the schedule at a step that depends on the machine.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from geo_assets.errors import TrainingError
from geo_assets.splats.cameras import Scene, View
from geo_assets.splats.cpu.adam import adam
from geo_assets.splats.cpu.checkpoint import State, checkpoint_path, fingerprint, resume, save
from geo_assets.splats.cpu.compiled import Threads
from geo_assets.splats.cpu.density import Population, column_rates, sky_rates
from geo_assets.splats.cpu.exposure import Exposure, groups
from geo_assets.splats.cpu.initial import start_of
from geo_assets.splats.cpu.loss import Loss
from geo_assets.splats.cpu.photos import Photos
from geo_assets.splats.cpu.rasteriser import Rasteriser
from geo_assets.splats.cpu.stereo import MOST_PIXELS, PIXELS_A_SECOND
from geo_assets.splats.cpu.warm import start_from
from geo_assets.splats.engine import Log, SplatRequest
from geo_assets.splats.gaussians import MEAN, SCALE, Gaussians

MEAN_RATE = 1.6e-4
"""Learning rate of the means at the start, in reaches of the scene; it falls to a hundredth."""
REFINE_FROM, GROWN_BY, REFINE_UNTIL = 0.1, 0.45, 0.7
"""Shares of the training between which the number of Gaussians changes, and by which the cap may be reached."""
COARSE_UNTIL = 0.35
"""Share of the training on photos of half the size, a quarter of the work."""
GOES_ON_AT = 0.4
"""A training from an earlier splat is the last part of a whole one, from here: after the coarse photos, with so much of
the densification left as new areas need, and with means that move less."""
SETTLES = 0.05
"""Share of such a training over which its rates rise: Adam has no moments yet, and would shake what is right."""
GROWTH = 0.15
"""Share by which the number of Gaussians grows at most at once, where more is not needed to reach the cap."""
STEREO_SHARE = 0.2
"""Share of a time limit that stereo may take."""
LIMIT_EVERY = 20
CHECKPOINT_EVERY = 250
SAFE_EVERY = 100
CURVE_POINTS = 8
SAY_EVERY_S = 5.0


@dataclass
class Trained:
    """What came out: the Gaussians of the place and of the sky, the course of the training and how far it went."""

    gaussians: Gaussians
    sky: Gaussians
    steps_done: int
    curve: list[dict[str, float]]
    resumed_at: int = 0
    exposure_groups: int = 0


def train(scene: Scene, request: SplatRequest, log: Log) -> Trained:
    """Train a scene.

    Args:
        scene: photos, cameras and points, z up.
        request: steps, cap, harmonics, seed and time limit; ``scratch_dir`` holds the checkpoint.
        log: a line every few seconds.

    Raises:
        TrainingError: nothing to train on, or the loss became non-finite twice.
    """
    began = time.monotonic()
    views = scene.trained(request.holdout_every)
    if len(scene.points) == 0 or not views:
        raise TrainingError(
            f"The sparse model has {len(scene.points)} points and {len(scene.views)} photos; training needs points to start from and photos that are not held out. Look at the asset sparse_models of this box."
        )
    threads = Threads(request.threads)
    of = groups(views, len(scene.points), request.exposure)
    exposure = Exposure(of) if of else None
    print_of = fingerprint(scene, request)
    state = resume(request, print_of, exposure, log) or _begin(scene, views, request, exposure, log)
    resumed_at = state.step
    log(
        f"Training {len(views)} photos with {_threads_said(threads.chosen, request.threads)} from {len(state.population.rows):,} Gaussians"
        + (f", {state.population.n_sky:,} of them sky, " if state.population.n_sky else ", ")
        + _exposure_said(request.exposure, len(exposure.names) if exposure else 0)
        + (f", from step {resumed_at}" if resumed_at else "")
    )
    _Trainer(scene, views, request, threads, log, began).run(state, print_of)
    if path := checkpoint_path(request):
        path.unlink(missing_ok=True)
    people, n_groups = state.population, len(exposure.names) if exposure else 0
    return Trained(people.place, people.sky, state.step, state.curve, resumed_at, n_groups)


def _begin(scene: Scene, views: list[View], request: SplatRequest, exposure: Exposure | None, log: Log) -> State:
    began, pixels = time.monotonic(), MOST_PIXELS
    if request.timeout_s is not None:
        pixels = min(pixels, int(STEREO_SHARE * request.timeout_s * PIXELS_A_SECOND))
    bounds = {"max_splats": request.max_splats, "degree": request.sh_degree, "seed": request.seed}
    if request.earlier:
        start = start_from(request.earlier, scene, views, **bounds, stereo_pixels=pixels)
        log(
            f"Goes on from the {len(request.earlier.place):,} Gaussians of splat {request.earlier.version}, {len(start.place):,} with what new photos show beyond them and without what only deleted photos showed ({time.monotonic() - began:.1f} s)."
        )
    else:
        start = start_of(scene, views, **bounds, stereo_pixels=pixels)
        log(
            f"Stereo found {start.n_dense:,} pieces of surface in {time.monotonic() - began:.1f} s, beside {len(scene.points):,} triangulated points."
        )
    population = Population.of(start.sky, start.place)
    return State(population, np.random.default_rng(request.seed), exposure=exposure)


def _exposure_said(setting: str, n: int) -> str:
    why = " as the photos differ" if setting == "auto" else ""
    return f"exposure of {n} groups{why}" if n else f"one exposure for all{' as the photos agree' if why else ''}"


def _threads_said(n: int, wanted: int) -> str:
    return f"{'up to ' if wanted == 0 and n > 1 else ''}{n} thread{'s' if n > 1 else ''}"


class _Trainer:
    def __init__(
        self, scene: Scene, views: list[View], request: SplatRequest, threads: Threads, log: Log, began: float
    ) -> None:
        self.photos, self.request, self.threads, self.log = Photos(views), request, threads, log
        self.judged = scene.held_out(request.holdout_every)[:4]
        self.reach = scene.reach
        self.cameras = KDTree([view.camera.centre for view in scene.views])
        self.raster, self.loss = Rasteriser(), Loss()
        self.first = GOES_ON_AT if request.earlier else 0.0
        self.began, self.resumed = began, time.monotonic()
        self.said = self.resumed
        # Short trainings still need half a dozen refinements.
        self.refine_every = max(10, min(100, request.steps // 15))

    def run(self, state: State, print_of: str) -> None:
        safe, setbacks = state.population.copy(), 0
        first, checkpoint = state.step, checkpoint_path(self.request)
        while state.step < self.request.steps and (progress := self._progress(state.step)) < 1:
            loss = self._step(state, progress)
            if not math.isfinite(loss):
                if setbacks:
                    raise TrainingError(
                        f"Training became non-finite again at step {state.step} (largest scale {np.exp(state.population.rows[:, 3:6]).max():.3g} m). Lower splats.learning_rate_scale (now {self.request.learning_rate_scale:g}).",
                        step=state.step,
                    )
                setbacks += 1
                state.population, state.rate_scale = safe.copy(), state.rate_scale / 2
                self.log(f"Step {state.step} was non-finite: back to the last good state with half the learning rate.")
                continue
            self._tend(state, progress)
            if state.step % SAFE_EVERY == 0:
                safe = state.population.copy()
            if state.step % max(1, self.request.steps // CURVE_POINTS) == 0 or state.step == self.request.steps:
                self._note(state)
            if checkpoint and state.step % CHECKPOINT_EVERY == 0 and state.step < self.request.steps:
                save(state, checkpoint, print_of)
            self._say(state, first, loss)
        if state.step < self.request.steps:
            self.log(
                f"Stopped at step {state.step:,} of {self.request.steps:,}: the time limit of {self.request.timeout_s:g} s is over."
            )

    def _step(self, state: State, progress: float) -> float:
        self.threads.next_step()
        people, request = state.population, self.request
        if not state.deck:
            state.deck = state.rng.permutation(len(self.photos)).tolist()
        chosen = state.deck.pop()
        view = self.photos.small(chosen) if progress < COARSE_UNTIL else self.photos.full(chosen)
        known = request.sh_degree if request.earlier else int(progress * (2.2 + request.sh_degree))
        degree = min(request.sh_degree, known)
        background = state.rng.random(3).astype(np.float32)  # or else faint Gaussians would hide in it
        image = self.raster.forward(people.rows, degree, view.camera, background)
        shown = state.exposure.apply(image, chosen) if state.exposure else image
        loss, _, gradient = self.loss(shown, view.photo, view.mask)
        if state.exposure:
            gradient = state.exposure.learn(gradient, image, chosen)
        state.step += 1
        if not math.isfinite(loss):
            return loss
        gradients, pull = self.raster.backward(gradient)
        self._move(state, gradients, degree, progress)
        people.felt(self.raster.order, pull)
        state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
        return loss

    def _move(self, state: State, gradients: np.ndarray, degree: int, progress: float) -> None:
        """A step of Adam for what was seen, the place and the sky at their own rates."""
        people, seen = state.population, self.raster.order
        scale = self.request.learning_rate_scale * state.rate_scale
        if self.request.earlier:
            scale *= min(1.0, state.step / (SETTLES * self.request.steps))
        mean_rate = MEAN_RATE * self.reach * scale * 0.01**progress
        rates = column_rates(people.rows.shape[1], degree, mean_rate=mean_rate, scale=scale)
        is_sky = seen < people.n_sky
        for rows, its_rates in ((seen[~is_sky], rates), (seen[is_sky], sky_rates(rates))):
            adam(rows, people.rows, gradients, people.first, people.second, its_rates, state.step)

    def _tend(self, state: State, progress: float) -> None:
        """Every so often, grow and prune the population and keep it out of the cameras' faces."""
        if state.step % self.refine_every == 0 and REFINE_FROM <= progress < REFINE_UNTIL:
            state.population = state.population.refined(
                cap=self.request.max_splats, growth=self._growth(state, progress), reach=self.reach, rng=state.rng
            )
        if state.step % LIMIT_EVERY == 0:
            state.population.limit_sizes(self.cameras.query(state.population.rows[:, MEAN:SCALE])[0])

    def _growth(self, state: State, progress: float) -> float:
        """Share to grow by, so that a model of few points can still reach the cap early enough to be trained."""
        if self.request.earlier:
            return GROWTH
        left = max(1.0, (GROWN_BY - progress) * self.request.steps / self.refine_every)
        return min(max((self.request.max_splats / len(state.population.rows)) ** (1 / left) - 1, GROWTH), 0.6)

    def _progress(self, step: int) -> float:
        done = step / self.request.steps
        if self.request.timeout_s is not None:
            done = max(done, (time.monotonic() - self.began) / self.request.timeout_s)
        return self.first + (1 - self.first) * done

    def _note(self, state: State) -> None:
        point = {"step": float(state.step), "n_splats": float(len(state.population.rows))}
        point["loss"] = state.loss_sum / max(state.loss_count, 1)
        errors = [self._error(state, view) for view in self.judged]
        if errors:
            point["psnr_db"] = float(np.mean([-10 * np.log10(max(e, 1e-10)) for e in errors]))
        state.curve.append(point)
        state.loss_sum, state.loss_count = 0.0, 0

    def _error(self, state: State, view: View) -> float:
        """Mean square error of a view, where its mask lets it count."""
        image = self.raster.forward(state.population.rows, self.request.sh_degree, view.camera, np.zeros(3, np.float32))
        squares = (np.clip(image, 0, 1) - view.photo / np.float32(255)) ** 2
        return float(np.mean(squares if view.mask is None else squares[view.mask]))

    def _say(self, state: State, first: int, loss: float) -> None:
        now = time.monotonic()
        if now - self.said < SAY_EVERY_S:
            return
        self.said = now
        pace = (now - self.resumed) / max(state.step - first, 1)
        self.log(
            f"step {state.step:,} of {self.request.steps:,}, {len(state.population.rows):,} Gaussians, loss {loss:.4f}, "
            f"{1000 * pace:.0f} ms a step, {pace * (self.request.steps - state.step):.0f} s left"
        )
