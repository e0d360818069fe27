"""The 2016 Placing photos: msgpack shards, streamed; two kinds of records, with coordinates and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pandas as pd

from geo_assets.errors import SourceError
from geo_assets.geotag import csvs
from geo_assets.geotag.photos import flickr_id, no_rejects, refuse_swapped, sift

COORDINATES = "mp16_places365.csv"
_RAW = ["file", "row", "fault", "value", "path", "lon", "lat"]


def read_placing(folder: Path, log: Callable[[str], None] = lambda line: None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read all shards of a folder.

    A shard is a stream of msgpack maps ``{"id": "13/20/8010869266.jpg", "image": bytes, "latitude": deg,
    "longitude": deg}``. Records without coordinates get them from ``mp16_places365.csv`` (IMG_ID, AUTHOR, LAT, LON)
    in the same folder, which also names the authors. Images are passed over; they stay in the shards.

    Args:
        folder: holds ``*.msg``, at any depth.
        log: told one line a shard.

    Returns:
        Rows of table ``placing_2016`` and of ``geotag_rejects``; a shard that breaks off keeps its good records.

    Raises:
        SourceError: no shard in the folder, or the CSV is not what it should be.
    """
    shards = sorted(folder.rglob("*.msg"))
    if not shards:
        raise SourceError(f"No *.msg shard in {folder}. Set geotag.placing_2016 to the folder that holds the shards.")
    frames = []
    for shard in shards:
        frames.append(pd.DataFrame(_records(shard, shard.relative_to(folder).as_posix()), columns=_RAW, dtype=object))
        log(f"{shard.name}: {len(frames[-1]):,} records")
    raw, lines = _with_coordinates(pd.concat(frames, ignore_index=True), folder / COORDINATES)
    raw["photo_id"] = [_photo_id(path) for path in raw["path"]]
    photos, rejects = sift(raw, "placing_2016")
    return photos, pd.concat([rejects, lines], ignore_index=True)


def _photo_id(path: object) -> str | None:
    if not isinstance(path, str):
        return None
    return flickr_id(path) or path.rsplit(".", 1)[0]


def _records(shard: Path, name: str) -> Iterator[tuple[Any, ...]]:
    """Tuples of ``_RAW``: each record of a shard, and one more where the shard breaks off."""
    size, number = shard.stat().st_size, 0
    with shard.open("rb") as stream:
        # Old writers pack bytes as text, so undecodable text must not end the shard.
        unpacker = msgpack.Unpacker(
            stream, raw=False, unicode_errors="surrogateescape", strict_map_key=False, max_buffer_size=0
        )
        complete = 0  # bytes of whole records
        try:
            for record in unpacker:
                yield (name, number, *_parts(record))
                number, complete = number + 1, unpacker.tell()
        except (msgpack.UnpackException, ValueError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
        else:
            why = "the file ends inside a record"
    if complete < size:
        fault = f"the shard breaks after {number:,} records, at byte {complete:,} of {size:,}"
        yield name, number, fault, why, None, None, None


def _parts(record: object) -> tuple[Any, ...]:
    """``fault, value, path, lon, lat`` of one record."""
    if not isinstance(record, dict):
        return "the record is not a map", type(record).__name__, None, None, None
    path, lon, lat = record.get("id"), record.get("longitude"), record.get("latitude")
    if not isinstance(path, str):
        return "the record has no id", sorted(map(str, record)), None, None, None
    for key, number in (("longitude", lon), ("latitude", lat)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            return f"the {key} is not a number", number, path, None, None
    if (lon is None) != (lat is None):
        return "the record has half a position", f"lon={lon}, lat={lat}", path, None, None
    return None, None, path, lon, lat


def _with_coordinates(raw: pd.DataFrame, file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Positions and authors of ``mp16_places365.csv`` joined to the records; and its lines that are not usable."""
    lacking = raw["lon"].isna() & raw["fault"].isna()
    if not file.exists():
        raw.loc[lacking, "fault"] = f"the record has no position, and the folder no {COORDINATES}"
        raw.loc[lacking, "value"] = raw.loc[lacking, "path"]
        return raw, no_rejects()
    roles = {"path": ("img_id",), "lon": csvs.LON_NAMES, "lat": csvs.LAT_NAMES}
    csv = csvs.read(file, roles, {"author": ("author",)})
    refuse_swapped(file, csv.frame, (csv.names["lon"], csv.names["lat"]))
    known = csv.frame.drop_duplicates("path").set_index("path")
    joined = raw[["path"]].join(known, on="path")
    if "author" in joined:
        raw["author"] = joined["author"]
    raw.loc[lacking, ["lon", "lat"]] = joined.loc[lacking, ["lon", "lat"]]
    nameless = lacking & ~raw["path"].isin(known.index.to_series())
    raw.loc[nameless, "fault"] = f"the record has no position, and {COORDINATES} does not name it"
    raw.loc[nameless, "value"] = raw.loc[nameless, "path"]
    return raw, csv.rejects
