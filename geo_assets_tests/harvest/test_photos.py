"""A city made of the user's own photos."""

import hashlib
import io
from pathlib import Path

import pandas as pd
import piexif
import pytest
from PIL import Image

from geo_assets.errors import ConfigError
from geo_assets.exif import rationals
from geo_assets.harvest import photos
from geo_assets.harvest.source import Box, PhotoFolder
from geo_assets.lake import Lake
from geo_assets.tables import TABLES


def photo(path: Path, lon: float | None, lat: float = 48.1, **tags: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    gps: dict = dict(tags.get("gps", {}))
    if lon is not None:
        gps |= {1: b"N" if lat >= 0 else b"S", 2: rationals(lat), 3: b"E" if lon >= 0 else b"W", 4: rationals(lon)}
    exif = piexif.dump({"0th": tags.get("zeroth", {}), "Exif": tags.get("exif", {}), "GPS": gps})
    Image.new("RGB", (40, 30), (10, 200, 30)).save(path, "JPEG", exif=exif)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    photo(
        root / "a" / "1.JPG",
        11.5,
        48.1,
        zeroth={271: b"Maker", 272: b"Model", 274: 6, 315: b"Ann", 33432: b"CC0"},
        exif={36867: b"2024:05:01 12:00:00", 36881: b"+02:00", 41989: 24},
        gps={5: 1, 6: (52, 10), 16: b"T", 17: (27050, 100)},
    )
    photo(root / "a" / "2.jpeg", 11.5005, 48.1002)
    photo(root / "b" / "deep" / "3.jpg", 11.501, 48.1)
    photo(root / "no_gps.jpg", None)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe1\x00\x10Exif")
    (root / "text.jpg").write_text("not a photo")
    (root / "notes.txt").write_text("not looked at")
    return root


def test_a_folder_is_read(folder: Path) -> None:
    found = photos.scan(folder)
    assert found.photos["source_path"].tolist() == ["a/1.JPG", "a/2.jpeg", "b/deep/3.jpg"]
    assert found.rejects["path"].tolist() == ["broken.jpg", "no_gps.jpg", "text.jpg"]
    assert "no GPS" in found.rejects["reason"][1] and "cannot be read" in found.rejects["reason"][0]
    first = found.photos.iloc[0]
    assert first["image_id"] == hashlib.sha256(b"a/1.JPG").hexdigest()[:16]
    assert (first["lon"], first["lat"]) == pytest.approx((11.5, 48.1), abs=1e-8)
    assert (first["altitude_m"], first["compass_deg"], first["exif_orientation"]) == (-5.2, 270.5, 6)
    assert first["captured_at"] == pd.Timestamp("2024-05-01 10:00:00", tz="UTC")
    assert first["camera_parameters"][0] == pytest.approx(24 / 36)
    assert (first["make"], first["creator_username"], first["licence"]) == ("Maker", "Ann", "CC0")
    assert first["attribution"] == "Own photo a/1.JPG, by Ann"
    assert len(set(found.photos["sequence_id"])) == 2
    TABLES["image_metadata"].conform(found.photos)


@pytest.mark.parametrize(
    "gps",
    [
        {1: b"N", 2: ((48, 1), (0, 0), (0, 1)), 3: b"E", 4: rationals(11.0)},
        {1: b"N", 2: rationals(95.0), 3: b"E", 4: rationals(11.0)},
        {1: b"N", 2: rationals(48.0)},
    ],
)
def test_senseless_positions_are_rejected(tmp_path: Path, gps: dict) -> None:
    photo(tmp_path / "x.jpg", None, gps=gps)
    found = photos.scan(tmp_path)
    assert found.photos.empty and "no GPS" in found.rejects["reason"][0]


@pytest.mark.parametrize(("lon", "lat"), [(-70.65, -33.45), (151.2, -33.8), (-122.4, 37.7)])
def test_hemispheres(tmp_path: Path, lon: float, lat: float) -> None:
    photo(tmp_path / "x.jpg", lon, lat)
    row = photos.scan(tmp_path).photos.iloc[0]
    assert (row["lon"], row["lat"]) == pytest.approx((lon, lat), abs=1e-8)


def test_a_city_is_made_around_the_photos(folder: Path) -> None:
    city = photos.photo_city(folder, 100.0)
    assert city.photos == folder and city.origin == city.bbox[:2]
    grid, found = city.grid, photos.scan(folder).photos
    homes = [grid.box_at(x, y) for x, y in zip(found["lon"], found["lat"], strict=True)]
    assert None not in homes


def test_a_folder_without_positions_is_no_city(tmp_path: Path) -> None:
    photo(tmp_path / "x.jpg", None)
    with pytest.raises(ConfigError, match=r"1 JPEG files looked at.*x\.jpg has no GPS"):
        photos.photo_city(tmp_path, 100.0)
    with pytest.raises(ConfigError, match="does not exist"):
        photos.scan(tmp_path / "absent")


def harvest(folder: Path, lake: Lake, box_m: float) -> pd.DataFrame:
    city, files = photos.photo_city(folder, box_m), []
    for name in city.grid:
        box = PhotoFolder(Box("mine", name, city, lake), folder)
        plan, found = box.plan().row, box.discover()
        described = box.describe(found.images, found.sequences, found.figures)
        assert plan["n_images"].tolist()[0] == len(found.images) == len(described.metadata)
        assert bool(described.certificate["complete"][0])
        for table, frame in [("sequence_ids", found.sequences), ("sequence_images", found.images)]:
            TABLES[table].conform(frame)
        files.append(box.fetch(described.metadata).files.assign(box=name))
    return pd.concat(files, ignore_index=True)


def test_all_boxes_together_hold_every_photo_once_unchanged(folder: Path, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    files = harvest(folder, lake, 40.0)
    paths = dict(zip(files["image_id"], files["path"], strict=True))
    assert len(files) == len(paths) == 3 and len(set(files["box"])) > 1
    for name in photos.scan(folder).photos["source_path"]:
        assert lake.get_bytes(paths[photos.photo_id(name)]) == (folder / name).read_bytes()


def test_a_photo_that_was_cut_off_is_a_dead_row(folder: Path, tmp_path: Path) -> None:
    victim = folder / "a" / "2.jpeg"
    victim.write_bytes(victim.read_bytes()[:-30])
    files = harvest(folder, Lake(tmp_path / "lake"), 500.0)
    assert sorted(files["status"]) == ["dead", "done", "done"]
    assert "its end is missing" in files.loc[files["status"] == "dead", "reason"].iloc[0]


def test_a_second_copy_keeps_what_is_there(folder: Path, tmp_path: Path) -> None:
    lake, city = Lake(tmp_path / "lake"), photos.photo_city(folder, 500.0)
    box = PhotoFolder(Box("mine", "r00c00", city, lake), folder)
    here = photos.scan(folder).photos
    assert (box.fetch(here).n_fetched, box.fetch(here).n_kept) == (3, 3)


def test_real_photos(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "images/lund"
    files = harvest(folder, Lake(tmp_path / "lake"), 100.0)
    assert len(files) == 29 and set(files["status"]) == {"done"}
    sample = files.iloc[0]
    data = Lake(tmp_path / "lake").get_bytes(sample["path"])
    assert Image.open(io.BytesIO(data)).size == (sample["width"], sample["height"])
    assert hashlib.sha256(data).hexdigest() == sample["sha256"]
