"""Google Landmarks at full size: photos joined to landmarks, rows of SQL dumps: python benchmarks/google_landmark.py.

The files are synthetic and have the real ones' columns, rows and lengths. Each step runs in a process of its own, on two
threads; what counts is processor time, since wall time says what else the machine did.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.apart import apart, cpu_seconds
from geo_assets.geotag.landmarks import take_landmarks
from geo_assets.geotag.sqldump import select
from geo_assets.lake import Lake
from geo_assets.settings import Geotag

PHOTOS, LANDMARKS = 4_132_914, 203_094
MEMORY_GB = 0.6
MOST_GB, LEAST_DUMP_ROWS_PER_S = 1.0, 500_000

_PHOTO = f"""
create table photo as
select printf('%016x', hash(i)) as id, hash(i + 7) % {LANDMARKS} as landmark_id, i,
    'https://upload.wikimedia.org/wikipedia/commons/a/ab/Some_place_in_the_west_number_' || i || '_of_many.jpg' as url
from range(?) t(i) order by hash(i * 3)
"""
_FILES = {
    "train.csv": "select id, url, landmark_id from photo",
    "train_attribution.csv": "select id, url, 'Author number ' || i % 300000 as author, "
    "'https://creativecommons.org/licenses/by-sa/' || i % 4 || '.0/' as license, "
    "'File:Some place in the west number ' || i || '.jpg' as title from photo",
    "train_clean.csv": "select landmark_id, string_agg(id, ' ') as images from photo where landmark_id % 5 < 2 group by 1",
}
_COORDINATES = f"""
select i::varchar as landmark_id, 'Category:Place ' || i as category, null::varchar as wikidata_id,
    if(is_found, hash(i) % 360000000 / 1e6 - 180, null) as lon, if(is_found, hash(-i) % 180000000 / 1e6 - 90, null) as lat,
    null::double as precision_deg, 'csv' as origin, if(is_found, 'found', 'no_coordinate') as status,
    null::varchar as reason, null::varchar as kind, null::varchar as hierarchy, null::timestamptz as fetched_at
from (select range as i, range % 10 > 0 as is_found from range({LANDMARKS}))
"""
_PAGE = b"""CREATE TABLE `page` (
  `page_id` int(8) unsigned NOT NULL AUTO_INCREMENT,
  `page_namespace` int(11) NOT NULL DEFAULT 0,
  `page_title` varbinary(255) NOT NULL DEFAULT '',
  `page_is_redirect` tinyint(1) unsigned NOT NULL DEFAULT 0,
  `page_is_new` tinyint(1) unsigned NOT NULL DEFAULT 0,
  `page_random` double unsigned NOT NULL DEFAULT 0,
  `page_touched` binary(14) NOT NULL,
  `page_links_updated` varbinary(14) DEFAULT NULL,
  `page_latest` int(8) unsigned NOT NULL DEFAULT 0,
  `page_len` int(8) unsigned NOT NULL DEFAULT 0,
  `page_content_model` varbinary(32) DEFAULT NULL,
  `page_lang` varbinary(35) DEFAULT NULL,
  PRIMARY KEY (`page_id`)
);
"""


def make_photos(root: Path, photos: int) -> None:
    """Write the CSV files into a folder ``set``, and the table of landmarks, nine in ten with a coordinate."""
    (root / "set").mkdir()
    lake = Lake(root / "lake")
    with lake.connect() as con:
        con.execute("set memory_limit = '2GB'").execute(f"set temp_directory = '{root / 'spill'}'")
        con.execute(_PHOTO, [photos]).fetchall()
        for name, query in _FILES.items():
            con.execute(f"copy ({query}) to '{root / 'set' / name}' (header)").fetchall()
        lake.write_query(con, "landmark_coordinates", _COORDINATES, part="train-000000")


def take(root: Path, memory_gb: float) -> dict[str, Any]:
    """Join the photos to their landmarks; counts."""
    return take_landmarks(Lake(root / "lake"), root / "set", Geotag(memory_gb=memory_gb), print)


def make_dump(root: Path, rows: int) -> None:
    """A dump of Commons' table ``page``, packed and not, in which each ninth page is a category."""
    names = [b"church", b"view_of", b"St_John\\'s", b"Rathaus_(Stadt),"]
    with (root / "page.sql").open("wb") as plain, gzip.open(root / "page.sql.gz", "wb", compresslevel=6) as packed:
        for start in range(0, rows, 10_000):
            lines = (
                b"(%d,%d,'%s',0,0,0.%d,'20240412123456','20240412123457',%d,%d,'wikitext',NULL)"
                % (k, 6 if k % 9 else 14, _title(k, names[k % 4]), hash((k, 1)) % 10**12, k * 5, k % 5000)
                for k in range(start, min(start + 10_000, rows))
            )
            text = (_PAGE if start == 0 else b"") + b"INSERT INTO `page` VALUES " + b",".join(lines) + b";\n"
            plain.write(text)
            packed.write(text)


def _title(k: int, name: bytes) -> bytes:
    return b"Some_%s_%d_from_the_west_side_%d" % (name, k * 7919 % 10_000_019, k) + (b".jpg" if k % 9 else b"")


def scan(root: Path, name: str) -> tuple[int, float]:
    """Look for as many titles as there are landmarks; hits, and processor time [s] once compiled."""
    wanted = [_title(k, b"church") for k in range(0, 4 * LANDMARKS, 4)]
    list(select(root / name, "page_id", [b"1"], ["page_id"]))  # compiles
    began = cpu_seconds()
    found = sum(1 for _ in select(root / name, "page_title", wanted, ["page_id", "page_namespace", "page_title"]))
    return found, cpu_seconds() - began


@click.command()
@click.option("--photos", default=PHOTOS, show_default=True)
@click.option("--memory-gb", default=MEMORY_GB, show_default=True, help="geotag.memory_gb")
@click.option("--dump-rows", default=3_000_000, show_default=True)
def main(photos: int, memory_gb: float, dump_rows: int) -> None:
    """Make the files, take them, and say what it cost."""
    with tempfile.TemporaryDirectory(prefix="google_landmark_") as scratch:
        root = Path(scratch)
        apart(make_photos, root, photos)
        joined = apart(take, root, memory_gb)
        print(f"{json.dumps(joined.result)}: {joined.cpu_s:.1f} CPU s, {joined.peak_gb:.2f} GB")
        print(f"{'holds' if joined.peak_gb < MOST_GB else 'MISSED'}: less than {MOST_GB:g} GB")
        make_dump(root, dump_rows)
        for name in ("page.sql", "page.sql.gz"):
            scanned = apart(scan, root, name)
            found, cpu_s = scanned.result
            print(f"{name}: {found:,} titles found, {cpu_s:.1f} CPU s, {scanned.peak_gb:.2f} GB")
            good = dump_rows / cpu_s >= LEAST_DUMP_ROWS_PER_S
            print(
                f"{'holds' if good else 'MISSED'}: {dump_rows / cpu_s:,.0f} of {LEAST_DUMP_ROWS_PER_S:,} rows a second"
            )


if __name__ == "__main__":
    main()
