"""The answers of ``geo-assets serve`` about a small city, its errors, and what it refuses."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from geo_assets.errors import ConfigError
from geo_assets.lake import Lake
from geo_assets.serve.app import application
from geo_assets.serve.boxes import CityBoxes, published_boxes, read_boxes
from geo_assets.serve.kept import Kept
from geo_assets.splats.serve import allowed_hosts, in_background
from geo_assets.sql_models import answer
from geo_assets_tests.serve.lakes import BOXES, NAUGHTY, N, clustered, ids, made, registered, settings


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "secret.txt").write_text("secret")
    lake = made(Lake(folder / "lake"))
    clustered(lake)
    lake.put_bytes(lake.key("matches", "database.db", city="town"), b"not to be seen")
    Path(lake.root, "files/splats/link.txt").symlink_to(folder / "secret.txt")
    return lake


@dataclass(frozen=True)
class Answer:
    """What the server sent, unpacked by nobody."""

    status_code: int
    headers: dict[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json.loads(self.content)


@dataclass(frozen=True)
class Client:
    """Asks a server for paths just as they are written, dots and all."""

    port: int

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()


@contextlib.contextmanager
def client_of(lake: Lake, read: Any = None, **options: Any) -> Iterator[Client]:
    options = {"hosts": allowed_hosts("127.0.0.1"), "pause_s": 0} | options
    with in_background(application(lake, read or (lambda: settings(lake)), **options)) as address:
        yield Client(int(address.rsplit(":", 1)[1].strip("/")))


@pytest.fixture(scope="module")
def client(lake: Lake) -> Iterator[Client]:
    with client_of(lake) as client:
        yield client


def get(client: Client, path: str) -> Any:
    answer = client.get(f"/api/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_city_says_how_far_its_images_came(client: Client) -> None:
    found = get(client, "cities")
    (town,) = found["cities"]
    assert town["totals"] == {
        "n_tile_images": N * len(BOXES), "n_harvested": 3 * N, "n_downloaded": 3 * N, "n_featured": 2 * N,
        "n_paired": 2 * N, "n_registered": N + N // 2, "n_splatted": N,
    }  # fmt: skip
    assert town["states"] == {"seen": len(BOXES) - 3, "downloaded": 1, "registered": 1, "splatted": 1}
    assert town["splat"] == "/files/splats_city/city=town/index.html"
    assert (town["n_boxes"], town["next"], found["next"]) == (len(BOXES), None, None)
    assert set(town["states"]) <= {state["state"] for state in found["states"]}


def test_boxes_are_columns(client: Client) -> None:
    columns = get(client, "cities/town/boxes")["columns"]
    assert columns["box"] == BOXES
    assert columns["registered_share"][:3] == [1.0, 0.5, None]
    assert columns["psnr_db"][:2] == [24.5, None]
    assert columns["gps_median_m"][0] == 1.25


def test_a_box_in_full(client: Client) -> None:
    box = get(client, f"cities/town/boxes/{BOXES[0]}")
    assert [step["n"] for step in box["funnel"]] == [N] * 7
    assert (box["state"], box["next"]) == ("splatted", None)
    assert box["certificate"]["complete"]
    meanings = {term["name"]: term["meaning"] for term in box["certificate"]["terms"]}
    assert meanings["n_audit_new"].startswith("images named by the audit and by neither")
    assert {term["name"]: term["value"] for term in box["splat"]["terms"]}["psnr_db"] == 24.5
    assert (box["splat"]["preview"], box["images"]["n_panoramas"]) == (None, 1)
    assert [(c["creator"], c["n_images"]) for c in box["credits"]] == [(NAUGHTY, N - 1), ("öst", 1)]
    for name in ("compare", "viewer", "ply"):
        assert client.get(box["splat"][name]).status_code == 200


@pytest.mark.parametrize(
    ("box", "asset"), [(BOXES[1], "splat_ply"), (BOXES[2], "gps_db"), (BOXES[3], "image_metadata")]
)
def test_an_unfinished_box_says_what_to_type(client: Client, box: str, asset: str) -> None:
    found = get(client, f"cities/town/boxes/{box}")
    assert found["next"] == f"geo-assets materialize --select {asset} --city town --box {box}"


def test_a_certificate_that_is_not_complete_says_why(client: Client) -> None:
    proof = get(client, f"cities/town/boxes/{BOXES[2]}")["certificate"]
    assert not proof["complete"]
    assert "2 ids without an answer" in proof["verdict"]


def test_images_are_where_the_model_puts_them(client: Client) -> None:
    columns = get(client, f"cities/town/boxes/{BOXES[1]}/images")["columns"]
    assert columns["image_id"] == ids(BOXES[1])
    assert columns["registered"] == [True] * (N // 2) + [False] * (N - N // 2)
    assert len(set(columns["lon"][: N // 2])) == 1
    assert columns["heading_deg"] == [45.0] * (N // 2) + [90.0] * (N - N // 2)


def test_images_are_bounded(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geo_assets.serve.box.MOST_IMAGES", 3)
    with client_of(lake) as client:
        found = get(client, f"cities/town/boxes/{BOXES[0]}/images")
    assert (found["n"], found["columns"]["image_id"]) == (N, [ids(BOXES[0])[i] for i in (0, 2, 5)])


def test_an_image_has_a_photo_and_a_credit(client: Client) -> None:
    image = get(client, f"cities/town/boxes/{BOXES[0]}/images/{ids(BOXES[0])[2]}")
    assert (image["creator"], image["split"], image["psnr_db"]) == (NAUGHTY, "train", 25.0)
    photo = client.get(image["photo"])
    assert (photo.status_code, photo.headers["content-type"]) == (200, "image/jpeg")


def test_sequences_are_geojson(client: Client) -> None:
    (line,) = get(client, f"cities/town/boxes/{BOXES[0]}/sequences")["features"]
    assert line["geometry"]["type"] == "LineString"
    assert len(line["geometry"]["coordinates"]) == N
    assert line["properties"]["length_m"] == 80.0
    assert get(client, f"cities/town/boxes/{BOXES[3]}/sequences")["features"] == []


def test_cells_of_a_view_across_the_antimeridian(client: Client) -> None:
    assert [(level["level"], level["n_cells"]) for level in get(client, "cells")["levels"]] == [(0, 3), (1, 1)]
    assert get(client, "cells/0")["columns"]["cell_id"] == [0, 1, 2], "those of most photos first"
    assert get(client, "cells/0?bbox=170,-30,190,0")["columns"]["cell_id"] == [1]
    assert get(client, "cells/0?bbox=-190,-30,-170,0")["columns"]["cell_id"] == [1]
    assert get(client, "cells/0?bbox=-400,-85,400,85")["n"] == 3
    assert {term["name"]: term["value"] for term in get(client, "cells/0/2")["terms"]}["p90_km"] == 0.5


def test_cells_are_bounded_to_those_of_most_photos(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geo_assets.serve.cells.MOST", 2)
    with client_of(lake) as client:
        found = get(client, "cells/0")
    assert (found["n"], found["columns"]["cell_id"]) == (3, [0, 1])


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/cities/nowhere/boxes", 404, "No city 'nowhere'"),
        ("/api/cities/town/boxes/r99c99", 404, "town has no box r99c99"),
        ("/api/cities/town/boxes/r00c00/images/../../../x", 404, "nothing at this address"),
        ("/api/cities/town/boxes/r00c00/images/9", 404, "no image 9"),
        ("/api/cities/..%2f..%2fsecret/boxes", 404, "nothing at this address"),
        ("/api/cities/town/boxes/..%5c..", 404, "no box"),
        ("/api/cells/7", 404, "There is no level 7; known: 0 to 1."),
        ("/api/cells/0/99", 404, "no cell 99"),
        ("/api/cells/0?bbox=1,2,x,4", 400, "not west,south,east,north"),
        ("/api/cells/0?bbox=nan,0,1,1", 400, "not west,south,east,north"),
        ("/api/nothing", 404, "nothing at this address"),
    ],
)
def test_an_error_is_one_sentence(client: Client, path: str, status: int, said: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/files/matches/city=town/database.db",
        "/files/splats/link.txt",
        "/files/splats/..%2f..%2f..%2fsecret.txt",
        "/files/../secret.txt",
        "/page/..%2fapp.py",
        "/page/../app.py",
        "/files/splats/",
    ],
)
def test_nothing_else_is_shown(client: Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_only_this_machine_s_names_are_answered(client: Client) -> None:
    assert client.get("/api/cities", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/api/cities", headers={"Host": "localhost:3001"}).status_code == 200


def test_it_is_read_only(client: Client) -> None:
    assert client.get("/api/cities", method="POST").status_code == 405


def test_a_page_may_ask_nobody_else(client: Client, lake: Lake) -> None:
    page, splat = client.get("/"), client.get(f"/files/splats/city=town/box={BOXES[0]}/viewer.html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy + splat.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    with client_of(lake, style="https://tiles.example/style.json") as styled:
        policy = styled.get("/").headers["content-security-policy"]
        assert "connect-src 'self' https: https://tiles.example" in policy
        assert get(styled, "settings")["style"] == "https://tiles.example/style.json"


@pytest.mark.parametrize("style", ["style.json", "file:///etc/passwd", "https://x/; script-src *"])
def test_a_style_is_a_web_address(lake: Lake, style: str) -> None:
    with pytest.raises(ConfigError, match="not the http address"):
        application(lake, lambda: settings(lake), style=style)


def test_the_same_answer_is_not_sent_twice(lake: Lake, client: Client) -> None:
    answer = client.get("/api/cities", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    again = client.get("/api/cities", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = client.get("/api/cities", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert json.loads(gzip.decompress(answer.content)) == plain.json()


def test_files_come_in_parts(client: Client) -> None:
    ply = client.get(f"/files/splats/city=town/box={BOXES[0]}/splat.ply", headers={"Range": "bytes=10-19"})
    assert (ply.status_code, ply.content) == (206, bytes(range(10, 20)))


def test_what_changes_in_the_lake_shows_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geo_assets.serve.kept.QUICK_S", 1e9)  # wait for the renewal
    monkeypatch.setattr("geo_assets.serve.kept.SHARE", 1e9)
    lake = made(Lake(tmp_path / "lake"))
    with client_of(lake) as client:
        before = client.get("/api/cities").headers["etag"]
        assert client.get("/api/cities").headers["etag"] == before
        registered(lake, BOXES[2], 4)
        after = client.get("/api/cities")
    assert after.headers["etag"] != before
    assert after.json()["cities"][0]["totals"]["n_registered"] == N + N // 2 + 4


def test_while_a_large_lake_is_read_what_was_published_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = made(Lake(tmp_path / "lake"))
    monkeypatch.setattr("geo_assets.serve.kept.PATIENCE_S", 0.1)
    may_end = threading.Event()

    def slowly() -> dict[str, CityBoxes]:
        may_end.wait(30)
        return read_boxes(lake)

    kept = Kept(lake, lambda: ["splat_ply"], slowly, lambda: published_boxes(lake))
    assert (kept.get(), kept.reading) == ({}, True)
    for name in ("reconstruction_funnel", "box_quality"):
        lake.write_arrow(name, answer(lake, name))
    assert kept.get()["town"].totals["n_splatted"] == N
    assert kept.reading
    may_end.set()
    while kept.reading:
        time.sleep(0.05)
    assert kept.get()["town"].totals["n_splatted"] == N


def test_a_fault_of_reading_is_told_and_tried_again(tmp_path: Path) -> None:
    faults = [ConfigError("the file is broken")]

    def make() -> int:
        if faults:
            raise faults.pop()
        return 7

    kept = Kept(Lake(tmp_path / "lake"), lambda: ["splat_ply"], make, lambda: 0, pause_s=0)
    with pytest.raises(ConfigError, match="broken"):
        kept.get()
    assert kept.get() == 7


def test_a_young_lake_says_what_to_type(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    cities = dict(settings(lake).cities)
    with client_of(lake, lambda: settings(lake).model_copy(update={"cities": cities})) as client:
        (town,) = get(client, "cities")["cities"]
        cells = get(client, "cells")
        box = get(client, f"cities/town/boxes/{BOXES[0]}")
        cities.clear()
        none = get(client, "cities")
    assert (town["n_known"], town["next"]) == (0, "geo-assets harvest town --files")
    assert cells["next"] == "geo-assets materialize --select hierarchy_centroids"
    assert (box["state"], box["certificate"], box["splat"], box["credits"]) == ("unknown", None, None, [])
    assert box["next"] == f"geo-assets materialize --select image_metadata --city town --box {BOXES[0]}"
    assert none["cities"] == []
    assert none["next"].startswith("geo-assets city add")


def test_a_lake_on_object_storage_is_shown_too(lake: Lake) -> None:
    import fsspec

    remote = Lake("memory://served")
    fsspec.filesystem("memory").put(f"{lake.root}/", "/served/", recursive=True)
    with client_of(remote, lambda: settings(lake)) as client:
        assert get(client, "cities")["cities"][0]["totals"]["n_splatted"] == N
        box = get(client, f"cities/town/boxes/{BOXES[0]}")
        assert client.get(box["splat"]["ply"]).content == bytes(range(100))
        assert client.get("/files/matches/city=town/database.db").status_code == 404


def test_a_fault_is_told_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Any:
        raise ValueError("secret detail")

    with client_of(Lake(tmp_path / "lake"), broken) as client:
        answer = client.get("/api/cities")
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("ValueError while answering")
    assert "secret detail" in capsys.readouterr().err


def test_what_is_vendored_is_what_is_recorded() -> None:
    import hashlib

    from geo_assets.serve.app import PAGE

    record = json.loads((PAGE / "maplibre/VENDORED.json").read_text())
    assert (PAGE / "maplibre/LICENSE.txt").is_file()
    for name, facts in record["files"].items():
        assert hashlib.sha256((PAGE / "maplibre" / name).read_bytes()).hexdigest() == facts["sha256"]
