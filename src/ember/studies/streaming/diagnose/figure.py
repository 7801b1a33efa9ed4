"""Losses and times by token, prune boundaries marked (S-2)."""

import numpy as np
import pandas as pd

from ember.studies.steps import reads
from ember.studies.streaming.diagnose.tables import LATENCY_RUNS
from ember.studies.streaming.quality.tables import QUALITY_RUNS, STREAMING_SPIKES
from ember.studies.style import (
    PAGE,
    basis,
    device_time,
    error,
    label,
    legend_below,
    look,
    panel,
    style,
)

# What a point's id begins with, and what it is called: lazy pruning before control, and after it.
CONTROLS = {
    "lazy_prune-": "lazy pruning",
    "overlap-": "overlap = R/4",
    "max_drop-": "max_drop = R/4",
    "refresh-.*attention$": "refresh (attention)",
    "fold-P[0-9]+-R[0-9]+$": "folding",
}
LABELS = {
    "lazy_prune": "lazy pruning",
    "max_drop": "max_drop = R/4",
    "streaming_llm": "StreamingLLM (R = 1)",
}


@reads(lazy=QUALITY_RUNS, reference=QUALITY_RUNS, spikes=STREAMING_SPIKES)
def draw_losses(
    lazy: pd.DataFrame, reference: pd.DataFrame, spikes: pd.DataFrame, latency: dict, scale: str
):
    """Loss above R = 1 by token index, and by steps since the prune."""
    chosen = _chosen(lazy, latency["peak"])
    point = chosen.iloc[0]
    theirs = reference[
        (reference["corpus"] == "long")
        & (reference["peak"] == point["peak"])
        & (reference["n_sink"] == point["n_sink"])
    ]
    ours = np.stack(chosen["nll"].to_list())
    above = ours - np.stack(theirs["nll"].to_list())
    period, peak = point["compression_interval"], point["peak"]
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.7), width_ratios=(1.4, 1))
        for step in point["drop_steps"]:
            left.axvline(step, color="#bbbbbb", linewidth=0.7)
        width = max(4, period // 8)
        smooth = np.convolve(above.mean(0), np.ones(width) / width, "valid")
        left.plot(np.arange(len(smooth)) + width / 2, smooth, color="#0072B2", linewidth=0.9)
        left.plot([], [], color="#bbbbbb", label="prune")
        left.set_xlim(peak - period, above.shape[1])
        x = "token index"
        above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.1}
        label(left, "a", x, "loss above R = 1 (nats)", **above)
        rows = spikes[(spikes["corpus"] == "long") & (spikes["peak"] == peak)]
        rows = rows[~rows["point"].str.contains("absolute")]
        periods = sorted(rows[rows["method"] == "lazy_prune"]["compression_interval"].unique())
        _profiles(right, rows, {f"lazy_prune-P{peak}-R{r}$": f"R = {r}" for r in periods[-4:]})
        right.set_ylabel("loss above R = 1 (nats)")
        panel(right, "b")
        if right.get_legend_handles_labels()[1]:
            right.legend(loc="upper right")
        rows = spikes[(spikes["corpus"] == "long") & (spikes["point"] == point["point"])]
        return figure, _losses_caption(rows, point, width, scale, chosen), rows


def _profiles(axes, rows: pd.DataFrame, names: dict[str, str]) -> None:
    """Loss by steps since the prune, of the points whose ids match."""
    for index, (pattern, name) in enumerate(names.items()):
        one = rows[rows["point"].str.match(pattern)]
        if one.empty or (one["status"] != "ok").any():
            continue
        one = one[one["point"] == one["point"].iloc[0]]
        middle = (one["since"] + one["until"]) / 2 * (1 + 0.05 * (index - len(names) / 2))
        bars = error(one, "delta", "delta_low", "delta_high")
        axes.errorbar(middle, one["delta"], bars, **look(index), label=name)
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if not axes.get_legend_handles_labels()[1]:
        axes.text(0.5, 0.5, "skipped: no sinks", transform=axes.transAxes, ha="center")
    axes.set_xlabel("steps since the prune")


