import duckdb
import pytest

from geo_assets.sql_contract import ContractError, read_contract

TEXT = """-- One row a box,
-- in words.
-- partition: city, box
-- city: The city.
-- share: Its share: files of images.
-- check: n >= 1
-- check (warn): share < 1
-- test: unique(city, box)
-- test (warn): relationship(city, name -> other(place, id))
select 1 -- check: not read
"""


def test_the_comment_says_what_holds():
    contract = read_contract(TEXT)
    assert contract.description == "One row a box, in words." and contract.partition == ("city", "box")
    assert dict(contract.columns) == {"city": "The city.", "share": "Its share: files of images."}
    found = [(c.name, c.line, c.blocking) for c in contract.checks.values()]
    assert found == [
        ("n_at_least_1", 6, True), ("share_below_1", 7, False), ("unique_city_box", 8, True),
        ("relationship_city_name_in_other", 9, False),
    ]  # fmt: skip
    related = contract.checks["relationship_city_name_in_other"]
    assert (related.columns, related.parent, related.parent_columns) == (("city", "name"), "other", ("place", "id"))


ROWS = "(values (1, 'a', 0.5), (1, 'a', 1.5), (2, null, -1.0), (null, 'c, d', null))"


@pytest.mark.parametrize(
    ("test", "bad"),
    [
        ("unique(n, name)", [(1, "a", 2)]),
        ("unique(x)", []),
        ("not_null(name)", [(2, None, -1.0)]),
        ("not_null(n, name)", [(2, None, -1.0), (None, "c, d", None)]),
        ("accepted_values(name, 'a', 'c, d')", []),
        ("accepted_values(name, 'c, d')", [(1, "a", 0.5), (1, "a", 1.5)]),
        ("accepted_values(n, 1)", [(2, None, -1.0)]),
        ("accepted_range(x, 0, 1)", [(1, "a", 1.5), (2, None, -1.0)]),
        ("accepted_range(x, null, 1)", [(1, "a", 1.5)]),
        ("accepted_range(x, -1, null)", []),
        ("relationship(n -> other(id))", [(2, 1)]),
        ("relationship(n, name -> other(id, word))", [(1, "a", 2)]),
    ],
)
def test_tests_find_the_rows_that_break_them(test, bad):
    (check,) = read_contract(f"-- A.\n-- test: {test}\n").checks.values()
    with duckdb.connect() as con:
        con.execute(f"create table t as select n, name, x::double as x from {ROWS} v(n, name, x)")
        con.execute("create table other as select * from (values (1, 'b'), (3, null)) v(id, word)")
        assert sorted(con.execute(check.bad_rows("t")).fetchall(), key=str) == sorted(bad, key=str)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("test: unqiue(a)", r"no test is called unqiue\. Did you mean 'unique'\?"),
        ("test: unique a", "no test is called unique a"),
        ("test: unique()", "'' is not the name of a column"),
        ("test: unique(a b)", "'a b' is not the name of a column"),
        ("test: accepted_values(a)", "names no value"),
        ("test: accepted_range(a, 1)", "wants a column and two bounds"),
        ("test: accepted_range(a, null, null)", "wants a column and two bounds"),
        ("test: relationship(a, b)", "wants columns and a table"),
        ("test: relationship(a, b -> c(d))", "2 columns cannot point at 1"),
        ("check (warm): a > 1", r"'check \(warm\):' is not known"),
        ("partition: box", "neither 'city' nor 'city, box'"),
        ("a: Again.", "column a is documented twice"),
        ("check: a > 0", "'a > 0' is there already, in line 3"),
    ],
)
def test_a_line_that_is_wrong_is_named(line, message):
    with pytest.raises(ContractError, match=message) as error:
        read_contract(f"-- A.\n-- a: It.\n-- check: a > 0\n-- {line}\n")
    assert error.value.line == 4
