"""Bad input and bad luck: each ends in a state that says what was the matter, and none in a crash.

One lake serves all: what a photo looks like decides its features, so each test finds most of them there already.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from geo_assets.demo.place import demo_city, demo_frame
from geo_assets.demo.world import DemoImage, World, demo_world
from geo_assets.errors import GeoAssetsError, ReconstructionError
from geo_assets.grid import Bounds, Grid
from geo_assets.lake import Lake
from geo_assets.reconstruct import stage
from geo_assets.reconstruct.features import Database, gps_database
from geo_assets.reconstruct.frames import Similarity, best_similarity
from geo_assets.reconstruct.matching import Matched, match_box
from geo_assets.reconstruct.models import Models, map_box
from geo_assets.reporting import failures
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.lakes import metadata_row, write_box
from geo_assets_tests.reconstruct.photos import with_banner

BOX = "r00c00"
OPTIONS = Reconstruct(threads=1)
N = 10

Rows = list[dict[str, Any]]
Photos = dict[str, bytes]


class Town:
    """A lake, and what makes the three tables of a box in it; each test has a city of its own."""

    def __init__(self, root: Path, world: World) -> None:
        self.lake, self.world, self.n = Lake(root), world, 0
        west, south = demo_city().bbox[:2]
        self.grid = Grid.over(Bounds(west, south, west + 1e-4, south + 1e-4).padded(200), 500.0)
        self.city = ""

    def fill(self, rows: Rows, photos: Photos) -> None:
        """Harvest a new city with one box."""
        self.n += 1
        self.city = f"city{self.n}"
        write_box(self.lake, self.city, BOX, rows, photos)

    def gps_db(self, options: Reconstruct = OPTIONS) -> Database:
        made = gps_database(self.lake, self.city, BOX, self.grid, options)
        self.lake.write("gps_db", made.frame, note=made.note, city=self.city, box=BOX)
        return made

    def match_pairs(self, options: Reconstruct = OPTIONS) -> Matched:
        matched = match_box(self.lake, self.city, BOX, options)
        self.lake.write("match_pairs", matched.frame, city=self.city, box=BOX)
        return matched

    def sparse_models(self, options: Reconstruct = OPTIONS) -> Models:
        made = map_box(self.lake, self.city, BOX, options)
        self.lake.write("model_cameras", made.cameras, note=made.note, city=self.city, box=BOX)
        self.lake.write("sparse_models", made.models, note=made.note, city=self.city, box=BOX)
        return made

    def all_of(self, options: Reconstruct = OPTIONS) -> Models:
        self.gps_db(options)
        self.match_pairs(options)
        return self.sparse_models(options)

    def file(self, kind: str, name: str) -> Path:
        return Path(self.lake.root) / self.lake.key(kind, name, city=self.city, box=BOX)

    def to_truth(self, cameras: pd.DataFrame) -> tuple[Similarity, float]:
        """The similarity that brings cameras to where they truly are, and the median distance that it leaves [m]."""
        found = demo_frame().enu(cameras["lon"], cameras["lat"], cameras["alt_m"])
        true = np.array([self.world.truth[str(i)].centre for i in cameras["image_id"]])
        best = best_similarity(found, true)
        return best, float(np.median(np.linalg.norm(best(found) - true, axis=1)))


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    pytest.importorskip("pycolmap")
    return Town(tmp_path_factory.mktemp("failures"), demo_world())


def row_of(image: DemoImage, **known: Any) -> dict[str, Any]:
    """The row of ``image_metadata`` of an image of the demo world."""
    found = metadata_row(
        image.id,
        sequence_id=image.sequence_id,
        lon=image.lon,
        lat=image.lat,
        altitude_m=image.altitude_m,
        computed_lon=image.computed_lon,
        computed_lat=image.computed_lat,
        computed_altitude_m=image.computed_altitude_m,
        compass_deg=image.compass_deg,
        computed_compass_deg=image.computed_compass_deg,
        captured_at=pd.Timestamp(image.captured_at_ms, unit="ms", tz="UTC"),
        captured_at_ms=image.captured_at_ms,
        camera_type=image.camera_type,
        camera_parameters=list(image.camera_parameters) or None,
        is_pano=image.is_pano,
        width=image.width,
        height=image.height,
        exif_orientation=1,
        make=image.make,
        model=image.model,
        source_mask=1,
    )
    return found | known


def drive(town: Town, n: int = N) -> list[DemoImage]:
    """The first photos of a drive down one street, 3.4 m apart."""
    return next(iter(town.world.sequences.values()))[:n]  # type: ignore[return-value]


def photos_of(town: Town, images: Iterable[DemoImage]) -> Photos:
    return {image.id: town.world.jpeg(image.id) for image in images}


def status(made: Models) -> list[str]:
    return made.models["status"].astype(str).tolist()


def reasons_are_said(made: Models) -> bool:
    """Whether each component that is not placed says what it lacks."""
    lacking = made.models.loc[made.models["status"] != "placed"]
    return bool(lacking["reason"].map(lambda reason: isinstance(reason, str) and len(reason) > 0).all())


def is_one_sentence(error: BaseException) -> bool:
    """Whether a person can read it: no traceback, no bare number of an error, an end."""
    return isinstance(error, GeoAssetsError) and "Traceback" not in str(error) and str(error)[:1].isupper()


# -- what the harvest may bring -------------------------------------------------------------------------------


def test_a_box_without_images_stays_empty(town: Town) -> None:
    town.fill([], {})
    made = town.all_of()
    assert made.models.empty and made.cameras.empty


def test_one_image_is_too_few(town: Town) -> None:
    image = drive(town)[0]
    town.fill([row_of(image)], photos_of(town, [image]))
    made = town.all_of()
    assert status(made) == ["too_few"] and made.cameras.empty


def test_images_without_positions_give_no_gps(town: Town) -> None:
    images = drive(town)
    nowhere = dict.fromkeys(("lon", "lat", "altitude_m", "computed_lon", "computed_lat", "computed_altitude_m"))
    town.fill([row_of(image, **nowhere) for image in images], photos_of(town, images))
    made = town.all_of()
    assert status(made) == ["no_gps"] and made.cameras.empty
    assert int(made.models["n_registered"].iloc[0]) == 0


def test_unknown_altitudes_are_held_loosely(town: Town) -> None:
    images = drive(town)
    rows = [row_of(image, altitude_m=float("nan"), computed_altitude_m=None) for image in images]
    town.fill(rows, photos_of(town, images))
    made = town.all_of()
    priors = town.lake.read("gps_db", None, city=town.city, box=BOX)
    assert np.isfinite(priors[["east_m", "north_m", "up_m"]].to_numpy(float)).all()
    assert priors["sigma_z_m"].to_numpy(float).min() >= 3 * OPTIONS.altitude_sigma_m
    assert status(made) == ["placed"] and len(made.cameras) == N
    assert np.isfinite(made.cameras[["lon", "lat", "alt_m"]].to_numpy(float)).all()
    assert town.to_truth(made.cameras)[1] < 0.1


def test_one_position_for_all_images_places_nothing(town: Town) -> None:
    """A device that stamps its last fix on every photo: the scene may be mapped, but not put anywhere."""
    images = drive(town)
    here = {"lon": images[0].lon, "lat": images[0].lat, "altitude_m": 570.0}
    later = [pd.Timestamp(images[0].captured_at_ms + 8000 * k, unit="ms", tz="UTC") for k in range(N)]
    known = zip(images, later, strict=True)  # on foot: nothing says that one repeats the other
    rows = [row_of(i, computed_lon=None, computed_lat=None, captured_at=at, **here) for i, at in known]
    town.fill(rows, photos_of(town, images))
    made = town.all_of(OPTIONS.model_copy(update={"keep_every_m": 0.0}))
    assert set(status(made)) <= {"static_scene", "unplaced"} and made.cameras.empty
    assert reasons_are_said(made)


@pytest.mark.parametrize("keep_every_m", [1.0, 0.0], ids=["thinned", "kept"])
def test_a_car_that_stands_in_traffic_is_a_static_scene(town: Town, keep_every_m: float) -> None:
    """What moves past it is the same for a matcher as what it moves past."""
    first = drive(town)[0]
    rng = np.random.default_rng(3)
    rows, photos = [], {}
    for k in range(N):
        image_id = f"90{k:03d}"
        jitter = rng.normal(0, 1.5e-5, 2)
        captured_at = pd.Timestamp(first.captured_at_ms + 1000 * k, unit="ms", tz="UTC")
        place = {"lon": first.lon + jitter[0], "lat": first.lat + jitter[1], "computed_lon": None, "computed_lat": None}
        rows.append(row_of(first, image_id=image_id, captured_at=captured_at, **place))
        photos[image_id] = with_traffic(town.world.jpeg(first.id), k)
    town.fill(rows, photos)
    made = town.all_of(OPTIONS.model_copy(update={"keep_every_m": keep_every_m}))
    assert made.cameras.empty and reasons_are_said(made)
    if not keep_every_m:  # the painted vehicles may make a model, but none that stands anywhere
        assert set(status(made)) <= {"static_scene", "unplaced"}
    else:
        assert status(made)[0] in ("static_scene", "too_few")
        assert int(town.lake.note("gps_db", city=town.city, box=BOX)["left_out"]["standing"]) >= N - 3


def with_traffic(jpeg: bytes, k: int) -> bytes:
    """The photo with three painted vehicles, each further on its way by so many steps."""
    rng = np.random.default_rng(8)
    with Image.open(io.BytesIO(jpeg)) as photo:
        picture = photo.convert("RGB")
    for lane in range(3):
        vehicle = Image.fromarray(rng.integers(0, 255, (12, 18, 3), dtype=np.uint8)).resize(
            (144, 96), Image.Resampling.NEAREST
        )
        ImageDraw.Draw(vehicle).text((20, 40), f"VAN {lane}", fill=(255, 255, 255))
        picture.paste(vehicle, (int(-100 + 55 * k + 130 * lane) % 480 - 60, 150 + 60 * lane))
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=92)
    return sink.getvalue()


def test_a_panorama_among_photos_takes_part_as_a_rig(town: Town) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    panorama = next(image for image in town.world.images if image.is_pano)
    spot = town.world.truth[panorama.id].centre
    images = sorted(drive(town, 26), key=lambda image: np.linalg.norm(town.world.truth[image.id].centre - spot))[:N]
    town.fill([row_of(image) for image in [*images, panorama]], photos_of(town, [*images, panorama]))
    made = town.all_of()
    assert status(made)[0] == "placed"
    assert set(made.cameras["image_id"]) >= {image.id for image in images}
    views = made.cameras.loc[made.cameras["image_id"].str.startswith(f"{panorama.id}_v")]
    assert len(views) >= 2
    assert np.ptp(views.loc[:, ["east_m", "north_m", "up_m"]].to_numpy(float), axis=0).max() < 1e-6
    others = made.cameras.loc[made.cameras["image_id"].isin([image.id for image in images])]
    found = demo_frame().enu(views["lon"], views["lat"], views["alt_m"])[0]
    assert np.linalg.norm(town.to_truth(others)[0](found) - spot) < 0.3
    with town.lake.local(str(made.models["path"].iloc[0])) as folder:
        model = pycolmap.Reconstruction(str(folder))
    assert any(frame.rig.num_sensors() == 4 for frame in model.frames.values() if frame.has_pose)


def test_a_photo_that_comes_twice_takes_part_once(town: Town) -> None:
    images = drive(town)
    copies = {f"77{k:03d}": image for k, image in enumerate(images[:3])}
    photos = photos_of(town, images) | {i: town.world.jpeg(image.id) for i, image in copies.items()}
    rows = [row_of(image) for image in images]
    rows += [row_of(image, image_id=i, sequence_id="again") for i, image in copies.items()]
    town.fill(rows, photos)
    made = town.all_of()
    assert town.lake.note("gps_db", city=town.city, box=BOX)["left_out"]["duplicate"] == 3
    assert status(made) == ["placed"] and len(made.cameras) == N


def test_a_banner_in_every_frame_is_not_what_is_matched(town: Town) -> None:
    images = drive(town)
    photos = {i: with_banner(jpeg, 5) for i, jpeg in photos_of(town, images).items()}
    town.fill([row_of(image) for image in images], photos)
    made = town.all_of()
    assert status(made) == ["placed"] and len(made.cameras) >= N - 1
    assert town.to_truth(made.cameras)[1] < 0.1


def test_drives_in_opposite_directions_are_two_models_joined_by_their_positions(town: Town) -> None:
    """Seen from the other side a street shares nothing with itself; GPS puts both drives where they were."""
    images = drive(town)
    back, photos = opposite(town, images)
    town.fill([row_of(image) for image in images] + back, photos_of(town, images) | photos)
    made = town.all_of()
    assert status(made) == ["placed", "placed"]
    parts = {frozenset(part["image_id"]) for _, part in made.cameras.groupby("component")}
    assert parts == {frozenset(image.id for image in images), frozenset(photos)}
    for _, part in made.cameras.groupby("component"):
        found = demo_frame().enu(part["lon"], part["lat"], part["alt_m"])
        true = np.array([place_of(town, images, str(i)) for i in part["image_id"]])
        assert np.hypot(*(found.mean(0) - true.mean(0))[:2]) < 4.0  # 3 m of noise over ten positions of a kind


def opposite(town: Town, images: list[DemoImage]) -> tuple[Rows, Photos]:
    """The same places in reverse, each camera turned half round."""
    from dataclasses import replace

    from geo_assets.demo.scene import build_scene
    from geo_assets.demo.world import SEED

    scene, half_round = build_scene(SEED), np.diag([-1.0, -1.0, 1.0])
    rows, photos = [], {}
    for k, image in enumerate(reversed(images)):
        image_id = f"88{image.id}"
        camera = town.world.truth[image.id]
        picture, _ = scene.render(replace(camera, cam_from_world=camera.cam_from_world @ half_round))
        sink = io.BytesIO()
        Image.fromarray((picture * 255).astype(np.uint8)).save(sink, "JPEG", quality=92)
        photos[image_id] = sink.getvalue()
        turned = {
            name: None if (angle := getattr(image, name)) is None else (angle + 180) % 360
            for name in ("compass_deg", "computed_compass_deg")
        }
        captured_at = pd.Timestamp(images[0].captured_at_ms + 86_400_000 + 700 * k, unit="ms", tz="UTC")
        rows.append(row_of(image, image_id=image_id, sequence_id="back", captured_at=captured_at, **turned))
    return rows, photos


def place_of(town: Town, images: list[DemoImage], image_id: str) -> np.ndarray:
    known = {image.id for image in images}
    return town.world.truth[image_id if image_id in known else image_id[2:]].centre


def test_half_a_file_is_left_out_and_counted(town: Town) -> None:
    images = drive(town)
    photos = photos_of(town, images)
    photos[images[-1].id] = photos[images[-1].id][: len(photos[images[-1].id]) // 2]
    town.fill([row_of(image) for image in images], photos)
    made = town.all_of()
    assert town.lake.note("gps_db", city=town.city, box=BOX)["left_out"]["broken"] == 1
    assert status(made) == ["placed"]
    assert set(made.cameras["image_id"]) == {image.id for image in images[:-1]}


# -- what the machine may do ----------------------------------------------------------------------------------


@pytest.fixture
def filled(town: Town) -> Town:
    """A new city with the drive in it."""
    images = drive(town)
    town.fill([row_of(image) for image in images], photos_of(town, images))
    return town


def in_the_child(monkeypatch: pytest.MonkeyPatch, folder: Path, step: str, script: str) -> None:
    """Let a shell script begin the process of one step; it may hand on to the step with ``exec "$python" "$@"``."""
    path = folder / "child"
    python = f'python="{sys.executable}"\n'
    path.write_text(f'#!/bin/sh\n{python}if [ "$3" = {step} ]; then\n{script}\nfi\nexec "$python" "$@"\n')
    path.chmod(0o755)
    monkeypatch.setattr(stage.sys, "executable", str(path))


ABORT = "echo 'terminate called without an active exception' >&2; kill -ABRT $$"


@pytest.mark.parametrize(("step", "run"), [("build_database", "gps_db"), ("match", "match_pairs")])
def test_an_abort_of_the_child_is_an_error_and_the_next_run_goes_on(
    filled: Town, tmp_path: Path, step: str, run: str
) -> None:
    if run == "match_pairs":
        filled.gps_db()
    with pytest.MonkeyPatch.context() as patch:
        in_the_child(patch, tmp_path, step, ABORT)
        with pytest.raises(ReconstructionError, match=r"(?s)SIGABRT.*terminate called"):
            getattr(filled, run)()
    getattr(filled, run)()


def test_a_block_that_is_killed_once_is_mapped_nevertheless(filled: Town, tmp_path: Path) -> None:
    filled.gps_db()
    filled.match_pairs()
    with pytest.MonkeyPatch.context() as patch:
        once = f"if [ ! -e {tmp_path}/began ]; then touch {tmp_path}/began; kill -KILL $$; fi"
        in_the_child(patch, tmp_path, "map_block", once)
        made = filled.sparse_models()
    assert (tmp_path / "began").exists()
    assert "placed" in status(made)


def test_a_block_that_always_aborts_ends_as_not_mapped(filled: Town, tmp_path: Path) -> None:
    filled.gps_db()
    filled.match_pairs()
    with pytest.MonkeyPatch.context() as patch:
        in_the_child(patch, tmp_path, "map_block", ABORT)
        made = filled.sparse_models()
    assert set(status(made)) == {"not_mapped"} and reasons_are_said(made) and made.cameras.empty
    assert status(filled.sparse_models()) == ["placed"]  # a later run does not believe it


def test_a_database_that_somebody_holds_is_an_error_and_not_a_wait(filled: Town) -> None:
    filled.gps_db()
    with sqlite3.connect(filled.file("features", "database.db"), isolation_level=None) as holder:
        holder.execute("begin exclusive")
        with pytest.raises(ReconstructionError, match=r"(?i)held by another|locked") as caught:
            filled.match_pairs()
        assert is_one_sentence(caught.value)
        holder.execute("rollback")
    holder.close()
    assert filled.match_pairs().figures["n_verified"] > 0


def test_a_journal_of_another_time_beside_the_database(filled: Town, tmp_path: Path) -> None:
    """SQLite replays what lies beside a file, whoever it is from; either it is not asked to, or the error says how on."""
    filled.gps_db()
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as con:
        con.execute("pragma journal_mode = wal")
        con.execute("create table t (x)")
        con.executemany("insert into t values (?)", [(b"x" * 3000,) for _ in range(200)])
        con.commit()
        journal = other.with_name("other.db-wal").read_bytes()
        assert len(journal) > 100_000
        filled.file("features", "database.db-wal").write_bytes(journal)
    con.close()
    try:
        matched = filled.match_pairs()
    except ReconstructionError as error:
        assert is_one_sentence(error) and "gps_db" in str(error)
        filled.gps_db()
        matched = filled.match_pairs()
    assert matched.figures["n_verified"] >= 2 * N
    assert status(filled.sparse_models()) == ["placed"]


@pytest.mark.parametrize("run", ["gps_db", "match_pairs", "sparse_models"])
def test_a_full_disk_ends_with_one_sentence_and_leaves_what_was(
    filled: Town, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    runs: dict[str, Callable[[], Any]] = {name: getattr(filled, name) for name in RUNS}
    for name in RUNS[: RUNS.index(run)]:
        runs[name]()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "database.db")

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "publish", full)
        with pytest.raises(dg.Failure) as caught, failures():  # as the assets run it
            runs[run]()
    said = str(caught.value.description)
    assert re.search(r"(?i)no space|disk is full", said) and "run" in said and said.endswith(".")
    assert not filled.lake.has(run, city=filled.city, box=BOX)
    runs[run]()


RUNS = ["gps_db", "match_pairs", "sparse_models"]


def test_a_full_disk_in_the_child_says_so(filled: Town, tmp_path: Path) -> None:
    filled.gps_db()
    with pytest.MonkeyPatch.context() as patch:
        # A limit on the size of files: what a process writes beyond it fails as on a full disk.
        in_the_child(patch, tmp_path, "match", 'ulimit -f 64; trap "" XFSZ')
        with pytest.raises(ReconstructionError) as caught:
            filled.match_pairs()
    assert is_one_sentence(caught.value)
    assert filled.match_pairs().figures["n_verified"] > 0
