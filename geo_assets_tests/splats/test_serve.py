from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from geo_assets.errors import ConfigError
from geo_assets.lake import Lake
from geo_assets.splats import serve
from geo_assets.tables import TABLES


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "lake")
    lake.put_bytes(lake.key("splats_city", "index.html", city="town"), b"<p>town</p>")
    lake.put_bytes(lake.key("splats_city", "viewer.html", city="town"), b"<p>small</p>")
    lake.put_bytes(lake.key("splats", "splat.ply", city="town", box="r00c00"), bytes(range(100)))
    lake.put_bytes(lake.key("images", "secret.jpg", city="town"), b"secret")
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "lake/files/splats/link.txt").symlink_to(tmp_path / "outside.txt")
    return lake


@pytest.fixture
def address(lake: Lake, tmp_path: Path) -> Iterator[str]:
    other = tmp_path / "other"
    other.mkdir()
    (other / "lib.js").write_text("1")
    folders = {"pages/lib": other} | serve.folders_of(lake)
    with serve.in_background(serve.application(folders, hosts=serve.allowed_hosts("127.0.0.1"))) as address:
        yield address


def get(address: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_files_come_whole_in_part_and_only_when_they_changed(lake: Lake, address: str) -> None:
    status, headers, body = get(f"{address}splats_city/city=town/index.html")
    assert (status, body) == (200, b"<p>town</p>")
    assert headers["cache-control"] == "no-cache"
    assert get(f"{address}splats_city/city=town/index.html", **{"If-None-Match": headers["etag"]})[0] == 304
    ply = f"{address}{serve.web_path(lake.key('splats', 'splat.ply', city='town', box='r00c00'))}"
    status, headers, body = get(ply, Range="bytes=10-19")
    assert (status, body, headers["content-range"]) == (206, bytes(range(10, 20)), "bytes 10-19/100")
    assert get(f"{address}pages/lib/lib.js")[2] == b"1"


@pytest.mark.parametrize(
    "path",
    [
        "images/city=town/secret.jpg",
        "splats/../images/city=town/secret.jpg",
        "splats/%2e%2e/images/city=town/secret.jpg",
        "splats/..%2fimages/city=town/secret.jpg",
        "splats/%2fetc/passwd",
        "splats/link.txt",
        "splats_city/city=town",
        "",
    ],
)
def test_nothing_else_of_the_lake_is_shown(address: str, path: str) -> None:
    status, _, body = get(address + path)
    assert status in (404, 405)
    assert b"secret" not in body


def test_a_page_of_another_name_may_not_read(address: str) -> None:
    assert get(f"{address}splats_city/city=town/index.html", Host="evil.example")[0] == 400
    assert serve.allowed_hosts("0.0.0.0") == ("*",)


def test_a_taken_port_is_said(address: str) -> None:
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with pytest.raises(ConfigError, match="Choose another --port"), serve.listening("127.0.0.1", port):
        pass


def test_the_page_that_holds_it_all(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert serve.page_of(lake, "town", None).key.endswith("city=town/viewer.html")
    assert not serve.page_of(lake, "town", None).served
    row = dict.fromkeys(TABLES["splat_city"].column_names) | {"box": "r00c00", "n_splats": 5, "aligned": True}
    row |= {"n_pieces": 1, "bytes": 1, "path": "x"}
    lake.write("splat_city", TABLES["splat_city"].frame([row]), city="town")
    monkeypatch.setattr(serve, "MOST_IN_ONE_FILE", 4)
    page = serve.page_of(lake, "town", None)
    assert (page.key, page.served) == ("files/splats_city/city=town/index.html", True)
    with pytest.raises(ConfigError, match="splat_city --city town"):
        serve.page_of(lake, "town", None, globe=True)
    with pytest.raises(ConfigError, match="splat_ply --city town --box r00c00"):
        serve.page_of(lake, "town", "r00c00")


def test_a_lake_in_a_bucket_is_not_served() -> None:
    with pytest.raises(ConfigError, match="not on a disk"):
        serve.folders_of(Lake("memory://lake"))
