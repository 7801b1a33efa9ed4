"""Rows: of tables, whatever form they come in, and what all rows of one measurement share."""

from collections.abc import Sequence
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


def measured_on(model: str | Path, device: str, dtype: str) -> dict:
    """What every row measured on a model says: device, dtype, model, weights, evidence."""
    from ember.model.folder import weights_kind

    return {
        "device": device,
        "dtype": dtype,
        "model": Path(model).name,
        "weights": weights_kind(model),
        "evidence": "measured",
    }


def machine(device: str) -> dict:
    """Name of the device, as the tables have it."""
    if not device.startswith("cuda"):
        return {"device_name": device}
    import torch

    return {"device_name": torch.cuda.get_device_name()}


def leading_equal(tokens: Sequence[int], others: Sequence[int]) -> float:
    """Fraction of `tokens` before the first that differs from `others`."""
    pairs = zip(tokens, others, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(others)))
    return same / len(tokens)
