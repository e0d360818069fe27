"""The asset checks of this room: is the splat good enough to show, and where the photos are?

None of them blocks: a poor box is a hole in its city for nobody, and what is made of the boxes takes minutes.
"""

from collections.abc import Iterator

import dagster as dg

from geo_assets.partitions import box_key, checked_boxes
from geo_assets.reporting import plain
from geo_assets.resources import LakeResource
from geo_assets.splats import quality
from geo_assets.splats.assets import splat_ply


@dg.multi_asset_check(
    name="splat_checks",
    specs=[
        dg.AssetCheckSpec(name, asset=splat_ply, description=judge.__doc__, partitions_def=checked_boxes)
        for name, judge in quality.CHECKS.items()
    ],
)
def splat_checks(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> Iterator[dg.AssetCheckResult]:
    """The verdicts on the row of ``splat_ply``."""
    rows = lake.open().read_if_any("splat_ply", **box_key(context).partition).to_dict("records")
    row = {str(k): v for k, v in rows[0].items()} if rows else None
    for name in quality.CHECKS:
        judged = quality.verdict(name, row)
        figures = {k: row[k] for k in quality.FIGURES[name]} if row else {}
        yield dg.AssetCheckResult(
            check_name=name,
            asset_key=splat_ply.key,
            passed=judged.passed,
            severity=dg.AssetCheckSeverity.ERROR if judged.is_error else dg.AssetCheckSeverity.WARN,
            description=judged.reason,
            metadata=plain({k: v for k, v in figures.items() if v == v}),
        )


CHECKS = (splat_checks,)
