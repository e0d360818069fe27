"""The comment at the head of a SQL model: what the table is, what its columns mean, and what must hold for its rows.

    -- What the table is, in free text.
    -- partition: city                             or: city, box; the model is made one such part at a time
    -- column: Meaning [unit].                     for each column of the result
    -- check: sql condition                        a row for which it is false fails it
    -- test: unique(city, box)                     no two rows alike in these columns
    -- test: not_null(city, box)                   none of these columns is null
    -- test: accepted_values(state, 'done', 'dead')
    -- test: accepted_range(share, 0, 1)           null instead of a bound: no such bound
    -- test: relationship(city, box -> stg_boxes)  the row is there; -> stg_boxes(city, box) where names differ

``test (warn):`` and ``check (warn):`` report; without the word a failure keeps what is below from running.
As in SQL's own constraints, null violates not_null alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from geo_assets.errors import did_you_mean

PARTITIONS = (("city",), ("city", "box"))
_DIRECTIVE = re.compile(r"([a-z_][a-z0-9_]*)(?:\s*\((\w*)\))?:\s+(.+)")
_WORDS = {"<=": "at_most", ">=": "at_least", "<>": "is_not", "<": "below", ">": "above", "=": "is", "+": "plus"}
_CALL = re.compile(r"(\w+)\s*\((.*)\)")
_ARGUMENT = re.compile(r"(?:'(?:[^']|'')*'|[^,'])+")
_NAME = re.compile(r"[A-Za-z_]\w*")
_RELATION = re.compile(r"(.+?)\s*->\s*(\w+)\s*(?:\((.+)\))?")


class ContractError(ValueError):
    """A line of the comment that cannot be understood.

    Args:
        message: what, and the way out.
        line: line of the file, from 1.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Check:
    """One condition on the rows of a model.

    Args:
        name: the check in words that are safe as a name.
        text: the check as it stands in the file.
        line: line of the file, from 1.
        blocking: whether a failure keeps what is below from running.
        query: the rows that break it; ``{rows}`` stands for the table.
        columns: columns of the result that a test names.
        parent: the table that a relationship points at.
        parent_columns: columns of that table.
    """

    name: str
    text: str
    line: int
    blocking: bool
    query: str
    columns: tuple[str, ...] = ()
    parent: str | None = None
    parent_columns: tuple[str, ...] = ()

    def bad_rows(self, table: str) -> str:
        """The query for the rows of a table that break the check."""
        return self.query.replace("{rows}", f'"{table}"')


@dataclass(frozen=True)
class Contract:
    """What the comment says."""

    description: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, Check] = field(default_factory=dict)
    partition: tuple[str, ...] = ()


def read_contract(text: str) -> Contract:
    """The comment before the query.

    Raises:
        ContractError: a line is wrong.
    """
    description: list[str] = []
    columns: dict[str, str] = {}
    checks: dict[str, Check] = {}
    partition: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("--"):
            break
        words = line.removeprefix("--").strip()
        match = _DIRECTIVE.fullmatch(words)
        if match and match[1] in ("check", "test"):
            check = _check(match[1], match[2], match[3], number)
            if check.name in checks:
                raise ContractError(f"'{check.text}' is there already, in line {checks[check.name].line}.", number)
            checks[check.name] = check
        elif match and match[1] == "partition":
            partition = _partition(match[3], number)
        elif match and match[2] is None:
            if match[1] in columns:
                raise ContractError(f"column {match[1]} is documented twice. Take one line out.", number)
            columns[match[1]] = match[3]
        else:
            description.append(words)
    return Contract(" ".join(filter(None, description)), columns, checks, partition)


def hint(name: str, known: Sequence[str]) -> str:
    """What was meant perhaps: the nearest of the known names, or all of them."""
    return did_you_mean(name, known).strip() or f"There are: {', '.join(known)}."


def _partition(text: str, line: int) -> tuple[str, ...]:
    names = tuple(_arguments(text))
    if names not in PARTITIONS:
        raise ContractError(f"partition '{text}' is neither 'city' nor 'city, box'.", line)
    return names


