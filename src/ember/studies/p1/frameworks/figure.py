"""Decode speed of this engine and of other frameworks, with what could not run (P1-1.3)."""

import textwrap

import pandas as pd

from ember.studies.p1.frameworks.tables import FRAMEWORKS
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, note, style

NAMES = {
    "ember": "Ember",
    "ember_two_stages": "Ember, two stages",
    "transformers": "Transformers, eager",
    "transformers_compiled": "Transformers, static + compile",
    "llama_cpp": "llama.cpp",
    "vllm": "vLLM",
    "sglang": "SGLang",
}


@reads(frameworks=FRAMEWORKS)
def draw(frameworks: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_frameworks`."""
    points = list(dict.fromkeys(frameworks["point"]))
    counts = [int((frameworks["point"] == point).sum()) for point in points]
    with style() as plt:
        size = (PAGE * 0.75, 0.65 * len(points) + 0.26 * sum(counts))
        figure, panels = plt.subplots(
            len(points), 1, figsize=size, height_ratios=counts, squeeze=False
        )
        for axes, point in zip(panels[:, 0], points, strict=True):
            _point(axes, frameworks[frameworks["point"] == point])
        panels[-1, 0].set_xlabel("decode speed (tokens/s)")
        return figure, _caption(frameworks, points, scale)


def _point(axes, rows: pd.DataFrame) -> None:
    rows = _ordered(rows)
    places = range(len(rows))
    for place, row in zip(places, rows.to_dict("records"), strict=True):
        if row["n"]:
            std = row["decode_tokens_per_s_std"]
            axes.barh(
                place,
                row["decode_tokens_per_s_mean"],
                xerr=0.0 if pd.isna(std) else std,
                color=COLOURS[0] if row["framework"].startswith("ember") else COLOURS[5],
                height=0.7,
                error_kw={"elinewidth": 0.8},
            )
        if row["status"] != "ok":
            words = textwrap.shorten(f"{row['status']}: {row['reason']}", 66, placeholder=" …")
            colour = "#777777" if row["status"] == "skipped" else COLOURS[1]
            note(axes, words, (0, place), (4, 0), va="center", style="italic", color=colour)
    limit = rows["limit_tokens_per_s"].dropna()
    if len(limit):
        axes.axvline(limit.iloc[0], color="#444444", linestyle="--", linewidth=1)
        note(axes, "read bandwidth", (limit.iloc[0], -0.7), (-3, 0), ha="right", va="center")
    axes.set_yticks(places, [NAMES.get(name, name) for name in rows["framework"]])
    axes.set_ylim(len(rows) - 0.5, -1.0 if len(limit) else -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    first = rows.iloc[0]
    axes.set_title(
        f"{first['model']} ({first['weights']} weights),\n"
        f"{first['prompt_tokens']} prompt + {first['generated_tokens']} new tokens",
        loc="left",
    )


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """As the comparison names them; others after them."""
    known = list(NAMES)
    place = rows["framework"].map(lambda name: known.index(name) if name in known else len(known))
    return rows.assign(place=place).sort_values("place")


def _caption(frameworks: pd.DataFrame, points: list[str], scale: str) -> str:
    text = (
        "**This engine beside other frameworks.** Decode speed (tokens after the first by the time "
        "they take) of greedy generation at batch 1, mean and standard deviation of n = "
        f"{_range(frameworks.loc[frameworks['n'] > 0, 'n'])} runs in turns, each framework a "
        "process of its own; compilation and loading are not in it."
    )
    for point in points:
        rows = frameworks[frameworks["point"] == point]
        others = rows[rows["ember_ratio"].notna() & (rows["framework"] != "ember")]
        for row in others.to_dict("records"):
            text += (
                f" {row['model']}: Ember is {row['ember_ratio']:.2f} times "
                f"({row['ember_ratio_min']:.2f} to {row['ember_ratio_max']:.2f}) as fast as "
                f"{NAMES.get(row['framework'], row['framework'])}"
            )
            text += f" ({row['caveats']})." if row["caveats"] else "."
        ember = rows[(rows["framework"] == "ember") & rows["limit_tokens_per_s"].notna()]
        for row in ember[ember["n"] > 0].to_dict("records"):
            share = row["decode_tokens_per_s_mean"] / row["limit_tokens_per_s"]
            text += (
                f" The dashed line is the measured read bandwidth ({row['read_gb_s']:.1f} GB/s) by "
                f"the bytes that a step reads; Ember reaches {100 * share:.0f} % of it."
            )
    if frameworks["limit_tokens_per_s"].isna().any():
        text += " Without a line: the model fits into the processor's cache."
    skipped = frameworks[frameworks["status"] != "ok"]
    names = {NAMES.get(name, name) for name in skipped["framework"]}
    if names:
        text += f" Not measured everywhere: {', '.join(sorted(names))} (reasons in the table)."
    return f"{text} {basis(frameworks, scale)}"


def _range(values) -> str:
    low, high = values.min(), values.max()
    return "0" if pd.isna(low) else str(low) if low == high else f"{low} to {high}"
