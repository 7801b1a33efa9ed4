"""Layer schedules against the FP16 channel and each other, and sensitivities (C-M6)."""

from collections.abc import Mapping, Sequence

import numpy as np

from ember.records.schema import MEASURED_ON
from ember.studies.c2c.compare import FULL, Comparison, adjust
from ember.studies.c2c.layers.tables import C2C_M6, C2C_SCHEDULES, C2C_SENSITIVITY
from ember.studies.c2c.point_tables import C2C_POINTS
from ember.studies.rows import grouped, records, with_ends
from ember.studies.steps import makes


@makes(C2C_M6)
def summarise_layers(
    runs: Sequence, schedules: Sequence, *, judged: Mapping, seed: int, resamples: int
) -> list[dict]:
    """Rows of C2C_M6 from tables C2C_POINTS and C2C_SCHEDULES.

    An optimum is compared with the heuristic that takes as many bytes, or with its own schemes
    backwards; beside it stands the mean of random orders.
    """
    told = {row["schedule"]: row for row in records(schedules, C2C_SCHEDULES)}
    made = Comparison(runs, judged["strata"], seed, resamples)
    rows = made.rows("layers", judged["margin"])
    names = {row["schedule"]: row["point"] for row in rows}
    for row in rows:
        schedule = told.get(row["schedule"], {})
        rival = schedule.get("rival")
        row |= dict.fromkeys(C2C_M6.names[len(row) :]) | {"kind": schedule.get("kind")}
        if rival not in names:
            continue
        ours, theirs = (
            made.points["layers", point][row["stratum"]] for point in (row["point"], names[rival])
        )
        over, p = made.difference(ours.correct, theirs.correct, ours)
        row |= {
            "rival": rival,
            "rival_accuracy": float(theirs.correct.mean()),
            **with_ends("over_rival", over),
            "over_rival_p_holm": p,
        }
    adjust(rows, "over_rival_p_holm", "over_rival_p_holm")
    return rows


@makes(C2C_SENSITIVITY)
def summarise_sensitivity(runs: Sequence, *, stratum: str, seed: int, resamples: int) -> list[dict]:
    """Rows of C2C_SENSITIVITY from tables C2C_POINTS on the development split."""
    found = []
    for (world,), of_world in grouped(records(runs, C2C_POINTS), "world").items():
        made = Comparison([of_world], [stratum], seed, resamples)
        full = made.points["layers", FULL][stratum]
        for (_, point), strata in made.points.items():
            ours = strata[stratum]
            if point == FULL:
                continue
            name = ours.rows[0]["schedule"].removeprefix("only")
            layer, _, scheme = name.partition("-")
            schemes = ours.rows[0]["schemes"].split(",")
            nll = [np.concatenate([row["nll"] for row in one.rows]) for one in (ours, full)]
            loss, _ = made.difference(*nll, ours)
            found.append(
                {
                    "world": world,
                    "layer": int(layer),
                    "targets": ",".join(str(n) for n, one in enumerate(schemes) if one == scheme),
                    "scheme": scheme,
                    "questions": len(ours.correct),
                    **with_ends("loss", loss),
                    "accuracy_change": float((ours.correct - full.correct).mean()),
                    **{column.name: ours.rows[0][column.name] for column in MEASURED_ON},
                }
            )
    return found
