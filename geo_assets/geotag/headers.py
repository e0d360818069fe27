"""Position, time and author in the EXIF of many photos: of each JPEG only the segments before its pixels are read.

Segments as in ITU-T T.81 annex B, EXIF as in CIPA DC-008, its directories as in TIFF 6.0. A photo takes some 25 µs.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import struct
import threading
from pathlib import Path
from typing import Any, NamedTuple

from geo_assets import exif

READER = 1
"""To be raised when this module, or :mod:`geo_assets.exif`, reads a photo in another way: all are then read again."""

_PAGE = 4096
_MAX_STEPS = 2_000
"""Segments and stray bytes before the pixels; a file made of filling would be walked through byte by byte."""

_BYTES, _RATIONAL, _SIGNED_RATIONAL = (1, 2, 7), 5, 10
_EXIF, _SEGMENT = b"Exif\0\0", struct.Struct(">BBH6s")
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_STANDALONE = {0x01, *range(0xD0, 0xD9)}


class Header(NamedTuple):
    """What the EXIF of a photo says, or why it says nothing.

    ``lon`` and ``lat`` [deg] are as written and may be off the globe; ``captured_at`` [UTC] is the time of the
    satellites, since the camera's own clock has no zone.
    """

    fault: str | None = None
    value: str | None = None
    lon: float | None = None
    lat: float | None = None
    captured_at: dt.datetime | None = None
    author: str | None = None
    licence: str | None = None


class _Fault(Exception):
    """Why a photo cannot be used, and what was found instead."""


def read_header(path: Path | str) -> Header:
    """Read one photo.

    Raises:
        OSError: the file cannot be opened or read, which may pass.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        tiff = _exif_of(descriptor)
        order = _Order.of(tiff)
        main = order.directory(tiff, order.first(tiff))
        offset = main.get(exif.GPS)
        gps = order.directory(tiff, offset) if isinstance(offset, int) else {}
    except _Fault as fault:
        return Header(*fault.args)
    finally:
        os.close(descriptor)
    known = {
        "captured_at": satellite_time(gps),
        "author": exif.text(main.get(exif.ARTIST)),
        "licence": exif.text(main.get(exif.COPYRIGHT)),
    }
    if place := exif.position(gps):
        return Header(lon=place[0], lat=place[1], **known)
    if found := {tag: gps[tag] for tag in (1, 2, 3, 4) if tag in gps}:
        return Header("the GPS position of the EXIF is incomplete", str(found), **known)
    return Header("the EXIF has no GPS position", None, **known)


def satellite_time(gps: dict[int, Any]) -> dt.datetime | None:
    """Date and time of the satellites (tags 29 and 7), UTC; None where they are no time."""
    try:
        year, month, day = map(int, (exif.text(gps[29]) or "").replace("-", ":").split(":"))
        hours, minutes, seconds = gps[7]
        if not (0 <= hours < 24 and 0 <= minutes < 60 and 0 <= seconds <= 60):
            return None
        passed = dt.timedelta(hours=hours, minutes=minutes, seconds=seconds)
        return dt.datetime(year, month, day, tzinfo=dt.UTC) + passed
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


# -- the file ---------------------------------------------------------------------------------------------------


def _exif_of(descriptor: int) -> bytes:
    """The TIFF block of the EXIF segment."""
    head = os.read(descriptor, _PAGE)
    if not head:
        raise _Fault("the file is empty")
    if head[:2] != b"\xff\xd8":
        raise _Fault("the file is no JPEG", f"it begins with {head[:8]!r}")
    at = 2
    for _ in range(_MAX_STEPS):
        begin = head[at : at + _SEGMENT.size] if at + _SEGMENT.size <= _PAGE else os.pread(descriptor, 10, at)
        if len(begin) < _SEGMENT.size:
            if begin[:2] == b"\xff\xd9":
                break
            raise _Fault("the photo breaks off in its header", f"after {at + len(begin):,} bytes")
        mark, kind, length, name = _SEGMENT.unpack(begin)
        if mark != 0xFF or kind in (0x00, 0xFF):
            at += 1  # filling, or what a careless program left between two segments
        elif kind in _STANDALONE:
            at += 2
        elif kind in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        elif kind == _APP1 and name == _EXIF:
            first, size = at + 10, length - 8
            tiff = head[first : first + size] if first + size <= _PAGE else os.pread(descriptor, size, first)
            if len(tiff) < size:
                raise _Fault("the photo breaks off in its header", f"after {first + len(tiff):,} bytes")
            return tiff
        else:
            at += 2 + length
    else:
        raise _Fault("the photo has no end of its header", f"after {at:,} bytes")
    raise _Fault("the photo has no EXIF")


