"""One box in full: its funnel, its certificate in words, its model, its splat, its images and whom to credit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.errors import ConfigError
from geo_assets.lake import BoxPartition, Lake
from geo_assets.serve.boxes import FUNNEL, STATES, CityBoxes
from geo_assets.settings import Settings
from geo_assets.tables import TABLES

MOST_IMAGES = 20_000
"""Images of a box that are drawn; of more, evenly many along their ids."""

MOST_CREDITS = 200
_CERTIFICATE = (
    "n_tile_images", "n_closure_added", "n_audit_again", "n_audit_new", "n_audit_added", "n_images",
    "n_estimated_missing", "n_failed_tiles", "n_unresolved", "n_unverifiable", "n_unclosed", "n_tombstones",
)  # fmt: skip
_MODEL = (
    "n_home_registered", "n_points", "reprojection_px", "gps_median_m", "gps_p95_m", "border_m",
    "largest_gap_m", "roll_deg",
)  # fmt: skip
_SPLAT = (
    "psnr_db", "sequence_psnr_db", "init_psnr_db", "ssim", "n_splats", "n_train", "n_holdout", "steps", "seconds",
)  # fmt: skip
_PICTURES = {"compare": "compare.jpg", "preview": "preview.jpg", "viewer": "viewer.html", "ply": "splat.ply"}


def box_json(lake: Lake, settings: Settings, boxes: CityBoxes | None, city: str, box: str) -> dict[str, Any]:
    """Everything that the panel of a box shows.

    Raises:
        ConfigError: no such city or box.
    """
    box = settings.box(city, box)
    grid, where = settings.city(city).grid, BoxPartition(city=city, box=box)
    row = _row(boxes, box)
    state = str(row.get("state", "unknown"))
    words, asset = STATES.get(state, ("not asked for yet", "image_metadata"))
    return {
        "city": city,
        "box": box,
        "bounds": grid.bounds(box).as_list(),
        "neighbours": grid.neighbours(box),
        "state": state,
        "words": words,
        "next": f"geo-assets materialize --select {asset} --city {city} --box {box}" if asset else None,
        "funnel": [{"words": words, "n": int(row.get(column, 0))} for column, words in FUNNEL.items()],
        "images": _images(lake, where),
        "certificate": _certificate(lake, where),
        "model": _model(lake, where),
        "splat": _splat(lake, where),
        "credits": credits_json(lake, where),
    }


def _row(boxes: CityBoxes | None, box: str) -> dict[str, Any]:
    if boxes is None or box not in boxes.columns["box"]:
        return {}
    i = boxes.columns["box"].index(box)
    return {name: values[i] for name, values in boxes.columns.items()}


def _images(lake: Lake, where: BoxPartition) -> dict[str, Any] | None:
    found = _alive(lake, where, ["captured_at", "sequence_id", "is_pano"])
    if found.empty:
        return None
    files = lake.read_if_any("image_files", ["status", "bytes"], **where)
    status, times = files["status"].to_numpy(object), found["captured_at"].dropna().tolist()
    return {
        "n_sequences": len(set(found["sequence_id"].dropna())),
        "n_panoramas": int(found["is_pano"].fillna(False).to_numpy(bool).sum()),
        "first_at": min(times).date().isoformat() if times else None,
        "last_at": max(times).date().isoformat() if times else None,
        "n_dead": int((status == "dead").sum()),
        "bytes": int(files["bytes"].fillna(0).to_numpy(int)[status == "done"].sum()),
    }


def _certificate(lake: Lake, where: BoxPartition) -> dict[str, Any] | None:
    rows = lake.read_if_any("certificates", **where)
    if rows.empty:
        return None
    from geo_assets.harvest.certificate import verdict

    row = rows.iloc[0].to_dict()
    fetched = pd.Timestamp(row["fetched_at"]).isoformat(timespec="minutes")
    return {
        "complete": bool(row["complete"]),
        "verdict": verdict(row),
        "fetched_at": fetched,
        "terms": _terms("certificates", row, _CERTIFICATE),
    }


def _model(lake: Lake, where: BoxPartition) -> dict[str, Any] | None:
    rows = lake.read_if_any("sparse_models", **where)
    if rows.empty:
        return None
    row = rows.iloc[0].to_dict()  # sorted by component; the largest is 0
    return {
        "status": row["status"],
        "reason": _plain(row["reason"]),
        "n_components": int((rows["n_registered"].fillna(0).to_numpy(int) > 0).sum()),
        "terms": _terms("sparse_models", row, _MODEL),
    }


def _splat(lake: Lake, where: BoxPartition) -> dict[str, Any] | None:
    rows = lake.read_if_any("splat_ply", **where)
    if rows.empty:
        return None
    row = rows.iloc[0].to_dict()
    keys = {name: lake.key("splats", file, **where) for name, file in _PICTURES.items()}
    there = set(lake.names(lake.key("splats", **where)))
    return {
        "status": row["status"],
        "engine": _plain(row["engine"]),
        "terms": _terms("splat_ply", row, _SPLAT),
        **{name: f"/{key}" if _PICTURES[name] in there else None for name, key in keys.items()},
    }


def credits_json(lake: Lake, where: BoxPartition) -> list[dict[str, Any]]:
    """Whom to credit for the images of a box: one entry an author and licence, those of most images first."""
    found = _alive(lake, where, ["creator_username", "creator_id", "licence", "sequence_id", "attribution"])
    if found.empty:
        return []
    found["creator"] = found["creator_username"].fillna(found["creator_id"]).fillna("unknown")
    by_author = found.groupby(["creator", "licence"], dropna=False).agg(
        n_images=("sequence_id", "size"), n_sequences=("sequence_id", "nunique"), example=("attribution", "first")
    )
    most = by_author.reset_index().sort_values(["n_images", "creator"], ascending=[False, True]).head(MOST_CREDITS)
    return [{str(k): _plain(v) for k, v in row.items()} for row in most.to_dict("records")]


def images_json(lake: Lake, settings: Settings, city: str, box: str) -> dict[str, Any]:
    """The images of a box as columns: where each is, which way it looks, and whether it is registered.

    Raises:
        ConfigError: no such city or box.
    """
    where = BoxPartition(city=city, box=settings.box(city, box))
    place = ["image_id", "lon", "lat", "computed_lon", "computed_lat", "compass_deg", "is_pano"]
    found = _alive(lake, where, place)
    n = len(found)
    if n > MOST_IMAGES:
        found = found.iloc[np.linspace(0, n - 1, MOST_IMAGES).astype(int)]
    cameras = lake.read_if_any("model_cameras", ["image_id", "lon", "lat", "heading_deg"], **where)
    found = found.merge(cameras, on="image_id", how="left", suffixes=("", "_model"))
    for axis in ("lon", "lat"):
        found[axis] = found[f"{axis}_model"].fillna(found[f"computed_{axis}"]).fillna(found[axis]).round(7)
    heading = found["heading_deg"].fillna(found["compass_deg"]).round(1)
    columns = {
        "image_id": found["image_id"],
        "lon": found["lon"],
        "lat": found["lat"],
        "heading_deg": heading,
        "registered": found["lon_model"].notna(),
        "is_pano": found["is_pano"].fillna(False).astype(bool),
    }
    return {"n": n, "columns": {name: [_plain(v) for v in values] for name, values in columns.items()}}


def sequences_json(lake: Lake, settings: Settings, city: str, box: str) -> dict[str, Any]:
    """The ways of the sequences in a box as a GeoJSON collection.

    Raises:
        ConfigError: no such city or box.
    """
    import json

    import shapely

    rows = lake.read_if_any("sequence_paths", **BoxPartition(city=city, box=settings.box(city, box)))
    shapes = shapely.from_wkb(rows["geometry"].map(bytes).to_numpy(object)) if len(rows) else []
    names = ["sequence_id", "n_images", "length_m", "creator"]
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(shape)),
            "properties": {name: _plain(row[name]) for name in names},
        }
        for shape, row in zip(shapes, rows.loc[:, names].to_dict("records"), strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def image_json(lake: Lake, settings: Settings, city: str, box: str, image_id: str) -> dict[str, Any]:
    """One image: its photo, its credit, and what became of it.

    Raises:
        ConfigError: no such city, box or image.
    """
    where = BoxPartition(city=city, box=settings.box(city, box))
    found = lake.read_if_any("image_metadata", **where)
    found = found.loc[found["image_id"] == image_id]
    if found.empty:
        raise ConfigError(f"{city} {box} has no image {image_id}.")
    row = found.iloc[0]
    files = lake.read_if_any("image_files", ["image_id", "path", "status", "reason"], **where)
    file = files.loc[files["image_id"] == image_id]
    views = lake.read_if_any("splat_views", **where)
    view = views.loc[views["image_id"] == image_id]
    path = _plain(file["path"].iloc[0]) if len(file) and file["status"].iloc[0] == "done" else None
    shown = ("image_id", "sequence_id", "captured_at", "make", "model", "is_pano", "licence", "attribution")
    return {
        **{name: _plain(row[name]) for name in shown},
        "creator": _plain(row["creator_username"]) or _plain(row["creator_id"]),
        "photo": f"/{path}" if path else None,
        "reason": _plain(file["reason"].iloc[0]) if len(file) else None,
        "split": _plain(view["split"].iloc[0]) if len(view) else None,
        "psnr_db": _plain(view["psnr_db"].iloc[0]) if len(view) else None,
    }


def _alive(lake: Lake, where: BoxPartition, columns: list[str]) -> pd.DataFrame:
    """Images of a box that still exist."""
    rows = lake.read_if_any("image_metadata", [*columns, "tombstoned_at"], **where)
    return rows.loc[rows["tombstoned_at"].isna(), columns].copy()


def _terms(table: str, row: Mapping[Any, Any], names: Iterable[str]) -> list[dict[str, Any]]:
    """Figures of a row with the meaning that their table gives them; what is null is left out."""
    meanings = {column.name: column.meaning for column in TABLES[table].columns}
    known = [name for name in names if _plain(row.get(name)) is not None]
    return [{"name": name, "value": _plain(row[name]), "meaning": meanings[name]} for name in known]


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers, texts and null."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | str) else str(value)
