"""Any table of points, clustered into a folder: what ``geo-assets cluster`` does, without a lake or an instance."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geo_assets.errors import ConfigError, SourceError
from geo_assets.files import put_in_place, replacing, written_beside
from geo_assets.geotag import csvs
from geo_assets.geotag.cell_pictures import error_curves, radius_histograms, size_histograms
from geo_assets.geotag.combine import prepare
from geo_assets.geotag.hierarchy import Hierarchy, build
from geo_assets.geotag.hierarchy_export import CENTROIDS, COORDS, write_csvs
from geo_assets.geotag.hierarchy_export import STRUCTURE as STRUCTURE_CSV
from geo_assets.geotag.icicle import refuse_region, tree_picture
from geo_assets.geotag.model import CARD, OVERLAP, POINTS, Model, fit, overlap, save
from geo_assets.geotag.photos import no_rejects, prepared, refuse_swapped, sift
from geo_assets.geotag.pictures import level_map
from geo_assets.settings import Geotag
from geo_assets.sql import literal
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    import duckdb

PHOTOS, CELLS, STRUCTURE, ERRORS, REJECTS = (
    "clusters.parquet",
    "cells.parquet",
    "structure.parquet",
    "errors.parquet",
    "rejects.csv",
)
MODEL, PICKLE, SUMMARY, MAP, RADII, SIZES, TREE, CURVES = (
    "model",
    "model.pkl",
    "summary.json",
    "map.png",
    "radii.png",
    "sizes.png",
    "tree.png",
    "errors.png",
)
HULLS = "cells_level_*.parquet"
CSVS = (COORDS, STRUCTURE_CSV, CENTROIDS)
OTHERS = {table: f"{table}.parquet" for table in ("s2_cells", "quadtree_cells")}
_SCRATCH = "geo_assets_cluster_"
_ROLES = {"lon": csvs.LON_NAMES, "lat": csvs.LAT_NAMES}
_OPTIONAL = {"photo_id": ("photo_id", "id", "img_id", "path")}


@dataclass(frozen=True)
class Options:
    """How points are clustered and what is written beside the tables."""

    min_cluster_size: int = 5
    min_samples: int = 2
    engine: Literal["own", "hdbscan"] = "own"
    method: Literal["tree", "kmeans"] = "tree"
    exponents: tuple[float, ...] = (0.75, 0.5)
    region: tuple[float, float, float, float] | None = None
    """West, south, east, north [deg] of a picture of the condensed tree."""
    pickle: bool = False
    hulls: bool = False
    judge: bool = False
    others: bool = False
    """Cells of S2 and boxes of degrees as well, cut as they are published."""
    csv: bool = False
    """The levels as the three CSV files that earlier training scripts read."""


def cluster_file(
    source: Path, out: Path, options: Options | None = None, log: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Cluster the points of a file and write what is found into a folder.

    ``clusters.parquet`` has a row for each photo that has a place, in the order of the file: ``photo_id``, ``lon``, ``lat``
    [deg] as read, ``point_id``, ``cluster`` (-1 for noise), ``probability`` and its cell of each level but the root,
    ``cell_0`` the finest; ``rejects.csv`` has all other rows. ``cells.parquet`` and ``structure.parquet`` are tables
    ``hierarchy_centroids`` and ``hierarchical_structure``, ``model/`` is what :func:`geo_assets.geotag.model.load`
    reads. ``summary.json`` is written last. On request there are the hulls of the cells for a GIS
    (``cells_level_<n>.parquet``), the errors of held-out places beside other partitions (``errors.parquet``), tables
    ``s2_cells`` and ``quadtree_cells``, and the files of :func:`geo_assets.geotag.hierarchy_export.export_hierarchy`. Where
    the folder holds the model of an earlier run on other points, ``model/overlap.parquet`` says which of its clusters are
    which now.

    Args:
        source: parquet or CSV with columns ``lon`` and ``lat`` [deg, WGS84], by these or like names, and perhaps ``photo_id``;
            without it a photo is called by the number of its row, from 0.
        out: the folder; files of an earlier run are replaced.
        options: the parameters.
        log: told each step.

    Returns:
        The summary.

    Raises:
        SourceError: the file cannot be read, lacks a column, or its header is swapped.
        ConfigError: ``out`` is not to be written to.
    """
    import duckdb

    options = options or Options()
    _refuse_to_overwrite(source, out)
    if options.region:
        refuse_region(options.region)
    out.mkdir(parents=True, exist_ok=True)
    _clear(out)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=out) as scratch, duckdb.connect() as plain:
        con = prepared(plain, Geotag(), Path(scratch))
        counts = _read(con, source, Path(scratch), out)
        log(f"{source.name}: {counts['n_rows']:,} rows, {counts['n_rejects']:,} rejected")
        points = _places(con)
        log(f"{len(points):,} places of {counts['n_photos']:,} photos")
        model = fit(
            points, min_cluster_size=options.min_cluster_size, min_samples=options.min_samples, engine=options.engine
        )
        log(f"{model.card['n_clusters']:,} clusters, {model.card['n_noise']:,} places are noise")
        levels = build(
            model.points,
            model.dendrogram,
            min_cluster_size=options.min_cluster_size,
            exponents=options.exponents,
            method=options.method,
        )
        log("cells by level: " + (", ".join(f"{n:,}" for n in _n_cells(levels)) or "none"))
        _write_photos(con, model, levels, out / PHOTOS)
        if options.csv:
            _write_csvs(con, levels, Path(scratch), out)
        con.unregister("placed")
        _write_tables(levels, out)
        _write_model(model, out / MODEL, Path(scratch))
    _write_pictures(model, levels, out, options)
    summary = _summary(source, options, counts, model, levels)
    if options.hulls and len(points):
        from geo_assets.geotag.hulls import write_levels

        lon, lat = (points[name].to_numpy(np.float64) for name in ("lon", "lat"))
        files = write_levels(levels.centroids, lon, lat, levels.cells[:-1], out)
        log(f"hulls: {', '.join(path.name for path in files)}")
    if options.others:
        summary |= _write_others(points, out)
    if options.judge:
        summary |= _write_errors(points, out, options, log)
    if options.pickle:
        from geo_assets.geotag.model_export import write_pickle

        log(write_pickle(model, out / PICKLE))
    with replacing(out / SUMMARY) as sink:
        sink.write(json.dumps(summary, indent=1).encode() + b"\n")
    return summary


