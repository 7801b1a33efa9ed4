"""Speed of the batched rollout against its batch size, with its limits (P1-4)."""

import pandas as pd

from ember.studies.p1.rollout.tables import ROLLOUT_SPEED
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, error, look, panel, powers_of_two, style


@reads(speed=ROLLOUT_SPEED)
def draw(speed: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_rollout_speed`."""
    usual = speed["candidates"].mode().max()  # the number of candidates that most points have
    sweep = speed[speed["candidates"] == usual].sort_values("batch")
    fixed = speed["rows"].mode().max()  # and the rows over which candidates vary
    others = speed[speed["rows"] == fixed].sort_values("candidates")
    with style() as plt:
        figure, (curves, shares, bars) = plt.subplots(
            1, 3, figsize=(PAGE, 2.4), width_ratios=(1.3, 1, 1), layout="constrained"
        )
        _curves(curves, sweep)
        _shares(shares, sweep)
        _bars(bars, others)
        return figure, _caption(speed, sweep, others, scale)


def _curves(axes, rows) -> None:
    series = (
        ("limit by reads", "limit_tokens_per_s", None),
        ("limit by reads and operations", "roofline_tokens_per_s", None),
        ("decoding steps", "decode_tokens_per_s_median", "decode_tokens_per_s"),
        ("whole call, with prefills", "tokens_per_s_median", "tokens_per_s"),
    )
    for index, (label, column, spread) in enumerate(series):
        axes.errorbar(
            rows["batch"],
            rows[column],
            yerr=None if spread is None else error(rows, column, f"{spread}_p10", f"{spread}_p90"),
            **look(index),
            capsize=2,
            label=label,
        )
    _batches(axes, rows)
    axes.set_yscale("log")
    axes.set_ylabel("tokens/s")
    axes.legend(loc="upper left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
    panel(axes, "a")


def _shares(axes, rows) -> None:
    for index, (label, name) in enumerate(
        (("of the reads' limit", "share"), ("of both limits", "roofline_share"))
    ):
        axes.errorbar(
            rows["batch"],
            100 * rows[f"{name}_median"],
            yerr=error(rows, f"{name}_median", f"{name}_p10", f"{name}_p90", 100),
            **look(index),
            capsize=2,
            label=label,
        )
    axes.plot(
        rows["batch"],
        100 * rows["occupancy"],
        **look(4),
        label="rows occupied",
    )
    _batches(axes, rows)
    axes.set_ylim(0, 150)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("share (%)")
    axes.legend(loc="upper left")
    panel(axes, "b")


def _bars(axes, rows) -> None:
    places = range(len(rows))
    for index, (label, column) in enumerate(
        (("decoding", "decode_tokens_per_s_median"), ("whole call", "tokens_per_s_median"))
    ):
        axes.bar(
            [place + 0.4 * index - 0.2 for place in places],
            rows[column],
            width=0.4,
            color=COLOURS[2 + index],
            label=label,
        )
    axes.set_xticks(places, [str(n) for n in rows["candidates"]])
    axes.set_ylim(top=1.3 * rows[["decode_tokens_per_s_median", "tokens_per_s_median"]].max().max())
    axes.set_xlabel(f"candidates a prompt, {rows['rows'].iloc[0]} rows")
    axes.set_ylabel("tokens/s")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", ncols=2, columnspacing=1.0, handlelength=1.2)
    panel(axes, "c")


def _batches(axes, rows) -> None:
    powers_of_two(axes, (round(batch) for batch in rows["batch"]))
    axes.set_xlabel("batch (mean rows of a step)")


def _caption(speed, sweep, others, scale: str) -> str:
    first, best = sweep.iloc[0], sweep.loc[sweep["tokens_per_s_median"].idxmax()]
    repeats = "-".join(str(n) for n in sorted(speed["n"].unique()))
    text = (
        f"**Batched rollout.** Prompts of {first['context']} tokens, {first['generation']} "
        f"generated at temperature 1, {first['candidates']} candidates a prompt in a and b; "
        f"medians of n = {repeats} calls a point, bars span p10 to p90. (a) Speed against the "
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
