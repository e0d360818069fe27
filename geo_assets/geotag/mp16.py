"""Positions and authors of ``mp16_places365.csv`` by photo, kept in the lake as sorted columns that take no reading.

The file comes with the MediaEval Placing Task's photos (IMG_ID, AUTHOR, LAT, LON and labels of scenes; 4.7 million
lines). A shard's records are found in it by the MD5 of their ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geo_assets.geotag import csvs, photos
from geo_assets.lake import Lake

if TYPE_CHECKING:
    import duckdb

COORDINATES = "mp16_places365.csv"
PART = "mp16_places365"
"""Partition of ``geotag_rejects`` that holds the lines of the file that are not usable."""

_KIND = "placing_2016_coordinates"
_READER = 1


def find_csv(folder: Path) -> Path | None:
    """The file in the folder of the photo set, or beside that folder; None where there is none."""
    return next((file for at in (folder, folder.parent) if (file := at / COORDINATES).is_file()), None)


def fingerprint(csv: Path | None) -> str | None:
    """What changes when the file does; None without a file."""
    if csv is None:
        return None
    facts = csv.stat()
    return f"{_READER}-{facts.st_size}-{facts.st_mtime_ns}"


class Coordinates:
    """The usable lines of the file.

    Args:
        columns: [5, n] uint64: upper and lower half of the MD5 of each IMG_ID, the upper ascending; the bits of longitude
            and latitude [deg]; the first 16 hex digits of the SHA-256 of the author's name, 0 where there is none.
    """

    def __init__(self, columns: np.ndarray) -> None:
        self._upper, self._lower, lon, lat, self._author = columns
        self._lon, self._lat = lon.view(np.float64), lat.view(np.float64)

    def __call__(self, upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Whether each photo is known [n], and longitude, latitude [deg] and author hash of those that are.

        Of several lines with one IMG_ID the first counts.
        """
        at = np.searchsorted(self._upper, upper)
        is_known = at < len(self._upper)
        is_known[is_known] = (self._upper[at[is_known]] == upper[is_known]) & (
            self._lower[at[is_known]] == lower[is_known]
        )
        found = at[is_known]
        return is_known, self._lon[found], self._lat[found], self._author[found]


@contextmanager
def coordinates(lake: Lake, con: duckdb.DuckDBPyConnection, csv: Path | None) -> Iterator[Coordinates | None]:
    """What the file says, read from the lake where it was read before; None without a file.

    Args:
        lake: keeps it, and the lines that are not usable as rejects.
        con: a connection that is :func:`geo_assets.geotag.photos.prepared`.
        csv: the file.

    Raises:
        SourceError: the file is not what it should be.
    """
    has_rejects = lake.has("geotag_rejects", source="placing_2016", part=PART)
    if csv is None:
        if has_rejects:  # of a file that is no more
            lake.write_query(con, "geotag_rejects", photos.no_rejects(), source="placing_2016", part=PART)
        yield None
        return
    key = lake.key(_KIND, f"{fingerprint(csv)}.npy")
    if not (has_rejects and lake.exists(key)):
        _read(lake, con, csv, key)
    with lake.local(key) as file:
        yield Coordinates(np.load(file, mmap_mode="r", allow_pickle=False))


def _read(lake: Lake, con: duckdb.DuckDBPyConnection, csv: Path, key: str) -> None:
    """Read the file once: its usable lines into ``key``, the others into the rejects."""
    roles = {"path": ("img_id",), "lon": csvs.LON_NAMES, "lat": csvs.LAT_NAMES}
    lines = csvs.open_csv(con, csv, roles, {"author": ("author",)}, view="mp16_lines")
    photos.refuse_swapped(con, lines.view, csv, (lines.names["lon"], lines.names["lat"]))
    con.execute(f"create or replace view mp16 as select *, row as line, '{COORDINATES}' as file from {lines.view}")
    sifted = photos.sift(con, "mp16", "placing_2016", ["line"])
    rejects = f"{sifted.rejects} union all {lines.rejects}"
    lake.write_query(con, "geotag_rejects", rejects, source="placing_2016", part=PART)
    found = con.execute(f"""
        select md5_number_upper(path) as upper, md5_number_lower(path) as lower, lon, lat,
            coalesce(('0x' || author_hash)::ubigint, 0::ubigint) as author
        from ({sifted.photos}) order by upper, lower, line""").fetchnumpy()
    columns = np.stack([np.asarray(found[name]).view(np.uint64) for name in ("upper", "lower", "lon", "lat", "author")])
    with lake.replacing(key) as sink:
        np.save(sink, columns, allow_pickle=False)
    for name in lake.names(lake.key(_KIND)):
        if name.endswith(".npy") and not key.endswith(f"/{name}"):
            lake.remove(lake.key(_KIND, name))  # of a file that is no more
