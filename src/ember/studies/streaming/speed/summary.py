"""Steady-state time per token of each point and path, and what each switch saves (S-0, S-4)."""

from collections.abc import Mapping, Sequence

import numpy as np

from ember.measure.cost import read_ms
from ember.measure.statistics import PERCENTILES_FROM, percentile
from ember.studies.rows import grouped, records
from ember.studies.steps import makes
from ember.studies.streaming.speed.tables import SPEED_RUNS, STREAMING_SPEED

P99_FROM = 10 * PERCENTILES_FROM


@makes(STREAMING_SPEED)
def summarise_speed(runs, *, skip: int, noise: float) -> list[dict]:
    """Rows of STREAMING_SPEED. The steady state leaves out the first `skip` tokens; a gain is
    stable where the least over the repeats is above `noise`."""
    groups = grouped(records(runs, SPEED_RUNS), "point", "off", "path")
    tpots = {key: _tpots(rows, skip) for key, rows in groups.items()}
    theirs = next((one for (_, _, path), one in tpots.items() if path == "transformers"), {})
    found = []
    for key, rows in groups.items():
        row = _summary(rows, skip)
        if row["status"] == "ok":
            times = _ratios(theirs, tpots[key])
            row["speedup"] = float(np.median(times)) if times else None
        if row["off"] is not None and row["status"] == "ok":
            row |= _gain(_whole(tpots, row), tpots[key], noise)
        found.append(row)
    return found


def _tpots(rows: Sequence[Mapping], skip: int) -> dict[int, float]:
    """Steady time per token by repeat."""
    ok = [row for row in rows if row["status"] == "ok"]
    return {row["repeat"]: float(np.mean(row["token_ms"][skip:])) for row in ok}


def _whole(tpots: Mapping, row: Mapping) -> dict[int, float]:
    """Those of the same point with nothing switched off."""
    return next(
        (
            one
            for (point, off, path), one in tpots.items()
            if point == row["point"] and off is None and path != "transformers"
        ),
        {},
    )


def _ratios(over: Mapping[int, float], under: Mapping[int, float]) -> list[float]:
    return [over[repeat] / under[repeat] for repeat in under if repeat in over]


def _gain(on: Mapping[int, float], off: Mapping[int, float], noise: float) -> dict:
    gains = [1 - ratio for ratio in _ratios(on, off)]
    if len(gains) < 2:
        return {"verdict": f"unknown: {len(gains)} repeats with it on and off are too few"}
    low, high = min(gains), max(gains)
    if low > noise:
        verdict = f"stable gain over {100 * noise:g} %"
    elif high < -noise:
        verdict = f"negative result: a loss over {100 * noise:g} %"
    else:
        verdict = f"negative result: no stable gain over {100 * noise:g} %"
    gain = float(np.median(gains))
    return {"gain": gain, "gain_low": low, "gain_high": high, "verdict": verdict}


def _summary(rows: Sequence[Mapping], skip: int) -> dict:
    first = rows[0]
    row = dict.fromkeys(STREAMING_SPEED.names) | {
        name: first[name] for name in STREAMING_SPEED.names if name in first
    }
    if first["status"] != "ok":
        return row | {"n": 0, "tokens": 0}
    times = [np.array(one["token_ms"]) for one in rows]
    pooled = sorted(np.concatenate([one[skip:] for one in times]).tolist())
    means = [float(one[skip:].mean()) for one in times]
    at, others = [], []
    for one, run in zip(times, rows, strict=True):
        drops = {step - 1 for step in run["drop_steps"]}  # after which token each comes
        for number in range(skip, len(one)):
            (at if number in drops else others).append(one[number])
    enough = min(len(at), len(others)) >= PERCENTILES_FROM
    tpot = float(np.median(means))
    memory = [run["memory_mb"] for run in rows if run["memory_mb"] is not None]
    limit = None
    if first["limit_kind"] == "memory":
        limit = read_ms(first["weight_bytes"] + first["kv_bytes"], first["read_gb_s"])
    return row | {
        "n": len(rows),
        "tokens": len(times[0]) - skip,
        "ttft_ms": float(np.median([run["prefill_ms"] for run in rows])),
        "steady_tpot_ms": tpot,
        "steady_tpot_ms_min": min(means),
        "steady_tpot_ms_max": max(means),
        "token_ms_p50": percentile(pooled, 50),
        "token_ms_p90": percentile(pooled, 90) if len(pooled) >= PERCENTILES_FROM else None,
        "token_ms_p99": percentile(pooled, 99) if len(pooled) >= P99_FROM else None,
        "token_ms_max": pooled[-1],
        "prune_step_ratio": float(np.median(at) / np.median(others)) if enough else None,
        "dropped": first["dropped"] / len(times[0]),
        "memory_mb": max(memory, default=None),
        "limit_ms": limit,
        "share": None if limit is None else limit / tpot,
    }
