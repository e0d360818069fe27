"""All boxes of all cities at a glance: how far each came and what it is worth, as columns for the map."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geo_assets.lake import Lake
from geo_assets.serve.kept import Kept
from geo_assets.settings import EMBEDDED, City, Settings
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    import pandas as pd

FUNNEL = {
    "n_tile_images": "seen by the coverage tiles",
    "n_harvested": "harvested",
    "n_downloaded": "downloaded",
    "n_featured": "with features",
    "n_paired": "matched",
    "n_registered": "registered in 3D",
    "n_splatted": "in the splat",
}
"""The steps that an image takes, in order, by the column that counts them."""

STATES = {
    "empty": ("no images", None),
    "seen": ("images seen", "image_metadata"),
    "harvested": ("harvested", "image_files"),
    "downloaded": ("downloaded", "gps_db"),
    "featured": ("features found", "match_pairs"),
    "paired": ("matched", "sparse_models"),
    "registered": ("reconstructed", "splat_ply"),
    "splatted": ("splat trained", None),
}
"""The furthest state of a box: in words, and the asset that takes it further."""

MEASURES = ("registered_share", "gps_median_m", "psnr_db")
_MODELS = ("reconstruction_funnel", "box_quality")
_DECIMALS = 4


@dataclass(frozen=True)
class CityBoxes:
    """The boxes of a city that were asked for: equally long columns, and their sums."""

    columns: dict[str, list[Any]]
    totals: dict[str, int]
    states: dict[str, int]
    """Boxes in each state, in the order of :data:`STATES`; states without a box are left out."""


def kept_boxes(lake: Lake, pause_s: float = 1.0) -> Kept[dict[str, CityBoxes]]:
    """The boxes of every city, by its name."""
    return Kept(lake, _inputs, lambda: read_boxes(lake), lambda: published_boxes(lake), pause_s)


def read_boxes(lake: Lake) -> dict[str, CityBoxes]:
    """The present answers of the SQL models on boxes, joined and divided by city."""
    from geo_assets.sql_models import answer

    return _by_city(*(answer(lake, name).to_pandas() for name in _MODELS))


def published_boxes(lake: Lake) -> dict[str, CityBoxes]:
    """The same from the SQL models as they were materialized last, which may be a while ago; or nothing."""
    if not all(lake.partitions(name) for name in _MODELS):
        return {}
    with lake.connect(*_MODELS) as con:
        return _by_city(*(con.sql(f'from "{name}"').to_arrow_table().to_pandas() for name in _MODELS))


def _by_city(funnel: pd.DataFrame, quality: pd.DataFrame) -> dict[str, CityBoxes]:
    both = funnel.merge(quality[["city", "box", *MEASURES]], on=["city", "box"], how="left")
    both[list(MEASURES)] = both[list(MEASURES)].astype(float).round(_DECIMALS)
    both = both.astype(object).where(both.notna(), None)
    return {str(city): _city_boxes(rows.drop(columns="city")) for city, rows in both.groupby("city", sort=False)}


def _city_boxes(rows: pd.DataFrame) -> CityBoxes:
    counted = Counter(rows["state"].tolist())
    return CityBoxes(
        columns={name: rows[name].tolist() for name in rows.columns},
        totals={name: int(rows[name].to_numpy(int).sum()) for name in FUNNEL},
        states={name: counted[name] for name in STATES if name in counted},
    )


def _inputs() -> set[str]:
    """The tables that the SQL models on boxes are made of, directly or through other models."""
    from geo_assets.sql_models import read_models

    parents = {model.name: model.parents for model in read_models()}
    found, todo = set[str](), list[str](_MODELS)
    while todo:
        fresh = set(parents.get(todo.pop(), ())) - found
        found |= fresh
        todo += fresh
    return {name for name in found if name in TABLES}


# -- answers ------------------------------------------------------------------------------------------------


def cities_json(settings: Settings, boxes: dict[str, CityBoxes], lake: Lake, *, reading: bool) -> dict[str, Any]:
    """Every city of the settings with its grid, its funnel and what to type next.

    Args:
        settings: name the cities.
        boxes: the boxes of each city.
        lake: holds the splats of cities.
        reading: whether these boxes are not the present ones yet.
    """
    cities = [_city_json(name, city, boxes.get(name), lake) for name, city in settings.cities.items()]
    hint = None if cities else "geo-assets city add lund --bbox 13.18,55.70,13.20,55.71"
    return {
        "cities": cities,
        "steps": [{"column": column, "words": words} for column, words in FUNNEL.items()],
        "states": [{"state": state, "words": words} for state, (words, _) in STATES.items()],
        "reading": reading,
        "next": hint,
    }


def _city_json(name: str, city: City, boxes: CityBoxes | None, lake: Lake) -> dict[str, Any]:
    grid, page = city.grid, lake.key("splats_city", "index.html", city=name)
    is_demo = city.graph_url == EMBEDDED
    harvested = boxes.totals["n_harvested"] if boxes else 0
    return {
        "city": name,
        "bounds": city.bounds.as_list(),
        "source": "demo world" if is_demo else "photos" if city.photos else "Mapillary",
        "grid": {
            "origin": [grid.origin_lon, grid.origin_lat],
            "step": [grid.step_lon, grid.step_lat],
            "rows": grid.rows,
            "columns": grid.columns,
            "box_m": grid.box_m,
        },
        "n_boxes": len(grid),
        "n_known": len(boxes.columns["box"]) if boxes else 0,
        "totals": boxes.totals if boxes else dict.fromkeys(FUNNEL, 0),
        "states": boxes.states if boxes else {},
        "splat": f"/{page}" if lake.exists(page) else None,
        "next": None if harvested else "geo-assets demo" if is_demo else f"geo-assets harvest {name} --files",
    }
