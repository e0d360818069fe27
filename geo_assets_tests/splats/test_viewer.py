from __future__ import annotations

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from geo_assets.errors import GeoAssetsError
from geo_assets.splats import viewer
from geo_assets.splats.compressed import chunk_order, read_compressed_ply
from geo_assets_tests.splats.scenes import blobs, ring


def bootstrap_of(page: str) -> dict:
    found = re.findall(r'<script type="application/json" id="sse-bootstrap">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_the_vendored_page_is_the_recorded_one() -> None:
    record = json.loads((viewer.VENDORED / "VENDORED.json").read_text())
    data = (viewer.VENDORED / record["page"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == record["sha256"]
    assert {p["license"] for p in record["packages"]} == {"MIT"}
    for licence in ("LICENSE.supersplat-viewer", "LICENSE.playcanvas"):
        assert "Permission is hereby granted" in (viewer.VENDORED / licence).read_text()


def test_the_page_holds_the_splat_and_the_camera() -> None:
    splat, camera = blobs(30, 1), ring(4)[1]
    page = viewer.viewer_page(splat, camera, title="A </title><script> street")
    bootstrap = bootstrap_of(page)
    shown = read_compressed_ply(base64.b64decode(bootstrap["contentUrl"].split(",", 1)[1]))
    # The viewer turns files by 180 degrees about z and has y up: the sky of ours must be its +y.
    turned = splat.moved(viewer.PAGE_FROM_ENU, np.zeros(3))
    turned = turned[chunk_order(turned.means)]
    assert shown.means == pytest.approx(turned.means, abs=3e-3)
    assert np.sort(-shown.means[:, 1]) == pytest.approx(np.sort(splat.means[:, 2]), abs=3e-3)
    assert bootstrap["contentFilename"].endswith(".compressed.ply")
    pose = bootstrap["settings"]["cameras"][0]["initial"]
    assert pose["position"] == pytest.approx([-camera.centre[0], camera.centre[2], camera.centre[1]])
    assert pose["fov"] == pytest.approx(2 * np.degrees(np.arctan(32 / 60)))
    assert "noanim: !url.searchParams.has('anim')" in page
    assert "<title>A &lt;/title&gt;&lt;script&gt; street</title>" in page


def test_too_many_splats_for_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "MOST_SPLATS", 10)
    with pytest.raises(GeoAssetsError, match="too many for one page"):
        viewer.viewer_page(blobs(11), ring(4)[0], title="x")


def test_a_large_splat_loses_high_harmonics_rather_than_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "MOST_BYTES", 40 * 100)
    for degree, kept in ((0, 0), (1, 1), (2, 2), (3, 2)):
        bootstrap = bootstrap_of(viewer.viewer_page(blobs(100, degree), ring(4)[0], title="x"))
        shown = read_compressed_ply(base64.b64decode(bootstrap["contentUrl"].split(",", 1)[1]))
        assert (len(shown), shown.degree) == (100, kept)
