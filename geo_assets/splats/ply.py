"""Splats as PLY files: written in the order of the original paper's code, read by property name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geo_assets.errors import SourceError
from geo_assets.files import replacing
from geo_assets.splats.gaussians import Gaussians, coefficients

LEAST_OPACITY = 1 / 255
MOST_LOGIT, MOST_LOG_SCALE = 15.0, 20.0
_LARGEST_HEADER = 65_536
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class Cleaned:
    """Gaussians fit for a file, and how many were not."""

    gaussians: Gaussians
    n_nonfinite: int
    n_invisible: int


def cleaned(gaussians: Gaussians) -> Cleaned:
    """Drop what no viewer shows or some choke on: non-finite rows and opacities below 1/255; clamp the rest."""
    finite = np.isfinite(gaussians.rows).all(axis=1)
    visible = finite & (np.nan_to_num(gaussians.opacities) >= LEAST_OPACITY)
    kept = gaussians[visible]
    kept.log_scales[:] = np.clip(kept.log_scales, -MOST_LOG_SCALE, MOST_LOG_SCALE)
    kept.opacity_logits[:] = np.clip(kept.opacity_logits, -MOST_LOGIT, MOST_LOGIT)
    lengths = np.linalg.norm(kept.quats, axis=1, keepdims=True)
    kept.quats[:] = np.where(lengths > 1e-12, kept.quats / np.maximum(lengths, 1e-12), [1, 0, 0, 0])
    return Cleaned(kept, int((~finite).sum()), int((finite & ~visible).sum()))


def property_names(degree: int) -> list[str]:
    """The float properties of a splat of a degree, in the order of the original code."""
    rest = [f"f_rest_{i}" for i in range(3 * (coefficients(degree) - 1))]
    return [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"),
        *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]


def ply_bytes(gaussians: Gaussians) -> bytes:
    """A binary little-endian PLY; what :func:`cleaned` drops is not in it."""
    kept = cleaned(gaussians).gaussians
    n = len(kept)
    header = ["ply", "format binary_little_endian 1.0", "comment geo_assets: metres east, north, up"]
    header += [f"element vertex {n}", *(f"property float {name}" for name in property_names(kept.degree)), "end_header"]
    # The file holds all coefficients of red, then green, then blue; a trainer holds the colours innermost.
    rest = kept.sh[:, 1:].transpose(0, 2, 1).reshape(n, 3 * (kept.sh.shape[1] - 1))
    table = np.concatenate(
        [kept.means, np.zeros((n, 3)), kept.sh[:, 0], rest, kept.opacity_logits[:, None], kept.log_scales, kept.quats],
        axis=1,
    )
    return ("\n".join(header) + "\n").encode("ascii") + table.astype("<f4").tobytes()


def write_ply(path: Path, gaussians: Gaussians) -> None:
    """Write a PLY atomically."""
    with replacing(path) as sink:
        sink.write(ply_bytes(gaussians))


def read_ply(source: Path | bytes) -> Gaussians:
    """The Gaussians of a PLY of any engine; properties may come in any order and of any number type.

    Raises:
        SourceError: the file is not a PLY, is cut short, or lacks a property that a splat must have.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    name = "The PLY" if isinstance(source, bytes) else source.name
    n, dtype, start = _header(data, name)
    missing = [p for p in property_names(0) if p not in (dtype.names or ()) and p not in ("nx", "ny", "nz")]
    if missing:
        raise SourceError(f"{name} is not a splat: it lacks the properties {', '.join(missing)}.")
    if len(data) < start + n * dtype.itemsize:
        raise SourceError(
            f"{name} is cut short: {n:,} splats of {dtype.itemsize} bytes need {start + n * dtype.itemsize:,} bytes, it has {len(data):,}."
        )
    table = np.frombuffer(data, dtype, count=n, offset=start)

    def columns(*names: str) -> np.ndarray:
        return np.stack([table[c].astype(np.float32) for c in names], axis=1)

    n_rest = sum(1 for p in dtype.names or () if re.fullmatch(r"f_rest_\d+", p))
    degree = {0: 0, 9: 1, 24: 2, 45: 3}.get(n_rest)
    if degree is None:
        raise SourceError(f"{name} has {n_rest} properties f_rest_*; a splat has 0, 9, 24 or 45.")
    harmonics = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    if degree:
        rest = columns(*(f"f_rest_{i}" for i in range(n_rest))).reshape(n, 3, n_rest // 3).transpose(0, 2, 1)
        harmonics = np.concatenate([harmonics, rest], axis=1)
    return Gaussians.of(
        columns("x", "y", "z"),
        columns("scale_0", "scale_1", "scale_2"),
        columns("rot_0", "rot_1", "rot_2", "rot_3"),
        table["opacity"],
        harmonics,
    )


def _header(data: bytes, name: str) -> tuple[int, np.dtype, int]:
    """Number of vertices, their layout, and where they begin."""
    end = data.find(b"end_header\n", 0, _LARGEST_HEADER)
    if not data.startswith(b"ply") or end < 0:
        raise SourceError(f"{name} is not a PLY file: it does not begin with a PLY header.")
    lines = data[:end].decode("ascii", "replace").split("\n")
    if not any(line.split() == ["format", "binary_little_endian", "1.0"] for line in lines):
        raise SourceError(f"{name} is not a binary little-endian PLY, the only form that splats come in.")
    count, fields, element = -1, [], ""
    for words in (line.split() for line in lines):
        if words[:1] == ["element"] and len(words) == 3:
            if count < 0 and words[1] != "vertex":
                raise SourceError(f"{name} begins with the element '{words[1]}', not with the splats ('vertex').")
            element = words[1]
            count = int(words[2]) if element == "vertex" and words[2].isdigit() else count
        elif words[:1] == ["property"] and element == "vertex":
            if len(words) != 3 or words[1] not in _TYPES:
                raise SourceError(f"{name}: the header line '{' '.join(words)}' is not a number property.")
            fields.append((words[2], "<" + _TYPES[words[1]]))
    if count < 0 or len({f for f, _ in fields}) != len(fields):
        raise SourceError(
            f"{name}: the header does not declare its vertices once, each property with a name of its own."
        )
    return count, np.dtype(fields), end + len(b"end_header\n")
