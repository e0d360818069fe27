"""The asset checks of this room: is the splat good enough to show, and where the photos are?"""

import dagster as dg

from geo_assets.partitions import box_key, city_boxes
from geo_assets.reporting import plain
from geo_assets.resources import LakeResource
from geo_assets.splats import quality
from geo_assets.splats.assets import splat_ply


def _check(name: str) -> dg.AssetChecksDefinition:
    """The asset check of a verdict on the row of ``splat_ply``."""

    @dg.asset_check(asset=splat_ply, name=name, description=quality.CHECKS[name].__doc__, partitions_def=city_boxes)
    def check(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
        rows = lake.open().read_if_any("splat_ply", **box_key(context).partition).to_dict("records")
        row = {str(k): v for k, v in rows[0].items()} if rows else None
        judged = quality.verdict(name, row)
        figures = {k: row[k] for k in quality.FIGURES[name]} if row else {}
        return dg.AssetCheckResult(
            passed=judged.passed,
            severity=dg.AssetCheckSeverity.ERROR if judged.is_error else dg.AssetCheckSeverity.WARN,
            description=judged.reason,
            metadata=plain({k: v for k, v in figures.items() if v == v}),
        )

    return check


CHECKS = tuple(_check(name) for name in quality.CHECKS)
