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
from geo_assets.splats.cameras import Camera
from geo_assets.splats.gaussians import Gaussians

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


ON_CPU = Effort(steps=3000, max_splats=30_000, sh_degree=1, max_image_px=480)
ON_GPU = Effort(steps=30_000, max_splats=1_000_000, sh_degree=3, max_image_px=1920)


@dataclass(frozen=True, eq=False)
class Earlier:
    """An earlier splat of the same place in the same frame, of nearly the same photos, to start from.

    Args:
        place: its Gaussians.
        sky: its Gaussians of the sky; there may be none.
        version: digest of both, see :func:`geo_assets.splats.earlier.version_of`.
        new: names of the photos that it was not made of, or not as they are now.
        gone: cameras of the photos that it was made of and that are no longer there, or are others now.
    """

    place: Gaussians
    sky: Gaussians
    version: str
    new: frozenset[str] = frozenset()
    gone: tuple[Camera, ...] = ()


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
        earlier: what to start from instead of the points; only for an engine that says ``starts_from_earlier``.
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
    earlier: Earlier | None = None


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
    """A program that trains splats; one that can start from an earlier splat has ``starts_from_earlier = True``."""

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


class _Unloadable:
    """Stands for an entry point whose package cannot be imported, so that the others still work."""

    effort = ON_CPU

    def __init__(self, name: str, error: Exception) -> None:
        self.name, self.error = name, error

    def available(self) -> str | None:
        return (
            f"engine '{self.name}' cannot be loaded: {type(self.error).__name__}: {self.error}; reinstall its package"
        )

    def train(self, request: SplatRequest, log: Log) -> SplatResult:
        raise TrainingError(f"{self.available()}.")


def engines(options: Splats) -> dict[str, SplatEngine]:
    """Every engine that is installed, by name; those that ``auto`` considers come first, in its order."""
    found: dict[str, SplatEngine] = {}
    for point in entry_points(group=GROUP):
        try:
            found[point.name] = point.load()(options)
        except Exception as error:  # a foreign package may fail in any way
            found[point.name] = _Unloadable(point.name, error)
    if "cpu" not in found:  # a source tree that was never installed has no entry points
        from geo_assets.splats.engines.cpu import CpuEngine

        found["cpu"] = CpuEngine(options)
    order = [name for name in _considered(options) if name in found]
    return {name: found[name] for name in [*order, *sorted(set(found) - set(order))]}


def choose_engine(options: Splats, log: Log) -> SplatEngine:
    """The engine that the settings name; ``auto`` takes the first preferred one that can run, and says which and why.

    Raises:
        TrainingError: the engine is unknown or cannot run here.
        ConfigError: the command of the settings is wrong.
    """
    known, wanted = engines(options), options.engine
    if wanted != "auto":
        if wanted not in known:
            raise TrainingError(
                f"No splat engine '{wanted}'; installed: {', '.join(known)}. Set splats.engine to one of them, or install a package with an entry point of the group {GROUP}."
            )
        if reason := known[wanted].available():
            said = reason if f"'{wanted}'" in reason else f"engine '{wanted}' cannot run here: {reason}"
            way_out = "" if wanted == "cpu" else ' Or set splats.engine = "cpu".'
            raise TrainingError(f"Splat {said}.{way_out}")
        log(f"Splat engine: {described(known[wanted])}, as the settings say.")
        return known[wanted]
    considered, reasons = _considered(options), []
    by_name = [name for name in known if name not in considered and name != "command"]
    for name in considered:
        if name not in known:
            continue
        if reason := known[name].available():
            reasons.append(f"not {name}: {reason}")
            continue
        why = "the command of the settings" if name == "command" else "the first that can run here"
        log(f"Splat engine: {described(known[name])}, {why}{''.join(f'; {r}' for r in reasons)}.")
        if by_name:
            log(f"Used only where splats.engine names them: {', '.join(by_name)}.")
        return known[name]
    raise TrainingError(f"No splat engine can run here: {'; '.join(reasons)}.")


def described(engine: SplatEngine) -> str:
    """Name of an engine, with its version and place where it says them (``about()``)."""
    about = getattr(engine, "about", None)
    return f"{engine.name} {about()}" if callable(about) else engine.name


def _considered(options: Splats) -> tuple[str, ...]:
    """Names that ``auto`` looks at, in order; a command of the user's own is one where it is set, and then the first.

    An engine that is none of these is used when it is named, never by itself.
    """
    return (*(("command",) if options.command else ()), *BY_PREFERENCE)
