import csv
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import piexif
import pytest
from PIL import Image, UnidentifiedImageError

from geo_assets.demo.geotag_inputs import (
    N_LANDMARK,
    N_LISTED,
    N_PLACING,
    N_SHARED,
    wikimedia_world,
    write_geotag_inputs,
)
from geo_assets.geodesy import ecef
from geo_assets.geotag.wikimedia_answers import title_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("geotag")
    write_geotag_inputs(folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source))


def records(path: Path) -> list[Any]:
    with path.open("rb") as stream:
        return list(msgpack.Unpacker(stream, raw=False))


def exif_degrees(gps: dict[int, Any]) -> tuple[float, float]:
    found = []
    for ref, value in ((3, 4), (1, 2)):
        d, m, s = (a / b for a, b in gps[value])
        found.append((d + m / 60 + s / 3600) * (-1 if gps[ref] in (b"S", b"W") else 1))
    return found[0], found[1]


def every_position(folder: Path) -> np.ndarray:
    placing = [(float(r["LON"]), float(r["LAT"])) for r in rows(folder / "placing_2016/mp16_places365.csv")]
    flickr = [(float(r["longitude"]), float(r["latitude"])) for r in rows(folder / "flickr_geotag/photos.csv")]
    known = {title: c.position for title, c in wikimedia_world().categories.items() if c.position is not None}
    titles = {
        r["landmark_id"]: title_of(r["category"]) for r in rows(folder / "google_landmark/train_label_to_category.csv")
    }
    photos = (known.get(titles[r["landmark_id"]] or "") for r in rows(folder / "google_landmark/train.csv"))
    return np.array(placing + flickr + [position for position in photos if position is not None])


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_geotag_inputs(tmp_path / "a")
    write_geotag_inputs(tmp_path / "b", seed=1)
    assert hashes(tmp_path / "a") == hashes(folder)
    assert hashes(tmp_path / "b") != hashes(folder)


def test_writing_again_replaces_and_leaves_the_neighbours(tmp_path: Path) -> None:
    write_geotag_inputs(tmp_path)
    wanted = hashes(tmp_path)
    (tmp_path / "placing_2016" / "shard_9.msg").write_bytes(b"old")
    (tmp_path / "mine.txt").write_text("kept")
    write_geotag_inputs(tmp_path)
    found = hashes(tmp_path)
    assert found.pop("mine.txt")
    assert found == wanted


def test_shards_are_streams_of_maps(folder: Path) -> None:
    full = [r for k in (0, 1) for r in records(folder / f"placing_2016/shard_{k}.msg")]
    bare = records(folder / "placing_2016/shard_2.msg")
    assert all(r.keys() == {"image", "id", "latitude", "longitude"} for r in full)
    assert all(r.keys() == {"image", "id"} for r in bare)
    listed = {r["IMG_ID"]: r for r in rows(folder / "placing_2016/mp16_places365.csv")}
    assert len(listed) == N_PLACING
    for r in full:
        assert (float(listed[r["id"]]["LAT"]), float(listed[r["id"]]["LON"])) == (r["latitude"], r["longitude"])
    assert {r["id"] for r in bare} <= listed.keys()
    assert all(r["image"].startswith(b"\xff\xd8") for r in full + bare)


def test_one_shard_breaks_off_inside_a_record(folder: Path) -> None:
    path = folder / "placing_2016/shard_4.msg"
    with path.open("rb") as stream:
        unpacker = msgpack.Unpacker(stream, raw=False)
        whole = list(unpacker)
        assert len(whole) == 59
        assert unpacker.tell() < path.stat().st_size


def test_bad_records_are_bad_in_different_ways(folder: Path) -> None:
    bad = records(folder / "placing_2016/shard_3.msg")
    maps = [r for r in bad if isinstance(r, dict)]
    assert len(maps) == len(bad) - 1
    assert sum(".." in r.get("id", "") or r.get("id", "").startswith("/") for r in maps) == 2
    assert any(isinstance(r.get("latitude"), float) and np.isnan(r["latitude"]) for r in maps)
    assert any(r.get("latitude") == 95 for r in maps)
    assert any("id" not in r for r in maps) and any("longitude" not in r for r in maps)
    assert {179.9999, -179.9999} <= {r.get("longitude") for r in maps}


