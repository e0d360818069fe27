"""Every image that may lie in a box: three sources that have to agree.

Tiles name images but lag behind. The list of a sequence names images that tiles do not show yet. A bounding-box
search names images of sequences that neither has seen, but its answers are samples; it is asked in cells that the
tiles' counts keep small, each more than once, and what it finds sends its sequences back to be listed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from geo_assets.errors import ApiError
from geo_assets.grid import Bounds
from geo_assets.harvest.coverage import PAD_M, Coverage, within
from geo_assets.harvest.mapillary import Mapillary, kind_of
from geo_assets.harvest.plan import MAX_IMAGES, audit_cells, can_split, quarters

Report = Callable[[str, int], Callable[[int], None]]
"""Given a noun and a total, makes what is told how many are done."""


def silent(_what: str, _total: int) -> Callable[[int], None]:
    """Report nothing."""
    return lambda _done: None


LISTINGS = 4
"""Times that a sequence's list is asked for while it is shorter than what the tiles show of the sequence."""

ASKS, MOST_ASKS = 2, 5
"""Times that an audit cell is asked in any case, and while it answers less than the tiles show."""


@dataclass(frozen=True)
class Discovery:
    """What the sources named for a box.

    Attributes:
        sequences: rows of table ``sequence_ids``.
        images: rows of table ``sequence_images``: the candidates, some of which will lie outside the box.
        figures: counts of the search: ``n_tiles``, ``n_audit_cells``, ``n_unverifiable``.
    """

    sequences: pd.DataFrame
    images: pd.DataFrame
    figures: dict[str, int]


@dataclass(frozen=True)
class Audit:
    """Answers of a bounding-box search over some cells.

    Attributes:
        images: sequence of each image found, by image id; None where the answer did not say.
        cells: cells asked.
        unverifiable: cells that the API would not answer however small.
    """

    images: dict[str, str | None]
    cells: int
    unverifiable: int


def discover(client: Mapillary, tiles: Coverage, bounds: Bounds, report: Report = silent) -> Discovery:
    """Close the set of images of a box over its sequences, and audit it.

    Args:
        client: the API.
        tiles: coverage of the box.
        bounds: the box.
        report: makes the reporter of progress.

    Raises:
        ApiError: a request failed for good.
    """
    near = bounds.padded(PAD_M)
    original, computed = within(tiles.original, near), within(tiles.computed, near)
    in_tiles, in_computed = set(original["image_id"]), set(computed["image_id"])
    sequence_of = _sequence_of(tiles)
    shown = _by_sequence(sequence_of)
    # A tile knows where these are, and it is not here: a long sequence does not bring in half the town.
    elsewhere = sequence_of.keys() - in_tiles - in_computed

    audit = audit_over(client, pd.concat([original, computed]).drop_duplicates("image_id"), near)
    sequence_of |= {image: sequence for image, sequence in audit.images.items() if sequence}
    listed: dict[str, list[str]] = {}
    first_seen = {s: "audit" for i in audit.images if (s := sequence_of.get(i))}
    first_seen |= {s: "tile" for i in in_tiles | in_computed if (s := sequence_of.get(i))}

    def listing(sequence: str) -> list[str]:
        return sequence_list(client, sequence, len(shown.get(sequence, ())))

    progress = report("sequences", len(first_seen))
    for sequence, ids in zip(first_seen, client.each(listing, first_seen), strict=True):
        listed[sequence] = ids
        sequence_of |= dict.fromkeys(ids, sequence)
        progress(len(listed))

    in_closure = {i for ids in listed.values() for i in ids} - elsewhere
    candidates = sorted(in_tiles | in_computed | in_closure | audit.images.keys())
    images = pd.DataFrame(
        {
            "image_id": pd.Series(candidates, dtype=object),
            "sequence_id": pd.Series([sequence_of.get(i) for i in candidates], dtype=object),
            "in_tiles": np.array([i in in_tiles for i in candidates], bool),
            "in_computed": np.array([i in in_computed for i in candidates], bool),
            "in_closure": np.array([i in in_closure for i in candidates], bool),
            "in_audit": np.array([i in audit.images for i in candidates], bool),
        }
    )
    inside = set(within(tiles.images, bounds)["image_id"])
    sequences = _sequence_rows(images, listed, first_seen, inside)
    figures = {
        "n_tiles": 2 * len(tiles.tiles),
        "n_audit_cells": audit.cells,
        "n_unverifiable": audit.unverifiable,
    }
    return Discovery(sequences, images, figures)


