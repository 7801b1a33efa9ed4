"""What holds the memory of a training step at its peak."""

import pandas as pd

from ember.studies.lowbit.memory.tables import KINDS, LOWBIT_MEMORY
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, label, legend_below, style

NAMES = {
    "packed": "packed weights",
    "master": "master copy",
    "states": "optimizer states",
    "dense": "dense weights",
    "rest": "activations, gradients, temporaries",
}


@reads(memory=LOWBIT_MEMORY)
def draw(memory: pd.DataFrame, scale: str):
    """Figure and caption from the table `lowbit_memory`."""
    rows = memory[(memory["phase"] == "backward") & (memory["status"] == "ok")][::-1]
    unit, name = (1e9, "GB") if rows["peak_bytes"].max() > 1e9 else (1e6, "MB")
    with style() as plt:
        figure, axes = plt.subplots(figsize=(PAGE, 0.9 + 0.3 * len(rows)))
        left = pd.Series(0.0, index=rows.index)
        for index, kind in enumerate((*KINDS, "rest")):
            size = rows[f"{kind}_bytes"] / unit
            axes.barh(rows["variant"], size, left=left, color=COLOURS[index], label=NAMES[kind])
            left += size
        for place, (total, each) in enumerate(
            zip(rows["peak_bytes"] / unit, rows["bytes_per_parameter"], strict=True)
        ):
            axes.annotate(
                f"{total:.1f} {name}, {each:.2f} B a parameter",
                (left.iloc[place], place),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6,
            )
        axes.set_xlim(right=1.3 * left.max())
        label(axes, "", f"memory at the peak of backward and update ({name})", "")
        legend_below(figure, axes, columns=3)
        least = rows.loc[rows["peak_bytes"].idxmin()]
        tokens = int(memory["tokens"].iloc[0])
        caption = (
            f"**Memory of one training step** on {tokens} tokens, at its peak. The least is "
            f"{least['peak_bytes'] / unit:.2f} {name} ({least['variant']}), "
            f"{least['bytes_per_parameter']:.2f} bytes for each parameter that trains. Embedding "
            f"and norms are dense and stay but for adamw. {basis(memory, scale)}"
        )
        return figure, caption
