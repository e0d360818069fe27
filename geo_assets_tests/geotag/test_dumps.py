import gzip
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_assets.errors import SourceError
from geo_assets.geotag import sqldump
from geo_assets.geotag.dumps import dump_answers
from geo_assets.geotag.wikimedia_answers import Found

Value = int | float | bytes | None

PAGE = ["page_id", "page_namespace", "page_title", "page_is_redirect", "page_random", "page_touched", "page_lang"]
OLD_PAGE = ["page_id", "page_namespace", "page_title", "page_restrictions", "page_counter", "page_is_redirect"]
PROPS = ["pp_page", "pp_propname", "pp_value", "pp_sortkey"]
TAGS = ["gt_id", "gt_page_id", "gt_globe", "gt_primary", "gt_lat", "gt_lon", "gt_dim", "gt_type", "gt_name"]
REDIRECT = ["rd_from", "rd_namespace", "rd_title", "rd_interwiki", "rd_fragment"]


def literal(value: Value) -> bytes:
    """A value as mysqldump writes it."""
    if value is None:
        return b"NULL"
    if not isinstance(value, bytes):
        return str(value).encode()
    control = {b"\0": rb"\0", b"\n": rb"\n", b"\r": rb"\r", b"\x1a": rb"\Z"}
    return b"'" + re.sub(rb"[\0\n\r\x1a'\"\\]", lambda m: control.get(m[0], b"\\" + m[0]), value) + b"'"


