"""Time of a rollout by phase, and the share of prefill in it, of each point (P1-1.1)."""

from ember.measure.statistics import summarise
from ember.studies.p1.profile.tables import PHASES, PREFILL_SHARE, ROLLOUT_PROFILE
from ember.studies.rows import records
from ember.studies.steps import makes


@makes(PREFILL_SHARE)
def prefill_share(profile, stages=()) -> list[dict]:
    """Rows of PREFILL_SHARE from two ROLLOUT_PROFILE tables: their paths, data frames or rows.

    The share is taken within each rollout, then summarised, so that its spread is that of rollouts.
    """
    points: dict[str, list[dict]] = {}
    for row in [*records(profile, ROLLOUT_PROFILE), *records(stages, ROLLOUT_PROFILE)]:
        points.setdefault(row["point"], []).append(row)
    rows = []
    for repeats in points.values():
        first = repeats[0]
        row = dict.fromkeys(PREFILL_SHARE.names)
        row |= {name: first[name] for name in row if name in first}
        timed = [r for r in repeats if r["status"] == "ok"]
        row["n"] = len(timed)
        if timed:
            for phase in PHASES:
                row |= _summary(phase, summarise([r[f"{phase}_ms"] for r in timed]))
            share = summarise([r["prefill_ms"] / r["total_ms"] for r in timed])
            row["prefill_share"] = share["median"]
            row["prefill_share_p10"], row["prefill_share_p90"] = share["p10"], share["p90"]
            row["tokens_per_s_median"] = summarise([r["tokens_per_s"] for r in timed])["median"]
        rows.append(row)
    return rows


def _summary(phase: str, found: dict) -> dict:
    names = ("median", "mean", "std", "cv", "p10", "p50", "p90")
    return {f"{phase}_ms_{name}": found[name] for name in names}
