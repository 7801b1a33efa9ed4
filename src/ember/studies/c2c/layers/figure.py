"""What each layer bears, which schedules follow from it, and what they answer (C-M6)."""

import pandas as pd

from ember.studies.c2c.layers.tables import C2C_M6, C2C_SCHEDULES, C2C_SENSITIVITY, CONTROLS
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, error, look, panel, style

ORDER = ("none", "int2", "int4", "nf4", "nvfp4", "mxfp4", "int8", "fp8", "fp16")
KINDS = ("optimum", "backwards", "random", "last", "named")


@reads(sensitivity=C2C_SENSITIVITY, schedules=C2C_SCHEDULES, points=C2C_M6)
def draw(sensitivity: pd.DataFrame, schedules: pd.DataFrame, points: pd.DataFrame, scale: str):
    """Figure and caption from `c2c_sensitivity`, one world's schedules, and `c2c_m6`."""
    main = points[points["stratum"] == points["stratum"].iloc[0]]
    with style() as plt:
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(PAGE, 2.7), width_ratios=(1, 1.1, 1.2)
        )
        _losses(left, sensitivity)
        _chosen(middle, schedules)
        _answers(right, main)
        losses = sensitivity.groupby(["layer", "scheme"])["loss"].mean()
        layer, scheme = losses.idxmax()
        caption = (
            "**Mixed precision by layer.** (a) Nats that one of the sharer's layers costs in "
            "another scheme, all others in FP16, on the development split; mean and range over "
            f"worlds. The most: layer {layer} as {scheme}, {losses.max():.2f} nats. "
            f"{_readers(sensitivity)} (b) Schedules with the least sum "
            f"of these under a byte budget, world {schedules['world'].iloc[0]}. (c) What schedules "
            f"answer on the test split (n = {int(main['questions'].max())}), with 95 % intervals "
            f"by bootstrap over passages; controls are open. {basis(main, scale)}"
        )
        return figure, caption


def _readers(sensitivity: pd.DataFrame) -> str:
    first = sensitivity[sensitivity["world"] == sensitivity["world"].iloc[0]]
    read = first.drop_duplicates("layer").set_index("layer")["targets"].sort_index()
    told = [f"{layer} by {by.replace(',', ' and ')}" for layer, by in read.items()]
    return f"The sharer's layers are read by the receiver's: {', '.join(told)}."


def _losses(axes, sensitivity: pd.DataFrame) -> None:
    schemes = [one for one in ORDER if one in set(sensitivity["scheme"])]
    for index, scheme in enumerate(schemes):
        of = sensitivity[sensitivity["scheme"] == scheme].groupby("layer")["loss"]
        mean = of.mean()
        bars = (mean - of.min(), of.max() - mean)
        axes.errorbar(mean.index, mean, bars, label=scheme, **look(index))
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=min(-0.02, 1.5 * sensitivity["loss"].min()))
    axes.set_xticks(sorted(set(sensitivity["layer"])))
    axes.set_xlabel("sharer's layer")
    axes.set_ylabel("loss above FP16 (nats)")
    axes.legend(ncols=2, fontsize=6, handlelength=1.4)
    panel(axes, "a")


def _chosen(axes, schedules: pd.DataFrame) -> None:
    from matplotlib.patches import Rectangle

    best = schedules[schedules["kind"] == "optimum"].sort_values("budget")
    rows = [row["schemes"].split(",") for _, row in best.iterrows()]
    for height, schemes in enumerate(rows):
        for layer, scheme in enumerate(schemes):
            shade = ORDER.index(scheme) / (len(ORDER) - 1)
            corner, look = (layer - 0.46, height - 0.44), {"color": COLOURS[0], "lw": 0}
            axes.add_patch(Rectangle(corner, 0.92, 0.88, alpha=0.08 + 0.72 * shade, **look))
            if len(schemes) <= 10:
                axes.text(layer, height, scheme, ha="center", va="center", fontsize=5.5)
    axes.set_xlim(-0.5, max(map(len, rows), default=1) - 0.5)
    axes.set_ylim(-0.5, max(len(rows), 1) - 0.5)
    axes.set_yticks(range(len(rows)), [f"{100 * share:.3g} %" for share in best["budget"]])
    axes.set_ylabel("budget, share of FP16's bytes")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("receiver's layer")
    axes.grid(False)
    panel(axes, "b")


def _answers(axes, main: pd.DataFrame) -> None:
    plain, alike = main[main["kind"].isna()], {"color": "k", "mfc": "none", "ms": 4}
    axes.plot(plain["bytes_share"], plain["accuracy"], "s", label="all alike", **alike)
    for _, row in plain.iterrows():
        axes.annotate(
            row["scheme"],
            (row["bytes_share"], row["accuracy"]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=6,
        )
    for index, kind in enumerate(one for one in KINDS if one in set(main["kind"].dropna())):
        of = main[main["kind"] == kind]
        bars = error(of, "accuracy", "accuracy_low", "accuracy_high")
        shown = look(index) | {"linestyle": "none", "elinewidth": 0.6, "zorder": 3 - index / 9}
        if kind in CONTROLS:
            shown |= {"mfc": "none", "ms": 5.5}
        axes.errorbar(of["bytes_share"], of["accuracy"], bars, label=kind, **shown, capsize=0)
    axes.set_xlim(left=0)
    axes.set_xlabel("measured bytes over FP16's")
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=6)
    panel(axes, f"c  n = {int(main['questions'].max())}")
