from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from geo_assets.errors import SourceError
from geo_assets.geodesy import LocalFrame, ecef
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.ply import cleaned
from geo_assets.splats.spz import read_spz
from geo_assets.splats.tiles3d import EXTENSIONS, glb_bytes, leaf, spz_of_glb, tile, write_tileset
from geo_assets_tests.splats.scenes import blobs

Z_UP_FROM_Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
"""What 3D Tiles 1.1 applies to a glTF (section 6.7.1.6.2 of the specification)."""

FRAME = LocalFrame(13.2, 55.7, 61.5)


def document_of(glb: bytes) -> dict:
    (size,) = struct.unpack_from("<I", glb, 12)
    return json.loads(glb[20 : 20 + size])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_glb_is_a_container_of_an_spz_of_version_2(degree: int) -> None:
    splat = cleaned(blobs(50, degree)).gaussians
    glb = glb_bytes(splat)
    magic, version, length, _, kind = struct.unpack_from("<4sIII4s", glb)
    assert (magic, version, length, kind) == (b"glTF", 2, len(glb), b"JSON")
    assert length % 4 == 0
    document = document_of(glb)
    assert document["extensionsUsed"] == document["extensionsRequired"] == EXTENSIONS
    primitive = document["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    accessors = [document["accessors"][i] for i in primitive["attributes"].values()]
    assert len(accessors) == len(document["accessors"]) == 4 + (degree + 1) ** 2 - 1
    assert all(a["count"] == 50 and "bufferView" not in a for a in accessors)
    assert accessors[0]["min"] == splat.means.min(0).tolist()
    found = read_spz(spz_of_glb(glb))
    assert (len(found), found.degree) == (50, degree)
    assert np.abs(found.means - splat.means).max() < 1e-3


def test_content_lands_where_the_frame_says(tmp_path: Path) -> None:
    """Node, y-up rule and root transform, multiplied as a viewer does, against the frame's own geodesy."""
    splat = cleaned(blobs(40)).gaussians
    splat.means[:] = splat.means * 50 + [120, -80, 12]
    glb = glb_bytes(splat)
    write_tileset(tmp_path / "tileset.json", leaf(splat, "splat.glb"), FRAME)
    root = json.loads((tmp_path / "tileset.json").read_text())["root"]
    node = np.reshape(document_of(glb)["nodes"][0]["matrix"], (4, 4)).T
    chain = np.reshape(root["transform"], (4, 4)).T @ Z_UP_FROM_Y_UP @ node
    stored = read_spz(spz_of_glb(glb)).means.astype(float)
    placed = np.column_stack([stored, np.ones(len(stored))]) @ chain.T
    wanted = ecef(*FRAME.geodetic(splat.means.astype(float)))
    assert np.linalg.norm(placed[:, :3] - wanted, axis=1).max() < 1e-3
    # The box of the root is in the root's own frame, before any turning of the content.
    centre, axes = np.array(root["boundingVolume"]["box"][:3]), np.reshape(root["boundingVolume"]["box"][3:], (3, 3))
    assert (np.abs(splat.means - centre) <= np.abs(axes).sum(axis=0)).all()


def test_the_tileset_is_one_that_cesium_draws(tmp_path: Path) -> None:
    fine = [tile((0, 0, 0), (10, 10, 5), 0, "a.glb"), tile((10, 0, 0), (20, 10, 5), 0, "b.glb")]
    root = tile((0, 0, 0), (20, 10, 5), 2.5, "coarse.glb", fine)
    write_tileset(tmp_path / "tileset.json", root, FRAME)
    text = (tmp_path / "tileset.json").read_text()
    tileset = json.loads(text)
    assert json.loads(json.dumps(tileset)) == tileset
    assert tileset["asset"]["version"] == "1.1"
    named = tileset["extensions"]["3DTILES_content_gltf"]
    assert named["extensionsRequired"] == named["extensionsUsed"] == EXTENSIONS
    assert tileset["extensionsUsed"] == ["3DTILES_content_gltf"]
    assert tileset["geometricError"] > tileset["root"]["geometricError"] == 2.5
    assert [c["geometricError"] for c in tileset["root"]["children"]] == [0, 0]
    assert {tileset["root"]["refine"]} == {"REPLACE"}
    assert tileset["root"]["boundingVolume"]["box"] == [10, 5, 2.5, 10, 0, 0, 0, 5, 0, 0, 0, 2.5]
    transform = np.reshape(tileset["root"]["transform"], (4, 4)).T
    assert (transform == FRAME.ecef_from_enu).all()
    assert "transform" not in text.split('"children"')[1], "a child with a transform of its own is drawn blurred"
    assert "transform" not in root, "what was passed in is left as it was"


def test_a_tree_that_would_not_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="a leaf has error 0"):
        tile((0, 0, 0), (1, 1, 1), 3.0, "a.glb")
    inner = tile((0, 0, 0), (1, 1, 1), 3.0, None, [tile((0, 0, 0), (1, 1, 1), 0, "a.glb")])
    with pytest.raises(ValueError, match="none of a greater error"):
        tile((0, 0, 0), (1, 1, 1), 2.0, None, [inner])


def test_a_flat_tile_has_a_volume() -> None:
    box = tile((1, 2, 3), (1, 2, 3), 0, "a.glb")["boundingVolume"]["box"]
    assert np.linalg.det(np.reshape(box[3:], (3, 3))) > 0


def test_nothing_to_show() -> None:
    with pytest.raises(SourceError, match="at least one Gaussian"):
        glb_bytes(Gaussians.none(1))


GOOD = glb_bytes(blobs(5))


@pytest.mark.parametrize("data", [b"", GOOD[:-1], GOOD[:40], b"xxxx" + GOOD[4:], GOOD.replace(b"spz_2", b"spz_3")])
def test_other_files_hold_no_splat(data: bytes) -> None:
    with pytest.raises(SourceError, match="holds no Gaussians as SPZ"):
        spz_of_glb(data)
