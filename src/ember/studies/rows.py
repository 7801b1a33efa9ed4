"""Tables in the form that a step computes with, whatever form they come in."""

from pathlib import Path

from ember.records.schema import Schema


def records(table, schema: Schema) -> list[dict]:
    """Rows of a table given as its path, as a data frame or as rows; nulls are None."""
    if isinstance(table, str | Path):
        from ember.records.tables import read_rows

        return read_rows(table, schema)
    if hasattr(table, "to_dict"):
        table = table.astype(object).where(table.notna(), None).to_dict("records")
    return list(table)


def frame(table, schema: Schema):
    """A table given as its path, as a data frame or as rows, as a data frame."""
    if isinstance(table, str | Path):
        from ember.records.tables import read_table

        return read_table(table, schema)
    import pandas as pd

    return pd.DataFrame(table)
