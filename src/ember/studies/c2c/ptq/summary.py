"""Quantised channels against the FP16 channel (C-M1, C-M2)."""

from collections.abc import Mapping, Sequence

from ember.studies.c2c.compare import Comparison
from ember.studies.c2c.ptq.tables import C2C_M1, C2C_SCALES
from ember.studies.rows import records
from ember.studies.steps import makes

ROWS = {f"{scheme}-token": f"B{n}" for n, scheme in enumerate(("int8", "int4", "nf4", "fp8"), 1)}
"""The programme's rows, by the point that stands for them: one scale a token."""


@makes(C2C_M1)
def summarise_ptq(runs: Sequence, *, judged: Mapping, seed: int, resamples: int) -> list[dict]:
    """Rows of C2C_M1 from tables C2C_POINTS."""
    found = Comparison(runs, judged["strata"], seed, resamples).rows("ptq", judged["margin"])
    return [row | {"row": ROWS.get(row["point"])} for row in found]


@makes(C2C_SCALES)
def join_scales(runs: Sequence) -> list[dict]:
    """Rows of C2C_SCALES of all worlds."""
    return records(runs, C2C_SCALES)
