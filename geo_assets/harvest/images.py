"""The image files of a box: fetched late, checked, given EXIF, written atomically, and not fetched twice."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import ApiError, SourceError
from geo_assets.files import replacing
from geo_assets.harvest.exif import with_exif, written
from geo_assets.harvest.jpeg import layout, problem_of
from geo_assets.harvest.mapillary import Images, Mapillary, kind_of
from geo_assets.lake import Lake
from geo_assets.tables import TABLES

FALLBACKS = {
    "256": ("256", "1024", "2048", "original"),
    "1024": ("1024", "2048", "original", "256"),
    "2048": ("2048", "original", "1024", "256"),
    "original": ("original", "2048", "1024", "256"),
}
"""Sizes in the order in which they are taken: an image may lack any of them."""

LARGER = 2
"""A size names the width of a file; an upright photo may be so much higher."""

MAX_DEAD_SHARE = 0.02
"""Share of dead files above which the photos of a box are not what its metadata promise."""

ATTEMPTS = 4
"""Downloads of one file that came broken, before it is declared dead."""

REFRESHES = 3
"""Fresh addresses of one file that are asked for because the last one had expired; they are no attempts."""

MARGIN_S = 60.0
"""An address that expires this soon is not used any more."""

CHUNK, AHEAD = 200, 3
"""Images whose addresses are asked at once, and how many such chunks are asked ahead: addresses expire."""

FAILURES = 50
"""Files in a row that a host does not give for a passing reason, before it is taken to be down."""

RESIZED_QUALITY = 90

SHARD_COLUMNS = ["image_id", "path", "size", "bytes"]
_SHARD = re.compile(r"shard-\d+-of-\d+\.csv")


@dataclass(frozen=True)
class Harvest:
    """The files of a box.

    Attributes:
        files: rows of table ``image_files``.
        n_fetched: files fetched now.
        n_kept: files that were there already and are what the table says, or what their EXIF says.
        n_removed: files of images that are not wanted any more, or not here.
    """

    files: pd.DataFrame
    n_fetched: int
    n_kept: int
    n_removed: int = 0


@dataclass(frozen=True)
class Addresses:
    """Where the files of an image are.

    Attributes:
        urls: signed URL by size.
        asked_at: when the API was asked [s since 1970].
        absent: why there is none.
    """

    urls: Mapping[str, str]
    asked_at: float
    absent: str = ""

    def best(self, wanted: str) -> tuple[str, str]:
        """The size to take where one is wanted, and its URL."""
        return next((size, self.urls[size]) for size in FALLBACKS[wanted] if size in self.urls)


def fetch(
    client: Mapillary,
    lake: Lake,
    metadata: pd.DataFrame,
    partition: Mapping[str, str],
    progress: Callable[[int], None] = lambda _: None,
) -> Harvest:
    """Bring every selected image of a box into the lake, in the size of the settings.

    Folder and table are reconciled first: leftovers of a killed run and files of images that are no longer wanted
    go, whole files that a killed run left stay, files whose position has changed get new EXIF, damaged ones are
    fetched again.

    Args:
        client: the API.
        lake: where files are put, as ``files/images/city=../box=../<image_id>.jpg``; reduced copies, if the settings
            want them, in ``files/images_resized``.
        metadata: rows of table ``image_metadata`` of the box.
        partition: the box, as the lake wants it.
        progress: told the number of images done so far.

    Raises:
        ApiError: the token is refused, the API failed, or the file host is down. A single file that cannot be had
            is a row with status ``dead`` instead.
    """
    box = _Box(client, lake, wanted(metadata), partition)
    n_removed = tidy(lake, partition, box.images.keys(), resized=client.settings.resize is not None)
    rows = box.reconciled(progress)
    n_kept = len(rows)
    missing = [image_id for image_id in box.images if image_id not in rows]
    with _Links(client, missing, is_gone_believed=n_kept > 0) as links:
        for row in client.each(lambda image_id: box.fetched(image_id, links), missing):
            rows[row["image_id"]] = row
            progress(len(rows))
    for kind in ("images", "images_resized"):
        lake.sync(lake.key(kind, **partition))
    n_fetched = sum(rows[image_id]["status"] == "done" for image_id in missing)
    return Harvest(TABLES["image_files"].frame([rows[i] for i in box.images]), n_fetched, n_kept, n_removed)


def wanted(metadata: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``image_metadata`` of images that exist and are selected; tables of earlier versions have no others."""
    for column in ("tombstoned_at", "dropped_by"):
        if column in metadata:
            metadata = metadata.loc[metadata[column].isna()]
    return metadata


