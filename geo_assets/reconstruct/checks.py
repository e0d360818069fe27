"""Asset checks of the room: are the priors sane, do the pairs connect, does the model stand where the GPS says.

Those of one asset share a process. What would waste hours blocks: features of images that stand nowhere are not matched,
and no splat is trained on a model that is in pieces, or not where its photos are.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from geo_assets.partitions import box_key, checked_boxes, cities
from geo_assets.reconstruct.assets import city_alignment, gps_db, match_pairs, sparse_models
from geo_assets.reporting import plain
from geo_assets.resources import LakeResource
from geo_assets.settings import load

if TYPE_CHECKING:
    import pandas as pd

    from geo_assets.reconstruct.quality import Verdict

MIN_CONNECTED_SHARE = 0.8

PAIR_CHECKS = {
    "pairs_connect": "Verified pairs tie most images of the box into one component; what stays outside cannot be mapped with it.",
    "pairs_are_possible": "At most 1 % of the pairs are impossible and kept out of mapping; the budget of pairs is shown beside them.",
}

MODEL_GATES = {
    "registered_share": "At least 80 % of the images of the box stand in placed models; below 60 % it is an error, not a warning.",
    "gps_residual": "Half of the cameras stand within two GPS standard deviations of their positions: a model that drifts does not.",
    "reprojection_error": "The mean reprojection error of every placed model is at most 1.5 px.",
    "border_fits": "Cameras shared with aligned neighbours stand within 0.3 m of where these have them, by the median.",
    "cameras_are_level": "The cameras of every placed model lean to the side by at most 3 degrees in the mean; more is a warning.",
    "focal_lengths_hold": "No camera's focal length came out more than 25 % off what was known; more is a warning.",
    "no_gap": "No sequence has more than 50 m between two registered images with others missing; more is a warning.",
}
"""What each gate of :func:`geo_assets.reconstruct.quality.gates` says."""

BLOCKING_GATES = ("registered_share", "gps_residual", "reprojection_error")
"""Gates that no splat passes: its hours would be lost. A box whose neighbours moved is still worth one."""


def _said(verdict: "Verdict", name: str, asset: dg.AssetsDefinition) -> dg.AssetCheckResult:
    """A gate's verdict as Dagster shows it: its sentence first, then the figures."""
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=asset.key,
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity.ERROR if verdict.is_error else dg.AssetCheckSeverity.WARN,
        description=verdict.note or None,
        metadata=plain(verdict.figures),
    )


def share_verdict(models: "pd.DataFrame") -> dg.AssetCheckResult:
    """The verdict on the share of a box's images that stand in placed models (rows of ``sparse_models``)."""
    from geo_assets.reconstruct import quality

    return _said(quality.share_verdict(models), "registered_share", sparse_models)


def _specs(
    asset: dg.AssetsDefinition, checks: dict[str, str], blocking: tuple[str, ...] = ()
) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            name, asset=asset, description=meaning, blocking=name in blocking, partitions_def=checked_boxes
        )
        for name, meaning in checks.items()
    ]


@dg.asset_check(asset=gps_db, blocking=True, partitions_def=checked_boxes)
def priors_are_sane(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Every prior is a finite position near the box with a positive standard deviation, and images have features."""
    key = box_key(context)
    images = lake.open().read("gps_db", **key.partition)
    place = images[["east_m", "north_m", "up_m"]].astype(float)
    reach_m = 1.5 * key.grid.box_m + load().reconstruct.margin_m
    misplaced = int((~(place.loc[:, ["east_m", "north_m"]].abs() <= reach_m).all(axis=1) | place.up_m.isna()).sum())
    loose = int((~((images.sigma_xy_m > 0) & (images.sigma_z_m > 0))).sum())
    bare = int((images.n_keypoints == 0).sum())
    good = misplaced == 0 and loose == 0 and bare <= 0.05 * len(images)
    return dg.AssetCheckResult(
        passed=bool(good),
        metadata=plain(
            {
                "n_images": len(images),
                "n_misplaced": misplaced,
                "n_without_sigma": loose,
                "n_without_features": bare,
            }
        ),
    )


@dg.multi_asset_check(name="pair_checks", specs=_specs(match_pairs, PAIR_CHECKS))
def pair_checks(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> Iterator[dg.AssetCheckResult]:
    """Pairs connect the box, and few are impossible."""
    from geo_assets.reconstruct import quality
    from geo_assets.reconstruct.matching import pair_figures

    key, store, chosen = box_key(context), lake.open(), load().reconstruct
    images, pairs = store.read("gps_db", **key.partition), store.read("match_pairs", **key.partition)
    figures = pair_figures(images, pairs)
    share = figures["n_in_largest_component"] / len(images) if len(images) else 1.0
    yield dg.AssetCheckResult(
        check_name="pairs_connect",
        asset_key=match_pairs.key,
        passed=bool(share >= MIN_CONNECTED_SHARE or len(images) < chosen.min_images),
        severity=dg.AssetCheckSeverity.WARN,
        metadata=plain({"share_in_largest_component": round(share, 4), **figures}),
    )
    judged = quality.pairs_verdict(len(images), pairs, chosen.max_pairs_per_image)
    yield _said(judged, "pairs_are_possible", match_pairs)


@dg.multi_asset_check(name="model_gates", specs=_specs(sparse_models, MODEL_GATES, BLOCKING_GATES))
def model_gates(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> Iterator[dg.AssetCheckResult]:
    """The gates on the models of a box."""
    from geo_assets.reconstruct import quality

    models = lake.open().read("sparse_models", **box_key(context).partition)
    for name, verdict in quality.gates(models, load().reconstruct.gps_sigma_m).items():
        yield _said(verdict, name, sparse_models)


@dg.asset_check(asset=city_alignment, partitions_def=cities)
def borders_agree(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """After the joint fit every two boxes place the cameras they share within 0.3 m, by the median; more is a warning."""
    from geo_assets.reconstruct import quality
    from geo_assets.reconstruct.alignment import worst_border_m

    borders = lake.open().read("border_disagreement", city=context.partition_key)
    worst = worst_border_m(borders)
    return dg.AssetCheckResult(
        passed=bool(worst <= quality.MAX_BORDER_M),
        severity=dg.AssetCheckSeverity.WARN,
        metadata=plain({"worst_m": round(worst, 4), "n_borders": len(borders)}),
    )


CHECKS = (priors_are_sane, pair_checks, model_gates, borders_agree)
