"""Sparse models as files for other programs: COLMAP's forms, PLY, NVM, undistorted photos, GeoParquet and GeoJSON."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geo_assets.errors import ConfigError, GeoAssetsError, ReconstructionError
from geo_assets.files import put_in_place
from geo_assets.geodesy import LocalFrame
from geo_assets.lake import Lake
from geo_assets.reconstruct.features import image_name
from geo_assets.reconstruct.quality import stretches
from geo_assets.reconstruct.stage import run_step

if TYPE_CHECKING:
    import geopandas as gpd

COLMAP_FORMATS = ("colmap", "text", "colmap3", "ply", "nvm", "undistorted")
MAP_FORMATS = ("geoparquet", "geojson")
FORMATS = (*COLMAP_FORMATS, *MAP_FORMATS)

CRS = "EPSG:4979"
"""WGS84 in three dimensions; coordinates stand as longitude, latitude, height above the ellipsoid."""

MANIFEST = "export.json"


@dataclass(frozen=True)
class _Model:
    """Where a model lies and what it is: its key in the lake, its frame (none where it is unplaced), its boxes."""

    key: str
    frame: LocalFrame | None
    boxes: list[str]
    component: int
    facts: dict[str, Any]


def export_model(
    lake: Lake,
    city: str,
    box: str | None,
    formats: Sequence[str],
    to: Path,
    component: int = 0,
    log: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write the model of a box, or of a whole city, into a folder in the formats asked for.

    The folder appears whole. An earlier export that stands there is replaced as a whole; anything else that stands
    there is left alone and is an error.

    Args:
        lake: holds ``sparse_models`` of the box, or ``city_model`` of the city, and ``gps_db``.
        city: name of the city.
        box: name of the box; none for the model of the whole city.
        formats: names of :data:`FORMATS`.
        to: the folder.
        component: number of the component of the box; the largest is 0.
        log: gets lines of progress.

    Returns:
        The files and folders in ``to``, by name.

    Raises:
        ConfigError: a format is unknown, or the folder holds something that is not an export.
        GeoAssetsError: there is no such model, or it has no place on the Earth and a map was asked for.
        ReconstructionError: COLMAP failed.
    """
    wanted = list(dict.fromkeys(formats))
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise ConfigError(f"Unknown format {', '.join(unknown)}; a model is exported as {', '.join(FORMATS)}.")
    if not wanted:
        raise ConfigError(f"No format was named; a model is exported as {', '.join(FORMATS)}.")
    to = to.absolute()
    _refuse_foreign(to)
    model = _city_model(lake, city) if box is None else _box_model(lake, city, box, component)
    maps = [name for name in wanted if name in MAP_FORMATS]
    if maps and model.frame is None:
        raise GeoAssetsError(
            f"Component {component} of {box} has no place on the Earth (status unplaced), so it cannot become "
            f"{' or '.join(maps)}; export it as {', '.join(COLMAP_FORMATS)}."
        )
    images = _images(lake, city, model.boxes)
    to.parent.mkdir(parents=True, exist_ok=True)
    staged = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.tmp")
    staged.mkdir()
    try:
        said, tables = _written(lake, model, images, [f for f in wanted if f in COLMAP_FORMATS], staged, log)
        rows = _camera_rows(tables, images, model, city, box)
        if maps and model.frame is not None:
            layers = map_layers(rows, tables, model.frame)
            for name, layer in layers.items():
                if "geoparquet" in maps:
                    layer.to_parquet(staged / f"{name}.parquet", compression="zstd", index=False)
                if "geojson" in maps:
                    (staged / f"{name}.geojson").write_text(geojson(layer), encoding="utf-8")
        credit = rows.groupby(["attribution", "licence"], dropna=False).agg(n_images=("image_id", "size"))
        credit.reset_index().to_csv(staged / "attribution.csv", index=False)
        facts = {"city": city, "box": box, "component": component, "formats": wanted, "said": said} | model.facts
        place = _geo_reference(model.frame)
        (staged / MANIFEST).write_text(json.dumps({"geo_assets_export": 1} | facts | {"place": place}, indent=1) + "\n")
        (staged / "README.md").write_text(_readme(city, box, component, wanted, model, said), encoding="utf-8")
        put_in_place(staged, to)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return sorted(to.iterdir())


