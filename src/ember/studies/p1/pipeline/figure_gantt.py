"""The pipeline's timing diagram: what both stages did when, from recorded events (P1-1.2)."""

import pandas as pd

from ember.studies.p1.pipeline.figure import not_measured
from ember.studies.style import COLOURS, PAGE, basis, style

_MODES = {"overlap": "overlap", "no_overlap": "no overlap"}
_STEPS = 4  # decoding steps shown in the close-up
_HEIGHT = 0.7


def draw(events: pd.DataFrame, pipeline: pd.DataFrame, scale: str):
    """Figure and caption from the tables of events and of the pipeline, for the best split.

    Left whole runs, right some decoding steps from the middle of them.
    """
    with style() as plt:
        if events.empty:
            return not_measured(plt, pipeline, "Pipeline timing", scale)
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
            _bars(whole, run, 0.0, longest)
            _bars(close, run, start, start + widest)
            whole.set_title(f"{_MODES[mode]}: whole run", loc="left")
            close.set_title(f"{_MODES[mode]}: {steps} decoding steps", loc="left")
        for axis in axes[1]:
            axis.set_xlabel("time (ms)")
        _legend(figure, events, plt)
        return figure, _caption(runs, best, pipeline, scale)


def _window(run: pd.DataFrame) -> tuple[float, float]:
    """From a step in the middle, `_STEPS` steps on."""
    computing = run[run["kind"].isin(("decode", "sampling"))]
    decode = computing[computing["step"] > 0]
    last = int(decode["step"].max())
    first = max(1, min(last // 2, last - _STEPS + 1))
    inside = decode[decode["step"].between(first, first + _STEPS - 1)]
    return inside["start_ms"].min(), inside["end_ms"].max()


def _bars(axes, run: pd.DataFrame, start: float, stop: float) -> None:
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
    grey = {"facecolor": "#888888", "edgecolor": "white", "linewidth": 0}
    entries += [
        Patch(hatch="////", label="prefill", **grey),
        Patch(label="decode", **grey),
        Patch(label="sampling", **grey | {"alpha": 0.55}),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=4 if len(entries) > 5 else 5)


def _caption(runs, best, pipeline, scale: str) -> str:
    shares = {
        row["mode"]: row["bubble_share_median"]
        for _, row in pipeline[pipeline["split"] == best["split"]].iterrows()
    }
    said = ", ".join(f"{100 * shares[mode]:.1f} % {label}" for mode, label in _MODES.items())
    return (
        f"**Pipeline timing at {best['split']} layers.** Bars are computing, gaps are waiting for "
        "the neighbour and for messages. Left the first recorded run of "
        f"{best['sequences']} sequences ({best['context']} prompt, {best['generation']} generated "
        f"tokens) in {best['micro_batches']} micro-batches, right decoding steps from its middle. "
        f"Bubble share, median of n = {best['n']} runs: {said}. "
        f"{basis(pipeline[pipeline['point'] == best['point']], scale)}"
    )
