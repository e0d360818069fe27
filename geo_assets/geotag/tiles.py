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
partitions of 2, of 3, and of 4 in a round (``tile_tables`` makes them so of 2 and 3). All are in a lake of their own, whose
root is the folder of the run.

Exactness. An edge within a tile that is in a minimum spanning tree is in the tile's own one, as any circle's longest
edge can go. An edge is certain where it is the shortest that leaves one of the two components that it joins: shortest
in the tile since the shorter ones were taken, and no longer than any edge to another tile, which is bounded by core
distances and by boxes. So does each round join groups by their very shortest edges, which are among the local trees'
edges and those searched for; a place remembers below which length it has none, which stays true as groups grow.

Memory, with P places in a tile, K min_samples, N places and C components that step 3 leaves: steps 2 to 4 hold up to
(300 + 8 K) P bytes, the other tile included, and 2 N for the boxes of all tiles; 4 and 5 hold 60 C, with C about N / 150
in tiles of 30,000 photo places and N / 700 in tiles of 100,000 or more. The cut sorts on disk within the memory it is given.
N places in one piece take 230 bytes each: tiles are needed from about 4 million places a GB of memory on, 250 million
for 64 GB. Below that one piece takes a quarter of the time. The labels of a tree still need all edges at once, 90 bytes each.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from geo_assets.errors import ConfigError, SourceError
from geo_assets.geotag.clustering import arc_m, unit_sphere
from geo_assets.geotag.s2 import cell_ids
from geo_assets.geotag.spanning import LEAF, Floats, merge_groups
from geo_assets.geotag.tile_search import (
    RUN,
    Runs,
    Tree,
    certain_edges,
    choose,
    gap_outside,
    node_groups,
    reached,
    take_neighbours,
    take_shortest,
    uniform,
)
from geo_assets.geotag.tile_search import local_tree as _tree_of
from geo_assets.lake import Lake

CUT = "cut.json"
_READ_AT_ONCE = 1 << 18
_EDGE = {"a": pa.int64(), "b": pa.int64(), "square": pa.float64()}
_OPEN = _EDGE | {"one": pa.int64(), "other": pa.int64()}

Columns = dict[str, npt.NDArray]


def spanning_tree(points: Sequence[Path], store: Lake, *, min_samples: int, n_tiles: int, memory_gb: float = 4) -> str:
    """All steps, one after another.

    Args:
        points: parquet files with columns ``lon``, ``lat`` [deg]; places are numbered from 0 through all of them.
        store: a folder for the steps' files; a run that was killed goes on where it is given the same one.
        min_samples: the core distance of a place is that to its ``min_samples``-th neighbour, itself not counted.
        n_tiles: tiles that the places are cut into.
        memory_gb: for sorting.

    Returns:
        Name in the folder of a parquet file of the N - 1 edges: ``a``, ``b``, ``arc_m``.

    Raises:
        ConfigError: no neighbour or no tile is asked for, or the folder holds another run.
        SourceError: a place is not finite.
    """
    n_tiles = cut(points, store, n_tiles, min_samples, memory_gb=memory_gb)
    for tile in range(n_tiles):
        core_distances(store, tile)
    for tile in range(n_tiles):
        local_tree(store, tile)
    return merge(store)


def merge(store: Lake) -> str:
    """Steps 4 to 6, for which 2 and 3 must have been taken for all tiles: the tree, as of :func:`spanning_tree`."""
    n_tiles, count = len(read_cut(store)["sizes"]), 0
    while join(store, count) > 1:
        for tile in range(n_tiles):
            search(store, tile, count)
        count += 1
    return gather(store)


