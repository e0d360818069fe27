"""What the tiles say of a place: kept in the lake, fetched again when old or spoilt, left out where no city is."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from geo_assets.demo.server import Behaviour, serving
from geo_assets.demo.world import World
from geo_assets.errors import ApiError
from geo_assets.grid import METRES_PER_DEGREE, Bounds
from geo_assets.harvest.area import Area
from geo_assets.harvest.coverage import DISTRICT_ZOOM, PAD_M, Tiles, content_hash, within
from geo_assets.harvest.mapillary import Mapillary
from geo_assets.harvest.tiles import tiles_over
from geo_assets.lake import Lake
from geo_assets.settings import City
from geo_assets_tests.harvest.worlds import LAT, LON, client, image, town, world

WIDE = town(columns=60)  # 6 km: three tiles, each 2.4 km wide
BOUNDS = WIDE.bounds


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An image every 50 m of the six kilometres; each tenth has no computed position."""
    none = {"computed_lon": None, "computed_lat": None}
    images = [image(i, f"s{i // 10}", 2.0 + 50 * i, 20.0, **(none if i % 10 == 0 else {})) for i in range(118)]
    return world(tmp_path_factory.mktemp("wide"), images)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def api(here: World) -> Iterator[tuple[Mapillary, Callable[[], int]]]:
    """A client, and the number of tiles that were asked for."""
    with serving(here) as address, client(address) as opened:
        yield opened, lambda: address.requests["tile"]


def tiles_of(api: Mapillary, lake: Lake, city: City = WIDE) -> Tiles:
    return Tiles(api, lake, "town", Area.of(city))


def refuse(api: Mapillary, name: str, error: ApiError) -> None:
    whole = api.ask_tile

    async def ask(dataset, z: int, x: int, y: int) -> bytes:
        if f"{dataset} {z}/{x}/{y}" == name:
            raise error
        return await whole(dataset, z, x, y)

    api.ask_tile = ask  # type: ignore[method-assign]


def test_both_positions_of_each_image(api, lake: Lake, here: World) -> None:
    seen = tiles_of(api[0], lake).coverage([BOUNDS])
    assert set(seen.images["image_id"]) == set(here.by_id) and seen.images["image_id"].is_unique, "buffers repeat some"
    assert len(seen.tiles) == 3 and not seen.failed and api[1]() == 6
    assert (
        seen.images["in_tiles"].to_numpy(bool).all() and int((~seen.images["in_computed"].to_numpy(bool)).sum()) == 12
    )
    assert set(seen.images["captured_at_ms"]) == {i.captured_at_ms for i in here.images}
    lon, lat = seen.position
    wanted = np.array([[here.by_id[i].lon, here.by_id[i].lat] for i in seen.images["image_id"]])
    assert np.abs(np.stack([lon, lat], 1) - wanted).max() * METRES_PER_DEGREE < 1.0


def test_a_lake_without_tiles_asks_for_them_however_old_they_may_be(api, lake: Lake) -> None:
    tiles = tiles_of(api[0], lake)
    assert len(tiles.coverage([BOUNDS], float("inf")).images) == 118
    assert len(tiles.coverage([BOUNDS], float("inf")).images) == 118
    assert len(tiles_of(api[0], lake).coverage([BOUNDS], 3600).images) == 118
    assert api[1]() == 6, "and once it has them it does not ask again"
    tiles.coverage([BOUNDS], 0)
    assert api[1]() == 12


@pytest.mark.parametrize("status", [404, 500, 302])
def test_a_tile_that_cannot_be_had_is_said_and_the_rest_goes_on(api, lake: Lake, status: int) -> None:
    middle = tiles_over(BOUNDS)[1]
    refuse(api[0], f"original {middle}", ApiError("no", status=status))
    seen = tiles_of(api[0], lake).coverage([BOUNDS])
    assert seen.failed == [f"original {middle}"]
    assert 60 < seen.images["in_tiles"].to_numpy(bool).sum() < 100 and len(seen.images) > 110, (
        "the other set still shows most of it"
    )
    assert seen.failed_over(middle.bounds.padded(-100)) == seen.failed
    assert seen.failed_over(tiles_over(BOUNDS)[0].bounds.padded(-100)) == []
    assert len(lake.names("files/tiles/city=town")) == 5


