"""Tables in the form that a step computes with, whatever form they come in."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ember.measure.statistics import summarise
from ember.records.schema import STATISTICS, Schema


def records(table, schema: Schema) -> list[dict]:
    """Rows of a table, given as its path, as a data frame or as rows, or of a list of tables, one
    after the other; nulls are None."""
    if isinstance(table, str | Path):
        from ember.records.tables import read_rows

        return read_rows(table, schema)
    if hasattr(table, "to_dict"):
        table = table.astype(object).where(table.notna(), None).to_dict("records")
    return [
        row
        for one in table
        for row in ([one] if isinstance(one, Mapping) else records(one, schema))
    ]


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


def better_of(ours: Iterable[Mapping], theirs: Iterable[Mapping], by: str) -> list[Mapping]:
    """Of each pair of rows the one with more in a column; of equal ones the first."""
    return [max(pair, key=lambda row: row[by]) for pair in zip(ours, theirs, strict=True)]


def with_ends(name: str, found: Sequence[float]) -> dict[str, float]:
    """Columns of an estimate and its interval, as `ember.records.schema.estimate` has them."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def summary_row(schema: Schema, runs: Sequence[Mapping]) -> tuple[dict, list[Mapping]]:
    """A row of `schema` for the runs of one point, and those of them that are ok.

    It has what the first run says, the number n of runs that are ok, and over these the statistics
    that the schema names after a column of the runs, as `ember.records.schema.spread` does. All
    else is null.
    """
    timed = [run for run in runs if run.get("status", "ok") == "ok"]
    first = (timed or runs)[0]
    row = {name: first.get(name) for name in schema.names} | {"n": len(timed)}
    for name in first:
        values = [run[name] for run in timed if run[name] is not None]
        if any(f"{name}_{key}" in row for key in STATISTICS) and values:
            found = summarise(values)
            row |= {k: found[key] for key in STATISTICS if (k := f"{name}_{key}") in row}
    return row, timed
