"""Brush (github.com/ArthurBrussee/brush, Apache-2.0): one binary, any GPU that Vulkan, Metal or DirectX 12 reaches.

Versions 0.2 and 0.3 call the number of steps ``--total-steps``, 1.0 calls it ``--total-train-iters`` and refuses the
other; ``--help`` tells which. It keeps the frame that it is given. A failed export is only a warning to it, and its
exit code stays 0. Held out is each n-th photo by name, as here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from geo_assets.errors import TrainingError
from geo_assets.settings import Splats
from geo_assets.splats.engine import ON_GPU, Log, SplatRequest, SplatResult
from geo_assets.splats.engines.program import NUMBER, Said, ask, find_program, flags_in, version_in
from geo_assets.splats.engines.workplace import accept, check_steps, result, workplace

NAMES = ("brush", "brush-cli", "brush_app")
VARIABLE = "GEO_ASSETS_BRUSH"
LEGACY = Path(".brush/target/release/brush_app")
"""Where a build of version 0.3 from source lies below the home folder."""
STEPS_FLAGS = ("--total-train-iters", "--total-steps")
GROWS_UNTIL = 0.5
"""Share of the steps after which the number of Gaussians stays; Brush's own default is step 15,000 of 30,000."""

_PATTERNS = (
    re.compile(r"Refine iter (?P<step>\d+), (?P<n_splats>\d+) splats"),
    re.compile(rf"Eval iter (?P<step>\d+): PSNR (?P<psnr_db>{NUMBER}), ssim (?P<ssim>{NUMBER})", re.IGNORECASE),
)
_DATASET = re.compile(r"Loaded dataset with (\d+) training, (\d+) eval views")
_NO_GPU = re.compile(
    r"\b(?:no|not|fail\w*|unable|cannot|could)\b[^\n]{0,80}\badapter|NoAdapter|RequestAdapterError", re.IGNORECASE
)


class BrushEngine:
    """Trains with the program ``brush``."""

    name = "brush"
    effort = ON_GPU

    def __init__(self, options: Splats | None = None) -> None:
        self.options = options or Splats()

    def available(self) -> str | None:
        """None where a Brush is found that says how it wants to be called."""
        program = self._program()
        if program is None:
            return f"engine 'brush' not found: looked for {', '.join(NAMES)} on PATH, {VARIABLE} and splats.brush; install it from the Brush releases page"
        if _steps_flag(ask(program, "--help") or "") is None:
            return f"engine 'brush': {program} --help names neither {' nor '.join(STEPS_FLAGS)}; it is no Brush that trains, install 0.2 or later"
        return None

    def about(self) -> str:
        """Version and place, for the log."""
        program = self._program()
        return f"{self._version(program)} ({program})" if program else "not found"

    def train(self, request: SplatRequest, log: Log) -> SplatResult:
        """See :class:`geo_assets.splats.engine.SplatEngine`."""
        program = self._program()
        reason = self.available()
        if program is None or reason:
            raise TrainingError(f"{reason}.")
        help_text = ask(program, "--help") or ""
        with workplace(request, masks=self.options.masks) as place:
            command = [
                str(program),
                str(place.dataset),
                *arguments(help_text, request, place.made),
                *request.extra_args,
            ]
            ran = place.run(
                self.name,
                command,
                request,
                read=lambda line: read(line, log),
                log=log,
                timeout_s=request.timeout_s,
                more={"RUST_LOG": "info"},
                hint=_hint,
            )
            made = exports(place.made)
            ply, n = accept(self.name, made[max(made)] if made else None, place, request, ran, log)
            check_steps(self.name, max(made), request.steps, ran)
            told = place.told(command)
        return result(self.name, self._version(program), ply, n, max(made), ran, told)

    def _program(self) -> Path | None:
        return find_program(NAMES, self.options.brush, os.environ.get(VARIABLE), elsewhere=[Path.home() / LEGACY])

    def _version(self, program: Path) -> str:
        return version_in(ask(program, "--version"))


def arguments(help_text: str, request: SplatRequest, made: Path) -> list[str]:
    """Brush's arguments after the dataset; what its ``--help`` does not name is left out where it may be.

    Raises:
        TrainingError: it cannot hold photos out or limit the Gaussians, so its splat would not be what was asked for.
    """
    flag, known = _steps_flag(help_text), flags_in(help_text)
    needed = {
        "--max-splats": request.max_splats,
        "--sh-degree": request.sh_degree,
        "--eval-split-every": request.holdout_every,
        "--export-every": request.steps,
        # A relative path is taken from the dataset's parent by 1.0, from the working directory by 0.3.
        "--export-path": made.absolute(),
        "--export-name": "export_{iter}.ply",
    }
    if flag is None or (missing := [name for name in needed if name not in known]):
        raise TrainingError(
            f'This brush knows no {", ".join(missing) if flag else STEPS_FLAGS[0]}. Install Brush 0.3 or later, or set splats.engine = "cpu".'
        )
    welcome = {
        "--max-resolution": request.max_image_px,
        "--eval-every": max(1, request.steps // 8),
        "--seed": request.seed,
        "--growth-stop-iter": int(request.steps * GROWS_UNTIL),
    }
    given = {flag: request.steps} | needed | {name: value for name, value in welcome.items() if name in known}
    return [part for name, value in given.items() for part in (name, str(value))]


def exports(folder: Path) -> dict[int, Path]:
    """Exported PLYs by step; Brush pads the step with zeros to the width of the total."""
    found = ((re.fullmatch(r"export_(\d+)\.ply", path.name), path) for path in folder.glob("*.ply"))
    return {int(match[1]): path for match, path in found if match}


def read(line: str, log: Log | None = None) -> Said | None:
    """What a line of Brush's log tells."""
    if log is not None and (loaded := _DATASET.search(line)):
        log(f"brush: {loaded[1]} photos to train on, {loaded[2]} held out")
    for pattern in _PATTERNS:
        if found := pattern.search(line):
            said = found.groupdict()
            return Said(
                step=int(said["step"]),
                n_splats=int(said["n_splats"]) if "n_splats" in said else None,
                psnr_db=float(said["psnr_db"]) if "psnr_db" in said else None,
                ssim=float(said["ssim"]) if "ssim" in said else None,
            )
    return None


def _steps_flag(help_text: str) -> str | None:
    known = flags_in(help_text)
    return next((flag for flag in STEPS_FLAGS if flag in known), None)


def _hint(output: str) -> str | None:
    if _NO_GPU.search(output):
        return "Brush found no GPU that it can use: install the GPU's Vulkan driver, or point VK_DRIVER_FILES to its .json."
    if "out of memory" in output.lower() or "OutOfMemory" in output:
        return "The GPU's memory ran out: lower splats.max_splats or splats.max_image_px."
    return None
