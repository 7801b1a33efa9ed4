"""Products with packed weights against the roofline, and decoding with them (L-2)."""

import pandas as pd

from ember.studies.lowbit.kernels.tables import DECODE, KERNELS
from ember.studies.steps import reads
from ember.studies.style import COLOURS, PAGE, basis, label, look, spread, style

NAMES = {"nvfp4": "NVFP4", "nf4": "NF4", "int4": "INT4", "q4_0": "Q4_0", "dense": "dense"}
PATHS = {"torch": "torch", "kernels": "own kernels"}


@reads(kernels=KERNELS, decoding=DECODE)
def draw(kernels: pd.DataFrame, decoding: pd.DataFrame, scale: str):
    """Figure and caption from the tables `lowbit_kernels` and `lowbit_decode`."""
    timed = kernels[(kernels["status"] == "ok") & (kernels["product"] != "head")]
    decoding = decoding[decoding["status"] == "ok"]
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.7))
        _roofline(left, timed)
        _decoding(right, decoding)
        return figure, _caption(timed, decoding, scale)


def _roofline(axes, timed) -> None:
    """Operations a second by operations per byte of weights; a point is a layer's four products."""
    first = timed.iloc[0]
    sums = {name: (name, "sum") for name in ("ms_median", "weight_bytes", "operations")}
    timed = timed.assign(operations=2.0 * timed["rows"] * timed["out"] * timed["inner"])
    layers = timed.groupby(["format", "path", "rows"], sort=False).agg(**sums).reset_index()
    layers["intensity"] = layers["operations"] / layers["weight_bytes"]
    layers["gflops"] = layers["operations"] / layers["ms_median"] / 1e6
    chosen = layers[layers["path"].isin(PATHS)]
    for index, ((format, path), group) in enumerate(chosen.groupby(["format", "path"], sort=False)):
        group = group.sort_values("intensity")
        shown = look(index) | {"linestyle": "-", "linewidth": 0.8}
        name = f"{NAMES[format]}, {PATHS[path]}"
        axes.plot(group["intensity"], group["gflops"], **shown, label=name)
    ends = [chosen["intensity"].min() / 1.5, chosen["intensity"].max() * 1.5]
    peak = 1e3 * first["tflops"]
    ridge = peak / first["read_gb_s"]
    places = sorted({ends[0], *([ridge] if ends[0] < ridge < ends[1] else []), ends[1]})
    limit = [min(peak, first["read_gb_s"] * place) for place in places]
    axes.plot(places, limit, color="black", linestyle="--", label="roofline")
    axes.set_xscale("log")
    axes.set_yscale("log")
    x = "operations per byte of weights"
    label(axes, "a", x, "GFLOP/s, a layer's four products", loc="upper left", fontsize=6)


def _decoding(axes, decoding) -> None:
    kinds = list(decoding.groupby(["engine", "format", "head"], sort=False))
    counts = sorted(decoding["rows"].unique())
    for index, ((engine, format, head), group) in enumerate(kinds):
        group = group.set_index("rows").reindex(counts).reset_index()
        places = [place + 0.1 * (index - (len(kinds) - 1) / 2) for place in range(len(counts))]
        named = "dense" if format == "dense" else f"{NAMES[format]}, {head} head"
        named += "" if engine == "ember" else f" ({engine})"
        shown, bars = look(index) | {"linestyle": "none"}, spread(group, "tokens_per_s")
        axes.errorbar(places, group["tokens_per_s_median"], bars, label=named, **shown)
        axes.plot(places, group["limit_tokens_per_s"], "_", color=COLOURS[index], markersize=9)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.set_yscale("log")
    axes.set_ylim(top=10 * decoding["limit_tokens_per_s"].max())  # room for the legend
    y = "tokens/s (dashes: limit by reads)"
    label(axes, "b", "candidates of one prompt", y, loc="upper left", fontsize=6)


def _caption(timed, decoding, scale: str) -> str:
    one = decoding[decoding["rows"] == decoding["rows"].min()]
    packed = one[(one["format"] != "dense") & (one["engine"] == "ember")]
    best = packed.loc[packed["tokens_per_s_median"].idxmax()]
    worst = timed.loc[timed[timed["path"] == "kernels"]["kernel_error"].idxmax()]
    text = (
        "**Packed weights.** (a) The four products of a layer by rows of x, over copies that the "
        "last cache does not hold; the dashed line is the read bandwidth and a product of square "
        "dense matrices, both measured in the same run. (b) Decoding in turns with dense and "
        f"packed weights after {best['prompt_tokens']} tokens, medians and range over "
        f"n = {best['n']} runs. One candidate decodes fastest in {NAMES[best['format']]} with a "
        f"{best['head']} head: {best['tokens_per_s_median']:.4g} tokens/s, {best['speedup']:.2f} "
        f"times dense weights, {100 * best['share']:.0f} % of the limit by reads; the prompt takes "
        f"{best['prefill_ratio']:.2f} times as long as with dense weights. The kernels' largest "
        f"relative error is {worst['kernel_error']:.1g}; the formats' is "
        f"{timed['quantisation_error'].max():.2g}."
    )
    return f"{text} {basis(decoding, scale)}"
