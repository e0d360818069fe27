"""The sparse models of a box: what can be mapped, mapped and published with its place on the Earth."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.reconstruct.features import DATABASE, image_name, local_images
from geo_assets.reconstruct.graph import components
from geo_assets.reconstruct.stage import run_step
from geo_assets.settings import Reconstruct
from geo_assets.tables import TABLES

GEO_REFERENCE = "geo.json"


@dataclass(frozen=True)
class Models:
    """Rows of ``sparse_models`` and ``model_cameras``, the facts to keep with them, figures and a picture's points."""

    models: pd.DataFrame
    cameras: pd.DataFrame
    note: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))  # [n, 6] east, north, up [m], red, green, blue


def map_box(lake: Lake, city: str, box: str, options: Reconstruct, log: Callable[[str], None] | None = None) -> Models:
    """Map the components of a box's verified graph and publish the models under ``files/models``.

    The folder holds ``0/``, ``1/``, ... (COLMAP binary, east-north-up metres) and ``geo.json`` with the frame.
    A box that cannot be mapped gets one row that says why: ``too_few`` images, or ``no_overlap`` between them.

    Raises:
        GeoAssetsError: ``gps_db`` or ``match_pairs`` of the box is not there.
        ReconstructionError: COLMAP failed.
    """
    where = {"city": city, "box": box}
    images, pairs = lake.read("gps_db", None, **where), lake.read("match_pairs", None, **where)
    note = lake.note("gps_db", **where)
    counts = {"n_images": len(images), "n_home_images": int((images.home_box == box).sum())}
    if images.empty:
        return Models(TABLES["sparse_models"].empty(), TABLES["model_cameras"].empty(), note, counts)
    frame = LocalFrame(*note["origin"])
    if len(images) < options.min_images:
        return _nothing("too_few", counts, frame, note)
    groups = mappable(images, pairs, options.min_images)
    if not groups:
        return _nothing("no_overlap", counts, frame, note)
    with tempfile.TemporaryDirectory(prefix="geo_assets_models_") as folder:
        scratch = Path(folder)
        published = scratch / "published"
        published.mkdir()
        with lake.local(lake.key("matches", **where)) as matches:
            shutil.copyfile(matches / DATABASE, scratch / DATABASE)
        local_images(lake, _files(lake, city, images), scratch / "images")
        said = run_step(
            "reconstruct",
            {
                "database": str(scratch / DATABASE),
                "images_folder": str(scratch / "images"),
                "out": str(published),
                "components": [[image_name(i) for i in group] for group in groups],
                "cameras": _priors(images),
                "min_images": options.min_images,
                "seed": options.seed,
            },
            scratch,
            log=log,
        )
        if not said["models"]:
            return _nothing("no_overlap", counts, frame, note)
        (published / GEO_REFERENCE).write_text(json.dumps(geo_reference(frame), indent=1))
        lake.publish(published, lake.key("models", **where))
    cameras = camera_rows(said["cameras"], images, frame)
    home = set(images.image_id[images.home_box == box])
    models = model_rows(said["models"], counts, home, frame, lake.key("models", **where))
    return Models(models, cameras, note, figures_of(models, counts), np.array(said["points"]).reshape(-1, 6))


def mappable(images: pd.DataFrame, pairs: pd.DataFrame, min_images: int) -> list[list[str]]:
    """Image ids of each component of the verified graph that has enough images, the largest first."""
    verified = pairs[pairs.verified.astype(bool)]
    ids = images.image_id.to_list()
    labels = components(ids, verified.image_id_a.to_list(), verified.image_id_b.to_list())
    groups = pd.Series(ids).groupby(labels).agg(list)
    return sorted((sorted(g) for g in groups if len(g) >= max(min_images, 3)), key=lambda g: (-len(g), g))


