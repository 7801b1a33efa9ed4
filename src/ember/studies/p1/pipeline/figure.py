"""Two pipeline stages: tokens per second by split, and what both did when (P1-1.2)."""

import numpy as np
import pandas as pd

from ember.measure.statistics import ends_in_words
from ember.studies.p1.pipeline.tables import PIPELINE, PIPELINE_EVENTS
from ember.studies.steps import reads
from ember.studies.style import COLOURS, LINES, MARKERS, PAGE, basis, label, look, spread, style

_MODES = {"overlap": "overlap", "no_overlap": "no overlap"}
_STAGES = "layers of first + second stage"
_DECODE = "#888888"
_BELOW = {"loc": "upper left", "bbox_to_anchor": (0, -0.22), "ncols": 2}


@reads(pipeline=PIPELINE)
def draw_splits(pipeline: pd.DataFrame, scale: str):
    """Figure and caption from the table `p1_pipeline`."""
    rows = pipeline[(pipeline["status"] == "ok") & (pipeline["mode"] != "single")]
    single = pipeline[(pipeline["status"] == "ok") & (pipeline["mode"] == "single")]
    with style() as plt:
        if rows.empty:
            return _not_measured(plt, pipeline, "Pipeline splits", scale)
        figure, (speed, busy) = plt.subplots(1, 2, figsize=(PAGE, 2.6), width_ratios=(1.25, 1))
        _speeds(speed, rows, single)
        _busy(busy, rows)
        return figure, _splits_caption(rows, single, scale)


def _not_measured(plt, pipeline: pd.DataFrame, what: str, scale: str):
    """A figure that says why there is nothing to draw_splits, and its caption."""
    reasons = "; ".join(sorted(set(pipeline["reason"].dropna())))
    figure, axes = plt.subplots(figsize=(PAGE, 1.2))
    axes.set_axis_off()
    axes.text(0.5, 0.5, f"not measured: {reasons}", ha="center", va="center")
    return figure, f"**{what}.** Not measured: {reasons}. Scale {scale}."


def _speeds(axes, rows, single) -> None:
    for index, (mode, name) in enumerate(_MODES.items()):
        group = rows[rows["mode"] == mode].sort_values("first_layers")
        splits, median = range(len(group)), group["tokens_per_s_median"]
        solid = look(index) | {"linestyle": LINES[0], "label": f"{name}, measured"}
        axes.errorbar(splits, median, spread(group, "tokens_per_s"), **solid)
        if group["predicted_tokens_per_s"].notna().any():
            hollow = {"linestyle": LINES[1], "markerfacecolor": "white"}
            hollow = look(index) | hollow | {"label": f"{name}, predicted"}
            axes.plot(splits, group["predicted_tokens_per_s"], **hollow)
        axes.set_xticks(splits, group["split"])
    for speed in single["tokens_per_s_median"][:1]:
        dotted = {"color": COLOURS[6], "linestyle": LINES[3]}
        axes.axhline(speed, **dotted, label="one device, one batch")
    axes.set_ylim(bottom=0)
    label(axes, "a", _STAGES, "tokens/s", **_BELOW)


def _busy(axes, rows) -> None:
    """Shares of the overlapped runs' time in which each stage computed."""
    group = rows[rows["mode"] == "overlap"].sort_values("first_layers")
    for stage, (column, name) in enumerate((("first", "first"), ("last", "second"))):
        share = 100 * group[f"busy_{column}_ms_median"] / group["total_ms_median"]
        places = [place + 0.4 * (stage - 0.5) for place in range(len(group))]
        axes.bar(places, share, width=0.38, color=COLOURS[2 + stage], label=f"{name} stage")
    dashed = {"color": "black", "marker": MARKERS[2], "linestyle": LINES[1]}
    bubble = 100 * group["bubble_share_median"]
    axes.plot(range(len(group)), bubble, **dashed, label="bubble, of both")
    axes.set_xticks(range(len(group)), group["split"])
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 105)
    label(axes, "b", _STAGES, "share of the run (%)", **_BELOW)


