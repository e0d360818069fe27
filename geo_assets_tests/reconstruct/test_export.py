"""A synthetic model in a lake, written in every form and read back: by COLMAP, by geopandas, by readers of our own."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from geo_assets.errors import ConfigError, GeoAssetsError, ReconstructionError
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.reconstruct.export import FORMATS, export_model
from geo_assets.reconstruct.formats import part
from geo_assets.reconstruct.nvm import lens_of, write_nvm
from geo_assets.tables import TABLES

pycolmap = pytest.importorskip("pycolmap")

FRAME = LocalFrame(13.2, 55.7, 35.0)
CITY, BOX = "town", "r00c00"
N = 6


def scene(model: str = "SIMPLE_RADIAL", parameters: tuple[float, ...] = (220.0, 160.0, 120.0, -0.03)) -> Any:
    """A model of six images of 320 x 240 pixels and fifty points around a place, images ``p0.jpg`` to ``p5.jpg``."""
    rng = np.random.default_rng(5)
    made = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, model, 1.0, 320, 240)
    camera.params = list(parameters)
    made.add_camera_with_trivial_rig(camera)
    points = np.column_stack([rng.uniform(-6, 6, 50), rng.uniform(20, 30, 50), rng.uniform(-4, 4, 50)])
    # x right, y down, z forward: the cameras look north.
    turn = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    seen: list[list[tuple[int, int]]] = [[] for _ in points]
    for number in range(N):
        centre = np.array([2.0 * number - 5, 0.1 * number, 1.5])
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(turn), -turn @ centre)
        pixels = np.asarray(camera.img_from_cam((points - centre) @ turn.T))
        image = pycolmap.Image(f"p{number}.jpg", pixels, camera_id=1, image_id=number + 1)
        made.add_image_with_trivial_frame(image, pose)
        for index in range(len(points)):
            seen[index].append((number + 1, index))
    for place, elements in zip(points, seen, strict=True):
        track = pycolmap.Track()
        for image_id, index in elements:
            track.add_element(image_id, index)
        made.add_point3D(place, track, rng.integers(0, 255, 3).astype(np.uint8))
    made.update_point_3d_errors()
    return made


def lake_of(root: Path, made: Any, status: str = "placed") -> Lake:
    """A lake with the model as component 0 of a box, its photos, and the tables that an export reads."""
    lake, where = Lake(root / "lake"), {"city": CITY, "box": BOX}
    folder = root / "published" / "0"
    folder.mkdir(parents=True)
    made.write_binary(str(folder))
    lake.publish(root / "published", lake.key("models", **where))
    images = [made.image(i) for i in sorted(made.reg_image_ids())]
    ids = [image.name.removesuffix(".jpg") for image in images]
    rng = np.random.default_rng(0)
    for image_id in ids:
        lake.put_bytes(lake.key("images", f"{image_id}.jpg", **where), photo(rng))
    times = pd.date_range("2024-05-01", periods=len(ids), freq="s", tz="UTC")
    row = {"origin_lon": FRAME.lon, "origin_lat": FRAME.lat, "origin_alt_m": FRAME.alt_m, "component": 0}
    row |= {"status": status, "n_registered": len(ids), "path": lake.key("models", "0", **where)}
    write(lake, "sparse_models", [row], **where)
    write(
        lake,
        "gps_db",
        [
            {"image_id": i, "sequence_id": "s", "captured_at": t, "home_box": BOX, "path": lake.key("images", f"{i}.jpg", **where)}
            for i, t in zip(ids, times, strict=True)
        ],
        **where,
    )  # fmt: skip
    credit = {"licence": "CC BY-SA 4.0", "attribution": "© ada"}
    write(lake, "image_metadata", [{"image_id": i} | credit for i in ids], **where)
    return lake


def photo(rng: np.random.Generator) -> bytes:
    import io

    sink = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def write(lake: Lake, table: str, rows: list[dict[str, Any]], **where: str) -> None:
    frame = pd.DataFrame(rows).reindex(columns=TABLES[table].column_names).astype(object)
    lake.write(table, frame.where(frame.notna(), None), note=None, **where)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with every format, and the model that it was made of."""
    root = tmp_path_factory.mktemp("export")
    made = scene()
    paths = export_model(lake_of(root, made), CITY, BOX, FORMATS, root / "out")
    assert [path.name for path in paths] == sorted(
        ["README.md", "attribution.csv", "cameras.geojson", "cameras.parquet", "colmap", "colmap3", "export.json", "model.nvm",
         "points.geojson", "points.parquet", "points.ply", "text", "tracks.geojson", "tracks.parquet", "undistorted"]
    )  # fmt: skip
    return root / "out", made


