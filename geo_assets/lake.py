"""Where every table and file lives: parquet as the truth, one folder a partition, written atomically.

``tables/<table>/city=<city>/box=<box>/data.parquet`` and ``files/<kind>/city=<city>/box=<box>/...`` below one
root, which is a folder or any fsspec URL. Nobody holds a lock: each run replaces its own partition's files.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import TypedDict

from geo_assets.errors import ConfigError, GeoAssetsError
from geo_assets.files import put_in_place, replacing, sync, written_beside
from geo_assets.sql import literal
from geo_assets.tables import TABLES, Table, to_pandas

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


class BoxPartition(TypedDict, closed=True):
    """One box of one city, as the keyword arguments of the lake's methods."""

    city: str
    box: str


@dataclass(frozen=True)
class Facts:
    """What a write left behind."""

    table: Table
    rows: int
    bytes: int
    uri: str


class Lake:
    """Tables and files below one root.

    Args:
        root: a folder, or an fsspec URL such as ``s3://bucket/lake``.
    """

    def __init__(self, root: str | Path) -> None:
        self.fs, path = fsspec.core.url_to_fs(str(root))
        self.root = path.rstrip("/")
        self.is_local = self.fs.protocol in ("file", ("file", "local"))

    # -- tables ---------------------------------------------------------------------------------------------

    def write(
        self, table: str, frame: pd.DataFrame, *, note: Mapping[str, Any] | None = None, **partition: str
    ) -> Facts:
        """Replace one partition of a table; readers see the old rows or the new, never half of them.

        Args:
            table: a name of :data:`geo_assets.tables.TABLES`.
            frame: the rows, with exactly the table's columns.
            note: small facts kept in the file's metadata (the bounds of the box, say), read by :meth:`note`.
            partition: a value for each of the table's partition columns (``city="demo", box="r00c00"``).

        Raises:
            GeoAssetsError: the frame does not match the schema; nothing is replaced.
        """
        schema = TABLES[table]
        arrow = schema.conform(frame)
        if note:
            arrow = arrow.replace_schema_metadata({"note": json.dumps(note, sort_keys=True)})
        return self.write_arrow(table, arrow, **partition)

    def write_arrow(self, table: str, arrow: pa.Table, **partition: str) -> Facts:
        """Replace one partition by an Arrow table whose schema the caller has settled (SQL models)."""
        path = self._data(table, partition)
        with self._replacing(path) as sink:
            pq.write_table(arrow, sink, compression="zstd")
        schema = TABLES.get(table) or Table(table, "", ())
        return Facts(schema, arrow.num_rows, self.fs.size(path), self.uri(path))

    def write_query(
        self,
        con: duckdb.DuckDBPyConnection,
        table: str,
        query: str,
        *,
        note: Mapping[str, Any] | None = None,
        is_sorted: bool = False,
        **partition: str,
    ) -> Facts:
        """Replace one partition by the rows of a query, which stream from DuckDB to the file.

        Args:
            con: the connection that the query is for.
            table: a name of :data:`geo_assets.tables.TABLES`, or a SQL model.
            query: gives exactly the table's columns, in any order; that of a SQL model, whatever it likes.
            note: small facts kept in the file's metadata, read by :meth:`note`.
            is_sorted: the query's rows come in the order of the table's sort already.
            partition: a value for each of the table's partition columns.

        Raises:
            GeoAssetsError: the query does not match the schema; nothing is replaced.
        """
        schema = TABLES.get(table)
        path = self._data(table, partition)
        rows = _conforming(con, schema, query) if schema else query
        if schema and schema.sort and not is_sorted:
            rows += " order by " + ", ".join(f'"{name}" nulls last' for name in schema.sort)
        options = "format parquet, compression zstd"
        if note:
            options += f", kv_metadata {{note: {literal(json.dumps(note, sort_keys=True))}}}"
        with self._local_for(path) as target:
            con.execute(f"copy ({rows}) to {literal(target)} ({options})").fetchall()
        return self.facts(table, **partition)

    def read(self, table: str, columns: list[str] | None = None, **partition: str) -> pd.DataFrame:
        """The rows of one partition; a column that is younger than the file is null.

        Raises:
            GeoAssetsError: the partition was never written; the message says what to materialize.
        """
        path = self._data(table, partition)
        if not self.fs.exists(path):
            where = "|".join(partition[k] for k in ("box", "city") if k in partition)
            hint = f" --partition '{where}'" if where else ""
            raise GeoAssetsError(
                f"Table {table} has no data for {where or 'the whole'}. Make it first: "
                f"dagster asset materialize -m geo_assets.definitions --select {table}{hint}"
            )
        with self.fs.open(path, "rb") as source:
            return to_pandas(_read(source, TABLES.get(table), columns))

    def read_if_any(self, table: str, columns: list[str] | None = None, **partition: str) -> pd.DataFrame:
        """The rows of one partition, or an empty frame with the table's columns where it was never written."""
        if self.has(table, **partition):
            return self.read(table, columns, **partition)
        empty = TABLES[table].empty()
        return empty.loc[:, columns] if columns else empty

    def has(self, table: str, **partition: str) -> bool:
        """Whether a partition was written."""
        return self.fs.exists(self._data(table, partition))

    def facts(self, table: str, **partition: str) -> Facts:
        """Rows, bytes and address of a partition that was written."""
        path = self._data(table, partition)
        schema = TABLES.get(table) or Table(table, "", ())
        return Facts(schema, self.rows(table, **partition), self.fs.size(path), self.uri(path))

    def remove_partition(self, table: str, **partition: str) -> None:
        """Remove one partition of a table, if it was written."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._data(table, partition))

    def remove_table(self, table: str) -> None:
        """Remove every partition of a table."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(f"{self.root}/tables/{_safe(table)}", recursive=True)

    def note(self, table: str, **partition: str) -> dict[str, Any]:
        """The small facts that :meth:`write` kept with a partition; empty where there are none."""
        with self.fs.open(self._data(table, partition), "rb") as source:
            metadata = pq.read_schema(source).metadata or {}
        return json.loads(metadata.get(b"note", b"{}"))

    @contextlib.contextmanager
    def parquet(self, table: str, **partition: str) -> Iterator[pq.ParquetFile]:
        """The file of a partition as it lies there, for who looks at its schema or streams its rows."""
        with self.fs.open(self._data(table, partition), "rb") as source, pq.ParquetFile(source) as file:
            yield file

    def rows(self, table: str, **partition: str) -> int:
        """Number of rows of a partition that was written."""
        with self.fs.open(self._data(table, partition), "rb") as source:
            return pq.read_metadata(source).num_rows

    def written_at(self, table: str, **partition: str) -> float:
        """When a partition was written last [s since the epoch]."""
        return self.modified(self._data(table, partition).removeprefix(f"{self.root}/"))

    def partitions(self, table: str) -> list[dict[str, str]]:
        """The partitions of a table that were written."""
        base = f"{self.root}/tables/{_safe(table)}"
        found = self.fs.glob(f"{base}/**/data.parquet") if self.fs.exists(base) else []
        found += [f"{base}/data.parquet"] if not found and self.fs.exists(f"{base}/data.parquet") else []
        return sorted(
            (dict(part.split("=", 1) for part in str(path).split("/") if "=" in part) for path in found),
            key=lambda p: sorted(p.items()),
        )

    def _data(self, table: str, partition: Mapping[str, str]) -> str:
        known = TABLES.get(table)
        if known is not None and set(known.partition) != set(partition):
            raise GeoAssetsError(
                f"Table {table} is partitioned by {list(known.partition)}, not by {sorted(partition)}."
            )
        return f"{self.root}/tables/{_safe(table)}/{_folders(partition)}data.parquet"

    # -- files ----------------------------------------------------------------------------------------------

    def key(self, kind: str, name: str = "", **partition: str) -> str:
        """Path of a file or folder relative to the root; this is what tables keep."""
        parts = [_safe(part) for part in name.split("/")] if name else []
        return "/".join(["files", _safe(kind), *_folders(partition).split("/")[:-1], *parts])

    def put_bytes(self, key: str, data: bytes, *, sync_folder: bool = True) -> None:
        """Write one file atomically; who writes many may sync their folder once, with :meth:`sync`, instead."""
        with self._replacing(self._inside(key), sync_folder=sync_folder) as sink:
            sink.write(data)

    def replacing(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """A file to write piece by piece that takes the place of ``key`` at the end."""
        return self._replacing(self._inside(key))

    def size(self, key: str) -> int:
        """Size of a file [B]."""
        return self.fs.size(self._inside(key))

    def modified(self, key: str) -> float:
        """When a file was written last [s since the epoch]."""
        time = self.fs.modified(self._inside(key))
        return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).timestamp()

    def remove(self, key: str) -> None:
        """Remove one file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._inside(key))

    def remove_folder(self, key: str) -> None:
        """Remove a folder and what lies in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._inside(key), recursive=True)

    def folders_of(self, city: str) -> list[str]:
        """Keys of the folders that hold the tables and files of one city, and of no other."""
        own = f"city={_safe(city)}"
        return [
            f"{branch}/{name}/{own}"
            for branch in ("tables", "files")
            for name in self.names(branch)
            if self.exists(f"{branch}/{name}/{own}")
        ]

    def bytes_below(self, key: str) -> int:
        """Size of all files in a folder [B]; 0 where there is none."""
        path = self._inside(key)
        return int(self.fs.du(path)) if self.fs.exists(path) else 0

    def sync(self, key: str) -> None:
        """Bring the names in a folder to the disk; object storage needs no such thing."""
        path = Path(self._inside(key))
        if self.is_local and path.is_dir():
            sync(path)

    def get_bytes(self, key: str) -> bytes:
        """The bytes of one file."""
        return self.fs.cat_file(self._inside(key))

    def exists(self, key: str) -> bool:
        """Whether a file or folder is there."""
        return self.fs.exists(self._inside(key))

    def names(self, key: str) -> list[str]:
        """Names of the files directly in a folder; empty where there is none."""
        path = self._inside(key)
        return sorted(str(p).rsplit("/", 1)[-1] for p in self.fs.ls(path, detail=False)) if self.fs.exists(path) else []

    def publish(self, folder: Path, key: str) -> None:
        """Put a finished local folder in the place of ``key``; a reader sees the old folder or the new one."""
        target = self._inside(key)
        if not self.is_local:
            if self.fs.exists(target):
                self.fs.rm(target, recursive=True)
            self.fs.put(f"{folder}/", f"{target}/", recursive=True)
            return
        staged = Path(f"{target}.{uuid.uuid4().hex[:8]}.tmp")
        staged.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, staged)
        put_in_place(staged, Path(target))

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:
        """A local path to a file or folder of the lake, to read: itself on a disk, a copy from object storage."""
        path = self._inside(key)
        if self.is_local:
            yield Path(path)
            return
        with tempfile.TemporaryDirectory(prefix="geo_assets_") as scratch:
            copy = Path(scratch) / path.rsplit("/", 1)[-1]
            self.fs.get(path, str(copy), recursive=self.fs.isdir(path))
            yield copy

    def link(self, key: str, target: Path) -> None:
        """Put a file of the lake at a local path, to read: a link on a disk, a copy from object storage."""
        path = self._inside(key)
        if self.is_local:
            target.symlink_to(Path(path).absolute())
        else:
            self.fs.get(path, str(target))

    def uri(self, path_or_key: str) -> str:
        """Full address of a path or key, for people and for Dagster's ``dagster/uri``."""
        path = path_or_key if path_or_key.startswith(self.root) else self._inside(path_or_key)
        return path if self.is_local else self.fs.unstrip_protocol(path)

    def _inside(self, key: str) -> str:
        parts = key.split("/")
        if key.startswith("/") or any(part in ("", ".", "..") for part in parts):
            raise GeoAssetsError(f"'{key}' is not a path inside the lake.")
        return f"{self.root}/{key}"

    # -- SQL ------------------------------------------------------------------------------------------------

    def connect(self, *tables: str) -> duckdb.DuckDBPyConnection:
        """An in-memory DuckDB with one view for each named table, with ``city`` and ``box`` as columns.

        A known table without data is an empty view, so that a query over a young lake answers with no rows.
        """
        import duckdb

        con = duckdb.connect()
        if not self.is_local:
            con.register_filesystem(self.fs)
        for name in tables:
            con.execute(self.view_sql(con, name))
        return con

    def view_sql(self, con: duckdb.DuckDBPyConnection, name: str) -> str:
        """The ``create view`` statement of a table on a connection."""
        return f'create or replace view "{name}" as {self.table_sql(name)}'

    def table_sql(self, name: str, **within: str) -> str:
        """The query for all rows of a table, or for those of the part that ``within`` names.

        Raises:
            GeoAssetsError: it is no known table, and has no data.
        """
        base = f"{self.root}/tables/{_safe(name)}/{_folders(within)}".rstrip("/")
        known = TABLES.get(name)
        if not self._has_data(base):
            if known is None:
                raise GeoAssetsError(
                    f"Table {name} has no data yet. Make it first: dagster asset materialize -m geo_assets.definitions --select {name}"
                )
            return _no_rows(known)
        address = base if self.is_local else self.fs.unstrip_protocol(base)
        # Written partitions may differ in age; union_by_name lets an older file lack a newer column, and the rows that
        # are none bring a column that all files lack.
        return (
            f"select * from read_parquet({literal(f'{address}/**/data.parquet')}, "
            "hive_partitioning = true, hive_types_autocast = false, union_by_name = true)"
            + (f" union all by name {_no_rows(known)}" if known else "")
        )

    def stamp(self, table: str, **within: str) -> str:
        """A text that changes whenever a file of a table, or of the part that ``within`` names, is written or removed."""
        base = f"{self.root}/tables/{_safe(table)}/{_folders(within)}".rstrip("/")
        found: dict[str, Any] = dict(self.fs.find(base, detail=True)) if self.fs.exists(base) else {}
        keys = ("size", "mtime", "ino", "ETag", "LastModified", "created")
        data = sorted((path, info) for path, info in found.items() if path.endswith("/data.parquet"))
        facts = [[path, *(str(info.get(key)) for key in keys)] for path, info in data]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _has_data(self, base: str) -> bool:
        """Whether a folder of a table holds a file, however deep; the first one answers."""
        folders = self.fs.walk(base) if self.fs.exists(base) else ()
        return any("data.parquet" in files for _, _, files in folders)

    def rebuild_catalog(self) -> str:
        """Write ``catalog.duckdb``: one view for each table that has data, for people and BI tools.

        It is built beside itself and renamed, so that an open reader keeps working and a new one sees the new file.

        Raises:
            ConfigError: the lake is not on a disk; there a reader makes its own views.
        """
        import duckdb

        if not self.is_local:
            raise ConfigError(
                "catalog.duckdb is made for a lake on a disk only; on object storage read the parquet files."
            )
        target = Path(self.root) / "catalog.duckdb"
        temporary = target.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        names = sorted(p.name for p in (Path(self.root) / "tables").glob("*") if p.is_dir())
        with duckdb.connect(str(temporary)) as con:
            for name in names:
                if self.partitions(name):
                    con.execute(self.view_sql(con, name))
        temporary.replace(target)
        return str(target)

    # -- writing --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _replacing(self, path: str, *, sync_folder: bool = True) -> Iterator[IO[bytes]]:
        """A file to write that takes the place of ``path`` at the end; object storage puts it at once by itself."""
        opened: AbstractContextManager[IO[bytes]] = (
            replacing(Path(path), sync_folder=sync_folder) if self.is_local else self.fs.open(path, "wb")
        )
        with opened as sink:
            yield sink

    @contextlib.contextmanager
    def _local_for(self, path: str) -> Iterator[Path]:
        """A local file to be written by another library, which takes the place of ``path`` at the end."""
        if self.is_local:
            with written_beside(Path(path)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="geo_assets_") as scratch:
            yield Path(scratch) / "data"
            self.fs.put(str(Path(scratch) / "data"), path)