def map_layers(cameras: pd.DataFrame, tables: dict[str, Any], frame: LocalFrame) -> dict[str, gpd.GeoDataFrame]:
    """Cameras and points as Point z and tracks as LineString z, longitude, latitude [deg], height [m], EPSG:4979.

    Args:
        cameras: one row a camera with ``east_m``, ``north_m``, ``up_m`` in the frame.
        tables: the points, as :func:`geo_assets.reconstruct.formats.export` leaves them.
        frame: the model's frame.
    """
    import geopandas as gpd

    def points(enu: Any) -> gpd.GeoSeries:
        return gpd.GeoSeries.from_xy(*frame.geodetic(np.asarray(enu, float).reshape(-1, 3)), crs=CRS)

    xyz, rgb = tables["xyz"], tables["rgb"]
    cloud = pd.DataFrame({"error_px": tables["error_px"], "track_length": tables["track_length"]})
    for column, name in enumerate(("red", "green", "blue")):
        cloud[name] = rgb[:, column].astype("int64")
    places = cameras[["east_m", "north_m", "up_m"]]
    return {
        "cameras": gpd.GeoDataFrame(cameras.drop(columns=list(places)), geometry=points(places), crs=CRS),
        "tracks": _tracks(cameras, frame),
        "points": gpd.GeoDataFrame(cloud, geometry=points(xyz), crs=CRS),
    }


def _tracks(cameras: pd.DataFrame, frame: LocalFrame) -> gpd.GeoDataFrame:
    """One line for each stretch of a sequence, through its cameras in the order of capture."""
    import geopandas as gpd
    from shapely import LineString

    rows: list[dict[str, Any]] = []
    one_each = cameras.drop_duplicates("photo_id").sort_values(["captured_at", "photo_id"], kind="stable")
    for sequence_id, run in one_each.groupby("sequence_id", sort=True):
        enu = run[["east_m", "north_m", "up_m"]].to_numpy(float)
        number = stretches(enu[:, :2])
        for stretch in np.unique(number):
            part, along = run[number == stretch], enu[number == stretch]
            if len(part) < 2:
                continue
            rows.append(
                {
                    "sequence_id": sequence_id,
                    "stretch": int(stretch),
                    "n_images": len(part),
                    "length_m": float(np.linalg.norm(np.diff(along, axis=0), axis=1).sum()),
                    "started_at": part.captured_at.min(),
                    "ended_at": part.captured_at.max(),
                    "attribution": "; ".join(sorted(set(part.attribution.dropna()))),
                    "geometry": LineString(np.column_stack(frame.geodetic(along))),
                }
            )
    columns = ["sequence_id", "stretch", "n_images", "length_m", "started_at", "ended_at", "attribution", "geometry"]
    return gpd.GeoDataFrame(pd.DataFrame(rows, columns=columns), geometry="geometry", crs=CRS)


def geojson(layer: gpd.GeoDataFrame) -> str:
    """A layer as GeoJSON by RFC 7946: longitude, latitude, height above the WGS84 ellipsoid, one feature a line."""
    import shapely

    facts = pd.DataFrame(layer.drop(columns=layer.geometry.name))
    lines = []
    for properties, shape in zip(facts.to_dict("records"), layer.geometry, strict=True):
        # 1e-9 degrees are a tenth of a millimetre.
        at = [
            [round(x, 9), round(y, 9), round(z, 4)]
            for x, y, z in shapely.get_coordinates(shape, include_z=True).tolist()
        ]
        geometry = {"type": shape.geom_type, "coordinates": at[0] if shape.geom_type == "Point" else at}
        known = {str(name): _plain(value) for name, value in properties.items()}
        lines.append(json.dumps({"type": "Feature", "properties": known, "geometry": geometry}, allow_nan=False))
    return '{"type": "FeatureCollection", "features": [\n' + ",\n".join(lines) + "\n]}\n"


# -- what is exported ---------------------------------------------------------------------------------------