def write_dump(
    folder: Path,
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Value]],
    between: bytes = b",",
    per: int = 2,
) -> Path:
    """A dump in the shape of Wikimedia's, packed where the name says so, of ``per`` rows an INSERT."""
    table = name.split("-")[-1].split(".")[0].encode()
    text = b"/*M!999999\\- enable the sandbox mode */\n-- MariaDB dump 10.19  Distrib 10.5.23-MariaDB\n\n"
    text += b"/*!40101 SET NAMES utf8mb4 */;\nDROP TABLE IF EXISTS `%s`;\nCREATE TABLE `%s` (\n" % (table, table)
    text += b"".join(b"  `%s` varbinary(255) NOT NULL DEFAULT '',\n" % c.encode() for c in columns)
    text += b"  PRIMARY KEY (`%s`)\n) ENGINE=InnoDB DEFAULT CHARSET=binary;\n\n" % columns[0].encode()
    literals = [b"(" + b",".join(map(literal, row)) + b")" for row in rows]
    for i in range(0, len(rows), per):
        text += b"INSERT INTO `%s` VALUES " % table + between.join(literals[i : i + per]) + b";\n"
    text += b"/*!40000 ALTER TABLE `%s` ENABLE KEYS */;\n-- Dump completed on 2025-01-02  3:04:05\n" % table
    (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return folder / name


def page(number: int, title: str, namespace: int = 14) -> list[Value]:
    return [number, namespace, title.encode(), 0, 0.25, b"20250101000000", None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Dumps of a Commons of a few pages."""
    pages = [
        page(1, "Grand_Ventron"),
        page(2, "Grand_Ventron", namespace=0),
        page(3, "Isa_Khan_Niyazi's_tomb"),
        page(4, "Old_name"),
        page(5, "Older_name"),
        page(6, "No_place"),
        page(7, 'A_"quoted",_(strange)_name,'),
        page(8, "Crater"),
        page(9, "Round_and_round"),
        page(10, "To_the_void"),
        page(11, "Étang"),
        page(12, "Item_with_place"),
    ]
    item = b"wikibase_item"
    props: list[list[Value]] = [
        [1, b"defaultsort", b"Ventron, Grand", None],
        [1, item, b"Q3114629", 1.5],
        [2, item, b"Q1", None],
        [6, item, b"Q6", None],
        [12, item, b"Q12", None],
    ]
    tags: list[list[Value]] = [
        [1, 1, b"earth", 0, 10.0, 20.0, 1000, None, None],
        [2, 1, b"earth", 1, 47.95944444, 6.92555556, -1, b"it's,(a)", None],
        [3, 3, b"earth", 1, 28.5922, 77.2462, 1, None, b"x"],
        [4, 7, b"earth", 1, -39.27622200, -0.5, 1, None, b"x"],
        [5, 8, b"moon", 1, 1.0, 2.0, 1, None, b"x"],
        [6, 11, b"earth", 1, 0.0, 0.0, None, None, None],
    ]
    redirects: list[list[Value]] = [
        [4, 14, b"Isa_Khan_Niyazi's_tomb", b"", b""],
        [5, 14, b"Old_name", None, None],
        [6, 14, b"Elsewhere", b"de", b""],
        [9, 14, b"Round_and_round", b"", b""],
        [10, 14, b"Void", b"", b""],
        [99, 0, b"Grand_Ventron", b"", b""],
    ]
    write_dump(tmp_path, "commonswiki-20250101-page.sql.gz", PAGE, pages)
    write_dump(tmp_path, "commonswiki-20250101-page_props.sql", PROPS, props, between=b",\n")
    write_dump(tmp_path, "commonswiki-20250101-geo_tags.sql.gz", TAGS, tags)
    write_dump(tmp_path, "commonswiki-20250101-redirect.sql.gz", REDIRECT, redirects)
    return tmp_path


def answer(folder: Path, name: str) -> Found:
    return dump_answers(folder, [f"Category:{name}"])[f"Category:{name}"]


@pytest.mark.parametrize(
    ("name", "lon", "lat", "item"),
    [
        ("Grand Ventron", 6.92555556, 47.95944444, "Q3114629"),
        ("grand_Ventron", 6.92555556, 47.95944444, "Q3114629"),
        ("Isa Khan Niyazi's tomb", 77.2462, 28.5922, None),
        ('A "quoted", (strange) name,', -0.5, -39.276222, None),
        ("Étang", 0.0, 0.0, None),
    ],
)
def test_a_category_has_its_primary_coordinate_and_its_item(folder, name, lon, lat, item):
    found = answer(folder, name)
    assert (found.status, found.lon, found.lat, found.wikidata_id) == ("found", lon, lat, item)
    assert found.origin == "dump" and found.reason is None


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("No place", "no_coordinate", None),
        ("Crater", "no_coordinate", None),
        ("Nowhere", "missing", None),
        ("", "missing", None),
        ("Old name", "found", "redirects to Category:Isa Khan Niyazi's tomb"),
        ("Older name", "found", "redirects to Category:Old name, Category:Isa Khan Niyazi's tomb"),
        ("To the void", "missing", "redirects to Category:Void"),
    ],
)
def test_redirects_and_gaps(folder, name, status, reason):
    found = answer(folder, name)
    assert (found.title, found.status, found.reason) == (f"Category:{name}", status, reason)


def test_a_circle_of_redirects_ends(folder):
    assert answer(folder, "Round and round").status == "no_coordinate"


def test_items_give_what_categories_lack(folder):
    tags: list[list[Value]] = [
        [1, 500, b"earth", 1, 1.5, 2.5, 1, None, None],
        [2, 501, b"earth", 1, 9.0, 9.0, 1, None, None],
    ]
    assert answer(folder, "Item with place").status == "no_coordinate"
    write_dump(folder, "wikidatawiki-latest-page.sql.gz", PAGE, [page(500, "Q12", 0), page(501, "Q6", 120)])
    write_dump(folder, "wikidatawiki-latest-geo_tags.sql.gz", TAGS, tags)
    found = answer(folder, "Item with place")
    assert (found.status, found.lon, found.lat, found.wikidata_id) == ("found", 2.5, 1.5, "Q12")
    assert answer(folder, "No place").status == "no_coordinate"


def test_columns_stand_where_the_dump_says(folder):
    rows = [[1, 14, b"Grand_Ventron", b"", 7, 0]]
    write_dump(folder, "commonswiki-20250101-page.sql.gz", OLD_PAGE, rows)
    assert answer(folder, "Grand Ventron").lon == 6.92555556
    turned = [list(reversed(row)) for row in rows]
    write_dump(folder, "commonswiki-20250101-page.sql.gz", OLD_PAGE[::-1], turned)
    assert answer(folder, "Grand Ventron").lon == 6.92555556


def test_the_log_counts_and_the_fullest_date_is_read(folder):
    write_dump(folder, "commonswiki-20260101-page.sql.gz", PAGE, [])
    said: list[str] = []
    dump_answers(folder, ["Category:Grand Ventron"], said.append)
    assert "commonswiki-20250101-page.sql.gz: 5 of 12 rows" in said


@pytest.mark.parametrize("table", ["page", "page_props", "geo_tags"])
def test_a_missing_dump_is_named_with_its_address(folder, table):
    next(folder.glob(f"*-{table}.sql*")).unlink()
    with pytest.raises(
        SourceError, match=rf"lacks commonswiki-<date>-{table}.sql.gz.*dumps\.wikimedia\.org/commonswiki"
    ):
        answer(folder, "Grand Ventron")


def test_a_folder_that_is_not_there_lacks_all(tmp_path):
    with pytest.raises(SourceError, match=r"lacks .*page\.sql.*, .*page_props\.sql.*, .*geo_tags\.sql"):
        answer(tmp_path / "none", "Grand Ventron")


def test_truncated_dumps_say_where(folder):
    packed = next(folder.glob("*-page.sql.gz"))
    data = packed.read_bytes()
    packed.write_bytes(data[:-30])
    with pytest.raises(SourceError, match=rf"page.sql.gz is broken at byte {len(data) - 30:,}: .*Download it again"):
        answer(folder, "Grand Ventron")
    packed.write_bytes(data)
    plain = next(folder.glob("*-page_props.sql"))
    text = plain.read_bytes()
    for end in (b"INSERT INTO `page_p", b"Ventron, Gr", b"1.5)"):
        cut = text.index(end) + len(end)
        plain.write_bytes(text[:cut])
        with pytest.raises(SourceError, match=f"page_props.sql is broken at byte {cut:,}: it ends in the middle"):
            answer(folder, "Grand Ventron")


def test_what_is_no_dump_is_refused(folder):
    plain = next(folder.glob("*-page_props.sql"))
    text = plain.read_bytes()
    for wrong, message in [
        (b"<html>Not found</html>", "no CREATE TABLE"),
        (text.replace(b"`pp_value`", b"`value`"), "lacks the column pp_value; it has pp_page"),
        (text.replace(b"(1,'defaultsort'", b"(1,2,'defaultsort'"), "a row has 5 values for 4 columns"),
        (
            text.replace(b"VALUES (", b"VALUES x(", 1),
            f"broken at byte {text.index(b' (1,') + 1:,}: what follows is no row",
        ),
    ]:
        plain.write_bytes(wrong)
        with pytest.raises(SourceError, match=message):
            answer(folder, "Grand Ventron")


def test_rows_are_read_back_whatever_they_hold_and_wherever_chunks_end(tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    signs = [
        b"'",
        b"\\",
        b",",
        b"(",
        b")",
        b";",
        b"\n",
        b"\0",
        b"\x1a",
        b'"',
        b" ",
        b"NULL",
        b"),(5,14,",
        b"INSERT ",
        b"\xc3",
    ]
    rows: list[list[Value]] = []
    for k in range(60):
        text = b"".join(signs[i] for i in rng.integers(0, len(signs), rng.integers(0, 9)))
        rows.append([k, None if k % 7 == 3 else text, -k / 4, b"wanted" if k % 3 else text + b"x"])
    dump = write_dump(tmp_path, "a-t.sql", ["a", "b", "c", "d"], rows, per=5)
    keys = [row[3] for row in rows if isinstance(row[3], bytes)]
    whole = [tuple(v if isinstance(v, bytes) or v is None else str(v).encode() for v in row) for row in rows]
    start = dump.read_bytes().index(b"INSERT")
    for chunk in (start + 1, start + 17, start + 333, 1 << 20):
        monkeypatch.setattr(sqldump, "CHUNK", chunk)
        assert list(sqldump.select(dump, "d", keys, "abcd")) == whole
        assert list(sqldump.select(dump, "d", [b"wanted"], "ba")) == [r[1::-1] for r in whole if r[3] == b"wanted"]
        assert list(sqldump.select(dump, "a", [b"3", b"12"], "a")) == [(b"3",), (b"12",)]


def test_more_hits_than_are_kept_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(sqldump, "_HITS", 3)
    dump = write_dump(tmp_path, "a-t.sql", ["a", "b"], [[k, b"x"] for k in range(20)], per=9)
    assert [row[0] for row in sqldump.select(dump, "b", [b"x"], "a")] == [str(k).encode() for k in range(20)]


def test_other_ways_to_write_a_dump(tmp_path):
    dump = tmp_path / "a-t.sql"
    dump.write_bytes(
        b"INSERT INTO `t` (`b`, `a`) VALUES (_binary 'it''s', 1), ( 0x6974 , 2 );\nINSERT INTO `t` (`b`, `a`) VALUES\n('x',3);\n"
    )
    assert list(sqldump.select(dump, "b", [b"it's", b"it"], "ab")) == [(b"1", b"it's"), (b"2", b"it")]
    assert list(sqldump.select(dump, "a", [b"2", b"3"], "b")) == [(b"it",), (b"x",)]


def test_the_categories_of_the_sample(real_data: Path, tmp_path: Path):
    sample = pd.read_csv(real_data / "geotag/gldv2/gldv2_gc_sample.csv")
    names = [urllib.parse.unquote(url).split("Category:")[1].encode() for url in sample["category"]]
    places = sample[["latitude", "longitude"]].round(8).to_numpy().tolist()
    pages: list[list[Value]] = [[1000 + k, 14, name, 0, 0.5, b"20250101000000", None] for k, name in enumerate(names)]
    items: list[list[Value]] = [
        [1000 + k, b"wikibase_item", q.encode(), None] for k, q in enumerate(sample["wikidata_id"])
    ]
    tags: list[list[Value]] = [[k, 1000 + k, b"earth", 1, *place, 1, None, None] for k, place in enumerate(places)]
    item_pages = [page(7000 + k, q, 0) for k, q in enumerate(sample["wikidata_id"])]
    item_tags: list[list[Value]] = [[k, 7000 + k, b"earth", 1, *place, 1, None, None] for k, place in enumerate(places)]
    write_dump(tmp_path, "commonswiki-20250101-page.sql.gz", PAGE, pages)
    write_dump(tmp_path, "commonswiki-20250101-page_props.sql.gz", PROPS, items)
    write_dump(tmp_path, "commonswiki-20250101-geo_tags.sql.gz", TAGS, tags[::2])
    write_dump(tmp_path, "wikidatawiki-20250101-page.sql.gz", PAGE, item_pages)
    write_dump(tmp_path, "wikidatawiki-20250101-geo_tags.sql.gz", TAGS, item_tags)
    titles = [f"Category:{name.decode()}".replace("_", " ") for name in names]
    answers = dump_answers(tmp_path, titles)
    assert [answers[title].wikidata_id for title in titles] == sample["wikidata_id"].tolist()
    assert [[answers[title].lat, answers[title].lon] for title in titles] == places
