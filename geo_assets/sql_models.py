"""``dbt_like_sql``: one SQL file a table. The query's table names are its inputs, the leading comment is its contract.

A file ``dbt_like_sql/<group>/<name>.sql`` is the table ``<name>`` of the group ``<group>``; the grammar of the comment
is that of :mod:`geo_assets.sql_contract`. Queries are bound to the schemas of their inputs when they are read, so a
wrong name is an error of the file, not of a run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from geo_assets.errors import ConfigError, GeoAssetsError, did_you_mean
from geo_assets.lake import SQL_TYPES, Facts, Lake
from geo_assets.settings import settings_path
from geo_assets.sql import literal
from geo_assets.sql_contract import Check, Contract, ContractError, hint, read_contract
from geo_assets.sql_lineage import Sources, column_lineage
from geo_assets.tables import TABLES

SQL_FOLDER = Path(__file__).parent.parent / "dbt_like_sql"
"""Beside the package: the repository's folder in a checkout, ``site-packages/dbt_like_sql`` from a wheel."""


def model_folders() -> tuple[Path, ...]:
    """The project's own models, and the user's in ``dbt_like_sql`` beside the settings where there are any."""
    own = settings_path().parent / "dbt_like_sql"
    return (SQL_FOLDER, own) if own.is_dir() and own.resolve() != SQL_FOLDER.resolve() else (SQL_FOLDER,)


N_SHOWN = 10
"""So many rows of a result, and of what breaks a check, are shown."""
_LINE = re.compile(r"\n\s*LINE (\d+):.*", re.DOTALL)
_RESULT, _QUERY = "__result", "__query"


@dataclass(frozen=True)
class Input:
    """A table that a model reads: what it is partitioned by and its columns with their types in DuckDB."""

    partition: tuple[str, ...]
    columns: Mapping[str, str]
    is_model: bool = False


