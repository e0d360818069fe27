from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geo_assets.demo import grown
from geo_assets.demo.grown import PER_DRIVE, GrownWorld, describe, fill_lake, grown_city
from geo_assets.demo.place import demo_frame
from geo_assets.demo.scene import Camera
from geo_assets.demo.street import BLOCK_M, street
from geo_assets.demo.world import SEED
from geo_assets.lake import Lake


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> GrownWorld:
    """Three photos of the first box, one a drive."""
    folder = tmp_path_factory.mktemp("grown")
    described = describe(1)[:: PER_DRIVE + 1]
    grown._render_missing(described, folder, lambda _: None)
    truth = {image.id: camera for image, camera, _ in described}
    return GrownWorld(tuple(image for image, _, _ in described), truth, folder, grown_city(1))


def world_of(n_boxes: int) -> GrownWorld:
    described = describe(n_boxes)
    truth = {image.id: camera for image, camera, _ in described}
    return GrownWorld(tuple(image for image, _, _ in described), truth, Path(), grown_city(n_boxes))


def test_the_world_grows_without_a_change() -> None:
    one, two = describe(1), describe(2)
    assert [image for image, _, _ in one] == [image for image, _, _ in two[: len(one)]]
    assert all((a.centre == b.centre).all() for (_, a, _), (_, b, _) in zip(one, two[: len(one)], strict=True))
    assert len({image.id for image, _, _ in describe(8)}) == 8 * 3 * PER_DRIVE == 696


def test_boxes_are_alike() -> None:
    world = world_of(8)
    true = [int(world.truth[i].centre[0] // BLOCK_M) for i in world.by_id]
    assert np.bincount(true, minlength=8).min() >= 86  # the jitter of the poses may carry one over a border
    homes = [world.homes[i] for i in world.by_id]
    assert set(homes) == set(world.city.grid) and len(set(homes)) == 8
    assert min(homes.count(box) for box in world.city.grid) >= 84


def test_drives_go_on_across_the_borders() -> None:
    world = world_of(3)
    for images in world.sequences.values():
        along = np.array([world.truth[image.id].centre[0] for image in images])
        assert len(images) == 3 * PER_DRIVE and np.diff(along).min() > 2 and np.diff(along).max() < 6
        assert np.diff([image.captured_at_ms for image in images]).min() > 500


def test_the_truth_lies_where_the_city_does() -> None:
    """Metres of the demo's frame and the degrees of the grid mean the same boxes, to a thousandth."""
    world = world_of(8)
    east = demo_frame().enu(world.city.bounds.east, demo_frame().lat, demo_frame().alt_m)[0]
    assert east == pytest.approx(8 * BLOCK_M, rel=3e-3)
    lon, lat, _ = demo_frame().geodetic(np.array([[1.0, 0.0, 0.0], [8 * BLOCK_M - 5, 0.0, 0.0]]))
    assert world.city.grid.boxes_at(lon, lat).tolist() == ["r00c00", "r00c07"]


def test_a_border_looks_the_same_from_both_sides() -> None:
    """What one block draws of its neighbour is what the neighbour draws of itself."""
    ahead = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    camera = Camera("perspective", 120, 90, 100.0, np.array([BLOCK_M / 2 - 40, -1.5, 2.0]), ahead)
    here = street(SEED, 0).render(camera, samples=1)
    there = street(SEED, 1).render(replace(camera, centre=camera.centre - [BLOCK_M, 0, 0]), samples=1)
    same = np.abs(here - there).max(-1) < 0.02
    near = np.hypot(*np.meshgrid(np.arange(120) - 59.5, np.arange(90) - 44.5)) > 12  # the vanishing point is far away
    assert same[near].mean() > 0.98
    elsewhere = street(SEED, 1).render(camera, samples=1)
    assert (np.abs(here - elsewhere).max(-1) < 0.02).mean() < 0.5  # no block is a copy of another


def test_photos_repeat_and_lost_ones_come_back(small: GrownWorld) -> None:
    before = {image.id: small.jpeg(image.id) for image in small.images}
    lost = small.images[1].id
    (small.folder / f"{lost}.jpg").unlink()
    grown._render_missing(describe(1)[:: PER_DRIVE + 1], small.folder, lambda _: None)
    assert {image.id: small.jpeg(image.id) for image in small.images} == before
    assert len(set(before.values())) == len(before)


def test_the_lake_is_as_the_harvest_leaves_it(small: GrownWorld, tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    fill_lake(small, lake, "grown", small.homes)
    where = {"city": "grown", "box": "r00c00"}
    metadata, files = (lake.read(table, None, **where) for table in ("image_metadata", "image_files"))
    assert metadata["image_id"].tolist() == files["image_id"].tolist() == sorted(small.by_id)
    assert set(files["status"]) == {"done"} and metadata["tombstoned_at"].isna().to_numpy().all()
    for row in metadata.to_dict("records"):
        image = small.by_id[row["image_id"]]
        assert (row["lon"], row["lat"], row["sequence_id"]) == (image.lon, image.lat, image.sequence_id)
        assert list(row["camera_parameters"]) == list(image.camera_parameters)
        assert (row["computed_rotation"] is None) == (image.computed_rotation is None)
    key = str(files["path"].iloc[0])
    assert lake.get_bytes(key)[:2] == b"\xff\xd8" and lake.size(key) == files["bytes"].iloc[0]
    again = Lake(tmp_path / "again")
    fill_lake(small, again, "grown", small.homes)
    assert again.read("image_files", None, **where).equals(files)
