"""Switching adapters: time by operation, against the memory's limit and PEFT (P1-3.3)."""

import pandas as pd

from ember.measure.statistics import ends_in_words
from ember.studies.p1.lora_latency import tables as t
from ember.studies.steps import reads
from ember.studies.style import COLOURS, COLUMN, MARKERS, basis, legend_below, spread, style

STEADY = {
    "apply": "apply",
    "replace": "replace",
    "rollback": "roll back",
    "reload": "from a folder",
}
CACHES = {"none": "", "warm": ",\ndisk cache warm", "cold": ",\ndisk cache cold"}


@reads(latency=t.LORA_LATENCY_SUMMARY, first=t.LORA_FIRST, exact=t.LORA_EXACT)
def draw(latency: pd.DataFrame, first: pd.DataFrame, exact: pd.DataFrame, scale: str):
    """Figure and caption from the tables `p1_lora_latency`, `lora_first` and `lora_exact`."""
    rows = latency[(latency["status"] == "ok") & (latency["phase"] == "steady")]
    ours = first[(first["status"] == "ok") & (first["operation"] == "first")]
    caches = [cache for cache in CACHES if cache in set(ours[ours["keep"] != "none"]["disk_cache"])]
    who = list(dict.fromkeys(zip(rows["implementation"], rows["keep"], strict=True)))
    with style() as plt:
        figure, axes = plt.subplots(figsize=(COLUMN, 3.1))
        for index, (implementation, keep) in enumerate(who):
            look = {"color": COLOURS[index], "marker": MARKERS[index], "linestyle": "none"}
            lift = 0.5 - (index + 0.5) / len(who)
            group = rows[(rows["implementation"] == implementation) & (rows["keep"] == keep)]
            group = group.set_index("operation", drop=False).reindex(t.SWITCHES).dropna(subset="n")
            places = [lift * 0.7 - t.SWITCHES.index(name) for name in group["operation"]]
            name = "PEFT" if implementation == "peft" else f"Ember, base kept: {keep}"
            axes.errorbar(group["ms_median"], places, xerr=spread(group, "ms"), **look, label=name)
            mine = ours[(ours["implementation"] == implementation) & (ours["keep"] == keep)]
            for line, cache in enumerate(caches):
                shown = mine[mine["disk_cache"].isin((cache, "none"))]
                place = lift * 0.7 - len(t.SWITCHES) - line
                axes.plot(shown["ms"], [place] * len(shown), **look, alpha=0.8)
        dashed = {"color": "#222222", "linewidth": 0.9, "linestyle": "--"}
        axes.axvline(rows["limit_ms"].iloc[0], **dashed, label="memory's limit")
        axes.axhline(0.5 - len(t.SWITCHES), color="#888888", linewidth=0.6)
        words = [*(STEADY[name] for name in t.SWITCHES)]
        words += [f"first of a process{CACHES[cache]}" for cache in caches]
        axes.set_yticks([-place for place in range(len(words))], words)
        axes.set_ylim(0.5 - len(words), 0.5)
        axes.set_xscale("log")
        axes.set_xlabel("ms")
        axes.grid(axis="y", visible=False)
        legend_below(figure, axes, 2)
        return figure, _caption(latency, exact, scale)


def _caption(latency, exact, scale: str) -> str:
    ok = latency[latency["status"] == "ok"]
    steady, first = (ok[ok["phase"] == phase] for phase in ("steady", "first"))
    about, sentences = steady.iloc[0], []
    for row in steady[steady["implementation"] == "ember"].to_dict("records"):
        against = ""
        if pd.notna(row["speedup_over_peft"]):
            against = f", {row['speedup_over_peft']:.1f}× faster than PEFT"
        sentences.append(
            f"- {row['operation']} (base kept: {row['keep']}): {row['ms_median']:.3g} ms, "
            f"{row['ratio_to_limit']:.2f} × the limit{against}."
        )
    for (who, cache), group in first.groupby(["implementation", "disk_cache"], sort=False):
        sentences.append(_first(who, cache, group.set_index("operation")))
    bits = "; ".join(
        f"{'PEFT' if row['implementation'] == 'peft' else 'Ember, ' + row['keep']} "
        + ("bit-equal" if row["exact"] else f"off by up to {row['max_abs_diff']:.2g}")
        + (f", keeping {row['kept_bytes'] / 1e6:.3g} MB" if row["kept_bytes"] else "")
        for row in exact.to_dict("records")
    )
    return (
        f"**Switching LoRA adapters (P1-3.3).** {about['matrices']} matrices, rank "
        f"{about['rank']}, {about['bytes'] / 2e6:.3g} MB of weights. Medians, "
        f"{ends_in_words(steady['n'])}; implementations in turns. Dashed: the limit, every "
        f"adapted weight read and written once at the copy bandwidth of {about['copy_gb_s']:.3g} "
        f"GB/s measured in the same run ({about['limit_ms']:.3g} ms). PEFT replaces by "
        "unmerging and merging. Below the line each point is a fresh process with the model "
        "and libraries loaded: the time until its first adapter, read from a folder, is in the "
        f"weights. After {exact['swaps'].iloc[0]} replacements and a rollback the "
        f"weights are: {bits}. {basis(ok, scale)}\n\n" + "\n".join(sentences)
    )


def _first(who: str, cache: str, parts: pd.DataFrame) -> str:
    """A sentence on the first adapter of processes, with where its time goes."""
    total = parts.loc["first"]
    steps = ", ".join(f"{name} {parts.loc[name, 'ms_median']:.3g}" for name in t.FIRST)
    compiled = ""
    if "compile" in parts.index:
        compiled = f"; Triton compiled for {parts.loc['compile', 'ms_median']:.3g} ms meanwhile"
    imported = parts.loc["import", "ms_median"]
    named = "PEFT" if who == "peft" else "Ember"
    named += "" if cache == "none" else f", Triton's disk cache {cache}"
    return (
        f"- first adapter, n = {total['n']} processes, {named}: "
        f"{total['ms_median']:.4g} ms ({total['ms_min']:.4g} to {total['ms_max']:.4g}): {steps} ms"
        f"{compiled}; imports before it {imported:.3g} ms."
    )
