"""The programme's rules: tables and thresholds in, verdicts out (S-0 to S-3, S-6)."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ember.studies.rows import grouped, records
from ember.studies.steps import makes
from ember.studies.streaming.cause.tables import STREAMING_CAUSE
from ember.studies.streaming.decisions.tables import STREAMING_DECISIONS
from ember.studies.streaming.matrix.summary import said_ratio
from ember.studies.streaming.matrix.tables import (
    STREAMING_LEDGER,
    STREAMING_MATRIX,
    STREAMING_PROGRAMME,
)
from ember.studies.streaming.quality.summary import Points
from ember.studies.streaming.quality.tables import STREAMING_QUALITY
from ember.studies.streaming.sinks.tables import STREAMING_GATE

Rows = Sequence[Mapping]
SNAPKV_CLASS = ("snapkv", "tova")
FOLLOWS = {
    "spike": "go: prunes cost a spike",
    "window drift": "no spike: the window drifts between prunes",
    "none": "no go: no difference to pruning at each token",
    None: "nothing is claimed: no attention sinks",
}
_NAMES = ("decision", "subject", "value", "low", "high", "threshold", "verdict", "detail")


@makes(STREAMING_DECISIONS)
def decide_streaming(
    runs: Sequence,
    gate,
    quality,
    matrix,
    programme,
    cause,
    ledger,
    *,
    bars: Mapping,
    seed: int,
    resamples: int,
    scale: str,
) -> list[dict]:
    """Rows of STREAMING_DECISIONS; thresholds stand in `streaming.bars`."""
    points = Points(runs, np.random.default_rng(seed), resamples)
    compared = records(matrix, STREAMING_MATRIX)
    rows = [
        *_sinks(records(gate, STREAMING_GATE)),
        *_prunes(records(quality, STREAMING_QUALITY)),
        *_part(records(cause, STREAMING_CAUSE), bars["min_removed"]),
        *_control(compared, bars),
        *_programme(records(programme, STREAMING_PROGRAMME)),
        *_folding(compared, bars),
        *_snapkv(compared, points, bars),
        *_stopped(records(ledger, STREAMING_LEDGER)),
    ]
    about = {"programme": "streaming", "evidence": "measured", "scale": scale}
    return [dict(zip(_NAMES, row, strict=True)) | about for row in rows]


def _sinks(gate: Rows) -> Iterator[tuple]:
    for row in gate:
        verdict = "a cliff may be claimed" if row["passes"] else f"no claim: {row['reason']}"
        detail = (
            f"nats a token that a missing sink costs at W = {row['peak']}, n = {row['streams']} "
            f"streams; {row['max_mass']:.2f} of a layer's mass on position 0, at least "
            f"{row['min_mass']:g} asked"
        )
        ends = row["gap"], row["gap_low"], row["gap_high"]
        yield "streaming_sinks", row["corpus"], *ends, 0.0, verdict, detail


def _prunes(quality: Rows) -> Iterator[tuple]:
    """S-2.4, for lazy pruning with each peak's longest period."""
    lazy = [row for row in quality if row["method"] == "lazy_prune" and row["delta"] is not None]
    lazy = [row for row in lazy if "absolute" not in row["point"]]
    for (corpus, _), rows in grouped(lazy, "corpus", "peak").items():
        row = max(rows, key=lambda one: one["compression_interval"])
        ends = row["delta"], row["delta_low"], row["delta_high"]
        detail = f"nats a token above R = 1 at equal peak, n = {row['streams']} streams"
        subject, verdict = f"{row['point']}, {corpus}", FOLLOWS[row["diagnosis"]]
        yield "streaming_prune", subject, *ends, 0.0, verdict, detail


def _part(cause: Rows, threshold: float) -> Iterator[tuple]:
    for row in cause:
        if row["repair"] in ("mass", "norm", "direction") and row["removed"] is not None:
            ends = row["removed"], row["removed_low"], row["removed_high"]
            detail = (
                f"share of a prune's loss that is gone with {row['output']}; "
                f"n = {row['streams']} streams, {row['prunes']} prunes"
            )
            yield "streaming_cause", row["repair"], *ends, threshold, row["verdict"], detail


def _control(matrix: Rows, bars: Mapping) -> Iterator[tuple]:
    """S-3: the change that removes most at a period for which success is asked."""
    asked = [
        row
        for row in matrix
        if row["compression_interval"] >= bars["interval"]
        and row["removed"] is not None
        and row["method"] != "lazy_prune"
    ]
    for (corpus,), rows in grouped(asked, "corpus").items():
        best = max(rows, key=lambda row: (row["verdict"] == "success", row["removed"]))
        ends = best["removed"], *(best[f"saved_{e}"] / best["lazy_delta"] for e in ("low", "high"))
        timed = best["tpot_ratio"] is not None
        tpot = f"{said_ratio(best, 'tpot_ratio')}, {best['path']}" if timed else "not measured"
        detail = (
            f"share of lazy pruning's loss removed, the best of {len(rows)} points with R of "
            f"{bars['interval']} or more; TPOT over the best lazy one {tpot}"
        )
        subject = f"{best['point']}, {corpus}"
        yield "streaming_control", subject, *ends, bars["min_removed"], best["verdict"], detail


