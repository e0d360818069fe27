"""The image files of a box: fetched late, checked, given EXIF, written atomically, and not fetched twice."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from geo_assets.errors import ApiError, SourceError
from geo_assets.harvest.exif import with_exif, written
from geo_assets.harvest.mapillary import Mapillary, kind_of
from geo_assets.lake import Lake
from geo_assets.tables import TABLES

FALLBACKS = {
    "256": ("256", "1024", "2048", "original"),
    "1024": ("1024", "2048", "original", "256"),
    "2048": ("2048", "original", "1024", "256"),
    "original": ("original", "2048", "1024", "256"),
}
"""Sizes in the order in which they are taken: an image may lack any of them."""

ATTEMPTS = 4
"""Downloads of one file before it is declared dead."""

CHUNK = 200
"""Images whose URLs are asked at once; URLs expire, so they are asked late."""


@dataclass(frozen=True)
class Harvest:
    """The files of a box.

    Attributes:
        files: rows of table ``image_files``.
        n_fetched: files fetched now.
        n_kept: files that were there already and are what the table says, or what their EXIF says.
    """

    files: pd.DataFrame
    n_fetched: int
    n_kept: int


def fetch(
    client: Mapillary,
    lake: Lake,
    metadata: pd.DataFrame,
    partition: Mapping[str, str],
    progress: Callable[[int], None] = lambda _: None,
) -> Harvest:
    """Bring every image of a box into the lake, in the size of the settings.

    Args:
        client: the API.
        lake: where files are put, as ``files/images/city=../box=../<image_id>.jpg``.
        metadata: rows of table ``image_metadata`` of the box.
        partition: the box, as the lake wants it.
        progress: told the number of images done so far.

    Raises:
        ApiError: the token is refused, or the API failed. A single file that cannot be had is a row with status
            ``dead`` instead.
    """
    size = client.settings.image_size
    images = {str(row["image_id"]): row for row in metadata.to_dict("records")}
    kept = _kept(lake, partition, images.keys(), size)
    rows, missing = list(kept.values()), [i for i in images if i not in kept]
    progress(len(rows))
    for start in range(0, len(missing), CHUNK):
        chunk = missing[start : start + CHUNK]
        links = urls(client, chunk)

        def one(image_id: str, links: dict[str, dict[str, str]] = links) -> dict[str, Any]:
            return _one(client, lake, images[image_id], links.get(image_id, {}), partition)

        for row in client.each(one, chunk):
            rows.append(row)
            progress(len(rows))
    return Harvest(TABLES["image_files"].frame(rows), len(missing), len(kept))


def urls(client: Mapillary, ids: list[str]) -> dict[str, dict[str, str]]:
    """Signed URLs of images by id and size; an image without any is absent."""
    sizes = FALLBACKS[client.settings.image_size]
    rows = client.images(ids, [f"thumb_{size}_url" for size in sizes]).rows
    links = {str(r["id"]): {s: str(u) for s in sizes if (u := r.get(f"thumb_{s}_url"))} for r in rows}
    return {image_id: sized for image_id, sized in links.items() if sized}


def problem_of(jpeg: bytes) -> str | None:
    """Why bytes are not a whole JPEG picture, or None where they are."""
    from PIL import Image

    if not jpeg:
        return "it is empty"
    if not jpeg.startswith(b"\xff\xd8"):
        return "it is not a JPEG"
    # Some cameras append data after the marker; a picture that was cut off has none at all near its end.
    if b"\xff\xd9" not in jpeg[-65536:]:
        return "its end is missing"
    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"it does not decode ({error})"
    return None


def file_row(image_id: str, size: str, path: str, jpeg: bytes, attempts: int) -> dict[str, Any]:
    """The row of table ``image_files`` of a file that is in the lake."""
    from PIL import Image

    with Image.open(io.BytesIO(jpeg)) as image:
        width, height = image.size
    return {
        "image_id": image_id,
        "size": size,
        "path": path,
        "bytes": len(jpeg),
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "width": width,
        "height": height,
        "status": "done",
        "reason": None,
        "attempts": attempts,
    }


def dead_row(image_id: str, size: str, reason: str, attempts: int) -> dict[str, Any]:
    """The row of table ``image_files`` of a file that could not be had."""
    empty = dict.fromkeys(("path", "bytes", "sha256", "width", "height"))
    return {
        "image_id": image_id,
        "size": size,
        **empty,
        "status": "dead",
        "reason": reason,
        "attempts": attempts,
    }


def _one(
    client: Mapillary,
    lake: Lake,
    image: Mapping[str, Any],
    links: Mapping[str, str],
    partition: Mapping[str, str],
) -> dict[str, Any]:
    image_id, reason, attempt = str(image["image_id"]), "the API names no file of it", 0
    wanted = client.settings.image_size
    while attempt < ATTEMPTS and links:
        attempt += 1
        size, url = next((s, links[s]) for s in FALLBACKS[wanted] if s in links)
        try:
            data = client.download(url)
        except ApiError as error:
            reason = str(error)
            if kind_of(error) == "forbidden":  # the signature has expired: a fresh one costs one request
                links = urls(client, [image_id]).get(image_id, {})
            continue
        problem = problem_of(data)
        if problem:
            reason = f"The file of {len(data)} bytes is broken: {problem}."
            continue
        try:
            data = with_exif(data, image, size)
        except SourceError as error:
            reason = str(error)
            continue
        key = lake.key("images", f"{image_id}.jpg", **partition)
        lake.put_bytes(key, data)
        return file_row(image_id, size, key, data, attempt)
    return dead_row(image_id, wanted, reason, attempt)


def _kept(lake: Lake, partition: Mapping[str, str], wanted: Any, size: str) -> dict[str, dict[str, Any]]:
    """Rows of files that need not be fetched again.

    They are those of the table whose bytes are still the same, and those that a run left behind which was ended
    before it wrote the table.
    """
    table = lake.read_if_any("image_files", None, **partition)
    asked = lake.note("image_files", **partition).get("size") if lake.has("image_files", **partition) else None
    done = table.loc[table["status"] == "done"] if asked == size else table.iloc[:0]
    rows = {str(r["image_id"]): r for r in done.to_dict("records")}
    kept = {}
    for image_id, data in _present(lake, partition, wanted):
        row = rows.get(image_id)
        if row is not None and hashlib.sha256(data).hexdigest() == row["sha256"]:
            kept[image_id] = row
        elif written(data) == (image_id, size) and problem_of(data) is None:
            key = lake.key("images", f"{image_id}.jpg", **partition)
            kept[image_id] = file_row(image_id, size, key, data, 0)
    return kept


def _present(lake: Lake, partition: Mapping[str, str], wanted: Any) -> Iterator[tuple[str, bytes]]:
    there = set(lake.names(lake.key("images", **partition)))
    for image_id in wanted:
        if f"{image_id}.jpg" in there:
            yield image_id, lake.get_bytes(lake.key("images", f"{image_id}.jpg", **partition))
