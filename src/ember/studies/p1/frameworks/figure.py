"""This engine beside other frameworks: one rollout, and the loop's workload (P1-1.3)."""

import numpy as np
import pandas as pd

from ember.studies.p1.frameworks.tables import FRAMEWORKS
from ember.studies.steps import reads
from ember.studies.style import COLOURS, MARKERS, PAGE, basis, error, note, style

EMBER = "ember"
NAMES = {
    "ember": "Ember",
    "ember_two_stages": "Ember, two stages",
    "transformers": "Transformers generate",
    "transformers_compiled": "Transformers generate,\nstatic cache + compile",
    "llama_cpp": "llama.cpp",
    "vllm": "vLLM",
    "sglang": "SGLang",
}
# The speed that each workload is compared by, as ratios in the table are.
SPEEDS = {
    "rollout": ("decode_tokens_per_s", "decode speed"),
    "loop": ("total_tokens_per_s", "throughput with prefills"),
}
# Of the loop by prompt, since slow frameworks are given fewer of them.
FIRST = {
    "rollout": ("ttft_ms", "time to the first token (ms)"),
    "loop": ("ttft_per_prompt_ms", "time to all first tokens ÷ prompts (ms)"),
}


@reads(frameworks=FRAMEWORKS)
def draw(frameworks: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_frameworks`."""
    measured = frameworks[frameworks["n"] > 0]
    groups = [rows for _, rows in measured.groupby(["point", "workload"], sort=False)]
    counts = [len(rows) for rows in groups] or [1]
    with style() as plt:
        size = (PAGE, 0.35 + sum(0.75 + 0.26 * count for count in counts))
        figure, panels = plt.subplots(
            len(counts), 2, figsize=size, height_ratios=counts, squeeze=False, sharey="row"
        )
        for letter, axes, rows in zip("abcdefgh", panels, groups, strict=False):
            _workload(axes, _ordered(rows), letter)
        return figure, _caption(frameworks, scale)


def _workload(axes, rows: pd.DataFrame, letter: str) -> None:
    """Speed on the left, time to the first token on the right, a line for each framework."""
    speeds, tokens = axes
    first = rows.iloc[0]
    column, words = SPEEDS[first["workload"]]
    _points(speeds, rows, column, f"{words} (tokens/s)")
    _points(tokens, rows, *FIRST[first["workload"]])
    limits = list(rows["limit_tokens_per_s"].dropna()[:1])
    for limit in limits:
        speeds.axvline(limit, color="#444444", linestyle="--", linewidth=1)
        above = {"xycoords": speeds.get_xaxis_transform(), "ha": "center"}
        note(speeds, "read bandwidth", (limit, 1), (0, 2), **above)
    _range(speeds, [*rows[f"{column}_min"], *rows[f"{column}_max"], *limits])
    column, _ = FIRST[first["workload"]]
    _range(tokens, [*rows[f"{column}_min"], *rows[f"{column}_max"]])
    most = rows["prompts"].max()
    fewer = [f"\n{n} of {most} prompts" if n < most else "" for n in rows["prompts"]]
    names = [name(row) for row in rows.to_dict("records")]
    speeds.set_yticks(range(len(rows)), map("".join, zip(names, fewer, strict=True)))
    speeds.set_ylim(len(rows) - 0.5, -0.7)
    what = "One rollout" if first["workload"] == "rollout" else "The loop"
    speeds.set_title(f"{letter}  {what}: {_sizes(rows)}", loc="left", x=-0.6, fontweight="bold")
    tokens.set_title(f"{first['model']}, {first['weights']} weights", loc="right")


def _points(axes, rows: pd.DataFrame, column: str, label: str) -> None:
    """Medians with the range of the runs, and their values beside them."""
    middle, places = f"{column}_median", pd.Series(range(len(rows)), index=rows.index)
    own = rows["framework"].str.startswith(EMBER)
    for index, part in enumerate((rows[own], rows[~own])):
        axes.errorbar(
            part[middle],
            places[part.index],
            xerr=error(part, middle, f"{column}_min", f"{column}_max"),
            color=COLOURS[index],
            marker=MARKERS[index],
            linestyle="none",
        )
    for place, value in zip(places, rows[middle], strict=True):
        if pd.notna(value):
            words = f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
            note(axes, words, (value, place), (0, 5), ha="center")
    axes.set_xlabel(label)


def _range(axes, values: list) -> None:
    """From 0, so that a small factor looks small; logarithmic where it is more than ten."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    least, most = np.nanmin([*values, np.inf]), np.nanmax([*values, 0])
    if most > 10 * least:
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 50 * least else (1, 3)))
    else:
        axes.set_xlim(0, 1.15 * most or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_minor_locator(NullLocator())


def name(row) -> str:
    """What a framework is called, with its attention where that tells calls apart."""
    known = NAMES.get(row["framework"], row["framework"])
    if row["framework"].startswith("transformers") and row["attention"]:
        known = known.replace("generate", f"generate ({row['attention']})")
    return known


def _sizes(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    lengths = f"{first['prompt_tokens']} + {first['generated_tokens']} tokens"
    if first["workload"] == "rollout":
        return lengths
    return f"{rows['prompts'].max()} prompts × {first['candidates']} candidates, {lengths}"


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """As the comparison names them; others after them."""
    known = list(NAMES)
    place = rows["framework"].map(lambda name: known.index(name) if name in known else len(known))
    return rows.assign(place=place).sort_values("place")


def _caption(frameworks: pd.DataFrame, scale: str) -> str:
    measured = frameworks[frameworks["n"] > 0]
    runs = sorted(set(measured["n"])) or [0]
    text = (
        "**This engine beside other frameworks.** Medians and ranges of n = "
        f"{' to '.join(str(n) for n in dict.fromkeys((runs[0], runs[-1])))} runs in turns, each "
        "framework a process of its own; loading, compilation and recording of graphs are not in "
        "them. Time to the first token: the wall clock from the call, by a call of one token of "
        "every candidate. One rollout is greedy, its decode speed that of the tokens after the "
        "first; the loop's workload samples at temperature 1, with the prefix cache on where there "
        "is one and prompts that are new in every call, its throughput that of the whole call."
    )
    for (point, workload), rows in frameworks.groupby(["point", "workload"], sort=False):
        what = f"{point}, {'one rollout' if workload == 'rollout' else 'the loop'}"
        others = rows[rows["ember_ratio"].notna() & (rows["framework"] != EMBER)]
        for row in others.to_dict("records"):
            text += (
                f" {what}: Ember is {row['ember_ratio']:.2f} times ({row['ember_ratio_min']:.2f} "
                f"to {row['ember_ratio_max']:.2f}) as fast as {name(row).replace(chr(10), ' ')}"
            )
            text += f" ({row['caveats']})." if row["caveats"] else "."
        ember = rows[(rows["framework"] == EMBER) & rows["limit_tokens_per_s"].notna()]
        for row in ember[ember["n"] > 0].to_dict("records"):
            share = row["decode_tokens_per_s_median"] / row["limit_tokens_per_s"]
            text += (
                f" The dashed line is the measured read bandwidth ({row['read_gb_s']:.1f} GB/s) by "
                f"the bytes that a step reads; Ember reaches {100 * share:.0f} % of it."
            )
    if measured.loc[measured["workload"] == "rollout", "limit_tokens_per_s"].isna().any():
        text += " Without a line: the model fits into the processor's cache."
    missing = frameworks[frameworks["status"] != "ok"]
    names = {NAMES.get(one, one).replace("\n", " ") for one in missing["framework"]}
    if names:
        text += f" Not measured everywhere: {', '.join(sorted(names))} (reasons in the table)."
    return f"{text} {basis(frameworks, scale)}"
