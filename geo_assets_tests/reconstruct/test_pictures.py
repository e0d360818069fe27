from __future__ import annotations

import io
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_assets.geodesy import LocalFrame
from geo_assets.grid import Grid
from geo_assets.lake import Lake
from geo_assets.pictures import MAX_BYTES
from geo_assets.reconstruct import pictures, previews
from geo_assets.tables import TABLES

WHERE = {"city": "town", "box": "r00c00"}


PLACE = ["image_id", "east_m", "north_m", "up_m"]


def crowd(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(0, 200, (n, 2)), columns=["east_m", "north_m"])
    home = np.where(frame.east_m > 250, "r00c01", "r00c00")
    known = frame.assign(image_id=[str(k) for k in range(n)], heading_deg=rng.uniform(0, 360, n), home_box=home)
    return known.assign(up_m=rng.normal(0, 2, n), sequence_id=[f"s{k % 7}" for k in range(n)])


def test_pictures_stay_small_enough_for_the_event_log():
    images = crowd(3000)
    rng = np.random.default_rng(1)
    ends = rng.integers(0, 3000, (20_000, 2)).astype(str)
    pairs = pd.DataFrame(
        {"image_id_a": ends[:, 0], "image_id_b": ends[:, 1], "n_inliers": rng.integers(0, 900, 20_000)}
    )
    pairs["verified"] = pairs.n_inliers >= 15
    points = np.column_stack([rng.normal(0, 200, (4000, 3)), rng.uniform(0, 255, (4000, 3))])
    made = [
        pictures.prior_map(images, "r00c00"),
        pictures.pair_pictures(images, pairs),
        pictures.model_map(images, pd.DataFrame(images[PLACE]), points),
        pictures.model_side(images, pd.DataFrame(images[PLACE]), points),
        pictures.fringe_map(images, pairs, "r00c00", (-250.0, -250.0, 250.0, 250.0)),
    ]
    assert all(png.startswith(b"\x89PNG") and len(png) <= MAX_BYTES for png in made)


def test_pictures_of_nothing_are_still_pictures():
    images = crowd(1).assign(heading_deg=np.nan)
    none = pd.DataFrame({"image_id_a": [], "image_id_b": [], "n_inliers": [], "verified": []})
    assert pictures.prior_map(images, "other").startswith(b"\x89PNG")
    assert pictures.pair_pictures(images, none).startswith(b"\x89PNG")
    assert pictures.model_map(images, pd.DataFrame(images[:0]), np.zeros((0, 6))).startswith(b"\x89PNG")
    assert pictures.model_side(images, pd.DataFrame(images[PLACE][:0]), np.zeros((0, 6))).startswith(b"\x89PNG")
    assert pictures.fringe_map(images, none, "other").startswith(b"\x89PNG")
    assert opened(pictures.pair_preview([])).width > 0


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def grey(width: int, height: int, level: int = 128) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), (level,) * 3).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def reddish(picture: Image.Image) -> np.ndarray:
    """Where a picture is red [rows, columns]."""
    pixels = np.asarray(picture).astype(int)
    return (pixels[..., 0] > pixels[..., 1] + 40) & (pixels[..., 0] > pixels[..., 2] + 40)


def test_a_preview_draws_its_lines_from_match_to_match():
    points = np.array([[0.0, 0.0], [320.0, 120.0]])
    pair = pictures.PairPhotos(
        "quarantined", (grey(640, 480), grey(640, 480)), (points, points), np.array([[1, 1]]), False
    )
    picture = opened(pictures.pair_preview([pair]))
    rows, columns = np.nonzero(reddish(picture))
    # A quarter below the top of photos of 298 x 224 pixels, from the middle of the left one to that of the right one.
    assert abs(np.median(rows) - (18 + 224 / 4)) <= 2
    assert abs(columns.min() - 149) <= 5 and abs(columns.max() - (302 + 149)) <= 5
    good = pictures.PairPhotos("strongest", pair.jpegs, pair.keypoints, pair.matches)
    assert not reddish(opened(pictures.pair_preview([good]))).any()
    assert opened(pictures.pair_preview([pair, good])).height == 2 * picture.height


def test_a_preview_of_photos_of_two_shapes_and_many_matches_stays_small():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG")
    points = rng.uniform(0, 400, (5000, 2))
    pair = pictures.PairPhotos(
        "x", (sink.getvalue(), grey(480, 640)), (points, points), np.column_stack([np.arange(5000)] * 2)
    )
    assert len(pictures.pair_preview([pair] * 3)) <= MAX_BYTES


def test_unregistered_images_and_those_without_a_pair_are_marked():
    images = crowd(40)
    all_of_them, some = (
        pictures.model_map(images, pd.DataFrame(images[PLACE][:n]), np.zeros((0, 6))) for n in (40, 30)
    )
    black = [int((np.asarray(opened(png)).max(axis=-1) < 60).sum()) for png in (all_of_them, some)]
    assert black[1] > black[0] + 40


