"""How much each change removes of lazy pruning's loss (S-3)."""

import pandas as pd

from ember.studies.steps import reads
from ember.studies.streaming.matrix.tables import STREAMING_MATRIX
from ember.studies.style import PAGE, basis, error, legend_below, look, panel, style

NEAR = 0.05  # nats up to which the axis is linear, where some are far beyond


@reads(matrix=STREAMING_MATRIX)
def draw(matrix: pd.DataFrame, scale: str):
    """Figure and caption from the table `streaming_matrix`."""
    rows = matrix[(matrix["corpus"] == "long") & (matrix["method"] != "lazy_prune")]
    rows = rows[~rows["point"].str.contains("absolute")].copy()
    rows["change"] = rows["point"].str.replace(r"-P\d+-R\d+", "", regex=True)
    rows["change"] = rows["change"].str.replace(r"-(max_drop|overlap|slack)=\d+", "", regex=True)
    rows["change"] = rows["change"].str.replace(r"refresh_budget=\d+-selector=", "", regex=True)
    portions = rows["point"].str.contains("refresh.*max_drop")
    rows.loc[portions, "change"] += ", max_drop"
    budgets = sorted(set(zip(rows["peak"], rows["compression_interval"], strict=True)))
    changes = list(dict.fromkeys(rows["change"]))
    with style() as plt:
        height = 0.9 + 0.19 * len(changes)
        figure, axes = plt.subplots(figsize=(PAGE, height))
        for index, (peak, period) in enumerate(budgets):
            some = rows[(rows["peak"] == peak) & (rows["compression_interval"] == period)]
            places = [changes.index(one) + 0.16 * (index - 1.5) for one in some["change"]]
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
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
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
        return figure, caption
