"""Sec 4.4: what the prefix cache saves of the operations, and where the rest goes (P1-2.3)."""

import pandas as pd

from ember.studies.p1.prefix.tables import PREFIX_LOSSES, PREFIX_SAVINGS
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, error, label, look, note, panel, style

_NAMES = {
    "uncached": "uncached prefill",
    "operations": "operations saved",
    "products": "shorter products",
    "attention": "attention, rest",
    "suffix": "shorter forward",
    "lookup": "look-up, copies",
    "store": "storing",
    "cached": "cached prefill",
}
_POINT = (2048, 1024)  # the waterfall's, where it was measured


@reads(savings=PREFIX_SAVINGS, losses=PREFIX_LOSSES)
def draw(savings: pd.DataFrame, losses: pd.DataFrame, goal: float, scale: str):
    """Figure and caption from the tables `p1_prefix_savings` and `p1_prefix_losses`.

    `goal`: the ratio of savings to the operation count that half of a prompt should reach.
    """
    rows = savings.sort_values(["prompt_tokens", "prefix_tokens"])
    parts = _waterfall_rows(losses)
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.6), width_ratios=(1, 1.15))
        _ratios(left, rows, goal)
        _waterfall(right, parts)
        return figure, _caption(rows, parts, goal, scale)


def _waterfall_rows(losses):
    """Half of 2048 tokens, or of the longest prompt that there is."""
    points = set(zip(losses["prompt_tokens"], losses["prefix_tokens"], strict=True))
    n, p = _POINT if _POINT in points else max(points, key=lambda x: (2 * x[1] <= x[0], *x))
    rows = losses[(losses["prompt_tokens"] == n) & (losses["prefix_tokens"] == p)]
    return rows.sort_values("step")


def _ratios(axes, rows, goal: float) -> None:
    for index, (prompt, group) in enumerate(rows.groupby("prompt_tokens")):
        # Side by side, so that intervals do not cover each other.
        reused = 100 * group["prefix_tokens"] / prompt + (index - 1.5) * 0.9
        bars = error(group, "ratio_to_operations", "ratio_low", "ratio_high")
        looks = look(index) | {"label": f"prompt {prompt}"}
        axes.errorbar(reused, group["ratio_to_operations"], bars, **looks)
    axes.axhline(1, color="#444444", linewidth=0.8)
    axes.axhline(goal, color="#444444", linewidth=0.8, linestyle="--")
    beside = axes.get_yaxis_transform()
    note(axes, f"goal\n{goal:g}", (1, goal), (2, 0), xycoords=beside, va="center")
    low, high = axes.get_ylim()
    axes.set_ylim(min(0, max(low, -1)), max(1.1, min(high, 2)))  # a disturbed run fills no panel
    axes.set_xticks(sorted({round(100 * f) for f in rows["prefix_tokens"] / rows["prompt_tokens"]}))
    x, y = "reused prefix (% of the prompt)", "time saved ÷ operations saved"
    label(axes, "a", x, y, loc="lower right")


def _waterfall(axes, parts) -> None:
    below = 0.0
    for place, row in enumerate(parts.to_dict("records")):
        whole = row["part"] in ("uncached", "cached")
        start = 0.0 if whole else below
        end = start + row["ms"]
        colour = COLOURS[0] if whole else COLOURS[2] if row["ms"] < 0 else COLOURS[1]
        axes.barh(place, row["ms"], left=start, color=colour, height=0.66)
        ends = [[row["ms"] - row["low"]], [row["high"] - row["ms"]]]
        axes.errorbar(end, place, xerr=ends, color="black", linewidth=0.8, capsize=1.5)
        digits = 0 if abs(row["ms"]) >= 100 else 1 if abs(row["ms"]) >= 10 else 2
        words = f"{row['ms']:{'' if whole else '+'}.{digits}f}".replace("-", "−")
        far = max(start, end, start + row["high"])
        note(axes, words, (far, place), (3, 0), fontsize=6.5, va="center")
        below = end
    axes.set_yticks(range(len(parts)), [_NAMES[part] for part in parts["part"]])
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    first = parts.iloc[0]
    axes.set_xlabel(f"ms, {first['prefix_tokens']} of {first['prompt_tokens']} tokens reused")
    panel(axes, "b")


def _caption(rows, parts, goal: float, scale: str) -> str:
    half = rows[(2 * rows["prefix_tokens"] - rows["prompt_tokens"]).abs() <= 1]
    found = "; ".join(
        f"prompt {row['prompt_tokens']}: {100 * row['savings']:.1f} % "
        f"[{100 * row['savings_low']:.1f}, {100 * row['savings_high']:.1f}], "
        f"{row['speedup']:.2f}×, {row['ratio_to_operations']:.3f} of the operation count's "
        f"{100 * row['expected_with_attention']:.1f} %"
        for row in half.to_dict("records")
    )
    first = parts.iloc[0]
    text = (
        "**Sec 4.4. Prefill saved by the prefix cache.** (a) Time saved over the share of the "
        "operations saved, paired by document, with 95 % bootstrap intervals. With causal "
        "attention that share is below the prefix's share of the prompt, because reused tokens "
        f"attend to fewer keys than those that remain. Goal for half of a prompt: {goal:g}. (b) "
        f"From the uncached prefill of {first['prompt_tokens']} tokens to the cached one with "
        f"{first['prefix_tokens']} reused, medians with 95 % intervals: what the operation count "
        "takes away, and what is lost again"
    )
    if "products" in set(parts["part"]):
        text += (
            "; shorter products: what the suffix alone, as a prompt, takes beyond its share of the "
            "operations; attention, rest: what its prefill after the prefix takes beyond that"
        )
    text += (
        f". Reusing half of the prompt saves: {found}. n = {rows['documents'].min()} documents a "
        f"point, the cached run first in {100 * rows['cached_first_share'].mean():.0f} % of pairs."
        f" First tokens of timed runs ({rows['dtype'].iloc[0]}) equal the uncached run's in "
        f"{100 * rows['tokens_equal_share'].mean():.1f} % of documents, largest logit "
        f"difference {rows['max_logit_diff'].max():.2g}"
    )
    if rows["float32_documents"].notna().any():
        text += (
            f"; in float32 in {100 * rows['float32_tokens_equal_share'].min():.0f} % of "
            f"{int(rows['float32_documents'].min())} documents a point, largest difference "
            f"{rows['float32_max_logit_diff'].max():.2g}"
        )
    return f"{text}. {basis(rows, scale)}"
