from geo_assets.tables import TABLES


def test_records_become_rows_with_every_column() -> None:
    table = TABLES["sequence_images"]
    frame = table.frame([{"image_id": "a", "in_tiles": True}])
    assert list(frame) == table.column_names
    assert frame["image_id"].tolist() == ["a"] and frame["sequence_id"].isna().tolist() == [True]
    assert table.conform(frame).num_rows == 1


def test_no_records_keep_the_types_of_the_columns() -> None:
    for table in TABLES.values():
        assert table.frame([]).dtypes.equals(table.empty().dtypes)
        assert table.conform(table.frame([])).schema == table.schema