def tidy(lake: Lake, partition: Mapping[str, str], images: Collection[str], *, resized: bool = False) -> int:
    """Remove what does not belong into a box: leftovers of killed runs, and our files of other images.

    A file is ours if the table names its image, or if its EXIF does; others are left alone.

    Args:
        lake: where the files are.
        partition: the box.
        images: ids of the images whose files belong there.
        resized: whether their reduced copies do, too.

    Returns:
        The number of images' files that were removed.
    """
    table, n_removed = lake.read_if_any("image_files", ["image_id"], **partition), 0
    known = set(table["image_id"])
    for kind, belonging in (("images", images), ("images_resized", images if resized else ())):
        folder = lake.key(kind, **partition)
        for name in lake.names(folder):
            key, image_id = f"{folder}/{name}", name.removesuffix(".jpg")
            if name.endswith(".tmp"):
                lake.remove(key)
            elif name.endswith(".jpg") and image_id not in belonging:
                said = None if image_id in known else written(lake.get_bytes(key))
                if image_id in known or (said is not None and said.image_id == image_id):
                    lake.remove(key)
                    n_removed += 1
    return n_removed


def ask(client: Mapillary, ids: Sequence[str], *, is_gone_believed: bool = False) -> dict[str, Addresses]:
    """Signed URLs of images, and where there is none, why.

    Args:
        client: the API.
        ids: the images.
        is_gone_believed: whether to believe that none of many images exists; a token without rights is told so, too.

    Raises:
        ApiError: the token is refused or seems to be without rights, or the API failed.
    """
    sizes, asked_at = FALLBACKS[client.settings.image_size], time.time()
    try:
        answer = client.images(ids, [f"thumb_{size}_url" for size in sizes])
    except ApiError as error:
        if kind_of(error) != "gone" or not is_gone_believed:
            raise
        answer = Images(tombstones=list(ids))
    found = dict.fromkeys(ids, Addresses({}, asked_at, "the API did not say where it is"))
    found |= dict.fromkeys(answer.tombstones, Addresses({}, asked_at, "the API says that the image does not exist"))
    for row in answer.rows:
        urls = {size: str(url) for size in sizes if (url := row.get(f"thumb_{size}_url"))}
        found[str(row["id"])] = Addresses(urls, asked_at, "the API names no file of it")
    return found


def expires_at(url: str) -> float | None:
    """When a signed URL expires [s since 1970], by its parameter ``oe`` (hexadecimal); None where it does not say."""
    said = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query).get("oe", [""])[0]
    try:
        moment = int(said, 16)
    except ValueError:
        return None
    return float(moment) if 0 < moment < 1 << 33 else None


def file_row(
    image_id: str,
    size: str,
    path: str,
    jpeg: bytes,
    attempts: int,
    *,
    exif_written: bool = False,
    resized_path: str | None = None,
    url_expires_at: dt.datetime | None = None,
) -> dict[str, Any]:
    """The row of table ``image_files`` of a file that is in the lake."""
    found = layout(jpeg)
    return {
        "image_id": image_id,
        "size": size,
        "path": path,
        "bytes": len(jpeg),
        "sha256": hashlib.sha256(jpeg).hexdigest(),
        "width": found.width,
        "height": found.height,
        "exif_written": exif_written,
        "resized_path": resized_path,
        "url_expires_at": url_expires_at,
        "status": "done",
        "reason": None,
        "attempts": attempts,
    }


def dead_row(image_id: str, size: str, reason: str, attempts: int) -> dict[str, Any]:
    """The row of table ``image_files`` of a file that could not be had."""
    unknown = ("path", "bytes", "sha256", "width", "height", "resized_path", "url_expires_at")
    return {
        "image_id": image_id,
        "size": size,
        **dict.fromkeys(unknown),
        "exif_written": False,
        "status": "dead",
        "reason": reason,
        "attempts": attempts,
    }


def shards(files: pd.DataFrame, n: int) -> list[pd.DataFrame]:
    """The files that are there as ``n`` lists for as many consumers, equal but for one file.

    Args:
        files: rows of table ``image_files``, of one box or of several.
        n: number of lists, at least 1; where there are fewer files, some are empty.

    Returns:
        Frames of :data:`SHARD_COLUMNS`, in the order of the ids.
    """
    if n < 1:
        raise ValueError(f"Files can be divided into 1 list or more, not into {n}.")
    done = files.loc[files["status"] == "done", SHARD_COLUMNS].sort_values("image_id", kind="stable")
    return [done.iloc[part].reset_index(drop=True) for part in np.array_split(np.arange(len(done)), n)]