def _box_model(lake: Lake, city: str, box: str, component: int) -> _Model:
    models = lake.read("sparse_models", city=city, box=box)
    there = models.loc[models.path.notna()]
    chosen = there.loc[there.component == component]
    if chosen.empty:
        if len(there):
            known = ", ".join(str(n) for n in sorted(there.component))
            raise GeoAssetsError(f"Box {box} of {city} has no component {component}; it has {known}.")
        why = ", ".join(sorted(set(models.status.astype(str)))) or "it holds no images"
        raise GeoAssetsError(f"Box {box} of {city} has no model: {why}. Choose another box.")
    row = chosen.iloc[0]
    frame = _frame(row) if row.status == "placed" else None
    facts = {name: _plain(row[name]) for name in ("status", "n_registered", "n_points", "reprojection_px", "mapper")}
    return _Model(str(row.path), frame, [box], component, facts)


def _city_model(lake: Lake, city: str) -> _Model:
    models = lake.read_if_any("city_model", city=city)
    models = models.loc[models.path.notna()]
    if models.empty:
        raise GeoAssetsError(
            f"There is no model of {city} as a whole. Make it first: "
            f"dagster asset materialize -m geo_assets.definitions --select city_model --partition '{city}'"
        )
    row = models.iloc[0]
    boxes = sorted(where["box"] for where in lake.partitions("gps_db") if where["city"] == city)
    facts = {name: _plain(row[name]) for name in ("n_boxes", "n_images", "n_points", "reprojection_px")}
    return _Model(str(row.path), _frame(row), boxes, 0, facts)


def _frame(row: pd.Series) -> LocalFrame:
    lon, lat, alt_m = row[["origin_lon", "origin_lat", "origin_alt_m"]].astype(float).tolist()
    return LocalFrame(lon, lat, alt_m)


def boxes_with_models(lake: Lake, city: str, component: int = 0) -> list[str]:
    """Names of the boxes of a city that have this component."""
    found = []
    for where in lake.partitions("sparse_models"):
        if where["city"] != city:
            continue
        models = lake.read("sparse_models", ["component", "path"], **where)
        if (models.path.notna() & (models.component == component)).any():
            found.append(where["box"])
    return found


def _images(lake: Lake, city: str, boxes: list[str]) -> pd.DataFrame:
    """What is known of each image of these boxes, once, as its own box says where that one is among them."""
    found = []
    for box in boxes:
        rows = lake.read("gps_db", city=city, box=box)
        found.append(rows.assign(foreign=rows.home_box != box))
    if not found:
        raise GeoAssetsError("gps_db of no box is there, so nobody knows where the images lie; materialize gps_db.")
    images = pd.concat(found, ignore_index=True).sort_values(["image_id", "foreign"], kind="stable")
    images = images.drop_duplicates("image_id").reset_index(drop=True)
    images["photo_id"] = images.photo_id.fillna(images.image_id)
    credits = []
    for home in sorted(set(images.home_box)):
        if lake.has("image_metadata", city=city, box=home):
            credits.append(lake.read("image_metadata", ["image_id", "licence", "attribution"], city=city, box=home))
    credit = pd.concat(credits, ignore_index=True) if credits else pd.DataFrame(columns=["image_id"])
    credit = credit.drop_duplicates("image_id").set_index("image_id").reindex(columns=["licence", "attribution"])
    return images.join(credit, on="photo_id")


def _camera_rows(
    tables: dict[str, Any], images: pd.DataFrame, model: _Model, city: str, box: str | None
) -> pd.DataFrame:
    """One row a registered image: what it is, where its camera stands in the model's frame, whom to credit."""
    rows = pd.DataFrame({"image_id": [name.removesuffix(".jpg") for name in tables["name"].tolist()]})
    rows[["east_m", "north_m", "up_m"]] = tables["centre"]
    rows["heading_deg"] = tables["heading_deg"] if model.frame is not None else np.nan
    rows["n_observations"] = tables["n_observations"]
    known = ["image_id", "photo_id", "sequence_id", "captured_at", "home_box", "licence", "attribution"]
    rows = rows.merge(images[known], on="image_id", how="left")
    rows["photo_id"] = rows.photo_id.fillna(rows.image_id)
    return rows.assign(city=city, box=box or rows.home_box, component=model.component)


