"""What the platform does by itself: sensors that watch the outside, and assets that follow what changed.

The sensors ask for the harvest of boxes that changed; a schedule asks for a new version of the clustering. What
lies between follows by declarative automation: an asset of a box runs when one of its inputs was made anew and the
lake shows that the box itself is behind (:mod:`geo_assets.behind`), so a neighbour whose fringe is the same is left
alone. Assets of a whole city, and tables, run once all of what they read has come to rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import AutomationCondition as Condition
from dagster import AutomationContext, AutomationResult

from geo_assets.behind import BEHIND
from geo_assets.errors import GeoAssetsError
from geo_assets.lake import BoxPartition, Lake
from geo_assets.partitions import partition_key, settings
from geo_assets.settings import load

if TYPE_CHECKING:
    from dagster._core.asset_graph_view.entity_subset import EntitySubset

WHY, CHANGE = "geo_assets/why", "geo_assets/change"
"""Tags of the runs that are asked for here: what happened, and the name of the change."""

ATTEMPTS = 3
"""Runs that may fail for one change before a person has to look; each of them repeats what is transient by itself."""

EVERY_S = 60
OF_A_CITY = ("city_certificates", "city_alignment", "city_model", "splat_city")
TABLE_GROUPS = ("staging", "marts")
CLUSTERING = ("geotag_combined", "geotag_points", "hdbscan_model", "hierarchy_centroids", "partition_errors")

_FAILED = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_ON = settings.automation.enabled


# -- sensors ------------------------------------------------------------------------------------------------


def _tick(context: dg.SensorEvaluationContext, name: str) -> dg.SensorResult:
    """Look on, and ask for the harvest of what changed, unless it was asked for before."""
    from geo_assets.harvest.watch import look

    chosen = load()
    state = json.loads(context.cursor) if context.cursor else {}
    found = look(name, Lake(chosen.lake), chosen.cities, chosen.automation, state)
    requests, words = [], list(found.words)
    for change in found.changes:
        runs = context.instance.get_runs(dg.RunsFilter(tags={CHANGE: change.key}), limit=ATTEMPTS)
        n_failed = sum(run.status in _FAILED for run in runs)
        if n_failed < len(runs):
            words.append(f"{change.box} of {change.city} was asked for before ({change.why})")
        elif n_failed >= ATTEMPTS:
            words.append(f"{change.box} of {change.city} failed {n_failed} times and waits for a person")
        else:
            context.log.info(f"{change.box} of {change.city}: {change.why}")
            requests.append(
                dg.RunRequest(
                    run_key=change.key + (f"#{n_failed + 1}" if n_failed else ""),
                    job_name="harvest",
                    partition_key=partition_key(change.city, change.box),
                    tags={WHY: change.why, CHANGE: change.key},
                )
            )
    told = " ".join([found.summary, *(f"{word.rstrip('.')}." for word in words)])
    cursor = json.dumps(found.state)
    if not requests:
        return dg.SensorResult(skip_reason=told, cursor=cursor)
    context.log.info(told)
    return dg.SensorResult(run_requests=requests, cursor=cursor)


def _status(enabled: bool) -> Any:
    return dg.DefaultSensorStatus.RUNNING if enabled else dg.DefaultSensorStatus.STOPPED


def _sensors(enabled: bool) -> list[dg.SensorDefinition]:
    def watching(name: str, description: str) -> dg.SensorDefinition:
        return dg.SensorDefinition(
            name=name,
            evaluation_fn=lambda context: _tick(context, name),
            job_name="harvest",
            minimum_interval_seconds=EVERY_S,
            default_status=_status(enabled),
            description=description,
        )

    return [
        watching(
            "updated_boxes",
            "Asks the coverage tiles of each city anew, within the day's budget, and harvests the boxes whose images "
            "are others now: new ones, or deleted ones.",
        ),
        watching(
            "new_boxes",
            "Harvests boxes with images that never were harvested, in cities of which some were: the area grew, or "
            "the coverage did.",
        ),
        dg.AutomationConditionSensorDefinition(
            name="follow_changes",
            target=dg.AssetSelection.all(),
            default_status=_status(enabled),
            minimum_interval_seconds=30,
            use_user_code_server=True,
            emit_backfills=False,
            run_tags={WHY: "an input changed"},
            description="Runs what follows from a change: features, pairs, models and splat of the boxes that are "
            "behind, then the city, then the tables.",
        ),
    ]


# -- the clustering -----------------------------------------------------------------------------------------


def _refit(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    from geo_assets.geotag.assets import MODEL_FILES
    from geo_assets.geotag.refit import news

    chosen = load()
    lake = Lake(chosen.lake)
    found = news(lake, lake.key(*MODEL_FILES))
    if found is None:
        return dg.SkipReason(
            "There is no clustering yet; make the first with: geo-assets materialize --select hdbscan_model"
        )
    told = found.told(chosen.automation)
    if not found.is_enough(chosen.automation):
        return dg.SkipReason(told)
    context.log.info(told)
    key = f"{found.version}-{int(found.published_at.timestamp())}-{context.scheduled_execution_time:%Y%m%d%H%M}"
    return dg.RunRequest(run_key=key, tags={WHY: f"+{found.n_new:,} photos"})


def _schedules(enabled: bool, cron: str) -> list[dg.ScheduleDefinition]:
    status = dg.DefaultScheduleStatus.RUNNING if enabled else dg.DefaultScheduleStatus.STOPPED
    return [
        dg.ScheduleDefinition(
            name="refit_clustering",
            job_name="refit_clustering",
            cron_schedule=cron,
            execution_timezone="UTC",
            execution_fn=_refit,
            default_status=status,
            description="Makes a new version of the clustering when enough photos came in since the last.",
        )
    ]


# -- what follows -------------------------------------------------------------------------------------------


class Quiet(Condition):
    """True where nothing that is read is being made, or about to be."""

    def __init__(self, *, far: bool = False) -> None:
        self.far = far

    @property
    def name(self) -> str:
        """Shown in the UI."""
        return "everything_upstream_is_at_rest" if self.far else "inputs_are_at_rest"

    @property
    def description(self) -> str:
        """Shown in the UI."""
        return "No run makes what this reads, and none is about to be asked for."

    @property
    def requires_cursor(self) -> bool:
        """It remembers nothing."""
        return False

    async def evaluate(self, context: AutomationContext) -> AutomationResult:  # type: ignore[override]
        """The candidates that need not wait."""
        quiet = context.candidate_subset
        if not quiet.is_empty:
            quiet = quiet.compute_difference(await self._waiting(context))
        return AutomationResult(context, quiet)

    async def _waiting(self, context: AutomationContext) -> EntitySubset:
        graph, me = context.asset_graph, context.key
        upstream = graph.get_ancestor_asset_keys(me) if self.far else graph.get(me).parent_keys
        busy: dict[dg.AssetKey, EntitySubset] = {}
        for key in [*(k for k in graph.toposorted_asset_keys if k in upstream), me]:
            subset = await _in_work(context, key)
            for parent in graph.get(key).parent_keys:
                if parent in busy and (self.far or key == me) and not busy[parent].is_empty:
                    subset = subset.compute_union(busy[parent].compute_child_subset(key))
            busy[key] = subset
        return busy[me]


async def _in_work(context: AutomationContext, key: dg.AssetKey) -> EntitySubset:
    view = context.asset_graph_view
    if not context.asset_graph.get(key).is_materializable:
        return view.get_empty_subset(key=key)
    full = view.get_full_subset(key=key)
    found = await view.compute_run_in_progress_subset(key=key, from_subset=full)
    found = found.compute_union(await view.compute_backfill_in_progress_subset(key=key, from_subset=full))
    asked = context.request_subsets_by_key.get(key)
    return found.compute_union(asked) if asked is not None else found


class Behind(Condition):
    """True from when an input was made anew until the asset is asked for, or the lake shows that nothing is due."""

    _news = Condition.any_deps_match(Condition.newly_updated()).with_label("an_input_was_made_anew")
    _quiet = Quiet()

    @property
    def name(self) -> str:
        """Shown in the UI."""
        return "behind_its_inputs"

    @property
    def description(self) -> str:
        """Shown in the UI."""
        return "An input was made anew, and what this box reads of it differs from what it was made of."

    @property
    def children(self) -> Sequence[Condition]:
        """What is evaluated for it."""
        return [self._news, self._quiet]

    async def evaluate(self, context: AutomationContext) -> AutomationResult:  # type: ignore[override]
        """The boxes that are behind, and those of which that cannot be said yet."""
        everything = context.asset_graph_view.get_full_subset(key=context.key)
        news = await context.for_child_condition(self._news, [0], everything).evaluate_async()
        pending = context.previous_true_subset or context.get_empty_subset()
        if asked := context.get_previous_requested_subset(context.key):
            pending = pending.compute_difference(asked)
        pending = pending.compute_union(news.true_subset)
        quiet = await context.for_child_condition(self._quiet, [1], pending).evaluate_async()
        ready = quiet.true_subset
        due = {key for key in ready.expensively_compute_partition_keys() if _is_behind(context, key)}
        behind = ready.compute_intersection_with_partition_keys(due)
        found = pending.compute_difference(ready.compute_difference(behind))
        return AutomationResult(context, found, child_results=[news, quiet])


def _is_behind(context: AutomationContext, key: str) -> bool:
    chosen = load()
    box, city = key.split("|")
    if city not in chosen.cities or box not in chosen.city(city).grid:
        return False
    try:
        return BEHIND[context.key.to_user_string()](Lake(chosen.lake), chosen, BoxPartition(city=city, box=box))
    except (GeoAssetsError, OSError) as error:
        context.log.warning(f"{key}: {error}")
        return True  # its run says the same, in its own words, and is not repeated


def _conditions() -> tuple[Condition, Condition, Condition]:
    """Of an asset of a box, of one of a city, and of a table over everything."""
    latched = Condition.any_deps_match(Condition.newly_updated()).since(
        Condition.newly_requested() | Condition.newly_updated()
    )
    at_rest = Quiet(far=True)
    hourly = Condition.cron_tick_passed("0 * * * *")
    return Behind() & Quiet(), latched & at_rest, latched & (at_rest | hourly)


def following(assets: Iterable[dg.AssetsDefinition]) -> Iterator[dg.AssetsDefinition]:
    """The assets, each with the condition under which it follows what changed; the harvest and the photo sets have none."""
    of_box, of_city, of_table = _conditions()

    def automated(spec: dg.AssetSpec) -> dg.AssetSpec:
        name = spec.key.to_user_string()
        if name in BEHIND:
            return spec.replace_attributes(automation_condition=of_box)
        if name in OF_A_CITY:
            return spec.replace_attributes(automation_condition=of_city)
        if spec.group_name in TABLE_GROUPS and spec.automation_condition is None:
            return spec.replace_attributes(automation_condition=of_table)
        return spec

    for asset in assets:
        yield asset.map_asset_specs(automated)


def jobs() -> list[Any]:
    """The job of the schedule."""
    return [
        dg.define_asset_job(
            "refit_clustering",
            selection=dg.AssetSelection.assets(*CLUSTERING),
            description="One table of all photos, and a new version of the clustering and its levels.",
        )
    ]


SENSORS = _sensors(_ON)
SCHEDULES = _schedules(_ON, settings.automation.refit_cron)
