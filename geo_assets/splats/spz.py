"""Splats as SPZ files of Niantic: a gzipped table of columns, about a tenth of the PLY.

Versions 2 and 3 differ in the rotations alone. Layout and numbers follow the reference implementation (load-spz.cc of
nianticlabs/spz). Coordinates are written as they are: the reference turns them on the way in, on request of the
program that uses it, and the format carries no axes.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geo_assets.errors import SourceError
from geo_assets.splats.gaussians import Floats, Gaussians, coefficients
from geo_assets.splats.ply import MOST_LOGIT, cleaned

Bytes = npt.NDArray[np.uint8]

FRACTIONAL_BITS = 12
"""Positions are whole numbers of 2^-12 m, a quarter of a millimetre, where the extent allows it."""

FEWEST_FRACTIONAL_BITS = 7
"""Coarser than 8 mm is refused: a splat that large has to be cut into tiles."""

MOST_SPLATS = 20_000_000
"""More are not read; as Gaussians they would fill several gigabytes."""

_MAGIC = 0x5053474E
_HEADER = struct.Struct("<IIIBBBB")
_LARGEST_FIXED = 2**23 - 1
_HAS_EXTENSIONS = 2
_COLOUR_SCALE = 0.15
_SQRT_HALF = np.sqrt(0.5)


def spz_bytes(gaussians: Gaussians, version: int = 3) -> bytes:
    """An SPZ file; what :func:`~geo_assets.splats.ply.cleaned` drops is not in it.

    Positions are exact to 1/8192 m (less where one lies above 2 km), sizes to 3 %, opacities to 1/510, the mean
    colour to 1/270; the other harmonics are cut at -1 and 1 and exact to 1/256.

    Args:
        gaussians: in metres.
        version: 2 for readers that follow the glTF extension to the letter, 3 for finer rotations.

    Raises:
        SourceError: a Gaussian lies too far from the origin.
    """
    kept = cleaned(gaussians).gaussians
    n, bits = len(kept), _fractional_bits(kept.means)
    columns = [
        _fixed(kept.means, bits),
        _rounded(255 * kept.opacities),
        _rounded(255 * (_COLOUR_SCALE * kept.sh[:, 0] + 0.5)),
        _rounded(16 * (kept.log_scales + 10)),
        _smallest_three(kept.quats) if version == 3 else _first_three(kept.quats),
        _rounded(128 * (kept.sh[:, 1:] + 1)),
    ]
    header = _HEADER.pack(_MAGIC, version, n, kept.degree, bits, 0, 0)
    return gzip.compress(header + b"".join(column.tobytes() for column in columns), mtime=0)


def read_spz(source: Path | bytes) -> Gaussians:
    """The Gaussians of an SPZ file of version 2 or 3.

    Raises:
        SourceError: the file is not an SPZ of these versions, is damaged, or is not as long as its header says.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    name = "The SPZ" if isinstance(source, bytes) else source.name
    n, degree, bits, version, table = _unpacked(data, name)
    widths = (9, 1, 3, 3, 4 if version == 3 else 3, 3 * (coefficients(degree) - 1))
    means, opacities, colours, scales, rotations, rest = _columns(table, n, widths)
    share = np.clip(opacities[:, 0] / 255, 1e-12, 1 - 1e-12)
    harmonics = [
        (colours[:, None] / 255 - 0.5) / _COLOUR_SCALE,
        rest.reshape(n, coefficients(degree) - 1, 3) / 128 - 1.0,
    ]
    return Gaussians.of(
        _from_fixed(means) / 2.0**bits,
        scales / 16 - 10.0,
        _from_smallest_three(rotations) if version == 3 else _from_first_three(rotations),
        np.clip(np.log(share / (1 - share)), -MOST_LOGIT, MOST_LOGIT),
        np.concatenate(harmonics, axis=1),
    )


def _unpacked(data: bytes, name: str) -> tuple[int, int, int, int, Bytes]:
    """Number, degree, fractional bits, version and the bytes behind the header; no more is inflated than it says."""
    if data[:4] == _MAGIC.to_bytes(4, "little"):
        raise SourceError(f"{name} is an SPZ of version 4 or later; convert it to version 2 or 3.")
    inflater = zlib.decompressobj(wbits=31)
    try:
        header = inflater.decompress(data, _HEADER.size)
        if len(header) < _HEADER.size:
            raise SourceError(f"{name} is cut short: an SPZ begins with {_HEADER.size} bytes of header.")
        magic, version, n, degree, bits, flags, _ = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise SourceError(f"{name} is not an SPZ file: it is gzipped, but does not begin with 'NGSP'.")
        if version not in (2, 3):
            raise SourceError(f"{name} is an SPZ of version {version}; versions 2 and 3 are read.")
        if degree > 3 or bits > 23 or n > MOST_SPLATS:
            raise SourceError(
                f"{name}: the header says {n:,} splats of degree {degree} with {bits} fractional bits; at most {MOST_SPLATS:,}, 3 and 23 are read."
            )
        wanted = n * (16 + (4 if version == 3 else 3) + 3 * (coefficients(degree) - 1))
        # One byte more than wanted: the stream must have ended before it, its checksum included.
        table = inflater.decompress(inflater.unconsumed_tail, wanted + 1)
    except zlib.error as error:
        raise SourceError(f"{name} is not an SPZ file, or is damaged: {error}.") from None
    if len(table) < wanted or not (inflater.eof or len(table) > wanted):
        raise SourceError(f"{name} is cut short: {n:,} splats need {wanted:,} bytes, it has {len(table):,}.")
    if len(table) > wanted and not flags & _HAS_EXTENSIONS:
        raise SourceError(f"{name} is longer than its header says: {n:,} splats need {wanted:,} bytes.")
    return n, degree, bits, version, np.frombuffer(table, np.uint8, count=wanted)


