"""The Flickr geotag set: CSV files with ids and coordinates where there are any, EXIF positions of the photos else."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, UnidentifiedImageError

from geo_assets import exif
from geo_assets.errors import SourceError
from geo_assets.geotag import csvs
from geo_assets.geotag.photos import flickr_id, refuse_swapped, sift

PHOTO_SUFFIXES = {".jpg", ".jpeg"}
_ROLES = {
    "path": ("photo_id", "photoid", "image_id", "img_id", "id", "file path", "path", "filename"),
    "lon": csvs.LON_NAMES,
    "lat": csvs.LAT_NAMES,
}
_OPTIONAL = {"author": ("author", "owner", "user_id", "userid"), "licence": ("license", "licence")}
_RAW = ["file", "row", "fault", "value", "path", "lon", "lat", "captured_at", "author", "licence"]


def read_flickr(folder: Path, log: Callable[[str], None] = lambda line: None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a folder tree of CSV files and photos.

    A CSV is taken when its header has an id or path and both coordinates; others become one reject each. Photos that
    no CSV names are opened for their EXIF position; only the header of a JPEG is read.

    Args:
        folder: the folder tree; links to folders are not followed.
        log: told one line a CSV file, and every 10,000 photos.

    Returns:
        Rows of table ``flickr_geotag`` and of ``geotag_rejects``.

    Raises:
        SourceError: neither CSV files nor photos in the folder, or a CSV has swapped coordinate columns.
    """
    files = sorted(Path(base) / name for base, _, names in os.walk(folder) for name in names)
    tables = [path for path in files if path.suffix.lower() == ".csv"]
    photos = [path for path in files if path.suffix.lower() in PHOTO_SUFFIXES]
    if not tables and not photos:
        raise SourceError(f"No CSV file and no JPEG in {folder}. Set geotag.flickr_geotag to the folder of the photos.")
    listed = [_listed(path, path.relative_to(folder).as_posix(), log) for path in tables]
    raw = pd.concat([*listed, pd.DataFrame(columns=_RAW, dtype=object)], ignore_index=True)
    named = {_photo_id(path) for path in raw["path"].dropna()}
    unnamed = [p for p in photos if _photo_id(p.relative_to(folder).as_posix()) not in named]
    by_exif = pd.DataFrame(_by_exif(unnamed, folder, log), columns=_RAW, dtype=object)
    raw = pd.concat([raw, by_exif], ignore_index=True).astype(object)
    raw["photo_id"] = [_photo_id(path) if isinstance(path, str) else None for path in raw["path"]]
    return sift(raw, "flickr_geotag")


def _photo_id(path: str) -> str:
    return flickr_id(path) or path


def _listed(path: Path, name: str, log: Callable[[str], None]) -> pd.DataFrame:
    """The raw records of one CSV file."""
    names = csvs.header(path)
    if set(_ROLES) - set(csvs.recognised(names, _ROLES)):
        log(f"{name}: passed over, its columns are {', '.join(names)}")
        fault = "the CSV has no id and coordinate columns"
        return pd.DataFrame([{"file": name, "row": 0, "fault": fault, "value": ",".join(names)}])
    csv = csvs.read(path, _ROLES, _OPTIONAL)
    table = csv.frame
    refuse_swapped(path, table, (csv.names["lon"], csv.names["lat"]))
    log(f"{name}: {len(table):,} lines")
    lines = csv.rejects.rename(columns={"reason": "fault"}).assign(file=name)
    return pd.concat([table.assign(file=name, row=range(len(table))), lines], ignore_index=True)


def _by_exif(photos: list[Path], folder: Path, log: Callable[[str], None]) -> Iterator[tuple[Any, ...]]:
    for number, photo in enumerate(photos):
        if number and number % 10_000 == 0:
            log(f"{number:,} of {len(photos):,} photos")
        name = photo.relative_to(folder).as_posix()
        try:
            with Image.open(photo) as image:
                tags = image.getexif()
                gps = tags.get_ifd(exif.GPS)
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
            yield name, 0, "the photo cannot be read", error, name, None, None, None, None, None
            continue
        position = exif.position(gps)
        fault = None if position else "the EXIF has no GPS position"
        lon, lat = position or (None, None)
        yield (
            name,
            0,
            fault,
            name,
            name,
            lon,
            lat,
            exif_time(gps),
            exif.text(tags.get(exif.ARTIST)),
            exif.text(tags.get(exif.COPYRIGHT)),
        )


def exif_time(gps: dict[int, Any]) -> dt.datetime | None:
    """Time of the satellites (tags 29 and 7), UTC, or None. The camera's own clock has no zone and is not used."""
    with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        day = dt.datetime.strptime(str(gps[29]).strip("\0 "), "%Y:%m:%d").replace(tzinfo=dt.UTC)
        hours, minutes, seconds = (float(part) for part in gps[7])
        return day + dt.timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return None
