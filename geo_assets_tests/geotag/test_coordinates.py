"""Where landmarks are: which source wins, what is asked, and what is left after a kill."""

import datetime as dt
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from geo_assets.demo.geotag_inputs import wikimedia_world, write_geotag_inputs
from geo_assets.demo.wikimedia import Behaviour, Category, Statement, Wiki, World, simulated_time
from geo_assets.errors import ApiError, SourceError
from geo_assets.geotag import coordinates
from geo_assets.geotag.coordinates import JOURNAL, locate
from geo_assets.geotag.inputs import landmark_parts
from geo_assets.geotag.wikimedia import Reply, Wikimedia
from geo_assets.geotag.wikimedia_answers import Found
from geo_assets.lake import Lake
from geo_assets.settings import Geotag
from geo_assets.settings import Wikimedia as Api

SETTINGS = Geotag(landmarks=400, landmarks_per_part=100, wikimedia=Api(per_minute=1e6, connections=1))
ADDRESS = "http://commons.wikimedia.org/wiki/Category:"


class Killed(BaseException):
    """The process ends here."""


def places(n: int = 300) -> tuple[str, World]:
    """``train_label_to_category.csv`` of ``n`` landmarks, and their world: every third has only an item."""
    names = [f"Place {k}" for k in range(n)]
    lines = ["landmark_id,category", *(f"{k},{ADDRESS}{name.replace(' ', '_')}" for k, name in enumerate(names))]
    categories = {
        f"Category:{name}": Category(item=f"Q{k + 1}") if k % 3 == 0 else Category((k / 10, 1.0))
        for k, name in enumerate(names)
    }
    items = {f"Q{k + 1}": (Statement((k / 10, 2.0)),) for k in range(0, n, 3)}
    return "\n".join(lines) + "\n", World(categories, items)


def run(
    lake: Lake, folder: Path, wiki: Any, settings: Geotag = SETTINGS, parts: list[str] | None = None
) -> dict[str, Any]:
    """The figures of one call."""
    post = wiki.post if isinstance(wiki, Wiki) else wiki
    with Wikimedia(settings.wikimedia, lake=lake, post=post) as client:
        return locate(lake, folder, landmark_parts(settings) if parts is None else parts, settings, client)


def table(lake: Lake) -> pd.DataFrame:
    frames = [lake.read("landmark_coordinates", None, **p) for p in lake.partitions("landmark_coordinates")]
    return pd.concat(frames).set_index("landmark_id")


def rejects(lake: Lake) -> list[list[str]]:
    frames = [lake.read("geotag_rejects", None, **p) for p in lake.partitions("geotag_rejects")]
    return pd.concat(frames)[["row", "reason", "value"]].to_numpy().tolist()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


# -- what is asked -----------------------------------------------------------------------------------------------


def test_the_demo_landmarks_are_found(tmp_path: Path, lake: Lake) -> None:
    write_geotag_inputs(tmp_path)
    settings = SETTINGS.model_copy(update={"landmarks": 203_094, "landmarks_per_part": 100_000})
    wiki = Wiki(wikimedia_world())
    figures = run(lake, tmp_path / "google_landmark", wiki, settings)
    assert figures["n_landmarks"] == 90 and figures["n_found"] == 80 and not figures["n_rejects"]
    assert figures["origins"].keys() == {"geo_tags", "P625", "P301", "csv"} and figures["origins"]["csv"] == 11
    assert figures["calls"] == dict(wiki.record.calls)
    rows = table(lake)
    assert set(rows["kind"]) == {"human-made", "natural"} and set(rows["hierarchy"]) == {"building", "mountain"}
    assert list(rows["fetched_at"].isna()) == list(rows["origin"] == "csv")