# -- COLMAP -------------------------------------------------------------------------------------------------


def test_binary_to_text_to_binary_is_the_same(everything: tuple[Path, Any], tmp_path: Path):
    out, _ = everything
    again = pycolmap.Reconstruction(str(out / "text"))
    again.write_binary(str(tmp_path))
    for name in ("cameras", "images", "rigs", "frames"):
        assert (tmp_path / f"{name}.bin").read_bytes() == (out / "colmap" / f"{name}.bin").read_bytes(), name
    first = pycolmap.Reconstruction(str(out / "colmap"))
    assert same(first, again) and first.num_points3D() == 50


def same(a: Any, b: Any) -> bool:
    """Whether two models have the same images at the same places, and the same points with the same tracks."""
    names = {a.image(i).name for i in a.reg_image_ids()}
    assert names == {b.image(i).name for i in b.reg_image_ids()}
    for name in names:
        one, other = (m.find_image_with_name(name) for m in (a, b))
        assert np.allclose(one.cam_from_world().matrix(), other.cam_from_world().matrix(), atol=1e-12)
        assert np.array_equal([p.xy for p in one.points2D], [p.xy for p in other.points2D])
    assert sorted(a.points3D) == sorted(b.points3D)
    for number, point in a.points3D.items():
        assert np.array_equal(point.xyz, b.points3D[number].xyz)
        tracks = [sorted((e.image_id, e.point2D_idx) for e in m.points3D[number].track.elements) for m in (a, b)]
        assert tracks[0] == tracks[1]
    return True


def test_the_classic_files_stand_alone(everything: tuple[Path, Any]):
    out, made = everything
    assert sorted(p.name for p in (out / "colmap3").iterdir()) == [
        "cameras.bin", "cameras.txt", "images.bin", "images.txt", "points3D.bin", "points3D.txt",
    ]  # fmt: skip
    assert same(made, pycolmap.Reconstruction(str(out / "colmap3")))