def _check(kind: str, severity: str | None, text: str, line: int) -> Check:
    if severity not in (None, "warn"):
        raise ContractError(f"'{kind} ({severity}):' is not known; write '{kind}:' or '{kind} (warn):'.", line)
    blocking = severity is None
    if kind == "check":
        query = f"select * from {{rows}} where not ({text})"
        return Check(_in_words(text), text, line, blocking, query)
    call = _CALL.fullmatch(text)
    if not call or call[1] not in _TESTS:
        meant = hint(call[1] if call else text, list(_TESTS))
        raise ContractError(f"test '{text}': no test is called {call[1] if call else text}. {meant}", line)
    try:
        query, columns, parent, parent_columns = _TESTS[call[1]](call[2])
    except ValueError as error:
        raise ContractError(f"test '{text}': {error}", line) from None
    name = "_".join((call[1], *columns, *(("in", parent) if parent else ())))
    return Check(name[:100], text, line, blocking, query, columns, parent, parent_columns)


def _in_words(condition: str) -> str:
    """The condition in words: ``n_files <= n_images`` is ``n_files_at_most_n_images``."""
    worded = re.sub("|".join(map(re.escape, _WORDS)), lambda match: f" {_WORDS[match[0]]} ", condition)
    return re.sub(r"\W+", "_", worded).strip("_").lower()[:100]


# -- tests: the query for what breaks them, the columns that they name, the table that they point at -------------

_Test = tuple[str, tuple[str, ...], str | None, tuple[str, ...]]


def _unique(arguments: str) -> _Test:
    names = _columns(arguments)
    listed = _listed(names)
    return (
        f"select {listed}, count(*) as n_rows from {{rows}} group by {listed} having count(*) > 1",
        names,
        None,
        (),
    )


def _not_null(arguments: str) -> _Test:
    names = _columns(arguments)
    broken = " or ".join(f'"{name}" is null' for name in names)
    return f"select * from {{rows}} where {broken}", names, None, ()


def _accepted_values(arguments: str) -> _Test:
    column, *values = _arguments(arguments)
    if not values:
        raise ValueError("names no value; write accepted_values(column, 'one', 'other').")
    names = _columns(column)
    return f'select * from {{rows}} where "{column}" not in ({", ".join(values)})', names, None, ()


def _accepted_range(arguments: str) -> _Test:
    parts = _arguments(arguments)
    if len(parts) != 3 or parts[1:] == ["null", "null"]:
        raise ValueError("wants a column and two bounds, one of which may be null: accepted_range(share, 0, 1).")
    names = _columns(parts[0])
    bounds = zip(("<", ">"), parts[1:], strict=True)
    broken = " or ".join(f'"{parts[0]}" {sign} {bound}' for sign, bound in bounds if bound != "null")
    return f"select * from {{rows}} where {broken}", names, None, ()


def _relationship(arguments: str) -> _Test:
    if not (match := _RELATION.fullmatch(arguments.strip())):
        raise ValueError("wants columns and a table: relationship(city, box -> stg_boxes(city, box)).")
    names, parent = _columns(match[1]), match[2]
    theirs = _columns(match[3]) if match[3] else names
    if len(names) != len(theirs):
        raise ValueError(f"{len(names)} columns cannot point at {len(theirs)}.")
    there = " and ".join(f'p."{b}" = r."{a}"' for a, b in zip(names, theirs, strict=True))
    known = " and ".join(f'r."{name}" is not null' for name in names)
    own = ", ".join(f'r."{name}"' for name in names)
    return (
        f"select {own}, count(*) as n_rows from {{rows}} r "
        f'where {known} and not exists (select 1 from "{parent}" p where {there}) group by {own}',
        names,
        parent,
        theirs,
    )


_TESTS: dict[str, Callable[[str], _Test]] = {
    "unique": _unique,
    "not_null": _not_null,
    "accepted_values": _accepted_values,
    "accepted_range": _accepted_range,
    "relationship": _relationship,
}


def _arguments(text: str) -> list[str]:
    return [part.strip() for part in _ARGUMENT.findall(text)]


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(_arguments(text))
    if wrong := [name for name in names if not _NAME.fullmatch(name)] or ([text] if not names else []):
        raise ValueError(f"'{wrong[0]}' is not the name of a column.")
    return names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
