import csv

import numpy as np
import pandas as pd
import pytest

from geo_assets.geotag import s2
from geo_assets.geotag.judge import judge
from geo_assets.geotag.published import read_cells
from geo_assets.geotag.quarter_cells import cut_cells, export_cells, write_cells
from geo_assets.geotag.quarters import rules, s2_codes, splits
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES
from geo_assets_tests.geotag.places import blobs

SETTINGS = Geotag(s2_photos=((5, 40), (5, 200)), quadtree_photos=((1, 60),), quadtree_depth=8)
S2, BOXES = rules(8)


@pytest.fixture(scope="module")
def places() -> pd.DataFrame:
    """Cities here and there, one on the antimeridian and one at the pole."""
    centres = [(2.3, 48.9), (180.0, -17.0), (30.0, 89.9), (-60.0, -33.0), (139.0, 36.0)]
    return blobs(centres, n=80, km=40, seed=3).loc[:, ["lon", "lat", "n_photos"]]


@pytest.fixture
def lake(tmp_path, places) -> Lake:
    lake = Lake(tmp_path / "lake")
    points = places.sort_values(["lon", "lat"]).assign(point_id=np.arange(len(places)), n_sources=1)
    lake.write("geotag_points", points[TABLES["geotag_points"].column_names])
    return lake


def holds(cell, places: pd.DataFrame) -> pd.Series:
    lon, lat = places["lon"], places["lat"]
    across = cell["west"] > cell["east"]
    in_lon = (lon >= cell["west"]) | (lon <= cell["east"]) if across else lon.between(cell["west"], cell["east"])
    return in_lon & lat.between(cell["south"], cell["north"])


@pytest.mark.parametrize("table", ["s2_cells", "quadtree_cells"])
def test_a_cell_is_what_its_photos_say(lake, places, table):
    facts, cells, figures = write_cells(lake, table, SETTINGS)
    assert (
        facts.rows
        == len(cells)
        == sum(n for name, n in figures.items() if name.endswith("_cells") and "over" not in name)
    )
    for level, (fewest, most) in enumerate(splits(SETTINGS)[table][1]):
        of_level = cells[cells["level"] == level]
        assert figures[f"level_{level}_covered"] == round(of_level["n_photos"].sum() / places["n_photos"].sum(), 4)
        photos = np.asarray(of_level["n_photos"])
        assert (photos >= fewest).all() and (photos > most).sum() == figures[f"level_{level}_overfull_cells"]
    for cell in cells.to_dict("records"):
        inside = places[holds(cell, places)]
        assert (cell["medoid_lon"], cell["medoid_lat"]) in set(zip(inside["lon"], inside["lat"], strict=True))
        if table == "quadtree_cells":  # the box of an S2 cell holds more than the cell
            assert (cell["n_points"], cell["n_photos"]) == (len(inside), inside["n_photos"].sum())
        assert (
            cell["p50_km"]
            <= cell["p90_km"]
            <= cell["p95_km"]
            <= cell["max_km"]
            < 2 * cell["mean_km"] + 4 * cell["std_km"] + 1
        )


def test_tokens_name_the_cells_that_hold_the_places(places):
    cells, _ = cut_cells(places, S2, [(1, 40)])
    ids = s2.ids_of_tokens(cells["cell_id"])
    assert (s2.levels(ids) == cells["cuts"]).all()
    fine = s2.cell_ids(places["lon"], places["lat"])
    counted = [places["n_photos"][s2.parents(fine, n) == id_].sum() for id_, n in zip(ids, cells["cuts"], strict=True)]
    assert counted == cells["n_photos"].tolist() and sum(counted) == places["n_photos"].sum()


def test_a_quadkey_leads_to_its_box(places):
    cells, _ = cut_cells(places, BOXES, [(1, 60)])
    for cell in cells.to_dict("records"):
        west, south, width, height = -180.0, -90.0, 360.0, 180.0
        for digit in map(int, cell["cell_id"]):
            width, height = width / 2, height / 2
            west, south = west + width * (digit & 1), south + height * (digit >> 1)
        assert (cell["west"], cell["south"], cell["east"], cell["north"]) == (west, south, west + width, south + height)
    (world,) = cut_cells(places, BOXES, [(1, 10**6)])[0].to_dict("records")
    assert (world["cell_id"], world["west"], world["north"], world["n_points"]) == ("world", -180, 90, len(places))


