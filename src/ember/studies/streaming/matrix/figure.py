"""How much each change removes of lazy pruning's loss (S-3), and what windows cost (S-7)."""

import pandas as pd

from ember.studies.steps import reads
from ember.studies.streaming.matrix.tables import STREAMING_MATRIX
from ember.studies.streaming.quality.tables import STREAMING_QUALITY
from ember.studies.style import (
    PAGE,
    basis,
    error,
    label,
    legend_below,
    look,
    panel,
    powers_of_two,
    style,
)

NEAR = 0.05  # nats up to which the axis is linear, where some are far beyond
TICKS = (-1, -0.5, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2)


@reads(matrix=STREAMING_MATRIX)
def draw(matrix: pd.DataFrame, scale: str):
    """Figure and caption from the table `streaming_matrix`."""
    rows = matrix[(matrix["corpus"] == "long") & (matrix["method"] != "lazy_prune")]
    rows = rows[~rows["point"].str.contains("absolute")]
    rows = rows[rows["max_drop_binds"] | ~rows["point"].str.contains("max_drop=")].copy()
    rows["change"] = rows["point"].str.replace(r"-P\d+-R\d+", "", regex=True)
    rows["change"] = rows["change"].str.replace(r"-(max_drop|overlap|slack)=\d+", "", regex=True)
    rows["change"] = rows["change"].str.replace(r"refresh_budget=\d+-selector=", "", regex=True)
    portions = rows["point"].str.contains("refresh.*max_drop")
    rows.loc[portions, "change"] += ", max_drop"
    # The grid's budgets: at the sweep's others few changes were measured.
    counts = rows.groupby(["peak", "compression_interval"])["change"].nunique()
    budgets = list(counts[counts > 0.6 * counts.max()].index)
    places = zip(rows["peak"], rows["compression_interval"], strict=True)
    rows = rows[[place in budgets for place in places]]
    changes = list(dict.fromkeys(rows["change"]))
    with style() as plt:
        height = 0.9 + 0.19 * len(changes)
        figure, axes = plt.subplots(figsize=(PAGE, height))
        for index, (peak, period) in enumerate(budgets):
            some = rows[(rows["peak"] == peak) & (rows["compression_interval"] == period)]
            places = [
                changes.index(one) + 0.16 * (index - (len(budgets) - 1) / 2)
                for one in some["change"]
            ]
            bars = error(some, "saved", "saved_low", "saved_high")
            looks = look(index % 7) | {"linestyle": "none", "markersize": 3}
            axes.errorbar(
                some["saved"], places, xerr=bars, **looks, label=f"P = {peak}, R = {period}"
            )
        axes.axvline(0, color="#444444", linewidth=0.8)
        axes.set_yticks(range(len(changes)), changes)
        axes.invert_yaxis()
        if rows["saved"].abs().max() > 5 * NEAR:
            axes.set_xscale("symlog", linthresh=NEAR)
            low, high = 1.15 * rows["saved_low"].min(), 1.5 * rows["saved_high"].max()
            axes.set_xticks([tick for tick in TICKS if low < tick < high])
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.minorticks_off()
            axes.set_xlim(low, high)
        axes.set_xlabel("loss saved against lazy pruning (nats a token)")
        panel(axes, "")
        legend_below(figure, axes)
        wins = rows[rows["verdict"] == "success"]["point"].tolist()
        caption = (
            "**What removes the loss of rare pruning.** Loss of lazy pruning minus that of each "
            "change at the same peak and period, paired by stream, 95 % bootstrap intervals, n = "
            f"{rows['streams'].min()} to {rows['streams'].max()} streams. Success rule (half "
            f"removed, TPOT within the bar): {', '.join(wins) or 'no point'}. {basis(rows, scale)}"
        )
        return figure, caption, rows


@reads(quality=STREAMING_QUALITY)
def draw_sweep(quality: pd.DataFrame, scale: str):
    """Lazy pruning by period at each peak, and perplexity by peak for some periods."""
    rows = quality[(quality["corpus"] == "long") & (quality["delta"].notna())]
    lazy = rows[(rows["method"] == "lazy_prune") & ~rows["point"].str.contains("absolute")]
    every = rows[(rows["method"] == "streaming_llm") & (rows["n_sink"] == lazy["n_sink"].iloc[0])]
    both = pd.concat([every, lazy])
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.6))
        for index, (peak, some) in enumerate(lazy.groupby("peak")):
            some = some.sort_values("compression_interval")
            bars = error(some, "delta", "delta_low", "delta_high")
            x = some["compression_interval"] * (1 + 0.03 * index)
            left.errorbar(x, some["delta"], bars, **look(index), label=f"P = {peak}")
        left.axhline(0, color="#444444", linewidth=0.8)
        powers_of_two(left, lazy["compression_interval"])
        y = "loss above R = 1 (nats)"
        label(left, "a", "period R (tokens)", y, loc="upper left")
        # Periods that were measured at most peaks.
        periods = both.groupby("compression_interval")["peak"].nunique().sort_values().index[-4:]
        for index, period in enumerate(sorted(periods)):
            some = both[both["compression_interval"] == period].sort_values("peak")
            right.plot(some["peak"], some["ppl"], **look(index), label=f"R = {period}")
        powers_of_two(right, both["peak"])
        label(right, "b", "peak visible length P (tokens)", "perplexity", loc="upper right")
        worst = lazy.loc[lazy["delta"].idxmax()]
        caption = (
            "**Windows and periods.** (a) Loss of lazy pruning above StreamingLLM's (R = 1) at the "
            "same peak P by period R, paired by stream, 95 % bootstrap intervals, n = "
            f"{lazy['streams'].max()} streams. Most at {worst['point']}: {worst['delta']:+.3f} "
            f"[{worst['delta_low']:+.3f}, {worst['delta_high']:+.3f}] nats. (b) Perplexity by P: "
            "the window is what sinks and R leave of it, so a larger R at the same P is a smaller "
            f"window. {basis(lazy, scale)}"
        )
        return figure, caption, both
