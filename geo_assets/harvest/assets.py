"""The assets of the harvest: from a box on the map to its image files. What they do is in the modules beside this."""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from geo_assets.errors import IncompleteHarvest
from geo_assets.harvest import rules
from geo_assets.partitions import BoxKey, box_key, boxes_of_city, cities, city_boxes
from geo_assets.progress import Progress
from geo_assets.reporting import failures, picture, plain, table_facts
from geo_assets.resources import ImageryResource, LakeResource
from geo_assets.settings import load
from geo_assets.table_asset import table_asset

if TYPE_CHECKING:
    from geo_assets.harvest.closure import Report
    from geo_assets.harvest.source import Source


@contextlib.contextmanager
def _source(key: BoxKey, lake: LakeResource, imagery: ImageryResource) -> Iterator["Source"]:
    from geo_assets.harvest.source import Api, Box, Nowhere, PhotoFolder

    box = Box(key.city, key.box, key.place, lake.open())
    if not key.in_grid:
        yield Nowhere(box)
    elif key.place.photos is not None:
        yield PhotoFolder(box, key.place.photos)
    else:
        with imagery.of(key.place, box.lake) as client:
            yield Api(box, client)


def _report(context: dg.AssetExecutionContext) -> "Report":
    return lambda what, total: Progress(context.log.info, what, total)


@table_asset(
    rules.BOX_IN_PLACE,
    pool="mapillary",
    partitions_def=city_boxes,
    group_name="harvest",
    kinds={"python", "parquet"},
    owners=["team:harvest"],
    code_version="1",
)
def bbox_partitions(
    context: dg.AssetExecutionContext, lake: LakeResource, imagery: ImageryResource
) -> dg.MaterializeResult:
    """The box: its bounds and neighbours, and the images and sequences that the coverage tiles count in it."""
    from geo_assets.harvest.pictures import map_of

    key, store, began = box_key(context), lake.open(), time.monotonic()
    with failures(), _source(key, lake, imagery) as source:
        found = source.plan()
        facts = store.write("bbox_partitions", found.row, note={"bounds": key.bounds.as_list()}, **key.partition)
        neighbours = [key.grid.bounds(name) for name in key.grid.neighbours(key.box)]
        png = map_of(
            found.images["lon"],
            found.images["lat"],
            key.bounds,
            colour_by=list(found.images["sequence_id"]),
            neighbours=neighbours,
        )
        counts = found.row.iloc[0][["n_images", "n_sequences"]].to_dict() | {"requests": source.requests}
        counts["n_rejected"] = len(found.rejects)
        for reason in found.rejects:
            context.log.warning(reason)
    spent = {"seconds": time.monotonic() - began}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(counts | spent) | {"map": picture(png, "map")})


@table_asset(
    rules.SEQUENCES_LISTED,
    also=("sequence_images",),
    pool="mapillary",
    partitions_def=city_boxes,
    deps=[bbox_partitions],
    group_name="harvest",
    kinds={"python", "parquet"},
    owners=["team:harvest"],
    code_version="1",
)
def sequence_ids(
    context: dg.AssetExecutionContext, lake: LakeResource, imagery: ImageryResource
) -> dg.MaterializeResult:
    """Every sequence with an image in the box, and every image that may lie in it by any of three sources."""
    key, store, began = box_key(context), lake.open(), time.monotonic()
    with failures(), _source(key, lake, imagery) as source:
        found = source.discover(_report(context))
        bounds = {"bounds": key.bounds.as_list()}
        store.write("sequence_images", found.images, note=bounds, **key.partition)
        facts = store.write("sequence_ids", found.sequences, note=bounds | {"figures": found.figures}, **key.partition)
        counts = found.figures | {"requests": source.requests}
    counts |= {"n_sequences": len(found.sequences), "n_candidates": len(found.images)}
    spent = {"n_closed": int(found.sequences["closed"].to_numpy(bool).sum()), "seconds": time.monotonic() - began}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(counts | spent))


