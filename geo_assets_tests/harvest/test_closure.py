"""The three sources together, against the demo server: lagging tiles, short lists, sequences that no tile names."""

from pathlib import Path

import pytest

from geo_assets.demo.server import Behaviour, serving
from geo_assets.demo.world import World
from geo_assets.errors import ApiError
from geo_assets.harvest.answers import Answers
from geo_assets.harvest.area import Area
from geo_assets.harvest.closure import LISTINGS, OUTSIDE, Discovery, list_sequences, survey, touch
from geo_assets.harvest.coverage import Tiles, box_row, content_hash
from geo_assets.harvest.mapillary import Mapillary
from geo_assets.harvest.source import Api, Box
from geo_assets.lake import Lake
from geo_assets.settings import City
from geo_assets.tables import TABLES
from geo_assets_tests.harvest.worlds import around, client, image, street, town, world

CITY = town()
BOX = "r00c01"  # 100 to 200 m along the street: images 20 to 39


def ids_in(found_world: World, first: int, last: int) -> set[str]:
    return {i.id for i in found_world.images[first : last + 1]}


def box_of(api: Mapillary, lake: Lake, name: str = BOX, city: City = CITY) -> Api:
    return Api(Box("town", name, city, lake), api)


def discover(api: Mapillary, lake: Lake, name: str = BOX) -> Discovery:
    """What the sources say of a box; the tables take it."""
    found = box_of(api, lake, name).discover()
    TABLES["sequence_ids"].conform(found.sequences)
    TABLES["sequence_images"].conform(found.images)
    return found


def test_a_tile_is_fetched_once_for_all_its_boxes(tmp_path: Path) -> None:
    lake, here = Lake(tmp_path / "lake"), street(tmp_path)
    with serving(here) as address, client(address) as api:
        for box in CITY.grid:
            box_of(api, lake, box).plan()
        assert address.requests["tile"] == 2, "one tile, two data sets, three boxes"
    assert len(lake.names("files/tiles/city=town")) == 2
    with serving(here) as address, client(address, tiles_fresh_for_s=0) as api:
        box_of(api, lake).plan()
        assert address.requests["tile"] == 2, "an old tile is asked again"


def test_the_row_of_a_box(tmp_path: Path) -> None:
    here = street(tmp_path)
    with serving(here) as address, client(address) as api:
        plan = box_of(api, Lake(tmp_path / "lake")).plan()
    row = plan.row.iloc[0]
    assert (row["n_images"], row["n_sequences"]) == (20, 1)
    assert row["neighbours"] == ["r00c00", "r00c02"]
    assert row["coverage_hash"] == content_hash(ids_in(here, 20, 39))
    assert box_row([], [], CITY.grid, "r05c05", [], row["fetched_at"])["n_images"].tolist() == [0]


def test_a_box_has_changed_when_its_images_have(tmp_path: Path) -> None:
    lake, here = Lake(tmp_path / "lake"), street(tmp_path)

    def planned(seen: World) -> tuple:
        with serving(seen) as address, client(address, tiles_fresh_for_s=0) as api:
            row = box_of(api, lake).plan().row
        lake.write("bbox_partitions", row, city="town", box=BOX)
        return row["changed_at"].iloc[0], row["fetched_at"].iloc[0]

    first, _ = planned(here)
    second, asked = planned(here)
    assert second == first < asked, "the same images: only asked again"
    third, asked = planned(world(tmp_path, [*here.images, image(99, "new", 150.0, 30.0)]))
    assert third == asked > first


