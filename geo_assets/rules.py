"""What must hold of the tables of an asset: rules that its step looks at once they are written.

A rule counts what breaks it in what lies in the lake; 0 is good. The rules of every table follow from
:mod:`geo_assets.tables`; what else must hold is said by the rooms, in their modules ``rules``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from geo_assets.lake import Lake
from geo_assets.tables import TABLES, TYPES, Table

Partition = Mapping[str, str]
"""Values of the partition columns of an asset: ``{"city": "demo", "box": "r00c00"}``."""

ROWS_AT_A_TIME = 1 << 17


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        faults: counts or names of what breaks the rule, by kind; all zero or empty is good.
        figures: what is shown beside them.
    """

    faults: Mapping[str, int | Sequence[str]]
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing breaks the rule."""
        return not any(self.faults.values())

    def __add__(self, other: Finding) -> Finding:
        """Both together: counts and names are added up, of other figures the last is kept."""
        faults: dict[str, Any] = dict(self.faults)
        for name, value in other.faults.items():
            faults[name] = faults[name] + value if name in faults else value
        return Finding(faults, {**self.figures, **other.figures})


@dataclass(frozen=True)
class Rule:
    """Something that must hold of an asset.

    Attributes:
        name: name of its check.
        meaning: what holds, as one sentence.
        find: looks at the lake; what it says of a partition without rows is good.
        blocking: whether what follows must not start where it is broken, since it would waste time or money; else it
            is a warning.
    """

    name: str
    meaning: str
    find: Callable[[Lake, Partition], Finding]
    blocking: bool = True


def table_rules(tables: Collection[str]) -> list[Rule]:
    """The rules that hold of all tables; an asset may write several of the same partitions."""
    keyed = [name for name in tables if TABLES[name].key is not None]
    schema = Rule(
        "columns_are_as_documented",
        f"The file holds the columns of {_named(tables)}, and their types.",
        lambda lake, partition: _each(tables, lambda name: schema_faults(lake, name, partition)),
    )
    unique = Rule(
        "rows_are_unique",
        f"No two rows of {_named(keyed)} are of the same: {'; '.join(_keys(TABLES[name]) for name in keyed)}.",
        lambda lake, partition: _each(keyed, lambda name: key_faults(lake, name, partition)),
    )
    return [schema, unique] if keyed else [schema]


def schema_faults(lake: Lake, table: str, partition: Partition) -> Finding:
    """Columns that the file of a partition lacks, has too many of, or of another type than the table's.

    A time may have any resolution, as DuckDB and Arrow differ there.
    """
    known = {c.name: c.type for c in TABLES[table].columns}
    with lake.parquet(table, **partition) as file:
        found = {f.name: f.type for f in file.schema_arrow}
        n_rows = file.metadata.num_rows
    wrong = [n for n, kind in known.items() if n in found and not _is(found[n], kind)]
    return Finding(
        {
            "missing": [f"{table}.{n}" for n in known if n not in found],
            "unknown": [f"{table}.{n}" for n in found if n not in known],
            "of_another_type": [f"{table}.{n}: {found[n]}" for n in wrong],
        },
        {f"{table}_rows": n_rows},
    )


def key_faults(lake: Lake, table: str, partition: Partition) -> Finding:
    """Rows of a partition whose key another row has; a table that is sorted by its key is streamed."""
    known = TABLES[table]
    assert known.key is not None, table
    with lake.parquet(table, **partition) as file:
        if not known.key:
            n = max(file.metadata.num_rows - 1, 0)
        elif known.sort[: len(known.key)] == known.key:
            n = _neighbours_alike(file, known.key)
        else:
            rows = file.read(columns=list(known.key))
            n = rows.num_rows - rows.group_by(list(known.key)).aggregate([]).num_rows
    return Finding({f"{table}_again": n})


def count_faults(lake: Lake, queries: Mapping[str, str], *tables: str, within: Partition | None = None) -> Finding:
    """What SQL counts over tables of the lake, by the kind of fault.

    Args:
        lake: holds the tables.
        queries: each gives one number.
        tables: those that they name.
        within: the partition that is looked at of those tables that are partitioned.
    """
    with lake.connect() as con:
        for table in tables:
            part = within or {} if TABLES[table].partition else {}
            con.execute(f'create view "{table}" as {lake.table_sql(table, **part)}')
        counts = {name: con.execute(query).fetchone() for name, query in queries.items()}
    return Finding({name: int(count[0] or 0) if count else 0 for name, count in counts.items()})


def _each(tables: Collection[str], find: Callable[[str], Finding]) -> Finding:
    found = Finding({})
    for table in tables:
        found += find(table)
    return found


def _neighbours_alike(file: pq.ParquetFile, key: Sequence[str]) -> int:
    """How many rows have the key of the row before; memory is bounded."""
    n, last = 0, None
    for batch in file.iter_batches(ROWS_AT_A_TIME, columns=list(key)):
        rows = pa.Table.from_batches([batch]).select(list(key))
        joined = pa.concat_tables([last, rows]) if last is not None else rows
        n += _alike(joined)
        last = rows.slice(rows.num_rows - 1) if rows.num_rows else last
    return n


def _alike(rows: pa.Table) -> int:
    keys = rows.to_pandas()
    before = keys.shift()
    same = (keys == before) | (keys.isna() & before.isna())
    return int(same.all(axis=1).to_numpy(bool)[1:].sum())


def _is(found: pa.DataType, kind: str) -> bool:
    wanted = TYPES[kind]
    if pa.types.is_timestamp(wanted):
        return pa.types.is_timestamp(found) and found.tz in ("UTC", "Etc/UTC")
    if pa.types.is_list(wanted):  # the element has another name where DuckDB wrote it
        return pa.types.is_list(found) and found.value_type == wanted.value_type
    return found == wanted


def _named(tables: Collection[str]) -> str:
    return ", ".join(tables)


def _keys(table: Table) -> str:
    return f"{table.name} by {', '.join(table.key)}" if table.key else f"{table.name} has one row at most"