def test_a_depth_that_binds_is_told():
    one_city = blobs([(2.3, 48.9)], n=200, km=3)
    cells, figures = cut_cells(one_city, rules(3)[1], [(1, 50)])
    assert (cells["cuts"].max(), figures["level_0_overfull_cells"]) == (3, 1)
    assert cut_cells(one_city, rules(20)[1], [(1, 50)])[1]["level_0_overfull_cells"] == 0
    clustering = {"exponents": (0.5,), "min_cluster_size": 5, "min_samples": 2}
    shallow = judge(one_city, splits=splits(SETTINGS.model_copy(update={"quadtree_depth": 1})), **clustering)
    assert shallow.figures["quadtree_cells_level_0_overfull_cells"] == 1
    deep = judge(one_city, splits=splits(SETTINGS.model_copy(update={"quadtree_depth": 30})), **clustering)
    assert not any("overfull" in name for name in deep.figures)


def test_without_places_there_are_no_cells(places):
    for rule in (S2, BOXES):
        cells, figures = cut_cells(places.iloc[:0], rule, [(1, 10)])
        assert len(TABLES["s2_cells"].conform(cells).to_pandas()) == 0 and figures["level_0_cells"] == 0
        dropped, figures = cut_cells(places, rule, [(10**6, 10**7)])
        assert len(dropped) == 0 and figures["level_0_covered"] == 0


def test_files_of_others_come_back(lake, tmp_path):
    assert export_cells(lake, tmp_path / "none") == [], "what was never made is not exported"
    rows = {table: write_cells(lake, table, SETTINGS)[1] for table in ("s2_cells", "quadtree_cells")}
    files = export_cells(lake, tmp_path / "out")
    assert [path.name for path in files] == [
        "s2_cells_level_0.csv",
        "s2_cells_level_1.csv",
        "quadtree_cells_level_0.csv",
    ]
    finest = rows["s2_cells"].query("level == 0")
    read = pd.read_csv(files[0], dtype={"hex_id": str})
    assert read.columns.tolist() == ["class_label", "hex_id", "imgs_per_cell", "latitude_mean", "longitude_mean"]
    assert read["hex_id"].tolist() == finest["cell_id"].tolist()
    assert read["class_label"].tolist() == list(range(len(finest)))
    assert read["longitude_mean"].tolist() == finest["lon"].tolist()
    cells = read_cells(files[0])
    assert (cells.of(s2_codes(finest["medoid_lon"], finest["medoid_lat"])) >= 0).all() and len(cells) == len(finest)
    boxes = list(csv.DictReader(files[2].open()))
    assert list(boxes[0]) == ["cluster_id", "min_lat", "max_lat", "min_lon", "max_lon", "mean_lat", "mean_lon"]
    assert all(float(b["min_lat"]) <= float(b["mean_lat"]) <= float(b["max_lat"]) for b in boxes)


def test_tokens_that_look_like_numbers_stay_text(lake, tmp_path):
    row = cut_cells(blobs([(2.3, 48.9)]), S2, [(1, 10**6)])[0]
    lake.write("s2_cells", pd.concat([row.assign(cell_id=token) for token in ("47e63", "89024", "1c")]))
    (path,) = export_cells(lake, tmp_path)
    tokens = [line.split(",")[1] for line in path.read_text().splitlines()[1:]]
    assert tokens == ['"1c"', '"47e63"', '"89024"']


def test_borders_hold_the_places_of_the_cells():
    draw = np.random.default_rng(1)
    lon, lat = draw.uniform(-180, 180, 500), np.degrees(np.arcsin(draw.uniform(-1, 1, 500)))
    fine = s2.cell_ids(lon, lat)
    places = pd.DataFrame({"lon": lon, "lat": lat})
    for level in (0, 1, 2, 5, 12):
        west, south, east, north = s2.bounds(s2.parents(fine, level))
        box = pd.DataFrame({"west": west - 1e-9, "south": south - 1e-9, "east": east + 1e-9, "north": north + 1e-9})
        inside = (lat >= box.south) & (lat <= box.north)
        across = west > east
        assert (inside & np.where(across, (lon >= west) | (lon <= east), (lon >= box.west) & (lon <= box.east))).all()
        assert ((north - south) <= 130 / 2**level).all() and len(places)
    names = {"1": (-45, -45, 45, 45), "3": (45, -45, 135, 45), "7": (135, -45, -135, 45)}
    for token, wanted in names.items():
        assert [float(b[0]) for b in s2.bounds(s2.ids_of_tokens([token]))] == pytest.approx(list(wanted))
    poles = s2.bounds(s2.ids_of_tokens(["5", "b"]))
    assert np.round(np.array(poles), 2).tolist() == [[-180, -180], [35.26, -90], [180, 180], [90, -35.26]]
