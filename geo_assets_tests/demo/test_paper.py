"""The city on paper: what it promises to harvesters."""

import io
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from geo_assets.demo.paper import HOT_RADIUS_M, PaperWorld, paper_world
from geo_assets.demo.world import DemoImage
from geo_assets.errors import GeoAssetsError
from geo_assets.grid import METRES_PER_DEGREE, Bounds


@pytest.fixture(scope="module")
def city() -> PaperWorld:
    return paper_world(6000, hot_spots=2, stacked=300, long_sequence=1500, seed=1)


def position(image: DemoImage) -> tuple[float, float]:
    if image.computed_lon is None or image.computed_lat is None:
        return image.lon, image.lat
    return image.computed_lon, image.computed_lat


def metres(city: PaperWorld, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    scale = METRES_PER_DEGREE * np.array([np.cos(np.radians(city.bounds.centre[1])), 1])
    return (np.column_stack([lon, lat]) - [city.bounds.west, city.bounds.south]) * scale


def test_the_seed_decides() -> None:
    a, b, c = (paper_world(500, seed=seed) for seed in (1, 1, 2))
    assert a.images == b.images
    assert a.ids.isdisjoint(c.ids)


@pytest.mark.parametrize("n", [1, 2, 9, 100, 2501])
def test_there_are_as_many_images_as_asked_for(n: int) -> None:
    city = paper_world(n)
    assert len(city.images) == len(city.ids) == n
    assert sum(len(images) for images in city.sequences.values()) == n


def test_ids_are_numbers_of_15_to_17_digits(city: PaperWorld) -> None:
    assert {len(i) for i in city.ids} == {15, 16, 17}
    assert all(i.isdigit() and i[0] != "0" for i in city.ids)
    assert all(len(s) == 22 for s in city.sequences)


def test_sequences_are_long_tailed() -> None:
    sizes = np.array([len(images) for images in paper_world(60_000).sequences.values()])
    assert 65 < np.median(sizes) < 100
    assert 0.03 < (sizes < 3).mean() < 0.12
    assert 400 < sizes.max() <= 1000


def test_one_sequence_is_as_long_as_asked_for(city: PaperWorld) -> None:
    assert max(len(images) for images in city.sequences.values()) == 1500


def test_images_of_a_sequence_go_forward_in_time(city: PaperWorld) -> None:
    for images in city.sequences.values():
        times = [image.captured_at_ms for image in images]
        assert all(a < b for a, b in pairwise(times))
        assert len({(i.make, i.creator_id, i.organization_id) for i in images}) == 1


def test_some_images_have_no_computed_pose_and_lack_all_of_it(city: PaperWorld) -> None:
    bare = [image for image in city.images if image.computed_lon is None]
    assert 0.06 < (len(bare) - 300) / 5700 < 0.11, "the stack has none at all"
    for image in city.images:
        parts = (image.computed_lat, image.computed_altitude_m, image.computed_compass_deg, image.computed_rotation)
        assert {part is None for part in parts} == {image.computed_lon is None}


def test_computed_positions_are_a_few_metres_off(city: PaperWorld) -> None:
    posed = [image for image in city.images if image.computed_lon is not None]
    recorded = metres(city, np.array([i.lon for i in posed]), np.array([i.lat for i in posed]))
    computed = metres(city, np.array([i.computed_lon for i in posed]), np.array([i.computed_lat for i in posed]))
    off = np.hypot(*(recorded - computed).T)
    assert 2 < np.median(off) < 6
    assert off.max() < 15


def test_images_stand_exactly_on_edges_and_corners(city: PaperWorld) -> None:
    west, south, east, north = city.bounds.as_list()
    for has_pose in (False, True):
        places = {position(i) for i in city.images if (i.computed_lon is not None) == has_pose}
        assert {(x, y) for x in (west, east) for y in (south, north)} <= places
        assert all(any(x == edge and south < y < north for x, y in places) for edge in (west, east))
        assert all(any(y == edge and west < x < east for x, y in places) for edge in (south, north))


def test_truth_is_a_closed_rectangle_by_computed_position(city: PaperWorld) -> None:
    inside = city.truth_inside()
    west, south, east, north = city.bounds.as_list()
    assert inside == {i.id for i in city.images if west <= position(i)[0] <= east and south <= position(i)[1] <= north}
    assert inside < city.ids, "some stand beyond the edges"
    recorded = {i.id for i in city.images if west <= i.lon <= east and south <= i.lat <= north}
    assert inside - recorded and recorded - inside, "the position that is taken matters"
    corner = Bounds(west, south, west, south)
    assert city.truth_inside(corner) == {i.id for i in city.images if position(i) == (west, south)}
    assert len(city.truth_inside(corner)) > 1
    assert city.truth_inside(city.bounds.padded(100)) == city.ids


def test_the_stack_is_on_one_point(city: PaperWorld) -> None:
    [(place, n), (_, next_n)] = Counter((i.lon, i.lat) for i in city.images).most_common(2)
    assert n == 300 > next_n
    assert all(i.computed_lon is None for i in city.images if (i.lon, i.lat) == place)


def test_hot_spots_hold_a_tenth_each_within_their_radius() -> None:
    plain, hot = (paper_world(5000, hot_spots=k, seed=4) for k in (0, 2))
    for city, crowds in ((plain, 0), (hot, 2)):
        places = metres(city, np.array([i.lon for i in city.images]), np.array([i.lat for i in city.images]))
        cells = Counter(map(tuple, (places // 60).astype(int).tolist()))
        crowded = {cell for cell, n in cells.items() if n > 100}
        assert bool(crowded) == bool(crowds)
    names = [s for s, images in hot.sequences.items() if _spread(hot, images) <= 2 * HOT_RADIUS_M + 1]
    assert sum(len(hot.sequences[s]) for s in names) >= 1000


def _spread(city: PaperWorld, images: tuple[DemoImage, ...]) -> float:
    places = metres(city, np.array([i.lon for i in images]), np.array([i.lat for i in images]))
    return float(np.hypot(*np.ptp(places, axis=0)) / np.sqrt(2))


def test_cameras_are_mixed(city: PaperWorld) -> None:
    assert {i.camera_type for i in city.images} == {"perspective", "fisheye", "spherical"}
    assert all((i.camera_parameters == ()) == i.is_pano for i in city.images)
    assert any(i.organization_id for i in city.images) and not all(i.organization_id for i in city.images)
    assert len({i.creator_username for i in city.images}) > 5
    assert all(0 <= i.compass_deg < 360 for i in city.images)


@pytest.mark.parametrize("jpeg_kb", [0, 30])
def test_photos_are_whole_and_of_the_size_that_is_told(jpeg_kb: float) -> None:
    city = paper_world(400, jpeg_kb=jpeg_kb, seed=2)
    bodies = {image.id: city.jpeg(image.id) for image in city.images}
    assert len(set(bodies.values())) == 400
    for image in city.images[::20]:
        body = bodies[image.id]
        with Image.open(io.BytesIO(body)) as photo:
            photo.load()
            assert photo.size == (image.width, image.height)
            assert photo.info["comment"] == image.id.encode()
        assert body.endswith(b"\xff\xd9")
        assert not jpeg_kb or 0.8 * jpeg_kb * 1000 < len(body) < 1.2 * jpeg_kb * 1000
    again = paper_world(400, jpeg_kb=jpeg_kb, seed=2)
    assert all(again.jpeg(image_id) == body for image_id, body in bodies.items())


def test_an_unknown_photo(city: PaperWorld) -> None:
    with pytest.raises(GeoAssetsError, match="no image '5'"):
        city.jpeg("5")


def test_parts_that_exceed_the_whole_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing of 100 images"):
        paper_world(100, stacked=90)


def test_a_changed_world_keeps_its_area(city: PaperWorld) -> None:
    """A test of re-harvests adds and removes images."""
    fewer = replace(city, images=city.images[100:])
    assert fewer.bounds == city.bounds
    assert len(fewer.ids) == 5900
