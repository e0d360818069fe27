"""A city's harvest as files for other programs: GeoPackage, GeoParquet, GeoJSON, CSV, and the credits that the licence asks for."""

from __future__ import annotations

import ast
import collections
import datetime as dt
import html
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from geo_assets.errors import ConfigError, SourceError
from geo_assets.files import sync
from geo_assets.harvest.images import write_shards
from geo_assets.harvest.lines import column, creators, existing, sequence_lines, together
from geo_assets.harvest.metadata import LICENCE, position
from geo_assets.lake import BoxPartition, Lake
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    import geopandas as gpd

FORMATS = ("gpkg", "parquet", "csv", "geojson", "attribution")
DEFAULT_FORMATS = ("gpkg", "parquet", "csv")
"""GeoJSON of a large city is many times the size of the others, and the credits are always written."""
CREDITS = ("attribution.csv", "ATTRIBUTION.md", "attribution.html")
README = "README.md"

LICENCE_URL = "https://creativecommons.org/licenses/by-sa/4.0/"
PAGE_URL = "https://www.mapillary.com/app/?pKey="
USER_URL = "https://www.mapillary.com/app/user/"

CSV_COLUMNS = (
    *("sequence", "id", "page", "long", "lat", "geometry", "height", "width", "altitude", "make", "model"),
    *("creator", "is_pano", "timestamp", "captured_at", "stratum", "dropped_by", "file", "licence", "attribution"),
)
"""The columns of earlier harvesters, where ``geometry`` is the position as WKT and ``timestamp`` is milliseconds since
1970. Addresses of files expire within weeks, so the photo's page stands in the place of ``url``."""

_EARLIER = {
    "id": "image_id", "image_id": "image_id", "sequence": "sequence_id", "sequence_id": "sequence_id",
    "long": "lon", "lon": "lon", "lat": "lat", "altitude": "altitude_m", "altitude_m": "altitude_m", "width": "width",
    "height": "height", "make": "make", "model": "model", "is_pano": "is_pano", "timestamp": "captured_at_ms",
    "captured_at_ms": "captured_at_ms", "licence": "licence", "attribution": "attribution", "captured_at": "captured_at",
    "fetched_at": "fetched_at", "computed_lon": "computed_lon", "computed_lat": "computed_lat",
    "creator_id": "creator_id", "creator_username": "creator_username",
}  # fmt: skip
"""Names of columns in files of earlier harvests and what they are in ``image_metadata``."""

_NOT_IN_GPKG = ("computed_rotation", "camera_parameters")  # lists; they are in the parquet file


@dataclass(frozen=True)
class Exported:
    """What an export left behind.

    Attributes:
        files: the files, in the order of their names.
        figures: counts of images, sequences, authors and boxes, and what was left out.
    """

    files: tuple[Path, ...]
    figures: dict[str, Any]


