"""Accuracy against bytes: every point, the front, and decisions (C-M4, C-R)."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ember.records.errors import EmberError
from ember.studies.c2c.budget.tables import C2C_DECISIONS, C2C_M4
from ember.studies.c2c.compare import FULL, Answers, Comparison, adjust, verdict
from ember.studies.c2c.layers.tables import CONTROLS
from ember.studies.c2c.selection.tables import C2C_M8
from ember.studies.rows import records
from ember.studies.steps import makes

SMALL, SMALLEST = 1 / 8, 1 / 32  # of FP16's bytes: the goals of C-R


class ByteDrift(EmberError):
    """Bytes are not what they are estimated to be."""


@makes(C2C_M4)
def summarise_budget(
    runs: Sequence, *, oracles: Sequence[str], judged: Mapping, seed: int, resamples: int
) -> list[dict]:
    """Rows of C2C_M4 from tables C2C_POINTS of all studies; a point that several measured stands
    once. Raises ByteDrift where bytes, headers apart, are off by more than `max_drift`."""
    made = Comparison(runs, judged["strata"], seed, resamples)
    found: dict[tuple, dict] = {}
    for row in made.rows(None, judged["margin"]):
        found.setdefault((row["point"], row["stratum"]), row)
    rows = list(found.values())
    for row in rows:
        check_drift(row, judged["max_drift"])
        row["oracle"] = row["mode"] in oracles
        row["accuracy_per_byte"] = row["accuracy"] / max(row["measured_bytes"], 1)
    for stratum in made.strata:
        mark_front([row for row in rows if row["stratum"] == stratum])
    adjust(rows, "p", "p_holm")
    return rows


def check_drift(row: Mapping, most: float) -> None:
    """Raises ByteDrift for a row of C2C_M4 whose content is not as large as estimated.

    A header's share of a payload of a few tokens is no error: it stands in `drift`.
    """
    if not row["include_scale_overhead"] or not row["estimated_bytes"]:
        return
    content = row["measured_bytes"] - row["header_bytes"]
    drift = (content - row["estimated_bytes"]) / row["estimated_bytes"]
    if abs(drift) > most:
        raise ByteDrift(
            f"{row['point']}: {content:.0f} bytes are sent without the header, estimated were "
            f"{row['estimated_bytes']:.0f} ({100 * drift:+.0f} %).\nOne of them is computed from "
            "another shape: compare `ember.c2c.channel` with `ember c2c inspect` of a blob."
        )


def mark_front(rows: Sequence[dict]) -> None:
    """Marks rows that none is as accurate as with fewer bytes; oracles and controls aside."""
    best = -1.0
    for row in sorted(rows, key=lambda row: (row["measured_bytes"], -row["accuracy"])):
        chosen = not (row["oracle"] or row["schedule"].startswith(CONTROLS))
        row["front"] = row["accuracy"] > best and chosen
        best = max(best, row["accuracy"]) if row["front"] else best


@makes(C2C_DECISIONS)
def decide_channel(
    budget,
    selection,
    runs: Sequence,
    development: Sequence,
    *,
    judged: Mapping,
    seed: int,
    resamples: int,
) -> list[dict]:
    """Rows of C2C_DECISIONS from tables C2C_M4, C2C_M8 and C2C_POINTS (of the test split, and of
    the development split); about the first stratum."""
    stratum = judged["strata"][0]
    made = Comparison(runs, judged["strata"], seed, resamples)
    rows = [row for row in records(budget, C2C_M4) if row["stratum"] == stratum]
    chosen = [row for row in records(selection, C2C_M8) if row["stratum"] == stratum]
    found = [
        *_expectations(made, stratum, rows),
        *_goals(rows, chosen),
        *_tripwires(made, stratum, rows, judged["max_drift"]),
        _difficulty(Comparison(development, [stratum], seed, resamples), judged["difficulty"]),
    ]
    adjust(found, "p", "p_holm")
    about = {name: rows[0][name] for name in ("model", "weights", "evidence")}
    return [dict.fromkeys(C2C_DECISIONS.names) | row | about for row in found]


def _expectations(made: Comparison, stratum: str, rows: Sequence[Mapping]) -> Iterable[dict]:
    """The programme's own (end of C-R), by paired differences."""
    answers = {point: strata[stratum] for (_, point), strata in made.points.items()}
    lasts = sorted(
        (row for row in rows if row["schedule"].startswith("last")),
        key=lambda row: row["measured_bytes"],
    )
    asked = [
        ("NF4 is at least INT4", "nf4-token", "int4-token", "at least"),
        (
            "INT8 with a shorter cache beats INT4 at equal bytes",
            "int8-token-back-0.5",
            "int4-token",
            "better",
        ),
    ]
    asked += [
        (f"random is below {mode} at {share:g}", f"int8-token-{mode}-{share:g}", other, "better")
        for share in (0.25, 0.1)
        for mode in ("vnorm_topk", "knorm_topk")
        for other in [f"int8-token-random-{share:g}"]
    ]
    asked += [
        (
            f"proj_vnorm is at least vnorm at {share:g}",
            f"int8-token-proj_vnorm_topk-{share:g}",
            f"int8-token-vnorm_topk-{share:g}",
            "at least",
        )
        for share in (0.5, 0.25, 0.1)
    ]
    if lasts:
        narrow = f"{lasts[0]['scheme']}-{lasts[0]['axis']}"
        asked.append(("a few last layers in FP16 help", lasts[0]["point"], narrow, "better"))
    if len(lasts) > 1:
        asked.append(
            (
                "more last layers in FP16 help little more",
                lasts[-1]["point"],
                lasts[0]["point"],
                "no difference",
            )
        )
    for question, point, other, wanted in asked:
        if point not in answers or other not in answers:
            continue
        ours, theirs = answers[point], answers[other]
        (value, low, high), p = made.difference(ours.correct, theirs.correct, ours)
        said = verdict(low, high)
        holds = {
            "better": said == "better",
            "at least": said != "worse",
            "no difference": said == "no difference",
        }[wanted]
        sizes = [one.mean("measured_bytes") for one in (ours, theirs)]
        note = (
            f"accuracy {ours.correct.mean():.3f} in {sizes[0]:.0f} bytes against "
            f"{theirs.correct.mean():.3f} in {sizes[1]:.0f}"
        )
        about = {"point": point, "other": other, "value": value, "low": low, "high": high, "p": p}
        yield _decision("expectation", question, said, holds, note) | about | _asked(ours)
    plain = [row for row in rows if not row["oracle"]]
    rank = _spearman(*(np.array([row[k] for row in plain]) for k in ("measured_bytes", "accuracy")))
    said = "it does" if rank > 0 else "it does not"
    note = f"Spearman's rank correlation over {len(plain)} points"
    falls = _decision("expectation", "accuracy falls with bytes", said, rank > 0, note)
    yield falls | {"value": rank}


