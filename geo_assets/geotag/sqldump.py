"""Rows of a SQL dump by the value of one column: ``mysqldump``'s INSERT lines, streamed at the pace of decompression."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO

import numba
import numpy as np
import numpy.typing as npt

from geo_assets.errors import SourceError

CHUNK = 4 << 20
"""Bytes decompressed at a time; the longest row must fit into the memory of a few of these."""

_TABLE = re.compile(rb"^CREATE TABLE [^(]*\((.*?)^\)", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(rb"^\s*`([^`]+)`", re.MULTILINE)
_INSERT_COLUMNS = re.compile(rb"^INSERT [^('\n]*\(([^)]*)\)\s*VALUES", re.MULTILINE)
_FIELD = re.compile(rb"\s*(?:(?:_\w+ )?'((?:[^'\\]|\\.|'')*)'|([^,']+?))\s*(?:,|$)", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)|''", re.DOTALL)
_CONTROL = {b"0": b"\0", b"b": b"\b", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"Z": b"\x1a"}

# What the scanner stands in: the rest of a line, the start of one, the rows of an INSERT, something that is no row.
_LINE, _START, _ROWS, _BROKEN = 0, 1, 2, 3
_SEED, _PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)  # FNV-1a
_HITS = 1 << 14


def select(
    path: Path,
    key: str,
    wanted: Collection[bytes],
    columns: Sequence[str],
    log: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[bytes | None, ...]]:
    """The rows in which one column holds a wanted value.

    Args:
        path: a ``.sql`` or ``.sql.gz`` of ``mysqldump`` with one table.
        key: the column to look at; numbers are their digits.
        wanted: its values.
        columns: what to give of each row, in this order; the dump says itself where they stand.
        log: told at the end how many rows there were.

    Yields:
        The columns' values, unescaped; None for NULL.

    Raises:
        SourceError: the dump cannot be read, lacks a column, or breaks off; the message says at which byte.
    """
    wanted = frozenset(wanted)
    table = _hash_table(wanted)
    scanned = hits = 0
    with closing(_chunks(path)) as chunks:
        rest, state, at = next(chunks, b""), _START, 0
        names = _columns(path, rest)
        place = {name: names.index(name) for name in [key, *columns] if name in names}
        if missing := [name for name in [key, *columns] if name not in place]:
            raise SourceError(
                f"{path.name} lacks the column {', '.join(missing)}; it has {', '.join(names)}. Is it the right dump?",
                file=str(path),
            )
        kept = np.empty((_HITS, 2), np.int64)
        for chunk in _with_end(chunks):
            begin, count = 0, _HITS
            while count == _HITS:
                begin, state, count, rows = _scan(np.frombuffer(rest, np.uint8), begin, state, place[key], table, kept)
                scanned += rows
                for start, end in kept[:count].tolist():
                    fields = _fields(rest[start + 1 : end - 1])
                    if len(fields) != len(names):
                        raise _broken(path, at + start, f"a row has {len(fields)} values for {len(names)} columns")
                    if fields[place[key]] in wanted:  # else another value with the same hash
                        hits += 1
                        yield tuple(fields[place[name]] for name in columns)
            if state == _BROKEN:
                raise _broken(path, at + begin, "what follows is no row")
            at += begin
            rest = rest[begin:] + chunk
        if state == _ROWS or (rest and b"INSERT ".startswith(rest[:7])):
            raise _broken(path, at + len(rest), "it ends in the middle of its rows")
    log(f"{path.name}: {hits:,} of {scanned:,} rows")


def _chunks(path: Path) -> Generator[bytes, None, None]:
    try:
        with path.open("rb") as raw, _plain(raw) as source:
            try:
                while chunk := source.read(CHUNK):
                    yield chunk
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise _broken(path, raw.tell(), f"it cannot be decompressed there ({error})") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}.", file=str(path)) from None


def _plain(raw: IO[bytes]) -> IO[bytes]:
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if is_gzip else raw  # pyright: ignore[reportReturnType]


def _with_end(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, and nothing once more: what was read last is to be scanned, too."""
    yield from chunks
    yield b""


def _broken(path: Path, byte: int, what: str) -> SourceError:
    return SourceError(f"{path.name} is broken at byte {byte:,}: {what}. Download it again.", file=str(path), byte=byte)


def _columns(path: Path, head: bytes) -> list[str]:
    if listed := _INSERT_COLUMNS.search(head):
        return [name.strip(b" `").decode() for name in listed[1].split(b",")]
    if table := _TABLE.search(head):
        return [name.decode() for name in _COLUMN.findall(table[1])]
    raise SourceError(f"{path.name} has no CREATE TABLE: it is no SQL dump. Download it again.", file=str(path))


