"""Figure 2: where a rollout's time goes, over context and generation length (P1-1.1)."""

import pandas as pd

from ember.measure.statistics import ends_in_words
from ember.studies.p1.profile.tables import PREFILL_SHARE
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, label, look, powers_of_two, spread, style

_PHASES = ("prefill", "decode", "sampling", "transfer")


@reads(share=PREFILL_SHARE)
def draw(share: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_prefill_share` (measured rows of mode single)."""
    rows = share[(share["status"] == "ok") & (share["mode"] == "single")]
    rows = rows.sort_values(["generation", "context"])
    with style() as plt:
        figure, (curves, bars) = plt.subplots(1, 2, figsize=(PAGE, 2.5), width_ratios=(1, 1.6))
        _curves(curves, rows)
        _bars(bars, rows)
        return figure, _caption(rows, share, scale)


def _curves(axes, rows) -> None:
    for index, (generation, group) in enumerate(rows.groupby("generation")):
        share, bars = 100 * group["prefill_share"], spread(group, "prefill_share", 100)
        looks = look(index) | {"label": f"{generation} generated"}
        axes.errorbar(group["context"], share, bars, **looks)
    powers_of_two(axes, rows["context"])
    axes.set_ylim(bottom=0)
    label(axes, "a", "context (tokens)", "prefill share of a rollout (%)")


def _bars(axes, rows) -> None:
    # One place for each row, and one left out between generation lengths.
    places = pd.Series(range(len(rows)), rows.index) + rows["generation"].rank(method="dense") - 1
    bottom = 0.0 * places
    for index, phase in enumerate(_PHASES):
        heights = rows[f"{phase}_ms_median"].fillna(0.0)
        axes.bar(places, heights, bottom=bottom, color=COLOURS[index], width=0.8, label=phase)
        bottom += heights
    axes.set_xticks(places, rows["context"], rotation=45)
    top = bottom.max()
    for generation, group in places.groupby(rows["generation"]):
        axes.text(group.mean(), top * 1.04, f"{generation} generated", ha="center", fontsize=7)
    axes.set_ylim(0, top * 1.14)
    axes.grid(axis="x", visible=False)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    label(axes, "b", "context (tokens)", "time of a rollout (ms)", **beside)


def _caption(rows, share, scale: str) -> str:
    low = rows.loc[rows["prefill_share"].idxmin()]
    high = rows.loc[rows["prefill_share"].idxmax()]
    skipped = share[share["status"] == "skipped"]
    text = (
        "**Figure 2. Where a rollout's time goes.** (a) Share of prefill in one rollout; bars span "
        f"{ends_in_words(rows['n'])} a point. (b) Median time by "
        f"phase. The share runs from {100 * low['prefill_share']:.1f} % at {low['context']} tokens "
        f"of context and {low['generation']} generated to {100 * high['prefill_share']:.1f} % at "
        f"{high['context']} and {high['generation']}. Batch 1, one device. {basis(rows, scale)}"
    )
    text += _two_stages(rows, share)
    if len(skipped):
        reasons = "; ".join(sorted(set(skipped["reason"].dropna())))
        text += f" Not measured here: {', '.join(skipped['mode'].unique())} ({reasons})."
    return text


def _two_stages(rows, share) -> str:
    """What the same rollouts take on two pipeline stages, as ratios of medians; or nothing."""
    staged = share[(share["status"] == "ok") & (share["mode"] != "single")]
    names = {"two_stage_overlap": "with overlap", "two_stage_serial": "without"}
    said = []
    for mode, group in staged.groupby("mode"):
        both = group.merge(rows, on=["context", "generation"], suffixes=("", "_single"))
        ratio = both["total_ms_median"] / both["total_ms_median_single"]
        said.append(f"{ratio.min():.2f} to {ratio.max():.2f} times as long {names[mode]}")
    return f" Two pipeline stages take {', '.join(said)}." if said else ""