def test_only_errors_are_asked_again(lake: Lake, folder: Path) -> None:
    # Earlier scripts went on behind the largest id that was written, so that what had failed before it was never asked.
    listing, world = places()
    (folder / "train_label_to_category.csv").write_text(listing)
    settings = SETTINGS.model_copy(update={"landmarks": 300})
    poisoned = Wiki(world, Behaviour(poison=frozenset({"Category:Place 5", "Category:Place 250"})))
    figures = run(lake, folder, poisoned, settings)
    assert figures["statuses"] == {"found": 298, "error": 2}
    assert "invalidtitle" in table(lake).loc["5", "reason"]
    before = table(lake)
    wiki = Wiki(world)
    figures = run(lake, folder, wiki, settings)
    assert wiki.record.asked["pages"] == ["Category:Place 5", "Category:Place 250"] and not wiki.record.asked["items"]
    assert figures["statuses"] == {"found": 300} and figures["n_known_already"] == 298
    after = table(lake)
    pd.testing.assert_frame_equal(after.drop(["5", "250"]), before.drop(["5", "250"]))
    wiki = Wiki(world)
    files = {path: path.read_bytes() for path in Path(lake.root).rglob("data.parquet")}
    assert run(lake, folder, wiki, settings)["calls"] == {} and not wiki.record.calls
    assert files == {path: path.read_bytes() for path in Path(lake.root).rglob("data.parquet")}


def test_each_part_is_written_once(lake: Lake, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Earlier scripts wrote the whole table anew for each landmark: 913 GB for all of them.
    listing, world = places()
    (folder / "train_label_to_category.csv").write_text(listing)
    wrote: list[str] = []
    write = Lake.write

    def counted(self: Lake, name: str, frame: pd.DataFrame, **options: Any) -> object:
        wrote.append(f"{name} {options['part']}")
        return write(self, name, frame, **options)

    monkeypatch.setattr(Lake, "write", counted)
    run(lake, folder, Wiki(world))
    parts = landmark_parts(SETTINGS)
    assert sorted(wrote) == sorted(f"{name} {p}" for p in parts for name in ("geotag_rejects", "landmark_coordinates"))
    for part in parts:
        assert wrote.index(f"geotag_rejects {part}") < wrote.index(f"landmark_coordinates {part}")
    written = sum(path.stat().st_size for path in Path(lake.root).rglob("*.parquet"))
    assert written < 100_000 and not lake.names(lake.key(JOURNAL))


def test_a_changed_category_and_an_old_answer_are_asked_again(lake: Lake, folder: Path) -> None:
    listing, world = places(100)
    (folder / "train_label_to_category.csv").write_text(listing)
    with simulated_time() as clock:
        run(lake, folder, Wiki(world))
        clock.now += 86_400
        (folder / "train_label_to_category.csv").write_text(listing.replace("Place_7\n", "Place_8\n"))
        wiki = Wiki(world)
        run(lake, folder, wiki)
        assert wiki.record.asked["pages"] == ["Category:Place 8"]
        noon = dt.datetime.fromtimestamp(clock.now - 3600, dt.UTC)
        wiki = Wiki(world)
        api = SETTINGS.wikimedia.model_copy(update={"renew_before": noon})
        run(lake, folder, wiki, SETTINGS.model_copy(update={"wikimedia": api}))
    assert wiki.record.asked["pages"] == [f"Category:Place {k}" for k in range(100) if k != 7]


def test_nobody_is_asked_where_the_settings_say_so(lake: Lake, folder: Path) -> None:
    listing, world = places(20)
    (folder / "train_label_to_category.csv").write_text(listing)
    wiki = Wiki(world)
    api = SETTINGS.wikimedia.model_copy(update={"ask": False})
    figures = run(lake, folder, wiki, SETTINGS.model_copy(update={"wikimedia": api}))
    assert figures["statuses"] == {"error": 20} and not wiki.record.calls
    (reason,) = set(table(lake)["reason"])
    assert "geotag.wikimedia.ask = true" in reason and "landmark_coordinates.csv" in reason
    assert run(lake, folder, wiki)["statuses"] == {"found": 20}


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "landmark_id,lon,lat\n1,2.5,48.75\n",
        "Id;Latitude;Longitude\n1;48.75;2.5\n",
        "\ufefflandmark_id,category,wikidata_id,latitude,longitude\n1,x,Q9,48.75,2.5\n",
        'landmark_id,coordinates\n1,"48° 45′ N, 2° 30′ E"\n',
        'id,geohack\n1,"48.75, 2.5"\n',
        "landmark_id,lon,lat,geohack\n1,,,48° 45′ 0″ N 2° 30′ 0″ E\n",
        "landmark_id,lon,lat\n1,2° 30′ E,48° 45′ N\n",
    ],
)
def test_a_file_of_coordinates_wins(lake: Lake, folder: Path, text: str) -> None:
    listing, world = places(3)
    (folder / "train_label_to_category.csv").write_text(listing)
    wiki = Wiki(world)
    run(lake, folder, wiki)
    (folder / "landmark_coordinates.csv").write_text(text)
    figures = run(lake, folder, wiki)
    row = table(lake).loc["1"]
    assert (row["lon"], row["lat"], row["origin"], row["status"]) == (2.5, 48.75, "csv", "found")
    assert pd.isna(row["fetched_at"]) and row["category"] == "Category:Place 1"
    assert figures["calls"] == {} and not figures["n_rejects"]
    (folder / "landmark_coordinates.csv").unlink()
    run(lake, folder, wiki)
    assert table(lake).loc["1", "origin"] == "geo_tags"


