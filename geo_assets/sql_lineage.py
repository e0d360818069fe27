"""Which columns of its inputs each column of a query is made of, read from the SQL itself."""

from __future__ import annotations

from collections.abc import Mapping

Sources = dict[str, list[tuple[str, str]]]
"""For each column of the result the columns ``(table, column)`` that it is made of; a count of rows has none."""


def column_lineage(query: str, schemas: Mapping[str, Mapping[str, str]]) -> Sources:
    """For each column of a query's result the columns of the inputs that it is made of.

    Common table expressions, subqueries and unions are followed to the tables; ``*`` and ``using`` are resolved by the
    schemas. Columns that only choose or order rows (``where``, ``on``, ``order by``) are not sources.

    Args:
        query: one select statement of DuckDB's SQL.
        schemas: column types of each input.

    Returns:
        The sources; without any where the query says something that the parser does not know.
    """
    import sqlglot  # only the step that makes the table pays for it
    from sqlglot import exp
    from sqlglot.errors import SqlglotError
    from sqlglot.lineage import lineage

    try:
        parsed = sqlglot.parse_one(query, dialect="duckdb")
        nodes = lineage(None, parsed, {k: dict(v) for k, v in schemas.items()}, dialect="duckdb")
    except SqlglotError:
        return {}
    sources: Sources = {}
    for column, root in nodes.items():
        leaves = (node for node in root.walk() if not node.downstream and isinstance(node.source, exp.Table))
        found = {(node.source.name, node.name.rsplit(".", 1)[-1].strip('"')) for node in leaves}
        sources[column] = sorted(pair for pair in found if pair[1] in schemas.get(pair[0], {}))
    return sources
