"""What an asset tells the UI: row counts, column schema, pictures; and how library errors become Dagster failures."""

from __future__ import annotations

import base64
import contextlib
import errno
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from geo_assets.errors import ApiError, GeoAssetsError
from geo_assets.lake import Facts
from geo_assets.tables import Table


def column_schema(table: Table) -> dg.TableSchema:
    """A table's columns as Dagster shows them, the meaning with its unit as description."""
    return dg.TableSchema([dg.TableColumn(c.name, c.type, description=c.meaning) for c in table.columns])


def table_facts(facts: Facts) -> dict[str, Any]:
    """The metadata keys that the UI understands, for one written table."""
    return {
        "dagster/row_count": facts.rows,
        "dagster/uri": facts.uri,
        "dagster/column_schema": column_schema(facts.table),
        "bytes": facts.bytes,
    }


def picture(png_or_jpeg: bytes, caption: str = "picture") -> dg.MetadataValue:
    """An image as inline Markdown. It lives in the event log, so keep it below about 50 kB."""
    kind = "png" if png_or_jpeg.startswith(b"\x89PNG") else "jpeg"
    return dg.MetadataValue.md(f"![{caption}](data:image/{kind};base64,{base64.b64encode(png_or_jpeg).decode()})")


def plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as Dagster takes them: numpy scalars become Python's, anything strange becomes text."""
    return {k: _plain(v) for k, v in figures.items() if v is not None}


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    return (
        value
        if isinstance(value, str | int | float | bool | dict | list | dg.MetadataValue | dg.TableSchema)
        else str(value)
    )


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turn an error that a user can act on into a Dagster failure with that sentence; a full disk is such an error.

    Only an answer of the API that may be better later is worth a retry.
    """
    try:
        yield
    except GeoAssetsError as error:
        retry = isinstance(error, ApiError) and error.may_pass
        raise dg.Failure(description=str(error), metadata=plain(error.figures), allow_retries=retry) from error
    except (OSError, sqlite3.OperationalError) as error:
        if not _is_full(error):
            raise
        raise dg.Failure(
            description=(
                f"The disk is full ({error}). What was finished before is whole: make room on the disk of the lake and "
                "of the temporary folder, and run this again."
            ),
            allow_retries=False,
        ) from error


def _is_full(error: OSError | sqlite3.OperationalError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "disk is full" in str(error)