def sentences(summary: dict[str, Any], out: Path) -> str:
    """The summary for people."""
    cells = ", ".join(f"{n:,}" for n in summary["cells_by_level"]) or "none"
    lines = [
        f"{summary['n_rows']:,} rows: {summary['n_photos']:,} with a place, {summary['n_rejects']:,} rejected",
        f"{summary['n_places']:,} places: {summary['n_clusters']:,} clusters, {summary['n_noise_places']:,} are noise",
        f"cells by level, finest first: {cells}",
        *([summary["note"]] if summary["note"] else []),
        f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}",
    ]
    return "\n".join(lines)


def _refuse_to_overwrite(source: Path, out: Path) -> None:
    if not source.is_file():
        raise SourceError(f"{source} is no file. Name a parquet or CSV file with columns lon and lat.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, and --out wants a folder. Name another.")
    if source.resolve().parent == out.resolve() and source.name in (
        PHOTOS,
        CELLS,
        STRUCTURE,
        ERRORS,
        REJECTS,
        *OTHERS.values(),
        *CSVS,
    ):
        raise ConfigError(f"{source} would be replaced by the result of the same name. Name another folder with --out.")
    model = out / MODEL
    if model.exists() and not (model / CARD).is_file() and (not model.is_dir() or any(model.iterdir())):
        raise ConfigError(f"{model} holds something that is no model. Name another folder with --out.")


