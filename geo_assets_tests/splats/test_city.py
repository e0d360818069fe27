from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import SourceError
from geo_assets.geodesy import LocalFrame
from geo_assets.grid import Bounds, Grid
from geo_assets.lake import Lake
from geo_assets.splats import city as city_module
from geo_assets.splats.box import not_trained
from geo_assets.splats.cameras import Camera
from geo_assets.splats.city import splat_of_city
from geo_assets.splats.city_boxes import within_cell
from geo_assets.splats.city_sky import Sky, city_sky
from geo_assets.splats.gaussians import Gaussians, quaternion_of, rotations_of
from geo_assets.splats.georeference import between, read_frame, splat_reference
from geo_assets.splats.ply import read_ply, write_ply
from geo_assets.splats.sog import read_sog
from geo_assets.tables import TABLES
from geo_assets_tests.splats import towns
from geo_assets_tests.splats.scenes import blobs
from geo_assets_tests.splats.test_seam import CAMERA, facade
from geo_assets_tests.splats.towns import dome, town

BOUNDS = Bounds(11.0, 48.0, 11.01, 48.003)
GRID = Grid.over(BOUNDS, 400)


def frame_of(box: str) -> LocalFrame:
    return LocalFrame(*GRID.bounds(box).centre, 500.0)


def put_box(lake: Lake, folder: Path, box: str, splat: Gaussians) -> None:
    folder.mkdir()
    write_ply(folder / "splat.ply", splat)
    (folder / "splat.geo.json").write_text(json.dumps(splat_reference(frame_of(box))))
    lake.publish(folder, lake.key("splats", city="town", box=box))
    row = not_trained("trained").splat.assign(n_splats=len(splat))
    lake.write("splat_ply", row, city="town", box=box)


def test_frames_meet_at_the_same_place_on_the_earth() -> None:
    here, there = LocalFrame(11.0, 48.0, 500), LocalFrame(11.02, 48.01, 520)
    rotation, translation = between(there, here)
    point = np.array([30.0, -20, 5])
    assert there.enu(*here.geodetic(point)) == pytest.approx(rotation @ point + translation, abs=1e-6)


@pytest.mark.parametrize("origin", [[11.0, 48.0, 500.0], {"lon": 11.0, "lat": 48.0, "alt_m": 500.0}])
def test_reference_files(tmp_path: Path, origin: object) -> None:
    (tmp_path / "geo.json").write_text(json.dumps({"origin": origin}))
    assert read_frame(tmp_path / "geo.json") == LocalFrame(11.0, 48.0, 500.0)
    matrix = np.array(splat_reference(LocalFrame(11.0, 48.0, 500.0))["ecef_from_local"]).reshape(4, 4)
    assert matrix[:3, 3] == pytest.approx(LocalFrame(11.0, 48.0, 500.0).ecef_from_enu[:3, 3])


@pytest.mark.parametrize("text", ["", "{}", '{"origin": [1, 2]}', '{"origin": {"lon": 1}}'])
def test_broken_reference_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "geo.json").write_text(text)
    with pytest.raises(SourceError, match=r"geo\.json does not say where"):
        read_frame(tmp_path / "geo.json")


def test_boxes_are_cut_to_their_cells_and_put_in_one_frame(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    splat = blobs(40, 1)
    splat.means[:3] += [1000, 0, 0]  # another box's
    splat.means[3] += [0, 0, 900]  # the sky
    put_box(lake, tmp_path / "a", "r00c00", splat)
    put_box(lake, tmp_path / "b", "r00c01", blobs(10, 1))
    made = splat_of_city(lake, "town", BOUNDS, GRID, lambda line: None)
    assert made.boxes.set_index("box").n_splats.to_dict() == {"r00c00": 36, "r00c01": 10}
    assert made.figures["n_splats"] == 46
    assert made.picture is not None
    lake.write("splat_city", made.boxes, city="town")
    key = lake.key("splats_city", city="town")
    assert lake.names(key) == [
        *("city.geo.json", "city.ply", "globe.html", "index.html", "lod", "tiles", "tileset.json", "viewer.html")
    ]
    with lake.local(key) as folder:
        city, frame = read_ply(folder / "city.ply"), read_frame(folder / "city.geo.json")
    assert (frame.lon, frame.lat) == pytest.approx(BOUNDS.centre)
    lon, lat, alt = frame.geodetic(city.means[36:])
    back = frame_of("r00c01").enu(lon, lat, alt)
    assert back == pytest.approx(blobs(10, 1).means, abs=1e-4)


@pytest.mark.parametrize("trained_on", ["these models", "older models"])
def test_boxes_move_by_the_alignment_of_the_models_they_were_trained_on(tmp_path: Path, trained_on: str) -> None:
    lake, said = Lake(tmp_path / "lake"), []
    model = TABLES["sparse_models"].frame([{"component": 0, "status": "placed"}])
    lake.write("sparse_models", model, city="town", box="r00c00")
    put_box(lake, tmp_path / "a", "r00c00", blobs(20, 1))
    turn = {"scale": 2.0, "qw": np.sqrt(0.5), "qx": 0.0, "qy": 0.0, "qz": np.sqrt(0.5)}
    row = {"box": "r00c00", "component": 0, "east_m": 1.0, "north_m": 2.0, "up_m": 3.0} | turn
    lake.write("city_alignment", TABLES["city_alignment"].frame([row]), city="town")
    if trained_on == "older models":
        path = tmp_path / "lake/tables/sparse_models/city=town/box=r00c00/data.parquet"
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 5))
    splat_of_city(lake, "town", BOUNDS, GRID, said.append)
    with lake.local(lake.key("splats_city", city="town")) as folder:
        city, frame = read_ply(folder / "city.ply"), read_frame(folder / "city.geo.json")
    found = frame_of("r00c00").enu(*frame.geodetic(city.means))
    was = blobs(20, 1).means
    if trained_on == "older models":
        assert found == pytest.approx(was, abs=1e-4)
        assert any("it is not moved" in line for line in said)
    else:
        moved = 2 * np.column_stack([-was[:, 1], was[:, 0], was[:, 2]]) + [1, 2, 3]
        assert found == pytest.approx(moved, abs=1e-4)
        assert city.log_scales == pytest.approx(blobs(20, 1).log_scales + np.log(2), abs=1e-5)


