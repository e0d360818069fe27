import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag.landmarks import take_landmarks
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.tables import TABLES

A, B, C, D = "6e158a47eb2ca3f6", "202cd79556f30760", "3ad87684c99c06e1", "ffffffffffffffff"
TRAIN = f"id,url,landmark_id\n{A},https://x/1.jpg,7\n{B},https://x/2.jpg,8\nnot-an-id,https://x/3.jpg,7\n"
Place = tuple[float, float] | str


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "lake")
    put(lake, {"7": (2.35, 48.85), "8": "no_coordinate", "index/7": (-0.5, 51.5), "index/8": "missing"})
    return lake


def put(lake: Lake, places: Mapping[str, Place], part: str = "train-000000") -> None:
    """The table of landmarks: a position, or the status of a landmark without one."""
    rows: list[dict[str, Any]] = []
    for landmark, place in places.items():
        lon, lat, status = (None, None, place) if isinstance(place, str) else (*place, "found")
        rows.append({"landmark_id": landmark, "lon": lon, "lat": lat, "status": status})
    frame = pd.DataFrame(rows).reindex(columns=TABLES["landmark_coordinates"].column_names)
    lake.write("landmark_coordinates", frame, part=part)


def take(lake: Lake, files: Mapping[str, str], **settings: Any) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Photos, rejects and figures of a folder of such files."""
    folder = Path(lake.root).parent / "google_landmark"
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    figures = take_landmarks(lake, folder, Geotag(**settings))
    return lake.read("google_landmark"), lake.read("geotag_rejects", source="google_landmark", part="all"), figures


def test_photos_stand_at_their_landmark(lake):
    photos, rejects, figures = take(lake, {"train.csv": TRAIN})
    assert photos[["photo_id", "source", "path", "landmark_id", "lon", "lat"]].to_numpy().tolist() == [
        [A, "google_landmark", f"6/e/1/{A}.jpg", "7", 2.35, 48.85]
    ]
    assert photos["flags"].map(list).tolist() == [[]] and photos["author_hash"].dropna().tolist() == []
    assert rejects[["file", "row", "reason", "value"]].to_numpy().tolist() == [
        ["train.csv", "2", "the photo id is not 16 hex digits", "not-an-id"]
    ]
    assert figures == {"n_photos": 1, "n_rejects": 1, "n_unplaced": 1, "unplaced_by_status": {"no_coordinate": 1}}


@pytest.mark.parametrize("photo_id", ["", A.upper(), A[:15], A + "0", "../" + A[3:], A[:15] + "g"])
def test_what_is_no_id_is_a_reject_wherever_its_landmark_is(lake, photo_id):
    for landmark in ("7", "8"):
        photos, rejects, figures = take(lake, {"train.csv": f"id,url,landmark_id\n{photo_id},u,{landmark}\n"})
        assert photos.empty and figures["n_unplaced"] == 0
        assert rejects["reason"].tolist() == ["the photo id is not 16 hex digits"]


def test_photos_without_a_place_are_counted_by_the_status_of_their_landmark(lake):
    put(lake, {"9": "missing", "10": "error"}, part="train-002500")
    lines = [(A, 8), (B, 9), (C, 10), (D, 10), ("0" * 16, 11)]
    said: list[str] = []
    text = "id,url,landmark_id\n" + "".join(f"{photo},u,{k}\n" for photo, k in lines) + f"{'1' * 16},u,\n"
    photos, rejects, figures = take(lake, {"train.csv": text})
    assert photos.empty and rejects["reason"].tolist() == ["the landmark id is empty"]
    assert figures["n_unplaced"] == 5
    assert figures["unplaced_by_status"] == {"error": 2, "missing": 1, "no_coordinate": 1, "not_located": 1}
    take_landmarks(lake, Path(lake.root).parent / "google_landmark", Geotag(), said.append)
    assert "2 photos at landmarks without a coordinate: error" in said


def test_without_any_located_landmark_there_are_no_photos(tmp_path):
    photos, _, figures = take(Lake(tmp_path / "lake"), {"train.csv": TRAIN})
    assert photos.empty
    assert figures["unplaced_by_status"] == {"not_located": 2}


def test_a_landmark_in_two_parts_places_its_photos_once(lake):
    put(lake, {"7": "error", "8": (1.0, 2.0)}, part="train-000005")
    photos, _, _ = take(lake, {"train.csv": TRAIN})
    assert photos[["photo_id", "lon", "lat"]].to_numpy().tolist() == [[B, 1.0, 2.0], [A, 2.35, 48.85]]


def test_attribution_gives_author_and_licence_once(lake):
    credit = f'id,url,author,license,title\n{B},u,Bea,CC0,t\n{A},u,"Ada, L.",CC BY 4.0,"a ""t"", b"\n{A},u,Zoe,CC0,t\nx,u,X,Y,t\n'
    photos, rejects, _ = take(lake, {"train.csv": TRAIN, "train_attribution.csv": credit})
    assert photos["licence"].tolist() == ["CC BY 4.0"] and len(photos["author_hash"].tolist()[0]) == 16
    assert len(rejects) == 1
    other, _, _ = take(lake, {"train.csv": TRAIN, "train_attribution.csv": credit.replace("Ada", "Eva")})
    assert other["author_hash"].tolist() != photos["author_hash"].tolist()


def test_photos_that_the_clean_set_leaves_out_are_flagged(lake):
    put(lake, {"7": (2.35, 48.85), "8": (0.0, 0.0)})
    train = f"id,url,landmark_id\n{A},u,7\n{B},u,8\n{C},u,7\n"
    photos, _, _ = take(lake, {"train.csv": train, "train_clean.csv": f"landmark_id,images\n7,{A} {D}\n"})
    flags = dict(zip(photos["photo_id"], photos["flags"].map(list), strict=True))
    assert flags == {A: [], B: ["null_island", "unclean"], C: ["unclean"]}


def test_the_index_is_taken_where_it_is_wanted(lake):
    files = {
        "train.csv": TRAIN,
        "train_clean.csv": f"landmark_id,images\n7,{A}\n",
        "index_image_to_landmark.csv": f"id,landmark_id\n{C},7\n{D},8\nno,7\n",
    }
    assert len(take(lake, files)[0]) == 1
    photos, rejects, figures = take(lake, files, landmark_index=True)
    assert photos[["photo_id", "path", "landmark_id", "lon"]].to_numpy().tolist() == [
        [C, f"index/3/a/d/{C}.jpg", "index/7", -0.5],
        [A, f"6/e/1/{A}.jpg", "7", 2.35],
    ]
    assert photos["flags"].map(list).tolist() == [[], []]
    assert rejects["file"].tolist() == ["index_image_to_landmark.csv", "train.csv"]
    assert figures["unplaced_by_status"] == {"missing": 1, "no_coordinate": 1}


@pytest.mark.parametrize("below", ["", "metadata/", "train/"])
def test_files_lie_where_people_put_them(lake, below):
    files = {f"{below}train.csv": TRAIN, f"{below}train_clean.csv": f"landmark_id,images\n7,{B}\n"}
    index = {"index/index_image_to_landmark.csv": f"id,landmark_id\n{C},7\n"}
    photos, _, _ = take(lake, files | index, landmark_index=True)
    assert photos["flags"].map(list).tolist() == [[], ["unclean"]]


def test_lines_that_do_not_parse_are_rejects_of_their_file(lake):
    files = {
        "train.csv": TRAIN + f"{C},https://x/4.jpg,7,surplus\n",
        "train_attribution.csv": f"id,url,author,license,title\n{A},u\n{A},u,Ada,CC0,t\n",
        "train_clean.csv": f"landmark_id,images\n7\n7,{A}\n",
    }
    photos, rejects, _ = take(lake, files)
    assert photos["licence"].tolist() == ["CC0"]
    assert rejects[["file", "row"]].to_numpy().tolist() == [
        ["train.csv", "2"],
        ["train.csv", "line 5"],
        ["train_attribution.csv", "line 2"],
        ["train_clean.csv", "line 2"],
    ]


def test_columns_go_by_any_case_and_a_photo_listed_twice_gives_the_same_bytes(lake):
    lines = [f"7,{A}", f"7,{B}", f"7,{A}", f"8,{A}"]
    put(lake, {"7": (2.35, 48.85), "8": (1.0, 1.0)})
    written: set[bytes] = set()
    for order in (lines, lines[::-1]):
        photos, _, _ = take(lake, {"train.csv": "Landmark_ID,ID\n" + "\n".join(order) + "\n"})
        assert photos["photo_id"].tolist() == [B, A, A, A]
        written.add((Path(lake.root) / "tables/google_landmark/data.parquet").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"other.csv": ""}, {}, "train.csv is missing in .*google_landmark.*Get it as https"),
        ({"train.csv": TRAIN}, {"landmark_index": True}, r"index_image_to_landmark\.csv is missing in"),
        ({"train.csv": "a,b\n"}, {}, r"train\.csv lacks photo_id \(id\), landmark_id"),
        ({"train.csv": TRAIN, "train_clean.csv": "a,b\n"}, {}, r"train_clean\.csv lacks images"),
        ({"train.csv": TRAIN, "train_attribution.csv": "a,b\n"}, {}, r"train_attribution\.csv lacks photo_id"),
    ],
)
def test_what_is_missing_is_named(lake, files, settings, message):
    with pytest.raises(SourceError, match=message):
        take(lake, files, **settings)


def test_the_samples_of_the_set(real_data: Path, lake: Lake):
    samples = real_data / "geotag/gldv2"
    located = pd.read_csv(samples / "gldv2_gc_sample.csv", dtype={"landmark_id": str})
    labels = pd.read_csv(samples / "train_label_to_category_sample.csv", dtype=str)
    put(lake, {k: (lon, lat) for k, lon, lat in located[["landmark_id", "longitude", "latitude"]].to_numpy()})
    head = (samples / "train_head.csv").read_text().rstrip("\n") + "\n"
    made = "".join(f"{int(k):016x},u,{k}\n" for k in labels["landmark_id"])
    photos, rejects, figures = take(lake, {"metadata/train.csv": head + made})
    assert rejects.empty and figures["unplaced_by_status"] == {"not_located": 5}
    found = photos.set_index("landmark_id").loc[located["landmark_id"], ["lon", "lat"]].to_numpy()
    assert found.tolist() == located[["longitude", "latitude"]].to_numpy().tolist() and len(photos) == 25
