"""How assets are run and how old they may grow: pools, retries, needs of a step, freshness and tags, in one place.

A pool bounds how many steps of a kind run at once, over all runs and machines; the limits are settings of the instance
(``dagster.yaml``, one each to begin with). What a step needs is told to Kubernetes, Celery and Ray by tags, which other
executors ignore.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import dagster as dg

from geo_assets.partitions import settings

PATIENT = dg.RetryPolicy(max_retries=3, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For steps that ask others: again after about 2, 4 and 8 s, and only what may be better then."""


@dataclass(frozen=True)
class Pool:
    """What the steps of a pool have in common.

    Attributes:
        cost: what they spend: network, cpu or gpu.
        cpus: processors that one of them uses.
        memory_gib: memory that one of them may need [GiB].
        gpus: GPUs that one of them uses.
        retry: whether a step is repeated when what failed may be better later.
    """

    cost: str
    cpus: int
    memory_gib: int
    gpus: int = 0
    retry: dg.RetryPolicy | None = None

    def tags(self, name: str) -> dict[str, Any]:
        """What engines are told of a step of the pool ``name``: requests and limits, the queue, resources."""
        memory = f"{self.memory_gib}Gi"
        limits = {"memory": memory} | ({"nvidia.com/gpu": str(self.gpus)} if self.gpus else {})
        container = {"resources": {"requests": {"cpu": str(self.cpus), "memory": memory}, "limits": limits}}
        ray = {"num_cpus": self.cpus, "memory": self.memory_gib << 30, "num_gpus": self.gpus}
        return {
            "dagster-k8s/config": {"container_config": container},
            "dagster-celery/queue": name,
            "dagster-ray/config": ray,
        }


def _trains_on_gpu() -> bool:
    """Whether splats are trained by something else than the embedded engine, which needs no GPU."""
    engines = {settings.splats.engine, *(settings.splats_of(city).engine for city in settings.cities)}
    return bool(engines - {"cpu", "auto"})


POOLS: dict[str, Pool] = {
    "mapillary": Pool("network", cpus=1, memory_gib=2, retry=PATIENT),
    "wikimedia": Pool("network", cpus=1, memory_gib=4, retry=PATIENT),
    "colmap": Pool("cpu", cpus=4, memory_gib=16),
    "cpu": Pool("cpu", cpus=4, memory_gib=16),
    "gpu": Pool("gpu", cpus=4, memory_gib=16, gpus=int(_trains_on_gpu())),
}
"""The pools, and what their steps need; an asset without a pool is done in seconds."""


def running(pool: str | None) -> dict[str, Any]:
    """The options of an asset that follow from its pool."""
    if pool is None:
        return {}
    kind = POOLS[pool]
    return {"pool": pool, "op_tags": kind.tags(pool), "retry_policy": kind.retry}


# -- freshness and tags -------------------------------------------------------------------------------------


def _days(warn: int, fail: int) -> dg.FreshnessPolicy:
    return dg.FreshnessPolicy.time_window(warn_window=dt.timedelta(days=warn), fail_window=dt.timedelta(days=fail))


FRESHNESS: dict[str, dg.FreshnessPolicy | None] = {
    # Streets are photographed all the time, and answers about unchanged boxes are kept for three weeks.
    "harvest": _days(30, 60),
    # They follow the harvest within the day.
    "staging": _days(31, 61),
    "marts": _days(31, 61),
    # A model or a splat is as good as on its first day until the images of its box change; automation knows when.
    "reconstruct": None,
    "splats": None,
    # Photo sets are files of a person's own, made once; what is clustered of them takes in each city's new images.
    "geotag": _days(90, 180),
    "placing_2016": None,
    "google_landmark": None,
    "flickr_geotag": None,
    # Wikimedia's coordinates are corrected by people.
    "landmark_coordinates": _days(180, 365),
}
"""After how long without being made an asset is worth a warning, and an error; by asset, else by group."""

STAGES = {
    "harvest": "collect",
    "reconstruct": "reconstruct",
    "splats": "train",
    "geotag": "geolocate",
    "staging": "report",
    "marts": "report",
}
"""What the assets of a group do, for the tag ``stage``."""


def governed(assets: Iterable[dg.AssetsDefinition]) -> Iterator[dg.AssetsDefinition]:
    """The assets with their freshness policy, and the tags ``stage`` and ``cost`` to search for."""
    for asset in assets:
        pool = asset.op.pool
        cost = POOLS[pool].cost if pool else "cheap"

        def said(spec: dg.AssetSpec, cost: str = cost) -> dg.AssetSpec:
            group = str(spec.group_name)
            return spec.replace_attributes(
                tags={**spec.tags, "stage": STAGES[group], "cost": cost},
                freshness_policy=FRESHNESS.get(spec.key.to_user_string(), FRESHNESS[group]),
            )

        yield asset.map_asset_specs(said)