def write_shards(target: Lake | Path, files: pd.DataFrame, n: int, **partition: str) -> list[str]:
    """Write the lists of :func:`shards` as CSV, in the place of those of an earlier call.

    Args:
        target: a lake, where they become ``files/shards/[city=../][box=../]shard-001-of-008.csv``, or a folder.
        files: rows of table ``image_files``.
        n: number of lists.
        partition: ``city`` and ``box``, for a lake.

    Returns:
        Keys in the lake, or paths, of the lists.
    """
    digits = max(3, len(str(n)))
    parts = {f"shard-{i + 1:0{digits}}-of-{n:0{digits}}.csv": part for i, part in enumerate(shards(files, n))}
    if isinstance(target, Path):
        for name, part in parts.items():
            with replacing(target / name) as sink:
                sink.write(_csv(part))
        for path in target.glob("shard-*-of-*.csv"):
            if path.name not in parts:
                path.unlink()
        return [str(target / name) for name in parts]
    folder = target.key("shards", **partition)
    for name, part in parts.items():
        target.put_bytes(f"{folder}/{name}", _csv(part))
    for name in target.names(folder):
        if _SHARD.fullmatch(name) and name not in parts:
            target.remove(f"{folder}/{name}")
    return [f"{folder}/{name}" for name in parts]


def _csv(frame: pd.DataFrame) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(frame.columns)
    writer.writerows(frame.itertuples(index=False))
    return sink.getvalue().encode()


