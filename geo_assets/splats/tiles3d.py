"""Splats as 3D Tiles 1.1 for CesiumJS: a GLB that holds an SPZ, and the tileset that puts it on the Earth.

The GLB follows the draft extension KHR_gaussian_splatting_compression_spz_2 as CesiumJS reads it: the numbers of the
SPZ are those of the glTF, and KHR_gaussian_splatting carries nothing but the compression. (The draft's text would have
the library turn them around the up axis; a reader that does so is told by the members ``kernel`` and ``colorSpace``,
which are therefore left out.) A tileset must name the extensions as required, or CesiumJS does not look for splats.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from geo_assets.errors import SourceError
from geo_assets.files import replacing
from geo_assets.geodesy import LocalFrame
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.ply import cleaned
from geo_assets.splats.spz import spz_bytes

EXTENSIONS = ["KHR_gaussian_splatting", "KHR_gaussian_splatting_compression_spz_2"]

Y_UP_FROM_ENU = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""glTF has y up, and 3D Tiles turns it back; the node of a GLB carries this, so that numbers stay east, north, up."""

_FLOAT, _BYTE = 5126, 5121
_THINNEST_M = 0.01


def glb_bytes(gaussians: Gaussians) -> bytes:
    """A GLB whose only content is the Gaussians as SPZ of version 2, in local metres east, north, up.

    Raises:
        SourceError: there is no Gaussian to show, or one lies too far from the origin.
    """
    kept = cleaned(gaussians).gaussians
    if not len(kept):
        raise SourceError("A tile needs at least one Gaussian that is finite and visible.")
    spz = spz_bytes(kept, version=2)
    attributes = {
        "POSITION": {"type": "VEC3", "min": kept.means.min(0).tolist(), "max": kept.means.max(0).tolist()},
        "COLOR_0": {"type": "VEC4", "componentType": _BYTE, "normalized": True},
        "KHR_gaussian_splatting:SCALE": {"type": "VEC3"},
        "KHR_gaussian_splatting:ROTATION": {"type": "VEC4"},
    }
    for degree in range(1, kept.degree + 1):
        for order in range(2 * degree + 1):
            attributes[f"KHR_gaussian_splatting:SH_DEGREE_{degree}_COEF_{order}"] = {"type": "VEC3"}
    primitive = {
        "mode": 0,
        "attributes": {name: index for index, name in enumerate(attributes)},
        "extensions": {EXTENSIONS[0]: {"extensions": {EXTENSIONS[1]: {"bufferView": 0}}}},
    }
    return _glb(
        {
            "asset": {"version": "2.0", "generator": "geo_assets"},
            "extensionsUsed": EXTENSIONS,
            "extensionsRequired": EXTENSIONS,
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0, "matrix": Y_UP_FROM_ENU.T.ravel().tolist()}],
            "meshes": [{"primitives": [primitive]}],
            # Accessors without a bufferView say what the SPZ unpacks to.
            "accessors": [{"componentType": _FLOAT, "count": len(kept)} | form for form in attributes.values()],
            "bufferViews": [{"buffer": 0, "byteLength": len(spz)}],
            "buffers": [{"byteLength": len(spz)}],
        },
        spz,
    )


def spz_of_glb(data: bytes) -> bytes:
    """The SPZ in a GLB of :func:`glb_bytes`, byte for byte.

    Raises:
        SourceError: not such a GLB.
    """
    try:
        magic, version, length, size, kind = struct.unpack_from("<4sIII4s", data)
        if (magic, version, length, kind) != (b"glTF", 2, len(data), b"JSON"):
            raise ValueError("it does not begin as a GLB of its length")
        document = json.loads(data[20 : 20 + size])
        extension = document["meshes"][0]["primitives"][0]["extensions"][EXTENSIONS[0]]["extensions"][EXTENSIONS[1]]
        view = document["bufferViews"][extension["bufferView"]]
        start = 28 + size + view.get("byteOffset", 0)
        if start + view["byteLength"] > len(data):
            raise ValueError("its buffer is cut short")
        return data[start : start + view["byteLength"]]
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise SourceError(f"The GLB holds no Gaussians as SPZ: {error}.") from None


