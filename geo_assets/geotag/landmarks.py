"""Google Landmarks v2: photos of ``train.csv`` and, where wanted, of the index, each at its landmark's coordinate.

Files and columns as in https://github.com/cvdfoundation/google-landmark; photos lie as its tar files unpack.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_assets.errors import SourceError
from geo_assets.geotag import csvs
from geo_assets.geotag.photos import querying, sift
from geo_assets.lake import Lake
from geo_assets.settings import Geotag

if TYPE_CHECKING:
    import duckdb

TABLE = "google_landmark"
TRAIN, CLEAN, ATTRIBUTION = "train.csv", "train_clean.csv", "train_attribution.csv"
INDEX = "index_image_to_landmark.csv"
FOLDERS = ("", "metadata", "meta", "train", "index")
"""Where below the folder of the photo set its files may lie."""

_PHOTO = {"photo_id": ("id",), "landmark_id": ("landmark_id",)}

# A landmark may stand in several parts where landmarks_per_part was changed.
_LANDMARKS = """
create temp table landmarks as
select distinct on (landmark_id) landmark_id, lon, lat, status from landmark_coordinates
order by landmark_id, status = 'found' desc, fetched_at desc nulls last, lon, lat
"""

_LISTED = f"""
create temp view listed as
select *, case when not coalesce(regexp_full_match(photo_id, '[0-9a-f]{{16}}'), false) then 'the photo id is not 16 hex digits'
    when landmark_id is null then 'the landmark id is empty' end as fault
from (select '{TRAIN}' as file, row, photo_id, landmark_id, '' as subfolder from train
    union all select '{INDEX}', row, photo_id, 'index/' || landmark_id, 'index/' from index_photos)
"""

# Sixteen hex digits fit eight bytes: half the memory of comparing text.
_NUMBER = "create temp macro number_of(id) as try_cast('0x' || id as ubigint)"

# The tar files keep a photo below the first three digits of its id.
_PLACED = """
create temp view placed as
select file, row, fault, photo_id as value, photo_id, landmark_id, lon, lat, subfolder,
    subfolder || photo_id[1] || '/' || photo_id[2] || '/' || photo_id[3] || '/' || photo_id || '.jpg' as path
from listed left join landmarks using (landmark_id) where fault is not null or status = 'found'
"""

_CREDITED = """
create temp view credited as
select placed.*, author, licence, case when subfolder = '' and clean_id is null then {unclean} end as flags
from placed left join credits on number_of(photo_id) = credit_id left join clean on number_of(photo_id) = clean_id
where fault is null
"""

_UNPLACED = """
select coalesce(status, 'not_located'), count(*) from listed left join landmarks using (landmark_id)
where fault is null and status is distinct from 'found' group by all order by all
"""


def take_landmarks(
    lake: Lake, folder: Path, settings: Geotag, log: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Write ``google_landmark``: the photos whose landmark table ``landmark_coordinates`` places.

    ``train_attribution.csv`` gives authors and licences, photos that ``train_clean.csv`` leaves out are flagged
    ``unclean``, where these files are there. With ``settings.landmark_index`` the photos of the index are taken, too,
    under ``index/`` and with landmarks of their own.

    Args:
        lake: holds ``landmark_coordinates``.
        folder: holds the files, itself or in one of :data:`FOLDERS`.
        settings: whether the index is taken, and the memory.
        log: told what was found.

    Returns:
        Counts; photos at landmarks without a coordinate are counted by the landmark's status (``not_located`` where
        ``landmark_coordinates`` does not know it) and are neither rows nor rejects.

    Raises:
        SourceError: a file or a column is missing; the message says which.
    """
    with querying(lake, settings, "landmark_coordinates") as (con, _):
        con.execute(_LANDMARKS)
        con.execute(_NUMBER)
        rejects = _open(con, folder, settings.landmark_index)
        unplaced: dict[str, int] = dict(con.execute(_UNPLACED).fetchall())
        rejects.append(sift(con, "placed", TABLE).rejects)
        bad = lake.write_query(con, "geotag_rejects", " union all ".join(rejects), source=TABLE, part="all")
        photos = sift(con, "credited", TABLE).photos
        facts = lake.write_query(con, TABLE, f"{photos} order by photo_id, landmark_id", is_sorted=True)
    log(f"{facts.rows:,} photos at their landmark, {bad.rows:,} lines not taken")
    for status, n in unplaced.items():
        log(f"{n:,} photos at landmarks without a coordinate: {status}")
    return {
        "n_photos": facts.rows,
        "n_rejects": bad.rows,
        "n_unplaced": sum(unplaced.values()),
        "unplaced_by_status": unplaced,
    }