def _safe(name: str) -> str:
    if not _SAFE_NAME.fullmatch(name):
        raise GeoAssetsError(f"'{name}' cannot be part of a path in the lake.")
    return name


def _folders(partition: Mapping[str, str]) -> str:
    order = [k for k in ("city", "box") if k in partition] + sorted(k for k in partition if k not in ("city", "box"))
    return "".join(f"{_safe(k)}={_safe(partition[k])}/" for k in order)


def _read(source: IO[bytes], table: Table | None, columns: list[str] | None) -> pa.Table:
    file = pq.ParquetFile(source)
    young = [f for f in table.schema if f.name not in file.schema_arrow.names] if table else []
    young = [f for f in young if columns is None or f.name in columns]
    names = None if columns is None else [c for c in columns if c not in {f.name for f in young}]
    rows = file.read(columns=names)
    for field in young:
        rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    for field in table.schema if table else ():  # DuckDB writes microseconds
        index = rows.schema.get_field_index(field.name)
        if index >= 0 and rows.schema.field(index).type != field.type:
            rows = rows.set_column(index, field, rows.column(index).cast(field.type, safe=False))
    return rows.select(columns) if columns is not None else rows


SQL_TYPES = {
    "string": "varchar",
    "int": "bigint",
    "float": "double",
    "bool": "boolean",
    "time": "timestamp with time zone",
    "strings": "varchar[]",
    "floats": "double[]",
    "binary": "blob",
}
_WIDENED = {
    "bigint": {"tinyint", "smallint", "integer", "utinyint", "usmallint", "uinteger"},
    "double": {"float", "decimal", "integer", "bigint"},
    "timestamp with time zone": set[str](),
}


