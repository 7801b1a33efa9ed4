"""Speed of the batched rollout against its batch size, with its limits (P1-4)."""

import pandas as pd

from ember.measure.statistics import ends_in_words
from ember.studies.p1.rollout.tables import ROLLOUT_SPEED
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, label, look, powers_of_two, spread, style

_BATCH = "batch (mean rows of a step)"


@reads(speed=ROLLOUT_SPEED)
def draw(speed: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_rollout_speed`."""
    usual = speed["candidates"].mode().max()  # the number of candidates that most points have
    sweep = speed[speed["candidates"] == usual].sort_values("batch")
    fixed = speed["rows"].mode().max()  # and the rows over which candidates vary
    others = speed[speed["rows"] == fixed].sort_values("candidates")
    with style() as plt:
        figure, panels = plt.subplots(1, 3, figsize=(PAGE, 2.4), width_ratios=(1.3, 1, 1))
        _curves(panels[0], sweep)
        _shares(panels[1], sweep)
        _bars(panels[2], others)
        return figure, _caption(speed, sweep, others, scale)


def _curves(axes, rows) -> None:
    limits = {"limit by reads": "limit", "limit by reads and operations": "roofline"}
    for index, (name, limit) in enumerate(limits.items()):
        axes.plot(rows["batch"], rows[f"{limit}_tokens_per_s"], **look(index), label=name)
    speeds = {"decoding steps": "decode_tokens_per_s", "whole call, with prefills": "tokens_per_s"}
    for index, (name, speed) in enumerate(speeds.items(), 2):
        _medians(axes, rows, speed, index, name)
    powers_of_two(axes, rows["batch"].round().astype(int))
    axes.set_yscale("log")
    label(axes, "a", _BATCH, "tokens/s", loc="upper left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend


def _medians(axes, rows, column: str, index: int, name: str, scale: float = 1.0) -> None:
    bars = spread(rows, column, scale)
    axes.errorbar(rows["batch"], scale * rows[f"{column}_median"], bars, **look(index), label=name)


def _shares(axes, rows) -> None:
    _medians(axes, rows, "share", 0, "of the reads' limit", 100)
    _medians(axes, rows, "roofline_share", 1, "of both limits", 100)
    axes.plot(rows["batch"], 100 * rows["occupancy"], **look(4), label="rows occupied")
    powers_of_two(axes, rows["batch"].round().astype(int))
    axes.set_ylim(0, 150)
    axes.set_yticks(range(0, 101, 20))
    label(axes, "b", _BATCH, "share (%)", loc="upper left")


def _bars(axes, rows) -> None:
    places = range(len(rows))
    speeds = {"decode_tokens_per_s_median": "decoding", "tokens_per_s_median": "whole call"}
    for index, (column, name) in enumerate(speeds.items()):
        at = [place + 0.4 * index - 0.2 for place in places]
        axes.bar(at, rows[column], width=0.4, color=COLOURS[2 + index], label=name)
    axes.set_xticks(places, [str(n) for n in rows["candidates"]])
    axes.set_ylim(top=1.3 * rows[list(speeds)].max().max())
    axes.grid(axis="x", visible=False)
    legend = {"loc": "upper left", "ncols": 2, "columnspacing": 1.0, "handlelength": 1.2}
    label(axes, "c", f"candidates a prompt, {rows['rows'].iloc[0]} rows", "tokens/s", **legend)


def _caption(speed, sweep, others, scale: str) -> str:
    first, best = sweep.iloc[0], sweep.loc[sweep["tokens_per_s_median"].idxmax()]
    text = (
        f"**Batched rollout.** Prompts of {first['context']} tokens, {first['generation']} "
        f"generated at temperature 1, {first['candidates']} candidates a prompt in a and b; "
        f"medians, bars span {ends_in_words(speed['n'])}. (a) Speed against the "
        f"batch; the limits are the time to read every weight and the KV that each step needs, a "
        f"prompt's once for its candidates, at {first['read_gb_s']:.0f} GB/s, measured in the "
        f"same run, and the longer of that and of the operations of products and of attention at "
        f"{first['matmul_tflops']:.3g} TFLOP/s, measured too; prefills "
        "are outside of both. (b) Share of the limits, and of the rows that steps had in use. (c) "
        f"Candidates a prompt. Fastest: {best['point']} rows (prompts x candidates in rows), "
        f"{best['tokens_per_s_median']:.0f} tokens/s with prefills, "
        f"{best['decode_tokens_per_s_median']:.0f} in steps, "
        f"{100 * best['share_median']:.0f} % of its limit by reads. "
    )
    if first["device"] == "cpu":
        text += (
            "Here the weights may fit into the processor's cache and arithmetic, not memory, takes "
            "the time: the limit is no goal. "
        )
    if (speed["cached_tokens"] > 0).any():
        text += f"Prompts share their first {first['prefix']} tokens through the prefix cache. "
    return text + basis(speed, scale)
