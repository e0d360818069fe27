import os
from typing import Any

import pandas as pd
import pytest

from geo_assets.errors import ConfigError
from geo_assets.harvest.lines import city_lines, write_lines
from geo_assets.lake import Lake
from geo_assets.sql_models import SQL_FOLDER, answer, make_model, model_folders, read_models
from geo_assets.tables import to_pandas
from geo_assets_tests.sql_lake import make_all, mart, rows, small_lake, write_models


@pytest.fixture
def lake(tmp_path) -> Lake:
    return small_lake(tmp_path / "lake")


def test_the_marts_of_a_small_lake(lake):
    made = make_all(lake)
    assert not [(name, v.check.text) for name, each in made.items() for v in each.verdicts if not v.passed]
    coverage = mart(lake, "coverage").set_index("box")
    assert coverage.loc["r00c00", ["n_tile_images", "n_images", "n_files", "n_dead"]].tolist() == [4, 5, 3, 1]
    assert coverage.loc["r00c00", "share"] == 3 / 4 and pd.isna(coverage.loc["r00c01", "share"])
    credit = mart(lake, "attribution").set_index("creator")
    assert credit["n_images"].to_dict() == {"ada": 2, "bea": 1} and credit.loc["bea", "credit"] == "© bea"
    quality = mart(lake, "box_quality").set_index("box")
    assert quality.loc["r00c00", ["registered_share", "gps_median_m", "gain_db"]].tolist() == [0.75, 0.5, 7.5]
    assert quality["state"].tolist() == ["splat", "empty"]
    assert quality.loc["r00c00", ["status", "route", "n_blocks", "n_quarantined"]].tolist() == [
        "placed",
        "updated",
        2,
        1,
    ]
    assert quality.loc["r00c00", ["observations_per_image", "border_m", "focal_change"]].tolist() == [150.0, 0.1, 0.02]
    assert quality.loc["r00c00", ["cpu_seconds", "peak_mb"]].tolist() == [12.5, 300.0]
    # The largest component has no roll; that of another one does not stand in for it.
    assert pd.isna(quality.loc["r00c00", "roll_deg"]) and pd.isna(quality.loc["r00c01", "status"])
    sources = mart(lake, "geotag_sources")
    assert sources[["n_photos", "n_coordinates", "n_rejects"]].values.tolist() == [[4, 2, 1]]
    balance = mart(lake, "cell_balance")
    assert balance["gini"].tolist() == [0.25, 0.0] and balance["n_cells"].tolist() == [2, 1]


def test_the_funnel_counts_an_image_in_its_own_box(lake):
    funnel = to_pandas(answer(lake, "reconstruction_funnel")).set_index("box")
    # Image 9 has a camera and is in the splat, but lies in the margin.
    counts = ["n_tile_images", "n_harvested", "n_downloaded", "n_featured", "n_paired", "n_registered", "n_splatted"]
    assert funnel.loc["r00c00", counts].tolist() == [4, 5, 3, 3, 3, 3, 2]
    assert funnel["state"].tolist() == ["splatted", "empty"]


def test_a_panorama_is_one_image_of_the_funnel(lake):
    here: Any = {"city": "demo", "box": "r00c00"}
    views = [{"image_id": f"0_{k}", "photo_id": "0", "home_box": "r00c00", "n_keypoints": 9 * k} for k in range(4)]
    lake.write("gps_db", rows("gps_db", *views), **here)
    lake.write("model_cameras", rows("model_cameras", {"image_id": "0_2"}, {"image_id": "0_3"}), **here)
    funnel = to_pandas(answer(lake, "reconstruction_funnel", city="demo")).set_index("box")
    assert funnel.loc["r00c00", ["n_featured", "n_paired", "n_registered", "n_splatted", "state"]].tolist() == [
        1, 0, 1, 0, "registered",
    ]  # fmt: skip