def test_pieces_of_all_boxes_are_streamed_and_tiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(city_module, "MOST_IN_PLY", 500)
    monkeypatch.setattr(city_module, "MOST_IN_ONE_FILE", 250)
    monkeypatch.setattr(city_module.Pyramid.__init__, "__defaults__", (200,))
    lake, said = Lake(tmp_path / "lake"), list[str]()
    towns.put_box(lake, "town", "r00c00", frame_of("r00c00"), town(700, 60), sky=dome(300, 400))
    towns.put_box(lake, "town", "r00c01", frame_of("r00c01"), town(150, 60, degree=3), sky=dome(300, 400))
    made = splat_of_city(lake, "town", BOUNDS, GRID, said.append)
    assert made.figures["n_splats"] == 850
    assert "ply_bytes" not in {k for k, v in made.figures.items() if v is not None}
    assert any("No city.ply: 850 Gaussians" in line for line in said)
    rows = made.boxes.set_index("box")
    assert rows.n_pieces.to_dict() == {"r00c00": 7, "r00c01": 1}
    assert made.figures["not_aligned"] == "r00c00, r00c01"
    with lake.local(lake.key("splats_city", city="town")) as folder:
        assert not (folder / "city.ply").exists()
        meta = json.loads((folder / "lod/lod-meta.json").read_text())
        assert (meta["lodLevels"], meta["counts"][0]) == (4, 850)
        for name in meta["filenames"]:
            splat = read_sog(folder / "lod" / name)
            assert 0 < len(splat) <= 200
        leaf = meta["tree"]["children"][-1]
        where = leaf["lods"]["0"]
        shown = read_sog(folder / "lod" / meta["filenames"][where["file"]])
        assert where["count"] == len(shown) == 150
        low, high = (np.array(leaf["bound"][k]) for k in ("min", "max"))
        assert (shown.means > low - 0.01).all()
        assert (shown.means < high + 0.01).all()
        assert shown.degree == 3
        # The page has y down: the town's roofs have negative y there, and east stays east.
        assert shown.means[:, 1].max() < 0.5
        assert np.median(shown.means[:, 0]) > 100
        sky = read_sog(folder / "lod" / meta["environment"])
        assert np.linalg.norm(sky.means, axis=1).min() > 3 * 200
        tileset = json.loads((folder / "tileset.json").read_text())
        tiles = list(tiles_below(tileset["root"]))
        assert {tile["content"]["uri"] for tile in tiles} == {f"tiles/{p.name}" for p in (folder / "tiles").iterdir()}
        assert all(tile["refine"] == "REPLACE" for tile in tiles)
        for tile in tiles:
            below = [child["geometricError"] for child in tile.get("children", [])]
            assert tile["geometricError"] >= max(below, default=0)
            assert bool(tile["geometricError"]) == bool(below)
        assert "lod/lod-meta.json" in (folder / "index.html").read_text()
        assert (folder / "viewer.html").stat().st_size > 1e6


def tiles_below(tile: dict) -> Iterator[dict]:
    yield tile
    for child in tile.get("children", []):
        yield from tiles_below(child)


