"""Which changes remove lazy pruning's loss without its time (S-3), and which are stopped (S-6)."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from ember.studies.rows import grouped, records, with_ends
from ember.studies.steps import makes
from ember.studies.streaming.diagnose.summary import by_point
from ember.studies.streaming.diagnose.tables import PATH, RATIO, STREAMING_LATENCY
from ember.studies.streaming.matrix.tables import (
    STREAMING_LEDGER,
    STREAMING_MATRIX,
    STREAMING_PROGRAMME,
)
from ember.studies.streaming.quality.summary import Points
from ember.studies.streaming.quality.tables import STREAMING_QUALITY

TAKEN = ("corpus", "point", "method", "peak", "compression_interval", "n_sink", "window")
TIMED = tuple(column.name for column in (*PATH, *RATIO))
ABOUT = ("device", "dtype", "model", "weights", "evidence", "status", "reason")


@makes(STREAMING_MATRIX)
def judge_matrix(
    runs: Sequence, quality, latency, *, bars: Mapping, seed: int, resamples: int
) -> list[dict]:
    """Rows of STREAMING_MATRIX: every point that has a lazy one of the same peak and period."""
    points = Points(runs, np.random.default_rng(seed), resamples)
    summary = {(row["corpus"], row["point"]): row for row in records(quality, STREAMING_QUALITY)}
    timed = by_point(latency)
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
            **{name: timed.get(point, {}).get(name) for name in TIMED},
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
    time = f"{said_ratio(row, 'tpot_ratio')} × the best lazy TPOT"
    if row["no_fast_path"] is not None:
        return f"removes enough; no fast path, at {time} on the eager one"
    if row["tpot_ratio_high"] > bars["max_tpot_ratio"]:
        return f"removes enough at {time}"
    return "success"


def said_ratio(row: Mapping, name: str) -> str:
    """A ratio of times with its range over repeats."""
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


@makes(STREAMING_PROGRAMME)
def list_programme(
    quality, latency, *, points: Sequence[str], programme: Mapping, bars: Mapping
) -> list[dict]:
    """Rows of STREAMING_PROGRAMME, for the points of these ids."""
    timed, found = by_point(latency), []
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
                **{
                    name: timed.get(row["point"], {}).get(name)
                    for name in ("path", "steady_tpot_ms")
                },
            }
        )
    return found


@makes(STREAMING_LEDGER)
def keep_ledger(matrix, latency, *, noise: float) -> list[dict]:
    """Rows of STREAMING_LEDGER: a direction is a method, its changes the points measured."""
    # Runs of one point differ, too: what is within their range is noise.
    spreads = [
        row["steady_tpot_ms_max"] / row["steady_tpot_ms_min"] - 1
        for row in records(latency, STREAMING_LATENCY)
    ]
    noise = max(noise, float(np.median(spreads)) if spreads else noise)
    found = []
    rows = [row for row in records(matrix, STREAMING_MATRIX) if row["corpus"] == "long"]
    for (method,), changes in grouped(rows, "method").items():
        if method == "lazy_prune":
            continue
        ratios = [row["period_ratio"] for row in changes]
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
