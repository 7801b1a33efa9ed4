"""Final losses by arm, paired by seed with those of a float32 master copy."""

import numpy as np

from ember.measure.statistics import few
from ember.studies.lowbit.arms.tables import ARM_RUNS, DECAY_RUNS, LOWBIT_ARMS
from ember.studies.rows import grouped, records, summary_row, with_ends
from ember.studies.steps import makes

MASTER = ("master_float32", "float32")


@makes(LOWBIT_ARMS)
def summarise_arms(runs, decays) -> list[dict]:
    """Rows of LOWBIT_ARMS, of the tables of all seeds."""
    alone = grouped(records(decays, DECAY_RUNS), "arm", "states")
    groups = grouped(records(runs, ARM_RUNS), "arm", "states")
    last = max(run["step"] for some in groups.values() for run in some)
    master = {run["seed"]: run["val_loss"] for run in groups.get(MASTER, ()) if run["step"] == last}
    rows = []
    for variant, some in groups.items():
        ended = [run for run in some if run["step"] == last]
        row, _ = summary_row(LOWBIT_ARMS, ended)
        began = [run["val_loss"] for run in some if run["step"] == 0]
        steps = [run["changed"] for run in some if run["changed"] is not None]
        row |= {"steps": last, "changed": float(np.mean(steps))}
        row["learned"] = float(np.mean(began)) - row["val_loss_mean"]
        if variant != MASTER and master:
            row |= with_ends("above", few([r["val_loss"] - master[r["seed"]] for r in ended]))
            row["above_share"] = row["above"] / float(np.mean(list(master.values())))
        rows.append(row | _decay(alone[variant]) | {"verdict": _verdict(row)})
    return rows


def _decay(some: list[dict]) -> dict:
    """Columns of the weight decay by itself."""
    masters = [
        run["master_decayed"] / run["wanted"] for run in some if run["master_decayed"] is not None
    ]
    return {
        **with_ends("decay", few([run["decayed"] / run["wanted"] for run in some])),
        "decay_master": float(np.mean(masters)) if masters else None,
        "decay_changed": float(np.mean([run["changed"] for run in some])),
    }


def _verdict(row: dict) -> str:
    if row["changed"] == 0:
        return "no code ever changes: the training is none"
    if row["above"] is None:
        return "the reference"
    if row["above_low"] <= 0 <= row["above_high"]:
        return "no difference to the float32 master"
    worse = "worse" if row["above"] > 0 else "better"
    near = "within 2 %" if abs(row["above_share"]) <= 0.02 else "beyond 2 %"
    return f"{worse} than the float32 master, {near} of its loss"