@table_asset(
    also=("certificates",),
    pool="mapillary",
    partitions_def=city_boxes,
    deps=[sequence_ids],
    group_name="harvest",
    kinds={"python", "parquet"},
    owners=["team:harvest"],
    code_version="1",
)
def image_metadata(
    context: dg.AssetExecutionContext, lake: LakeResource, imagery: ImageryResource
) -> dg.MaterializeResult:
    """One row an image of the box: position, computed pose, camera, time, author and credit; and the certificate."""
    from geo_assets.harvest import metadata, pictures, selection
    from geo_assets.harvest.certificate import summary

    key, store, began = box_key(context), lake.open(), time.monotonic()
    candidates, sequences = (store.read(t, **key.partition) for t in ("sequence_images", "sequence_ids"))
    figures = store.note("sequence_ids", **key.partition).get("figures", {})
    with failures(), _source(key, lake, imagery) as source:
        found = source.describe(candidates, sequences, figures, _report(context))
        bounds = {"bounds": key.bounds.as_list()}
        store.write("certificates", found.certificate, note=bounds, **key.partition)
        proof = summary(found.certificate)
        living = found.metadata.loc[found.metadata["tombstoned_at"].isna()]
        counts = found.figures | {"n_images": len(living), "requests": source.requests}
        if not proof["complete"]:  # complete or failed: the images of an earlier harvest stay as they are
            raise IncompleteHarvest(f"Box {key.box} of {key.city}: {proof['certificate']}", **counts)
        facts = store.write("image_metadata", found.metadata, note=bounds, **key.partition)
    lon, lat = metadata.position(living)
    maps = {
        "map": picture(pictures.map_of(lon, lat, key.bounds, colour_by=list(living["sequence_id"])), "map"),
        "heat": picture(pictures.heat_of(lon, lat, key.bounds), "images per area"),
    }
    counts |= selection.statistics(found.metadata) | selection.figures(found.metadata)
    counts |= {"seconds": time.monotonic() - began}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(proof | counts) | maps)


@table_asset(
    pool="mapillary",
    partitions_def=city_boxes,
    deps=[image_metadata],
    group_name="harvest",
    kinds={"python", "jpeg"},
    owners=["team:harvest"],
    code_version="1",
)
def image_files(
    context: dg.AssetExecutionContext, lake: LakeResource, imagery: ImageryResource
) -> dg.MaterializeResult:
    """The JPEG files of the box with position, author and licence in their EXIF, and a row a file."""
    from geo_assets.harvest.pictures import contact_sheet, evenly

    key, store, began = box_key(context), lake.open(), time.monotonic()
    metadata = store.read("image_metadata", **key.partition)
    with failures(), _source(key, lake, imagery) as source:
        found = source.fetch(metadata, _report(context))
        size = "original" if key.place.photos else load().mapillary.image_size
        note = {"bounds": key.bounds.as_list(), "size": size}
        facts = store.write("image_files", found.files, note=note, **key.partition)
        counts = {"n_fetched": found.n_fetched, "n_kept": found.n_kept, "n_removed": found.n_removed}
        counts["requests"] = source.requests
    done = found.files.loc[found.files["status"] == "done"]
    sheet = contact_sheet(store.get_bytes(path) for path in evenly(sorted(done["path"])))
    counts |= {
        "n_images": len(done),
        "n_dead": len(found.files) - len(done),
        "image_bytes": int(done["bytes"].to_numpy(int).sum()),
    }
    spent = {"seconds": time.monotonic() - began}
    return dg.MaterializeResult(
        metadata=table_facts(facts) | plain(counts | spent) | {"photos": picture(sheet, "photos")}
    )


@table_asset(
    rules.LINES_IN_BOX,
    partitions_def=city_boxes,
    deps=[image_metadata],
    group_name="harvest",
    kinds={"python", "geoparquet"},
    owners=["team:harvest"],
    code_version="1",
)
def sequence_paths(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """The way of each sequence through the box as a line with its length, in GeoParquet."""
    from geo_assets.harvest.lines import write_lines

    key, store = box_key(context), lake.open()
    with failures():
        facts = write_lines(store, key.city, key.box)
    lines = store.read("sequence_paths", ["length_m"], **key.partition)
    counts = {"n_sequences": len(lines), "length_km": lines["length_m"].to_numpy(float).sum() / 1000}
    return dg.MaterializeResult(metadata=table_facts(facts) | plain(counts))


@table_asset(
    rules.CITY_COMPLETE,
    partitions_def=cities,
    deps=[dg.AssetDep(image_metadata, partition_mapping=boxes_of_city)],
    group_name="harvest",
    kinds={"python", "parquet"},
    owners=["team:harvest"],
    code_version="1",
)
def city_certificates(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """What the certificates of all boxes of the city say together, and how many images all sources may have missed."""
    from geo_assets.harvest.city import boxes_of, certify
    from geo_assets.harvest.export import boxes_of as rows_of
    from geo_assets.harvest.pictures import city_map

    city, store = context.partition_key, lake.open()
    with failures():
        row = certify(store, city, boxes_of(load().city(city)))
    figures = {str(name): value for name, value in row.iloc[0].items() if name != "fetched_at"}
    png = city_map(rows_of(store, city))
    return dg.MaterializeResult(metadata=plain(figures) | {"map": picture(png, "boxes of the city")})


ASSETS = (bbox_partitions, sequence_ids, image_metadata, image_files, sequence_paths, city_certificates)
