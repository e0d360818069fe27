"""Splats as SOG, the format that streams: a folder of lossless WebP images whose pixels are the Gaussians.

SOG 2 holds a Gaussian in 21 to 25 bytes of video memory and about half of that on the wire: positions in 16 bits,
rotations in the smallest three of four numbers, sizes and colours by a codebook of 256 values, higher harmonics by a
palette. A city is many such folders, one a piece and level, and ``lod-meta.json`` that says where each lies ("streamed
SOG"). Both as PlayCanvas splat-transform 3.7 writes and SuperSplat viewer 1.36 reads them
(https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog/).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from geo_assets.errors import SourceError
from geo_assets.files import replacing
from geo_assets.splats.gaussians import Floats, Gaussians, coefficients

Bytes = npt.NDArray[np.uint8]
GENERATOR = "geo_assets"
CODES = 256
SLOTS = 64
"""Entries of the palette of harmonics in one row of its image."""
MOST_ENTRIES = 4096
_SAMPLE = 32
"""Gaussians that are looked at for each entry of the palette."""


def write_sog(folder: Path, gaussians: Gaussians) -> int:
    """Write a folder ``meta.json`` with its images; the size of all [B].

    Args:
        folder: is made where it is not there.
        gaussians: at least one, finite, in the order in which they are to be kept.
    """
    images, meta = _encoded(gaussians)
    sizes = []
    for name, pixels in images.items():
        sizes.append(_put(folder / name, _webp(pixels)))
    sizes.append(_put(folder / "meta.json", json.dumps(meta, separators=(",", ":")).encode()))
    return sum(sizes)


def read_sog(meta_path: Path) -> Gaussians:
    """The Gaussians of a SOG folder, as exactly as it holds them.

    Raises:
        SourceError: the file is not the ``meta.json`` of a SOG of version 2, or an image is missing or too small.
    """
    try:
        meta = json.loads(meta_path.read_text())
        if meta["version"] != 2:
            raise ValueError(f"version {meta['version']}")
        return _decoded(meta, meta_path.parent)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise SourceError(
            f"{meta_path.name} does not describe a SOG of version 2 ({error}). Write it again with splat_city."
        ) from None


@dataclass(frozen=True)
class Leaf:
    """A place of a streamed SOG, and where each of its levels is.

    Args:
        low: lowest corner of what it covers [3].
        high: highest corner [3].
        levels: for each level (0 is the finest) the file's place in the list, the first Gaussian there, and how many.
    """

    low: Sequence[float]
    high: Sequence[float]
    levels: Mapping[int, tuple[int, int, int]]


def lod_meta(leaves: Sequence[Leaf], files: Sequence[str], *, environment: str | None = None) -> dict[str, Any]:
    """The content of ``lod-meta.json``, version 1.

    Args:
        leaves: the places; each is drawn at one of its levels at a time.
        files: paths of the ``meta.json`` of each SOG, relative to this file.
        environment: path of the SOG that is always drawn, the sky, likewise.
    """
    n_levels = 1 + max((level for leaf in leaves for level in leaf.levels), default=0)
    counts = [sum(leaf.levels.get(level, (0, 0, 0))[2] for leaf in leaves) for level in range(n_levels)]
    nodes = [
        {
            "bound": {"min": _rounded(leaf.low), "max": _rounded(leaf.high)},
            "lods": {
                str(level): {"file": file, "offset": offset, "count": count}
                for level, (file, offset, count) in sorted(leaf.levels.items())
            },
        }
        for leaf in leaves
    ]
    low = np.min([leaf.low for leaf in leaves], axis=0) if leaves else np.zeros(3)
    high = np.max([leaf.high for leaf in leaves], axis=0) if leaves else np.zeros(3)
    return {
        "version": 1,
        "asset": {"generator": GENERATOR},
        "count": sum(counts),
        "counts": counts,
        "lodLevels": n_levels,
        "lodErrors": False,
        **({"environment": environment} if environment else {}),
        "filenames": list(files),
        "tree": {"bound": {"min": _rounded(low), "max": _rounded(high)}, "children": nodes},
    }


# -- encoding ---------------------------------------------------------------------------------------------------


def _encoded(gaussians: Gaussians) -> tuple[dict[str, Bytes], dict[str, Any]]:
    n = len(gaussians)
    width = math.ceil(math.sqrt(n) / 4) * 4
    height = math.ceil(n / width / 4) * 4

    def image(channels: npt.ArrayLike, alpha: npt.ArrayLike = 255) -> Bytes:
        pixels = np.zeros((width * height, 4), np.uint8)
        pixels[:n, :3], pixels[:n, 3] = channels, alpha
        return pixels.reshape(height, width, 4)

    squeezed = np.sign(gaussians.means) * np.log1p(np.abs(gaussians.means.astype(float)))
    low, high = squeezed.min(axis=0), squeezed.max(axis=0)
    steps = np.rint((squeezed - low) / np.where(high > low, high - low, 1) * 65535).astype(np.uint16)
    sizes, size_labels = _codebook(gaussians.log_scales)
    colours, colour_labels = _codebook(gaussians.sh[:, 0])
    smallest, largest = _smallest_three(gaussians.quats)
    images = {
        "means_l.webp": image(steps & 255),
        "means_u.webp": image(steps >> 8),
        "quats.webp": image(smallest, 252 + largest),
        "scales.webp": image(size_labels),
        "sh0.webp": image(colour_labels, np.clip(np.rint(gaussians.opacities * 255), 1, 255)),
    }
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": GENERATOR},
        "count": n,
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": sizes.tolist(), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colours.tolist(), "files": ["sh0.webp"]},
    }
    if gaussians.degree:
        palette, labels = _palette(gaussians.sh[:, 1:].reshape(n, -1))
        codes, code_labels = _codebook(palette)
        images["shN_centroids.webp"] = _palette_image(code_labels, gaussians.degree)
        images["shN_labels.webp"] = image(np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=1))
        names = ["shN_centroids.webp", "shN_labels.webp"]
        meta["shN"] = {"count": len(palette), "bands": gaussians.degree, "codebook": codes.tolist(), "files": names}
    return images, meta


def _smallest_three(quats: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The three smaller components as bytes [N, 3], and which is the largest [N]."""
    unit = quats.astype(float) / np.linalg.norm(quats, axis=1, keepdims=True)
    largest = np.abs(unit).argmax(axis=1)
    # A rotation is its negative too, so the largest can be taken as positive and follows from the others.
    unit *= np.sign(np.take_along_axis(unit, largest[:, None], axis=1))
    others = unit[np.arange(4) != largest[:, None]].reshape(-1, 3)
    return np.clip(np.rint((others / math.sqrt(2) + 0.5) * 255), 0, 255), largest