@pytest.mark.parametrize("below", ["metadata", "train"])
def test_files_may_lie_where_people_keep_them(lake: Lake, folder: Path, below: str) -> None:
    listing, world = places(3)
    (folder / below).mkdir()
    (folder / below / "train_label_to_category.csv").write_text(listing)
    (folder / "metadata").mkdir(exist_ok=True)
    (folder / "metadata" / "landmark_coordinates.csv").write_text("landmark_id,lon,lat\n1,2.5,48.75\n")
    run(lake, folder, Wiki(world))
    assert table(lake)["origin"].tolist() == ["P625", "csv", "geo_tags"]


def test_lines_without_a_coordinate_are_no_answers_and_bad_ones_are_rejects(lake: Lake, folder: Path) -> None:
    listing, world = places(9)
    (folder / "train_label_to_category.csv").write_text(listing)
    lines = ["0,nan,NaN", "1,,", "2,x,48", "3,500,1", "4,1,1", "4,2,2", "400,1,1", "a,1,1", "5,,48", "6,1,1,1"]
    (folder / "landmark_coordinates.csv").write_text("\n".join(["landmark_id,lon,lat", *lines]))
    assert run(lake, folder, Wiki(world))["origins"] == {"geo_tags": 5, "P625": 3, "csv": 1}
    assert sorted(rejects(lake)) == [
        ["2", "the position is missing or not a number", "lon=x, lat=48"],
        ["3", "the position is out of range", "lon=500, lat=1"],
        ["5", "the landmark has a coordinate already", "lon=2, lat=2"],
        ["6", "the landmark id is not below geotag.landmarks = 400: raise it in geo_assets.toml", "400"],
        ["7", "the landmark id is no number", "a"],
        ["8", "the position is missing or not a number", "lon=, lat=48"],
        ["line 11", "the line has too many fields", "6,1,1,1"],
    ]


