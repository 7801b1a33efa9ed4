"""Sec 4.4: what the prefix cache saves of the prefill, over prefix and prompt length (P1-2.3)."""

import pandas as pd

from ember.studies.p1.prefix.tables import PREFIX_SAVINGS
from ember.studies.steps import reads
from ember.studies.style import PAGE, basis, error, label, look, powers_of_two, style

_DASH = {"marker": "_", "markersize": 9, "linestyle": "none"}


@reads(savings=PREFIX_SAVINGS)
def draw(savings: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_prefix_savings`."""
    rows = savings.sort_values(["prompt_tokens", "prefix_tokens"])
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.6), width_ratios=(1.25, 1))
        _savings(left, rows)
        _times(right, rows)
        return figure, _caption(rows, scale)


def _savings(axes, rows) -> None:
    axes.plot([0, 80], [0, 80], color="#888888", linewidth=0.8, label="prefix / prompt")
    for index, (prompt, group) in enumerate(rows.groupby("prompt_tokens")):
        reused = 100 * group["prefix_tokens"] / prompt + (index - 1.5) * 0.6
        bars = error(group, "savings", "savings_low", "savings_high", 100)
        looks = look(index) | {"label": f"prompt {prompt}"}
        axes.errorbar(reused, 100 * group["savings"], bars, **looks)
        axes.plot(reused, 100 * group["expected_with_attention"], **look(index) | _DASH)
    axes.plot([], [], color="#444444", **_DASH, label="by operation count")
    x, y = "reused prefix (% of the prompt)", "prefill time saved (%)"
    label(axes, "a", x, y, loc="upper left")


def _times(axes, rows) -> None:
    from matplotlib.ticker import LogLocator

    full = rows.groupby("prompt_tokens")["uncached_ms_median"].median()
    axes.plot(full.index, full, color="#444444", marker="o", linestyle="-", label="no reuse")
    fractions = (rows["prefix_tokens"] / rows["prompt_tokens"]).round(2)
    for index, (fraction, group) in enumerate(rows.groupby(fractions)):
        looks = look(index + 1) | {"color": look(index)["color"]}
        times = group["prompt_tokens"], group["cached_ms_median"]
        axes.plot(*times, **looks, label=f"{100 * fraction:.0f} % reused")
    powers_of_two(axes, rows["prompt_tokens"])
    axes.set_yscale("log")
    axes.yaxis.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    label(axes, "b", "prompt (tokens)", "prefill (ms, median)")


def _caption(rows, scale: str) -> str:
    half = rows[(2 * rows["prefix_tokens"] - rows["prompt_tokens"]).abs() <= 1]
    found = "; ".join(
        f"prompt {row['prompt_tokens']}: {100 * row['savings']:.1f} % "
        f"[{100 * row['savings_low']:.1f}, {100 * row['savings_high']:.1f}], "
        f"{row['speedup']:.2f}×, operation count {100 * row['expected_with_attention']:.1f} %"
        for row in half.to_dict("records")
    )
    return (
        "**Sec 4.4. Prefill saved by the prefix cache.** (a) Saved time against the reused part of "
        "the prompt, paired by document, with 95 % bootstrap intervals; short dashes mark what the "
        "operation count predicts: with causal attention a reused prefix saves less than its share "
        "of the prompt, because its tokens attend to fewer keys. (b) Median prefill time. Reusing "
        f"half of the prompt saves: {found}. n = {rows['documents'].min()} documents a point; "
        f"first tokens equal to the uncached run in {100 * rows['tokens_equal_share'].min():.0f} % "
        f"of prompts, largest logit difference {rows['max_logit_diff'].max():.2g}. "
        f"{basis(rows, scale)}"
    )
