"""A scene as a tree of pieces, each of about the same number of Gaussians: near ones fine and small, far ones coarse.

The place is cut in two, and each half again, until a leaf holds few enough. A leaf has levels of detail, each with
half as many Gaussians as the one before; a piece at level k holds its leaves at their level k, so that it is no larger
than a leaf. Whoever draws takes a piece or its children. One piece is made at a time from its two children, so the
memory does not grow with the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from geo_assets.splats.compressed import morton_order
from geo_assets.splats.gaussians import Gaussians
from geo_assets.splats.lod import Level, extent, in_two, joined_levels

MOST_IN_PIECE = 50_000


@dataclass(frozen=True)
class Leaf:
    """A place that is not cut further.

    Args:
        number: which one, counted over the whole tree.
        low: lowest corner of what it covers [3, m].
        high: highest corner [3, m].
    """

    number: int
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """A node of the tree.

    Args:
        name: unique in the tree and fit for a file name.
        level: 0 for a leaf.
        leaves: the leaves below it, in the order of its Gaussians.
        counts: how many Gaussians it has for each leaf.
        error_m: how far things lie from where it draws them [m], root mean square; 0 for a leaf.
        children: the finer pieces that may be drawn in its stead.
    """

    name: str
    level: int
    leaves: tuple[Leaf, ...]
    counts: tuple[int, ...]
    error_m: float
    children: tuple[Piece, ...] = ()

    @property
    def low(self) -> npt.NDArray[np.float64]:
        """Lowest corner of what it covers [3, m]."""
        return np.min([leaf.low for leaf in self.leaves], axis=0)

    @property
    def high(self) -> npt.NDArray[np.float64]:
        """Highest corner [3, m]."""
        return np.max([leaf.high for leaf in self.leaves], axis=0)

    def walk(self) -> Iterator[Piece]:
        """This piece and all below it, the coarse before the fine."""
        yield self
        for child in self.children:
            yield from child.walk()


Made = tuple[Piece, Level]
"""A piece and its content."""


class Pyramid:
    """Makes the pieces of a scene, the finest first, and hands each over once.

    Args:
        write: takes each piece and its Gaussians.
        most: Gaussians in a piece.
    """

    def __init__(self, write: Callable[[Piece, Gaussians], None], most: int = MOST_IN_PIECE) -> None:
        self._write, self._most = write, most
        self._n_leaves = 0
        self._n_pieces: dict[int, int] = {}

    def over(self, gaussians: Gaussians) -> Made:
        """The tree over some Gaussians (at least one): all pieces are written, the top is returned."""
        if len(gaussians) <= self._most:
            return self._leaf(gaussians)
        first, second = in_two(gaussians)
        return self.above([self.over(gaussians[first]), self.over(gaussians[second])])

    def above(self, children: list[Made]) -> Made:
        """The piece above others."""
        level = 1 + max(piece.level for piece, _ in children)
        parts = [
            part.halved(level - piece.level) for piece, content in children for part in _by_leaf(content, piece.counts)
        ]
        content = joined_levels(parts)
        error_m = max(content.error_m, *(piece.error_m for piece, _ in children))
        leaves = tuple(leaf for piece, _ in children for leaf in piece.leaves)
        counts = tuple(len(part) for part in parts)
        return self._done(
            Piece(self._name(level), level, leaves, counts, error_m, tuple(piece for piece, _ in children)), content
        )

    def _leaf(self, gaussians: Gaussians) -> Made:
        ordered = gaussians[morton_order(gaussians.means)]
        leaf = Leaf(self._n_leaves, *extent(ordered))
        self._n_leaves += 1
        return self._done(Piece(self._name(0), 0, (leaf,), (len(ordered),), 0.0), Level.of(ordered))

    def _done(self, piece: Piece, content: Level) -> Made:
        self._write(piece, content.gaussians)
        return piece, content

    def _name(self, level: int) -> str:
        number = self._n_pieces.get(level, 0)
        self._n_pieces[level] = number + 1
        return f"{level}_{number}"


def _by_leaf(content: Level, counts: tuple[int, ...]) -> Iterator[Level]:
    ends = np.cumsum(counts)
    for end, count in zip(ends, counts, strict=True):
        some = slice(int(end) - count, int(end))
        yield Level(content.gaussians[some], content.spread_m2[some])


def put_aside(content: Level, path: Path) -> None:
    """Keep a piece's content in a file until its parent is made."""
    np.savez(path, rows=content.gaussians.rows, spread_m2=content.spread_m2)


def fetched(path: Path) -> Level:
    """What :func:`put_aside` kept."""
    with np.load(path, allow_pickle=False) as kept:
        return Level(Gaussians(kept["rows"]), kept["spread_m2"])