def export_city(
    lake: Lake,
    city: str,
    folder: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    without: Sequence[Path] = (),
    also: Sequence[Path] = (),
    only_selected: bool = False,
    now: dt.datetime | None = None,
) -> Exported:
    """Write the images, sequences and boxes of a city into a folder, with the credits and a README.

    Everything is written beside the folder first. A new folder appears at once; in one that is there each file is
    replaced whole, the README last, and files of an earlier export that this one does not make are removed.

    Args:
        lake: holds the tables of the city.
        city: name of the city.
        folder: where the files go.
        formats: ``gpkg`` (layers images, sequences, boxes), ``parquet`` (GeoParquet of the images), ``csv``,
            ``geojson`` (images as points), or ``attribution`` for the credits without the images.
        without: files of earlier harvests; images with one of their ids or of one of their sequences are left out.
        also: files of other harvests, merged; an image that is in several is taken as it was asked about last.
        only_selected: leave out the images that the city's filters drop.
        now: the time that the README says, UTC; the present by default.

    Raises:
        ConfigError: a format is unknown, the folder is a file, or nothing was harvested of the city.
        SourceError: an earlier harvest cannot be read.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ConfigError(f"Unknown format {', '.join(unknown)}; an export is made as {', '.join(FORMATS)}.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; an export is a folder of files. Name another one.")
    everything = images_of(lake, city)
    chosen = existing(everything)
    counts = {"n_tombstones": len(everything) - len(chosen)}
    if only_selected:
        counts["n_dropped"] = len(chosen["dropped_by"].dropna())
        chosen = chosen.loc[chosen["dropped_by"].isna()]
    if also:
        gone = everything.loc[everything["tombstoned_at"].notna(), "image_id"]
        others = [harvest.loc[harvest["image_id"].notna()] for harvest in map(read_harvest, also)]
        chosen = together([chosen, *(other.loc[~other["image_id"].isin(gone)] for other in others)])
    if without:
        images = subtract(chosen, without)
        counts["n_known_already"] = len(chosen) - len(images)
    else:
        images = chosen
    images = images.sort_values("image_id", kind="stable").reset_index(drop=True)
    boxes, splats = boxes_of(lake, city), splats_of(lake, city, everything)
    people = authors(images)
    figures = {
        "n_images": len(images),
        "n_sequences": len(set(images["sequence_id"].dropna())),
        "n_authors": len(people),
        "n_boxes": len(boxes),
        "n_complete_boxes": _states(boxes)[True],
        "n_splats": len(splats),
        **counts,
    }
    folder = folder.absolute()
    staged = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    staged.mkdir(parents=True)
    try:
        if "gpkg" in formats:
            write_gpkg(staged / "images.gpkg", images, boxes)
        if "parquet" in formats:
            as_points(images).to_parquet(staged / "images.parquet", compression="zstd", index=False)
        if "csv" in formats:
            earlier_columns(images).to_csv(staged / "images.csv", index=False)
        if "geojson" in formats:
            write_geojson(staged / "images.geojson", images)
        people.to_csv(staged / CREDITS[0], index=False)
        (staged / CREDITS[1]).write_text(credits_page(city, people, splats), encoding="utf-8")
        (staged / CREDITS[2]).write_text(credits_html(city, people), encoding="utf-8")
        names = sorted(path.name for path in staged.iterdir())
        page = readme(city, names, figures, boxes, now or dt.datetime.now(dt.UTC))
        (staged / README).write_text(page, encoding="utf-8")
        _publish(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Exported(tuple(folder / name for name in sorted([*names, README])), figures)


# -- what is exported ---------------------------------------------------------------------------------------


def export_shards(lake: Lake, city: str, folder: Path, n: int) -> list[str]:
    """Write ``n`` equal lists of a city's image files into a folder, as CSV; their names.

    Args:
        lake: where the files lie; paths are relative to it.
        city: the city.
        folder: the folder.
        n: how many lists.
    """
    frames = [lake.read("image_files", **partition) for partition in _boxes(lake, "image_files", city)]
    files = pd.concat(frames, ignore_index=True) if frames else TABLES["image_files"].empty()
    return [Path(path).name for path in write_shards(folder, files.loc[files["status"] == "done"], n)]


def images_of(lake: Lake, city: str) -> pd.DataFrame:
    """All images of a city, each once: columns of ``image_metadata``, ``box``, and ``file``, its path in the lake.

    Raises:
        ConfigError: nothing was harvested of the city.
    """
    found = []
    for where in _boxes(lake, "image_metadata", city):
        metadata = lake.read("image_metadata", **where).reindex(columns=TABLES["image_metadata"].column_names)
        files = lake.read_if_any("image_files", ["image_id", "path", "status"], **where)
        done = files.loc[files["status"] == "done"].drop_duplicates("image_id")
        paths = metadata["image_id"].map(done.set_index("image_id")["path"]).astype(object)
        found.append(metadata.assign(box=where["box"], file=paths))
    if not found:
        raise ConfigError(f"Nothing was harvested of '{city}'. Make it first: geo-assets harvest {city}")
    images = together(found)
    return images if len(images) else images.reindex(columns=found[0].columns)


def boxes_of(lake: Lake, city: str) -> pd.DataFrame:
    """The boxes of a city that were asked for: bounds, count of images and what the certificate says."""
    wanted = ["n_images", "n_unresolved", "n_unverifiable", "n_unclosed", "n_tombstones", "complete"]
    wanted += ["n_estimated_missing", "dataset_hash", "fetched_at"]
    rows = []
    for where in _boxes(lake, "bbox_partitions", city):
        edges = lake.read("bbox_partitions", **where)
        proof = lake.read_if_any("certificates", **where)
        for box in edges.to_dict("records"):
            said = proof.iloc[0].to_dict() if len(proof) else {}
            bounds = {edge: box[edge] for edge in ("west", "south", "east", "north")}
            rows.append({"box": where["box"], **bounds, **{name: said.get(name) for name in wanted}})
    return pd.DataFrame(rows, columns=["box", "west", "south", "east", "north", *wanted])


def splats_of(lake: Lake, city: str, images: pd.DataFrame) -> pd.DataFrame:
    """The trained splats of a city: ``box``, ``path``, ``n_images`` and ``creators`` of the photos each was made of."""
    author = dict(zip(images["image_id"], creators(images), strict=True))
    rows = []
    for where in _boxes(lake, "splat_ply", city):
        splat = lake.read("splat_ply", ["status", "path"], **where)
        for path in splat.loc[splat["status"] == "trained", "path"]:
            ids = lake.read_if_any("splat_views", ["image_id"], **where)["image_id"]
            names = sorted({name for name in map(_text, map(author.get, ids)) if name})
            rows.append({"box": where["box"], "path": path, "n_images": len(ids), "creators": names})
    return pd.DataFrame(rows, columns=["box", "path", "n_images", "creators"])


def _boxes(lake: Lake, table: str, city: str) -> list[BoxPartition]:
    return [BoxPartition(city=city, box=w["box"]) for w in lake.partitions(table) if w.get("city") == city]


# -- earlier harvests ---------------------------------------------------------------------------------------


def read_harvest(path: Path) -> pd.DataFrame:
    """The images of an earlier harvest as rows of ``image_metadata``: what the file does not say is null.

    Args:
        path: ``.csv``, ``.parquet`` (also GeoParquet) or ``.gpkg`` (layer images, else the first), with a column
            ``id`` or ``image_id``, or one of ``sequence`` or ``sequence_id``.

    Raises:
        SourceError: the file cannot be read, or names neither images nor sequences.
    """
    frame = _raw(path)
    names: dict[str, str] = {}
    for name in frame.columns:
        target = _EARLIER.get(str(name).strip().lower())
        if target and target not in names.values():
            names[name] = target
    if not {"image_id", "sequence_id"} & set(names.values()):
        raise SourceError(
            f"{path} has the columns {', '.join(map(str, frame.columns))}; a harvest needs id or image_id, or sequence or sequence_id."
        )
    known = pd.DataFrame({target: column(frame, name).astype(object) for name, target in names.items()})
    if "creator" in frame.columns and "creator_username" not in known:
        known[["creator_username", "creator_id"]] = [_creator(value) for value in frame["creator"]]
    rows = known.where(known.notna(), None).reindex(columns=TABLES["image_metadata"].column_names)
    for name in ("image_id", "sequence_id"):
        rows[name] = [_id(value) for value in rows[name]]
    for wanted in TABLES["image_metadata"].columns:
        rows[wanted.name] = _typed(column(rows, wanted.name), wanted.type)
    if "captured_at" not in names.values() and "captured_at_ms" in names.values():
        rows["captured_at"] = pd.to_datetime(rows["captured_at_ms"], unit="ms", utc=True, errors="coerce")
    return rows


def subtract(images: pd.DataFrame, known: Sequence[Path]) -> pd.DataFrame:
    """The images whose id and whose sequence stand in none of the files of earlier harvests.

    Raises:
        SourceError: a file cannot be read, or names neither images nor sequences.
    """
    harvests = [read_harvest(path) for path in known]
    ids = {i for harvest in harvests for i in harvest["image_id"].dropna()}
    sequences = {i for harvest in harvests for i in harvest["sequence_id"].dropna()}
    is_known = images["image_id"].isin(list(ids)) | images["sequence_id"].isin(list(sequences))
    return images.loc[~is_known.to_numpy(bool)]


# -- formats ------------------------------------------------------------------------------------------------


def as_points(images: pd.DataFrame) -> gpd.GeoDataFrame:
    """Images at their best positions, EPSG:4326; one without a position has no geometry."""
    import geopandas as gpd

    lon, lat = position(images)
    points = gpd.GeoSeries(gpd.points_from_xy(lon, lat), index=images.index, crs="EPSG:4326")
    placed = pd.Series(lon, index=images.index).notna() & pd.Series(lat, index=images.index).notna()
    return gpd.GeoDataFrame(images, geometry=points.where(placed), crs="EPSG:4326")


def earlier_columns(images: pd.DataFrame) -> pd.DataFrame:
    """Images with the columns :data:`CSV_COLUMNS`."""
    lon, lat = position(images)
    computed = images["computed_altitude_m"].astype(float)
    times = pd.to_datetime(images["captured_at"], utc=True)
    milliseconds = pd.Series(images["captured_at_ms"]).astype("Int64")
    believed = pd.Series((times - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(milliseconds=1)).astype("Int64")
    frame = pd.DataFrame(
        {
            "sequence": images["sequence_id"],
            "id": images["image_id"],
            "page": [page_of(i, s) for i, s in zip(images["image_id"], images["source_path"], strict=True)],
            "long": lon,
            "lat": lat,
            "geometry": [
                f"POINT ({x:.7f} {y:.7f})" if x == x and y == y else None for x, y in zip(lon, lat, strict=True)
            ],
            "height": images["height"],
            "width": images["width"],
            "altitude": images["altitude_m"].astype(float).fillna(computed),
            "make": images["make"],
            "model": images["model"],
            "creator": creators(images),
            "is_pano": images["is_pano"].astype("boolean"),
            "timestamp": milliseconds.where(milliseconds.notna(), believed),
            "captured_at": times.dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "stratum": images["stratum"],
            "dropped_by": images["dropped_by"],
            "file": images.get("file"),
            "licence": images["licence"],
            "attribution": images["attribution"],
        }
    )
    return frame.reindex(columns=list(CSV_COLUMNS))


def write_gpkg(path: Path, images: pd.DataFrame, boxes: pd.DataFrame) -> None:
    """Write a GeoPackage with the layers ``images`` (points), ``sequences`` (lines) and ``boxes`` (polygons)."""
    import geopandas as gpd
    import shapely
    from pyogrio import write_dataframe

    points = as_points(images.drop(columns=[c for c in _NOT_IN_GPKG if c in images]))
    lines = sequence_lines(images)
    lines["image_ids"] = [",".join(ids) for ids in lines["image_ids"]]
    corners = boxes[["west", "south", "east", "north"]].astype(float).to_numpy().T
    squares = gpd.GeoDataFrame(boxes, geometry=shapely.box(*corners), crs="EPSG:4326")
    for layer, frame, kind in (
        ("images", points, "Point"),
        ("sequences", lines, "MultiLineString"),
        ("boxes", squares, "Polygon"),
    ):
        write_dataframe(
            _for_gpkg(frame),
            path,
            layer=layer,
            driver="GPKG",
            geometry_type=kind,
            promote_to_multi=kind.startswith("Multi"),
        )


def write_geojson(path: Path, images: pd.DataFrame) -> None:
    """Write the images as GeoJSON points (RFC 7946: longitude first, EPSG:4326, seven decimals)."""
    from pyogrio import write_dataframe

    points = _for_gpkg(as_points(images.drop(columns=[c for c in _NOT_IN_GPKG if c in images])))
    write_dataframe(points, path, driver="GeoJSON", geometry_type="Point", RFC7946="YES")


def page_of(image_id: str, source_path: Any = None) -> str | None:
    """Address of a photo's page at the provider; None for a photo of the user's own."""
    return f"{PAGE_URL}{image_id}" if pd.isna(source_path) else None


# -- credits ------------------------------------------------------------------------------------------------


def authors(images: pd.DataFrame) -> pd.DataFrame:
    """Whom to credit: ``creator``, ``creator_id``, ``n_images``, ``n_sequences``, ``licence``, ``link``, ``credit``.

    One row an author and licence, those with most images first. An author without a name is known by the id, and
    images without an author are a row of their own: their licence asks for credit as well.
    """
    names = ["creator", "creator_id", "n_images", "n_sequences", "licence", "link", "credit"]
    if images.empty:
        return pd.DataFrame(columns=names)
    table = pd.DataFrame(
        {
            "creator": creators(images).fillna(""),
            "creator_id": images["creator_id"].astype(object),
            "username": images["creator_username"].astype(object),
            "licence": images["licence"].astype(object).where(images["licence"].notna(), None),
            "own": images["source_path"].notna(),
            "image_id": images["image_id"],
            "sequence_id": images["sequence_id"],
        }
    )
    rows = []
    for key, group in table.groupby(["creator", "licence", "own"], dropna=False, sort=True):
        creator, licence, own = cast(tuple[str, Any, bool], key)
        known = {name: next(iter(group[name].dropna()), None) for name in ("creator_id", "username")}
        link = None if own or not known["username"] else f"{USER_URL}{known['username']}"
        first = None if own else f"{PAGE_URL}{group['image_id'].iloc[0]}"
        rows.append(
            {
                "creator": creator or None,
                "creator_id": known["creator_id"],
                "n_images": len(group),
                "n_sequences": group["sequence_id"].nunique(),
                "licence": None if pd.isna(licence) else licence,
                "link": link or first,
                "credit": _credit(known["username"], licence, link or first, bool(own), str(creator)),
            }
        )
    found = pd.DataFrame(rows, columns=names)
    return found.sort_values(["n_images", "creator"], ascending=[False, True], kind="stable").reset_index(drop=True)


def credits_page(city: str, people: pd.DataFrame, splats: pd.DataFrame) -> str:
    """The credits as Markdown: what to write, who took how many images, and what holds for splats made of them."""
    lines = [
        f"# Credits for the images of {city}",
        "",
        f"Images of Mapillary are licensed [{LICENCE}]({LICENCE_URL}). Whoever shows or passes on an image, or anything "
        "made of it, names the source, the author and the licence, with a visible link to Mapillary or to the photo's page.",
        "",
        "ShareAlike: what is adapted from these images (crops, point clouds, Gaussian splats, renders of them) may be "
        f"passed on under {LICENCE} or a compatible licence only, and must say that it was changed. A splat of this city "
        "carries the credit of every author whose photos it was trained on.",
        "",
        "| author | images | sequences | licence | credit |",
        "|---|---:|---:|---|---|",
    ]
    for row in people.to_dict("records"):
        name = _cell(row["creator"] or "unknown")
        name = f"[{name}]({_target(row['link'])})" if row["link"] else name
        licence = _cell(row["licence"] or "not recorded")
        lines.append(f"| {name} | {row['n_images']:,} | {row['n_sequences']:,} | {licence} | {_cell(row['credit'])} |")
    if len(splats):
        lines += ["", "## Splats", "", "| box | file | photos | credit |", "|---|---|---:|---|"]
        for row in splats.to_dict("records"):
            said = ", ".join(f"@{_cell(name)}" for name in row["creators"]) or "the authors above"
            credit = f"Made of photos from Mapillary, {LICENCE}, by {said}; changed"
            lines.append(f"| {row['box']} | {_cell(row['path'])} | {row['n_images']:,} | {credit} |")
    return "\n".join(lines) + "\n"


def credits_html(city: str, people: pd.DataFrame) -> str:
    """The credits as a page to publish beside what was made of the images; it fetches nothing."""
    rows = []
    for row in people.to_dict("records"):
        name = html.escape(str(row["creator"] or "unknown"))
        name = f'<a href="{html.escape(str(row["link"]))}">{name}</a>' if row["link"] else name
        said = "".join(f"<td>{html.escape(str(row[key] or 'not recorded'))}</td>" for key in ("licence", "credit"))
        rows.append(f"<tr><td>{name}</td><td>{row['n_images']:,}</td>{said}</tr>")
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Credits for the images of {html.escape(city)}</title>
<style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
td,th{{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}}</style>
<h1>Credits for the images of {html.escape(city)}</h1>
<p>Images of Mapillary are licensed <a href="{LICENCE_URL}">{LICENCE}</a>. What is made of them carries these credits, says
that it was changed, and is passed on under the same licence.</p>
<table><tr><th>author<th>images<th>licence<th>credit</tr>
{chr(10).join(rows)}
</table>
</html>
"""


