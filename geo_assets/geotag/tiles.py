"""The exact spanning tree of more places than memory holds: tile by tile, each step of a tile a file.

The places are sorted along the Hilbert curve of S2 and cut into tiles of equal number. Then

1. ``cut`` writes the tiles, and boxes around every 128 places;
2. ``core_distances`` finds those of a tile, reading the tiles within reach of its places until none is left;
3. ``local_tree`` spans a tile, and contracts the edges that no other tile can gainsay;
4. ``search`` finds the shortest edges from what is left of a tile to other tiles, shorter than those known;
5. ``join`` joins each group by its shortest edge (Boruvka's rounds: 4 for each tile, then 5, until one group is left);
6. ``gather`` puts the edges into one file.

A step of a tile holds that tile, one other tile at a time and what all tiles share. Each writes its files under their
names at once and does nothing where they are, so that a killed run goes on, to the same bytes, and tiles can be
partitions of 2, of 3, and of 4 in a round.

Exactness. An edge within a tile that is in a minimum spanning tree is in the tile's own one, as any circle's longest
edge can go. An edge is certain where it is the shortest that leaves one of the two components that it joins: shortest
in the tile since the shorter ones were taken, and no longer than any edge to another tile, which is bounded by core
distances and by boxes. So does each round join groups by their very shortest edges, which are among the local trees'
edges and those searched for; a place remembers below which length it has none, which stays true as groups grow.

Memory, with P places in a tile, K min_samples, N places and C components that step 3 leaves: steps 2 to 4 hold up to
(300 + 8 K) P bytes, the other tile included, and 2 N for the boxes of all tiles; 4 and 5 hold 60 C, with C about N / 150
in tiles of 30,000 photo places and N / 700 in tiles of 100,000 or more. The cut sorts on disk within the memory it is given.
N places in one piece take 260 bytes each: tiles are needed from about 3.5 million places a GB of memory on, 230 million
for 64 GB. Below that one piece takes a quarter of the time. Of a tree so large the labels still need all edges at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from geo_assets.errors import ConfigError, SourceError
from geo_assets.files import replacing, written_beside
from geo_assets.geotag.clustering import arc_m, unit_sphere
from geo_assets.geotag.s2 import cell_ids
from geo_assets.geotag.spanning import LEAF, Floats
from geo_assets.geotag.tile_search import (
    RUN,
    Runs,
    Tree,
    certain_edges,
    choose,
    gap_outside,
    merge_groups,
    node_groups,
    reached,
    take_neighbours,
    take_shortest,
    uniform,
)
from geo_assets.geotag.tile_search import local_tree as _tree_of

_READ_AT_ONCE = 1 << 18
_EDGE = {"a": pa.int64(), "b": pa.int64(), "square": pa.float64()}
_OPEN = _EDGE | {"one": pa.int64(), "other": pa.int64()}

Columns = dict[str, npt.NDArray]


def spanning_tree(
    points: Sequence[Path], folder: Path, *, min_samples: int, tile_points: int = 1_000_000, memory_gb: float = 4
) -> Path:
    """All steps, one after another.

    Args:
        points: parquet files with columns ``lon``, ``lat`` [deg]; places are numbered from 0 through all of them.
        folder: of the steps' files; a run that was killed goes on where it is given the same one.
        min_samples: the core distance of a place is that to its ``min_samples``-th neighbour, itself not counted.
        tile_points: places of a tile.
        memory_gb: for sorting.

    Returns:
        A parquet file of the N - 1 edges: ``a``, ``b``, ``arc_m``.

    Raises:
        ConfigError: no neighbour is asked for, a tile is empty, or the folder holds another run.
        SourceError: a place is not finite.
    """
    if min_samples < 1:
        raise ConfigError(f"min_samples is {min_samples}; a place is dense by 1 neighbour or more.")
    n_tiles = cut(points, folder, tile_points, memory_gb=memory_gb)
    for tile in range(n_tiles):
        core_distances(folder, tile, min_samples)
    for tile in range(n_tiles):
        local_tree(folder, tile)
    count = 0
    while join(folder, count) > 1:
        for tile in range(n_tiles):
            search(folder, tile, count)
        count += 1
    return gather(folder)


def cut(points: Sequence[Path], folder: Path, tile_points: int, *, memory_gb: float = 4) -> int:
    """Sort places along the curve, write the tiles, and return how many there are."""
    import duckdb

    if tile_points < 1:
        raise ConfigError(f"A tile of {tile_points} places is none; allow 1 or more.")
    wanted = {"files": [[path.name, path.stat().st_size] for path in points], "tile_points": tile_points}
    if (folder / "cut.json").exists():
        known = json.loads((folder / "cut.json").read_text())
        if known["of"] != wanted:
            raise ConfigError(f"{folder} holds the tiles of other places or of another size; choose an empty folder.")
        return int(known["tiles"])
    keyed, scratch = folder / "keyed.parquet", folder / "scratch"
    with written_beside(keyed) as path:
        n = _write_keys(points, path)
    low: list[Floats] = []
    high: list[Floats] = []
    of_tile: list[npt.NDArray[np.int32]] = []
    with duckdb.connect() as con:
        con.execute(f"set memory_limit = '{memory_gb}GB'")
        con.execute("set temp_directory = ?", [str(scratch)])
        query = "select row, lon, lat from read_parquet(?) order by cell, row"
        batches = con.sql(query, params=[str(keyed)]).to_arrow_reader(_READ_AT_ONCE)
        for tile, part in enumerate(_pieces(batches, tile_points)):
            xyz = unit_sphere(part["lon"], part["lat"])
            _write(folder / "tiles" / _name(tile), row=part["row"], x=xyz[:, 0], y=xyz[:, 1], z=xyz[:, 2])
            lows, highs = Tree.of(xyz).run_boxes()
            low.append(lows)
            high.append(highs)
            of_tile.append(np.full(len(lows), tile, np.int32))
    lows, highs = np.concatenate([np.empty((0, 3)), *low]), np.concatenate([np.empty((0, 3)), *high])
    boxes = {f"{end}_{d}": box[:, d] for end, box in (("low", lows), ("high", highs)) for d in range(3)}
    _write(folder / "runs.parquet", tile=np.concatenate([np.empty(0, np.int32), *of_tile]), **boxes)
    with replacing(folder / "cut.json") as sink:
        sink.write(json.dumps({"of": wanted, "points": n, "tiles": len(low)}).encode())
    keyed.unlink()
    return len(low)


def core_distances(folder: Path, tile: int, min_samples: int) -> Path:
    """Squared core distances of the places of a tile, as squared chords of the unit sphere."""
    out = folder / f"cores-{min_samples}" / _name(tile)
    n = json.loads((folder / "cut.json").read_text())["points"]
    others = sorted(path.name for path in folder.glob("cores-*"))
    if others and others != [out.parent.name]:
        raise ConfigError(f"{folder} holds core distances of another min_samples; choose an empty folder.")
    if out.exists():
        return out
    xyz, runs = _xyz(folder, tile), _runs(folder)
    nearest = np.full((len(xyz), max(min(min_samples, n - 1), 1)), np.inf)
    asking = np.arange(len(xyz))
    own = Tree.of(xyz)
    take_neighbours(own.points, own.low, own.high, xyz, asking, True, nearest)
    nobody = np.full(len(runs.low), -3, np.int32)  # any place is a neighbour, whatever its group
    way = _Way(runs, tile, xyz, np.zeros(len(xyz), np.int32), nobody)
    while (other := way.next(asking, nearest[asking, -1])) is not None:
        asking = way.asking
        there = Tree.of(_xyz(folder, other))
        take_neighbours(there.points, there.low, there.high, xyz, asking, False, nearest)
    return _write(out, square=nearest[:, -1])


def local_tree(folder: Path, tile: int) -> Path:
    """The tree of a tile by the core distances of all places: edges that are certain, and those that may yet go."""
    out = folder / "open" / _name(tile)
    if out.exists():
        return out
    row, xyz, core, runs = (
        _read(folder / "tiles" / _name(tile), "row")[0],
        _xyz(folder, tile),
        _core(folder, tile),
        _runs(folder),
    )
    a, b, squares = _tree_of(Tree.of(xyz), core)
    order = np.argsort(squares, kind="stable")
    a, b, squares = a[order], b[order], squares[order]
    least = np.empty(len(xyz))
    gap_outside(runs.low, runs.high, runs.node_tile, xyz, tile, least)
    least = np.maximum(least, core)
    certain, component = certain_edges(a, b, squares, least.copy())
    _write(folder / "least" / _name(tile), least=least)
    _write(folder / "components" / _name(tile), component=component)
    pairs = np.unique(np.stack([np.arange(len(xyz)) // RUN, component], axis=1), axis=0)
    _write(folder / "held" / _name(tile), run=pairs[:, 0], component=pairs[:, 1])
    _write(folder / "certain" / _name(tile), a=row[a[certain]], b=row[b[certain]], square=squares[certain])
    left = ~certain
    ends = {"one": component[a[left]].astype(np.int64), "other": component[b[left]].astype(np.int64)}
    return _write(out, a=row[a[left]], b=row[b[left]], square=squares[left], **ends)


def search(folder: Path, tile: int, count: int) -> Path:
    """Edges from the groups of a tile to other tiles that are shorter than those known, in a round."""
    out = folder / f"round-{count:03d}" / _name(tile)
    if out.exists():
        return out
    first = _first_components(folder)
    group_of, known = _read(folder / "groups" / f"{count:03d}.parquet", "group", "square")
    row, xyz, core = _read(folder / "tiles" / _name(tile), "row")[0], _xyz(folder, tile), _core(folder, tile)
    component = _components(folder, tile) + first[tile]
    group, least = group_of[component], _least(folder, tile, count)
    numbers, at, own = np.unique(group, return_index=True, return_inverse=True)
    limit = known[component[at]]
    asked = np.flatnonzero(least < limit[own])
    # Who may have the shortest edges asks first, and spares the others of the group the search.
    asking = asked = asked[np.argsort(least[asked], kind="stable")]
    found: dict[int, tuple[int, int, int, int]] = {}
    runs = _runs(folder)
    way = _Way(runs, tile, xyz, group, uniform(_run_groups(folder, group_of), len(runs.low) // 2))
    while len(asking) and (other := way.next(asking, limit[own[asking]])) is not None:
        asking = way.asking
        there = Tree.of(_xyz(folder, other))
        components = _components(folder, other) + first[other]
        here, over = np.full((2, len(numbers)), -1)
        groups = _padded(group_of[components], len(there.points), -1)
        cores = _padded(_core(folder, other), len(there.points), np.inf)
        take_shortest(
            there.points, there.low, there.high, cores, groups, node_groups(there, groups),
            xyz, core, group, own, asking, limit, here, over,
        )  # fmt: skip
        if (over >= 0).any():
            rows = _read(folder / "tiles" / _name(other), "row")[0]
            for g in np.flatnonzero(over >= 0).tolist():
                i, j = here[g], over[g]
                found[g] = int(row[i]), int(rows[j]), int(component[i]), int(components[j])
    if len(asked):
        least[asked] = np.maximum(least[asked], limit[own[asked]])
        _write(folder / f"least-{count:03d}" / _name(tile), least=least)
    edges = np.array([found[g] for g in sorted(found)], np.int64).reshape(-1, 4).T
    ends = {"one": edges[2], "other": edges[3]}
    return _write(out, a=edges[0], b=edges[1], square=limit[sorted(found)], **ends)


def join(folder: Path, count: int) -> int:
    """Groups before a round, and the shortest edge known of each: what the round before found has joined them.

    Returns:
        How many groups are left.
    """
    out = folder / "groups" / f"{count:03d}.parquet"
    if out.exists():
        return int(_read(out, "group")[0].max(initial=-1)) + 1
    if count == 0:
        group = np.arange(_number_components(folder), dtype=np.int32)
    else:
        before = _read(folder / "groups" / f"{count - 1:03d}.parquet", "group")[0]
        _, edges = _shortest(folder, before, count)
        used, renamed = merge_groups(before[edges["one"]], before[edges["other"]], int(before.max(initial=-1)) + 1)
        _write(folder / "chosen" / f"{count - 1:03d}.parquet", **{name: edges[name][used] for name in _EDGE})
        group = renamed[before]
    best, _ = _shortest(folder, group, count)
    _write(out, group=group, square=best[group])
    return int(group.max(initial=-1)) + 1


def gather(folder: Path) -> Path:
    """All edges of the tree in one file: those certain in their tiles, then those of the rounds."""
    out = folder / "tree.parquet"
    if out.exists():
        return out
    schema = pa.schema({"a": pa.int64(), "b": pa.int64(), "arc_m": pa.float64()})
    with replacing(out) as sink, pq.ParquetWriter(sink, schema) as writer:
        for path in [*sorted((folder / "certain").glob("*.parquet")), *sorted((folder / "chosen").glob("*.parquet"))]:
            a, b, squares = _read(path, *_EDGE)
            writer.write_table(pa.table({"a": a, "b": b, "arc_m": arc_m(np.sqrt(squares))}, schema))
    return out


class _Way:
    """The order in which a tile reads others: the nearest first of those that one of its places still reaches."""

    def __init__(
        self, runs: Runs, tile: int, xyz: Floats, group: npt.NDArray[np.int32], node_group: npt.NDArray
    ) -> None:
        self.runs, self.xyz, self.group, self.node_group = runs, xyz, group, node_group
        n_tiles = int(runs.tile.max(initial=-1)) + 1
        self.done = np.zeros(n_tiles, np.bool_)
        self.done[tile] = True
        base = len(runs.low) // 2
        low, high = np.full((n_tiles, 3), np.inf), np.full((n_tiles, 3), -np.inf)
        np.minimum.at(low, runs.tile, runs.low[base : base + len(runs.tile)])
        np.maximum.at(high, runs.tile, runs.high[base : base + len(runs.tile)])
        gaps = np.maximum(np.maximum(low - high[tile], low[tile] - high), 0)
        self.order = np.lexsort((np.abs(np.arange(n_tiles) - tile), (gaps**2).sum(axis=1)))

    def next(self, asking: npt.NDArray[np.int64], limit: Floats) -> int | None:
        """The next tile to read, if any; ``asking`` are then those who reach one."""
        flags = np.zeros(len(self.done), np.bool_)
        runs = self.runs
        self.asking = reached(
            runs.low, runs.high, runs.node_tile, self.node_group, self.xyz, self.group, asking, limit, self.done, flags
        )
        left = self.order[flags[self.order]]
        if not len(left):
            return None
        self.done[left[0]] = True
        return int(left[0])


def _write_keys(points: Sequence[Path], out: Path) -> int:
    schema = pa.schema({"cell": pa.uint64(), "row": pa.int64(), "lon": pa.float64(), "lat": pa.float64()})
    n = 0
    with pq.ParquetWriter(out, schema) as writer:
        for path in points:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_READ_AT_ONCE, columns=["lon", "lat"]):
                    lon, lat = (
                        batch[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("lon", "lat")
                    )
                    wrong = np.flatnonzero(~(np.isfinite(lon) & np.isfinite(lat)))
                    if len(wrong):
                        raise SourceError(
                            f"Place {n + int(wrong[0])} ({path.name}) has no finite coordinates; correct it or leave it out."
                        )
                    rows = np.arange(n, n + len(lon))
                    columns = {"cell": cell_ids(lon, lat), "row": rows, "lon": lon, "lat": lat}
                    writer.write_table(pa.table(columns, schema))
                    n += len(lon)
    return n


def _pieces(batches: pa.RecordBatchReader, size: int) -> Iterator[Columns]:
    """Columns of batches, cut anew so that each has ``size`` rows but the last."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, size - rows)
            waiting.append(part)
            rows += part.num_rows
            batch = batch.slice(part.num_rows)
            if rows == size:
                yield _columns(waiting)
                waiting, rows = [], 0
    if rows:
        yield _columns(waiting)


