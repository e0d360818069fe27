import datetime as dt
import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyogrio
import pytest

from geo_assets.errors import ConfigError, SourceError
from geo_assets.harvest import export
from geo_assets.harvest.export import CSV_COLUMNS, LICENCE_URL, export_city, images_of, read_harvest, subtract
from geo_assets.lake import Lake
from geo_assets.tables import TABLES
from geo_assets_tests.harvest.rows import LAT, LON, NOON, frame, image, track

NOW = dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC)
CITY = "here"


def put(lake: Lake, table: str, box: str, *rows: dict[str, Any], city: str = CITY) -> None:
    lake.write(table, TABLES[table].frame(list(rows)).astype(object), city=city, box=box)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Two boxes of a city: a sequence through both, an image of another author, a deleted one, a splat; and elsewhere."""
    lake = Lake(tmp_path / "lake")
    through = track("a", [0, 10, 20, 30])
    put(lake, "image_metadata", "r00c00", *through[:2], image("gone", 5, tombstoned_at=NOON, creator_username="eve"),
        image("98765432109876543", 7, sequence_id="z", creator_username="b|ea", dropped_by="spacing",
              computed_rotation=[0.1, 0.2, 0.3], captured_at_ms=1714564800123))  # fmt: skip
    put(lake, "image_metadata", "r00c01", *through[1:], image("nowhere", None, sequence_id="n", creator_username=None, creator_id=None))  # fmt: skip
    put(lake, "image_metadata", "r00c00", image("other", sequence_id="o"), city="there")
    put(lake, "image_files", "r00c00", {"image_id": "a000", "status": "done", "path": "files/images/a000.jpg"},
        {"image_id": "a001", "status": "dead", "path": None})  # fmt: skip
    edges = {"west": LON, "south": LAT, "east": LON + 0.0002, "north": LAT + 0.001}
    put(lake, "bbox_partitions", "r00c00", edges)
    put(lake, "bbox_partitions", "r00c01", edges | {"west": LON + 0.0002, "east": LON + 0.0004})
    put(lake, "certificates", "r00c00", {"complete": True, "n_images": 3, "fetched_at": NOON})
    put(lake, "certificates", "r00c01", {"complete": True, "n_images": 4, "fetched_at": NOON})
    put(lake, "splat_ply", "r00c00", {"status": "trained", "path": "files/splats/r00c00"})
    put(lake, "splat_ply", "r00c01", {"status": "empty", "path": None})
    put(lake, "splat_views", "r00c00", {"image_id": "a000"}, {"image_id": "98765432109876543"})
    return lake


def ids(folder: Path) -> list[str]:
    return pd.read_csv(folder / "images.csv", dtype=str)["id"].tolist()


ALL = ["98765432109876543", "a000", "a001", "a002", "a003", "nowhere"]


def test_an_export_holds_every_image_once_in_every_format(lake: Lake, tmp_path: Path) -> None:
    found = export_city(lake, CITY, tmp_path / "out", now=NOW)
    assert [path.name for path in found.files] == [
        "ATTRIBUTION.md", "README.md", "attribution.csv", "attribution.html", "images.csv", "images.gpkg", "images.parquet"
    ]  # fmt: skip
    assert all(path.is_file() for path in found.files)
    assert found.figures | {"n_images": 6, "n_sequences": 3, "n_boxes": 2, "n_complete_boxes": 2, "n_tombstones": 1,
                            "n_authors": 3, "n_splats": 1} == found.figures  # fmt: skip
    assert ids(tmp_path / "out") == ALL
    points = gpd.read_parquet(tmp_path / "out" / "images.parquet")
    assert points["image_id"].tolist() == ALL and points.crs == "EPSG:4326"
    assert points.geometry.iloc[1].x == pytest.approx(LON) and points.geometry.iloc[5] is None
    assert list(points["computed_rotation"].iloc[0]) == [0.1, 0.2, 0.3]
    assert points["file"].tolist()[1] == "files/images/a000.jpg" and len(points["file"].dropna()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lake", "out"]  # nothing temporary is left


def test_the_geopackage_has_three_layers(lake: Lake, tmp_path: Path) -> None:
    path = export_city(lake, CITY, tmp_path / "out", ["gpkg"]).files[-1]
    assert pyogrio.list_layers(path).tolist() == [
        ["images", "Point"], ["sequences", "MultiLineString"], ["boxes", "Polygon"]
    ]  # fmt: skip
    images, lines, boxes = (gpd.read_file(path, layer=layer) for layer in ("images", "sequences", "boxes"))
    assert images["image_id"].tolist() == ALL and images.crs == "EPSG:4326"
    assert images["captured_at"].iloc[0] == NOON
    (line,) = lines.to_dict("records")  # whole across the border of the boxes
    assert line["image_ids"] == "a000,a001,a002,a003" and line["length_m"] == pytest.approx(30, rel=1e-4)
    assert boxes["box"].tolist() == ["r00c00", "r00c01"] and bool(boxes["complete"].all())


def test_the_csv_has_the_columns_of_earlier_harvesters(lake: Lake, tmp_path: Path) -> None:
    export_city(lake, CITY, tmp_path / "out", ["csv"])
    rows = pd.read_csv(tmp_path / "out" / "images.csv", dtype={"id": str})
    assert tuple(rows.columns) == CSV_COLUMNS
    first, second = rows.iloc[0], rows.iloc[1]
    assert first["timestamp"] == 1714564800123 and second["timestamp"] == NOON.value // 1_000_000
    assert first["page"] == "https://www.mapillary.com/app/?pKey=98765432109876543"
    assert (
        first["geometry"] == f"POINT ({first['long']:.7f} {first['lat']:.7f})" and len(rows["geometry"].dropna()) == 5
    )
    assert (first["dropped_by"], first["creator"], second["file"]) == ("spacing", "b|ea", "files/images/a000.jpg")


def test_geojson_holds_points_with_longitude_first(lake: Lake, tmp_path: Path) -> None:
    export_city(lake, CITY, tmp_path / "out", ["geojson"], now=NOW)
    features = json.loads((tmp_path / "out" / "images.geojson").read_text())["features"]
    assert [feature["properties"]["image_id"] for feature in features] == ALL
    assert features[1]["geometry"]["coordinates"] == pytest.approx([LON, LAT], abs=1e-3)
    assert features[5]["geometry"] is None
    assert "images.geojson" in (tmp_path / "out" / "README.md").read_text()


def test_the_credits_alone_are_an_export_and_a_page_that_no_name_breaks(lake: Lake, tmp_path: Path) -> None:
    metadata = lake.read("image_metadata", city=CITY, box="r00c00")
    metadata["creator_username"] = "<script>alert(1)</script>"
    lake.write("image_metadata", metadata.astype(object), city=CITY, box="r00c00")
    export_city(lake, CITY, tmp_path / "out", ["attribution"])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["ATTRIBUTION.md", "README.md", "attribution.csv", "attribution.html"]
    page = (tmp_path / "out" / "attribution.html").read_text()
    assert "&lt;script&gt;" in page and "<script" not in page
    assert LICENCE_URL in page


def test_only_what_was_asked_for_is_made_and_what_is_old_goes(lake: Lake, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_city(lake, CITY, out)
    (out / "mine.txt").write_text("keep")
    export_city(lake, CITY, out, ["csv"], only_selected=True)
    assert sorted(p.name for p in out.iterdir()) == [
        "ATTRIBUTION.md", "README.md", "attribution.csv", "attribution.html", "images.csv", "mine.txt"
    ]  # fmt: skip
    assert ids(out) == ALL[1:]


def test_a_failure_leaves_the_earlier_export_as_it_was(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export_city(lake, CITY, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: Any) -> pd.DataFrame:
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "earlier_columns", full)
    with pytest.raises(OSError, match="No space"):
        export_city(lake, CITY, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lake", "out"]


def test_wrong_wishes_are_said(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown format shp; an export is made as gpkg, parquet, csv"):
        export_city(lake, CITY, tmp_path / "out", ["shp"])
    with pytest.raises(ConfigError, match="Nothing was harvested of 'mars'"):
        export_city(lake, "mars", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        export_city(lake, CITY, tmp_path / "file")


def test_a_city_without_images_is_exported(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    put(lake, "image_metadata", "r00c00")
    found = export_city(lake, CITY, tmp_path / "out")
    assert found.figures["n_images"] == 0 and gpd.read_parquet(tmp_path / "out" / "images.parquet").empty
    assert len(pyogrio.list_layers(tmp_path / "out" / "images.gpkg")) == 3


# -- earlier harvests


@pytest.mark.parametrize("name", ["images.csv", "images.parquet", "images.gpkg"])
def test_an_export_is_subtracted_from_itself_in_every_format(lake: Lake, tmp_path: Path, name: str) -> None:
    export_city(lake, CITY, tmp_path / "old")
    found = export_city(lake, CITY, tmp_path / "out", ["csv"], without=[tmp_path / "old" / name])
    assert found.figures["n_images"] == 0 and found.figures["n_known_already"] == 6


def test_known_ids_and_known_sequences_are_left_out(lake: Lake, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.csv"
    earlier.write_text("sequence,id,long,lat\nother,98765432109876543,1,2\na,unknown,1,2\n")
    export_city(lake, CITY, tmp_path / "out", ["csv"], without=[earlier])
    assert ids(tmp_path / "out") == ["nowhere"]
    earlier.write_text("sequence\nz\n")
    assert "98765432109876543" not in set(subtract(images_of(lake, CITY), [earlier])["image_id"])


def test_ids_that_were_saved_as_numbers_are_the_same_ids(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    pd.DataFrame({"id": [98765432109876543, 5]}).to_parquet(path)
    left = subtract(frame(image("98765432109876543"), image("98765432109876544")), [path])
    assert left["image_id"].tolist() == ["98765432109876544"]
    path = tmp_path / "old.csv"
    path.write_text("id\n5.0\n")
    assert read_harvest(path)["image_id"].tolist() == ["5"]


def test_harvests_are_merged_each_image_once(lake: Lake, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.csv"
    earlier.write_text(
        "sequence,id,url,long,lat,geometry,height,width,altitude,make,model,creator,is_pano,timestamp\n"
        "q,new,https://x,10.5,1.25,POINT (1 2),480,640,3.5,GoPro,Max,\"{'username': 'zoe', 'id': '9'}\",True,1600000000000\n"
        "a,a000,https://x,77,1,,480,640,,,,,False,\n"
        "a,gone,https://x,77,1,,480,640,,,,,False,\n"
        ",,,,,,,,,,,,,\n"
    )
    found = export_city(lake, CITY, tmp_path / "out", also=[earlier])
    rows = pd.read_csv(tmp_path / "out" / "images.csv", dtype={"id": str}).set_index("id")
    assert sorted(rows.index) == sorted([*ALL, "new"])  # what the provider deleted does not come back
    assert rows.loc["a000", "long"] == pytest.approx(LON)  # the harvest that asked last is believed
    new = rows.loc["new"]
    assert (new["creator"], new["long"], new["width"], new["timestamp"]) == ("zoe", 10.5, 640, 1600000000000)
    assert bool(new["is_pano"]) and str(new["captured_at"]).startswith("2020-09-13T12:26:40")
    assert found.figures["n_images"] == 7


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "name,value\n1,2\n", "needs id or image_id"),
        ("x.csv", "", "cannot be read as an earlier harvest"),
        ("x.parquet", "no parquet", "cannot be read as an earlier harvest"),
        ("x.gpkg", "no gpkg", "cannot be read as an earlier harvest"),
        ("x.txt", "id\n1\n", "is a .csv, .parquet or .gpkg file, not .txt"),
    ],
)
def test_what_is_no_harvest_is_said(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(SourceError, match=said):
        read_harvest(path)


# -- credits


def test_every_author_is_credited_with_a_link(lake: Lake, tmp_path: Path) -> None:
    export_city(lake, CITY, tmp_path / "out", ["csv"])
    people = pd.read_csv(tmp_path / "out" / "attribution.csv", keep_default_na=False).set_index("creator")
    assert people["n_images"].to_dict() == {"ada": 4, "b|ea": 1, "": 1}
    assert people.loc["ada", "credit"] == (
        "Photos from Mapillary, CC BY-SA 4.0, by @ada, https://www.mapillary.com/app/user/ada"
    )
    # An image without an author is credited by its page; deleted images are not exported, so eve is not named.
    assert people.loc["", "credit"] == (
        "Photos from Mapillary, CC BY-SA 4.0, https://www.mapillary.com/app/?pKey=nowhere"
    )
    page = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert "ShareAlike" in page and "| [ada](https://www.mapillary.com/app/user/ada) | 4 | 1 | CC BY-SA 4.0 |" in page
    assert "b\\|ea" in page and "user/eve" not in page
    assert "| r00c00 | files/splats/r00c00 | 2 | Made of photos from Mapillary, CC BY-SA 4.0, by @ada, @b\\|ea; changed |" in page  # fmt: skip
    assert "r00c01" not in page


def test_own_photos_are_not_credited_to_mapillary() -> None:
    rows = frame(image("1", source_path="x/1.jpg", licence="own photo"), image("2"))
    people = export.authors(rows)
    assert sorted(people["credit"]) == [
        "Own photos by ada, own photo", "Photos from Mapillary, CC BY-SA 4.0, by @ada, https://www.mapillary.com/app/user/ada"
    ]  # fmt: skip
    assert export.page_of("1", "x/1.jpg") is None


def test_the_readme_says_what_when_and_how_complete(lake: Lake, tmp_path: Path) -> None:
    export_city(lake, CITY, tmp_path / "out", ["csv"], now=NOW)
    page = (tmp_path / "out" / "README.md").read_text()
    assert "6 images in 3 sequences by 3 authors. Exported 2026-01-02 03:04 UTC." in page
    assert "Complete: the certificates of all 2 boxes leave nothing unresolved." in page
    assert "Harvested 2024-05-01 12:00" in page and "CC BY-SA 4.0" in page
    assert "1 images that the provider deleted are left out." in page
    assert "`images.csv`" in page and "`images.gpkg`" not in page


@pytest.mark.parametrize(
    ("complete", "said"),
    [(False, "of 2 boxes, 1 have something unresolved"), (None, "of 2 boxes, 1 have no certificate")],
)
def test_the_readme_does_not_claim_what_is_not_proven(
    lake: Lake, tmp_path: Path, complete: bool | None, said: str
) -> None:
    put(lake, "certificates", "r00c01", {"complete": complete, "n_images": 4, "fetched_at": NOON})
    export_city(lake, CITY, tmp_path / "out", ["csv"])
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"Not known to be complete: {said}." in page and "Complete:" not in page