def _codebook(values: npt.NDArray[np.floating]) -> tuple[Floats, Bytes]:
    """256 values that serve all [256], ascending, and the nearest for each [the shape of ``values``].

    One-dimensional k-means from a start where its centres are densest as the cube root of the density, which is
    where they end for many centres (Panter and Dite 1951).
    """
    flat = np.sort(values, axis=None).astype(float)
    distinct = np.unique(flat)
    if len(distinct) <= CODES:
        book = np.concatenate([distinct, np.full(CODES - len(distinct), distinct[-1])])
    else:
        counts, edges = np.histogram(flat, 2048)
        share = np.concatenate([[0], np.cumsum(np.cbrt(counts + 1))])
        book = np.interp((np.arange(CODES) + 0.5) / CODES * share[-1], share, edges)
        sums = np.concatenate([[0], np.cumsum(flat)])
        for _ in range(12):
            ends = np.searchsorted(flat, np.concatenate([[-np.inf], (book[1:] + book[:-1]) / 2, [np.inf]]))
            counts = np.diff(ends)
            book = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), book)
    book = book.astype(np.float32)
    labels = np.searchsorted((book[1:].astype(float) + book[:-1]) / 2, values)
    return book, np.minimum(labels, CODES - 1).astype(np.uint8)


def _palette(vectors: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Entries [K, D] that serve all vectors [N, D], and the nearest for each [N]: k-means on an even sample."""
    k = min(MOST_ENTRIES, max(SLOTS, 2 ** int(math.log2(max(len(vectors), 16) / 16))))
    if len(vectors) <= k:
        return vectors.copy(), np.arange(len(vectors))
    entries = vectors[np.linspace(0, len(vectors) - 1, k).astype(np.int64)].copy()
    sample = vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLE * k // 4)).astype(np.int64)]
    for _ in range(5):
        nearest = _nearest(sample, entries)
        counts = np.bincount(nearest, minlength=k)
        for d in range(vectors.shape[1]):
            sums = np.bincount(nearest, sample[:, d], minlength=k)
            entries[:, d] = np.where(counts > 0, sums / np.maximum(counts, 1), entries[:, d])
        # An entry that serves none takes the place of a vector that is served worst.
        idle = np.flatnonzero(counts == 0)
        worst = np.argsort(((sample - entries[nearest]) ** 2).sum(axis=1), kind="stable")[::-1]
        entries[idle[: len(worst)]] = sample[worst[: len(idle)]]
    return entries, _nearest(vectors, entries)


def _nearest(vectors: Floats, entries: Floats) -> npt.NDArray[np.int64]:
    half = 0.5 * (entries**2).sum(axis=1)
    found = [np.argmax(part @ entries.T - half, axis=1) for part in np.array_split(vectors, -(-len(vectors) // 4096))]
    return np.concatenate(found)


def _palette_image(labels: Bytes, degree: int) -> Bytes:
    """The palette as an image: 64 entries a row, a pixel for each coefficient, its red, green and blue."""
    n, each = len(labels), coefficients(degree) - 1
    pixels = np.zeros((math.ceil(n / SLOTS) * SLOTS, each, 4), np.uint8)
    pixels[:n, :, :3] = labels.reshape(n, each, 3)
    pixels[..., 3] = 255
    return pixels.reshape(-1, SLOTS * each, 4)


def _webp(pixels: Bytes) -> bytes:
    sink = io.BytesIO()
    # "exact" keeps the colours under a transparent pixel: they are data.
    Image.fromarray(pixels).save(sink, "WEBP", lossless=True, exact=True, quality=50, method=2)
    return sink.getvalue()


def _put(path: Path, data: bytes) -> int:
    with replacing(path, sync_folder=False) as sink:
        sink.write(data)
    return len(data)


def _rounded(corner: npt.ArrayLike) -> list[float]:
    return [float(f"{value:.7g}") for value in np.asarray(corner, float)]


# -- decoding ---------------------------------------------------------------------------------------------------


def _decoded(meta: dict[str, Any], folder: Path) -> Gaussians:
    n = int(meta["count"])

    def image(name: str) -> Bytes:
        if "/" in name or name.startswith("."):
            raise ValueError(f"the image '{name}' lies outside the folder")
        with Image.open(folder / name) as opened:
            return np.asarray(opened.convert("RGBA"))

    def pixels(name: str) -> npt.NDArray[np.int64]:
        flat = image(name).reshape(-1, 4)
        if len(flat) < n:
            raise ValueError(f"{name} has {len(flat)} pixels for {n} Gaussians")
        return flat[:n].astype(np.int64)

    fine, coarse = (pixels(name)[:, :3] for name in meta["means"]["files"])
    low, high = np.array(meta["means"]["mins"]), np.array(meta["means"]["maxs"])
    squeezed = low + np.where(high > low, high - low, 1) * ((fine | (coarse << 8)) / 65535)
    means = np.sign(squeezed) * np.expm1(np.abs(squeezed))
    packed = pixels(meta["quats"]["files"][0])
    colour = pixels(meta["sh0"]["files"][0])
    opacities = np.clip(colour[:, 3] / 255, 1e-6, 1 - 1e-6)
    harmonics = [np.array(meta["sh0"]["codebook"])[colour[:, None, :3]]]
    if "shN" in meta:
        each = coefficients(meta["shN"]["bands"]) - 1
        palette_name, labels_name = meta["shN"]["files"]
        palette = np.array(meta["shN"]["codebook"])[image(palette_name)[..., :3]].reshape(-1, each, 3)
        labels = pixels(labels_name)
        harmonics.append(palette[labels[:, 0] | (labels[:, 1] << 8)])
    return Gaussians.of(
        means,
        np.array(meta["scales"]["codebook"])[pixels(meta["scales"]["files"][0])[:, :3]],
        _from_smallest_three(packed[:, :3], packed[:, 3] - 252),
        np.log(opacities / (1 - opacities)),
        np.concatenate(harmonics, axis=1),
    )


def _from_smallest_three(smallest: npt.NDArray[np.int64], largest: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    others = (smallest / 255 * 2 - 1) / math.sqrt(2)
    quats = np.empty((len(others), 4))
    quats[np.arange(4) != largest[:, None]] = others.ravel()
    quats[np.arange(4) == largest[:, None]] = np.sqrt(np.maximum(1 - (others**2).sum(axis=1), 0))
    return quats
