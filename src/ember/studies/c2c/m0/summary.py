"""Accuracies by stratum with intervals, paired with the receiver alone; times by stage."""

from collections.abc import Mapping, Sequence

import numpy as np

from ember.measure.statistics import bootstrap, estimate, paired
from ember.studies.c2c.compare import adjust
from ember.studies.c2c.m0.tables import C2C_ANSWERS, C2C_M0, C2C_SPEED, C2C_STAGES, STRATA
from ember.studies.rows import grouped, records, summary_row, with_ends
from ember.studies.steps import makes


@makes(C2C_M0)
def summarise_baselines(
    answers: Sequence, *, choices: int, recipe: str, resamples: int, seed: int
) -> list[dict]:
    """Rows of C2C_M0 from tables C2C_ANSWERS, one a seed."""
    rng = np.random.default_rng(seed)
    rows = records(answers, C2C_ANSWERS)
    methods, found = grouped(rows, "method"), []
    for stratum in STRATA:
        some = {
            method: [row for row in group if stratum in ("all", row["stratum"])]
            for (method,), group in methods.items()
        }
        if not some["receiver"]:
            continue
        compared = [
            _row(method, group, some["receiver"], rng, resamples) for method, group in some.items()
        ]
        adjust(compared, "p", "p_holm")
        said = {"stratum": stratum, "chance": 1 / choices, "recipe": recipe}
        found += [row | said for row in compared]
    return found


def _row(method: str, rows: Sequence[Mapping], receiver, rng, resamples: int) -> dict:
    counts = by_text(rows)
    accuracy, low, high = estimate(bootstrap(counts, rng, resamples, share))
    seeds = [share(by_text(group)[None])[0] for group in grouped(rows, "seed").values()]
    row = dict.fromkeys(C2C_M0.names) | {name: rows[0][name] for name in ABOUT}
    row |= {
        "method": method,
        "questions": len(rows),
        "groups": len(counts),
        "seeds": len(seeds),
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "seed_min": float(min(seeds)),
        "seed_max": float(max(seeds)),
        "bytes": float(np.mean([one["bytes"] for one in rows])),
    }
    if method != "receiver":
        gained = counts[:, 0] - by_text(receiver)[:, 0]
        pairs = np.stack([gained, counts[:, 1]], 1)
        row |= with_ends("gain", estimate(bootstrap(pairs, rng, resamples, share)))
        row["p"] = paired(gained, np.zeros(len(gained)), rng, resamples)["p"]
    return row


ABOUT = ("device", "dtype", "model", "weights", "evidence")


def by_text(rows: Sequence[Mapping]) -> np.ndarray:
    """(texts, 2): right answers and questions of each text, in the rows' order."""
    groups = grouped(rows, "seed", "group").values()
    return np.array([[sum(row["correct"] for row in one), len(one)] for one in groups], float)


def share(drawn: np.ndarray) -> np.ndarray:
    """Accuracy of (m, texts, 2)."""
    return drawn[..., 0].sum(1) / drawn[..., 1].sum(1)


@makes(C2C_SPEED)
def summarise_speed(runs) -> list[dict]:
    """Rows of C2C_SPEED from a table C2C_STAGES."""
    rows, found = records(runs, C2C_STAGES), []
    for group in grouped(rows, "batch_size", "compiled", "shared").values():
        row, _ = summary_row(C2C_SPEED, group)
        row["same_answers"] = all(one["same_answers"] for one in group)
        found.append(row)
    slowest = min(found, key=lambda row: (row["compiled"], row["shared"], row["batch_size"]))
    for row in found:
        row["speed_up"] = slowest["total_ms_median"] / row["total_ms_median"]
    return found
