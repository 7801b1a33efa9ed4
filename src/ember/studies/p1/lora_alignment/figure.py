"""Errors by layer and block beside PEFT's own, and the operators where they enter (P1-3.6, P1-3.7).

Half-precision errors are to PEFT's float32 forward, over those of PEFT's own forward in the same
format: 1 is as exact as PEFT. In float32 PEFT's forward is the truth itself, and what is shown is
the difference to it over the adapter's effect.
"""

import numpy as np
import pandas as pd

from ember.studies.p1.lora_alignment.tables import LORA_BLOCKS, LORA_FREEZE, LORA_LAYERS, LORA_SPOT
from ember.studies.steps import reads
from ember.studies.style import PAGE, basis, legend_below, look, style

SHOWN = {
    "attn_out": "attention",
    "attn_residual": "residual",
    "post_attn_norm": "norm",
    "mlp_out": "MLP",
    "layer_output": "layer's output",
}
PARTS = {
    "delta_attn_max": "attention's output",
    "delta_input_max": "layer's input",
    "delta_gap": "the addition's rounding",
}


def ratios(rows: pd.DataFrame, ours: str = "errors", theirs: str = "reference_errors"):
    """Error over PEFT's own, (rows, prompts); NaN where PEFT has none."""
    mine, other = (np.array(rows[name].tolist(), float) for name in (ours, theirs))
    return np.divide(mine, other, out=np.full_like(mine, np.nan), where=other > 0)