def cut(points: Sequence[Path], store: Lake, n_tiles: int, min_samples: int, *, memory_gb: float = 4) -> int:
    """Sort places along the curve, write the tiles, and return how many there are: as asked for, but none is empty."""
    import duckdb

    if n_tiles < 1:
        raise ConfigError(f"{n_tiles} tiles hold no place; allow 1 or more.")
    if min_samples < 1:
        raise ConfigError(f"min_samples is {min_samples}; a place is dense by 1 neighbour or more.")
    wanted = {"places": place_hash(points), "tiles": n_tiles, "min_samples": min_samples}
    if store.exists(CUT):
        known = read_cut(store)
        if known["of"] != wanted:
            raise ConfigError(
                f"{store.root} holds the tiles of other places, or other tiles, or was begun with another min_samples; "
                "choose an empty folder."
            )
        return len(known["sizes"])
    low, high, of_tile = [np.empty((0, 3))], [np.empty((0, 3))], [np.empty(0, np.int32)]
    if store.is_local:
        Path(store.root).mkdir(parents=True, exist_ok=True)
    # The sorting needs the space of the tiles again: on a disk, where they are.
    with (
        tempfile.TemporaryDirectory(prefix="cut_", dir=store.root if store.is_local else None) as scratch,
        duckdb.connect() as con,
    ):
        n = _write_keys(points, Path(scratch) / "keyed.parquet")
        con.execute(f"set memory_limit = '{memory_gb}GB'")
        con.execute("set temp_directory = ?", [scratch])
        query = "select row, lon, lat from read_parquet(?) order by cell, row"
        batches = con.sql(query, params=[f"{scratch}/keyed.parquet"]).to_arrow_reader(_READ_AT_ONCE)
        n_full = min(n_tiles, n)
        sizes = np.diff(np.arange(n_full + 1) * n // max(n_full, 1)).tolist()
        for tile, part in enumerate(_pieces(batches, sizes)):
            xyz = unit_sphere(part["lon"], part["lat"])
            _write(store, f"tiles/{_name(tile)}", row=part["row"], x=xyz[:, 0], y=xyz[:, 1], z=xyz[:, 2])
            lows, highs = Tree.of(xyz).run_boxes()
            low.append(lows)
            high.append(highs)
            of_tile.append(np.full(len(lows), tile, np.int32))
    boxes = {f"{end}_{d}": np.concatenate(box)[:, d] for end, box in (("low", low), ("high", high)) for d in range(3)}
    _write(store, "runs.parquet", tile=np.concatenate(of_tile), **boxes)
    store.put_bytes(CUT, json.dumps({"of": wanted, "sizes": sizes}).encode())
    return n_full


def read_cut(store: Lake) -> dict[str, Any]:
    """What :func:`cut` made: ``sizes`` of the tiles, and ``of``: the hash of the places, the tiles asked for, ``min_samples``.

    Raises:
        SourceError: there are no tiles.
    """
    if not store.exists(CUT):
        raise SourceError(f"{store.root} holds no tiles; cut them first.")
    return json.loads(store.get_bytes(CUT))


def place_hash(points: Sequence[Path]) -> str:
    """SHA-256 of longitudes and latitudes, little-endian; the files are read piece by piece."""
    columns = {"lon": hashlib.sha256(), "lat": hashlib.sha256()}
    for batch in _batches(points):
        for name, digest in columns.items():
            digest.update(batch[name].astype("<f8", copy=False).tobytes())
    return hashlib.sha256(b"".join(digest.digest() for digest in columns.values())).hexdigest()


def core_distances(store: Lake, tile: int) -> str:
    """Squared core distances of the places of a tile, as squared chords of the unit sphere."""
    out = f"cores/{_name(tile)}"
    if store.exists(out):
        return out
    made = read_cut(store)
    n, min_samples = sum(made["sizes"]), made["of"]["min_samples"]
    xyz, runs = _xyz(store, tile), _runs(store)
    nearest = np.full((len(xyz), max(min(min_samples, n - 1), 1)), np.inf)
    asking = np.arange(len(xyz))
    own = Tree.of(xyz)
    take_neighbours(own.points, own.low, own.high, xyz, asking, True, nearest)
    nobody = np.full(len(runs.low), -3, np.int32)  # any place is a neighbour, whatever its group
    way = _Way(runs, tile, xyz, np.zeros(len(xyz), np.int32), nobody)
    while (other := way.next(asking, nearest[asking, -1])) is not None:
        asking = way.asking
        there = Tree.of(_xyz(store, other))
        take_neighbours(there.points, there.low, there.high, xyz, asking, False, nearest)
    return _write(store, out, square=nearest[:, -1])


def local_tree(store: Lake, tile: int) -> str:
    """The tree of a tile by the core distances of all places: edges that are certain, and those that may yet go."""
    out = f"open/{_name(tile)}"
    if store.exists(out):
        return out
    row, xyz = read(store, f"tiles/{_name(tile)}", "row")[0], _xyz(store, tile)
    core, runs = _core(store, tile), _runs(store)
    a, b, squares = _tree_of(Tree.of(xyz), core)
    order = np.argsort(squares, kind="stable")
    a, b, squares = a[order], b[order], squares[order]
    least = np.empty(len(xyz))
    gap_outside(runs.low, runs.high, runs.node_tile, xyz, tile, least)
    least = np.maximum(least, core)
    certain, component = certain_edges(a, b, squares, least.copy())
    _write(store, f"least/{_name(tile)}", least=least)
    _write(store, f"components/{_name(tile)}", component=component)
    pairs = np.unique(np.stack([np.arange(len(xyz)) // RUN, component], axis=1), axis=0)
    _write(store, f"held/{_name(tile)}", run=pairs[:, 0], component=pairs[:, 1])
    _write(store, f"certain/{_name(tile)}", a=row[a[certain]], b=row[b[certain]], square=squares[certain])
    left = ~certain
    ends = {"one": component[a[left]].astype(np.int64), "other": component[b[left]].astype(np.int64)}
    return _write(store, out, a=row[a[left]], b=row[b[left]], square=squares[left], **ends)


def search(store: Lake, tile: int, count: int) -> str:
    """Edges from the groups of a tile to other tiles that are shorter than those known, in a round."""
    out = f"round-{count:03d}/{_name(tile)}"
    if store.exists(out):
        return out
    first = _first_components(store)
    group_of, known = read(store, f"groups/{count:03d}.parquet", "group", "square")
    row, xyz, core = read(store, f"tiles/{_name(tile)}", "row")[0], _xyz(store, tile), _core(store, tile)
    component = _components(store, tile) + first[tile]
    group, least = group_of[component], _least(store, tile, count)
    numbers, at, own = np.unique(group, return_index=True, return_inverse=True)
    limit = known[component[at]]
    asked = np.flatnonzero(least < limit[own])
    # Who may have the shortest edges asks first, and spares the others of the group the search.
    asking = asked = asked[np.argsort(least[asked], kind="stable")]
    found: dict[int, tuple[int, int, int, int]] = {}
    runs = _runs(store)
    way = _Way(runs, tile, xyz, group, uniform(_run_groups(store, group_of), len(runs.low) // 2))
    while len(asking) and (other := way.next(asking, limit[own[asking]])) is not None:
        asking = way.asking
        there = Tree.of(_xyz(store, other))
        components = _components(store, other) + first[other]
        here, over = np.full((2, len(numbers)), -1)
        groups = _padded(group_of[components], len(there.points), -1)
        cores = _padded(_core(store, other), len(there.points), np.inf)
        take_shortest(
            there.points, there.low, there.high, cores, groups, node_groups(there, groups),
            xyz, core, group, own, asking, limit, here, over,
        )  # fmt: skip
        if (over >= 0).any():
            rows = read(store, f"tiles/{_name(other)}", "row")[0]
            for g in np.flatnonzero(over >= 0).tolist():
                i, j = here[g], over[g]
                found[g] = int(row[i]), int(rows[j]), int(component[i]), int(components[j])
    if len(asked):
        least[asked] = np.maximum(least[asked], limit[own[asked]])
        _write(store, f"least-{count:03d}/{_name(tile)}", least=least)
    edges = np.array([found[g] for g in sorted(found)], np.int64).reshape(-1, 4).T
    ends = {"one": edges[2], "other": edges[3]}
    return _write(store, out, a=edges[0], b=edges[1], square=limit[sorted(found)], **ends)


def join(store: Lake, count: int) -> int:
    """Groups before a round, and the shortest edge known of each: what the round before found has joined them.

    Returns:
        How many groups are left.
    """
    out = f"groups/{count:03d}.parquet"
    if store.exists(out):
        return int(read(store, out, "group")[0].max(initial=-1)) + 1
    if count == 0:
        group = np.arange(_number_components(store), dtype=np.int32)
    else:
        before = read(store, f"groups/{count - 1:03d}.parquet", "group")[0]
        _, edges = _shortest(store, before, count)
        used, renamed, _ = merge_groups(before[edges["one"]], before[edges["other"]], int(before.max(initial=-1)) + 1)
        _write(store, f"chosen/{count - 1:03d}.parquet", **{name: edges[name][used] for name in _EDGE})
        group = renamed[before]
    best, _ = _shortest(store, group, count)
    _write(store, out, group=group, square=best[group])
    return int(group.max(initial=-1)) + 1


def gather(store: Lake) -> str:
    """All edges of the tree in one file: those certain in their tiles, then those of the rounds."""
    out = "tree.parquet"
    if store.exists(out):
        return out
    schema = pa.schema({"a": pa.int64(), "b": pa.int64(), "arc_m": pa.float64()})
    with store.replacing(out) as sink, pq.ParquetWriter(sink, schema) as writer:
        for name in (f"{kind}/{file}" for kind in ("certain", "chosen") for file in store.names(kind)):
            a, b, squares = read(store, name, *_EDGE)
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
        for batch in _batches(points):
            lon, lat = batch["lon"], batch["lat"]
            wrong = np.flatnonzero(~(np.isfinite(lon) & np.isfinite(lat)))
            if len(wrong):
                raise SourceError(f"Place {n + int(wrong[0])} has no finite coordinates; correct it or leave it out.")
            rows = np.arange(n, n + len(lon))
            writer.write_table(pa.table({"cell": cell_ids(lon, lat), "row": rows, "lon": lon, "lat": lat}, schema))
            n += len(lon)
    return n


def _batches(points: Sequence[Path]) -> Iterator[Columns]:
    """Coordinates of files, some hundred thousand at a time."""
    for path in points:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_READ_AT_ONCE, columns=["lon", "lat"]):
                yield {name: batch[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("lon", "lat")}


def _pieces(batches: pa.RecordBatchReader, sizes: Sequence[int]) -> Iterator[Columns]:
    """Columns of batches, cut anew into pieces of so many rows."""
    waiting: list[pa.RecordBatch] = []
    wanted, rows = iter(sizes), 0
    size = next(wanted, 0)
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, size - rows)
            waiting.append(part)
            rows += part.num_rows
            batch = batch.slice(part.num_rows)
            if rows == size:
                yield _columns(waiting)
                waiting, rows, size = [], 0, next(wanted, 0)


def _columns(batches: list[pa.RecordBatch]) -> Columns:
    table = pa.Table.from_batches(batches)
    return {name: table[name].to_numpy() for name in table.column_names}


def _shortest(store: Lake, group: npt.NDArray[np.int32], count: int) -> tuple[Floats, Columns]:
    """Shortest edge known of each group before a round: squared lengths [G], and those edges, each once, by length."""
    n_groups = int(group.max(initial=-1)) + 1
    best, chosen = np.full(n_groups, np.inf), np.full(n_groups, -1)
    first = 0
    for edges in _open_edges(store, count):
        choose(edges["one"], edges["other"], edges["square"], group, best, chosen, first)
        first += len(edges["square"])
    wanted = np.unique(chosen[chosen >= 0])
    parts: list[Columns] = [{name: np.empty(0, kind.to_pandas_dtype()) for name, kind in _OPEN.items()}]
    first = 0
    for edges in _open_edges(store, count):
        stop = first + len(edges["square"])
        here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, stop)] - first
        parts.append({name: values[here] for name, values in edges.items()})
        first = stop
    return best, {name: np.concatenate([part[name] for part in parts]) for name in _OPEN}


def _open_edges(store: Lake, count: int) -> Iterator[Columns]:
    """Edges that may be in the tree, file by file: those left in the tiles, and those found before a round."""
    first = _first_components(store)
    for tile in range(len(first)):
        edges = dict(zip(_OPEN, read(store, f"open/{_name(tile)}", *_OPEN), strict=True))
        yield edges | {end: edges[end] + first[tile] for end in ("one", "other")}
    for before in range(count):
        for tile in range(len(first)):
            yield dict(zip(_OPEN, read(store, f"round-{before:03d}/{_name(tile)}", *_OPEN), strict=True))


def _number_components(store: Lake) -> int:
    """Number the components of all tiles, and say which of them each run holds."""
    n_tiles = len(read_cut(store)["sizes"])
    runs = read(store, "runs.parquet", "tile")[0]
    first, runs_held, held = [], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    n = 0
    for tile in range(n_tiles):
        run, component = read(store, f"held/{_name(tile)}", "run", "component")
        first.append(n)
        runs_held.append(run + np.searchsorted(runs, tile))
        held.append(component + n)
        n += int(component.max()) + 1
    _write(store, "held.parquet", run=np.concatenate(runs_held), component=np.concatenate(held))
    _write(store, "first.parquet", component=np.array(first, np.int64))
    return n


def _run_groups(store: Lake, group_of: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The group that all places of a run belong to, -1 where they differ."""
    run, component = read(store, "held.parquet", "run", "component")
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    groups = group_of[component]
    low, high = np.minimum.reduceat(groups, starts), np.maximum.reduceat(groups, starts)
    return np.where(low == high, low, -1).astype(np.int32)


def _first_components(store: Lake) -> npt.NDArray[np.int64]:
    return read(store, "first.parquet", "component")[0]


def _least(store: Lake, tile: int, count: int) -> Floats:
    """Squared lengths below which places have no edge to another group in another tile, as the last search left them."""
    searched = (f"least-{before:03d}/{_name(tile)}" for before in reversed(range(count)))
    file = next(filter(store.exists, searched), f"least/{_name(tile)}")
    return read(store, file, "least")[0]


def _xyz(store: Lake, tile: int) -> Floats:
    return np.stack(read(store, f"tiles/{_name(tile)}", "x", "y", "z"), axis=1)


def _core(store: Lake, tile: int) -> Floats:
    return read(store, f"cores/{_name(tile)}", "square")[0]


def _components(store: Lake, tile: int) -> npt.NDArray[np.int32]:
    return read(store, f"components/{_name(tile)}", "component")[0]


def _runs(store: Lake) -> Runs:
    columns = read(store, "runs.parquet", "tile", *(f"{end}_{d}" for end in ("low", "high") for d in range(3)))
    return Runs.of(np.stack(columns[1:4], axis=1), np.stack(columns[4:], axis=1), columns[0])


def _padded(values: npt.NDArray, n_leaves: int, filler: float) -> npt.NDArray:
    full = np.full(n_leaves * LEAF, filler, values.dtype)
    full[: len(values)] = values
    return full


def _name(tile: int) -> str:
    return f"{tile:06d}.parquet"


def read(store: Lake, file: str, *names: str) -> list[npt.NDArray]:
    """Columns of a file of a step."""
    with store.local(file) as path, pq.ParquetFile(path, pre_buffer=False) as parquet:
        table = parquet.read(columns=list(names), use_threads=False)
        return [table[name].to_numpy().copy() for name in names]  # arrow's own memory is read-only


def _write(store: Lake, file: str, **columns: npt.NDArray) -> str:
    with store.replacing(file) as sink:
        pq.write_table(pa.table(columns), sink)
    return file
