import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.geotag import pictures
from geo_assets.geotag.pictures import density_map, level_map, photo_grids, points_map, rejects_table, source_maps
from geo_assets.lake import Lake
from geo_assets.pictures import MAX_BYTES
from geo_assets.tables import TABLES


@pytest.fixture
def lake(tmp_path) -> Lake:
    return Lake(tmp_path)


def put(lake: Lake, rows: list[tuple[str, float, float, list[str]]]) -> None:
    names = ("source", "lon", "lat", "flags")
    photos = [dict(zip(names, row, strict=True)) | {"photo_id": str(i)} for i, row in enumerate(rows)]
    lake.write("geotag_combined", TABLES["geotag_combined"].frame(photos))


def size(png: bytes) -> list[int]:
    """Width and height of a PNG that is small enough [px]."""
    assert png.startswith(b"\x89PNG") and len(png) <= MAX_BYTES
    return list(Image.open(io.BytesIO(png)).size)


def rgb(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_photos_are_counted_in_cells_by_source(lake):
    put(lake, [
        ("flickr_geotag", -180.0, -90.0, []), ("flickr_geotag", 180.0, 90.0, []), ("flickr_geotag", 179.9, 89.9, []),
        ("placing_2016", 2.3, 48.8, ["unclean"]), ("placing_2016", 2.49, 48.99, []), ("placing_2016", 0.0, 0.0, ["null_island"]),
    ])  # fmt: skip
    grids = photo_grids(lake)
    assert list(grids) == ["placing_2016", "flickr_geotag"]
    assert grids["placing_2016"].sum() == grids["placing_2016"][2 * (90 + 48) + 1, 2 * (180 + 2)] == 2
    flickr = grids["flickr_geotag"]
    assert (flickr.sum(), flickr[0, 0], flickr[-1, 0], flickr[-1, -1]) == (3, 1, 1, 1)


@pytest.mark.parametrize("n", [0, 1, 20_000])
def test_density_maps_are_small_pngs_that_show_the_photos(n):
    draw = np.random.default_rng(0)
    lon, lat = draw.uniform(-180, 180, n), draw.uniform(-90, 90, n)
    grid = np.histogram2d(lat, lon, bins=(360, 720), range=[[-90, 90], [-180, 180]])[0].astype(np.int64)
    assert size(density_map({"placing_2016": grid} if n else {})) == size(points_map(lon, lat, f"{n} places"))
    assert size(source_maps(dict.fromkeys(("placing_2016", "flickr_geotag", "mapillary"), grid) if n else {}))


def test_one_photo_is_seen_where_it_is():
    empty, paris = rgb(points_map([], [], "a place")), rgb(points_map([2.3], [48.8], "a place"))
    rows, columns = np.nonzero(np.abs(empty - paris).max(axis=2)[:380] > 60)
    height, width = empty.shape[:2]
    assert len(rows) > 30, "cells are large where there are few"
    lon, lat = (
        ((columns.mean() / width - 0.045) / 0.925 - 0.5) * 360,
        ((1 - rows.mean() / height - 0.13) / 0.81 - 0.5) * 180,
    )
    assert (lon, lat) == pytest.approx((1.5, 49.5), abs=1)


def test_the_map_needs_no_outlines_of_land(monkeypatch, tmp_path):
    import pyogrio

    pictures._land.cache_clear()
    with_land = points_map([2.3], [48.8], "a place")
    pictures._land.cache_clear()
    monkeypatch.setattr(pyogrio, "__file__", str(tmp_path / "__init__.py"))
    assert pictures._land() == [] and size(points_map([2.3], [48.8], "a place")) == size(with_land)
    pictures._land.cache_clear()


@pytest.mark.parametrize("n", [0, 1, 20_000])
def test_a_level_map_is_a_small_png(n):
    draw = np.random.default_rng(0)
    cells = pd.DataFrame(
        {
            "level": np.zeros(n, np.int64),
            "cell_id": np.arange(n),
            "lon": draw.uniform(-180, 180, n),
            "lat": draw.uniform(-90, 90, n),
            "n_photos": draw.integers(1, 99, n),
        }
    )
    root = pd.DataFrame({"level": [1], "cell_id": [0], "lon": [0.0], "lat": [0.0], "n_photos": [1]}).head(n)
    assert size(level_map(pd.concat([cells, root])))


def test_rejects_are_a_table_by_source_and_reason(lake):
    assert rejects_table(lake) == "No record was rejected."
    reasons = ["off the globe", "no map", "off the globe"]
    names = ("file", "row", "reason", "value")
    rows = [("s0.msg", str(i), reason, "a|b\n<img src=x>") for i, reason in enumerate(reasons)]
    frame = TABLES["geotag_rejects"].frame([dict(zip(names, row, strict=True)) for row in rows])
    for part in ("s0", "s1"):
        lake.write("geotag_rejects", frame, source="placing_2016", part=part)
    many = frame.head(1).loc[[0] * 50].assign(reason=[f"why {i:02d}" for i in range(50)])
    lake.write("geotag_rejects", many, source="flickr_geotag", part="all")
    lines = rejects_table(lake).splitlines()
    assert all(line.count("|") == 5 for line in lines) and "<" not in "".join(lines)
    assert len(lines) == 2 + pictures.MOST_REASONS + 1
    assert lines[2].startswith("| flickr&#95;geotag | why 00 | 1 | s0.msg, 0: a&#124;b &#60;img") and lines[
        -1
    ].startswith("| | 12 more reasons | 16 |")
