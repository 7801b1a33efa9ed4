"""Loss and time per token of streaming in other frameworks (S-1.7)."""

import pandas as pd

from ember.studies.steps import reads
from ember.studies.streaming.peers.tables import STREAMING_PEERS
from ember.studies.style import PAGE, basis, error, label, legend_below, look, style

# Of this project what the others stand beside; controls stay in the table.
OWN = ("streaming_llm-", "lazy_prune-", "window-")
NEAR = 50  # mnat up to which the axis is linear, where one is far beyond
TICKS = (0, 20, 50, 100, 200, 400, 1000)


@reads(peers=STREAMING_PEERS)
def draw(peers: pd.DataFrame, scale: str):
    """Figure and caption from the table `streaming_peers`."""
    from matplotlib.ticker import LogLocator

    shown = peers[peers["status"] == "ok"]
    own = shown["framework"] == "ember"
    shown = shown[~own | (shown["method"].str.startswith(OWN) & (shown["n"] > 0))]
    shown = shown.assign(name=[_name(row) for row in shown.to_dict("records")])
    names = list(dict.fromkeys(shown["name"]))
    with style() as plt:
        figure, (losses, times) = plt.subplots(
            1, 2, figsize=(PAGE, 0.9 + 0.19 * max(len(names), 4)), sharey=True
        )
        for index, (period, rows) in enumerate(shown.groupby("compression_interval")):
            places = rows["name"].map(names.index) + 0.12 * (index % 3 - 1)
            looks = look(index % 7) | {"linestyle": "none"}
            bars = error(rows, "loss_above_r1", "low", "high", 1e3)
            losses.errorbar(
                1e3 * rows["loss_above_r1"], places, xerr=bars, label=f"R = {period}", **looks
            )
            bars = error(rows, "tpot_ms", "tpot_ms_min", "tpot_ms_max")
            times.errorbar(rows["tpot_ms"], places, xerr=bars, **looks, label=f"R = {period}")
        if 1e3 * shown["loss_above_r1"].max() > 5 * NEAR:
            losses.set_xscale("symlog", linthresh=NEAR)
            losses.set_xticks([tick for tick in TICKS if tick < 1e3 * shown["high"].max()])
            losses.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            losses.xaxis.minorticks_off()
            losses.set_xlim(right=1.3e3 * shown["high"].max())
        losses.axvline(0, color="#444444", linewidth=0.8)
        losses.set_yticks(range(len(names)), names)
        losses.set_ylim(len(names) - 0.5, -0.5)
        times.set_xscale("log")
        times.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        times.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        times.xaxis.minorticks_off()
        label(losses, "a", "loss above R = 1 (mnat/token)", "")
        label(times, "b", "steady time per token (ms)", "")
        for axes in (losses, times):
            axes.grid(axis="y", linewidth=0.3)
        legend_below(figure, losses, columns=6)
        return figure, _caption(peers, shown, scale), shown


def _name(row) -> str:
    method = row["method"].partition("-")[0] if row["framework"] == "ember" else row["method"]
    words = {"llama_cpp": "llama.cpp", "transformers": "Transformers", "ember": "Ember"}
    framework = words.get(row["framework"], row["framework"])
    default = row["label"] == "stock" and row["framework"] != "kvpress"
    return f"{framework}: {method}" + ("" if default else f", {row['label']}")


def _caption(peers: pd.DataFrame, shown: pd.DataFrame, scale: str) -> str:
    first = peers.iloc[0]
    text = (
        "**Streaming in other frameworks.** Loss above this project's StreamingLLM (R = 1, "
        f"{first['n_sink']} sinks) at the same peak of {first['peak']} tokens, paired by stream "
        f"over {first['streams']} streams, 95 % intervals by bootstrap; and the steady time per "
        "token of one stream, median and range of runs in turns, each framework a process of its "
        "own. Times hold the eviction and, but for Ember's fast path, the token's loss."
    )
    same = shown[shown["largest_difference"].notna()]
    if len(same):
        found = ", ".join(
            f"{row['method']}{'' if row['label'] == 'stock' else ', ' + row['label']} "
            f"{row['largest_difference']:.1g}"
            for row in same.to_dict("records")
        )
        text += (
            " Where a method is one of Ember's by definition, no token's loss differs by more than "
            f"(nats): {found}. One that ranks tokens by attention may drop others where roundings "
            "decide."
        )
    others = shown[(shown["framework"] != "ember") & shown["eager_ratio"].notna()]
    if len(others):
        spans = others.groupby("framework", sort=False)["eager_ratio"].agg(["min", "max"])
        found = ", ".join(
            f"{name} {low:.2f} to {high:.2f} times" for name, low, high in spans.itertuples()
        )
        text += f" Time over that of Ember's eager path with the same R, by round: {found}."
    if missing := sorted(set(peers.loc[peers["status"] != "ok", "framework"])):
        text += f" Not measured: {', '.join(missing)} (reasons in the table)."
    return f"{text} {basis(peers, scale)}"
