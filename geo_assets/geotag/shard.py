"""Records of a Placing shard: where it is, and where its JPEG lies; the images themselves are passed over.

A shard is MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md): maps one behind the other,
``{"image": bytes, "id": "13/20/8010869266.jpg", "latitude": deg, "longitude": deg}``, the two angles optional. Such a
record takes one small read at the end of its image, where the next one begins; whatever else a writer may have left
is msgpack's to read.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

Record = tuple[str | None, str | None, str | None, float | None, float | None, int | None, int | None]
"""``fault, value, path, lon, lat, offset, bytes``: why the record is refused and what is wrong with it, its id, its
position [deg] as written, and the first byte and size of its JPEG in the shard; what a record lacks is None."""

MAX_RECORD = 32 << 20
"""A longer record is none of ours, but damage that reads like a huge length [B]."""

JPEG = b"\xff\xd8\xff"
"""What a JPEG begins with; other bytes are no image."""

_WINDOW, _ENOUGH = 512, 160
"""Bytes of a read, and how many of them must be left for the next record to be read from the same ones."""

_AHEAD, _STEP = 2 << 20, 256 << 10
_CAN_READ_AHEAD = hasattr(os, "RWF_NOWAIT")  # only Linux has it
_CHUNK = 1 << 20
_DOUBLE = struct.Struct(">d").unpack_from
_TWO, _FOUR = (2, struct.Struct(">H").unpack_from), (4, struct.Struct(">I").unpack_from)
_SIZES = {0xC4: (1, struct.Struct(">B").unpack_from), 0xC5: _TWO, 0xC6: _FOUR, 0xDA: _TWO, 0xDB: _FOUR}
"""Width and reader of the lengths of bytes, and of long texts, as which old writers pack them."""

_ANGLE = (float, type(None))
_MAPS_AND_ARRAYS = {*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF}
_BEGINNING = re.compile(rb"[\x81-\x8f](?:\xa5image|\xa2id|\xa8latitude|\xa9longitude)")
_LONGEST_BEGINNING = 11


def records(shard: Path) -> Iterator[Record]:
    """Every record of a shard, the bad ones with their fault.

    Where the shard is damaged, one of them says so and the next is the first whole record behind; where it breaks off,
    the last one says after how many records and at which byte.
    """
    with shard.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        number = start = base = ahead = 0
        window = b""
        while start < size:
            while ahead < start + _AHEAD:
                ahead = _read_ahead(descriptor, max(ahead, start))
            if start - base > len(window) - _ENOUGH:
                window, base = os.pread(descriptor, _WINDOW, start), start
            if (quick := _quick(descriptor, window, base, start)) and quick[1] <= size:
                record, start, window, base = quick
            else:
                record, start = _odd(file, start, size, number)
            yield record
            number += 1


def _read_ahead(descriptor: int, at: int) -> int:
    """Have the disk read a stretch of the shard from byte ``at`` on, for small reads far apart make it seek; its end."""
    if _CAN_READ_AHEAD:
        try:
            os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT)  # cheaper than to ask for what is in memory
        except OSError:
            os.posix_fadvise(descriptor, at, _STEP, os.POSIX_FADV_WILLNEED)
    return at + _STEP


def _quick(descriptor: int, window: bytes, base: int, start: int) -> tuple[Record, int, bytes, int] | None:
    """The record at byte ``start``, where it ends, and the window then; None for a record of another form.

    ``window`` holds the shard's bytes from ``base`` on, those of the record's beginning among them.
    """
    fields: dict[bytes, Any] = {}
    at = start - base
    try:
        entries = window[at] - 0x80
        if not 0 <= entries < 16:
            return None
        at += 1
        for _ in range(entries):
            length = window[at] - 0xA0
            if not 0 <= length < 32:
                return None
            value = at + 1 + length
            key, kind = window[at + 1 : value], window[value]
            if kind == 0xCB:
                fields[key] = _DOUBLE(window, value + 1)[0]
                at = value + 9
            elif 0xA0 <= kind < 0xC0:
                at = value + kind - 0x9F
                fields[key] = window[value + 1 : at]
            elif kind == 0xD9:
                at = value + 2 + window[value + 1]
                fields[key] = window[value + 2 : at]
            elif kind in _SIZES:
                width, unpack = _SIZES[kind]
                first, size = value + 1 + width, unpack(window, value + 1)[0]
                if first + 3 > len(window):
                    return None
                is_jpeg = size > 2 and window[first : first + 3] == JPEG
                fields[key] = (base + first, size) if is_jpeg else (None, None)
                at = first + size
                if at > len(window) - _ENOUGH:
                    base, at = base + at, 0
                    window = os.pread(descriptor, _WINDOW, base)
            else:
                return None
        path, image = fields.get(b"id"), fields.get(b"image", (None, None))
        lon, lat = fields.get(b"longitude"), fields.get(b"latitude")
        angles_known = type(lon) is type(lat) and type(lon) in _ANGLE
        if not (isinstance(path, bytes) and isinstance(image, tuple) and angles_known) or at > len(window):
            return None
        return (None, None, path.decode(), lon, lat, *image), base + at, window, base
    except (IndexError, struct.error, UnicodeDecodeError):  # beyond the window, or no text
        return None


def _odd(file: IO[bytes], start: int, size: int, number: int) -> tuple[Record, int]:
    """The record at byte ``start`` as msgpack reads it, or the damage there; and where the next one begins."""
    try:
        content, end = _unpacked(file, start)
    except _Damage as damage:
        why = str(damage)
    else:
        if _is_whole(file, content, start, end, size):
            return _judged(content, os.pread(file.fileno(), end - start, start), start), end
        why = "no record is there"
    where = f"after {number:,} records, at byte {start:,} of {size:,}: {printable(why)}"
    following = _next_record(file, start + 1, size)
    if following is None:
        return _refused("the shard breaks off", where), size
    return _refused("the shard is damaged", f"{where}; {following - start:,} bytes are passed over"), following


class _Damage(Exception):
    pass


def _unpacked(file: IO[bytes], start: int) -> tuple[object, int]:
    """What msgpack reads at byte ``start``, and where it ends."""
    import msgpack

    file.seek(start)
    # Old writers pack bytes as text, so undecodable text must not end the shard.
    unpacker = msgpack.Unpacker(
        file,
        raw=False,
        unicode_errors="surrogateescape",
        strict_map_key=False,
        read_size=1 << 16,
        max_buffer_size=MAX_RECORD,
        max_array_len=100_000,
        max_map_len=100_000,
    )
    try:
        return unpacker.unpack(), start + unpacker.tell()
    except msgpack.OutOfData:
        raise _Damage("the file ends inside a record") from None
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        raise _Damage(f"{type(error).__name__}: {error}") from None


def _has_id(content: object) -> bool:
    return isinstance(content, dict) and isinstance(content.get("id"), str)


def _is_whole(file: IO[bytes], content: object, start: int, end: int, size: int) -> bool:
    """Whether something without an id is a record all the same, and not what damage makes of the bytes there.

    A list among the records is a bad record, a number amid bytes that begin none is damage, and so is a false length
    that takes in the records behind.
    """
    if _has_id(content):
        return True
    is_followed = end == size or os.pread(file.fileno(), 1, end)[0] in _MAPS_AND_ARRAYS
    return (isinstance(content, dict) or is_followed) and _next_record(file, start + 1, end) is None


def _next_record(file: IO[bytes], start: int, end: int) -> int | None:
    """Where the first record with an id lies that begins at byte ``start`` or later, but before ``end``."""
    for at in range(start, end, _CHUNK):
        for found in _BEGINNING.finditer(os.pread(file.fileno(), _CHUNK + _LONGEST_BEGINNING, at)):
            if at + found.start() >= end:
                return None
            try:
                content, _ = _unpacked(file, at + found.start())
            except _Damage:
                continue
            if _has_id(content):
                return at + found.start()
    return None


def _judged(content: object, packed: bytes, start: int) -> Record:
    """What a record says that msgpack has read; ``packed`` are its bytes, the first of them byte ``start``."""
    if not isinstance(content, dict):
        return _refused("the record is not a map", type(content).__name__)
    path, lon, lat = content.get("id"), content.get("longitude"), content.get("latitude")
    if not isinstance(path, str):
        return _refused("the record has no id", ", ".join(sorted(map(str, content))))
    if path != printable(path):
        return _refused("the id is not UTF-8 text", path)
    for key, number in (("longitude", lon), ("latitude", lat)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            return _refused(f"the {key} is not a number", str(number), path)
    if (lon is None) != (lat is None):
        return _refused("the record has half a position", f"lon={lon}, lat={lat}", path)
    offset, length = _jpeg(content.get("image"), packed)
    if offset is not None:
        offset += start
    if lon is None or lat is None:
        return None, None, path, None, None, offset, length
    return None, None, path, float(lon), float(lat), offset, length


def _jpeg(image: object, packed: bytes) -> tuple[int, int] | tuple[None, None]:
    """First byte and size of the image in its packed record, if it is a JPEG."""
    content = image.encode(errors="surrogateescape") if isinstance(image, str) else image
    if not isinstance(content, bytes) or not content.startswith(JPEG):
        return None, None
    return packed.rindex(content), len(content)


def _refused(fault: str, value: str, path: str | None = None) -> Record:
    return fault, printable(value)[:200], path, None, None, None, None


def printable(text: str) -> str:
    """Text without what UTF-8 cannot say."""
    return text.encode(errors="backslashreplace").decode()
