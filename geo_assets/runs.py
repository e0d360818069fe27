"""What the Dagster instance knows of runs: the last one, partitions whose last try failed, and runs that died."""

from __future__ import annotations

import datetime as dt
import os
import socket
import time
from dataclasses import dataclass

import dagster as dg

HOST_TAG, PROCESS_TAG = "geo_assets/host", "geo_assets/process"
_PARTITION = "dagster/partition"
_BEGUN = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@dataclass(frozen=True)
class LastRun:
    """The newest run: its state in Dagster's word, its partition if it has one, and when it began, UTC."""

    run_id: str
    status: str
    partition: str | None
    began_at: str
    seconds: float | None


@dataclass(frozen=True)
class FailedPartition:
    """A partition of an asset whose last try failed."""

    asset: str
    partition: str | None
    reason: str
    failed_at: str
    run_id: str


def last_run(instance: dg.DagsterInstance) -> LastRun | None:
    """The newest run; None on an instance without runs."""
    records = instance.get_run_records(limit=1)
    if not records:
        return None
    record, run = records[0], records[0].dagster_run
    began, ended = record.start_time or record.create_timestamp.timestamp(), record.end_time
    seconds = None if ended is None else round(ended - began, 1)
    return LastRun(run.run_id, run.status.value, run.tags.get(_PARTITION), _utc(began), seconds)


def failed_partitions(instance: dg.DagsterInstance, look_at: int = 50) -> list[FailedPartition]:
    """Partitions that failed in one of the newest failed runs and were not made since, the newest first.

    Args:
        instance: the instance.
        look_at: so many failed runs are looked at; each costs a question to the event log.
    """
    found: dict[tuple[str, str | None], FailedPartition] = {}
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]), limit=look_at):
        run = record.dagster_run
        partition = run.tags.get(_PARTITION)
        failures = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
        for failure in failures:
            event = failure.event_log_entry.dagster_event
            asset = event.step_key if event is not None else None
            if event is None or asset is None or (asset, partition) in found:
                continue
            since = dg.AssetRecordsFilter(
                asset_key=dg.AssetKey(asset),
                asset_partitions=[partition] if partition else None,
                after_timestamp=failure.event_log_entry.timestamp,
            )
            if not instance.fetch_materializations(since, limit=1).records:
                at = _utc(failure.event_log_entry.timestamp)
                found[asset, partition] = FailedPartition(asset, partition, _reason(event), at, run.run_id)
    return list(found.values())


def dead_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs of this command line on this machine that are not at their end although their process is."""
    mine = dg.RunsFilter(statuses=_BEGUN, tags={HOST_TAG: socket.gethostname()})
    return [run for run in instance.get_runs(mine) if not _is_alive(int(run.tags[PROCESS_TAG]))]


def long_runs(instance: dg.DagsterInstance, longer_than_s: float) -> list[str]:
    """Ids of runs that began so long ago and have not ended."""
    records = instance.get_run_records(dg.RunsFilter(statuses=_BEGUN))
    return [r.dagster_run.run_id for r in records if time.time() - (r.start_time or time.time()) > longer_than_s]


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of this command line as failed whose process was killed, and free the pool slots they hold.

    A killed run cannot say so itself; Dagster would show it as started and keep its slots for ever.

    Returns:
        The ids of the runs that were ended.
    """
    ended = []
    for run in dead_runs(instance):
        instance.report_run_failed(run, "The process of this run was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        ended.append(run.run_id)
    return ended


def old_schemas(instance: dg.DagsterInstance) -> list[str]:
    """Storages of the instance whose tables are older than this Dagster wants."""
    storages = {
        "runs": instance.run_storage,
        "events": instance.event_log_storage,
        "schedules": instance.schedule_storage,
    }
    versions = {name: storage.alembic_version() for name, storage in storages.items() if storage is not None}
    return [name for name, version in versions.items() if version and version[0] != version[1]]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reason(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    error = data.error.cause or data.error if data.error is not None else None
    return error.message.strip().splitlines()[-1] if error is not None and error.message.strip() else "see the run"


def _utc(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