def test_lines_of_categories_that_are_no_landmarks_are_rejects(lake: Lake, folder: Path) -> None:
    lines = [f"0,{ADDRESS}Place_0", "0,again", "-1,x", "1.5,x", "400,x", "1,http://example.org/", "2,"]
    (folder / "train_label_to_category.csv").write_text("\n".join(["landmark_id,category", *lines]))
    assert run(lake, folder, Wiki(places(1)[1]))["statuses"] == {"missing": 2, "found": 1}
    assert [row for row, *_ in sorted(rejects(lake))] == ["1", "2", "3", "4"]
    assert table(lake).loc["1", "reason"] == "'http://example.org/' is no category of Wikimedia Commons"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "train_label_to_category.csv is missing in .* landmark_id, category"),
        ({"train_label_to_category.csv": "a,b\n1,2\n"}, "train_label_to_category.csv lacks landmark_id"),
        ({"landmark_coordinates.csv": "landmark_id,x\n1,2\n"}, "landmark_coordinates.csv lacks lon .*longitude"),
        ({"landmark_coordinates.csv": "landmark_id,lon,lat\n1,48,100\n2,50,120\n"}, "header seems swapped"),
    ],
)
def test_what_is_missing_is_said(lake: Lake, folder: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        run(lake, folder, Wiki(places(1)[1]))
    assert not lake.partitions("landmark_coordinates")


def test_coordinates_alone_are_enough(lake: Lake, folder: Path) -> None:
    (folder / "landmark_coordinates.csv").write_text("landmark_id,lon,lat\n150,2.5,48.75\nindex/7,3.5,49.75\n")
    settings = SETTINGS.model_copy(update={"landmark_index": True, "index_landmarks": 100})
    run(lake, folder, Wiki(World({})), settings)
    assert table(lake)["lon"].to_dict() == {"150": 2.5, "index/7": 3.5}
    assert not rejects(lake)


def test_landmarks_of_the_index_set_have_ids_of_their_own(lake: Lake, folder: Path) -> None:
    (folder / "train_label_to_category.csv").write_text(f"landmark_id,category\n7,{ADDRESS}Place_1\n")
    (folder / "index_label_to_category.csv").write_text(f"landmark_id,category\n7,{ADDRESS}Place_2\n")
    settings = SETTINGS.model_copy(update={"landmark_index": True, "index_landmarks": 100})
    wiki = Wiki(places(3)[1])
    run(lake, folder, wiki, settings)
    assert table(lake)["lon"].to_dict() == {"7": 0.1, "index/7": 0.2} and wiki.record.calls["pages"] == 1


def test_dumps_come_before_the_table_and_instead_of_calls(
    lake: Lake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, world = places(4)
    (folder / "train_label_to_category.csv").write_text(listing)
    dumped = {"Category:Place 0": Found("Category:Place 0", "found", "Q1", 9.0, 9.0, origin="dump")}
    gap = {f"Category:Place {k}": Found(f"Category:Place {k}", "no_coordinate", f"Q{k}") for k in (1, 2, 3)}
    monkeypatch.setattr(coordinates, "dump_answers", lambda folder, titles, log: dumped | gap)
    dumps = SETTINGS.model_copy(update={"wikimedia": SETTINGS.wikimedia.model_copy(update={"dumps": folder})})
    wiki = Wiki(world)
    assert run(lake, folder, wiki, dumps)["statuses"] == {"no_coordinate": 3, "found": 1} and not wiki.record.calls
    # A gap in the dumps is none of the APIs, but a coordinate is one.
    assert run(lake, folder, wiki)["statuses"] == {"found": 4}
    assert wiki.record.asked["pages"] == ["Category:Place 1", "Category:Place 2", "Category:Place 3"]
    assert run(lake, folder, wiki, dumps)["origins"] == {"geo_tags": 2, "dump": 1, "P625": 1}


# -- kills -------------------------------------------------------------------------------------------------------


def dying(wiki: Wiki, n: int) -> Any:
    """Answers ``n`` calls."""

    async def post(url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        if sum(wiki.record.calls.values()) >= n:
            raise Killed
        return await wiki.post(url, form, headers)

    return post


@pytest.mark.parametrize("connections", [1, 3])
def test_a_kill_repeats_at_most_the_calls_in_flight(tmp_path: Path, folder: Path, connections: int) -> None:
    listing, world = places(290)
    (folder / "train_label_to_category.csv").write_text(listing)
    api = SETTINGS.wikimedia.model_copy(update={"connections": connections})
    settings = SETTINGS.model_copy(update={"landmarks": 300, "landmarks_per_part": 150, "wikimedia": api})
    whole, undisturbed = Lake(tmp_path / "whole"), Wiki(world)
    run(whole, folder, undisturbed, settings)
    n_calls = sum(undisturbed.record.calls.values())
    lake, wiki = Lake(tmp_path / "lake"), Wiki(world)
    kills = 0
    for after in range(1, n_calls + 20):
        try:
            run(lake, folder, dying(wiki, after), settings)
        except Killed:
            kills += 1
        else:
            break
    assert n_calls == 8 and kills >= n_calls - 1
    assert sum(wiki.record.calls.values()) <= n_calls + kills * (connections - 1)
    pd.testing.assert_frame_equal(table(lake).drop(columns="fetched_at"), table(whole).drop(columns="fetched_at"))
    assert not lake.names(lake.key(JOURNAL))


def test_an_answer_keeps_its_time_over_a_kill(lake: Lake, folder: Path) -> None:
    listing, world = places(60)
    (folder / "train_label_to_category.csv").write_text(listing)
    with simulated_time() as clock:
        began, wiki = clock.now, Wiki(world)
        with pytest.raises(Killed):
            run(lake, folder, dying(wiki, 1))
        clock.now += 3600
        run(lake, folder, wiki)
    hours = {k: (at.timestamp() - began) // 3600 for k, at in table(lake)["fetched_at"].items()}
    assert (hours["1"], hours["59"]) == (0, 1)


def test_what_was_kept_by_another_version_is_no_answer(lake: Lake, folder: Path) -> None:
    listing, world = places(10)
    (folder / "train_label_to_category.csv").write_text(listing)
    for number, text in enumerate(("", "[]", '{"kind": "pages", "at": "2026-01-01", "answers": {"a": {"x": 1}}}')):
        lake.put_bytes(lake.key(JOURNAL, f"{number}.json"), text.encode())
    assert run(lake, folder, Wiki(world))["statuses"] == {"found": 10}


def test_finished_parts_are_written_before_the_search_ends(lake: Lake, folder: Path) -> None:
    listing, world = places(400)
    (folder / "train_label_to_category.csv").write_text(listing)
    broken = Wiki(world, Behaviour(fault=lambda kind, n: "reset" if kind == "pages" and n > 5 else None))
    with simulated_time(), pytest.raises(ApiError, match="does not answer"):
        run(lake, folder, broken)
    assert lake.partitions("landmark_coordinates") == [{"part": "train-000000"}]
    assert lake.names(lake.key(JOURNAL))
    wiki = Wiki(world)
    run(lake, folder, wiki, parts=landmark_parts(SETTINGS)[1:])
    assert wiki.record.asked["pages"] == [f"Category:Place {k}" for k in range(250, 400)]
    assert len(table(lake)) == 400


# -- real samples ------------------------------------------------------------------------------------------------


def test_real_categories_and_real_answers(real_data: Path, lake: Lake, folder: Path) -> None:
    data = real_data / "geotag"
    shutil.copy(data / "gldv2/train_label_to_category_sample.csv", folder / "train_label_to_category.csv")
    pages = json.loads((data / "wikimedia/commons_query_coordinates_pageprops.json").read_bytes())
    entities = (data / "wikimedia/wbgetentities_claims.json").read_bytes()

    async def post(url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Reply:
        if form["action"] == "wbgetentities":
            return Reply(200, entities, {})
        known = {page["title"] for page in pages["query"]["pages"]}
        others = [{"title": title, "missing": True} for title in form["titles"].split("|") if title not in known]
        query = pages["query"] | {"pages": pages["query"]["pages"] + others}
        return Reply(200, json.dumps({"batchcomplete": True, "query": query}).encode(), {})

    assert run(lake, folder, post)["statuses"] == {"missing": 20, "found": 5}
    anchor = pd.read_csv(data / "gldv2/gldv2_gc_sample.csv", dtype={"landmark_id": str}).set_index("landmark_id")
    rows = table(lake)
    found = rows[rows["status"] == "found"]
    assert sorted(found["origin"]) == ["P625", *["geo_tags"] * 4]
    for landmark_id, row in found.iterrows():
        known = anchor.loc[str(landmark_id)]
        assert row["wikidata_id"] == known["wikidata_id"]
        assert abs(row["lon"] - known["longitude"]) < 1e-9 and abs(row["lat"] - known["latitude"]) < 1e-9
    assert rows.loc["137", "category"] == "Category:Église Notre-Dame-de-l'Assomption de Pointe-Noire"


def test_a_real_table_of_coordinates_needs_no_call(real_data: Path, lake: Lake, folder: Path) -> None:
    data = real_data / "geotag/gldv2"
    shutil.copy(data / "train_label_to_category_sample.csv", folder / "train_label_to_category.csv")
    shutil.copy(data / "gldv2_gc_sample.csv", folder / "landmark_coordinates.csv")
    wiki = Wiki(World({}))
    assert run(lake, folder, wiki)["origins"] == {"csv": 25} and not wiki.record.calls
    assert table(lake).loc["155", ["lon", "wikidata_id"]].tolist() == [14.4000401629, "Q3503455"]


def test_every_real_text_of_a_position_is_read(real_data: Path, lake: Lake, folder: Path) -> None:
    # Earlier scripts read two of these six; the rest became landmarks without a coordinate.
    lines = (real_data / "geotag/wikimedia/geohack_texts.txt").read_text().splitlines()[1:]
    texts = [line.split("\t")[0] for line in lines]
    frame = pd.DataFrame({"landmark_id": range(len(texts)), "geohack": texts})
    frame.to_csv(folder / "landmark_coordinates.csv", index=False)
    assert run(lake, folder, Wiki(World({})))["origins"] == {"csv": 6}
    rows = table(lake).sort_index().loc[:, ["lon", "lat"]].round(4).to_numpy().tolist()
    yale = [-72.9286, 41.3111]
    assert rows == [yale, [114.182, 22.2728], [-3.1833, 55.95], [0, 0], yale, yale]
