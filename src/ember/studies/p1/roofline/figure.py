"""Decoding speed against the memory's limit, by batch size; and by part of a step (P1-1, P1-4)."""

import pandas as pd

from ember.measure.statistics import ends_in_words
from ember.studies.p1.roofline.tables import DECODE_KERNELS, ROOFLINE
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, label, look, powers_of_two, spread, style

BATCH = "batch (candidates of one prompt)"
NAMES = {"kernels": "the engine's kernels", "plain": "plain operators"}


@reads(roofline=ROOFLINE, kernels=DECODE_KERNELS)
def draw(roofline: pd.DataFrame, kernels: pd.DataFrame, scale: str):
    """Figure and caption from the tables `p1_roofline` and `decode_kernels`."""
    sampling = roofline["sampling"].iloc[0]
    rows = roofline[roofline["sampling"] == sampling].sort_values("rows")
    context = int(rows["context"].min())
    parts = kernels[(kernels["method"] == "alone") & (kernels["context"] == context)]
    with style() as plt:
        count, width = (3, PAGE) if len(parts) else (2, 0.75 * PAGE)
        figure, panels = plt.subplots(1, count, figsize=(width, 2.6))
        _speeds(panels[0], rows[rows["context"] == context])
        _shares(panels[1], rows)
        if len(parts):
            _parts(panels[2], parts[parts["rows"] == parts["rows"].min()])
        return figure, _caption(roofline, rows, parts, context, sampling, scale)


def _speeds(axes, rows) -> None:
    limit = rows[rows["operators"] == rows["operators"].iloc[0]]
    axes.plot(limit["rows"], limit["limit_tokens_per_s"], color="black", label="memory's limit")
    for index, (operators, group) in enumerate(rows.groupby("operators")):
        looks = look(index) | {"label": NAMES[operators]}
        bars = group["decode_tokens_per_s_std"].fillna(0.0)
        axes.errorbar(group["rows"], group["decode_tokens_per_s"], bars, **looks)
    axes.set_yscale("log")
    powers_of_two(axes, rows["rows"])
    label(axes, "a", BATCH, "decoding speed (tokens/s)")


def _shares(axes, rows) -> None:
    groups = rows.groupby(["operators", "context"])
    for index, ((operators, context), group) in enumerate(groups):
        looks = look(index) | {"color": COLOURS[list(NAMES).index(operators)]}
        looks |= {"label": f"{NAMES[operators]}, {context}"}
        axes.errorbar(group["rows"], 100 * group["share"], spread(group, "share", 100), **looks)
    axes.set_ylim(0, 150)  # room for the legend
    axes.set_yticks(range(0, 101, 20))
    powers_of_two(axes, rows["rows"])
    label(axes, "b", BATCH, "share of the memory's limit (%)")


def _parts(axes, parts) -> None:
    parts = parts.sort_values("step_us")
    places = range(len(parts))
    limit = parts["bytes"].fillna(0) / parts["read_gb_s"] / 1e3
    axes.barh(places, parts["step_us"], color=COLOURS[0], label="measured")
    axes.barh(places, limit, color="black", height=0.25, label="its bytes alone")
    axes.set_yticks(list(places), parts["kernel"])
    axes.grid(axis="y", visible=False)
    x = f"time in a step of {parts['rows'].iloc[0]} (µs)"
    label(axes, "c", x, "", loc="lower right")


def _caption(roofline, rows, parts, context: int, sampling: str, scale: str) -> str:
    ours = rows[(rows["operators"] == "kernels") & (rows["context"] == context)]
    first, last = ours.iloc[0], ours.iloc[-1]
    text = (
        "**Decoding against the memory's limit.** The limit is the time to read all weights, and "
        f"the prompt's KV once for all candidates, at {first['read_gb_s']:.4g} GB/s, measured in "
        f"the same run. (a) {context} tokens of context, sampling {sampling}: "
        f"{first['decode_tokens_per_s']:.4g} tokens/s with {first['rows']} candidate"
        f"{'s' if first['rows'] > 1 else ''} ({100 * first['share']:.1f} % of the limit, "
        f"{first['speedup']:.2f} times plain operators) to {last['decode_tokens_per_s']:.4g} with "
        f"{last['rows']} ({100 * last['share']:.1f} %, {last['speedup']:.2f} times). (b) Share of "
        f"the limit by context. Medians; bars span one standard deviation in (a) and "
        f"{ends_in_words(rows['n'])} in (b)."
    )
    if len(parts):
        text += (
            " (c) Each part of all layers alone in a graph of its own, so overlap between parts is "
            "not counted."
        )
    return f"{text} {basis(roofline, scale)}"
