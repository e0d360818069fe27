"""The code location: every room's assets and checks, the SQL models, the jobs and the resources."""

from __future__ import annotations

import importlib
import os
from itertools import chain

import dagster as dg

from geo_assets import automation, geotag, harvest, marts, reconstruct, splats
from geo_assets.policies import governed
from geo_assets.resources import ImageryResource, LakeResource

ROOMS = (harvest, reconstruct, splats, geotag)
EXECUTOR_VARIABLE = "GEO_ASSETS_EXECUTOR"


def executor() -> dg.ExecutorDefinition:
    """The executor that ``GEO_ASSETS_EXECUTOR=module:attribute`` names; two processes at a time by default.

    A step runs in a process of its own, so that a crash in native code fails a step and not the run.
    """
    name = os.environ.get(EXECUTOR_VARIABLE)
    if not name:
        return dg.multiprocess_executor.configured({"max_concurrent": 2})
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _of_rooms(module: str, attribute: str) -> list:
    rooms = (importlib.import_module(f"{room.__name__}.{module}") for room in ROOMS)
    return list(chain.from_iterable(getattr(room, attribute) for room in rooms))


def build() -> dg.Definitions:
    """A fresh set of definitions; tests and the command line may build their own."""
    return dg.Definitions(
        assets=list(governed(automation.following([*_of_rooms("assets", "ASSETS"), *marts.assets()]))),
        asset_checks=_of_rooms("checks", "CHECKS"),
        jobs=[
            dg.define_asset_job(
                "harvest",
                selection=dg.AssetSelection.groups("harvest") - dg.AssetSelection.assets("city_certificates"),
                description="Images of one box, from the coverage tiles to the files.",
            ),
            dg.define_asset_job(
                "splat",
                selection=dg.AssetSelection.assets("splat_ply").upstream(),
                description="The whole chain of one box, from the coverage tiles to the splat.",
            ),
            *automation.jobs(),
        ],
        sensors=automation.SENSORS,
        schedules=automation.SCHEDULES,
        resources={"lake": LakeResource(), "imagery": ImageryResource()},
        executor=executor(),
    )


defs = build()
