import pytest

from geo_assets.sql_lineage import column_lineage
from geo_assets.sql_models import read_models
from geo_assets.tables import TABLES

SCHEMAS = {
    "t": {"city": "VARCHAR", "box": "VARCHAR", "id": "VARCHAR", "n": "BIGINT", "at": "TIMESTAMP"},
    "u": {"city": "VARCHAR", "box": "VARCHAR", "id": "VARCHAR", "m": "DOUBLE"},
}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select n from t", {"n": ["t.n"]}),
        ("select * from u", {"city": ["u.city"], "box": ["u.box"], "id": ["u.id"], "m": ["u.m"]}),
        ("select * exclude (city, box, id), 1 as one from u", {"m": ["u.m"], "one": []}),
        ("select a.* from t a join u using (id)", {k: [f"t.{k}"] for k in SCHEMAS["t"]}),
        ("select id, n, m from t join u using (city, box, id)", {"id": ["t.id", "u.id"], "n": ["t.n"], "m": ["u.m"]}),
        ("with c as (select id, n * 2 as k from t) select k, id from c", {"k": ["t.n"], "id": ["t.id"]}),
        ("with c as (select n as k from t), d as (select k from c) select max(k) as top from d", {"top": ["t.n"]}),
        ("select id from t union all select box from u", {"id": ["t.id", "u.box"]}),
        ("select id from (select id from t union select id from u)", {"id": ["t.id", "u.id"]}),
        ("select count(*) as n, sum(n) filter (where at is not null) as s from t", {"n": [], "s": ["t.at", "t.n"]}),
        ("select row_number() over (partition by city order by n) as k from t", {"k": ["t.city", "t.n"]}),
        ("select lag(n) over w as k from t window w as (partition by id order by at)", {"k": ["t.n"]}),
        ("select case when a.n > 1 then b.m end as k from t a left join u b on b.id = a.id", {"k": ["t.n", "u.m"]}),
        ("select (select max(m) from u) as k from t", {"k": ["u.m"]}),
        ("select arg_max(id, at) as k from t qualify row_number() over (order by n) = 1", {"k": ["t.at", "t.id"]}),
        ("select city, box, count(*) as n from t group by all", {"city": ["t.city"], "box": ["t.box"], "n": []}),
    ],
)
def test_columns_are_followed_to_the_tables(query, expected):
    found = {column: [f"{t}.{c}" for t, c in pairs] for column, pairs in column_lineage(query, SCHEMAS).items()}
    assert found == expected


def test_a_query_that_the_parser_does_not_know_has_no_lineage():
    assert column_lineage("select from where", SCHEMAS) == {}


@pytest.mark.parametrize("model", read_models(), ids=lambda model: model.name)
def test_every_column_of_every_model_comes_from_somewhere(model):
    """Each column has sources in the inputs; a bare count of rows may have none."""
    sources = column_lineage(model.query, {name: each.columns for name, each in model.inputs.items()})
    assert list(sources) == list(model.types)
    for column, pairs in sources.items():
        assert pairs or column.startswith("n_"), column
        for table, name in pairs:
            assert name in model.inputs[table].columns
            assert table in TABLES or model.inputs[table].is_model


def test_lineage_of_what_is_shown():
    models = {model.name: model for model in read_models()}
    found = {}
    for name, column in [
        ("box_quality", "gain_db"),
        ("coverage", "share"),
        ("stg_boxes", "n_files"),
        ("box_quality", "border_m"),
    ]:
        model = models[name]
        sources = column_lineage(model.query, {p: each.columns for p, each in model.inputs.items()})
        found[name, column] = {f"{t}.{c}" for t, c in sources[column]}
    assert found["box_quality", "gain_db"] == {"splat_ply.psnr_db", "splat_ply.init_psnr_db"}
    assert found["coverage", "share"] == {
        f"stg_boxes.{c}" for c in ("n_files", "n_selected", "n_dead", "complete", "n_tile_images", "n_images")
    }
    assert found["stg_boxes", "n_files"] == {"stg_images.file_status", "stg_images.dropped_by"}
    assert found["box_quality", "border_m"] == {
        "border_disagreement.median_m", "sparse_models.border_m", "sparse_models.status",
    }  # fmt: skip