def _goals(rows: Sequence[Mapping], chosen: Sequence[Mapping]) -> Iterable[dict]:
    full = next(row for row in rows if row["point"] == FULL)
    plain = [
        row
        for row in rows
        if not row["oracle"] and row["point"] != FULL and not row["schedule"].startswith(CONTROLS)
    ]
    best = max(plain, key=lambda row: row["accuracy_per_byte"])
    ratio = best["accuracy_per_byte"] / full["accuracy_per_byte"]
    yield _goal(
        "the best point beats FP16's accuracy per byte",
        best,
        ratio > 1,
        f"{ratio:.1f} times FP16's accuracy per byte, at accuracy {best['accuracy']:.3f}",
    )
    for share, what in ((SMALL, "1/8"), (SMALLEST, "1/32")):
        within = [row for row in plain if row["bytes_share"] <= share]
        question = f"non-inferior to FP16 within its margin at {what} of its bytes or fewer"
        if not within:
            note = f"the smallest takes {min(row['bytes_share'] for row in plain):.3f}"
            yield _decision("goal", question, "no point is so small", False, note)
            continue
        found = max(within, key=lambda row: row["difference_low"])
        yield _goal(
            question,
            found,
            found["non_inferior"],
            f"accuracy {found['accuracy']:.3f} in {found['bytes_share']:.4f} of FP16's bytes; the "
            f"best of {len(within)} points on the same questions; margin {found['margin']:g}",
        )
    rivals = [row for row in chosen if not row["oracle"] and row["over_back"] is not None]
    if rivals:
        found = max(rivals, key=lambda row: row["over_back_low"])
        better = [row["point"] for row in rivals if row["verdict"] == "better"]
        worse = sum(row["verdict"] == "worse" for row in rivals)
        question = "a selector that a sender can compute beats back at equal bytes"
        note = (
            f"of {len(rivals)} points {len(better)} are better and {worse} worse than "
            f"back; corrected p {found['over_back_p_holm']:.2g}"
        )
        beats = _decision("goal", question, found["verdict"], found["over_back_low"] > 0, note)
        yield beats | {"other": "back at equal bytes"} | _of(found, "over_back")


