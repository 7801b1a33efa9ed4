"""Where the time of a batched rollout goes, by rows and by candidates, with its limits (P1-4)."""

import pandas as pd

from ember.measure.statistics import ends_in_words
from ember.studies.p1.rollout.tables import ROLLOUT_SPEED
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, panel, spread, style

_PHASES = ("decode", "sampling", "prefill", "transfer", "rest")
_LIMITS = {"limit_ms": ("reads", "-"), "roofline_ms": ("reads and operations", ":")}
_CALL = ["prompts", "candidates", "context", "prefix", "generation"]


@reads(speed=ROLLOUT_SPEED)
def draw(speed: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_rollout_speed`: the call that was measured with most
    numbers of rows, and at its lengths the rows with most numbers of candidates."""
    phases = speed[[f"{phase}_ms_median" for phase in _PHASES[:-1]]].sum(axis=1)
    speed = speed.assign(rest_ms_median=(speed["total_ms_median"] - phases).clip(lower=0))
    sweep = _most(speed, _CALL, "rows")
    alike = speed.merge(sweep[["context", "prefix", "generation"]].drop_duplicates())
    others = _most(alike, ["rows"], "candidates").drop_duplicates("candidates")
    with style() as plt:
        both = len(others) > 1
        figure, panels = plt.subplots(1, 1 + both, figsize=(PAGE, 2.7), squeeze=False)
        left, right = panels[0, 0], panels[0, -1]
        first = sweep.iloc[0]
        _bars(left, sweep, "rows", 1e-3)
        left.set_xlabel(f"rows that decode together ({first['prompts']} × {first['candidates']})")
        left.set_ylabel("a call (s)")
        if both:
            tokens = others["prompts"] * others["candidates"] * others["generation"]
            _bars(right, others, "candidates", 1e3 / tokens)
            right.set_xlabel(f"candidates a prompt ({others['rows'].iloc[0]} rows)")
            right.set_ylabel("a generated token (µs)")
            panel(left, "a")
            panel(right, "b")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
        return figure, _caption(speed, sweep, others, scale)


def _most(speed, names: list[str], varied: str):
    """Of the rows that are alike in `names`, those with most values of `varied`, by that."""
    groups = [group for _, group in speed.groupby(names)]
    return max(groups, key=lambda group: group[varied].nunique()).sort_values(varied)


def _bars(axes, rows, name: str, scale) -> None:
    """Stacked phases from below, decoding first: the limits count from there."""
    places, bottom = range(len(rows)), 0.0
    for colour, phase in zip(COLOURS, _PHASES, strict=False):
        heights = scale * rows[f"{phase}_ms_median"]
        axes.bar(places, heights, bottom=bottom, color=colour, width=0.7, label=phase)
        bottom = bottom + heights
    bars = [scale * length for length in spread(rows, "total_ms")]
    axes.errorbar(places, bottom, bars, fmt="none", ecolor="#222222", elinewidth=1)
    for column, (words, line) in _LIMITS.items():
        limits = scale * rows[column]
        for place, limit in zip(places, limits, strict=True):
            label = f"limit by {words}" if not place else None
            ends = (place - 0.45, place + 0.45)
            axes.plot(ends, (limit, limit), color="#222222", linestyle=line, label=label)
    axes.set_xticks(places, rows[name])
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)


def _caption(speed, sweep, others, scale: str) -> str:
    first, best = sweep.iloc[0], sweep.loc[sweep["tokens_per_s_median"].idxmax()]
    text = (
        f"**Batched rollout.** {first['prompts']} prompts of {first['context']} tokens, "
        f"{first['generation']} generated at temperature 1 by {first['candidates']} candidates "
        "each: time of a call by phase, against the rows that decode together; medians, bars of "
        f"the whole span {ends_in_words(sweep['n'])}"
    )
    if len(others) > 1:
        text += ". (a) A call. (b) A generated token, against the candidates of a prompt"
    text += (
        ". Lines: what decoding and sampling would take if steps only read their weights and KV, a "
        f"prompt's once for its candidates, at {first['read_gb_s']:.0f} GB/s, measured in the same "
        "run, and if they took the longer of that and of their operations at "
        f"{first['matmul_tflops']:.3g} TFLOP/s, measured too. Fastest: {best['rows']} rows, "
        f"{best['tokens_per_s_median']:.0f} tokens/s, "
        f"{100 * best['prefill_share_median']:.0f} % of it prefill; decoding and sampling at "
        f"{100 * best['share_median']:.0f} % of their limit by reads and "
        f"{100 * best['roofline_share_median']:.0f} % of both. "
    )
    if first["device"] == "cpu":
        text += (
            "Here the weights may fit into the processor's cache and arithmetic, not memory, takes "
            "the time: the limit is no goal. "
        )
    if first["prefix"]:
        text += f"Prompts share their first {first['prefix']} tokens through the prefix cache. "
    return text + basis(speed, scale)
