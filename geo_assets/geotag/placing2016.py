"""The 2016 Placing photos: MessagePack shards to rows of a table, and to files where they are wanted.

A photo stays in its shard and the table says where, unless ``geotag.extract`` is set; either way its bytes are
never decoded, so none of them changes.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from geo_assets.errors import SourceError
from geo_assets.geotag import mp16, photos
from geo_assets.geotag.extraction import extract
from geo_assets.geotag.shard import JPEG, Record, records
from geo_assets.lake import Lake
from geo_assets.settings import Geotag

if TYPE_CHECKING:
    import duckdb

READER = 1
"""Raise it when a record may be read otherwise than before: shards that were read by another are read again."""

_BATCH = 16_384
_MEMORY_GB = 0.25
_FILES = "placing_2016"
_RECORDS = """
create or replace table records (
    file varchar, row varchar, fault varchar, value varchar, photo_id varchar, path varchar, lon double, lat double,
    shard_file varchar, "offset" bigint, bytes bigint, known_author varchar, joined boolean)
"""
_INSERT = r"""
insert into records
select $file, row, case when lacks then $lacking else fault end, case when lacks then path else value end,
    coalesce(flickr_id(path), regexp_replace(path, '\.[^./]*$', '')), path,
    coalesce(lon, known_lon), coalesce(lat, known_lat), $file, "offset", bytes,
    case when known_author <> 0 then format('{:016x}', known_author) end, lon is null
