"""Switching adapters, against the memory's limit and PEFT: medians and spread (P1-3.3)."""

from ember.studies.p1.lora_latency.tables import LORA_LATENCY, LORA_LATENCY_SUMMARY
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes


@makes(LORA_LATENCY_SUMMARY)
def summarise_latency(latency) -> list[dict]:
    """Rows of LORA_LATENCY_SUMMARY from a table LORA_LATENCY."""
    groups = grouped(records(latency, LORA_LATENCY), "implementation", "keep", "operation", "phase")
    rows = {key: summary_row(LORA_LATENCY_SUMMARY, group)[0] for key, group in groups.items()}
    for key, row in rows.items():
        if row["n"]:
            row["ratio_to_limit"] = row["ms_median"] / row["limit_ms"]
            peft = rows.get(("peft", "none", *key[2:]))
            if peft and peft["n"]:
                row["speedup_over_peft"] = peft["ms_median"] / row["ms_median"]
    return list(rows.values())
