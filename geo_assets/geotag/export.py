"""The combined photos as the CSV file that training scripts read: ``path,lat,lon``."""

from __future__ import annotations

from pathlib import Path

from geo_assets.errors import ConfigError, GeoAssetsError
from geo_assets.files import written_beside
from geo_assets.geotag.combine import SOURCES
from geo_assets.geotag.photos import querying
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.sql import literal

FOLDERS = {"placing_2016": "2016_placing"}
"""Folders of the photo sets below the folder of all photos, where they are not called as the set is."""

EXPORTED_PATH = f"'./' || coalesce((map {FOLDERS})[source], source) || '/' || path"
"""SQL of a photo's path below the folder of all photos, of columns ``source`` and ``path``."""

SPLITS = ("train", "validation", "test")


def export_csv(
    lake: Lake,
    target: Path,
    settings: Geotag,
    *,
    source: str | None = None,
    split: str | None = None,
    null_islands: bool = False,
) -> int:
    """Write the photos of ``geotag_combined`` as a CSV file with the header ``path,lat,lon`` [deg, WGS84].

    A path begins with the folder of its photo set: ``./2016_placing/13/20/8010869266.jpg``,
    ``./google_landmark/a/b/c/<id>.jpg``, ``./flickr_geotag/...``, ``./mapillary/...``. Rows are in the order of the
    table and stream to the file, which appears when it is whole. Numbers read back as the same doubles.

    Args:
        lake: holds ``geotag_combined``.
        target: the file; one that is there is replaced.
        settings: the memory of the query.
        source: one photo set alone.
        split: train, validation or test alone.
        null_islands: whether photos flagged ``null_island`` are written. Their position is unknown, not in the Gulf of
            Guinea, so a model must not learn it; the earlier files held them.

    Returns:
        Number of photos written.

    Raises:
        ConfigError: no such source or split.
        GeoAssetsError: ``geotag_combined`` was never made.
    """
    for what, value, known in (("source", source, SOURCES), ("split", split, SPLITS)):
        if value is not None and value not in known:
            raise ConfigError(f"There is no {what} '{value}'. Take one of {', '.join(known)}.")
    if not lake.has("geotag_combined"):
        raise GeoAssetsError(
            "Table geotag_combined has no data. Make it first: geo-assets materialize --select geotag_combined"
        )
    where = ["true" if null_islands else "not list_contains(flags, 'null_island')"]
    where += [f"{name} = '{value}'" for name, value in (("source", source), ("split", split)) if value]
    with querying(lake, settings, "geotag_combined") as (con, _), written_beside(target) as file:
        ((n,),) = con.execute(f"""
            copy (select {EXPORTED_PATH} as path, lat, lon from geotag_combined where {" and ".join(where)})
            to {literal(file)} (format csv, header)""").fetchall()
    return n
