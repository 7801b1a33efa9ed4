"""Cache length against the FP16 channel (C-M3)."""

from collections.abc import Mapping, Sequence

from ember.studies.c2c.compare import Comparison
from ember.studies.c2c.length.tables import C2C_M3
from ember.studies.steps import makes


@makes(C2C_M3)
def summarise_length(runs: Sequence, *, judged: Mapping, seed: int, resamples: int) -> list[dict]:
    """Rows of C2C_M3 from tables C2C_POINTS."""
    return Comparison(runs, judged["strata"], seed, resamples).rows("length", judged["margin"])