@dataclass(frozen=True)
class SqlModel:
    """One file: its query, its contract and the tables it reads."""

    path: Path
    query: str
    contract: Contract
    parents: tuple[str, ...] = ()
    inputs: Mapping[str, Input] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The table and asset."""
        return self.path.stem

    @property
    def group(self) -> str:
        """The folder: staging or marts."""
        return self.path.parent.name

    @property
    def description(self) -> str:
        """What the table is."""
        return self.contract.description

    @property
    def columns(self) -> Mapping[str, str]:
        """Meaning of each column."""
        return self.contract.columns

    @property
    def checks(self) -> Mapping[str, Check]:
        """What must hold for the rows."""
        return self.contract.checks

    @property
    def partition(self) -> tuple[str, ...]:
        """The columns by which it is made in parts; empty where it is made at once."""
        return self.contract.partition

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
    return model.error(_plain(text), line)


def _plain(text: str) -> str:
    return " ".join(_LINE.sub("", text).split())


# -- reading ------------------------------------------------------------------------------------------------


def read_models(*folders: Path) -> list[SqlModel]:
    """All models of some folders, by default :func:`model_folders`, each after its inputs, bound to the tables' schemas.

    Raises:
        ConfigError: a file is wrong: syntax, an unknown table or column, a cycle, a column that is documented and lacks
            or is there without documentation, a check that cannot be asked, a name taken twice. The message names
            file, line and reason.
    """
    with _memory() as con:
        return _bound(con, _parsed(con, folders or model_folders()))


@contextmanager
def _memory() -> Iterator[duckdb.DuckDBPyConnection]:
    # Reading asks nothing of the data; starting a thread for each core costs more than it does.
    with duckdb.connect(config={"threads": 1}) as con:
        con.execute("set timezone = 'UTC'")
        yield con


def _parsed(con: duckdb.DuckDBPyConnection, folders: Sequence[Path]) -> list[SqlModel]:
    """All models of some folders, each after its inputs, not yet bound."""
    paths = [path for folder in folders for path in sorted(folder.glob("*/*.sql"))]
    if not paths:
        raise ConfigError(
            f"No SQL model in {folders[0]}: expected dbt_like_sql/staging/*.sql and dbt_like_sql/marts/*.sql."
        )
    models: dict[str, SqlModel] = {}
    for path in paths:
        if path.stem in models or path.stem in TABLES:
            other = f"{models[path.stem].group}/{path.name}" if path.stem in models else f"the table {path.stem}"
            raise _error(path, f"the name is taken by {other}. Rename the file.")
        models[path.stem] = _read(con, path)
    _known(models)
    return _ordered(models)


def _read(con: duckdb.DuckDBPyConnection, path: Path) -> SqlModel:
    query = path.read_text(encoding="utf-8")
    try:
        contract = read_contract(query)
    except ContractError as error:
        raise _error(path, str(error), error.line) from None
    model = SqlModel(path, query, contract)
    pointed_at = {check.parent for check in contract.checks.values() if check.parent}
    return replace(model, parents=tuple(sorted(_table_names(con, model) | pointed_at)))


def _table_names(con: duckdb.DuckDBPyConnection, model: SqlModel) -> set[str]:
    """Tables that the query reads, its own common table expressions left out; DuckDB parses, nothing is bound."""
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
    return names - own


def _known(models: Mapping[str, SqlModel]) -> None:
    known = [*models, *TABLES]
    for model in models.values():
        for name in sorted(set(model.parents) - set(known)):
            meant = did_you_mean(name, known).strip() or "Tables are listed in geo_assets/tables.py."
            raise model.error(f"no table is called {name}. {meant}", _line_of(model, name))


def _line_of(model: SqlModel, name: str) -> int | None:
    """The first line that names a table, comments left out unless they point at it."""
    texts = [text if re.match(r"--\s*test\b", text) else text.split("--")[0] for text in model.query.splitlines()]
    return next((n for n, text in enumerate(texts, 1) if re.search(rf"\b{re.escape(name)}\b", text)), None)


def _ordered(models: Mapping[str, SqlModel]) -> list[SqlModel]:
    inputs = {name: [p for p in model.parents if p in models] for name, model in models.items()}
    try:
        return [models[name] for name in TopologicalSorter(inputs).static_order()]
    except CycleError as error:
        circle = list(reversed(error.args[1]))
        first = models[circle[0]]
        raise first.error(
            f"the models read one another in a circle: {' reads '.join(circle)}. Take one reference out.",
            _line_of(first, circle[1]),
        ) from None


# -- binding ------------------------------------------------------------------------------------------------


def _bound(con: duckdb.DuckDBPyConnection, models: Sequence[SqlModel]) -> list[SqlModel]:
    """Bind every query and check to the schemas of its inputs, without data."""
    inputs = {name: _table_input(name) for name in sorted({p for m in models for p in m.parents} & set(TABLES))}
    con.execute(
        ";".join(f'create table "{name}" ({_columns_sql(each)})' for name, each in inputs.items()) or "select 1"
    )
    found: list[SqlModel] = []
    for model in models:
        try:
            # A table without rows rather than a view: what reads it need not bind it again.
            con.execute(f'create table "{model.name}" as {_statement(model)}')
        except duckdb.Error as error:
            raise _sql_error(model, error) from None
        described = con.execute(f'describe "{model.name}"').fetchall()
        bound = replace(
            model, inputs={p: inputs[p] for p in model.parents}, types={str(n): str(t) for n, t, *_ in described}
        )
        _documented(bound)
        _fitting(bound)
        for check in bound.checks.values():
            _checkable(con, bound, check)
        inputs[bound.name] = Input(bound.partition, bound.types, is_model=True)
        found.append(bound)
    return found


def _table_input(name: str) -> Input:
    table = TABLES[name]
    return Input(
        table.partition, {c.name: SQL_TYPES[c.type] for c in table.columns} | dict.fromkeys(table.partition, "varchar")
    )


def _columns_sql(source: Input) -> str:
    return ", ".join(f'"{name}" {kind}' for name, kind in source.columns.items())


def _statement(model: SqlModel) -> str:
    return model.query.rstrip().removesuffix(";")


def _documented(model: SqlModel) -> None:
    found = list(model.types)
    if missing := [name for name in model.columns if name not in found]:
        raise model.error(
            f"documents {', '.join(missing)}, which the result lacks; it has {', '.join(found)}. "
            "Correct the comment or the query.",
            _line_of_comment(model, missing[0]),
        )
    if silent := [name for name in found if name not in model.columns]:
        raise model.error(f"does not document {', '.join(silent)}. Add a line '-- {silent[0]}: meaning [unit].'")
    if not model.description:
        raise model.error("does not say what the table is. Begin with a line '-- One row a ...'.", 1)


def _line_of_comment(model: SqlModel, column: str) -> int | None:
    lines = model.query.splitlines()
    return next((n for n, text in enumerate(lines, 1) if re.match(rf"--\s*{column}:", text)), None)


def _fitting(model: SqlModel) -> None:
    """Whether the result can be written as it is declared."""
    if lacking := [name for name in model.partition if name not in model.types]:
        raise model.error(
            f"is partitioned by {', '.join(model.partition)}, and the result lacks {', '.join(lacking)}. "
            "Select it, or take the partition line out.",
            _line_of_comment(model, "partition"),
        )
    if set(model.types) == set(model.partition):
        raise model.error("gives nothing but the columns of its partition. Select a column more.")
    if wide := [name for name, kind in model.types.items() if "HUGEINT" in kind]:
        # Parquet has no such type; DuckDB would write rounded floats.
        raise model.error(
            f"{wide[0]} is a {model.types[wide[0]]}, as a sum of whole numbers is. Write sum(...)::bigint."
        )


def _checkable(con: duckdb.DuckDBPyConnection, model: SqlModel, check: Check) -> None:
    places = [(model.name, model.types, check.columns)]
    if check.parent:
        theirs = {str(n): str(t) for n, t, *_ in con.execute(f'describe "{check.parent}"').fetchall()}
        places.append((check.parent, theirs, check.parent_columns))
    for table, types, columns in places:
        for column in columns:
            if column not in types:
                meant = hint(column, list(types))
                raise model.error(f"test '{check.text}': {table} has no column {column}. {meant}", check.line)
    try:
        con.execute(_count_bad(check, model.name)).fetchall()
    except duckdb.Error as error:
        kind = "test" if check.columns else "check"
        raise model.error(f"{kind} '{check.text}': {_plain(str(error))}", check.line) from None


def _count_bad(check: Check, table: str) -> str:
    return f"select count(*) from ({check.bad_rows(table)})"


# -- running ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a check found: how many rows (or, where rows are grouped, values) break it, and the first of them."""

    check: Check
    n_bad: int
    first: pa.Table

    @property
    def passed(self) -> bool:
        """Whether nothing breaks it."""
        return self.n_bad == 0