class _Order:
    """Directories in one byte order, as TIFF 6.0 section 2 has them."""

    def __init__(self, sign: str) -> None:
        self._short, self._long, self._entry = (struct.Struct(sign + form) for form in ("H", "I", "HHI4s"))
        self._rationals = {
            kind: [struct.Struct(f"{sign}{2 * n}{form}") for n in range(4)]
            for kind, form in ((_RATIONAL, "I"), (_SIGNED_RATIONAL, "i"))
        }

    @staticmethod
    def of(tiff: bytes) -> _Order:
        if tiff[:4] == b"II*\0":
            return _LITTLE
        if tiff[:4] == b"MM\0*":
            return _BIG
        raise _Fault("the EXIF cannot be read", f"it begins with {tiff[:8]!r}")

    def first(self, tiff: bytes) -> int:
        """Where the first directory begins."""
        if len(tiff) < 8:
            raise _Fault("the EXIF cannot be read", f"it has {len(tiff)} bytes")
        return self._long.unpack_from(tiff, 4)[0]

    def directory(self, tiff: bytes, at: int) -> dict[int, Any]:
        """Values by tag: bytes, an int, or a tuple of up to three numbers; those that lie outside are left out."""
        if at + 2 > len(tiff):
            return {}
        end = min(at + 2 + self._short.unpack_from(tiff, at)[0] * 12, len(tiff))
        whole = tiff[at + 2 : end - (end - at - 2) % 12]
        found = ((tag, self._value(tiff, kind, n, raw)) for tag, kind, n, raw in self._entry.iter_unpack(whole))
        return {tag: value for tag, value in found if value is not None}

    def _value(self, tiff: bytes, kind: int, n: int, raw: bytes) -> Any:
        if kind in _BYTES:
            if n <= 4:
                return raw[:n]
            at = self._long.unpack(raw)[0]
            return tiff[at : at + n] if at + n <= len(tiff) else None
        if kind in self._rationals:
            layout, at = self._rationals[kind][min(n, 3)], self._long.unpack(raw)[0]
            if at + layout.size > len(tiff):
                return None
            parts = iter(layout.unpack_from(tiff, at))
            return tuple(a / b if b else None for a, b in zip(parts, parts, strict=True))
        if kind == 4 and n == 1:
            return self._long.unpack(raw)[0]
        return None


_LITTLE, _BIG = _Order("<"), _Order(">")


# -- many files -------------------------------------------------------------------------------------------------


def read_chunk(folder: str, listing: str, chunk: int) -> tuple[bytes, bytes | None]:
    """Read the photos of one row group of a listing.

    Args:
        folder: holds the photos.
        listing: parquet file with columns ``path, size, changed_ns``; its row groups are the chunks.
        chunk: number of the row group.

    Returns:
        Two parquet files with the columns of the listing and of :class:`Header`: the photos that were read, and those
        that could not be opened, or None, which another run shall try again.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.ParquetFile(listing).read_row_group(chunk)
    headers, opened = [], []
    for path in rows["path"].to_pylist():
        try:
            headers.append(read_header(f"{folder}/{path}"))
            opened.append(True)
        except OSError as error:
            headers.append(Header("the photo cannot be opened", error.strerror or str(error)))
            opened.append(False)
    text, number, time = pa.string(), pa.float64(), pa.timestamp("us", "UTC")
    types = (text, text, number, number, time, text, text)
    for name, kind, values in zip(Header._fields, types, zip(*headers, strict=True), strict=True):
        rows = rows.append_column(name, pa.array(values, kind))

    def parquet(kept: list[bool]) -> bytes:
        sink = io.BytesIO()
        pq.write_table(rows.filter(pa.array(kept, pa.bool_())), sink, compression="zstd")
        return sink.getvalue()

    return parquet(opened), None if all(opened) else parquet([not done for done in opened])


def end_with_parent() -> None:
    """Let a process that was started to read chunks end with the one that started it, however that ends."""
    from multiprocessing import parent_process

    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
