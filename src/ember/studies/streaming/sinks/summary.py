"""The verdict: without sinks no cliff is claimed (S-0)."""

import numpy as np

from ember.measure.statistics import paired
from ember.studies.rows import grouped, records
from ember.studies.steps import makes
from ember.studies.streaming.sinks.tables import SINK_GAP, SINK_MASS, STREAMING_GATE


@makes(STREAMING_GATE)
def judge_sinks(mass, gaps, *, min_mass: float, seed: int, resamples: int = 1000) -> list[dict]:
    """Rows of STREAMING_GATE, one a corpus."""
    layers = [row["mass"] for row in records(mass, SINK_MASS)]
    found = []
    for (corpus,), rows in grouped(records(gaps, SINK_GAP), "corpus").items():
        pair = paired(
            [row["without_nll"] for row in rows],
            [row["with_nll"] for row in rows],
            np.random.default_rng(seed),
            resamples,
        )
        lacks = []
        if max(layers) < min_mass:
            lacks.append(f"no layer has {min_mass:g} of its mass on position 0")
        if pair["low"] <= 0:
            lacks.append("the gap without a sink is not above zero")
        found.append(
            {
                "corpus": corpus,
                "streams": pair["n"],
                "gap": pair["difference"],
                "gap_low": pair["low"],
                "gap_high": pair["high"],
                "max_mass": max(layers),
                "min_mass": min_mass,
                "mass_by_layer": layers,
                "passes": not lacks,
                "reason": "; ".join(lacks) or None,
                **{k: rows[0][k] for k in ("peak", "device", "dtype", "model", "weights")},
                "evidence": "measured",
            }
        )
    return found
