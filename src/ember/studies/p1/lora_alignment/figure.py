"""Differences to PEFT by block of a layer, and the operators where they enter (P1-3.7)."""

import pandas as pd

from ember.studies.p1.lora_alignment.tables import BLOCKS
from ember.studies.style import COLOURS, LINES, MARKERS, PAGE, basis, style


def draw(blocks: pd.DataFrame, spot: pd.DataFrame, scale: str):
    """Figure and caption from the tables `lora_blocks` and `lora_spot`."""
    adapter = "trained" if "trained" in set(blocks["adapter"]) else sorted(blocks["adapter"])[0]
    dtypes = list(dict.fromkeys(blocks["dtype"]))
    rows = blocks[blocks["adapter"] == adapter]
    with style() as plt:
        figure, axes = plt.subplots(
            2,
            len(dtypes),
            figsize=(PAGE, 4.2),
            sharex="col",
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for column, dtype in enumerate(dtypes):
            group = rows[rows["dtype"] == dtype]
            _by_block(axes[0][column], group)
            _residual(axes[1][column], group)
            axes[0][column].set_title(dtype)
            axes[1][column].set_xlabel("layer")
            axes[1][column].xaxis.get_major_locator().set_params(integer=True)
        axes[0][0].set_ylabel("difference of the effect\nby block (max)")
        axes[1][0].set_ylabel("attn_residual =\nlayer_input + attn_out")
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        axes[1][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return figure, _caption(blocks, spot, adapter, dtypes, scale)


def _by_block(axis, rows) -> None:
    for index, block in enumerate(BLOCKS):
        group = rows[rows["block"] == block].sort_values("layer")
        axis.plot(
            group["layer"],
            group["delta_max_abs_diff"].where(lambda x: x > 0),
            color=COLOURS[index],
            marker=MARKERS[index],
            linestyle=LINES[index],
            label=block,
        )
    axis.set_yscale("log")


def _residual(axis, rows) -> None:
    group = rows[rows["block"] == "attn_residual"].sort_values("layer")
    parts = {
        "delta_input_max": "layer_input",
        "delta_attn_max": "attn_out",
        "delta_residual_max": "their sum",
        "delta_gap": "its rounding",
    }
    for index, (column, label) in enumerate(parts.items()):
        axis.plot(
            group["layer"],
            group[column].where(lambda x: x > 0),
            color=COLOURS[index],
            marker=MARKERS[index],
            linestyle=LINES[index],
            label=label,
        )
    axis.set_yscale("log")


def _caption(blocks, spot, adapter: str, dtypes: list[str], scale: str) -> str:
    sentences = []
    for dtype, group in spot[spot["adapter"] == adapter].groupby("dtype", sort=False):
        found = "; ".join(
            f"{operator} own input {rows['own_max_abs_diff'].max():.2g}, same input "
            f"{rows['same_max_abs_diff'].max():.2g} (enters at: "
            + ", ".join(sorted(set(rows["enters"])))
            + ")"
            for operator, rows in group.groupby("operator", sort=False)
        )
        sentences.append(f"- {dtype}: {found}.")
    return (
        "**Adapters against PEFT, by block (P1-3.7).** Largest absolute difference of the "
        f"adapter's effect (with - without) in the parts of each layer; adapter {adapter}, merged "
        "into q, k, v and o. Below: the residual stream after attention as the sum of what "
        "entered the layer and what attention adds, and the part that neither explains, the "
        "addition's own rounding. Exact zeros are not drawn. "
        f"{basis(blocks.assign(dtype=', '.join(dtypes)), scale)}\n\n"
        "Operators on their own and on the reference's input:\n\n" + "\n".join(sentences)
    )
