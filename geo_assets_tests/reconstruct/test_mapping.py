from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geo_assets.lake import Lake
from geo_assets.reconstruct.features import DATABASE
from geo_assets_tests.reconstruct.scenes import Scene

pycolmap = pytest.importorskip("pycolmap")

from geo_assets.reconstruct import mapping  # noqa: E402  it needs COLMAP
from geo_assets.reconstruct.mapping import Task, best_model, follows_positions, held_together, seeds  # noqa: E402

N = 14


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A short street to map."""
    lake, scene = Lake(tmp_path_factory.mktemp("street")), Scene(N)
    scene.write(lake)
    images = lake.read("gps_db", None, **scene.where).to_dict("records")
    pairs = lake.read("match_pairs", None, **scene.where)
    rows = zip(pairs.image_id_a, pairs.image_id_b, pairs.n_inliers, pairs.geometry, strict=True)
    return Task(
        database=str(Path(lake.root) / lake.key("matches", DATABASE, **scene.where)),
        scratch=tmp_path_factory.mktemp("scratch"),
        names=[f"{image['image_id']}.jpg" for image in images],
        images={f"{image['image_id']}.jpg": image for image in images},
        pairs=[(f"{a}.jpg", f"{b}.jpg", int(n), str(g)) for a, b, n, g in rows],
        seed=0,
        min_images=5,
    )


@pytest.fixture(scope="module")
def model(task: Task) -> Any:
    """The whole street as the global mapper sees it."""
    return mapping.attempts(level=False)["global"](task)[0]


def fresh(model: Any) -> Any:
    return pycolmap.Reconstruction(model)


def test_seeds_are_some_metres_apart_and_look_one_way(task: Task):
    found = seeds(task)
    assert 1 <= len(found) <= mapping.N_SEEDS and len({name for pair in found for name in pair}) == 2 * len(found)
    for a, b in found:
        apart = np.hypot(*(task.images[a][k] - task.images[b][k] for k in ("east_m", "north_m")))
        assert mapping.SEED_BASELINE_M[0] <= apart <= mapping.SEED_BASELINE_M[1]
    turned = {name: row | {"heading_deg": 90.0 * k} for k, (name, row) in enumerate(task.images.items())}
    assert all(abs(task.names.index(a) - task.names.index(b)) % 4 == 0 for a, b in seeds(replace(task, images=turned)))
    unknown = {name: row | {"heading_deg": None} for name, row in task.images.items()}
    assert seeds(replace(task, images=unknown))
    many = [(a, b, 2000, g) for a, b, _, g in task.pairs]  # a dashboard that all photos show
    assert seeds(replace(task, pairs=many)) == []


def test_the_incremental_mapper_begins_where_positions_say(task: Task):
    models = mapping.attempts(level=False)["incremental"](task)
    assert models and models[0].num_reg_images() == N


def test_the_best_model_is_that_which_follows_its_positions(task: Task, model: Any):
    # A mapper that registers everything in a wrong shape loses to one that registers less in the right one.
    bent = fresh(model)
    few = fresh(model)
    for image_id in sorted(few.reg_image_ids())[7:]:
        few.deregister_frame(few.image(image_id).frame_id)
    places = {
        name: row | {"north_m": row["north_m"] + 80 * (1 + k % 3)} for k, (name, row) in enumerate(task.images.items())
    }
    assert follows_positions(model, task.images) and not follows_positions(bent, places)
    spread = {name: (places if k >= 7 else task.images)[name] for k, name in enumerate(task.names)}
    tried = {"bent": lambda _: [bent], "few": lambda _: [few]}
    found = best_model(replace(task, images=spread), tried)
    assert found is not None and found[0] == "few"


def test_a_mapper_that_holds_most_ends_the_search(task: Task, model: Any):
    asked: list[str] = []

    def attempt(name: str, models: list[Any]) -> Any:
        return lambda _: (asked.append(name), models)[1]

    tried = {"none": attempt("none", []), "all": attempt("all", [fresh(model)]), "more": attempt("more", [])}
    found = best_model(task, tried)
    assert found is not None and found[0] == "all" and asked == ["none", "all"]
    assert best_model(task, {"none": attempt("none", [])}) is None


def test_leftovers_are_registered_and_the_others_stay(task: Task, model: Any):
    part = fresh(model)
    for image_id in sorted(part.reg_image_ids())[-3:]:
        part.deregister_frame(part.image(image_id).frame_id)
    before = {image.name: image.projection_center() for image in mapping.registered_images(part)}
    grown = mapping.with_leftovers(task, fresh(part))
    assert grown.num_reg_images() == N
    after = {image.name: image.projection_center() for image in mapping.registered_images(grown)}
    assert max(np.linalg.norm(before[name] - after[name]) for name in before) < 1e-9


def test_images_without_a_good_pair_cost_no_second_try(task: Task, model: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mapping.pycolmap, "incremental_mapping", lambda *_, **__: pytest.fail("it was tried"))
    part = fresh(model)
    last = sorted(part.reg_image_ids())[-1]
    part.deregister_frame(part.image(last).frame_id)
    weak = [(a, b, 15, g) for a, b, _, g in task.pairs]
    assert mapping.with_leftovers(replace(task, pairs=weak), part) is part
    assert mapping.with_leftovers(task, model) is model


def test_groups_that_share_a_handful_of_points_do_not_hold_together():
    pycolmap.set_random_seed(2)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 12, 300
    model = pycolmap.synthesize_dataset(options)
    first, last = set(sorted(model.reg_image_ids())[:8]), set(sorted(model.reg_image_ids())[8:])
    for number, point in enumerate(sorted(model.points3D)):
        blind = set() if number < 5 else (last if number % 3 else first)
        track = [(element.image_id, element.point2D_idx) for element in model.points3D[point].track.elements]
        for image_id, index in track:
            if image_id in blind:
                model.delete_observation(image_id, index)
    assert set(held_together(model).reg_image_ids()) == first


def test_gravity_comes_first_where_it_is_known():
    assert list(mapping.attempts(level=True)) == ["global_gravity", "global", "incremental"]
    assert list(mapping.attempts(level=False)) == ["global", "incremental"]


def test_a_block_has_a_database_of_its_own(task: Task, tmp_path: Path):
    names = task.names[:8]
    images = [task.images[name] | {"name": name} for name in names]
    pairs = [pair for pair in task.pairs if pair[0] in names and pair[1] in names]
    said = mapping.map_block(task.database, str(tmp_path / "out"), images, pairs, 5, 0)
    assert [model["names"] for model in said["models"]] == [names]
    assert (tmp_path / "out" / "0" / "images.bin").exists()
    with pycolmap.Database.open(str(tmp_path / "mapping" / "block.db")) as db:
        assert sorted(image.name for image in db.read_all_images()) == names
        assert db.num_verified_image_pairs() == len(pairs) and db.num_matched_image_pairs() == 0
        assert len(db.read_all_cameras()) == 1 and db.num_frames() == 8
