"""What eviction costs at equal peak, overall and by steps since a prune (S-2, S-3).

Raw losses by phase are noise, so all differences are paired by token: against StreamingLLM, which
prunes at each token, on the same streams at the same peak visible length.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ember.measure.statistics import mean, percentile
from ember.studies.rows import grouped, records, with_ends
from ember.studies.steps import makes
from ember.studies.streaming.quality.tables import (
    QUALITY_RUNS,
    STREAMING_QUALITY,
    STREAMING_SPIKES,
)
from ember.studies.streaming.sinks.tables import STREAMING_GATE

EDGES = (0, 4, 16, 32, 64, 128, 256, 512, 1024)
SAID = ("method", "peak", "compression_interval", "n_sink", "window")
ABOUT = ("device", "dtype", "model", "weights", "evidence")


class Points:
    """Runs by corpus and point, and what each is compared with."""

    def __init__(self, runs: Sequence, rng: np.random.Generator, resamples: int):
        self.runs = grouped(records(runs, QUALITY_RUNS), "corpus", "point")
        self.rng, self.resamples = rng, resamples
        self.references: dict[tuple, list] = {}
        self.lazy: dict[tuple, list] = {}
        self.full: dict[str, list] = {}
        for (corpus, point), rows in self.runs.items():
            first = rows[0]
            place = (corpus, first["peak"])
            if first["method"] == "streaming_llm":
                known = self.references.get(place)
                if known is None or known[0]["n_sink"] < first["n_sink"]:
                    self.references[place] = rows
            elif point == f"lazy_prune-P{first['peak']}-R{first['compression_interval']}":
                self.lazy[(*place, first["compression_interval"])] = rows
            elif first["method"] == "full":
                self.full[corpus] = rows

    def difference(self, rows, others, first: int) -> np.ndarray:
        """Losses (streams, tokens) above others' from prediction `first` on, as far as both go."""
        theirs = {row["stream"]: row["nll"] for row in others}
        stop = min(len(rows[0]["nll"]), len(others[0]["nll"]))
        return np.array(
            [
                np.subtract(row["nll"][first:stop], theirs[row["stream"]][first:stop])
                for row in rows
                if row["stream"] in theirs
            ]
        )

    def bounds(self, by_stream: np.ndarray) -> tuple[float, float, float]:
        """Mean over streams, and its interval."""
        return mean(by_stream, self.rng, self.resamples)


@makes(STREAMING_QUALITY)
def summarise_quality(runs: Sequence, gate, *, seed: int, resamples: int) -> list[dict]:
    """Rows of STREAMING_QUALITY from tables QUALITY_RUNS, one a method.

    Where the gate says that the model has no sinks, a row is skipped with that reason: what it
    measured stands there, and no spike.
    """
    points = Points(runs, np.random.default_rng(seed), resamples)
    outcomes, found = _outcomes(gate), []
    for (corpus, point), rows in points.runs.items():
        row = dict.fromkeys(STREAMING_QUALITY.names) | _about(corpus, point, rows)
        row |= outcomes[corpus] | _quality(points, corpus, rows)
        bins = _bins(points, corpus, rows)
        if bins and row["status"] == "ok":
            row |= _spike(points, corpus, rows, bins)
            row["diagnosis"] = diagnose(bins[0]["delta_low"], row["delta_low"])
        found.append(row)
    return found


@makes(STREAMING_SPIKES)
def summarise_spikes(runs: Sequence, gate, *, seed: int, resamples: int) -> list[dict]:
    """Rows of STREAMING_SPIKES; of a model without sinks they are skipped, without numbers."""
    points = Points(runs, np.random.default_rng(seed), resamples)
    outcomes, found = _outcomes(gate), []
    for (corpus, point), rows in points.runs.items():
        for one in _bins(points, corpus, rows):
            if outcomes[corpus]["status"] != "ok":
                one |= dict.fromkeys(("delta", "delta_low", "delta_high"))
            found.append(_about(corpus, point, rows) | outcomes[corpus] | one)
    return found


def _outcomes(gate) -> dict[str, dict]:
    """Status and reason by corpus."""
    return {
        row["corpus"]: {
            "status": "ok" if row["passes"] else "skipped",
            "reason": None if row["passes"] else f"no attention sinks here: {row['reason']}",
        }
        for row in records(gate, STREAMING_GATE)
    }


def _about(corpus: str, point: str, rows: Sequence[Mapping]) -> dict:
    return {"corpus": corpus, "point": point} | {k: rows[0][k] for k in (*SAID, *ABOUT)}


def diagnose(first_low: float, delta_low: float) -> str:
    """What a loss is, from the lower ends of the intervals of the first steps after a prune and of
    all (S-2.4)."""
    return "spike" if first_low > 0 else "window drift" if delta_low > 0 else "none"


