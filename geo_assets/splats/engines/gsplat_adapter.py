"""gsplat (github.com/nerfstudio-project/gsplat, Apache-2.0) as a library, in this Python or another one that has it.

gsplat's own example trainer is not in its wheel and normalises the scene; ours is
:mod:`geo_assets.splats.engines.trainers.gsplat_trainer`, run by path. Everything that it reads is prepared here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from geo_assets.errors import TrainingError
from geo_assets.files import replacing
from geo_assets.settings import Splats
from geo_assets.splats.cameras import Scene, View
from geo_assets.splats.dataset import SEQUENCES, read_scene
from geo_assets.splats.engine import ON_GPU, Log, SplatRequest, SplatResult
from geo_assets.splats.engines.program import Said, ask, find_program
from geo_assets.splats.engines.workplace import MOST_NONFINITE, Workplace, accept, result, workplace
from geo_assets.splats.gaussians import SH_0, Gaussians
from geo_assets.splats.ply import write_ply

SCRIPT = Path(__file__).parent / "trainers" / "gsplat_trainer.py"
SHORT = 5000
"""Up to so many steps the learning rates are raised by splats.learning_rate_scale; they are made for 30,000."""
OPACITY, SKY_SPLATS, CHECKPOINT_EVERY = 0.1, 5000, 2500
TIME_TO_END_S = 120.0
"""What a training that stops at its time limit has for its last photos and files before it is ended."""
PROBE_S = 120.0
_PROBE = """
import importlib.metadata as m, json, torch
cuda = torch.cuda.is_available()
print(json.dumps({"torch": torch.__version__, "cuda": cuda, "gpu": torch.cuda.get_device_name(0) if cuda else None,
                  "gsplat": m.version("gsplat")}))