def readme(city: str, names: Collection[str], figures: Mapping[str, Any], boxes: pd.DataFrame, now: dt.datetime) -> str:
    """The README of an export: what is in it, how complete it is, when it was made, and its licence."""
    said = {
        "images.gpkg": "GeoPackage, EPSG:4326: layers images (points), sequences (lines), boxes (polygons)",
        "images.parquet": "GeoParquet, EPSG:4326: one row an image, all columns",
        "images.csv": "one row an image, with the columns of earlier harvesters",
        "images.geojson": "GeoJSON, EPSG:4326: one point an image",
        CREDITS[0]: "one row an author: images, licence, credit",
        CREDITS[1]: "the credits to show, and what ShareAlike asks for",
        CREDITS[2]: "the credits as a page to publish",
    }
    asked = pd.to_datetime(boxes["fetched_at"], utc=True).dropna()
    lines = [
        f"# {city}",
        "",
        f"{figures['n_images']:,} images in {figures['n_sequences']:,} sequences by {figures['n_authors']:,} authors. "
        f"Exported {now.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC.",
        "",
        *(f"- `{name}`: {said[name]}" for name in names if name in said),
        "",
        "## How complete it is",
        "",
        _verdict(boxes),
    ]
    if len(asked):
        lines += [f"Harvested {asked.min():%Y-%m-%d %H:%M} to {asked.max():%Y-%m-%d %H:%M} UTC."]
    left_out = {
        "n_tombstones": "images that the provider deleted are left out",
        "n_dropped": "images that the city's filters drop are left out",
        "n_known_already": "images of earlier harvests, or of their sequences, are left out",
    }
    lines += [f"{figures[key]:,} {text}." for key, text in left_out.items() if figures.get(key)]
    lines += [
        "",
        "## Licence",
        "",
        f"Images of Mapillary: [{LICENCE}]({LICENCE_URL}). Credit their authors as ATTRIBUTION.md says, and pass on what you "
        "make of them under the same licence.",
        "",
        "Positions are degrees, longitude first, corrected by structure from motion where that is known. Ids are text.",
    ]
    return "\n".join(lines) + "\n"