def _splits_caption(rows, single, scale: str) -> str:
    first = rows.iloc[0]
    best = rows.loc[rows["tokens_per_s_median"].idxmax()]
    same = rows[rows["standing"] == "no difference"]["point"].tolist()
    text = (
        "**Two pipeline stages by split.** (a) Generated tokens per second of "
        f"{first['sequences']} sequences in {first['micro_batches']} micro-batches, "
        f"{first['context']} prompt and {first['generation']} generated tokens, prefill included: "
        f"median and {ends_in_words(rows['n'])}; hollow: predicted from the costs of "
        "layers, embedding, head and messages measured apart. (b) Share of the overlapped runs in "
        "which each stage computed. The fastest is "
        f"{best['split']} ({_MODES[best['mode']]}) at {best['tokens_per_s_median']:.4g} tokens/s, "
        f"with a bubble of {100 * best['bubble_share_median']:.1f} %"
    )
    text += f"; no different from it: {', '.join(same)}." if same else "."
    solved = rows["predicted_best_split"].dropna()
    if len(solved):
        text += f" The solver's best split with overlap, of all possible, is {solved.iloc[0]}."
    if len(single):
        text += (
            f" One device with all {first['sequences']} sequences in one batch: "
            f"{single.iloc[0]['tokens_per_s_median']:.4g} tokens/s."
        )
    return f"{text} {basis(rows, scale)}"


_STEPS = 4  # decoding steps shown in the close-up
_BINS = 120  # of a whole run, for the share of time spent decoding
_HEIGHT = 0.7


@reads(events=PIPELINE_EVENTS, pipeline=PIPELINE)
def draw_gantt(events: pd.DataFrame, pipeline: pd.DataFrame, scale: str):
    """Figure and caption from the tables of events and of the pipeline, for the best split.

    Left whole runs: prefill as bars, and decoding, thousands of bars thinner than a dot, as the
    share of time that a stage computes. Right some decoding steps from the middle of them.
    """
    with style() as plt:
        if events.empty:
            return _not_measured(plt, pipeline, "Pipeline timing", scale)
        rows = pipeline[(pipeline["status"] == "ok") & (pipeline["mode"] == "overlap")]
        best = rows.loc[rows["tokens_per_s_median"].idxmax()]
        runs = {
            mode: events[(events["split"] == best["split"]) & (events["mode"] == mode)]
            for mode in _MODES
        }
        figure, axes = plt.subplots(2, 2, figsize=(PAGE, 2.9), width_ratios=(1, 1.2), sharey=True)
        longest = max(run["end_ms"].max() for run in runs.values())
        windows = {mode: _window(run) for mode, run in runs.items()}
        widest = max(stop - start for start, stop in windows.values())
        for (whole, close), (mode, run) in zip(axes, runs.items(), strict=True):
            start, _ = windows[mode]
            steps = min(_STEPS, int(run["step"].max()))
            _shares(whole, run[run["step"] > 0], longest / _BINS)
            _work(whole, run[run["step"] == 0], 0.0, longest)
            _work(close, run, start, start + widest)
            whole.axvspan(start, start + widest, color="#dddddd", zorder=0, linewidth=0)
            whole.set_title(f"{_MODES[mode]}: whole run", loc="left")
            close.set_title(f"{_MODES[mode]}: {steps} decoding steps (shaded left)", loc="left")
        for axis in axes[1]:
            axis.set_xlabel("time (ms)")
        _legend(figure, events, plt)
        return figure, _gantt_caption(runs, best, pipeline, scale)


def _shares(axes, run: pd.DataFrame, width: float) -> None:
    """The share of each stretch of `width` ms in which a stage computed, as a height."""
    computing = run[run["kind"].isin(("decode", "sampling"))]
    for stage, group in computing.groupby("stage"):
        edges = np.arange(group["start_ms"].min(), group["end_ms"].max() + width, width)
        share = busy_share(group["start_ms"].to_numpy(), group["end_ms"].to_numpy(), edges)
        floor = 1 - stage - _HEIGHT / 2
        axes.stairs(floor + _HEIGHT * share, edges, baseline=floor, fill=True, color=_DECODE)