def _fields(row: bytes) -> list[bytes | None]:
    return [_value(quoted, bare) for quoted, bare in (field.groups() for field in _FIELD.finditer(row))]


def _value(quoted: bytes | None, bare: bytes | None) -> bytes | None:
    if quoted is not None:
        return _ESCAPED.sub(lambda e: _CONTROL.get(e[1], e[1]) if e[1] else b"'", quoted)
    if bare is None or bare == b"NULL":
        return None
    return bytes.fromhex(bare[2:].decode()) if bare.startswith(b"0x") else bare


def _hash_table(wanted: Collection[bytes]) -> npt.NDArray[np.uint64]:
    """An open hash table of hashes; zero is an empty place. Binary strings may be dumped as hexadecimal numbers."""
    table = np.zeros(1 << (8 * len(wanted) + 15).bit_length(), np.uint64)
    for value in wanted:
        for spelling in (value, b"0x" + value.hex().upper().encode()):
            _insert(table, np.frombuffer(spelling, np.uint8))
    return table


@numba.njit(cache=True, nogil=True)
def _insert(table, value):
    h = _SEED
    for byte in value:
        h = (h ^ np.uint64(byte)) * _PRIME
    place = h % np.uint64(len(table))
    while table[place] != 0 and table[place] != h:
        place = (place + np.uint64(1)) % np.uint64(len(table))
    table[place] = h


@numba.njit(cache=True, nogil=True)
def _contains(table, h):
    mask = np.uint64(len(table) - 1)
    place = h & mask
    while table[place] != 0:
        if table[place] == h:
            return True
        place = (place + np.uint64(1)) & mask
    return False


@numba.njit(cache=True, nogil=True)
def _scan(data, i, state, key, table, kept):
    """Rows of ``data`` from byte ``i`` on whose key is in the table, as start and end; stops when ``kept`` is full.

    Returns:
        The first byte not dealt with, the state there, the number of rows kept and of rows seen.
    """
    n, count, rows = len(data), 0, 0
    while i < n and count < len(kept):
        if state == _LINE:
            while i < n and data[i] != 10:
                i += 1
            if i < n:
                i, state = i + 1, _START
        elif state == _START:
            if n - i < 7:
                break
            if not _is(data, i, b"INSERT "):
                state = _LINE
                continue
            j = i + 7
            while j + 6 <= n and not _is(data, j, b"VALUES"):
                j += 1
            if j + 6 > n:
                break
            i, state = j + 6, _ROWS
        elif data[i] == 40:  # (
            end, is_wanted = _row(data, i + 1, key, table)
            if end < 0:
                break
            if is_wanted:
                kept[count, 0], kept[count, 1] = i, end
                count += 1
            i, rows = end, rows + 1
        elif data[i] == 59:  # ;
            i, state = i + 1, _LINE
        elif data[i] in (44, 32, 10, 13):  # comma, white space
            i += 1
        else:
            state = _BROKEN
            break
    return i, state, count, rows


@numba.njit(cache=True, nogil=True)
def _is(data, i, word):
    k = 0
    while k < len(word) and data[i + k] == word[k]:
        k += 1
    return k == len(word)


@numba.njit(cache=True, nogil=True)
def _row(data, i, key, table):
    """The byte behind a row's closing parenthesis, -1 where the data end before; and whether its key is wanted."""
    n, column, h = len(data), 0, _SEED
    while i < n:
        c = data[i]
        if c == 39:  # '
            if column == key:
                h = _SEED  # forgets a _binary before the quote
            i += 1
            while i < n:
                c = data[i]
                if c == 92:  # backslash
                    i += 1
                    if i == n:
                        return -1, False
                    c = _unescaped(data[i])
                elif c == 39:
                    # '' within a string is a quote.
                    if i + 1 < n and data[i + 1] == 39:
                        i += 1
                    else:
                        break
                if column == key:
                    h = (h ^ np.uint64(c)) * _PRIME
                i += 1
        elif c == 44:  # comma
            column += 1
        elif c == 41:  # )
            return i + 1, _contains(table, h)
        elif column == key and c != 32:
            h = (h ^ np.uint64(c)) * _PRIME
        i += 1
    return -1, False


@numba.njit(cache=True, nogil=True)
def _unescaped(c):
    if c == 48:
        return np.uint8(0)
    if c == 98:
        return np.uint8(8)
    if c == 110:
        return np.uint8(10)
    if c == 114:
        return np.uint8(13)
    if c == 116:
        return np.uint8(9)
    if c == 90:
        return np.uint8(26)
    return c