def tile(
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    error_m: float,
    uri: str | None = None,
    children: Sequence[dict[str, Any]] = (),
    refine: Literal["REPLACE", "ADD"] = "REPLACE",
) -> dict[str, Any]:
    """A tile of a tileset, with the tiles below it.

    Args:
        low: least east, north and up of its content and of its children's [m], in the frame of the tileset.
        high: greatest, likewise.
        error_m: how far its content is from the truth [m]; CesiumJS draws the children instead where that is seen.
            A tile without children must have 0, or it is never drawn.
        uri: its GLB, relative to the tileset.
        children: tiles that take its place, or join it where ``refine`` is ADD.
        refine: how.

    Raises:
        ValueError: a leaf with an error, or a child with a greater error than its parent.
    """
    if (not children and error_m) or any(child["geometricError"] > error_m for child in children):
        raise ValueError(f"A tile of error {error_m:g} m needs children, none of a greater error; a leaf has error 0.")
    low, high = np.asarray(low, float), np.asarray(high, float)
    half = np.maximum((high - low) / 2, _THINNEST_M)
    described: dict[str, Any] = {
        "boundingVolume": {"box": [*((low + high) / 2).tolist(), *np.diag(half).ravel().tolist()]},
        "geometricError": float(error_m),
        "refine": refine,
    }
    if uri is not None:
        described["content"] = {"uri": uri}
    if children:
        described["children"] = list(children)
    return described


def leaf(gaussians: Gaussians, uri: str) -> dict[str, Any]:
    """The tile of a GLB that nothing refines; its box holds the centres and three standard deviations around them."""
    reach = 3 * np.exp(gaussians.log_scales.max(axis=1, keepdims=True).astype(float))
    return tile((gaussians.means - reach).min(axis=0), (gaussians.means + reach).max(axis=0), 0.0, uri)


def write_tileset(path: Path, root: dict[str, Any], frame: LocalFrame) -> None:
    """Write a tileset.

    Args:
        path: the JSON file; the URIs of the tiles are relative to it.
        root: a tile of :func:`tile`; it alone is given a transform, because CesiumJS is exact only so.
        frame: where the tiles' metres lie on the Earth.
    """
    diagonal = 2 * float(np.linalg.norm(np.reshape(root["boundingVolume"]["box"][3:], (3, 3)).sum(axis=0)))
    extensions = {"extensionsUsed": EXTENSIONS, "extensionsRequired": EXTENSIONS}
    tileset = {
        "asset": {"version": "1.1", "generator": "geo_assets"},
        "extensionsUsed": ["3DTILES_content_gltf"],
        "extensions": {"3DTILES_content_gltf": extensions},
        # The error of showing nothing at all. CesiumJS bears 16 pixels: the tileset is drawn where it is 8 pixels wide.
        "geometricError": max(2 * diagonal, 2 * root["geometricError"]),
        "root": {"transform": frame.ecef_from_enu.T.ravel().tolist()} | root,
    }
    with replacing(path) as sink:
        sink.write(json.dumps(tileset).encode())


def _glb(document: dict[str, Any], binary: bytes) -> bytes:
    """The binary container of glTF 2.0: a chunk of JSON and one of bytes, each padded to four."""
    text = json.dumps(document, separators=(",", ":")).encode()
    text, binary = text + b" " * (-len(text) % 4), binary + b"\0" * (-len(binary) % 4)
    parts = [struct.pack("<I4s", len(text), b"JSON"), text, struct.pack("<I4s", len(binary), b"BIN\0"), binary]
    return struct.pack("<4sII", b"glTF", 2, 12 + sum(map(len, parts))) + b"".join(parts)
