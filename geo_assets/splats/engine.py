"""What every splat engine is given and gives back, and how one is chosen.

An engine is an entry point of the group ``geo_assets.splat_engines``: something that, called with the settings
:class:`~geo_assets.settings.Splats`, gives a :class:`SplatEngine`. It reads a COLMAP dataset of undistorted pinhole
photos and writes a PLY in the same frame. Nothing that an engine says
about its own quality is believed: :mod:`geo_assets.splats.judge` renders the held-out photos of any PLY.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from geo_assets.errors import TrainingError
from geo_assets.settings import Splats

GROUP = "geo_assets.splat_engines"
BY_PREFERENCE = ("brush", "gsplat", "cpu")
Log = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """What an engine is given to do where the settings leave it open."""

    steps: int
    max_splats: int
    sh_degree: int
    max_image_px: int


ON_CPU = Effort(steps=2000, max_splats=20_000, sh_degree=1, max_image_px=640)
ON_GPU = Effort(steps=30_000, max_splats=1_000_000, sh_degree=3, max_image_px=1920)


@dataclass(frozen=True)
class SplatRequest:
    """A training to be done.

    Args:
        dataset_dir: ``images/`` and ``sparse/0/`` (COLMAP binary, PINHOLE), z up, in metres; where photos have masks,
            ``masks/<name of the photo>.png``, black where the photo does not count.
        out_dir: an existing folder for the result.
        scratch_dir: where a killed training finds its checkpoint again; None for no checkpoints.
        steps: optimisation steps.
        max_splats: never more Gaussians than these.
        sh_degree: highest degree of spherical harmonics.
        max_image_px: long side of the photos [px]; those in ``dataset_dir`` have it already.
        seed: of everything random.
        holdout_every: each n-th photo by name is not trained on.
        learning_rate_scale: factor on the learning rates, for engines that have it.
        exposure: ``auto``, ``off``, ``sequence`` or ``image``: what has a gain of its own, for engines that have it.
        threads: 0 for up to four cores.
        timeout_s: an engine that can stops at this time with what it has; others are stopped and fail.
        extra_args: passed on to an external program.
    """

    dataset_dir: Path
    out_dir: Path
    scratch_dir: Path | None = None
    steps: int = 2000
    max_splats: int = 20_000
    sh_degree: int = 1
    max_image_px: int = 640
    seed: int = 0
    holdout_every: int = 8
    learning_rate_scale: float = 2.0
    exposure: str = "auto"
    threads: int = 0
    timeout_s: float | None = None
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplatResult:
    """A training that was done; ``metrics`` are the engine's own figures, kept for comparison.

    Args:
        ply_path: the Gaussians of the place.
        sky_path: Gaussians of the sky in a PLY of their own, where the engine keeps them apart.
        metrics: ``psnr_db`` and ``ssim`` of the held-out photos as the engine says, and what else it says.
        peak_gpu_mb: most memory that it took on the GPU, where it says so.
    """

    ply_path: Path
    engine: str
    engine_version: str
    seconds: float
    steps_done: int
    n_splats: int
    sky_path: Path | None = None
    peak_gpu_mb: float | None = None
    command: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    curve: tuple[dict[str, float], ...] = ()
    """Points of the training's course: step, n_splats, loss, psnr_db of the held-out photos."""


@runtime_checkable
class SplatEngine(Protocol):
    """A program that trains splats."""

    name: str
    effort: Effort

    def available(self) -> str | None:
        """None where it can run here, otherwise the reason why not and what would help."""
        ...

    def train(self, request: SplatRequest, log: Log) -> SplatResult:
        """Train, and leave a PLY in ``request.out_dir``.

        Raises:
            TrainingError: no usable splat came out.
        """
        ...


def engines(options: Splats) -> dict[str, SplatEngine]:
    """Every engine that is installed, by name; those we know come in order of preference."""
    found: dict[str, SplatEngine] = {point.name: point.load()(options) for point in entry_points(group=GROUP)}
    if "cpu" not in found:  # a source tree that was never installed has no entry points
        from geo_assets.splats.engines.cpu import CpuEngine

        found["cpu"] = CpuEngine(options)
    known = [name for name in BY_PREFERENCE if name in found]
    return {name: found[name] for name in [*known, *sorted(set(found) - set(known))]}


def choose_engine(options: Splats, log: Log) -> SplatEngine:
    """The engine that the settings name; ``auto`` takes the first preferred one that can run, and says which and why.

    Raises:
        TrainingError: the engine is unknown or cannot run here.
    """
    known, wanted = engines(options), options.engine
    if wanted != "auto":
        if wanted not in known:
            raise TrainingError(
                f"No splat engine '{wanted}'; installed: {', '.join(known)}. Set splats.engine to one of them, or install a package with an entry point of the group {GROUP}."
            )
        reason = known[wanted].available()
        if reason:
            raise TrainingError(f"Splat engine '{wanted}' cannot run here: {reason}. Or set splats.engine = \"cpu\".")
        log(f"Splat engine: {wanted}, as the settings say.")
        return known[wanted]
    reasons = []
    for name, engine in known.items():
        if name not in BY_PREFERENCE:
            continue  # an engine we do not know is used when it is named, never by itself
        reason = engine.available()
        if reason is None:
            log(f"Splat engine: {name}, the first that can run here{''.join(f'; {r}' for r in reasons)}.")
            return engine
        reasons.append(f"not {name}: {reason}")
    raise TrainingError(f"No splat engine can run here: {'; '.join(reasons)}.")
