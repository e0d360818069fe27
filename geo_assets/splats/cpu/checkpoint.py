"""What a killed training goes on from: everything that its next step depends on, in one file."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from geo_assets.files import replacing
from geo_assets.splats.cameras import Scene
from geo_assets.splats.cpu.density import ARRAYS, Population
from geo_assets.splats.cpu.exposure import Exposure
from geo_assets.splats.engine import Log, SplatRequest


@dataclass
class State:
    """Everything that the next step depends on."""

    population: Population
    rng: np.random.Generator
    step: int = 0
    deck: list[int] = field(default_factory=list)
    """Views still to be drawn before the next shuffle."""
    exposure: Exposure | None = None
    rate_scale: float = 1.0
    curve: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_count: int = 0


def checkpoint_path(request: SplatRequest) -> Path | None:
    """Where the checkpoint of a training lies; None where it keeps none."""
    return request.scratch_dir / "checkpoint.npz" if request.scratch_dir else None


def fingerprint(scene: Scene, request: SplatRequest) -> str:
    """What a checkpoint must agree with to be continued: the settings and the data, not the folders."""
    digest = hashlib.sha256()
    wanted = (request.steps, request.max_splats, request.sh_degree, request.seed, request.holdout_every)
    digest.update(repr((*wanted, request.learning_rate_scale, request.exposure, request.timeout_s)).encode())
    earlier = request.earlier
    digest.update(repr((sorted(scene.judging or ()), earlier and (earlier.version, sorted(earlier.new)))).encode())
    digest.update(np.ascontiguousarray(scene.points).tobytes())
    for view in scene.views:
        digest.update(view.name.encode() + view.photo.tobytes() + view.camera.translation.tobytes())
        digest.update(b"" if view.mask is None else np.packbits(view.mask).tobytes())
    return digest.hexdigest()


def save(state: State, path: Path, print_of: str) -> None:
    """Write the state beside the old one and rename, so that a kill leaves one of both."""
    plain = {
        "fingerprint": print_of,
        "rng": state.rng.bit_generator.state,
        "step": state.step,
        "deck": state.deck,
        "rate_scale": state.rate_scale,
        "curve": state.curve,
        "loss": [state.loss_sum, state.loss_count],
        "n_sky": state.population.n_sky,
    }
    arrays = {name: getattr(state.population, name) for name in ARRAYS}
    if state.exposure:
        arrays |= {f"exposure_{name}": getattr(state.exposure, name) for name in ("values", "first", "second")}
    with replacing(path) as sink:
        np.savez(sink, plain=np.array(json.dumps(plain)), **arrays)


def resume(request: SplatRequest, print_of: str, exposure: Exposure | None, log: Log) -> State | None:
    """The state of a killed training of exactly this request, if there is one.

    Args:
        request: the training.
        print_of: see :func:`fingerprint`.
        exposure: of this training, not learnt yet; it takes over what was.
        log: says why a checkpoint cannot be used.
    """
    path = checkpoint_path(request)
    if path is None or not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files if name != "plain"}
            plain = json.loads(str(saved["plain"]))
        if plain["fingerprint"] != print_of:
            log("The checkpoint is of other photos or settings: starting anew.")
            return None
        rng = np.random.default_rng()
        rng.bit_generator.state = plain["rng"]
        population = Population(plain["n_sky"], *(arrays[name] for name in ARRAYS))
        state = State(population, rng, plain["step"], plain["deck"], exposure, plain["rate_scale"], plain["curve"])
        state.loss_sum, state.loss_count = plain["loss"]
        if exposure:
            learnt = (arrays[f"exposure_{name}"] for name in ("values", "first", "second"))
            exposure.values, exposure.first, exposure.second = learnt
        return state
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log(f"The checkpoint cannot be read ({type(error).__name__}): starting anew.")
        return None
