"""``dg.asset`` for what writes tables: its rules are looked at in the same step, so that a check costs no process."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg

from geo_assets.partitions import checked_boxes, city_boxes
from geo_assets.policies import POOLS, running
from geo_assets.reporting import plain
from geo_assets.resources import LakeResource
from geo_assets.rules import Finding, Partition, Rule, table_rules
from geo_assets.tables import TABLES


def table_asset(
    *rules: Rule, also: Sequence[str] = (), pool: str | None = None, **options: Any
) -> Callable[[Callable[..., dg.MaterializeResult]], dg.AssetsDefinition]:
    """An asset that writes the table of its name; each rule, and each rule of every table, is an asset check of it.

    What follows in the same run does not start where a blocking rule is broken. An error that is not known to be
    transient is not repeated, whatever the pool allows.

    Args:
        rules: what must hold of the asset, beside what holds of every table.
        also: tables that it writes with the same partitions.
        pool: the pool of its step, which brings retries and needs (:mod:`geo_assets.policies`).
        options: those of ``dg.asset``.
    """

    def decorate(function: Callable[..., dg.MaterializeResult]) -> dg.AssetsDefinition:
        name = function.__name__
        all_rules = [*table_rules([name, *also]), *rules]

        @functools.wraps(function)
        def step(*arguments: Any, **resources: Any) -> dg.MaterializeResult:
            with _once(pool):
                made = function(*arguments, **resources)
            lake: LakeResource = resources["lake"]
            results = list(_verdicts(all_rules, name, lake, dg.AssetExecutionContext.get()))
            return dg.MaterializeResult(metadata=made.metadata, check_results=[*made.check_results, *results])

        # A run over a range of partitions says once for all of them whether they are sound.
        whole = options.get("partitions_def")
        of_each = None if "backfill_policy" in options else checked_boxes if whole is city_boxes else whole
        specs = [
            dg.AssetCheckSpec(
                rule.name, asset=name, description=rule.meaning, blocking=rule.blocking, partitions_def=of_each
            )
            for rule in all_rules
        ]
        return dg.asset(check_specs=specs, **running(pool), **options)(step)

    return decorate


@contextlib.contextmanager
def _once(pool: str | None) -> Iterator[None]:
    """Let nothing be repeated that is not known to be transient: a step with a retry policy repeats every error."""
    try:
        yield
    except (dg.Failure, dg.RetryRequested, ConnectionError, TimeoutError):
        raise
    except Exception as error:
        if pool is None or POOLS[pool].retry is None:
            raise
        raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=False) from error


def _verdicts(
    rules: Sequence[Rule], name: str, lake: LakeResource, context: dg.AssetExecutionContext
) -> Iterator[dg.AssetCheckResult]:
    store, partitions = lake.open(), _partitions(context, TABLES[name].partition)
    for rule in rules:
        found = Finding({})
        for partition in partitions:
            found += rule.find(store, partition)
        yield dg.AssetCheckResult(
            check_name=rule.name,
            passed=found.passed,
            severity=dg.AssetCheckSeverity.ERROR if rule.blocking else dg.AssetCheckSeverity.WARN,
            metadata=plain({k: _shown(v) for k, v in {**found.figures, **found.faults}.items()}),
        )


def _partitions(context: dg.AssetExecutionContext, columns: Sequence[str]) -> list[Partition]:
    if not context.has_partition_key and not context.has_partition_key_range:
        return [{}]
    if context.has_partition_key and isinstance(context.partition_key, dg.MultiPartitionKey):
        return [dict(context.partition_key.keys_by_dimension)]
    (column,) = columns
    return [{column: key} for key in context.partition_keys]


def _shown(value: Any) -> Any:
    """A figure as it is, and the first of many names."""
    return [str(v) for v in value[:20]] if isinstance(value, Sequence) and not isinstance(value, str) else value
