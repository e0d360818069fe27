"""What every photo source must pass: safe paths, positions on the globe, hashed authors. One shape for all of them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from geo_assets.errors import SourceError
from geo_assets.tables import TABLES

NULL_ISLAND_DEG = 1e-3
"""Positions this close to (0, 0) are flagged: cameras and converters write zeros for "unknown"."""

REJECT_COLUMNS = TABLES["geotag_rejects"].column_names
_SEGMENT = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f\x7f\ud800-\udfff]+"
_SAFE_PATH = re.compile(rf"(?![A-Za-z]:){_SEGMENT}(?:/{_SEGMENT})*")
_FLICKR_NAME = re.compile(r"(\d{5,})(?:_[0-9a-f]{10}.*)?(?:\.[A-Za-z]+)?")


def is_safe_path(path: object) -> bool:
    """Whether a relative path stays below the folder it is joined to."""
    return isinstance(path, str) and _SAFE_PATH.fullmatch(path) is not None


def flickr_id(path: str) -> str | None:
    """Flickr's photo id in a file name (``13/20/8010869266.jpg``, ``1000269685_e60e9cdfb4_o.jpg``), or None."""
    match = _FLICKR_NAME.fullmatch(path.rsplit("/", 1)[-1])
    return match[1] if match else None


def author_hash(author: object) -> str | None:
    """First 16 hex digits of the SHA-256 of a name; None where there is none."""
    if not isinstance(author, str) or not author.strip():
        return None
    return hashlib.sha256(author.strip().encode(errors="replace")).hexdigest()[:16]


def sift(raw: pd.DataFrame, source: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split raw records into photos and rejects.

    Args:
        raw: ``file, row, photo_id, path, lon, lat`` and, where known, ``fault`` with ``value`` (why the reader refuses
            the record), ``captured_at`` (UTC), ``author``, ``licence``, ``landmark_id``. Positions are numbers or text.
        source: name of the source, kept with each photo.

    Returns:
        Rows with the columns of the source's table, and rejects with the columns of ``geotag_rejects``.
    """
    raw = raw.reset_index(drop=True)
    lon, lat = (_numbers(raw, name).to_numpy() for name in ("lon", "lat"))
    rules = [
        (~raw["path"].map(is_safe_path).to_numpy(bool), "the path leaves its folder or is none", ["path"]),
        (np.isnan(lon) | np.isnan(lat), "the position is missing or not a number", ["lon", "lat"]),
        ((np.abs(lon) > 180) | (np.abs(lat) > 90), "the position is out of range", ["lon", "lat"]),
    ]
    reason, value = _column(raw, "fault").astype(object), _column(raw, "value").astype(object)
    for broken, why, columns in rules:
        first = broken & reason.isna().to_numpy()
        reason[first] = why
        value[first] = [
            ", ".join(f"{k}={v}" for k, v in zip(columns, row, strict=True))
            for row in raw.loc[first, columns].to_numpy(object)
        ]
    good = reason.isna().to_numpy()
    bad = raw[~good]
    rejects = pd.DataFrame(
        {
            "file": bad["file"],
            "row": bad["row"].astype(str),
            "reason": reason[~good],
            "value": value.loc[~good].map(_printable),
        },
        columns=REJECT_COLUMNS,
    )
    return _photos(raw.loc[good], lon[good], lat[good], source), rejects.reset_index(drop=True)


def _photos(raw: pd.DataFrame, lon: np.ndarray, lat: np.ndarray, source: str) -> pd.DataFrame:
    author = _column(raw, "author")
    hashes = {name: author_hash(name) for name in author.dropna().unique()}
    at_null = (np.abs(lon) < NULL_ISLAND_DEG) & (np.abs(lat) < NULL_ISLAND_DEG)
    return pd.DataFrame(
        {
            "photo_id": raw["photo_id"].astype(object),
            "source": source,
            "path": raw["path"].astype(object),
            "lon": lon,
            "lat": lat,
            "captured_at": pd.to_datetime(_column(raw, "captured_at"), utc=True),
            "author_hash": author.map(hashes).astype(object),
            "licence": _column(raw, "licence").astype(object),
            "landmark_id": _column(raw, "landmark_id").astype(object),
            "flags": pd.Series([["null_island"] if null else [] for null in at_null], raw.index, object),
        }
    ).reset_index(drop=True)


def _column(raw: pd.DataFrame, name: str) -> pd.Series:
    return raw.loc[:, name] if name in raw else pd.Series(None, index=raw.index, dtype=object)


def _numbers(raw: pd.DataFrame, name: str) -> pd.Series:
    """A column of numbers or text as floats; what is no number is NaN."""
    return cast(pd.Series, pd.to_numeric(raw[name], errors="coerce")).astype("float64")


def _printable(value: object) -> str:
    return str(value).encode(errors="backslashreplace").decode()[:200]


def no_rejects() -> pd.DataFrame:
    """A frame of rejects without rows."""
    return TABLES["geotag_rejects"].empty()


def refuse_swapped(file: Path, frame: pd.DataFrame, names: tuple[str, str]) -> None:
    """Refuse a file whose longitude and latitude columns hold each other's values.

    A world-wide file betrays it: its "latitudes" reach beyond 90 degrees while no "longitude" does.

    Args:
        file: named in the message.
        frame: columns ``lon`` and ``lat`` as read, numbers or text.
        names: the headers that the file gives to longitude and latitude.

    Raises:
        SourceError: the header is swapped; the message says what to write instead.
    """
    lon, lat = (_numbers(frame, name).abs() for name in ("lon", "lat"))
    beyond = int(((lat > 90) & (lat <= 180)).sum())
    # A few wrong latitudes are rows to reject; a twentieth of the file is a header to correct.
    if beyond and beyond > 0.05 * len(frame) and not (lon > 90).any():
        raise SourceError(
            f"{file.name}: the header seems swapped: {beyond:,} of {len(frame):,} values of column {names[1]} lie beyond "
            f"±90°, none of column {names[0]} does. Exchange the two names in the first line of {file}, and run again.",
            file=str(file),
            beyond_90=beyond,
        )
