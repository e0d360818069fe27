"""Dagster's records of runs as a table of the lake, so that SQL can say what each box has cost."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

from geo_assets.lake import Facts, Lake
from geo_assets.progress import Progress
from geo_assets.tables import TABLES

if TYPE_CHECKING:
    from dagster._core.execution.stats import RunStepKeyStatsSnapshot

TABLE = "run_records"
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_PAGE, _PAGES_A_WRITE = 500, 10
_OVERLAP = dt.timedelta(minutes=1)
"""Clocks of machines differ: runs that ended so long before the last one are looked at again."""
_PARTITION, _RANGE = "dagster/partition", "dagster/asset_partition_range_"
_FIGURES = {"bytes": ("bytes", "image_bytes", "ply_bytes"), "requests": ("requests",), "n_images": ("n_images",)}
"""Columns and the metadata of materializations that they add up."""


def record_runs(
    lake: Lake, instance: dg.DagsterInstance, cities: Collection[str], say: Callable[[str], None]
) -> tuple[Facts, int]:
    """Add the runs that have ended since the last time to table ``run_records``.

    What was read is written every few thousand runs, so that a killed reader goes on where it was; the file's note says
    until when runs were read.

    Args:
        lake: takes the table.
        instance: holds the records.
        cities: the names that make a partition a city.
        say: receives progress lines.

    Returns:
        Facts of the table, and how many runs were added.
    """
    rows = lake.read_if_any(TABLE)
    note = lake.note(TABLE) if lake.has(TABLE) else {}
    until = dt.datetime.fromisoformat(note["until"]) if note else dt.datetime.fromtimestamp(0, dt.UTC)
    known, n_read, facts = set(rows["run_id"]), 0, None
    progress = Progress(say, "runs", instance.get_runs_count(_filter(until)))
    fresh: list[dict[str, Any]] = []
    for n_pages, page in enumerate(_pages(instance, until), 1):
        for record in page:
            if record.dagster_run.run_id not in known:
                fresh += _attempts(record, instance.get_run_step_stats(record.dagster_run.run_id), cities)
                n_read += 1
                progress(n_read)
        known |= {record.dagster_run.run_id for record in page}
        until = max(until, page[-1].update_timestamp)
        if n_pages % _PAGES_A_WRITE == 0:
            rows, fresh = _together(rows, fresh), []
            facts = lake.write(TABLE, rows, note={"until": until.isoformat()})
    if fresh or facts is None:
        facts = lake.write(TABLE, _together(rows, fresh), note={"until": until.isoformat()})
    return facts, n_read


def _filter(until: dt.datetime) -> dg.RunsFilter:
    return dg.RunsFilter(statuses=_ENDED, updated_after=until - _OVERLAP if until.timestamp() else until)


def _pages(instance: dg.DagsterInstance, until: dt.datetime) -> Iterator[Sequence[dg.RunRecord]]:
    """Runs that ended, in the order in which they did; each page begins where the one before ended."""
    filters = _filter(until)
    while page := instance.get_run_records(filters, limit=_PAGE, order_by="update_timestamp", ascending=True):
        yield page
        filters = dg.RunsFilter(statuses=_ENDED, updated_after=page[-1].update_timestamp)
        if len(page) < _PAGE:
            return


def _together(rows: pd.DataFrame, fresh: list[dict[str, Any]]) -> pd.DataFrame:
    more = TABLES[TABLE].frame(fresh)
    return pd.concat([rows.astype(object), more.astype(object)], ignore_index=True) if len(rows) else more


def _attempts(
    record: dg.RunRecord, steps: Sequence[RunStepKeyStatsSnapshot], cities: Collection[str]
) -> Iterator[dict[str, Any]]:
    """One row an attempt of each step of a run."""
    where = _place(record.dagster_run.tags, cities)
    for step in steps:
        if step.start_time is None:
            continue  # skipped
        spans = [(each.start_time, each.end_time) for each in step.attempts_list]
        if step.partial_attempt_start is not None:  # its process was killed; the run's end is the step's
            spans.append((step.partial_attempt_start, record.end_time))
        for number, (began, ended) in enumerate(spans, 1):
            done = step.status is not None and step.status.value == "SUCCESS" and number == len(spans)
            yield {
                "run_id": step.run_id,
                "step": step.step_key,
                "attempt": number,
                **where,
                "asset": _asset(step),
                "status": "done" if done else "failed",
                "started_at": _time(began),
                "ended_at": _time(ended or began),
                "seconds": max((ended or began or 0) - (began or 0), 0.0),
                **(_figures(step) if done else {}),
            }


def _place(tags: Any, cities: Collection[str]) -> dict[str, str | None]:
    first, last = (tags.get(_RANGE + end) for end in ("start", "end"))
    key = tags.get(_PARTITION) or (first if first == last else f"{first}...{last}")
    box, bar, city = str(key or "").partition("|")  # Dagster sorts the dimensions of a key
    if not bar:
        box, city = "", box
    return {"partition": key, "city": city if city in cities else None, "box": box if city in cities and box else None}


def _asset(step: RunStepKeyStatsSnapshot) -> str:
    made = {event.get_dagster_event().asset_key for event in step.materialization_events}
    keys = {key.to_user_string() for key in made if key}
    return keys.pop() if len(keys) == 1 else step.step_key


def _figures(step: RunStepKeyStatsSnapshot) -> dict[str, int]:
    found: dict[str, int] = {}
    for event in step.materialization_events:
        metadata = event.get_dagster_event().step_materialization_data.materialization.metadata
        for column, names in _FIGURES.items():
            for value in (metadata[name].value for name in names if name in metadata):
                if isinstance(value, int | float):
                    found[column] = found.get(column, 0) + int(value)
    return found


def _time(seconds: float | None) -> dt.datetime | None:
    return None if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)