@reads(blocks=LORA_BLOCKS, spot=LORA_SPOT)
def draw_blocks(blocks: pd.DataFrame, spot: pd.DataFrame, scale: str):
    """Figure and caption from the tables `lora_blocks` and `lora_spot`."""
    adapter = _adapter(blocks)
    dtypes = list(dict.fromkeys(blocks["dtype"]))
    half = [dtype for dtype in dtypes if dtype != "float32"]
    rows = blocks[blocks["adapter"] == adapter].sort_values("layer")
    with style() as plt:
        figure, axes = plt.subplots(
            2,
            len(dtypes),
            figsize=(PAGE, 3.7),
            sharex="col",
            squeeze=False,
            height_ratios=(1.15, 1),
        )
        maps = {dtype: _map(rows[rows["dtype"] == dtype]) for dtype in half}
        reach = max((np.nanmax(np.abs(found - 1)) for found in maps.values()), default=0.0) or 0.01
        for (above, below), dtype in zip(axes.T, dtypes, strict=True):
            group = rows[rows["dtype"] == dtype]
            if dtype in maps:
                image = _heat(above, maps[dtype], reach, named=dtype == half[0])
            else:
                _differences(above, group)
            above.set_title(dtype)
            _shares(below, group)
            below.set_xlabel("layer")
        axes[1][0].set_ylabel("part of the residual's\ndifference to PEFT")
        handles, labels = axes[1][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        if half:
            bar = figure.colorbar(image, ax=axes[0].tolist(), pad=0.01, fraction=0.05)
            bar.set_label("error ÷ PEFT's own")
        return figure, _blocks_caption(blocks, spot, adapter, maps, scale)


def _map(rows: pd.DataFrame) -> np.ndarray:
    """Median over prompts of the error over PEFT's own, (blocks shown, layers)."""
    found = [ratios(rows[rows["block"] == block]) for block in SHOWN]
    return np.array([np.median(one, axis=1) for one in found])


def _heat(axes, found: np.ndarray, reach: float, named: bool):
    """Blocks by layer; white is 1, as exact as PEFT."""
    image = axes.imshow(
        found, aspect="auto", cmap="PuOr_r", vmin=1 - reach, vmax=1 + reach, interpolation="nearest"
    )
    axes.set_yticks(range(len(SHOWN)), SHOWN.values() if named else [""] * len(SHOWN))
    axes.grid(visible=False)
    return image


def _differences(axes, rows: pd.DataFrame) -> None:
    """In float32: the largest difference of the effect over the largest effect, by block."""
    for index, (block, name) in enumerate(SHOWN.items()):
        group = rows[rows["block"] == block]
        axes.plot(group["layer"], _relative(group), **look(index), markersize=2, label=name)
    axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # the legend has the room above the lines
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_ylabel("difference ÷ effect")
    close = {"handlelength": 1.5, "labelspacing": 0.2, "columnspacing": 0.8, "borderpad": 0}
    axes.legend(fontsize=6, loc="upper left", ncols=2, handletextpad=0.4, **close)


def _relative(rows: pd.DataFrame) -> pd.Series:
    """Largest difference of the adapter's effect to PEFT's over the largest effect."""
    return rows["delta_max_abs_diff"] / rows["effect_max_abs"].where(lambda x: x > 0)


def _shares(axes, rows: pd.DataFrame) -> None:
    """Parts of the difference in the residual stream after attention, over that of the sum."""
    rows = rows[rows["block"] == "attn_residual"]
    whole = rows["delta_residual_max"].where(lambda x: x > 0)
    for index, (column, name) in enumerate(PARTS.items()):
        axes.plot(rows["layer"], rows[column] / whole, **look(index), markersize=2.5, label=name)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _blocks_caption(blocks, spot, adapter: str, maps: dict, scale: str) -> str:
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
    dtypes = ", ".join(dict.fromkeys(blocks["dtype"]))
    ranges = "; ".join(
        f"{dtype} {np.nanmin(found):.3f} to {np.nanmax(found):.3f}" for dtype, found in maps.items()
    )
    above = f"median over prompts, {ranges}" if maps else "not measured"
    return (
        "**Adapters against PEFT, by block (P1-3.7).** Above, half precision: RMS error to PEFT's "
        f"float32 forward over that of PEFT's own forward in the same format ({above}); 1 is as "
        "exact as PEFT. In float32: largest difference of the adapter's effect (with - without) to "
        f"PEFT's over the largest effect. Adapter {adapter}, merged into q, k, v and o. Below: the "
        "largest difference in what enters the layer, in what attention adds and in the addition's "
        "own rounding, over that of their sum, the residual stream after attention. "
        f"{basis(blocks.assign(dtype=dtypes), scale)}\n\n"
        "Operators on their own and on the reference's input:\n\n" + "\n".join(sentences)
    )


@reads(layers=LORA_LAYERS, freeze=LORA_FREEZE)
def draw_layers(layers: pd.DataFrame, freeze: pd.DataFrame, scale: str):
    """Figure and caption from the tables `lora_layers` and `lora_freeze`."""
    dtypes = list(dict.fromkeys(layers["dtype"]))
    chosen = _adapter(layers)
    rows = layers[layers["adapter"] == chosen].sort_values("layer")
    with style() as plt:
        figure, axes = plt.subplots(1, len(dtypes), figsize=(PAGE, 2.6), squeeze=False)
        halves = []
        for axis, dtype in zip(axes[0], dtypes, strict=True):
            group = rows[rows["dtype"] == dtype]
            if dtype == "float32":
                axis.plot(group["layer"], _relative(group), **look(2), markersize=2.5)
                axis.set_ylim(bottom=0)
                axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
                axis.set_ylabel("difference to PEFT ÷ effect")
            else:
                _errors(axis, group)
                halves.append(axis)
            axis.set_title(dtype)
            axis.set_xlabel("layer")
            axis.xaxis.get_major_locator().set_params(integer=True)
        _share_limits(halves)
        if halves:
            halves[0].set_ylabel("error ÷ PEFT's own")
            legend_below(figure, halves[0])
        return figure, _layers_caption(layers, freeze, chosen, scale)


def _errors(axes, rows: pd.DataFrame) -> None:
    """Error over PEFT's own by layer, with and without the adapter: median and range of prompts."""
    both = {"with adapter": ("errors", "reference_errors")}
    both |= {"without": ("base_errors", "base_reference_errors")}
    for index, (name, columns) in enumerate(both.items()):
        found = ratios(rows, *columns)
        lines = {**look(index), "markersize": 2.5, "label": name}
        axes.plot(rows["layer"], np.median(found, axis=1), **lines)
        span = (found.min(axis=1), found.max(axis=1))
        axes.fill_between(rows["layer"], *span, color=lines["color"], alpha=0.15, linewidth=0)
    axes.axhline(1.0, color="#222222", linewidth=0.8, label="as exact as PEFT")


def _share_limits(axes: list) -> None:
    limits = [axis.get_ylim() for axis in axes]
    for axis in axes:
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _adapter(rows) -> str:
    """The adapter shown: a trained one where there is one."""
    there = set(rows["adapter"])
    return "trained" if "trained" in there else sorted(there)[0]


def _layers_caption(layers, freeze, chosen: str, scale: str) -> str:
    sentences = []
    for (adapter, dtype), group in layers.groupby(["adapter", "dtype"], sort=False):
        last = group.sort_values("layer").iloc[[-1]]
        crossed = freeze[
            (freeze["adapter"] == adapter) & (freeze["dtype"] == dtype) & (freeze["freeze"] == 0)
        ]
        found = ", ".join(
            f"{row['threshold']:g} "
            + (f"at layer {int(row['first_layer'])}" if pd.notna(row["first_layer"]) else "never")
            for row in crossed.to_dict("records")
        )
        row, own = last.iloc[0], ""
        if dtype != "float32":
            own = f"error {np.median(ratios(last)):.4f} × PEFT's own (median over prompts), "
        sentences.append(
            f"- {adapter}, {dtype}: {own}effect differs by {row['delta_max_abs_diff']:.2g} after "
            f"the last layer (effect {row['effect_max_abs']:.2g}); crosses {found}."
        )
    formats = ", ".join(dict.fromkeys(layers["dtype"]))
    frozen = freeze[freeze["freeze"] > 0]
    moved = frozen["prefix_effect_max"].max() if len(frozen) else 0.0
    depths = ", ".join(map(str, sorted(set(frozen["freeze"]))))
    prompts = max((len(errors) for errors in layers["errors"]), default=0)
    return (
        "**Adapters against PEFT, by layer (P1-3.6).** Half precision: RMS error of a layer's "
        "output to PEFT's float32 forward over that of PEFT's own forward in the same format, with "
        f"and without the adapter; median and range over {prompts} prompts; 1 is as exact as PEFT. "
        "In float32, where PEFT's forward is the truth: largest difference of the adapter's effect "
        f"over the largest effect. Adapter {chosen}, merged into q, k, v and o of all layers. "
        "With the first "
        f"{depths} of {layers['num_layers'].iloc[0]} layers left without the adapter, their "
        f"outputs move by {moved:g}. {basis(layers.assign(dtype=formats), scale)}\n\n"
        + "\n".join(sentences)
    )