# -- details ------------------------------------------------------------------------------------------------


def _verdict(boxes: pd.DataFrame) -> str:
    states = _states(boxes)
    n_bad, n_unknown = states[False], states[None]
    if not len(boxes):
        return "No certificate: the boxes of the city are not in the lake."
    if not n_bad and not n_unknown:
        return f"Complete: the certificates of all {len(boxes):,} boxes leave nothing unresolved."
    parts = [f"{n_bad:,} have something unresolved"] if n_bad else []
    parts += [f"{n_unknown:,} have no certificate"] if n_unknown else []
    return f"Not known to be complete: of {len(boxes):,} boxes, {' and '.join(parts)}."


def _states(boxes: pd.DataFrame) -> collections.Counter[bool | None]:
    """How many boxes are complete, incomplete, and without a certificate (None)."""
    return collections.Counter(None if pd.isna(value) else bool(value) for value in boxes["complete"])


def _credit(username: str | None, licence: Any, link: str | None, own: bool, creator: str) -> str:
    if own:
        return ", ".join(filter(None, ["Own photos" + (f" by {creator}" if creator else ""), _text(licence)]))
    by = f", by @{username}" if username else ""
    return f"Photos from Mapillary, {_text(licence) or LICENCE}{by}" + (f", {link}" if link else "")


