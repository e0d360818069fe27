"""A small lake for the tests of the SQL models."""

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from geo_assets.lake import Lake
from geo_assets.sql_models import SQL_FOLDER, Made, make_model, read_models
from geo_assets.tables import TABLES, to_pandas


def rows(table: str, *records: dict) -> pd.DataFrame:
    """Rows of a table with the columns that matter; the others are missing."""
    columns = TABLES[table].column_names
    assert all(set(record) <= set(columns) for record in records)
    return pd.DataFrame(records).reindex(columns=columns).astype(object)


def small_lake(root: Path) -> Lake:
    """Two boxes of the demo city, one of them reconstructed, and a little of the geotag room."""
    lake = Lake(root)
    here: Any = {"city": "demo", "box": "r00c00"}
    there: Any = {"city": "demo", "box": "r00c01"}
    edges = {"west": 1.0, "east": 3.0, "south": 10.0, "north": 11.0}
    lake.write("bbox_partitions", rows("bbox_partitions", {**edges, "n_images": 4}), **here)
    lake.write("bbox_partitions", rows("bbox_partitions", {**edges, "n_images": 0}), **there)
    lake.write("certificates", rows("certificates", {"complete": True}), **here)
    images = [
        {"image_id": str(i), "sequence_id": "s", "lon": 1.0, "lat": 10.0, "creator_username": name, "licence": "CC BY-SA 4.0",
         "attribution": f"© {name}"}
        for i, name in enumerate(["ada", "ada", "bea", "bea", "bea"])
    ]  # fmt: skip
    lake.write("image_metadata", rows("image_metadata", *images), **here)
    states = ["done", "done", "done", "dead"]
    files = [
        {"image_id": str(i), "status": state, "bytes": 100, "reason": "it is empty" if state == "dead" else None}
        for i, state in enumerate(states)
    ]
    lake.write("image_files", rows("image_files", *files), **here)
    pairs = [{"image_id_a": "0", "image_id_b": str(i), "verified": i < 3} for i in (1, 2, 3)]
    pairs[2]["quarantine"] = "100 inliers at 200 m"
    lake.write("match_pairs", rows("match_pairs", *pairs), **here)
    models = [
        {"component": 0, "status": "placed", "n_home_images": 4, "n_registered": 5, "n_home_registered": 2, "gps_median_m": 0.5,
         "reprojection_px": 0.7, "route": "updated", "n_blocks": 2, "observations_per_image": 150.0, "border_m": 0.1,
         "focal_change": 0.02, "cpu_seconds": 10.0, "peak_mb": 300.0},
        {"component": 1, "status": "unplaced", "n_home_images": 4, "n_registered": 3, "n_home_registered": 1, "gps_median_m": 9.0,
         "reprojection_px": 0.9, "route": "rebuilt", "roll_deg": 40.0, "border_m": 9.0, "cpu_seconds": 2.5, "peak_mb": 200.0},
    ]  # fmt: skip
    lake.write("sparse_models", rows("sparse_models", *models), **here)
    splat = {"status": "trained", "init_psnr_db": 14.0, "psnr_db": 21.5, "ssim": 0.8}
    lake.write("splat_ply", rows("splat_ply", splat), **here)
    views = [
        {"image_id": str(i), "photo_id": str(i), "home_box": "r00c00", "n_keypoints": 900 if i < 3 else 0}
        for i in range(5)
    ]
    views.append({"image_id": "9", "photo_id": "9", "home_box": "r00c01", "n_keypoints": 900})  # of the margin
    lake.write("gps_db", rows("gps_db", *views), **here)
    lake.write("model_cameras", rows("model_cameras", *({"image_id": i} for i in "0129")), **here)
    lake.write("splat_views", rows("splat_views", *({"image_id": i} for i in "019")), **here)
    photos = [
        {"photo_id": str(i), "source": "placing_2016", "lon": float(i // 2), "lat": 0.5, "split": "train", "flags": []}
        for i in range(4)
    ]
    lake.write("geotag_combined", rows("geotag_combined", *photos))
    lake.write(
        "geotag_rejects",
        rows("geotag_rejects", {"file": "f", "row": "1", "reason": "r"}),
        source="placing_2016",
        part="shard_0",
    )
    cells = [{"level": 0, "cell_id": i, "n_photos": n, "n_points": 1, "mean_km": 2.0} for i, n in enumerate((1, 3))]
    cells += [{"level": 1, "cell_id": 0, "n_photos": 4, "n_points": 2, "mean_km": 9.0}]
    lake.write("hierarchy_centroids", rows("hierarchy_centroids", *cells))
    return lake


def make_all(lake: Lake, *names: str) -> dict[str, Made]:
    """Make models of the project, by default all of them, over a lake of the demo city."""
    models = [model for model in read_models(SQL_FOLDER) if not names or model.name in names]
    return {m.name: make_model(m, lake, **({"city": "demo"} if m.partition else {})) for m in models}


def mart(lake: Lake, name: str) -> pd.DataFrame:
    """The rows of a model that was made."""
    with lake.connect(name) as con:
        return to_pandas(con.sql(f"from {name}").to_arrow_table())


def write_models(folder: Path, **queries: str) -> Path:
    """Write marts into a folder; returns it."""
    for name, text in queries.items():
        path = folder / "marts" / f"{name}.sql"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return folder
