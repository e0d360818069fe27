"""``dbt_like_sql`` as assets: one for each SQL file, with its dependencies, checks, columns and column lineage."""

import functools
import hashlib
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from geo_assets.lake import Lake
from geo_assets.partitions import boxes_of_city, cities, city_boxes
from geo_assets.reporting import failures, table_facts
from geo_assets.resources import LakeResource
from geo_assets.rules import Finding, Partition, Rule, count_faults
from geo_assets.sql_lineage import Sources
from geo_assets.sql_models import Input, Made, SqlModel, Verdict, make_model, read_models
from geo_assets.table_asset import table_asset

WRITERS: dict[str, tuple[str, ...]] = {
    "sequence_images": ("sequence_ids",),
    "certificates": ("image_metadata",),
    "model_cameras": ("sparse_models",),
    "border_disagreement": ("city_alignment",),
    "splat_views": ("splat_ply",),
    "hdbscan_tree": ("hdbscan_model",),
    "photo_cells": ("hierarchy_centroids",),
    "hierarchical_structure": ("hierarchy_centroids",),
    "geotag_rejects": ("placing_2016", "landmark_coordinates", "google_landmark", "flickr_geotag", "geotag_combined"),
}
"""Assets that write a table which is not named as they are."""

_PARTITIONS: dict[tuple[str, ...], dg.PartitionsDefinition | None] = {
    (): None,
    ("city",): cities,
    ("city", "box"): city_boxes,
}


def _record_faults(lake: Lake, _: Partition) -> Finding:
    """Attempts that ended before they began, or otherwise than an attempt can."""
    queries = {
        "ended_before": "select count(*) from run_records where not coalesce(seconds >= 0 and ended_at >= started_at, false)",
        "of_unknown_status": "select count(*) from run_records where coalesce(status, '') not in ('done', 'failed')",
    }
    return count_faults(lake, queries, "run_records")


RECORDS_ADD_UP = Rule("records_add_up", "Every attempt began, ended, and was done or failed.", _record_faults)


@table_asset(
    RECORDS_ADD_UP,
    group_name="staging",
    kinds={"python", "parquet"},
    owners=["team:marts"],
    code_version="1",
    # It has no input in the graph to follow: the runs themselves are its input.
    automation_condition=dg.AutomationCondition.on_cron("0 3 * * *"),
)
def run_records(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """What Dagster recorded of the runs that have ended since this was made last: time, bytes, requests a step."""
    from geo_assets.run_records import record_runs

    with failures():
        facts, n_read = record_runs(lake.open(), context.instance, set(cities.get_partition_keys()), context.log.info)
    return dg.MaterializeResult(metadata=table_facts(facts) | {"n_runs_added": n_read})


def sql_assets(*folders: Path) -> list[dg.AssetsDefinition]:
    """One asset for each file of some folders, by default the project's and the user's.

    Raises:
        ConfigError: a model is wrong; the message names file, line and reason.
    """
    return [_asset(model) for model in read_models(*folders)]


def _asset(model: SqlModel) -> dg.AssetsDefinition:
    @dg.asset(
        name=model.name,
        partitions_def=_PARTITIONS[model.partition],
        deps=_deps(model),
        group_name=model.group,
        kinds={"sql", "duckdb"},
        owners=["team:marts"],
        description=f"{model.description}\n\n```sql\n{model.query.strip()}\n```",
        code_version=hashlib.sha256(model.query.encode()).hexdigest()[:12],
        check_specs=[
            dg.AssetCheckSpec(
                check.name,
                asset=model.name,
                description=check.text,
                blocking=check.blocking,
                partitions_def=_PARTITIONS[model.partition],
            )
            for check in model.checks.values()
        ],
    )
    def table(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        with failures():
            made = make_model(model, lake.open(), **_part(context, model))
        return dg.MaterializeResult(
            metadata=_metadata(model, made), check_results=[_check_result(verdict) for verdict in made.verdicts]
        )

    return table


def _part(context: dg.AssetExecutionContext, model: SqlModel) -> dict[str, str]:
    if not model.partition:
        return {}
    key = context.partition_key
    return dict(key.keys_by_dimension) if isinstance(key, dg.MultiPartitionKey) else {"city": key}


def _writers(table: str) -> tuple[str, ...]:
    return WRITERS.get(table, (table,))


def _deps(model: SqlModel) -> list[dg.AssetDep]:
    """The assets that write the inputs; where one writes several of them, the first says how partitions map."""
    mappings: dict[str, dg.PartitionMapping | None] = {}
    for parent, each in model.inputs.items():
        for writer in _writers(parent):
            mappings.setdefault(writer, _mapping(model, each))
    return [dg.AssetDep(writer, partition_mapping=mapping) for writer, mapping in sorted(mappings.items())]


def _mapping(model: SqlModel, parent: Input) -> dg.PartitionMapping | None:
    """How parts of an input become parts of the model: the same ones, the boxes of a city, or all of them."""
    if not parent.partition or parent.partition == model.partition:
        return None
    return boxes_of_city if {"city"} <= set(parent.partition) & set(model.partition) else dg.AllPartitionMapping()


def _metadata(model: SqlModel, made: Made) -> dict[str, Any]:
    return {
        "dagster/row_count": made.facts.rows,
        "dagster/uri": made.facts.uri,
        "dagster/column_schema": _column_schema(model, made.schema),
        "dagster/column_lineage": _lineage(made.lineage),
        "made_of": dg.MetadataValue.md(_made_of(made.lineage)),
        "bytes": made.facts.bytes,
        "unchanged": made.unchanged,
        "first_rows": dg.MetadataValue.md(_markdown(made.first)),
    }


def _check_result(verdict: Verdict) -> dg.AssetCheckResult:
    found: dict[str, Any] = {"n_bad": verdict.n_bad}
    if not verdict.passed:
        found["first_bad_rows"] = dg.MetadataValue.md(_markdown(verdict.first))
    return dg.AssetCheckResult(
        check_name=verdict.check.name,
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity.ERROR if verdict.check.blocking else dg.AssetCheckSeverity.WARN,
        metadata=found,
    )


def _column_schema(model: SqlModel, schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(f.name, str(f.type), description=model.columns[f.name]) for f in schema])


def _lineage(sources: Sources) -> dg.TableColumnLineage:
    # A table that several assets write into comes from each of them; one of them may be an input of its own.
    origins = {c: sorted({(w, name) for table, name in pairs for w in _writers(table)}) for c, pairs in sources.items()}
    deps = {column: [dg.TableColumnDep(*origin) for origin in found] for column, found in origins.items() if found}
    return dg.TableColumnLineage(deps)


def _made_of(sources: Sources) -> str:
    """The lineage as a table to read: the UI that can be had freely draws none of ``dagster/column_lineage``."""
    rows = [(column, ", ".join(f"{t}.{name}" for t, name in found) or "no column") for column, found in sources.items()]
    return "\n".join(["| column | made of |", "|---|---|", *(f"| `{column}` | {origin} |" for column, origin in rows)])


def _markdown(rows: pa.Table) -> str:
    cells = [[_cell(value) for value in row.values()] for row in rows.to_pylist()]
    lines = [rows.column_names, ["---"] * rows.num_columns, *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return re.sub(r"\s+", " ", text.replace("|", "\\|"))[:120]


@functools.cache
def assets() -> tuple[dg.AssetsDefinition, ...]:
    """The assets of all models, and what they read of Dagster itself."""
    return (run_records, *sql_assets())
