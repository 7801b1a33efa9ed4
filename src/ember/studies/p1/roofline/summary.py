"""Decoding against the memory's limit: medians over the repeats of each point (P1-1, P1-4)."""

from ember.measure.statistics import summarise
from ember.studies.p1.roofline.tables import DECODE_ROOFLINE, ROOFLINE
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes

MEDIANS = ("step_ms", "sampling_ms", "share", "decode_tokens_per_s", "total_tokens_per_s")


@makes(ROOFLINE)
def summarise_roofline(decode) -> list[dict]:
    """Rows of ROOFLINE from a table DECODE_ROOFLINE."""
    runs = records(decode, DECODE_ROOFLINE)
    points = grouped(runs, "context", "rows", "sampling", "operators")
    rows = {key: _summary(runs) for key, runs in points.items()}
    for (*point, _), row in rows.items():
        plain = rows[(*point, "plain")]["decode_tokens_per_s"]
        row["speedup"] = row["decode_tokens_per_s"] / plain
    return list(rows.values())


def _summary(runs: list[dict]) -> dict:
    row, _ = summary_row(ROOFLINE, runs)
    row["limit_tokens_per_s"] = row["rows"] / row["limit_ms"] * 1e3
    return row | {name: summarise([run[name] for run in runs])["median"] for name in MEDIANS}
