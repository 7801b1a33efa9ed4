"""Differences to PEFT by layer: without the adapter, with it, and of its effect (P1-3.6)."""

import pandas as pd

from ember.studies.style import COLOURS, LINES, MARKERS, PAGE, basis, style

LINES_OF = {
    "base_max_abs_diff": "without adapter",
    "lora_max_abs_diff": "with adapter",
    "delta_max_abs_diff": "of its effect",
}


def draw(layers: pd.DataFrame, freeze: pd.DataFrame, scale: str):
    """Figure and caption from the tables `lora_layers` and `lora_freeze`."""
    dtypes = list(dict.fromkeys(layers["dtype"]))
    chosen = _adapter(layers)
    rows = layers[layers["adapter"] == chosen]
    with style() as plt:
        figure, axes = plt.subplots(
            1, len(dtypes), figsize=(PAGE, 2.5), sharey=True, squeeze=False, layout="constrained"
        )
        for axis, dtype in zip(axes[0], dtypes, strict=True):
            group = rows[rows["dtype"] == dtype].sort_values("layer")
            for index, (column, label) in enumerate(LINES_OF.items()):
                axis.plot(
                    group["layer"],
                    group[column].where(lambda x: x > 0),
                    color=COLOURS[index],
                    marker=MARKERS[index],
                    linestyle=LINES[index],
                    label=label,
                )
            axis.plot(
                group["layer"],
                group["effect_max_abs"],
                color="#666666",
                linewidth=0.9,
                label="the effect itself",
            )
            axis.set_yscale("log")
            axis.set_title(dtype)
            axis.set_xlabel("layer")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0][0].set_ylabel("largest difference to PEFT\nof a layer's output")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return figure, _caption(layers, freeze, chosen, scale)


def _adapter(layers) -> str:
    """The adapter shown: a trained one where there is one."""
    there = set(layers["adapter"])
    return "trained" if "trained" in there else sorted(there)[0]


def _caption(layers, freeze, chosen: str, scale: str) -> str:
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
