"""The room's assets: COLMAP database, matched pairs and sparse models of a box."""

import dagster as dg

from geo_assets.lake import Lake
from geo_assets.partitions import BoxKey, box_key, city_boxes, touching_boxes
from geo_assets.reporting import failures, picture, plain, table_facts
from geo_assets.resources import LakeResource
from geo_assets.settings import load
from geo_assets.tables import TABLES

OWNERS = ["team:reconstruct"]


def _around(name: str) -> dg.AssetDep:
    """The asset in the box and in the boxes that touch it."""
    return dg.AssetDep(dg.AssetKey(name), partition_mapping=touching_boxes)


def _outside(store: Lake, key: BoxKey, *tables: str) -> dg.MaterializeResult:
    """What a box outside its city's grid leaves behind: empty tables."""
    facts = [store.write(table, TABLES[table].empty(), note=None, **key.partition) for table in tables]
    return dg.MaterializeResult(metadata=table_facts(facts[-1]) | {"n_images": 0})


@dg.asset(
    partitions_def=city_boxes,
    deps=[_around("image_metadata"), _around("image_files")],
    group_name="reconstruct",
    pool="colmap",
    kinds={"python"},
    owners=OWNERS,
    code_version="1",
)
def gps_db(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """COLMAP database of the box and its margin: features of each image and its GPS pose prior with covariance."""
    key, store = box_key(context), lake.open()
    if not key.in_grid:
        return _outside(store, key, "gps_db")
    from geo_assets.reconstruct import features, pictures

    with failures():
        made = features.gps_database(store, key.city, key.box, key.grid, load().reconstruct, context.log.info)
        facts = store.write("gps_db", made.frame, note=made.note, **key.partition)
    shown = {"map": picture(pictures.prior_map(made.frame, key.box))} if len(made.frame) else {}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(made.figures) | shown)


@dg.asset(
    partitions_def=city_boxes,
    deps=[_around("gps_db")],
    group_name="reconstruct",
    pool="colmap",
    kinds={"python"},
    owners=OWNERS,
    code_version="1",
)
def match_pairs(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Pairs of images worth matching, the reason of each, and the matches that agree with a two-view geometry."""
    key, store = box_key(context), lake.open()
    if not key.in_grid:
        return _outside(store, key, "match_pairs")
    from geo_assets.reconstruct import matching, pictures

    with failures():
        images = store.read("gps_db", **key.partition)
        matched = matching.match_box(store, key.city, key.box, load().reconstruct, context.log.info)
        facts = store.write("match_pairs", matched.frame, **key.partition)
    shown = {"pairs": picture(pictures.pair_pictures(images, matched.frame))} if len(matched.frame) else {}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(matched.figures) | shown)


@dg.asset(
    partitions_def=city_boxes,
    deps=[match_pairs, gps_db, _around("image_files")],
    group_name="reconstruct",
    pool="colmap",
    kinds={"python"},
    owners=OWNERS,
    code_version="1",
)
def sparse_models(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """COLMAP models of the box in metres, east-north-up, at their true place; one row a component."""
    key, store = box_key(context), lake.open()
    if not key.in_grid:
        return _outside(store, key, "model_cameras", "sparse_models")
    from geo_assets.reconstruct import models, pictures

    with failures():
        images = store.read("gps_db", **key.partition)
        made = models.map_box(store, key.city, key.box, load().reconstruct, context.log.info)
        cameras = store.write("model_cameras", made.cameras, note=made.note, **key.partition)
        facts = store.write("sparse_models", made.models, note=made.note, **key.partition)
    shown = {"map": picture(pictures.model_map(images, made.cameras, made.points))} if len(made.cameras) else {}
    figures = plain(made.figures | {"model_cameras": cameras.uri})
    return dg.MaterializeResult(metadata=table_facts(facts) | figures | shown)


ASSETS = (gps_db, match_pairs, sparse_models)
