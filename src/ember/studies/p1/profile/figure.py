"""Figure 2: where a rollout's time goes, over context and generation length (P1-1.1)."""

import pandas as pd

from ember.studies.p1.profile.tables import PREFILL_SHARE
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, error, look, panel, powers_of_two, style

_PHASES = ("prefill", "decode", "sampling", "transfer")


@reads(share=PREFILL_SHARE)
def draw(share: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_prefill_share` (measured rows of mode single)."""
    rows = share[(share["status"] == "ok") & (share["mode"] == "single")]
    rows = rows.sort_values(["generation", "context"])
    with style() as plt:
        figure, (curves, bars) = plt.subplots(
            1, 2, figsize=(PAGE, 2.5), width_ratios=(1, 1.6), layout="constrained"
        )
        _curves(curves, rows)
        _bars(bars, rows)
        return figure, _caption(rows, share, scale)


def _curves(axes, rows) -> None:
    for index, (generation, group) in enumerate(rows.groupby("generation")):
        axes.errorbar(
            group["context"],
            100 * group["prefill_share"],
            yerr=error(group, "prefill_share", "prefill_share_p10", "prefill_share_p90", 100),
            **look(index),
            capsize=2,
            label=f"{generation} generated",
        )
    powers_of_two(axes, rows["context"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("prefill share of a rollout (%)")
    axes.legend()
    panel(axes, "a")


def _bars(axes, rows) -> None:
    positions, labels, centres = [], [], {}
    place = 0
    for generation, group in rows.groupby("generation"):
        start = place
        for row in group.to_dict("records"):
            positions.append(place)
            labels.append(str(row["context"]))
            place += 1
        centres[generation] = (start + place - 1) / 2
        place += 1
    bottom = [0.0] * len(rows)
    for index, phase in enumerate(_PHASES):
        heights = rows[f"{phase}_ms_median"].fillna(0.0).to_numpy()
        axes.bar(positions, heights, bottom=bottom, color=COLOURS[index], width=0.8, label=phase)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(positions, labels, rotation=45)
    top = max(bottom)
    for generation, centre in centres.items():
        axes.text(centre, top * 1.04, f"{generation} generated", ha="center", fontsize=7)
    axes.set_ylim(0, top * 1.14)
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("time of a rollout (ms)")
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    panel(axes, "b")


def _caption(rows, share, scale: str) -> str:
    low = rows.loc[rows["prefill_share"].idxmin()]
    high = rows.loc[rows["prefill_share"].idxmax()]
    skipped = share[share["status"] == "skipped"]["mode"].unique()
    repeats = sorted(rows["n"].unique())
    text = (
        "**Figure 2. Where a rollout's time goes.** (a) Share of prefill in one rollout; bars span "
        f"p10 to p90 of n = {'-'.join(str(n) for n in repeats)} runs a point. (b) Median time by "
        f"phase. The share runs from {100 * low['prefill_share']:.1f} % at {low['context']} tokens "
        f"of context and {low['generation']} generated to {100 * high['prefill_share']:.1f} % at "
        f"{high['context']} and {high['generation']}. Batch 1, one device. {basis(rows, scale)}"
    )
    text += _two_stages(rows, share)
    if len(skipped):
        text += f" Not measured here: {', '.join(skipped)} ({_reasons(share)})."
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


def _reasons(share) -> str:
    return "; ".join(sorted(set(share[share["status"] == "skipped"]["reason"].dropna())))
