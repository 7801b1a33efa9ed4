"""What selectors have in common (C-M8)."""

import pandas as pd

from ember.studies.c2c.selection.tables import C2C_OVERLAP
from ember.studies.steps import reads
from ember.studies.style import COLUMN, basis, style


@reads(overlap=C2C_OVERLAP)
def draw(overlap: pd.DataFrame, scale: str):
    """Figure and caption from the table `c2c_overlap`, means over worlds."""
    modes = sorted(set(overlap["mode"]), key=lambda mode: (mode.endswith("_topk"), mode))
    mean = overlap.groupby(["mode", "other"])["overlap"].mean().unstack().loc[modes, modes]
    share = overlap["proportion"].iloc[0]
    names = [mode.replace("_topk", "").replace("_", " ") for mode in modes]
    with style() as plt:
        figure, axes = plt.subplots(figsize=(COLUMN, 2.7))
        drawn = axes.imshow(mean, vmin=0, vmax=1, cmap="cividis")
        for row, values in enumerate(mean.to_numpy()):
            for column, value in enumerate(values):
                colour = "k" if value > 0.6 else "w"
                axes.text(
                    column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour
                )
        axes.set_xticks(range(len(modes)), names, rotation=40, ha="right")
        axes.set_yticks(range(len(modes)), names)
        axes.grid(False)
        figure.colorbar(
            drawn, ax=axes, label=f"share also chosen, {100 * share:g} % each", shrink=0.8
        )
        apart = mean.stack()
        apart = apart[[one != other for one, other in apart.index]]
        most, other = apart.idxmax()
        caption = (
            f"**Selection overlap** at {100 * share:g} % of the tokens: the share of a row's "
            f"tokens that a column's selector chooses too; by chance {share:g}. The most alike are "
            f"{most} and {other} ({apart.max():.2f}). Means over "
            f"{int(overlap['passages'].max())} passages and {overlap['world'].nunique()} world(s). "
            f"{basis(overlap, scale)}"
        )
        return figure, caption