from (select *, fault is null and lon is null and known_lon is null as lacks from batch)
"""
_NAMES = ["row", "fault", "value", "path", "lon", "lat", "offset", "bytes"]
_TYPES = [pa.int64(), *[pa.string()] * 3, *[pa.float64()] * 2, *[pa.int64()] * 2]


def take_shards(
    lake: Lake, folder: Path, shards: Mapping[str, Path], settings: Geotag, log: Callable[[str], None]
) -> dict[str, Any]:
    """Take several shards, as :func:`take_shard` does.

    Args:
        lake: receives the tables.
        folder: of the photo set.
        shards: partition -> shard, relative to the folder.
        settings: say whether photos become files.
        log: told one line a shard.

    Returns:
        The figures of all shards together, and how many shards there are and how many were as before.
    """
    total: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with _at_work(lake, folder, settings) as work:
        for shard, file in shards.items():
            figures = work.take(file, shard, log)
            reasons.update(figures.pop("reject_reasons"))
            total.update(figures)
    return {
        "n_shards": len(shards),
        "n_unchanged": int(total.pop("unchanged", 0)),
        **total,
        "reject_reasons": dict(reasons),
    }


def take_shard(
    lake: Lake, folder: Path, shard_file: Path, shard: str, settings: Geotag, log: Callable[[str], None]
) -> dict[str, Any]:
    """Read one shard into its partition of ``placing_2016``, its bad records into that of ``geotag_rejects``.

    Records without coordinates get them from ``mp16_places365.csv``, in the folder or beside it, which also names the
    authors. A shard that is as it was when its partition was written is not read again.

    Args:
        lake: receives the tables, and the photos if they are extracted.
        folder: of the photo set.
        shard_file: the shard, relative to the folder.
        shard: name of the partition.
        settings: say whether photos become files.
        log: told one line.

    Returns:
        Counts, and how many rejects have which reason; ``unchanged`` says whether they are those of an earlier run.

    Raises:
        SourceError: the shard cannot be read, or the CSV is not what it should be.
    """
    with _at_work(lake, folder, settings) as work:
        return work.take(shard_file, shard, log)


def photo_bytes(folder: Path, row: Mapping[str, Any]) -> bytes:
    """The JPEG of a row of ``placing_2016``, from its shard.

    Args:
        folder: of the photo set.
        row: says ``shard_file``, ``offset`` and ``bytes``.

    Raises:
        SourceError: the record holds no image, or the shard is not the one that was read.
    """
    file, offset, size = row["shard_file"], row["offset"], row["bytes"]
    if pd.isna(offset):
        raise SourceError(f"Photo {row['path']} has no image: its record in {file} holds none.")
    if not photos.is_safe_path(file):
        raise SourceError(f"Photo {row['path']} is said to lie in '{file}', which is no shard inside {folder}.")
    try:
        with (folder / file).open("rb") as shard:
            content = os.pread(shard.fileno(), int(size), int(offset))
    except OSError as error:
        raise SourceError(f"Shard {folder / file} cannot be read: {error.strerror}.") from None
    if len(content) != size or not content.startswith(JPEG):
        raise SourceError(
            f"Shard {folder / file} holds no JPEG at byte {int(offset):,} any more. Materialize its partition of placing_2016."
        )
    return content


# -- at work ----------------------------------------------------------------------------------------------------


@contextmanager
def _at_work(lake: Lake, folder: Path, settings: Geotag) -> Iterator[_Work]:
    """One connection and one opened CSV for any number of shards."""
    csv = mp16.find_csv(folder)
    with photos.querying(lake, settings) as (con, _), mp16.coordinates(lake, con, csv) as known:
        # A shard is too small to gain by several threads, and a huge one may spill.
        con.execute(f"set threads = 1; set memory_limit = '{min(_MEMORY_GB, settings.memory_gb)}GB'")
        yield _Work(lake, folder, settings.extract, con, known, mp16.fingerprint(csv))


@dataclass(frozen=True)
class _Work:
    lake: Lake
    folder: Path
    is_extracting: bool
    con: duckdb.DuckDBPyConnection
    known: mp16.Coordinates | None
    coordinates: str | None
    """Fingerprint of the CSV."""

    def take(self, file: Path, shard: str, log: Callable[[str], None]) -> dict[str, Any]:
        """Take a shard, unless it is as it was."""
        made_of = self._made_of(file)
        if self.lake.has("placing_2016", shard=shard):
            note = self.lake.note("placing_2016", shard=shard)
            if note.get("made_of") == made_of:
                return note["figures"] | {"unchanged": True}
        n_records = self._load(file)
        figures = self._write(file, shard, n_records, made_of)
        log(f"{shard}: {figures['n_photos']:,} photos, {figures['n_rejects']:,} rejects")
        return figures | {"unchanged": False}

    def _made_of(self, file: Path) -> dict[str, Any]:
        try:
            facts = (self.folder / file).stat()
        except OSError as error:
            raise SourceError(f"Shard {self.folder / file} cannot be read: {error.strerror}.") from None
        shard = [file.as_posix(), facts.st_size, facts.st_mtime_ns]
        return {"reader": READER, "shard": shard, "coordinates": self.coordinates, "extract": self.is_extracting}

    def _load(self, file: Path) -> int:
        """Fill table ``records`` with what the shard and the CSV say; the number of records."""
        lacking = "the folder has no {}" if self.known is None else "{} has none for it"
        # The name of the shard is a parameter, since it may hold anything.
        parameters = {
            "file": file.as_posix(),
            "lacking": f"the record has no position, and {lacking.format(mp16.COORDINATES)}",
        }
        self.con.execute(_RECORDS)
        n_records = 0
        try:
            for batch in _batches(records(self.folder / file)):
                self.con.register("batch", batch)
                self.con.register("batch", self._with_known(batch))
                self.con.execute(_INSERT, parameters).fetchall()
                n_records += batch.num_rows
        except OSError as error:
            raise SourceError(f"Shard {self.folder / file} cannot be read: {error.strerror}.") from None
        return n_records

    def _with_known(self, batch: pa.Table) -> pa.Table:
        """Table ``batch`` with position [deg] and author hash of the CSV as further columns."""
        n = batch.num_rows
        lon, lat, author = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.uint64)
        if self.known is not None:
            keys = self.con.execute("""
                select md5_number_upper(coalesce(path, '')) as upper, md5_number_lower(coalesce(path, '')) as lower
                from batch""").fetchnumpy()
            is_known, *values = self.known(np.asarray(keys["upper"]), np.asarray(keys["lower"]))
            lon[is_known], lat[is_known], author[is_known] = values
        for name, column in (("known_lon", lon), ("known_lat", lat), ("known_author", author)):
            batch = batch.append_column(name, pa.array(column, from_pandas=True))
        return batch

    def _write(self, file: Path, shard: str, n_records: int, made_of: dict[str, Any]) -> dict[str, Any]:
        """Write the rejects, the photos' files if they are wanted, and last the table."""
        extra = ["shard_file", "offset", "bytes", "known_author", "joined"]
        sifted = photos.sift(self.con, "records", "placing_2016", extra)
        self.con.execute(f"create or replace table photos as {sifted.photos}").fetchall()
        ((n_photos,),) = self.con.execute("select count(*) from photos").fetchall()
        # Most shards have no bad record, and a search for them takes as long as the photos.
        rejects = sifted.rejects if n_photos < n_records else photos.no_rejects()
        self.con.execute(f"create or replace table rejects as {rejects}").fetchall()
        self.lake.write_query(self.con, "geotag_rejects", "from rejects", source="placing_2016", part=shard)
        self._extract(file, shard)
        figures = self._figures()
        query = f"""
            select * exclude (known_author, joined) replace (known_author as author_hash),
                case when extracted."offset" is not null then '{self.lake.key(_FILES)}/' || path end as file
            from photos left join extracted using ("offset")"""
        note = {"made_of": made_of, "figures": figures}
        self.lake.write_query(self.con, "placing_2016", query, note=note, shard=shard)
        return figures

    def _extract(self, file: Path, shard: str) -> None:
        """Fill table ``extracted`` with the offsets of the photos that are files now."""
        self.con.execute('create or replace table extracted ("offset" bigint)')
        if self.is_extracting:
            # Of several records with one path, the first becomes the file.
            wanted = self.con.sql("""
                select path, "offset", bytes from photos where "offset" is not null
                qualify row_number() over (partition by path order by "offset") = 1
                order by "offset" """).to_arrow_table()
            staged = self.lake.key(f"{_FILES}_staged", shard)
            self.con.register("written", extract(self.lake, self.folder / file, self.lake.key(_FILES), staged, wanted))
            self.con.execute("insert into extracted from written").fetchall()

    def _figures(self) -> dict[str, Any]:
        """Counts of the shard, and its rejects by reason."""
        counts = self.con.execute("""
            select count(*) as n_photos, count(*) filter (joined) as n_positions_of_csv,
                count(*) filter ("offset" is null) as n_without_image,
                count(*) filter (list_contains(flags, 'null_island')) as n_null_island,
                (select count(*) from extracted) as n_extracted, (select count(*) from rejects) as n_rejects
            from photos""")
        names = [name for name, *_ in counts.description or ()]
        figures: dict[str, Any] = dict(zip(names, counts.fetchall()[0], strict=True))
        reasons = self.con.execute("select reason, count(*) from rejects group by reason order by reason").fetchall()
        return figures | {"reject_reasons": dict(reasons)}


def _batches(found: Iterator[Record]) -> Iterator[pa.Table]:
    """Records in columns ``_NAMES``, some thousands at once."""
    first = 0
    # Tuples that are kept would have Python search all its objects for garbage again and again; their values do not.
    while values := list(itertools.chain.from_iterable(itertools.islice(found, _BATCH))):
        width = len(_NAMES) - 1
        after = first + len(values) // width
        columns = [range(first, after), *(values[k::width] for k in range(width))]
        yield pa.table([pa.array(c, t) for c, t in zip(columns, _TYPES, strict=True)], _NAMES)
        first = after
