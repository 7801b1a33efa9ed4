"""Learning curves of packed weights, by the way of updating them."""

import numpy as np
import pandas as pd

from ember.studies.lowbit.arms.tables import ARM_RUNS, LOWBIT_ARMS
from ember.studies.steps import reads
from ember.studies.style import COLOURS, LINES, PAGE, basis, label, legend_below, style


@reads(runs=ARM_RUNS, arms=LOWBIT_ARMS)
def draw(runs: pd.DataFrame, arms: pd.DataFrame, scale: str):
    """Figure and caption from the tables of the arms."""
    alone = arms.set_index(["arm", "states"])
    with style() as plt:
        figure, (losses, codes, decay) = plt.subplots(1, 3, figsize=(PAGE, 2.9))
        for index, (arm, states) in enumerate(arms[["arm", "states"]].itertuples(index=False)):
            some = runs[(runs["arm"] == arm) & (runs["states"] == states)]
            kept = {"float32": "", "none": ", no states"}.get(states, f", {states} states")
            name = arm.replace("_", " ") + kept
            looks = {"color": (*COLOURS, "#000000")[index % 8], "label": name}
            looks["linestyle"] = LINES[(index + index // 7) % 7]
            by_step = some.groupby("step")
            middle = by_step["val_loss"].mean()
            losses.plot(middle.index, middle, **looks)
            low, high = by_step["val_loss"].min(), by_step["val_loss"].max()
            losses.fill_between(middle.index, low, high, color=looks["color"], alpha=0.12, lw=0)
            changed = by_step["changed"].mean().dropna()
            codes.plot(changed.index, 100 * changed, marker="o", **looks)
            row = alone.loc[arm, states]
            ends = [[row["decay"] - row["decay_low"]], [row["decay_high"] - row["decay"]]]
            place = {"marker": "o", "capsize": 2, "color": looks["color"]}
            decay.errorbar([100 * row["decay"]], [-index], xerr=100 * np.array(ends), **place)
        label(losses, "a  held-out loss", "step", "nats per token")
        label(codes, "b  codes changed by a step", "step", "%")
        codes.set_yscale("symlog", linthresh=0.01)
        codes.set_ylim(bottom=0)
        label(decay, "c  weight decay by itself", "% of it that reaches 4 bits", "")
        decay.set_yticks([])
        decay.set_xlim(-10, 115)
        legend_below(figure, losses, columns=4)
        said = "; ".join(
            f"{row['arm'].replace('_', ' ')} ({row['states']}) {row['verdict']}"
            for row in arms.to_dict("records")
            if row["above"] == row["above"]
        )
        caption = (
            "**Training packed weights in place.** Mean and range over seeds; every arm starts "
            "from the same quantised model. b: share of 4-bit codes. c: a layer shrinks by weight "
            "decay alone, without gradients; how much of what is asked for its 4-bit weights do, "
            f"with 95 % intervals over seeds. {said}. "
            f"{basis(arms, scale)}"
        )
        return figure, caption