def test_marts_of_filtered_and_deleted_images(tmp_path):
    """Filters drop one of four images, one is deleted, and of the three wanted or there one file is dead."""
    lake = Lake(tmp_path / "lake")
    here: Any = {"city": "demo", "box": "r00c00"}
    there: Any = {"city": "demo", "box": "r00c01"}
    gone = pd.Timestamp("2025-01-01", tz="UTC")
    base = {"sequence_id": "s", "lon": 1.0, "lat": 10.0, "creator_username": "ada", "licence": "CC BY-SA 4.0"}
    images = [
        base | {"image_id": "1", "stratum": "urban"},
        base | {"image_id": "2"},
        base | {"image_id": "3", "dropped_by": "spacing"},
        base | {"image_id": "4", "dropped_by": "limit", "is_pano": True},
        base | {"image_id": "5", "tombstoned_at": gone, "sequence_id": "t", "creator_username": "eve"},
    ]
    lake.write("image_metadata", rows("image_metadata", *images), **here)
    lake.write("image_metadata", rows("image_metadata", base | {"image_id": "6"}), **there)
    files = [
        {"image_id": "1", "status": "done", "bytes": 100, "size": "2048"},
        {"image_id": "2", "status": "dead", "reason": "it is empty", "attempts": 4, "size": "2048"},
        {"image_id": "3", "status": "done", "bytes": 10, "size": "2048"},  # from a time before the filter
        {"image_id": "5", "status": "dead", "reason": "deleted", "attempts": 1, "size": "2048"},
    ]
    lake.write("image_files", rows("image_files", *files), **here)
    edges = {"west": 1.0, "east": 3.0, "south": 10.0, "north": 11.0}
    lake.write("bbox_partitions", rows("bbox_partitions", {**edges, "n_images": 9}), **here)
    lake.write("bbox_partitions", rows("bbox_partitions", {**edges, "n_images": 2}), **there)
    proof = {
        "complete": True, "n_tile_images": 3, "n_closure_added": 1, "n_audit_added": 0, "n_audit_again": 2, "n_images": 4,
        "n_tombstones": 1, "n_unresolved": 0, "n_audit_cells": 3, "n_audit_asks": 6, "n_estimated_missing": 0.5,
    }  # fmt: skip
    lake.write("certificates", rows("certificates", proof), **here)
    open_ = {"complete": False, "n_images": 1, "n_tombstones": 0, "n_unresolved": 3, "n_unclosed": 1}
    lake.write("certificates", rows("certificates", open_), **there)
    lake.write("sequence_ids", rows("sequence_ids", {"sequence_id": "s", "n_images": 7, "closed": True}), **here)
    made = make_all(lake)
    # Nobody wrote a credit into these images: a warning, not an error.
    failed = {v.check.name: v for each in made.values() for v in each.verdicts if not v.passed}
    assert set(failed) == {"not_null_licence_credit"} and not failed["not_null_licence_credit"].check.blocking

    staged = mart(lake, "stg_images").set_index("image_id")
    assert staged["file_status"].to_dict() == {"1": "done", "2": "dead", "3": "done", "4": "dropped", "6": "missing"}
    assert staged.loc["1", "stratum"] == "urban" and staged.loc["3", "dropped_by"] == "spacing"
    coverage = mart(lake, "coverage").set_index("box")
    # The certificate is complete, so what the tiles count beyond it is not missing.
    assert coverage.loc["r00c00", ["n_images", "n_selected", "n_files", "n_dead", "share"]].tolist() == [4, 2, 1, 1, 1]
    assert coverage.loc["r00c01", ["n_images", "n_selected", "n_files", "share"]].tolist() == [1, 1, 0, 0]
    proofs = mart(lake, "harvest_completeness").set_index("box")
    assert proofs["state"].tolist() == ["complete", "incomplete"]
    assert proofs.loc["r00c00", ["share_audited", "asks_per_cell", "share_resolved"]].tolist() == [0.5, 2, 1]
    assert proofs.loc["r00c00", ["n_closure_added", "n_tombstones", "n_rows"]].tolist() == [1, 1, 4]
    assert proofs.loc["r00c01", ["n_unresolved", "n_unclosed", "n_open", "share_resolved"]].tolist() == [3, 1, 4, 0.25]
    letters = mart(lake, "dead_letters").set_index("image_id")
    assert letters["reason"].to_dict() == {"2": "it is empty", "5": "deleted"}
    assert letters["attempts"].tolist() == [4, 1] and letters["tombstoned_at"].notna().tolist() == [False, True]
    (sequence,) = mart(lake, "sequence_lines").to_dict("records")
    assert sequence | {
        "sequence_id": "s", "n_boxes": 2, "n_images": 5, "n_listed": 7, "n_selected": 3, "n_files": 2, "n_panoramas": 1,
        "creator": "ada",
    } == sequence  # fmt: skip
    assert pd.isna(sequence["line"]) and pd.isna(sequence["length_m"])  # all at one place
    # Whatever lies in the lake is credited, also what a later filter dropped.
    assert mart(lake, "attribution")[["creator", "n_images"]].values.tolist() == [["ada", 2]]


