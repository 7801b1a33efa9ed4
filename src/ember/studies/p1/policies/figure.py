"""Figure 3: what cache policies save over the rounds of an RL loop, and what a round takes."""

from collections.abc import Mapping

import pandas as pd

from ember.policies.cost import KEPT
from ember.studies.p1.policies.tables import CUMULATIVE_COST, POLICY_MEMORY
from ember.studies.steps import reads
from ember.studies.style import COLOURS, LINES, MARKERS, PAGE, basis, panel, style

OPERATING = ["point", "rows", "sharing", "learner", "recurrence"]
# Parts of a bar, the terms that they are made of and their hatching: what is modelled is hollow.
TIMES = {
    "prefill": (("prefill", "first_step"), "//////"),
    "correction": (("correction",), "xxxxxxxx"),
    "decode": (("decode", "sampling", "transfer", "host"), ""),
    "KV from and to the host": (("store",), "------"),
    "learner": (("update", "learner"), "....."),
}
MEMORY = {
    "weights": ("weights", ""),
    "KV of the round": ("round", "//////"),
    "more for the learner": ("learner", "....."),
    "kept across rounds": ("kept", "xxxxxxxx"),
}
LITTLE = 0.05  # of the loop: savings below it are named
_INK = "#444444"
_SMALL = {"fontsize": 6, "va": "center"}


@reads(cost=CUMULATIVE_COST, memory=POLICY_MEMORY)
def draw(cost: pd.DataFrame, memory: pd.DataFrame, rounds: Mapping, scale: str):
    """Figure and caption from the tables `cumulative_cost` and `policy_memory`, at the operating
    point of each workload that comes first; `rounds` is the configured loop."""
    shown = [_first(cost[cost["point"] == point]) for point in cost["point"].drop_duplicates()]
    names = _names(shown[0])
    looks = _looks(names)
    needs = memory.merge(shown[0][OPERATING].drop_duplicates()).set_index("policy")
    letters = iter("abcdefgh")
    with style() as plt:
        figure = plt.figure(figsize=(PAGE, 5.0))
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.35))
        panels = above.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, rows in zip(panels, shown, strict=True):
            _savings(axes, rows, looks)
            panel(axes, f"{next(letters)}  {_lengths(rows)}")
        panels[0].set_ylabel("rollout time saved (%)")
        bars, room = below.subplots(1, 2, width_ratios=(1.75, 1), sharey=True)
        _steady(bars, shown[0], names, looks)
        panel(bars, f"{next(letters)}  A steady round, {_lengths(shown[0])}")
        _memory(room, needs.loc[list(names)], names)
        panel(room, f"{next(letters)}  Memory")
        return figure, _caption(needs, shown, rounds, scale)


def _first(rows):
    """The rows of the operating point that comes first."""
    return rows.merge(rows[OPERATING].iloc[:1])


def _lengths(rows) -> str:
    return "{context} in, {generation} out".format(**rows.iloc[0])


def _names(rows) -> dict[str, str]:
    """Short names of the policies that are drawn; of those that cost the same in every round the
    first stands for all."""
    totals = rows.pivot(index="policy", columns="round", values="cumulative_s").round(9)
    labels = rows.drop_duplicates("policy").set_index("policy")["label"]
    alike: dict[tuple, list[str]] = {}
    for policy in labels.index:
        alike.setdefault(tuple(totals.loc[policy]), []).append(policy)
    return {same[0]: " = ".join(_short(labels[one]) for one in same) for same in alike.values()}


def _short(label: str) -> str:
    shorter = {
        "Update locality": "Locality",
        " layers frozen": " frozen",
        "Salted by version": "Salted",
        "Updatable KV, rank ": "Updatable r",
        "efresh every ": "efresh ",
        " rounds": "",
        "shared prefix": "prefix",
    }
    for long, short in shorter.items():
        label = label.replace(long, short)
    return label


def _looks(names) -> dict[str, dict]:
    """A colour, marker and line for each policy but Naive."""
    colours = (*COLOURS, "#000000")
    looks = {}
    for i, policy in enumerate(policy for policy in names if policy != "naive"):
        n = i % len(MARKERS)
        looks[policy] = {"color": colours[i % len(colours)], "marker": MARKERS[n]}
        looks[policy] |= {"linestyle": LINES[n], "markersize": 3.5}
    return looks


