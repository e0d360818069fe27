"""The training loop of the embedded engine.

The same seed gives the same splat, whatever the number of threads: photos are drawn by one generator, gradients are
summed in a fixed order, and a training that was killed goes on from its checkpoint as if nothing had happened. Only a
time limit breaks this, since it ends the schedule at a step that depends on the machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from geo_assets.errors import TrainingError
from geo_assets.files import replacing
from geo_assets.splats.cameras import Camera, Scene, View
from geo_assets.splats.cpu.adam import adam
from geo_assets.splats.cpu.compiled import use_threads
from geo_assets.splats.cpu.density import Population, column_rates
from geo_assets.splats.cpu.exposure import Exposure, groups
from geo_assets.splats.cpu.initial import initial_gaussians
from geo_assets.splats.cpu.loss import Loss
from geo_assets.splats.cpu.rasteriser import Rasteriser
from geo_assets.splats.engine import Log, SplatRequest
from geo_assets.splats.gaussians import Gaussians

MEAN_RATE = 1.6e-4
"""Learning rate of the means at the start, in reaches of the scene; it falls to a hundredth."""
REFINE_FROM, GROWN_BY, REFINE_UNTIL = 0.1, 0.45, 0.7
"""Shares of the training between which the number of Gaussians changes, and by which the cap may be reached."""
COARSE_UNTIL, COARSE_LEAST_PX = 0.35, 160
"""Share of the training on photos of half the size, a quarter of the work, and the least long side for it [px]."""
CHECKPOINT_EVERY = 250
SAFE_EVERY = 100
CURVE_POINTS = 8
SAY_EVERY_S = 5.0


@dataclass
class Trained:
    """What came out: the Gaussians, the course of the training and how far it went."""

    gaussians: Gaussians
    steps_done: int
    curve: list[dict[str, float]]
    resumed_at: int = 0
    exposure_groups: int = 0


@dataclass
class _State:
    """Everything that the next step depends on."""

    population: Population
    rng: np.random.Generator
    step: int = 0
    deck: list[int] = field(default_factory=list)
    exposure: Exposure | None = None
    rate_scale: float = 1.0
    curve: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_count: int = 0


def train(scene: Scene, request: SplatRequest, log: Log) -> Trained:
    """Train a scene.

    Args:
        scene: photos, cameras and points, z up.
        request: steps, cap, harmonics, seed and time limit; ``scratch_dir`` holds the checkpoint.
        log: a line every few seconds.

    Raises:
        TrainingError: nothing to train on, or the loss became non-finite twice.
    """
    views = scene.trained(request.holdout_every)
    if len(scene.points) == 0 or not views:
        raise TrainingError(
            f"The sparse model has {len(scene.points)} points and {len(scene.views)} photos; training needs points to start from and photos that are not held out. Look at the asset sparse_models of this box."
        )
    threads = use_threads(request.threads)
    print_of = _fingerprint(scene, request)
    state = _resume(request, print_of, log) or _begin(scene, views, request)
    resumed_at = state.step
    log(
        f"Training {len(views)} photos with {threads} threads from {len(state.population.rows):,} Gaussians"
        + (f", exposure of {len(state.exposure.names)} groups" if state.exposure else "")
        + (f", from step {resumed_at}" if resumed_at else "")
    )
    trainer = _Trainer(scene, views, request, log)
    trainer.run(state, print_of)
    _checkpoint_path(request).unlink(missing_ok=True) if request.scratch_dir else None
    return Trained(
        Gaussians(state.population.rows),
        state.step,
        state.curve,
        resumed_at,
        len(state.exposure.names) if state.exposure else 0,
    )


class _Trainer:
    def __init__(self, scene: Scene, views: list[View], request: SplatRequest, log: Log) -> None:
        self.views, self.request, self.log = views, request, log
        self.judged = scene.held_out(request.holdout_every)[:4]
        self.reach = scene.reach
        self.groups = groups(views, len(scene.points))
        self.coarse = [_halved(view) for view in views]
        self.raster, self.loss = Rasteriser(), Loss()
        self.began = self.said = time.monotonic()
        # Short trainings still need half a dozen refinements.
        self.refine_every = max(10, min(100, request.steps // 15))

    def run(self, state: _State, fingerprint: str) -> None:
        safe, setbacks = state.population.copy(), 0
        first = state.step
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
            if state.step % self.refine_every == 0 and REFINE_FROM <= progress < REFINE_UNTIL:
                state.population = state.population.refined(
                    cap=self.request.max_splats, growth=self._growth(state, progress), reach=self.reach, rng=state.rng
                )
            if state.step % SAFE_EVERY == 0:
                safe = state.population.copy()
            if state.step % max(1, self.request.steps // CURVE_POINTS) == 0 or state.step == self.request.steps:
                self._note(state)
            if state.step % CHECKPOINT_EVERY == 0 and self.request.scratch_dir and state.step < self.request.steps:
                _save(state, _checkpoint_path(self.request), fingerprint)
            self._say(state, first, loss)

    def _step(self, state: _State, progress: float) -> float:
        people, request = state.population, self.request
        if not state.deck:
            state.deck = state.rng.permutation(len(self.views)).tolist()
        chosen = state.deck.pop()
        view = self.coarse[chosen] if progress < COARSE_UNTIL else self.views[chosen]
        degree = min(request.sh_degree, int(progress * (2.2 + request.sh_degree)))
        background = state.rng.random(3).astype(np.float32)  # or else faint Gaussians would hide in it
        image = self.raster.forward(people.rows, degree, view.camera, background)
        if state.exposure and self.groups:
            group = self.groups[chosen]
            loss, _, gradient = self.loss(state.exposure.apply(image, group), view.photo)
            gradient = np.ascontiguousarray(state.exposure.learn(gradient, image, group), np.float32)
        else:
            loss, _, gradient = self.loss(image, view.photo)
        state.step += 1
        if not math.isfinite(loss):
            return loss
        gradients, pull = self.raster.backward(gradient)
        scale = request.learning_rate_scale * state.rate_scale
        mean_rate = MEAN_RATE * self.reach * scale * 0.01**progress
        rates = column_rates(people.rows.shape[1], degree, mean_rate=mean_rate, scale=scale)
        seen = self.raster.order
        adam(seen, people.rows, gradients, people.first, people.second, rates, state.step)
        people.felt(seen, pull)
        state.loss_sum, state.loss_count = state.loss_sum + loss, state.loss_count + 1
        return loss

    def _growth(self, state: _State, progress: float) -> float:
        """Share to grow by, so that a model of few points can still reach the cap early enough to be trained."""
        left = max(1.0, (GROWN_BY - progress) * self.request.steps / self.refine_every)
        return min(max((self.request.max_splats / len(state.population.rows)) ** (1 / left) - 1, 0.15), 0.6)

    def _progress(self, step: int) -> float:
        by_steps = step / self.request.steps
        if self.request.timeout_s is None:
            return by_steps
        return max(by_steps, (time.monotonic() - self.began) / self.request.timeout_s)

    def _note(self, state: _State) -> None:
        degree = self.request.sh_degree
        black = np.zeros(3, np.float32)
        errors = [
            np.mean(
                (np.clip(self.raster.forward(state.population.rows, degree, v.camera, black), 0, 1) - v.photo / 255)
                ** 2
            )
            for v in self.judged
        ]
        point = {"step": float(state.step), "n_splats": float(len(state.population.rows))}
        point["loss"] = state.loss_sum / max(state.loss_count, 1)
        if errors:
            point["psnr_db"] = float(np.mean([-10 * np.log10(max(e, 1e-10)) for e in errors]))
        state.curve.append(point)
        state.loss_sum, state.loss_count = 0.0, 0

    def _say(self, state: _State, first: int, loss: float) -> None:
        now = time.monotonic()
        if now - self.said < SAY_EVERY_S:
            return
        self.said = now
        pace = (now - self.began) / max(state.step - first, 1)
        self.log(
            f"step {state.step:,} of {self.request.steps:,}, {len(state.population.rows):,} Gaussians, loss {loss:.4f}, "
            f"{1000 * pace:.0f} ms a step, {pace * (self.request.steps - state.step):.0f} s left"
        )


def _begin(scene: Scene, views: list[View], request: SplatRequest) -> _State:
    start = initial_gaussians(scene, views, max_splats=request.max_splats, degree=request.sh_degree, seed=request.seed)
    names = groups(views, len(scene.points))
    return _State(
        Population.of(start.rows), np.random.default_rng(request.seed), exposure=Exposure(names) if names else None
    )


def _halved(view: View) -> View:
    """The view at half the size, each pixel the mean of four; a small one as it is."""
    camera = view.camera
    if max(camera.width, camera.height) < COARSE_LEAST_PX:
        return view
    height, width = camera.height // 2, camera.width // 2
    photo = view.photo[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean(axis=(1, 3)) + 0.5
    lens = camera.fx / 2, camera.fy / 2, camera.cx / 2, camera.cy / 2
    halved = Camera(camera.rotation, camera.translation, *lens, width, height)
    return dataclasses.replace(view, camera=halved, photo=photo.astype(np.uint8))


# -- checkpoints --------------------------------------------------------------------------------------------


def _checkpoint_path(request: SplatRequest) -> Path:
    assert request.scratch_dir is not None
    return request.scratch_dir / "checkpoint.npz"


def _fingerprint(scene: Scene, request: SplatRequest) -> str:
    """What a checkpoint must agree with to be continued: the settings and the data, not the folders."""
    digest = hashlib.sha256()
    wanted = (request.steps, request.max_splats, request.sh_degree, request.seed, request.holdout_every)
    digest.update(repr((*wanted, request.learning_rate_scale, request.timeout_s)).encode())
    digest.update(np.ascontiguousarray(scene.points).tobytes())
    for view in scene.views:
        digest.update(view.name.encode() + view.photo.tobytes() + view.camera.translation.tobytes())
    return digest.hexdigest()


def _save(state: _State, path: Path, fingerprint: str) -> None:
    """Write the state beside the old one and rename, so that a kill leaves one of both."""
    plain = {
        "fingerprint": fingerprint,
        "rng": state.rng.bit_generator.state,
        "step": state.step,
        "deck": state.deck,
        "rate_scale": state.rate_scale,
        "curve": state.curve,
        "loss": [state.loss_sum, state.loss_count],
        "groups": state.exposure.names if state.exposure else None,
    }
    arrays = {name: getattr(state.population, name) for name in ("rows", "first", "second", "pull_sum", "pull_count")}
    if state.exposure:
        arrays |= {f"exposure_{name}": getattr(state.exposure, name) for name in ("values", "first", "second")}
    with replacing(path) as sink:
        np.savez(sink, plain=np.array(json.dumps(plain)), **arrays)


def _resume(request: SplatRequest, fingerprint: str, log: Log) -> _State | None:
    """The state of a killed training of exactly this request, if there is one."""
    if request.scratch_dir is None or not _checkpoint_path(request).exists():
        return None
    try:
        with np.load(_checkpoint_path(request), allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files if name != "plain"}
            plain = json.loads(str(saved["plain"]))
        if plain["fingerprint"] != fingerprint:
            log("The checkpoint is of other photos or settings: starting anew.")
            return None
        rng = np.random.default_rng()
        rng.bit_generator.state = plain["rng"]
        names = ("rows", "first", "second", "pull_sum", "pull_count")
        state = _State(Population(*(arrays[name] for name in names)), rng, plain["step"], plain["deck"])
        state.rate_scale, state.curve = plain["rate_scale"], plain["curve"]
        state.loss_sum, state.loss_count = plain["loss"]
        if plain["groups"] is not None:
            state.exposure = Exposure(plain["groups"])
            for name in ("values", "first", "second"):
                setattr(state.exposure, name, arrays[f"exposure_{name}"])
        return state
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log(f"The checkpoint cannot be read ({type(error).__name__}): starting anew.")
        return None