@dataclass(frozen=True)
class Made:
    """What a run of a model left behind."""

    facts: Facts
    schema: pa.Schema
    first: pa.Table
    verdicts: tuple[Verdict, ...]
    lineage: Sources
    unchanged: bool
    """Whether query and inputs are those of the rows that were there, so that these stayed."""


def make_model(model: SqlModel, lake: Lake, **partition: str) -> Made:
    """Answer a model's query over the lake and write the result, unless query and inputs are as they were.

    Args:
        model: a model of :func:`read_models`.
        lake: holds the inputs and takes the result.
        partition: the part to make, a value for each column of the model's partition. Inputs that are partitioned alike
            are read in this part alone.

    Raises:
        GeoAssetsError: an input was never made, the query fails on the data, or it gives rows of another part; the
            message names the file, and nothing is replaced.
    """
    if set(partition) != set(model.partition):
        raise model.error(f"is partitioned by {list(model.partition)}, not by {sorted(partition)}.")
    seen = _fingerprint(model, lake, partition)
    unchanged = lake.has(model.name, **partition) and lake.note(model.name, **partition).get("inputs") == seen
    with lake.connect() as con:
        con.execute("set timezone = 'UTC'")
        inputs = {name: _rows(lake, name, each, partition) for name, each in model.inputs.items()}
        for name in {check.parent for check in model.checks.values() if check.parent}:
            con.execute(f'create view "{name}" as {inputs[name]}')
        names = ", ".join(f'"{column}"' for column in model.types)
        if unchanged:
            stored = lake.table_sql(model.name, **partition)
            con.execute(f'create temp table "{_RESULT}" as select {names} from ({stored})')
        else:
            try:
                con.execute(f'create temp table "{_RESULT}" as {_in_one(inputs | {_QUERY: _statement(model)}, _QUERY)}')
            except duckdb.Error as error:
                raise _sql_error(model, error) from None
            _in_place(con, model, partition)
            own = f" exclude ({', '.join(partition)})" if partition else ""
            rows = f'select *{own} from "{_RESULT}"'
            _forget_other_layouts(lake, model)
            lake.write_query(con, model.name, rows, note={"inputs": seen}, is_sorted=True, **partition)
        first = con.sql(f'from "{_RESULT}" limit {N_SHOWN}').to_arrow_table()
        verdicts = tuple(_verdict(con, model, check) for check in model.checks.values())
    lineage = column_lineage(model.query, {name: each.columns for name, each in model.inputs.items()})
    facts = lake.facts(model.name, **partition)
    return Made(facts, first.schema, first, verdicts, lineage, unchanged)


def _shared(source: Input, partition: Mapping[str, str]) -> dict[str, str]:
    """The part of an input that a part of the model reads."""
    return {name: value for name, value in partition.items() if name in source.partition}


