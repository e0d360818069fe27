"""Coverage and closure against the demo server: lagging tiles, short answers, dense boxes, stacked images."""

from pathlib import Path

import pytest

from geo_assets.demo.server import Behaviour, serving
from geo_assets.errors import ApiError
from geo_assets.harvest.closure import audit_cell, discover
from geo_assets.harvest.coverage import box_row, content_hash, coverage
from geo_assets.harvest.source import Api, Box
from geo_assets.lake import Lake
from geo_assets_tests.harvest.worlds import around, client, image, street, town, world

CITY = town()
BOX = "r00c01"  # 100 to 200 m along the street: images 20 to 39


def ids_in(found_world, first: int, last: int) -> set[str]:
    return {i.id for i in found_world.images[first : last + 1]}


def test_a_tile_is_fetched_once_for_all_its_boxes(tmp_path: Path) -> None:
    lake, here = Lake(tmp_path / "lake"), street(tmp_path)
    with serving(here) as address, client(address) as api:
        for box in CITY.grid:
            Api(Box("town", box, CITY, lake), api).plan()
        assert address.requests["tile"] == 2, "one tile, two data sets, three boxes"
    assert len(lake.names("files/tiles/city=town")) == 2
    with serving(here) as address, client(address, tiles_fresh_for_s=0) as api:
        Api(Box("town", BOX, CITY, lake), api).plan()
        assert address.requests["tile"] == 2, "an old tile is asked again"


def test_a_spoilt_tile_of_the_lake_is_fetched_again(tmp_path: Path) -> None:
    lake, here = Lake(tmp_path / "lake"), street(tmp_path)
    bounds = CITY.grid.bounds(BOX)
    with serving(here) as address, client(address) as api:
        coverage(api, lake, "town", bounds)
        for name in lake.names("files/tiles/city=town"):
            lake.put_bytes(f"files/tiles/city=town/{name}", b"spoilt")
        assert len(coverage(api, lake, "town", bounds).images) == 60


def test_the_row_of_a_box(tmp_path: Path) -> None:
    here = street(tmp_path)
    with serving(here) as address, client(address) as api:
        plan = Api(Box("town", BOX, CITY, Lake(tmp_path / "lake")), api).plan()
    row = plan.row.iloc[0]
    assert (row["n_images"], row["n_sequences"]) == (20, 1)
    assert row["neighbours"] == ["r00c00", "r00c02"]
    assert row["coverage_hash"] == content_hash(ids_in(here, 20, 39))
    assert box_row(plan.images, CITY.grid, "r05c05", [], row["fetched_at"])["n_images"].tolist() == [0]


def test_three_sources_find_what_the_tiles_do_not_show(tmp_path: Path) -> None:
    lonely = image(900, "lonely", 150.0, 50.0)
    pair = [image(901, "pair", 120.0, 60.0), image(902, "pair", 190.0, 60.0)]
    here = world(tmp_path, [*street(tmp_path).images, lonely, *pair])
    hidden = frozenset([lonely.id, pair[0].id, pair[1].id, here.images[25].id])
    behaviour = Behaviour(absent_from_tiles=hidden)
    with serving(here, behaviour) as address, client(address) as api:
        bounds = CITY.grid.bounds(BOX)
        found = discover(api, coverage(api, Lake(tmp_path / "lake"), "town", bounds), bounds)
    images = found.images.set_index("image_id")
    assert ids_in(here, 20, 39) | {lonely.id, pair[0].id, pair[1].id} <= set(images.index)
    assert not images.loc[here.images[25].id, "in_tiles"] and images.loc[here.images[25].id, "in_closure"]
    assert images.loc[lonely.id, "in_audit"] and images.loc[lonely.id, "in_closure"]
    sequences = found.sequences.set_index("sequence_id")
    assert sequences.loc["lonely", "first_seen_in"] == "audit" and sequences.loc["seq-1_x", "first_seen_in"] == "tile"
    assert sequences.loc["seq-1_x", ["n_images", "n_in_tiles", "n_in_box"]].tolist() == [20, 19, 20]
    assert set(sequences["closed"]) == {True}


def test_a_long_sequence_does_not_bring_in_the_whole_town(tmp_path: Path) -> None:
    here = street(tmp_path, per_sequence=60)
    with serving(here) as address, client(address) as api:
        bounds = CITY.grid.bounds(BOX)
        found = discover(api, coverage(api, Lake(tmp_path / "lake"), "town", bounds), bounds)
    assert found.sequences["n_images"].tolist() == [60]
    assert set(found.images["image_id"]) == ids_in(here, 15, 44), "25 m around the box"


def test_a_dense_cell_is_asked_in_quarters(tmp_path: Path) -> None:
    with serving(street(tmp_path), Behaviour(dense_above=8)) as address, client(address) as api:
        audit = audit_cell(api, around(150, 20, 80), 0)
    assert len(audit.images) == 32 and audit.cells > 4 and audit.unverifiable == 0


def test_images_on_one_spot_are_said_to_be_unverifiable(tmp_path: Path) -> None:
    stack = world(tmp_path, [image(i, "stack", 50.0, 50.0) for i in range(30)])
    with serving(stack, Behaviour(dense_above=8)) as address, client(address) as api:
        audit = audit_cell(api, around(50, 50, 40), 0)
    assert audit.unverifiable >= 1 and address.requests["search"] < 200


def test_cut_answers_are_united(tmp_path: Path) -> None:
    # 900 images but 850 rows an answer, up to 40 % fewer: one answer of a cell this full is never the whole.
    crowd = world(tmp_path, [image(i, f"s{i % 9}", 10 + i % 30 * 2.0, 10 + i // 30 * 2.0) for i in range(900)])
    with serving(crowd, Behaviour(rows=850, short=0.4)) as address, client(address) as api:
        audit = audit_cell(api, around(40, 40, 60), 900)
    assert len(audit.images) == 900


def test_a_search_that_keeps_failing_fails_the_box(tmp_path: Path) -> None:
    fault = {"search": "service_unavailable"}
    with (
        serving(street(tmp_path), Behaviour(fault=lambda kind, n: fault.get(kind))) as address,
        client(address) as api,
        pytest.raises(ApiError, match="Service temporarily unavailable"),
    ):
        audit_cell(api, around(50, 50, 40), 0)


def test_an_empty_list_of_a_sequence_is_not_closed(tmp_path: Path) -> None:
    fault = {"sequence": "empty"}
    here = street(tmp_path)
    with serving(here, Behaviour(fault=lambda kind, n: fault.get(kind))) as address, client(address) as api:
        box = Api(Box("town", BOX, CITY, Lake(tmp_path / "lake")), api)
        found = box.discover()
        assert set(found.sequences["closed"]) == {False} and set(found.images["image_id"]) >= ids_in(here, 20, 39)
        proof = box.describe(found.images, found.sequences, found.figures).certificate.iloc[0]
    assert proof["n_unclosed"] == 1 and not proof["complete"] and proof["n_images"] == 20
