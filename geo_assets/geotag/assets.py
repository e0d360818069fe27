"""Assets of the geotag room: photo sets, one table of them, its clustering and the levels of cells."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from geo_assets.lake import Lake
from geo_assets.reporting import failures, picture, plain, table_facts
from geo_assets.resources import LakeResource
from geo_assets.settings import load
from geo_assets.tables import TABLES

MODEL_FILES = ("models_geotag", "hdbscan")


def _take(name: str, context: dg.AssetExecutionContext, lake: Lake, reader: Callable[..., Any]) -> dg.MaterializeResult:
    """Read one source, write its rows and its rejects, say where they came from."""
    from geo_assets.demo.geotag_inputs import write_geotag_inputs  # light until it is called
    from geo_assets.geotag.inputs import source_input
    from geo_assets.geotag.photos import no_rejects

    with failures(), source_input(name, load(), write_geotag_inputs) as source:
        context.log.info(f"{name}: {source.status}")
        rows, rejects = TABLES[name].empty(), no_rejects()
        if source.folder is not None:
            rows, rejects = reader(source.folder, context.log.info)
        lake.write("geotag_rejects", rejects, source=name)
        facts = lake.write(name, rows)  # last: a killed run is taken up where this table is missing
    reasons = rejects["reason"].value_counts().to_dict()
    figures = {"status": source.status, "n_photos": len(rows), "n_rejects": len(rejects), "reject_reasons": reasons}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(figures))


@dg.asset(kinds={"parquet"}, group_name="geotag", owners=["team:geotag"], code_version="1")
def placing_2016(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Photos of the 2016 Placing shards: id, position [deg], author hash; bad records are kept as rejects."""
    from geo_assets.geotag.placing2016 import read_placing

    return _take("placing_2016", context, lake.open(), read_placing)


@dg.asset(kinds={"parquet"}, group_name="geotag", owners=["team:geotag"], code_version="1")
def google_landmark(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Photos of Google Landmarks v2, each at the position [deg] of its landmark."""
    from geo_assets.geotag.landmarks import read_landmarks

    return _take("google_landmark", context, lake.open(), read_landmarks)


@dg.asset(kinds={"parquet"}, group_name="geotag", owners=["team:geotag"], code_version="1")
def flickr_geotag(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Photos of the Flickr geotag set, by its CSV files or by the GPS position [deg] of their EXIF."""
    from geo_assets.geotag.flickr import read_flickr

    return _take("flickr_geotag", context, lake.open(), read_flickr)


@dg.asset(
    deps=[
        placing_2016,
        google_landmark,
        flickr_geotag,
        dg.AssetDep(dg.AssetKey("image_metadata"), partition_mapping=dg.AllPartitionMapping()),
    ],
    kinds={"duckdb", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="1",
)
def geotag_combined(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Every geotagged photo of all sources and cities once, split into train, validation and test by place."""
    from geo_assets.geotag.combine import combine
    from geo_assets.geotag.pictures import density_map

    store = lake.open()
    with failures():
        combined = combine(store)
        store.write("geotag_rejects", combined.rejects, source="geotag_combined")
        facts = store.write("geotag_combined", combined.photos)
    context.log.info(", ".join(f"{k} {v:,}" for k, v in combined.figures.items()))
    photos = combined.photos
    png = density_map(photos["lon"], photos["lat"], f"{len(photos):,} photos")
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(combined.figures) | {"map": picture(png)})


@dg.asset(
    deps=[geotag_combined], kinds={"python", "parquet"}, group_name="geotag", owners=["team:geotag"], code_version="1"
)
def hdbscan_model(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """HDBSCAN of the distinct places on the sphere: a cluster for each, the condensed tree, the spanning tree."""
    from geo_assets.geotag.combine import unique_points
    from geo_assets.geotag.model import fit, publish
    from geo_assets.geotag.pictures import density_map

    store, chosen = lake.open(), load().geotag
    with failures():
        points = unique_points(store)
        context.log.info(f"{len(points):,} places of {points['n_photos'].to_numpy().sum():,} photos")
        model = fit(points, min_cluster_size=chosen.min_cluster_size, min_samples=chosen.min_samples)
        publish(model, store, store.key(*MODEL_FILES))
        store.write("hdbscan_tree", model.tree)
        facts = store.write("hdbscan_model", model.points)
    clustered = model.points[model.points["cluster"] >= 0]
    png = density_map(
        clustered["lon"], clustered["lat"], f"{len(clustered):,} places of {model.card['n_clusters']:,} clusters"
    )
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(model.card) | {"map": picture(png)})


@dg.asset(
    deps=[geotag_combined, hdbscan_model],
    kinds={"python", "parquet"},
    group_name="geotag",
    owners=["team:geotag"],
    code_version="1",
)
def hierarchy_centroids(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Nested levels of cells over the clusters: spherical mean [deg], medoid, radii [km], one parent each."""
    from geo_assets.geotag.hierarchy import build, photo_cells
    from geo_assets.geotag.model import read_dendrogram
    from geo_assets.geotag.pictures import level_map

    store, chosen = lake.open(), load().geotag
    with failures():
        points = store.read("hdbscan_model")
        tree = read_dendrogram(store, store.key(*MODEL_FILES), points)
        levels = build(points, tree, min_cluster_size=chosen.min_cluster_size, exponents=chosen.level_exponents)
        store.write("photo_cells", photo_cells(store, points, levels.cells))
        facts = store.write("hierarchy_centroids", levels.centroids)
    context.log.info(", ".join(f"{k} {v:,}" for k, v in levels.figures.items()))
    pictures = {"map": picture(level_map(levels.centroids))}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(levels.figures) | pictures)


ASSETS = (placing_2016, google_landmark, flickr_geotag, geotag_combined, hdbscan_model, hierarchy_centroids)
