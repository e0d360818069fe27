"""OpenSplat (github.com/pierotofy/OpenSplat, AGPL-3.0): a C++ program for CUDA, ROCm, Metal and the CPU.

Up to 1.1 it centres and scales the scene unless ``--keep-crs`` says otherwise; later it keeps the frame unless
``--center`` is given and has no ``--keep-crs`` any more. ``--help`` tells which. It can withhold one photo only, so it
is given a dataset in which the other held-out photos do not exist.
"""

from __future__ import annotations

import re
from pathlib import Path

from geo_assets.errors import TrainingError
from geo_assets.settings import Splats
from geo_assets.splats.engine import ON_GPU, Log, SplatRequest, SplatResult
from geo_assets.splats.engines.program import NUMBER, Said, ask, find_program, flags_in, version_in
from geo_assets.splats.engines.workplace import accept, check_steps, held_out_names, result, workplace

NAMES = ("opensplat",)
_STEP = re.compile(rf"^Step (?P<step>\d+): (?P<loss>{NUMBER})")
_PSNR = re.compile(rf"validation PSNR: (?P<psnr_db>{NUMBER})")
_WROTE = re.compile(r"^Wrote ")


class OpenSplatEngine:
    """Trains with the program ``opensplat``; used only by name."""

    name = "opensplat"
    effort = ON_GPU

    def __init__(self, options: Splats | None = None) -> None:
        self.options = options or Splats()

    def available(self) -> str | None:
        """None where an OpenSplat is found that can keep the frame."""
        program = self._program()
        if program is None:
            return f"engine 'opensplat' not found: looked for {', '.join(NAMES)} on PATH and splats.opensplat; build it as its README says"
        if not {"--keep-crs", "--center"} & flags_in(ask(program, "--help") or ""):
            return f"engine 'opensplat': {program} knows no --keep-crs and would move the scene; build version 1.1 or later"
        return None

    def about(self) -> str:
        """Version and place, for the log."""
        program = self._program()
        return f"{_version(program)} ({program})" if program else "not found"

    def train(self, request: SplatRequest, log: Log) -> SplatResult:
        """See :class:`geo_assets.splats.engine.SplatEngine`."""
        program, reason = self._program(), self.available()
        if program is None or reason:
            raise TrainingError(f"{reason}.")
        judged, *others = held_out_names(request.dataset_dir, request.holdout_every)
        with workplace(request, masks=self.options.masks, hold_back=frozenset(others)) as place:
            ply = place.made / "splat.ply"
            flags = flags_in(ask(program, "--help") or "")
            command = [str(program), str(place.dataset), *arguments(flags, request, ply, judged), *request.extra_args]
            ran = place.run(
                self.name,
                command,
                request,
                read=read,
                log=log,
                timeout_s=request.timeout_s,
            )
            # On a GPU it speaks of each tenth step only.
            done = request.steps if request.steps - ran.steps < 10 else ran.steps
            kept, n = accept(self.name, ply, place, request, ran, log)
            check_steps(self.name, done, request.steps, ran)
            told = place.told(command)
        return result(self.name, _version(program), kept, n, done, ran, told)

    def _program(self) -> Path | None:
        return find_program(NAMES, self.options.opensplat)


def arguments(flags: set[str], request: SplatRequest, ply: Path, judged: str) -> list[str]:
    """OpenSplat's arguments after the dataset; ``judged`` is the photo that it withholds."""
    given = ["-o", str(ply), "-n", str(request.steps), "--downscale-factor", "1", "--num-downscales", "0"]
    # Degree 0 is not allowed there; viewers and our files take what comes.
    given += ["--sh-degree", str(max(1, request.sh_degree)), "--val", "--val-image", judged]
    given += ["--keep-crs"] if "--keep-crs" in flags else []
    given += ["--max-gaussians", str(request.max_splats)] if "--max-gaussians" in flags else []
    return given


def read(line: str) -> Said | None:
    """What a line of OpenSplat's output tells."""
    if found := _STEP.match(line):
        return Said(step=int(found["step"]), loss=float(found["loss"]))
    if found := _PSNR.search(line):
        return Said(psnr_db=float(found["psnr_db"]))
    return Said() if _WROTE.match(line) else None


def _version(program: Path) -> str:
    # Its usage text begins with "... Gaussian Splats generator - 1.1.5 (commit)"; --version came later.
    return version_in(ask(program, "--version") or (ask(program, "--help") or "").split("\n", 1)[0])
