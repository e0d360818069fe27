"""CSV files from outside, by the names their columns go by; lines that do not parse are handed back, not fatal.

DuckDB streams a file into parquet in its folder for spilling, so that a file may be larger than memory.
"""

from __future__ import annotations

import csv
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from geo_assets.errors import SourceError
from geo_assets.sql import literal

if TYPE_CHECKING:
    import duckdb

LON_NAMES = ("lon", "longitude", "lng", "long")
LAT_NAMES = ("lat", "latitude")
_DELIMITERS = ",;\t|"


def header(path: Path) -> tuple[list[str], str]:
    """The column names of the first line, and what separates them.

    Raises:
        SourceError: the file cannot be read as UTF-8 text with a header.
    """
    try:
        with path.open("rb") as source:
            line = source.readline(1_000_000).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} has no readable header: {error}. It must be UTF-8 CSV.", file=str(path)) from None
    if not line.strip():
        raise SourceError(f"{path} is empty: it must begin with a line of column names.", file=str(path))
    delimiter = max(_DELIMITERS, key=line.count)
    return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter)), delimiter


def recognised(names: list[str], wanted: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Which of a file's columns plays which role, by name without regard to case; roles not found are left out."""
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    return {role: by_lower[n] for role, known in wanted.items() if (n := next((k for k in known if k in by_lower), ""))}


def roles(
    path: Path,
    names: list[str],
    required: Mapping[str, tuple[str, ...]],
    optional: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, str]:
    """Which column of a file plays which role, as :func:`recognised` finds them.

    Raises:
        SourceError: a required one is missing.
    """
    found = recognised(names, {**required, **(optional or {})})
    missing = [f"{role} ({' or '.join(required[role])})" for role in required if role not in found]
    if missing:
        raise SourceError(
            f"{path.name} lacks {', '.join(missing)}; its columns are {', '.join(names)}. Name the columns so in {path}.",
            file=str(path),
        )
    return found


@dataclass(frozen=True)
class Csv:
    """A view of the wanted columns as text under their roles, with ``row`` (record number from 0).

    ``names`` are the file's own names of the roles; ``rejects`` is a query of the lines that do not parse, with the
    columns of ``geotag_rejects``.
    """

    view: str
    names: dict[str, str]
    rejects: str


def open_csv(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    required: Mapping[str, tuple[str, ...]],
    optional: Mapping[str, tuple[str, ...]] | None = None,
    view: str = "csv",
) -> Csv:
    """Read the wanted columns of a file.

    Args:
        con: a connection with a folder for spilling, as :func:`geo_assets.geotag.photos.prepared` gives it.
        path: the file: UTF-8, separated by commas, semicolons, tabs or bars.
        required: role -> names the column may have (lower case), in order of preference.
        optional: the same for columns that may be missing.
        view: name of the view that is made.

    Raises:
        SourceError: the file cannot be read, or a required column is missing.
    """
    import duckdb

    names, delimiter = header(path)
    found = roles(path, names, required, optional)
    ((scratch,),) = con.execute("select current_setting('temp_directory')").fetchall()
    number = uuid.uuid4().hex[:12]
    copied = Path(scratch) / f"csv_{number}.parquet"
    copied.parent.mkdir(parents=True, exist_ok=True)
    wanted = ", ".join(f"c{names.index(name)} as {role}" for role, name in found.items())
    columns = "{" + ", ".join(f"'c{k}': 'VARCHAR'" for k in range(len(names))) + "}"
    # Every column is parsed, for a line with too many or too few of them is a reject.
    query = f"""
        select {wanted}, row_number() over () - 1 as row from read_csv({literal(path)}, auto_detect = false,
            columns = {columns}, skip = 1, header = false, delim = {literal(delimiter)}, quote = '"', escape = '"',
            nullstr = '', store_rejects = true,
            rejects_table = 'errors_{number}', rejects_scan = 'scans_{number}')"""
    try:
        con.execute(f"copy ({query}) to {literal(copied)} (format parquet)").fetchall()
    except duckdb.Error as error:
        first = str(error).split("\n", 1)[0]
        raise SourceError(f"{path} cannot be read: {first}", file=str(path)) from None
    con.execute(f"create or replace view {view} as select * from {literal(copied)}")
    rejects = f"""
        select {literal(path.name)} as file, 'line ' || line as row,
            case error_type when 'TOO MANY COLUMNS' then 'the line has too many fields'
                when 'MISSING COLUMNS' then 'the line has too few fields'
                when 'INVALID ENCODING' then 'the line is not UTF-8'
                else 'the line does not parse: ' || lower(error_type) end as reason,
            left(csv_line, 200) as value
        from (select distinct on (line) line, error_type::varchar as error_type, csv_line from errors_{number} order by line)"""
    return Csv(view, found, rejects)
