"""Views of panoramas: their geometry against a sphere whose colours are its directions, and against the ray caster."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geo_assets.demo.scene import Camera, build_scene, cam_from_world, world_from_street
from geo_assets.lake import Lake
from geo_assets.reconstruct import features
from geo_assets.reconstruct.cameras import view_rotations
from geo_assets.reconstruct.frames import best_similarity
from geo_assets.reconstruct.panoramas import fits, view_size, views_of
from geo_assets.settings import Reconstruct
from geo_assets_tests.reconstruct.towns import EAST, GRID, OPTIONS, WEST, lake_with, photo, rows

SIZE = 64


def directions(width: int, height: int) -> np.ndarray:
    """Unit vectors [height, width, 3] that the pixels of an equirectangular picture look along; y is down."""
    yaw = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    down = ((np.arange(height) + 0.5) - height / 2) / (width / 2) * np.pi
    yaw, down = np.meshgrid(yaw, down)
    return np.stack([np.sin(yaw) * np.cos(down), np.sin(down), np.cos(yaw) * np.cos(down)], -1)


def coloured(vectors: np.ndarray) -> np.ndarray:
    return np.round((vectors + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize("height", [2 * SIZE, 2 * SIZE - 20])
def test_a_view_sees_what_lies_in_its_direction(height: int):
    views = views_of(coloured(directions(4 * SIZE, height)), SIZE)
    at = (np.arange(SIZE) + 0.5 - SIZE / 2) / (SIZE / 2)
    x, y = np.meshgrid(at, at)
    rays = np.stack([x, y, np.ones_like(x)], -1) / np.sqrt(x**2 + y**2 + 1)[..., None]
    for rotation, view in zip(view_rotations(), views, strict=True):
        # Half a pixel of the panorama is 1.6 levels of colour.
        assert np.abs(view.astype(float) - (rays @ rotation + 1) * 127.5).max() <= 1.01


def test_a_large_panorama_is_reduced_first():
    views = views_of(coloured(directions(1000, 500)), SIZE)
    assert views[0].shape == (SIZE, SIZE, 3)
    assert np.abs(views[0].astype(float) - views_of(coloured(directions(4 * SIZE, 2 * SIZE)), SIZE)[0]).max() <= 3


def test_a_view_is_what_a_pinhole_camera_there_sees():
    scene, turn = build_scene(), world_from_street() @ np.array([-8.0, 0.0, 2.4])
    upright = cam_from_world(0.7, 0.0, 0.0)
    panorama, _ = scene.render(Camera("spherical", 800, 400, 0.0, turn, upright), samples=2)
    views = views_of((panorama * 255 + 0.5).astype(np.uint8), 200)
    for rotation, view in zip(view_rotations(), views, strict=True):
        seen, _ = scene.render(Camera("perspective", 200, 200, 100.0, turn, rotation @ upright), samples=2)
        shifted = [np.abs(np.roll(view / 255, by, (0, 1)) - seen).mean() for by in ((0, 0), (0, 1), (1, 0), (0, -1))]
        assert shifted[0] < 0.035 and shifted[0] < 0.75 * min(shifted[1:])


@pytest.mark.parametrize(
    "width, height, whole, ok",
    [(1000, 500, True, True), (1000, 400, True, False), (1000, 400, False, True), (1000, 240, False, False),
     (1000, 1000, False, False), (0, 0, False, False), (np.nan, 1, False, False)],
)  # fmt: skip
def test_what_counts_as_a_panorama(width: float, height: float, whole: bool, ok: bool):
    assert fits(width, height, whole=whole) is ok


def test_views_are_as_fine_as_the_panorama_if_they_may():
    assert view_size(5760, 2048) == 1440 and view_size(11000, 2048) == 2048


def panoramas(root: Path) -> Lake:
    """Three panoramas in the west, the last in the margin of the east, and a photo on each side."""
    spheres = rows(60, 70, 90, is_pano=True, camera_type="spherical", width=640, height=320, compass_deg=350.0)
    files = {row["image_id"]: photo(k, (640, 320)) for k, row in enumerate(spheres)}
    return lake_with(root, spheres + rows(80, prefix="p"), rows(110, prefix="q"), files)


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, features.Database]:
    lake = panoramas(tmp_path_factory.mktemp("lake"))
    return lake, features.gps_database(lake, "town", "r00c00", GRID, OPTIONS)


def copy_of(lake: Lake, root: Path) -> Lake:
    shutil.copytree(lake.root, root, dirs_exist_ok=True)
    return Lake(root)


def test_a_panorama_becomes_four_rows_of_one_frame(reconstructed: tuple[Lake, features.Database]):
    pycolmap = pytest.importorskip("pycolmap")
    lake, made = reconstructed
    assert made.figures["n_images"] == 13 and made.figures["n_photos"] == 15 - 12 + 2
    views = made.frame[made.frame.photo_id == "i1"].set_index("image_id")
    assert views.index.tolist() == ["i1_v0", "i1_v1", "i1_v2", "i1_v3"] and views["view"].tolist() == [0, 1, 2, 3]
    assert np.allclose((views.heading_deg + 5) % 360, [95, 185, 275, 5])  # it travels east
    assert views.frame_id.nunique() == 1 and views.camera_id.nunique() == 4 and (views.width == 160).all()
    assert (views.camera_model == "SIMPLE_PINHOLE").all() and views.parameters.iloc[1] == [80, 80, 80]
    with Image.open(io.BytesIO(lake.get_bytes(views.path["i1_v2"]))) as image:
        assert image.size == (160, 160)
    with lake.local(lake.key("features", "database.db", **WEST)) as path, pycolmap.Database.open(path) as db:
        frames = {frame.frame_id: frame for frame in db.read_all_frames()}
        assert len(frames) == 5 and len(list(frames[views.frame_id.iloc[0]].data_ids)) == 4
        rig = next(r for r in db.read_all_rigs() if r.num_sensors() == 4)
        turns = [rig.sensor_from_rig(s).rotation.matrix() for s in sorted(rig.non_ref_sensors, key=lambda s: s.id)]
        by_id = dict(zip(views.camera_id, view_rotations(), strict=True))
        assert np.allclose(turns, [by_id[c] for c in sorted(views.camera_id[1:])])
        priors = {p.corr_data_id.id: p for p in db.read_all_pose_priors()}
        assert all(priors[i].has_gravity() for i in views.colmap_image_id)


def test_views_are_drawn_once(reconstructed: tuple[Lake, features.Database]):
    lake, first = reconstructed
    drawn = {key: lake.modified(key) for key in first.frame.path if "views" in key}
    east = features.gps_database(lake, "town", "r00c01", GRID, OPTIONS)
    assert {key: lake.modified(key) for key in drawn} == drawn
    shared = east.frame[east.frame.photo_id == "i2"]
    assert len(shared) == 4 and shared.path.isin(list(drawn)).all() and east.figures["n_extracted"] == 0
    assert not lake.exists(lake.key("views", **EAST))


def test_a_panorama_that_changed_is_drawn_anew(reconstructed: tuple[Lake, features.Database], tmp_path: Path):
    lake, made = reconstructed
    before = made.frame.set_index("image_id").feature_key
    lake = copy_of(lake, tmp_path)
    write_photo(lake, "i0", photo(99, (640, 320)))
    after = features.gps_database(lake, "town", "r00c00", GRID, OPTIONS).frame.set_index("image_id").feature_key
    assert (before != after).groupby(before.index.str[:2]).all().to_dict() == {"i0": True, "i1": False, "i2": False, "p0": False, "q0": False}  # fmt: skip


def write_photo(lake: Lake, image_id: str, data: bytes) -> None:
    """The photo as a new harvest would leave it."""
    files = lake.read("image_files", None, **WEST)
    lake.put_bytes(lake.key("images", f"{image_id}.jpg", **WEST), data)
    sha256 = hashlib.sha256(data).hexdigest()
    lake.write(
        "image_files", files.assign(sha256=files.sha256.where(files.image_id != image_id, sha256)), note=None, **WEST
    )


def test_a_panorama_that_does_not_decode_is_broken(reconstructed: tuple[Lake, features.Database], tmp_path: Path):
    lake = copy_of(reconstructed[0], tmp_path)
    write_photo(lake, "i0", photo(99, (640, 320))[:800])
    made = features.gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    assert made.note["left_out"] == {"broken": 1} and made.figures["n_panoramas"] == 2


def test_a_sphere_is_one_image(tmp_path: Path):
    made = features.gps_database(
        panoramas(tmp_path), "town", "r00c00", GRID, Reconstruct(threads=1, panoramas="spherical")
    )
    row = made.frame.set_index("image_id").loc["i0"]
    assert row.camera_model == "EQUIRECTANGULAR" and row.parameters == [640, 320] and row.photo_id == "i0"


def test_rigs_of_drawn_panoramas_map_to_centimetres(tmp_path: Path):
    pycolmap = pytest.importorskip("pycolmap")
    scene, turn, rng = build_scene(), world_from_street(), np.random.default_rng(0)
    truth, files = [], {}
    for k in range(4):
        at = turn @ np.array([-6 + 2.0 * k, rng.normal(0, 0.3), 2.4])
        camera = Camera("spherical", 720, 360, 0.0, at, cam_from_world(0.6 * k, rng.normal(0, 0.01), 0.0))
        sink = io.BytesIO()
        Image.fromarray((scene.render(camera, samples=1)[0] * 255).astype(np.uint8)).save(sink, "JPEG", quality=95)
        truth.append(camera.centre)
        files[f"i{k}"] = sink.getvalue()
    spheres = rows(*range(50, 58, 2), is_pano=True, camera_type="spherical", width=720, height=360)
    lake = lake_with(tmp_path / "lake", spheres, photos=files)
    made = features.gps_database(lake, "town", "r00c00", GRID, OPTIONS)
    assert made.figures["n_images"] == 16
    features.local_images(lake, zip(made.frame.image_id, made.frame.path, strict=True), tmp_path / "images")
    database, out = tmp_path / "database.db", tmp_path / "models"
    database.write_bytes(lake.get_bytes(lake.key("features", "database.db", **WEST)))
    out.mkdir()
    matching, verification = pycolmap.FeatureMatchingOptions(), pycolmap.TwoViewGeometryOptions()
    matching.num_threads, matching.rig_verification, matching.skip_image_pairs_in_same_frame = 1, True, True
    verification.ransac.random_seed = 0
    pycolmap.match_exhaustive(
        str(database), matching_options=matching, verification_options=verification, device=pycolmap.Device.cpu
    )
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.random_seed, options.ba_refine_sensor_from_rig = 1, 0, False
    options.min_model_size = 3
    model = pycolmap.incremental_mapping(str(database), str(tmp_path / "images"), str(out), options)[0]
    images = [model.image(i) for i in model.reg_image_ids()]
    assert len(images) == 16 and model.num_reg_frames() == 4
    centres = np.array([image.projection_center() for image in images])
    true = np.array([truth[int(image.name[1])] for image in images])
    assert np.linalg.norm(best_similarity(centres, true)(centres) - true, axis=1).max() < 0.03
