"""Tokens per second of two pipeline stages, over the split of the layers (P1-1.2)."""

import pandas as pd

from ember.studies.style import COLOURS, LINES, MARKERS, PAGE, basis, style

_MODES = {"overlap": "overlap", "no_overlap": "no overlap"}


def draw(pipeline: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_pipeline`."""
    rows = pipeline[(pipeline["status"] == "ok") & (pipeline["mode"] != "single")]
    single = pipeline[(pipeline["status"] == "ok") & (pipeline["mode"] == "single")]
    with style() as plt:
        if rows.empty:
            return not_measured(plt, pipeline, "Pipeline splits", scale)
        figure, (speed, busy) = plt.subplots(1, 2, figsize=(PAGE, 2.6), width_ratios=(1.25, 1))
        _speeds(speed, rows, single)
        _busy(busy, rows)
        return figure, _caption(rows, single, scale)


def not_measured(plt, pipeline: pd.DataFrame, what: str, scale: str):
    """A figure that says why there is nothing to draw, and its caption."""
    reasons = "; ".join(sorted(set(pipeline["reason"].dropna())))
    figure, axes = plt.subplots(figsize=(PAGE, 1.2))
    axes.set_axis_off()
    axes.text(0.5, 0.5, f"not measured: {reasons}", ha="center", va="center")
    return figure, f"**{what}.** Not measured: {reasons}. Scale {scale}."


def _speeds(axes, rows, single) -> None:
    for index, (mode, label) in enumerate(_MODES.items()):
        group = rows[rows["mode"] == mode].sort_values("first_layers")
        median = group["tokens_per_s_median"]
        low = (median - group["tokens_per_s_p10"]).clip(lower=0)
        high = (group["tokens_per_s_p90"] - median).clip(lower=0)
        axes.errorbar(
            range(len(group)),
            median,
            yerr=(low, high),
            color=COLOURS[index],
            marker=MARKERS[index],
            linestyle=LINES[0],
            capsize=2,
            label=f"{label}, measured",
        )
        if group["predicted_tokens_per_s"].notna().any():
            axes.plot(
                range(len(group)),
                group["predicted_tokens_per_s"],
                color=COLOURS[index],
                marker=MARKERS[index],
                markerfacecolor="white",
                linestyle=LINES[1],
                label=f"{label}, predicted",
            )
        axes.set_xticks(range(len(group)), group["split"])
    if len(single):
        axes.axhline(
            single.iloc[0]["tokens_per_s_median"],
            color=COLOURS[6],
            linestyle=LINES[3],
            label="one device, one batch",
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layers of first + second stage")
    axes.set_ylabel("tokens/s")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2)
    axes.set_title("a", loc="left", fontweight="bold")


def _busy(axes, rows) -> None:
    """Shares of the overlapped runs' time in which each stage computed."""
    group = rows[rows["mode"] == "overlap"].sort_values("first_layers")
    for stage, name in enumerate(("first", "last")):
        share = 100 * group[f"busy_{name}_ms_median"] / group["total_ms_median"]
        places = [place + 0.4 * (stage - 0.5) for place in range(len(group))]
        label = ("first stage", "second stage")[stage]
        axes.bar(places, share, width=0.38, color=COLOURS[2 + stage], label=label)
    axes.plot(
        range(len(group)),
        100 * group["bubble_share_median"],
        color="black",
        marker=MARKERS[2],
        linestyle=LINES[1],
        label="bubble, of both",
    )
    axes.set_xticks(range(len(group)), group["split"])
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 105)
    axes.set_xlabel("layers of first + second stage")
    axes.set_ylabel("share of the run (%)")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2)
    axes.set_title("b", loc="left", fontweight="bold")


def _caption(rows, single, scale: str) -> str:
    first = rows.iloc[0]
    best = rows.loc[rows["tokens_per_s_median"].idxmax()]
    same = rows[rows["standing"] == "no difference"]["point"].tolist()
    text = (
        "**Two pipeline stages by split.** (a) Generated tokens per second of "
        f"{first['sequences']} sequences in {first['micro_batches']} micro-batches, "
        f"{first['context']} prompt and {first['generation']} generated tokens, prefill included: "
        f"median and p10 to p90 of n = {first['n']} runs; hollow: predicted from the costs of "
        "layers, embedding, head and messages measured apart. (b) Share of the overlapped runs in "
        "which each stage computed. The fastest is "
        f"{best['split']} ({_MODES[best['mode']]}) at {best['tokens_per_s_median']:.4g} tokens/s, "
        f"with a bubble of {100 * best['bubble_share_median']:.1f} %"
    )
    text += f"; no different from it: {', '.join(same)}." if same else "."
    solved = rows["predicted_best_split"].dropna()
    if len(solved):
        text += f" The solver's best split with overlap, of all possible, is {solved.iloc[0]}."
    if len(single):
        text += (
            f" One device with all {first['sequences']} sequences in one batch: "
            f"{single.iloc[0]['tokens_per_s_median']:.4g} tokens/s."
        )
    return f"{text} {basis(rows, scale)}"
