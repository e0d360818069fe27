"""The Flickr geotag set: CSV files with ids and coordinates where there are any, EXIF positions of the photos else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_assets.errors import SourceError
from geo_assets.geotag import csvs
from geo_assets.geotag.degrees import number_of, position_of
from geo_assets.geotag.folder import forget, list_folder, read_folder
from geo_assets.geotag.photos import Sifted, querying, refuse_swapped, sift
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.sql import literal

if TYPE_CHECKING:
    import duckdb


def _spelt(*names: str) -> tuple[str, ...]:
    """Names as people write them: ``photo id``, ``photo_id``, ``photo-id``, ``photoid``."""
    return tuple(dict.fromkeys(name.replace(" ", joint) for name in names for joint in ("_", "", " ", "-")))


_NAMES = {
    "photo_id": _spelt("photo id", "flickr id", "image id", "img id", "id", "photo"),
    "path": _spelt("path", "file path", "file name", "file", "image", "image path", "url", "photo url", "image url"),
    "lon": (*csvs.LON_NAMES, *_spelt("gps longitude", "geo longitude", "geo lon", "geo lng", "gps lon")),
    "lat": (*csvs.LAT_NAMES, *_spelt("gps latitude", "geo latitude", "geo lat", "gps lat")),
    "position": (
        *_spelt("coordinates", "coordinate", "coords", "lat lon", "lat long", "lat lng", "latitude longitude"),
        *("position", "gps", "geo", "point", "location", "geotag", "wkt", "lat,lon", "lat/lon"),
    ),
    "captured_at": _spelt(
        "captured at", "date taken", "taken at", "taken", "timestamp", "time stamp", "date time", "unix time"
    ),
    "author": _spelt("author", "owner", "owner id", "user id", "user", "user nsid", "nsid", "photographer", "creator"),
    "licence": _spelt("license", "licence", "license name", "licence name", "license id", "licence id", "rights"),
}
_OPTIONAL = ("captured_at", "author", "licence")
_RECORD = """file varchar, row varchar, fault varchar, value varchar, photo_id varchar, path varchar, beside varchar,
    lon varchar, lat varchar, captured_at timestamptz, author varchar, licence varchar"""
_SHOWN = 100
"""CSV files that the figures name."""

# A time counts where its zone is known: seconds or milliseconds since 1970 (which dates without separators must not
# pass for), or a time of day with a zone behind it.
_MACROS = r"""
create macro zoned_time(t) as case
    when regexp_full_match(t, '(1?\d{9})(\.\d+)?') then to_timestamp(t::double)
    when regexp_full_match(t, '1\d{12}') then to_timestamp(t::double / 1000)
    when regexp_matches(t, '\d:\d\d.*(Z|UTC|GMT|[+-]\d\d(:?\d\d)?)$') then try_cast(
        rtrim(regexp_replace(regexp_replace(t, '^(\d{4})[:/](\d\d)[:/]', '\1-\2-'), '\s+(UTC|GMT|Z|[+-][\d:]+)$', '\1'),
            'UTCGMZ') as timestamptz) end;
