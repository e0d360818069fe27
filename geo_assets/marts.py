"""``dbt_like_sql``: one SQL file a table. The query's table names are its inputs, the leading comment is its contract.

    -- What the table is, in free text.
    -- column: Meaning [unit].            for each column of the result
    -- check: sql condition               blocking; a row for which it is false fails the check

A file ``dbt_like_sql/<group>/<name>.sql`` is the asset ``<name>`` of the group ``<group>``. Queries are bound to the
schemas of their inputs when the definitions load, so a wrong name is an error of the file, not of a run.
"""

import difflib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa

from geo_assets.errors import ConfigError
from geo_assets.lake import Lake
from geo_assets.reporting import failures
from geo_assets.resources import LakeResource
from geo_assets.tables import TABLES

SQL_FOLDER = Path(__file__).parent.parent / "dbt_like_sql"
"""Beside the package: the repository's folder in a checkout, ``site-packages/dbt_like_sql`` from a wheel."""

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

_DIRECTIVE = re.compile(r"([a-z_][a-z0-9_]*):\s+(.+)")
_WORDS = {"<=": "at_most", ">=": "at_least", "<>": "is_not", "<": "below", ">": "above", "=": "is", "+": "plus"}
_LINE = re.compile(r"\n\s*LINE (\d+):.*", re.DOTALL)


@dataclass(frozen=True)
class SqlModel:
    """One file: its query, its contract and the tables it reads."""

    path: Path
    query: str
    description: str
    columns: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The table and asset."""
        return self.path.stem

    @property
    def group(self) -> str:
        """The folder: staging or marts."""
        return self.path.parent.name

    def error(self, message: str, line: int | None = None) -> ConfigError:
        """An error that names the file and, where known, the line."""
        return _error(self.path, message, line)


def _error(path: Path, message: str, line: int | None = None) -> ConfigError:
    place = f"{path.parent.name}/{path.name}" + (f", line {line}" if line else "")
    return ConfigError(f"dbt_like_sql/{place}: {message}", file=str(path))


def _sql_error(model: SqlModel, error: duckdb.Error) -> ConfigError:
    """DuckDB's message without its drawing of the line; the line as a number."""
    text = str(error)
    line = int(match[1]) if (match := _LINE.search(text)) else None
    return model.error(" ".join(_LINE.sub("", text).split()), line)


# -- reading ------------------------------------------------------------------------------------------------


def read_model(path: Path) -> SqlModel:
    """Read one file.

    Raises:
        ConfigError: the file is not one ``select`` statement; the message names file and line.
    """
    query = path.read_text(encoding="utf-8")
    description, columns, checks = _contract(query)
    model = SqlModel(path, query, description, columns, checks)
    return SqlModel(path, query, description, columns, checks, _table_names(model))


