"""Whether a box is behind its inputs, as the lake tells it: what was made of them, and what lies there now.

A box reads the fringe of the boxes around it, so that one of these was made anew says little; whether anything that
the box itself reads is another does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from geo_assets.lake import BoxPartition, Lake
from geo_assets.settings import Settings


def features(lake: Lake, settings: Settings, where: BoxPartition) -> bool:
    """Whether the database of a box would be another one: images of the box or of its margin differ.

    A box without images never is, unless it had some. The pixels are not read, only the tables.

    Raises:
        GeoAssetsError: a table cannot be read.
    """
    from geo_assets.reconstruct.images import images_around, inputs_digest

    if not all(lake.has(table, **where) for table in ("image_metadata", "image_files")):
        return False
    city, box = where["city"], where["box"]
    images, _ = images_around(lake, city, box, settings.city(city).grid, settings.reconstruct)
    made = lake.has("gps_db", **where)
    if not (images.home_box == box).any():
        return made and lake.rows("gps_db", **where) > 0
    return not made or lake.note("gps_db", **where).get("inputs") != inputs_digest(images)


def _older(table: str, source: str) -> Callable[[Lake, Settings, BoxPartition], bool]:
    def is_older(lake: Lake, settings: Settings, where: BoxPartition) -> bool:
        if not lake.has(source, **where):
            return False
        if not lake.has(table, **where):
            return lake.rows(source, **where) > 0
        return lake.written_at(table, **where) < lake.written_at(source, **where)

    return is_older


def splat(lake: Lake, settings: Settings, where: BoxPartition) -> bool:
    """Whether the models of a box were published after its splat; models that nothing changed are not published."""
    from geo_assets.reconstruct.update import MANIFEST

    published = lake.key("models", MANIFEST, **where)
    if not lake.exists(published):  # nothing was mapped: only a splat of models that are gone is out of date
        return lake.has("splat_ply", **where) and _older("splat_ply", "sparse_models")(lake, settings, where)
    return not lake.has("splat_ply", **where) or lake.written_at("splat_ply", **where) < lake.modified(published)


BEHIND: Mapping[str, Callable[[Lake, Settings, BoxPartition], bool]] = {
    "sequence_paths": _older("sequence_paths", "image_metadata"),
    "gps_db": features,
    "match_pairs": _older("match_pairs", "gps_db"),
    "sparse_models": _older("sparse_models", "match_pairs"),
    "splat_ply": splat,
}
"""For each asset of a box that follows by itself: whether it is behind."""
