import shutil
from pathlib import Path

import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag.landmarks import read_landmarks

TRAIN = "id,url,landmark_id\n6e158a47eb2ca3f6,https://x/1.jpg,7\n202cd79556f30760,https://x/2.jpg,8\nnot-an-id,https://x/3.jpg,7\n"


@pytest.mark.parametrize("header", ["landmark_id,lon,lat", "id,longitude,latitude", "Landmark_ID,Longitude,Latitude"])
def test_photos_stand_at_their_landmark(tmp_path, header):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "landmark_coordinates.csv").write_text(f"{header}\n7,2.35,48.85\n")
    said: list[str] = []
    photos, rejects = read_landmarks(tmp_path, said.append)
    assert photos[["photo_id", "path", "landmark_id", "lon", "lat"]].values.tolist() == [
        ["6e158a47eb2ca3f6", "6/e/1/6e158a47eb2ca3f6.jpg", "7", 2.35, 48.85]
    ]
    assert rejects["value"].tolist() == ["not-an-id"]
    assert said == ["3 photos, 1 of them at landmarks without a coordinate"]


def test_attribution_gives_author_and_licence(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "landmark_coordinates.csv").write_text("landmark_id,lon,lat\n7,2.35,48.85\n")
    (tmp_path / "train_attribution.csv").write_text(
        'id,url,author,license,title\n6e158a47eb2ca3f6,u,"Ada, L.",CC BY 4.0,t\n'
    )
    photos, _ = read_landmarks(tmp_path)
    assert photos["licence"].tolist() == ["CC BY 4.0"] and len(photos["author_hash"][0]) == 16


def test_bad_landmarks_are_rejects_once_each(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "landmark_coordinates.csv").write_text(
        "landmark_id,lon,lat\n7,2.35,48.85\n8,nan,48\n7,0,1\n9,500,1\n10,,\n"
    )
    photos, rejects = read_landmarks(tmp_path)
    assert len(photos) == 1
    assert rejects["file"].tolist() == ["landmark_coordinates.csv"] * 3 + ["train.csv"]
    assert rejects["row"].tolist()[:3] == ["1", "2", "3"]


def test_a_line_with_too_many_fields_is_a_reject(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN + "3ad87684c99c06e1,https://x/4.jpg,7,surplus\n")
    (tmp_path / "landmark_coordinates.csv").write_text("landmark_id,lon,lat\n7,2.35,48.85\n")
    photos, rejects = read_landmarks(tmp_path)
    assert len(photos) == 1
    assert "3ad87684c99c06e1,https://x/4.jpg,7,surplus" in rejects["value"].tolist()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "train.csv is missing"),
        ({"train.csv": TRAIN}, "landmark_coordinates.csv is missing in .* landmark_id, lon, lat"),
        ({"train.csv": TRAIN, "landmark_coordinates.csv": "landmark_id,x,y\n1,2,3\n"}, "lacks lon .*longitude"),
        ({"train.csv": "a,b\n", "landmark_coordinates.csv": "id,lon,lat\n1,2,3\n"}, "train.csv lacks photo_id"),
        ({"train.csv": TRAIN, "landmark_coordinates.csv": ""}, "no readable header"),
    ],
)
def test_what_is_missing_is_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        read_landmarks(tmp_path)


def test_the_sample_of_landmark_coordinates(real_data: Path, tmp_path):
    shutil.copy(real_data / "geotag/gldv2/gldv2_gc_sample.csv", tmp_path / "landmark_coordinates.csv")
    (tmp_path / "train.csv").write_text("id,url,landmark_id\n6e158a47eb2ca3f6,u,2\n202cd79556f30760,u,3\n")
    photos, rejects = read_landmarks(tmp_path)
    assert photos["lat"].tolist() == [47.959444444444, -28.1833] and rejects.empty
