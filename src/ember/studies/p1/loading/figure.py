"""Loading times by loader and page cache, and a process's way to its first token (P1-1.4)."""

import pandas as pd

from ember.studies.p1.loading.tables import FIRST_TOKEN, LOADING
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, error, note, panel, style

LOADERS = {
    "read": "bytes alone",
    "ember": "Ember\n(safetensors)",
    "transformers": "Transformers\n(safetensors)",
    "gguf": "gguf reader\n(GGUF)",
}
PARTS = {
    "start_s": "interpreter",
    "import_s": "imports",
    "load_s": "model",
    "prefill_s": "prefill",
    "rest_s": "packing, sampling",
}


@reads(loading=LOADING, first_token=FIRST_TOKEN)
def draw(loading: pd.DataFrame, first_token: pd.DataFrame, scale: str):
    """Figure and caption from the tables `p1_loading` and `first_token`."""
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.4), width_ratios=(1.5, 1))
        _loads(left, loading)
        _parts(right, first_token)
        return figure, _caption(loading, first_token, scale)


def _loads(axes, loading: pd.DataFrame) -> None:
    names = [name for name in LOADERS if name in set(loading["loader"])]
    for index, cache in enumerate(("cold", "warm")):
        rows = loading[loading["cache"] == cache].set_index("loader").reindex(names)
        spans = rows[["load_s_median", "load_s_min", "load_s_max"]].fillna(0.0)
        places = [place + (index - 0.5) * 0.38 for place in range(len(names))]
        axes.bar(
            places,
            spans["load_s_median"],
            yerr=error(spans, *spans),
            width=0.36,
            color=COLOURS[index],
            label=f"{cache} page cache",
            error_kw={"elinewidth": 0.8},
        )
        for place, (_, row) in zip(places, rows.iterrows(), strict=True):
            if row["status"] == "ok":
                words = format(row["mb_per_s"], ",.3g" if row["mb_per_s"] < 100 else ",.0f")
                note(axes, words, (place, row["load_s_max"]), (0, 4), ha="center")
            else:
                note(axes, str(row["status"]), (place, 0.0), (0, 4), ha="center", rotation=90)
    axes.set_xticks(range(len(names)), [LOADERS[name] for name in names])
    axes.set_ylabel("load without imports (s)")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    panel(axes, "a", y=1.1)


def _parts(axes, first_token: pd.DataFrame) -> None:
    processes, left = first_token["repeat"] + 1, pd.Series(0.0, index=first_token.index)
    for index, (part, label) in enumerate(PARTS.items()):
        axes.barh(processes, first_token[part], left=left, color=COLOURS[index], label=label)
        left = left + first_token[part]
    axes.set_yticks(processes)
    axes.set_ylabel("process")
    axes.set_xlabel("time since its start (s)")
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
    panel(axes, "b", y=1.2)


def _caption(loading: pd.DataFrame, first_token: pd.DataFrame, scale: str) -> str:
    ok = loading[loading["status"] == "ok"]
    text = (
        "**Loading a model.** (a) Median time until every page of the weights was touched, each in "
        f"a fresh process, n = {ok['n'].min()}; bars: their range; numbers: MB/s."
    )
    for row in ok[ok["loader"] != "read"].to_dict("records"):
        text += (
            f" {LOADERS[row['loader']].replace(chr(10), ' ')}, {row['cache']}: "
            f"{row['load_s_median']:.3f} s"
        )
        if pd.notna(row["share_of_limit"]):
            text += f", {100 * row['share_of_limit']:.2g} % of reading the bytes alone"
        text += "."
    cold = ok[ok["cache"] == "cold"]
    if len(cold) and not cold["verified"].all():
        text += " Whether the page cache was empty could not be verified."
    token = first_token["total_s"]
    text += (
        " (b) This engine's way from the start of a process to its first token, model in the "
        f"page cache, prompt of {first_token['prompt_tokens'].iloc[0]} tokens: median "
        f"{token.median():.2f} s ({token.min():.2f} to {token.max():.2f})."
    )
    skipped = loading[loading["status"] == "skipped"]
    if len(skipped):
        reasons = "; ".join(sorted(set(skipped["reason"])))
        text += f" Skipped: {', '.join(sorted(set(skipped['loader'])))} ({reasons})."
    return f"{text} {basis(loading, scale)}"