def test_sequence_lines_are_those_of_the_harvest(tmp_path):
    """Over two boxes, with a gap, a halt, an image without a time, and one that stands in both boxes."""
    import shapely

    lake = Lake(tmp_path / "lake")
    lon = [11.0, 11.001, 11.001, 11.002, 11.02, 11.021, 11.5]
    points = [
        {"image_id": f"i{k}", "sequence_id": "s", "lon": x, "lat": 48 + x / 1e3, "captured_at_ms": 1000 * k}
        for k, x in enumerate(lon)
    ]
    points[-1]["captured_at_ms"] = None
    points.append({"image_id": "a", "sequence_id": "alone", "lon": 1.0, "lat": 2.0, "captured_at_ms": 5})
    stale = points[1] | {"lon": 20.0, "fetched_at": pd.Timestamp("2024-01-01", tz="UTC")}
    points[1]["fetched_at"] = pd.Timestamp("2025-01-01", tz="UTC")
    lake.write("image_metadata", rows("image_metadata", *points[:3], points[7]), city="demo", box="r00c00")
    lake.write("image_metadata", rows("image_metadata", *points[3:7], stale), city="demo", box="r00c01")
    found = to_pandas(answer(lake, "sequence_lines", city="demo")).set_index("sequence_id")
    (ours,) = city_lines(lake, "demo").to_dict("records")
    assert shapely.from_wkt(found.loc["s", "line"]).equals(ours["geometry"])
    assert found.loc["s", "length_m"] == pytest.approx(ours["length_m"], rel=1e-6)
    assert found["line"].isna().to_dict() == {"alone": True, "s": False}
    write_lines(lake, "demo", "r00c00")
    assert lake.has("sequence_paths", city="demo", box="r00c00")


def test_a_certificate_that_contradicts_itself_fails_its_check(lake):
    proof = rows("certificates", {"complete": True, "n_unresolved": 2, "n_images": 5, "n_tombstones": 0})
    lake.write("certificates", proof, city="demo", box="r00c00")
    made = make_all(lake, "stg_images", "stg_boxes", "harvest_completeness")
    failed = [v for v in made["harvest_completeness"].verdicts if not v.passed]
    assert [(v.check.text, v.n_bad, v.check.blocking) for v in failed] == [("n_open = 0 or not complete", 1, True)]
    assert failed[0].first.column("box").to_pylist() == ["r00c00"]


def test_a_young_lake_gives_empty_marts(tmp_path):
    lake = Lake(tmp_path / "lake")
    assert answer(lake, "box_quality").num_rows == 0
    for name, made in make_all(lake).items():
        assert made.facts.rows == 0 and not [v for v in made.verdicts if not v.passed], name


def test_cost_adds_up_what_the_runs_say(lake):
    at = pd.Timestamp("2026-01-01", tz="UTC")
    base = {"step": "image_files", "asset": "image_files", "city": "demo", "box": "r00c00", "started_at": at}
    records = [
        base | {"run_id": "a", "attempt": 1, "status": "failed", "seconds": 5.0, "ended_at": at},
        base
        | {"run_id": "a", "attempt": 2, "status": "done", "seconds": 7.0, "ended_at": at, "bytes": 10, "requests": 4},
        base | {"run_id": "b", "attempt": 1, "status": "failed", "seconds": 1.0, "ended_at": at + pd.Timedelta("1h")},
    ]
    lake.write("run_records", rows("run_records", *records))
    (cost,) = to_pandas(answer(lake, "cost")).to_dict("records")
    assert cost | {
        "n_runs": 2, "n_failed": 1, "n_retried": 1, "seconds": 13.0, "failed_seconds": 6.0, "last_seconds": 7.0,
        "bytes": 10, "requests": 4,
    } == cost  # fmt: skip


# -- parts --------------------------------------------------------------------------------------------------

BY_CITY = """
    -- Boxes of a city.
    -- partition: city
    -- city: The city.
    -- n: Its boxes.
    select city, count(*) as n from splat_ply group by city
"""
ALL = "-- All.\n-- n: Boxes.\nselect coalesce(sum(n), 0)::bigint as n from per_city\n"


def by_name(folder) -> dict[str, Any]:
    return {model.name: model for model in read_models(folder)}