def _text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) else str(value)


def _cell(text: Any) -> str:
    """Text that cannot break out of a cell of a Markdown table."""
    return (
        " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")
    )


def _target(address: str) -> str:
    return address.replace(" ", "%20").replace(")", "%29").replace("|", "%7C").replace("(", "%28")


def _for_gpkg(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Columns that GDAL takes: booleans that may be missing as numbers, objects as text."""
    ready = frame.copy()
    for name in ready.columns.drop("geometry"):
        column = ready[name]
        if isinstance(column.dtype, pd.BooleanDtype):
            ready[name] = column.astype("Int64")
        elif column.dtype == object:
            ready[name] = [value if value is None or isinstance(value, str) else _text(value) for value in column]
    return ready


def _raw(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str)  # ids exceed what a float can hold
        if path.suffix in (".parquet", ".geoparquet"):
            return pd.read_parquet(path)
        if path.suffix == ".gpkg":
            import pyogrio

            layers = [str(name) for name in pyogrio.list_layers(path)[:, 0]]
            layer = "images" if "images" in layers else layers[0]
            return pd.DataFrame(pyogrio.read_dataframe(path, layer=layer, read_geometry=False))
    except Exception as error:
        raise SourceError(f"{path} cannot be read as an earlier harvest: {error}.") from None
    raise SourceError(f"{path}: an earlier harvest is a .csv, .parquet or .gpkg file, not {path.suffix or 'this'}.")


def _id(value: Any) -> str | None:
    """An id as text; one that was saved as a number loses its decimal point, not its digits."""
    text = _text(value)
    if text is None or not text.strip():
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else text
    return text.strip().removesuffix(".0")


def _creator(value: Any) -> tuple[str | None, str | None]:
    """Name and id of an author, from a name or from the API's object as earlier harvesters saved it."""
    text = _text(value)
    if text and text.startswith("{"):
        try:
            said = ast.literal_eval(text)
            return _text(said.get("username")), _text(said.get("id"))
        except (ValueError, SyntaxError, AttributeError):
            return text, None
    return text or None, None


def _typed(values: pd.Series, kind: str) -> pd.Series:
    """Values of a file as a column's type; what is not of it is null."""
    if kind in ("int", "float"):
        numbers = pd.Series(pd.to_numeric(values, errors="coerce"), dtype=float)
        return numbers if kind == "float" else numbers.round().astype("Int64")
    if kind == "time":
        return pd.to_datetime(values, utc=True, errors="coerce", format="ISO8601")
    if kind == "bool":
        words = {"true": True, "1": True, "false": False, "0": False, "1.0": True, "0.0": False}
        return values.map(lambda value: words.get(str(value).strip().lower())).astype("boolean")
    return values


def _publish(staged: Path, folder: Path) -> None:
    """Put finished files in their place; the README, which says what the others are, comes last."""
    for path in staged.iterdir():
        sync(path)
    if not folder.exists():
        staged.rename(folder)
        sync(folder.parent)
        return
    ours = {*(f"images.{name}" for name in FORMATS), *CREDITS, README}
    made = sorted((path.name for path in staged.iterdir()), key=lambda name: (name == README, name))
    for name in sorted(ours - set(made)):
        (folder / name).unlink(missing_ok=True)
    for name in made:
        (staged / name).replace(folder / name)
    sync(folder)
