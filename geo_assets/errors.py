"""The errors of geo_assets: each carries one sentence that a user can act on, and the figures behind it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class GeoAssetsError(Exception):
    """Base of all errors that a user can act on; ``figures`` become metadata in Dagster."""

    def __init__(self, message: str, **figures: Any) -> None:
        super().__init__(message)
        self.figures = figures


class ConfigError(GeoAssetsError):
    """The settings contradict themselves or the world."""


class SourceError(GeoAssetsError):
    """Bad input; the message names the file, the row and the reason."""


class ApiError(GeoAssetsError):
    """An answer of the imagery API, classified by its code and subcode."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: int | None = None,
        subcode: int | None = None,
        **figures: Any,
    ) -> None:
        super().__init__(message, status=status, code=code, subcode=subcode, **figures)
        self.status, self.code, self.subcode = status, code, subcode
        self.may_pass = False
        """Whether asking again later may help; the client sets it once it has given up for now."""


class IncompleteHarvest(GeoAssetsError):
    """The sources do not agree: something is known to be missing."""


class ReconstructionError(GeoAssetsError):
    """COLMAP could not make what was asked for."""


class TrainingError(GeoAssetsError):
    """A splat engine failed or returned something that is not a splat of this scene."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with the nearest of the known words, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
