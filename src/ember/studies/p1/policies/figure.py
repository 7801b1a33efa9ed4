"""Figure 3: cumulative cost of the cache policies over the rounds of an RL loop (P1-6.1)."""

from collections.abc import Mapping

import pandas as pd

from ember.studies.p1.policies.tables import CUMULATIVE_COST
from ember.studies.steps import reads
from ember.studies.style import COLOURS, LINES, MARKERS, PAGE, basis, device_time, error, style

SHARINGS = {"independent": "each candidate prefills", "shared": "candidates share the prompt's KV"}


@reads(cost=CUMULATIVE_COST)
def draw(cost: pd.DataFrame, rounds: Mapping, scale: str):
    """Figure and caption from the table `cumulative_cost`; `rounds` is the configured loop."""
    points = list(dict.fromkeys(zip(cost["context"], cost["generation"], strict=True)))
    policies = list(dict.fromkeys(cost["policy"]))
    looks = {policy: (COLOURS[i], LINES[i]) for i, policy in enumerate(policies)}
    with style() as plt:
        figure, axes = plt.subplots(
            2, len(points), figsize=(PAGE, 4.6), squeeze=False, height_ratios=(1.2, 1), sharey="row"
        )
        for column, (context, generation) in enumerate(points):
            rows = cost[(cost["context"] == context) & (cost["generation"] == generation)]
            _cumulative(axes[0][column], rows[rows["sharing"] == "independent"], looks)
            axes[0][column].set_title(f"context {context}, {generation} generated")
            _savings(axes[1][column], rows, looks)
        axes[0][0].set_ylim(bottom=0)  # after all panels: it ends their common autoscaling
        axes[0][0].set_ylabel(f"cumulative {device_time(cost['device'].iloc[0])} (s)")
        axes[0][0].legend(loc="upper left")
        _sharing_legend(axes[1][0], figure)
        return figure, _caption(cost, points, rounds, scale)


def _cumulative(axes, rows, looks) -> None:
    for policy, group in rows.groupby("policy", sort=False):
        group = group.sort_values("round")
        colour, line = looks[policy]
        label = _short(group["label"].iloc[0])
        axes.plot(group["round"], group["cumulative_s"], color=colour, linestyle=line, label=label)
        band = {"color": colour, "alpha": 0.15, "linewidth": 0}
        axes.fill_between(
            group["round"], group["cumulative_low_s"], group["cumulative_high_s"], **band
        )
    axes.set_xlim(left=1)
    axes.set_xlabel("round")


def _savings(axes, rows, looks) -> None:
    last = rows[rows["round"] == rows["round"].max()]
    policies = [policy for policy in looks if policy != "naive"]
    labels = last.drop_duplicates("policy").set_index("policy")["label"]
    for offset, sharing in enumerate(SHARINGS):
        group = last[last["sharing"] == sharing].set_index("policy")
        for place, policy in enumerate(policies):
            row = group.loc[[policy]]
            bars = error(row, "savings_vs_naive", "savings_low", "savings_high", 100)
            at = (100 * row["savings_vs_naive"], [place + 0.24 * (offset - 0.5)])
            axes.errorbar(*at, xerr=bars, color=looks[policy][0], **_marker(offset))
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set_yticks(range(len(policies)), [_several_lines(labels[policy]) for policy in policies])
    axes.set_ylim(len(policies) - 0.5, -0.5)
    axes.set_xlabel("saved against Naive (%)")


def _marker(offset: int) -> dict:
    return {"marker": MARKERS[offset], "markerfacecolor": "white" if offset else None}


def _sharing_legend(axes, figure) -> None:
    grey = {"color": "#444444", "linestyle": "none"}
    handles = [
        axes.plot([], [], **grey, **_marker(offset), label=label)[0]
        for offset, label in enumerate(SHARINGS.values())
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(SHARINGS))


def _short(label: str) -> str:
    """A policy's name without its parameters, and whether a refresh is added to it."""
    name, _, parameters = label.partition(",")
    _, _, added = parameters.partition(" + ")
    return name + (" + refresh" if added.startswith("refresh") else "")


def _several_lines(label: str) -> str:
    """Parameters below the policy's name, which keeps the panels wide."""
    return label.replace(", ", "\n").replace(" + ", "\n+ ")


def _caption(cost, points, rounds: Mapping, scale: str) -> str:
    last = cost[(cost["round"] == cost["round"].max()) & (cost["policy"] != "naive")]
    sentences = []
    for context, generation in points:
        for sharing, label in SHARINGS.items():
            rows = last[
                (last["context"] == context)
                & (last["generation"] == generation)
                & (last["sharing"] == sharing)
            ]
            found = ", ".join(
                f"{row['label']} {100 * row['savings_vs_naive']:.1f} % "
                f"[{100 * row['savings_low']:.1f}, {100 * row['savings_high']:.1f}]"
                for row in rows.to_dict("records")
            )
            sentences.append(f"- {context}/{generation}, {label}: {found}.")
    return (
        f"**Figure 3. Cumulative cost of cache policies over {rounds['rounds']} rounds of "
        f"{rounds['prompts']} prompts × {rounds['candidates']} candidates (modelled).** Top: "
        "cumulative time if every candidate prefills its prompt. Bottom: time saved against Naive "
        "at the last round, with 95 % bootstrap intervals over the measured repeats. Composed from "
        "the measured rollout profile, prefix sweep, restart sweep and replacement of the "
        "adapter (from the second round on, the same for all policies); no constant enters. "
        "Training is not in it, and it says nothing about quality: stale KV "
        f"costs nothing here. {basis(cost, scale)}\n\nSaved against Naive:\n\n"
        + "\n".join(sentences)
    )
