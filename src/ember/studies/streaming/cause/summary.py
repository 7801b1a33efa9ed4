"""Which part of attention's output a prune's loss comes from: mass, norm or direction."""

from functools import partial

import numpy as np

from ember.measure.statistics import bootstrap, estimate, interval, mean
from ember.studies.rows import grouped, records, with_ends
from ember.studies.steps import makes
from ember.studies.streaming.cause.tables import (
    CAUSE_PARTS,
    CAUSE_RUNS,
    PARTS,
    STREAMING_CAUSE,
    STREAMING_CAUSE_LAYERS,
)
from ember.studies.streaming.sinks.tables import STREAMING_GATE

OUTPUTS = {
    "none": "mean value of the kept tokens, o_k",
    "mass": "(1 - m) o_k: the dropped tokens' mass m, without a value",
    "norm": "o_k with the norm of o, the output had nothing been dropped",
    "direction": "o with the norm of o_k",
    "mean_value": "(1 - m) o_k + m times the dropped values' mean, one for all queries",
    "fold": "one slot of the closed form, its mass and its value",
    "fold_value": "(1 - m) o_k + m times the slot's value: its mass made exact",
    "newest": "the newest eighth of the dropped tokens attended to as well",
    "attended": "instead the eighth that these queries attend to most (known only later)",
    "all": "o: nothing dropped",
}
SAID = ("peak", "compression_interval", "device", "dtype", "model", "weights", "evidence")


@makes(STREAMING_CAUSE)
def summarise_cause(runs, gate, *, seed: int, resamples: int) -> list[dict]:
    """Rows of STREAMING_CAUSE; skipped where the model has no sinks: no cliff is claimed there."""
    rng, groups = np.random.default_rng(seed), grouped(records(runs, CAUSE_RUNS), "repair")
    losses = {
        repair: np.array([np.mean(row["nll"]) for row in rows])
        for (repair,), rows in groups.items()
    }
    passes = {row["corpus"]: row for row in records(gate, STREAMING_GATE)}["long"]
    none = losses["none"]
    # One resampling for all, so that what is saved and what could be belong together.
    by_stream = np.stack([none - loss for loss in losses.values()], 1)  # (streams, repairs)
    draws = bootstrap(by_stream, rng, resamples, partial(np.mean, axis=1))
    whole = draws[:, list(losses).index("all")]
    worth = interval(whole)[0] > 0
    found = []
    for place, ((repair,), rows) in enumerate(groups.items()):
        saved, row = draws[:, place], dict.fromkeys(STREAMING_CAUSE.names)
        row |= {name: rows[0][name] for name in SAID}
        row |= {
            "repair": repair,
            "output": OUTPUTS[repair],
            "streams": len(rows),
            "prunes": sum(one["prunes"] for one in rows),
            "nll": float(losses[repair].mean()),
            **with_ends("saved", estimate(saved)),
            **(with_ends("removed", estimate(saved / whole)) if worth else {}),
            "status": "ok" if passes["passes"] else "skipped",
            "reason": None if passes["passes"] else f"no attention sinks: {passes['reason']}",
        }
        found.append(row | {"verdict": verdict(row)})
    return found


def verdict(row) -> str:
    """What a repair does to the loss of a prune."""
    if row["status"] != "ok":
        return f"none: {row['reason']}"
    if row["removed"] is None:
        return "nothing to remove: the prunes cost nothing that can be seen"
    if row["repair"] in ("none", "all"):
        return {"none": "lazy pruning", "all": "what a prune costs"}[row["repair"]]
    if row["removed_low"] > 0.5:
        return "most of the loss"
    if row["removed_low"] > 0:
        return "some of the loss"
    return "worse" if row["removed_high"] < 0 else "no difference"


@makes(STREAMING_CAUSE_LAYERS)
def summarise_parts(parts, *, seed: int, resamples: int) -> list[dict]:
    """Rows of STREAMING_CAUSE_LAYERS."""
    rng, found = np.random.default_rng(seed), []
    for (layer,), rows in grouped(records(parts, CAUSE_PARTS), "layer").items():
        row = {"layer": layer, "streams": len(rows)} | {name: rows[0][name] for name in SAID}
        for part in PARTS:
            values = np.array([one[part.name] for one in rows])
            row |= with_ends(part.name, mean(values, rng, resamples))
        found.append(row)
    return found
