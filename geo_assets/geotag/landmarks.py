"""Google Landmarks v2: photos of ``train.csv``, each at the coordinate of its landmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from geo_assets.errors import SourceError
from geo_assets.geotag import csvs
from geo_assets.geotag.photos import no_rejects, refuse_swapped, sift

TRAIN, COORDINATES, ATTRIBUTION = "train.csv", "landmark_coordinates.csv", "train_attribution.csv"


def read_landmarks(folder: Path, log: Callable[[str], None] = lambda line: None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Join photos, landmark coordinates and, where it is there, ``train_attribution.csv``.

    Args:
        folder: holds ``train.csv`` (id, url, landmark_id) and ``landmark_coordinates.csv`` (landmark_id, lon, lat).
        log: told how many photos have a landmark without a coordinate; they are no rows and no rejects.

    Returns:
        Rows of table ``google_landmark`` and of ``geotag_rejects``.

    Raises:
        SourceError: a file or a column is missing; the message says which.
    """
    _require(folder / TRAIN, "the columns id, url, landmark_id (s3.amazonaws.com/google-landmark/metadata/train.csv)")
    _require(folder / COORDINATES, "one line a landmark, with the columns landmark_id, lon, lat in degrees")
    landmarks, landmark_rejects = _landmarks(folder / COORDINATES)
    train = csvs.read(folder / TRAIN, {"photo_id": ("id",), "landmark_id": ("landmark_id",)})
    photos = train.frame.assign(row=range(len(train.frame)))
    placed = photos["landmark_id"].isin(landmarks.index.to_series())
    log(f"{len(photos):,} photos, {(~placed).to_numpy().sum():,} of them at landmarks without a coordinate")
    raw = photos[placed].join(landmarks, on="landmark_id")
    # The tar files keep a photo below the first three letters of its id; anything else is no id of this set.
    is_id = raw["photo_id"].str.fullmatch("[0-9a-f]{16}").fillna(False).astype(bool)
    p = raw["photo_id"]
    raw["path"] = (p.str[0] + "/" + p.str[1] + "/" + p.str[2] + "/" + p + ".jpg").astype(object)
    raw["fault"] = (~is_id).map({True: "the photo id is not 16 hex digits", False: None})
    raw["value"] = raw["photo_id"]
    raw["file"] = TRAIN
    raw, author_rejects = _with_authors(raw, folder / ATTRIBUTION)
    rows, rejects = sift(raw, "google_landmark")
    return rows, pd.concat([landmark_rejects, rejects, train.rejects, author_rejects], ignore_index=True)


def _require(file: Path, what: str) -> None:
    if not file.exists():
        raise SourceError(f"{file.name} is missing in {file.parent}: it must hold {what}.", file=str(file))


def _landmarks(file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Usable coordinates ``lon, lat`` by landmark id, and the lines that are not usable."""
    roles = {"landmark_id": ("landmark_id", "id"), "lon": csvs.LON_NAMES, "lat": csvs.LAT_NAMES}
    csv = csvs.read(file, roles)
    table = csv.frame
    refuse_swapped(file, table, (csv.names["lon"], csv.names["lat"]))
    table = table.assign(file=file.name, row=range(len(table)), photo_id=table["landmark_id"], path="landmark")
    # Landmarks that a search found no coordinate for stand there with empty fields; they are known gaps, not faults.
    table = table.dropna(subset=["lon", "lat"], how="all").assign(fault=None, value=lambda t: t["landmark_id"])
    table.loc[table["landmark_id"].duplicated(), "fault"] = "the landmark has a coordinate already"
    table.loc[table["landmark_id"].isna(), "fault"] = "the landmark id is empty"
    good, rejects = sift(table, "google_landmark")
    return good.set_index("photo_id").loc[:, ["lon", "lat"]], pd.concat([rejects, csv.rejects], ignore_index=True)


def _with_authors(raw: pd.DataFrame, file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Authors and licences joined, where the file is there; and its lines that are not usable."""
    if not file.exists():
        return raw, no_rejects()
    csv = csvs.read(file, {"photo_id": ("id",)}, {"author": ("author",), "licence": ("license", "licence")})
    return raw.join(csv.frame.drop_duplicates("photo_id").set_index("photo_id"), on="photo_id"), csv.rejects
