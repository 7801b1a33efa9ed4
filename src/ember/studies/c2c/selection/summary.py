"""Selectors against the FP16 channel and against `back` at equal bytes (C-M8)."""

from collections.abc import Mapping, Sequence

from ember.measure.statistics import summarise
from ember.studies.c2c.compare import Comparison, adjust, at_equal_bytes, verdict
from ember.studies.c2c.selection.tables import (
    C2C_M8,
    C2C_M8_STAGES,
    C2C_OVERLAP,
    C2C_STAGE_TIMES,
)
from ember.studies.rows import grouped, records, summary_row, with_ends
from ember.studies.steps import makes

USUAL = ("scheme", "axis", "symmetric", "group", "eps", "scope", "scatter_fill")
"""What `back` has in common with the point that it is compared with."""


@makes(C2C_M8)
def summarise_selection(
    runs: Sequence, *, oracles: Sequence[str], judged: Mapping, seed: int, resamples: int
) -> list[dict]:
    """Rows of C2C_M8 from tables C2C_POINTS."""
    made = Comparison(runs, judged["strata"], seed, resamples)
    rows = made.rows("selection", judged["margin"])
    for row in rows:
        row |= dict.fromkeys(C2C_M8.names[len(row) :]) | {"oracle": row["mode"] in oracles}
        if row["mode"] in ("all", "back"):
            continue
        ladder = [
            made.points["selection", other["point"]][row["stratum"]]
            for other in rows
            if other["mode"] in ("all", "back")
            and other["stratum"] == row["stratum"]
            and _alike(row, other)
        ]
        ours = made.points["selection", row["point"]][row["stratum"]]
        back = at_equal_bytes(ladder, row["measured_bytes"])
        if back is None:
            continue
        over, p = made.difference(ours.correct, back, ours)
        row |= {
            "back_accuracy": float(back.mean()),
            **with_ends("over_back", over),
            "over_back_p_holm": p,
            "verdict": verdict(*over[1:]),
        }
    adjust(rows, "over_back_p_holm", "over_back_p_holm")
    return rows


def _alike(row: Mapping, other: Mapping) -> bool:
    """Whether `other` is of the same channel; of all tokens nothing is filled in."""
    names = USUAL[:-1] if other["mode"] == "all" else USUAL
    return all(row[name] == other[name] for name in names)


@makes(C2C_OVERLAP)
def join_overlap(runs: Sequence) -> list[dict]:
    """Rows of C2C_OVERLAP of all worlds."""
    return records(runs, C2C_OVERLAP)


@makes(C2C_M8_STAGES)
def summarise_stages(runs: Sequence) -> list[dict]:
    """Rows of C2C_M8_STAGES from tables C2C_STAGE_TIMES; runs of all worlds count alike."""
    rows = records(runs, C2C_STAGE_TIMES)
    found = []
    every = {
        mode: summarise(
            [r["project_ms"] for r in some if r["proportion"] == 1 and not r["sparse_fuse"]]
        )["median"]
        for (mode,), some in grouped(rows, "mode").items()
    }
    for group in grouped(rows, "mode", "proportion", "sparse_fuse").values():
        row, _ = summary_row(C2C_M8_STAGES, group)
        row["project_share"] = row["project_ms_median"] / every[row["mode"]]
        found.append(row)
    return found
