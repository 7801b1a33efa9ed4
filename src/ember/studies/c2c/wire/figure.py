"""Latency of one message against the link's bandwidth: text, and KV in several formats (C-M11)."""

import pandas as pd

from ember.studies.c2c.wire.tables import C2C_M11, WIRE_LATENCY
from ember.studies.steps import reads
from ember.studies.style import COLOURS, COLUMN, LINES, basis, legend_below, style


@reads(latency=WIRE_LATENCY, wire=C2C_M11)
def draw(latency: pd.DataFrame, wire: pd.DataFrame, scale: str):
    """Figure and caption from the tables `wire_latency` and `c2c_m11`."""
    pair = wire[wire["payload"] == "pair"].set_index("scheme")
    with style() as plt:
        from matplotlib.ticker import LogLocator

        figure, axes = plt.subplots(figsize=(COLUMN, 2.7))
        for place, (medium, rows) in enumerate(latency.groupby("medium", sort=False)):
            size = rows["message_bytes"].iloc[0]
            text = medium == "text"
            look = {"color": "black", "linestyle": "-", "linewidth": 2} if text else {}
            look = look or {"color": COLOURS[place - 1], "linestyle": LINES[place - 1]}
            label = f"{medium}, {_size(size)}"
            axes.plot(rows["bandwidth_mbit_s"], rows["total_ms"], label=label, **look)
            if text:
                continue
            even = pair.loc[medium, "breakeven_mbit_s"]
            if pd.notna(even) and 1 <= even <= 1e5:
                base = latency[latency["medium"] == "text"].iloc[0]
                at = base["before_ms"] + base["after_ms"] + 8 * base["message_bytes"] / even / 1e3
                axes.plot([even], [at], "o", color=look["color"], zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(
            [1, 10, 100, 1e3, 1e4, 1e5], ["1 M", "10 M", "100 M", "1 G", "10 G", "100 G"]
        )
        axes.set_xlabel("bandwidth of the link (bit/s)")
        axes.set_ylabel("time of one message (ms)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.minorticks_off()
        legend_below(figure, axes, 3)
        return figure, _caption(latency, wire, pair, scale)


def _size(count: float) -> str:
    return f"{count / 1e3:.3g} kB" if count >= 1000 else f"{count:.0f} B"


def _caption(latency, wire, pair, scale: str) -> str:
    first = {medium: rows.iloc[0] for medium, rows in latency.groupby("medium", sort=False)}
    text = first["text"]
    said = []
    for scheme, row in pair.iterrows():
        even = row["breakeven_mbit_s"]
        if pd.isna(even):
            said.append(f"{scheme} never")
        elif even < 1:
            said.append(f"{scheme} at every bandwidth drawn")
        else:
            said.append(f"{scheme} from {even:.3g} Mbit/s")
    big = wire[wire["payload"] == "big"].iloc[-1]
    share = "" if pd.isna(big["share"]) else f" ({100 * big['share']:.0f} % of the copy bandwidth)"
    return (
        "**Text or cache.** Modelled time of one message from stages that were measured and bytes "
        f"over bandwidth. Text of {_size(text['message_bytes'])} takes the sharer "
        f"{text['before_ms']:.3g} ms to write and the receiver {text['after_ms']:.3g} ms to read; "
        "KV is quantised, packed, unpacked, dequantised and fused. Both media need the prompt's "
        "prefill in both models, which is left out, and the delay of the link, which is not "
        f"modelled. Faster than text (dots): {'; '.join(said)}. A payload of "
        f"{big['source_bytes'] / 1e6:.3g} MB is quantised to {big['scheme']} in "
        f"{big['quantise_ms_median']:.3g} ms{share}. {basis(latency, scale)}"
    )