def test_a_refused_token_is_no_missing_tile(api, lake: Lake) -> None:
    refuse(api[0], f"original {tiles_over(BOUNDS)[0]}", ApiError("no", status=401, code=190))
    with pytest.raises(ApiError):
        tiles_of(api[0], lake).coverage([BOUNDS])


def test_an_old_copy_serves_where_the_tile_cannot_be_had(api, lake: Lake) -> None:
    tiles_of(api[0], lake).coverage([BOUNDS])
    middle = tiles_over(BOUNDS)[1]
    refuse(api[0], f"computed {middle}", ApiError("no", status=404))
    seen = tiles_of(api[0], lake).coverage([BOUNDS], 0)
    assert len(seen.images) == 118 and seen.images["in_computed"].to_numpy(bool).sum() == 106
    assert seen.failed == [f"computed {middle}"], "it is used, and it is said"


@pytest.mark.parametrize("spoilt", [b"spoilt", b"\x1a\xff\xff\xff\x0f"])
@pytest.mark.parametrize("again", [False, True])
def test_a_spoilt_tile_of_the_lake_is_fetched_again(api, lake: Lake, spoilt: bytes, again: bool) -> None:
    tiles = tiles_of(api[0], lake)
    tiles.coverage([BOUNDS])
    for name in lake.names("files/tiles/city=town"):
        lake.put_bytes(f"files/tiles/city=town/{name}", spoilt)
    seen = (tiles_of(api[0], lake) if again else tiles).coverage([BOUNDS])
    assert len(seen.images) == 118 and not seen.failed and api[1]() == 12


def test_what_is_no_tile_is_not_kept(here: World, lake: Lake) -> None:
    with serving(here, Behaviour(fault=lambda kind, n: "html")) as address, client(address) as api:
        seen = tiles_of(api, lake).coverage([BOUNDS])
    assert len(seen.failed) == 6 and seen.images.empty
    assert not lake.names("files/tiles/city=town")


def test_districts_end_where_the_city_does(api, lake: Lake) -> None:
    tiles, edge = tiles_of(api[0], lake), BOUNDS.padded(PAD_M)
    [district] = tiles.districts([BOUNDS])
    assert district == edge, "a city of 6 km lies in one district of 10 km"
    grid = WIDE.grid
    assert tiles.districts([grid.bounds("r00c00"), grid.bounds("r00c40")]) == [district], "each once"
    far = Bounds(LON + 1, LAT, LON + 1.01, LAT + 0.01)
    assert tiles.districts([far]) == [], "nothing is searched outside the city"


def test_a_city_over_several_districts_is_covered_once(api, lake: Lake) -> None:
    big = town(columns=300)
    districts = tiles_of(api[0], lake, big).districts([big.bounds])
    assert len(districts) == len(tiles_over(big.bounds.padded(PAD_M), DISTRICT_ZOOM)) > 2
    area = sum((d.east - d.west) * (d.north - d.south) for d in districts)
    edge = big.bounds.padded(PAD_M)
    assert area == pytest.approx((edge.east - edge.west) * (edge.north - edge.south))


def test_no_tile_is_asked_that_the_polygon_does_not_touch(api, lake: Lake, tmp_path: Path) -> None:
    path, east = tmp_path / "aoi.geojson", BOUNDS.west + 300 / METRES_PER_DEGREE
    ring = [[BOUNDS.west, BOUNDS.south], [east, BOUNDS.south], [east, BOUNDS.north], [BOUNDS.west, BOUNDS.south]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    tiles = tiles_of(api[0], lake, WIDE.model_copy(update={"aoi": path}))
    assert tiles.over(BOUNDS) == tiles_over(BOUNDS)[:1]
    assert tiles.coverage([BOUNDS]).tiles == tiles_over(BOUNDS)[:1] and api[1]() == 2
    assert tiles.over(tiles_over(BOUNDS)[2].bounds) == []


def test_hashes_and_rectangles(api, lake: Lake) -> None:
    assert content_hash(["b", "a"]) == content_hash(["a", "b"]) != content_hash(["a", "b", "c"])
    images = tiles_of(api[0], lake).coverage([BOUNDS]).images
    assert len(within(images, WIDE.grid.bounds("r00c01"))) == 2
