"""The assets of this room: the splat of a box, and all boxes of a city in one."""

import dagster as dg

from geo_assets.partitions import box_key, boxes_of_city, cities, city_boxes
from geo_assets.reporting import failures, picture, plain, table_facts
from geo_assets.resources import LakeResource
from geo_assets.settings import load
from geo_assets.splats.rules import SCENE_IS_WHOLE
from geo_assets.table_asset import table_asset


@table_asset(
    also=("splat_views",),
    pool="gpu",
    partitions_def=city_boxes,
    deps=[dg.AssetKey("sparse_models")],
    group_name="splats",
    kinds={"python"},
    owners=["team:splats"],
    code_version="2",
)
def splat_ply(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Gaussian splat of the box (.ply) with its place on the Earth, its held-out quality and a viewer page."""
    from geo_assets.splats.box import not_trained, splat_of_box  # heavy, so only the step pays

    key, store = box_key(context), lake.open()
    with failures():
        if key.in_grid:
            made = splat_of_box(store, key.city, key.box, load().splats_of(key.city), context.log.info)
        else:
            made = not_trained("empty")
        store.write("splat_views", made.views, **key.partition)
        facts = store.write("splat_ply", made.splat, **key.partition)
    shown = {name: picture(data, name) for name, data in made.pictures.items()}
    if made.curve:
        names = [n for n in ("step", "n_splats", "loss", "psnr_db") if any(n in point for point in made.curve)]
        schema = dg.TableSchema([dg.TableColumn(name, "float") for name in names])
        records = [dg.TableRecord({name: point.get(name) for name in names}) for point in made.curve]
        shown["training"] = dg.MetadataValue.table(records, schema)
    if made.pictures:
        folder = store.uri(store.key("splats", **key.partition))
        shown |= {page: dg.MetadataValue.path(f"{folder}/{page}.html") for page in ("viewer", "globe")}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(made.figures) | shown)


@table_asset(
    SCENE_IS_WHOLE,
    pool="cpu",
    partitions_def=cities,
    deps=[dg.AssetDep(splat_ply, partition_mapping=boxes_of_city), dg.AssetKey("city_alignment")],
    group_name="splats",
    kinds={"python"},
    owners=["team:splats"],
    code_version="2",
)
def splat_city(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """All splats of the city in one frame, each box cut to its cell: levels of detail, a tileset, pages."""
    from geo_assets.splats.city import splat_of_city

    city, store = context.partition_key, lake.open()
    place = load().city(city)
    with failures():
        made = splat_of_city(store, city, place.bounds, place.grid, context.log.info)
        facts = store.write("splat_city", made.boxes, city=city)
    pictures = {"overview": picture(made.picture, "overview")} if made.picture else {}
    folder = store.uri(store.key("splats_city", city=city))
    names = {"viewer": "viewer", "streamed": "index", "globe": "globe"} if made.picture else {}
    pages = {label: dg.MetadataValue.path(f"{folder}/{page}.html") for label, page in names.items()}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(made.figures) | pictures | pages)


ASSETS = (splat_ply, splat_city)