def _open(con: duckdb.DuckDBPyConnection, folder: Path, with_index: bool) -> list[str]:
    """Make the views ``listed, placed, credited`` of the files; queries of the lines that do not parse."""
    train = csvs.open_csv(con, _needed(folder, TRAIN), _PHOTO, view="train")
    rejects = [train.rejects]
    if with_index:
        rejects.append(csvs.open_csv(con, _needed(folder, INDEX), _PHOTO, view="index_photos").rejects)
    else:
        con.execute("create temp view index_photos as from train limit 0")
    con.execute(_LISTED)
    con.execute(_PLACED)
    return rejects + _open_credits(con, folder) + _open_clean(con, folder)


def _open_credits(con: duckdb.DuckDBPyConnection, folder: Path) -> list[str]:
    """Make the view ``credits`` of authors and licences, without rows where the file is not there."""
    path = find_file(folder, ATTRIBUTION)
    if path is None:
        con.execute("create temp view credits as select 0::ubigint as credit_id, '' as author, '' as licence limit 0")
        return []
    optional = {"author": ("author",), "licence": ("license", "licence")}
    opened = csvs.open_csv(con, path, {"photo_id": ("id",)}, optional, "attribution")
    author, licence = (role if role in opened.names else "null" for role in optional)
    # The few ids that are given credit twice are grouped alone: DuckDB cannot spill groups of text.
    con.execute(f"""
        create temp view given as
        select number_of(photo_id) as credit_id, {author} as author, {licence} as licence, row from attribution;
        create temp table repeated as select credit_id from given group by credit_id having count(*) > 1;
        create temp view credits as
        select credit_id, author, licence from given anti join repeated using (credit_id)
        union all select credit_id, arg_min(author, row), arg_min(licence, row)
        from given semi join repeated using (credit_id) group by credit_id""")
    return [opened.rejects]


def _open_clean(con: duckdb.DuckDBPyConnection, folder: Path) -> list[str]:
    """Make the view ``clean`` of the photos that are, and ``credited`` of all; without the file none is unclean."""
    path = find_file(folder, CLEAN)
    if path is None:
        con.execute("create temp view clean as select 0::ubigint as clean_id limit 0")
        con.execute(_CREDITED.format(unclean="null"))
        return []
    opened = csvs.open_csv(con, path, {"images": ("images",)}, view="cleaned")
    con.execute("""
        create temp view clean as
        select distinct number_of(unnest(string_split(images, ' '))) as clean_id from cleaned""")
    con.execute(_CREDITED.format(unclean="['unclean']"))
    return [opened.rejects]


def find_file(folder: Path, name: str) -> Path | None:
    """A file of the set by its name, wherever people put it; None where it is not there."""
    return next((path for sub in FOLDERS if (path := folder / sub / name).is_file()), None)


def _needed(folder: Path, name: str) -> Path:
    path = find_file(folder, name)
    if path is None:
        raise SourceError(
            f"{name} is missing in {folder}. Get it as https://github.com/cvdfoundation/google-landmark says, "
            "or set geotag.google_landmark to the folder that holds it.",
            file=str(folder / name),
        )
    return path