def _columns(table: Bytes, n: int, widths: tuple[int, ...]) -> Iterator[Bytes]:
    start = 0
    for width in widths:
        yield table[start : start + n * width].reshape(n, width)
        start += n * width


def _rounded(values: npt.NDArray[np.floating]) -> Bytes:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _fractional_bits(means: Floats) -> int:
    farthest = float(np.abs(means).max(initial=0.0))
    bits = FRACTIONAL_BITS
    while bits >= FEWEST_FRACTIONAL_BITS and farthest * 2**bits > _LARGEST_FIXED:
        bits -= 1
    if bits < FEWEST_FRACTIONAL_BITS:
        reach = _LARGEST_FIXED // 2**FEWEST_FRACTIONAL_BITS
        raise SourceError(
            f"A Gaussian lies {farthest:,.0f} m from the origin; SPZ holds {reach:,} m at most. Cut the splat into tiles, or drop what lies so far away."
        )
    return bits


def _fixed(means: Floats, bits: int) -> Bytes:
    """Three bytes a coordinate, two's complement, lowest first [N, 9]."""
    whole = np.rint(means.astype(float) * 2**bits).astype("<i4")
    return np.ascontiguousarray(whole).view(np.uint8).reshape(len(means), 3, 4)[:, :, :3].reshape(len(means), 9)


def _from_fixed(columns: Bytes) -> npt.NDArray[np.int32]:
    low, middle, high = np.moveaxis(columns.reshape(-1, 3, 3).astype(np.int32), 2, 0)
    return low | middle << 8 | high.astype(np.int8).astype(np.int32) << 16


def _first_three(quats: Floats) -> Bytes:
    """Bytes of x, y and z [N, 3]; the reader finds w >= 0 from the length.

    A Gaussian is the same after half a turn around any of its own axes, which swaps w with one of the others. Of the
    four quaternions that mean the same the one with the largest w is written: found from small x, y and z, it is
    exact to a degree, whereas a w near zero would be lost.
    """
    w, x, y, z = quats.T
    same = np.array([[w, x, y, z], [-x, w, z, -y], [-y, -z, w, x], [-z, y, -x, w]])  # [4 turns, wxyz, N]
    chosen = same[np.abs(same[:, 0]).argmax(axis=0), :, np.arange(len(quats))]
    chosen = chosen * np.where(chosen[:, :1] < 0, -1, 1)
    return _rounded(127.5 * (chosen[:, 1:] + 1))


def _from_first_three(columns: Bytes) -> npt.NDArray[np.float64]:
    xyz = columns / 127.5 - 1
    return np.column_stack([np.sqrt(np.maximum(0, 1 - (xyz**2).sum(axis=1))), xyz])


def _smallest_three(quats: Floats) -> Bytes:
    """Four bytes [N, 4]: which of x, y, z, w is the largest (2 bits), then sign and nine bits of each of the others."""
    xyzw = np.roll(quats, -1, axis=1).astype(float)
    largest = np.abs(xyzw).argmax(axis=1)
    xyzw = xyzw * np.where(np.take_along_axis(xyzw, largest[:, None], 1) < 0, -1, 1)
    parts = (xyzw < 0).astype(np.uint32) << 9 | np.minimum(np.rint(511 * np.abs(xyzw) / _SQRT_HALF), 511).astype(
        np.uint32
    )
    packed = np.zeros(len(quats), np.uint32)
    for axis in range(4):
        packed = np.where(largest == axis, packed, packed << 10 | parts[:, axis])
    packed = packed | largest.astype(np.uint32) << 30
    return packed.astype("<u4").view(np.uint8).reshape(-1, 4)


def _from_smallest_three(columns: Bytes) -> npt.NDArray[np.float64]:
    packed = np.ascontiguousarray(columns).view("<u4").reshape(-1).astype(np.uint32)
    largest = packed >> 30
    xyzw = np.zeros((len(packed), 4))
    for axis in (3, 2, 1, 0):
        here = largest != axis
        value = (packed & 511) / 511 * _SQRT_HALF * np.where(packed & 512, -1, 1)
        xyzw[:, axis] = np.where(here, value, 0)
        packed = np.where(here, packed >> 10, packed)
    rest = np.sqrt(np.maximum(0, 1 - (xyzw**2).sum(axis=1)))
    np.put_along_axis(xyzw, largest[:, None].astype(np.int64), rest[:, None], axis=1)
    return np.roll(xyzw, 1, axis=1)
