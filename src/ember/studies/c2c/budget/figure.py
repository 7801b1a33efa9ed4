"""Accuracy against measured bytes, all studies of the channel (C-M4)."""

import pandas as pd

from ember.studies.c2c.budget.tables import C2C_M4
from ember.studies.c2c.layers.tables import CONTROLS
from ember.studies.steps import reads
from ember.studies.style import PAGE, basis, error, legend_below, look, panel, style

FAMILIES = {
    "ptq": "scheme and axis",
    "length": "length",
    "layers": "layer schedule",
    "selection": "selection",
}


@reads(points=C2C_M4)
def draw(points: pd.DataFrame, scale: str):
    """Figure and caption from the table `c2c_m4`: a panel for each stratum but all of them."""
    points = points[~points["schedule"].str.startswith(CONTROLS)]
    strata = [one for one in dict.fromkeys(points["stratum"]) if one != "all"] or ["all"]
    with style() as plt:
        figure, panels = plt.subplots(
            1, len(strata), figsize=(PAGE, 3.1), sharey=True, sharex=True, squeeze=False
        )
        for axes, stratum, letter in zip(panels[0], strata, "abcdef", strict=False):
            some = points[points["stratum"] == stratum]
            for index, (family, words) in enumerate(FAMILIES.items()):
                ours = some[(some["family"] == family) & (some["point"] != "fp16")]
                for oracle, of in ours.groupby("oracle"):
                    shown = look(index) | {"linestyle": "none", "elinewidth": 0.5}
                    filled = (
                        {"mfc": "white", "label": "by an oracle"} if oracle else {"label": words}
                    )
                    bars = error(of, "accuracy", "accuracy_low", "accuracy_high")
                    axes.errorbar(
                        of["measured_bytes"], of["accuracy"], bars, **shown, **filled, capsize=0
                    )
            full = some[some["point"] == "fp16"]
            axes.plot(full["measured_bytes"], full["accuracy"], "k*", ms=9, label="FP16")
            front = some[some["front"]].sort_values("measured_bytes")
            axes.step(
                front["measured_bytes"],
                front["accuracy"],
                where="post",
                color="#666666",
                lw=0.8,
                label="front, with its share of FP16's bytes",
                zorder=0,
            )
            for _, row in front.iterrows():
                above = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "size": 6}
                where = row["measured_bytes"], row["accuracy_high"]
                axes.annotate(f"{100 * row['bytes_share']:.2g} %", where, **above)
            axes.set_xscale("log")
            axes.set_xlabel("measured bytes a question")
            panel(
                axes, f"{letter}  {stratum.replace('_', ' ')}, n = {int(some['questions'].max())}"
            )
        panels[0][0].set_ylabel("accuracy")
        legend_below(figure, panels[0][0], columns=4)
        main = points[(points["stratum"] == strata[0])]
        full = main[main["point"] == "fp16"].iloc[0]
        small = main[~main["oracle"] & (main["bytes_share"] <= 1 / 8)]
        said = ""
        if len(small):
            best = small.loc[small["accuracy"].idxmax()]
            said = (
                f" Of points with an eighth of FP16's bytes or fewer `{best['point']}` is the most "
                f"accurate: {best['accuracy']:.3f} [{best['accuracy_low']:.3f}, "
                f"{best['accuracy_high']:.3f}] in {best['measured_bytes']:.0f} bytes."
            )
        caption = (
            "**Budget curves.** Accuracy against the length of the serialised blob; bars are 95 % "
            f"intervals by bootstrap over passages, {int(full['seeds'])} world(s). FP16: "
            f"{full['accuracy']:.3f} in {full['measured_bytes']:.0f} bytes.{said} Front: no point "
            "is as accurate with fewer bytes. By an oracle: choosing needs the receiver's own KV, "
            "whose traffic is counted. Layer schedules that are controls stand in the figure of "
            f"layers alone. {basis(main, scale)}"
        )
        return figure, caption
