"""Tables in the form that a step computes with, whatever form they come in."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ember.measure.statistics import summarise
from ember.records.schema import SPREAD, Schema


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


def grouped(rows: Iterable[Mapping], *names: str) -> dict[tuple, list[Mapping]]:
    """Rows by their values of some columns, groups and rows in the order they come in."""
    groups: dict[tuple, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def spread_of(rows: Iterable[Mapping], name: str, statistics: Iterable[str] = SPREAD) -> dict:
    """A column's statistics over rows: the values of `ember.records.schema.spread`."""
    found = summarise([row[name] for row in rows])
    return {f"{name}_{key}": found[key] for key in statistics}
