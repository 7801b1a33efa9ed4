"""Decoding against the memory's limit, by batch and context; and by part of a step (P1-1, P1-4)."""

import pandas as pd

from ember.measure.statistics import ends_in_words
from ember.studies.p1.roofline.tables import DECODE_KERNELS, ROOFLINE
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, label, look, powers_of_two, spread, style

BATCH = "batch (candidates of one prompt)"


@reads(roofline=ROOFLINE, kernels=DECODE_KERNELS)
def draw(roofline: pd.DataFrame, kernels: pd.DataFrame, scale: str):
    """Figure and caption from the tables `p1_roofline` and `decode_kernels`.

    Where a cache holds what a step reads there is no limit: speeds are drawn then, and no share.
    """
    rows = roofline[roofline["sampling"] == roofline["sampling"].iloc[0]].sort_values("rows")
    bound = bool((rows["limit_kind"] == "memory").all())
    parts = kernels[kernels["method"] == "alone"]
    parts = parts[parts["rows"] == parts["rows"].min()]
    with style() as plt:
        count = 2 if len(parts) else 1
        figure, panels = plt.subplots(
            1, count, figsize=(PAGE * (0.55, 1)[count - 1], 2.6), squeeze=False
        )
        _curves(panels[0, 0], "a" if len(parts) else "", rows, bound)
        if len(parts):
            _parts(panels[0, 1], parts)
        return figure, _caption(roofline, rows, parts, bound, scale)


def _curves(axes, letter: str, rows, bound: bool) -> None:
    name, scale = ("share", 100) if bound else ("decode_tokens_per_s", 1)
    groups = rows.groupby(["operators", "context"])
    for index, ((operators, context), group) in enumerate(groups):
        kind = "" if operators == "kernels" else ", plain operators"
        looks = look(index) | {"label": f"context {context}{kind}"}
        bars = spread(group, name, scale)
        axes.errorbar(group["rows"], scale * group[f"{name}_median"], bars, **looks)
    powers_of_two(axes, rows["rows"])
    top = 100 if bound else axes.get_ylim()[1]
    axes.set_ylim(0, 1.02 * top)
    y = "share of the memory's limit (%)" if bound else "decoding speed (tokens/s)"
    label(axes, letter, BATCH, y, loc="best", borderpad=1)


def _parts(axes, parts) -> None:
    parts = parts.sort_values("step_us")
    places = range(len(parts))
    limit = parts["bytes"].fillna(0) / parts["read_gb_s"] / 1e3
    axes.barh(places, parts["step_us"], color=COLOURS[0], label="measured")
    axes.barh(places, limit, color="black", height=0.25, label="its bytes alone")
    axes.set_yticks(list(places), parts["kernel"])
    axes.grid(axis="y", visible=False)
    first = parts.iloc[0]
    x = f"time in a step of {first['rows']}, context {first['context']} (µs)"
    label(axes, "b", x, "", loc="lower right")


def _caption(roofline, rows, parts, bound: bool, scale: str) -> str:
    ours = rows[rows["operators"] == "kernels"]
    ours = ours[ours["context"] == roofline["context"].iloc[0]]
    first, last = ours.iloc[0], ours.iloc[-1]
    said = []
    for row in (first, last):
        words = f"{row['decode_tokens_per_s_median']:.4g} tokens/s with {row['rows']}"
        if bound:
            words += f" ({100 * row['share_median']:.1f} % of the limit)"
        if pd.notna(row["speedup"]):
            words += f", {row['speedup']:.2f} times plain operators"
        said.append(words)
    text = "**Decoding against the memory's limit.** " if bound else "**Decoding by batch.** "
    if bound:
        text += (
            "The limit is the time to read all weights, and the prompt's KV once for all "
            f"candidates, at {first['read_gb_s']:.4g} GB/s, measured in the same run. "
        )
    else:
        text += (
            "The processor's last cache holds the weights and KV of a step, so that the memory's "
            "bandwidth bounds nothing here and no limit is drawn. "
        )
    text += (
        f"{'(a) ' if len(parts) else ''}Sampling {first['sampling']}; at {first['context']} "
        f"tokens of context {' to '.join(said)}. Medians, bars span {ends_in_words(rows['n'])}."
    )
    if len(parts):
        text += (
            " (b) Each part of all layers alone in a graph of its own, so overlap between parts is "
            "not counted."
        )
    return f"{text} {basis(roofline, scale)}"
