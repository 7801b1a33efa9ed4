"""Which changes remove lazy pruning's loss without its time (S-3), and which are stopped (S-6)."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from ember.studies.rows import grouped, records, with_ends
from ember.studies.steps import makes
from ember.studies.streaming.diagnose.tables import STREAMING_LATENCY
from ember.studies.streaming.matrix.tables import (
    STREAMING_LEDGER,
    STREAMING_MATRIX,
    STREAMING_PROGRAMME,
)
from ember.studies.streaming.quality.summary import Points
from ember.studies.streaming.quality.tables import STREAMING_QUALITY

TAKEN = ("corpus", "point", "method", "peak", "compression_interval", "n_sink", "window")
ABOUT = ("device", "dtype", "model", "weights", "evidence", "status", "reason")


@makes(STREAMING_MATRIX)
def judge_matrix(
    runs: Sequence, quality, latency, *, bars: Mapping, seed: int, resamples: int
) -> list[dict]:
    """Rows of STREAMING_MATRIX: every point that has a lazy one of the same peak and period."""
    points = Points(runs, np.random.default_rng(seed), resamples)
    summary = {(row["corpus"], row["point"]): row for row in records(quality, STREAMING_QUALITY)}
    times = _times(latency)
    best = min((t for p, t in times.items() if p.startswith("lazy_prune")), default=None)
    found = []
    for (corpus, point), rows in points.runs.items():
        own, period = summary[corpus, point], rows[0]["compression_interval"]
        lazy = points.lazy.get((corpus, own["peak"], period))
        if lazy is None or own["delta"] is None or own["method"] == "streaming_llm":
            continue
        saved = points.bounds(-points.difference(rows, lazy, own["peak"]).mean(1))
        streams = {row["stream"] for row in rows}
        same = [row for row in lazy if row["stream"] in streams]
        reference = points.references[corpus, own["peak"]]
        above = points.difference(same, reference, own["peak"]).mean(1)
        lazy_delta, lazy_low, _ = points.bounds(above)
        row = {name: own[name] for name in (*TAKEN, *ABOUT)} | {
            "streams": len(rows),
            "lazy_delta": lazy_delta,
            "lazy_delta_low": lazy_low,
            "delta": own["delta"],
            **with_ends("saved", saved),
            "removed": saved[0] / lazy_delta if lazy_low > 0 else None,
            "max_drop_binds": own["method"] in ("max_drop", "refresh")
            and "max_drop=" in point
            and max(rows[0]["drop_sizes"]) < period,
            "tpot_ratio": times[point] / best if best and point in times else None,
            "programme_bar": own["ppl_change"] <= bars[f"max_ppl_{corpus}"],
        }
        found.append(row | {"verdict": verdict(row, bars)})
    return found


def verdict(row: Mapping, bars: Mapping) -> str:
    """Success, or the first thing that it lacks."""
    if row["status"] != "ok":
        return f"none: {row['reason']}"
    if row["method"] == "lazy_prune":
        return "a control" if "absolute" in row["point"] else "the reference"
    if row["compression_interval"] < bars["interval"]:
        return f"not asked: period below {bars['interval']}"
    if row["removed"] is None:
        return "nothing to remove: what lazy pruning costs here is no difference"
    if row["removed"] < bars["min_removed"] or row["saved_low"] <= 0:
        return (
            f"removes {row['removed']:.0%} "
            f"[{row['saved_low'] / row['lazy_delta']:.0%}, "
            f"{row['saved_high'] / row['lazy_delta']:.0%}]"
        )
    if row["tpot_ratio"] is None:
        return "removes enough; not timed"
    if row["tpot_ratio"] > bars["max_tpot_ratio"]:
        return f"removes enough at {row['tpot_ratio']:.2f} × the best lazy TPOT"
    return "success"


@makes(STREAMING_PROGRAMME)
def list_programme(
    quality, latency, *, points: Sequence[str], programme: Mapping, bars: Mapping
) -> list[dict]:
    """Rows of STREAMING_PROGRAMME, for the points of these ids."""
    times, found = _times(latency), []
    for row in records(quality, STREAMING_QUALITY):
        if row["point"] not in points:
            continue
        bar = bars[f"max_ppl_{row['corpus']}"]
        low, high = (float(np.expm1(row[f"delta_{end}"])) for end in ("low", "high"))
        held = "held" if high <= bar else "not held" if low > bar else "undecided"
        portions = "max_drop=" in row["point"]
        found.append(
            {name: row[name] for name in STREAMING_PROGRAMME.names if name in row}
            | {
                "max_drop": programme["max_drop"] if portions else None,
                "refresh_budget": programme["refresh_budget"] if row["method"] == "refresh" else 0,
                "max_drop_binds": portions and programme["max_drop"] < row["compression_interval"],
                "ppl_change_low": low,
                "ppl_change_high": high,
                "bar": bar,
                "verdict": held,
                "steady_tpot_ms": times.get(row["point"]),
            }
        )
    return found


@makes(STREAMING_LEDGER)
def keep_ledger(matrix, latency, *, noise: float) -> list[dict]:
    """Rows of STREAMING_LEDGER: a direction is a method, its changes the points measured."""
    timed = {row["point"]: row for row in records(latency, STREAMING_LATENCY)}
    # Runs of one point differ, too: what is within their range is noise.
    spreads = [row["steady_tpot_ms_max"] / row["steady_tpot_ms_min"] - 1 for row in timed.values()]
    noise = max(noise, float(np.median(spreads)) if spreads else noise)
    found = []
    rows = [row for row in records(matrix, STREAMING_MATRIX) if row["corpus"] == "long"]
    for (method,), changes in grouped(rows, "method").items():
        if method == "lazy_prune":
            continue
        ratios = [_ratio(row, timed) for row in changes]
        gains = [
            row["saved_low"] > 0 or (ratio is not None and ratio < 1 - noise)
            for row, ratio in zip(changes, ratios, strict=True)
        ]
        idle = max((len([*g]) for gain, g in groupby(gains) if not gain), default=0)
        stopped = idle >= 2
        found.append(
            {
                "direction": method,
                "changes": len(changes),
                "better": sum(gains),
                "unimproved_in_a_row": idle,
                "best_saved": max(row["saved"] for row in changes),
                "best_tpot_ratio": min((r for r in ratios if r is not None), default=None),
                "noise": noise,
                "stopped": stopped,
                "note": "negative result: two changes in a row improve neither time nor loss"
                if stopped
                else "goes on",
                **{name: changes[0][name] for name in ("model", "weights", "evidence")},
            }
        )
    return found


def _times(latency) -> dict[str, float]:
    return {row["point"]: row["steady_tpot_ms"] for row in records(latency, STREAMING_LATENCY)}


def _ratio(row: Mapping, timed: Mapping) -> float | None:
    lazy = f"lazy_prune-P{row['peak']}-R{row['compression_interval']}"
    if row["point"] not in timed or lazy not in timed:
        return None
    return timed[row["point"]]["steady_tpot_ms"] / timed[lazy]["steady_tpot_ms"]
