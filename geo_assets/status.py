"""How far each city is, and what to type next: read from the lake alone, so it is as true as the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from geo_assets.lake import Lake
from geo_assets.settings import EMBEDDED, City, Settings

STAGES = {
    "tiles": "n_tile_images",
    "harvested": "n_harvested",
    "downloaded": "n_downloaded",
    "featured": "n_featured",
    "paired": "n_paired",
    "registered": "n_registered",
    "splatted": "n_splatted",
}
"""The stages of the funnel and their columns in ``reconstruction_funnel``."""


@dataclass(frozen=True)
class CityStatus:
    """One city: images and boxes at each stage of :data:`STAGES`, and the furthest state of its boxes.

    Args:
        city: name of the city.
        n_boxes: boxes of its grid, asked about or not.
        images: images that came as far as each stage.
        boxes: boxes with an image that came so far.
        states: how many boxes are in each state.
        box_states: the state of each box that was asked about.
        certificate: counts of the city's certificate of completeness; None before the harvest of the whole city.
        next: command lines that lead on.
    """

    city: str
    n_boxes: int
    images: dict[str, int]
    boxes: dict[str, int]
    states: dict[str, int]
    box_states: dict[str, str]
    certificate: dict[str, Any] | None
    next: tuple[str, ...]


@dataclass(frozen=True)
class GeotagStatus:
    """The geolocation branch: photos of each source, clusters of their coordinates, cells of each level."""

    photos: dict[str, int]
    n_clusters: int
    cells: dict[int, int]
    next: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was made of it."""
        return not (self.photos or self.n_clusters or self.cells)


def city_status(lake: Lake, settings: Settings, names: Sequence[str]) -> list[CityStatus]:
    """How far the named cities are.

    Raises:
        ConfigError: a city is not of the settings.
    """
    from geo_assets.sql_models import answer

    places = {name: settings.city(name) for name in names}
    funnel: dict[str, list[dict[str, Any]]] = {name: [] for name in places}
    for row in answer(lake, "reconstruction_funnel").to_pylist():
        if row["city"] in funnel:
            funnel[row["city"]].append(row)
    return [_of(lake, name, place, funnel[name]) for name, place in places.items()]


def geotag_status(lake: Lake) -> GeotagStatus:
    """How far the photo sets and the clustering are."""
    with lake.connect("geotag_combined", "hdbscan_model", "hierarchy_centroids") as con:
        photos = con.execute("select source, count(*) from geotag_combined group by 1 order by 1").fetchall()
        clusters = con.execute("select count(distinct cluster) from hdbscan_model where cluster >= 0").fetchall()
        cells = con.execute("select level, count(*) from hierarchy_centroids group by 1 order by 1").fetchall()
    if not photos:
        then = "geo-assets materialize --select '*geotag_combined'"
    elif not cells:
        then = "geo-assets materialize --select hierarchy_centroids"
    else:
        then = "geo-assets cells --out FOLDER"
    return GeotagStatus(dict(photos), clusters[0][0], dict(cells), (then,))


def as_dict(status: CityStatus | GeotagStatus) -> dict[str, Any]:
    """A status as JSON can hold it."""
    return asdict(status)


def city_lines(status: CityStatus) -> list[str]:
    """A city's status for a terminal: the funnel as a table, the states, the certificate, what to type next."""
    n_asked = len(status.box_states)
    asked = "" if n_asked == status.n_boxes else f", {n_asked:,} of them asked about so far"
    lines = [f"{status.city}: {status.n_boxes:,} box{'es' * (status.n_boxes != 1)}{asked}"]
    if n_asked:
        width = [max(len(stage), 9) for stage in STAGES]
        lines.append(" " * 8 + "".join(f"{stage:>{w + 2}}" for stage, w in zip(STAGES, width, strict=True)))
        for noun, counts in (("images", status.images), ("boxes", status.boxes)):
            numbers = "".join(f"{counts[stage]:>{w + 2},}" for stage, w in zip(STAGES, width, strict=True))
            lines.append(f"  {noun:<6}{numbers}")
        lines.append("  states: " + ", ".join(f"{n:,} {state}" for state, n in status.states.items()))
    if status.certificate:
        lines.append(f"  {certificate_line(status.certificate)}")
    return [*lines, *(f"  next: {command}" for command in status.next)]


