"""Cells that others published, to be judged beside ours: files of S2 tokens as GeoEstimation has them.

``class_label,hex_id,imgs_per_cell,latitude_mean,longitude_mean`` below two lines about the whole. Tokens are text: a
spreadsheet reads ``47e63`` as a number and writes ``4.7E+064``, and copies of that kind are in circulation.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from geo_assets.errors import SourceError
from geo_assets.geotag.quarters import Quarters

_PREAMBLE = 10
"""Lines above the header at most."""

_TOKEN = re.compile(r"[0-9a-f]{1,16}")


def read_cells(path: Path) -> Quarters:
    """The cells of a file, for codes of :func:`geo_assets.geotag.quarters.s2_codes`.

    Raises:
        SourceError: the file has no column ``hex_id``, or a token in it is none, or two cells overlap.
    """
    from geo_assets.geotag import s2

    tokens = _tokens(path)
    for line, token in tokens:
        if not _is_token(token):
            raise SourceError(
                f"{path}, line {line}: hex_id '{token}' is no S2 token, as when a spreadsheet took one for a number; "
                "take the file as it was published and read hex_id as text.",
                file=str(path),
                row=line,
            )
    ids = np.sort(s2.ids_of_tokens([token for _, token in tokens]))
    one = np.uint64(1)
    reach = (ids & (~ids + one)) - one  # leaves on either side of a cell's middle
    cells = Quarters((ids - reach) >> one, (ids + reach) >> one)
    if (cells.first[1:] <= cells.last[:-1]).any():
        raise SourceError(f"{path}: cells of hex_id overlap; a partition has each place in one cell.", file=str(path))
    return cells


def _tokens(path: Path) -> list[tuple[int, str]]:
    """Line number and text of each ``hex_id``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as source:
            rows = csv.reader(source)
            for _, row in zip(range(_PREAMBLE), rows, strict=False):
                if "hex_id" in row:
                    column = row.index("hex_id")
                    return [(rows.line_num, row[column].strip() if column < len(row) else "") for row in rows if row]
    except (OSError, ValueError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read: {error}. It must be UTF-8 CSV.", file=str(path)) from None
    raise SourceError(
        f"{path} has no column hex_id in its first {_PREAMBLE} lines; cells are read from their S2 tokens.",
        file=str(path),
    )


def _is_token(text: str) -> bool:
    """Whether a text is the token of a cell: hexadecimal without closing zeros, of six faces, its last bit on an even place."""
    if not _TOKEN.fullmatch(text) or text.endswith("0"):
        return False
    number = int(text.ljust(16, "0"), 16)
    return number >> 61 < 6 and (number & -number).bit_length() % 2 == 1
