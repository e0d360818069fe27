"""Assets of the geotag room: photo sets, one table of them, its clustering and the levels of cells."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from geo_assets.geotag import rules
from geo_assets.geotag.inputs import settle_inputs, shards, source_input, uses_demo
from geo_assets.lake import Lake
from geo_assets.partitions import landmark_ranges, placing_shards
from geo_assets.partitions import place_tiles as tile_partitions
from geo_assets.partitions import settings as _at_start
from geo_assets.reporting import column_schema, failures, picture, plain, table_facts
from geo_assets.resources import LakeResource
from geo_assets.settings import Settings, load, wikimedia_token
from geo_assets.table_asset import table_asset
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    from geo_assets.geotag.wikimedia import Wikimedia

MODEL_FILES = ("models_geotag", "hdbscan")
_IN_ONE_RUN = dg.BackfillPolicy.single_run()


@contextmanager
def _input(name: str, context: dg.AssetExecutionContext, lake: Lake) -> Iterator[tuple[Path | None, str, Settings]]:
    """The folder of a photo set (None where there is none), the words for it, and the settings."""
    from geo_assets.demo.geotag_inputs import write_geotag_inputs  # light until it is called

    settings = load()
    with failures():
        settle_inputs(lake, settings)
        with source_input(name, settings, write_geotag_inputs) as source:
            context.log.info(f"{name}: {source.status}")
            yield source.folder, source.status, settings


@contextmanager
def _wikimedia(settings: Settings, lake: Lake) -> "Iterator[Wikimedia]":
    """A client of the APIs, or of the demo's own, whose server is started in this process."""
    from geo_assets.geotag.wikimedia import Wikimedia

    if uses_demo(settings):
        from geo_assets.demo.geotag_inputs import wikimedia_world
        from geo_assets.demo.wikimedia import serving

        with serving(wikimedia_world()) as address, Wikimedia(address.settings()) as client:
            yield client
    else:
        with Wikimedia(settings.geotag.wikimedia, wikimedia_token(), lake) as client:
            yield client


def _nothing(name: str, lake: Lake, status: str, column: str = "", keys: Sequence[str] = ()) -> dg.MaterializeResult:
    """What is left by a source that is not configured: tables without rows."""
    for key in keys or ("all",):
        lake.write("geotag_rejects", TABLES["geotag_rejects"].empty(), source=name, part=key)
        lake.write(name, TABLES[name].empty(), note=None, **({column: key} if column else {}))
    return dg.MaterializeResult(metadata={"input": status, "n_photos": 0})


def _result(name: str, lake: Lake, figures: Mapping[str, Any]) -> dg.MaterializeResult:
    """The figures of a table that was written, with what the UI shows of it."""
    return dg.MaterializeResult(metadata=plain(figures) | table_facts(lake.facts(name)))


def _of_parts(name: str, figures: Mapping[str, Any]) -> dg.MaterializeResult:
    """The figures of some partitions of a table, which have no one file to tell of."""
    return dg.MaterializeResult(metadata=plain(figures) | {"dagster/column_schema": column_schema(TABLES[name])})