def _contract(query: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Description, columns and checks of the comment before the query."""
    description: list[str] = []
    columns: dict[str, str] = {}
    checks: dict[str, str] = {}
    for line in query.splitlines():
        if line.strip() and not line.startswith("--"):
            break
        text = line.removeprefix("--").strip()
        if not (match := _DIRECTIVE.fullmatch(text)):
            description.append(text)
        elif match[1] == "check":
            checks[_check_name(match[2])] = match[2]
        else:
            columns[match[1]] = match[2]
    return " ".join(filter(None, description)), columns, checks


def _check_name(condition: str) -> str:
    """The condition in words: ``n_files <= n_images`` is ``n_files_at_most_n_images``."""
    worded = re.sub("|".join(map(re.escape, _WORDS)), lambda match: f" {_WORDS[match[0]]} ", condition)
    return re.sub(r"\W+", "_", worded).strip("_").lower()[:100]


def _table_names(model: SqlModel) -> tuple[str, ...]:
    """Tables that the query reads, its own common table expressions left out; DuckDB parses, nothing is bound."""
    with duckdb.connect() as con:
        tree = json.loads(con.execute("select json_serialize_sql(?)", [model.query]).fetchall()[0][0])
    if tree["error"]:
        position = tree.get("position")
        line = model.query.encode()[: int(position)].count(b"\n") + 1 if position else None
        raise model.error(f"{tree['error_message']}. A model is one select statement.", line)
    if len(tree["statements"]) != 1:
        raise model.error(f"{len(tree['statements'])} statements. A model is one select statement.")
    names: set[str] = set()
    own: set[str] = set()
    todo: list[Any] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if node.get("type") == "BASE_TABLE":
                names.add(node["table_name"])
            own |= {entry["key"] for entry in (node.get("cte_map") or {}).get("map", [])}
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    return tuple(sorted(names - own))


def read_models(folder: Path = SQL_FOLDER) -> list[SqlModel]:
    """All models of a folder, each after its inputs, bound to the schemas of the tables.

    Raises:
        ConfigError: a file is wrong: syntax, an unknown table or column, a cycle, a documented column that the result
            lacks, a name taken twice.
    """
    paths = sorted(folder.glob("*/*.sql"))
    if not paths:
        raise ConfigError(
            f"No SQL model in {folder}: expected dbt_like_sql/staging/*.sql and dbt_like_sql/marts/*.sql."
        )
    models: dict[str, SqlModel] = {}
    for path in paths:
        if path.stem in models or path.stem in TABLES:
            other = f"{models[path.stem].group}/{path.name}" if path.stem in models else f"the table {path.stem}"
            raise _error(path, f"the name is taken by {other}. Rename the file.")
        models[path.stem] = read_model(path)
    _known(models)
    ordered = _ordered(models)
    _bind(ordered)
    return ordered


def _known(models: Mapping[str, SqlModel]) -> None:
    known = [*models, *TABLES]
    for model in models.values():
        for name in set(model.parents) - set(known):
            near = difflib.get_close_matches(name, known, 1)
            lines = model.query.splitlines()
            line = next((n for n, text in enumerate(lines, 1) if re.search(rf"\b{name}\b", text.split("--")[0])), None)
            hint = f"Did you mean {near[0]}?" if near else "Tables are listed in geo_assets/tables.py."
            raise model.error(f"no table is called {name}. {hint}", line)


def _ordered(models: Mapping[str, SqlModel]) -> list[SqlModel]:
    inputs = {name: [p for p in model.parents if p in models] for name, model in models.items()}
    try:
        return [models[name] for name in TopologicalSorter(inputs).static_order()]
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        raise models[circle[0]].error(
            f"the models read one another in a circle: {' reads '.join(circle)}. Take one reference out."
        ) from None


def _bind(models: Sequence[SqlModel]) -> None:
    """Bind every query and check to the schemas of its inputs, without data."""
    needed = sorted({parent for model in models for parent in model.parents} & set(TABLES))
    # An empty lake answers with empty views that have the tables' columns.
    with Lake("memory://no-tables").connect(*needed) as con:
        con.execute("set timezone = 'UTC'")
        for model in models:
            try:
                con.execute(f'create view "{model.name}" as {_statement(model)}')
                found = [row[0] for row in con.execute(f'describe "{model.name}"').fetchall()]
            except duckdb.Error as error:
                raise _sql_error(model, error) from None
            _documented(model, found)
            for condition in model.checks.values():
                try:
                    con.execute(_count_bad(model.name, condition)).fetchall()
                except duckdb.Error as error:
                    raise model.error(f"check '{condition}': {' '.join(_LINE.sub('', str(error)).split())}") from None


def _statement(model: SqlModel) -> str:
    return model.query.rstrip().removesuffix(";")


def _documented(model: SqlModel, found: Iterable[str]) -> None:
    found = list(found)
    if missing := [name for name in model.columns if name not in found]:
        raise model.error(
            f"documents {', '.join(missing)}, which the result lacks; it has {', '.join(found)}. "
            "Correct the comment or the query."
        )
    if silent := [name for name in found if name not in model.columns]:
        raise model.error(f"does not document {', '.join(silent)}. Add a line '-- {silent[0]}: meaning [unit].'")


def _count_bad(table: str, condition: str) -> str:
    # As in SQL's own constraints, a condition that is null is not violated.
    return f'select count(*) from "{table}" where not ({condition})'


# -- running ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A model's result and, for each check, how many rows break it."""

    rows: pa.Table
    n_bad: dict[str, int]
    lineage: dict[str, list[tuple[str, str]]]


def run_model(model: SqlModel, lake: Lake) -> Made:
    """Answer a model's query over the lake.

    Returns:
        The rows, the violations of each check, and for each column the columns ``(table, column)`` it is made of.

    Raises:
        GeoAssetsError: an input was never made, or the query fails on the data; the message names the file.
    """
    with lake.connect(*model.parents) as con:
        con.execute("set timezone = 'UTC'")
        schemas = {p: {n: t for n, t, *_ in con.execute(f'describe "{p}"').fetchall()} for p in model.parents}
        try:
            con.execute(f"create temp table __result as {_statement(model)}")
        except duckdb.Error as error:
            raise _sql_error(model, error) from None
        rows = con.sql("from __result").to_arrow_table()
        n_bad = {n: con.execute(_count_bad("__result", c)).fetchall()[0][0] for n, c in model.checks.items()}
    _documented(model, rows.column_names)
    return Made(rows, n_bad, column_lineage(model, schemas))


def column_lineage(model: SqlModel, schemas: dict[str, dict[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """For each column of the result the columns ``(table, column)`` of the inputs that it is made of.

    Args:
        model: the model.
        schemas: column types of each input.
    """
    import sqlglot  # only the step that makes the table pays for it
    from sqlglot import exp
    from sqlglot.lineage import lineage

    query = sqlglot.parse_one(model.query, dialect="duckdb")
    sources: dict[str, list[tuple[str, str]]] = {}
    for column in model.columns:
        leaves = (
            node for node in lineage(column, query, schema=schemas, dialect="duckdb").walk() if not node.downstream
        )
        found = {
            (node.source.name, node.name.rsplit(".", 1)[-1].strip('"'))
            for node in leaves
            if isinstance(node.source, exp.Table)
        }
        sources[column] = sorted(pair for pair in found if pair[1] in schemas.get(pair[0], {}))
    return sources


# -- Dagster ------------------------------------------------------------------------------------------------


def sql_assets(folder: Path = SQL_FOLDER) -> list[dg.AssetsDefinition]:
    """One asset for each file of a folder; raises what :func:`read_models` raises."""
    return [_asset(model) for model in read_models(folder)]


def _writers(table: str) -> tuple[str, ...]:
    return WRITERS.get(table, (table,))


def _asset(model: SqlModel) -> dg.AssetsDefinition:
    parents = sorted({writer for parent in model.parents for writer in _writers(parent)})

    @dg.asset(
        name=model.name,
        deps=[_dep(parent) for parent in parents],
        group_name=model.group,
        kinds={"sql", "duckdb"},
        owners=["team:marts"],
        description=f"{model.description}\n\n```sql\n{model.query.strip()}\n```",
        code_version=hashlib.sha256(model.query.encode()).hexdigest()[:12],
        check_specs=[
            dg.AssetCheckSpec(name, asset=model.name, description=condition, blocking=True)
            for name, condition in model.checks.items()
        ],
    )
    def table(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        with failures():
            store = lake.open()
            made = run_model(model, store)
            facts = store.write_arrow(model.name, made.rows)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": facts.rows,
                "dagster/uri": facts.uri,
                "dagster/column_schema": _column_schema(model, made.rows.schema),
                "dagster/column_lineage": _lineage_metadata(made.lineage),
                "bytes": facts.bytes,
                "first_rows": dg.MetadataValue.md(_markdown(made.rows.slice(0, 10))),
            },
            check_results=[
                dg.AssetCheckResult(check_name=name, passed=bad == 0, metadata={"n_bad": bad})
                for name, bad in made.n_bad.items()
            ],
        )

    return table


def _dep(parent: str) -> dg.AssetDep:
    in_boxes = parent in TABLES and "city" in TABLES[parent].partition
    return dg.AssetDep(parent, partition_mapping=dg.AllPartitionMapping() if in_boxes else None)


def _column_schema(model: SqlModel, schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(f.name, str(f.type), description=model.columns[f.name]) for f in schema])


def _lineage_metadata(lineage: Mapping[str, list[tuple[str, str]]]) -> dg.TableColumnLineage:
    # A table that several assets write into has no one asset to point at.
    deps = {
        column: [dg.TableColumnDep(_writers(t)[0], source) for t, source in pairs if len(_writers(t)) == 1]
        for column, pairs in lineage.items()
    }
    return dg.TableColumnLineage({column: found for column, found in deps.items() if found})


def _markdown(rows: pa.Table) -> str:
    cells = [[_cell(value) for value in row.values()] for row in rows.to_pylist()]
    lines = [rows.column_names, ["---"] * rows.num_columns, *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    return re.sub(r"\s+", " ", text.replace("|", "\\|"))[:120]


@functools.cache
def assets() -> tuple[dg.AssetsDefinition, ...]:
    """The assets of the project's own folder."""
    return tuple(sql_assets())