def test_one_sky_of_the_skies_of_all_boxes() -> None:
    def patch(direction: list[float], colour: list[float]) -> Sky:
        return Sky(np.array([direction]), np.array([colour]), np.ones(1), np.array([0.1]))

    skies = [patch([0, 0, 1], [1, 0, 0]), patch([0, 0, 1], [0, 0, 1]), patch([1, 0, 0], [0, 0, 1])]
    sky = city_sky(skies, radius_m=900)
    assert np.linalg.norm(sky.means, axis=1) == pytest.approx(900, rel=1e-5)
    colours, high = 0.5 + 0.28209479 * sky.sh[:, 0], sky.means[:, 2] > 450
    assert high.any()
    assert colours[high] == pytest.approx(np.tile([0.5, 0, 0.5], (high.sum(), 1)), abs=1e-5)
    assert colours[~high] == pytest.approx(np.tile([0, 0, 1], ((~high).sum(), 1)), abs=1e-5)
    assert sky.means[~high, 0].min() > 800, "nothing where no box saw the sky"
    thin = rotations_of(sky.quats)[np.arange(len(sky)), :, np.argmin(sky.log_scales, axis=1)]
    assert np.abs((thin * sky.means).sum(axis=1)) == pytest.approx(900, rel=1e-3), "its Gaussians face the middle"
    assert len(city_sky([Sky.none()], 900)) == 0


def test_plys_are_joined_a_part_at_a_time(tmp_path: Path) -> None:
    parts = [blobs(20, 1), blobs(30, 3, seed=1)]
    for i, part in enumerate(parts):
        write_ply(tmp_path / f"{i}.ply", part)
    city_module.join_plys([tmp_path / "0.ply", tmp_path / "1.ply"], tmp_path / "all.ply")
    whole = read_ply(tmp_path / "all.ply")
    assert (len(whole), whole.degree) == (50, 3)
    assert whole.means == pytest.approx(np.concatenate([part.means for part in parts]))
    assert whole[:20].to_degree(1).sh == pytest.approx(parts[0].sh)


def test_seams_of_boxes_that_show_the_same_facades(tmp_path: Path) -> None:
    lake, shift = Lake(tmp_path / "lake"), 0.2
    middle = LocalFrame(GRID.bounds("r00c00").east, GRID.bounds("r00c00").centre[1], 500.0)
    wall = facade()
    eyes = [Camera.looking((x, -9, 3), (x, 0, 3), like=CAMERA) for x in (-2.0, 0.0, 2.0)]
    for box, moved in (("r00c00", 0.0), ("r00c01", shift)):
        turn, offset = between(frame_of(box), middle)
        towns.put_box(lake, "town", box, frame_of(box), wall.moved(turn, offset + np.array([moved, 0, 0])))
        rows = []
        for i, eye in enumerate(eyes):
            quat = quaternion_of(eye.rotation @ turn.T)
            place = dict(zip(("east_m", "north_m", "up_m"), turn @ eye.centre + offset, strict=True))
            rows.append(
                {"image_id": str(i), "component": 0} | place | dict(zip(("qw", "qx", "qy", "qz"), quat, strict=True))
            )
        lake.write("model_cameras", TABLES["model_cameras"].frame(rows), city="town", box=box)
    made = splat_of_city(lake, "town", BOUNDS, GRID, lambda line: None)
    assert made.figures["seam_m"] == pytest.approx(shift, abs=0.04)
    assert list(made.figures["seams"]) == ["r00c00 | r00c01"]
    assert made.boxes.seam_m.tolist() == pytest.approx([shift, shift], abs=0.04)


def test_a_city_without_splats(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.write("splat_ply", not_trained("too_few").splat, city="town", box="r00c00")
    made = splat_of_city(lake, "town", BOUNDS, GRID, lambda line: None)
    assert (len(made.boxes), made.figures["n_splats"], made.picture) == (0, 0, None)
    lake.write("splat_city", made.boxes, city="town")


def test_each_place_belongs_to_one_cell() -> None:
    means = np.random.default_rng(0).uniform(-600, 600, (500, 3)) * [1, 1, 0.01]
    splat = Gaussians.of(means, np.zeros((500, 3)), np.ones((500, 4)), np.zeros(500), np.zeros((500, 1, 3)))
    frame = frame_of("r00c00")
    counts = sum(within_cell(splat, frame, GRID.bounds(box)).astype(int) for box in GRID)
    assert isinstance(counts, np.ndarray)
    assert set(counts) <= {0, 1}
    assert counts.sum() > 100


def test_rows_of_an_untrained_box_fit_the_tables(tmp_path: Path) -> None:
    lake, made = Lake(tmp_path), not_trained("empty")
    lake.write("splat_ply", made.splat, city="town", box="r00c00")
    lake.write("splat_views", made.views, city="town", box="r00c00")
    row = lake.read("splat_ply", city="town", box="r00c00").iloc[0]
    assert (row.status, row.n_splats) == ("empty", 0)
    assert pd.isna(row.psnr_db)
