"""Differences to PEFT by layer and block, and the operators where they enter (P1-3.6, P1-3.7)."""

import pandas as pd

from ember.studies.p1.lora_alignment.tables import (
    BLOCKS,
    LORA_BLOCKS,
    LORA_FREEZE,
    LORA_LAYERS,
    LORA_SPOT,
)
from ember.studies.steps import reads
from ember.studies.style import PAGE, basis, legend_below, look, style

PARTS = {
    "delta_input_max": "layer_input",
    "delta_attn_max": "attn_out",
    "delta_residual_max": "their sum",
    "delta_gap": "its rounding",
}
LINES_OF = {
    "base_max_abs_diff": "without adapter",
    "lora_max_abs_diff": "with adapter",
    "delta_max_abs_diff": "of its effect",
}


@reads(blocks=LORA_BLOCKS, spot=LORA_SPOT)
def draw_blocks(blocks: pd.DataFrame, spot: pd.DataFrame, scale: str):
    """Figure and caption from the tables `lora_blocks` and `lora_spot`."""
    adapter = _adapter(blocks)
    dtypes = list(dict.fromkeys(blocks["dtype"]))
    rows = blocks[blocks["adapter"] == adapter]
    with style() as plt:
        figure, axes = plt.subplots(
            2, len(dtypes), figsize=(PAGE, 4.2), sharex="col", sharey="row", squeeze=False
        )
        for (above, below), dtype in zip(axes.T, dtypes, strict=True):
            group = rows[rows["dtype"] == dtype]
            residual = group[group["block"] == "attn_residual"]
            for index, block in enumerate(BLOCKS):
                _line(above, group[group["block"] == block], "delta_max_abs_diff", index, block)
            for index, (column, label) in enumerate(PARTS.items()):
                _line(below, residual, column, index, label)
            above.set_title(dtype)
            below.set_xlabel("layer")
        axes[0][0].set_ylabel("difference of the effect\nby block (max)")
        axes[1][0].set_ylabel("attn_residual =\nlayer_input + attn_out")
        for axis in axes[:, -1]:
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return figure, _blocks_caption(blocks, spot, adapter, dtypes, scale)


def _line(axis, rows, column: str, index: int, label: str) -> None:
    """A column by layer; zeros have no place on a logarithmic axis."""
    rows = rows.sort_values("layer")
    axis.plot(rows["layer"], rows[column].where(lambda x: x > 0), **look(index), label=label)
    axis.set_yscale("log")
    axis.xaxis.get_major_locator().set_params(integer=True)


def _blocks_caption(blocks, spot, adapter: str, dtypes: list[str], scale: str) -> str:
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


@reads(layers=LORA_LAYERS, freeze=LORA_FREEZE)
def draw_layers(layers: pd.DataFrame, freeze: pd.DataFrame, scale: str):
    """Figure and caption from the tables `lora_layers` and `lora_freeze`."""
    dtypes = list(dict.fromkeys(layers["dtype"]))
    chosen = _adapter(layers)
    rows = layers[layers["adapter"] == chosen]
    with style() as plt:
        figure, axes = plt.subplots(1, len(dtypes), figsize=(PAGE, 2.5), sharey=True, squeeze=False)
        for axis, dtype in zip(axes[0], dtypes, strict=True):
            group = rows[rows["dtype"] == dtype].sort_values("layer")
            for index, (column, label) in enumerate(LINES_OF.items()):
                _line(axis, group, column, index, label)
            grey = {"color": "#666666", "linewidth": 0.9}
            axis.plot(group["layer"], group["effect_max_abs"], **grey, label="the effect itself")
            axis.set_title(dtype)
            axis.set_xlabel("layer")
        axes[0][0].set_ylabel("largest difference to PEFT\nof a layer's output")
        legend_below(figure, axes[0][0], 4)
        return figure, _layers_caption(layers, freeze, chosen, scale)


def _adapter(rows) -> str:
    """The adapter shown: a trained one where there is one."""
    there = set(rows["adapter"])
    return "trained" if "trained" in there else sorted(there)[0]


def _layers_caption(layers, freeze, chosen: str, scale: str) -> str:
    sentences = []
    for (adapter, dtype), group in layers.groupby(["adapter", "dtype"], sort=False):
        last = group.sort_values("layer").iloc[-1]
        crossed = freeze[
            (freeze["adapter"] == adapter) & (freeze["dtype"] == dtype) & (freeze["freeze"] == 0)
        ]
        found = ", ".join(
            f"{row['threshold']:g} "
            + (f"at layer {int(row['first_layer'])}" if pd.notna(row["first_layer"]) else "never")
            for row in crossed.to_dict("records")
        )
        sentences.append(
            f"- {adapter}, {dtype}: effect differs by {last['delta_max_abs_diff']:.2g} after the "
            f"last layer (effect {last['effect_max_abs']:.2g}); crosses {found}."
        )
    formats = ", ".join(dict.fromkeys(layers["dtype"]))
    frozen = freeze[freeze["freeze"] > 0]
    moved = frozen["prefix_effect_max"].max() if len(frozen) else 0.0
    depths = ", ".join(map(str, sorted(set(frozen["freeze"]))))
    return (
        "**Adapters against PEFT, by layer (P1-3.6).** Largest absolute difference of a layer's "
        "output to Transformers with PEFT on the same checkpoint: without the adapter, with it, "
        f"and of what it changes; adapter {chosen}, merged into q, k, v and o of all layers. "
        "Exact zeros are not drawn. With the first "
        f"{depths} of {layers['num_layers'].iloc[0]} layers left without the adapter, their "
        f"outputs move by {moved:g}. {basis(layers.assign(dtype=formats), scale)}\n\n"
        + "\n".join(sentences)
    )