"""


class GsplatEngine:
    """Trains with gsplat on an NVIDIA GPU."""

    name = "gsplat"
    effort = ON_GPU
    device = "cuda"

    def __init__(self, options: Splats | None = None) -> None:
        self.options = options or Splats()

    def available(self) -> str | None:
        """None where a Python has gsplat, torch and a GPU; torch is imported in a process of its own, once."""
        python = self._python()
        if python is None:
            return f"engine 'gsplat': splats.gsplat_python is {self.options.gsplat_python}, which cannot be executed; give a Python with gsplat and torch"
        if self.options.gsplat_python is None and not all(map(importlib.util.find_spec, ("torch", "gsplat"))):
            return "engine 'gsplat' not found: looked for torch and gsplat in this Python and for splats.gsplat_python; install them where CUDA is, and name that Python"
        found = self._found()
        if found is None:
            return f"engine 'gsplat': {python} cannot import torch or has no gsplat; install both there"
        if self.device == "cuda" and not found["cuda"]:
            return f"engine 'gsplat': torch {found['torch']} of {python} sees no CUDA GPU; gsplat needs one"
        return None

    def about(self) -> str:
        """Versions and place, for the log."""
        found = self._found()
        if found is None:
            return "not found"
        return f"{found['gsplat']} ({self._python()}, torch {found['torch']}, {found['gpu'] or self.device})"

    def train(self, request: SplatRequest, log: Log) -> SplatResult:
        """See :class:`geo_assets.splats.engine.SplatEngine`; it stops at its time limit with what it has."""
        python, reason, found = self._python(), self.available(), self._found()
        if python is None or found is None or reason:
            raise TrainingError(f"{reason}.")
        with workplace(request, masks=self.options.masks, also=(SEQUENCES,)) as place:
            job = place.folder / "job"
            job.mkdir()
            prepare(place, job, request, device=self.device)
            command = [str(python), str(SCRIPT), str(job), *request.extra_args]
            ran = place.run(
                self.name,
                command,
                request,
                read=read,
                log=log,
                timeout_s=None if request.timeout_s is None else request.timeout_s + TIME_TO_END_S,
                hint=_hint,
            )
            made = job / "result.npz"
            if not made.exists():
                raise TrainingError(
                    f"gsplat finished but left no result; its last warning: {ran.last_warning}. See engine.log."
                )
            ground, sky = (_gaussians(made, part) for part in ("place", "sky"))
            if (bad := _n_bad(ground)) > MOST_NONFINITE * len(ground):
                raise TrainingError(
                    f"gsplat diverged: {bad:,} of {len(ground):,} Gaussians are not made of finite numbers. Lower splats.learning_rate_scale."
                )
            write_ply(place.made / "splat.ply", ground)
            kept, n = accept(self.name, place.made / "splat.ply", place, request, ran, log)
            sky_path = request.out_dir / "sky.ply" if len(sky) else None
            if sky_path:
                write_ply(sky_path, sky)
            told = place.told(command)
        version = f"{found['gsplat']}, torch {found['torch']}"
        made_of = result(self.name, version, kept, n, ran.steps, ran, told)
        return _with_sky(made_of, sky_path)

    def _python(self) -> Path | None:
        return find_program((), self.options.gsplat_python or sys.executable)

    def _found(self) -> dict[str, Any] | None:
        """What the Python has, or None where it lacks torch or gsplat."""
        python = self._python()
        said = ask(python, "-c", _PROBE, seconds=PROBE_S) if python else None
        try:
            # Whatever is imported may print; the answer is the last line.
            return json.loads(said.strip().splitlines()[-1]) if said else None
        except (ValueError, IndexError):
            return None


def prepare(place: Workplace, job: Path, request: SplatRequest, *, device: str = "cuda") -> None:
    """Write what the trainer reads: ``job.json`` and ``scene.npz`` in the folder ``job``."""
    scene = read_scene(place.dataset)
    held_out = {view.name for view in scene.held_out(request.holdout_every)}
    trained = scene.trained(request.holdout_every)
    if not trained or not len(scene.points):
        raise TrainingError(
            f"The sparse model has {len(scene.points)} points and {len(scene.views)} photos; training needs points to start from and photos that are not held out. Look at the asset sparse_models of this box."
        )
    groups, n_groups = exposure_groups(scene, trained, request.exposure)
    cameras = [view.camera for view in scene.views]
    viewmats = np.tile(np.eye(4), (len(cameras), 1, 1))
    intrinsics = np.tile(np.eye(3), (len(cameras), 1, 1))
    for i, camera in enumerate(cameras):
        viewmats[i, :3, :3], viewmats[i, :3, 3] = camera.rotation, camera.translation
        intrinsics[i, [0, 1, 0, 1], [0, 1, 2, 2]] = camera.fx, camera.fy, camera.cx, camera.cy
    arrays: dict[str, Any] = {
        "viewmats": viewmats,
        "intrinsics": intrinsics,
        "sizes": np.array([[camera.width, camera.height] for camera in cameras]),
        "held_out": np.array([view.name in held_out for view in scene.views]),
        "groups": np.array([groups.get(view.name, -1) for view in scene.views]),
        "n_groups": np.array(n_groups),
        "reach": np.array(scene.reach),
    }
    ground, sky = start(scene, trained, request)
    arrays |= _parameters(ground, "place") | _parameters(sky, "sky")
    with replacing(job / "scene.npz") as sink:
        np.savez(sink, **arrays)
    settings = {
        "photos": [str(place.dataset / "images" / view.name) for view in scene.views],
        "masks": [str(mask) if (mask := place.dataset / "masks" / f"{view.name}.png").exists() else None for view in scene.views],
        "steps": request.steps,
        "max_splats": request.max_splats,
        "sh_degree": request.sh_degree,
        "seed": request.seed,
        "rate_scale": request.learning_rate_scale if request.steps <= SHORT else 1.0,
        "eval_every": max(1, request.steps // 8),
    }  # fmt: skip
    fingerprint = _fingerprint(arrays, settings, scene.views)
    settings |= {
        "device": device,
        "seconds": request.timeout_s,
        "checkpoint": str(request.scratch_dir.absolute() / "gsplat.npz") if request.scratch_dir else None,
        "checkpoint_every": CHECKPOINT_EVERY,
        "fingerprint": fingerprint,
    }
    (job / "job.json").write_text(json.dumps(settings))


def exposure_groups(scene: Scene, views: list[View], wanted: str) -> tuple[dict[str, int], int]:
    """Number of the exposure group of each photo that has one, by name, and how many groups there are.

    Args:
        scene: all photos.
        views: those that are trained on.
        wanted: ``auto``, ``off``, ``sequence`` or ``image``, as in the settings.
    """
    if wanted == "off":
        return {}, 0
    if wanted == "image":
        of = [view.name for view in views]
    elif wanted == "sequence":
        of = [view.sequence or view.name for view in views]
    else:
        from geo_assets.splats.cpu.exposure import groups

        of = groups(views, len(scene.points))
    if not of or len(set(of)) < 2:
        return {}, 0
    number = {name: i for i, name in enumerate(sorted(set(of)))}
    return {view.name: number[name] for view, name in zip(views, of, strict=True)}, len(number)


def start(scene: Scene, views: list[View], request: SplatRequest) -> tuple[Gaussians, Gaussians]:
    """Gaussians of the place, one for each triangulated point, and of the sky, to start from."""
    from geo_assets.splats.cpu.initial import sky_shell

    rng = np.random.default_rng(request.seed)
    n_sky = min(SKY_SPLATS, request.max_splats // 10)
    points, colours = scene.points, scene.colours / 255
    if len(points) > (most := max(1, request.max_splats - n_sky)):
        chosen = np.sort(rng.choice(len(points), most, replace=False))
        points, colours = points[chosen], colours[chosen]
    harmonics = np.zeros((len(points), (request.sh_degree + 1) ** 2, 3))
    harmonics[:, 0] = (colours - 0.5) / SH_0
    ground = Gaussians.of(
        points,
        np.repeat(np.log(_spacing(points, scene.extent))[:, None], 3, axis=1),
        np.tile([1.0, 0, 0, 0], (len(points), 1)),
        np.full(len(points), np.log(OPACITY / (1 - OPACITY))),
        harmonics,
    )
    return ground, sky_shell(scene, views, n_sky, request.sh_degree, rng)


def read(line: str) -> Said | None:
    """What a line of the trainer tells: JSON, or something that torch or a compiler says."""
    if not line.startswith("{"):
        return None
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict) or "event" not in said:
        return None
    return Said(
        step=said.get("step"),
        n_splats=said.get("n"),
        loss=said.get("loss"),
        psnr_db=said.get("psnr_db"),
        ssim=said.get("ssim"),
        peak_gpu_mb=said.get("peak_gpu_mb"),
    )


def _spacing(points: np.ndarray, extent: float) -> np.ndarray:
    """Root mean square distance to the three nearest points [N], within reason."""
    from scipy.spatial import KDTree

    if len(points) < 4:
        return np.full(len(points), 0.05 * extent)
    spacing = np.sqrt((KDTree(points).query(points, 4)[0][:, 1:] ** 2).mean(axis=1))
    return np.clip(spacing, 1e-4 * extent, max(float(np.quantile(spacing, 0.95)), 1e-4 * extent))


def _parameters(gaussians: Gaussians, part: str) -> dict[str, np.ndarray]:
    """Gaussians as the trainer names and shapes them."""
    return {
        f"{part}.means": gaussians.means,
        f"{part}.scales": gaussians.log_scales,
        f"{part}.quats": gaussians.quats,
        f"{part}.opacities": gaussians.opacity_logits,
        f"{part}.sh0": gaussians.sh[:, :1],
        f"{part}.shN": gaussians.sh[:, 1:],
    }


def _gaussians(path: Path, part: str) -> Gaussians:
    """A part of the trainer's result."""
    with np.load(path, allow_pickle=False) as file:
        names = ("means", "scales", "quats", "opacities")
        means, scales, quats, opacities = (file[f"{part}.{name}"] for name in names)
        harmonics = np.concatenate([file[f"{part}.sh0"], file[f"{part}.shN"]], axis=1)
    return Gaussians.of(means, scales, quats, opacities, harmonics)


def _n_bad(gaussians: Gaussians) -> int:
    return int((~np.isfinite(gaussians.rows).all(axis=1)).sum())


def _with_sky(made: SplatResult, sky: Path | None) -> SplatResult:
    import dataclasses

    return dataclasses.replace(made, sky_path=sky)


def _fingerprint(arrays: dict[str, Any], settings: dict[str, Any], views: list[View]) -> str:
    """What a checkpoint must agree on; where the files lie does not matter, what they show does."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    for view in views:
        digest.update(view.name.encode() + view.photo.tobytes())
        digest.update(b"" if view.mask is None else np.packbits(view.mask).tobytes())
    shown = {name: value for name, value in settings.items() if name not in ("photos", "masks")}
    digest.update(json.dumps(shown, sort_keys=True).encode())
    return digest.hexdigest()


def _hint(output: str) -> str | None:
    if "out of memory" in output.lower():
        return "The GPU's memory ran out: lower splats.max_splats or splats.max_image_px."
    if any(word in output for word in ("nvcc", "CUDA_HOME", "gsplat_cuda", "ninja")):
        return "gsplat compiles its kernels at first use: install the CUDA toolkit (nvcc) of torch's version, or a wheel of gsplat with kernels."
    return None