def test_a_part_reads_and_writes_its_own_rows(lake, tmp_path):
    splat = rows("splat_ply", {"status": "trained"})
    lake.write("splat_ply", splat, city="lund", box="r00c00")
    models = by_name(write_models(tmp_path / "sql", per_city=BY_CITY, total=ALL))
    per_city, total = models["per_city"], models["total"]
    assert make_model(total, lake).facts.rows == 1  # no part was made yet: as a table without data
    assert mart(lake, "total")["n"].tolist() == [0]
    assert make_model(per_city, lake, city="lund").facts.rows == 1
    make_model(per_city, lake, city="demo")
    assert mart(lake, "per_city").set_index("city")["n"].to_dict() == {"demo": 1, "lund": 1}
    make_model(total, lake)
    assert mart(lake, "total")["n"].tolist() == [2]
    with pytest.raises(ConfigError, match=r"per_city\.sql: is partitioned by \['city'\], not by \[\]"):
        make_model(per_city, lake)


def test_unchanged_inputs_leave_the_rows_alone(lake, tmp_path):
    lake.write("splat_ply", rows("splat_ply", {"status": "trained"}), city="lund", box="r00c00")
    (model,) = read_models(write_models(tmp_path / "sql", per_city=BY_CITY))
    make_model(model, lake, city="demo")
    make_model(model, lake, city="lund")
    before = lake.stamp("per_city", city="demo")
    lake.write("splat_ply", rows("splat_ply", {"status": "trained"}), city="lund", box="r00c01")
    again, changed = make_model(model, lake, city="demo"), make_model(model, lake, city="lund")
    assert again.unchanged and lake.stamp("per_city", city="demo") == before and not changed.unchanged
    assert again.first.to_pylist() == [{"city": "demo", "n": 1}] and changed.first.to_pylist() == [
        {"city": "lund", "n": 2}
    ]
    (edited,) = read_models(write_models(tmp_path / "sql", per_city=BY_CITY.replace("count(*)", "count(*) + 1")))
    assert not make_model(edited, lake, city="demo").unchanged


def test_a_row_of_another_part_is_refused(lake, tmp_path):
    (model,) = read_models(
        write_models(tmp_path / "sql", per_city=BY_CITY.replace("select city", "select 'lund' as city"))
    )
    with pytest.raises(ConfigError, match=r"per_city\.sql: gives a row whose city is lund while demo is made"):
        make_model(model, lake, city="demo")
    assert not lake.partitions("per_city")


def test_rows_of_a_former_layout_go(lake, tmp_path):
    whole = BY_CITY.replace("    -- partition: city\n", "")
    (model,) = read_models(write_models(tmp_path / "sql", per_city=whole))
    make_model(model, lake)
    (model,) = read_models(write_models(tmp_path / "sql", per_city=BY_CITY))
    make_model(model, lake, city="demo")
    assert lake.partitions("per_city") == [{"city": "demo"}]


def test_a_model_by_box(lake, tmp_path):
    query = "-- A.\n-- partition: city, box\n-- city: C.\n-- box: B.\n-- n: N.\nselect city, box, count(*) as n from image_metadata group by all\n"
    (model,) = read_models(write_models(tmp_path / "sql", per_box=query))
    make_model(model, lake, city="demo", box="r00c00")
    assert mart(lake, "per_box")["n"].tolist() == [5]
    assert lake.partitions("per_box") == [{"city": "demo", "box": "r00c00"}]


def test_an_answer_of_one_city(lake):
    lake.write("bbox_partitions", rows("bbox_partitions", {"n_images": 3}), city="lund", box="r00c00")
    assert answer(lake, "coverage").num_rows == 3
    assert answer(lake, "coverage", city="lund").column("city").to_pylist() == ["lund"]
    with pytest.raises(ConfigError, match=r"No SQL model is called covrage\. Did you mean 'coverage'\?"):
        answer(lake, "covrage")


# -- models that are wrong ----------------------------------------------------------------------------------

