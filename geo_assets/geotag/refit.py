"""Whether enough photos came in since the last version of the clustering to make another one worthwhile."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from geo_assets.geotag.model import POINTER, read_card
from geo_assets.lake import Lake
from geo_assets.settings import Automation

_SETS = ("placing_2016", "google_landmark", "flickr_geotag")


@dataclass(frozen=True)
class News:
    """Photos since a version.

    Attributes:
        version: the version in force.
        published_at: when it was published, UTC.
        n_new: photos that came in since.
        n_then: photos in the table when the version was made.
    """

    version: str
    published_at: dt.datetime
    n_new: int
    n_then: int

    def is_enough(self, options: Automation) -> bool:
        """Whether another version is worthwhile."""
        return self.n_new >= min(options.refit_photos, max(1.0, options.refit_share * self.n_then))

    def told(self, options: Automation) -> str:
        """The figures in a sentence."""
        share = self.n_new / max(self.n_then, 1)
        return (
            f"{self.n_new:,} new photos since version {self.version} of {self.published_at:%Y-%m-%d}, {share:.1%} of "
            f"{self.n_then:,}; another version is made at {options.refit_share:.0%} or {options.refit_photos:,}."
        )


def news(lake: Lake, key: str) -> News | None:
    """What came in since the version of the clustering that is in force; None where there is none.

    Args:
        lake: holds the photo sets, the harvests and the models.
        key: folder of the models.
    """
    pointer = f"{key}/{POINTER}"
    if not lake.exists(pointer):
        return None
    at = lake.modified(pointer)
    published_at = dt.datetime.fromtimestamp(at, dt.UTC)
    with lake.connect("image_metadata") as con:
        con.execute("set timezone = 'UTC'")
        asked = "select count(*) from image_metadata where tombstoned_at is null and first_seen > ?"
        n_new = int(con.execute(asked, [published_at]).fetchall()[0][0])
    # A set that was read again counts as far as it has grown.
    n_new += sum(_grown(lake, name, at) for name in _SETS)
    n_then = lake.rows("geotag_combined") if lake.has("geotag_combined") else 0
    return News(str(read_card(lake, key)["version"]), published_at, n_new, n_then)


def _grown(lake: Lake, name: str, since: float) -> int:
    parts = [p for p in lake.partitions(name) if lake.written_at(name, **p) > since]
    if not parts:
        return 0
    n_now = sum(lake.rows(name, **p) for p in lake.partitions(name))
    with lake.connect("geotag_combined") as con:
        asked = "select count(*) from geotag_combined where source = ?"
        return max(0, n_now - int(con.execute(asked, [name]).fetchall()[0][0]))
