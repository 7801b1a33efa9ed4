"""Which points nothing beats in both time and perplexity (S-7)."""

from ember.studies.rows import grouped, records
from ember.studies.steps import makes
from ember.studies.streaming.diagnose.tables import STREAMING_LATENCY
from ember.studies.streaming.pareto.tables import STREAMING_PARETO
from ember.studies.streaming.quality.tables import STREAMING_QUALITY

TIMES = ("steady_tpot_ms", "token_ms_p50", "token_ms_p90", "total_s")


@makes(STREAMING_PARETO)
def find_front(quality, latency) -> list[dict]:
    """Rows of STREAMING_PARETO: points that were both timed and scored."""
    times = {row["point"]: row for row in records(latency, STREAMING_LATENCY)}
    scored = [
        row
        for row in records(quality, STREAMING_QUALITY)
        if row["point"] in times and row["ppl_change"] is not None
    ]
    found = []
    for rows in grouped(scored, "corpus").values():
        both = [(times[row["point"]]["steady_tpot_ms"], row["ppl_change"]) for row in rows]
        for row, (time, change) in zip(rows, both, strict=True):
            beaten = any(t <= time and c <= change and (t, c) != (time, change) for t, c in both)
            known = {name: row[name] for name in STREAMING_PARETO.names if name in row}
            timed = {name: times[row["point"]][name] for name in TIMES}
            found.append(known | timed | {"on_front": not beaten})
    return found
