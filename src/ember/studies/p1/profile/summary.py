"""Time of a rollout by phase, and the share of prefill in it, of each point (P1-1.1)."""

from ember.studies.p1.profile.tables import PREFILL_SHARE, ROLLOUT_PROFILE
from ember.studies.p1.rollout.tables import ROLLOUT_THROUGHPUT
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(PREFILL_SHARE)
def prefill_share(profile, stages=(), throughput=()) -> list[dict]:
    """Rows of PREFILL_SHARE from two ROLLOUT_PROFILE tables and the calls of a ROLLOUT_THROUGHPUT
    table whose prompts share no prefix: their paths, data frames or rows.

    The share is taken within each rollout, then summarised, so that its spread is that of rollouts.
    """
    alone = [*records(profile, ROLLOUT_PROFILE), *records(stages, ROLLOUT_PROFILE)]
    runs = [run | {"prompts": 1, "candidates": 1} for run in alone]
    for call in records(throughput, ROLLOUT_THROUGHPUT):
        if not call["prefix"]:
            about = {"mode": "batched", "batch": call["rows"], "status": "ok", "reason": None}
            runs.append(call | about)
    for run in runs:
        timed = run["status"] == "ok"
        run["prefill_share"] = run["prefill_ms"] / run["total_ms"] if timed else None
    rows = []
    for repeats in grouped(runs, "point").values():
        row, _ = summary_row(PREFILL_SHARE, repeats)
        rows.append(row)
    return rows
