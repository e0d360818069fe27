from pathlib import Path

import geopandas as gpd
import pandas as pd
import pytest
import shapely

from geo_assets.harvest.lines import city_lines, legs_m, sequence_lines, together, write_lines
from geo_assets.lake import BoxPartition, Lake
from geo_assets_tests.harvest.rows import LAT, LON, NOON, frame, image, track


def test_a_line_goes_through_its_images_in_the_order_of_capture() -> None:
    rows = track("a", [0, 30, 10, 20])
    for row, ms in zip(rows, (0, 3, 1, 2), strict=True):
        row |= {"captured_at_ms": ms, "captured_at": NOON + pd.Timedelta(milliseconds=ms)}
    (line,) = sequence_lines(frame(*rows)).to_dict("records")
    assert line["image_ids"] == ["a000", "a002", "a003", "a001"]
    assert [round((x - LON) * 111_319.49) for x, _ in line["geometry"].coords] == [0, 10, 20, 30]
    assert line["length_m"] == pytest.approx(30, rel=1e-4)
    assert (line["n_images"], line["creator"], line["started_at"]) == (4, "ada", NOON)
    assert line["ended_at"] == NOON + pd.Timedelta(milliseconds=3)


def test_lengths_are_geodesic() -> None:
    # A degree of the meridian at the equator and of the equator itself, WGS84.
    assert legs_m([0, 0], [0, 1]) == pytest.approx([110_574.39], abs=0.01)
    assert legs_m([0, 1], [0, 0]) == pytest.approx([111_319.49], abs=0.01)
    assert len(legs_m([1.0], [1.0])) == 0


def test_a_gap_interrupts_the_line_and_has_no_length() -> None:
    metadata = frame(*track("a", [0, 100, 301, 401, 9000]))
    (line,) = sequence_lines(metadata).to_dict("records")
    assert line["geometry"].geom_type == "MultiLineString" and len(line["geometry"].geoms) == 2
    assert line["length_m"] == pytest.approx(200, rel=1e-4) and line["n_images"] == 5
    (joined,) = sequence_lines(metadata, gap_m=1e5).to_dict("records")
    assert joined["geometry"].geom_type == "LineString" and joined["length_m"] == pytest.approx(9000, rel=1e-4)


def test_what_is_no_line_has_no_row() -> None:
    metadata = frame(
        image("alone", sequence_id="one"),
        *track("same", [5, 5, 5]),
        *track("apart", [0, 5000]),
        image("loose", sequence_id=None),
        image("nowhere", None, sequence_id="n"),
        *track("gone", [0, 10], tombstoned_at=NOON),
    )
    lines = sequence_lines(metadata)
    assert lines.empty and lines.crs == "EPSG:4326"
    assert sequence_lines(frame()).empty


def test_the_antimeridian_is_not_crossed_the_long_way_round() -> None:
    rows = [image(str(k), sequence_id="a", lon=lon, captured_at_ms=k) for k, lon in enumerate((179.9998, 179.9999, -179.9999, -179.9998))]  # fmt: skip
    (line,) = sequence_lines(frame(*rows)).to_dict("records")
    assert [part.length < 1 for part in line["geometry"].geoms] == [True, True]


def test_boxes_give_one_line_together(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    rows = track("a", [0, 10, 20, 30])
    lake.write("image_metadata", frame(*rows[:2]), city="here", box="r00c00")
    lake.write("image_metadata", frame(*rows[1:]), city="here", box="r00c01")  # one image stands in both
    lake.write("image_metadata", frame(*track("b", [0, 10])), city="there", box="r00c00")
    (line,) = city_lines(lake, "here").to_dict("records")
    assert line["image_ids"] == ["a000", "a001", "a002", "a003"] and line["length_m"] == pytest.approx(30, rel=1e-4)
    assert city_lines(lake, "nowhere").empty


def test_an_image_that_stands_in_several_harvests_counts_once() -> None:
    first, again = frame(*track("a", [0, 10])), frame(*track("a", [0, 10]), *track("b", [0, 10]))
    assert sequence_lines(pd.concat([first, again]))["n_images"].tolist() == [2, 2]
    old = frame(*track("a", [0], fetched_at=NOON - pd.Timedelta(days=1), make="old"))
    new = frame(*track("a", [0], fetched_at=NOON, make="new"))
    for frames in ([old, new], [new, old]):
        assert together(frames)["make"].tolist() == ["new"]  # as it was asked about last
    assert together([]).empty and list(together([]).columns) == list(old.columns)


def test_the_table_is_geoparquet(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    where = BoxPartition(city="here", box="r00c00")
    metadata = frame(*track("b", [0, 10, 500, 510]), *track("a", [0, 10]))
    lake.write("image_metadata", metadata, **where)
    facts = write_lines(lake, **where)
    assert facts.rows == 2
    read = gpd.read_parquet(facts.uri)
    assert read.crs == "EPSG:4326" and read["sequence_id"].tolist() == ["a", "b"]
    assert read.geometry.geom_type.tolist() == ["LineString", "MultiLineString"]
    assert read.geometry.iloc[0].equals(sequence_lines(metadata).geometry.iloc[0])
    # The lake and SQL see the same rows, geometry as bytes.
    plain = lake.read("sequence_paths", **where)
    assert shapely.from_wkb(plain["geometry"].iloc[0]).equals(read.geometry.iloc[0])
    with lake.connect("sequence_paths") as con:
        found = con.sql("select city, sequence_id, round(length_m), len(image_ids) from sequence_paths order by 2")
        assert found.fetchall() == [("here", "a", 10.0, 2), ("here", "b", 20.0, 4)]


def test_a_box_without_lines_is_geoparquet_too(tmp_path: Path) -> None:
    facts = write_lines(Lake(tmp_path), "here", "r00c00", frame())
    assert facts.rows == 0 and gpd.read_parquet(facts.uri).empty
    assert abs(LAT) < 1