def geo_reference(frame: LocalFrame) -> dict[str, Any]:
    """What a reader needs to place the models on the Earth: the origin and the transform to ECEF metres, row-major."""
    return {
        "crs": "EPSG:4979",
        "origin": {"lon": frame.lon, "lat": frame.lat, "alt_m": frame.alt_m},
        "axes": "east, north, up [m]",
        "ecef_from_enu": frame.ecef_from_enu.tolist(),
    }


def camera_rows(rows: list[dict[str, Any]], images: pd.DataFrame, frame: LocalFrame) -> pd.DataFrame:
    """Rows of ``model_cameras``: an image that two models hold stands with the larger one."""
    columns = TABLES["model_cameras"].column_names
    if not rows:
        return TABLES["model_cameras"].empty()
    cameras = pd.DataFrame(rows).sort_values("component", kind="stable").drop_duplicates("image_id")
    lon, lat, alt = frame.geodetic(cameras[["east_m", "north_m", "up_m"]].to_numpy())
    cameras = cameras.assign(lon=lon, lat=lat, alt_m=alt)
    return pd.DataFrame(cameras.merge(images[["image_id", "home_box"]], on="image_id")[columns])


def model_rows(
    rows: list[dict[str, Any]], counts: dict[str, int], home: set[str], frame: LocalFrame, key: str
) -> pd.DataFrame:
    """Rows of ``sparse_models``: the components' figures with the frame and the folder of each."""
    columns = TABLES["sparse_models"].column_names
    models = pd.DataFrame(rows)
    return models.assign(
        **counts,
        **_origin(frame),
        n_home_registered=[len(home.intersection(ids)) for ids in models.image_ids],
        path=[f"{key}/{component}" for component in models.component],
    ).reindex(columns=columns)


def figures_of(models: pd.DataFrame, counts: dict[str, int]) -> dict[str, Any]:
    """What a person wants to know of a box's models."""
    placed = models[models.status == "placed"]
    best = placed.iloc[0] if len(placed) else None
    figures: dict[str, Any] = counts | {
        "n_components": len(models),
        "n_placed": len(placed),
        "n_home_registered": int(placed.n_home_registered.sum()),
        "registered_share": round(float(placed.n_home_registered.sum()) / max(counts["n_home_images"], 1), 4),
    }
    if best is not None:
        figures |= {
            name: round(float(best[name]), 3)
            for name in ("reprojection_px", "track_length", "gps_median_m", "gps_vertical_m", "roll_deg")
        } | {"n_points": int(best.n_points), "mapper": best.mapper}
    return figures


def _nothing(status: str, counts: dict[str, int], frame: LocalFrame, note: dict[str, Any]) -> Models:
    row = {"component": 0, "status": status, "n_registered": 0, "n_home_registered": 0, "n_points": 0}
    columns = TABLES["sparse_models"].column_names
    models = pd.DataFrame([row | counts | _origin(frame)]).reindex(columns=columns)
    return Models(models, TABLES["model_cameras"].empty(), note, counts | {"status": status, "registered_share": 0.0})


def _origin(frame: LocalFrame) -> dict[str, float]:
    return {"origin_lon": frame.lon, "origin_lat": frame.lat, "origin_alt_m": frame.alt_m}


def _files(lake: Lake, city: str, images: pd.DataFrame) -> list[tuple[str, str]]:
    """Image ids and keys of their files, each in the box it lives in."""
    found = []
    for home, group in images.groupby("home_box", sort=True):
        files = lake.read("image_files", ["image_id", "path"], city=city, box=str(home))
        files = files[files.image_id.isin(group.image_id)]
        found += list(zip(files.image_id, files.path, strict=True))
    return found


def _priors(images: pd.DataFrame) -> list[dict[str, Any]]:
    columns = ["east_m", "north_m", "up_m", "sigma_xy_m", "sigma_z_m"]
    rows = pd.DataFrame(images[columns]).to_dict("records")
    return [{"name": image_name(i)} | row for i, row in zip(images.image_id, rows, strict=True)]
