"""The asset check of this room: is the splat good enough to show?"""

import dagster as dg

from geo_assets.partitions import box_key, city_boxes
from geo_assets.reporting import plain
from geo_assets.resources import LakeResource
from geo_assets.splats.assets import splat_ply


@dg.asset_check(asset=splat_ply, partitions_def=city_boxes)
def splat_quality(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The held-out photos look better than before training, and nearly as good as those trained on."""
    from geo_assets.splats.quality import verdict

    rows = lake.open().read_if_any("splat_ply", **box_key(context).partition).to_dict("records")
    judged = verdict(rows[0] if rows else None)
    figures = {k: rows[0][k] for k in ("init_psnr_db", "psnr_db", "cc_psnr_db", "train_psnr_db")} if rows else {}
    return dg.AssetCheckResult(
        passed=judged.passed,
        severity=dg.AssetCheckSeverity.ERROR if judged.is_error else dg.AssetCheckSeverity.WARN,
        description=judged.reason,
        metadata=plain({k: v for k, v in figures.items() if v == v}),
    )


CHECKS = (splat_quality,)