@reads(spikes=STREAMING_SPIKES)
def draw_control(spikes: pd.DataFrame, scale: str):
    """Loss by steps since a prune under lazy pruning and under what is to control it."""
    rows = spikes[(spikes["corpus"] == "long") & ~spikes["point"].str.contains("absolute")]
    portions = rows["point"].str.extract(r"max_drop=(\d+)")[0].astype(float)
    rows = rows[~(portions >= rows["compression_interval"])]  # it drops as lazy pruning does
    # Where most methods were measured: the grid's budgets, three at most.
    counts = rows.groupby(["peak", "compression_interval"])["method"].nunique()
    budgets = list(counts[counts > 0.6 * counts.max()].index)[-3:]
    with style() as plt:
        figure, panels = plt.subplots(
            1, len(budgets), figsize=(PAGE, 2.6), sharey=True, squeeze=False
        )
        said, drawn = [], []
        for axes, (peak, period), letter in zip(panels[0], budgets, "abc", strict=False):
            some = rows[(rows["peak"] == peak) & (rows["compression_interval"] == period)]
            _profiles(axes, some, CONTROLS)
            panel(axes, f"{letter}  P = {peak}, R = {period}")
            drawn.append(some[some["point"].str.match("|".join(CONTROLS))])
            first = some[(some["since"] == 0) & (some["status"] == "ok")]
            for pattern, name in CONTROLS.items():
                for row in first[first["point"].str.match(pattern)].to_dict("records")[:1]:
                    said.append(
                        f"{name} at P = {peak}, R = {period} {row['delta']:+.3f} "
                        f"[{row['delta_low']:+.3f}, {row['delta_high']:+.3f}]"
                    )
        panels[0][0].set_ylabel("loss above R = 1 (nats)")
        if panels[0][0].get_legend_handles_labels()[1]:
            legend_below(figure, panels[0][0])
        found = "; ".join(said) or f"none is claimed: {rows['reason'].iloc[0]}"
        caption = (
            "**Spikes before and after control.** Loss above StreamingLLM's (R = 1) at equal peak "
            "by steps since the last prune, paired by token, 95 % bootstrap intervals over n = "
            f"{rows['streams'].max()} streams. In the first steps: {found}. {basis(rows, scale)}"
        )
        return figure, caption, pd.concat(drawn)


def _chosen(lazy, peak: int):
    """Lazy pruning on the long corpus, at the longest period of this peak that is pruned often."""
    rows = lazy[
        (lazy["corpus"] == "long") & (lazy["peak"] == peak) & ~lazy["point"].str.contains("abs")
    ]
    periods = sorted(rows["compression_interval"].unique())
    enough = [r for r in periods if (rows["nll"].str.len().iloc[0] - peak) >= 6 * r]
    return rows[rows["compression_interval"] == (enough or periods[:1])[-1]]


def _losses_caption(rows, point, width: int, scale: str, chosen) -> str:
    if rows.empty or (rows["status"] != "ok").any():
        reason = rows["reason"].iloc[0] if len(rows) else "there is no prune"
        found = f"No cliff is claimed: {reason}"
    else:
        found = "Lazy pruning: " + "; ".join(
            f"steps {row['since']}–{row['until'] - 1}: {row['delta']:+.3f} "
            f"[{row['delta_low']:+.3f}, {row['delta_high']:+.3f}]"
            for row in rows.to_dict("records")
        )
    return (
        f"**Loss at prunes.** (a) Loss of {point['point']} above StreamingLLM's at equal peak by "
        f"token index, mean over n = {len(chosen)} streams and {width} tokens; grey: prunes. (b) "
        "By steps since the last prune and period, paired by token, 95 % bootstrap intervals over "
        "streams. "
        f"{found}. {basis(chosen, scale)}"
    )


@reads(runs=LATENCY_RUNS)
def draw_times(runs: pd.DataFrame, latency: dict, scale: str):
    """Time per token by token index on lazy pruning's fastest path, prunes marked."""
    path = min(runs["path"], key=lambda one: one == "eager")
    runs = runs[runs["path"] == path]
    first = runs[runs["repeat"] == runs["repeat"].min()]
    period = first["compression_interval"].max()
    wanted = [("streaming_llm", 1), *((method, period) for method in ("lazy_prune", "max_drop"))]
    with style() as plt:
        figure, axes = plt.subplots(figsize=(PAGE, 2.6))
        shown = []
        for index, (method, interval) in enumerate(wanted):
            rows = runs[(runs["method"] == method) & (runs["compression_interval"] == interval)]
            rows = rows[rows["point"] == rows["point"].iloc[-1]] if len(rows) else rows
            if rows.empty:
                continue
            times = np.median(np.stack(rows["token_ms"].to_list()), axis=0)
            colour = look(index)["color"]
            axes.plot(times, color=colour, linewidth=0.8, label=LABELS[method])
            if interval > 1:
                steps = [step - 1 for step in rows["drop_steps"].iloc[0]]
                axes.plot(steps, times[steps], color=colour, marker="v", linestyle="none")
            shown.append((rows, times))
        axes.plot([], [], color="#444444", marker="v", linestyle="none", label="drops")
        axes.set_ylim(bottom=0, top=2.2 * max(np.percentile(times, 99) for _, times in shown))
        time = device_time(runs["device"].iloc[0])
        label(axes, "", "decoded token", f"{time} (ms)", loc="upper right", ncols=4)
        found = "; ".join(
            f"{rows['point'].iloc[0]}: median {np.median(times):.2f} ms" for rows, times in shown
        )
        caption = (
            f"**Time per token.** Single stream, one token at a time ({path}), eviction included; "
            f"median over {runs['repeat'].nunique()} runs. {found}. {basis(runs, scale)}"
        )
        return figure, caption
