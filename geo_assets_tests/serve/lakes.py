"""A small city as the lake has it after each step, written by hand: what the app shows is known to the digit."""

from __future__ import annotations

import datetime as dt
import io
import itertools
import struct
from typing import Any

import pandas as pd

from geo_assets.grid import Grid
from geo_assets.lake import BoxPartition, Lake
from geo_assets.settings import City, Settings
from geo_assets.tables import TABLES

NOW = dt.datetime(2026, 5, 14, 9, 30, tzinfo=dt.UTC)
CITY = City(bbox=(13.18, 55.70, 13.1831, 55.7018), origin=(13.18, 55.70), box_m=100.0)
GRID: Grid = CITY.grid
BOXES = list(GRID)
N = 6
"""Images of a box."""

NAUGHTY = '<img src=x onerror="window.broken = true">'


def settings(lake: Lake, **cities: City) -> Settings:
    """Settings of the town, or of other cities."""
    return Settings(lake=lake.root, cities=cities or {"town": CITY})


def frame(table: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with what the table needs; the rest is null."""
    full = TABLES[table].frame(rows).astype(object)
    return full.where(full.notna(), None)


def made(lake: Lake) -> Lake:
    """Four boxes or more of the town: the first with a splat, the second registered, the third harvested, the rest seen."""
    for box in BOXES:
        bounds = GRID.bounds(box)
        lake.write(
            "bbox_partitions",
            frame(
                "bbox_partitions",
                [
                    {
                        "west": bounds.west, "south": bounds.south, "east": bounds.east, "north": bounds.north,
                        "neighbours": GRID.neighbours(box), "tiles": [], "n_images": N, "n_sequences": 1,
                        "coverage_hash": "0", "changed_at": NOW, "fetched_at": NOW,
                    }
                ],
            ),
            city="town",
            box=box,
        )  # fmt: skip
    for box in BOXES[:3]:
        harvested(lake, box)
    for box, share in zip(BOXES[:2], (N, N // 2), strict=True):
        registered(lake, box, share)
    splatted(lake, BOXES[0])
    return lake


def ids(box: str) -> list[str]:
    """Ids of the images of a box."""
    return [f"{box}_{i}" for i in range(N)]


def harvested(lake: Lake, box: str) -> None:
    """Metadata, files, ways and the certificate of a box."""
    bounds, where = GRID.bounds(box), BoxPartition(city="town", box=box)
    lons = [bounds.west + (bounds.east - bounds.west) * (i + 1) / (N + 1) for i in range(N)]
    lat = bounds.centre[1]
    images = [
        {
            "image_id": name, "sequence_id": f"s_{box}", "lon": lon, "lat": lat, "compass_deg": 90.0, "captured_at": NOW,
            "captured_at_ms": 0, "is_pano": i == 0, "creator_username": NAUGHTY if i else "öst", "creator_id": "7",
            "licence": "CC BY-SA 4.0", "attribution": "Photos from Mapillary, CC BY-SA 4.0",
            "in_aoi_original": True, "source_mask": 1, "first_seen": NOW, "last_seen": NOW, "fetched_at": NOW,
        }
        for i, (name, lon) in enumerate(zip(ids(box), lons, strict=True))
    ]  # fmt: skip
    lake.write("image_metadata", frame("image_metadata", images), **where)
    keys = [lake.key("images", f"{name}.jpg", **where) for name in ids(box)]
    for i, key in enumerate(keys):
        lake.put_bytes(key, jpeg(40 * i))
    files = [
        {"image_id": name, "size": "256", "path": key, "bytes": 100, "status": "done", "exif_written": True}
        for name, key in zip(ids(box), keys, strict=True)
    ]
    lake.write("image_files", frame("image_files", files), **where)
    way = struct.pack("<BII", 1, 2, N) + b"".join(struct.pack("<dd", lon, lat) for lon in lons)
    line = {"sequence_id": f"s_{box}", "n_images": N, "length_m": 80.0, "creator": NAUGHTY, "geometry": way}
    lake.write("sequence_paths", frame("sequence_paths", [line]), **where)
    proof = {name: 0 for name in TABLES["certificates"].column_names if name.startswith("n_")}
    complete = box != BOXES[2]
    proof |= {"n_tile_images": N, "n_audit_again": N, "n_images": N, "n_unresolved": 0 if complete else 2}
    row = proof | {"complete": complete, "dataset_hash": "0", "fetched_at": NOW}
    lake.write("certificates", frame("certificates", [row]), **where)


def registered(lake: Lake, box: str, n: int) -> None:
    """Features of all images of a box, matches of neighbours, and a model with the first ``n``."""
    where, names, (lon, lat) = BoxPartition(city="town", box=box), ids(box), GRID.bounds(box).centre
    views = [
        {"image_id": name, "photo_id": name, "colmap_image_id": i, "camera_id": 1, "home_box": box, "n_keypoints": 9}
        for i, name in enumerate(names)
    ]
    lake.write("gps_db", frame("gps_db", views), **where)
    pairs = [
        {"image_id_a": a, "image_id_b": b, "reason": "ring", "verified": True, "n_inliers": 50, "n_matches": 60}
        for a, b in itertools.pairwise(names)
    ]
    lake.write("match_pairs", frame("match_pairs", pairs), **where)
    model = {
        "component": 0, "status": "placed", "n_images": N, "n_home_images": N, "n_registered": n,
        "n_home_registered": n, "n_points": 900, "gps_median_m": 1.25, "reprojection_px": 0.5,
    }  # fmt: skip
    lake.write("sparse_models", frame("sparse_models", [model]), **where)
    cameras = [
        {"image_id": name, "component": 0, "lon": lon, "lat": lat, "heading_deg": 45.0, "home_box": box}
        for name in names[:n]
    ]
    lake.write("model_cameras", frame("model_cameras", cameras), **where)


def splatted(lake: Lake, box: str) -> None:
    """A splat of a box, with a page and pictures that are there, and a page of the city."""
    where = BoxPartition(city="town", box=box)
    splat = {
        "status": "trained", "engine": "cpu", "psnr_db": 24.5, "init_psnr_db": 11.0, "ssim": 0.8, "n_splats": 1000,
        "n_train": N - 1, "n_holdout": 1, "steps": 100,
    }  # fmt: skip
    lake.write("splat_ply", frame("splat_ply", [splat]), **where)
    views = [{"image_id": name, "split": "train", "psnr_db": 25.0} for name in ids(box)]
    lake.write("splat_views", frame("splat_views", views), **where)
    lake.put_bytes(lake.key("splats", "compare.jpg", **where), jpeg(90, 3 * 160 + 8, 120))
    lake.put_bytes(lake.key("splats", "viewer.html", **where), b"<title>splat</title><p id=splat>A splat</p>")
    lake.put_bytes(lake.key("splats", "splat.ply", **where), bytes(range(100)))
    lake.put_bytes(lake.key("splats_city", "index.html", city="town"), b"<p>city</p>")


def clustered(lake: Lake) -> None:
    """Cells of two levels: three, and the whole."""
    cells = [
        (0, 0, 10.0, 50.0, 30, 5.0),
        (0, 1, 179.9, -17.0, 20, 80.0),
        (0, 2, -70.0, 0.0, 10, 0.5),
        (1, 0, 40.0, 20.0, 60, 9000.0),
    ]
    rows = [
        {
            "level": level, "cell_id": cell, "parent_id": 0 if level == 0 else None, "lon": lon, "lat": lat,
            "medoid_lon": lon, "medoid_lat": lat, "n_photos": n, "n_points": n, "n_noise_filled": 0,
            "n_children": 3 * level, "p90_km": km, "resultant": 1.0, "s2_token": "47",
        }
        for level, cell, lon, lat, n, km in cells
    ]  # fmt: skip
    lake.write("hierarchy_centroids", frame("hierarchy_centroids", rows))


def jpeg(shade: int, width: int = 64, height: int = 48) -> bytes:
    """A picture of one grey."""
    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (width, height), (shade % 256,) * 3).save(sink, "jpeg")
    return sink.getvalue()