GOOD = """
    -- Boxes.
    -- box: The box.
    select box from splat_ply
"""
HEAD = "-- A.\n-- box: The box.\n"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (HEAD + "select box\nfrom splat_ply where\n", r"marts/bad\.sql, line 4: syntax error at or near"),
        (HEAD + "select box from\nwhere true", r"marts/bad\.sql, line 4: syntax error at or near \"where\""),
        (HEAD + "select\n  boxx as box\nfrom splat_ply", r"marts/bad\.sql, line 4: .*\"boxx\" not found"),
        (HEAD + "select box\nfrom splat_plyy", r"marts/bad\.sql, line 4: no table .* Did you mean 'splat_ply'\?"),
        (HEAD + "-- gone: Gone.\nselect box from splat_ply", "line 3: documents gone, which the result lacks"),
        (HEAD + "select box, city from splat_ply", "does not document city"),
        ("-- box: The box.\nselect box from splat_ply", "line 1: does not say what the table is"),
        (HEAD + "-- check: boxx > 1\nselect box from splat_ply", "line 3: check 'boxx > 1': .*boxx"),
        (HEAD + "select box from splat_ply; select 1", "2 statements. A model is one select"),
        ("-- A.\ndrop table x", r"marts/bad\.sql.*one select statement"),
        (HEAD + "select box from bad", "line 3: the models read one another in a circle: bad reads bad"),
        (HEAD + "-- test: uniqe(box)\nselect box from splat_ply", r"line 3: test .*uniqe\. Did you mean 'unique'\?"),
        (
            HEAD + "-- test: unique(bx)\nselect box from splat_ply",
            r"line 3: .* bad has no column bx\. Did you mean 'box'",
        ),
        (HEAD + "-- test: relationship(box -> god)\nselect box from splat_ply", r"line 3: no table is called god\."),
        (HEAD + "-- test: relationship(box -> good(n))\nselect box from splat_ply", r"line 3: .* good has no column n"),
        (
            HEAD + "-- test: accepted_range(box, 0, 1)\nselect box, from splat_ply",
            r"line 3: test 'acc.* Conversion|line 3",
        ),
        (
            HEAD + "-- partition: city\nselect box from splat_ply",
            "line 3: is partitioned by city, and the result lacks city",
        ),
        (
            "-- A.\n-- partition: city\n-- city: C.\nselect distinct city from splat_ply",
            "gives nothing but the columns of its partition",
        ),
        (HEAD + "-- partition: box\nselect box from splat_ply", "line 3: partition 'box' is neither"),
        (HEAD + "select sum(n_splats) as box from splat_ply", r"box is a HUGEINT.* Write sum\(\.\.\.\)::bigint"),
    ],
)
def test_a_bad_model_is_one_clear_message(tmp_path, query, message):
    with pytest.raises(ConfigError, match=message):
        read_models(write_models(tmp_path, good=GOOD, bad=query))


def test_a_circle_names_its_models(tmp_path):
    folder = write_models(tmp_path, one=HEAD + "select box from two\n", two=HEAD + "select box from one\n")
    with pytest.raises(ConfigError, match=r"line 3: .*in a circle: (one reads two reads one|two reads one reads two)"):
        read_models(folder)


def test_a_name_that_is_a_table_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"marts/splat_ply\.sql: the name is taken by the table splat_ply"):
        read_models(write_models(tmp_path, splat_ply=GOOD))


def test_a_folder_without_models_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="No SQL model"):
        read_models(tmp_path)


def test_its_own_parts_are_no_inputs(tmp_path):
    query = "-- A.\n-- n: Rows.\nwith splat_views as (select * from splat_ply) select count(*) as n from splat_views\n"
    (model,) = read_models(write_models(tmp_path, only=query))
    assert model.parents == ("splat_ply",)


def test_data_that_the_query_cannot_take_names_the_file(lake, tmp_path):
    query = "-- A.\n-- n: Number.\nselect\n  status::int as n from splat_ply\n"
    (model,) = read_models(write_models(tmp_path, only=query))
    with pytest.raises(ConfigError, match=r"marts/only\.sql.*trained"):
        make_model(model, lake)


def test_an_input_that_was_never_made_says_what_to_make(tmp_path):
    folder = write_models(tmp_path / "sql", upper=GOOD, lower="-- B.\n-- box: The box.\nselect box from upper\n")
    with pytest.raises(Exception, match="upper has no data yet"):
        make_model(by_name(folder)["lower"], Lake(tmp_path / "lake"))


def test_models_beside_the_settings_are_taken_too(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "GEO_ASSETS_SETTINGS", str(tmp_path / "geo_assets.toml"))
    assert model_folders() == (SQL_FOLDER,)
    write_models(tmp_path / "dbt_like_sql", mine="-- A.\n-- box: B.\nselect box from coverage\n")
    assert {"mine", "coverage"} <= {model.name for model in read_models()}
    assert answer(Lake(tmp_path / "lake"), "mine").num_rows == 0