def _savings(axes, rows, looks) -> None:
    """Saved of all rollouts so far, with paired intervals."""
    axes.axhline(0, color=_INK, linewidth=0.8)
    for number, (policy, look) in enumerate(looks.items()):
        group = rows[rows["policy"] == policy].sort_values("round")
        saved, low, high = (100 * group[f"rollout_saved{end}"] for end in ("", "_low", "_high"))
        every = max(1, len(group) // 4)
        marks = {"markevery": (number % every, every), "linewidth": 1}
        axes.plot(group["round"], saved, **look | marks)
        axes.fill_between(group["round"], low, high, color=look["color"], alpha=0.2, linewidth=0)
    axes.set_xlim(1, rows["round"].max())
    axes.set_xlabel("round")


def _steady(axes, rows, names, looks) -> None:
    """Seconds of a round, in the mean from the second on, and what the whole loop saves."""
    steady = rows[rows["round"] > min(1, rows["round"].max() - 1)]
    steady = steady.groupby("policy").mean(numeric_only=True).loc[list(names)]
    parts = {
        part: (steady[[f"{term}_s" for term in terms]].sum(axis=1), hatch)
        for part, (terms, hatch) in TIMES.items()
    }
    widest = _stack(axes, parts, names)
    last = rows[rows["round"] == rows["round"].max()].set_index("policy")
    for place, policy in enumerate(names):
        words = "% of the loop saved"
        if policy in looks:
            look = {key: looks[policy][key] for key in ("color", "marker")}
            outside = {"transform": axes.get_yaxis_transform(), "clip_on": False}
            axes.plot([-0.022], [place], **look, **outside, markersize=4)
            words = _percent(last.loc[policy], "round")
        axes.text(steady.loc[policy, "round_s"] + widest / 60, place, words, **_SMALL)
    axes.set_xlim(0, 1.28 * widest)
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.tick_params(axis="y", pad=9, length=0)
    axes.set_xlabel("seconds a round, modelled")


def _memory(axes, needs, names) -> None:
    """Gigabytes by what they are, beside the device's."""
    engine = needs["weight_bytes"] + needs["round_kv_bytes"]
    sizes = {
        "weights": needs["weight_bytes"],
        "round": needs["round_kv_bytes"],
        "learner": (needs["learner_bytes"] - engine).clip(lower=0),
        "kept": needs[[f"kept_{part}_bytes" for part in KEPT]].sum(axis=1),
    }
    widest = _stack(
        axes, {part: (sizes[size] / 1e9, hatch) for part, (size, hatch) in MEMORY.items()}, names
    )
    device = needs["device_bytes"].iloc[0] / 1e9
    near = device < 2 * widest
    if near:
        axes.axvline(device, color=COLOURS[1], linewidth=1.2)
    axes.set_xlim(0, 1.12 * max(widest, device * near))
    axes.set_xlabel(f"GB; the device has {device:.3g}" + (" (line)" if near else ""))


def _stack(axes, parts: Mapping, names) -> float:
    """Hollow stacked bars, one a policy, by part; gives the longest one's length."""
    left = 0.0
    for part, (widths, hatch) in parts.items():
        if (widths > 0).any():
            look = {"facecolor": "white", "edgecolor": _INK, "hatch": hatch, "linewidth": 0.6}
            axes.barh(range(len(names)), widths, left=left, height=0.7, label=part, **look)
            left = left + widths
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    columns = {"ncols": 2, "handlelength": 1.8, "columnspacing": 1.0}
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), **columns)
    return float(left.max())


def _percent(row, name: str) -> str:
    found = [100 * row[f"{name}_saved{end}"] for end in ("", "_low", "_high")]
    return "{:.1f} [{:.1f}, {:.1f}]".format(*found)


def _caption(needs, shown, rounds: Mapping, scale: str) -> str:
    first = shown[0].iloc[0]
    form = {"shared_prompt": "once for all its completions", "independent": "for each completion"}
    last = [rows[(rows["round"] == rows["round"].max())] for rows in shown]
    return (
        f"**Figure 3. What cache policies save over {rounds['rounds']} rounds of "
        f"{rounds['prompts']} prompts × {rounds['candidates']} candidates (modelled).** Above: "
        "time saved of all rollouts so far, against recomputing every prompt once a round (Naive); "
        "bands: 95 % bootstrap over repeats, both arms resampled together. Below: seconds of a "
        "round, in the mean from the second on, beside them what the whole loop saves once the "
        "learner counts; and memory. Bars are hollow because they are modelled, from measured "
        f"calls of the engine with {first['rows']} rows, its prefills plan by plan, the "
        f"replacement of the adapter, and a micro-batch of the learner ({first['micro_batch']}; a "
        f"prompt runs {form[first['learner']]}), scaled to the round's tokens. "
        f"{_scaled(first, rounds)}The price with the fewest repeats has n = {first['n']}, all of "
        "one process: intervals say how these repeats scatter, not what another machine or hour "
        f"would give. Policies that cost the same share a row. {_placed(needs)} "
        f"{_negative(last[0])}Nothing here says what stale KV costs in quality. "
        f"{basis(shown[0], scale)}\n\nSaved against Naive over all rounds (%):\n\n"
        + "\n".join(
            f"- {row['point']}, {row['label']}: prefill {_percent(row, 'prefill')}, rollout "
            f"{_percent(row, 'rollout')}, round {_percent(row, 'round')}."
            for rows in last
            for row in rows[rows["policy"] != "naive"].to_dict("records")
        )
    )


def _scaled(first, rounds: Mapping) -> str:
    if first["call_prompts"] == rounds["prompts"]:
        return ""
    return f"The calls were of {first['call_prompts']} prompts and are scaled too. "


def _placed(needs) -> str:
    elsewhere = needs[needs["placement"] != "device"]
    unknown = "" if needs["learner_bytes"].all() else " The learner's memory is not known here."
    if elsewhere.empty:
        return f"All of them fit the device.{unknown}"
    found = ", ".join(f"{r['label']} ({r['placement']})" for r in elsewhere.to_dict("records"))
    return f"What these keep is not on the device: {found}.{unknown}"


def _negative(last) -> str:
    """What freezing alone saves, and what is hardly worth it."""
    rows = [row for row in last.to_dict("records") if row["policy"] != "naive"]
    frozen = [row for row in rows if row["policy"].startswith("naive")]
    little = [row["label"] for row in rows if row["round_saved"] < LITTLE and row not in frozen]
    said = "".join(
        f"Freezing saves the learner a part in every arm that freezes: {row['label']} alone saves "
        f"{_percent(row, 'round')} % of the loop. "
        for row in frozen
    )
    if little:
        said += f"Less than {100 * LITTLE:.0f} % of the loop: {'; '.join(little)}. "
    return said
