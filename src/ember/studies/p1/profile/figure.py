"""Figure 2: the share of prefill in a rollout, alone and at the loop's batch sizes (P1-1.1)."""

from collections.abc import Mapping

import pandas as pd

from ember.measure.statistics import ends_in_words
from ember.studies.p1.profile.tables import PREFILL_SHARE
from ember.studies.p1.rollout.tables import point_name
from ember.studies.steps import reads
from ember.studies.style import COLUMN, basis, look, note, powers_of_two, spread, style

ASIDE = 0.1  # of an octave of the context, between the batch sizes


@reads(share=PREFILL_SHARE)
def draw(share: pd.DataFrame, operating: Mapping, scale: str):
    """Figure and caption from the table `p1_prefill_share`: one curve a batch size at the operating
    point's generation, and hollow the other generations that its batches were measured at."""
    rows = share[(share["status"] == "ok") & share["mode"].isin(["single", "batched"])]
    loop = (rows["mode"] == "batched") & _like(rows, operating, "prompts", "candidates")
    rows = rows[loop | (rows["mode"] == "single")].sort_values(["batch", "context", "generation"])
    usual = _like(rows, operating, "generation")
    curves = rows[usual].groupby("batch").filter(_is_curve, at=operating["rows"])
    rows = rows[rows["batch"].isin(curves["batch"])]
    loop = rows[rows["mode"] == "batched"][["context", "generation"]].drop_duplicates()
    others = rows[~_like(rows, operating, "generation")].merge(loop)
    with style() as plt:
        figure, axes = plt.subplots(figsize=(COLUMN, 2.5))
        for index, (batch, group) in enumerate(curves.groupby("batch")):
            name = f"{batch} rows" if batch > 1 else "one rollout"
            axes.plot([], [], **look(index), label=name)
            _points(axes, group, look(index))
            # Beside each other, since batches of the same lengths differ by little.
            hollow = look(index) | {"linestyle": "none", "markerfacecolor": "white"}
            beside = others["context"] * 2 ** (ASIDE * (index - 1))
            _points(axes, others.assign(context=beside)[others["batch"] == batch], hollow)
        for generation in sorted(set(others["generation"])):
            axes.plot([], [], "o", color="#444444", mfc="none", label=f"{generation} generated")
        for at in rows[rows["point"] == point_name(operating)].to_dict("records"):
            percent = 100 * at["prefill_share_median"]
            axes.plot(at["context"], percent, "o", ms=9, mfc="none", mec="#222222", mew=0.8)
            words = f"operating\npoint: {percent:.0f} %"
            note(axes, words, (at["context"], percent), (-6, 5), ha="right")
        powers_of_two(axes, rows["context"])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("context (tokens)")
        axes.set_ylabel("prefill share of a rollout (%)")
        title = f"decoding together, {operating['generation']} generated"
        axes.legend(title=title, title_fontsize=7, alignment="left", loc="best")
        return figure, _caption(rows, share, operating, scale)


def _is_curve(rows, at: int) -> bool:
    """Batches of one context only are left out, but for one rollout and the operating point."""
    return rows["batch"].iloc[0] in (1, at) or rows["context"].nunique() > 1


def _points(axes, rows, looks: Mapping) -> None:
    shares = 100 * rows["prefill_share_median"]
    if len(rows):
        axes.errorbar(rows["context"], shares, spread(rows, "prefill_share", 100), **looks)


def _like(rows, point: Mapping, *names: str):
    """Which rows are as the point says."""
    return (rows[list(names)] == [point[name] for name in names]).all(axis=1)


def _caption(rows, share, operating: Mapping, scale: str) -> str:
    skipped = share[share["status"] == "skipped"]
    said = "; ".join(
        f"{row['context']}/{row['generation']} {100 * row['prefill_share_median']:.1f} %"
        for row in rows[rows["batch"] == operating["rows"]].to_dict("records")
    )
    here = rows[_like(rows, operating, "context", "generation")]
    at = here[here["point"] == point_name(operating)]
    alone = here[here["mode"] == "single"]
    others = not _like(rows, operating, "generation").all()
    hollow = "Hollow, side by side for legibility: other generations. " if others else ""
    text = (
        "**Figure 2. The share of prefill in a rollout.** Time of prefill over time of the whole "
        f"call, by batch size: one rollout alone, and {operating['prompts']} prompts x "
        f"{operating['candidates']} candidates that decode in so many rows, each prompt prefilled "
        f"once. {hollow}Medians; bars span {ends_in_words(rows['n'])} a point. At the operating "
        f"point ({point_name(operating)}) the share is {_percent(at)}, of one rollout of these "
        f"lengths {_percent(alone)}. With {operating['rows']} rows (context/generated): {said}. "
        f"{basis(rows, scale)}"
    )
    text += _two_stages(share)
    if len(skipped):
        reasons = "; ".join(sorted(set(skipped["reason"].dropna())))
        text += f" Not measured here: {', '.join(skipped['mode'].unique())} ({reasons})."
    return text


def _percent(rows) -> str:
    shares = [f"{100 * share:.1f} %" for share in rows["prefill_share_median"]]
    return " and ".join(shares) or "not measured"


def _two_stages(share) -> str:
    """What the same rollouts take on two pipeline stages, as ratios of medians; or nothing."""
    staged = share[(share["status"] == "ok") & share["mode"].str.startswith("two_stage")]
    single = share[(share["status"] == "ok") & (share["mode"] == "single")]
    names = {"two_stage_overlap": "with overlap", "two_stage_serial": "without"}
    said = []
    for mode, group in staged.groupby("mode"):
        both = group.merge(single, on=["context", "generation"], suffixes=("", "_single"))
        ratio = both["total_ms_median"] / both["total_ms_median_single"]
        said.append(f"{ratio.min():.2f} to {ratio.max():.2f} times as long {names[mode]}")
    return f" Two pipeline stages take {', '.join(said)}." if said else ""
