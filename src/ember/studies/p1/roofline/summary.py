"""Decoding against the memory's limit: medians and spread of each point (P1-1, P1-4)."""

from ember.measure.statistics import summarise
from ember.studies.p1.roofline.tables import DECODE_ROOFLINE, ROOFLINE
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes

MEDIANS = ("step_ms", "sampling_ms", "total_tokens_per_s")


@makes(ROOFLINE)
def summarise_roofline(decode) -> list[dict]:
    """Rows of ROOFLINE from a table DECODE_ROOFLINE."""
    runs = records(decode, DECODE_ROOFLINE)
    points = grouped(runs, "context", "rows", "sampling", "operators")
    rows = {key: _summary(runs) for key, runs in points.items()}
    for (*point, _), row in rows.items():
        if plain := rows.get((*point, "plain")):
            speed = plain["decode_tokens_per_s_median"]
            row["speedup"] = row["decode_tokens_per_s_median"] / speed
    return list(rows.values())


def _summary(runs: list[dict]) -> dict:
    row, _ = summary_row(ROOFLINE, runs)
    if row["limit_ms"] is not None:
        row["limit_tokens_per_s"] = row["rows"] / row["limit_ms"] * 1e3
    if runs[0]["first"] is not None:
        row["first_share"] = sum(run["first"] for run in runs) / len(runs)
    return row | {name: summarise([run[name] for run in runs])["median"] for name in MEDIANS}