def test_landmarks_join(folder: Path) -> None:
    base = folder / "google_landmark"
    train, category = rows(base / "train.csv"), {r["landmark_id"] for r in rows(base / "train_label_to_category.csv")}
    assert len({r["id"] for r in train}) == len(train) == N_LANDMARK
    assert all(len(r["id"]) == 16 and int(r["id"], 16) >= 0 for r in train)
    assert {r["landmark_id"] for r in train} == category
    assert {r["landmark_id"] for r in rows(base / "train_label_to_hierarchical.csv")} == category
    listed = rows(base / "landmark_coordinates.csv")
    assert len(listed) == N_LISTED and {r["landmark_id"] for r in listed} < category
    assert sum("″ N" in r["geohack"] or "″ S" in r["geohack"] for r in listed) == 1
    titles = {title_of(r["category"]) for r in rows(base / "train_label_to_category.csv")}
    # One landmark's category is gone; redirects lead to categories that are no landmarks'.
    assert len(titles - wikimedia_world().categories.keys()) == 1
    assert {r["id"] for r in rows(base / "train_attribution.csv")} == {r["id"] for r in train}
    photos = {r["id"]: r["landmark_id"] for r in train}
    for r in rows(base / "train_clean.csv"):
        assert {photos[p] for p in r["images"].split()} == {r["landmark_id"]}
    assert '"http://commons.wikimedia.org/wiki/Category:Hill,' in (base / "train_label_to_category.csv").read_text()
    counts = Counter(r["landmark_id"] for r in train)
    assert min(counts.values()) == 1 and max(counts.values()) > 40


def test_photos_carry_their_position(folder: Path) -> None:
    signs, without, broken = set(), [], []
    listed = {r["photo_id"] for r in rows(folder / "flickr_geotag/photos.csv")}
    for path in sorted((folder / "flickr_geotag/1").rglob("*.jpg")):
        assert path.stem.isdigit() and path.stem not in listed
        try:
            Image.open(path).load()
        except (UnidentifiedImageError, OSError):
            broken.append(path.name)
            continue
        gps = piexif.load(str(path))["GPS"]
        if not gps:
            without.append(path.name)
            continue
        lon, lat = exif_degrees(gps)
        assert abs(lon) <= 180 and abs(lat) <= 90
        signs.add((lon < 0, lat < 0))
    assert (len(without), len(broken)) == (1, 1)
    assert signs == {(a, b) for a in (False, True) for b in (False, True)}


def test_some_photos_are_in_two_sets_at_the_same_place(folder: Path) -> None:
    placing = {
        r["IMG_ID"].rsplit("/", 1)[-1].removesuffix(".jpg"): r for r in rows(folder / "placing_2016/mp16_places365.csv")
    }
    listed = {r["photo_id"]: r for r in rows(folder / "flickr_geotag/photos.csv")}
    files = {p.stem: p for p in (folder / "flickr_geotag/1").rglob("*.jpg")}
    assert len(placing.keys() & (listed.keys() | files.keys())) == N_SHARED
    for number in placing.keys() & listed.keys():
        assert float(placing[number]["LON"]) == float(listed[number]["longitude"])
    for number in placing.keys() & files.keys():
        lon, lat = exif_degrees(piexif.load(str(files[number]))["GPS"])
        assert lon == pytest.approx(float(placing[number]["LON"]), abs=1e-6)
        assert lat == pytest.approx(float(placing[number]["LAT"]), abs=1e-6)


def test_photos_cluster_and_some_lie_on_both_sides_of_the_antimeridian(folder: Path) -> None:
    from scipy.spatial import KDTree

    positions = every_position(folder)
    assert 2200 < len(positions) < 3300
    duplicates = 1 - len(np.unique(positions, axis=0)) / len(positions)
    assert duplicates > 0.04
    unique = np.unique(positions, axis=0)
    distance = KDTree(ecef(unique[:, 0], unique[:, 1])).query(ecef(unique[:, 0], unique[:, 1]), k=6)[0][:, 5]
    assert np.mean(distance < 10_000) > 0.8, "most photos have five others within 10 km"
    assert np.mean(distance > 50_000) > 0.03, "some are noise"
    fiji = unique[(np.abs(unique[:, 1] + 16.8) < 0.3) & (np.abs(unique[:, 0]) > 179.5)]
    assert (fiji[:, 0] > 0).sum() >= 3 and (fiji[:, 0] < 0).sum() >= 3
