"""A box goes on from its earlier splat where its model was brought up to date, and only there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.splats import box as box_module
from geo_assets.splats.box import _went_on, splat_of_box
from geo_assets.splats.cameras import Scene
from geo_assets.splats.cpu import training
from geo_assets.splats.cpu.checkpoint import State
from geo_assets.splats.cpu.warm import covered, shown_by_none, shown_px, start_from
from geo_assets.splats.dataset import read_scene
from geo_assets.splats.earlier import earlier_splat, record, split, version_in
from geo_assets.splats.engine import ON_CPU, Earlier, SplatRequest, SplatResult
from geo_assets.splats.gaussians import Gaussians, joined
from geo_assets.splats.georeference import splat_reference
from geo_assets.splats.ply import write_ply
from geo_assets.splats.render import render
from geo_assets_tests.splats.scenes import blobs, ring, scene_of, write_colmap
from geo_assets_tests.splats.test_box import BOX, CITY, OPTIONS, put_model

WHERE = {"city": CITY, "box": BOX}
KEY, FRAME = f"files/splats/city={CITY}/box={BOX}", LocalFrame(11.575, 48.137, 565)
WHOLE = scene_of(blobs(), ring(24, turn=1.6), n_points=150)
OLD, NEW = {f"{i:03d}.jpg" for i in range(24) if i % 10 != 5}, {"005.jpg", "015.jpg"}


def quiet(line: str) -> None:
    pass


def part(names: set[str]) -> Scene:
    return dataclasses.replace(WHOLE, views=[view for view in WHOLE.views if view.name in names])


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def dataset_of(folder: Path, scene: Scene) -> Path:
    write_colmap(scene, folder / "sparse" / "0", folder / "images")
    return folder


def publish(lake: Lake, folder: Path, scene: Scene, splat: Gaussians | None = None) -> str:
    """A splat of a scene as a training leaves it behind; its version."""
    (out := folder / "out").mkdir(parents=True)
    write_ply(out / "splat.ply", splat or blobs())
    (out / "splat.geo.json").write_text(json.dumps(splat_reference(FRAME)))
    (out / "photos.json").write_text(record(scene, dataset_of(folder / "dataset", scene), 5))
    lake.publish(out, KEY)
    return version_in(out)


def asked(lake: Lake, dataset: Path, route: str | None = "updated", **other: object) -> tuple[Earlier | None, str]:
    options = OPTIONS.model_copy(update={"holdout_every": 5} | other)
    return earlier_splat(lake, KEY, dataset, FRAME, route, options, options.max_splats or 0)


def test_an_updated_box_goes_on_from_its_splat(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        box_module,
        "_scratch",
        lambda name: (tmp_path / "scratch" / name).mkdir(parents=True) or tmp_path / "scratch" / name,
    )
    options, rows, said, parts = OPTIONS.model_copy(update={"holdout_every": 5}), [], [], []
    for scene, route in ((part(OLD), "rebuilt"), (WHOLE, "updated")):
        put_model(lake, tmp_path / route, scene, route=route)
        made = splat_of_box(lake, CITY, BOX, options, said.append)
        lake.write("splat_ply", made.splat, city=CITY, box=BOX)
        rows.append(lake.read("splat_ply", city=CITY, box=BOX).iloc[0])
        parts.append(parts_of(lake))
    first, row = rows
    assert (first.start, pd.isna(first.started_from), first.steps) == ("points", True, 60)
    assert (row.start, row.started_from, row.steps) == ("earlier", first.version, 18)
    assert len(row.version) == 16 and row.version != first.version
    assert any("2 photos are new, 0 gone" in line for line in said)
    assert parts[0] == {name: part for name, part in parts[1].items() if name in OLD}, "a photo keeps its part"
    held_out = {name.removesuffix(".jpg") for name, part in parts[1].items() if part == "holdout"}
    assert set(made.views.query("split == 'holdout'").image_id) == held_out
    assert row.psnr_db > first.psnr_db


def parts_of(lake: Lake) -> dict[str, str]:
    said = json.loads(lake.get_bytes(f"{KEY}/photos.json"))["photos"]
    return {name: known["split"] for name, known in said.items()}


def test_held_out_photos_stay_held_out(lake: Lake, tmp_path: Path) -> None:
    version = publish(lake, tmp_path / "before", part(OLD))
    without = {*OLD, *NEW} - {"000.jpg", "001.jpg"}  # one that judged and one that was learnt
    dataset = dataset_of(tmp_path / "now", part(without))
    earlier, _ = asked(lake, dataset)
    assert earlier is not None
    assert (earlier.version, earlier.new, len(earlier.gone)) == (version, NEW, 1)
    assert np.allclose(earlier.gone[0].centre, WHOLE.views[1].camera.centre)
    before, scene = parts_of(lake), read_scene(dataset, photos=False)
    held_out = {view.name for view in scene.held_out(5)}
    assert held_out & OLD == {name for name, part in before.items() if part == "holdout"} - {"000.jpg"}
    assert {view.name for view in scene.trained(5)} == without - held_out
    assert held_out != {view.name for view in scene.views[::5]}, "each fifth by name would be others"


def test_a_photo_of_other_pixels_is_new_and_keeps_its_part(lake: Lake, tmp_path: Path) -> None:
    publish(lake, tmp_path / "before", part(OLD))
    views = [
        dataclasses.replace(v, photo=255 - v.photo) if v.name in ("000.jpg", "001.jpg") else v for v in WHOLE.views
    ]
    dataset = dataset_of(tmp_path / "now", dataclasses.replace(WHOLE, views=views))
    earlier, _ = asked(lake, dataset)
    assert earlier is not None
    assert earlier.new == {*NEW, "000.jpg", "001.jpg"}
    held_out = {view.name for view in read_scene(dataset, photos=False).held_out(5)}
    assert "000.jpg" in held_out and "001.jpg" not in held_out


def moved(scene: Scene) -> Scene:
    camera = scene.views[3].camera
    shifted = dataclasses.replace(camera, translation=camera.translation + np.array([0.05, 0, 0]))
    return dataclasses.replace(
        scene, views=[*scene.views[:3], dataclasses.replace(scene.views[3], camera=shifted), *scene.views[4:]]
    )


@pytest.mark.parametrize(
    ("scene", "asks", "why"),
    [
        (WHOLE, {"route": "rebuilt"}, "the sparse model was built anew"),
        (WHOLE, {"route": None}, "the sparse model was built anew"),
        (WHOLE, {"warm_start": False}, "splats.warm_start is false"),
        (WHOLE, {"holdout_every": 4}, "splats.holdout_every was 5"),
        (WHOLE, {"max_splats": 60}, "it has 150 Gaussians, and 60 are wanted at most"),
        (part(OLD), {"route": "unchanged"}, "no photo came, went or changed since"),
        (moved(WHOLE), {}, "a camera that was there before moved by 0.05 m"),
        (part({*sorted(OLD)[1:3], *NEW, "025.jpg"}), {}, "none of the photos that it was judged by is left"),
    ],
)
def test_what_starts_from_the_points(lake: Lake, tmp_path: Path, scene: Scene, asks: dict, why: str) -> None:
    publish(lake, tmp_path / "before", part(OLD))
    dataset = dataset_of(tmp_path / "now", scene)
    assert asked(lake, dataset, **asks) == (None, ANY(why))
    assert read_scene(dataset, photos=False).judging is None, "each fifth by name, as ever"


class ANY:
    """Equal to a text that begins with this one."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return str(other).startswith(self.text)


