"""Switching adapters, against the memory's limit and PEFT: medians and spread (P1-3.3)."""

from ember.measure.statistics import summarise
from ember.studies.p1.lora_latency.tables import LORA_LATENCY, LORA_LATENCY_SUMMARY
from ember.studies.rows import grouped, records
from ember.studies.steps import makes


@makes(LORA_LATENCY_SUMMARY)
def summarise_latency(latency) -> list[dict]:
    """Rows of LORA_LATENCY_SUMMARY from a table LORA_LATENCY."""
    timed = records(latency, LORA_LATENCY)
    groups = grouped(timed, "implementation", "keep", "operation", "phase")
    times = {
        key: summarise([row["ms"] for row in group])
        for key, group in groups.items()
        if group[0]["status"] == "ok"
    }
    rows = []
    for key, group in groups.items():
        row = {name: value for name, value in group[0].items() if name not in ("repeat", "ms")}
        found, peft = times.get(key), times.get(("peft", "none", *key[2:]))
        row |= {"n": len(group) if found else 0}
        row |= {
            f"ms_{name}": found[name] if found else None for name in ("median", "p10", "p90", "cv")
        }
        median = row["ms_median"]
        row["ratio_to_limit"] = median / row["limit_ms"] if found else None
        both = found is not None and peft is not None
        row["speedup_over_peft"] = peft["median"] / median if both else None
        rows.append(row)
    return rows
