"""Time per token, overall and at prunes (S-0, S-2)."""

from collections.abc import Mapping, Sequence

import numpy as np

from ember.measure.statistics import percentile
from ember.studies.rows import grouped, records
from ember.studies.steps import makes
from ember.studies.streaming.diagnose.tables import LATENCY_RUNS, STREAMING_LATENCY


@makes(STREAMING_LATENCY)
def summarise_latency(runs, *, skip: int) -> list[dict]:
    """Rows of STREAMING_LATENCY; the steady state leaves out the first `skip` tokens."""
    return [_summary(rows, skip) for rows in grouped(records(runs, LATENCY_RUNS), "point").values()]


def _summary(rows: Sequence[Mapping], skip: int) -> dict:
    times = [np.array(row["token_ms"]) for row in rows]
    steady = [one[skip:] for one in times]
    pooled = sorted(np.concatenate(steady).tolist())
    drops = [
        {step - 1 - skip for step in row["drop_steps"] if step > skip} for row in rows
    ]  # a drop belongs to the token after which it comes
    at = [t for one, d in zip(steady, drops, strict=True) for n, t in enumerate(one) if n in d]
    others = [
        t for one, d in zip(steady, drops, strict=True) for n, t in enumerate(one) if n not in d
    ]
    prefill = float(np.median([row["prefill_ms"] for row in rows]))
    means = [float(one.mean()) for one in steady]
    memory = [row["peak_memory_mb"] for row in rows if row["peak_memory_mb"] is not None]
    total = [row["prefill_ms"] + float(one.sum()) for row, one in zip(rows, times, strict=True)]
    return {
        **{name: rows[0][name] for name in STREAMING_LATENCY.names if name in rows[0]},
        "n": len(rows),
        "tokens": len(times[0]),
        "ttft_ms": prefill,
        "prefill_s": prefill / 1e3,
        "total_s": float(np.median(total)) / 1e3,
        "tpot_ms": float(np.median([one.mean() for one in times])),
        "steady_tpot_ms": float(np.median(means)),
        "steady_tpot_ms_min": min(means),
        "steady_tpot_ms_max": max(means),
        **{f"token_ms_p{p}": percentile(pooled, p) for p in (50, 90, 99)},
        "token_ms_max": pooled[-1],
        "prune_step_ratio": float(np.median(at) / np.median(others)) if at and others else None,
        "peak_memory_mb": max(memory, default=None),
    }
