"""CSV files from outside, by the names their columns go by; lines that do not parse are handed back, not fatal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from geo_assets.errors import SourceError

LON_NAMES = ("lon", "longitude", "lng", "long")
LAT_NAMES = ("lat", "latitude")


def header(path: Path) -> list[str]:
    """The column names of the first line.

    Raises:
        SourceError: the file cannot be read as UTF-8 text with a header.
    """
    try:
        return [str(name) for name in pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns]
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} has no readable header: {error}. It must be UTF-8 CSV.", file=str(path)) from None


def recognised(names: list[str], wanted: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Which of a file's columns plays which role, by name without regard to case; roles not found are left out."""
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    return {role: by_lower[n] for role, known in wanted.items() if (n := next((k for k in known if k in by_lower), ""))}


@dataclass(frozen=True)
class Csv:
    """The wanted columns as text under their roles, the file's own names of them, and the lines that do not fit.

    ``rejects`` has the columns of ``geotag_rejects``: lines with too many fields, whose number the parser does not say.
    """

    frame: pd.DataFrame
    names: dict[str, str]
    rejects: pd.DataFrame


def read(
    path: Path, required: Mapping[str, tuple[str, ...]], optional: Mapping[str, tuple[str, ...]] | None = None
) -> Csv:
    """Read the wanted columns of a file.

    Args:
        path: the file.
        required: role -> names the column may have (lower case), in order of preference.
        optional: the same for columns that may be missing.

    Raises:
        SourceError: the file cannot be read, or a required column is missing.
    """
    names = header(path)
    found = recognised(names, {**required, **(optional or {})})
    missing = [f"{role} ({' or '.join(required[role])})" for role in required if role not in found]
    if missing:
        raise SourceError(
            f"{path.name} lacks {', '.join(missing)}; its columns are {', '.join(names)}. Name the columns so in {path}.",
            file=str(path),
        )
    # usecols would let lines with too many fields pass in silence, so all columns are read.
    options: Any = {
        "dtype": str,
        "encoding": "utf-8-sig",
        "keep_default_na": False,
        "na_values": [""],
        "index_col": False,
    }
    too_long: list[list[str]] = []
    keep: Any = too_long.append  # pandas takes a function here, its types say text
    try:
        try:
            frame = pd.read_csv(path, **options)
        except pd.errors.ParserError:
            frame = pd.read_csv(path, engine="python", on_bad_lines=keep, **options)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}.", file=str(path)) from None
    value = [",".join(fields)[:200] for fields in too_long]
    rejects = pd.DataFrame({"file": path.name, "row": "", "reason": "the line has too many fields", "value": value})
    return Csv(frame[list(found.values())].set_axis(list(found), axis=1), found, rejects)
