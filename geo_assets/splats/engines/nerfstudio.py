"""Nerfstudio's splatfacto (github.com/nerfstudio-project/nerfstudio, Apache-2.0), in an environment of its own.

Its COLMAP reader turns, centres and scales the scene and swaps the axes unless four switches say otherwise. It orders
photos by their number, not their name, so the photos that are held out are named to it in lists. Masks are named by
the stem of the photo, one for every photo. What it trained is exported by ``ns-export`` beside ``ns-train``.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

from geo_assets.errors import TrainingError
from geo_assets.settings import Splats
from geo_assets.splats.engine import ON_GPU, Log, SplatRequest, SplatResult
from geo_assets.splats.engines.program import Said, ask, find_program, run
from geo_assets.splats.engines.workplace import (
    Workplace,
    accept,
    check_steps,
    held_out_names,
    photo_names,
    put_masks_by_stem,
    result,
    workplace,
)

NAMES = ("ns-train",)
FRAME_SWITCHES = {
    "--orientation-method": "none",
    "--center-method": "none",
    "--auto-scale-poses": "False",
    "--assume-colmap-world-coordinate-convention": "False",
}
_STEP = re.compile(r"^\s*(?P<step>\d+) \((?P<share>[\d.]+)%\)")


class NerfstudioEngine:
    """Trains with ``ns-train splatfacto``; used only by name."""

    name = "nerfstudio"
    effort = ON_GPU

    def __init__(self, options: Splats | None = None) -> None:
        self.options = options or Splats()

    def available(self) -> str | None:
        """None where ns-train and ns-export are found."""
        trainer = self._trainer()
        if trainer is None:
            return f"engine 'nerfstudio' not found: looked for {', '.join(NAMES)} on PATH and splats.nerfstudio; install nerfstudio 1.1.5 or later in an environment of its own"
        if _beside(trainer, "ns-export") is None:
            return f"engine 'nerfstudio': {trainer} has no ns-export beside it; install nerfstudio anew"
        return None

    def about(self) -> str:
        """Version and place, for the log."""
        trainer = self._trainer()
        return f"{_version(trainer)} ({trainer})" if trainer else "not found"

    def train(self, request: SplatRequest, log: Log) -> SplatResult:
        """See :class:`geo_assets.splats.engine.SplatEngine`."""
        trainer, reason = self._trainer(), self.available()
        if trainer is None or reason:
            raise TrainingError(f"{reason}.")
        exporter = _beside(trainer, "ns-export")
        assert exporter is not None
        began = time.monotonic()

        def left() -> float | None:
            return None if request.timeout_s is None else max(1.0, request.timeout_s - (time.monotonic() - began))

        with workplace(request, masks=False) as place:
            masked = self.options.masks and put_masks_by_stem(request.dataset_dir, place.dataset / "masks")
            _put_split(place.dataset, request.holdout_every)
            runs = place.folder / "runs"
            command = [str(trainer), *arguments(request, place.dataset, runs, masked)]
            ran = place.run(self.name, command, request, read=read, log=log, timeout_s=left(), hint=_hint)
            config = next(iter(sorted(runs.rglob("config.yml"))), None)
            if config is None:
                raise TrainingError(
                    f"nerfstudio finished but left no config.yml to export from; its last warning: {ran.last_warning}. See engine.log."
                )
            steps = _steps_of(config.parent)
            export = [str(exporter), "gaussian-splat", "--load-config", str(config), "--output-dir", str(place.made)]
            place.run("ns-export", export, request, read=lambda line: None, log=log, timeout_s=left())
            ply = next(iter(sorted(place.made.rglob("*.ply"))), None)
            kept, n = accept(self.name, ply, place, request, ran, log)
            check_steps(self.name, steps, request.steps, ran)
            told = place.told([*command, "&&", *export])
            made = result(self.name, _version(trainer), kept, n, steps, ran, told)
            made.metrics.update(_own_figures(trainer, config, place, left(), log))
        return made

    def _trainer(self) -> Path | None:
        return find_program(NAMES, self.options.nerfstudio)


def arguments(request: SplatRequest, dataset: Path, runs: Path, masked: bool) -> list[str]:
    """Arguments of ns-train: those of the method, then those of its COLMAP reader, which hold the frame."""
    method = {
        "--data": dataset,
        "--output-dir": runs,
        "--experiment-name": "box",
        "--timestamp": "run",
        "--max-num-iterations": request.steps,
        "--steps-per-save": request.steps,
        "--machine.seed": request.seed,
        # No viewer, hence no open port, and no waiting for a browser at the end.
        "--vis": "tensorboard",
        "--viewer.quit-on-train-completion": True,
        "--pipeline.model.strategy": "mcmc",
        "--pipeline.model.max-gs-num": request.max_splats,
        "--pipeline.model.sh-degree": request.sh_degree,
    }
    reader = {
        "--colmap-path": "sparse/0",
        "--images-path": "images",
        "--downscale-factor": 1,
        **FRAME_SWITCHES,
        "--eval-mode": "interval",
        "--eval-interval": request.holdout_every,
    }
    if masked:
        reader["--masks-path"] = "masks"
    words = ["splatfacto", *_words(method), *request.extra_args, "colmap", *_words(reader)]
    return words


def read(line: str) -> Said | None:
    """What a line of ns-train's table tells: ``2990 (9.97%)   12.3 ms   ...``."""
    found = _STEP.match(line)
    return Said(step=int(found["step"])) if found else None


