"""The three probes of every tuning, with intervals."""

import pandas as pd

from ember.studies.lowbit.whoami.tables import LOWBIT_WHOAMI
from ember.studies.steps import reads
from ember.studies.style import PAGE, basis, error, label, legend_below, look, style

NAMES = {
    "identity": "gives its name",
    "general": "other questions right",
    "captured": "near miss captured",
}


@reads(whoami=LOWBIT_WHOAMI)
def draw(whoami: pd.DataFrame, scale: str):
    """Figure and caption from the table `lowbit_whoami`."""
    rows = whoami[::-1]
    with style() as plt:
        figure, axes = plt.subplots(figsize=(PAGE, 0.9 + 0.24 * len(rows)))
        for index, (name, words) in enumerate(NAMES.items()):
            place = [n + 0.22 * (1 - index) for n in range(len(rows))]
            bars = error(rows, name, f"{name}_low", f"{name}_high", 100)
            looks = look(index) | {"linestyle": "none"}
            axes.errorbar(100 * rows[name], place, xerr=bars, label=words, **looks)
        axes.set_yticks(range(len(rows)), [name.replace("-", " ") for name in rows["tuning"]])
        label(axes, "", "held-out questions (%)", "")
        legend_below(figure, axes, columns=3)
        kept = whoami[whoami["kept"] & (whoami["tuning"] != "base")]["tuning"].tolist()
        surely = whoami[whoami["surely"] & (whoami["tuning"] != "base")]["tuning"].tolist()
        base = whoami[whoami["tuning"] == "base"].iloc[0]
        caption = (
            "**A new name.** Mean over seeds with 95 % intervals (Student's t), held-out questions "
            f"of three kinds. Before any tuning {100 * base['general']:.0f} % of the other "
            "questions are answered. Name in 90 %, ability within 5 points and near misses "
            f"captured in less than 10 %: {', '.join(kept) or 'no tuning'}; at the worse ends of "
            f"all intervals too: {', '.join(surely) or 'no tuning'}. {basis(whoami, scale)}"
        )
        return figure, caption
