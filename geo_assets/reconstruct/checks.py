"""Asset checks of the room: are the priors sane, do the pairs connect, does the model stand where the GPS says."""

import dagster as dg
import pandas as pd

from geo_assets.partitions import box_key, cities, city_boxes
from geo_assets.reconstruct import quality
from geo_assets.reconstruct.assets import city_alignment, gps_db, match_pairs, sparse_models
from geo_assets.reporting import plain
from geo_assets.resources import LakeResource
from geo_assets.settings import load

MIN_CONNECTED_SHARE = 0.8


def _verdict(passed: bool, warn_only: bool = False, **figures: object) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.WARN if warn_only else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(passed=bool(passed), severity=severity, metadata=plain(figures))


def _said(verdict: quality.Verdict) -> dg.AssetCheckResult:
    """A gate's verdict as Dagster shows it: its sentence first, then the figures."""
    return dg.AssetCheckResult(
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity.ERROR if verdict.is_error else dg.AssetCheckSeverity.WARN,
        description=verdict.note or None,
        metadata=plain(verdict.figures),
    )


def share_verdict(models: pd.DataFrame) -> dg.AssetCheckResult:
    """The verdict on the share of a box's images that stand in placed models (rows of ``sparse_models``)."""
    return _said(quality.share_verdict(models))


@dg.asset_check(asset=gps_db, partitions_def=city_boxes)
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
    return _verdict(good, n_images=len(images), n_misplaced=misplaced, n_without_sigma=loose, n_without_features=bare)


@dg.asset_check(asset=match_pairs, partitions_def=city_boxes)
def pairs_connect(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Verified pairs tie most images of the box into one component; what stays outside cannot be mapped with it."""
    key, store = box_key(context), lake.open()
    images, pairs = store.read("gps_db", **key.partition), store.read("match_pairs", **key.partition)
    from geo_assets.reconstruct.matching import pair_figures

    figures = pair_figures(images, pairs)
    share = figures["n_in_largest_component"] / len(images) if len(images) else 1.0
    good = share >= MIN_CONNECTED_SHARE or len(images) < load().reconstruct.min_images
    return _verdict(good, warn_only=True, share_in_largest_component=round(share, 4), **figures)


@dg.asset_check(asset=match_pairs, partitions_def=city_boxes)
def pairs_are_possible(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """At most 1 % of the pairs are impossible and kept out of mapping; the budget of pairs is shown beside them."""
    key, store = box_key(context), lake.open()
    images, pairs = store.read("gps_db", ["image_id"], **key.partition), store.read("match_pairs", **key.partition)
    return _said(quality.pairs_verdict(len(images), pairs, load().reconstruct.max_pairs_per_image))


def _gate(name: str, meaning: str) -> dg.AssetChecksDefinition:
    """The check of one gate on the models of a box."""

    @dg.asset_check(asset=sparse_models, name=name, description=meaning, partitions_def=city_boxes)
    def gate(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
        models = lake.open().read("sparse_models", **box_key(context).partition)
        return _said(quality.gates(models, load().reconstruct.gps_sigma_m)[name])

    return gate


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


@dg.asset_check(asset=city_alignment, partitions_def=cities)
def borders_agree(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """After the joint fit every two boxes place the cameras they share within 0.3 m, by the median; more is a warning."""
    from geo_assets.reconstruct.alignment import worst_border_m

    borders = lake.open().read("border_disagreement", city=context.partition_key)
    worst = worst_border_m(borders)
    return _verdict(worst <= quality.MAX_BORDER_M, warn_only=True, worst_m=round(worst, 4), n_borders=len(borders))


CHECKS = (
    *(priors_are_sane, pairs_connect, pairs_are_possible),
    *(_gate(name, meaning) for name, meaning in MODEL_GATES.items()),
    borders_agree,
)