def _words(given: dict[str, object]) -> list[str]:
    return [word for name, value in given.items() for word in (name, str(value))]


def _put_split(dataset: Path, every: int) -> None:
    """Name the photos of each split; nerfstudio reads ``<split>_list.txt`` where it is there."""
    held_out = set(held_out_names(dataset, every))
    trained = [name for name in photo_names(dataset) if name not in held_out]
    (dataset / "train_list.txt").write_text("\n".join(trained) + "\n")
    for split in ("val", "test", "validation"):
        (dataset / f"{split}_list.txt").write_text("\n".join(sorted(held_out)) + "\n")


def _steps_of(run_folder: Path) -> int:
    """Steps done by the newest checkpoint, whose name counts from 0."""
    found = [re.fullmatch(r"step-(\d+)\.ckpt", path.name) for path in run_folder.rglob("step-*.ckpt")]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _own_figures(trainer: Path, config: Path, place: Workplace, seconds: float | None, log: Log) -> dict[str, float]:
    """PSNR and SSIM as ns-eval finds them, for the frame check; nothing where it fails, since it only says, not makes."""
    judge = _beside(trainer, "ns-eval")
    if judge is None:
        return {}
    answer = place.folder / "eval.json"
    command = [str(judge), "--load-config", str(config), "--output-path", str(answer)]
    try:
        run(
            "ns-eval",
            command,
            folder=place.folder,
            journal=place.journal,
            read=lambda line: None,
            log=log,
            steps=0,
            timeout_s=min(seconds or 600.0, 600.0),
        )
        found = json.loads(answer.read_text())["results"]
        return {
            ours: float(found[theirs]) for ours, theirs in (("psnr_db", "psnr"), ("ssim", "ssim")) if theirs in found
        }
    except (TrainingError, OSError, ValueError, KeyError, TypeError) as error:
        log(f"nerfstudio: its own figures are not known: {str(error).splitlines()[0]}")
        return {}


def _beside(trainer: Path, name: str) -> Path | None:
    """A program of the same installation."""
    for folder in (trainer.parent, trainer.resolve().parent):
        if found := shutil.which(name, path=str(folder)):
            return Path(found)
    return None


def _version(trainer: Path) -> str:
    """As the Python says that the program's first line names; nerfstudio has no option for it."""
    with trainer.open("rb") as source:
        first = source.readline(512).decode(errors="replace").strip()
    python = Path(first.removeprefix("#!").strip())
    if not first.startswith("#!/") or not python.is_file():
        return "unknown"
    code = "import importlib.metadata as m; print(m.version('nerfstudio'))"
    return (ask(python, "-c", code) or "unknown").strip()


def _hint(output: str) -> str | None:
    if "Unrecognized options" in output or "unrecognized arguments" in output:
        return "This nerfstudio does not know an option: version 1.1.5 or later is needed."
    if "CUDA" in output:
        return "Splatfacto needs CUDA: look at torch.cuda.is_available() in its environment."
    return None
