"""Time of a rollout by phase, and the share of prefill in it, of each point (P1-1.1)."""

from ember.measure.statistics import summarise
from ember.records.schema import SPREAD
from ember.studies.p1.profile.tables import PREFILL_SHARE, ROLLOUT_PROFILE
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(PREFILL_SHARE)
def prefill_share(profile, stages=()) -> list[dict]:
    """Rows of PREFILL_SHARE from two ROLLOUT_PROFILE tables: their paths, data frames or rows.

    The share is taken within each rollout, then summarised, so that its spread is that of rollouts.
    """
    runs = [*records(profile, ROLLOUT_PROFILE), *records(stages, ROLLOUT_PROFILE)]
    rows = []
    for repeats in grouped(runs, "point").values():
        row, timed = summary_row(PREFILL_SHARE, repeats)
        if timed:
            share = summarise([r["prefill_ms"] / r["total_ms"] for r in timed])
            row["prefill_share"] = share["median"]
            row |= {f"prefill_share_{end}": share[end] for end in SPREAD[1:]}
        rows.append(row)
    return rows