def boundaries(drop_steps: Sequence[int]) -> list[int]:
    """Steps at which prunes begin: drops with none in the step before."""
    steps = set(drop_steps)
    return [step for step in drop_steps if step - 1 not in steps]


def since_prune(drop_steps: Sequence[int], count: int) -> np.ndarray:
    """(count,): steps from the last prune's beginning to each prediction; -1 before the first."""
    since, last, begins = np.full(count, -1), None, set(boundaries(drop_steps))
    for place in range(count):
        last = place if place in begins else last
        since[place] = -1 if last is None else place - last
    return since


def _quality(points: Points, corpus: str, rows: Sequence[Mapping]) -> dict:
    first = rows[0]
    start = first["peak"] if first["method"] != "full" else len(first["nll"]) // 2
    nll = float(np.mean([row["nll"][start:] for row in rows]))
    sizes = sorted(size for row in rows for size in row["drop_sizes"])
    found = {
        "streams": len(rows),
        "tokens": len(first["nll"]) - start,
        "nll": nll,
        "ppl": float(np.exp(nll)),
        "visible_min": min(row["visible_min"] for row in rows),
        "visible_mean": float(np.mean([row["visible_mean"] for row in rows])),
        "visible_max": max(row["visible_max"] for row in rows),
        "copied_bytes": float(np.mean([row["copied_bytes"] for row in rows])),
        "improves": first["improves"],
    }
    if sizes:
        found |= {
            "drop_size_mean": float(np.mean(sizes)),
            "drop_size_median": float(np.median(sizes)),
            "drop_size_max": float(sizes[-1]),
            "drop_size_p99": percentile(sizes, 99) if len(sizes) >= 100 else None,
        }
    reference = points.references.get((corpus, first["peak"]))
    if reference and first["method"] != "full":
        above = points.difference(rows, reference, start).mean(1)
        found |= with_ends("delta", points.bounds(above))
        found["ppl_change"] = float(np.expm1(found["delta"]))
    full = points.full.get(corpus)
    if full and first["method"] != "full" and len(full[0]["nll"]) > start:
        found |= with_ends("to_full", points.bounds(points.difference(rows, full, start).mean(1)))
    found["improved"] = _improved(points, corpus, rows, found)
    return found


def _improved(points: Points, corpus: str, rows, found: Mapping) -> str | None:
    """Whether the indicator that the method names is better than plain lazy pruning's."""
    first = rows[0]
    lazy = points.lazy.get((corpus, first["peak"], first["compression_interval"]))
    if lazy is None or lazy is rows or first["improves"].startswith(("none", "TPOT")):
        return None
    if first["improves"] == "drop_size_max":
        return "yes" if found["drop_size_max"] < max(lazy[0]["drop_sizes"]) else "no"
    _, low, high = points.bounds(points.difference(rows, lazy, first["peak"]).mean(1))
    return "yes" if high < 0 else "no: worse" if low > 0 else "no difference"


def _bins(points: Points, corpus: str, rows: Sequence[Mapping]) -> list[dict]:
    """Differences by steps since a prune; none for what prunes at each token."""
    first, period = rows[0], rows[0]["compression_interval"]
    reference = points.references.get((corpus, first["peak"]))
    if reference is None or period == 1 or not first["drop_steps"]:
        return []
    above = points.difference(rows, reference, 0)
    since = np.array([since_prune(row["drop_steps"], above.shape[1]) for row in rows])
    since[:, : first["peak"]] = -1
    found = []
    for low, high in itertools.pairwise(EDGES):
        inside = (since >= low) & (since < high)
        if inside.any(1).all():
            by_stream = np.where(inside, above, 0).sum(1) / inside.sum(1)
            found.append(
                {"since": low, "until": min(high, int(since.max()) + 1), "streams": len(rows)}
                | with_ends("delta", points.bounds(by_stream))
            )
    return found


def _spike(points: Points, corpus: str, rows: Sequence[Mapping], bins: Sequence[Mapping]) -> dict:
    """Peak, width and area of the profile after a prune."""
    worst = max(bins, key=lambda one: one["delta"])
    width = 0
    for one in bins:
        if one["delta_low"] <= 0:
            break
        width = one["until"]
    first = rows[0]
    reference = points.references[corpus, first["peak"]]
    above = points.difference(rows, reference, first["peak"]).mean(1)
    area = points.bounds(above * first["compression_interval"])
    peak = (worst["delta"], worst["delta_low"], worst["delta_high"])
    return with_ends("spike_peak", peak) | {"spike_width": width} | with_ends("spike_area", area)
