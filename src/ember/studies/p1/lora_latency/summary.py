"""Switching adapters, against the memory's limit and PEFT: medians and spread (P1-3.3)."""

from statistics import median

from ember.studies.p1.lora_latency import tables as t
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(t.LORA_LATENCY_SUMMARY)
def summarise_latency(latency, first) -> list[dict]:
    """Rows of LORA_LATENCY_SUMMARY from tables LORA_LATENCY and LORA_FIRST."""
    steady = grouped(records(latency, t.LORA_LATENCY), "implementation", "keep", "operation")
    rows = []
    for (*_, operation), runs in steady.items():
        row, timed = summary_row(t.LORA_LATENCY_SUMMARY, runs)
        kernels = row["implementation"] == "ember" and row["device"].startswith("cuda")
        row["phase"] = "steady"
        row["disk_cache"] = "warm" if kernels else "none"
        if timed:
            row["ratio_to_limit"] = row["ms_median"] / row["limit_ms"]
            theirs = {r["repeat"]: r["ms"] for r in steady.get(("peft", "none", operation), [])}
            ratios = [theirs[r["repeat"]] / r["ms"] for r in timed if theirs.get(r["repeat"])]
            row["speedup_over_peft"] = median(ratios) if ratios else None
        rows.append(row)
    size = {name: rows[0][name] for name in ("matrices", "rank", "bytes", "copy_gb_s", "limit_ms")}
    names = ("disk_cache", "implementation", "keep", "operation")
    groups = grouped(records(first, t.LORA_FIRST), *names)
    order = (*t.PARTS, *t.SWITCHES)
    for key in sorted(groups, key=lambda key: (*key[:3], order.index(key[3]))):
        row, _ = summary_row(t.LORA_LATENCY_SUMMARY, groups[key])
        rows.append(row | size | {"phase": "first", "passes": 0})
    return rows