def _columns(batches: list[pa.RecordBatch]) -> Columns:
    table = pa.Table.from_batches(batches)
    return {name: table[name].to_numpy() for name in table.column_names}


def _shortest(folder: Path, group: npt.NDArray[np.int32], count: int) -> tuple[Floats, Columns]:
    """Shortest edge known of each group before a round: squared lengths [G], and those edges, each once, by length."""
    n_groups = int(group.max(initial=-1)) + 1
    best, chosen = np.full(n_groups, np.inf), np.full(n_groups, -1)
    first = 0
    for edges in _open_edges(folder, count):
        choose(edges["one"], edges["other"], edges["square"], group, best, chosen, first)
        first += len(edges["square"])
    wanted = np.unique(chosen[chosen >= 0])
    parts: list[Columns] = [{name: np.empty(0, kind.to_pandas_dtype()) for name, kind in _OPEN.items()}]
    first = 0
    for edges in _open_edges(folder, count):
        stop = first + len(edges["square"])
        here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, stop)] - first
        parts.append({name: values[here] for name, values in edges.items()})
        first = stop
    return best, {name: np.concatenate([part[name] for part in parts]) for name in _OPEN}


def _open_edges(folder: Path, count: int) -> Iterator[Columns]:
    """Edges that may be in the tree, file by file: those left in the tiles, and those found before a round."""
    first = _first_components(folder)
    for tile in range(len(first)):
        edges = dict(zip(_OPEN, _read(folder / "open" / _name(tile), *_OPEN), strict=True))
        yield edges | {end: edges[end] + first[tile] for end in ("one", "other")}
    for before in range(count):
        for tile in range(len(first)):
            yield dict(zip(_OPEN, _read(folder / f"round-{before:03d}" / _name(tile), *_OPEN), strict=True))


