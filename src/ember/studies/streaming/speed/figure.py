"""Time per token by method and path, and what each switch saves."""

import pandas as pd

from ember.studies.steps import reads
from ember.studies.streaming.speed.tables import STREAMING_SPEED
from ember.studies.style import COLOURS, PAGE, basis, device_time, error, panel, style

NAMES = {
    "streaming_llm": "StreamingLLM",
    "lazy_prune": "lazy",
    "full": "full attention",
    "refresh": "refresh and max_drop",
}


@reads(speed=STREAMING_SPEED)
def draw(speed: pd.DataFrame, scale: str):
    """Figure and caption from the table `streaming_speed`."""
    ok = speed[speed["status"] == "ok"]
    whole = ok[ok["off"].isna() | (ok["off"] == "fast path")]
    whole = whole.sort_values("steady_tpot_ms", ascending=False)
    switched = ok[ok["gain"].notna()].sort_values("gain")
    with style() as plt:
        height = 0.8 + 0.22 * max(len(whole), len(switched), 4)
        figure, (left, right) = plt.subplots(1, 2, figsize=(PAGE, height), width_ratios=(1.2, 1))
        places = range(len(whole))
        for place, row in zip(places, whole.to_dict("records"), strict=True):
            low, high = row["steady_tpot_ms_min"], row["steady_tpot_ms_max"]
            middle = row["steady_tpot_ms"]
            colour = COLOURS[1 if row["path"] in ("eager", "transformers") else 0]
            bars = [[middle - low], [high - middle]]
            left.errorbar([middle], [place], xerr=bars, fmt="o", color=colour)
            if pd.notna(row["limit_ms"]):
                left.plot([row["limit_ms"]], [place], marker="|", color="black", markersize=9)
        left.set_yticks(list(places), [_name(row) for row in whole.to_dict("records")])
        left.set_xscale("log", subs=())
        left.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
        left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.set_xlabel(f"steady {device_time(ok['device'].iloc[0])} per token (ms)")
        panel(left, "a")
        _gains(right, switched)
        return figure, _caption(ok, switched, scale)


def _name(row: dict) -> str:
    name = NAMES.get(row["method"], row["method"])
    if row["compression_interval"] > 1:
        name += f", R = {row['compression_interval']}"
    if row["path"] == "transformers":
        return "Transformers, sliding window"
    return f"{name} ({row['path']})"


def _gains(axes, switched) -> None:
    places = range(len(switched))
    bars = error(switched, "gain", "gain_low", "gain_high", 100)
    axes.errorbar(100 * switched["gain"], places, xerr=bars, fmt="o", color=COLOURS[0])
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set_yticks(list(places), switched["off"])
    axes.set_ylim(-0.6, max(len(switched), 1) - 0.4)
    axes.set_xlabel("time per token saved by it (%)")
    panel(axes, "b")


def _caption(ok, switched, scale: str) -> str:
    text = (
        "**Speed of streams.** (a) Time per token without the first ones, single stream, a full "
        f"cache of {ok['peak'].iloc[0]} tokens, drops included; bars span least to greatest of "
        f"n = {ok['n'].max()} runs"
    )
    if ok["limit_ms"].notna().any():
        text += "; black: weights and visible KV at the read bandwidth of the same run"
    found = "; ".join(
        f"{row['off']}: {100 * row['gain']:+.1f} % ({row['verdict']})"
        for row in switched.to_dict("records")
    )
    text += (
        ". (b) What is saved by each part of the fast path, against the same with the part "
        f"switched off, paired by repeat. {found}."
    )
    return f"{text} {basis(ok, scale)}"