def _conforming(con: duckdb.DuckDBPyConnection, table: Table, query: str) -> str:
    """The query with its columns in the table's order and of the table's types."""
    found = {str(name): str(kind).lower() for name, kind, *_ in con.execute(f"describe {query}").fetchall()}
    names = table.column_names
    missing, unknown = [n for n in names if n not in found], [n for n in found if n not in names]
    if missing or unknown:
        raise GeoAssetsError(
            f"Table {table.name} does not match its schema: missing {missing}, unknown {unknown}. Nothing was written."
        )
    columns = []
    for column in table.columns:
        wanted, got = SQL_TYPES[column.type], found[column.name]
        if got not in (wanted, '"null"') and got.split("(")[0] not in _WIDENED.get(wanted, ()):
            raise GeoAssetsError(
                f"Table {table.name}, column {column.name}: the query gives {got}, not {wanted}. Nothing was written."
            )
        columns.append(f'"{column.name}"' if got == wanted else f'"{column.name}"::{wanted} as "{column.name}"')
    return f"select {', '.join(columns)} from ({query})"


def _no_rows(table: Table) -> str:
    """A query without rows that has a table's columns."""
    columns = [(c.name, SQL_TYPES[c.type]) for c in table.columns] + [(p, "varchar") for p in table.partition]
    return "select " + ", ".join(f'null::{t} as "{c}"' for c, t in columns) + " where false"