def test_three_sources_find_what_the_tiles_do_not_show(tmp_path: Path) -> None:
    lonely = image(900, "lonely", 150.0, 50.0)
    pair = [image(901, "pair", 120.0, 60.0), image(902, "pair", 190.0, 60.0)]
    here = world(tmp_path, [*street(tmp_path).images, lonely, *pair])
    hidden = frozenset([lonely.id, pair[0].id, pair[1].id, here.images[25].id])
    with serving(here, Behaviour(absent_from_tiles=hidden)) as address, client(address) as api:
        found = discover(api, Lake(tmp_path / "lake"))
    images = found.images.set_index("image_id")
    assert ids_in(here, 20, 39) | {lonely.id, pair[0].id, pair[1].id} <= set(images.index)
    assert not images.loc[here.images[25].id, "in_tiles"] and images.loc[here.images[25].id, "in_closure"]
    assert images.loc[lonely.id, "in_audit"] and images.loc[lonely.id, "in_late_closure"]
    assert not images.loc[lonely.id, "in_closure"], "no tile names its sequence"
    sequences = found.sequences.set_index("sequence_id")
    assert sequences.loc["lonely", "first_seen_in"] == "audit" and sequences.loc["seq-1_x", "first_seen_in"] == "tile"
    assert sequences.loc["seq-1_x", ["n_images", "n_in_tiles", "n_in_box"]].tolist() == [20, 19, 20]
    assert set(sequences["closed"]) == {True}


def test_a_list_names_what_neither_tiles_nor_searches_do(tmp_path: Path) -> None:
    """A search that keeps leaving out one image, which no tile shows, is made good by the list of its sequence."""
    here = street(tmp_path)
    hidden = here.images[25].id
    with serving(here, Behaviour(absent_from_tiles=frozenset([hidden]))) as address, client(address) as api:
        whole = api.ask_search

        async def blind(*arguments, **filters):
            return [row for row in await whole(*arguments, **filters) if row["id"] != hidden]

        api.ask_search = blind  # type: ignore[method-assign]
        found = discover(api, Lake(tmp_path / "lake"))
    row = found.images.set_index("image_id").loc[hidden]
    assert row["in_closure"] and not row["in_tiles"] and not row["in_audit"] and row["sequence_id"] == "seq-1_x"
    assert row["home_box"] is None, "nobody said where it is"


def test_a_long_sequence_does_not_bring_in_the_whole_town(tmp_path: Path) -> None:
    here = street(tmp_path, per_sequence=60)
    with serving(here) as address, client(address) as api:
        found = discover(api, Lake(tmp_path / "lake"))
    assert found.sequences["n_images"].tolist() == [60]
    assert set(found.images["image_id"]) == ids_in(here, 15, 44), "25 m around the box"
    homes = dict(zip(found.images["image_id"], found.images["home_box"], strict=True))
    assert {homes[i] for i in ids_in(here, 15, 19)} == {"r00c00"} and {homes[i] for i in ids_in(here, 20, 39)} == {BOX}


def test_boxes_surveyed_together_are_asked_for_once(tmp_path: Path) -> None:
    lake, here = Lake(tmp_path / "lake"), street(tmp_path)
    outside = image(990, "outside", 310.0, 20.0)
    area = Area.of(CITY)
    with (
        serving(world(tmp_path, [*here.images, outside])) as address,
        client(address) as api,
        Answers(lake, "town") as answers,
    ):
        tiles = Tiles(api, lake, "town", area)
        seen = tiles.coverage(tiles.districts([CITY.bounds]))
        found = survey(api, answers, area, seen, list(CITY.grid))
        boxes = {name: found.of_box(name) for name in CITY.grid}
        assert address.requests["sequence"] == 4 and address.requests["search"] == 2
    for k, name in enumerate(CITY.grid):
        images = boxes[name].images
        assert set(images.loc[images["home_box"] == name, "image_id"]) == ids_in(here, 20 * k, 20 * k + 19)
    assert found.home_of.get(outside.id, OUTSIDE) == OUTSIDE
    last = boxes["r00c02"].images.set_index("image_id")
    assert last.loc[outside.id, "home_box"] == OUTSIDE, "named near the box, and said to be outside the city"
    assert boxes["r00c00"].figures["n_audit_cells"] == 1 and boxes["r00c00"].figures["n_unverifiable"] == 0


def test_an_empty_list_of_a_sequence_is_not_closed(tmp_path: Path) -> None:
    fault = {"sequence": "empty"}
    here = street(tmp_path)
    with serving(here, Behaviour(fault=lambda kind, n: fault.get(kind))) as address, client(address) as api:
        box = box_of(api, Lake(tmp_path / "lake"))
        found = box.discover()
        assert set(found.sequences["closed"]) == {False} and set(found.images["image_id"]) >= ids_in(here, 20, 39)
        proof = box.describe(found.images, found.sequences, found.figures).certificate.iloc[0]
    assert proof["n_unclosed"] == 1 and not proof["complete"] and proof["n_images"] == 20


