"""The channel in one diagram, and accuracies of channel, baselines and controls."""

from collections.abc import Mapping

import pandas as pd

from ember.studies.c2c.m0.tables import C2C_M0
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, error, look, style

METHODS = {
    "receiver": "receiver alone",
    "tuned": "receiver fine-tuned alone",
    "zero": "C2C, source zeroed",
    "shuffled": "C2C, another text's source",
    "self": "C2C from itself",
    "sharer": "sharer alone",
    "routing": "the more confident of both",
    "oracle": "the better of both",
    "text": "text: the sharer's answer",
    "text_passage": "text: the sharer's records",
    "c2c": "C2C, FP16",
}
PANELS = {
    "sharer_only": "only the\nsharer knows",
    "no_context": "receiver lacks\nthe context",
    "receiver_only": "only the\nreceiver knows",
    "shared": "both know",
    "neither": "nobody knows",
}


@reads(baselines=C2C_M0)
def draw_baselines(baselines: pd.DataFrame, scale: str):
    """Figure and caption from the table `c2c_m0`."""
    strata = [stratum for stratum in PANELS if (baselines["stratum"] == stratum).any()]
    order = [method for method in METHODS if (baselines["method"] == method).any()]
    with style() as plt:
        figure, panels = plt.subplots(
            1, len(strata), figsize=(PAGE, 2.8), sharey=True, sharex=True, squeeze=False
        )
        for axes, stratum in zip(panels[0], strata, strict=True):
            rows = baselines[baselines["stratum"] == stratum].set_index("method")
            rows = rows.loc[order]
            places = range(len(order))[::-1]
            bars = error(rows, "accuracy", "low", "high", 100)
            for place, (method, row), below, above in zip(
                places, rows.iterrows(), *bars, strict=True
            ):
                series = look(1 if method == "c2c" else 0) | {"linestyle": "none"}
                axes.errorbar(100 * row["accuracy"], place, xerr=[[below], [above]], **series)
            axes.axvline(100 * rows["chance"].iloc[0], color="#666666", linestyle=":", linewidth=1)
            asked = int(rows["questions"].max())
            axes.set_title(f"{PANELS[stratum]}\nn = {asked:,}", fontsize=7)
            axes.set_xlim(-4, 104)
            axes.set_xticks([0, 50, 100])
        panels[0][0].set_yticks(places, [METHODS[method] for method in order])
        figure.supxlabel("right answers (%); dotted: chance", fontsize=8)
        rows = baselines[baselines["stratum"] == "sharer_only"].set_index("method")
        caption = "**Channel, baselines and controls** (C-M0), by who knows the answer. "
        if not rows.empty:
            c2c, alone = rows.loc["c2c"], rows.loc["receiver"]
            caption += (
                f"Of {int(c2c['questions'])} questions that only the sharer could answer, the "
                f"channel at FP16 answers {_percent(c2c)}, the receiver alone {_percent(alone)}, "
                f"with another text's source {_percent(rows.loc['shuffled'])}, with a zeroed one "
                f"{_percent(rows.loc['zero'])}; it sends {c2c['bytes']:,.0f} bytes a question, the "
                f"sharer's answer as text {rows.loc['text']['bytes']:.0f}. "
            )
        first = baselines.iloc[0]
        caption += (
            f"Intervals: 95 % bootstrap over {int(baselines['groups'].max())} texts of "
            f"{int(first['seeds'])} seed(s). Deviations from the published recipe: "
            f"{first['recipe']}. {basis(baselines, scale)}"
        )
        return figure, caption


def _percent(row) -> str:
    return f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


@reads()
def draw_channel(sharer: Mapping, receiver: Mapping, fuser: Mapping, tokens: int, scale: str):
    """Figure and caption: who computes what, and what crosses the wire."""
    heads, size = sharer["num_kv_heads"], sharer["head_dim"]
    layers = min(sharer["num_layers"], receiver["num_layers"])
    each = 2 * 2 * layers * heads * size
    with style() as plt:
        figure, axes = plt.subplots(figsize=(PAGE, 2.1))
        axes.set_axis_off()
        axes.set_xlim(0, PAGE)
        axes.set_ylim(0.2, 2.3)
        theirs, ours, wire = "#dcebf5", "#fbe3d6", "#eeeeee"
        sent = f"{_layers(layers)} of {heads} × {size}"
        for left, width, upper, lower in (
            (
                *(0.05, 1.35),
                ("sharer", f"{_layers(sharer['num_layers'])}\nreads its copy", theirs),
                ("receiver", f"{_layers(receiver['num_layers'])}\nreads its copy", ours),
            ),
            (
                *(1.75, 1.35),
                ("keys, values", f"{sent}\n{each:,} B a token at FP16", theirs),
                ("own cache", f"of all {tokens} tokens", ours),
            ),
            (
                *(3.45, 1.45),
                ("channel", "select tokens, quantise,\npack: the bytes sent", wire),
                ("fused cache", "own + what the fuser\nadds, same tokens", ours),
            ),
            (
                *(5.25, 1.7),
                ("fuser", "gate · weight · projected,\nfor each receiver layer", ours),
                ("question", "not fused; attends to the\nfused cache: the answer", ours),
            ),
        ):
            _box(axes, left, 1.45, width, *upper)
            _box(axes, left, 0.3, width, *lower)
        for left, right in ((1.4, 1.75), (3.1, 3.45), (4.9, 5.25)):
            _arrow(axes, (left, 1.82), (right, 1.82))
            _arrow(axes, (left, 0.67), (right, 0.67))
        _arrow(axes, (2.6, 1.05), (5.5, 1.45))
        _arrow(axes, (6.0, 1.45), (4.6, 1.05))
        axes.text(5.075, 1.9, "wire", fontsize=7, ha="center")
        axes.text(0.05, 2.25, "sharer's side", fontsize=7, color=COLOURS[0])
        axes.text(5.25, 2.25, "receiver's side", fontsize=7, color=COLOURS[1])
        caption = (
            "**The channel.** A sharer reads a text; what its cache holds of it crosses the wire, "
            f"{each:,} bytes a token at FP16 by the sharer's shape (layers {layers}, KV heads "
            f"{heads}, their size {size}). A fuser (width {fuser['hidden']}) projects it for "
            f"each of the receiver's {receiver['num_layers']} layers and adds it to the receiver's "
            "own cache of the same text; the question, which is never fused, attends to the sum. "
            f"With closed gates nothing is added and the receiver answers alone. Scale {scale}."
        )
        return figure, caption


def _box(axes, left: float, bottom: float, width: float, name: str, role: str, fill: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (left + 0.03, bottom + 0.03),
            width - 0.06,
            0.69,
            boxstyle="round,pad=0.03",
            facecolor=fill,
            edgecolor="#555555",
            linewidth=0.6,
        )
    )
    middle, centre = {"ha": "center", "va": "center"}, left + width / 2
    axes.text(centre, bottom + 0.59, name, fontweight="bold", fontsize=8, **middle)
    axes.text(centre, bottom + 0.25, role, fontsize=7, color="#333333", **middle)


def _arrow(axes, start: tuple, end: tuple) -> None:
    look = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=look)


def _layers(count: int) -> str:
    return f"{count} layer" + ("" if count == 1 else "s")
