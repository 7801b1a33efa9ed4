"""Other frameworks beside this project: loss above R = 1 at equal peak, and time per token."""

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

from ember.measure.statistics import mean
from ember.studies.rows import grouped, records
from ember.studies.steps import makes
from ember.studies.streaming.peers.tables import PEER_STREAMS, PEER_TIMES, STREAMING_PEERS

EMBER = "ember"
POINT = ("framework", "method", "label", "peak", "compression_interval")


@makes(STREAMING_PEERS)
def compare_peers(streams, times, *, skip: int, seed: int, resamples: int) -> list[dict]:
    """Rows of STREAMING_PEERS from tables PEER_STREAMS and PEER_TIMES.

    Scored are the tokens after the peak; the steady state leaves out `skip` more. This project's
    fast path has the losses of its eager one.
    """
    rng = np.random.default_rng(seed)
    scored = grouped(records(streams, PEER_STREAMS), *POINT)
    timed = grouped(records(times, PEER_TIMES), *POINT)
    steady = {point: _steady(rows, skip) for point, rows in timed.items()}
    found = []
    for point, rows in scored.items():
        losses = _losses(rows, scored, rng, resamples) if rows[0]["status"] == "ok" else {}
        for place in (point, (*point[:2], "fast", *point[3:])):
            if place == point or place in timed:
                row = {name: rows[0].get(name) for name in STREAMING_PEERS.names}
                row |= dict(zip(POINT, place, strict=True)) | {"corpus": "long", "n": 0}
                row |= {"streams": len(rows), "tokens": max(0, len(rows[0]["nll"]) - row["peak"])}
                row |= {"nll": None} | losses | _times(place, steady)
                wrong = [one for one in timed.get(place, []) if one["status"] != "ok"]
                row |= {name: wrong[0][name] for name in ("status", "reason") if wrong}
                found.append(row)
    return found


def _losses(rows: Sequence[Mapping], scored: Mapping, rng, resamples: int) -> dict:
    """Loss, its difference to R = 1 paired by stream, and that to the method which it equals."""
    peak = rows[0]["peak"]
    nll = np.array([row["nll"] for row in rows])
    found = {"nll": float(nll[:, peak:].mean())}
    found["ppl"] = float(np.exp(found["nll"]))
    own = {p[1]: np.array([row["nll"] for row in r]) for p, r in scored.items() if p[0] == EMBER}
    reference = next(losses for name, losses in own.items() if name.startswith("streaming_llm-"))
    above = mean((nll - reference)[:, peak:].mean(1), rng, resamples)
    found |= dict(zip(("loss_above_r1", "low", "high"), above, strict=True))
    if rows[0]["framework"] != EMBER and rows[0]["equals"] is not None:
        found["largest_difference"] = float(np.abs(nll - own[rows[0]["equals"]]).max())
    return found


def _steady(rows: Sequence[Mapping], skip: int) -> dict[int, float]:
    """Mean time of a steady token, by round."""
    first = rows[0]["peak"] + skip - rows[0]["prefill"]
    return {
        row["repeat"]: float(np.mean(row["token_ms"][first:]))
        for row in rows
        if row["status"] == "ok"
    }


def _times(point: tuple, steady: Mapping[tuple, Mapping[int, float]]) -> dict:
    """TPOT, and its ratios to this project's within rounds."""
    runs = steady.get(point) or {}
    if not runs:
        return {}
    values = [*runs.values()]
    found = {"n": len(values), "tpot_ms": median(values)}
    found |= {"tpot_ms_min": min(values), "tpot_ms_max": max(values)}
    name = "streaming_llm-" if point[4] == 1 else "lazy_prune-"
    for path in ("eager", "fast"):
        ours = [p for p in steady if p[0] == EMBER and p[1].startswith(name)]
        own = next((steady[p] for p in ours if p[2:] == (path, *point[3:])), {})
        ratios = [runs[turn] / own[turn] for turn in runs if turn in own]
        found[f"{path}_ratio"] = median(ratios) if ratios else None
    return found
