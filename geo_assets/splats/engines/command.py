"""A trainer of the user's own: a command line with names in braces, which covers any program without code.

``splats.command = "mytrainer --data {dataset} --out {out_ply} --iterations {steps}"`` is split like a shell would, but
no shell runs it: there are no pipes, variables or wildcards in it.
"""

from __future__ import annotations

import re
import shlex
import string
from pathlib import Path

from geo_assets.errors import ConfigError, TrainingError
from geo_assets.settings import Splats
from geo_assets.splats.engine import ON_GPU, Log, SplatRequest, SplatResult
from geo_assets.splats.engines.program import NUMBER, Said, find_program
from geo_assets.splats.engines.workplace import accept, held_out_names, result, workplace

PLACEHOLDERS = ("dataset", "out_ply", "steps", "max_splats", "sh_degree", "seed", "masks", "holdout_every")
NEEDED = ("dataset", "out_ply")

_PATTERNS = {
    "step": re.compile(r"\b(?:step|iter|iteration)\b\s*[:=#]?\s*(\d+)", re.IGNORECASE),
    "psnr_db": re.compile(rf"\bpsnr\b\s*[:=]?\s*({NUMBER})", re.IGNORECASE),
    "ssim": re.compile(rf"\bssim\b\s*[:=]?\s*({NUMBER})", re.IGNORECASE),
    "loss": re.compile(rf"\bloss\b\s*[:=]?\s*({NUMBER})", re.IGNORECASE),
}


class CommandEngine:
    """Trains with the command of the settings; ``auto`` prefers it where one is set."""

    name = "command"
    effort = ON_GPU

    def __init__(self, options: Splats | None = None) -> None:
        self.options = options or Splats()

    def available(self) -> str | None:
        """None where a command is set and its program is there.

        Raises:
            ConfigError: the template is wrong.
        """
        if not self.options.command:
            known = " ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            return f"engine 'command' is not set up: splats.command is empty; give a command line with {known}"
        first = words_of(self.options.command)[0]
        if find_program((), first) is None:
            return f"engine 'command': the program '{first}' of splats.command is not there or cannot be executed; give its full path"
        return None

    def about(self) -> str:
        """The program, for the log."""
        return f"({self._program()})"

    def train(self, request: SplatRequest, log: Log) -> SplatResult:
        """See :class:`geo_assets.splats.engine.SplatEngine`.

        A command without ``{holdout_every}`` cannot know which photos to hold out, so it does not get them.
        """
        reason, program = self.available(), self._program()
        if reason or program is None or not self.options.command:
            raise TrainingError(f"{reason}.")
        words = words_of(self.options.command)
        knows = any("{holdout_every}" in word for word in words)
        kept_back = frozenset() if knows else frozenset(held_out_names(request.dataset_dir, request.holdout_every))
        with workplace(request, masks=self.options.masks, hold_back=kept_back) as place:
            ply = place.made / "splat.ply"
            values = {
                "dataset": place.dataset,
                "out_ply": ply,
                "steps": request.steps,
                "max_splats": request.max_splats,
                "sh_degree": request.sh_degree,
                "seed": request.seed,
                "masks": place.dataset / "masks",
                "holdout_every": request.holdout_every,
            }
            filled = [word.format(**values) for word in words]
            command = [str(program), *filled[1:], *request.extra_args]
            ran = place.run(
                self.name,
                command,
                request,
                read=read,
                log=log,
                timeout_s=request.timeout_s,
            )
            kept, n = accept(self.name, ply, place, request, ran, log)
            told = place.told(command)
        # A foreign program may take --version for an order to train, so its name stands for its version. What counts as
        # a step is the program's affair, so a smaller number than asked for is told, not refused.
        return result(self.name, program.name, kept, n, ran.steps or request.steps, ran, told)

    def _program(self) -> Path | None:
        return find_program((), words_of(self.options.command)[0]) if self.options.command else None


def words_of(template: str) -> list[str]:
    """The words of a command template, placeholders not yet filled in.

    Raises:
        ConfigError: it cannot be split, has an unknown placeholder, or lacks one that it needs.
    """
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        words = shlex.split(template)
        fields = [field for word in words for _, field, _, _ in string.Formatter().parse(word) if field is not None]
    except ValueError as error:
        raise ConfigError(
            f"splats.command cannot be read ({error}): {template!r}. Known placeholders: {known}."
        ) from None
    if unknown := [field for field in fields if field not in PLACEHOLDERS]:
        raise ConfigError(f"splats.command has the unknown placeholder '{{{unknown[0]}}}'; known: {known}.")
    if missing := [name for name in NEEDED if name not in fields]:
        raise ConfigError(f"splats.command lacks {{{missing[0]}}}, without which it cannot train; known: {known}.")
    return words


def read(line: str) -> Said | None:
    """What a line tells that says ``step 100``, ``psnr: 24.1`` and the like, as most trainers do."""
    found = {name: match[1] for name, pattern in _PATTERNS.items() if (match := pattern.search(line))}
    if not found:
        return None
    psnr_db, ssim, loss = (float(found[name]) if name in found else None for name in ("psnr_db", "ssim", "loss"))
    return Said(step=int(found["step"]) if "step" in found else None, psnr_db=psnr_db, ssim=ssim, loss=loss)
