"""Decoding against the memory's limit: medians over the repeats of each point (P1-1, P1-4)."""

from ember.measure.statistics import summarise
from ember.studies.p1.roofline.tables import DECODE_ROOFLINE, ROOFLINE
from ember.studies.rows import grouped, records
from ember.studies.steps import makes


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
    first = runs[0]

    def over_runs(name: str) -> dict:
        return summarise([run[name] for run in runs])

    share, speed = over_runs("share"), over_runs("decode_tokens_per_s")
    names = ("operators", "context", "rows", "generated_tokens", "sampling", "limit_ms")
    machine = ("read_gb_s", "device", "device_name", "dtype", "model", "weights", "evidence")
    return {
        **{name: first[name] for name in (*names, *machine)},
        "n": len(runs),
        "step_ms": over_runs("step_ms")["median"],
        "sampling_ms": over_runs("sampling_ms")["median"],
        "share": share["median"],
        "share_p10": share["p10"],
        "share_p90": share["p90"],
        "decode_tokens_per_s": speed["median"],
        "decode_tokens_per_s_std": speed["std"],
        "limit_tokens_per_s": first["rows"] / first["limit_ms"] * 1e3,
        "total_tokens_per_s": over_runs("total_tokens_per_s")["median"],
    }
