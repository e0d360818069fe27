"""Asset checks of the room: are the priors sane, do the pairs connect, does the model stand where the GPS says."""

import dagster as dg
import pandas as pd

from geo_assets.partitions import box_key, city_boxes
from geo_assets.reconstruct.assets import gps_db, match_pairs, sparse_models
from geo_assets.reporting import plain
from geo_assets.resources import LakeResource
from geo_assets.settings import load

MIN_REGISTERED_SHARE, WARN_REGISTERED_SHARE = 0.6, 0.8
MAX_REPROJECTION_PX = 1.5
MAX_GPS_SIGMAS = 2.0
MIN_CONNECTED_SHARE = 0.8


def _verdict(passed: bool, warn_only: bool = False, **figures: object) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.WARN if warn_only else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(passed=bool(passed), severity=severity, metadata=plain(figures))


def share_verdict(models: pd.DataFrame) -> dg.AssetCheckResult:
    """The verdict on the share of a box's images that stand in placed models (rows of ``sparse_models``)."""
    n_home = int(models.n_home_images.max()) if len(models) else 0
    placed = int(models.n_home_registered[models.status == "placed"].sum())
    share = placed / n_home if n_home else 1.0
    # A box with too few images is a fact about the box, not a failure of the mapper.
    too_few = len(models) and (models.status == "too_few").all()
    return _verdict(
        share >= WARN_REGISTERED_SHARE or bool(too_few),
        warn_only=share >= MIN_REGISTERED_SHARE,
        share=round(share, 4),
        n_home_images=n_home,
        n_home_registered=placed,
        statuses=", ".join(models.status.astype(str)),
    )


def _worst_placed(models: pd.DataFrame, figure: str) -> tuple[float, int]:
    """The largest value of a figure over the placed models, and how many they are."""
    values = models.loc[models["status"] == "placed", figure].to_numpy(float)
    return float(values.max(initial=0.0)), len(values)


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


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def registered_share(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """At least 80 % of the images of the box stand in placed models; below 60 % it is an error, not a warning."""
    return share_verdict(lake.open().read("sparse_models", **box_key(context).partition))


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def gps_residual(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Half of the cameras stand within two GPS standard deviations of their positions: a model that drifts does not."""
    models = lake.open().read("sparse_models", **box_key(context).partition)
    worst, n_placed = _worst_placed(models, "gps_median_m")
    limit = MAX_GPS_SIGMAS * load().reconstruct.gps_sigma_m
    return _verdict(worst <= limit, median_m=round(worst, 3), limit_m=limit, n_placed=n_placed)


@dg.asset_check(asset=sparse_models, partitions_def=city_boxes)
def reprojection_error(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """The mean reprojection error of every placed model is at most 1.5 px."""
    models = lake.open().read("sparse_models", **box_key(context).partition)
    worst, _ = _worst_placed(models, "reprojection_px")
    return _verdict(worst <= MAX_REPROJECTION_PX, mean_px=round(worst, 3), limit_px=MAX_REPROJECTION_PX)


CHECKS = (priors_are_sane, pairs_connect, registered_share, gps_residual, reprojection_error)