def _programme(programme: Rows) -> Iterator[tuple]:
    for (corpus,), rows in grouped(programme, "corpus").items():
        worst = max(rows, key=lambda row: row["ppl_change"])
        held = sum(row["verdict"] == "held" for row in rows)
        ends = worst["ppl_change"], worst["ppl_change_low"], worst["ppl_change_high"]
        verdict = f"held by {held} of {len(rows)} points"
        free = sum(row["max_drop"] is not None and not row["max_drop_binds"] for row in rows)
        detail = (
            f"perplexity above R = 1, relative, of the worst ({worst['point']}); max_drop could "
            f"not bind in {free} points"
        )
        yield "streaming_programme", corpus, *ends, worst["bar"], verdict, detail


def _folding(matrix: Rows, bars: Mapping) -> Iterator[tuple]:
    """S-1.6: what folding removes, and at which time beside lazy pruning with the same period."""
    for row in matrix:
        if row["method"] != "fold" or row["corpus"] != "long" or row["removed"] is None:
            continue
        ratio = row["period_ratio"]
        low, high = (row[f"saved_{end}"] / row["lazy_delta"] for end in ("low", "high"))
        if high < bars["min_folded"]:
            verdict = f"falls short by {bars['min_folded'] - row['removed']:.0%}"
        elif low <= 0:
            verdict = "undecided: the interval holds zero"
        elif row["removed"] < bars["min_folded"]:
            verdict = "undecided: the goal lies within the interval"
        else:
            slow = row["no_fast_path"] or ratio is None or ratio > bars["max_fold_ratio"]
            verdict = "removes enough, but too slow or not timed" if slow else "reached"
        timed = (
            "not timed"
            if ratio is None
            else f"TPOT {said_ratio(row, 'period_ratio')} × lazy pruning's, {row['path']}"
        )
        detail = f"share of lazy pruning's loss removed; {timed}, {bars['max_fold_ratio']:g} asked"
        ends = row["removed"], low, high
        yield "streaming_fold", row["point"], *ends, bars["min_folded"], verdict, detail


def _snapkv(matrix: Rows, points: Points, bars: Mapping) -> Iterator[tuple]:
    """The programme's goal: no worse than SnapKV-class methods at equal peak and TPOT."""
    rows = [row for row in matrix if row["corpus"] == "long" and row["status"] == "ok"]
    for (peak, _), some in grouped(rows, "peak", "compression_interval").items():
        rivals = [row for row in some if row["method"] in SNAPKV_CLASS]
        if not rivals:
            continue
        rival = min(rivals, key=lambda row: row["delta"])
        ours = [
            row
            for row in some
            if row["method"] not in (*SNAPKV_CLASS, "recompute", "random_eviction")
            and row["streams"] == rival["streams"]
            and _ratio(row, rival) <= bars["max_tpot_ratio"]
        ]
        if not ours:
            continue
        best = min(ours, key=lambda row: row["delta"])
        pair = (points.runs["long", row["point"]] for row in (best, rival))
        value, low, high = points.bounds(points.difference(*pair, peak).mean(1))
        margin, timed = bars["margin"], rival["tpot_ratio"] is not None
        verdict = "no worse" if high <= margin else "worse" if low > margin else "undecided"
        ratio = (
            f"{_ratio(best, rival):.2f} × its TPOT, each over lazy pruning's on its path"
            if timed
            else "not timed"
        )
        detail = (
            f"nats a token above {rival['point']}'s, {ratio}; the best of {len(ours)} that are no "
            f"slower, n = {best['streams']} streams; {margin:g} nats count as none"
        )
        subject = f"{best['point']} against SnapKV's class"
        yield "streaming_snapkv", subject, value, low, high, margin, verdict, detail


def _ratio(row: Mapping, rival: Mapping) -> float:
    """TPOT over the rival's, each over lazy pruning's on its path, which may not be the same one;
    where the rival was not timed, all count as equal."""
    if rival["tpot_ratio"] is None:
        return 1.0
    own = row["tpot_ratio"]
    return float("inf") if own is None else own / rival["tpot_ratio"]


def _stopped(ledger: Rows) -> Iterator[tuple]:
    names = [row["direction"] for row in ledger if row["stopped"]]
    goes_on = [row["direction"] for row in ledger if not row["stopped"]]
    verdict = f"stopped: {', '.join(names) or 'none'}; go on: {', '.join(goes_on) or 'none'}"
    detail = "directions in which two changes in a row improved neither time nor loss"
    yield "streaming_stop_loss", "all directions", len(names), None, None, 0.0, verdict, detail