create macro plain_degrees(t) as if(try_cast(t as double) is null, coalesce(text_number(t)::varchar, t), t);
create macro plain_path(p) as case
    when p like '%://%' then coalesce(flickr_id(rtrim(regexp_replace(p, '[?#].*', ''), '/')), p)
    else ltrim(regexp_replace(replace(trim(p), '\', '/'), '^(\./)+', '')) end;
"""


def take_flickr(
    lake: Lake, folder: Path, settings: Geotag, log: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Write ``flickr_geotag`` and its rejects from a folder tree of CSV files and photos.

    A CSV file is taken when its header names a photo's id or path, and a position; each other one is one reject. Photos
    to which no CSV gives a position, by Flickr's id in their name or by their path (below the folder, or below that of
    the CSV file), are opened for their EXIF, which is kept in ``files/flickr_geotag`` of the lake: a killed run, or one
    over a folder that has grown, opens only what it does not know. A row of a CSV file bears the path of its photo
    where that lies in the folder.

    Args:
        lake: takes the tables.
        folder: the folder tree; links to folders are not followed.
        settings: memory, and the processes that read EXIF.
        log: told one line a CSV file, and the progress every few seconds.

    Returns:
        Counts, reasons of the rejects, and what was recognised in the CSV files.

    Raises:
        SourceError: neither CSV files nor photos in the folder, or a CSV file has swapped coordinate columns.
    """
    with _workplace(lake, settings) as (con, scratch):
        tables = list_folder(folder, scratch / "listing.parquet", log)
        con.execute(f"""
            create view photo as select *, coalesce(flickr_id(path), path) as photo_id
            from {literal(scratch / "listing.parquet")}""")
        n_jpegs = _count(con, "photo")
        if not tables and not n_jpegs:
            raise SourceError(
                f"No CSV file and no JPEG in {folder}. Set geotag.flickr_geotag to the folder of the photos."
            )
        said = _take_tables(con, folder, tables, scratch, log)
        by_csv = sift(con, "csv_record", "flickr_geotag")
        _want(con, by_csv.photos, scratch)
        query, n_opened = read_folder(con, lake, folder, "wanted", scratch, settings.processes, log)
        _copy(con, _exif_records(query), scratch / "exif.parquet", "exif_record")
        counts = _write(con, lake, by_csv, sift(con, "exif_record", "flickr_geotag"), scratch)
        forget(con, lake, "photo")
    log("{n_photos:,} photos, {n_by_csv:,} of them by CSV; {n_rejects:,} rejects".format(**counts))
    more = [f"and {len(said) - _SHOWN:,} more"] if len(said) > _SHOWN else []
    return {**counts, "n_jpegs": n_jpegs, "n_opened": n_opened, "csv_files": said[:_SHOWN] + more}


@contextlib.contextmanager
def _workplace(lake: Lake, settings: Geotag) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A connection with the macros of this module, and a folder on the disk of the lake for what lies in between."""
    with querying(lake, settings) as (con, scratch):
        for name, function, kind in (("text_position", position_of, "DOUBLE[]"), ("text_number", number_of, "DOUBLE")):
            con.create_function(name, _of_text(function), ["VARCHAR"], kind, null_handling="special")  # type: ignore[arg-type]
        con.execute(_MACROS)
        yield con, scratch


def _write(
    con: duckdb.DuckDBPyConnection, lake: Lake, by_csv: Sifted, by_exif: Sifted, scratch: Path
) -> dict[str, Any]:
    """Write the rejects and the photos, in an order that leaves nothing to chance."""
    _copy(con, f"({by_csv.rejects}) union all ({by_exif.rejects}) order by all", scratch / "rejects.parquet", "reject")
    rejects = lake.write_query(con, "geotag_rejects", "from reject", is_sorted=True, source="flickr_geotag", part="all")
    order = "photo_id nulls last, path, lon, lat, captured_at, author_hash, licence"
    query = f"({by_csv.photos}) union all ({by_exif.photos}) order by {order}"
    photos = lake.write_query(con, "flickr_geotag", query, is_sorted=True)
    n_by_csv = _count(con, "placed")
    reasons = con.execute("select reason, count(*) from reject group by reason order by 2 desc, 1").fetchall()
    return {
        "n_photos": photos.rows,
        "n_by_csv": n_by_csv,
        "n_by_exif": photos.rows - n_by_csv,
        "n_rejects": rejects.rows,
        "reject_reasons": dict(reasons),
    }


def _of_text(function: Callable[[str], Any]) -> Callable[[str | None], Any]:
    return lambda text: None if text is None else function(text)


class _Passed(Exception):
    """Why a CSV file is passed over, and what was found in it."""


# -- CSV files --------------------------------------------------------------------------------------------------


def _take_tables(
    con: duckdb.DuckDBPyConnection, folder: Path, tables: Sequence[str], scratch: Path, log: Callable[[str], None]
) -> list[str]:
    """Make the relation ``csv_record`` of all CSV files, and say of each what was recognised."""
    records = scratch / "records"
    records.mkdir()
    con.execute(f"create table passed ({_RECORD})")
    said = []
    for number, name in enumerate(tables):
        said.append(_take_table(con, folder, name, records / f"{number}.parquet"))
        log(said[-1])
    _copy(con, "from passed", records / "passed.parquet")
    joined = f"""
        select c.* exclude (path, beside, photo_id),
            -- The file that a row names lies where it says, beside the CSV file, or anywhere under its Flickr id.
            coalesce(below.path, beside.path, by_id.path, c.path, c.photo_id) as path,
            case when c.photo_id = c.path then coalesce(beside.photo_id, c.photo_id) else c.photo_id end as photo_id
        from read_parquet({literal(records / "*.parquet")}) c
        left join (select path from photo) below on below.path = c.path
        left join (select path, photo_id from photo) beside on beside.path = c.beside
        left join (select photo_id, min(path) as path from photo group by photo_id) by_id on by_id.photo_id = c.photo_id"""
    _copy(con, joined, scratch / "csv.parquet", "csv_record")
    return said


def _take_table(con: duckdb.DuckDBPyConnection, folder: Path, name: str, target: Path) -> str:
    """Write the records of one CSV file to parquet, or a reject to ``passed``; returns what was recognised."""
    try:
        columns, opened = _open(con, folder, name)
    except _Passed as error:
        fault, found = error.args
        printable = name.encode(errors="backslashreplace").decode()
        con.execute("insert into passed (file, row, fault, value) values (?, '0', ?, ?)", [printable, fault, found])
        return f"{printable}: passed over, {fault}: {found}"
    _copy(con, _records(opened, name), target)
    if "lon" in opened.names:
        refuse_swapped(con, literal(target), folder / name, (opened.names["lon"], opened.names["lat"]))
    return _recognised(con, name, columns, opened, literal(target))


def _open(con: duckdb.DuckDBPyConnection, folder: Path, name: str) -> tuple[list[str], csvs.Csv]:
    """The columns of a CSV file and those that play a role, or :class:`_Passed`."""
    if name != name.encode(errors="replace").decode():
        raise _Passed("the name is not UTF-8", "no column was read")
    try:
        columns, _ = csvs.header(folder / name)
        if roles := _roles(columns):
            wanted = {role: (column.strip().lower(),) for role, column in roles.items()}
            return columns, csvs.open_csv(con, folder / name, wanted)
    except SourceError as error:
        raise _Passed("the CSV cannot be read", str(error)) from None
    raise _Passed("the CSV has no id and coordinate columns", f"its columns are {', '.join(columns)}")


def _roles(columns: list[str]) -> dict[str, str]:
    """Which column plays which role; none unless there is a name for the photo and a position."""
    found = csvs.recognised(columns, _NAMES)
    position = [role for role in ("lon", "lat") if role in found]
    position = position if len(position) == 2 else [role for role in ("position",) if role in found]
    names = [role for role in ("photo_id", "path") if role in found]
    wanted = [*names, *position, *(role for role in _OPTIONAL if role in found)]
    return {role: found[role] for role in wanted} if names and position else {}


def _records(opened: csvs.Csv, name: str) -> str:
    """A query of the raw records of one CSV file, and of its lines that do not parse."""
    roles = ", ".join(f"{f'trim({role})' if role in opened.names else 'null::varchar'} as {role}" for role in _NAMES)
    # A column that is just called id may number the rows; a path that holds Flickr's id knows better.
    ids = ["flickr_id(photo_id)", "flickr_id(path)"]
    if opened.names.get("photo_id", "").strip().lower() == "id":
        ids.reverse()
    parent = name.rpartition("/")[0]
    return f"""
        from passed where false union all by name
        select {literal(name)} as file, row::varchar as row, fault, if(fault is null, null, coalesce(position, photo_id)) as value,
            coalesce({", ".join(ids)}, photo_id, path) as photo_id, path,
            {f"{literal(parent)} || '/' || path" if parent else "null::varchar"} as beside,
            if(position is null, plain_degrees(lon), found[1]::varchar) as lon,
            if(position is null, plain_degrees(lat), found[2]::varchar) as lat,
            zoned_time(captured_at) as captured_at, author, licence
        from (
            select *, case when regexp_full_match(photo_id, '\\d(\\.\\d+)?[eE]\\+\\d+') then 'a spreadsheet has rounded the id'
                when position is not null and found is null then 'the text is no position' end as fault
            from (
                select * replace (plain_path(coalesce(path, photo_id)) as path), text_position(position) as found
                from (select row, {roles} from {opened.view})))
        union all by name select {literal(name)} as file, row, reason as fault, value from ({opened.rejects})"""


def _recognised(con: duckdb.DuckDBPyConnection, name: str, columns: list[str], opened: csvs.Csv, records: str) -> str:
    """One sentence for people: lines, which column plays which role, and which are passed over."""
    ((n_lines, n_flickr, n_timed),) = con.execute(f"""
        select count(*), count(*) filter (regexp_full_match(photo_id, '\\d{{5,}}')), count(captured_at)
        from {records}""").fetchall()
    unzoned = " (without a time zone, not used)" if not n_timed else ""
    roles = [f"{role} is {used}{unzoned if role == 'captured_at' else ''}" for role, used in opened.names.items()]
    ignored = [column for column in columns if column not in opened.names.values()]
    said = f"{name}: {n_lines:,} lines, {n_flickr:,} with an id as Flickr's; {', '.join(roles)}"
    return said + (f"; ignored: {', '.join(ignored)}" if ignored else "")


# -- photos -----------------------------------------------------------------------------------------------------


def _want(con: duckdb.DuckDBPyConnection, placed: str, scratch: Path) -> None:
    """Make the relation ``wanted`` of the photos to open: those that can be, and that no row of a CSV places."""
    _copy(con, f"select photo_id, path from ({placed})", scratch / "placed.parquet", "placed")
    wanted = """
        select path, size, changed_ns from (from photo where fault is null)
        anti join placed using (path) anti join (select distinct photo_id from placed) using (photo_id)"""
    _copy(con, wanted, scratch / "wanted.parquet", "wanted")


def _exif_records(headers: str) -> str:
    """A query of the raw records of the photos that were wanted, and of what could not be opened at all."""
    return f"""
        -- Two runs at once may both keep a photo.
        select distinct path as file, '0' as row, fault, value, coalesce(flickr_id(path), path) as photo_id, path,
            lon, lat, captured_at, author, licence
        from ({headers})
        union all by name select path as file, '0' as row, fault, value from photo where fault is not null"""


def _copy(con: duckdb.DuckDBPyConnection, query: str, file: Path, view: str = "") -> None:
    """Write the rows of a query to parquet, and make a view of them."""
    con.execute(f"copy ({query}) to {literal(file)} (format parquet)").fetchall()
    if view:
        con.execute(f"create view {view} as from {literal(file)}")


def _count(con: duckdb.DuckDBPyConnection, relation: str) -> int:
    ((count,),) = con.execute(f"select count(*) from {relation}").fetchall()
    return count
