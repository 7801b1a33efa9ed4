"""Latency of one message against the link's bandwidth: text, and KV in several formats (C-M11)."""

from itertools import cycle

import pandas as pd

from ember.studies.c2c.wire.tables import WIRE_LATENCY
from ember.studies.steps import reads
from ember.studies.style import COLOURS, COLUMN, LINES, basis, legend_below, style

TICKS = {1: "1 M", 10: "10 M", 100: "100 M", 1e3: "1 G", 1e4: "10 G", 1e5: "100 G"}


@reads(latency=WIRE_LATENCY)
def draw(latency: pd.DataFrame, scale: str):
    """Figure and caption from the table `wire_latency`."""
    media = dict(list(latency.groupby("medium", sort=False)))
    text = media.pop("text")
    with style() as plt:
        from matplotlib.ticker import LogLocator

        figure, axes = plt.subplots(figsize=(COLUMN, 2.7))
        _line(axes, text, color="black", linewidth=2)
        looks = zip(cycle(COLOURS), cycle(LINES), strict=False)
        for rows, (colour, line) in zip(media.values(), looks, strict=False):
            _line(axes, rows, color=colour, linestyle=line)
            even = rows["breakeven_mbit_s"].iloc[0]
            if pd.notna(even) and min(TICKS) <= even <= max(TICKS):
                first = text.iloc[0]
                sent = 8 * first["message_bytes"] / even / 1e3
                at = first["before_ms"] + sent + first["after_ms"]
                axes.plot([even], [at], "o", color=colour, mec="white", mew=0.6, zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([*TICKS], [*TICKS.values()])
        axes.set_xlabel("bandwidth of the link (bit/s)")
        axes.set_ylabel("time of one message (ms)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.minorticks_off()
        legend_below(figure, axes, 3)
        return figure, _caption(text, media, scale)


def _line(axes, rows, **look) -> None:
    first = rows.iloc[0]
    label = f"{first['medium']}, {_size(first['message_bytes'])}"
    axes.plot(rows["bandwidth_mbit_s"], rows["total_ms"], label=label, **look)


def _size(count: float) -> str:
    return f"{count / 1e3:.3g} kB" if count >= 1000 else f"{count:.0f} B"


def _caption(text, media, scale: str) -> str:
    first, said = text.iloc[0], []
    for name, rows in media.items():
        even = rows["breakeven_mbit_s"].iloc[0]
        at = "at any" if even == 0 else "at none" if pd.isna(even) else f"from {even:.3g} Mbit/s"
        said.append(f"{name} {at}")
    return (
        "**Text or cache.** Modelled time of one message: stages that were measured, and bytes "
        f"over bandwidth. Text of {_size(first['message_bytes'])} takes the sharer "
        f"{first['before_ms']:.3g} ms to write and the receiver {first['after_ms']:.3g} ms to "
        "read; KV of one prompt is quantised, packed, unpacked, dequantised and fused. Both media "
        "need the prompt's prefill in both models, which is left out, and the delay of the link, "
        f"which is not modelled. Faster than text (dots, where in range): {'; '.join(said)}. "
        f"{basis(text, scale)}"
    )
