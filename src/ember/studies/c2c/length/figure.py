"""Accuracy by how much of the cache is sent, and which part of it (C-M3)."""

import pandas as pd

from ember.studies.c2c.length.tables import C2C_M3
from ember.studies.steps import reads
from ember.studies.style import COLUMN, basis, error, legend_below, look, style


@reads(points=C2C_M3)
def draw(points: pd.DataFrame, scale: str):
    """Figure and caption from the table `c2c_m3`, of its first stratum."""
    main = points[points["stratum"] == points["stratum"].iloc[0]]
    whole = main[(main["mode"] == "all") & (main["point"] != "fp16")]
    modes = [mode for mode in dict.fromkeys(main["mode"]) if mode != "all"]
    with style() as plt:
        figure, axes = plt.subplots(figsize=(COLUMN, 2.5))
        for index, mode in enumerate(modes):
            ours = pd.concat([whole, main[main["mode"] == mode]]).sort_values("proportion")
            shift = 0.008 * (index - (len(modes) - 1) / 2)  # so that bars lie side by side
            bars = error(ours, "accuracy", "accuracy_low", "accuracy_high")
            axes.errorbar(
                ours["proportion"] + shift, ours["accuracy"], bars, label=mode, **look(index)
            )
        full = main[main["point"] == "fp16"].iloc[0]
        axes.axhline(full["accuracy"], color="k", lw=0.8, ls=":", label="FP16, all tokens")
        axes.set_xlabel("share of the instruction's tokens that is sent")
        axes.set_ylabel(f"accuracy, {int(full['questions']):,} questions")
        axes.set_ylim(bottom=0)
        legend_below(figure, axes, columns=3)
        half = main[main["proportion"] == 0.5].sort_values("accuracy")
        said = ", ".join(f"{row['mode']} {row['accuracy']:.2f}" for _, row in half.iterrows())
        scheme = main[main["mode"] != "all"].iloc[0]["scheme"] if modes else ""
        caption = (
            f"**Cache length** ({scheme}; questions: {main['stratum'].iloc[0].replace('_', ' ')}, "
            f"n = {int(full['questions'])}, {int(full['seeds'])} world(s)). Accuracy by the share "
            f"of tokens that is sent; bars are 95 % intervals by bootstrap over passages. With "
            f"half of them: {said}. {basis(main, scale)}"
        )
        return figure, caption