def _goal(question: str, row: Mapping, holds: bool, note: str) -> dict:
    said = "reached" if holds else "not reached"
    found = _decision("goal", question, said, bool(holds), note)
    return found | {"other": FULL} | _of(row, "difference")


def _decision(kind: str, question: str, verdict: str, holds: bool, note: str) -> dict:
    """What every decision says."""
    return {"kind": kind, "decision": question, "verdict": verdict, "holds": holds, "note": note}


def _of(row: Mapping, name: str) -> dict:
    """The point that a decision is about, by a row of a final table, and its estimate `name`."""
    ends = {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
    return {key: row[key] for key in ("point", "questions", "seeds")} | ends


def _asked(of: Answers) -> dict:
    return {"questions": len(of.correct), "seeds": len(of.by_world())}


def _tripwires(
    made: Comparison, stratum: str, rows: Sequence[Mapping], most: float
) -> Iterable[dict]:
    counted = [row for row in rows if row["include_scale_overhead"]]
    worst = max(counted, key=lambda row: abs(row["drift"]))
    over = [row for row in counted if abs(row["drift"]) > most]
    question = f"estimated and measured bytes differ by {100 * most:g} % at most"
    said = "they do" if not over else f"not of {len(over)} points"
    note = (
        f"the largest is of a payload of {worst['measured_bytes']:.0f} bytes, of which "
        f"{worst['header_bytes']:.0f} are header, which estimates leave out"
    )
    about = {"point": worst["point"], "value": worst["drift"]}
    yield _decision("tripwire", question, said, not over, note) | about
    different = []
    for (family, point), strata in made.points.items():
        first = next(of for (_, name), of in made.points.items() if name == point)
        if not np.array_equal(strata[stratum].correct, first[stratum].correct):
            different.append(f"{point} of {family}")
    question = "a point has the same answers in every study (all tokens sent is C-M1)"
    note = f"{len(made.points)} measurements of {len({p for _, p in made.points})} points"
    said = ", ".join(different) or "it has"
    yield _decision("tripwire", question, said, not different, note)
    backs = [row for row in rows if row["mode"] == "back"]
    fronts = [row for row in rows if row["front"] and row["mode"] not in ("all", "back")]
    said = f"{len(fronts)} points of other selectors are on the front"
    said = said if fronts else "no other selector is on the front"
    note = f"{sum(row['front'] for row in backs)} of {len(backs)} back points are on it"
    yield _decision("tripwire", "the baseline back does not dominate", said, bool(fronts), note)


def _difficulty(made: Comparison, target: Sequence[float]) -> dict:
    """Whether the world is as hard as it was meant to be, by the split that it is tuned on."""
    ((stratum, full),) = made.points["layers", FULL].items()
    accuracy, low, high = made.accuracy(full)
    floor, ceiling = target
    if accuracy < floor:
        said = "too hard: curves start near the ground"
    elif accuracy > ceiling:
        said = "too easy: curves fall late"
    else:
        said = "as hard as it was meant to be"
    worlds = ", ".join(f"{one:.3f}" for one in full.by_world())
    question = f"FP16 answers {100 * floor:g} to {100 * ceiling:g} % of {stratum} questions"
    note = (
        f"accuracy on the development split, by world {worlds}; the knobs are "
        "c2c.fuser.hidden and c2c.fuser.training.steps"
    )
    about = {"point": FULL, "value": accuracy, "low": low, "high": high} | _asked(full)
    return _decision("tripwire", question, said, floor <= accuracy <= ceiling, note) | about


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; equal values share their mean rank. 0 where one does not vary."""
    ranks = [_ranks(x) for x in (a, b)]
    if any(rank.std() == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(x: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    return (ends - (counts - 1) / 2)[inverse.reshape(-1)]