@pytest.mark.parametrize("content", [b"{", b'{"photos": {"a.jpg": {"split": "train", "camera": [1], "digest": ""}}}'])
def test_a_splat_that_cannot_be_read_is_left_aside(lake: Lake, tmp_path: Path, content: bytes) -> None:
    dataset = dataset_of(tmp_path / "now", WHOLE)
    assert asked(lake, dataset)[1].startswith("no splat that says what it was made of")
    publish(lake, tmp_path / "before", part(OLD))
    lake.put_bytes(f"{KEY}/photos.json", content)
    assert asked(lake, dataset)[1].startswith("the earlier one cannot be read")
    assert asked(lake, dataset)[0] is None


def request_for(folder: Path, **other: object) -> SplatRequest:
    earlier = Earlier(blobs(), Gaussians.none(), "v", frozenset(NEW))
    asks = SplatRequest(folder, folder, steps=20, max_splats=400, holdout_every=5, threads=1, earlier=earlier)
    return dataclasses.replace(asks, **other)  # type: ignore[arg-type]


def test_going_on_repeats_itself_even_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = training.train(WHOLE, request_for(tmp_path), quiet)
    assert np.array_equal(training.train(WHOLE, request_for(tmp_path), quiet).gaussians.rows, once.gaussians.rows)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 4)
    step, resumable = training._Trainer._step, request_for(tmp_path, scratch_dir=tmp_path)

    def killed(self: training._Trainer, state: State, progress: float) -> float:
        if state.step == 10:
            raise KeyboardInterrupt
        return step(self, state, progress)

    monkeypatch.setattr(training._Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(WHOLE, resumable, quiet)
    monkeypatch.setattr(training._Trainer, "_step", step)
    left = (tmp_path / "checkpoint.npz").read_bytes()
    resumed = training.train(WHOLE, resumable, quiet)
    assert resumed.resumed_at == 8
    assert np.array_equal(resumed.gaussians.rows, once.gaussians.rows)
    (tmp_path / "checkpoint.npz").write_bytes(left)
    for earlier in (None, Earlier(blobs(), Gaussians.none(), "w", frozenset(NEW))):
        assert training.train(WHOLE, dataclasses.replace(resumable, steps=20, earlier=earlier), quiet).resumed_at == 0


def test_going_on_begins_where_the_earlier_splat_stood(tmp_path: Path) -> None:
    off = {}
    for earlier in (request_for(tmp_path).earlier, None):
        done = training.train(WHOLE, request_for(tmp_path, steps=2, earlier=earlier), quiet)
        image = render(joined([done.gaussians, done.sky], 1), WHOLE.views[0].camera)
        off[earlier is None] = float(np.abs(image - WHOLE.views[0].photo / 255).mean())
    assert off[False] < 0.3 * off[True]


class _Engine:
    """An engine that makes of an earlier splat what it is told."""

    name, effort, starts_from_earlier = "fake", ON_CPU, True

    def __init__(self, of_earlier: Gaussians) -> None:
        self.of_earlier, self.steps = of_earlier, []

    def available(self) -> str | None:
        return None

    def train(self, request: SplatRequest, log: Callable[[str], None]) -> SplatResult:
        self.steps.append(request.steps)
        write_ply(request.out_dir / "made.ply", self.of_earlier)
        return SplatResult(request.out_dir / "made.ply", self.name, "1", 0.1, request.steps, 150)


def test_what_became_worse_is_not_kept_and_not_tried_twice(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "now", WHOLE)
    earlier = Earlier(blobs(), Gaussians.none(), "v", frozenset(NEW))
    (scratch := tmp_path / "scratch").mkdir()
    request = request_for(dataset, out_dir=tmp_path, scratch_dir=scratch, steps=60, earlier=None)
    said: list[str] = []

    def went_on(engine: _Engine, earlier: Earlier | None = earlier) -> bool:
        return _went_on(read_scene(dataset, photos=False), request, OPTIONS, engine, earlier, said.append) is not None

    good, bad = _Engine(blobs()), _Engine(blobs(seed=5))
    assert went_on(good)
    assert good.steps == [18]
    assert not went_on(good, None)
    assert not said[:-1] and "held out before" in said[0]
    assert not went_on(bad)
    assert "is worse by more than 0.5 dB: training starts from the points" in said[-1]
    assert not went_on(bad)
    assert bad.steps == [18], "a run that is started again knows"
    assert went_on(good, dataclasses.replace(earlier, version="w"))


def test_an_engine_that_cannot_go_on_says_so(lake: Lake, tmp_path: Path) -> None:
    publish(lake, tmp_path / "before", part(OLD))
    engine, said = _Engine(blobs()), []
    engine.starts_from_earlier = False  # type: ignore[misc]
    model = pd.Series({"route": "updated"})
    dataset = dataset_of(tmp_path / "now", WHOLE)
    assert box_module._earlier(lake, WHERE, dataset, FRAME, model, OPTIONS, engine, said.append) is None
    assert said == ["Training starts from the points: engine fake cannot start from an earlier splat here."]


def test_new_photos_are_drawn_by_their_id_alone() -> None:
    names = [f"{i}.jpg" for i in range(4000)]
    held_out = split({}, names, 8)
    assert 420 < len(held_out) < 580
    assert split({}, names[::3], 8) == held_out & set(names[::3])


def test_floaters_that_only_deleted_photos_showed_go() -> None:
    views, gone = WHOLE.views[:6], [view.camera for view in WHOLE.views[18:]]
    camera = gone[3]
    floater = Gaussians.of(
        [camera.centre + 0.4 * camera.forward], np.log([[0.05] * 3]), [[1, 0, 0, 0]], [2], [[[1, 0, 0]]]
    )
    splat = joined([floater.to_degree(0), blobs()], 0)
    dropped = shown_by_none(splat, views, gone)
    assert dropped[0]
    assert shown_px(splat, [view.camera for view in views])[dropped].max() < 1, "what other photos show stays"
    assert dropped.sum() < 40
    assert not shown_by_none(splat, views, ()).any()
    earlier = Earlier(splat, Gaussians.none(), "v", gone=tuple(gone))
    start = start_from(earlier, WHOLE, views, max_splats=400, degree=1, seed=0)
    assert len(start.place) == len(splat) - dropped.sum()
    assert len(start.sky) > 0, "a sky of its own where the earlier splat had none"


def test_what_a_picture_is_made_of_adds_up() -> None:
    wall = Gaussians.of([[0, 0, 0]], np.log([[9, 9, 9]]), [[1, 0, 0, 0]], [9.0], [[[0, 0, 0]]])
    camera = ring(1)[0]
    assert shown_px(wall, [camera, camera])[0] == pytest.approx(2 * 32 * 24, rel=0.05)


def test_new_areas_get_gaussians_and_the_cap_holds() -> None:
    left, right = (blobs().moved(np.eye(3), [x, 0, 0], 0.5) for x in (-1, 1))
    scene = scene_of(joined([left, right], 0), ring(24, turn=1.6), n_points=300)
    earlier, views = Earlier(left, Gaussians.none(), "v", new=frozenset(NEW)), scene.views
    start = start_from(earlier, scene, views, max_splats=400, degree=1, seed=0)
    n_fresh = len(start.place) - len(left)
    assert 50 < n_fresh <= 100
    assert (start.place.means[:n_fresh, 0] > -0.2).all(), "the left ball is covered"
    assert np.array_equal(start.place.rows[n_fresh:, :11], earlier.place.rows[:, :11]), "the others are as they were"
    again = start_from(earlier, scene, views, max_splats=400, degree=1, seed=0)
    assert np.array_equal(again.place.rows, start.place.rows)
    known = start_from(dataclasses.replace(earlier, new=frozenset()), scene, views, max_splats=400, degree=1, seed=0)
    assert len(known.place) == len(left), "points of known photos that training gave up stay away"
    tight = start_from(earlier, scene, views, max_splats=100, degree=1, seed=0)
    assert len(tight.place) + len(tight.sky) <= 90


def test_a_flat_gaussian_covers_what_lies_beside_it_and_not_what_lies_before_it() -> None:
    wall = Gaussians.of([[0, 0, 0]], np.log([[2.0, 2.0, 0.01]]), [[1, 0, 0, 0]], [2.0], [[[0, 0, 0]]])
    places, sizes = np.array([[3.0, 3, 0], [0, 0, 0.5], [0, 0, 0.1]]), np.full(3, 0.05)
    assert covered(places, sizes, wall).tolist() == [True, False, True]
    faint = Gaussians.of(wall.means, wall.log_scales, wall.quats, [-4.0], wall.sh)
    assert not covered(places, sizes, faint).any()
