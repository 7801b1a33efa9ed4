"""The worst difference to PEFT of each adapter and number format (P1-3.4)."""

from functools import partial

import numpy as np

from ember.measure.statistics import bootstrap, interval
from ember.studies.p1.lora_alignment.tables import LORA_ALIGNMENT, LORA_CASES
from ember.studies.rows import grouped, records
from ember.studies.steps import makes


@makes(LORA_ALIGNMENT)
def summarise_alignment(cases, *, seed: int, resamples: int) -> list[dict]:
    """Rows of LORA_ALIGNMENT from a table LORA_CASES: the worst over targets, error ratios."""
    key_columns = ("adapter", "dtype", "path", "reference")
    groups = grouped(records(cases, LORA_CASES), *key_columns)
    rng, rows = np.random.default_rng(seed), []
    worst = ("base_max_abs_diff", "lora_max_abs_diff", "delta_max_abs_diff", "effect_max_abs")
    for key, group in groups.items():
        ratio = low = high = None
        if key[1] != "float32":  # there the reference is the truth, or rounds once more than it
            ratios = np.array([np.divide(r["errors"], r["reference_errors"]) for r in group])
            # Targets of one prompt share most of their errors: prompts are resampled, not cases.
            draws = bootstrap(ratios.T, rng, resamples, partial(np.median, axis=(1, 2)))
            ratio, (low, high) = float(draws[0]), interval(draws)
        rows.append(
            dict(zip(key_columns, key, strict=True))
            | {"cases": len(group)}
            | {name: max(row[name] for row in group) for name in worst}
            | {"error_ratio": ratio, "error_ratio_low": low, "error_ratio_high": high}
            | {name: group[0][name] for name in ("model", "weights", "device", "evidence")}
        )
    return rows
