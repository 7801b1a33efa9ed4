"""The comparison of frameworks in a row each: median, spread, ratios and caveats (P1-1.3)."""

from statistics import median

from ember.studies.p1.frameworks.tables import FRAMEWORK_RUNS, FRAMEWORKS
from ember.studies.rows import grouped, records, summary_row
from ember.studies.steps import makes

EMBER = "ember"
# Columns in which a framework may differ from Ember, and how a reader calls them.
COMPARED = {
    "weights_format": "weights",
    "kv_cache": "KV cache",
    "kv_dtype": "KV number format",
    "threads": "threads",
    "prompt_kv": "KV of a prompt",
    "prompts": "prompts",
}


@makes(FRAMEWORKS)
def summarise_frameworks(runs) -> list[dict]:
    """Rows of FRAMEWORKS from a FRAMEWORK_RUNS table: its path, a data frame or rows."""
    groups = grouped(records(runs, FRAMEWORK_RUNS), "point", "workload", "framework")
    rows = []
    for (point, workload, _), group in groups.items():
        row, timed = summary_row(FRAMEWORKS, group)
        failed = [run for run in group if run["status"] != "ok"]
        row |= {name: failed[0][name] for name in ("status", "reason") if failed}
        ratios = [run["ember_ratio"] for run in timed if run["ember_ratio"] is not None]
        row["ember_ratio"] = median(ratios) if ratios else None
        shares = [run["tokens_equal_share"] for run in timed]
        row["tokens_equal_share"] = min((s for s in shares if s is not None), default=None)
        row["caveats"] = _caveats(row, groups.get((point, workload, EMBER)))
        rows.append(row)
    return rows


def _caveats(row: dict, embers: list[dict] | None) -> str | None:
    """In what a row is not like Ember's, in words."""
    ember = next((run for run in embers or () if run["status"] == "ok"), None)
    if ember is None or not row["n"] or row["framework"] == EMBER:
        return None
    found = [
        f"{words} {row[name]}, not {ember[name]}"
        for name, words in COMPARED.items()
        if row[name] != ember[name]
    ]
    if (row["decode_threads"] or row["threads"]) != row["threads"]:
        found.append(f"decodes on {row['decode_threads']} of {row['threads']} threads")
    if not row["same_weights"]:
        found.append("other random weights")
    return "; ".join(found) or None
