"""Asset checks of the room: are the priors sane, do the pairs connect, does the model stand where the GPS says."""

import dagster as dg
import pandas as pd

from geo_assets.lake import BoxPartition
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


def _gate(name: str, lake: LakeResource, partition: BoxPartition) -> dg.AssetCheckResult:
    """The verdict of one gate on the models of a box."""
    models = lake.open().read("sparse_models", **partition)
    return _said(quality.gates(models, load().reconstruct.gps_sigma_m)[name])


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


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def registered_share(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """At least 80 % of the images of the box stand in placed models; below 60 % it is an error, not a warning."""
    return _gate("registered_share", lake, box_key(context).partition)


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def gps_residual(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Half of the cameras stand within two GPS standard deviations of their positions: a model that drifts does not."""
    return _gate("gps_residual", lake, box_key(context).partition)


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def reprojection_error(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The mean reprojection error of every placed model is at most 1.5 px."""
    return _gate("reprojection_error", lake, box_key(context).partition)


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def border_fits(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Cameras shared with placed neighbours stand within 0.3 m of where these have them, by the median."""
    return _gate("border_fits", lake, box_key(context).partition)


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def cameras_are_level(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The cameras of every placed model lean to the side by at most 3 degrees in the mean; more is a warning."""
    return _gate("cameras_are_level", lake, box_key(context).partition)


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def focal_lengths_hold(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """No camera's focal length came out more than 25 % off what was known; more is a warning."""
    return _gate("focal_lengths_hold", lake, box_key(context).partition)


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def no_gap(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """No sequence has more than 50 m between two registered images with others missing; more is a warning."""
    return _gate("no_gap", lake, box_key(context).partition)


@dg.asset_check(asset=city_alignment, partitions_def=cities)
def borders_agree(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """After the joint fit every two boxes place the cameras they share within 0.3 m, by the median; more is a warning."""
    from geo_assets.reconstruct.alignment import MAX_BORDER_M, worst_border_m

    borders = lake.open().read("border_disagreement", city=context.partition_key)
    worst = worst_border_m(borders)
    return _verdict(worst <= MAX_BORDER_M, warn_only=True, worst_m=round(worst, 4), n_borders=len(borders))


CHECKS = (
    *(priors_are_sane, pairs_connect, pairs_are_possible),
    *(registered_share, gps_residual, reprojection_error, border_fits),
    *(cameras_are_level, focal_lengths_hold, no_gap, borders_agree),
)
