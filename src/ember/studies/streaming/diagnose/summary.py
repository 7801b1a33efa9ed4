"""Time per token, overall and at prunes (S-0, S-2)."""

from collections.abc import Mapping, Sequence

import numpy as np

from ember.measure.statistics import percentile
from ember.studies.rows import grouped, records, with_ends
from ember.studies.steps import makes
from ember.studies.streaming.diagnose.tables import LATENCY_RUNS, STREAMING_LATENCY


@makes(STREAMING_LATENCY)
def summarise_latency(runs, *, skip: int) -> list[dict]:
    """Rows of STREAMING_LATENCY; the steady state leaves out the first `skip` tokens."""
    groups = grouped(records(runs, LATENCY_RUNS), "point", "path")
    tpots = {
        key: {row["repeat"]: float(np.mean(row["token_ms"][skip:])) for row in rows}
        for key, rows in groups.items()
    }
    found = []
    for (point, path), rows in groups.items():
        lazy = {
            other[0]["compression_interval"]: tpots[key]
            for key, other in groups.items()
            if key[1] == path and other[0]["method"] == "lazy_prune"
        }
        best = min(lazy.values(), key=lambda one: np.median([*one.values()]), default={})
        same = lazy.get(rows[0]["compression_interval"], {})
        own = tpots[point, path]
        ratios = {**_over("tpot_ratio", own, best), **_over("period_ratio", own, same)}
        found.append(_summary(rows, skip) | ratios)
    return found


def by_point(latency) -> dict[str, dict]:
    """Rows of STREAMING_LATENCY by point, on the fast path where the point has one."""
    rows = records(latency, STREAMING_LATENCY)
    return {row["point"]: row for row in sorted(rows, key=lambda row: row["path"] != "eager")}


def _over(name: str, own: Mapping[int, float], theirs: Mapping[int, float]) -> dict:
    """Columns of a ratio of times, paired by repeat: median, least and greatest."""
    ratios = [own[repeat] / theirs[repeat] for repeat in own if repeat in theirs] or [None]
    middle = None if ratios == [None] else float(np.median(ratios))
    return with_ends(name, (middle, min(ratios), max(ratios)))


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