def _written(
    lake: Lake,
    model: _Model,
    images: pd.DataFrame,
    formats: list[str],
    staged: Path,
    log: Callable[[str], None] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """COLMAP's part in a child process: its answer for each format, and the arrays of cameras and points."""
    with tempfile.TemporaryDirectory(prefix="geo_assets_export_") as folder:
        scratch = Path(folder)
        photos, tables = scratch / "photos", scratch / "tables.npz"
        photos.mkdir()
        if "undistorted" in formats:
            _link_photos(lake, images, photos)
        with lake.local(model.key) as path:
            arguments = {"model": str(path), "out": str(staged), "formats": formats, "photos": str(photos)}
            said = run_step("export", arguments | {"tables": str(tables), "threads": -1}, scratch, log=log)
        with np.load(tables) as arrays:
            return said, {name: arrays[name] for name in arrays.files}


def _link_photos(lake: Lake, images: pd.DataFrame, folder: Path) -> None:
    """The pixels that the model was made of under their COLMAP names; those of images it lacks do no harm."""
    missing = images[images.path.isna()]
    if len(missing):
        raise ReconstructionError(
            f"gps_db does not say where the pixels of {len(missing):,} images lie; materialize gps_db again."
        )
    for image_id, key in zip(images.image_id, images.path, strict=True):
        if lake.exists(key):
            lake.link(key, folder / image_name(image_id))


# -- the folder ---------------------------------------------------------------------------------------------


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; an export is a folder. Name another one.")
    if any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ConfigError(f"{folder} holds files that are no export of a model; name an empty or a new folder.")


def _geo_reference(frame: LocalFrame | None) -> dict[str, Any] | None:
    """What places the model's metres on the Earth, as in ``geo.json`` beside a published model."""
    if frame is None:
        return None
    from geo_assets.reconstruct.models import geo_reference

    return geo_reference(frame)


def _readme(city: str, box: str | None, component: int, formats: list[str], model: _Model, said: dict[str, Any]) -> str:
    """What lies in the folder and in which coordinates."""
    name = f"the city {city}" if box is None else f"box {box} of {city}, component {component}"
    frame = model.frame
    place = (
        "The model has no place on the Earth: axes, origin and scale are its own."
        if frame is None
        else f"Coordinates of the models are metres east, north and up of longitude {frame.lon!r}, latitude "
        f"{frame.lat!r}, {frame.alt_m!r} m above the WGS84 ellipsoid; `{MANIFEST}` holds the transform to ECEF."
    )
    about = {
        "colmap": "`colmap/`: COLMAP's binary model with rigs and frames (COLMAP 3.12 and later).",
        "text": "`text/`: the same as text.",
        "colmap3": "`colmap3/`: cameras, images and points3D alone, binary and text, for readers that know no rigs; "
        "every image carries its whole pose.",
        "ply": "`points.ply`: the points with their colours.",
        "nvm": "`model.nvm`: VisualSFM's NVM_V3. One radial coefficient stands for the lens; over the picture it is "
        f"off by at most {said.get('nvm', {}).get('lens_error_px', 0.0):.2f} px. Spheres are left out.",
        "undistorted": "`undistorted/`: pinhole photos in `images/`, their model in `sparse/0`, and `model.nvm`, which "
        "is exact for them. Spheres are left out.",
        "geoparquet": f"`cameras.parquet`, `tracks.parquet`, `points.parquet`: GeoParquet in {CRS}, longitude, "
        "latitude, height above the ellipsoid.",
        "geojson": "`cameras.geojson`, `tracks.geojson`, `points.geojson`: the same by RFC 7946.",
    }
    lines = [f"# Sparse model of {name}", "", place, "", *(f"- {about[f]}" for f in FORMATS if f in formats)]
    lines += ["- `attribution.csv`: whom to credit for the photos; undistorted photos are under the same licence."]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; what is missing is null."""
    if hasattr(value, "item"):
        value = value.item()
    if pd.isna(value) or (isinstance(value, float) and not np.isfinite(value)):
        return None
    return value.isoformat() if isinstance(value, pd.Timestamp) else value