class _Links:
    """Addresses of files in chunks: while the files of one are fetched, the next ones are asked for."""

    def __init__(self, client: Mapillary, ids: Sequence[str], *, is_gone_believed: bool) -> None:
        self._client, self._is_gone_believed = client, is_gone_believed
        self._chunks = [ids[i : i + CHUNK] for i in range(0, len(ids), CHUNK)]
        self._chunk_of = {image_id: i // CHUNK for i, image_id in enumerate(ids)}
        self._asked: dict[int, Future[dict[str, Addresses]]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AHEAD + 1, thread_name_prefix="addresses")

    def __enter__(self) -> _Links:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def of(self, image_id: str) -> Addresses:
        """The addresses of an image, asked for late: those who call do so in the order of the ids."""
        chunk = self._chunk_of[image_id]
        with self._lock:
            for i in range(chunk, min(chunk + AHEAD + 1, len(self._chunks))):
                if i not in self._asked:
                    self._asked[i] = self._pool.submit(self._ask, self._chunks[i])
            asked = self._asked[chunk]
        return asked.result()[image_id]

    def again(self, image_id: str) -> Addresses:
        """Fresh addresses of one image."""
        return self._ask([image_id])[image_id]

    def _ask(self, ids: Sequence[str]) -> dict[str, Addresses]:
        return ask(self._client, ids, is_gone_believed=self._is_gone_believed)


class _Host:
    """Whether the file host answers at all; threads tell it how they fared."""

    def __init__(self) -> None:
        self._failures, self._lock = 0, threading.Lock()

    def answered(self) -> None:
        self._failures = 0

    def failed(self, error: ApiError) -> None:
        """Count a file that did not come.

        Raises:
            ApiError: so many in a row did not come that the others would not either.
        """
        if kind_of(error) not in ("transient", "limited") or error.status == 404:
            return  # that is the file's fault
        with self._lock:
            self._failures += 1
            if self._failures < FAILURES:
                return
        down = ApiError(
            f"The host of the image files gave none of the last {FAILURES} files, so it is taken to be down; what it "
            f"said last: {error} Harvest again later: the files that came are kept.",
            status=error.status,
            code=error.code,
            subcode=error.subcode,
        )
        down.may_pass = True
        raise down from None


class _Box:
    """The files of one box on their way into the lake; its methods may be called by several threads."""

    def __init__(self, client: Mapillary, lake: Lake, metadata: pd.DataFrame, partition: Mapping[str, str]) -> None:
        self.client, self.lake, self.partition = client, lake, dict(partition)
        self.images = {str(row["image_id"]): row for row in metadata.to_dict("records")}
        self.size, self.resize = client.settings.image_size, client.settings.resize
        self.host = _Host()
        table = lake.read_if_any("image_files", None, **partition)
        asked = lake.note("image_files", **partition).get("size") if lake.has("image_files", **partition) else None
        self.is_same_size = asked == self.size
        self.earlier = {str(row["image_id"]): row for row in table.to_dict("records")}

    def reconciled(self, progress: Callable[[int], None]) -> dict[str, dict[str, Any]]:
        """Rows by image of the files that are in the lake already and need not be fetched."""
        there = set(self.lake.names(self.lake.key("images", **self.partition)))
        candidates = [image_id for image_id in self.images if f"{image_id}.jpg" in there]
        rows: dict[str, dict[str, Any]] = {}
        for image_id, row in zip(candidates, self.client.each(self._kept, candidates), strict=True):
            if row is not None:
                rows[image_id] = row
                progress(len(rows))
        return rows

    def fetched(self, image_id: str, links: _Links) -> dict[str, Any]:
        """The row of an image after all was done to have its file."""
        addresses, attempts, refreshes, reason = links.of(image_id), 0, 0, ""
        while attempts < ATTEMPTS and addresses.urls:
            size, url = addresses.best(self.size)
            if _is_stale(url, addresses.asked_at) and refreshes < REFRESHES:
                addresses, refreshes = links.again(image_id), refreshes + 1
                continue
            try:
                data = self.client.download(url)
            except ApiError as error:
                if kind_of(error) == "forbidden" and refreshes < REFRESHES:  # the signature has expired
                    addresses, refreshes = links.again(image_id), refreshes + 1
                    continue
                self.host.failed(error)
                attempts, reason = attempts + 1, str(error)
                break  # the client was patient already
            self.host.answered()
            attempts += 1
            try:
                return self._stored(image_id, size, url, data, self._attempts_before(image_id) + attempts)
            except SourceError as error:
                reason = str(error)
        # To find no address is an attempt, too.
        attempts = self._attempts_before(image_id) + max(attempts, 1)
        return dead_row(image_id, self.size, reason or addresses.absent, attempts)

    def _stored(self, image_id: str, size: str, url: str, data: bytes, attempts: int) -> dict[str, Any]:
        """The row of a download that was checked and put into the lake."""
        longest_px = None if size == "original" else LARGER * int(size)
        if problem := problem_of(data, longest_px):
            raise SourceError(f"The file of {len(data)} bytes is broken: {problem}.")
        data = with_exif(data, self.images[image_id], size, self.size)
        resized, key = self._resized(image_id, data, anew=True), self._key(image_id)
        self.lake.put_bytes(key, data, sync_folder=False)
        until = expires_at(url)
        expiry = None if until is None else dt.datetime.fromtimestamp(until, dt.UTC)
        return file_row(
            image_id, size, key, data, attempts, exif_written=True, resized_path=resized, url_expires_at=expiry
        )

    def _kept(self, image_id: str) -> dict[str, Any] | None:
        """The row of a file that is in the lake, or None if it must be fetched.

        It is kept if its bytes are those of the table, or if a run left it behind that was ended before it wrote
        the table; then its EXIF names image and size.
        """
        key = self._key(image_id)
        data, row = self.lake.get_bytes(key), self.earlier.get(image_id)
        is_listed = row is not None and row["status"] == "done" and self.is_same_size
        if is_listed and row is not None and hashlib.sha256(data).hexdigest() == row["sha256"]:
            size = str(row["size"])
        else:
            said = written(data)
            if said is None or (said.image_id, said.asked) != (image_id, self.size) or problem_of(data):
                return None
            size = said.size
            row = file_row(image_id, size, key, data, self._attempts_before(image_id) + 1)
        now = with_exif(data, self.images[image_id], size, self.size)
        if now != data:  # the metadata have changed since
            self.lake.put_bytes(key, now, sync_folder=False)
            row = row | {"bytes": len(now), "sha256": hashlib.sha256(now).hexdigest()}
        return row | {"exif_written": True, "resized_path": self._resized(image_id, now)}

    def _attempts_before(self, image_id: str) -> int:
        """Attempts of the runs that gave up on the image; those of a file that came are not added to."""
        row = self.earlier.get(image_id)
        return int(row["attempts"]) if row is not None and row["status"] == "dead" else 0

    def _key(self, image_id: str, kind: str = "images") -> str:
        return self.lake.key(kind, f"{image_id}.jpg", **self.partition)

    def _resized(self, image_id: str, data: bytes, *, anew: bool = False) -> str | None:
        """The key of the reduced copy of a file, made unless it is there; None where none is wanted."""
        if self.resize is None:
            return None
        key, label = self._key(image_id, "images_resized"), "{}x{}".format(*self.resize)
        there = self.lake.get_bytes(key) if not anew and self.lake.exists(key) else b""
        said = written(there) if there.endswith(b"\xff\xd9") else None
        if said is None or (said.image_id, said.size) != (image_id, label):
            there = b""
        copy = with_exif(there or reduced(data, self.resize), self.images[image_id], label)
        if copy != there:
            self.lake.put_bytes(key, copy, sync_folder=False)
        return key


def reduced(jpeg: bytes, into_px: tuple[int, int]) -> bytes:
    """A picture made smaller so that it fits into a width and height [px], its proportions kept; never larger."""
    from PIL.JpegImagePlugin import JpegImageFile

    sink = io.BytesIO()
    with JpegImageFile(io.BytesIO(jpeg)) as image:
        image.thumbnail(into_px)  # it lets the decoder do the first halvings
        image.save(sink, "JPEG", quality=RESIZED_QUALITY)
    return sink.getvalue()


def _is_stale(url: str, asked_at: float) -> bool:
    """Whether a signed URL is about to expire.

    One that seemed so when it was given tells that the clocks differ; then only the host can say.
    """
    until = expires_at(url)
    return until is not None and until < time.time() + MARGIN_S and until >= asked_at + MARGIN_S
