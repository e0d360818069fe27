"""Materialize a selection for every box that holds images: upstream first where it is missing, one line a box.

What is missing is read from the lake, so a killed run resumes at the first partition that it did not finish.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import dagster as dg

from geo_assets.errors import ConfigError, GeoAssetsError, did_you_mean
from geo_assets.geotag.inputs import SOURCES, settle_inputs
from geo_assets.grid import Grid
from geo_assets.lake import Lake
from geo_assets.partitions import cities, city_boxes, partition_key
from geo_assets.runs import HOST_TAG, PROCESS_TAG, end_dead_runs
from geo_assets.settings import Settings
from geo_assets.tables import TABLES

COVERAGE = "bbox_partitions"
SAME_FAILURES = 3
"""So many boxes in a row that fail for the same reason (no token, no disk) end the run: the others would too."""
_FIRST, _LAST = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class Work:
    """One Dagster run: some assets of one box, of one city, of a range of other partitions, or of no partition."""

    assets: tuple[str, ...]
    city: str | None = None
    box: str | None = None
    first: str | None = None
    last: str | None = None

    @property
    def place(self) -> str:
        """Where it happens, for the progress line."""
        if self.first and self.last:
            return self.first if self.first == self.last else f"{self.first} to {self.last}"
        return " ".join(filter(None, (self.city, self.box))) or "all"


@dataclass
class Outcome:
    """What became of a materialization."""

    done: list[Work] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: int = 0


class Materializer:
    """Plans and runs a selection over cities and boxes.

    Args:
        definitions: the code location.
        settings: the settings that the partitions were made from.
        lake: where results lie; a partition that is there is not made again unless it was selected.
        instance: the Dagster instance that records the runs.
        say: receives the progress lines.
        log_level: what of Dagster's own log reaches the terminal.
    """

    def __init__(
        self,
        definitions: dg.Definitions,
        settings: Settings,
        lake: Lake,
        instance: dg.DagsterInstance,
        say: Callable[[str], None],
        log_level: str = "ERROR",
    ) -> None:
        self.repository = definitions.get_repository_def()
        self.graph = self.repository.asset_graph
        self.settings, self.lake, self.instance, self.say = settings, lake, instance, say
        self.log_level = log_level
        self.outcome = Outcome()
        self._failed_assets: set[str] = set()

    def run(
        self, selection: str, cities_: Sequence[str] = (), boxes: Sequence[str] = (), *, only_missing: bool = False
    ) -> Outcome:
        """Run a selection and whatever it lacks.

        Args:
            selection: Dagster's selection syntax (``splat_ply``, ``*splat_ply``, ``group:geotag``).
            cities_: cities to run; all of the settings by default.
            boxes: boxes to run; every box that holds images by default.
            only_missing: leave alone what is there, selected or not.

        Raises:
            ConfigError: the selection names nothing, or a city or box does not exist.
            GeoAssetsError: several boxes in a row failed for the same reason.
        """
        end_dead_runs(self.instance)
        if self._with_upstream(self._resolve(selection)) & {*SOURCES, "landmark_coordinates"}:
            settle_inputs(self.lake, self.settings)
        if self.settings.geotag.tiles > 1:
            from geo_assets.geotag.tile_tables import settle_tiles  # loads numba

            settle_tiles(self.lake, self.settings.geotag)
        selected = self._resolve(selection)
        chosen = [self._known_city(c) for c in cities_] or list(self.settings.cities)
        per_box = [a for a in self._ordered() if self._partitions(a) == city_boxes]
        upstream = self._with_upstream(selected)
        box_assets = [a for a in per_box if a in upstream]
        if box_assets:
            for city in chosen:
                self._run_city(city, box_assets, selected, boxes, only_missing)
        for asset in self._ordered():
            if asset in upstream and asset not in per_box:
                self._run_whole(asset, chosen, asset in selected and not only_missing)
        return self.outcome

    def _run_city(
        self, city: str, wanted: list[str], selected: set[str], boxes: Sequence[str], only_missing: bool
    ) -> None:
        grid = self.settings.city(city).grid
        for box in boxes:
            self.settings.box(city, box)
        renewed = set() if only_missing else selected
        targets = list(boxes) or list(grid)
        for stage, assets in enumerate(stages := self._stages(wanted)):
            # A later stage reads the boxes that touch its own, so they are brought as far as this one.
            reach = self._grown(grid, targets, len(stages) - 1 - stage)
            for box in reach if boxes else targets:
                mine = [a for a in assets if (a in renewed and box in targets) or not self._has(a, city, box)]
                if COVERAGE in mine and len(assets) > 1:
                    self._execute(Work((COVERAGE,), city, box), quiet=True)
                    mine.remove(COVERAGE)
                if assets != [COVERAGE] and self._is_empty(city, box):
                    self.outcome.skipped += stage == 0
                    continue
                if mine and f"{city} {box}" not in self.outcome.failed:
                    self._execute(Work(tuple(mine), city, box))

    def _run_whole(self, asset: str, chosen: Iterable[str], renew: bool) -> None:
        """An asset of a whole city, or of everything: again if something that it reads was made a moment ago."""
        above = self._with_upstream({asset}) - {asset}
        if broken := sorted(above & self._failed_assets):
            self.outcome.failed[asset] = f"waits for {', '.join(broken)}"
            return
        renew = renew or any(above & set(work.assets) for work in self.outcome.done)
        if self._partitions(asset) == cities:
            for city in chosen:
                if renew or not self.lake.has(asset, city=city):
                    self._execute(Work((asset,), city))
        elif parts := self._partitions(asset):
            for first, last in self._ranges(asset, parts.get_partition_keys(), renew):
                self._execute(Work((asset,), first=first, last=last))
        elif renew or not self.lake.partitions(asset):
            self._execute(Work((asset,)))

    def _ranges(self, asset: str, keys: Sequence[str], renew: bool) -> list[tuple[str, str]]:
        """First and last key of each unbroken range of partitions that are to be made; a range is one run."""
        (column,) = TABLES[asset].partition
        wanted = [renew or not self.lake.has(asset, **{column: key}) for key in keys]
        runs = [list(group) for due, group in itertools.groupby(range(len(keys)), wanted.__getitem__) if due]
        return [(keys[run[0]], keys[run[-1]]) for run in runs]

    def _execute(self, work: Work, *, quiet: bool = False) -> None:
        began = time.monotonic()
        key = partition_key(work.city, work.box) if work.city and work.box else work.city
        part = {_FIRST: work.first, _LAST: work.last} if work.first and work.last else {}
        job = self.repository.get_implicit_global_asset_job_def().get_subset(
            asset_selection={dg.AssetKey(a) for a in work.assets}
        )
        result = job.execute_in_process(
            instance=self.instance,
            partition_key=key,
            raise_on_error=False,
            tags={HOST_TAG: socket.gethostname(), PROCESS_TAG: str(os.getpid())} | part,
            run_config={"loggers": {"console": {"config": {"log_level": self.log_level}}}},
        )
        seconds = time.monotonic() - began
        if _was_interrupted(result):
            raise KeyboardInterrupt
        if result.success:
            self.outcome.done.append(work)
            if not quiet:
                self.say(f"{work.place:<24} {', '.join(work.assets):<60} {seconds:6.1f} s{_figures(result)}")
        else:
            reason = _reason(result)
            self.outcome.failed[work.place] = reason
            self._failed_assets |= set(work.assets)
            self.say(f"{work.place:<24} {', '.join(work.assets):<60} {seconds:6.1f} s  FAILED: {reason}")
            reasons = list(self.outcome.failed.values())
            if reasons[-SAME_FAILURES:] == [reason] * SAME_FAILURES:
                raise GeoAssetsError(f"{SAME_FAILURES} boxes in a row failed for the same reason: {reason}")

    # -- questions --------------------------------------------------------------------------------------------

    def _resolve(self, selection: str) -> set[str]:
        try:
            # A comma joins selections, as it does for `dagster asset materialize`.
            keys = set().union(*(dg.AssetSelection.from_string(s).resolve(self.graph) for s in selection.split(",")))
        except dg.DagsterError:
            keys = set()
        if not keys:
            names = self._ordered()
            near = did_you_mean(selection.strip("*+ "), names)
            raise ConfigError(f"'{selection}' selects no asset.{near} There are: {', '.join(names)}")
        return {k.to_user_string() for k in keys}

    def _known_city(self, city: str) -> str:
        self.settings.city(city)
        return city

    def _ordered(self) -> list[str]:
        return [k.to_user_string() for k in self.graph.toposorted_asset_keys if self.graph.get(k).is_materializable]

    def _partitions(self, asset: str) -> dg.PartitionsDefinition | None:
        return self.graph.get(dg.AssetKey(asset)).partitions_def

    def _parents(self, asset: str) -> set[str]:
        return {k.to_user_string() for k in self.graph.get(dg.AssetKey(asset)).parent_keys}

    def _with_upstream(self, selected: set[str]) -> set[str]:
        found, todo = set(selected), list(selected)
        while todo:
            fresh = self._parents(todo.pop()) - found
            found |= fresh
            todo += fresh
        return found

    def _stages(self, wanted: list[str]) -> list[list[str]]:
        """Assets in runs of their own where an edge reads neighbouring boxes, so that those are made first."""
        level: dict[str, int] = {}
        for asset in wanted:
            node = self.graph.get(dg.AssetKey(asset))
            steps = [
                level[parent] + (not _same_box(node.partition_mappings.get(dg.AssetKey(parent))))
                for parent in self._parents(asset)
                if parent in level
            ]
            level[asset] = max(steps, default=0)
        return [[a for a in wanted if level[a] == n] for n in range(max(level.values(), default=-1) + 1)]

    @staticmethod
    def _grown(grid: Grid, boxes: Sequence[str], steps: int) -> list[str]:
        grown = set(boxes)
        for _ in range(steps):
            grown |= {n for b in grown for n in grid.neighbours(b)}
        return [b for b in grid if b in grown]

    def _has(self, asset: str, city: str, box: str) -> bool:
        return self.lake.has(asset, city=city, box=box)

    def _is_empty(self, city: str, box: str) -> bool:
        proof = self.lake.read_if_any("certificates", ["n_images"], city=city, box=box)
        if len(proof) and int(proof["n_images"].iloc[0]) > 0:
            return False  # searches found what the tiles do not show
        coverage = self.lake.read_if_any(COVERAGE, ["n_images"], city=city, box=box)
        return not len(coverage) or int(coverage["n_images"].iloc[0]) == 0


def _same_box(mapping: dg.PartitionMapping | None) -> bool:
    return mapping is None or isinstance(mapping, dg.IdentityPartitionMapping)


def _figures(result: dg.ExecuteInProcessResult) -> str:
    """What a person wants to see of a finished run: images, registered, PSNR, photos."""
    shown = {"n_images": "images", "n_registered": "registered", "psnr_db": "dB"}
    found: dict[str, str] = {}
    if not any("n_images" in e.materialization.metadata for e in result.get_asset_materialization_events()):
        shown |= {"n_photos": "photos", "n_rejects": "rejects"}
    for event in result.get_asset_materialization_events():
        for key, noun in shown.items():
            value = event.materialization.metadata.get(key)
            if value is not None and isinstance(value.value, int | float):
                found[noun] = f"{value.value:.1f} {noun}" if noun == "dB" else f"{value.value:,} {noun}"
    return "  " + ", ".join(found.values()) if found else ""


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether Ctrl-C or a termination ended the run; Dagster records it as a failed step or run and goes on."""
    errors = (getattr(e.event_specific_data, "error", None) for e in result.all_events if e.is_failure)
    return any(error is not None and "DagsterExecutionInterruptedError" in error.to_string() for error in errors)


def _reason(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_node_events:
        data = event.event_specific_data
        failure = getattr(data, "user_failure_data", None)
        if failure is not None and failure.description:
            return failure.description
        error = getattr(data, "error", None)
        if event.is_failure and error is not None:
            cause = error.cause or error
            return cause.message.strip().splitlines()[-1] if cause.message.strip() else error.message.strip()
    return "see the run in the UI"
