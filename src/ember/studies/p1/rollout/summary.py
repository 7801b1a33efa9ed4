"""Speed of continuous batching: medians and spread over the calls of each point (P1-4)."""

from ember.measure.statistics import summarise
from ember.studies.p1.rollout.tables import ROLLOUT_SPEED, ROLLOUT_THROUGHPUT
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(ROLLOUT_SPEED)
def summarise_rollouts(throughput) -> list[dict]:
    """Rows of ROLLOUT_SPEED from a ROLLOUT_THROUGHPUT table: its path, a data frame or rows."""
    found = []
    for calls in grouped(records(throughput, ROLLOUT_THROUGHPUT), "point").values():
        row, _ = summary_row(ROLLOUT_SPEED, calls)
        first = calls[0]
        for name in ("limit", "roofline"):
            row[f"{name}_tokens_per_s"] = first["generated_tokens"] / first[f"{name}_ms"] * 1e3
        shares = [call["decode_ms"] / call["total_ms"] for call in calls]
        row["decode_share"] = summarise(shares)["median"]
        found.append(row)
    return found