def busy_share(starts: np.ndarray, ends: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(len(edges) - 1,): of each stretch between edges the share covered by [start, end) spans that
    do not overlap."""
    spans, order = np.cumsum(np.sort(ends) - np.sort(starts)), np.sort(starts)
    whole = np.concatenate([[0.0], spans])
    before = np.searchsorted(order, edges, side="right")
    last_end = np.concatenate([[-np.inf], np.sort(ends)])[before]
    # Covered up to an edge: all spans begun before it, less what of the last lies beyond it.
    covered = whole[before] - np.clip(last_end - edges, 0.0, None)
    return np.diff(covered) / np.diff(edges)


def _window(run: pd.DataFrame) -> tuple[float, float]:
    """From a step in the middle, `_STEPS` steps on."""
    computing = run[run["kind"].isin(("decode", "sampling"))]
    decode = computing[computing["step"] > 0]
    last = int(decode["step"].max())
    first = max(1, min(last // 2, last - _STEPS + 1))
    inside = decode[decode["step"].between(first, first + _STEPS - 1)]
    return inside["start_ms"].min(), inside["end_ms"].max()


def _work(axes, run: pd.DataFrame, start: float, stop: float) -> None:
    """Work between two times as bars: one row a stage, one colour a micro-batch."""
    shown = run[(run["end_ms"] > start) & (run["start_ms"] < stop)]
    for (stage, micro_batch, kind), group in shown.groupby(["stage", "micro_batch", "kind"]):
        if kind in ("send", "receive"):
            continue
        left = group["start_ms"].clip(lower=start)
        width = group["end_ms"].clip(upper=stop) - left
        axes.broken_barh(
            list(zip(left, width, strict=True)),
            (1 - stage - _HEIGHT / 2, _HEIGHT),
            facecolor=COLOURS[micro_batch % len(COLOURS)],
            hatch={"prefill": "////"}.get(kind),
            edgecolor="white" if kind == "prefill" else "none",
            linewidth=0,
            alpha=0.55 if kind == "sampling" else 1.0,
        )
    axes.set_xlim(start, stop)
    axes.set_ylim(-0.5, 1.5)
    axes.set_yticks([1, 0], ["stage 0", "stage 1"])
    axes.grid(axis="y", visible=False)


def _legend(figure, events: pd.DataFrame, plt) -> None:
    from matplotlib.patches import Patch

    count = int(events["micro_batch"].max()) + 1
    entries = [
        Patch(facecolor=COLOURS[number % len(COLOURS)], label=f"micro-batch {number}")
        for number in range(min(count, len(COLOURS)))
    ]
    grey = {"facecolor": _DECODE, "edgecolor": "white", "linewidth": 0}
    entries += [
        Patch(hatch="////", label="prefill", **grey),
        Patch(label="decode (left: share of the time)", **grey),
        Patch(label="sampling", **grey | {"alpha": 0.55}),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=4 if len(entries) > 5 else 5)


def _gantt_caption(runs, best, pipeline, scale: str) -> str:
    shares = {
        row["mode"]: row["bubble_share_median"]
        for _, row in pipeline[pipeline["split"] == best["split"]].iterrows()
    }
    said = ", ".join(f"{100 * shares[mode]:.1f} % {label}" for mode, label in _MODES.items())
    return (
        f"**Pipeline timing at {best['split']} layers.** Bars are computing, gaps are waiting for "
        "the neighbour and for messages. Left the first recorded run of "
        f"{best['sequences']} sequences ({best['context']} prompt, {best['generation']} generated "
        f"tokens) in {best['micro_batches']} micro-batches, its decoding as the share of time that "
        "a stage computes (full height: always); right decoding steps from its middle. "
        f"Bubble share, median of n = {best['n']} runs: {said}. "
        f"{basis(pipeline[pipeline['point'] == best['point']], scale)}"
    )
