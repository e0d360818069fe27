"""Where Wikimedia says a category of Commons is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["found", "missing", "no_coordinate", "error"]


@dataclass(frozen=True)
class Found:
    """What is known of one category.

    Attributes:
        title: as it was asked for, ``Category:Happy Valley Racecourse``.
        status: whether there is a coordinate; ``missing`` is a category that does not exist.
        wikidata_id: the item that the coordinate is of, or that was asked.
        lon: longitude [deg], None unless the status is found.
        lat: latitude [deg], None unless the status is found.
        precision_deg: precision that the source states [deg].
        origin: geo_tags (the category's own), P625 (its item), P301 (the item's topic) or dump.
        reason: what went wrong, or which redirects were followed.
    """

    title: str
    status: Status
    wikidata_id: str | None = None
    lon: float | None = None
    lat: float | None = None
    precision_deg: float | None = None
    origin: str | None = None
    reason: str | None = None