def classic_images(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """``images.bin`` as readers of COLMAP 3 know it: quaternion wxyz, translation, observations [n, 3] by name."""
    data, at, found = path.read_bytes(), 0, {}

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values

    (count,) = take("Q")
    for _ in range(count):
        _, *pose, _ = take("i7di")
        end = data.index(b"\0", at)
        name, at = data[at:end].decode(), end + 1
        (n,) = take("Q")
        seen = np.array([take("ddq") for _ in range(n)])
        found[name] = np.array(pose[:4]), np.array(pose[4:]), seen
    assert at == len(data)
    return found


def test_a_plain_reader_of_the_classic_format_gets_poses_and_observations(everything: tuple[Path, Any]):
    out, made = everything
    for name, (quaternion, translation, seen) in classic_images(out / "colmap3" / "images.bin").items():
        image = made.find_image_with_name(name)
        x, y, z, w = image.cam_from_world().rotation.quat
        assert np.allclose(quaternion, [w, x, y, z]) and np.allclose(translation, image.cam_from_world().translation)
        assert np.allclose(seen[:, :2], [p.xy for p in image.points2D])
        assert [int(p) for p in seen[:, 2]] == [p.point3D_id for p in image.points2D]


def test_views_of_a_rig_become_images_with_their_own_poses(tmp_path: Path):
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig, options.num_points3D = 1, 3, 3, 30
    made = pycolmap.synthesize_dataset(options)
    alone = part(made, made.reg_image_ids())
    assert alone.num_reg_images() == 9 and alone.num_reg_frames() == 9
    for image_id in made.reg_image_ids():
        poses = [m.image(image_id).cam_from_world().matrix() for m in (made, alone)]
        assert np.allclose(*poses, atol=1e-12)
    assert alone.compute_mean_reprojection_error() == pytest.approx(made.compute_mean_reprojection_error(), abs=1e-9)


# -- NVM ----------------------------------------------------------------------------------------------------


def read_nvm(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cameras and points of an NVM file."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert lines[0].strip() == "NVM_V3"
    n = int(lines[1])
    cameras = []
    for line in lines[2 : 2 + n]:
        name, *rest, last = line.split()
        assert last == "0"
        v = [float(x) for x in rest]
        cameras.append({"name": name, "focal": v[0], "q": v[1:5], "centre": np.array(v[5:8]), "radial": v[8]})
    m = int(lines[2 + n])
    points = []
    for line in lines[3 + n : 3 + n + m]:
        v = line.split()
        seen = [(int(v[k]), int(v[k + 1]), float(v[k + 2]), float(v[k + 3])) for k in range(7, len(v), 4)]
        assert len(seen) == int(v[6])
        points.append({"xyz": np.array([float(x) for x in v[:3]]), "rgb": [int(x) for x in v[3:6]], "seen": seen})
    assert lines[3 + n + m :] == ["0"]
    return cameras, points


def nvm_errors(path: Path) -> np.ndarray:
    """For each observation the distance [px] from its undistorted measurement to the projected point."""
    cameras, points = read_nvm(path)
    errors = []
    for point in points:
        for number, _, x, y in point["seen"]:
            camera = cameras[number]
            w, i, j, k = camera["q"]
            rotation = pycolmap.Rotation3d(np.array([i, j, k, w])).matrix()
            ray = rotation @ (point["xyz"] - camera["centre"])
            measured = np.array([x, y]) / camera["focal"]
            undistorted = measured * (1 + camera["radial"] * (measured @ measured))
            errors.append(np.linalg.norm(undistorted - ray[:2] / ray[2]) * camera["focal"])
    return np.array(errors)


def test_points_project_through_nvm_cameras_to_where_they_were_seen(everything: tuple[Path, Any]):
    out, made = everything
    cameras, points = read_nvm(out / "model.nvm")
    assert [camera["name"] for camera in cameras] == [f"p{k}.jpg" for k in range(N)]
    assert len(points) == 50 and all(len(point["seen"]) == N for point in points)
    assert points[0]["rgb"] == [int(c) for c in made.points3D[1].color]
    # The coefficient is the best fit to the lens, and the fit says how good it is.
    assert nvm_errors(out / "model.nvm").max() <= lens_of(made.camera(1)).error_px + 1e-3 < 0.2


def test_the_nvm_of_undistorted_photos_is_exact(everything: tuple[Path, Any]):
    out, _ = everything
    assert nvm_errors(out / "undistorted" / "model.nvm").max() < 1e-3


@pytest.mark.parametrize(
    ("model", "parameters", "error_px"),
    [
        ("PINHOLE", (220.0, 230.0, 158.0, 121.0), 1e-3),
        ("SIMPLE_PINHOLE", (220.0, 160.0, 120.0), 1e-3),
        ("RADIAL", (220.0, 160.0, 120.0, -0.1, 0.02), 0.2),
    ],
)
def test_nvm_of_other_lenses(tmp_path: Path, model: str, parameters: tuple[float, ...], error_px: float):
    said = write_nvm(scene(model, parameters), tmp_path / "model.nvm")
    assert said["n_left_out"] == 0 and said["lens_error_px"] <= error_px
    assert nvm_errors(tmp_path / "model.nvm").max() <= error_px


def test_what_nvm_cannot_say_of_a_fisheye_is_told():
    camera = pycolmap.Camera.create_from_model_name(1, "RADIAL_FISHEYE", 220.0, 320, 240)
    assert lens_of(camera).error_px > 5


# -- undistorted photos -------------------------------------------------------------------------------------


def test_undistorted_photos_are_pinhole_photos_of_their_model(everything: tuple[Path, Any]):
    folder = everything[0] / "undistorted"
    assert sorted(p.name for p in folder.iterdir()) == ["images", "model.nvm", "sparse"]
    flat = pycolmap.Reconstruction(str(folder / "sparse" / "0"))
    assert {camera.model_name for camera in flat.cameras.values()} == {"PINHOLE"}
    assert flat.num_reg_images() == N and flat.num_points3D() == 50
    flat.update_point_3d_errors()
    assert flat.compute_mean_reprojection_error() < 0.01
    for image_id in flat.reg_image_ids():
        image, camera = flat.image(image_id), flat.camera(flat.image(image_id).camera_id)
        with Image.open(folder / "images" / image.name) as photo:
            assert photo.size == (camera.width, camera.height)


def with_sphere(made: Any) -> Any:
    """The model with one panorama more, at the place of its first image and with two of its points."""
    camera = pycolmap.Camera.create_from_model_name(2, "EQUIRECTANGULAR", 1.0, 64, 32)
    made.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image("sphere.jpg", np.array([[10.0, 10.0], [20.0, 20.0]]), camera_id=2, image_id=99)
    made.add_image_with_trivial_frame(image, made.image(1).cam_from_world())
    for index, point in enumerate(sorted(made.points3D)[:2]):
        made.add_observation(point, pycolmap.TrackElement(99, index))
    return made


def test_a_sphere_is_left_out_where_it_cannot_be(tmp_path: Path):
    lake = lake_of(tmp_path, with_sphere(scene()))
    export_model(lake, CITY, BOX, ["colmap3", "nvm", "undistorted"], tmp_path / "out")
    said = json.loads((tmp_path / "out" / "export.json").read_text())["said"]
    assert said["undistorted"]["n_left_out"] == said["nvm"]["n_left_out"] == said["colmap3"]["n_spherical"] == 1
    assert pycolmap.Reconstruction(str(tmp_path / "out" / "undistorted" / "sparse" / "0")).num_reg_images() == N
    assert len(read_nvm(tmp_path / "out" / "model.nvm")[0]) == N
    assert pycolmap.Reconstruction(str(tmp_path / "out" / "colmap3")).num_reg_images() == N + 1


# -- maps ---------------------------------------------------------------------------------------------------


def test_geoparquet_holds_the_places_longitude_first(everything: tuple[Path, Any]):
    out, made = everything
    cameras = gpd.read_parquet(out / "cameras.parquet").set_index("image_id")
    assert cameras.crs == "EPSG:4979" and cameras.has_z.all()
    for image_id, row in cameras.iterrows():
        lon, lat, alt = FRAME.geodetic(made.find_image_with_name(f"{image_id}.jpg").projection_center())
        assert np.allclose([row.geometry.x, row.geometry.y], [lon, lat], atol=1e-11)
        assert row.geometry.z == pytest.approx(float(alt), abs=1e-6)
        assert abs(row.geometry.x - FRAME.lon) < 0.01 and abs(row.geometry.y - FRAME.lat) < 0.01
    facts = cameras.loc["p3"]
    assert facts.heading_deg == pytest.approx(0, abs=1e-6) or facts.heading_deg == pytest.approx(360, abs=1e-6)
    assert (facts.sequence_id, facts.component, facts.attribution, facts.box) == ("s", 0, "© ada", BOX)
    assert facts.captured_at == pd.Timestamp("2024-05-01T00:00:03Z")
    points = gpd.read_parquet(out / "points.parquet")
    assert len(points) == 50 and set(points.track_length) == {N} and points.error_px.max() < 1e-6
    back = FRAME.enu(points.geometry.x, points.geometry.y, points.geometry.z)
    assert np.allclose(back, [made.points3D[i].xyz for i in sorted(made.points3D)], atol=1e-6)
    assert points[["red", "green", "blue"]].to_numpy().tolist() == [
        [int(c) for c in made.points3D[i].color] for i in sorted(made.points3D)
    ]


def test_tracks_are_lines_in_the_order_of_capture(everything: tuple[Path, Any]):
    out, _ = everything
    tracks = gpd.read_parquet(out / "tracks.parquet")
    (line,) = tracks.geometry
    assert line.has_z and len(line.coords) == N
    assert np.all(np.diff([x for x, _, _ in line.coords]) > 0)
    assert tracks.length_m[0] == pytest.approx(5 * np.hypot(2, 0.1), rel=1e-6)


def test_geojson_is_that_of_rfc_7946(everything: tuple[Path, Any]):
    out, _ = everything
    for layer, kind, count in (("cameras", "Point", N), ("tracks", "LineString", 1), ("points", "Point", 50)):
        said = json.loads((out / f"{layer}.geojson").read_text())
        assert said["type"] == "FeatureCollection" and "crs" not in said
        assert len(said["features"]) == count
        exact = gpd.read_parquet(out / f"{layer}.parquet").get_coordinates(include_z=True).to_numpy()
        shapes = [feature["geometry"] for feature in said["features"]]
        assert {shape["type"] for shape in shapes} == {kind}
        places = np.concatenate([np.array(shape["coordinates"], float).reshape(-1, 3) for shape in shapes])
        assert np.allclose(places[:, :2], exact[:, :2], atol=1e-9) and np.allclose(places[:, 2], exact[:, 2], atol=1e-4)


def test_credits_lie_beside_the_files(everything: tuple[Path, Any]):
    out, _ = everything
    credit = pd.read_csv(out / "attribution.csv")
    assert credit.values.tolist() == [["© ada", "CC BY-SA 4.0", N]]


# -- what is refused ----------------------------------------------------------------------------------------


def test_a_foreign_folder_is_left_alone_and_an_earlier_export_replaced(tmp_path: Path):
    lake = lake_of(tmp_path, scene())
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="holds files that are no export"):
        export_model(lake, CITY, BOX, ["ply"], foreign)
    assert (foreign / "thesis.txt").read_text() == "precious" and len(list(foreign.iterdir())) == 1
    out = tmp_path / "out"
    out.mkdir()
    export_model(lake, CITY, BOX, ["ply"], out)
    export_model(lake, CITY, BOX, ["nvm"], out)
    assert (out / "model.nvm").exists() and not (out / "points.ply").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_failure_leaves_the_earlier_export_and_no_rest(tmp_path: Path):
    lake = lake_of(tmp_path, scene())
    export_model(lake, CITY, BOX, ["ply"], tmp_path / "out")
    lake.put_bytes(lake.key("models", "0/cameras.bin", city=CITY, box=BOX), b"broken")
    with pytest.raises(ReconstructionError):
        export_model(lake, CITY, BOX, ["nvm"], tmp_path / "out")
    assert (tmp_path / "out" / "points.ply").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_photo_that_is_gone_is_named(tmp_path: Path):
    lake = lake_of(tmp_path, scene())
    lake.remove(lake.key("images", "p3.jpg", city=CITY, box=BOX))
    with pytest.raises(ReconstructionError, match=r"1 photos of the model are not in the lake, p3\.jpg among them"):
        export_model(lake, CITY, BOX, ["undistorted"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_place_is_no_map_but_still_a_model(tmp_path: Path):
    lake = lake_of(tmp_path, scene(), status="unplaced")
    with pytest.raises(GeoAssetsError, match="no place on the Earth"):
        export_model(lake, CITY, BOX, ["ply", "geojson"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_model(lake, CITY, BOX, ["ply"], tmp_path / "out")
    assert "no place on the Earth" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("box", "formats", "component", "said"),
    [
        (BOX, ["obj"], 0, "Unknown format obj"),
        (BOX, [], 0, "No format"),
        (BOX, ["ply"], 3, "no component 3; it has 0"),
        ("r00c01", ["ply"], 0, "has no model: too_few"),
        ("r00c02", ["ply"], 0, "sparse_models has no data"),
        (None, ["ply"], 0, "no model of town as a whole"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, box: str | None, formats: list[str], component: int, said: str):
    lake = lake_of(tmp_path, scene())
    write(lake, "sparse_models", [{"component": 0, "status": "too_few"}], city=CITY, box="r00c01")
    with pytest.raises(GeoAssetsError, match=said):
        export_model(lake, CITY, box, formats, tmp_path / "out", component)


def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path):
    made = scene()
    made.image(1).name = "../p0.jpg"
    lake = lake_of(tmp_path, scene())
    folder = tmp_path / "renamed" / "0"
    folder.mkdir(parents=True)
    made.write_binary(str(folder))
    lake.publish(tmp_path / "renamed", lake.key("models", city=CITY, box=BOX))
    with pytest.raises(ReconstructionError, match="no plain file name"):
        export_model(lake, CITY, BOX, ["ply"], tmp_path / "out")


def test_the_city_as_a_whole_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from geo_assets.cli import main

    made = scene()
    lake = lake_of(tmp_path, made)
    folder = tmp_path / "whole"
    folder.mkdir()
    made.write_binary(str(folder))
    lake.publish(folder, lake.key("city_model", city=CITY))
    place = {"origin_lon": FRAME.lon, "origin_lat": FRAME.lat, "origin_alt_m": FRAME.alt_m}
    write(lake, "city_model", [place | {"path": lake.key("city_model", city=CITY)}], city=CITY)
    (tmp_path / "geo_assets.toml").write_text(
        f'lake = "{lake.root}"\n[cities.{CITY}]\nbbox = [13.19, 55.69, 13.21, 55.71]\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEO_ASSETS_SETTINGS", raising=False)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["model", CITY, *arguments])

    done = run("--city-model", "--to", "out", "--as", "geojson", "--as", "ply")
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "out" / CITY).iterdir())[-3:] == [
        "points.geojson",
        "points.ply",
        "tracks.geojson",
    ]
    done = run(BOX, "--to", "out", "--as", "text")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / BOX / "text" / "images.txt").exists() and BOX in done.output
    done = run("--to", "all", "--as", "ply")  # every box with a model
    assert done.exit_code == 0 and [p.name for p in (tmp_path / "all").iterdir()] == [BOX]
    for arguments, said in (
        (["r09c09", "--to", "x", "--as", "ply"], "r09c09"),
        (["--to", "x"], "--as"),
        ([BOX, "--city-model", "--to", "x", "--as", "ply"], "not both"),
    ):
        failed = run(*arguments)
        assert failed.exit_code != 0 and said in failed.output and "Traceback" not in failed.output