def _number_components(folder: Path) -> int:
    """Number the components of all tiles, and say which of them each run holds."""
    n_tiles = json.loads((folder / "cut.json").read_text())["tiles"]
    runs = _read(folder / "runs.parquet", "tile")[0]
    first, runs_held, held = [], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    n = 0
    for tile in range(n_tiles):
        run, component = _read(folder / "held" / _name(tile), "run", "component")
        first.append(n)
        runs_held.append(run + np.searchsorted(runs, tile))
        held.append(component + n)
        n += int(component.max()) + 1
    _write(folder / "held.parquet", run=np.concatenate(runs_held), component=np.concatenate(held))
    _write(folder / "first.parquet", component=np.array(first, np.int64))
    return n


def _run_groups(folder: Path, group_of: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The group that all places of a run belong to, -1 where they differ."""
    run, component = _read(folder / "held.parquet", "run", "component")
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    groups = group_of[component]
    low, high = np.minimum.reduceat(groups, starts), np.maximum.reduceat(groups, starts)
    return np.where(low == high, low, -1).astype(np.int32)


def _first_components(folder: Path) -> npt.NDArray[np.int64]:
    return _read(folder / "first.parquet", "component")[0]


def _least(folder: Path, tile: int, count: int) -> Floats:
    """Squared lengths below which places have no edge to another group in another tile, as the last search left them."""
    searched = (folder / f"least-{before:03d}" / _name(tile) for before in reversed(range(count)))
    path = next((path for path in searched if path.exists()), folder / "least" / _name(tile))
    return _read(path, "least")[0]


def _xyz(folder: Path, tile: int) -> Floats:
    return np.stack(_read(folder / "tiles" / _name(tile), "x", "y", "z"), axis=1)


def _core(folder: Path, tile: int) -> Floats:
    return _read(next(folder.glob("cores-*")) / _name(tile), "square")[0]


def _components(folder: Path, tile: int) -> npt.NDArray[np.int32]:
    return _read(folder / "components" / _name(tile), "component")[0]


def _runs(folder: Path) -> Runs:
    columns = _read(folder / "runs.parquet", "tile", *(f"{end}_{d}" for end in ("low", "high") for d in range(3)))
    return Runs.of(np.stack(columns[1:4], axis=1), np.stack(columns[4:], axis=1), columns[0])


def _padded(values: npt.NDArray, n_leaves: int, filler: float) -> npt.NDArray:
    full = np.full(n_leaves * LEAF, filler, values.dtype)
    full[: len(values)] = values
    return full


def _name(tile: int) -> str:
    return f"{tile:06d}.parquet"


def _read(path: Path, *names: str) -> list[npt.NDArray]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        table = file.read(columns=list(names), use_threads=False)
    return [table[name].to_numpy().copy() for name in names]  # arrow's own memory is read-only


def _write(path: Path, **columns: npt.NDArray) -> Path:
    with replacing(path) as sink:
        pq.write_table(pa.table(columns), sink)
    return path
