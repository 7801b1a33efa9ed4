"""Speed of continuous batching: medians and range over the calls of each point (P1-4)."""

from statistics import median

from ember.studies.p1.rollout.tables import ROLLOUT_SPEED, ROLLOUT_THROUGHPUT
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(ROLLOUT_SPEED)
def summarise_rollouts(throughput) -> list[dict]:
    """Rows of ROLLOUT_SPEED from a ROLLOUT_THROUGHPUT table: its path, a data frame or rows."""
    found = []
    for calls in grouped(records(throughput, ROLLOUT_THROUGHPUT), "point").values():
        # The share is taken within each call, so that its range is that of calls.
        calls = [call | {"prefill_share": call["prefill_ms"] / call["total_ms"]} for call in calls]
        row, _ = summary_row(ROLLOUT_SPEED, calls)
        for name in ("limit", "roofline"):
            row[f"{name}_ms"] = median(call[f"{name}_ms"] for call in calls)
            row[f"{name}_tokens_per_s"] = calls[0]["generated_tokens"] / row[f"{name}_ms"] * 1e3
        found.append(row)
    return found
