"""Which pairs of a box a person should look at, and what is needed to draw them: photos, features, matches."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import Bounds
from geo_assets.lake import Lake
from geo_assets.reconstruct.databases import pair_id
from geo_assets.reconstruct.features import DATABASE

if TYPE_CHECKING:
    from geo_assets.reconstruct.pictures import PairPhotos


def chosen_pairs(pairs: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """The strongest verified pair, one of the middle, and the strongest impossible one, where there are such."""
    quarantined = pairs.quarantine.notna()
    good = pairs.loc[pairs.verified.astype(bool) & ~quarantined]
    good = good.sort_values(["n_inliers", "image_id_a", "image_id_b"], ascending=[False, True, True])
    bad = pairs.loc[quarantined & (pairs.n_inliers > 0)]
    bad = bad.sort_values(["n_inliers", "image_id_a", "image_id_b"], ascending=[False, True, True])
    found = [("strongest", good.iloc[0])] if len(good) else []
    found += [("median", good.iloc[len(good) // 2])] if len(good) > 2 else []
    found += [("quarantined", bad.iloc[0])] if len(bad) else []
    return found


def pair_photos(lake: Lake, city: str, box: str, images: pd.DataFrame, pairs: pd.DataFrame) -> list[PairPhotos]:
    """The chosen pairs of a box with their photos and matches, read from the lake and the published database.

    A pair whose photos or matches are gone is left out: a picture is no reason to fail.

    Args:
        lake: holds the photos and ``files/matches``.
        city: name of the city.
        box: name of the box.
        images: rows of ``gps_db``.
        pairs: rows of ``match_pairs``.
    """
    from geo_assets.reconstruct.pictures import PairPhotos

    chosen, key = chosen_pairs(pairs), lake.key("matches", DATABASE, city=city, box=box)
    if not chosen or not lake.exists(key):
        return []
    known = images.set_index("image_id")[["colmap_image_id", "path"]].dropna()
    found = []
    with lake.local(key) as database:
        for label, pair in chosen:
            ids = [str(pair.image_id_a), str(pair.image_id_b)]
            if not all(i in known.index and lake.exists(str(known.path[i])) for i in ids):
                continue
            numbers = [int(known.colmap_image_id[i]) for i in ids]
            read = _matches(database, numbers[0], numbers[1])
            if read is None:
                continue
            jpegs = tuple(lake.get_bytes(str(known.path[i])) for i in ids)
            found.append(
                PairPhotos(_title(label, pair), (jpegs[0], jpegs[1]), read[0], read[1], label != "quarantined")
            )
    return found


def bounds_m(bounds: Bounds, note: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """West, south, east and north of a box [m] in the frame that the note of its ``gps_db`` names."""
    frame = LocalFrame(*note["origin"])
    west, south, _ = frame.enu(bounds.west, bounds.south, frame.alt_m).tolist()
    east, north, _ = frame.enu(bounds.east, bounds.north, frame.alt_m).tolist()
    return west, south, east, north


def _title(label: str, pair: pd.Series) -> str:
    why = "" if pd.isna(pair.quarantine) else f" ({pair.quarantine})"
    return (
        f"{label}{why}: {pair.n_inliers:,} of {pair.n_matches:,} matches agree, {pair.distance_m:.0f} m apart\n"
        f"{pair.image_id_a} and {pair.image_id_b}"
    )


Keypoints = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def _matches(database: Path, first: int, second: int) -> tuple[Keypoints, npt.NDArray[Any]] | None:
    """Keypoints [n, 2] of both images and the matches [k, 2] that agree, in the order asked for."""
    swapped = first > second
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as con:
        row = con.execute(
            "select rows, cols, data from two_view_geometries where pair_id = ?", [pair_id(first, second)]
        ).fetchone()
        points = [
            con.execute("select rows, cols, data from keypoints where image_id = ?", [number]).fetchone()
            for number in (first, second)
        ]
    if row is None or not row[0] or any(point is None or not point[0] for point in points):
        return None
    matches = np.frombuffer(row[2], np.uint32).reshape(row[0], row[1]).astype(int)
    first_points, second_points = (
        np.frombuffer(data, np.float32).reshape(rows, columns)[:, :2].astype(float) for rows, columns, data in points
    )
    return (first_points, second_points), matches[:, ::-1] if swapped else matches