# -- lists of sequences ---------------------------------------------------------------------------------------


def lists_of(api: Mapillary, lake: Lake, names: list[str], shown: dict[str, list[str]]) -> dict[str, list[str]]:
    with Answers(lake, "town") as answers:
        return api.run(list_sequences(api, answers, names, shown))


def test_a_list_that_lacks_what_tiles_show_is_asked_again_and_united(tmp_path: Path) -> None:
    here, lake = street(tmp_path), Lake(tmp_path / "lake")
    ids = [i.id for i in here.images[:20]]
    short = Behaviour(fault=lambda kind, n: "partial" if n < LISTINGS else None)
    with serving(here, short) as address, client(address) as api:
        found = lists_of(api, lake, ["seq-0_x"], {"seq-0_x": ids})
        assert set(found["seq-0_x"]) == set(ids)
        assert 2 <= address.requests["sequence"] <= LISTINGS
    with serving(here) as address, client(address) as api:
        assert lists_of(api, lake, ["seq-0_x"], {"seq-0_x": ids}) == found
        assert not address.requests, "what was listed is kept"


def test_a_list_may_go_on_lacking_what_was_deleted(tmp_path: Path) -> None:
    here = street(tmp_path)
    shown = [*(i.id for i in here.images[:20]), *(str(k) for k in range(10))]
    with serving(here) as address, client(address) as api:
        found = lists_of(api, Lake(tmp_path / "lake"), ["seq-0_x"], {"seq-0_x": shown})
        assert address.requests["sequence"] == LISTINGS, "and then it is believed"
    assert len(found["seq-0_x"]) == 20


def test_one_missing_image_is_no_reason_to_ask_again(tmp_path: Path) -> None:
    here = street(tmp_path)
    shown = [*(i.id for i in here.images[:20]), "1"]
    with serving(here) as address, client(address) as api:
        lists_of(api, Lake(tmp_path / "lake"), ["seq-0_x"], {"seq-0_x": shown})
        assert address.requests["sequence"] == 1


@pytest.mark.parametrize("fault", ["empty", "service_unavailable", "html"])
def test_a_list_that_cannot_be_had_is_empty_and_the_others_go_on(tmp_path: Path, fault: str) -> None:
    here = street(tmp_path)
    with serving(here) as address, client(address) as api:
        whole = api.ask_image_ids

        async def refuses(sequence: str) -> list[str]:
            if sequence == "seq-1_x":
                if fault == "empty":
                    return []
                raise ApiError(fault, status=500, code=2)
            return await whole(sequence)

        api.ask_image_ids = refuses  # type: ignore[method-assign]
        found = lists_of(api, Lake(tmp_path / "lake"), ["seq-0_x", "seq-1_x", "seq-2_x"], {})
    assert [len(found[f"seq-{k}_x"]) for k in range(3)] == [20, 0, 20]


def test_a_refused_token_ends_the_listing(tmp_path: Path) -> None:
    with (
        serving(street(tmp_path), Behaviour(fault=lambda kind, n: "no_token")) as address,
        client(address) as api,
        pytest.raises(ApiError, match="Check MAPILLARY_TOKEN"),
    ):
        lists_of(api, Lake(tmp_path / "lake"), ["seq-0_x"], {})


def test_an_api_that_is_down_ends_the_listing_before_it_has_asked_everything(tmp_path: Path) -> None:
    down = Behaviour(fault=lambda kind, n: "service_unavailable")
    with serving(street(tmp_path), down) as address, client(address) as api:
        with pytest.raises(ApiError, match="Service temporarily unavailable"):
            lists_of(api, Lake(tmp_path / "lake"), [f"s{k}" for k in range(500)], {})
        assert address.requests["sequence"] < 500


def test_rectangles_touch_at_their_edges() -> None:
    a, b = around(0, 0, 10), around(20, 0, 10)
    assert touch(a, a) and touch(a, around(15, 15, 10)) and not touch(a, around(50, 0, 10))
    assert touch(a, type(b)(a.east, b.south, b.east, b.north))