@table_asset(
    rules.photos_on_globe("placing_2016"),
    pool="cpu",
    partitions_def=placing_shards,
    backfill_policy=_IN_ONE_RUN,
    kinds={"parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="2",
)
def placing_2016(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Photos of the 2016 Placing shards: position [deg], author hash, and where the JPEG lies; bad records are rejects."""
    from geo_assets.geotag.placing2016 import take_shards

    store = lake.open()
    with _input("placing_2016", context, store) as (folder, status, settings):
        files = shards(settings)
        chosen = {key: files[key] for key in context.partition_keys}
        assert folder is not None, "without a folder there are no shards"
        figures = take_shards(store, folder, chosen, settings.geotag, context.log.info)
    return _of_parts("placing_2016", {"input": status} | figures)


@table_asset(
    rules.LANDMARKS_PLACED,
    pool="wikimedia",
    partitions_def=landmark_ranges,
    backfill_policy=_IN_ONE_RUN,
    kinds={"parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="1",
)
def landmark_coordinates(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Where the landmarks are [deg]: from a file, a dump, or Wikimedia; only what failed is asked again."""
    from geo_assets.geotag.coordinates import locate

    store, parts = lake.open(), list(context.partition_keys)
    with _input("google_landmark", context, store) as (folder, status, settings):
        if folder is None:
            return _nothing("landmark_coordinates", store, status, "part", parts)
        with _wikimedia(settings, store) as client:
            figures = locate(store, folder, parts, settings.geotag, client, context.log.info)
    return _of_parts("landmark_coordinates", {"input": status} | figures)


@table_asset(
    rules.photos_on_globe("google_landmark"),
    deps=[dg.AssetDep(landmark_coordinates, partition_mapping=dg.AllPartitionMapping())],
    kinds={"duckdb", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="2",
)
def google_landmark(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Photos of Google Landmarks v2, each at the position [deg] of its landmark."""
    from geo_assets.geotag.landmarks import take_landmarks

    store = lake.open()
    with _input("google_landmark", context, store) as (folder, status, settings):
        if folder is None:
            return _nothing("google_landmark", store, status)
        figures = take_landmarks(store, folder, settings.geotag, context.log.info)
    return _result("google_landmark", store, {"input": status} | figures)


@table_asset(
    rules.photos_on_globe("flickr_geotag"),
    pool="cpu",
    kinds={"parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="2",
)
def flickr_geotag(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Photos of the Flickr geotag set, by its CSV files or by the GPS position [deg] of their EXIF."""
    from geo_assets.geotag.flickr import take_flickr

    store = lake.open()
    with _input("flickr_geotag", context, store) as (folder, status, settings):
        if folder is None:
            return _nothing("flickr_geotag", store, status)
        figures = take_flickr(store, folder, settings.geotag, context.log.info)
    return _result("flickr_geotag", store, {"input": status} | figures)


@table_asset(
    pool="cpu",
    deps=[
        dg.AssetDep(placing_2016, partition_mapping=dg.AllPartitionMapping()),
        google_landmark,
        flickr_geotag,
        dg.AssetDep(dg.AssetKey("image_metadata"), partition_mapping=dg.AllPartitionMapping()),
    ],
    kinds={"duckdb", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="2",
)
def geotag_combined(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Every geotagged photo of all sources and cities once, split into train, validation and test by place."""
    from geo_assets.geotag.combine import combine
    from geo_assets.geotag.pictures import density_map, photo_grids, rejects_table, source_maps

    store, settings = lake.open(), load()
    with failures():
        settle_inputs(store, settings)
        figures = combine(store, settings.geotag, context.log.info)
    grids = photo_grids(store)
    pictures = {"map": picture(density_map(grids)), "sources": picture(source_maps(grids))}
    table = dg.MetadataValue.md(rejects_table(store))
    return _result("geotag_combined", store, pictures | {"rejects": table} | figures)


@table_asset(
    deps=[geotag_combined], kinds={"duckdb", "parquet"}, group_name="geotag", owners=["team:geotag"], code_version="1"
)
def geotag_points(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """The distinct coordinates of all photos, and how many photos each has."""
    from geo_assets.geotag.combine import write_points

    store = lake.open()
    with failures():
        figures = write_points(store, load().geotag, context.log.info)
    return _result("geotag_points", store, figures)


@table_asset(
    rules.PLACES_IN_TILES,
    deps=[geotag_points],
    kinds={"parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="1",
)
def place_tiles(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """The places cut into tiles along the Hilbert curve, so that their spanning tree needs the memory of a tile."""
    from geo_assets.geotag.tile_tables import cut_places

    store = lake.open()
    with failures():
        figures = cut_places(store, load().geotag)
    return _result("place_tiles", store, figures)


@table_asset(
    rules.CORES_OF_TILE,
    pool="cpu",
    deps=[place_tiles],
    partitions_def=tile_partitions,
    kinds={"numba", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="1",
)
def tile_cores(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Core distances [m] of the places of a tile; only tiles within reach of its places are read."""
    from geo_assets.geotag.tile_tables import write_cores

    with failures():
        figures = write_cores(lake.open(), context.partition_keys, load().geotag, context.log.info)
    return _of_parts("tile_cores", figures)


@table_asset(
    rules.TREE_OF_TILE,
    pool="cpu",
    deps=[tile_cores],
    partitions_def=tile_partitions,
    kinds={"numba", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="1",
)
def tile_trees(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """The exact spanning tree within a tile; ``hdbscan_model`` finds the edges between tiles."""
    from geo_assets.geotag.tile_tables import write_trees

    with failures():
        figures = write_trees(lake.open(), context.partition_keys, load().geotag, context.log.info)
    return _of_parts("tile_trees", figures)


_IN_TILES = _at_start.geotag.tiles > 1
"""Whether the spanning tree is found in tiles; the assets of the tiles exist only then."""


@table_asset(
    rules.PLACES_CLUSTERED,
    also=("hdbscan_tree",),
    pool="cpu",
    deps=[geotag_points, *([dg.AssetDep(tile_trees, partition_mapping=dg.AllPartitionMapping())] if _IN_TILES else [])],
    kinds={"python", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="2",
)
def hdbscan_model(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """HDBSCAN of the distinct places on the sphere: a cluster for each, the condensed tree, the spanning tree."""
    from geo_assets.geotag.icicle import busiest_region, tree_picture
    from geo_assets.geotag.model import fit, publish, write_tree
    from geo_assets.geotag.pictures import points_map

    store, chosen = lake.open(), load().geotag
    with failures():
        edges, engine = None, chosen.engine
        if chosen.tiles > 1:
            from geo_assets.geotag.tile_tables import merged_edges

            edges, engine = merged_edges(store, chosen), f"own, in {chosen.tiles} tiles"
        points = store.read("geotag_points", ["point_id", "lon", "lat", "n_photos"])
        context.log.info(f"{len(points):,} places of {points['n_photos'].to_numpy().sum():,} photos")
        model = fit(
            points,
            min_cluster_size=chosen.min_cluster_size,
            min_samples=chosen.min_samples,
            engine=engine,
            edges=edges,
        )
        version = publish(model, store, store.key(*MODEL_FILES))
        write_tree(model.condensed, store)
        facts = store.write("hdbscan_model", model.points)
    clustered = model.points[model.points["cluster"] >= 0]
    png = points_map(
        clustered["lon"], clustered["lat"], f"{len(clustered):,} places of {model.card['n_clusters']:,} clusters"
    )
    pictures = {"map": picture(png), "busiest_region": picture(tree_picture(model, busiest_region(model)))}
    return dg.MaterializeResult(metadata=pictures | plain(model.card | version) | table_facts(facts))


@table_asset(
    also=(
        "photo_cells",
        "hierarchical_structure",
    ),
    pool="cpu",
    deps=[geotag_combined, hdbscan_model],
    kinds={"python", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="2",
)
def hierarchy_centroids(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Nested levels of cells over the clusters: spherical mean [deg], medoid, radii [km], one parent each."""
    from geo_assets.geotag.cell_pictures import radius_histograms, size_histograms
    from geo_assets.geotag.hierarchy import build, write_photo_cells
    from geo_assets.geotag.model import read_dendrogram
    from geo_assets.geotag.pictures import level_map

    store, chosen = lake.open(), load().geotag
    with failures():
        points = store.read("hdbscan_model")
        tree = read_dendrogram(store, store.key(*MODEL_FILES), points)
        levels = build(
            points,
            tree,
            min_cluster_size=chosen.min_cluster_size,
            exponents=chosen.level_exponents,
            method=chosen.method,
        )
        write_photo_cells(store, points, levels, chosen)
        store.write("hierarchical_structure", levels.structure())
        facts = store.write("hierarchy_centroids", levels.centroids)
    context.log.info(", ".join(f"{k} {v:,}" for k, v in levels.figures.items()))
    pictures = {
        "map": picture(level_map(levels.centroids)),
        "radii": picture(radius_histograms(levels.centroids)),
        "sizes": picture(size_histograms(levels.centroids)),
    }
    return dg.MaterializeResult(metadata=pictures | plain(levels.figures) | table_facts(facts))


def _cut_cells(table: str, lake: LakeResource) -> dg.MaterializeResult:
    """Cells cut in four by their photos, with what the UI shows of them."""
    from geo_assets.geotag.pictures import level_map
    from geo_assets.geotag.quarter_cells import write_cells

    with failures():
        facts, cells, figures = write_cells(lake.open(), table, load().geotag)
    shown = {"map": picture(level_map(cells, has_root=False))}
    return dg.MaterializeResult(metadata=shown | plain(figures) | table_facts(facts))


@table_asset(
    rules.cut_cell_faults("s2_cells"),
    deps=[geotag_points],
    kinds={"python", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="1",
)
def s2_cells(lake: LakeResource) -> dg.MaterializeResult:
    """Cells of S2 with few photos enough and not too few, at several levels, as PlaNet and GeoEstimation cut them."""
    return _cut_cells("s2_cells", lake)


@table_asset(
    rules.cut_cell_faults("quadtree_cells"),
    deps=[geotag_points],
    kinds={"python", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="1",
)
def quadtree_cells(lake: LakeResource) -> dg.MaterializeResult:
    """Boxes of degrees with few photos enough, as OSV-5M cuts them."""
    return _cut_cells("quadtree_cells", lake)


@table_asset(
    pool="cpu",
    deps=[geotag_points],
    kinds={"python", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="1",
)
def partition_errors(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """How far off the cells are for photos held out by place [km], beside other partitions with as many cells."""
    from geo_assets.geotag.cell_pictures import error_curves
    from geo_assets.geotag.judge import write_errors

    store = lake.open()
    with failures():
        judged = write_errors(store, load().geotag, context.log.info)
    return _result("partition_errors", store, {"curves": picture(error_curves(judged.errors))} | judged.figures)


ASSETS = (
    placing_2016,
    landmark_coordinates,
    google_landmark,
    flickr_geotag,
    geotag_combined,
    geotag_points,
    *((place_tiles, tile_cores, tile_trees) if _IN_TILES else ()),
    hdbscan_model,
    hierarchy_centroids,
    s2_cells,
    quadtree_cells,
    partition_errors,
)