def _in_one(queries: Mapping[str, str], name: str) -> str:
    """One statement of queries that read one another; views would have every file opened once for each of them.

    The line of an error is that of the first query that has lines of its own.
    """
    ends = {each: "\n" if "--" in query else "" for each, query in queries.items()}  # behind a comment
    parts = ", ".join(f'"{each}" as ({query}{ends[each]})' for each, query in queries.items())
    return f'with {parts} from "{name}"'


def _rows(lake: Lake, name: str, source: Input, partition: Mapping[str, str]) -> str:
    """The query for an input. As a table without data, a model that is made in parts and has none yet has no rows."""
    part = _shared(source, partition)
    if not source.is_model:
        return lake.table_sql(name, **part)
    columns = ", ".join(f'null::{kind} as "{column}"' for column, kind in source.columns.items())
    none = f"select {columns} where false"
    try:
        stored = lake.table_sql(name, **part)
    except GeoAssetsError:
        if not source.partition:
            raise
        return none
    # A part that was made before the model got a column lacks it.
    return f"{stored} union all by name {none}" if source.partition else stored


def _fingerprint(model: SqlModel, lake: Lake, partition: Mapping[str, str]) -> str:
    """What the result depends on: the query, DuckDB, and the files of the inputs."""
    stamps = {name: lake.stamp(name, **_shared(each, partition)) for name, each in model.inputs.items()}
    text = json.dumps([_statement(model), duckdb.__version__, model.partition, stamps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _in_place(con: duckdb.DuckDBPyConnection, model: SqlModel, partition: Mapping[str, str]) -> None:
    for name, value in partition.items():
        strange = f'select "{name}" from "{_RESULT}" where "{name}" is distinct from {literal(value)} limit 1'
        if other := con.execute(strange).fetchall():
            raise model.error(
                f"gives a row whose {name} is {other[0][0]} while {value} is made. Every row of a part must bear its {name}."
            )


def _forget_other_layouts(lake: Lake, model: SqlModel) -> None:
    """Remove what the model left when it was partitioned otherwise: a reader would see both."""
    if model.partition == ("city", "box"):
        return  # as many files as boxes; listing them for each box would take longer than the box
    for part in lake.partitions(model.name):
        if set(part) != set(model.partition):
            lake.remove_partition(model.name, **part)


def _verdict(con: duckdb.DuckDBPyConnection, model: SqlModel, check: Check) -> Verdict:
    try:
        n_bad = con.execute(_count_bad(check, _RESULT)).fetchall()[0][0]
        first = con.sql(f"from ({check.bad_rows(_RESULT)}) limit {N_SHOWN if n_bad else 0}").to_arrow_table()
    except duckdb.Error as error:
        raise model.error(f"'{check.text}': {_plain(str(error))}", check.line) from None
    return Verdict(check, n_bad, first)


def answer(lake: Lake, name: str, *, city: str | None = None, folders: Sequence[Path] = ()) -> pa.Table:
    """The present answer of a model, from the lake's tables alone; nothing is written.

    Inputs that are models are views of their own queries, so that the answer does not wait for their materialization;
    a table that was never made has no rows.

    Args:
        lake: holds the tables.
        name: the model.
        city: the rows of this city only; tables that are partitioned by city are read in this part alone.
        folders: where the models are; by default :func:`model_folders`.

    Raises:
        ConfigError: there is no such model, a file of the folders is wrong, or a query fails on the data.
    """
    with _memory() as con:
        models = {model.name: model for model in _parsed(con, folders or model_folders())}
    if name not in models:
        raise ConfigError(f"No SQL model is called {name}. {hint(name, sorted(models))}")
    chain = [model for model in models.values() if model.name in _with_inputs(models, name)]
    part = {"city": city} if city else {}
    tables = sorted({p for model in chain for p in model.parents} - set(models))
    queries = {table: lake.table_sql(table, **_shared(_table_input(table), part)) for table in tables}
    queries |= {model.name: _statement(model) for model in chain}
    mine = f" where city = {literal(city)}" if city and "city" in models[name].columns else ""
    with lake.connect() as con:
        con.execute("set timezone = 'UTC'")
        try:
            # A relation would be bound twice, and binding is what opens every file.
            con.execute(f'create temp table "{_RESULT}" as {_in_one(queries, name)}{mine}')
            return con.sql(f'from "{_RESULT}"').to_arrow_table()
        except duckdb.Error as error:
            raise models[name].error(_plain(str(error))) from None


def _with_inputs(models: Mapping[str, SqlModel], name: str) -> set[str]:
    wanted, todo = {name}, [name]
    while todo:
        fresh = {p for p in models[todo.pop()].parents if p in models} - wanted
        wanted |= fresh
        todo += fresh
    return wanted
