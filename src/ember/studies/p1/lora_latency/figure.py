"""Switching adapters: time by operation, against the memory's limit and PEFT (P1-3.3)."""

import pandas as pd

from ember.measure.statistics import ends_in_words
from ember.studies.p1.lora_latency.tables import LORA_EXACT, LORA_LATENCY_SUMMARY
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, legend_below, spread, style

OPERATIONS = ("apply", "replace", "rollback", "reload")


@reads(latency=LORA_LATENCY_SUMMARY, exact=LORA_EXACT)
def draw(latency: pd.DataFrame, exact: pd.DataFrame, scale: str):
    """Figure and caption from the tables `p1_lora_latency` and `lora_exact`."""
    rows = latency[latency["status"] == "ok"]
    who = list(dict.fromkeys(zip(rows["implementation"], rows["keep"], strict=True)))
    with style() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.7), sharey=True)
        for axis, phase in zip(axes, ("steady", "cold"), strict=True):
            _bars(axis, rows[rows["phase"] == phase], who)
            axis.set_title(phase)
        axes[0].set_ylabel("ms (median and spread)")
        legend_below(figure, axes[0])
        return figure, _caption(latency, exact, scale)


def _bars(axis, rows, who) -> None:
    width = 0.8 / len(who)
    for index, (implementation, keep) in enumerate(who):
        group = rows[(rows["implementation"] == implementation) & (rows["keep"] == keep)]
        group = group.set_index("operation").reindex(OPERATIONS)
        places = [at + (index - (len(who) - 1) / 2) * width for at in range(len(OPERATIONS))]
        axis.bar(
            places,
            group["ms_median"],
            width * 0.92,
            yerr=spread(group, "ms"),
            error_kw={"linewidth": 0.8, "capsize": 0},
            color=COLOURS[index],
            label="PEFT" if implementation == "peft" else f"Ember, base kept: {keep}",
        )
    dashed = {"color": "#222222", "linewidth": 0.9, "linestyle": "--"}
    axis.axhline(rows["limit_ms"].iloc[0], **dashed, label="limit")
    axis.set_yscale("log")
    axis.set_xticks(range(len(OPERATIONS)), OPERATIONS)
    axis.grid(axis="x", visible=False)


def _caption(latency, exact, scale: str) -> str:
    steady = latency[(latency["phase"] == "steady") & (latency["status"] == "ok")]
    first, sentences = latency.iloc[0], []
    for row in steady[steady["implementation"] == "ember"].to_dict("records"):
        against = ""
        if pd.notna(row["speedup_over_peft"]):
            against = f", {row['speedup_over_peft']:.1f}× faster than PEFT"
        sentences.append(
            f"- {row['operation']} (base kept: {row['keep']}): {row['ms_median']:.3g} ms, "
            f"{row['ratio_to_limit']:.2f} × the limit{against}."
        )
    bits = "; ".join(
        f"{'PEFT' if row['implementation'] == 'peft' else 'Ember, ' + row['keep']} "
        + ("bit-equal" if row["exact"] else f"off by up to {row['max_abs_diff']:.2g}")
        + (f", keeping {row['kept_bytes'] / 1e6:.3g} MB" if row["kept_bytes"] else "")
        for row in exact.to_dict("records")
    )
    return (
        f"**Switching LoRA adapters (P1-3.3).** Medians, {ends_in_words(latency['n'])}. "
        f"{first['matrices']} matrices, rank {first['rank']}, {first['bytes'] / 2e6:.3g} MB of "
        "weights. Dashed: the limit, every adapted weight read and written once at the copy "
        f"bandwidth of {first['copy_gb_s']:.3g} "
        f"GB/s measured in the same run ({first['limit_ms']:.3g} ms). reload reads the adapter "
        "from a folder. cold is a single call, the first of its kind; that of the first bar is the "
        "first of the process. PEFT replaces by "
        f"unmerging and merging. After {exact['swaps'].iloc[0]} replacements and a rollback the "
        f"weights are: {bits}. {basis(latency, scale)}\n\n" + "\n".join(sentences)
    )
