"""Time per token against perplexity (S-7)."""

import pandas as pd

from ember.studies.steps import reads
from ember.studies.streaming.pareto.tables import STREAMING_PARETO
from ember.studies.style import COLOURS, MARKERS, PAGE, basis, label, legend_below, style


@reads(pareto=STREAMING_PARETO)
def draw(pareto: pd.DataFrame, scale: str):
    """Figure and caption from the table `streaming_pareto`."""
    methods = list(dict.fromkeys(pareto["method"]))
    with style() as plt:
        figure, panels = plt.subplots(1, 2, figsize=(PAGE, 3.4), sharey=True)
        for axes, corpus, letter in zip(panels, ("long", "short"), "ab", strict=True):
            rows = pareto[pareto["corpus"] == corpus]
            eager = rows["path"] == "eager"
            for index, method in enumerate(methods):
                looks = {
                    "color": COLOURS[index % 7],
                    "marker": MARKERS[(index + index // 7) % 7],
                    "linestyle": "none",
                }
                axes.plot([], [], **looks, label=method.replace("_", " "))
                for slow, fill in ((False, {}), (True, {"markerfacecolor": "none"})):
                    some = rows[(rows["method"] == method) & (eager == slow)]
                    axes.plot(100 * some["ppl_change"], some["steady_tpot_ms"], **looks, **fill)
            for slow in (False, True):
                front = rows[rows["on_front"] & (eager == slow)].sort_values("steady_tpot_ms")
                axes.plot(
                    100 * front["ppl_change"],
                    front["steady_tpot_ms"],
                    color="#444444",
                    linewidth=0.8,
                    linestyle="--" if slow else "-",
                    drawstyle="steps-post",
                )
            if rows["ppl_change"].abs().max() > 0.05:
                axes.set_xscale("symlog", linthresh=1)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            # All minor labels would run into each other where times span decades.
            axes.yaxis.set_minor_formatter(
                lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""
            )
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.minorticks_off()
            label(axes, f"{letter}  {corpus}", "perplexity above R = 1 (%)", "")
        panels[0].set_ylabel("steady TPOT (ms)")
        legend_below(figure, panels[0], columns=6)
        front = pareto[(pareto["corpus"] == "long") & pareto["on_front"]]
        path = min(pareto["path"], key=lambda one: one == "eager")
        front = front[front["path"] == path]
        found = ", ".join(
            f"{row['point']} ({row['steady_tpot_ms']:.3g} ms, {100 * row['ppl_change']:+.1f} %)"
            for row in front.sort_values("steady_tpot_ms").to_dict("records")
        )
        caption = (
            "**Time against perplexity.** Steady-state time per token of a single stream, and "
            "perplexity above StreamingLLM's (R = 1) at equal peak. Filled: fast path; open: eager "
            "decoder. Lines: what nothing on the same path beats in both. On the long corpus "
            f"({path}): {found}. {basis(pareto, scale)}"
        )
        return figure, caption
