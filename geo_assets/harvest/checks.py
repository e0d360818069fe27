"""What must hold of a harvested box. Each check looks at what lies in the lake, not at what the run remembers."""

from collections.abc import Iterator

import dagster as dg

from geo_assets.harvest.assets import image_files, image_metadata
from geo_assets.partitions import box_key, checked_boxes
from geo_assets.resources import LakeResource


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(
            "harvest_is_complete",
            asset=image_metadata,
            blocking=True,
            partitions_def=checked_boxes,
            description="Tiles, sequence lists and searches agree, and nothing they named is unresolved.",
        ),
        dg.AssetCheckSpec(
            "ids_are_unique",
            asset=image_metadata,
            blocking=True,
            partitions_def=checked_boxes,
            description="No image stands twice in the box.",
        ),
        dg.AssetCheckSpec(
            "images_lie_in_box",
            asset=image_metadata,
            blocking=True,
            partitions_def=checked_boxes,
            description="Every image's position lies in the box, and in no other.",
        ),
    ]
)
def metadata_checks(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> Iterator[dg.AssetCheckResult]:
    """The box's images are complete, unique and at home."""
    from geo_assets.harvest.area import Area
    from geo_assets.harvest.certificate import summary
    from geo_assets.harvest.metadata import belongs

    key, store = box_key(context), lake.open()
    images = store.read("image_metadata", **key.partition)
    proof = summary(store.read("certificates", **key.partition))
    yield dg.AssetCheckResult(
        check_name="harvest_is_complete",
        asset_key=image_metadata.key,
        passed=proof["complete"],
        description=proof["certificate"],
        metadata={k: v for k, v in proof.items() if k.startswith("n_")},
    )
    n_twice = int(images["image_id"].duplicated().sum())
    yield dg.AssetCheckResult(
        check_name="ids_are_unique",
        asset_key=image_metadata.key,
        passed=n_twice == 0,
        metadata={"n_images": len(images), "n_duplicates": n_twice},
    )
    living = images.loc[images["tombstoned_at"].isna()]
    n_elsewhere = int((~belongs(living, Area.of(key.place), key.box)).sum())
    yield dg.AssetCheckResult(
        check_name="images_lie_in_box",
        asset_key=image_metadata.key,
        passed=n_elsewhere == 0,
        metadata={"n_images": len(images), "n_elsewhere": n_elsewhere},
    )


@dg.asset_check(asset=image_files, blocking=True, partitions_def=checked_boxes)
def files_decode(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """At most one file in fifty of the box is dead; the others decoded to their last line when they were written."""
    from geo_assets.harvest.images import MAX_DEAD_SHARE

    files = lake.open().read("image_files", **box_key(context).partition)
    dead = files.loc[files["status"] != "done"]
    share = len(dead) / max(len(files), 1)
    return dg.AssetCheckResult(
        passed=share <= MAX_DEAD_SHARE,
        description=f"{len(dead)} of {len(files)} files are dead.",
        metadata={"dead_share": share, "reasons": [str(r) for r in dead["reason"].head(10)]},
    )


CHECKS = (metadata_checks, files_decode)