def sequence_list(client: Mapillary, sequence_id: str, shown: int) -> list[str]:
    """Ids of a sequence's images; asked again while the list is shorter than the ``shown`` images of the tiles.

    A list may stay shorter: tiles go on showing deleted images for a while. What any answer named is kept.
    """
    ids: dict[str, None] = {}
    for _ in range(LISTINGS):
        ids |= dict.fromkeys(client.image_ids(sequence_id))
        if ids and len(ids) >= shown:
            break
    return list(ids)


def audit_over(client: Mapillary, images: pd.DataFrame, bounds: Bounds) -> Audit:
    """Search a rectangle in cells planned from known images.

    Args:
        client: the API.
        images: the known images, with ``lon`` and ``lat``.
        bounds: the rectangle.
    """
    cells = audit_cells(images["lon"], images["lat"], bounds)
    answers = list(client.each(lambda planned: audit_cell(client, *planned), cells))
    found = {image: sequence for answer in answers for image, sequence in answer.images.items()}
    return Audit(found, sum(a.cells for a in answers), sum(a.unverifiable for a in answers))


def audit_cell(client: Mapillary, cell: Bounds, planned: int) -> Audit:
    """Search one cell at least twice, more often while it answers less than planned, in quarters if it is too dense.

    Answers are united, never replaced: the API leaves images out of them without saying so.
    """
    found: dict[str, str | None] = {}
    try:
        for ask in range(MOST_ASKS):
            rows = client.search(cell)
            found |= {str(r["id"]): str(r["sequence"]) if r.get("sequence") else None for r in rows if "id" in r}
            if ask + 1 >= ASKS and len(found) >= 0.98 * planned:
                break
    except ApiError as error:
        if kind_of(error) != "dense" and error.code != -2:
            raise
        if not can_split(cell):
            return Audit(found, 1, 1)
        return _united(found, [audit_cell(client, part, 0) for part in quarters(cell)])
    if len(found) > 2 * MAX_IMAGES and can_split(cell):
        return _united(found, [audit_cell(client, part, 0) for part in quarters(cell)])
    return Audit(found, 1, 0)


def _united(found: dict[str, str | None], parts: list[Audit]) -> Audit:
    for part in parts:
        found = found | part.images
    return Audit(found, 1 + sum(p.cells for p in parts), sum(p.unverifiable for p in parts))


def _sequence_of(tiles: Coverage) -> dict[str, str | None]:
    both = tiles.images
    return dict(zip(both["image_id"], both["sequence_id"].where(both["sequence_id"].notna(), None), strict=True))


def _by_sequence(sequence_of: dict[str, str | None]) -> dict[str, set[str]]:
    shown: dict[str, set[str]] = {}
    for image, sequence in sequence_of.items():
        if sequence:
            shown.setdefault(sequence, set()).add(image)
    return shown


def _sequence_rows(
    images: pd.DataFrame, listed: dict[str, list[str]], first_seen: dict[str, str], inside: set[str]
) -> pd.DataFrame:
    candidates = images.groupby("sequence_id")["image_id"].agg(set).to_dict()
    names = sorted(first_seen)
    return pd.DataFrame(
        {
            "sequence_id": pd.Series(names, dtype=object),
            "n_images": np.array([len(listed.get(s, ())) for s in names], int),
            "n_in_tiles": np.array([len(candidates.get(s, set()) & inside) for s in names], int),
            "n_in_box": np.array([len(candidates.get(s, ())) for s in names], int),
            "first_seen_in": pd.Series([first_seen[s] for s in names], dtype=object),
            "closed": np.array([bool(listed.get(s)) for s in names], bool),
        }
    )
