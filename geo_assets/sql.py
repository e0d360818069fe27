"""Text from outside as part of an SQL statement."""

from __future__ import annotations


def literal(value: object) -> str:
    """The text of a value as a literal, in its quotes."""
    return "'" + str(value).replace("'", "''") + "'"
