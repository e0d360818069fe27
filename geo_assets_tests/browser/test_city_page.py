"""A city of a million splats in the browser: it streams, within 500 MB of memory, and asks nobody outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import Bounds, Grid
from geo_assets.lake import Lake
from geo_assets.splats import serve
from geo_assets_tests.browser.chromium import chromium_path, drawn_share, open_page, wait_until_drawn
from geo_assets_tests.splats.towns import dome, put_box, town

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("city_page"),
    pytest.mark.skipif(chromium_path() is None, reason="no Chromium on this machine"),
]

BOUNDS = Bounds(11.0, 48.0, 11.005, 48.0033)
GRID = Grid.over(BOUNDS, 190)
IN_A_BOX = 250_000
MOST_MB = 500


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    from geo_assets.splats.city import splat_of_city

    assert len(GRID) == 4
    lake = Lake(tmp_path_factory.mktemp("city") / "lake")
    for seed, box in enumerate(GRID):
        frame = LocalFrame(*GRID.bounds(box).centre, 500.0)
        put_box(lake, "town", box, frame, town(IN_A_BOX, size_m=180, seed=seed), sky=dome(800, 700.0))
    made = splat_of_city(lake, "town", BOUNDS, GRID, lambda line: None)
    assert made.figures["n_splats"] > 950_000
    lake.write("splat_city", made.boxes, city="town")
    return lake


@pytest.fixture(scope="module")
def address(lake: Lake) -> Iterator[str]:
    page = serve.page_of(lake, "town", None)
    assert page.served, "a city of this size does not fit into one file"
    with serve.in_background(serve.application(serve.folders_of(lake)), serve.web_path(page.key)) as address:
        yield address


def levels_asked_for(requests: list[str]) -> list[int]:
    found = [re.search(r"/lod/(\d+)_\d+/meta\.json$", url) for url in requests]
    return [int(match[1]) for match in found if match]


def test_a_million_splats_stream(lake: Lake, address: str) -> None:
    folder = Path(lake.uri("files/splats_city/city=town/lod"))
    pieces = [path.parent.name for path in folder.glob("*_*/meta.json")]
    with open_page() as (page, watch):
        page.goto("about:blank")
        blank = drawing_mb()
        page.goto(address, wait_until="load", timeout=120_000)
        most = {key: 0.0 for key in blank}
        wait_until_drawn(page)
        quiet, before = 0, 0
        while quiet < 3:  # until nothing more is asked for
            page.wait_for_timeout(2000)
            most = {key: max(most[key], mb) for key, mb in drawing_mb().items()}
            quiet, before = (quiet + 1 if len(watch.requests) == before else 0), len(watch.requests)
        png = page.screenshot(timeout=120_000)
        heap_mb = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
        asked = levels_asked_for(watch.requests)
    figures = {"blank_mb": blank, "most_mb": most, "js_heap_mb": heap_mb, "pieces": len(asked), "of": len(pieces)}
    print(json.dumps(figures))
    assert drawn_share(png) > 0.3, "most of the picture is the background"
    assert watch.outside == []
    assert watch.errors == []
    top = max(int(name.split("_")[0]) for name in pieces)
    assert asked[0] == top, "the coarsest level comes first"
    assert len(asked) == len(set(asked_names(watch.requests))) < 0.75 * len(pieces), "not all levels are fetched"
    assert any("/lod/sky/" in url for url in watch.requests)
    # Counted is what draws the page, with the browser's own share of it: all renderers and the process that stands for
    # the GPU, whose memory in software is ours. Not counted is the browser's program, mapped from its files.
    assert most["own"] < MOST_MB, figures


def test_a_small_budget_asks_for_coarse_pieces(lake: Lake, address: str) -> None:
    with open_page(640, 400) as (page, watch):
        page.goto(f"{address}?budget=0.15", wait_until="load", timeout=120_000)
        wait_until_drawn(page)
        page.wait_for_timeout(5000)
        asked = levels_asked_for(watch.requests)
    assert asked
    assert asked.count(0) < 4


def test_from_a_disk_the_page_says_what_to_do(lake: Lake) -> None:
    path = Path(lake.uri("files/splats_city/city=town/index.html"))
    with open_page(640, 400) as (page, watch):
        page.goto(path.as_uri(), wait_until="commit", timeout=120_000)
        page.wait_for_selector("code", timeout=60_000)
        assert "geo-assets show town" in page.inner_text("body")
        assert len(watch.requests) == 1


def asked_names(requests: list[str]) -> list[str]:
    return [url for url in requests if re.search(r"/lod/\d+_\d+/meta\.json$", url)]


def drawing_mb() -> dict[str, float]:
    """Memory of the renderers and the GPU process of browsers that this process started [MB].

    Pages shared by several processes are divided among them (proportional set size): ``own`` is memory that is in no
    file, ``all`` the files of the browser's program too.
    """
    parents, commands = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_text()
    counted = {"own": 0, "all": 0}
    for process, command in commands.items():
        ancestor = process
        while ancestor > 1 and ancestor != os.getpid():
            ancestor = parents.get(ancestor, 0)
        if ancestor != os.getpid() or not re.search("--type=(renderer|gpu-process)", command):
            continue
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
            counted["own"] += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
            counted["all"] += sizes["Pss"]
    return {key: round(kilobytes / 1024, 1) for key, kilobytes in counted.items()}
