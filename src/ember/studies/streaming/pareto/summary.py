"""Which points nothing of their path beats in both time and perplexity (S-7)."""

from ember.studies.rows import grouped, records
from ember.studies.steps import makes
from ember.studies.streaming.diagnose.tables import PATH, STREAMING_LATENCY
from ember.studies.streaming.pareto.tables import STREAMING_PARETO
from ember.studies.streaming.quality.tables import STREAMING_QUALITY

TIMED = (
    *(column.name for column in PATH),
    *("steady_tpot_ms", "token_ms_p50", "token_ms_p90", "total_s"),
)


@makes(STREAMING_PARETO)
def find_front(quality, latency) -> list[dict]:
    """Rows of STREAMING_PARETO: points that were both timed and scored."""
    times = grouped(records(latency, STREAMING_LATENCY), "point")
    both = [
        {name: row[name] for name in STREAMING_PARETO.names if name in row}
        | {name: timed[name] for name in TIMED}
        for row in records(quality, STREAMING_QUALITY)
        if row["ppl_change"] is not None
        for timed in times.get((row["point"],), ())
    ]
    found = []
    for rows in grouped(both, "corpus", "path").values():
        places = [(row["steady_tpot_ms"], row["ppl_change"]) for row in rows]
        for row, (time, change) in zip(rows, places, strict=True):
            beaten = any(t <= time and c <= change and (t, c) != (time, change) for t, c in places)
            found.append(row | {"on_front": not beaten})
    return found