def test_pairs_across_the_border_are_red():
    images = pd.DataFrame({"image_id": ["a", "b", "c"], "east_m": [-30.0, -10.0, 30.0], "north_m": 0.0})
    images["home_box"] = ["r00c00", "r00c00", "r00c01"]
    pair = {"image_id_a": "a", "n_inliers": 300, "verified": True}
    inside = pictures.fringe_map(images, pd.DataFrame([pair | {"image_id_b": "b"}]), "r00c00")
    across = pictures.fringe_map(images, pd.DataFrame([pair | {"image_id_b": "c"}]), "r00c00")
    assert reddish(opened(across)).sum() > reddish(opened(inside)).sum() + 50


# -- which pairs are shown ----------------------------------------------------------------------------------


def pair_rows(*rows: tuple[str, str, int, bool, str | None]) -> pd.DataFrame:
    columns = ["image_id_a", "image_id_b", "n_inliers", "verified", "quarantine"]
    frame = pd.DataFrame(rows, columns=columns).assign(n_matches=50, distance_m=5.0)
    return frame.reindex(columns=TABLES["match_pairs"].column_names)


def test_the_strongest_the_median_and_an_impossible_pair_are_shown():
    pairs = pair_rows(
        ("a", "b", 100, True, None), ("a", "c", 30, True, None), ("b", "c", 20, True, None), ("a", "d", 900, True, "logo"),
        ("c", "d", 14, False, None),
    )  # fmt: skip
    shown = {label: (pair.image_id_a, pair.image_id_b) for label, pair in previews.chosen_pairs(pairs)}
    assert shown == {"strongest": ("a", "b"), "median": ("a", "c"), "quarantined": ("a", "d")}
    assert previews.chosen_pairs(pairs.iloc[4:]) == []


@pytest.mark.parametrize("ids", [{"a": 3, "b": 9}, {"a": 9, "b": 3}], ids=["as stored", "swapped"])
def test_photos_features_and_matches_are_read_as_they_belong_together(tmp_path: Path, ids: dict[str, int]):
    lake = Lake(tmp_path / "lake")
    points = {"a": np.array([[1, 2, 0, 0], [3, 4, 0, 0]], np.float32), "b": np.array([[5, 6, 0, 0]] * 4, np.float32)}
    stored = np.array([[1, 3]], np.uint32) if ids["a"] < ids["b"] else np.array([[3, 1]], np.uint32)
    folder = tmp_path / "matches"
    folder.mkdir()
    con = sqlite3.connect(folder / "database.db")
    con.execute("create table keypoints (image_id integer, rows integer, cols integer, data blob)")
    con.execute("create table two_view_geometries (pair_id integer, rows integer, cols integer, data blob)")
    for name, array in points.items():
        con.execute("insert into keypoints values (?, ?, 4, ?)", [ids[name], len(array), array.tobytes()])
    con.execute("insert into two_view_geometries values (?, 1, 2, ?)", [(2**31 - 1) * 3 + 9, stored.tobytes()])
    con.commit()
    con.close()
    lake.publish(folder, lake.key("matches", **WHERE))
    for name, level in (("a", 10), ("b", 200)):
        lake.put_bytes(f"files/{name}.jpg", grey(8, 8, level))
    images = pd.DataFrame(
        {"image_id": list("ab"), "colmap_image_id": [ids["a"], ids["b"]], "path": ["files/a.jpg", "files/b.jpg"]}
    )
    (pair,) = previews.pair_photos(lake, **WHERE, images=images, pairs=pair_rows(("a", "b", 1, True, None)))
    assert pair.keypoints[0][pair.matches[0, 0]].tolist() == [3, 4]
    assert pair.keypoints[1][pair.matches[0, 1]].tolist() == [5, 6] and pair.matches.tolist() == [[1, 3]]
    assert [opened(data).getpixel((0, 0)) for data in pair.jpegs] == [(10, 10, 10), (200, 200, 200)]
    # What is gone is not shown, and no reason to fail.
    lake.remove("files/b.jpg")
    assert previews.pair_photos(lake, **WHERE, images=images, pairs=pair_rows(("a", "b", 1, True, None))) == []


def test_the_edges_of_a_box_stand_in_metres_around_its_origin():
    box = Grid(10.0, 50.0, 500.0, 1, 1).bounds("r00c00")
    west, south, east, north = previews.bounds_m(box, {"origin": [*box.centre, 100.0]})
    assert west == pytest.approx(-250, abs=1) and north == pytest.approx(250, abs=1)
    assert east == pytest.approx(250, abs=1) and south == pytest.approx(-250, abs=1)
    assert LocalFrame(*box.centre).enu(box.east, box.north)[0] == pytest.approx(east, abs=0.1)
