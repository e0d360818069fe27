"""The room's assets: COLMAP database, matched pairs and sparse models of a box."""

from typing import TYPE_CHECKING

import dagster as dg

from geo_assets.lake import Lake
from geo_assets.partitions import BoxKey, box_key, boxes_of_city, cities, city_boxes, touching_boxes
from geo_assets.reconstruct.rules import CITY_MODEL_STANDS
from geo_assets.reporting import failures, picture, plain, table_facts
from geo_assets.resources import LakeResource
from geo_assets.settings import load
from geo_assets.table_asset import table_asset
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    import pandas as pd

OWNERS = ["team:reconstruct"]


def _around(name: str) -> dg.AssetDep:
    """The asset in the box and in the boxes that touch it."""
    return dg.AssetDep(dg.AssetKey(name), partition_mapping=touching_boxes)


def _pair_pictures(
    store: Lake, key: BoxKey, images: "pd.DataFrame", pairs: "pd.DataFrame"
) -> dict[str, dg.MetadataValue]:
    """The pairs from above, some of them with their photos, and those across the border where there is one."""
    from geo_assets.reconstruct import pictures, previews

    shown = {"pairs": picture(pictures.pair_pictures(images, pairs))}
    photos = previews.pair_photos(store, key.city, key.box, images, pairs)
    if photos:
        shown["preview"] = picture(pictures.pair_preview(photos))
    if (images.home_box != key.box).any():
        bounds_m = previews.bounds_m(key.grid.bounds(key.box), store.note("gps_db", **key.partition))
        shown["fringe"] = picture(pictures.fringe_map(images, pairs, key.box, bounds_m))
    return shown


def _outside(store: Lake, key: BoxKey, *tables: str) -> dg.MaterializeResult:
    """What a box outside its city's grid leaves behind: empty tables."""
    facts = [store.write(table, TABLES[table].empty(), note=None, **key.partition) for table in tables]
    return dg.MaterializeResult(metadata=table_facts(facts[-1]) | {"n_images": 0})


@table_asset(
    pool="colmap",
    partitions_def=city_boxes,
    deps=[_around("image_metadata"), _around("image_files")],
    group_name="reconstruct",
    kinds={"python"},
    owners=OWNERS,
    code_version="2",
)
def gps_db(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """COLMAP database of the box and its margin: features of each image and its GPS pose prior with covariance."""
    key, store = box_key(context), lake.open()
    if not key.in_grid:
        return _outside(store, key, "gps_db")
    from geo_assets.reconstruct import features, pictures

    with failures():
        made = features.gps_database(
            store, key.city, key.box, key.grid, load().reconstruct, context.log.info, masks=key.place.masks
        )
        facts = store.write("gps_db", made.frame, note=made.note, **key.partition)
    shown = {"map": picture(pictures.prior_map(made.frame, key.box))} if len(made.frame) else {}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(made.figures) | shown)


@table_asset(
    pool="colmap",
    partitions_def=city_boxes,
    deps=[_around("gps_db")],
    group_name="reconstruct",
    kinds={"python"},
    owners=OWNERS,
    code_version="2",
)
def match_pairs(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Pairs of images worth matching, the reason of each, and the matches that agree with a two-view geometry."""
    key, store = box_key(context), lake.open()
    if not key.in_grid:
        return _outside(store, key, "match_pairs")
    from geo_assets.reconstruct import matching

    with failures():
        images = store.read("gps_db", **key.partition)
        matched = matching.match_box(
            store, key.city, key.box, load().reconstruct, context.log.info, listed=key.place.pairs
        )
        facts = store.write("match_pairs", matched.frame, **key.partition)
    shown = _pair_pictures(store, key, images, matched.frame) if len(matched.frame) else {}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(matched.figures) | shown)


@table_asset(
    also=(
        "model_cameras",
        "model_blocks",
    ),
    pool="colmap",
    partitions_def=city_boxes,
    deps=[match_pairs, gps_db, _around("image_files")],
    group_name="reconstruct",
    kinds={"python"},
    owners=OWNERS,
    code_version="2",
)
def sparse_models(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """COLMAP models of the box in metres, east-north-up, at their true place; one row a component."""
    key, store = box_key(context), lake.open()
    if not key.in_grid:
        return _outside(store, key, "model_cameras", "model_blocks", "sparse_models")
    from geo_assets.reconstruct import models, pictures

    with failures():
        images = store.read("gps_db", **key.partition)
        made = models.map_box(store, key.city, key.box, load().reconstruct, context.log.info)
        cameras = store.write("model_cameras", made.cameras, note=made.note, **key.partition)
        blocks = store.write("model_blocks", made.blocks, **key.partition)
        facts = store.write("sparse_models", made.models, note=made.note, **key.partition)
    shown = {}
    if len(made.cameras):
        shown["map"] = picture(pictures.model_map(images, made.cameras, made.points))
        shown["side"] = picture(pictures.model_side(images, made.cameras, made.points))
    figures = plain(made.figures | {"model_cameras": cameras.uri, "model_blocks": blocks.uri})
    return dg.MaterializeResult(metadata=table_facts(facts) | figures | shown)


@table_asset(
    also=("border_disagreement",),
    partitions_def=cities,
    deps=[dg.AssetDep(sparse_models, partition_mapping=boxes_of_city)],
    group_name="reconstruct",
    kinds={"python"},
    owners=OWNERS,
    code_version="1",
)
def city_alignment(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """All boxes of the city fitted to each other and to their positions: how each moves, what is left at the borders."""
    from geo_assets.reconstruct import alignment, border_map

    city, store = context.partition_key, lake.open()
    with failures():
        made = alignment.align_city(store, city, load().city(city).grid, context.log.info)
        borders = store.write("border_disagreement", made.borders, city=city)
        facts = store.write("city_alignment", made.rows, city=city)
    shown = {"map": picture(border_map.border_map(made.parts, made.similarities))} if made.parts else {}
    figures = plain(made.figures | {"border_disagreement": borders.uri})
    return dg.MaterializeResult(metadata=table_facts(facts) | figures | shown)


@table_asset(
    CITY_MODEL_STANDS,
    pool="colmap",
    partitions_def=cities,
    deps=[city_alignment, dg.AssetDep(sparse_models, partition_mapping=boxes_of_city)],
    group_name="reconstruct",
    kinds={"python"},
    owners=OWNERS,
    code_version="1",
)
def city_model(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """One COLMAP model of the whole city: boxes merged by image name, tracks united, borders adjusted."""
    from geo_assets.reconstruct.city_model import model_of_city

    city, store = context.partition_key, lake.open()
    settings = load()
    place = settings.city(city)
    with failures():
        made = model_of_city(store, city, place.bounds, place.grid, settings.reconstruct, context.log.info)
        facts = store.write("city_model", made.rows, city=city)
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(made.figures))


ASSETS = (gps_db, match_pairs, sparse_models, city_alignment, city_model)