def certificate_line(row: Mapping[str, Any]) -> str:
    """What the certificate of a city says, as one line."""
    found = f"{row['n_images']:,} images in {row['n_sequences']:,} sequences, {row['n_complete']:,} of {row['n_boxes']:,} boxes complete"
    if row["complete"]:
        return f"certificate: complete; {found}; {row['fetched_at']}"
    words = {
        "n_unresolved": "images without an answer",
        "n_unverifiable": "search cells unverifiable",
        "n_unclosed": "sequences not listed",
        "n_failed_tiles": "tiles missing",
    }
    open_ = ", ".join(f"{row[name]:,} {word}" for name, word in words.items() if row[name])
    return f"certificate: not complete; {found}; {open_ or 'boxes not harvested yet'}; {row['fetched_at']}"


def geotag_lines(status: GeotagStatus) -> list[str]:
    """The status of the geolocation branch for a terminal."""
    if status.is_empty:
        return [f"geolocation data: none yet; next: {status.next[0]}"]
    photos = ", ".join(f"{source} {n:,}" for source, n in status.photos.items())
    cells = ", ".join(f"level {level} {n:,}" for level, n in status.cells.items())
    return [
        f"geolocation data: {sum(status.photos.values()):,} photos",
        f"  photos: {photos or 'none'}",
        f"  clusters: {status.n_clusters:,}; cells: {cells or 'none'}",
        *(f"  next: {command}" for command in status.next),
    ]


def _of(lake: Lake, name: str, place: City, funnel: list[dict[str, Any]]) -> CityStatus:
    certificate = _certificate(lake, name)
    return CityStatus(
        name,
        len(place.grid),
        {stage: sum(row[column] or 0 for row in funnel) for stage, column in STAGES.items()},
        {stage: sum((row[column] or 0) > 0 for row in funnel) for stage, column in STAGES.items()},
        dict(Counter(row["state"] for row in funnel).most_common()),
        {row["box"]: row["state"] for row in funnel},
        certificate,
        _next(lake, name, place, funnel, certificate),
    )


def _certificate(lake: Lake, city: str) -> dict[str, Any] | None:
    proof = lake.read_if_any("city_certificates", city=city)
    if not len(proof):
        return None
    row = {str(name): _plain(value) for name, value in proof.iloc[0].to_dict().items()}
    return row | {"fetched_at": f"{row['fetched_at']:%Y-%m-%d %H:%M} UTC"}


def _next(
    lake: Lake, name: str, place: City, funnel: list[dict[str, Any]], certificate: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """What leads on: the harvest, then splats of the boxes that have none, then the city, then a look at it."""
    is_demo, splats = place.graph_url == EMBEDDED, f"geo-assets materialize --select splat_ply --city {name} --missing"
    asks = not is_demo and place.photos is None
    harvested = {row["box"] for row in funnel if row["n_harvested"]}
    if not harvested and not lake.has("splat_city", city=name):
        if is_demo:
            return ("geo-assets demo",)
        return (f"geo-assets harvest {name} --dry-run", splats) if asks else (splats,)
    if asks and certificate is not None and not certificate["complete"]:
        return (f"geo-assets harvest {name} --files",)
    trained = {where["box"] for where in lake.partitions("splat_ply") if where.get("city") == name}
    if harvested - trained:
        return ("geo-assets demo",) if is_demo else (splats,)
    if not lake.has("splat_city", city=name):
        return (f"geo-assets materialize --select splat_city --city {name}",)
    return (f"geo-assets show {name}", "geo-assets serve")


def _plain(value: Any) -> Any:
    """A value of a frame as JSON has it."""
    value = value.item() if hasattr(value, "item") else value
    return None if not isinstance(value, str) and pd.isna(value) else value
