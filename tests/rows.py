"""Rows of any declared table, for tests that care about some of its columns."""

import pandas as pd

from ember.records.schema import Column, Schema


def example(schema: Schema, **given) -> dict:
    """A row that the schema takes: what is given, null where it may be, else something small."""
    for name in given:
        schema.column(name)  # a misspelt one is an error
    return {column.name: _small(column) for column in schema.columns} | given


def _small(column: Column):
    if column.nullable:
        return None
    if column.type == "str":
        return column.values[0] if column.values else column.name
    return {"int": 1, "float": 1.0, "bool": True}.get(column.type, [])


def frame(schema: Schema, rows) -> pd.DataFrame:
    """A table of examples: `rows` give the columns that matter."""
    return pd.DataFrame([example(schema, **row) for row in rows], columns=list(schema.names))
