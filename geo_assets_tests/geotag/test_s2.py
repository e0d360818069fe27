import csv

import numpy as np
import pytest

from geo_assets.geotag.s2 import cell_ids, ids_of_tokens, levels, parents, tokens

# Middles of faces, and places as s2sphere 0.2.5 names them.
KNOWN = {
    (0.0, 0.0): "1000000000000001",
    (0.0, 90.0): "5000000000000001",
    (0.0, -90.0): "b000000000000001",
    (2.2945, 48.8584): "47e66fe1f36a36a5",
    (-73.9857, 40.7484): "89c259a9a9647d73",
    (179.99, -16.5): "6e20006ff0f21f03",
}


def test_tokens_are_those_of_other_implementations():
    lons, lats = zip(*KNOWN, strict=True)
    assert tokens(cell_ids(lons, lats)) == list(KNOWN.values())


def test_cells_of_a_level_hold_their_finer_cells():
    draw = np.random.default_rng(1)
    lon, lat = draw.uniform(-180, 180, 500), np.degrees(np.arcsin(draw.uniform(-1, 1, 500)))
    finest = cell_ids(lon, lat)
    assert (levels(finest) == 30).all() and len(set(tokens(finest))) == 500
    for level in (0, 7, 29):
        above = cell_ids(lon, lat, level)
        assert (levels(above) == level).all()
        assert (parents(finest, level) == above).all()
        assert all(token.startswith(up[:-1]) for token, up in zip(tokens(finest), tokens(above), strict=True))


def test_tokens_come_back():
    ids = cell_ids([2.2945, -73.9857, 178.0], [48.8584, 40.7484, -17.5], 12)
    assert (ids_of_tokens(tokens(ids)) == ids).all()


def test_cells_of_one_level_are_of_like_size():
    draw = np.random.default_rng(2)
    n = 200_000
    cells = cell_ids(draw.uniform(-180, 180, n), np.degrees(np.arcsin(draw.uniform(-1, 1, n))), 3)
    _, count = np.unique(cells, return_counts=True)
    # The largest cell of a level has 2.1 times the area of the smallest; without the quadratic map it would be 5.2.
    assert len(count) == 6 * 4**3 and count.max() / count.min() < 2.6


@pytest.mark.parametrize("token", ["4.7E+064", "", "47e66fe1f36a36a5f", "0"])
def test_what_a_spreadsheet_left_is_no_token(token):
    with pytest.raises(ValueError, match="is not a token of an S2 cell"):
        ids_of_tokens(["47e67", token])


@pytest.mark.parametrize("name", ["cells_50_1000", "cells_50_2000", "cells_50_5000"])
def test_published_cells_hold_the_means_of_their_photos(real_data, name):
    with (real_data / f"geotag/cells/{name}.csv").open(newline="") as source:
        lines = source.readlines()
    rows = list(csv.DictReader(lines[next(i for i, line in enumerate(lines) if "hex_id" in line) :]))
    ids = ids_of_tokens([row["hex_id"] for row in rows])
    lon, lat = ([float(row[f"{axis}_mean"]) for row in rows] for axis in ("longitude", "latitude"))
    finest, level = cell_ids(lon, lat), levels(ids)
    held = np.concatenate([parents(finest[level == one], one) == ids[level == one] for one in np.unique(level)])
    assert len(held) == len(rows) and held.all()
