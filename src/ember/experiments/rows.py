"""Tables as rows, whatever form they come in."""

from pathlib import Path

from ember.records.schema import Schema


def records(table, schema: Schema) -> list[dict]:
    """Rows of a table given as its path, as a data frame or as rows; nulls are None."""
    if isinstance(table, str | Path):
        from ember.records.tables import read_table

        table = read_table(table, schema)
    if hasattr(table, "to_dict"):
        table = table.astype(object).where(table.notna(), None).to_dict("records")
    return list(table)
