"""Every answer that cost a request, kept as it comes in, so that no run ever asks for it again.

Answers lie in append-only files of the lake, ``files/answers/city=<city>/<writer>.log``: each process writes its
own, all are read. A record is a header, a body and a checksum; a record that a killed process left half is where
reading of its file ends.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from geo_assets.lake import Lake

_FRAME = struct.Struct("<IIII")  # bytes of the header, of the packed body, of the body, checksum of both
_CODEC = pa.Codec("zstd", compression_level=1)
_SYNC_S, _SEGMENT_BYTES, _SEGMENT_S = 2.0, 4 << 20, 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One kept answer.

    Attributes:
        at: when it was given [s since the epoch].
    """

    at: float
    _packed: memoryview
    _size: int

    @property
    def value(self) -> Any:
        """What was kept."""
        return orjson.loads(_CODEC.decompress(self._packed, self._size, asbytes=True))


class Answers:
    """The kept answers about a city.

    Args:
        lake: where they lie.
        city: the city.
        fresh_for_s: age up to which answers are believed [s]; what is kept from now on always is.
    """

    def __init__(self, lake: Lake, city: str, fresh_for_s: float = float("inf")) -> None:
        self.lake, self.city = lake, city
        self._oldest = time.time() - fresh_for_s  # fixed: what a run has asked must not grow stale in its hands
        self._folder = lake.key("answers", city=city)
        self._writer = f"{int(time.time())}-{uuid.uuid4().hex[:8]}"
        self._index: dict[tuple[str, str], list[Answer]] = defaultdict(list)
        self._descriptor: int | None = None
        self._segment, self._n_segments, self._began = bytearray(), 0, 0.0
        self._synced = time.monotonic()
        self._ids: dict[str, set[str]] = {}
        for name in sorted(lake.names(self._folder)):
            if name.endswith(".log"):
                with contextlib.suppress(FileNotFoundError):  # another run has tidied up
                    self._read(lake.get_bytes(f"{self._folder}/{name}"))
        for answers in self._index.values():
            answers.sort(key=lambda answer: answer.at)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def of(self, kind: str, key: str, since: float = 0.0) -> list[Answer]:
        """Answers of a kind about a thing that are fresh and were given at ``since`` or later, oldest first."""
        oldest = max(since, self._oldest)
        return [answer for answer in self._index.get((kind, key), ()) if answer.at >= oldest]

    def keys(self, kind: str) -> list[str]:
        """The things of which answers of a kind are kept."""
        return [key for known, key in self._index if known == kind]

    def keep(self, kind: str, key: str, value: Any) -> Answer:
        """Keep an answer; it outlives this process from here on, and this machine a moment later."""
        body = orjson.dumps(value)
        packed: bytes = _CODEC.compress(body, asbytes=True)
        at = time.time()
        self._append(orjson.dumps([kind, key, at]), packed, len(body))
        answer = Answer(at, memoryview(packed), len(body))
        self._index[kind, key].append(answer)
        return answer

    def sync(self) -> None:
        """Bring everything to the disk, or to the object storage."""
        self._synced = time.monotonic()
        if self._descriptor is not None:
            os.fsync(self._descriptor)
        if self._segment:
            key = f"{self._folder}/{self._writer}-{self._n_segments:05d}.log"
            self.lake.put_bytes(key, bytes(self._segment))
            self._segment, self._n_segments = bytearray(), self._n_segments + 1

    # -- images ---------------------------------------------------------------------------------------------

    def keep_images(self, box: str, columns: Mapping[str, list[Any]]) -> None:
        """Keep what was said of images that turned out to lie in a box, column by column; ``id`` is one of them."""
        self.keep("images", box, columns)
        if box in self._ids:
            self._ids[box].update(columns["id"])

    def images(self, box: str, since: float = 0.0) -> tuple[dict[str, list[Any]], list[float]]:
        """What was last said of each image that lies in a box, column by column, and when it was said."""
        columns: dict[str, list[Any]] = {}
        times: list[float] = []
        for answer in self.of("images", box, since):
            value = answer.value
            for name, values in value.items():
                columns.setdefault(name, [None] * len(times)).extend(values)
            times += [answer.at] * len(value["id"])
            for name in columns.keys() - value.keys():
                columns[name] += [None] * len(value["id"])
        latest = {image: i for i, image in enumerate(columns.get("id", ()))}
        if len(latest) < len(times):
            chosen = list(latest.values())
            columns = {name: [values[i] for i in chosen] for name, values in columns.items()}
            times = [times[i] for i in chosen]
        return columns, times

    def image_ids(self, box: str, since: float = 0.0) -> set[str]:
        """Ids of the images that are known to lie in a box."""
        if since:
            return set(self.images(box, since)[0].get("id", ()))
        if box not in self._ids:
            self._ids[box] = set(self.images(box)[0].get("id", ()))
        return self._ids[box]

    def named(self, kind: str, since: float = 0.0) -> dict[str, Any]:
        """The union of small dictionaries that are kept under one kind and an empty key."""
        return {k: v for answer in self.of(kind, "", since) for k, v in answer.value.items()}

    def forget_ids(self) -> None:
        """Free the memory of :meth:`image_ids`; they are read again when they are needed."""
        self._ids.clear()

    def prune(self) -> int:
        """Remove files in which nothing is fresh any more; how many."""
        oldest, n = self._oldest, 0
        for name in self.lake.names(self._folder):
            began = name.partition("-")[0]
            if name.endswith(".log") and began.isdigit() and int(began) < oldest:
                data = self.lake.get_bytes(f"{self._folder}/{name}")
                if all(orjson.loads(header)[2] < oldest for header, _, _ in _records(data)):
                    self.lake.remove(f"{self._folder}/{name}")
                    n += 1
        return n

    # -- files ----------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        for header, packed, size in _records(data):
            kind, key, at = orjson.loads(header)
            self._index[kind, key].append(Answer(at, packed, size))

    def _append(self, header: bytes, packed: bytes, size: int) -> None:
        check = zlib.crc32(packed, zlib.crc32(header))
        record = b"".join((_FRAME.pack(len(header), len(packed), size, check), header, packed))
        if not self.lake.is_local:
            self._began = self._began if self._segment else time.monotonic()
            self._segment += record
            if len(self._segment) > _SEGMENT_BYTES or time.monotonic() - self._began > _SEGMENT_S:
                self.sync()
            return
        if self._descriptor is None:
            path = Path(self.lake.uri(f"{self._folder}/{self._writer}.log"))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(self._descriptor, record)
        if time.monotonic() - self._synced > _SYNC_S:
            self.sync()


def _records(data: bytes) -> Iterator[tuple[memoryview, memoryview, int]]:
    """Header, packed body and size of the body of each whole record."""
    view, at = memoryview(data), 0
    while at + _FRAME.size <= len(view):
        n_header, n_packed, size, check = _FRAME.unpack_from(view, at)
        start, end = at + _FRAME.size, at + _FRAME.size + n_header + n_packed
        if end > len(view):
            return
        header, packed = view[start : start + n_header], view[start + n_header : end]
        if zlib.crc32(packed, zlib.crc32(header)) != check:
            return
        yield header, packed, size
        at = end
