"""Faults of an imagery API, drawn by seed: the same requests meet the same faults in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from geo_assets.demo.server import GRAPH_KINDS, KINDS
from geo_assets.demo.world import World

_LISTS = frozenset({"search", "images", "sequence"})
_RECORDS = frozenset({"search", "images", "entity", "entities"})
_FILE, _TILE = frozenset({"file"}), frozenset({"tile"})

APPLIES: dict[str, frozenset[str]] = {
    "limited": GRAPH_KINDS,  # 403 or 429 with code 4
    "server_error": KINDS,  # 500 with code 2, or 502, 503, 504 with a web page
    "timeout": GRAPH_KINDS,  # 400 with code -2
    "reset": KINDS,  # the connection breaks before the answer or in the middle of it
    "slow": KINDS,  # the answer takes Behaviour.slow_s longer
    "half": GRAPH_KINDS,  # 200 and the first half of the JSON
    "html": KINDS,  # 200 and a web page
    "empty": _LISTS,  # 200 and {"data":[]} although there are rows
    "partial": _LISTS | {"entities"},  # 200 without 10 to 20 % of the rows
    "without_thumb": _RECORDS,  # about half of the images lack their thumb addresses
    "empty_file": _FILE,  # 200 and no bytes
    "truncated_file": _FILE,  # 200 and a JPEG that ends too early, by some bytes or by about half
    "expired": _FILE,  # 403 "URL signature expired" although the address is fresh
    "tile_not_found": _TILE,  # 404 for a tile that exists
    "blocked": _TILE,  # 302 to a login page, for all tiles until a day after the last refused request
}
"""The kinds of requests that each fault can meet."""

ALL = frozenset(APPLIES)
"""Names of all faults that are drawn."""


@dataclass(frozen=True)
class Faults:
    """Faults by chance, for ``Behaviour.fault``: what a request meets depends on its kind and its number alone.

    Attributes:
        rates: share of the requests that meet each fault, among the kinds to which it applies; a request meets one
            fault at most.
        seed: of the draws.

    Raises:
        ValueError: an unknown name, a share below 0, or shares of one kind that exceed 1 together.
    """

    rates: Mapping[str, float]
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rates) - ALL)
        if unknown:
            raise ValueError(f"No fault is named {', '.join(unknown)}. There are {', '.join(sorted(ALL))}.")
        for name, rate in self.rates.items():
            if not rate >= 0:
                raise ValueError(f"The rate of {name} is {rate}; a share of requests is 0 or more.")
        for kind in sorted(KINDS):
            total = sum(rate for name, rate in self.rates.items() if kind in APPLIES[name])
            if total > 1 + 1e-9:
                raise ValueError(f"The rates for requests of kind {kind} add up to {total:.2f}. Lower them below 1.")

    def __call__(self, kind: str, n: int) -> str | None:
        """The fault that request number ``n`` of its kind meets, None for none."""
        digest = hashlib.blake2b(f"{self.seed} {kind} {n}".encode(), digest_size=8).digest()
        left = int.from_bytes(digest, "big") / 2**64
        for name, rate in self.rates.items():
            if kind in APPLIES[name]:
                left -= rate
                if left < 0:
                    return name
        return None


def mix(share: float, seed: int = 0, *, blocked: bool = False) -> Faults:
    """All faults at once, each at this share of the requests that it can meet.

    Args:
        share: 0 to 0.1; a search can meet ten of the faults.
        seed: of the draws.
        blocked: whether tiles may be blocked too. By default they are not: a block lasts a day, and no harvest of
            tiles that meets it can be complete on that day.
    """
    return Faults({name: share for name in sorted(ALL) if blocked or name != "blocked"}, seed)


def lagging(world: World, sequences: float = 0.05, images: float = 0.02, seed: int = 0) -> frozenset[str]:
    """Images that the tiles do not show yet, for ``Behaviour.absent_from_tiles``.

    Args:
        world: the images.
        sequences: share of the sequences that are absent as a whole.
        images: share of the images of other sequences that are absent one by one.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    names = list(world.sequences)
    late = {name for name, drawn in zip(names, rng.random(len(names)), strict=True) if drawn < sequences}
    drawn = rng.random(len(world.images))
    return frozenset(
        image.id for image, d in zip(world.images, drawn, strict=True) if image.sequence_id in late or d < images
    )
