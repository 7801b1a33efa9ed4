"""Rows made from a schema: every declared table takes them and gives them back."""

import pkgutil
from importlib import import_module

import pytest

import ember.studies
from ember.records.errors import BadSchema
from ember.records.schema import Schema
from ember.records.tables import read_rows, write_table
from tests.rows import example, frame

SCHEMAS = sorted(
    {
        value.name: value
        for module in pkgutil.walk_packages(ember.studies.__path__, "ember.studies.")
        if module.name.endswith(".tables")
        for value in vars(import_module(module.name)).values()
        if isinstance(value, Schema)
    }.items()
)


@pytest.mark.parametrize("schema", [schema for _, schema in SCHEMAS], ids=[n for n, _ in SCHEMAS])
def test_every_declared_table_takes_an_example_and_gives_it_back(schema, tmp_path):
    row = example(schema)
    assert read_rows(write_table(tmp_path / "one.parquet", [row], schema), schema) == [row]
    assert list(frame(schema, [{}, {}]).columns) == list(schema.names)


def test_what_is_given_is_kept_and_a_misspelt_column_is_an_error():
    _, schema = SCHEMAS[0]
    name = schema.names[0]
    assert example(schema, **{name: "kept"})[name] == "kept"
    with pytest.raises(BadSchema, match="no column 'nmae'"):
        example(schema, nmae=1)