def _clear(out: Path) -> None:
    """Remove what an earlier run left that this one may not replace."""
    for left in out.glob(f"{_SCRATCH}*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    if (out / MODEL / CARD).is_file():
        for path in (
            *(out / name for name in (SUMMARY, ERRORS, PICKLE, TREE, CURVES, *OTHERS.values(), *CSVS)),
            *out.glob(HULLS),
        ):
            path.unlink(missing_ok=True)


# -- reading -----------------------------------------------------------------------------------------------------


def _read(con: duckdb.DuckDBPyConnection, source: Path, scratch: Path, out: Path) -> dict[str, Any]:
    """Make the view ``photos`` (row, photo_id, lon, lat), write what is no photo as CSV; counts."""
    names, broken = _open(con, source)
    refuse_swapped(con, "given", source, (names["lon"], names["lat"]))
    photo_id = "photo_id::varchar" if "photo_id" in names else "null::varchar"
    # Nothing is read or written by a photo's id, so that any text may be one.
    con.execute(f"""create view raw as select {literal(source.name)} as file, row::varchar as row, lon, lat,
        'photo' as path, coalesce({photo_id}, row::varchar) as photo_id from given""")
    sifted = sift(con, "raw", "points", extra=("row",))
    # Zeros stand for "unknown"; thousands of such rows would be the densest place on Earth.
    islands = "list_contains(flags, 'null_island')"
    kept, rejects = scratch / "photos.parquet", scratch / "rejects.parquet"
    con.execute(f"copy ({sifted.photos}) to {literal(scratch / 'sifted.parquet')} (format parquet)")
    con.execute(f"create view sifted as from read_parquet({literal(scratch / 'sifted.parquet')})")
    con.execute(f"""copy (select row::bigint as row, photo_id, lon, lat from sifted where not {islands} order by row)
        to {literal(kept)} (format parquet)""")
    con.execute(f"create view photos as from read_parquet({literal(kept)})")
    con.execute(f"""copy ({sifted.rejects} union all {broken} union all
        select {literal(source.name)}, row, 'the position is zero, which stands for unknown', 'lon=' || lon || ', lat=' || lat
        from sifted where {islands}) to {literal(rejects)} (format parquet)""")
    with written_beside(out / REJECTS) as target:
        con.execute(f"""copy (select * from read_parquet({literal(rejects)})
            order by try_cast(regexp_extract(row, '\\d+') as bigint), row) to {literal(target)} (format csv, header)""")
    reasons = con.execute(f"""select reason, count(*) from read_parquet({literal(rejects)})
        group by all order by count(*) desc, reason""").fetchall()
    ((n_photos,),) = con.execute("select count(*) from photos").fetchall()
    n_rejects = sum(n for _, n in reasons)
    return {
        "n_rows": n_photos + n_rejects,
        "n_photos": n_photos,
        "n_rejects": n_rejects,
        "reject_reasons": dict(reasons),
    }


def _open(con: duckdb.DuckDBPyConnection, source: Path) -> tuple[dict[str, str], str]:
    """Make the view ``given`` (row, lon, lat and perhaps photo_id); the file's names of these, and a query of broken lines."""
    import duckdb

    with source.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if not is_parquet:
        csv = csvs.open_csv(con, source, _ROLES, _OPTIONAL, view="given")
        return csv.names, csv.rejects
    query = f"from read_parquet({literal(source)}, file_row_number = true)"
    try:
        columns = [str(name) for name, *_ in con.execute(f"describe {query}").fetchall()]
    except duckdb.Error as error:
        raise SourceError(f"{source} cannot be read: {str(error).splitlines()[0]}", file=str(source)) from None
    columns.remove("file_row_number")
    names = csvs.roles(source, columns, _ROLES, _OPTIONAL)
    chosen = ", ".join(f'"{name.replace(chr(34), chr(34) * 2)}"::varchar as {role}' for role, name in names.items())
    con.execute(f"create view given as select file_row_number as row, {chosen} {query}")
    return names, no_rejects()


def _places(con: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """The distinct places, numbered by longitude, then latitude."""
    prepare(con)
    con.execute("""create temp table places as select row_number() over () - 1 as point_id, * from (
        select place_lon(lon, lat) as lon, place_lat(lat) as lat, count(*) as n_photos from photos group by all
        order by lon, lat)""")
    return con.sql("from places order by point_id").to_arrow_table().to_pandas()


# -- writing -----------------------------------------------------------------------------------------------------


def _write_photos(con: duckdb.DuckDBPyConnection, model: Model, levels: Hierarchy, target: Path) -> None:
    cells = {f"cell_{level}": row for level, row in enumerate(levels.cells[:-1])}
    columns = {name: model.points[name].to_numpy() for name in ("point_id", "lon", "lat", "cluster", "probability")}
    con.register("placed", pa.table(columns | cells))
    chosen = ", ".join(f"placed.{name}" for name in ("point_id", "cluster", "probability", *cells))
    with written_beside(target) as file:
        con.execute(f"""copy (select photo_id, p.lon, p.lat, {chosen} from photos p
            join placed on placed.lon = place_lon(p.lon, p.lat) and placed.lat = place_lat(p.lat) order by p.row)
            to {literal(file)} (format parquet, compression zstd)""")


def _write_csvs(con: duckdb.DuckDBPyConnection, levels: Hierarchy, scratch: Path, out: Path) -> None:
    # A row's number is unique and in order, which the user's own ids need not be.
    named = "'points' as source, printf('%020d', row) as photo_id"
    cells = ", ".join(f"'{level}:' || cell_{level}" for level in range(len(levels.cells) - 1))
    con.execute(f"create view geotag_combined as select {named}, photo_id as path, lat, lon from photos")
    con.execute(f"""create view photo_cells as select {named}, [{cells}] as cells, cluster < 0 as is_noise from photos p
        join placed on placed.lon = place_lon(p.lon, p.lat) and placed.lat = place_lat(p.lat)""")
    con.register("hierarchy_centroids", levels.centroids)
    con.register("hierarchical_structure", levels.structure())
    write_csvs(con, scratch, out, len(levels.cells) - 1, path="path")


def _write_tables(levels: Hierarchy, out: Path) -> None:
    for name, table, rows in (
        (CELLS, "hierarchy_centroids", levels.centroids),
        (STRUCTURE, "hierarchical_structure", levels.structure()),
    ):
        with replacing(out / name) as sink:
            pq.write_table(TABLES[table].conform(rows), sink, compression="zstd")


def _write_model(model: Model, folder: Path, scratch: Path) -> None:
    staged = scratch / "model"
    staged.mkdir()
    save(model, staged)
    if (folder / POINTS).is_file() and json.loads((folder / CARD).read_bytes())["version"] != model.version:
        before = pd.read_parquet(folder / POINTS, columns=["lon", "lat", "cluster"])
        overlap(before, model.points).to_parquet(staged / OVERLAP, index=False)
    put_in_place(staged, folder)


def _write_pictures(model: Model, levels: Hierarchy, out: Path, options: Options) -> None:
    pictures = {
        MAP: level_map(levels.centroids),
        RADII: radius_histograms(levels.centroids),
        SIZES: size_histograms(levels.centroids),
    }
    if options.region:
        pictures[TREE] = tree_picture(model, options.region)
    for name, png in pictures.items():
        with replacing(out / name) as sink:
            sink.write(png)


def _write_others(points: pd.DataFrame, out: Path) -> dict[str, Any]:
    """Cells by other rules; the figures."""
    from geo_assets.geotag.quarter_cells import cut_cells
    from geo_assets.geotag.quarters import splits

    figures = {}
    for table, split in splits(Geotag()).items():
        cells, figures[table] = cut_cells(points, *split)
        with replacing(out / OTHERS[table]) as sink:
            pq.write_table(TABLES[table].conform(cells), sink, compression="zstd")
    return figures


def _write_errors(points: pd.DataFrame, out: Path, options: Options, log: Callable[[str], None]) -> dict[str, Any]:
    """How far off the cells are for places that did not make them; the figures."""
    from geo_assets.geotag.judge import judge, sample
    from geo_assets.geotag.quarters import splits

    judged = judge(
        sample([points.loc[:, ["lon", "lat", "n_photos"]]], len(points)),
        exponents=options.exponents,
        method=options.method,
        splits=splits(Geotag()),
        n_photos=int(points["n_photos"].to_numpy().sum()),
        log=log,
        min_cluster_size=options.min_cluster_size,
        min_samples=options.min_samples,
        engine=options.engine,
    )
    with replacing(out / ERRORS) as sink:
        pq.write_table(TABLES["partition_errors"].conform(judged.errors), sink, compression="zstd")
    with replacing(out / CURVES) as sink:
        sink.write(error_curves(judged.errors))
    return {"judged": judged.figures}


def _summary(source: Path, options: Options, counts: dict[str, Any], model: Model, levels: Hierarchy) -> dict[str, Any]:
    card, n_cells = model.card, _n_cells(levels)
    photos = model.points["n_photos"].to_numpy(np.int64)
    noise = int(photos[model.points["cluster"].to_numpy() < 0].sum())
    known = ("version", "algorithm", "min_cluster_size", "min_samples", "engine", "spanning_tree_km")
    return {
        "source": source.name,
        **counts,
        "n_places": card["n_points"],
        "n_clusters": card["n_clusters"],
        "n_noise_places": card["n_noise"],
        "n_noise_photos": noise,
        **{name: card[name] for name in known},
        "method": options.method,
        "cells_by_level": n_cells,
        **levels.figures,
        "note": _note(card),
    }


def _note(card: dict[str, Any]) -> str | None:
    """What to know of a result that may surprise."""
    n, least = card["n_points"], card["min_cluster_size"]
    if n == 0:
        return "No row has a position, so the tables have no rows; rejects.csv says why."
    if n < 2 * least:
        return f"{n:,} {'place is' if n == 1 else 'places are'} too few for two clusters of {least}: all noise, in one cell."
    if not card["n_clusters"]:
        return "The places are no denser anywhere than elsewhere, so all are noise and lie in one cell."
    return None


def _n_cells(levels: Hierarchy) -> Sequence[int]:
    return levels.centroids.groupby("level").size().tolist()
